// A whole step of sampled Tikhonov without a window from Gram matrices of blocks that meet in the bias; formulas and
// letters are those of hpcopt/linalg/sampled_blocks.py. Instead of its eigenvectors every block is taken in a basis in
// which it is tridiagonal, T: then a trial costs a few numbers for each column, too, and all trials go side by side.

#include <math.h>

#include "common.h"

#define ROUNDING 2.220446049250313e-16
#define HALVINGS 56
// Trials are so many at a time; the last one is repeated where they are fewer.
#define LANES 8

// A block in its basis: T by its diagonal and what is beside it, the reflections that lead there (n, n), and as rows
// (1 + 2 t, n) the border v, R Z^T and W.
typedef struct {
    count n;
    double *reflections, *diagonal, *beside, *rows;
} block;

// The next place where a line of the cache begins, which registers then fill with one access.
INLINE double *aligned(double *place) {
    return place + (-(uintptr_t)place / sizeof(double)) % LANES;
}

INLINE double product(const double *x, const double *y, count n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (count i = 0; i < n; ++i) sum += x[i] * y[i];
    return sum;
}

INLINE void add(double *x, double by, const double *y, count n) {
#pragma omp simd
    for (count i = 0; i < n; ++i) x[i] += by * y[i];
}

// Applies reflection k to x (n,).
INLINE void reflect(const block *own, count k, double *x) {
    const double *u = own->reflections + k * own->n + k + 1, half = own->reflections[k * own->n + k];
    if (half > 0) add(x + k + 1, -product(u, x + k + 1, own->n - k - 1) / half, u, own->n - k - 1);
}

// Two rows x and y after the change by a reflection, u and q with their own numbers in these; and sum += x_by x + y_by y.
INLINE void change_rows(
    double *restrict x, double *restrict y, const double *restrict u, const double *restrict q, const double *x_own,
    const double *y_own, double x_by, double y_by, double *restrict sum, count n
) {
    double x_u = x_own[0], x_q = x_own[1], y_u = y_own[0], y_q = y_own[1];
#pragma omp simd
    for (count j = 0; j < n; ++j) {
        x[j] -= x_u * q[j] + x_q * u[j];
        y[j] -= y_u * q[j] + y_q * u[j];
        sum[j] += x_by * x[j] + y_by * y[j];
    }
}

// Makes the symmetric matrix in the place of the reflections tridiagonal (Householder), and takes the rows along. Each
// row comes once for a reflection: what the one before changes in it, then its part of the product with the next one.
// Vectors are whole, with zeros before what they are about, so that all loops are of one length. Room: 4 n.
INLINE void tridiagonalise(block *own, count number, double *room) {
    count n = own->n;
    double *a = own->reflections, *u = room, *q = u + n, *next = q + n, *seen = next + n;
    for (count j = 0; j < n; ++j) u[j] = q[j] = 0;
    for (count k = 0; k < n; ++k) {
        double *row = a + k * n, half = 0;
        add(row, -u[k], q, n), add(row, -q[k], u, n);
        own->diagonal[k] = row[k];
        own->beside[k] = k + 1 < n ? row[k + 1] : 0;
        for (count j = 0; j < n; ++j) next[j] = j > k ? row[j] : 0, seen[j] = 0;
        double square = k + 2 < n ? product(next, next, n) : 0;
        if (square > own->beside[k] * own->beside[k]) {
            own->beside[k] = -copysign(sqrt(square), next[k + 1]);
            next[k + 1] -= own->beside[k];
            half = product(next, next, n) / 2;
        } else {
            for (count j = 0; j < n; ++j) next[j] = 0;
        }
        // The row that is finished stands in where one is left over.
        for (count i = k + 1, from = i / LANES * LANES; i < n; i += 2) {
            count last = i + 1 == n;
            const double own[] = {u[i], q[i], last ? 0 : u[i + 1], last ? 0 : q[i + 1]};
            double *one = a + i * n + from, *other = (last ? row : a + (i + 1) * n) + from, next_by = last ? 0 : next[i + 1];
            change_rows(one, other, u + from, q + from, own, own + 2, next[i], next_by, seen + from, n - from);
        }
        for (count j = k + 1; j < n; ++j) row[j] = u[j] = next[j];
        u[k] = 0, row[k] = half;
        if (half > 0) {
            for (count j = 0; j <= k; ++j) seen[j] = 0;
            double shift = product(seen, u, n) / (2 * half * half);
            for (count j = 0; j < n; ++j) q[j] = seen[j] / half - shift * u[j];
        } else {
            for (count j = 0; j < n; ++j) q[j] = 0;
        }
        for (count r = 0; r < number; ++r) reflect(own, k, own->rows + r * n);
    }
}

