// What least squares need to know of a transposed convolution, without its rows written out: the Gram matrix of its
// inputs at two taps depends on the lag between them, but for edges. See hpcopt/objective/separable/lag_products.py.
//
// Inputs are (b, height, width, c) in double, channels last, between zeros that every tap may see.

#include <string.h>

#include "common.h"

#define LANES 8
#define MOST 8

typedef double lanes __attribute__((vector_size(LANES * sizeof(double))));

// sizes: b, height and width without zeros, zeros above, below, left and right, and c.
INLINE void inputs_of(const float *narrow, const double *wide, double *to, const count *sizes, const count c) {
    count height = sizes[1], width = sizes[2], line = (sizes[5] + width + sizes[6]) * c, image = height * width;
    for (count s = 0; s < sizes[0]; ++s) {
        memset(to, 0, sizes[3] * line * sizeof *to);
        to += sizes[3] * line;
        for (count y = 0; y < height; ++y, to += line) {
            count from = s * c * image + y * width;
            memset(to, 0, sizes[5] * c * sizeof *to);
            memset(to + (sizes[5] + width) * c, 0, sizes[6] * c * sizeof *to);
            for (count x = 0; x < width; ++x) {
                double *here = to + (sizes[5] + x) * c;
                for (count i = 0; i < c; ++i) here[i] = narrow ? narrow[from + i * image + x] : wide[from + i * image + x];
            }
        }
        memset(to, 0, sizes[4] * line * sizeof *to);
        to += sizes[4] * line;
    }
}

// arrays: features (b, c, height, width), as float in the first place or as double in the second, and inputs.
ON_EVERY_PROCESSOR void lag_inputs(void *const *arrays, const count *sizes, const count *unused) {
    (void)unused;
    inputs_of(arrays[0], arrays[1], arrays[2], sizes, sizes[7]);
}

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

// Adds n vectors (c,), a stride apart, to sums (c,).
INLINE void add_all(double *restrict sums, const double *u, count n, count stride, const count c) {
    for (count i = 0; i < n; ++i, u += stride) {
#pragma omp simd
        for (count j = 0; j < c; ++j) sums[j] += u[j];
    }
}

// sizes: b, numbers of a sample and of a row of it, lags, pieces down and across. numbers: the lags as distances, then
// where the pieces begin, down and across, with the end of the last. Sizes end with c.
INLINE void lag_sums_of(double *const *arrays, const count *sizes, const count *numbers, const count c) {
    count samples = sizes[0], sample = sizes[1], line = sizes[2], lags = sizes[3], down = sizes[4], across = sizes[5];
    const count *tops = numbers + lags, *lefts = tops + down + 1;
    for (count s = 0; s < samples; ++s) {
        for (count p = 0; p < down * across; ++p) {
            count top = tops[p / across], left = lefts[p % across];
            count height = tops[p / across + 1] - top, width = lefts[p % across + 1] - left;
            const double *own = arrays[0] + s * sample + top * line + left * c;
            // Along the longer side, so that runs are few.
            count flat = width >= height, runs = flat ? height : width, length = flat ? width : height;
            for (count run = 0; run < runs; ++run) {
                const double *u = own + run * (flat ? line : c);
                add_all(arrays[2] + p * c, u, length, flat ? c : line, c);
                for (count lag = 0; lag < lags; ++lag) {
                    double *sums = arrays[1] + (lag * down * across + p) * c * c;
                    add_outer(sums, u, u + numbers[lag], length, flat ? c : line, c);
                }
            }
        }
    }
}

// arrays: inputs, and sums (lags, pieces, c, c) and (pieces, c), to which is added: for each lag and each piece of the
// inputs, a rectangle, the products of every position with the one that far from it; and every position itself.
ON_EVERY_PROCESSOR void lag_sums(double *const *arrays, const count *sizes, const count *numbers) {
    if (sizes[6] == 16) lag_sums_of(arrays, sizes, numbers, 16);
    else lag_sums_of(arrays, sizes, numbers, sizes[6]);
}

// Puts the sum of some of the sums (rows, c) in the place of found, whose rows are a line apart.
INLINE void put_sum(const double *sums, const count *which, count number, double *found, count line, count rows, const count c) {
    for (count row = 0; row < rows; ++row) {
        for (count j = 0; j < c; ++j) found[row * line + j] = 0;
        for (count i = 0; i < number; ++i) {
            const double *own = sums + (which[i] * rows + row) * c;
#pragma omp simd
            for (count j = 0; j < c; ++j) found[row * line + j] += own[j];
        }
    }
}

