// The kernels of TokenMerge behind one function. No TensorRT here.
#pragma once

#include "common/launch.h"

namespace tocom
{

//! Shapes and attributes of one call.
struct TokenMergeShape
{
    int64_t batch;
    int32_t tokens;
    int32_t channels;
    int32_t heads;
    int32_t head_channels;
    int32_t r;
    int32_t prefix;
    TokenType type;
};

//! Device addresses of one call. Tensors are contiguous.
struct TokenMergeTensors
{
    void const* x;                  //!< [batch, tokens, channels], of the shape's type.
    void const* keys;               //!< [batch, heads, tokens, head_channels], of the shape's type.
    float const* size;              //!< [batch, tokens, 1].
    void* y;                        //!< [batch, tokens - r, channels], of the shape's type.
    float* size_out;                //!< [batch, tokens - r, 1].
    void* log_size;                 //!< [batch, 1, 1, tokens - r], of the shape's type.
    void* workspace;                //!< token_merge_workspace_bytes(), aligned to 8 bytes.
    int32_t* destination = nullptr; //!< [batch, tokens]: where every token went; nullptr where nobody asks.
};

//! Return whether the op is defined for these shapes: 1 <= r <= (tokens - prefix) / 2, at most kMaxTokens tokens.
bool is_valid(TokenMergeShape const& shape);

//! Return the bytes of scratch that one call needs.
int64_t token_merge_workspace_bytes(int64_t batch, int32_t tokens, int32_t prefix);

//! Enqueue the op: two launches, no allocation, no synchronization.
cudaError_t token_merge(TokenMergeShape const& shape, TokenMergeTensors const& tensors, cudaStream_t stream);

} // namespace tocom
