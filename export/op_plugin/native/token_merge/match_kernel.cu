// Matching: normalise, score and best partner in one kernel.
//
// A block owns a tile of A rows and walks over all B rows in tiles. A warp covers the whole A tile times 16 B columns:
// its lanes form a 4 x 8 grid, so that one 16-byte read from shared memory serves four or eight lanes at once, and
// scores stay in registers. Rows are padded to 36 floats, which spreads eight consecutive rows over all 32 banks.

#include "common/vector_access.h"
#include "token_merge/match_kernel.h"

namespace tocom
{
namespace
{

constexpr int32_t kLaneRows = 4;
constexpr int32_t kLaneColumns = 8;
constexpr int32_t kColumnsPerLane = 2;
constexpr int32_t kColumnsPerWarp = kLaneColumns * kColumnsPerLane;
constexpr int32_t kTileB = kWarps * kColumnsPerWarp;
constexpr int32_t kChunk = 32;
constexpr int32_t kRowStride = kChunk + 4;

struct MatchArguments
{
    void const* keys;
    Match* matches;
    int32_t heads;
    int32_t channels;
    int32_t tiles;
    TokenSplit split;
};

//! What tokens are compared by: the keys of one sequence, averaged over heads. Summing here, once per read, costs less
//! than a launch of its own that writes the means.
template <typename T>
struct Metric
{
    T const* keys; //!< [heads, tokens, channels].
    int32_t heads;
    int32_t channels;
    int64_t head_elements;

