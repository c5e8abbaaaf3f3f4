// The transposed convolution of a nonnegative image: Luo et al. 2016, eq. 8.
//
// One thread an output: it knows the few taps of its phase, so that no product with a pixel between
// the strides is ever formed. Bound: 2 memory accesses a pixel; Πk/s multiply-adds, each with a load
// from the first-level cache, which is what limits kernels of more than some ten taps.

#include "fastrf.cuh"

// Sources o and taps m of output i: o·stride + m·dilation = i + lo. `common` is the greatest common
// divisor of stride and dilation, `inverse` that of dilation/common modulo stride/common.
__device__ inline Terms terms_of(i64 i, i64 n, i64 k, i64 stride, i64 dilation, i64 lo, i64 common,
                                 i64 inverse) {
  const i64 target = i + lo;
  const i64 apart = stride == 1 ? 1 : stride / common;
  const i64 back = stride == 1 ? dilation : dilation / common;
  i64 tap = 0;
  if (stride > 1) {
    const i64 quotient = floor_divided(target, common);
    if (quotient * common != target) return {0, 0, 0, 0, 0};
    const i64 residue = quotient - floor_divided(quotient, apart) * apart;
    tap = residue * inverse % apart;
  }
  const i64 source = floor_divided(target - tap * dilation, stride);
  const i64 first = source < n ? 0 : ceil_divided(source - n + 1, back);
  const i64 last = lesser(floor_divided(source, back), floor_divided(k - 1 - tap, apart));
  return {tap + first * apart, apart, source - first * back, -back,
          greater(i64(0), last - first + 1)};
}

template <typename T>
__device__ void transposed_conv(const T* y, Triple step, Triple n, const T* taps, Triple k,
                                Triple stride, Triple dilation, Triple lo, Triple common,
                                Triple inverse, T* out, Triple out_step, Triple shape, int fits) {
  const T* weights = staged(taps, k.x0 * k.x1 * k.x2, fits);
  const i64 column = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= shape.x2) return;
  const Terms c = terms_of(column, n.x2, k.x2, stride.x2, dilation.x2, lo.x2, common.x2,
                           inverse.x2);
  for (i64 plane = blockIdx.z; plane < shape.x0; plane += gridDim.z) {
    const Terms a = terms_of(plane, n.x0, k.x0, stride.x0, dilation.x0, lo.x0, common.x0,
                             inverse.x0);
    for (i64 row = i64(blockIdx.y) * blockDim.y + threadIdx.y; row < shape.x1;
         row += i64(gridDim.y) * blockDim.y) {
      const Terms b = terms_of(row, n.x1, k.x1, stride.x1, dilation.x1, lo.x1, common.x1,
                               inverse.x1);
      const T value = weighted_sum(y, step, weights, k.x1, k.x2, a, b, c);
      out[out_step.at(plane, row, column)] = stored(value);
    }
  }
}

#define INSTANTIATE(T, suffix)                                                                    \
  extern "C" __global__ void transposed_conv_##suffix(                                            \
      const T* y, THREE(step), THREE(n), const T* taps, THREE(k), THREE(stride), THREE(dilation), \
      THREE(lo), THREE(common), THREE(inverse), T* out, THREE(out_step), THREE(shape), int fits) { \
    transposed_conv<T>(y, TRIPLE(step), TRIPLE(n), taps, TRIPLE(k), TRIPLE(stride),               \
                       TRIPLE(dilation), TRIPLE(lo), TRIPLE(common), TRIPLE(inverse), out,        \
                       TRIPLE(out_step), TRIPLE(shape), fits);                                    \
  }
INSTANTIATE(float, f32)
INSTANTIATE(double, f64)
