// Choosing the `count` largest of up to Capacity keys inside one thread block, the same way every time.
//
// The order is total (key, then the lower index), so the result does not depend on the order in which threads run.
// Small sets are ranked by counting, which is one pass without barriers; large ones search the threshold bit by bit,
// because counting grows with the square of the set. Both give the same selection.
#pragma once

#include "common/portable.h"

namespace tocom
{

//! Candidates up to which counting ranks is cheaper than 32 rounds of the threshold search with a barrier each.
constexpr int32_t kCountingLimit = 256;

//! Map a float to an unsigned integer that orders like it. NaN is largest, as in torch.sort; -0 equals +0.
TOCOM_SHARED uint32_t ascending_key(float value)
{
    if (value != value)
    {
        return 0xFFFFFFFFu;
    }
    uint32_t const bits = float_bits(value + 0.0F);
    return (bits & 0x80000000u) ? ~bits : (bits | 0x80000000u);
}

//! Map a float to a key that is largest for the smallest value: selecting the largest keys selects the lowest values.
TOCOM_SHARED uint32_t descending_key(float value)
{
    return ~ascending_key(value);
}

#if defined(__CUDACC__) || defined(TOCOM_EMULATED_DEVICE)
//! The threads of a block, as the shared algorithms see them.
struct DeviceBlock
{
    __device__ int32_t begin() const
    {
        return static_cast<int32_t>(threadIdx.x);
    }

    __device__ int32_t stride() const
    {
        return static_cast<int32_t>(blockDim.x);
    }

    __device__ void sync() const
    {
        __syncthreads();
    }

    //! Add every thread's value to a shared counter. Integer sums do not depend on their order.
    __device__ void add(int32_t* counter, int32_t value) const
    {
        for (int32_t offset = 16; offset > 0; offset /= 2)
        {
            value += __shfl_down_sync(0xFFFFFFFFu, value, offset);
        }
        if (threadIdx.x % 32 == 0 && value != 0)
        {
            atomicAdd(counter, value);
        }
    }

    //! Set bit `index` of a bit field to `bit`. All lanes of a warp call it together, with consecutive indices.
    __device__ void mark(uint32_t* words, int32_t index, bool bit) const
    {
        uint32_t const word = __ballot_sync(0xFFFFFFFFu, bit);
        if (threadIdx.x % 32 == 0)
        {
            words[index / 32] = word;
        }
    }
};
#endif

//! One thread that does the work of a block: the same algorithms on the host.
struct HostBlock
{
    int32_t begin() const
    {
        return 0;
    }

    int32_t stride() const
    {
        return 1;
    }

    void sync() const {}

    void add(int32_t* counter, int32_t value) const
    {
        *counter += value;
    }

    void mark(uint32_t* words, int32_t index, bool bit) const
    {
        uint32_t const mask = 1u << (index % 32);
        words[index / 32] = bit ? (words[index / 32] | mask) : (words[index / 32] & ~mask);
    }
};

//! Keys in, selected and unselected indices out. Lives in shared memory.
template <int32_t Capacity>
struct Selection
{
    static constexpr int32_t kWords = divide_up(Capacity, 32);

    alignas(16) uint32_t keys[Capacity]; //!< In: one key per candidate.
    uint32_t selected[kWords];           //!< Out: bit i is set when candidate i was selected.
    int32_t before[kWords];              //!< Out: selected candidates in the words before.
    uint16_t unselected[Capacity];       //!< Out: the other candidates, ascending.
    int32_t counters[33];                //!< Scratch of the threshold search.

    //! Whether candidate `index` was selected.
    TOCOM_SHARED bool is_selected(int32_t index) const
    {
        return (selected[index / 32] >> (index % 32)) & 1u;
    }

