// The kernels themselves, run by the SIMT machine of emulation/simt.h: device_harness.cpp's interface on host memory.
// Compiled by the host compiler with TOCOM_EMULATED_DEVICE, emulation/ before the library's own folder.

#include "common/launch.h"

// Kernels are .cu files for nvcc; here they are plain C++.
#include "token_merge/match_kernel.cu"
#include "token_merge/token_merge_kernel.cu"
#include "token_prune/token_prune_kernel.cu"

#include "testing/device_harness.cpp"

extern "C" void tocom_emulation_configure(int32_t multiprocessors, bool reverse)
{
    emulation::g_multiprocessors = multiprocessors;
    emulation::g_reverse = reverse;
}
