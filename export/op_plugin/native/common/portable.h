// Code that runs in kernels and, for the tests on machines without a GPU, in plain host functions.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define TOCOM_SHARED __host__ __device__ __forceinline__
// A template is "shared" although its policy argument decides which side it can really run on.
#define TOCOM_SHARED_TEMPLATE _Pragma("nv_exec_check_disable") template
#else
#define TOCOM_SHARED inline
#define TOCOM_SHARED_TEMPLATE template
#endif

namespace tocom
{

//! Most tokens of a sequence; fixes the size of the selection's shared memory.
constexpr int32_t kMaxTokens = 4096;

TOCOM_SHARED int32_t popcount(uint32_t word)
{
#ifdef __CUDA_ARCH__
    return __popc(word);
#else
    return __builtin_popcount(word);
#endif
}

TOCOM_SHARED uint32_t float_bits(float value)
{
#ifdef __CUDA_ARCH__
    return __float_as_uint(value);
#else
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof(bits));
    return bits;
#endif
}

template <typename Int>
constexpr TOCOM_SHARED Int divide_up(Int value, Int divisor)
{
    return (value + divisor - 1) / divisor;
}

} // namespace tocom
