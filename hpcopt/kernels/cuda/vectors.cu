// Sweeps over long vectors: many products or updates for one read of each. Sums are in double and come in two steps, one
// part a block and then the parts in their order, so that they are the same in every run.
// Shapes: n numbers of a vector; X (k, n) and Y (l, n) are rows, row-major.

#define FOR_ALL(i, n) \
    for (count i = (count)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (count)gridDim.x * blockDim.x)

const int TILE = 4;

// Puts the sums of a block to its place in ``parts`` (blocks, K).
template <int K> __device__ inline void give(double (&sums)[K], double* parts) {
    over_block(sums);
    if (threadIdx.x == 0)
        for (int k = 0; k < K; ++k) parts[(count)blockIdx.x * K + k] = sums[k];
}

// total[k] = sum over blocks of parts[block, k], for the k of this block of one warp.
extern "C" __global__ void add_parts(const double* parts, double* total, count blocks, count sums) {
    double sum = 0;
    for (count block = threadIdx.x; block < blocks; block += WARP) sum += parts[block * sums + blockIdx.x];
    sum = over_warp(sum);
    if (threadIdx.x == 0) total[blockIdx.x] = sum;
}

// X Y^T for up to TILE rows of each: parts (blocks, TILE TILE). Rows beyond k or l count as zeros.
extern "C" __global__ void inner(const REAL* x, const REAL* y, double* parts, count k, count l, count n) {
    double sums[TILE * TILE] = {0};
    FOR_ALL(i, n) {
        REAL a[TILE], b[TILE];
#pragma unroll
        for (int r = 0; r < TILE; ++r) {
            a[r] = r < k ? x[r * n + i] : (REAL)0;
            b[r] = r < l ? y[r * n + i] : (REAL)0;
        }
#pragma unroll
        for (int r = 0; r < TILE; ++r)
#pragma unroll
            for (int s = 0; s < TILE; ++s) sums[r * TILE + s] += (double)a[r] * b[s];
    }
    give(sums, parts);
}

// Conjugate gradients, letters of hpcopt/linalg/conjugate_gradient.py. rows (3, n) are r, p = (G + lambda I) r and s.
// steps: 0 the bound of |r|^2, 1 |r|^2 of the last iteration, 2 its step, 3 step and 4 beta of this one, 5 iterations,
// 6 the state, 7 whether there is to be a move.
const int RUNNING = 0, CONVERGED = 1, NOT_POSITIVE = 2, NOT_FINITE = 3;

// p = q + lambda r for a product q, and the products r r, r p, r s, p p, p s, s s: parts (blocks, 6).
extern "C" __global__ void cg_products(
    REAL* rows, const REAL* product, double damping, double* parts, const double* steps, count n
) {
    double sums[6] = {0};
    if (steps[6] != RUNNING) return;
    FOR_ALL(i, n) {
        REAL r = rows[i], s = rows[2 * n + i], p = product[i] + (REAL)damping * r;
        rows[n + i] = p;
        sums[0] += (double)r * r;
        sums[1] += (double)r * p;
        sums[2] += (double)r * s;
        sums[3] += (double)p * p;
        sums[4] += (double)p * s;
        sums[5] += (double)s * s;
    }
    give(sums, parts);
}

// Step and beta from the products, and whether that was the end: one block of one warp.
extern "C" __global__ void cg_decide(
    const double* parts, double* steps, count blocks, double tolerance, double rounding
) {
    double sums[6];
    for (int k = 0; k < 6; ++k) {
        sums[k] = 0;
        for (count block = threadIdx.x; block < blocks; block += WARP) sums[k] += parts[block * 6 + k];
        sums[k] = over_warp(sums[k]);
    }
    if (threadIdx.x != 0) return;
    steps[7] = 0;
    if (steps[6] != RUNNING) return;
    steps[5] += 1;
    bool finite = true, first = steps[5] == 1;
    for (int k = 0; k < 6; ++k) finite = finite && sums[k] - sums[k] == 0;
    double square = sums[0];
    if (finite && first) steps[0] = square * tolerance * tolerance;
    double beta = first ? 0 : square / steps[1];
    double curvature = sums[1] - (first ? 0 : beta * square / steps[2]);
    if (!finite) {
        steps[6] = NOT_FINITE;
    } else if (square <= steps[0]) {
        steps[6] = CONVERGED;
    } else if (!(curvature > 0)) {
        steps[6] = NOT_POSITIVE;
        // Before there is a direction, v and so d become r: a move by 1 along it.
        steps[3] = 1;
        steps[4] = 0;
        steps[7] = first;
    } else {
        double step = square / curvature;
        double cross = sums[1] + beta * sums[2];
        double length = sums[3] + 2 * beta * sums[4] + beta * beta * sums[5];
        double predicted = square - 2 * step * cross + step * step * length;
        steps[1] = square;
        steps[2] = steps[3] = step;
        steps[4] = beta;
        steps[7] = 1;
        // A prediction that is mostly rounding is not believed; the next products have the square itself.
        if (predicted > rounding * square && predicted <= steps[0]) steps[6] = CONVERGED;
    }
}

