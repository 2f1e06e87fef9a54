// What all files of the library share.

#include <stdint.h>

typedef int64_t count;

// One version for each width of registers; the loader takes the widest that the processor has. It needs glibc's help.
#if defined(__x86_64__) && defined(__GLIBC__)
#define ON_EVERY_PROCESSOR __attribute__((target_clones("default", "avx2", "avx512f")))
#define HAS_WIDE_REGISTERS __builtin_cpu_supports("avx512f")
#else
#define ON_EVERY_PROCESSOR
#define HAS_WIDE_REGISTERS 0
#endif

#define INLINE static inline __attribute__((always_inline))
