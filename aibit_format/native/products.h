/* Multiplies matrices of 8-bit integers, with AVX2: exact sums in 32 bits, scaled in float32 as LLM.int8 does.
 *
 * Codes are widened to 16 bits, a block of the weight at a time, because AVX2 multiplies and adds pairs of those without
 * loss (vpmaddwd): twice as many products per cycle as in float32. A block stays in the first-level cache while all rows
 * of the input are multiplied with it; rows and columns missing at the ends are zeros.
 */
#include "shares.h"
#include "vectors.h"

enum {
    DEPTH = 512,  /* columns of a block */
    PITCH = 528,  /* numbers from one of its rows to the next: not a power of two, as rows would share cache sets */
    WIDE = 16,    /* rows of the weight in a block: 16 KiB of 16-bit numbers */
    TALL = 2,     /* rows of the input multiplied at once, with ... */
    LANES = 4,    /* ... this many rows of the weight */
    MOST = 192,   /* rows of the input for which sums are kept */
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

/* How sums become results: each is multiplied by the scale of its output column, and a bias, if there is one, added. */
typedef struct {
    const float *scales; /* [out_features] */
    const float *bias;   /* [out_features], or NULL */
    float factor;
    void *out; /* [rows, out_features] */
    Source to;
    size_t out_features;
} Output;

/* Writes up to eight sums of one row times ``scales`` and the factor, from output feature ``feature`` on. */
INLINE void put(Source to, const Output *output, size_t row, size_t feature, size_t count, __m256 sums, __m256 scales)
{
    __m256 values = _mm256_mul_ps(_mm256_mul_ps(sums, scales), _mm256_set1_ps(output->factor));
    if (output->bias)
        values = _mm256_add_ps(values, load_some(output->bias + feature, count));
    store(to, values, output->out, row * output->out_features + feature, count);
}

typedef struct {
    const int16_t *input; /* widened, [rows, stride]: rows are padded with zeros to a multiple of 16 */
    size_t rows, stride, columns;
    const float *row_scales; /* [rows] */
    const int8_t *codes;     /* [out_features, columns] */
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
        int32_t each[LANES];
        _mm_storeu_si128((__m128i *)each, four_sums(added[row]));
        sums[row][place] = each[0] + each[1] + each[2] + each[3];
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

/* Computes the sums of one or two rows of the input and one of the weight, which is read in a stream as above. */
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

enum { SHARE = 4 * WIDE }; /* output features that a thread takes at a time */
