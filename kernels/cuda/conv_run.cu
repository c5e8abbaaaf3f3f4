// Runs of layers of the same general taps, many layers a launch.
//
// Temporal blocking, streaming along one axis: a block marches down a strip, which passes through a
// ring of rows in shared memory. In one step every layer advances by `height` rows, each k1 − 1 rows
// behind the layer before, so that nothing but the strip's edges is computed twice. A layer works in
// place: a result depends on nothing before its own position, where it is put once every thread has
// read what it needs.
//
// The axes are (across, march, columns): with two axes the first has one tap and a tile of one; with
// three, the march goes along the planes and a tile has rows and columns.
//
// Bound: 2/layers memory accesses and Πk multiply-adds a pixel and layer. A thread makes ROWS ×
// COLUMNS results at a time in registers, for which it loads (ROWS + k − 1)(COLUMNS + k − 1) numbers
// from shared memory. COLUMNS is odd, so that neighbouring threads meet different banks. Few, fat
// threads: latency is hidden by the ROWS·COLUMNS independent sums of each.
//
// Counted in the code for sm_90 (ptxas and nvdisasm 13; nothing here is a measurement), 3 × 3 taps in
// double, a warp's patch of 30 results a thread, one layer: 270 multiply-adds, 56 loads and 30 stores
// of shared memory, about 560 instructions in all, 147 registers, nothing spilled. A processor of 4
// schedulers then takes, for 4 warps and 3840 updates, 540 cycles of its double units (2 a
// multiply-add), 560 of its issue slots, and 688 of shared memory (128 bytes a cycle, 2 a warp's
// load): shared memory is what bounds it. 132 processors at 1.98 GHz could make 1,450 billion updates
// a second by that, of which the columns that two strips both compute (48 of 390 with 24 layers) take
// an eighth, and barriers what they take. In single precision loads are half as wide: issue bounds
// it, at about 1,800 billion.
// (Matsumura et al., "AN5D", 2020; Zhang et al., "Revisiting temporal blocking stencil
// optimizations" (EBISU), 2023.)

#include "fastrf.cuh"

constexpr int ROWS = 6;
constexpr int COLUMNS = 5;

// Σ taps·x for ROWS × COLUMNS results from `base` on; slot is the first row's place in the ring. K
// taps along both axes, or, for K = 0, k1 and k2.
template <int K, typename T>
__device__ inline void sum_patch(T (&total)[COLUMNS][ROWS], const T* base, int slot, int ring,
                                 int pitch, const T* taps, int k1, int k2) {
  if constexpr (K > 0) {
    T x[ROWS + K - 1];
    int at[ROWS + K - 1];
#pragma unroll
    for (int r = 0; r < ROWS + K - 1; ++r) {
      at[r] = slot * pitch;
      slot = slot + 1 == ring ? 0 : slot + 1;
    }
#pragma unroll
    for (int p = 0; p < COLUMNS + K - 1; ++p) {
#pragma unroll
      for (int r = 0; r < ROWS + K - 1; ++r) x[r] = base[at[r] + p];
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
        if (p - c < 0 || p - c >= K) continue;
#pragma unroll
        for (int m = 0; m < K; ++m) {
          const T tap = taps[m * K + p - c];
#pragma unroll
          for (int r = 0; r < ROWS; ++r) total[c][r] += tap * x[r + m];
        }
      }
    }
  } else {
    for (int p = 0; p < COLUMNS + k2 - 1; ++p) {
      int row = slot;
      const auto next = [&] {
        const T value = base[row * pitch + p];
        row = row + 1 == ring ? 0 : row + 1;
        return value;
      };
      T x[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) x[r] = next();
      for (int m = 0; m < k1; m += ROWS) {
#pragma unroll
        for (int u = 0; u < ROWS; ++u) {
          if (m + u < k1) {
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
              if (p - c >= 0 && p - c < k2) {
                const T tap = taps[(m + u) * k2 + p - c];
#pragma unroll
                for (int r = 0; r < ROWS; ++r) total[c][r] += tap * x[(u + r) % ROWS];
              }
            }
            x[u] = next();
          }
        }
      }
    }
  }
}

