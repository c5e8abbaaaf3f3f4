// Sizes of many images that are outer products of profiles: one block a line, then one a chain.
//
// A line is measured, and what chains need of it is left in global memory: its running sums, its
// pixels in descending order, and its quotients with the Gaussian in ascending order with the
// masses that lie above each. A chain then bisects: a pixel of one axis says above which one of the
// next the product passes. Bound: the sorts, (log2 n)²/2 passes over n pixels with a barrier each,
// in shared memory where it is large enough; all else is a few passes.
//
// All sums are in double and of one order: each thread's own first, warps and blocks as a tree.

#include "fastrf.cuh"

constexpr int MOST_THREADS = 512;  // of a block that measures a line

// Behind the last of what is sorted; a quotient with the Gaussian is at most 1/FLOOR.
constexpr double BEHIND = 1e300;

// What chains read of the lines. Of a line with its first pixel at b, `sums`, `more` and `less` have
// one element more, and begin at b + line; `facts` holds SUM, MEAN, VARIANCE and COMPARED.
struct Held {
  double *sorted, *quotients, *sums, *more, *less, *facts;
};

enum { SUM, MEAN, VARIANCE, COMPARED, FACTS };

__device__ inline Held held_in(double* work, i64 pixels, i64 lines) {
  double* const sums = work + 2 * pixels;
  const i64 each = pixels + lines;
  return {work, work + pixels, sums, sums + each, sums + 2 * each, sums + 3 * each};
}

// The sum of the values of the threads before each one.
__device__ inline double block_before(double value, double* parts) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  double upto = value;
  for (int step = 1; step < 32; step *= 2) {
    const double other = __shfl_up_sync(0xffffffffu, upto, step);
    if (lane >= step) upto += other;
  }
  double before = __shfl_up_sync(0xffffffffu, upto, 1);
  if (lane == 0) before = 0;
  if (lane == 31) parts[warp] = upto;
  __syncthreads();
  double ahead = 0;
  for (int w = 0; w < warp; ++w) ahead += parts[w];
  __syncthreads();
  return ahead + before;
}

// held[i + 1] = Σ value(j), j ≤ i < n, and held[0] = 0; backwards, held[i] = Σ value(j), j ≥ i, and
// held[n] = 0. A thread takes neighbours, so that small sums are sums of small values alone.
template <typename F>
__device__ inline void running(int n, bool backwards, F value, double* held, double* parts) {
  const int each = (n + int(blockDim.x) - 1) / int(blockDim.x);
  const int from = lesser(n, int(threadIdx.x) * each), to = lesser(n, from + each);
  double total = 0;
  for (int i = from; i < to; ++i) total += value(backwards ? n - 1 - i : i);
  double sum = block_before(total, parts);
  for (int i = from; i < to; ++i) {
    sum += value(backwards ? n - 1 - i : i);
    held[backwards ? n - 1 - i : i + 1] = sum;
  }
  if (threadIdx.x == 0) held[backwards ? n : 0] = 0;
  __syncthreads();
}

// Sorts `size` keys, a power of two, in ascending order, and moves `index` along: Batcher's bitonic
// network. What the threads have written before is seen.
__device__ inline void sort(double* keys, int* index, int size) {
  for (int run = 2; run <= size; run *= 2) {
    for (int apart = run / 2; apart > 0; apart /= 2) {
      __syncthreads();
      for (int t = threadIdx.x; t < size / 2; t += blockDim.x) {
        const int a = 2 * t - (t & (apart - 1)), b = a + apart;
        const double x = keys[a], y = keys[b];
        if ((a & run) == 0 ? y < x : x < y) {
          keys[a] = y;
          keys[b] = x;
          const int moved = index[a];
          index[a] = index[b];
          index[b] = moved;
        }
      }
    }
  }
  __syncthreads();
}

