// The outer product of two profiles: the image of a chain of separable layers.
//
// Bound: one write a pixel. A thread keeps its element of x over all the rows of its block, so that
// a pixel costs one product and one store; a warp writes whole cache lines.

#include "fastrf.cuh"

template <typename T>
__device__ void outer_product(const T* y, i64 y_step, const T* x, i64 x_step, T* out, i64 row_step,
                              i64 column_step, i64 rows, i64 columns) {
  const i64 j = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j >= columns) return;
  const T factor = x[j * x_step];
  for (i64 i = i64(blockIdx.y) * blockDim.y + threadIdx.y; i < rows;
       i += i64(gridDim.y) * blockDim.y) {
    out[i * row_step + j * column_step] = stored(y[i * y_step] * factor);
  }
}

#define INSTANTIATE(T, suffix)                                                                  \
  extern "C" __global__ void outer_product_##suffix(const T* y, i64 y_step, const T* x,         \
                                                    i64 x_step, T* out, i64 row_step,           \
                                                    i64 column_step, i64 rows, i64 columns) {   \
    outer_product<T>(y, y_step, x, x_step, out, row_step, column_step, rows, columns);          \
  }
INSTANTIATE(float, f32)
INSTANTIATE(double, f64)
