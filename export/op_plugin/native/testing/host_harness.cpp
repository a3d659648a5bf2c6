// The kernels' selection and index arithmetic as plain host functions with a C interface, for tests without a GPU.
//
// Compiled by the host compiler alone. What runs here is the very code that the kernels run, with HostBlock in place
// of a thread block; only the matrix product is written out as loops.

#include "common/errors.h"
#include "common/selection.h"
#include "common/token_layout.h"
#include "token_merge/matching.h"
#include "token_prune/fusing.h"

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace
{

using tocom::BestPartner;
using tocom::HostBlock;
using tocom::TokenSplit;

float length_factor(float const* row, int32_t channels)
{
    float squares = 0.0F;
    for (int32_t c = 0; c < channels; ++c)
    {
        squares += row[c] * row[c];
    }
    return tocom::inverse_length(squares);
}

float score_of(float const* a, float a_factor, float const* b, float b_factor, int32_t channels)
{
    float score = 0.0F;
    for (int32_t c = 0; c < channels; ++c)
    {
        score += (a[c] * a_factor) * (b[c] * b_factor);
    }
    return score;
}

thread_local std::string g_log;

void remember(char const* line)
{
    g_log = line;
}

int32_t require_even(int32_t value)
{
    TOCOM_REQUIRE(value % 2 == 0, "value must be even, got " << value);
    return tocom::kSuccess;
}

} // namespace

extern "C"
{

//! Select the `count` largest of float values; writes 1 for each selected one. `counting_limit` picks the
//! algorithm.
void tocom_host_select(
    float const* values, int32_t candidates, int32_t count, int32_t counting_limit, bool lowest, uint8_t* selected)
{
    auto selection = std::make_unique<tocom::Selection<tocom::kMaxTokens>>();
    for (int32_t i = 0; i < candidates; ++i)
    {
        selection->keys[i] = lowest ? tocom::descending_key(values[i]) : tocom::ascending_key(values[i]);
    }
    tocom::select_largest(HostBlock{}, *selection, candidates, count, counting_limit);
    for (int32_t i = 0; i < candidates; ++i)
    {
        selected[i] = selection->is_selected(i) ? 1 : 0;
    }
}

//! Write to `destination` [batch, tokens] the output position of every input token, found from the output rows.
void tocom_host_match(float const* metric, int32_t batch, int32_t tokens, int32_t channels, int32_t r, int32_t prefix,
    int32_t counting_limit, int64_t* destination)
{
    TokenSplit const split{tokens, prefix};
    auto selection = std::make_unique<tocom::Selection<tocom::kMaxTokens / 2>>();
    std::vector<int32_t> partner(split.a_count());
    for (int32_t sequence = 0; sequence < batch; ++sequence)
    {
        float const* const rows = metric + static_cast<int64_t>(sequence) * tokens * channels;
        std::vector<float> factor(tokens);
        for (int32_t token = 0; token < tokens; ++token)
        {
            factor[token] = length_factor(rows + static_cast<int64_t>(token) * channels, channels);
        }
        for (int32_t i = 0; i < split.a_count(); ++i)
        {
            int32_t const a = split.a_position(i);
            BestPartner best;
            for (int32_t j = 0; j < split.b_count(); ++j)
            {
                int32_t const b = split.b_position(j);
                best.offer(score_of(rows + static_cast<int64_t>(a) * channels, factor[a],
                               rows + static_cast<int64_t>(b) * channels, factor[b], channels),
                    j);
            }
            tocom::Match const match = best.match();
            selection->keys[i] = match.key;
            partner[i] = match.partner;
        }
        tocom::select_largest(HostBlock{}, *selection, split.a_count(), r, counting_limit);

        int64_t* const out = destination + static_cast<int64_t>(sequence) * tokens;
        for (int32_t token = 0; token < tokens; ++token)
        {
            out[token] = -1;
        }
        for (int32_t row = 0; row < tokens - r; ++row)
        {
            tocom::OutputRow const output = tocom::output_row(split, r, *selection, row);
            out[output.position] = row;
            for (int32_t i = 0; output.b_index >= 0 && i < split.a_count(); ++i)
            {
                if (selection->is_selected(i) && partner[i] == output.b_index)
                {
                    out[split.a_position(i)] = row;
                }
            }
        }
    }
}

//! Write the tokens that pruning keeps to `kept` [batch, tokens - removed], and the removed tokens' weights in the
//! fused one to `weight` [batch, tokens] (0 for kept tokens; only written with `fuse`).
void tocom_host_prune(float const* score, int32_t batch, int32_t tokens, int32_t r, int32_t prefix, bool fuse,
    int32_t counting_limit, int64_t* kept, float* weight)
{
    auto selection = std::make_unique<tocom::Selection<tocom::kMaxTokens>>();
    int32_t const removed = tocom::removed_count(r, fuse);
    int32_t const candidates = tokens - prefix;
    for (int32_t sequence = 0; sequence < batch; ++sequence)
    {
        float const* const scores = score + static_cast<int64_t>(sequence) * tokens;
        for (int32_t i = 0; i < candidates; ++i)
        {
            selection->keys[i] = tocom::descending_key(scores[prefix + i]);
        }
        tocom::select_largest(HostBlock{}, *selection, candidates, removed, counting_limit);
        for (int32_t row = 0; row < tokens - removed; ++row)
        {
            kept[static_cast<int64_t>(sequence) * (tokens - removed) + row] =
                tocom::kept_position(prefix, *selection, row);
        }
        float sum = 0.0F;
        for (int32_t i = 0; fuse && i < candidates; ++i)
        {
            sum += selection->is_selected(i) ? scores[prefix + i] : 0.0F;
        }
        for (int32_t token = 0; fuse && token < tokens; ++token)
        {
            bool const gone = token >= prefix && selection->is_selected(token - prefix);
            weight[static_cast<int64_t>(sequence) * tokens + token] =
                gone ? tocom::fuse_weight(scores[token], sum, removed) : 0.0F;
        }
    }
}

//! Drive the error macros: 0 passes, 1 fails a requirement, 2 throws, 3 throws no std::exception.
int32_t tocom_host_error(int32_t kind)
{
    tocom::LogSink const before = tocom::set_log_sink(remember);
    g_log.clear();
    int32_t const status = TOCOM_GUARDED(-2, {
        switch (kind)
        {
        case 2: throw std::runtime_error("thrown on purpose");
        case 3: throw 3;
        default: return require_even(kind);
        }
    });
    tocom::set_log_sink(before);
    return status;
}

//! Return the last line that tocom_host_error logged on this thread.
char const* tocom_host_log()
{
    return g_log.c_str();
}

} // extern "C"
