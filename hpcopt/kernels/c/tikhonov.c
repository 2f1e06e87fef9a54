// A whole step of sampled Tikhonov for a batch of few rows without a window; formulas and letters are those of
// hpcopt/linalg/sampled_tikhonov.py. With rows F (n, m) = U diag(sigma) V^T everything is said by U^T F = diag(sigma) V^T
// and U^T R^T, so that no singular value is divided by:
//
//     W <- (1 - l / Lambda) W - (R U - (l / Lambda) W F^T U) diag(d) U^T F,      Lambda with l in it

#include <math.h>

#include "common.h"

#define SWEEPS 30
#define ROUNDING 2.220446049250313e-16

INLINE double product(const double *x, const double *y, count n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (count i = 0; i < n; ++i) sum += x[i] * y[i];
    return sum;
}

INLINE void rotate(double *x, double *y, count n, double cosine, double sine) {
#pragma omp simd
    for (count i = 0; i < n; ++i) {
        double old = x[i];
        x[i] = cosine * old - sine * y[i];
        y[i] = sine * old + cosine * y[i];
    }
}

// Makes rows (n, m) orthogonal to each other by rotations of Jacobi, which right (n, t) undergoes, too (Hestenes 1958,
// doi 10.1137/0106005). The squares of their lengths then are sigma^2, each to a relative accuracy.
INLINE void orthogonalise(double *rows, double *right, count n, count m, count t) {
    for (count sweep = 0, moved = 1; moved && sweep < SWEEPS; ++sweep) {
        moved = 0;
        for (count p = 0; p < n; ++p) {
            for (count q = p + 1; q < n; ++q) {
                double *x = rows + p * m, *y = rows + q * m;
                double xx = product(x, x, m), yy = product(y, y, m), xy = product(x, y, m);
                // Not so for what is not finite.
                if (!(fabs(xy) > m * ROUNDING * sqrt(xx) * sqrt(yy))) continue;
                double slope = (yy - xx) / (2 * xy), tangent = copysign(1, slope) / (fabs(slope) + hypot(1, slope));
                double cosine = 1 / sqrt(1 + tangent * tangent);
                rotate(x, y, m, cosine, cosine * tangent);
                rotate(right + p * t, right + q * t, t, cosine, cosine * tangent);
                moved = 1;
            }
        }
    }
}

// Number of the trial with the least sGCV, or -1 where all are alike.
INLINE count least_trial(
    const double *squares, const double *kinds, const double *trials, const double *numbers, count n, count t, count k
) {
    double tail = numbers[0], before = numbers[1], all = numbers[2], least = INFINITY, most = -INFINITY;
    count found = -1;
    for (count trial = 0; trial < k; ++trial) {
        double l = trials[trial], damping = before + l, residual = 0, trace = 0;
        for (count j = 0; j < n; ++j) {
            double d = 1 / (squares[j] + damping), kept = damping * d, moved = l * d;
            const double *kind = kinds + 3 * j;
            residual += kept * kept * kind[0] - 2 * kept * moved * kind[1] + moved * moved * kind[2];
            trace += d * squares[j];
        }
        double freedom = fmax(all - t * trace, numbers[3] * all);
        double criterion = (fmax(residual, 0) + tail) / (freedom * freedom);
        if (criterion < least) least = criterion, found = trial;
        most = fmax(most, criterion);
    }
    return most - least > numbers[4] * most ? found : -1;
}

// Rows (n, m) and residuals (n, t) of features (n, width), with a column of the bias if that is less than m, and targets.
INLINE void make_rows(
    double *rows, double *right, const double *features, const double *targets, const double *weights, count n, count m,
    count t, count width, double scale
) {
    for (count i = 0; i < n; ++i, rows += m, features += width) {
        for (count c = 0; c < m; ++c) rows[c] = c < width ? scale * features[c] : scale;
        for (count o = 0; o < t; ++o) *right++ = product(rows, weights + o * m, m) - scale * *targets++;
    }
}

