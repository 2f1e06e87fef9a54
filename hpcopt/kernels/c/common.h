// What all files of the library share.

#include <stdint.h>

typedef int64_t count;

// One version for each width of registers; the loader takes the widest that the processor has. It needs glibc's help.
#if defined(__x86_64__) && defined(__GLIBC__)
#define ON_EVERY_PROCESSOR __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define ON_EVERY_PROCESSOR
#endif

#define INLINE static inline __attribute__((always_inline))
