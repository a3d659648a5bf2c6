// The arithmetic of matching, shared by the kernels and the host tests.
// Source: ToMe, arXiv 2210.09461, section 3; ties go to the lower index.
#pragma once

#include "common/portable.h"
#include "common/selection.h"
#include "common/token_layout.h"

#include <cmath>

namespace tocom
{

//! What the first kernel leaves for the second: an A token's selection key and its best B token.
struct Match
{
    uint32_t key;
    int32_t partner;
};

//! The best B token seen so far for one A token.
struct BestPartner
{
    // A row without any comparable score (all NaN) still needs a partner that exists.
    float score = -INFINITY;
    int32_t partner = 0;

    //! Take a candidate seen after all with lower indices: only a higher score wins.
    TOCOM_SHARED void offer(float other_score, int32_t other)
    {
        if (other_score > score)
        {
            score = other_score;
            partner = other;
        }
    }

    //! Take the result of another scan, in any order: the higher score wins, then the lower index.
    TOCOM_SHARED void merge(BestPartner const& other)
    {
        if (other.score > score || (other.score == score && other.partner < partner))
        {
            *this = other;
        }
    }

    TOCOM_SHARED Match match() const
    {
        return Match{ascending_key(score), partner};
    }
};

//! Return the factor that makes a row of this squared length a unit row, as torch's normalize with eps 1e-12.
TOCOM_SHARED float inverse_length(float squares)
{
    float const length = sqrtf(squares);
    return 1.0F / (length > 1e-12F ? length : 1e-12F);
}

//! What stands in one output row.
struct OutputRow
{
    int32_t position; //!< The input token that is copied, or that others merge into.
    int32_t b_index;  //!< Its index among the B tokens, or -1 when nothing can have merged into it.
};

//! Return what stands in output row `row`: prefix, unmerged A ascending, B ascending.
template <int32_t Capacity>
TOCOM_SHARED OutputRow output_row(TokenSplit const& split, int32_t r, Selection<Capacity> const& selection, int32_t row)
{
    int32_t const first_b = split.prefix + split.a_count() - r;
    if (row < split.prefix)
    {
        return OutputRow{row, -1};
    }
    if (row < first_b)
    {
        return OutputRow{split.a_position(selection.unselected[row - split.prefix]), -1};
    }
    return OutputRow{split.b_position(row - first_b), row - first_b};
}

} // namespace tocom
