/* Encodes in one pass over memory, with AVX2: a row, or a block, is read for its largest magnitude, and again, from the
 * core's cache, for its codes.
 *
 * The float operations are those of schemes/int8.py and schemes/fourbit.py, in the same order, so the results are equal
 * bit for bit. They must not be contracted: compile with -ffp-contract=off.
 */
#include "kernels.h"
#if HAVE_VECTORS
#include "ranks.h"
#include "sizes.h"

#define STEP 32 /* elements that become one vector of bytes */

/* Narrows four vectors of 32-bit integers, each within the range of a byte, to 32 bytes in order. */
INLINE __m256i narrowed(__m256i a, __m256i b, __m256i c, __m256i d)
{
    __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    return _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

INLINE __m256i int8_code(Source source, const void *values, size_t i, __m256 scale)
{
    return _mm256_cvtps_epi32(_mm256_mul_ps(load_half(source, values, i), scale)); /* to nearest, ties to even */
}

INLINE __m256i int8_codes(Source source, const void *values, size_t i, __m256 scale)
{
    return narrowed(int8_code(source, values, i, scale), int8_code(source, values, i + 8, scale),
                    int8_code(source, values, i + 16, scale), int8_code(source, values, i + 24, scale));
}

INLINE __m256i int8_top(Source source, const void *values, size_t i, __m256i top)
{
    for (int k = 0; k < STEP; k += 8)
        top = half_top(source, values, i + k, top);
    return top;
}

INLINE int int8_rows_of(Source source, const char *values, size_t rows, size_t columns, int8_t *codes, UnalignedFloat *absmax)
{
    size_t whole = columns / STEP * STEP, rest = columns - whole;
    for (size_t row = 0; row < rows; row++, values += columns * width(source), codes += columns) {
        char last[STEP * 4] = {0}; /* the end of a row, padded with zeros */
        memcpy(last, values + whole * width(source), rest * width(source));
        __m256i top = int8_top(source, last, 0, _mm256_setzero_si256());
        for (size_t i = 0; i < whole; i += STEP)
            top = int8_top(source, values, i, top);
        float largest = largest_magnitude(top);
        if (!(largest <= 65504))
            return 0;
        absmax[row] = largest;
        /* A row of zeros stays zero under any scale; 1e-8 is below float16's smallest number. */
        __m256 scale = _mm256_set1_ps(1.0f / (largest < 1e-8f ? 1e-8f : largest) * 127.0f);
        for (size_t i = 0; i < whole; i += STEP)
            _mm256_storeu_si256((__m256i *)(codes + i), int8_codes(source, values, i, scale));
        int8_t end[STEP];
        _mm256_storeu_si256((__m256i *)end, int8_codes(source, last, 0, scale));
        memcpy(codes + whole, end, rest);
    }
    return 1;
}

/* Encodes like schemes.int8: codes i8 [rows, columns], absmax f32 [rows]; 0 if a value is not finite in float16. */
VECTORS static int encode_int8(Source source, const void *values, size_t rows, size_t columns, int8_t *codes,
                               UnalignedFloat *absmax)
{
    if (source == F16)
        return int8_rows_of(F16, values, rows, columns, codes, absmax);
    if (source == BF16)
        return int8_rows_of(BF16, values, rows, columns, codes, absmax);
    return int8_rows_of(F32, values, rows, columns, codes, absmax);
}

/* Tells whether no value is infinite or NaN, both of which have an exponent of ones. */
VECTORS static int all_finite(Source source, const char *values, size_t count)
{
    static const uint32_t infinities[] = {[F16] = 0x7c007c00, [BF16] = 0x7f807f80, [F32] = 0x7f800000};
    __m256i infinity = _mm256_set1_epi32((int)infinities[source]), found = _mm256_setzero_si256();
    size_t bytes = count * width(source);
    for (size_t i = 0; i < bytes; i += 32) {
        __m256i bits = _mm256_setzero_si256();
        if (bytes - i >= 32)
            bits = _mm256_loadu_si256((const __m256i *)(values + i));
        else
            memcpy(&bits, values + i, bytes - i);
        bits = _mm256_and_si256(bits, infinity);
        found = _mm256_or_si256(
            found, source == F32 ? _mm256_cmpeq_epi32(bits, infinity) : _mm256_cmpeq_epi16(bits, infinity));
    }
    return _mm256_testz_si256(found, found);
}

INLINE int four_bit_of(Source source, const char *values, size_t blocks, size_t size, const UnalignedFloat *bounds,
                       const uint8_t *order, uint8_t *codes, UnalignedFloat *absmax)
{
    const Bounds levels = bounds_of(bounds);
    const __m256i in_order = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)order));
    for (size_t block = 0; block < blocks; block++, values += size * width(source), codes += size / 2) {
        __m256i top = _mm256_setzero_si256();
        for (size_t i = 0; i < size; i += 8)
            top = _mm256_max_epu32(top, magnitudes(load(source, values, i)));
        float largest = largest_magnitude(top);
        if (!(largest <= 3.402823466e38f))
            return 0;
        absmax[block] = largest;
        __m256 scale = _mm256_set1_ps(1.0f / (largest < 1e-38f ? 1e-38f : largest));
        for (size_t i = 0; i < size; i += STEP) {
            __m256i ranks[4];
            for (int k = 0; k < 4; k++)
                ranks[k] = rank(_mm256_mul_ps(load(source, values, i + 8 * k), scale), &levels);
            __m256i bytes = _mm256_shuffle_epi8(in_order, narrowed(ranks[0], ranks[1], ranks[2], ranks[3]));
            /* Packs two neighbours into one byte: 16 times the first, plus the second. */
            __m256i pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi16(0x0110));
            pairs = _mm256_permute4x64_epi64(_mm256_packus_epi16(pairs, pairs), 0x08);
            _mm_storeu_si128((__m128i *)(codes + i / 2), _mm256_castsi256_si128(pairs));
        }
    }
    return 1;
}

