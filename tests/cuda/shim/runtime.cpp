#include "runtime.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <numeric>
#include <string>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace shim {
namespace {

constexpr std::size_t STACK = 64 * 1024;  // bytes of a thread's stack; pages are taken when touched
constexpr unsigned WARP = 32;

enum class State { ready, at_barrier, in_warp, done };

struct Fiber {
    jmp_buf at;
    char* stack;
    bool started;
    State state;
    uint3 index;
    int line;  // of the call that it waits in
    int predicate;
};

// Lanes that exchange values under one mask. There are two sets of slots: a lane can be one
// exchange ahead of a lane that has not read yet, never two.
struct Group {
    unsigned arrived = 0;
    unsigned generation = 0;
    std::size_t size = 0;
    const char* what = nullptr;
    int line = 0;
    alignas(16) unsigned char slots[2][WARP * stride];
};

struct Block {
    std::vector<std::map<unsigned, Group>> warps;
    Votes votes;
};

// Fibers stay for later launches. They are started once and then only jumped to: swapcontext would
// cost two system calls a switch.
std::vector<Fiber> fibers;
jmp_buf scheduler, way_out;
Fiber* current;
Block block;
void (*kernel)(void*);
void* kernel_arguments;
Report* report;
class DynamicShared* shared_memory;
pthread_t launcher;

std::size_t page() {
    static const std::size_t size = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    return size;
}

void suspend() {
    if (!_setjmp(current->at)) _longjmp(scheduler, 1);
}

void body() {
    for (;;) {
        kernel(kernel_arguments);
        current->state = State::done;
        suspend();
    }
}

[[noreturn]] void start(Fiber& fiber) {
    static ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack;
    context.uc_stack.ss_size = STACK;
    makecontext(&context, body, 0);
    fiber.started = true;
    setcontext(&context);
    __builtin_unreachable();
}

void resume(Fiber& fiber) {
    current = &fiber;
    threadIdx = fiber.index;
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.at, 1);
    start(fiber);
}

bool have_fibers(std::size_t count) {
    while (fibers.size() < count) {
        void* memory = mmap(nullptr, page() + STACK, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) return false;
        mprotect(memory, page(), PROT_NONE);
        fibers.emplace_back();
        fibers.back().stack = static_cast<char*>(memory) + page();
    }
    return true;
}

// --- turns ------------------------------------------------------------------------------------

