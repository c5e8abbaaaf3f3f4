// What the CUDA kernels share: names, subnormal rule, index arithmetic, sums of taps.
//
// The sources keep to what also compiles as C++17 for a CPU, where each thread is a fiber: no
// standard library, no inline assembly, and all shared memory is the dynamic one of this file.

#pragma once

using i64 = long long;

template <typename T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float tiny = 0x1p-126f;  // the smallest normal number
};
template <>
struct Limits<double> {
  static constexpr double tiny = 0x1p-1022;
};

// A result as it is stored: subnormal numbers as 0. A NaN is not below anything.
template <typename T>
__device__ inline T stored(T value, T least = Limits<T>::tiny) {
  return value < least ? T(0) : value;
}

// The block's dynamic shared memory, as large as the launch asked for.
template <typename T>
__device__ inline T* shared_memory() {
  extern __shared__ __align__(8) unsigned char fastrf_shared[];
  return reinterpret_cast<T*>(fastrf_shared);
}

template <typename I>
__device__ inline I lesser(I a, I b) {
  return b < a ? b : a;
}

template <typename I>
__device__ inline I greater(I a, I b) {
  return a < b ? b : a;
}

// Quotients rounded down and up; b > 0. Most are by 1, and a 64-bit division takes some 70
// instructions.
__device__ inline i64 floor_divided(i64 a, i64 b) {
  if (b == 1) return a;
  const i64 q = a / b;
  return q * b > a ? q - 1 : q;
}

__device__ inline i64 ceil_divided(i64 a, i64 b) { return -floor_divided(-a, b); }

// Three numbers, one per axis. A kernel takes them as plain parameters: THREE(step) declares
// step0, step1 and step2, TRIPLE(step) makes one value of them.
struct Triple {
  i64 x0, x1, x2;

  __device__ i64 at(i64 a, i64 b, i64 c) const { return a * x0 + b * x1 + c * x2; }
};

#define THREE(name) i64 name##0, i64 name##1, i64 name##2
#define TRIPLE(name) \
  Triple { name##0, name##1, name##2 }

// The taps that join one output to sources on one axis: `count` of them, from `tap` at `source` on,
// `tap_step` taps and `source_step` sources apart.
struct Terms {
  i64 tap, tap_step, source, source_step, count;
};

// Σ taps·y over the product of the terms of three axes. Neighbouring threads take neighbouring
// outputs: y is then read in whole cache lines, and again from the first-level cache by the next
// taps; a tap is the same, or one of a few, for all threads of a warp.
template <typename T>
__device__ inline T weighted_sum(const T* y, Triple step, const T* taps, i64 k1, i64 k2, Terms a,
                                 Terms b, Terms c) {
  T total = 0;
  for (i64 i = 0; i < a.count; ++i) {
    const T* plane = y + (a.source + i * a.source_step) * step.x0;
    const T* plane_taps = taps + (a.tap + i * a.tap_step) * k1 * k2;
    for (i64 j = 0; j < b.count; ++j) {
      const T* row = plane + (b.source + j * b.source_step) * step.x1 + c.source * step.x2;
      const T* row_taps = plane_taps + (b.tap + j * b.tap_step) * k2 + c.tap;
      const i64 move = c.source_step * step.x2;
      for (i64 m = 0; m < c.count; ++m) total += row_taps[m * c.tap_step] * row[m * move];
    }
  }
  return total;
}

// The taps in shared memory where the launch gave room for them, otherwise where they are.
template <typename T>
__device__ inline const T* staged(const T* taps, i64 count, int fits) {
  if (!fits) return taps;
  T* held = shared_memory<T>();
  const int threads = blockDim.x * blockDim.y;
  for (i64 t = threadIdx.y * blockDim.x + threadIdx.x; t < count; t += threads) held[t] = taps[t];
  __syncthreads();
  return held;
}

// The sum of all threads' values, in the same order in every run; `parts` has a place for each warp.
__device__ inline double block_sum(double value, double* parts) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  if (blockDim.x == 32) return value;
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  value = 0;
  for (int w = 0; w < int(blockDim.x / 32); ++w) value += parts[w];
  __syncthreads();
  return value;
}

__device__ inline double block_max(double value, double* parts) {
  for (int step = 16; step > 0; step /= 2) {
    value = greater(value, __shfl_xor_sync(0xffffffffu, value, step));
  }
  if (blockDim.x == 32) return value;
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  for (int w = 0; w < int(blockDim.x / 32); ++w) value = greater(value, parts[w]);
  __syncthreads();
  return value;
}
