// The kernels behind a C interface, so that GPU tests and benchmarks run them without TensorRT.
// Every function returns a cudaError_t. Addresses are device addresses, that of `destination` may be null; `type` is a
// tocom::TokenType.

#include "token_merge/token_merge_kernel.h"
#include "token_prune/token_prune_kernel.h"

extern "C"
{

int64_t tocom_token_merge_workspace_bytes(int64_t batch, int32_t tokens, int32_t prefix)
{
    return tocom::token_merge_workspace_bytes(batch, tokens, prefix);
}

int32_t tocom_token_merge_launch(void const* x, void const* keys, float const* size, void* y, float* size_out,
    void* log_size, void* workspace, int32_t* destination, int64_t batch, int32_t tokens, int32_t channels,
    int32_t heads, int32_t head_channels, int32_t r, int32_t prefix, int32_t type, cudaStream_t stream)
{
    tocom::TokenMergeShape const shape{
        batch, tokens, channels, heads, head_channels, r, prefix, static_cast<tocom::TokenType>(type)};
    return tocom::token_merge(shape, {x, keys, size, y, size_out, log_size, workspace, destination}, stream);
}

int32_t tocom_token_prune_launch(void const* x, float const* score, void* y, int32_t* destination, int64_t batch,
    int32_t tokens, int32_t channels, int32_t r, int32_t prefix, int32_t fuse, int32_t type, cudaStream_t stream)
{
    tocom::TokenPruneShape const shape{
        batch, tokens, channels, r, prefix, fuse != 0, static_cast<tocom::TokenType>(type)};
    return tocom::token_prune(shape, {x, score, y, destination}, stream);
}

} // extern "C"
