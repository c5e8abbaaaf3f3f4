// Sums over windows at a cost that does not depend on the window: what both boxes are made of.
//
// Van Herk (1992) and Gil and Werman (1993), with sums in place of maxima: cut the axis into blocks
// as long as the window. A window then meets at most two blocks, and its sum is a suffix sum of the
// first plus a prefix sum of the second. Only nonnegative numbers are added; a running difference
// would lose all relative accuracy in the tails. Blocks are counted from the first element of y, so
// that a tile has the bits of the whole.
//
// Outputs and sources are joined by up·o + m·dilation = down·i + lo, where up or down is 1. With
// `common`, the greatest common divisor of up and dilation, the taps m of one output are
// apart = up/common apart and its sources lag = dilation/common. An output's window ends with the
// source of its first tap and has `count` elements, one more where that tap is below `extra`.
//
// Bound: y read twice, two arrays of sums written and read, the result written: 7 memory accesses a
// pixel. Windows of a few elements are summed directly, 2 accesses.

#include "fastrf.cuh"

struct Relation {
  i64 up, down, dilation, lo, common, inverse, apart, lag, count, extra;
};

#define RELATION_PARAMETERS                                                                  \
  i64 up, i64 down, i64 dilation, i64 lo, i64 common, i64 inverse, i64 apart, i64 lag, i64 count, \
      i64 extra
#define RELATION \
  Relation { up, down, dilation, lo, common, inverse, apart, lag, count, extra }

// The last element of output i's window, and how many it has; 0 where none of them is an element.
struct Window {
  i64 last, count;
};

__device__ inline Window window_of(i64 i, const Relation& r) {
  const i64 scaled = r.down * i + r.lo;
  if (r.up == 1) return {scaled, r.count};
  const i64 quotient = floor_divided(scaled, r.common);
  if (quotient * r.common != scaled) return {0, 0};
  const i64 residue = quotient - floor_divided(quotient, r.apart) * r.apart;
  const i64 tap = residue * r.inverse % r.apart;
  return {floor_divided(scaled - tap * r.dilation, r.up), r.count + (tap < r.extra)};
}

// Calls value(plane, window, column) for every output and stores what it returns.
template <typename T, typename Value>
__device__ inline void for_each_window(const Relation& r, T* out, Triple step, Triple shape,
                                       Value value) {
  const i64 column = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= shape.x2) return;
  for (i64 row = i64(blockIdx.y) * blockDim.y + threadIdx.y; row < shape.x1;
       row += i64(gridDim.y) * blockDim.y) {
    const Window window = window_of(row, r);
    for (i64 plane = blockIdx.z; plane < shape.x0; plane += gridDim.z) {
      out[step.at(plane, row, column)] = stored(value(plane, window, column));
    }
  }
}

template <typename T>
__device__ void window_direct(const T* y, Triple step, i64 n, const Relation& r, T* out,
                              Triple out_step, Triple shape) {
  for_each_window(r, out, out_step, shape, [&](i64 plane, Window window, i64 column) {
    const i64 first = window.last < n ? 0 : ceil_divided(window.last - n + 1, r.lag);
    const i64 end = window.last < 0
                        ? 0
                        : lesser(window.count, floor_divided(window.last, r.lag) + 1);
    T total = 0;
    for (i64 t = first; t < end; ++t) total += y[step.at(plane, window.last - t * r.lag, column)];
    return total;
  });
}

// Rows of y that are `lag` apart are a line, and `count` of them a block; element e of a plane is
// column e % columns of row e / columns. A thread takes element `lane` of a block's first lag rows
// and walks through the block.
template <typename T>
__device__ void window_sums_wide(const T* y, Triple step, T* prefix, T* suffix, Triple shape,
                                 i64 lag, i64 count, i64 blocks) {
  const i64 width = lag * shape.x2;
  const i64 item = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (item >= blocks * width) return;
  const i64 block = item / width, lane = item % width;
  const i64 column = lane % shape.x2, row0 = block * count * lag + lane / shape.x2;
  if (row0 >= shape.x1) return;
  const i64 rows = lesser(count, (shape.x1 - row0 + lag - 1) / lag);
  for (i64 plane = blockIdx.y; plane < shape.x0; plane += gridDim.y) {
    const T* source = y + step.at(plane, row0, column);
    const i64 to = (plane * shape.x1 + row0) * shape.x2 + column;
    T total = 0;
    for (i64 r = 0; r < rows; ++r) {
      total += source[r * lag * step.x1];
      prefix[to + r * width] = total;
    }
    total = 0;
    for (i64 r = rows - 1; r >= 0; --r) {
      total += source[r * lag * step.x1];
      suffix[to + r * width] = total;
    }
  }
}