/* Encodes whole blocks like schemes.fourbit: codes u8 [blocks * size / 2], absmax f32 [blocks]; 0 if not all finite. */
VECTORS static int encode_four_bit(Source source, const void *values, size_t blocks, size_t size,
                                   const UnalignedFloat *bounds, const uint8_t *order, uint8_t *codes,
                                   UnalignedFloat *absmax)
{
    if (source == F16)
        return four_bit_of(F16, values, blocks, size, bounds, order, codes, absmax);
    if (source == BF16)
        return four_bit_of(BF16, values, blocks, size, bounds, order, codes, absmax);
    return four_bit_of(F32, values, blocks, size, bounds, order, codes, absmax);
}

FUNCTION(int8_rows)
{
    const char *dtype;
    PyObject *array, *code_array, *scale_array, *result = NULL;
    Py_ssize_t rows, columns;
    Buffers buffers = {.count = 0};
    Source source;
    const void *values;
    void *codes, *absmax;
    int finite;
    if (!PyArg_ParseTuple(args, "sOnnOO", &dtype, &array, &rows, &columns, &code_array, &scale_array) ||
        !source_type(dtype, &source))
        return NULL;
    if ((values = readable(&buffers, array, rows, columns, width(source))) &&
        (codes = writable(&buffers, code_array, rows, columns, 1)) &&
        (absmax = writable(&buffers, scale_array, rows, 1, 4))) {
        Py_BEGIN_ALLOW_THREADS
        finite = encode_int8(source, values, rows, columns, codes, absmax);
        Py_END_ALLOW_THREADS
        result = PyBool_FromLong(finite);
    }
    release(&buffers);
    return result;
}

FUNCTION(are_finite)
{
    const char *dtype;
    PyObject *array, *result = NULL;
    Py_ssize_t count;
    Buffers buffers = {.count = 0};
    Source source;
    const void *values;
    int found;
    if (!PyArg_ParseTuple(args, "sOn", &dtype, &array, &count) || !source_type(dtype, &source))
        return NULL;
    if ((values = readable(&buffers, array, count, 1, width(source)))) {
        Py_BEGIN_ALLOW_THREADS
        found = all_finite(source, values, count);
        Py_END_ALLOW_THREADS
        result = PyBool_FromLong(found);
    }
    release(&buffers);
    return result;
}

FUNCTION(four_bit_blocks)
{
    const char *dtype;
    PyObject *array, *bound_array, *order_array, *code_array, *scale_array, *result = NULL;
    Py_ssize_t blocks, size;
    Buffers buffers = {.count = 0};
    Source source;
    const void *values, *bounds, *order;
    void *codes, *absmax;
    int finite;
    if (!PyArg_ParseTuple(args, "sOnnOOOO", &dtype, &array, &blocks, &size, &bound_array, &order_array, &code_array,
                          &scale_array) ||
        !source_type(dtype, &source) || !block_size_fits(size))
        return NULL;
    if ((values = readable(&buffers, array, blocks, size, width(source))) &&
        (bounds = readable(&buffers, bound_array, 15, 1, 4)) && (order = readable(&buffers, order_array, 16, 1, 1)) &&
        (codes = writable(&buffers, code_array, blocks, size / 2, 1)) &&
        (absmax = writable(&buffers, scale_array, blocks, 1, 4))) {
        Py_BEGIN_ALLOW_THREADS
        finite = encode_four_bit(source, values, blocks, size, bounds, order, codes, absmax);
        Py_END_ALLOW_THREADS
        result = PyBool_FromLong(finite);
    }
    release(&buffers);
    return result;
}

#endif
