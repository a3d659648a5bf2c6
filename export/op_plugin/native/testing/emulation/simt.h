// A small SIMT machine on the host: the part of CUDA that the kernels use, with checks that a GPU does not make.
#pragma once

#include <cuda_runtime_api.h>
#include <vector_types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include <ucontext.h>

// One block runs at a time, so a block's shared memory may be static.
#undef __shared__
#define __shared__ static
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __forceinline__
#define __forceinline__ inline

inline uint3 threadIdx{};
inline uint3 blockIdx{};
inline uint3 blockDim{};

using std::min;

namespace emulation
{

inline int32_t g_multiprocessors = 2;
inline bool g_reverse = false;

constexpr int32_t kWarpSize = 32;
constexpr size_t kStackBytes = 256 * 1024;

enum class State
{
    kReady,
    kAtWarp,
    kAtBlock,
    kDone,
};

struct Fiber
{
    ucontext_t context{};
    std::unique_ptr<char[]> stack;
    State state = State::kReady;
};

struct Machine
{
    ucontext_t scheduler{};
    std::vector<Fiber> fibers;
    std::vector<uint32_t> slots; //!< One word per thread, for warp operations.
    int32_t current = 0;
    std::function<void()> body;
};

inline Machine* g_machine = nullptr;

inline void wait(State state)
{
    Machine& machine = *g_machine;
    int32_t const self = machine.current;
    machine.fibers[self].state = state;
    swapcontext(&machine.fibers[self].context, &machine.scheduler);
}

inline void enter()
{
    g_machine->body();
    g_machine->fibers[g_machine->current].state = State::kDone;
}

//! Let threads [first, last) go on when all that still live wait for `state`; return whether they do.
inline bool release(Machine& machine, int32_t first, int32_t last, State state)
{
    int32_t waiting = 0;
    for (int32_t i = first; i < last; ++i)
    {
        State const own = machine.fibers[i].state;
        if (own != state && own != State::kDone)
        {
            return false;
        }
        waiting += own == state;
    }
    for (int32_t i = first; waiting > 0 && i < last; ++i)
    {
        if (machine.fibers[i].state == state)
        {
            machine.fibers[i].state = State::kReady;
        }
    }
    return waiting > 0;
}

//! Run one block to its end; false when its threads wait for each other forever.
inline bool run_block(Machine& machine, int32_t threads)
{
    for (int32_t i = 0; i < threads; ++i)
    {
        Fiber& fiber = machine.fibers[i];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStackBytes;
        fiber.context.uc_link = &machine.scheduler;
        makecontext(&fiber.context, enter, 0);
        fiber.state = State::kReady;
    }
    while (true)
    {
        bool ran = false;
        for (int32_t step = 0; step < threads; ++step)
        {
            int32_t const i = g_reverse ? threads - 1 - step : step;
            if (machine.fibers[i].state == State::kReady)
            {
                ran = true;
                machine.current = i;
                threadIdx = uint3{static_cast<unsigned int>(i), 0, 0};
                swapcontext(&machine.scheduler, &machine.fibers[i].context);
            }
        }
        bool released = false;
        for (int32_t warp = 0; warp < threads; warp += kWarpSize)
        {
            released |= release(machine, warp, std::min(warp + kWarpSize, threads), State::kAtWarp);
        }
        released |= release(machine, 0, threads, State::kAtBlock);
        if (!ran && !released)
        {
            return std::all_of(machine.fibers.begin(), machine.fibers.end(),
                [](Fiber const& fiber) { return fiber.state == State::kDone; });
        }
    }
}

inline bool run(int64_t blocks, int32_t threads, std::function<void()> body)
{
    Machine machine;
    machine.fibers.resize(threads);
    machine.slots.resize(threads);
    for (Fiber& fiber : machine.fibers)
    {
        fiber.stack = std::make_unique<char[]>(kStackBytes);
    }
    machine.body = std::move(body);
    g_machine = &machine;
    blockDim = uint3{static_cast<unsigned int>(threads), 1, 1};
    bool fine = true;
    for (int64_t step = 0; fine && step < blocks; ++step)
    {
        int64_t const block = g_reverse ? blocks - 1 - step : step;
        blockIdx = uint3{static_cast<unsigned int>(block), 0, 0};
        fine = run_block(machine, threads);
    }
    g_machine = nullptr;
    return fine;
}

//! Exchange one word within the warp: every lane gives its own and reads that of `source`.
template <typename T>
T exchange(T value, int32_t source_lane)
{
    static_assert(sizeof(T) == 4);
    Machine& machine = *g_machine;
    int32_t const self = machine.current;
    __builtin_memcpy(&machine.slots[self], &value, 4);
    wait(State::kAtWarp);
    int32_t const source = self / kWarpSize * kWarpSize + source_lane % kWarpSize;
    T result;
    __builtin_memcpy(&result, &machine.slots[source], 4);
    wait(State::kAtWarp);
    return result;
}

} // namespace emulation

inline void __syncthreads()
{
    emulation::wait(emulation::State::kAtBlock);
}

template <typename T>
T __shfl_xor_sync(unsigned int, T value, int32_t mask)
{
    return emulation::exchange(value, static_cast<int32_t>(threadIdx.x % 32) ^ mask);
}

template <typename T>
T __shfl_down_sync(unsigned int, T value, int32_t delta)
{
    int32_t const lane = static_cast<int32_t>(threadIdx.x % 32);
    return emulation::exchange(value, lane + delta < 32 ? lane + delta : lane);
}

inline unsigned int __ballot_sync(unsigned int, bool bit)
{
    int32_t const warp = emulation::g_machine->current / 32 * 32;
    emulation::g_machine->slots[emulation::g_machine->current] = bit;
    emulation::wait(emulation::State::kAtWarp);
    unsigned int word = 0;
    for (int32_t lane = 0; lane < 32; ++lane)
    {
        word |= emulation::g_machine->slots[warp + lane] << lane;
    }
    emulation::wait(emulation::State::kAtWarp);
    return word;
}

inline int32_t __ffs(uint32_t word)
{
    return __builtin_ffs(static_cast<int32_t>(word));
}

inline int32_t atomicAdd(int32_t* target, int32_t value)
{
    int32_t const before = *target;
    *target += value;
    return before;
}
