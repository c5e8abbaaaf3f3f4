// Profiles of many chains of layers along one axis: one block a chain, all its layers in one launch.
//
// The image goes back and forth between two arrays in shared memory (of global memory for the few
// chains whose images are longer), so that a chain costs its description and its result in memory
// traffic, and one barrier a layer. Bound: k additions a pixel and layer, each with a load from
// shared memory, neighbours by neighbours; short images leave threads idle, which is why the blocks
// of a launch are as small as its longest image allows and many of them share a processor.
//
// As on the CPU, an image is held as pixels and a scale, pixel·mantissa·2^exponent; the sum of its
// pixels is followed through the layers, and the pixels are rescaled by a power of two when it
// leaves its range. Every thread follows the same few numbers by itself.

#include "fastrf.cuh"

struct Layer {
  i64 kernel, stride, dilation, lo, size, taps;
};

__device__ inline Layer layer_at(const i64* layers, i64 total, i64 l) {
  return {layers[l],             layers[total + l],     layers[2 * total + l],
          layers[3 * total + l], layers[4 * total + l], layers[5 * total + l]};
}

// Pixel j of what n pixels spread to, Σ_{o·s + m·d = j} taps[m]·y[o]; for equal taps, Σ y[o].
template <typename T>
__device__ inline T spread(const T* y, int n, const T* taps, int k, i64 s, i64 d, i64 j) {
  const int first = j < n * s ? 0 : int(ceil_divided(j - (n - 1) * s, d));
  const int last = int(lesser(i64(k - 1), floor_divided(j, d)));
  T total = 0;
  if (s == 1 && !taps) {
    const T* source = y + j;
    for (int m = first; m <= last; ++m) total += source[-m * d];
    return total;
  }
  for (int m = first; m <= last; ++m) {
    const i64 scaled = j - m * d, o = floor_divided(scaled, s);
    if (o * s == scaled) total += taps ? taps[m] * y[o] : y[o];
  }
  return total;
}

