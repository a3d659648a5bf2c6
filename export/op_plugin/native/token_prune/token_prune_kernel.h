// The kernel of TokenPrune behind one function. No TensorRT here.
#pragma once

#include "common/launch.h"

namespace tocom
{

//! Shapes and attributes of one call.
struct TokenPruneShape
{
    int64_t batch;
    int32_t tokens;
    int32_t channels;
    int32_t r;
    int32_t prefix;
    bool fuse;
    TokenType type;
};

//! Device addresses of one call. Tensors are contiguous.
struct TokenPruneTensors
{
    void const* x;                  //!< [batch, tokens, channels], of the shape's type.
    float const* score;             //!< [batch, tokens]; entries of the prefix are not read.
    void* y;                        //!< [batch, tokens - r, channels], of the shape's type.
    int32_t* destination = nullptr; //!< [batch, tokens]: where every token went, with fusion; nullptr else.
};

//! Return whether the op is defined for these shapes: 1 <= r <= (tokens - prefix) / 2, at most kMaxTokens tokens.
bool is_valid(TokenPruneShape const& shape);

//! Enqueue the op: one launch, no scratch, no allocation, no synchronization.
cudaError_t token_prune(TokenPruneShape const& shape, TokenPruneTensors const& tensors, cudaStream_t stream);

} // namespace tocom