// The sign, the exponent and the first bits of a number; they order nonnegative numbers as they are.
__device__ inline int leading_bits(float value) { return __float_as_int(value); }
__device__ inline int leading_bits(double value) {
  return int(__double_as_longlong(value) >> 32);
}

// The results of a patch as they are stored. Hardly a patch has any below `least`: a minimum of
// integers finds out, in a third of the instructions of a comparison and a selection for each, and
// beside the arithmetic of doubles. A NaN stays what it is either way.
template <typename T>
__device__ inline void flush(T (&total)[COLUMNS][ROWS], T least) {
  int lowest = 0x7fffffff;
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) lowest = lesser(lowest, leading_bits(total[c][r]));
  }
  if (lowest > leading_bits(least)) return;
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) total[c][r] = stored(total[c][r], least);
  }
}

// `layers` times out[i] = Σ_t taps[t]·y[i + t + first] on all three axes. A block takes `across` of
// the first axis, `march` rows and `width` columns of the result; the strip has `groups`·COLUMNS
// columns and as many of the first axis as the first layer needs.
template <int K, typename T>
__device__ void conv_run(const T* y, Triple step, Triple n, Triple first, const T* taps, int k0,
                         int k1, int k2, int layers, T* out, Triple out_step, Triple shape,
                         int across, int march, int width, int groups, int height,
                         const T* least_kept) {
  const T least = *least_kept;
  const int behind = k1 - 1, ring = height + layers * behind, thread = threadIdx.x;
  const int wide = across + layers * (k0 - 1);
  const int columns = groups * COLUMNS, pitch = columns + k2 - 1, area = ring * pitch;
  T* weights = shared_memory<T>();
  T* held = weights + k0 * k1 * k2;  // wide × ring × pitch
  for (int t = thread; t < k0 * k1 * k2; t += blockDim.x) weights[t] = taps[t];
  // The taps of a plane in registers, where they are few; those of the only one stay there.
  constexpr bool FEW = K == 3;
  T few[FEW ? K * K : 1];
#pragma unroll
  for (int t = 0; t < (FEW ? K * K : 0); ++t) few[t] = taps[t];

  // Parts of this thread's patch: its place on the first axis, its rows and its columns.
  const int row_groups = height / ROWS;
  const int place = thread / (row_groups * groups), rest = thread - place * row_groups * groups;
  const int top = rest / groups * ROWS, left = rest % groups * COLUMNS;

  const i64 column0 = i64(blockIdx.x) * width, row0 = i64(blockIdx.y) * march;
  const int rows = int(lesser(i64(march), shape.x1 - row0));
  const int steps = (rows + layers * behind + height - 1) / height;
  const i64 tiles = (shape.x0 + across - 1) / across;
  for (i64 tile = blockIdx.z; tile < tiles; tile += gridDim.z) {
    const i64 place0 = tile * across;
    for (int s = 0; s <= steps; ++s) {
      // The rows that are done leave the ring, and in the same places new ones enter.
      for (int line = thread / 32; line < wide * height; line += blockDim.x / 32) {
        const int a = line / height, r = line - a * height, done = s * height + r - ring;
        T* cells = held + a * area + (s * height + r) % ring * pitch;
        const bool leaves = done >= 0 && done < rows && a < across && place0 + a < shape.x0;
        const i64 plane = place0 + first.x0 + a, row = row0 + first.x1 + s * height + r;
        const bool exists = plane >= 0 && plane < n.x0 && row >= 0 && row < n.x1;
        for (int c = thread % 32; c < pitch; c += 32) {
          if (leaves && c < width && column0 + c < shape.x2) {
            out[out_step.at(place0 + a, row0 + done, column0 + c)] = cells[c];
          }
          const i64 column = column0 + first.x2 + c;
          cells[c] = exists && column >= 0 && column < n.x2 ? y[step.at(plane, row, column)] : T(0);
        }
      }
      __syncthreads();
      for (int layer = 1; layer <= layers && s < steps; ++layer) {
        // What this layer's patch reaches beyond the strip is of no use to any result.
        const int row = s * height - layer * behind + top;
        const bool busy = place < wide - layer * (k0 - 1) &&
                          left < columns - layer * (k2 - 1) && row + ROWS > 0;
        const int slot = (row + ring * layers) % ring;
        T total[COLUMNS][ROWS] = {};
        if (busy) {
          for (int a = 0; a < k0; ++a) {
            const T* plane = weights + a * k1 * k2;
            if (FEW && k0 > 1) {
#pragma unroll
              for (int t = 0; t < K * K; ++t) few[t] = plane[t];
            }
            sum_patch<K>(total, held + (place + a) * area + left, slot, ring, pitch,
                         FEW ? few : plane, k1, k2);
          }
        }
        __syncthreads();
        if (busy) {
          flush(total, least);
          int to = slot;
#pragma unroll
          for (int r = 0; r < ROWS; ++r) {
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
              held[place * area + to * pitch + left + c] = total[c][r];
            }
            to = to + 1 == ring ? 0 : to + 1;
          }
        }
        __syncthreads();
      }
    }
    __syncthreads();
  }
}

