// For the kernels that the shim is tested with.
#pragma once

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int step = 16; step; step /= 2) value += __shfl_down_sync(0xffffffff, value, step);
    return value;
}