// arrays: rows F (n, m), R^T (n, t), W (t, m), trials (k,), W and four numbers (t m + 4,), and room for n m + n (2 t + 4).
// sizes: n, m, t, k, and 0, or the width of features (n, width) in the place of rows, of targets in that of R^T.
// numbers: tail, Lambda, N t, least part of it that is free, part by which criteria must differ, lambda where they do
// not, and what features and targets are multiplied by. The four numbers: Lambda, least and largest sigma^2, |R|^2.
ON_EVERY_PROCESSOR void tikhonov_few_rows(double *const *arrays, const count *sizes, const double *numbers) {
    count n = sizes[0], m = sizes[1], t = sizes[2], k = sizes[3];
    const double *weights = arrays[2];
    double *out = arrays[4], *rows = arrays[5], *right = rows + n * m, *seen = right + n * t, *squares = seen + n * t;
    double *kinds = squares + n, largest = 0, smallest = INFINITY, square = numbers[0];
    if (sizes[4]) {
        make_rows(rows, right, arrays[0], arrays[1], weights, n, m, t, sizes[4], numbers[6]);
    } else {
        for (count i = 0; i < n * m; ++i) rows[i] = arrays[0][i];
        for (count i = 0; i < n * t; ++i) right[i] = arrays[1][i];
    }
    orthogonalise(rows, right, n, m, t);
    for (count j = 0; j < n; ++j) {
        double *own = right + j * t, *sees = seen + j * t;
        for (count i = 0; i < t; ++i) sees[i] = product(weights + i * m, rows + j * m, m);
        squares[j] = product(rows + j * m, rows + j * m, m);
        kinds[3 * j] = product(own, own, t);
        kinds[3 * j + 1] = product(own, sees, t);
        kinds[3 * j + 2] = product(sees, sees, t);
        largest = fmax(largest, squares[j]), smallest = fmin(smallest, squares[j]), square += kinds[3 * j];
    }
    count chosen = least_trial(squares, kinds, arrays[3], numbers, n, t, k);
    double trial = chosen < 0 ? numbers[5] : arrays[3][chosen], damping = numbers[1] + trial, share = trial / damping;
    for (count i = 0; i < t; ++i) {
        for (count c = 0; c < m; ++c) out[i * m + c] = (1 - share) * weights[i * m + c];
        for (count j = 0; j < n; ++j) {
            double by = (right[j * t + i] - share * seen[j * t + i]) / (squares[j] + damping);
#pragma omp simd
            for (count c = 0; c < m; ++c) out[i * m + c] -= by * rows[j * m + c];
        }
    }
    out += t * m;
    out[0] = damping, out[1] = n == m ? smallest : 0, out[2] = largest, out[3] = square;
}

// Features (n, width) with W (t, m), whose last column is of the bias if that is one more: half the sum of the squares of
// what is left of the targets (n, t), and its gradient in the features (n, width), times a scale.
// arrays: features, targets, W, the gradient and the sum (1,). sizes: n, width, t, m.
ON_EVERY_PROCESSOR void few_residuals(double *const *arrays, const count *sizes, const double *numbers) {
    count n = sizes[0], width = sizes[1], t = sizes[2], m = sizes[3];
    const double *features = arrays[0], *targets = arrays[1];
    double *gradient = arrays[3], square = 0;
    for (count i = 0; i < n; ++i, features += width, gradient += width) {
        const double *row = arrays[2];
        for (count c = 0; c < width; ++c) gradient[c] = 0;
        for (count o = 0; o < t; ++o, row += m) {
            double left = product(features, row, width) + (m > width ? row[width] : 0) - *targets++, by = numbers[0] * left;
            square += left * left;
#pragma omp simd
            for (count c = 0; c < width; ++c) gradient[c] += by * row[c];
        }
    }
    *arrays[4] = square / 2;
}
