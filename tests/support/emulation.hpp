// CUDA's threads as coroutines of one thread of the host, so that the package's kernels run as they are. A coroutine
// runs until a barrier of its block or of its warp; a barrier that not all reach is an error. Threads take turns in
// ascending or in descending order: a value that is read before a barrier has made it known differs between the two.

#include <ucontext.h>

#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ thread_local

struct Place { unsigned x; };
static thread_local Place blockIdx, threadIdx, blockDim, gridDim;
static thread_local double space[1 << 15];

namespace emulation {
enum State { READY, AT_BLOCK, AT_WARP, DONE };
struct Thread { ucontext_t context; State state; unsigned index; int turn; std::unique_ptr<char[]> stack; };
static std::vector<Thread> threads;
static ucontext_t scheduler;
static Thread* current;
static double slots[2][1024];
static const size_t STACK = 1 << 16;

template <typename Kernel> static Kernel*& body() { static Kernel* kernel; return kernel; }
template <typename Kernel> static void start() { (*body<Kernel>())(); current->state = DONE; }

static void wait(State state) {
    current->state = state;
    swapcontext(&current->context, &scheduler);
}

static bool release(size_t first, size_t last, State state) {
    for (size_t i = first; i < last; ++i) if (threads[i].state != state) return false;
    for (size_t i = first; i < last; ++i) threads[i].state = READY;
    return true;
}

// All threads of a block to their end; false if some wait for others that do not come.
static bool run_block(bool descending) {
    for (;;) {
        bool moved = false;
        for (size_t i = 0; i < threads.size(); ++i) {
            Thread& next = threads[descending ? threads.size() - 1 - i : i];
            if (next.state != READY) continue;
            current = &next;
            threadIdx.x = next.index;
            swapcontext(&scheduler, &next.context);
            moved = true;
        }
        for (size_t warp = 0; warp < threads.size(); warp += 32) moved |= release(warp, warp + 32, AT_WARP);
        moved |= release(0, threads.size(), AT_BLOCK);
        if (!moved) {
            for (Thread& thread : threads) if (thread.state != DONE) return false;
            return true;
        }
    }
}

template <typename Kernel> static int run(Kernel kernel, unsigned blocks, unsigned size, bool descending) {
    body<Kernel>() = &kernel;
    gridDim.x = blocks;
    blockDim.x = size;
    threads.resize(size);
    for (unsigned b = 0; b < blocks; ++b) {
        blockIdx.x = descending ? blocks - 1 - b : b;
        memset(space, 0xff, sizeof space);  // not a number
        for (unsigned t = 0; t < size; ++t) {
            Thread& thread = threads[t];
            if (!thread.stack) thread.stack.reset(new char[STACK]);
            getcontext(&thread.context);
            thread.context.uc_stack.ss_sp = thread.stack.get();
            thread.context.uc_stack.ss_size = STACK;
            thread.context.uc_link = &scheduler;
            thread.state = READY;
            thread.index = t;
            thread.turn = 0;
            makecontext(&thread.context, start<Kernel>, 0);
        }
        if (!run_block(descending)) return 1;
    }
    return 0;
}

template <typename... A, size_t... I>
static int call(void (*kernel)(A...), void** given, std::index_sequence<I...>, const unsigned* shape) {
    auto bound = [=] { kernel(*(A*)given[I]...); };
    return run(bound, shape[0], shape[1], shape[2]);
}

template <typename... A> static int launch(void (*kernel)(A...), void** given, const unsigned* shape) {
    return call(kernel, given, std::index_sequence_for<A...>{}, shape);
}
}  // namespace emulation

static void __syncthreads() { emulation::wait(emulation::AT_BLOCK); }

template <typename Number> static Number __shfl_xor_sync(unsigned, Number own, int lanes) {
    emulation::Thread* self = emulation::current;
    double* slots = emulation::slots[self->turn++ % 2];
    unsigned index = self->index;
    slots[index] = own;
    emulation::wait(emulation::AT_WARP);
    return (Number)slots[index ^ lanes];
}
