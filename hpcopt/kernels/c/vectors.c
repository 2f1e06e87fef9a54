// Sweeps over long vectors on the processor: each reads and writes its vectors once, as fast as memory gives them.
//
// A vector is worked on in blocks that stay in the nearest cache. A sum is taken in the vectors' own precision within a
// block; blocks leave one part each, which hpcopt/kernels/compiled.py adds up in double and in their order. Without
// contraction (setup.py) vectors come out the same to the bit on every processor; sums depend on the width of its
// registers, but not on the number of threads.
// Arguments are the addresses of the vectors (n,), n, the numbers of a block, constants, and the parts (blocks, sums).

#include "common.h"
#include <tgmath.h>

// Of which sources this is made; setup.py and the reader of it make the same digest of them.
const char sources[] = SOURCES;

#define FOR_BLOCKS(sums) \
    for (count start = 0, stop; stop = start + block < n ? start + block : n, start < n; start = stop, parts += (sums))

#define REAL float
#define NAME(name) name##_float32
#include "sweeps.h"
#undef REAL
#undef NAME

#define REAL double
#define NAME(name) name##_float64
#include "sweeps.h"
