// Adding a scaled image to another: where branches of a network meet.
//
// Bound: 3 memory accesses a pixel.

#include "fastrf.cuh"

template <typename T>
__device__ void accumulate(const T* y, Triple step, T factor, T* out, Triple out_step,
                           Triple shape) {
  const i64 column = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= shape.x2) return;
  for (i64 plane = blockIdx.z; plane < shape.x0; plane += gridDim.z) {
    for (i64 row = i64(blockIdx.y) * blockDim.y + threadIdx.y; row < shape.x1;
         row += i64(gridDim.y) * blockDim.y) {
      T& sum = out[out_step.at(plane, row, column)];
      sum = stored(sum + factor * y[step.at(plane, row, column)]);
    }
  }
}

#define INSTANTIATE(T, suffix)                                                                \
  extern "C" __global__ void accumulate_##suffix(const T* y, THREE(step), T factor, T* out,   \
                                                 THREE(out_step), THREE(shape)) {             \
    accumulate<T>(y, TRIPLE(step), factor, out, TRIPLE(out_step), TRIPLE(shape));             \
  }
INSTANTIATE(float, f32)
INSTANTIATE(double, f64)
