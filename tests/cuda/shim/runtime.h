// The machine that a CUDA kernel sees, on one thread of a CPU: every CUDA thread of a block is a
// fiber, blocks run one after the other. This header is what cuda_shim.h and the generated
// launchers need of it; Python calls the functions marked SHIM_EXPORT.
#pragma once

#include <cstddef>
#include <cstdint>

#define SHIM_EXPORT extern "C" __attribute__((visibility("default")))

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace shim {

enum Order : int { FORWARD, REVERSE, SHUFFLED };

// One launch, filled by Python.
struct Launch {
    unsigned grid[3], block[3];
    std::uint64_t shared;  // bytes of dynamic shared memory
    std::uint64_t seed;    // of the shuffled order
    int order;             // in which threads, and blocks, take their turns
    int shared_at_start;   // dynamic shared memory begins at a guard page instead of ending at one
    double seconds;        // of CPU time, after which a kernel is taken to be in an endless loop
};

enum Failure : int { NONE, FAULT, RULE };

// What went wrong, read by Python.
struct Report {
    int failure;
    int writing;             // FAULT: whether the access was a write; −1 where that is not known
    std::uint64_t address;   // FAULT: the address accessed
    std::uint64_t place;     // FAULT: the instruction, relative to the library
    unsigned block[3], thread[3];
    char text[400];          // RULE: which rule was broken; FAULT: whose the address is, if known
};

// Runs every thread of a launch; `thread` calls the kernel. `tls` is any thread-local variable of
// the library: its thread-local block is what __shared__ arrays lie in.
int run(const Launch& launch, void (*thread)(void*), void* arguments, void* tls, unsigned alignment,
        Report& report);

// For cuda_shim.h. A `line` names the call in the source, for the comparison of call sites.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
struct Votes {
    int count, any, all;
};
Votes barrier(int line, int predicate);

// A warp-wide exchange: every lane of `mask` hands in `size` bytes at `value`, and gets the 32
// lanes' values, `stride` bytes apart; those of lanes outside of the mask are poison.
constexpr std::size_t stride = 8;
const unsigned char* exchange(unsigned mask, const char* what, int line, const void* value,
                              std::size_t size);
unsigned lane();
void* dynamic_shared();

}  // namespace shim
