// Runs of layers of equal taps, many layers in one sum.
//
// `layers` layers of k equal taps along an axis are one sum over t = layers·(k − 1) + 1 taps, whose
// integer coefficients the dtype holds exactly: as many operations as the layers one by one, and
// nothing stored in between. A launch makes these sums along two axes.
//
// A block marches down a strip of columns. In one step it reads `height` rows into shared memory,
// sums them along the columns into a ring of rows, and sums down the ring into as many rows of the
// result. Every row of the strip is read and summed once, but for the t − 1 rows with which a march
// begins. Bound: 2 memory accesses and 2·t multiply-adds a pixel, 2(k − 1) + 2/layers a pixel and
// layer: with more than some dozen layers the arithmetic. A thread makes EACH neighbouring results
// at a time, for which it loads one number and one tap per EACH multiply-adds. EACH is odd: threads
// EACH numbers apart then meet different banks.

#include "fastrf.cuh"

constexpr int EACH = 9;

// total[r] = Σ_{t<count} taps[t]·x_{r+t}, where next() gives x_0, x_1, …; it is called EACH + count
// times. The window of x moves through registers, whose indices are known when this is compiled.
template <typename T, typename Next>
__device__ inline void sum_line(T (&total)[EACH], const T* taps, int count, Next next) {
  T x[EACH];
#pragma unroll
  for (int r = 0; r < EACH; ++r) {
    x[r] = next();
    total[r] = 0;
  }
  int t = 0;
  for (; t + EACH <= count; t += EACH) {
#pragma unroll
    for (int u = 0; u < EACH; ++u) {
      const T tap = taps[t + u];
#pragma unroll
      for (int r = 0; r < EACH; ++r) total[r] += tap * x[(u + r) % EACH];
      x[u] = next();
    }
  }
#pragma unroll
  for (int u = 0; u < EACH - 1; ++u) {
    if (t + u < count) {
      const T tap = taps[t + u];
#pragma unroll
      for (int r = 0; r < EACH; ++r) total[r] += tap * x[(u + r) % EACH];
      x[u] = next();
    }
  }
}

// out[p, i, j] = Σ_{a<t1, b<t2} taps1[a]·taps2[b]·y[p + first0, i + a + first1, j + b + first2].
// A block takes `groups`·EACH columns and `march` rows.
template <typename T>
__device__ void box_run(const T* y, Triple step, Triple n, Triple first, const T* taps1, int t1,
                        const T* taps2, int t2, T* out, Triple out_step, Triple shape, int groups,
                        int height, int march) {
  const int width = groups * EACH, reads = width + t2 - 1, pitch = width + (t2 + 31) / 32 * 32;
  const int ring = height + t1 - 1, thread = threadIdx.x, threads = blockDim.x;
  T* down = shared_memory<T>();     // t1 taps
  T* along = down + t1;             // t2 taps
  T* fresh = along + t2;            // height rows of y
  T* sums = fresh + height * pitch; // ring rows, summed along the columns
  for (int t = thread; t < t1; t += threads) down[t] = taps1[t];
  for (int t = thread; t < t2; t += threads) along[t] = taps2[t];

  const i64 column0 = i64(blockIdx.x) * width;
  const int columns = int(lesser(i64(width), shape.x2 - column0));
  const i64 row0 = i64(blockIdx.y) * march;
  const int rows = int(lesser(i64(march), shape.x1 - row0));
  for (i64 plane = blockIdx.z; plane < shape.x0; plane += gridDim.z) {
    const i64 from = plane + first.x0;
    const bool inside = from >= 0 && from < n.x0;
    for (int begin = 0; begin < rows + t1 - 1; begin += height) {
      for (int r = thread / 32; r < height; r += threads / 32) {
        const i64 row = row0 + first.x1 + begin + r;
        const bool exists = inside && row >= 0 && row < n.x1;
        for (int c = thread % 32; c < reads; c += 32) {
          const i64 column = column0 + first.x2 + c;
          fresh[r * pitch + c] = exists && column >= 0 && column < n.x2
                                     ? y[step.at(from, row, column)]
                                     : T(0);
        }
      }
      __syncthreads();
      for (int item = thread; item < height * groups; item += threads) {
        const int r = item / groups, c = (item - r * groups) * EACH;
        const T* source = fresh + r * pitch + c;
        T total[EACH];
        sum_line(total, along, t2, [&] { return *source++; });
        T* to = sums + (begin + r) % ring * width + c;
#pragma unroll
        for (int i = 0; i < EACH; ++i) to[i] = total[i];
      }
      __syncthreads();
      // Row i of the result needs the rows up to i + t1 − 1. Where a group of rows begins before
      // the march, or ends behind this step, what it reads there goes nowhere.
      const int ready = begin - (t1 - 1), row_groups = (height + EACH - 1) / EACH;
      for (int item = thread; item < row_groups * width; item += threads) {
        const int group = item / width, c = item - group * width, top = group * EACH;
        if (c >= columns || ready + top + EACH <= 0 || ready + top >= rows) continue;
        int slot = (ready + top + ring) % ring;
        T total[EACH];
        sum_line(total, down, t1, [&] {
          const T value = sums[slot * width + c];
          slot = slot + 1 == ring ? 0 : slot + 1;
          return value;
        });
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
          const int row = ready + top + i;
          if (top + i < height && row >= 0 && row < rows) {
            out[out_step.at(plane, row0 + row, column0 + c)] = stored(total[i]);
          }
        }
      }
    }
    __syncthreads();
  }
}

#define INSTANTIATE(T, suffix)                                                                    \
  extern "C" __global__ void __launch_bounds__(384) box_run_##suffix(                             \
      const T* y, THREE(step), THREE(n), THREE(first), const T* taps1, int t1, const T* taps2,    \
      int t2, T* out, THREE(out_step), THREE(shape), int groups, int height, int march) {         \
    box_run<T>(y, TRIPLE(step), TRIPLE(n), TRIPLE(first), taps1, t1, taps2, t2, out,              \
               TRIPLE(out_step), TRIPLE(shape), groups, height, march);                           \
  }
INSTANTIATE(float, f32)
INSTANTIATE(double, f64)