// One layer at a time, for taps that leave no room in shared memory: one thread a result.
template <typename T>
__device__ void conv_layer(const T* y, Triple step, Triple n, Triple first, const T* taps, Triple k,
                           T* out, Triple out_step, Triple shape, const T* least) {
  const auto terms = [](i64 i, i64 size, i64 taps_) -> Terms {
    const i64 from = greater(i64(0), -i), end = lesser(taps_, size - i);
    return {from, 1, i + from, 1, greater(i64(0), end - from)};
  };
  const i64 column = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= shape.x2) return;
  const Terms c = terms(column + first.x2, n.x2, k.x2);
  for (i64 plane = blockIdx.z; plane < shape.x0; plane += gridDim.z) {
    const Terms a = terms(plane + first.x0, n.x0, k.x0);
    for (i64 row = i64(blockIdx.y) * blockDim.y + threadIdx.y; row < shape.x1;
         row += i64(gridDim.y) * blockDim.y) {
      const Terms b = terms(row + first.x1, n.x1, k.x1);
      const T value = weighted_sum(y, step, taps, k.x1, k.x2, a, b, c);
      out[out_step.at(plane, row, column)] = stored(value, *least);
    }
  }
}

#define INSTANTIATE(T, suffix, K)                                                                 \
  extern "C" __global__ void __launch_bounds__(384) conv_run_##suffix(                            \
      const T* y, THREE(step), THREE(n), THREE(first), const T* taps, int k0, int k1, int k2,     \
      int layers, T* out, THREE(out_step), THREE(shape), int across, int march, int width,        \
      int groups, int height, const T* least) {                                                   \
    conv_run<K, T>(y, TRIPLE(step), TRIPLE(n), TRIPLE(first), taps, k0, k1, k2, layers, out,      \
                   TRIPLE(out_step), TRIPLE(shape), across, march, width, groups, height, least); \
  }
INSTANTIATE(float, f32, 0)
INSTANTIATE(double, f64, 0)
INSTANTIATE(float, three_f32, 3)
INSTANTIATE(double, three_f64, 3)
INSTANTIATE(float, five_f32, 5)
INSTANTIATE(double, five_f64, 5)

#undef INSTANTIATE
#define INSTANTIATE(T, suffix)                                                                    \
  extern "C" __global__ void conv_layer_##suffix(const T* y, THREE(step), THREE(n), THREE(first), \
                                                 const T* taps, THREE(k), T* out,                 \
                                                 THREE(out_step), THREE(shape), const T* least) { \
    conv_layer<T>(y, TRIPLE(step), TRIPLE(n), TRIPLE(first), taps, TRIPLE(k), out,                \
                  TRIPLE(out_step), TRIPLE(shape), least);                                        \
  }
INSTANTIATE(float, f32)
INSTANTIATE(double, f64)
