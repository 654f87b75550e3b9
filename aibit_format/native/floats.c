/* Multiplies few rows of floats with matrices of 8-bit integers, with AVX2: in float32, scaled afterwards.
 *
 * Each row of the weight is widened in registers, and stays in the cache for all of the input.
 */
#include "kernels.h"
#if HAVE_VECTORS
#include "layers.h"
#include <stdlib.h>

/* A product of float inputs with unscaled codes, whose scales are applied afterwards. */
typedef struct {
    const float *input; /* [rows, stride]: rows are padded with zeros to a multiple of 8 */
    size_t rows, stride, columns;
    const int8_t *codes; /* [out_features, columns] */
    Output output;
} FloatProduct;

/* Widens inputs of any dtype to the float32 that a product takes. */
VECTORS static void widen_inputs(Source source, const char *values, size_t rows, size_t columns, float *wide)
{
    for (; rows; rows--, values += columns * width(source), wide += (columns + 7) / 8 * 8) {
        size_t whole = columns / 8 * 8;
        char end[8 * 4] = {0};
        for (size_t i = 0; i < whole; i += 8)
            _mm256_storeu_ps(wide + i, load(source, values, i));
        memcpy(end, values + whole * width(source), (columns - whole) * width(source));
        if (whole < columns)
            _mm256_storeu_ps(wide + whole, load(source, end, 0));
    }
}

/* Multiplies one or two rows of the input, from column ``k`` of row ``top`` on, with 8 codes. */
INLINE void add_float_products(int rows, const FloatProduct *product, size_t top, size_t k, const int8_t *codes,
                               int lane, __m256 added[TALL][LANES])
{
    __m256 weights = load_codes(codes);
#pragma GCC unroll 2
    for (int row = 0; row < rows; row++) {
        __m256 values = _mm256_loadu_ps(product->input + (top + row) * product->stride + k);
        added[row][lane] = _mm256_fmadd_ps(values, weights, added[row][lane]);
    }
}

/* Computes the sums of one or two rows of the input and one of the weight, which is read in a stream. */
INLINE void multiply_floats(int rows, const FloatProduct *product, size_t top, size_t feature, float sums[TALL])
{
    const int8_t *codes = product->codes + feature * product->columns;
    size_t columns = product->columns, k = 0;
    __m256 added[TALL][LANES];
#pragma GCC unroll 8
    for (int i = 0; i < TALL * LANES; i++)
        added[i / LANES][i % LANES] = _mm256_setzero_ps();
    for (; k + 8 * LANES <= columns; k += 8 * LANES) {
        _mm_prefetch((const char *)codes + k + AHEAD, _MM_HINT_T0);
#pragma GCC unroll 4
        for (int lane = 0; lane < LANES; lane++)
            add_float_products(rows, product, top, k + 8 * lane, codes + k + 8 * lane, lane, added);
    }
    for (; k < columns; k += 8) {
        int8_t end[8] = {0};
        memcpy(end, codes + k, columns - k < 8 ? columns - k : 8);
        add_float_products(rows, product, top, k, end, 0, added);
    }
    for (int row = 0; row < rows; row++) {
        __m256 *lanes = added[row];
        lanes[0] = _mm256_add_ps(_mm256_add_ps(lanes[0], lanes[1]), _mm256_add_ps(lanes[2], lanes[3]));
        sums[row] = sum_of_eight(lanes[0]);
    }
}

/* Computes output features ``first`` to ``last``: a row of the weight stays in the cache for all of the input. */
VECTORS static void multiply_float_features(const void *argument, size_t first, size_t last)
{
    const FloatProduct *product = argument;
    const Output *output = &product->output;
    float sums[TALL];
    for (size_t feature = first; feature < last; feature++)
        for (size_t top = 0; top < product->rows; top += TALL) {
            int rows = product->rows - top < TALL ? 1 : TALL;
            if (rows == 1)
                multiply_floats(1, product, top, feature, sums);
            else
                multiply_floats(TALL, product, top, feature, sums);
            for (int row = 0; row < rows; row++)
                put(output->to, output, top + row, feature, 1, _mm256_set1_ps(sums[row]),
                    _mm256_set1_ps(output->scales[feature]));
        }
}

FUNCTION(float_linear)
{
    PyObject *result = NULL;
    Layer layer;
    if (layer_of(args, &layer)) {
        size_t rows = layer.rows, columns = layer.columns;
        Py_ssize_t each = chunks(columns, 8);
        float *wide = layer.empty ? NULL : scratch(rows, each, 8 * sizeof(float));
        FloatProduct product = {wide, rows, (size_t)each * 8, columns, layer.codes, layer.output};
        if (wide) {
            Py_BEGIN_ALLOW_THREADS
            widen_inputs(layer.output.to, layer.inputs, rows, columns, wide);
            in_shares(multiply_float_features, &product, layer.output.out_features, SHARE, &layer.team);
            Py_END_ALLOW_THREADS
        }
        result = wide || layer.empty ? Py_NewRef(Py_None) : NULL;
        free(wide);
    }
    release(&layer.buffers);
    return result;
}

#endif
