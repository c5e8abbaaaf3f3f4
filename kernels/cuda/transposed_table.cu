// The transposed convolution along one axis with taps of their own for every source.
//
// Targets are in no order, and sums have to come out the same in every run, so nothing is scattered
// with atomics: a first kernel finds, for every target, the first and the last source that reaches
// it, and a second sums over those in between. Where neighbouring targets have neighbouring sources
// (adaptive pooling, resizing) these are few. Bound: 2 memory accesses a pixel.

#include "fastrf.cuh"

// reach[i] = first source of target i, reach[rows + i] = last one; the first is n where there is
// none. One block a target.
__device__ inline void transposed_table_reach(const i64* starts, i64 n, i64 count, i64* reach,
                                              i64 rows) {
  i64* first = shared_memory<i64>();
  i64* last = first + blockDim.x;
  const int thread = threadIdx.x;
  for (i64 i = blockIdx.x; i < rows; i += gridDim.x) {
    i64 low = n, high = -1;
    for (i64 o = thread; o < n; o += blockDim.x) {
      const i64 tap = i - starts[o];
      if (tap >= 0 && tap < count) {
        low = lesser(low, o);
        high = o;
      }
    }
    first[thread] = low;
    last[thread] = high;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
      if (thread < half) {
        first[thread] = lesser(first[thread], first[thread + half]);
        last[thread] = greater(last[thread], last[thread + half]);
      }
      __syncthreads();
    }
    if (thread == 0) {
      reach[i] = first[0];
      reach[rows + i] = last[0];
    }
    __syncthreads();
  }
}

extern "C" __global__ void transposed_table_reach_i64(const i64* starts, i64 n, i64 count,
                                                      i64* reach, i64 rows) {
  transposed_table_reach(starts, n, count, reach, rows);
}

template <typename T>
__device__ void transposed_table(const T* y, Triple step, const i64* starts, const T* taps,
                                 i64 count, const i64* reach, T* out, Triple out_step,
                                 Triple shape) {
  const i64 column = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= shape.x2) return;
  for (i64 plane = blockIdx.z; plane < shape.x0; plane += gridDim.z) {
    for (i64 row = i64(blockIdx.y) * blockDim.y + threadIdx.y; row < shape.x1;
         row += i64(gridDim.y) * blockDim.y) {
      T total = 0;
      const i64 last = reach[shape.x1 + row];
      for (i64 o = reach[row]; o <= last; ++o) {
        const i64 tap = row - starts[o];
        if (tap >= 0 && tap < count) {
          total += taps[o * count + tap] * y[step.at(plane, o, column)];
        }
      }
      out[out_step.at(plane, row, column)] = stored(total);
    }
  }
}

#define INSTANTIATE(T, suffix)                                                                   \
  extern "C" __global__ void transposed_table_##suffix(                                          \
      const T* y, THREE(step), const i64* starts, const T* taps, i64 count, const i64* reach,    \
      T* out, THREE(out_step), THREE(shape)) {                                                   \
    transposed_table<T>(y, TRIPLE(step), starts, taps, count, reach, out, TRIPLE(out_step),      \
                        TRIPLE(shape));                                                          \
  }
INSTANTIATE(float, f32)
INSTANTIATE(double, f64)
