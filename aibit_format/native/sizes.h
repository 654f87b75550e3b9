/* Checks sizes. Numbers from Python are multiplied here and nowhere else, before any memory is touched. */
#pragma once
#include "kernels.h"
#include "numbers.h"
#if HAVE_VECTORS
#include "vectors.h"
#endif

enum { MOST_BUFFERS = 20 }; /* of eight products with the same inputs: biases, results and inputs */

/* The arrays of one call, held until ``release``. */
typedef struct {
    Py_buffer views[MOST_BUFFERS];
    int count;
} Buffers;

void release(Buffers *buffers);

/* Arrays are what has Python's buffers, or tensors of DLPack on a CPU, in capsules.
 *
 * Return the memory of a contiguous array of exactly ``rows`` times ``columns`` items of ``item`` bytes, which may begin
 * at any address; NULL, with a Python error, for any other array, and for sizes that are negative or overflow. */
const void *readable(Buffers *buffers, PyObject *array, Py_ssize_t rows, Py_ssize_t columns, size_t item);
void *writable(Buffers *buffers, PyObject *array, Py_ssize_t rows, Py_ssize_t columns, size_t item);

/* Allocates memory of that size, to be freed; NULL, with a Python error, if it cannot be had. */
void *scratch(Py_ssize_t rows, Py_ssize_t columns, size_t item);

/* Returns how many chunks of ``each`` cover ``size``; -1, which no array has, if that is negative. */
static inline Py_ssize_t chunks(Py_ssize_t size, Py_ssize_t each)
{
    return size < 0 ? -1 : size / each + (size % each > 0);
}

/* Finds the dtype of a name; 0, with a Python error, if weights have no such dtype. */
int source_type(const char *name, Source *source);

/* Returns 1 if blocks can have ``size`` elements; 0, with a Python error, if not. */
int block_size_fits(Py_ssize_t size);
