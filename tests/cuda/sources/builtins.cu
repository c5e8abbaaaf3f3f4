// What CUDA C++ has built in, for the shim to show that it has it, too.

extern "C" __global__ void indices(int* out) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    int* own = out + 6 * (block * (int)(blockDim.x * blockDim.y * blockDim.z) + thread);
    own[0] = blockIdx.x;
    own[1] = blockIdx.y;
    own[2] = blockIdx.z;
    own[3] = threadIdx.x;
    own[4] = threadIdx.y;
    own[5] = threadIdx.z;
}

extern "C" __global__ void votes(int* out) {
    const int yes = threadIdx.x % 3 == 0;
    int* own = out + 6 * threadIdx.x;
    own[0] = __syncthreads_count(yes);
    own[1] = __syncthreads_or(yes) != 0;
    own[2] = __syncthreads_and(yes) != 0;
    const unsigned there = threadIdx.x < 64 ? 0xffffffff : 0x0000ffff;
    own[3] = __ballot_sync(there, yes);
    own[4] = __any_sync(there, yes) != 0;
    own[5] = __all_sync(there, yes) != 0;
}

extern "C" __global__ void shuffles(int* out) {
    const int lane = threadIdx.x;
    out[4 * lane] = __shfl_sync(0xffffffff, lane, 3, 8);
    out[4 * lane + 1] = __shfl_up_sync(0xffffffff, lane, 2, 8);
    out[4 * lane + 2] = __shfl_down_sync(0xffffffff, lane, 3, 8);
    __syncwarp();
    out[4 * lane + 3] = __shfl_xor_sync(0xffffffff, lane, 5, 8);
}

__constant__ double table[2] = {0.5, -0.01};

extern "C" __global__ void numbers(double x, double* out) {
    int exponent;
    const double mantissa = frexp(x, &exponent);
    out[0] = min(-2, 3);
    out[1] = max(-2LL, 3LL);
    out[2] = min(x, table[0]);
    out[3] = fma(x, x, table[1]);
    out[4] = mantissa;
    out[5] = exponent;
    out[6] = ldexp(x, 2);
    out[7] = exp2(3.0f);
    out[8] = __int_as_float(__float_as_int(1.0f));
}

extern "C" __global__ void atomics(int* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(out, i);
    atomicMax(out + 1, i);
    atomicMin(out + 2, i);
    int seen = out[3], taken;
    while ((taken = atomicCAS(out + 3, seen, seen + 1)) != seen) seen = taken;
    atomicExch(out + 4, 0);
}

// A tile of rows × columns from one image to another, whose rows lie `step` elements apart.
extern "C" __global__ void copy_tile(const double* x, double* out, int rows, int columns,
                                     long long step) {
    for (int i = threadIdx.x; i < rows * columns; i += blockDim.x)
        out[i / columns * step + i % columns] = x[i / columns * step + i % columns];
}