// Inverse pivots (n, k) of T + damping I for k dampings.
INLINE void factorise(const block *own, const double *dampings, count k, double *pivots) {
    for (count j = 0; j < own->n; ++j) {
        double diagonal = own->diagonal[j], square = j ? own->beside[j - 1] * own->beside[j - 1] : 0;
        const double *before = pivots + (j ? j - 1 : 0) * k;
#pragma omp simd
        for (count i = 0; i < k; ++i)
            pivots[j * k + i] = 1 / (diagonal + dampings[i] - (square ? square * before[i] : 0));
    }
}

// (T + damping I)^-1 (x + l y) for every damping and l, (n, k).
INLINE void solve(
    const block *own, const double *pivots, const double *x, const double *y, const double *trials, count k, double *found
) {
    for (count j = 0; j < own->n; ++j) {
        double one = x[j], other = y ? y[j] : 0, beside = j ? own->beside[j - 1] : 0;
        const double *before = found + (j ? j - 1 : 0) * k, *pivot = pivots + (j ? j - 1 : 0) * k;
#pragma omp simd
        for (count i = 0; i < k; ++i) {
            double rest = j ? beside * pivot[i] * before[i] : 0;
            found[j * k + i] = one + trials[i] * other - rest;
        }
    }
    for (count j = own->n - 1; j >= 0; --j) {
        double beside = j + 1 < own->n ? own->beside[j] : 0;
        const double *behind = found + (j + 1 < own->n ? j + 1 : j) * k;
#pragma omp simd
        for (count i = 0; i < k; ++i) {
            double rest = beside ? beside * behind[i] : 0;
            found[j * k + i] = (found[j * k + i] - rest) * pivots[j * k + i];
        }
    }
}

// Adds x^T T y of every trial to sums (k,).
INLINE void bend(const block *own, const double *x, const double *y, count k, double *sums) {
    for (count j = 0; j < own->n; ++j) {
        double at = own->diagonal[j], beside = j + 1 < own->n ? own->beside[j] : 0;
        const double *u = x + j * k, *v = y + j * k, *next = j + 1 < own->n ? k + u : u, *after = j + 1 < own->n ? k + v : v;
#pragma omp simd
        for (count i = 0; i < k; ++i) sums[i] += at * u[i] * v[i] + beside * (u[i] * after[i] + next[i] * v[i]);
    }
}

// Adds x^T y of every trial to sums (k,), x the same for all.
INLINE void meet(const double *x, const double *y, count n, count k, double *sums) {
    for (count j = 0; j < n; ++j) {
#pragma omp simd
        for (count i = 0; i < k; ++i) sums[i] += x[j] * y[j * k + i];
    }
}

// Adds trace T (T + damping I)^-1 of every trial to sums (k,).
INLINE void add_trace(const block *own, const double *pivots, const double *dampings, count k, double *room, double *sums) {
    for (count i = 0; i < k; ++i) room[i] = 0, sums[i] += own->n;
    for (count j = own->n - 1; j >= 0; --j) {
        double beside = j + 1 < own->n ? own->beside[j] : 0;
#pragma omp simd
        for (count i = 0; i < k; ++i) {
            double slope = beside * pivots[j * k + i];
            room[i] = pivots[j * k + i] + slope * slope * room[i];
            sums[i] -= dampings[i] * room[i];
        }
    }
}

