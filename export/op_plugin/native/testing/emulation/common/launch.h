// Stands in for common/launch.h in tests without a GPU: runs kernels on the host, 256 fibers to a block.
//
// One block runs at a time, its threads one after another between synchronization points, in one order or the reverse:
// a result that depends on the order of threads differs between the two. A warp operation that not all lanes of a warp
// reach, or a barrier that not all threads reach, ends in an error instead of a wrong result.
#pragma once

#include <cuda_runtime_api.h>

#include "common/grid.h"
#include "testing/emulation/simt.h"

namespace tocom
{

//! Few, so that small tests take the same paths as large ones do on a GPU.
inline int32_t multiprocessors()
{
    return emulation::g_multiprocessors;
}

template <typename Arguments>
cudaError_t launch(void (*kernel)(Arguments), int64_t blocks, Arguments const& arguments, cudaStream_t)
{
    return emulation::run(blocks, kThreads, [&] { kernel(arguments); }) ? cudaSuccess : cudaErrorLaunchFailure;
}

} // namespace tocom
