// The strided gather: the backward of a transposed convolution, adjoint of transposed_conv.
//
// One thread an output. Bound: the part of the image that the taps meet is read once, the result is
// written once; Πk multiply-adds an output, each with a load from the first-level cache.

#include "fastrf.cuh"

// Sources o·stride + m·dilation − lo that lie in an axis of n.
__device__ inline Terms terms_of(i64 o, i64 n, i64 k, i64 stride, i64 dilation, i64 lo) {
  const i64 source = o * stride - lo;
  const i64 first = source >= 0 ? 0 : ceil_divided(-source, dilation);
  const i64 last = lesser(k - 1, floor_divided(n - 1 - source, dilation));
  return {first, 1, source + first * dilation, dilation, greater(i64(0), last - first + 1)};
}

template <typename T>
__device__ void strided_gather(const T* y, Triple step, Triple n, const T* taps, Triple k,
                               Triple stride, Triple dilation, Triple lo, T* out, Triple out_step,
                               Triple shape, int fits) {
  const T* weights = staged(taps, k.x0 * k.x1 * k.x2, fits);
  const i64 column = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= shape.x2) return;
  const Terms c = terms_of(column, n.x2, k.x2, stride.x2, dilation.x2, lo.x2);
  for (i64 plane = blockIdx.z; plane < shape.x0; plane += gridDim.z) {
    const Terms a = terms_of(plane, n.x0, k.x0, stride.x0, dilation.x0, lo.x0);
    for (i64 row = i64(blockIdx.y) * blockDim.y + threadIdx.y; row < shape.x1;
         row += i64(gridDim.y) * blockDim.y) {
      const Terms b = terms_of(row, n.x1, k.x1, stride.x1, dilation.x1, lo.x1);
      const T value = weighted_sum(y, step, weights, k.x1, k.x2, a, b, c);
      out[out_step.at(plane, row, column)] = stored(value);
    }
  }
}

#define INSTANTIATE(T, suffix)                                                                    \
  extern "C" __global__ void strided_gather_##suffix(                                             \
      const T* y, THREE(step), THREE(n), const T* taps, THREE(k), THREE(stride), THREE(dilation), \
      THREE(lo), T* out, THREE(out_step), THREE(shape), int fits) {                               \
    strided_gather<T>(y, TRIPLE(step), TRIPLE(n), taps, TRIPLE(k), TRIPLE(stride),                \
                      TRIPLE(dilation), TRIPLE(lo), out, TRIPLE(out_step), TRIPLE(shape), fits);  \
  }
INSTANTIATE(float, f32)
INSTANTIATE(double, f64)
