/* Computes products of packed weights with the dot products of AVX-512, in vectors of 256 bits. */
#include "kernels.h"
#if HAVE_PACKED && HAVE_VECTORS
#define USE_AVX2 1
#define USE_VNNI 1
#define TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")))
#include "packed_kernels.h"

static int runs(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("fma");
}

const Target packed_vnni = {"vnni", runs, take, multiply, decode};
#endif
