// A block of a sum of separable terms: a matrix product of nonnegative numbers.
//
// Not cuBLAS: weights·y that are subnormal count as 0 and the result is scaled and flushed, which
// would be passes of their own over memory. Bound: one write a pixel up to some 25 terms in float64
// (one multiply-add a term and pixel), arithmetic beyond. A block makes a square of SIDE × SIDE
// pixels; a thread EACH × EACH of them, SIDE/EACH apart, so that a warp writes whole cache lines.
// For EACH² multiply-adds it loads 2·EACH numbers from shared memory.

#include "fastrf.cuh"

constexpr int SIDE = 64;
constexpr int EACH = 4;
constexpr int LANES = SIDE / EACH;  // threads along either axis
constexpr int DEPTH = 16;           // terms that are in shared memory at a time

template <typename T>
__device__ void sum_of_terms(const T* weights, i64 weight_step, const T* y, i64 y_term,
                             i64 y_step, const T* x, i64 x_term, i64 x_step, T scale, T* out,
                             i64 row_step, i64 column_step, i64 terms, i64 rows, i64 columns) {
  T* left = shared_memory<T>();     // DEPTH × SIDE of weights·y
  T* right = left + DEPTH * SIDE;   // DEPTH × SIDE of x
  const int tx = threadIdx.x, ty = threadIdx.y, thread = ty * LANES + tx;
  const i64 column0 = i64(blockIdx.x) * SIDE;
  for (i64 row0 = i64(blockIdx.y) * SIDE; row0 < rows; row0 += i64(gridDim.y) * SIDE) {
    T total[EACH][EACH] = {};
    for (i64 term0 = 0; term0 < terms; term0 += DEPTH) {
      const int depth = int(lesser(i64(DEPTH), terms - term0));
      for (int e = thread; e < depth * SIDE; e += LANES * LANES) {
        const i64 t = term0 + e / SIDE, i = row0 + e % SIDE, j = column0 + e % SIDE;
        left[e] = i < rows ? stored(weights[t * weight_step] * y[t * y_term + i * y_step]) : T(0);
        right[e] = j < columns ? x[t * x_term + j * x_step] : T(0);
      }
      __syncthreads();
      for (int t = 0; t < depth; ++t) {
        T a[EACH], b[EACH];
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
          a[e] = left[t * SIDE + e * LANES + ty];
          b[e] = right[t * SIDE + e * LANES + tx];
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
#pragma unroll
          for (int j = 0; j < EACH; ++j) total[i][j] += a[i] * b[j];
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
#pragma unroll
      for (int j = 0; j < EACH; ++j) {
        const i64 row = row0 + i * LANES + ty, column = column0 + j * LANES + tx;
        if (row < rows && column < columns) {
          out[row * row_step + column * column_step] = stored(total[i][j] * scale);
        }
      }
    }
  }
}

#define INSTANTIATE(T, suffix)                                                                   \
  extern "C" __global__ void __launch_bounds__(LANES * LANES) sum_of_terms_##suffix(             \
      const T* weights, i64 weight_step, const T* y, i64 y_term, i64 y_step, const T* x,         \
      i64 x_term, i64 x_step, T scale, T* out, i64 row_step, i64 column_step, i64 terms,         \
      i64 rows, i64 columns) {                                                                   \
    sum_of_terms<T>(weights, weight_step, y, y_term, y_step, x, x_term, x_step, scale, out,      \
                    row_step, column_step, terms, rows, columns);                                \
  }
INSTANTIATE(float, f32)
INSTANTIATE(double, f64)
