/* Multiplies matrices of 8-bit integers, with AVX2: exact sums in 32 bits, scaled in float32 as LLM.int8 does.
 *
 * Codes are widened to 16 bits, a block of the weight at a time, because AVX2 multiplies and adds pairs of those without
 * loss (vpmaddwd): twice as many products per cycle as in float32. A block stays in the first-level cache while all rows
 * of the input are multiplied with it; rows and columns missing at the ends are zeros.
 */
#include "kernels.h"
#if HAVE_VECTORS
#include "layers.h"
#include <stdlib.h>

enum {
    DEPTH = 512, /* columns of a block of the weight, which has WIDE rows: 16 KiB of 16-bit numbers */
    PITCH = 528, /* numbers from one of its rows to the next: not a power of two, as rows would share cache sets */
    MOST = 192,  /* rows of the input for which sums are kept */
};

INLINE void store_codes(Source source, const void *values, size_t i, __m256 scale, int16_t *codes)
{
    __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(load_half(source, values, i), scale));
    __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(load_half(source, values, i + 8), scale));
    __m256i mixed = _mm256_packs_epi32(low, high);
    _mm256_storeu_si256((__m256i *)codes, _mm256_permute4x64_epi64(mixed, 0xd8));
}

/* Quantizes a row of inputs to 8 bits, stored in 16, as bitsandbytes' int8_vectorwise_quant does with values rounded to
 * float16. 0 if a magnitude is not below the threshold: there are outlier columns, or a value is not finite. */
INLINE int quantize_row(Source source, const char *values, size_t columns, float threshold, int16_t *codes,
                        float *absmax)
{
    char end[16 * 4] = {0}; /* the end of the row, padded with zeros */
    size_t whole = columns / 16 * 16, rest = columns - whole;
    memcpy(end, values + whole * width(source), rest * width(source));
    __m256i top = half_top(source, end, 0, half_top(source, end, 8, _mm256_setzero_si256()));
    for (size_t i = 0; i < whole; i += 8)
        top = half_top(source, values, i, top);
    float largest = largest_magnitude(top);
    if (!(largest < threshold))
        return 0;
    *absmax = largest;
    __m256 scale = _mm256_set1_ps(largest > 0 ? 1.0f / largest * 127.0f : 0); /* torch divides a number by a tensor like this */
    for (size_t i = 0; i < whole; i += 16)
        store_codes(source, values, i, scale, codes + i);
    if (rest)
        store_codes(source, end, 0, scale, codes + whole);
    return 1;
}

/* Quantizes inputs to i16 [rows, columns padded with zeros to a multiple of 16] and f32 [rows]. */
VECTORS static int quantize_inputs(Source source, const char *values, size_t rows, size_t columns, float threshold,
                                   int16_t *codes, float *absmax)
{
    int fine = 1;
    for (size_t row = 0; fine && row < rows; row++, values += columns * width(source), codes += (columns + 15) / 16 * 16)
        switch (source) {
        case F16: fine = quantize_row(F16, values, columns, threshold, codes, absmax + row); break;
        case BF16: fine = quantize_row(BF16, values, columns, threshold, codes, absmax + row); break;
        case F32: fine = quantize_row(F32, values, columns, threshold, codes, absmax + row); break;
        }
    return fine;
}

/* Sums of one block of columns: i32, [rows of the input, rows of the block]. */
typedef int32_t Sums[MOST][WIDE];

INLINE void widen(const int8_t *codes, size_t count, int16_t *wide)
{
    size_t i = 0;
    for (; i + 16 <= count; i += 16)
        _mm256_storeu_si256((__m256i *)(wide + i),
                            _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(codes + i))));
    for (; i < (count + 15) / 16 * 16; i++)
        wide[i] = i < count ? codes[i] : 0;
}

