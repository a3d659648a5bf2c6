// Token types, and loads and stores of 16 bytes, with float32 arithmetic between them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/portable.h"

namespace tocom
{

constexpr int32_t kAccessBytes = 16;

__device__ __forceinline__ float to_float(float value)
{
    return value;
}

__device__ __forceinline__ float to_float(__half value)
{
    return __half2float(value);
}

__device__ __forceinline__ float to_float(__nv_bfloat16 value)
{
    return __bfloat162float(value);
}

template <typename T>
__device__ __forceinline__ T from_float(float value);

template <>
__device__ __forceinline__ float from_float<float>(float value)
{
    return value;
}

template <>
__device__ __forceinline__ __half from_float<__half>(float value)
{
    return __float2half_rn(value);
}

template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value)
{
    return __float2bfloat16_rn(value);
}

//! Elements that one access moves: 16 bytes of them, or one where rows are not aligned to 16 bytes.
template <typename T, bool kAligned>
constexpr int32_t kElements = kAligned ? kAccessBytes / static_cast<int32_t>(sizeof(T)) : 1;

//! Consecutive elements that move in one access.
template <typename T, int32_t kCount>
struct alignas(sizeof(T) * kCount) Pack
{
    T values[kCount];
};

template <int32_t kCount, typename T>
__device__ __forceinline__ Pack<T, kCount> load_pack(T const* source)
{
    return *reinterpret_cast<Pack<T, kCount> const*>(source);
}

template <int32_t kCount, typename T>
__device__ __forceinline__ void store_pack(T* target, Pack<T, kCount> const& pack)
{
    *reinterpret_cast<Pack<T, kCount>*>(target) = pack;
}

//! Copy one row of `channels` elements. The lanes of one warp call it together.
template <int32_t kCount, typename T>
__device__ __forceinline__ void copy_row(T const* source, T* target, int32_t channels, int32_t lane)
{
#pragma unroll 4
    for (int32_t c = lane * kCount; c < channels; c += 32 * kCount)
    {
        store_pack<kCount>(target + c, load_pack<kCount>(source + c));
    }
}

//! Whether rows of `elements` elements that start at `pointers` can be read and written 16 bytes at a time.
template <typename T, typename... Pointers>
bool is_aligned(int64_t elements, Pointers const*... pointers)
{
    bool aligned = elements * static_cast<int64_t>(sizeof(T)) % kAccessBytes == 0;
    ((aligned = aligned && reinterpret_cast<uintptr_t>(pointers) % kAccessBytes == 0), ...);
    return aligned;
}

} // namespace tocom