// sizes: blocks, b, whether there is a bias, and c. numbers: for every block its taps, positions and pairs of taps; of
// every pair the taps, how many sums it takes, and which; and of every tap how many pieces it sees, and which.
INLINE void grams_of(double *const *arrays, const count *sizes, const count *numbers, const count c) {
    for (count block = 0; block < sizes[0]; ++block) {
        count inner = numbers[0] * c, line = inner + sizes[2], taps = numbers[0], positions = numbers[1], pairs = numbers[2];
        double *gram = arrays[2 + block];
        numbers += 3;
        for (count pair = 0; pair < pairs; ++pair, numbers += 3 + numbers[2]) {
            double *upper = gram + numbers[0] * c * line + numbers[1] * c, *lower = gram + numbers[1] * c * line + numbers[0] * c;
            put_sum(arrays[0], numbers + 3, numbers[2], upper, line, c, c);
            if (upper == lower) continue;
            for (count i = 0; i < c; ++i)
                for (count j = 0; j < c; ++j) lower[j * line + i] = upper[i * line + j];
        }
        for (count tap = 0; tap < taps; ++tap, numbers += 1 + numbers[0]) {
            double *sees = gram + inner * line + tap * c;
            if (!sizes[2]) continue;
            put_sum(arrays[1], numbers + 1, numbers[0], sees, line, 1, c);
            for (count j = 0; j < c; ++j) gram[(tap * c + j) * line + inner] = sees[j];
        }
        if (sizes[2]) gram[inner * line + inner] = sizes[1] * positions;
    }
}

// arrays: the sums of lag_sums, and the Gram matrices of all blocks, a row and a column of the bias last, if there is one.
ON_EVERY_PROCESSOR void lag_grams(double *const *arrays, const count *sizes, const count *numbers) {
    if (sizes[3] == 16) grams_of(arrays, sizes, numbers, 16);
    else grams_of(arrays, sizes, numbers, sizes[3]);
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

// The same where what an output sees fits in wide registers, of which there are 32, with its weights and its products:
// `all` lanes, `vectors` a tap. Fewer or narrower ones would be filled from memory again and again.
INLINE double short_residual_row(
    const double *inputs, const double *weights, double bias, const double *targets, double *found, const count *block,
    double *cross, double *total, const count all, const count vectors
) {
    lanes own[MOST], sees[MOST], sums[MOST] = {{0}};
    const double *starts[MOST];
    double square = 0, sum = 0;
    for (count i = 0; i < all; ++i) {
        const count *tap = block + 6 + 2 * (i / vectors), behind = i % vectors * LANES;
        starts[i] = inputs + tap[0] + behind;
        memcpy(own + i, weights + tap[1] + behind, sizeof *own);
    }
    for (count x = 0; x < block[1]; ++x) {
        lanes part = {0}, other = {0};
        for (count i = 0; i < all; ++i) memcpy(sees + i, starts[i] + x * vectors * LANES, sizeof *sees);
        for (count i = 0; i < all; i += 2) part += sees[i] * own[i], other += sees[i + 1] * own[i + 1];
        part += other;
        double residual = ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
        residual += bias - targets[x * block[4]];
        found[x * block[4]] = residual;
        square += residual * residual;
        sum += residual;
        if (cross) for (count i = 0; i < all; ++i) sums[i] += residual * sees[i];
    }
    if (!cross) return square;
    *total += sum;
    for (count i = 0; i < all; ++i) {
        lanes before;
        double *to = cross + block[6 + 2 * (i / vectors) + 1] + i % vectors * LANES;
        memcpy(&before, to, sizeof before);
        before += sums[i];
        memcpy(to, &before, sizeof before);
    }
    return square;
}

// sizes: b, numbers of a sample and of a row of it, t, columns of W, outputs of an image, blocks, and c.
// numbers: for every block its rows and columns, the first output and the steps down and across, its taps, and of each
// where the first output sees it among the inputs, and its first column of W.
INLINE void residuals_of(double *const *arrays, const count *sizes, const count *numbers, const count c) {
    count t = sizes[3], m = sizes[4], image = sizes[5], wide = c == 2 * LANES && HAS_WIDE_REGISTERS;
    for (count s = 0; s < sizes[0]; ++s) {
        const count *block = numbers;
        for (count b = 0; b < sizes[6]; ++b, block += 6 + 2 * block[5]) {
            for (count y = 0; y < block[0]; ++y) {
                const double *inputs = arrays[0] + s * sizes[1] + y * sizes[2];
                for (count o = 0; o < t; ++o) {
                    count place = (s * t + o) * image + block[2] + y * block[3];
                    const double *weights = arrays[1] + o * m, *targets = arrays[2] + place;
                    double bias = arrays[7][o], *found = arrays[3] + place;
                    double *cross = arrays[5] ? arrays[5] + o * m : 0, *total = arrays[6] + b * t + o;
                    *arrays[4] += wide && block[5] == 4
                        ? short_residual_row(inputs, weights, bias, targets, found, block, cross, total, 8, 2)
                        : residual_row(inputs, weights, bias, targets, found, block, cross, total, c);
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