/* Adds up the lanes of each of four vectors. */
INLINE __m128i four_sums(const __m256i v[LANES])
{
    __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

/* Multiplies ``rows`` of the input, ``stride`` numbers apart, with four rows of a block, over ``depth`` columns. */
INLINE void multiply(int rows, const int16_t *input, size_t stride, int16_t block[LANES][PITCH], size_t depth,
                     int32_t (*sums)[WIDE])
{
    __m256i added[TALL][LANES];
#pragma GCC unroll 8
    for (int i = 0; i < TALL * LANES; i++)
        added[i / LANES][i % LANES] = _mm256_setzero_si256();
    for (size_t k = 0; k < depth; k += 16)
#pragma GCC unroll 4
        for (int lane = 0; lane < LANES; lane++) {
            __m256i weights = _mm256_loadu_si256((const __m256i *)(block[lane] + k));
#pragma GCC unroll 2
            for (int row = 0; row < rows; row++) {
                __m256i values = _mm256_loadu_si256((const __m256i *)(input + row * stride + k));
                added[row][lane] = _mm256_add_epi32(added[row][lane], _mm256_madd_epi16(values, weights));
            }
        }
#pragma GCC unroll 2
    for (int row = 0; row < rows; row++) {
        __m128i *sum = (__m128i *)sums[row];
        _mm_storeu_si128(sum, _mm_add_epi32(_mm_loadu_si128(sum), four_sums(added[row])));
    }
}

/* Multiplies ``rows`` of the input with one block of the weight. */
INLINE void multiply_block(const int16_t *input, size_t rows, size_t stride, int16_t block[WIDE][PITCH], size_t depth,
                           Sums sums)
{
    for (size_t row = 0; row < rows; row += TALL)
        for (int lane = 0; lane < WIDE; lane += LANES) {
            const int16_t *from = input + row * stride;
            int32_t(*to)[WIDE] = (int32_t(*)[WIDE])(sums[row] + lane);
            if (rows - row == 1)
                multiply(1, from, stride, block + lane, depth, to);
            else
                multiply(TALL, from, stride, block + lane, depth, to);
        }
}

typedef struct {
    const int16_t *input; /* widened, [rows, stride]: rows are padded with zeros to a multiple of 16 */
    size_t rows, stride, columns;
    const UnalignedFloat *row_scales; /* [rows] */
    const int8_t *codes;              /* [out_features, columns] */
    Output output;
} Product;

/* Writes the sums of ``rows`` rows of the input, from ``top`` on, times the scales of row and column: the operations of
 * bitsandbytes in its order. */
INLINE void put_sums(Source to, const Product *product, size_t top, size_t rows, size_t feature, size_t count, Sums sums)
{
    const Output *output = &product->output;
    for (size_t row = 0; row < rows; row++)
        for (size_t i = 0; i < count; i += 8) {
            __m256 of_row = _mm256_set1_ps(product->row_scales[top + row]);
            __m256 scales = _mm256_mul_ps(of_row, load_some(output->scales + feature + i, count - i));
            __m256 values = _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)(sums[row] + i)));
            put(to, output, top + row, feature + i, count - i, values, scales);
        }
}

/* Multiplies one or two rows of the input, from column ``k`` on, with 16 codes. */
INLINE void add_products(int rows, const Product *product, size_t k, const int8_t *codes, int lane,
                         __m256i added[TALL][LANES])
{
    __m256i weights = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)codes));
#pragma GCC unroll 2
    for (int row = 0; row < rows; row++) {
        __m256i values = _mm256_loadu_si256((const __m256i *)(product->input + row * product->stride + k));
        added[row][lane] = _mm256_add_epi32(added[row][lane], _mm256_madd_epi16(values, weights));
    }
}

/* Computes the sums of one or two rows of the input and one of the weight.
 *
 * The weight is read from memory once, in one stream: reading several rows side by side reaches two thirds of its speed.
 * The processor's own prefetching stops at the end of a page; this one goes on to the next row. */
INLINE void multiply_few(int rows, const Product *product, size_t feature, size_t place, Sums sums)
{
    const int8_t *codes = product->codes + feature * product->columns;
    size_t columns = product->columns, k = 0;
    __m256i added[TALL][LANES];
#pragma GCC unroll 8
    for (int i = 0; i < TALL * LANES; i++)
        added[i / LANES][i % LANES] = _mm256_setzero_si256();
    for (; k + 16 * LANES <= columns; k += 16 * LANES) {
        _mm_prefetch((const char *)codes + k + AHEAD, _MM_HINT_T0);
#pragma GCC unroll 4
        for (int lane = 0; lane < LANES; lane++)
            add_products(rows, product, k + 16 * lane, codes + k + 16 * lane, lane, added);
    }
    for (; k < columns; k += 16) {
        int8_t end[16] = {0};
        memcpy(end, codes + k, columns - k < 16 ? columns - k : 16);
        add_products(rows, product, k, end, 0, added);
    }
    for (int row = 0; row < rows; row++) {
        uint32_t each[LANES]; /* like the vectors' sums these may wrap: in C only unsigned numbers do */
        _mm_storeu_si128((__m128i *)each, four_sums(added[row]));
        sums[row][place] = (int32_t)(each[0] + each[1] + each[2] + each[3]);
    }
}

