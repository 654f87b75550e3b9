/* Measures how far decoded values are from those of their source, with AVX2: convert/error.py in one pass.
 *
 * Differences are float32; their squares are added in float64, where any order gives the same six digits.
 */
#include "kernels.h"
#if HAVE_VECTORS
#include "sizes.h"

typedef struct {
    double noise, signal, largest;
} ErrorSums;

/* Sums in eight lanes each. */
typedef struct {
    __m256d noise[2], signal[2];
    __m256 largest;
} Lanes;

INLINE void add_squares(__m256d sums[2], __m256 values)
{
    __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(values)), high = _mm256_cvtps_pd(_mm256_extractf128_ps(values, 1));
    sums[0] = _mm256_add_pd(sums[0], _mm256_mul_pd(low, low));
    sums[1] = _mm256_add_pd(sums[1], _mm256_mul_pd(high, high));
}

INLINE void add_eight(Lanes *lanes, __m256 x, __m256 decoded)
{
    __m256 difference = _mm256_sub_ps(decoded, x);
    lanes->largest = _mm256_max_ps(lanes->largest, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), difference));
    add_squares(lanes->noise, difference);
    add_squares(lanes->signal, x);
}

INLINE double sum_of(const __m256d lanes[2])
{
    double each[4];
    _mm256_storeu_pd(each, _mm256_add_pd(lanes[0], lanes[1]));
    return each[0] + each[1] + (each[2] + each[3]);
}

INLINE ErrorSums sums_of(const Lanes *lanes)
{
    float each[8], largest = 0;
    _mm256_storeu_ps(each, lanes->largest);
    for (int i = 0; i < 8; i++)
        largest = each[i] > largest ? each[i] : largest;
    return (ErrorSums){sum_of(lanes->noise), sum_of(lanes->signal), largest};
}

/* Compares decoded f32 [columns] with one row of the source. */
INLINE void add_row(Lanes *lanes, Source source, const char *values, size_t columns,
                    const UnalignedFloat *decoded)
{
    char end[8 * 4] = {0}; /* the end of a row, padded with zeros */
    float end_decoded[8] = {0};
    size_t whole = columns / 8 * 8, rest = columns - whole;
    for (size_t i = 0; i < whole; i += 8)
        add_eight(lanes, load(source, values, i), _mm256_loadu_ps(decoded + i));
    memcpy(end, values + whole * width(source), rest * width(source));
    memcpy(end_decoded, decoded + whole, rest * 4);
    add_eight(lanes, load(source, end, 0), _mm256_loadu_ps(end_decoded));
}

/* Compares codes i8 [columns], which stand for code * scale, with one row of the source. */
INLINE void add_int8_row(Lanes *lanes, Source source, const char *values, size_t columns, const int8_t *codes,
                         float scale)
{
    char end[8 * 4] = {0};
    int8_t end_codes[8] = {0};
    size_t whole = columns / 8 * 8, rest = columns - whole;
    for (size_t i = 0; i < whole; i += 8)
        add_eight(lanes, load(source, values, i), _mm256_mul_ps(load_codes(codes + i), _mm256_set1_ps(scale)));
    memcpy(end, values + whole * width(source), rest * width(source));
    memcpy(end_codes, codes + whole, rest);
    add_eight(lanes, load(source, end, 0), _mm256_mul_ps(load_codes(end_codes), _mm256_set1_ps(scale)));
}

/* Compares decoded f32 [count, columns] with every ``step``-th row of the source. */
VECTORS static ErrorSums decoded_errors(Source source, const char *values, size_t count, size_t columns, size_t step,
                                        const UnalignedFloat *decoded)
{
    Lanes lanes = {0};
    for (size_t row = 0; row < count; row++, decoded += columns) {
        const char *from = values + row * step * columns * width(source);
        switch (source) {
        case F16: add_row(&lanes, F16, from, columns, decoded); break;
        case BF16: add_row(&lanes, BF16, from, columns, decoded); break;
        case F32: add_row(&lanes, F32, from, columns, decoded); break;
        }
    }
    return sums_of(&lanes);
}

/* Compares every ``step``-th row of codes i8 [rows, columns], one scale per row, with the same rows of the source. */
VECTORS static ErrorSums int8_errors(Source source, const char *values, size_t rows, size_t columns, size_t step,
                                     const int8_t *codes, const UnalignedFloat *scales)
{
    Lanes lanes = {0};
    for (size_t row = 0; row < rows; row += step) {
        const char *from = values + row * columns * width(source);
        const int8_t *to = codes + row * columns;
        switch (source) {
        case F16: add_int8_row(&lanes, F16, from, columns, to, scales[row]); break;
        case BF16: add_int8_row(&lanes, BF16, from, columns, to, scales[row]); break;
        case F32: add_int8_row(&lanes, F32, from, columns, to, scales[row]); break;
        }
    }
    return sums_of(&lanes);
}

FUNCTION(error_sums)
{
    const char *dtype;
    PyObject *array, *decoded_array, *result = NULL;
    Py_ssize_t rows, columns, first, step, count;
    Buffers buffers = {.count = 0};
    Source source;
    const char *values;
    const void *decoded;
    ErrorSums sums;
    if (!PyArg_ParseTuple(args, "sOnnnnnO", &dtype, &array, &rows, &columns, &first, &step, &count, &decoded_array) ||
        !source_type(dtype, &source))
        return NULL;
    if (first < 0 || step < 1 || count < 1 || first >= rows || count - 1 > (rows - 1 - first) / step)
        return PyErr_Format(PyExc_ValueError, "%zd rows from %zd on, every %zd, of %zd", count, first, step, rows);
    if ((values = readable(&buffers, array, rows, columns, width(source))) &&
        (decoded = readable(&buffers, decoded_array, count, columns, 4))) {
        size_t compared = columns ? count : 0; /* nothing bounds the number of empty rows */
        Py_BEGIN_ALLOW_THREADS
        sums = decoded_errors(source, values + first * columns * width(source), compared, columns, step, decoded);
        Py_END_ALLOW_THREADS
        result = Py_BuildValue("ddd", sums.noise, sums.signal, sums.largest);
    }
    release(&buffers);
    return result;
}

FUNCTION(int8_error_sums)
{
    const char *dtype;
    PyObject *array, *code_array, *scale_array, *result = NULL;
    Py_ssize_t rows, columns, step;
    Buffers buffers = {.count = 0};
    Source source;
    const void *values, *codes, *scales;
    ErrorSums sums;
    if (!PyArg_ParseTuple(args, "sOnnnOO", &dtype, &array, &rows, &columns, &step, &code_array, &scale_array) ||
        !source_type(dtype, &source))
        return NULL;
    if (step < 1)
        return PyErr_Format(PyExc_ValueError, "every %zd rows", step);
    if ((values = readable(&buffers, array, rows, columns, width(source))) &&
        (codes = readable(&buffers, code_array, rows, columns, 1)) &&
        (scales = readable(&buffers, scale_array, rows, 1, 4))) {
        Py_BEGIN_ALLOW_THREADS
        sums = int8_errors(source, values, rows, columns, step, codes, scales);
        Py_END_ALLOW_THREADS
        result = Py_BuildValue("ddd", sums.noise, sums.signal, sums.largest);
    }
    release(&buffers);
    return result;
}

#endif
