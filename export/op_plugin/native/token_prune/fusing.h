// The arithmetic of pruning, shared by the kernel and the host tests.
// Source: EViT, arXiv 2202.07800, section 3 and equation 3.
#pragma once

#include "common/portable.h"
#include "common/selection.h"

namespace tocom
{

//! Return how many tokens leave: with fusion one more, because the fused token is one of those that stay.
TOCOM_SHARED int32_t removed_count(int32_t r, bool fuse)
{
    return fuse ? r + 1 : r;
}

//! Return the input token that output row `row` copies; the fused row, which copies none, is the caller's.
template <int32_t Capacity>
TOCOM_SHARED int32_t kept_position(int32_t prefix, Selection<Capacity> const& selection, int32_t row)
{
    return row < prefix ? row : prefix + selection.unselected[row - prefix];
}

//! Return a removed token's weight in the fused one: its share of the scores, or an equal share when they sum to 0.
TOCOM_SHARED float fuse_weight(float score, float sum, int32_t removed)
{
    return sum > 0.0F ? score / sum : 1.0F / static_cast<float>(removed);
}

} // namespace tocom
