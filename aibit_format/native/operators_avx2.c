/* Computes what is between products with AVX2. */
#include "kernels.h"
#if HAVE_PACKED && HAVE_VECTORS
#define USE_AVX2 1
#define TARGET __attribute__((target("avx2,fma,f16c")))
#include "operators_kernels.h"

static int runs(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

const Operators operators_avx2 = {runs, normalize, rotate, attend, open_gate};
#endif
