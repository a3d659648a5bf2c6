// Where tokens stand: the bipartite split of merging and the order of its outputs.
// Source: ToMe, arXiv 2210.09461, section 3 (A and B alternate); the prefix is protected.
#pragma once

#include "common/portable.h"

namespace tocom
{

//! The split of one sequence: A at even, B at odd absolute positions, both behind the prefix.
struct TokenSplit
{
    int32_t tokens;
    int32_t prefix;

    TOCOM_SHARED int32_t a_position(int32_t index) const
    {
        return ((prefix + 1) & ~1) + 2 * index;
    }

    TOCOM_SHARED int32_t b_position(int32_t index) const
    {
        return (prefix | 1) + 2 * index;
    }

    TOCOM_SHARED int32_t a_count() const
    {
        return count_from((prefix + 1) & ~1);
    }

    TOCOM_SHARED int32_t b_count() const
    {
        return count_from(prefix | 1);
    }

private:
    TOCOM_SHARED int32_t count_from(int32_t first) const
    {
        return tokens > first ? (tokens - first + 1) / 2 : 0;
    }
};

//! Most tokens that one block may remove: half of the unprotected ones.
TOCOM_SHARED int32_t removable(int32_t tokens, int32_t prefix)
{
    return tokens > prefix ? (tokens - prefix) / 2 : 0;
}

} // namespace tocom
