// TokenPrune in one launch: select, gather, and where asked for fuse the removed tokens.
//
// Every block repeats the selection of its sequence and writes its own output rows, one warp per row. The fused row
// is a block of its own: its warps sum slices of the removed tokens, and the slices are added in a fixed order.

#include "common/selection.h"
#include "common/vector_access.h"
#include "token_prune/fusing.h"
#include "token_prune/token_prune_kernel.h"

#include "common/token_layout.h"

namespace tocom
{
namespace
{

struct PruneArguments
{
    TokenPruneTensors tensors;
    int32_t tokens;
    int32_t channels;
    int32_t r;
    int32_t prefix;
    int32_t copied_rows; //!< Output rows that are copies; the fused row, if any, follows.
    int32_t rows_per_block;
    int32_t tiles; //!< Blocks per sequence; with fusion the last one fuses.
    bool fuse;
};

using PruneSelection = Selection<kMaxTokens>;

//! Write the weighted mean of the selected tokens to `y`. The whole block calls it.
template <typename T, int32_t kPack>
__device__ void write_fused_row(PruneArguments const& arguments, PruneSelection const& selection, T const* x,
    float const* score, T* y, int32_t* destination)
{
    __shared__ float partial[kWarps][32 * kPack];
    __shared__ float partial_sum[kWarps];
    int32_t const warp = threadIdx.x / 32;
    int32_t const lane = threadIdx.x % 32;
    int32_t const candidates = arguments.tokens - arguments.prefix;
    int32_t const removed = removed_count(arguments.r, true);
    int32_t const words = divide_up(candidates, 32);
    int32_t const words_per_warp = divide_up(words, kWarps);
    int32_t const first_word = warp * words_per_warp;
    int32_t const end_word = min(words, first_word + words_per_warp);

    // A warp walks the selected tokens of its words in ascending order, all lanes at the same token.
    auto const for_each_removed = [&](auto visit)
    {
        for (int32_t word = first_word; word < end_word; ++word)
        {
            for (uint32_t left = selection.selected[word]; left != 0; left &= left - 1)
            {
                visit(arguments.prefix + word * 32 + __ffs(left) - 1);
            }
        }
    };
    auto const sum_of_slices = [](auto const& slices, auto read)
    {
        float sum = 0.0F;
        for (auto const& slice : slices)
        {
            sum += read(slice);
        }
        return sum;
    };

    float slice_sum = 0.0F;
    for_each_removed(
        [&](int32_t position)
        {
            slice_sum += score[position];
            if (destination != nullptr && lane == 0)
            {
                destination[position] = arguments.copied_rows;
            }
        });
    if (lane == 0)
    {
        partial_sum[warp] = slice_sum;
    }
    __syncthreads();
    float const total = sum_of_slices(partial_sum, [](float slice) { return slice; });

    for (int32_t first = 0; first < arguments.channels; first += 32 * kPack)
    {
        int32_t const c = first + lane * kPack;
        float sum[kPack] = {};
        if (c < arguments.channels)
        {
            for_each_removed(
                [&](int32_t position)
                {
                    auto const pack = load_pack<kPack>(x + static_cast<int64_t>(position) * arguments.channels + c);
                    float const weight = fuse_weight(score[position], total, removed);
#pragma unroll
                    for (int32_t k = 0; k < kPack; ++k)
                    {
                        sum[k] = fmaf(to_float(pack.values[k]), weight, sum[k]);
                    }
                });
        }
#pragma unroll
        for (int32_t k = 0; k < kPack; ++k)
        {
            partial[warp][lane * kPack + k] = sum[k];
        }
        __syncthreads();
        for (int32_t i = threadIdx.x; i < 32 * kPack && first + i < arguments.channels; i += kThreads)
        {
            y[first + i] = from_float<T>(sum_of_slices(partial, [&](auto const& slice) { return slice[i]; }));
        }
        __syncthreads();
    }
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads, 4) prune_kernel(PruneArguments const arguments)
{
    constexpr int32_t kPack = kElements<T, kAligned>;
    __shared__ PruneSelection selection;
    int64_t const sequence = blockIdx.x / arguments.tiles;
    int32_t const tile = static_cast<int32_t>(blockIdx.x % arguments.tiles);
    int32_t const candidates = arguments.tokens - arguments.prefix;
    int32_t const rows = arguments.tokens - arguments.r;
    float const* const score = arguments.tensors.score + sequence * arguments.tokens;
    T const* const x = static_cast<T const*>(arguments.tensors.x) + sequence * arguments.tokens * arguments.channels;
    T* const y = static_cast<T*>(arguments.tensors.y) + sequence * rows * arguments.channels;

    int32_t* const destination = arguments.tensors.destination == nullptr
        ? nullptr
        : arguments.tensors.destination + sequence * arguments.tokens;

    for (int32_t i = threadIdx.x; i < candidates; i += kThreads)
    {
        selection.keys[i] = descending_key(score[arguments.prefix + i]);
    }
    __syncthreads();
    select_largest(DeviceBlock{}, selection, candidates, removed_count(arguments.r, arguments.fuse));

    if (arguments.fuse && tile == arguments.tiles - 1)
    {
        T* const fused = y + static_cast<int64_t>(arguments.copied_rows) * arguments.channels;
        write_fused_row<T, kPack>(arguments, selection, x, score, fused, destination);
        return;
    }
    int32_t const first_row = tile * arguments.rows_per_block;
    int32_t const end = min(first_row + arguments.rows_per_block, arguments.copied_rows);
    int32_t const lane = threadIdx.x % 32;
    for (int32_t row = first_row + threadIdx.x / 32; row < end; row += kWarps)
    {
        int64_t const position = kept_position(arguments.prefix, selection, row);
        copy_row<kPack>(x + position * arguments.channels, y + static_cast<int64_t>(row) * arguments.channels,
            arguments.channels, lane);
        if (destination != nullptr && lane == 0)
        {
            destination[position] = row;
        }
    }
}

template <typename T>
cudaError_t launch_prune(TokenPruneShape const& shape, PruneArguments const& arguments, cudaStream_t stream)
{
    int64_t const blocks = shape.batch * arguments.tiles;
    if (is_aligned<T>(shape.channels, arguments.tensors.x, arguments.tensors.y))
    {
        return launch(prune_kernel<T, true>, blocks, arguments, stream);
    }
    return launch(prune_kernel<T, false>, blocks, arguments, stream);
}

} // namespace

bool is_valid(TokenPruneShape const& shape)
{
    // With one candidate pair, fusion would remove both and leave the fused token alone: still r fewer, so allowed.
    return shape.batch >= 0 && shape.channels > 0 && shape.prefix >= 0 && shape.tokens <= kMaxTokens && shape.r >= 1
        && shape.r <= removable(shape.tokens, shape.prefix);
}

cudaError_t token_prune(TokenPruneShape const& shape, TokenPruneTensors const& tensors, cudaStream_t stream)
{
    if (!is_valid(shape))
    {
        return cudaErrorInvalidValue;
    }
    int32_t const copied_rows = shape.tokens - removed_count(shape.r, shape.fuse);
    int32_t const per_block = rows_per_block(shape.batch, copied_rows, multiprocessors());
    int32_t const tiles = divide_up(copied_rows, per_block) + (shape.fuse ? 1 : 0);
    PruneArguments const arguments{
        tensors, shape.tokens, shape.channels, shape.r, shape.prefix, copied_rows, per_block, tiles, shape.fuse};
    switch (shape.type)
    {
    case TokenType::kFloat32: return launch_prune<float>(shape, arguments, stream);
    case TokenType::kFloat16: return launch_prune<__half>(shape, arguments, stream);
    case TokenType::kBFloat16: return launch_prune<__nv_bfloat16>(shape, arguments, stream);
    }
    return cudaErrorInvalidValue;
}

} // namespace tocom
