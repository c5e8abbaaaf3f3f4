// Sums, once over shared memory and once over shuffles; sound, as the tests of faults are not.
#include "common.cuh"

// One block an output: out[b] = Σ x[b·n + i].
template <class T>
__device__ void sum_rows(const T* __restrict__ x, T* __restrict__ out, int n) {
    __shared__ T part[256];
    T sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[blockIdx.x * (long long)n + i];
    part[threadIdx.x] = sum;
    __syncthreads();
    for (int half = blockDim.x / 2; half; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = part[0];
}

// All into one number, through warps and an atomic.
template <class T>
__device__ void sum_all(const T* __restrict__ x, T* __restrict__ out, long long n) {
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    const T sum = warp_sum(i < n ? x[i] : T(0));
    if (threadIdx.x % warpSize == 0) atomicAdd(out, sum);
}

// Each block turns its piece of x around in dynamic shared memory.
template <class T>
__device__ void reverse(const T* __restrict__ x, T* __restrict__ out, int n) {
    extern __shared__ __align__(16) unsigned char raw[];
    T* const piece = reinterpret_cast<T*>(raw);
    const long long base = blockIdx.x * (long long)n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) piece[i] = x[base + i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[base + i] = piece[n - 1 - i];
}

#define INSTANTIATE(T, suffix)                                                                   \
    extern "C" __global__ void __launch_bounds__(256) sum_rows_##suffix(const T* x, T* out,      \
                                                                        int n) {                 \
        sum_rows<T>(x, out, n);                                                                  \
    }                                                                                            \
    extern "C" __global__ void sum_all_##suffix(const T* x, T* out, long long n) {               \
        sum_all<T>(x, out, n);                                                                   \
    }                                                                                            \
    extern "C" __global__ void reverse_##suffix(const T* x, T* out, int n) {                     \
        reverse<T>(x, out, n);                                                                   \
    }
INSTANTIATE(float, f32)
INSTANTIATE(double, f64)
