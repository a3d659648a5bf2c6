// How kernels are started: grid sizes from the device at hand, and the status of every launch.
#pragma once

#include <cuda_runtime_api.h>

#include "common/portable.h"

namespace tocom
{

constexpr int32_t kThreads = 256;
constexpr int32_t kWarps = kThreads / 32;

//! The element type of tokens. Values are those of nvinfer1::DataType; op plugins check it with static_assert.
enum class TokenType : int32_t
{
    kFloat32 = 0,
    kFloat16 = 1,
    kBFloat16 = 7,
};

//! Return the multiprocessors of the current device, or 1 when it cannot be asked: only speed depends on it.
inline int32_t multiprocessors()
{
    int device = 0;
    int count = 1;
    if (cudaGetDevice(&device) != cudaSuccess
        || cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
    {
        return 1;
    }
    return count;
}

//! Start `kernel` with one argument structure; the status is this launch's own, not an older error's.
template <typename Arguments>
cudaError_t launch(void (*kernel)(Arguments), int64_t blocks, Arguments const& arguments, cudaStream_t stream)
{
    if (blocks == 0)
    {
        return cudaSuccess;
    }
    if (blocks > 0x7FFFFFFF)
    {
        return cudaErrorInvalidConfiguration;
    }
    Arguments copy = arguments;
    void* pointers[] = {&copy};
    dim3 const grid(static_cast<unsigned int>(blocks));
    return cudaLaunchKernel(reinterpret_cast<void const*>(kernel), grid, dim3(kThreads), pointers, 0, stream);
}

//! Return output rows per block: enough blocks to fill the device, enough rows to pay for each block's selection.
inline int32_t rows_per_block(int64_t batch, int32_t rows)
{
    constexpr int64_t kBlocksPerMultiprocessor = 8;
    int64_t const wanted = divide_up<int64_t>(batch * rows, multiprocessors() * kBlocksPerMultiprocessor);
    int64_t const warps = divide_up<int64_t>(wanted, kWarps);
    constexpr int64_t kMostRowsPerWarp = 8;
    return static_cast<int32_t>(kWarps * (warps < kMostRowsPerWarp ? (warps > 1 ? warps : 1) : kMostRowsPerWarp));
}

} // namespace tocom
