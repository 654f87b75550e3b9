/* Declares the functions that Python calls. Each is defined beside what it computes, and listed in module.c.
 *
 * They are written for x86-64 with AVX2, FMA and F16C (any processor since 2013), and for compilers that accept such
 * targets per function, GCC and Clang. Elsewhere the module can be imported, but supported() is false. The rest of the
 * package then computes the same with numpy and torch, more slowly; that code also defines what is correct here, bit for
 * bit.
 */
#pragma once
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_VECTORS 1
#else
#define HAVE_VECTORS 0
#endif

/* Products of packed weights are written with vectors as GCC and Clang have them on any processor. */
#if defined(__GNUC__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define HAVE_PACKED 1
#else
#define HAVE_PACKED 0
#endif

#define FUNCTION(name) PyObject *name(PyObject *module, PyObject *args)

/* shares.c */
FUNCTION(gomp_parallel);
/* encode.c */
FUNCTION(int8_rows);
FUNCTION(are_finite);
FUNCTION(four_bit_blocks);
/* encode_ggml.c */
FUNCTION(ggml_blocks);
/* encode_groups.c */
FUNCTION(fit_groups);
FUNCTION(choose_groups);
/* gptq.c */
FUNCTION(gptq_factor);
FUNCTION(gptq_round);
FUNCTION(gptq_propagate);
/* decode.c */
FUNCTION(four_bit_values);
FUNCTION(nested_scales);
/* fourbit.c */
FUNCTION(four_bit_product);
/* products.c */
FUNCTION(int8_product);
FUNCTION(int8_linear);
/* floats.c */
FUNCTION(float_linear);
/* errors.c */
FUNCTION(error_sums);
FUNCTION(int8_error_sums);
/* packed_weight.c */
FUNCTION(packed_weight);
/* packed.c */
FUNCTION(packed_product);
FUNCTION(packed_values);
FUNCTION(packed_targets);
/* operators.c */
FUNCTION(rms_norm);
FUNCTION(rotary);
FUNCTION(attention);
FUNCTION(gated);
/* leaves.c */
FUNCTION(leaf_digests);