// The same where a block's rows are too short for a warp to read them in whole cache lines: a piece
// of `pieces` blocks passes through shared memory, each block with a pitch of its own, an odd number
// so that threads at the same place of their blocks meet different banks.
template <typename T>
__device__ void window_sums_narrow(const T* y, Triple step, T* prefix, T* suffix, Triple shape,
                                   i64 lag, i64 count, int pieces) {
  const int width = int(lag * shape.x2), length = int(count) * width, pitch = length | 1;
  T* up = shared_memory<T>();
  T* down = up + pieces * pitch;
  const i64 begin = i64(blockIdx.x) * pieces * length, size = shape.x1 * shape.x2;
  const int here = int(lesser(i64(pieces) * length, size - begin));
  for (i64 plane = blockIdx.y; plane < shape.x0; plane += gridDim.y) {
    for (int e = threadIdx.x; e < here; e += blockDim.x) {
      const i64 at = begin + e;
      const T value = y[step.at(plane, at / shape.x2, at % shape.x2)];
      const int to = e / length * pitch + e % length;
      up[to] = value;
      down[to] = value;
    }
    __syncthreads();
    for (int item = threadIdx.x; item < 2 * pieces * width; item += blockDim.x) {
      const int line = item / 2, piece = line / width, lane = line % width;
      const int end = lesser(length, here - piece * length);
      if (lane >= end) continue;
      const int last = lane + (end - 1 - lane) / width * width;
      T total = 0;
      if (item % 2) {
        T* sums = down + piece * pitch;
        for (int e = last; e >= 0; e -= width) sums[e] = total += sums[e];
      } else {
        T* sums = up + piece * pitch;
        for (int e = lane; e < end; e += width) sums[e] = total += sums[e];
      }
    }
    __syncthreads();
    for (int e = threadIdx.x; e < here; e += blockDim.x) {
      const int from = e / length * pitch + e % length;
      prefix[plane * size + begin + e] = up[from];
      suffix[plane * size + begin + e] = down[from];
    }
    __syncthreads();
  }
}

// One suffix and one prefix sum a window.
template <typename T>
__device__ void window_join(const T* y, Triple step, const T* prefix, const T* suffix, i64 n,
                            const Relation& r, T* out, Triple out_step, Triple shape) {
  for_each_window(r, out, out_step, shape, [&](i64 plane, Window window, i64 column) {
    T total = 0;
    if (window.last < 0 || window.count == 0) return total;
    const i64 at = floor_divided(window.last, r.lag), lane = window.last - at * r.lag;
    if (lane >= n) return total;
    const i64 rows = (n - lane + r.lag - 1) / r.lag;  // of this line
    const i64 block = floor_divided(at, r.count), begin = block * r.count;
    const i64 base = plane * n * shape.x2 + column;
    const i64 last = lesser(at, rows - 1);
    if (last >= begin) total += prefix[base + (last * r.lag + lane) * shape.x2];
    const i64 first = at - r.count + 1;
    if (first >= 0 && first < begin && first < rows) {
      total += suffix[base + (first * r.lag + lane) * shape.x2];
    }
    const i64 before = first - 1;  // the element that a longer window has in addition
    if (window.count > r.count && before >= 0 && before < rows) {
      total += y[step.at(plane, before * r.lag + lane, column)];
    }
    return total;
  });
}

#define INSTANTIATE(T, suffix_)                                                                   \
  extern "C" __global__ void window_direct_##suffix_(const T* y, THREE(step), i64 n,              \
                                                     RELATION_PARAMETERS, T* out,                 \
                                                     THREE(out_step), THREE(shape)) {             \
    window_direct<T>(y, TRIPLE(step), n, RELATION, out, TRIPLE(out_step), TRIPLE(shape));         \
  }                                                                                               \
  extern "C" __global__ void window_sums_wide_##suffix_(const T* y, THREE(step), T* prefix,       \
                                                        T* suffix, THREE(shape), i64 lag,         \
                                                        i64 count, i64 blocks) {                  \
    window_sums_wide<T>(y, TRIPLE(step), prefix, suffix, TRIPLE(shape), lag, count, blocks);      \
  }                                                                                               \
  extern "C" __global__ void window_sums_narrow_##suffix_(const T* y, THREE(step), T* prefix,     \
                                                          T* suffix, THREE(shape), i64 lag,       \
                                                          i64 count, int pieces) {                \
    window_sums_narrow<T>(y, TRIPLE(step), prefix, suffix, TRIPLE(shape), lag, count, pieces);    \
  }                                                                                               \
  extern "C" __global__ void window_join_##suffix_(const T* y, THREE(step), const T* prefix,      \
                                                   const T* suffix, i64 n, RELATION_PARAMETERS,   \
                                                   T* out, THREE(out_step), THREE(shape)) {       \
    window_join<T>(y, TRIPLE(step), prefix, suffix, n, RELATION, out, TRIPLE(out_step),           \
                   TRIPLE(shape));                                                                \
  }
INSTANTIATE(float, f32)
INSTANTIATE(double, f64)
