/* Computes products of packed weights on any processor. */
#include "kernels.h"
#if HAVE_PACKED
#define TARGET
#include "packed_kernels.h"

static int runs(void)
{
    return 1;
}

const Target packed_portable = {"portable", runs, take, multiply, decode};
#endif
