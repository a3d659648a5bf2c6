// How kernels are started: the device at hand, and the status of every launch.
#pragma once

#include <cuda_runtime_api.h>

#include "common/grid.h"

namespace tocom
{

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

} // namespace tocom