// What all blocks come to for every trial: the trace, v^T X v and v^T X T X v with X = (T + Lambda I)^-1; then for each
// output with Y = X (S + l W)^T: v^T Y, Y^T T Y, Y^T T X v, S Y and S X v. One row (k,) each.
INLINE void sum_up(const block *own, const double *dampings, const double *trials, count k, count t, double *room, double *sums) {
    count n = own->n;
    double *pivots = room + k, *bias = pivots + n * k, *step = bias + n * k;
    factorise(own, dampings, k, pivots);
    add_trace(own, pivots, dampings, k, room, sums);
    solve(own, pivots, own->rows, 0, trials, k, bias);
    meet(own->rows, bias, n, k, sums + k);
    bend(own, bias, bias, k, sums + 2 * k);
    for (count o = 0; o < t; ++o) {
        const double *right = own->rows + (1 + o) * n, *weights = own->rows + (1 + t + o) * n;
        double *of = sums + (3 + 5 * o) * k;
        solve(own, pivots, right, weights, trials, k, step);
        meet(own->rows, step, n, k, of);
        bend(own, step, step, k, of + k);
        bend(own, step, bias, k, of + 2 * k);
        meet(right, step, n, k, of + 3 * k);
        meet(right, bias, n, k, of + 4 * k);
    }
}

// What is left of the corner without the blocks: at least Lambda, whatever the rounding.
INLINE double left_of(double corner, double seen, double damping) {
    return fmax(corner + damping - seen, fmax(damping, ROUNDING * corner));
}

// Number of the trial with the least sGCV, or k where all are alike. The bias of a step (t,) for each is left in steps.
INLINE count least_trial(
    const double *sums, double corner, const double *right, const double *weights, const double *dampings,
    const double *trials, const double *numbers, count every, count k, count t, double *steps
) {
    count found = k;
    double least = INFINITY, most = -INFINITY;
    for (count i = 0; i <= k; ++i) {
        double seen = sums[every + i], bent = sums[2 * every + i], left = left_of(corner, seen, dampings[i]);
        double trace = sums[i] + (bent - 2 * seen + corner) / left, residual = numbers[0];
        for (count o = 0; o < t; ++o) {
            const double *of = sums + (3 + 5 * o) * every + i;
            double b = steps[i * t + o] = (right[o] + trials[i] * weights[o] - of[0]) / left;
            residual += of[every] - 2 * b * of[2 * every] + b * b * bent - 2 * (of[3 * every] - b * of[4 * every]);
            residual += (2 * (of[0] - b * seen - right[o]) + corner * b) * b;
        }
        double freedom = fmax(numbers[2] - t * trace, numbers[3] * numbers[2]);
        double criterion = fmax(residual, 0) / (freedom * freedom);
        if (i == k) break;
        if (criterion < least) least = criterion, found = i;
        most = fmax(most, criterion);
    }
    return most - least > numbers[4] * most ? found : k;
}

// Bounds of the squares of the window's singular values, as in hpcopt/linalg/sampled_blocks.py.
INLINE void bounds_of(const block *blocks, count number, double corner, double *room, double *out) {
    double most = corner, border = 0, least = INFINITY, seen = 0, slope = 0, zero = 0, shifts[HALVINGS];
    for (count b = 0; b < number; ++b) {
        const block *own = blocks + b;
        for (count j = 0; j < own->n; ++j)
            most = fmax(most, own->diagonal[j] + fabs(own->beside[j]) + (j ? fabs(own->beside[j - 1]) : 0));
        border += product(own->rows, own->rows, own->n);
    }
    for (count i = 0; i < HALVINGS; ++i) shifts[i] = -ldexp(most, -(int)i - 1);
    for (count b = 0; b < number; ++b) {
        const block *own = blocks + b;
        count fits = 0;
        factorise(own, shifts, HALVINGS, room);
        // The largest shift below which there is no eigenvalue: with it all pivots are above 0.
        for (count j = 0; j < own->n; ++j)
            while (fits < HALVINGS && !(room[j * HALVINGS + fits] > 0)) fits += 1, j = 0;
        least = fmin(least, fits < HALVINGS ? -shifts[fits] : 0);
        if (!(least > 0)) continue;
        double *pivots = room, *found = room + own->n;
        factorise(own, &zero, 1, pivots);
        solve(own, pivots, own->rows, 0, &zero, 1, found);
        seen += product(own->rows, found, own->n), slope += product(found, found, own->n);
    }
    double left = fmax(corner - seen, 0);
    out[0] = least > 0 ? least * left / (left + least * (1 + slope)) : 0;
    out[1] = most + sqrt(border);
}

