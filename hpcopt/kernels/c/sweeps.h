// The sweeps in one precision, REAL. What they compute is said in hpcopt/kernels/sweeps.py.

#define GIVEN REAL *const *vectors, count n, count block, const double *constants, double *parts
#define UNUSED(name) (void)(name)

INLINE REAL NAME(product)(const REAL *x, const REAL *y, count n) {
    REAL sum = 0;
#pragma omp simd reduction(+ : sum)
    for (count i = 0; i < n; ++i) sum += x[i] * y[i];
    return sum;
}

// vectors: x and y of every pair, of which constants[0] is the number.
ON_EVERY_PROCESSOR void NAME(products)(GIVEN) {
    count pairs = (count)constants[0];
    FOR_BLOCKS(pairs) {
        for (count pair = 0; pair < pairs; ++pair)
            parts[pair] = NAME(product)(vectors[2 * pair] + start, vectors[2 * pair + 1] + start, stop - start);
    }
}

// vectors: g, previous, d and z. parts: g^T g, g^T d, d^T y, d^T d, g^T z and z^T y.
ON_EVERY_PROCESSOR void NAME(nlcg_measure)(GIVEN) {
    const REAL *g = vectors[0], *previous = vectors[1], *d = vectors[2], *z = vectors[3];
    UNUSED(constants);
    FOR_BLOCKS(6) {
        REAL gg = 0, gd = 0, dy = 0, dd = 0, gz = 0, zy = 0;
#pragma omp simd reduction(+ : gg, gd, dy, dd, gz, zy)
        for (count i = start; i < stop; ++i) {
            REAL own = g[i], along = d[i], y = own - previous[i];
            gg += own * own;
            gd += own * along;
            dy += along * y;
            dd += along * along;
            gz += own * z[i];
            zy += z[i] * y;
        }
        parts[0] = gg, parts[1] = gd, parts[2] = dy, parts[3] = dd, parts[4] = gz, parts[5] = zy;
    }
}

INLINE void NAME(precondition)(GIVEN, const int learns, const int keeps) {
    REAL *g = vectors[0], *previous = vectors[1], *h = vectors[2], *kept = vectors[4];
    const REAL *d = vectors[3];
    const REAL per_bend = constants[1], per_change = constants[2], shift = constants[3], epsilon = constants[4];
    FOR_BLOCKS(6) {
        REAL gz = 0, zy = 0, yz = 0, dhd = 0, dhz = 0, zhz = 0;
#pragma omp simd reduction(+ : gz, zy, yz, dhd, dhz, zhz)
        for (count i = start; i < stop; ++i) {
            REAL own = g[i], y = own - previous[i], metric = h[i], along = d[i];
            if (learns) {
                REAL bend = metric * along;
                metric = fabs(metric - per_bend * bend * bend + per_change * y * y + shift);
                h[i] = metric;
            }
            REAL whole = metric + epsilon, z = own / whole;
            previous[i] = own;
            gz += own * z;
            dhd += along * (metric * along);
            dhz += along * (metric * z);
            zhz += z * (metric * z);
            if (keeps) {
                zy -= own * kept[i];
                yz += y * (y / whole);
                kept[i] = z;
            } else {
                g[i] = z;
            }
        }
        parts[0] = gz, parts[1] = keeps ? gz + zy : 0, parts[2] = yz, parts[3] = dhd, parts[4] = dhz, parts[5] = zhz;
    }
}

// vectors: g, previous, h, d and kept, or null. constants: whether h learns, its three, and epsilon.
// parts: g^T z, g^T (z - kept), y^T P y, and d^T d, d^T z and z^T z in the metric h.
ON_EVERY_PROCESSOR void NAME(nlcg_precondition)(GIVEN) {
    const int learns = constants[0] != 0, keeps = vectors[4] != 0;
    if (learns && keeps) NAME(precondition)(vectors, n, block, constants, parts, 1, 1);
    if (learns && !keeps) NAME(precondition)(vectors, n, block, constants, parts, 1, 0);
    if (!learns && keeps) NAME(precondition)(vectors, n, block, constants, parts, 0, 1);
    if (!learns && !keeps) NAME(precondition)(vectors, n, block, constants, parts, 0, 0);
}

INLINE void NAME(move)(GIVEN, const int averages) {
    const REAL *z = vectors[0];
    REAL *d = vectors[1], *w = vectors[2], *mean = vectors[3];
    const REAL beta = constants[0], undo = constants[1], rate = constants[2], leaves = constants[3];
    UNUSED(block), UNUSED(parts);
#pragma omp simd
    for (count i = 0; i < n; ++i) {
        REAL old = d[i], along = beta * old - z[i], point = w[i] - undo * old + rate * along;
        d[i] = along;
        w[i] = point;
        if (averages) mean[i] += leaves * (point - mean[i]);
    }
}

// vectors: z, d, w and mean, or null. constants: beta, undo, rate and leaves.
ON_EVERY_PROCESSOR void NAME(nlcg_move)(GIVEN) {
    if (vectors[3]) NAME(move)(vectors, n, block, constants, parts, 1);
    else NAME(move)(vectors, n, block, constants, parts, 0);
}

// vectors: g, m, v and w. constants: beta1, 1 - beta1, beta2, 1 - beta2, the root of v's correction, epsilon, rate, shrink.
ON_EVERY_PROCESSOR void NAME(adam)(GIVEN) {
    const REAL *g = vectors[0];
    REAL *m = vectors[1], *v = vectors[2], *w = vectors[3];
    const REAL beta1 = constants[0], rest1 = constants[1], beta2 = constants[2], rest2 = constants[3];
    const REAL correction = constants[4], epsilon = constants[5], rate = constants[6], shrink = constants[7];
    UNUSED(block), UNUSED(parts);
#pragma omp simd
    for (count i = 0; i < n; ++i) {
        REAL own = g[i], first = beta1 * m[i] + rest1 * own, second = beta2 * v[i] + rest2 * own * own;
        m[i] = first;
        v[i] = second;
        w[i] = shrink * w[i] - rate * first / (sqrt(second) / correction + epsilon);
    }
}

#undef GIVEN
#undef UNUSED