// The least i of [0, n) for which `holds` is true, which then is true of all behind; n without one.
template <typename F>
__device__ inline int first_where(int n, F holds) {
  int low = 0, high = n;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (holds(middle)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// The lines order[0 … chosen). `room` keys and indices of shared memory are there, or of scratch.
template <typename T>
__device__ void measure(const i64* order, i64 chosen, const T* pixels, i64 step, const i64* places,
                        const i64* counts, const i64* begins, Held held, T* moments,
                        i64 moments_row, i64 moments_step, double negligible, double far_out,
                        double least_gauss, double* keys, int* index, double* parts) {
  const int thread = threadIdx.x, threads = blockDim.x;
  for (i64 at = blockIdx.x; at < chosen; at += gridDim.x) {
    const i64 line = order[at], begin = begins[line];
    const int n = int(counts[line]);
    const T* const own = pixels + places[line] * step;
    double total = 0, largest = 0;
    for (int i = thread; i < n; i += threads) {
      const double v = double(own[i * step]);
      total += v;
      largest = greater(largest, v);
    }
    total = block_sum(total, parts);
    const auto p = [=](int i) { return double(own[i * step]) / total; };
    const double top = block_max(largest, parts) / total;
    double lean = 0, uneven = 0;
    for (int i = thread; i < n / 2; i += threads) uneven = p(i) != p(n - 1 - i) ? 1 : uneven;
    const double middle = (n - 1) / 2.0;
    if (block_max(uneven, parts) > 0) {
      for (int i = thread; i < n; i += threads) lean += p(i) * (i - middle);
      lean = block_sum(lean, parts);
    }
    // `left` and `right` are for the outermost pixels of at least half the maximum, the first one
    // counted from the end.
    double variance = 0, fourth = 0, left = 0, right = 0;
    for (int i = thread; i < n; i += threads) {
      const double q = p(i), x = i - middle - lean, weighted = q * x * x;
      variance += weighted;
      fourth += weighted * x * x;
      if (!(q < top / 2)) {
        left = greater(left, double(n - i));
        right = greater(right, double(i));
      }
    }
    variance = block_sum(variance, parts);
    fourth = block_sum(fourth, parts);
    const int first = n - int(block_max(left, parts)), last = int(block_max(right, parts));
    const double mean = middle + lean;
    if (thread == 0) {
      const double half = top / 2, before = first > 0 ? p(first - 1) : 0.0;
      const double after = last < n - 1 ? p(last + 1) : 0.0;
      const double rise = (p(first) - half) / (p(first) - before);
      const double fall = (p(last) - half) / (p(last) - after);
      const double found[] = {total,
                              mean,
                              variance,
                              fourth / (variance * variance) - 3,  // without spread 0/0, a NaN
                              last - first + rise + fall,
                              p(0) / top,
                              p(n - 1) / top};
      for (int m = 0; m < 7; ++m) moments[line * moments_row + m * moments_step] = T(found[m]);
    }
    double* const sums = held.sums + begin + line;
    double* const more = held.more + begin + line;
    double* const less = held.less + begin + line;
    running(n, false, p, sums, parts);
    int size = 1;
    while (size < n) size *= 2;
    for (int i = thread; i < size; i += threads) {
      keys[i] = i < n ? -p(i) : BEHIND;
      index[i] = i;
    }
    sort(keys, index, size);
    for (int i = thread; i < n; i += threads) held.sorted[begin + i] = -keys[i];
    // Compared with a Gaussian are the pixels between tails that are far out and of no mass.
    int compared = 0;
    if (variance > 0) {
      const double reach = far_out * sqrt(variance);
      running(n, true, p, more, parts);
      const int start = first_where(n, [=](int i) {
        return sums[i + 1] > negligible || !(mean - i > reach);
      });
      const int stop = first_where(n, [=](int i) {
        return !(more[i] > negligible) && i - mean > reach;
      });
      compared = stop - start;
      const auto bell = [=](int i) {
        const double x = start + i - mean;
        return exp(-0.5 * x * x / variance);
      };
      double whole = 0;
      for (int i = thread; i < compared; i += threads) whole += bell(i);
      whole = block_sum(whole, parts);
      __syncthreads();  // before keys and `more` are written anew
      size = 1;
      while (size < compared) size *= 2;
      for (int i = thread; i < size; i += threads) {
        keys[i] = i < compared ? p(start + i) / greater(bell(i) / whole, least_gauss) : BEHIND;
        index[i] = i;
      }
      sort(keys, index, size);
      for (int i = thread; i < compared; i += threads) held.quotients[begin + i] = keys[i];
      running(compared, true, [=](int i) { return p(start + index[i]); }, more, parts);
      running(compared, true, [=](int i) { return bell(index[i]) / whole; }, less, parts);
    }
    if (thread == 0) {
      double* const facts = held.facts + line * FACTS;
      facts[SUM] = total;
      facts[MEAN] = mean;
      facts[VARIANCE] = variance;
      facts[COMPARED] = compared;
    }
    __syncthreads();
  }
}

// The profile p of n pixels, or its root, interpolated at c.
template <typename F>
__device__ inline double interpolated(F p, int n, double c, bool root) {
  const double low = floor(c);
  double value = 0;
  for (int m = 0; m < 2; ++m) {
    const double i = low + m, weight = 1 - fabs(i - c);
    if (i >= 0 && i < n && weight > 0) {
      value += weight * (root ? sqrt(p(int(i))) : p(int(i)));
    }
  }
  return value;
}

// What a chain of N axes has along each; N is known to the compiler, which keeps this in registers.
template <int N>
struct Axes {
  int n[N], compared[N];
  const double *sorted[N], *quotients[N], *sums[N], *more[N], *less[N];
};

// Pixels above `limit` of the outer product of descending values, this thread's part of them.
template <int N>
__device__ inline double above(const Axes<N>& axes, double limit) {
  constexpr int last = N - 1, before = N > 1 ? N - 2 : 0;
  const int planes = N == 3 ? axes.n[0] : 1, rows = N > 1 ? axes.n[before] : 1;
  const double* const values = axes.sorted[last];
  i64 found = 0;
  for (int plane = 0; plane < planes; ++plane) {
    const auto lead_of = [&](int i) {
      const double lead = N > 1 ? axes.sorted[before][i] : 1.0;
      return N == 3 ? axes.sorted[0][plane] * lead : lead;
    };
    if (!(lead_of(0) * values[0] > limit)) break;
    for (int i = threadIdx.x; i < rows; i += blockDim.x) {
      const double lead = lead_of(i);
      const int many =
          first_where(axes.n[last], [=](int j) { return !(lead * values[j] > limit); });
      if (many == 0) break;
      found += many;
    }
  }
  return double(found);
}

// Σ (Πa − Πb) over the pixels where it is positive, this thread's part. Single masses are
// differences of running sums, right to a rounding of 1, as the result is.
template <int N>
__device__ inline double exceeding(const Axes<N>& axes) {
  constexpr int last = N - 1, before = N > 1 ? N - 2 : 0;
  const int planes = N == 3 ? axes.compared[0] : 1, rows = N > 1 ? axes.compared[before] : 1;
  const double* const quotients = axes.quotients[last];
  double found = 0;
  for (int plane = 0; plane < planes; ++plane) {
    for (int i = threadIdx.x; i < rows; i += blockDim.x) {
      double ratio = 1, up = 1, down = 1;
      if (N > 1) {
        ratio = axes.quotients[before][i];
        up = axes.more[before][i] - axes.more[before][i + 1];
        down = axes.less[before][i] - axes.less[before][i + 1];
      }
      if (N == 3) {
        ratio *= axes.quotients[0][plane];
        up *= axes.more[0][plane] - axes.more[0][plane + 1];
        down *= axes.less[0][plane] - axes.less[0][plane + 1];
      }
      const int j = first_where(axes.compared[last], [=](int m) { return ratio * quotients[m] > 1; });
      found += up * axes.more[last][j] - down * axes.less[last][j];
    }
  }
  return found;
}

template <typename T, int N>
__device__ void chain_figures(i64 chains, const T* pixels, i64 step, const i64* places,
                              const i64* counts, const i64* begins, const i64* lines, const T* at,
                              double threshold, int shares, const T* asked, double slack,
                              Held held, T* out, i64 row_step, i64 column_step, double* parts) {
  for (i64 c = blockIdx.x; c < chains; c += gridDim.x) {
    Axes<N> axes;
    double amplitude = 1, bright = 1, whole = 1, reach = 0, here[N];
    bool spread = true;
#pragma unroll
    for (int axis = 0; axis < N; ++axis) {
      const i64 line = lines[axis * chains + c], begin = begins[line];
      const double* const facts = held.facts + line * FACTS;
      const int n = int(counts[line]);
      axes.n[axis] = n;
      axes.sorted[axis] = held.sorted + begin;
      axes.quotients[axis] = held.quotients + begin;
      axes.sums[axis] = held.sums + begin + line;
      axes.more[axis] = held.more + begin + line;
      axes.less[axis] = held.less + begin + line;
      axes.compared[axis] = int(facts[COMPARED]);
      here[axis] = double(at[axis * chains + c]);
      const T* const own = pixels + places[line] * step;
      const double total = facts[SUM];
      const auto p = [=](int i) { return double(own[i * step]) / total; };
      amplitude *= interpolated(p, n, here[axis], true);
      bright *= interpolated(p, n, here[axis], false);
      whole *= axes.sums[axis][n];
      spread = spread && facts[VARIANCE] > 0;
      reach = greater(reach, greater(here[axis] + 1, n - here[axis]));
    }
    const double least = threshold * amplitude, low = least * least, high = threshold * bright;
    const double none = __longlong_as_double(0x7ff8000000000000LL);  // NaN
    double amplitudes = none, variances = none, distance = none;
    if (low > 0 && high > 0) {
      amplitudes = block_sum(above(axes, low), parts);
      variances = block_sum(above(axes, high), parts);
    }
    if (spread) distance = greater(0.0, block_sum(exceeding(axes), parts));
    T* const row = out + c * row_step;
    if (threadIdx.x == 0) {
      row[0] = T(amplitudes);
      row[column_step] = T(variances);
      row[2 * column_step] = T(distance);
    }
    // The least sides of centred squares that hold the shares.
    for (int share = threadIdx.x; share < shares; share += blockDim.x) {
      const double goal = double(asked[share]) * slack * whole;
      const int side = first_where(2 * int(ceil(reach)) + 1, [&](int width) {
        double mass = 1;
#pragma unroll
        for (int axis = 0; axis < N; ++axis) {
          const double n = axes.n[axis], half = width / 2.0;
          const double first = lesser(greater(ceil(here[axis] - half + 0.5), 0.0), n);
          const double stop = lesser(greater(floor(here[axis] + half - 0.5) + 1, first), n);
          mass *= axes.sums[axis][int(stop)] - axes.sums[axis][int(first)];
        }
        return mass >= goal;
      });
      row[(3 + share) * column_step] = T(side);
    }
  }
}

#define INSTANTIATE_LINES(T, suffix)                                                             \
  extern "C" __global__ void __launch_bounds__(MOST_THREADS) measure_lines_##suffix(             \
      const i64* order, i64 chosen, i64 lines, i64 all_pixels, const T* pixels, i64 step,        \
      const i64* places, const i64* counts, const i64* begins, double* work, T* moments,         \
      i64 moments_row, i64 moments_step, double negligible, double far_out, double least_gauss,  \
      i64 room, int in_shared, double* scratch) {                                                \
    double* const parts = shared_memory<double>();                                               \
    double* const keys = in_shared ? parts + blockDim.x / 32                                     \
                                   : scratch + blockIdx.x * (room + (room + 1) / 2);             \
    measure<T>(order, chosen, pixels, step, places, counts, begins,                              \
               held_in(work, all_pixels, lines), moments, moments_row, moments_step, negligible, \
               far_out, least_gauss, keys, reinterpret_cast<int*>(keys + room), parts);          \
  }
#define INSTANTIATE_CHAINS(T, suffix, N)                                                         \
  extern "C" __global__ void chain_figures_##N##_##suffix(                                       \
      i64 chains, i64 lines, i64 all_pixels, const T* pixels, i64 step, const i64* places,       \
      const i64* counts, const i64* begins, const i64* own, const T* at, double threshold,       \
      int shares, const T* asked, double slack, double* work, T* out, i64 row_step,              \
      i64 column_step) {                                                                         \
    chain_figures<T, N>(chains, pixels, step, places, counts, begins, own, at, threshold,        \
                        shares, asked, slack, held_in(work, all_pixels, lines), out, row_step,   \
                        column_step, shared_memory<double>());                                   \
  }
#define INSTANTIATE(T, suffix)     \
  INSTANTIATE_LINES(T, suffix)     \
  INSTANTIATE_CHAINS(T, suffix, 1) \
  INSTANTIATE_CHAINS(T, suffix, 2) \
  INSTANTIATE_CHAINS(T, suffix, 3)
INSTANTIATE(float, f32)
INSTANTIATE(double, f64)