// v = r + beta v, s = p + beta s, d += step v, r -= step s.
extern "C" __global__ void cg_move(REAL* rows, REAL* v, REAL* direction, const double* steps, count n) {
    if (steps[7] == 0) return;
    REAL step = (REAL)steps[3], beta = (REAL)steps[4];
    FOR_ALL(i, n) {
        REAL r = rows[i], along = r + beta * v[i], s = rows[n + i] + beta * rows[2 * n + i];
        v[i] = along;
        rows[2 * n + i] = s;
        direction[i] += step * along;
        rows[i] = r - step * s;
    }
}

// The sweeps of NLCG, hpcopt/kernels/sweeps.py. g^T g, g^T d, d^T y, d^T d, g^T z and z^T y with y = g - previous: parts
// (blocks, 6).
extern "C" __global__ void nlcg_measure(
    const REAL* g, const REAL* previous, const REAL* d, const REAL* z, double* parts, count n
) {
    double sums[6] = {0};
    FOR_ALL(i, n) {
        REAL gradient = g[i], along = d[i], y = gradient - previous[i];
        sums[0] += (double)gradient * gradient;
        sums[1] += (double)gradient * along;
        sums[2] += (double)along * y;
        sums[3] += (double)along * along;
        sums[4] += (double)gradient * z[i];
        sums[5] += (double)z[i] * y;
    }
    give(sums, parts);
}

// h by the pair s = scale d and y where ``learns``, previous = g, and z = g / (h + epsilon) in place of kept, or of g
// where that is null. g^T z, g^T z - g^T kept and y^T (y / (h + epsilon)), the latter two 0 without kept, and d^T d, d^T z
// and z^T z in the metric h: parts (blocks, 6).
extern "C" __global__ void nlcg_precondition(
    REAL* g, REAL* previous, REAL* h, const REAL* d, REAL* kept, double* parts,
    count learns, double scale, double per_bend, double per_change, double shift, double epsilon, count n
) {
    double sums[6] = {0};
    FOR_ALL(i, n) {
        REAL gradient = g[i], y = gradient - previous[i], metric = h[i], along = d[i];
        if (learns) {
            REAL bend = metric * along;
            metric += (REAL)(-scale * scale * per_bend) * bend * bend + (REAL)per_change * y * y + (REAL)shift;
            metric = metric < 0 ? -metric : metric;
            h[i] = metric;
        }
        REAL whole = metric + (REAL)epsilon, z = gradient / whole;
        previous[i] = gradient;
        sums[0] += (double)gradient * z;
        sums[3] += (double)along * (metric * along);
        sums[4] += (double)along * (metric * z);
        sums[5] += (double)z * (metric * z);
        if (kept) {
            sums[1] -= (double)gradient * kept[i];
            sums[2] += (double)y * (y / whole);
            kept[i] = z;
        } else {
            g[i] = z;
        }
    }
    if (kept) sums[1] += sums[0];
    give(sums, parts);
}

// w -= undo d, d = beta d - z, w += rate d, and the mean goes to w by ``leaves`` of the way unless it is null.
extern "C" __global__ void nlcg_move(
    const REAL* z, REAL* d, REAL* w, REAL* mean, double beta, double undo, double rate, double leaves, count n
) {
    FOR_ALL(i, n) {
        REAL old = d[i], along = (REAL)beta * old - z[i], point = w[i];
        if (undo != 0) point -= (REAL)undo * old;
        point += (REAL)rate * along;
        d[i] = along;
        w[i] = point;
        if (mean) mean[i] += (REAL)leaves * (point - mean[i]);
    }
}
