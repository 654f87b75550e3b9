/* Multiplies few rows with 4-bit weights, with AVX2: codes are decoded in registers, and multiplied there.
 *
 * The float32 value of a code is assembled from its four bytes, each looked up in a table of 16, for 32 codes at once;
 * that takes half as long as looking up eight values at a time. The codebook's values are multiplied with the inputs and
 * added, and the sum of each block is multiplied by its scale. Nothing is rounded to the dtype of the inputs.
 */
#include "kernels.h"
#if HAVE_VECTORS
#include "shares.h"
#include "sizes.h"
#include <stdlib.h>

enum {
    ROWS = 4,   /* of the input, multiplied at once */
    CHUNK = 64, /* codes decoded at once */
};

typedef struct {
    const float *input;   /* [rows, stride], as ``arrange`` makes it: columns in whole chunks */
    size_t rows, columns, stride;
    const uint8_t *codes; /* [out_features, columns / 2] */
    size_t size;          /* of a block: CHUNK times a whole number, or half a CHUNK; divides the columns */
    const UnalignedFloat *book, *absmax;
    UnalignedFloat *out; /* [rows, out_features] */
    size_t out_features;
} FourBitProduct;

/* Arranges inputs f32 [rows, columns] in the order in which ``values_at`` returns values: first the upper nibbles of a
 * chunk's 32 bytes and then the lower ones, four of the first 16 bytes next to four of the others. Pads with zeros. */
static void arrange(const UnalignedFloat *input, size_t rows, size_t columns, float *arranged)
{
    for (size_t row = 0; row < rows; row++, input += columns)
        for (size_t chunk = 0; chunk < columns; chunk += CHUNK)
            for (size_t i = 0; i < CHUNK; i++) {
                size_t byte = i % 32 / 8 * 4 + i % 4 + i % 8 / 4 * 16, column = chunk + 2 * byte + i / 32;
                *arranged++ = column < columns ? input[column] : 0;
            }
}

/* The four bytes of each of a codebook's 16 values, one vector per byte, with the 16 in both of its halves. */
typedef struct {
    __m256i bytes[4];
} Tables;

INLINE Tables tables_of(const UnalignedFloat *book)
{
    Tables tables;
    for (int byte = 0; byte < 4; byte++) {
        uint8_t table[16];
        for (int i = 0; i < 16; i++)
            table[i] = ((const uint8_t *)(book + i))[byte];
        tables.bytes[byte] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
    }
    return tables;
}

/* Looks up the values of 32 codes, each in a byte. */
INLINE void values_at(const Tables *tables, __m256i codes, __m256 values[4])
{
    __m256i bytes[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        bytes[i] = _mm256_shuffle_epi8(tables->bytes[i], codes);
    __m256i low = _mm256_unpacklo_epi8(bytes[0], bytes[1]), high = _mm256_unpacklo_epi8(bytes[2], bytes[3]);
    values[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low, high));
    values[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low, high));
    low = _mm256_unpackhi_epi8(bytes[0], bytes[1]), high = _mm256_unpackhi_epi8(bytes[2], bytes[3]);
    values[2] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low, high));
    values[3] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low, high));
}

/* Computes eight sums of two products each. */
INLINE __m256 pair(const float *input, const __m256 values[2])
{
    __m256 first = _mm256_mul_ps(_mm256_loadu_ps(input), values[0]);
    return _mm256_fmadd_ps(_mm256_loadu_ps(input + 8), values[1], first);
}

/* Multiplies ``rows`` of the input, from ``top`` on, with one row of the weight. */
INLINE void multiply_row(const FourBitProduct *product, const Tables *tables, size_t top, int rows, size_t feature)
{
    size_t columns = product->columns, stride = product->stride;
    const uint8_t *codes = product->codes + feature * columns / 2;
    const UnalignedFloat *absmax = product->absmax + feature * (columns / product->size);
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256 sums[ROWS];
#pragma GCC unroll 4
    for (int row = 0; row < ROWS; row++)
        sums[row] = _mm256_setzero_ps();
    for (size_t column = 0, block = 0; column < columns; column += CHUNK) {
        __m256i bytes;
        float second; /* the scale of the other 32 codes */
        if (columns - column < CHUNK) {
            bytes = _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)(codes + column / 2)));
            second = 0;
        } else {
            _mm_prefetch((const char *)codes + column / 2 + AHEAD, _MM_HINT_T0);
            bytes = _mm256_loadu_si256((const __m256i *)(codes + column / 2));
            second = absmax[block + (product->size < CHUNK)];
        }
        __m256 scales = _mm256_set_m128(_mm_set1_ps(second), _mm_set1_ps(absmax[block]));
        if (product->size < CHUNK)
            block += 2;
        else
            block += (column + CHUNK) % product->size == 0;
        const float *input = product->input + top * stride + column;
        __m256 values[4], added[ROWS];
        values_at(tables, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble), values);
