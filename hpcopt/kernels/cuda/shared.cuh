// What the kernels share. REAL is the precision of the vectors, STORED that of the factors M of the Jacobian, which is
// REAL or "bfloat16", the upper half of a float. Arguments are pointers, long long and double only.

#ifndef REAL
#define REAL float
#endif

typedef long long count;

const int WARP = 32;
const int MOST_WARPS = 32;

__device__ inline REAL widened(REAL number) { return number; }

#ifdef BFLOAT16
typedef unsigned short stored;
__device__ inline REAL widened(stored half) {
    union { unsigned int bits; float number; } whole;
    whole.bits = (unsigned int)half << 16;
    return whole.number;
}
#else
typedef REAL stored;
#endif

// The sum over the lanes of a warp, the same on all of them.
template <typename Number> __device__ inline Number over_warp(Number sum) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    return sum;
}

// The sums over the threads of a block, valid on its first thread. Every thread must call it; the block is whole warps.
template <int K> __device__ inline void over_block(double (&sums)[K]) {
    __shared__ double parts[K][MOST_WARPS];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    for (int k = 0; k < K; ++k) {
        double sum = over_warp(sums[k]);
        if (lane == 0) parts[k][warp] = sum;
    }
    __syncthreads();
    if (warp == 0)
        for (int k = 0; k < K; ++k) sums[k] = over_warp(lane < warps ? parts[k][lane] : 0.0);
}
