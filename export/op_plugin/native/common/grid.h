// What a launch looks like: threads per block, token types, rows per block. No CUDA runtime calls.
#pragma once

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

//! Return output rows per block: enough blocks to fill the device, enough rows to pay for each block's selection.
inline int32_t rows_per_block(int64_t batch, int32_t rows, int32_t multiprocessors)
{
    constexpr int64_t kBlocksPerMultiprocessor = 8;
    constexpr int64_t kMostRowsPerWarp = 8;
    int64_t const wanted = divide_up<int64_t>(batch * rows, multiprocessors * kBlocksPerMultiprocessor);
    int64_t const warps = divide_up<int64_t>(wanted, kWarps);
    return static_cast<int32_t>(kWarps * (warps < kMostRowsPerWarp ? (warps > 1 ? warps : 1) : kMostRowsPerWarp));
}

} // namespace tocom
