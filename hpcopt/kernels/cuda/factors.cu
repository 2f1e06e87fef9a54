// Products with the factors M (b, C, v) of the Jacobian, and the recursion that makes them. Letters and shapes are
// those of hpcopt/kernels/interface.py; all arrays are row-major. One block of threads does one instance, or one row.

const int LAYERS = 4;  // of a rank in one launch
const int SIGMOID = 0, TANH = 1;

__device__ inline REAL slope(count activation, REAL value) {
    if (activation == SIGMOID) return value * (1 - value);
    if (activation == TANH) return 1 - value * value;
    return value > 0 ? (REAL)1 : (REAL)0;
}

// q[c] += sum_j M[c, j] t[j] for the rows of this warp; M goes to ``kept`` on the way unless that is null.
__device__ inline void push(
    const stored* factors, const REAL* units, count outputs, count width, REAL* q, stored* kept
) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    for (count c = warp; c < outputs; c += warps) {
        const stored* row = factors + c * width;
        REAL sum = 0;
#pragma unroll 4
        for (count j = lane; j < width; j += WARP) {
            stored factor = row[j];
            if (kept) kept[c * width + j] = factor;
            sum += widened(factor) * units[j];
        }
        sum = over_warp(sum);
        if (lane == 0) q[c] += sum;
    }
}

// r[j] = sum_c M[c, j] y[c].
__device__ inline void pull(const stored* factors, const REAL* y, count outputs, count width, REAL* units) {
    for (count j = threadIdx.x; j < width; j += blockDim.x) {
        REAL sum = 0;
#pragma unroll 4
        for (count c = 0; c < outputs; ++c) sum += widened(factors[c * width + j]) * y[c];
        units[j] = sum;
    }
}

// y <- scale (diag(p) - p p^T) y, or scale y without probabilities, by the first warp.
__device__ inline void bend(const REAL* p, REAL scale, count outputs, REAL* y) {
    int lane = threadIdx.x;
    if (lane >= WARP) return;
    REAL mean = 0;
    if (p)
        for (count c = lane; c < outputs; c += WARP) mean += p[c] * y[c];
    mean = over_warp(mean);
    for (count c = lane; c < outputs; c += WARP) y[c] = scale * (p ? p[c] * (y[c] - mean) : y[c]);
}

// q[i, c] += sum_j M[i, c, j] t[i, j].
extern "C" __global__ void add_outputs(
    const stored* factors, const REAL* units, REAL* out, count outputs, count width
) {
    count i = blockIdx.x;
    push(factors + i * outputs * width, units + i * width, outputs, width, out + i * outputs, 0);
}

// r[i, j] = sum_c M[i, c, j] y[i, c].
extern "C" __global__ void units(const stored* factors, const REAL* outs, REAL* units, count outputs, count width) {
    count i = blockIdx.x;
    pull(factors + i * outputs * width, outs + i * outputs, outputs, width, units + i * width);
}

// y = scale B (q + sum over layers of M t) in place of q (b, C), and r = M^T y in place of t for each layer (null where
// there are fewer). B is that of softmax with probabilities p (b, C), or I where p is null. The factors of an instance
// are kept in shared memory, and so read once, when ``keep`` says that they fit.
extern "C" __global__ void bent(
    const stored* m0, const stored* m1, const stored* m2, const stored* m3, REAL* t0, REAL* t1, REAL* t2, REAL* t3,
    count v0, count v1, count v2, count v3, const REAL* p, REAL* q, count outputs, double scale, count keep
) {
    extern __shared__ double space[];
    const stored* factors[LAYERS] = {m0, m1, m2, m3};
    REAL* units[LAYERS] = {t0, t1, t2, t3};
    const count widths[LAYERS] = {v0, v1, v2, v3};
    count i = blockIdx.x;
    REAL* y = (REAL*)space;
    stored* kept = (stored*)(y + outputs);
    for (count c = threadIdx.x; c < outputs; c += blockDim.x) y[c] = q[i * outputs + c];
    __syncthreads();
    stored* next = kept;
#pragma unroll
    for (int l = 0; l < LAYERS; ++l) {
        if (!factors[l]) continue;
        count size = outputs * widths[l];
        push(factors[l] + i * size, units[l] + i * widths[l], outputs, widths[l], y, keep ? next : 0);
        next += size;
    }
    __syncthreads();
    bend(p ? p + i * outputs : 0, (REAL)scale, outputs, y);
    __syncthreads();
    for (count c = threadIdx.x; c < outputs; c += blockDim.x) q[i * outputs + c] = y[c];
    next = kept;
#pragma unroll
    for (int l = 0; l < LAYERS; ++l) {
        if (!factors[l]) continue;
        count size = outputs * widths[l];
        pull(keep ? next : factors[l] + i * size, y, outputs, widths[l], units[l] + i * widths[l]);
        next += size;
    }
}

// target[i, c, j] *= sigma'[i, j], for one row (i, c) of ``rows`` for each of the ``group`` rows of an instance.
extern "C" __global__ void scale_by_slope(
    const REAL* values, REAL* target, count activation, count group, count width
) {
    count row = blockIdx.x;
    const REAL* own = values + row / group * width;
    for (count j = threadIdx.x; j < width; j += blockDim.x) target[row * width + j] *= slope(activation, own[j]);
}

// M[i, c, j] = W[j, c] sigma'[i, j] for weights (u, C).
extern "C" __global__ void last_factors(
    const REAL* weights, const REAL* values, REAL* factors, count activation, count outputs, count width
) {
    count row = blockIdx.x, c = row % outputs;
    const REAL* own = values + row / outputs * width;
    for (count j = threadIdx.x; j < width; j += blockDim.x)
        factors[row * width + j] = weights[j * outputs + c] * slope(activation, own[j]);
}