/* Computes the sums of ``rows`` of the input, from ``top`` on, and ``count`` rows of the weight. */
INLINE void multiply_many(const Product *product, size_t top, size_t rows, size_t feature, size_t count, Sums sums)
{
    int16_t block[WIDE][PITCH];
    memset(sums, 0, rows * sizeof sums[0]);
    memset(block, 0, count < WIDE ? sizeof block : 0);
    for (size_t column = 0; column < product->columns; column += DEPTH) {
        size_t depth = product->columns - column < DEPTH ? product->columns - column : DEPTH;
        for (size_t i = 0; i < count; i++)
            widen(product->codes + (feature + i) * product->columns + column, depth, block[i]);
        multiply_block(product->input + top * product->stride + column, rows, product->stride, block, depth, sums);
    }
}

INLINE void multiply_features_to(Source to, const Product *product, size_t first, size_t last)
{
    Sums sums;
    for (size_t top = 0; top < product->rows; top += MOST) {
        size_t rows = product->rows - top < MOST ? product->rows - top : MOST;
        for (size_t feature = first; feature < last; feature += WIDE) {
            size_t count = last - feature < WIDE ? last - feature : WIDE;
            if (product->rows > TALL)
                multiply_many(product, top, rows, feature, count, sums);
            else
                for (size_t i = 0; i < count; i++)
                    if (rows == 1)
                        multiply_few(1, product, feature + i, i, sums);
                    else
                        multiply_few(TALL, product, feature + i, i, sums);
            put_sums(to, product, top, rows, feature, count, sums);
        }
    }
}

/* Computes output features ``first`` to ``last`` of a product. */
VECTORS static void multiply_features(const void *argument, size_t first, size_t last)
{
    const Product *product = argument;
    switch (product->output.to) {
    case F16: multiply_features_to(F16, product, first, last); break;
    case BF16: multiply_features_to(BF16, product, first, last); break;
    case F32: multiply_features_to(F32, product, first, last); break;
    }
}

FUNCTION(int8_product)
{
    const char *dtype;
    PyObject *input_array, *row_array, *code_array, *scale_array, *bias_array, *out_array, *parallel, *result = NULL;
    Py_ssize_t rows, columns, out_features, threads;
    Buffers buffers = {.count = 0};
    Team team;
    Product product;
    if (!PyArg_ParseTuple(args, "snnnOOOOfOOnO", &dtype, &rows, &columns, &out_features, &input_array, &row_array,
                          &code_array, &scale_array, &product.output.factor, &bias_array, &out_array, &threads,
                          &parallel) ||
        !source_type(dtype, &product.output.to) || !team_of(threads, parallel, &team))
        return NULL;
    Py_ssize_t each = chunks(columns, 16);
    product.rows = rows, product.columns = columns, product.stride = (size_t)each * 16;
    if ((product.input = readable(&buffers, input_array, rows, each, 16 * sizeof(int16_t))) &&
        (product.row_scales = readable(&buffers, row_array, rows, 1, 4)) &&
        (product.codes = readable(&buffers, code_array, out_features, columns, 1)) &&
        output_of(&buffers, scale_array, bias_array, out_array, rows, out_features, &product.output)) {
        Py_BEGIN_ALLOW_THREADS
        in_shares(multiply_features, &product, out_features, SHARE, &team);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    release(&buffers);
    return result;
}

FUNCTION(int8_linear)
{
    PyObject *result = NULL;
    Layer layer;
    if (layer_of(args, &layer)) {
        size_t rows = layer.rows, columns = layer.columns;
        Py_ssize_t each = chunks(columns, 16);
        int16_t *codes = layer.empty ? NULL : scratch(rows, each, 16 * sizeof(int16_t));
        float *absmax = codes ? scratch(rows, 1, sizeof(float)) : NULL;
        int fine = 1;
        Product product = {codes, rows, (size_t)each * 16, columns, absmax, layer.codes, layer.output};
        if (absmax) {
            Py_BEGIN_ALLOW_THREADS
            fine = quantize_inputs(layer.output.to, layer.inputs, rows, columns, layer.threshold, codes, absmax);
            if (fine)
                in_shares(multiply_features, &product, layer.output.out_features, SHARE, &layer.team);
            Py_END_ALLOW_THREADS
        }
        result = absmax || layer.empty ? PyBool_FromLong(fine) : NULL;
        free(codes);
        free(absmax);
    }
    release(&layer.buffers);
    return result;
}

#endif