class Turns {
public:
    Turns(std::size_t count, int order, std::uint64_t seed)
        : indices_(count), shuffled_(order == SHUFFLED), state_(seed * 2 + 1) {
        std::iota(indices_.begin(), indices_.end(), std::size_t{0});
        if (order == REVERSE) std::reverse(indices_.begin(), indices_.end());
    }
    const std::vector<std::size_t>& next() {
        if (shuffled_)
            for (std::size_t i = indices_.size(); i > 1; --i)
                std::swap(indices_[i - 1], indices_[random() % i]);
        return indices_;
    }

private:
    std::uint64_t random() {  // splitmix64
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    std::vector<std::size_t> indices_;
    bool shuffled_;
    std::uint64_t state_;
};

// All that a barrier asks: everybody who has not returned waits at the same one.
void release(std::size_t threads) {
    const Fiber* first = nullptr;
    Votes votes{0, 0, 1};
    for (std::size_t i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[i];
        if (fiber.state == State::done) continue;
        current = &fiber;
        if (fiber.state == State::in_warp)
            fail("deadlock: it waits in a warp's exchange (line %d) for lanes that never come",
                 fiber.line);
        if (first && first->line != fiber.line)
            fail("divergent barrier: it waits at the one of line %d, thread (%u, %u, %u) at the "
                 "one of line %d",
                 fiber.line, first->index.x, first->index.y, first->index.z, first->line);
        if (!first) first = &fiber;
        const int yes = fiber.predicate != 0;
        votes.count += yes;
        votes.any |= yes;
        votes.all &= yes;
    }
    block.votes = votes;
    for (std::size_t i = 0; i < threads; ++i)
        if (fibers[i].state == State::at_barrier) fibers[i].state = State::ready;
}

void run_block(Turns& turns, std::size_t threads) {
    block.warps.assign((threads + WARP - 1) / WARP, {});
    for (std::size_t i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[i];
        fiber.state = State::ready;
        const unsigned n = static_cast<unsigned>(i);
        fiber.index = {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
    }
    for (std::size_t left = threads; left;) {
        bool moved = false;
        for (const std::size_t i : turns.next()) {
            Fiber& fiber = fibers[i];
            if (fiber.state != State::ready) continue;
            resume(fiber);
            moved = true;
            left -= fiber.state == State::done;
        }
        if (!moved) release(threads);
    }
}

// --- shared memory ----------------------------------------------------------------------------

// Bytes that are NaN as floating-point numbers and −1 as integers.
constexpr int POISON = 0xff;

struct Range {
    void* data;
    std::size_t size;
};

int find_tls(dl_phdr_info* info, std::size_t, void* found) {
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        const auto& header = info->dlpi_phdr[i];
        Range& range = *static_cast<Range*>(found);
        char* data = static_cast<char*>(info->dlpi_tls_data);
        const char* inside = static_cast<char*>(range.data);
        if (header.p_type == PT_TLS && data && data <= inside && inside < data + header.p_memsz) {
            range = {data, header.p_memsz};
            return 1;
        }
    }
    return 0;
}

class DynamicShared {
public:
    DynamicShared(std::size_t size, bool at_start, unsigned alignment) {
        const std::size_t used = (size + alignment - 1) / alignment * alignment;
        span_ = (used + page() - 1) / page() * page();
        mapped_ = static_cast<char*>(mmap(nullptr, span_ + 2 * page(), PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        mprotect(mapped_, page(), PROT_NONE);
        mprotect(mapped_ + page() + span_, page(), PROT_NONE);
        begin_ = mapped_ + page() + (at_start ? 0 : span_ - used);
        end_ = begin_ + size;
    }
    ~DynamicShared() { munmap(mapped_, span_ + 2 * page()); }
    DynamicShared(const DynamicShared&) = delete;
    char* begin() const { return begin_; }
    bool guards(const char* address) const {
        return mapped_ <= address && address < mapped_ + span_ + 2 * page();
    }
    std::ptrdiff_t behind(const char* address) const { return address - end_; }
    void poison() { std::memset(mapped_ + page(), POISON, span_); }
    // What the guard pages do not see: the bytes between the memory and the page's end.
    void check() const {
        const auto touched = [](unsigned char byte) { return byte != POISON; };
        if (std::any_of(mapped_ + page(), begin_, touched) ||
            std::any_of(end_, mapped_ + page() + span_, touched))
            fail("the block wrote beside its dynamic shared memory");
    }

private:
    std::size_t span_;
    char *mapped_, *begin_, *end_;
};

// --- faults -----------------------------------------------------------------------------------

void describe(int failure) {
    report->failure = failure;
    if (current) {
        const uint3 thread = current->index;
        std::copy_n(&blockIdx.x, 3, report->block);
        std::copy_n(&thread.x, 3, report->thread);
    }
}

// Says what of its own a thread has left; arrays are known to Python.
void name_place(const char* address) {
    if (shared_memory->guards(address)) {
        const std::ptrdiff_t behind = shared_memory->behind(address);
        if (behind >= 0)
            std::snprintf(report->text, sizeof report->text,
                          "%td bytes behind the end of the block's dynamic shared memory", behind);
        else
            std::snprintf(report->text, sizeof report->text,
                          "%td bytes before the beginning of the block's dynamic shared memory",
                          shared_memory->begin() - address);
    } else if (current && current->stack - page() <= address && address < current->stack) {
        std::snprintf(report->text, sizeof report->text,
                      "the end of its stack of %zu bytes: too deep a recursion or too large arrays",
                      STACK);
    }
}

void on_signal(int signal, siginfo_t* info, void* context) {
    if (!pthread_equal(pthread_self(), launcher)) {  // a timer's signal can reach any thread
        if (signal == SIGVTALRM) pthread_kill(launcher, signal);
        else ::signal(signal, SIG_DFL);
        return;
    }
    if (signal == SIGVTALRM) {
        describe(RULE);
        std::snprintf(report->text, sizeof report->text, "endless loop: the time is over");
        _longjmp(way_out, 1);
    }
    describe(FAULT);
    report->address = reinterpret_cast<std::uint64_t>(info->si_addr);
    name_place(static_cast<char*>(info->si_addr));
    report->writing = -1;
    std::uint64_t instruction = 0;
#if defined(__x86_64__)
    const auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    instruction = static_cast<std::uint64_t>(registers[REG_RIP]);
    if (signal == SIGSEGV) report->writing = registers[REG_ERR] >> 1 & 1;
#elif defined(__aarch64__)
    instruction = static_cast<ucontext_t*>(context)->uc_mcontext.pc;
#else
    (void)context;
#endif
    Dl_info library;
    if (dladdr(reinterpret_cast<void*>(instruction), &library))
        report->place = instruction - reinterpret_cast<std::uint64_t>(library.dli_fbase);
    _longjmp(way_out, 1);
}

// Catches faults and endless loops for as long as it lives.
class Watch {
public:
    explicit Watch(double seconds) {
        stack_t stack{};
        stack.ss_sp = memory_;
        stack.ss_size = sizeof memory_;
        sigaltstack(&stack, &old_stack_);
        struct sigaction action {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // on_signal jumps out
        for (int i = 0; i < COUNT; ++i) sigaction(SIGNALS[i], &action, &old_[i]);
        const auto whole = static_cast<time_t>(seconds);
        const itimerval limit{{0, 0}, {whole, static_cast<suseconds_t>((seconds - whole) * 1e6)}};
        setitimer(ITIMER_VIRTUAL, &limit, nullptr);
    }
    ~Watch() {
        const itimerval off{};
        setitimer(ITIMER_VIRTUAL, &off, nullptr);
        for (int i = 0; i < COUNT; ++i) sigaction(SIGNALS[i], &old_[i], nullptr);
        sigaltstack(&old_stack_, nullptr);
    }
    Watch(const Watch&) = delete;

private:
    static constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGVTALRM};
    static constexpr int COUNT = 4;
    alignas(16) char memory_[64 * 1024];
    stack_t old_stack_;
    struct sigaction old_[COUNT];
};

}  // namespace

// --- what kernels call ------------------------------------------------------------------------

void fail(const char* format, ...) {
    describe(RULE);
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(report->text, sizeof report->text, format, arguments);
    va_end(arguments);
    _longjmp(way_out, 1);
}

Votes barrier(int line, int predicate) {
    current->state = State::at_barrier;
    current->line = line;
    current->predicate = predicate;
    suspend();
    return block.votes;
}

unsigned lane() {
    const uint3 i = current->index;
    return (i.x + blockDim.x * (i.y + blockDim.y * i.z)) % WARP;
}

const unsigned char* exchange(unsigned mask, const char* what, int line, const void* value,
                              std::size_t size) {
    const uint3 i = current->index;
    const std::size_t thread = i.x + blockDim.x * (i.y + blockDim.y * i.z);
    const std::size_t warp = thread / WARP, first = warp * WARP;
    const unsigned lane = thread % WARP;
    const std::size_t threads = std::size_t{blockDim.x} * blockDim.y * blockDim.z;
    // A full mask is usual in a last warp that is not full.
    const unsigned there = threads - first >= WARP ? ~0u : (1u << (threads - first)) - 1;
    if (!(mask >> lane & 1))
        fail("%s of line %d: mask 0x%08x leaves out lane %u, which calls it", what, line, mask,
             lane);
    const unsigned lanes = mask & there;
    for (unsigned other = 0; other < WARP; ++other)
        if (lanes >> other & 1 && fibers[first + other].state == State::done)
            fail("%s of line %d waits for lane %u, which has returned", what, line, other);

    Group& group = block.warps[warp][mask];
    const unsigned generation = group.generation;
    unsigned char* slots = group.slots[generation % 2];
    if (!group.arrived) {
        group.what = what;
        group.line = line;
        group.size = size;
        std::memset(slots, POISON, sizeof group.slots[0]);
    } else if (group.line != line || group.size != size || std::strcmp(group.what, what)) {
        fail("lanes of a warp part: this one calls %s (line %d), another %s (line %d)", what, line,
             group.what, group.line);
    }
    std::memcpy(slots + lane * stride, value, size);
    group.arrived |= 1u << lane;
    if (group.arrived == lanes) {
        group.arrived = 0;
        ++group.generation;
        for (unsigned other = 0; other < WARP; ++other)
            if (lanes >> other & 1 && other != lane) fibers[first + other].state = State::ready;
        return slots;
    }
    current->state = State::in_warp;
    current->line = line;
    while (group.generation == generation) suspend();
    return slots;
}

void* dynamic_shared() { return shared_memory->begin(); }

// --- launching --------------------------------------------------------------------------------

int run(const Launch& launch, void (*thread)(void*), void* arguments, void* tls, unsigned alignment,
        Report& result) {
    report = &result;
    result = Report{};
    current = nullptr;
    kernel = thread;
    kernel_arguments = arguments;
    launcher = pthread_self();
    gridDim = {launch.grid[0], launch.grid[1], launch.grid[2]};
    blockDim = {launch.block[0], launch.block[1], launch.block[2]};
    const std::size_t threads = std::size_t{blockDim.x} * blockDim.y * blockDim.z;
    const std::size_t blocks = std::size_t{gridDim.x} * gridDim.y * gridDim.z;
    if (!have_fibers(threads)) {
        describe(RULE);
        std::snprintf(result.text, sizeof result.text, "no memory for %zu stacks", threads);
        return result.failure;
    }
    Range statics{tls, 0};
    dl_iterate_phdr(find_tls, &statics);
    DynamicShared dynamic(launch.shared, launch.shared_at_start, alignment);
    shared_memory = &dynamic;
    Turns block_turns(blocks, launch.order, launch.seed);
    Turns turns(threads, launch.order, launch.seed + 1);
    const std::vector<std::size_t>& order = block_turns.next();
    const Watch watch(launch.seconds);
    if (!_setjmp(way_out)) {
        for (const std::size_t i : order) {
            const std::size_t x = gridDim.x, y = gridDim.y;
            blockIdx = {static_cast<unsigned>(i % x), static_cast<unsigned>(i / x % y),
                        static_cast<unsigned>(i / x / y)};
            std::memset(statics.data, POISON, statics.size);
            dynamic.poison();
            run_block(turns, threads);
            dynamic.check();
        }
    } else {
        // Their stacks hold calls that nobody will return from.
        for (Fiber& fiber : fibers) fiber.started = false;
    }
    return result.failure;
}

}  // namespace shim

// --- undefined behaviour, as g++ -fsanitize reports it ----------------------------------------

namespace {
struct Place {
    const char* file;
    std::uint32_t line, column;
};
}  // namespace

#define SHIM_UNDEFINED(name, what)                                        \
    extern "C" void __ubsan_handle_##name(const Place* place) {           \
        shim::fail("%s:%u: %s", place->file, place->line, what);          \
    }
SHIM_UNDEFINED(out_of_bounds, "an index is outside of its array")
SHIM_UNDEFINED(type_mismatch_v1, "a pointer is null or not aligned to what it points at")
SHIM_UNDEFINED(add_overflow, "an integer sum overflows")
SHIM_UNDEFINED(sub_overflow, "an integer difference overflows")
SHIM_UNDEFINED(mul_overflow, "an integer product overflows")
SHIM_UNDEFINED(negate_overflow, "an integer negation overflows")
SHIM_UNDEFINED(divrem_overflow, "an integer is divided by zero")
SHIM_UNDEFINED(shift_out_of_bounds, "a shift by more bits than there are")
