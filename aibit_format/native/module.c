/* Defines the Python module. Its functions parse their arguments, check sizes, release the interpreter's lock and compute.
 */
#include "kernels.h"

static PyObject *supported(PyObject *self, PyObject *none)
{
#if HAVE_VECTORS
    __builtin_cpu_init();
    return PyBool_FromLong(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                           __builtin_cpu_supports("f16c"));
#else
    Py_RETURN_FALSE;
#endif
}

static PyMethodDef methods[] = {
    {"supported", supported, METH_NOARGS, "Whether this build and this processor have the functions below the next."},
    {"gomp_parallel", gomp_parallel, METH_VARARGS,
     "gomp_parallel(path) -> the function of that name in a library that is loaded, in a capsule; None if there is none"},
#if HAVE_PACKED
    {"packed_targets", packed_targets, METH_NOARGS, "packed_targets() -> kinds of processors, for which the next two are built and which this one is"},
    {"packed_product", packed_product, METH_VARARGS,
     "packed_product(target, activations, dtype, rows, columns, out_features, inputs, bias, out, threads, parallel, *weight)"},
    {"packed_values", packed_values, METH_VARARGS,
     "packed_values(target, dtype, columns, out_features, first, count, out, threads, parallel, *weight)"},
#endif
#if HAVE_VECTORS
    {"int8_rows", int8_rows, METH_VARARGS,
     "int8_rows(dtype, values, rows, columns, codes, absmax) -> whether all values were finite in float16"},
    {"finite", are_finite, METH_VARARGS, "finite(dtype, values, count) -> whether all are finite"},
    {"four_bit_blocks", four_bit_blocks, METH_VARARGS,
     "four_bit_blocks(dtype, values, blocks, block_size, bounds, order, codes, absmax) -> whether all were finite"},
    {"four_bit_values", four_bit_values, METH_VARARGS,
     "four_bit_values(dtype, blocks, block_size, codes, book, absmax, item, out, threads, parallel): item bytes of out"},
    {"nested_scales", nested_scales, METH_VARARGS, "nested_scales(count, codes, book, absmax, offset, out)"},
    {"four_bit_product", four_bit_product, METH_VARARGS,
     "four_bit_product(rows, columns, out_features, inputs, codes, book, absmax, block_size, out, threads, parallel)"},
    {"int8_error_sums", int8_error_sums, METH_VARARGS,
     "int8_error_sums(dtype, values, rows, columns, step, codes, scales) -> the same of every step-th row's codes"},
    {"int8_product", int8_product, METH_VARARGS,
     "int8_product(dtype, rows, columns, out_features, inputs, row_scales, codes, scales, factor, bias, out, threads, "
     "parallel)"},
    {"int8_linear", int8_linear, METH_VARARGS,
     "int8_linear(dtype, rows, columns, out_features, inputs, codes, scales, factor, bias, out, threads, parallel, "
     "threshold) -> whether all inputs were below the threshold"},
    {"float_linear", float_linear, METH_VARARGS,
     "float_linear(dtype, rows, columns, out_features, inputs, codes, scales, factor, bias, out, threads, parallel)"},
    {"error_sums", error_sums, METH_VARARGS,
     "error_sums(dtype, values, rows, columns, first, step, count, decoded) -> squares of differences, of values, largest"},
    {"leaf_digests", leaf_digests, METH_VARARGS, "leaf_digests(data, count, size, digests)"},
#endif
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "kernels", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit_kernels(void)
{
    return PyModuleDef_Init(&definition);
}
