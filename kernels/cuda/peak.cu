// Multiply-adds in registers alone: the most that a device can do, which benchmarks measure by.
//
// As many independent sums a thread as hide the latency of a multiply-add (4 cycles) from a
// scheduler with a single warp, and nothing that has to be loaded.

#include "fastrf.cuh"

constexpr int SUMS = 8;

template <typename T>
__device__ void multiply_adds(T factor, T* out, i64 count) {
  T sums[SUMS];
  for (int s = 0; s < SUMS; ++s) sums[s] = factor * T(s);
#pragma unroll 16  // what counts the rounds is then a small part of the instructions
  for (i64 i = 0; i < count; ++i) {
#pragma unroll
    for (int s = 0; s < SUMS; ++s) sums[s] = sums[s] * factor + factor;
  }
  T total = 0;
  for (int s = 0; s < SUMS; ++s) total += sums[s];
  out[i64(blockIdx.x) * blockDim.x + threadIdx.x] = total;
}

#define INSTANTIATE(T, suffix)                                                             \
  extern "C" __global__ void multiply_adds_##suffix(T factor, T* out, i64 count) {         \
    multiply_adds<T>(factor, out, count);                                                  \
  }
INSTANTIATE(float, f32)
INSTANTIATE(double, f64)