#pragma GCC unroll 4
        for (int row = 0; row < rows; row++)
            added[row] = _mm256_add_ps(pair(input + row * stride, values), pair(input + row * stride + 16, values + 2));
        values_at(tables, _mm256_and_si256(bytes, nibble), values);
#pragma GCC unroll 4
        for (int row = 0; row < rows; row++) {
            const float *later = input + row * stride + 32;
            __m256 other = _mm256_add_ps(pair(later, values), pair(later + 16, values + 2));
            sums[row] = _mm256_fmadd_ps(_mm256_add_ps(added[row], other), scales, sums[row]);
        }
    }
#pragma GCC unroll 4
    for (int row = 0; row < rows; row++)
        product->out[(top + row) * product->out_features + feature] = sum_of_eight(sums[row]);
}

VECTORS static void multiply_four_bit_features(const void *task, size_t first, size_t last)
{
    const FourBitProduct *product = task;
    const Tables tables = tables_of(product->book);
    for (size_t top = 0; top < product->rows; top += ROWS)
        for (size_t feature = first; feature < last; feature++)
            switch (product->rows - top) {
            case 1: multiply_row(product, &tables, top, 1, feature); break;
            case 2: multiply_row(product, &tables, top, 2, feature); break;
            case 3: multiply_row(product, &tables, top, 3, feature); break;
            default: multiply_row(product, &tables, top, ROWS, feature);
            }
}

FUNCTION(four_bit_product)
{
    PyObject *input_array, *code_array, *book_array, *scale_array, *out_array, *parallel, *result = NULL;
    Py_ssize_t rows, columns, out_features, size, threads;
    Buffers buffers = {.count = 0};
    Team team;
    FourBitProduct product;
    const void *inputs;
    if (!PyArg_ParseTuple(args, "nnnOOOOnOnO", &rows, &columns, &out_features, &input_array, &code_array, &book_array,
                          &scale_array, &size, &out_array, &threads, &parallel) ||
        !block_size_fits(size) || !team_of(threads, parallel, &team))
        return NULL;
    if (columns % size)
        return PyErr_Format(PyExc_ValueError, "%zd columns, not whole blocks of %zd", columns, size);
    if (size > CHUNK && size % CHUNK)
        return PyErr_Format(PyExc_ValueError, "blocks of %zd elements, neither 32 nor a multiple of %d", size, CHUNK);
    Py_ssize_t each = chunks(columns, CHUNK);
    product.rows = rows, product.columns = columns, product.stride = (size_t)each * CHUNK;
    product.out_features = out_features, product.size = size;
    if ((inputs = readable(&buffers, input_array, rows, columns, 4)) &&
        (product.codes = readable(&buffers, code_array, out_features, columns / 2, 1)) &&
        (product.book = readable(&buffers, book_array, 16, 1, 4)) &&
        (product.absmax = readable(&buffers, scale_array, out_features, columns / size, 4)) &&
        (product.out = writable(&buffers, out_array, rows, out_features, 4))) {
        int empty = !rows || !out_features; /* nothing bounds the other of them */
        float *arranged = empty ? NULL : scratch(rows, each, CHUNK * sizeof(float));
        product.input = arranged;
        if (arranged) {
            Py_BEGIN_ALLOW_THREADS
            arrange(inputs, rows, columns, arranged);
            in_shares(multiply_four_bit_features, &product, out_features, 32, &team);
            Py_END_ALLOW_THREADS
        }
        result = arranged || empty ? Py_NewRef(Py_None) : NULL;
        free(arranged);
    }
    release(&buffers);
    return result;
}

#endif
