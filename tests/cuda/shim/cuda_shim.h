// CUDA C++ as a C++17 compiler for the CPU takes it: keywords, built-in variables, barriers, warp
// exchanges, atomics and the functions that device code has without an include.
//
// Covered is what the kernels need: no textures, streams, cooperative groups, inline PTX, dynamic
// parallelism or half precision; atomics are plain, as one thread runs at a time, and memory is
// sequentially consistent. Dynamic shared memory, `extern __shared__ T name[];`, is declared by
// build.py: C++ has no array whose place is known only at the launch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>

#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_assume(condition) ((void)0)
// All threads of a block run on one thread of the CPU, so what is local to it is shared by them;
// and a library's thread-local variables lie in one piece, which can be poisoned between blocks.
#define __shared__ thread_local

constexpr int warpSize = 32;

// --- numbers ----------------------------------------------------------------------------------

using std::isfinite;
using std::isinf;
using std::isnan;
using std::signbit;
// The overloads for float; those for double are global already.
using std::abs;
using std::ceil;
using std::copysign;
using std::cos;
using std::exp;
using std::exp2;
using std::fabs;
using std::floor;
using std::fma;
using std::fmax;
using std::fmin;
using std::frexp;
using std::ldexp;
using std::log;
using std::log2;
using std::pow;
using std::scalbn;
using std::sin;
using std::sqrt;
using std::trunc;

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
    using C = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<C>) return std::fmin(static_cast<C>(a), static_cast<C>(b));
    else return static_cast<C>(b) < static_cast<C>(a) ? static_cast<C>(b) : static_cast<C>(a);
}

template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
    using C = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<C>) return std::fmax(static_cast<C>(a), static_cast<C>(b));
    else return static_cast<C>(a) < static_cast<C>(b) ? static_cast<C>(b) : static_cast<C>(a);
}

inline float rsqrt(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }

// Rounded to nearest, never contracted.
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __ddiv_rn(double a, double b) { return a / b; }

namespace shim {
template <class To, class From>
To bits(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}
}  // namespace shim
inline int __float_as_int(float x) { return shim::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return shim::bits<unsigned>(x); }
inline float __int_as_float(int x) { return shim::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return shim::bits<float>(x); }
inline long long __double_as_longlong(double x) { return shim::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return shim::bits<double>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) {
    return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}

// --- vectors, aligned as on the device --------------------------------------------------------

#define SHIM_VECTORS(T, name, align2, align4)                                        \
    struct alignas(align2) name##2 { T x, y; };                                      \
    struct alignas(align4) name##4 { T x, y, z, w; };                                \
    constexpr name##2 make_##name##2(T x, T y) { return {x, y}; }                    \
    constexpr name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SHIM_VECTORS(int, int, 8, 16)
SHIM_VECTORS(unsigned, uint, 8, 16)
SHIM_VECTORS(float, float, 8, 16)
SHIM_VECTORS(double, double, 16, 16)
#undef SHIM_VECTORS

// --- memory -----------------------------------------------------------------------------------