// arrays: W (t, m), trials and one more (k + 1,), W and four numbers (t m + 4,), room, then of each block its Gram
// matrix (n + 1, n + 1) and Z R^T (n + 1, t). sizes: blocks, t, m, k, then n of each block and its columns of W without
// that of the bias. numbers: |R|^2, Lambda, N t, least part of it that is free, part by which criteria must differ; where
// they do not, lambda is the last trial. The four numbers: Lambda, bounds of the least and largest sigma^2, |R|^2.
ON_EVERY_PROCESSOR void tikhonov_blocks(double *const *arrays, const count *sizes, const double *numbers) {
    count number = sizes[0], t = sizes[1], m = sizes[2], k = sizes[3], every = (k / LANES + 1) * LANES;
    const count *widths = sizes + 4, *columns = widths + number;
    const double *weights = arrays[0];
    double *out = arrays[2], *next = arrays[3] + number * (sizeof(block) / sizeof(double)), corner = 0;
    block *blocks = (block *)arrays[3];
    double *right = next, *last = right + t, *trials = last + t, *dampings = trials + every;
    double *steps = dampings + every, *sums = steps + every * t;
    next = sums + (3 + 5 * t) * every;
    for (count i = 0; i < every; ++i) trials[i] = arrays[1][i < k ? i : k], dampings[i] = numbers[1] + trials[i];
    for (count i = 0; i < (3 + 5 * t) * every; ++i) sums[i] = 0;
    for (count o = 0; o < t; ++o) right[o] = 0, last[o] = weights[o * m + m - 1];
    for (count b = 0; b < number; ++b) {
        count n = widths[b];
        const double *gram = arrays[4 + 2 * b], *cross = arrays[5 + 2 * b];
        block *own = blocks + b;
        next = aligned(next);
        *own = (block){n, next, next + n * n, next + n * n + n, next + n * n + 2 * n};
        next = own->rows + (1 + 2 * t) * n;
        for (count i = 0; i < n; ++i) {
            for (count j = 0; j < n; ++j) own->reflections[i * n + j] = gram[i * (n + 1) + j];
            own->rows[i] = gram[i * (n + 1) + n];
            for (count o = 0; o < t; ++o) {
                own->rows[(1 + o) * n + i] = cross[i * t + o];
                own->rows[(1 + t + o) * n + i] = weights[o * m + columns[i]];
            }
        }
        corner += gram[n * (n + 1) + n];
        for (count o = 0; o < t; ++o) right[o] += cross[n * t + o];
        columns += n;
    }
    next = aligned(next);
    for (count b = 0; b < number; ++b) {
        tridiagonalise(blocks + b, 1 + 2 * t, next);
        sum_up(blocks + b, dampings, trials, every, t, next, sums);
    }
    count chosen = least_trial(sums, corner, right, last, dampings, trials, numbers, every, k, t, steps);
    columns = widths + number;
    for (count b = 0; b < number; ++b, columns += blocks[b - 1].n) {
        const block *own = blocks + b;
        double *pivots = next, *bias = pivots + own->n, *step = bias + own->n;
        factorise(own, dampings + chosen, 1, pivots);
        solve(own, pivots, own->rows, 0, trials, 1, bias);
        for (count o = 0; o < t; ++o) {
            solve(own, pivots, own->rows + (1 + o) * own->n, own->rows + (1 + t + o) * own->n, trials + chosen, 1, step);
            add(step, -steps[chosen * t + o], bias, own->n);
            for (count k = own->n - 1; k >= 0; --k) reflect(own, k, step);
            for (count j = 0; j < own->n; ++j) out[o * m + columns[j]] = weights[o * m + columns[j]] - step[j];
        }
    }
    for (count o = 0; o < t; ++o) out[o * m + m - 1] = last[o] - steps[chosen * t + o];
    bounds_of(blocks, number, corner, next, out + t * m + 1);
    out[t * m] = dampings[chosen], out[t * m + 3] = numbers[0];
}