    //! Selected candidates before `index`.
    TOCOM_SHARED int32_t selected_before(int32_t index) const
    {
        return before[index / 32] + popcount(selected[index / 32] & ((1u << (index % 32)) - 1u));
    }
};

namespace detail
{

//! Count how many of keys[begin, end) are above `key`, or not below it. `begin` is a multiple of four.
template <bool kOrEqual>
TOCOM_SHARED int32_t count_above(uint32_t const* keys, int32_t begin, int32_t end, uint32_t key)
{
    struct alignas(16) Four
    {
        uint32_t key[4];
    };
    int32_t count = 0;
    int32_t j = begin;
    for (; j + 4 <= end; j += 4)
    {
        Four const four = *reinterpret_cast<Four const*>(keys + j);
        for (uint32_t const other : four.key)
        {
            count += kOrEqual ? other >= key : other > key;
        }
    }
    for (; j < end; ++j)
    {
        count += kOrEqual ? keys[j] >= key : keys[j] > key;
    }
    return count;
}

//! Rank every candidate by counting those that precede it.
TOCOM_SHARED_TEMPLATE<class Block, int32_t Capacity> TOCOM_SHARED void select_by_counting(
    Block const& block, Selection<Capacity>& selection, int32_t candidates, int32_t count)
{
    int32_t const padded = divide_up(candidates, 32) * 32;
    for (int32_t i = block.begin(); i < padded; i += block.stride())
    {
        bool chosen = false;
        if (i < candidates)
        {
            // An equal key precedes when its index is lower. Only the candidate's own word holds indices on both
            // sides, so whole warps run the cheap comparisons over the words before and behind it.
            uint32_t const key = selection.keys[i];
            int32_t const word = i & ~31;
            int32_t const word_end = word + 32 < candidates ? word + 32 : candidates;
            int32_t rank = count_above<true>(selection.keys, 0, word, key);
            for (int32_t j = word; j < word_end; ++j)
            {
                rank += selection.keys[j] > key || (selection.keys[j] == key && j < i);
            }
            rank += count_above<false>(selection.keys, word_end, candidates, key);
            chosen = rank < count;
        }
        block.mark(selection.selected, i, chosen);
    }
    block.sync();
}

//! Fill `before` from `selected`.
TOCOM_SHARED_TEMPLATE<class Block, int32_t Capacity> TOCOM_SHARED void count_before(
    Block const& block, Selection<Capacity>& selection, int32_t candidates)
{
    int32_t const words = divide_up(candidates, 32);
    for (int32_t word = block.begin(); word < words; word += block.stride())
    {
        int32_t sum = 0;
        for (int32_t other = 0; other < word; ++other)
        {
            sum += popcount(selection.selected[other]);
        }
        selection.before[word] = sum;
    }
    block.sync();
}

//! Find the count-th largest key from its top bit down, then give the ties at it to the lowest indices.
TOCOM_SHARED_TEMPLATE<class Block, int32_t Capacity> TOCOM_SHARED void select_by_threshold(
    Block const& block, Selection<Capacity>& selection, int32_t candidates, int32_t count)
{
    for (int32_t i = block.begin(); i < 33; i += block.stride())
    {
        selection.counters[i] = 0;
    }
    block.sync();

    uint32_t threshold = 0;
    for (int32_t bit = 31; bit >= 0; --bit)
    {
        uint32_t const trial = threshold | (1u << bit);
        int32_t at_least = 0;
        for (int32_t i = block.begin(); i < candidates; i += block.stride())
        {
            at_least += selection.keys[i] >= trial;
        }
        block.add(&selection.counters[bit], at_least);
        block.sync();
        // Every thread reads the same counter, so all take the same branch. Each round has a counter of its own,
        // so the next round needs no barrier before it adds.
        if (selection.counters[bit] >= count)
        {
            threshold = trial;
        }
    }

    int32_t above = 0;
    int32_t const padded = divide_up(candidates, 32) * 32;
    for (int32_t i = block.begin(); i < padded; i += block.stride())
    {
        bool const real = i < candidates;
        above += real && selection.keys[i] > threshold;
        block.mark(selection.selected, i, real && selection.keys[i] == threshold);
    }
    block.add(&selection.counters[32], above);
    block.sync();
    count_before(block, selection, candidates);

    int32_t const ties = count - selection.counters[32];
    // The tie positions are read from the fields that the result replaces, so keep them in the unselected list.
    for (int32_t i = block.begin(); i < candidates; i += block.stride())
    {
        bool const tie_won = selection.is_selected(i) && selection.selected_before(i) < ties;
        selection.unselected[i] = tie_won || selection.keys[i] > threshold;
    }
    block.sync();
    for (int32_t i = block.begin(); i < padded; i += block.stride())
    {
        block.mark(selection.selected, i, i < candidates && selection.unselected[i] != 0);
    }
    block.sync();
}

} // namespace detail

//! Select the `count` largest keys; of equal keys the lower index goes first.
//!
//! All threads of the block call it together, after a barrier behind the writes to `keys`; it ends with a barrier.
//! `count` may be 0 … `candidates`, and `candidates` at most Capacity.
TOCOM_SHARED_TEMPLATE<class Block, int32_t Capacity> TOCOM_SHARED void select_largest(Block const& block,
    Selection<Capacity>& selection, int32_t candidates, int32_t count, int32_t counting_limit = kCountingLimit)
{
    if (candidates <= counting_limit)
    {
        detail::select_by_counting(block, selection, candidates, count);
    }
    else
    {
        detail::select_by_threshold(block, selection, candidates, count);
    }
    detail::count_before(block, selection, candidates);
    for (int32_t i = block.begin(); i < candidates; i += block.stride())
    {
        if (!selection.is_selected(i))
        {
            selection.unselected[i - selection.selected_before(i)] = static_cast<uint16_t>(i);
        }
    }
    block.sync();
}

} // namespace tocom
