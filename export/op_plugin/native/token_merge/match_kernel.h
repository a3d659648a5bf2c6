// First launch of TokenMerge: every A token's best B token, without the score matrix in memory.
#pragma once

#include "token_merge/matching.h"
#include "token_merge/token_merge_kernel.h"

namespace tocom
{

//! Write one Match per A token: `matches` is [batch, A tokens].
cudaError_t match_tokens(TokenMergeShape const& shape, void const* keys, Match* matches, cudaStream_t stream);

} // namespace tocom
