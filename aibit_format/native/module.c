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
    {"packed_targets", packed_targets, METH_NOARGS, 
     "packed_targets() -> kinds of processors, for which the next are built and which this one is"},
    {"packed_weight", packed_weight, METH_VARARGS,
     "packed_weight(rows, columns, format, codes, scales, zeros, book, factor, group, block_rows, scale_type, zero_type, "
     "zeros_are_biases, reciprocal, middle) -> a weight for the next two, in a capsule"},
    {"packed_product", packed_product, METH_VARARGS,
     "packed_product(weights, target, activations, dtype, rows, inputs, biases, bias_dtype, outs, threads, parallel): "
     "weights, biases and outs are tuples"},
    {"packed_values", packed_values, METH_VARARGS,
     "packed_values(weight, target, dtype, first, count, out, threads, parallel)"},
    {"rms_norm", rms_norm, METH_VARARGS,
     "rms_norm(dtype, rows, columns, values, weight, weight_dtype, out, epsilon, offset, rounds, threads, parallel)"},
    {"rotary", rotary, METH_VARARGS,
     "rotary(dtype, batches, positions, heads, size, turned, angles, capacity, first, values, cosines, sines, out, threads, "
     "parallel)"},
    {"attention", attention, METH_VARARGS,
     "attention(dtype, batches, heads, group, queries, keys, capacity, size, value_size, window, scale, cap, query, key, "
     "value, out, threads, parallel)"},
    {"gated", gated, METH_VARARGS, "gated(dtype, activation, count, gate, up, out, threads, parallel)"},
#endif
#if HAVE_VECTORS
    {"int8_rows", int8_rows, METH_VARARGS,
     "int8_rows(dtype, values, rows, columns, codes, absmax) -> whether all values were finite in float16"},
    {"finite", are_finite, METH_VARARGS, "finite(dtype, values, count) -> whether all are finite"},
    {"four_bit_blocks", four_bit_blocks, METH_VARARGS,
     "four_bit_blocks(dtype, values, blocks, block_size, bounds, order, codes, absmax) -> whether all were finite"},
    {"ggml_blocks", ggml_blocks, METH_VARARGS,
     "ggml_blocks(dtype, values, blocks, weights, periods, starts, count, divisors, count, book, codes, factors, scales, "
     "*search) -> whether all values were finite"},
    {"fit_groups", fit_groups, METH_VARARGS,
     "fit_groups(dtype, values, groups, size, weights, periods, kind, low, high, least, magic, book, starts, count, "
     "repeats, has_zero, scales, zeros)"},
    {"choose_groups", choose_groups, METH_VARARGS,
     "choose_groups(dtype, values, groups, size, weights, periods, kind, low, high, least, magic, book, candidates, "
     "scales, zeros, index, fitted)"},
    {"gptq_factor", gptq_factor, METH_VARARGS,
     "gptq_factor(matrix, inverse, rows, columns) -> whether the matrix was positive definite"},
    {"gptq_round", gptq_round, METH_VARARGS,
     "gptq_round(columns, rows, groups, values, errors, codes, factor, group, parameters, book, high, first, stop)"},
    {"gptq_propagate", gptq_propagate, METH_VARARGS,
     "gptq_propagate(columns, rows, values, errors, factor, first, stop, from, to)"},
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