    template <int32_t kPack>
    __device__ __forceinline__ Pack<float, kPack> load(int32_t token, int32_t channel) const
    {
        T const* source = keys + static_cast<int64_t>(token) * channels + channel;
        Pack<float, kPack> mean{};
        for (int32_t head = 0; head < heads; ++head, source += head_elements)
        {
            auto const pack = load_pack<kPack>(source);
#pragma unroll
            for (int32_t k = 0; k < kPack; ++k)
            {
                mean.values[k] += to_float(pack.values[k]);
            }
        }
#pragma unroll
        for (int32_t k = 0; k < kPack; ++k)
        {
            mean.values[k] /= static_cast<float>(heads);
        }
        return mean;
    }
};

//! Write 1 / length of `rows` rows to `inverse`; rows past the end get 0. Eight lanes share a row.
template <typename T, bool kAligned, typename Position>
__device__ void load_inverse_lengths(
    Metric<T> const& metric, int32_t rows, int32_t valid, Position position, float* inverse)
{
    constexpr int32_t kPack = kElements<T, kAligned>;
    int32_t const lane = threadIdx.x % 8;
    for (int32_t row = threadIdx.x / 8; row < rows; row += kThreads / 8)
    {
        float squares = 0.0F;
        if (row < valid)
        {
            for (int32_t c = lane * kPack; c < metric.channels; c += 8 * kPack)
            {
                auto const pack = metric.template load<kPack>(position(row), c);
#pragma unroll
                for (float const value : pack.values)
                {
                    squares += value * value;
                }
            }
        }
        for (int32_t offset = 4; offset > 0; offset /= 2)
        {
            squares += __shfl_xor_sync(0xFFFFFFFFu, squares, offset);
        }
        if (lane == 0)
        {
            inverse[row] = row < valid ? inverse_length(squares) : 0.0F;
        }
    }
}

//! Write channels [first, first + kChunk) of `rows` unit rows to shared memory; what lies outside is 0.
template <typename T, bool kAligned, typename Position>
__device__ void load_unit_rows(Metric<T> const& metric, int32_t first, int32_t rows, int32_t valid, Position position,
    float const* inverse, float* target)
{
    constexpr int32_t kPack = kElements<T, kAligned>;
    constexpr int32_t kPacks = kChunk / kPack;
    for (int32_t item = threadIdx.x; item < rows * kPacks; item += kThreads)
    {
        int32_t const row = item / kPacks;
        int32_t const column = item % kPacks * kPack;
        Pack<float, kPack> unit{};
        if (row < valid && first + column < metric.channels)
        {
            auto const pack = metric.template load<kPack>(position(row), first + column);
            float const scale = inverse[row];
#pragma unroll
            for (int32_t k = 0; k < kPack; ++k)
            {
                unit.values[k] = pack.values[k] * scale;
            }
        }
        float* const written = target + row * kRowStride + column;
#pragma unroll
        for (int32_t k = 0; k < kPack; ++k)
        {
            written[k] = unit.values[k];
        }
    }
}

template <typename T, bool kAligned, int32_t kRowsPerLane>
__global__ void __launch_bounds__(kThreads, kRowsPerLane > 4 ? 2 : 3) match_kernel(MatchArguments const arguments)
{
    constexpr int32_t kTileA = kLaneRows * kRowsPerLane;
    alignas(16) __shared__ float a_rows[kTileA * kRowStride];
    alignas(16) __shared__ float b_rows[kTileB * kRowStride];
    __shared__ float a_inverse[kTileA];
    __shared__ float b_inverse[kTileB];
    __shared__ BestPartner found[kWarps][kTileA];

    TokenSplit const split = arguments.split;
    int32_t const channels = arguments.channels;
    int64_t const sequence = blockIdx.x / arguments.tiles;
    int32_t const first_a = static_cast<int32_t>(blockIdx.x % arguments.tiles) * kTileA;
    int64_t const head_elements = static_cast<int64_t>(split.tokens) * channels;
    Metric<T> const metric{static_cast<T const*>(arguments.keys) + sequence * arguments.heads * head_elements,
        arguments.heads, channels, head_elements};
    int32_t const a_count = split.a_count();
    int32_t const b_count = split.b_count();
    int32_t const valid_a = min(kTileA, a_count - first_a);
    auto const a_position = [&](int32_t row) { return split.a_position(first_a + row); };

    int32_t const warp = threadIdx.x / 32;
    int32_t const lane_row = threadIdx.x % 32 / kLaneColumns;
    int32_t const lane_column = threadIdx.x % kLaneColumns;
    BestPartner best[kRowsPerLane];

    load_inverse_lengths<T, kAligned>(metric, kTileA, valid_a, a_position, a_inverse);
    for (int32_t first_b = 0; first_b < b_count; first_b += kTileB)
    {
        int32_t const valid_b = min(kTileB, b_count - first_b);
        auto const b_position = [&](int32_t row) { return split.b_position(first_b + row); };
        load_inverse_lengths<T, kAligned>(metric, kTileB, valid_b, b_position, b_inverse);
        __syncthreads();

        float scores[kRowsPerLane][kColumnsPerLane] = {};
        for (int32_t first = 0; first < channels; first += kChunk)
        {
            load_unit_rows<T, kAligned>(metric, first, kTileA, valid_a, a_position, a_inverse, a_rows);
            load_unit_rows<T, kAligned>(metric, first, kTileB, valid_b, b_position, b_inverse, b_rows);
            __syncthreads();
            float const* const b_base = b_rows + (warp * kColumnsPerWarp + lane_column) * kRowStride;
            float const* const a_base = a_rows + lane_row * kRowStride;
#pragma unroll 2
            for (int32_t c = 0; c < kChunk; c += 4)
            {
                Pack<float, 4> b[kColumnsPerLane];
#pragma unroll
                for (int32_t j = 0; j < kColumnsPerLane; ++j)
                {
                    b[j] = load_pack<4>(b_base + j * kLaneColumns * kRowStride + c);
                }
#pragma unroll
                for (int32_t i = 0; i < kRowsPerLane; ++i)
                {
                    auto const a = load_pack<4>(a_base + i * kLaneRows * kRowStride + c);
#pragma unroll
                    for (int32_t j = 0; j < kColumnsPerLane; ++j)
                    {
#pragma unroll
                        for (int32_t k = 0; k < 4; ++k)
                        {
                            scores[i][j] = fmaf(a.values[k], b[j].values[k], scores[i][j]);
                        }
                    }
                }
            }
            __syncthreads();
        }
#pragma unroll
        for (int32_t j = 0; j < kColumnsPerLane; ++j)
        {
            int32_t const column = warp * kColumnsPerWarp + j * kLaneColumns + lane_column;
            if (column < valid_b)
            {
#pragma unroll
                for (int32_t i = 0; i < kRowsPerLane; ++i)
                {
                    best[i].offer(scores[i][j], first_b + column);
                }
            }
        }
    }

#pragma unroll
    for (int32_t i = 0; i < kRowsPerLane; ++i)
    {
        for (int32_t offset = kLaneColumns / 2; offset > 0; offset /= 2)
        {
            BestPartner other;
            other.score = __shfl_xor_sync(0xFFFFFFFFu, best[i].score, offset);
            other.partner = __shfl_xor_sync(0xFFFFFFFFu, best[i].partner, offset);
            best[i].merge(other);
        }
        if (lane_column == 0)
        {
            found[warp][i * kLaneRows + lane_row] = best[i];
        }
    }
    __syncthreads();
    for (int32_t row = threadIdx.x; row < valid_a; row += kThreads)
    {
        BestPartner winner = found[0][row];
        for (int32_t other = 1; other < kWarps; ++other)
        {
            winner.merge(found[other][row]);
        }
        arguments.matches[sequence * a_count + first_a + row] = winner.match();
    }
}

template <typename T, bool kAligned, int32_t kRowsPerLane>
cudaError_t launch_match(TokenMergeShape const& shape, void const* keys, Match* matches, cudaStream_t stream)
{
    TokenSplit const split{shape.tokens, shape.prefix};
    int32_t const tiles = divide_up(split.a_count(), kLaneRows * kRowsPerLane);
    MatchArguments const arguments{keys, matches, shape.heads, shape.head_channels, tiles, split};
    return launch(match_kernel<T, kAligned, kRowsPerLane>, shape.batch * tiles, arguments, stream);
}

template <typename T, bool kAligned>
cudaError_t launch_match(TokenMergeShape const& shape, void const* keys, Match* matches, cudaStream_t stream)
{
    // Wide tiles reuse each B row for 32 A rows; narrow ones give a small problem enough blocks to spread over.
    constexpr int32_t kNarrow = 2;
    constexpr int32_t kWide = 8;
    TokenSplit const split{shape.tokens, shape.prefix};
    int64_t const wide_blocks = shape.batch * divide_up(split.a_count(), kLaneRows * kWide);
    if (wide_blocks < 4LL * multiprocessors())
    {
        return launch_match<T, kAligned, kNarrow>(shape, keys, matches, stream);
    }
    return launch_match<T, kAligned, kWide>(shape, keys, matches, stream);
}

template <typename T>
cudaError_t launch_match(TokenMergeShape const& shape, void const* keys, Match* matches, cudaStream_t stream)
{
    if (is_aligned<T>(shape.head_channels, keys))
    {
        return launch_match<T, true>(shape, keys, matches, stream);
    }
    return launch_match<T, false>(shape, keys, matches, stream);
}

} // namespace

cudaError_t match_tokens(TokenMergeShape const& shape, void const* keys, Match* matches, cudaStream_t stream)
{
    switch (shape.type)
    {
    case TokenType::kFloat32: return launch_match<float>(shape, keys, matches, stream);
    case TokenType::kFloat16: return launch_match<__half>(shape, keys, matches, stream);
    case TokenType::kBFloat16: return launch_match<__nv_bfloat16>(shape, keys, matches, stream);
    }
    return cudaErrorInvalidValue;
}

} // namespace tocom
