// Kernels that CUDA leaves undefined, each in its own way. `zero` is 0, and not known to be.

extern "C" __global__ void static_left(double* out) {
    __shared__ double left;
    out[blockIdx.x] = left;
    left = 1;
}

extern "C" __global__ void dynamic_left(double* out) {
    extern __shared__ double left_over[];
    out[blockIdx.x] = left_over[0];
    left_over[0] = 1;
}

extern "C" __global__ void two_barriers(double* out, int zero) {
    if (threadIdx.x < 16) {
        out[0] = 1;
        __syncthreads();
    } else {
        __syncthreads();
    }
}

extern "C" __global__ void missing_lane(double* out, int zero) {
    if (threadIdx.x == 0) return;
    out[1] = __shfl_sync(0xffffffff, 1.0, 0);
}

extern "C" __global__ void deadlock(double* out, int zero) {
    if (threadIdx.x < 16) __syncthreads();
    else __syncwarp();
    out[0] = 1;
}

extern "C" __global__ void parted_lanes(double* out, int zero) {
    if (threadIdx.x < 16) out[0] = __shfl_sync(0xffffffff, 1, 0);
    else out[1] = __ballot_sync(0xffffffff, 1);
}

extern "C" __global__ void left_out(double* out, int zero) {
    out[0] = __shfl_sync(0x0000ffff, 1.0, 0);
}

extern "C" __global__ void index(double* out, int zero) {
    __shared__ double four[4];
    four[zero + 4] = 1;
    out[0] = four[zero];
}

extern "C" __global__ void overflow(double* out, int zero) {
    const int large = 65536 + zero;
    out[0] = large * large;
}

extern "C" __global__ void division(double* out, int zero) { out[0] = 1 / zero; }

extern "C" __global__ void shift(double* out, int zero) { out[0] = 1 << (zero + 32); }

extern "C" __global__ void misaligned(double* out, int zero) {
    const float4 two = *reinterpret_cast<const float4*>(reinterpret_cast<float*>(out) + zero + 1);
    out[0] = two.x;
}

__device__ __noinline__ double deep(double* out, long long depth) {
    volatile double local[64];
    local[depth % 64] = out[0];
    return depth < 0 ? 0 : deep(out, depth + 1) + local[0];
}
extern "C" __global__ void recursion(double* out, int zero) { out[0] = deep(out, zero); }

extern "C" __global__ void nowhere(double* out, int zero) {
    out[0] = reinterpret_cast<const double*>(static_cast<long long>(zero))[1];
}

extern "C" __global__ void endless(double* out, int zero) {
    volatile int* const flag = &zero;
    while (*flag == 0) {}
    out[0] = 1;
}

// Sound: a barrier asks for the threads that have not returned.
extern "C" __global__ void returned(double* out, int zero) {
    if (threadIdx.x >= 16) return;
    const int waiting = __syncthreads_count(1);
    if (threadIdx.x == 0) out[0] = waiting + zero;
}