// The chains order[0 … chains), each into windows[c] pixels from out + places[c] on, `step` apart.
// `longest` is the number of pixels that either array has.
template <typename T>
__device__ void chain_profiles(const i64* order, i64 chains, const i64* offsets, const i64* layers,
                               i64 total_layers, const T* taps, const i64* units,
                               const i64* starts, T* lost, i64 lost_step, i64* exponents,
                               i64 exponents_step, T* out, i64 step, const i64* places,
                               const i64* windows, T* here, T* there, double* parts, double low,
                               int top, double high, double settled) {
  const int thread = threadIdx.x, threads = blockDim.x;
  for (i64 at = blockIdx.x; at < chains; at += gridDim.x) {
    const i64 c = order[at], begin = offsets[c];
    i64 l = offsets[c + 1] - 1, start = units[c];
    int n = 1;
    double total = ldexp(1.0, top), whole = 1, gone = 0, mantissa = 1;
    i64 exponent = -top;
    bool even = true;
    if (thread == 0) here[0] = T(total);
    __syncthreads();
    Layer next = l >= begin ? layer_at(layers, total_layers, l) : Layer{};
    for (; l >= begin && n > 0; --l) {
      const Layer layer = next;
      // Asked for now, so that it is there when this layer is done.
      if (l > begin) next = layer_at(layers, total_layers, l - 1);
      const int k = int(layer.kernel);
      const i64 s = layer.stride, d = layer.dilation;
      const T* weights = layer.taps < 0 ? nullptr : taps + layer.taps;
      double gain = k;
      if (weights) {
        gain = 0;
        for (int m = 0; m < k; ++m) gain += double(weights[m]);
      }
      if (total < low || total * gain > high) {
        int shift;
        frexp(total, &shift);
        shift = top - shift;
        const T a = T(ldexp(1.0, shift / 2)), b = T(ldexp(1.0, shift - shift / 2));
        for (int i = thread; i < n; i += threads) here[i] = stored(here[i] * a * b);
        total = ldexp(total, shift);
        exponent -= shift;
        __syncthreads();
      }
      even = even && !weights && layer.size < 0;
      const i64 count = (n - 1) * s + (k - 1) * d + 1;
      start = start * s - layer.lo;
      const i64 first = layer.size < 0 ? 0 : lesser(greater(i64(0), -start), count);
      const i64 end =
          layer.size < 0 ? count : greater(first, lesser(count, layer.size - start));
      for (i64 j = first + thread; j < end; j += threads) {
        there[j - first] = stored(spread(here, n, weights, k, s, d, j));
      }
      int shift;
      mantissa = frexp(mantissa / gain, &shift);
      exponent += shift;
      total *= gain;
      if (end - first < count) {
        double off = 0;
        for (i64 j = thread; j < first; j += threads) {
          off += double(spread(here, n, weights, k, s, d, j));
        }
        for (i64 j = end + thread; j < count; j += threads) {
          off += double(spread(here, n, weights, k, s, d, j));
        }
        off = block_sum(off, parts);
        gone += ldexp(off * mantissa, int(greater(exponent, i64(-100000))));
        whole *= greater(0.0, 1 - off / total);
        total -= off;
        if (whole < settled) {
          double kept = 0;
          for (i64 j = thread; j < end - first; j += threads) kept += double(there[j]);
          total = block_sum(kept, parts);
          whole = 1;
        }
      }
      __syncthreads();
      T* const swapped = here;
      here = there;
      there = swapped;
      start += first;
      n = total == 0 ? 0 : int(end - first);
    }
    double largest = 0;
    // Equal taps without borders make an image that is its own mirror image; so it stays, bit for
    // bit, although a sum from the left is not rounded as one from the right is.
    const int seen = even ? (n + 1) / 2 : n;
    for (int i = thread; i < seen; i += threads) largest = greater(largest, double(here[i]));
    largest = block_max(largest, parts);
    int up = 0;
    T factor = 0;
    if (n > 0) {
      frexp(largest * mantissa, &up);
      up -= 1;
      factor = T(ldexp(mantissa, -up));
    }
    T* const row = out + places[c];
    for (i64 j = thread; j < windows[c]; j += threads) {
      const i64 i = starts[c] + j - start, held = i < seen ? i : n - 1 - i;
      row[j * step] = i >= 0 && i < n ? stored(here[held] * factor) : T(0);
    }
    if (thread == 0) {
      lost[c * lost_step] = T(gone);
      exponents[c * exponents_step] = n > 0 ? exponent + up : 0;
    }
    __syncthreads();
  }
}

#define PARAMETERS(T)                                                                            \
  const i64 *order, i64 chains, const i64 *offsets, const i64 *layers, i64 total_layers,         \
      const T *taps, const i64 *units, const i64 *starts, T *lost, i64 lost_step,                \
      i64 *exponents, i64 exponents_step, T *out, i64 step, const i64 *places,                   \
      const i64 *windows, i64 longest, double low, int top, double high, double settled
#define CALL(T, here, there, parts)                                                              \
  chain_profiles<T>(order, chains, offsets, layers, total_layers, taps, units, starts, lost,     \
                    lost_step, exponents, exponents_step, out, step, places, windows, here,      \
                    there, parts, low, top, high, settled)

#define INSTANTIATE(T, suffix)                                                                   \
  extern "C" __global__ void chain_profiles_##suffix(PARAMETERS(T)) {                            \
    double* parts = shared_memory<double>();                                                     \
    T* images = reinterpret_cast<T*>(parts + blockDim.x / 32);                                   \
    CALL(T, images, images + longest, parts);                                                    \
  }                                                                                              \
  extern "C" __global__ void chain_profiles_long_##suffix(PARAMETERS(T), T* scratch) {           \
    T* images = scratch + blockIdx.x * 2 * longest;                                              \
    CALL(T, images, images + longest, shared_memory<double>());                                  \
  }
INSTANTIATE(float, f32)
INSTANTIATE(double, f64)
