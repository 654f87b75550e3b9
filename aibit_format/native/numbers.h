/* Names the dtypes of weights and inputs, and the types of numbers in arrays from Python. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum { F16, BF16, F32 } Source;

/* Numbers of arrays from Python, which may begin at any address: in the middle of a file, for instance. */
typedef float UnalignedFloat __attribute__((aligned(1)));
typedef uint64_t UnalignedU64 __attribute__((aligned(1)));

static inline size_t width(Source source)
{
    return source == F32 ? 4 : 2;
}
