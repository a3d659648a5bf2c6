// Second launch of TokenMerge: select, gather and size-weighted mean in one pass.
//
// Every block repeats the selection of its sequence, which costs less than a third launch, and then writes its own
// output rows, one warp per row. Rows are independent, so the result does not depend on how they are divided.

#include "common/vector_access.h"
#include "token_merge/match_kernel.h"

namespace tocom
{
namespace
{

constexpr int32_t kMaxA = kMaxTokens / 2;

struct MergeArguments
{
    TokenMergeTensors tensors;
    Match const* matches;
    TokenSplit split;
    int32_t channels;
    int32_t r;
    int32_t rows_per_block;
    int32_t tiles;
};

//! The selected A tokens of one sequence and their partners.
struct Merges
{
    Selection<kMaxA> selection;
    uint16_t partner[kMaxA];
};

//! Call `visit(position)` for every A token that merges into B token `b_index`, ascending. Warps call it together.
template <typename Visit>
__device__ __forceinline__ void for_each_part(
    Merges const& merges, TokenSplit const& split, int32_t b_index, int32_t lane, Visit visit)
{
    int32_t const words = divide_up(split.a_count(), 32);
    for (int32_t word = 0; word < words; ++word)
    {
        uint32_t const selected = merges.selection.selected[word];
        if (selected == 0)
        {
            continue;
        }
        bool const hit = ((selected >> lane) & 1u) && merges.partner[word * 32 + lane] == b_index;
        for (uint32_t hits = __ballot_sync(0xFFFFFFFFu, hit); hits != 0; hits &= hits - 1)
        {
            visit(split.a_position(word * 32 + __ffs(hits) - 1));
        }
    }
}

template <typename T, int32_t kPack>
__device__ __forceinline__ void write_row(
    MergeArguments const& arguments, Merges const& merges, int64_t sequence, int32_t row, int32_t lane)
{
    TokenSplit const& split = arguments.split;
    int32_t const channels = arguments.channels;
    OutputRow const output = output_row(split, arguments.r, merges.selection, row);
    T const* const x = static_cast<T const*>(arguments.tensors.x) + sequence * split.tokens * channels;
    float const* const size = arguments.tensors.size + sequence * split.tokens;
    int64_t const output_index = sequence * (split.tokens - arguments.r) + row;
    T* const y = static_cast<T*>(arguments.tensors.y) + output_index * channels;
    T const* const base = x + static_cast<int64_t>(output.position) * channels;

    int32_t* const destination = arguments.tensors.destination;
    auto const say_where = [&](int32_t position)
    {
        if (destination != nullptr && lane == 0)
        {
            destination[sequence * split.tokens + position] = row;
        }
    };
    say_where(output.position);

    float const base_size = size[output.position];
    float total = base_size;
    bool merged = false;
    if (output.b_index >= 0)
    {
        for_each_part(merges, split, output.b_index, lane,
            [&](int32_t position)
            {
                total += size[position];
                merged = true;
                say_where(position);
            });
    }
    if (lane == 0)
    {
        arguments.tensors.size_out[output_index] = total;
        static_cast<T*>(arguments.tensors.log_size)[output_index] = from_float<T>(logf(total));
    }
    if (!merged)
    {
        copy_row<kPack>(base, y, channels, lane);
        return;
    }
    // All lanes run the same number of rounds, because for_each_part needs the whole warp.
    for (int32_t first = 0; first < channels; first += 32 * kPack)
    {
        int32_t const c = first + lane * kPack;
        bool const inside = c < channels;
        float sum[kPack] = {};
        if (inside)
        {
            auto const pack = load_pack<kPack>(base + c);
#pragma unroll
            for (int32_t k = 0; k < kPack; ++k)
            {
                sum[k] = to_float(pack.values[k]) * base_size;
            }
        }
        for_each_part(merges, split, output.b_index, lane,
            [&](int32_t position)
            {
                if (inside)
                {
                    auto const pack = load_pack<kPack>(x + static_cast<int64_t>(position) * channels + c);
                    float const weight = size[position];
#pragma unroll
                    for (int32_t k = 0; k < kPack; ++k)
                    {
                        sum[k] = fmaf(to_float(pack.values[k]), weight, sum[k]);
                    }
                }
            });
        if (inside)
        {
            Pack<T, kPack> mean;
#pragma unroll
            for (int32_t k = 0; k < kPack; ++k)
            {
                mean.values[k] = from_float<T>(sum[k] / total);
            }
            store_pack<kPack>(y + c, mean);
        }
    }
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads, 4) merge_kernel(MergeArguments const arguments)
{
    __shared__ Merges merges;
    int64_t const sequence = blockIdx.x / arguments.tiles;
    int32_t const first_row = static_cast<int32_t>(blockIdx.x % arguments.tiles) * arguments.rows_per_block;
    int32_t const a_count = arguments.split.a_count();

    Match const* const matches = arguments.matches + sequence * a_count;
    for (int32_t i = threadIdx.x; i < a_count; i += kThreads)
    {
        Match const match = matches[i];
        merges.selection.keys[i] = match.key;
        merges.partner[i] = static_cast<uint16_t>(match.partner);
    }
    __syncthreads();
    select_largest(DeviceBlock{}, merges.selection, a_count, arguments.r);

    int32_t const rows = arguments.split.tokens - arguments.r;
    int32_t const end = min(first_row + arguments.rows_per_block, rows);
    int32_t const lane = threadIdx.x % 32;
    for (int32_t row = first_row + threadIdx.x / 32; row < end; row += kWarps)
    {
        write_row<T, kElements<T, kAligned>>(arguments, merges, sequence, row, lane);
    }
}

template <typename T>
cudaError_t launch_merge(TokenMergeShape const& shape, MergeArguments const& arguments, cudaStream_t stream)
{
    int64_t const blocks = shape.batch * arguments.tiles;
    if (is_aligned<T>(shape.channels, arguments.tensors.x, arguments.tensors.y))
    {
        return launch(merge_kernel<T, true>, blocks, arguments, stream);
    }
    return launch(merge_kernel<T, false>, blocks, arguments, stream);
}

} // namespace

bool is_valid(TokenMergeShape const& shape)
{
    return shape.batch >= 0 && shape.channels > 0 && shape.heads > 0 && shape.head_channels > 0 && shape.prefix >= 0
        && shape.tokens <= kMaxTokens && shape.r >= 1 && shape.r <= removable(shape.tokens, shape.prefix);
}

int64_t token_merge_workspace_bytes(int64_t batch, int32_t tokens, int32_t prefix)
{
    return batch * TokenSplit{tokens, prefix}.a_count() * static_cast<int64_t>(sizeof(Match));
}

cudaError_t token_merge(TokenMergeShape const& shape, TokenMergeTensors const& tensors, cudaStream_t stream)
{
    if (!is_valid(shape))
    {
        return cudaErrorInvalidValue;
    }
    auto* const matches = static_cast<Match*>(tensors.workspace);
    cudaError_t const status = match_tokens(shape, tensors.keys, matches, stream);
    if (status != cudaSuccess)
    {
        return status;
    }
    int32_t const rows = shape.tokens - shape.r;
    int32_t const per_block = rows_per_block(shape.batch, rows, multiprocessors());
    MergeArguments const arguments{tensors, matches, TokenSplit{shape.tokens, shape.prefix}, shape.channels, shape.r,
        per_block, divide_up(rows, per_block)};
    switch (shape.type)
    {
    case TokenType::kFloat32: return launch_merge<float>(shape, arguments, stream);
    case TokenType::kFloat16: return launch_merge<__half>(shape, arguments, stream);
    case TokenType::kBFloat16: return launch_merge<__nv_bfloat16>(shape, arguments, stream);
    }
    return cudaErrorInvalidValue;
}

} // namespace tocom
