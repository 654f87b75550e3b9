/* Computes products of packed weights with the dot products of Arm's processors. */
#include "kernels.h"
#if HAVE_PACKED && defined(__aarch64__)
#define USE_DOTPROD 1
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#include "packed_kernels.h"
#if defined(__linux__)
#include <sys/auxv.h>
#endif

static int runs(void)
{
#if defined(__linux__)
    return (getauxval(AT_HWCAP) >> 20 & 1) != 0; /* HWCAP_ASIMDDP */
#elif defined(__APPLE__)
    return 1; /* all of Apple's have them */
#else
    return 0;
#endif
}

const Target packed_dotprod = {"dotprod", runs, take, multiply, decode};
#endif