template <class T>
T __ldg(const T* address) {
    return *address;
}
template <class T>
T __ldcs(const T* address) {
    return *address;
}
template <class T>
void __stcs(T* address, T value) {
    *address = value;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// One thread runs at a time and is never interrupted: plain operations are atomic.
namespace shim {
template <class T>
constexpr bool has_atomics = std::is_same_v<T, int> || std::is_same_v<T, unsigned> ||
                             std::is_same_v<T, unsigned long long>;
template <class T, class F>
T update(T* address, F&& next) {
    const T old = *address;
    *address = next(old);
    return old;
}
}  // namespace shim

template <class T>
T atomicAdd(T* address, std::common_type_t<T> value) {
    static_assert(shim::has_atomics<T> || std::is_floating_point_v<T>);
    // Integers wrap around, on the device, too.
    if constexpr (std::is_same_v<T, int>)
        return shim::update(address, [=](int old) {
            return static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value));
        });
    else
        return shim::update(address, [=](T old) { return old + value; });
}
template <class T>
T atomicSub(T* address, std::common_type_t<T> value) {
    static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
    return shim::update(address, [=](T old) {
        return static_cast<T>(static_cast<unsigned>(old) - static_cast<unsigned>(value));
    });
}
template <class T>
T atomicMax(T* address, std::common_type_t<T> value) {
    static_assert(shim::has_atomics<T> || std::is_same_v<T, long long>);
    return shim::update(address, [=](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* address, std::common_type_t<T> value) {
    static_assert(shim::has_atomics<T> || std::is_same_v<T, long long>);
    return shim::update(address, [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicExch(T* address, std::common_type_t<T> value) {
    static_assert(shim::has_atomics<T> || std::is_same_v<T, float>);
    return shim::update(address, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, std::common_type_t<T> compare, std::common_type_t<T> value) {
    static_assert(shim::has_atomics<T>);
    return shim::update(address, [=](T old) { return old == compare ? value : old; });
}

// --- threads that meet ------------------------------------------------------------------------

inline void __syncthreads(int line = __builtin_LINE()) { shim::barrier(line, 0); }
inline int __syncthreads_count(int predicate, int line = __builtin_LINE()) {
    return shim::barrier(line, predicate).count;
}
inline int __syncthreads_or(int predicate, int line = __builtin_LINE()) {
    return shim::barrier(line, predicate).any;
}
inline int __syncthreads_and(int predicate, int line = __builtin_LINE()) {
    return shim::barrier(line, predicate).all;
}

inline void __syncwarp(unsigned mask = 0xffffffff, int line = __builtin_LINE()) {
    shim::exchange(mask, "__syncwarp", line, nullptr, 0);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    const unsigned char mine = predicate != 0;
    const unsigned char* all = shim::exchange(mask, "__ballot_sync", line, &mine, 1);
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; ++lane)
        if (all[lane * shim::stride] == 1) votes |= 1u << lane;  // the poison of others is no 1
    return votes;
}
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return __ballot_sync(mask, predicate, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return __ballot_sync(mask, !predicate, line) == 0;
}

namespace shim {
template <class T>
T shuffle(unsigned mask, const char* what, int line, T value, unsigned source) {
    static_assert(std::is_arithmetic_v<T> && sizeof(T) <= stride);
    const unsigned char* all = exchange(mask, what, line, &value, sizeof value);
    std::memcpy(&value, all + source * stride, sizeof value);
    return value;
}
// The lanes of a segment of `width`; a source outside of it is the lane itself.
inline unsigned segment(int width) { return lane() & ~(static_cast<unsigned>(width) - 1); }
}  // namespace shim

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
    const unsigned from = shim::segment(width) + (static_cast<unsigned>(source) & (width - 1));
    return shim::shuffle(mask, "__shfl_sync", line, value, from);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 int line = __builtin_LINE()) {
    const unsigned lane = shim::lane();
    const bool inside = lane >= shim::segment(width) + delta;
    return shim::shuffle(mask, "__shfl_up_sync", line, value, inside ? lane - delta : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   int line = __builtin_LINE()) {
    const unsigned lane = shim::lane(), end = shim::segment(width) + width;
    const bool inside = lane + delta < end;
    return shim::shuffle(mask, "__shfl_down_sync", line, value, inside ? lane + delta : lane);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, int line = __builtin_LINE()) {
    const unsigned lane = shim::lane(), other = lane ^ static_cast<unsigned>(bits);
    const bool inside = other < shim::segment(width) + width;
    return shim::shuffle(mask, "__shfl_xor_sync", line, value, inside ? other : lane);
}

// --- launchers, one a kernel ------------------------------------------------------------------

namespace shim {

// A parameter's type, spelled as NumPy does: "const float64*", "int32".
template <class T>
std::string spelled() {
    if constexpr (std::is_pointer_v<T>) {
        using Element = std::remove_pointer_t<T>;
        return (std::is_const_v<Element> ? "const " : "") +
               spelled<std::remove_cv_t<Element>>() + "*";
    } else {
        static_assert(std::is_arithmetic_v<T>, "kernels take numbers and pointers to numbers");
        const char* kind = std::is_floating_point_v<T> ? "float"
                           : std::is_signed_v<T>       ? "int"
                                                       : "uint";
        return kind + std::to_string(8 * sizeof(T));
    }
}

template <class... P>
struct Call {
    void (*kernel)(P...);
    void** arguments;
    template <std::size_t... I>
    void operator()(std::index_sequence<I...>) const {
        kernel(*static_cast<P*>(arguments[I])...);
    }
    static void thread(void* call) {
        (*static_cast<const Call*>(call))(std::index_sequence_for<P...>{});
    }
};

template <class... P>
int launch(void (*kernel)(P...), const Launch& how, void** arguments, void* tls, unsigned alignment,
           Report& report) {
    Call<P...> call{kernel, arguments};
    return run(how, Call<P...>::thread, &call, tls, alignment, report);
}

template <class... P>
const char* signature(void (*)(P...)) {
    static const std::string text = [] {
        std::string all;
        ((all += (all.empty() ? "" : ", ") + spelled<P>()), ...);
        return all;
    }();
    return text.c_str();
}

}  // namespace shim

#define SHIM_KERNEL(name, alignment)                                                           \
    SHIM_EXPORT int shim_launch_##name(const shim::Launch* how, void** arguments,              \
                                       shim::Report* report) {                                 \
        static thread_local char tls;                                                          \
        return shim::launch(name, *how, arguments, &tls, alignment, *report);                  \
    }                                                                                          \
    SHIM_EXPORT const char* shim_signature_##name() { return shim::signature(name); }
#define SHIM_KERNELS(names) \
    SHIM_EXPORT const char* shim_kernels() { return names; }
