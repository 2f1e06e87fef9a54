// What least squares need to know of a transposed convolution, without its rows written out: the Gram matrix of its
// inputs at two taps depends on the lag between them, but for edges. See hpcopt/objective/separable/lag_products.py.
//
// Inputs are (b, height, width, c) in double, channels last, between zeros that every tap may see.

#include "common.h"

#define LANES 8

// Adds sum_i u_i v_i^T to sums (c, c), for n pairs of vectors (c,) that are a stride apart.
INLINE void add_outer(double *restrict sums, const double *u, const double *v, count n, count stride, const count c) {
    count i = 0;
    for (; i + 4 <= n; i += 4, u += 4 * stride, v += 4 * stride) {
        for (count row = 0; row < c; ++row) {
            double one = u[row], two = u[stride + row], three = u[2 * stride + row], four = u[3 * stride + row];
#pragma omp simd
            for (count j = 0; j < c; ++j)
                sums[row * c + j] += (one * v[j] + two * v[stride + j]) + (three * v[2 * stride + j] + four * v[3 * stride + j]);
        }
    }
    for (; i < n; ++i, u += stride, v += stride) {
        for (count row = 0; row < c; ++row) {
#pragma omp simd
            for (count j = 0; j < c; ++j) sums[row * c + j] += u[row] * v[j];
        }
    }
}

// The sum of x_i y_i over taps and channels, in LANES parts.
INLINE double seen(const double *inputs, const double *weights, const count *taps, count number, const count c) {
    double parts[LANES] = {0}, sum = 0;
    for (count tap = 0; tap < number; ++tap) {
        const double *x = inputs + taps[2 * tap], *y = weights + taps[2 * tap + 1];
        count i = 0;
        for (; i + LANES <= c; i += LANES) {
#pragma omp simd
            for (count lane = 0; lane < LANES; ++lane) parts[lane] += x[i + lane] * y[i + lane];
        }
        for (; i < c; ++i) sum += x[i] * y[i];
    }
    for (count lane = 0; lane < LANES; ++lane) sum += parts[lane];
    return sum;
}

// sizes: b, numbers of a sample and of a row of it, lags, pieces down and across. numbers: the lags as distances, then
// where the pieces begin, down and across, with the end of the last. Sizes end with c.
INLINE void lag_sums_of(double *const *arrays, const count *sizes, const count *numbers, const count c) {
    count samples = sizes[0], sample = sizes[1], line = sizes[2], lags = sizes[3], down = sizes[4], across = sizes[5];
    const count *tops = numbers + lags, *lefts = tops + down + 1;
    for (count lag = 0; lag < lags; ++lag) {
        for (count s = 0; s < samples; ++s) {
            double *sums = arrays[1] + lag * down * across * c * c;
            for (count p = 0; p < down * across; ++p, sums += c * c) {
                count top = tops[p / across], left = lefts[p % across];
                count height = tops[p / across + 1] - top, width = lefts[p % across + 1] - left;
                const double *own = arrays[0] + s * sample + top * line + left * c;
                // Along the longer side, so that runs are few.
                count flat = width >= height, runs = flat ? height : width, length = flat ? width : height;
                for (count run = 0; run < runs; ++run) {
                    const double *u = own + run * (flat ? line : c);
                    add_outer(sums, u, u + numbers[lag], length, flat ? c : line, c);
                }
            }
        }
    }
}

// arrays: inputs, and sums (lags, pieces, c, c), to which is added: for each lag and each piece of the inputs, a
// rectangle, the products of every position with the one that far from it.
ON_EVERY_PROCESSOR void lag_sums(double *const *arrays, const count *sizes, const count *numbers) {
    if (sizes[6] == 16) lag_sums_of(arrays, sizes, numbers, 16);
    else lag_sums_of(arrays, sizes, numbers, sizes[6]);
}

// One row of outputs of a block: inputs that its first tap would see at offset 0, targets and residuals a step apart.
INLINE double residual_row(
    const double *inputs, const double *weights, double bias, const double *targets, double *found, const count *block,
    double *cross, double *total, const count c
) {
    const count *taps = block + 6;
    double square = 0;
    for (count x = 0; x < block[1]; ++x, inputs += c, targets += block[4], found += block[4]) {
        double residual = seen(inputs, weights, taps, block[5], c) + bias - *targets;
        *found = residual;
        square += residual * residual;
        if (!cross) continue;
        *total += residual;
        for (count tap = 0; tap < block[5]; ++tap) {
            double *sums = cross + taps[2 * tap + 1];
            const double *u = inputs + taps[2 * tap];
#pragma omp simd
            for (count i = 0; i < c; ++i) sums[i] += residual * u[i];
        }
    }
    return square;
}

// sizes: b, numbers of a sample and of a row of it, t, columns of W, outputs of an image, blocks, and c.
// numbers: for every block its rows and columns, the first output and the steps down and across, its taps, and of each
// where the first output sees it among the inputs, and its first column of W.
INLINE void residuals_of(double *const *arrays, const count *sizes, const count *numbers, const count c) {
    count t = sizes[3], m = sizes[4], image = sizes[5];
    double *cross = arrays[5], *totals = arrays[6];
    for (count block = 0; block < sizes[6]; ++block, totals += t, numbers += 6 + 2 * numbers[5]) {
        for (count s = 0; s < sizes[0]; ++s) {
            for (count y = 0; y < numbers[0]; ++y) {
                const double *inputs = arrays[0] + s * sizes[1] + y * sizes[2];
                for (count o = 0; o < t; ++o) {
                    count place = (s * t + o) * image + numbers[2] + y * numbers[3];
                    *arrays[4] += residual_row(
                        inputs, arrays[1] + o * m, arrays[7][o], arrays[2] + place, arrays[3] + place, numbers,
                        cross ? cross + o * m : cross, totals + o, c
                    );
                }
            }
        }
    }
}

// arrays: inputs, W (t, m), targets (b, t, image), W Z - C in their shape, |W Z - C|^2, and (W Z - C) Z^T (t, m) with
// the sums of each block's residuals (blocks, t), to which is added, or nothing; and the bias (t,).
ON_EVERY_PROCESSOR void lag_residuals(double *const *arrays, const count *sizes, const count *numbers) {
    if (sizes[7] == 16) residuals_of(arrays, sizes, numbers, 16);
    else residuals_of(arrays, sizes, numbers, sizes[7]);
}
