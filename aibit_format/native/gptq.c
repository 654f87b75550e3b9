/* Computes what convert/gptq.py defines: the factor of an inverse Hessian, and the rounding of columns one after another.
 *
 * Everything is built on one product, target[i] -= sum of factor[k][i] * source[k], subtracted term by term in the order
 * of k, so that the results are those of numpy, whatever the tiles. Float operations must not be contracted: compile with
 * -ffp-contract=off.
 */
#include "kernels.h"
#if HAVE_VECTORS
#include "ranks.h"
#include "sizes.h"

enum { BLOCK = 64, TILE = 4, MOST_COLUMNS = 1 << 20 };

typedef float Floats __attribute__((vector_size(32), aligned(1), may_alias));
typedef double Doubles __attribute__((vector_size(32), aligned(1), may_alias));
typedef float WholeFloats __attribute__((vector_size(32)));
typedef double WholeDoubles __attribute__((vector_size(32)));
typedef double UnalignedDouble __attribute__((aligned(1), may_alias));
typedef int32_t UnalignedI32 __attribute__((aligned(1), may_alias));

/* Defines the product for rows ``from`` to ``to`` of the target and ``count`` terms. Rows are ``stride`` numbers apart, of
 * which those up to ``width`` are computed, two vectors at a time. Factors are ``across`` apart from term to term. */
#define SUBTRACT(name, Number, Vectors, Whole)                                                                          \
    INLINE void name##_tile(const int rows, Number *target, const Number *source, const Number *factor, size_t count,    \
                            size_t stride, size_t across, size_t start, size_t width)                                    \
    {                                                                                                                    \
        const size_t lanes = 32 / sizeof(Number);                                                                        \
        for (size_t j = start; j < width; j += 2 * lanes) {                                                              \
            Whole sums[TILE][2];                                                                                         \
            for (int i = 0; i < rows; i++)                                                                               \
                for (int half = 0; half < 2; half++)                                                                     \
                    sums[i][half] = *(const Vectors *)(target + i * stride + j + half * lanes);                          \
            for (size_t k = 0; k < count; k++) {                                                                         \
                Whole first = *(const Vectors *)(source + k * stride + j);                                               \
                Whole second = *(const Vectors *)(source + k * stride + j + lanes);                                      \
                for (int i = 0; i < rows; i++) {                                                                         \
                    sums[i][0] -= factor[k * across + i] * first;                                                        \
                    sums[i][1] -= factor[k * across + i] * second;                                                       \
                }                                                                                                        \
            }                                                                                                            \
            for (int i = 0; i < rows; i++)                                                                               \
                for (int half = 0; half < 2; half++)                                                                     \
                    *(Vectors *)(target + i * stride + j + half * lanes) = sums[i][half];                                \
        }                                                                                                                \
    }

SUBTRACT(floats, UnalignedFloat, Floats, WholeFloats)
SUBTRACT(doubles, UnalignedDouble, Doubles, WholeDoubles)

enum { STEP_OF_FLOATS = 16, STEP_OF_DOUBLES = 8 };

/* target[i] -= sum of factor[k][i] * source[k] for the terms from ``first`` to ``stop`` and the rows of the target. */
VECTORS static void propagate(UnalignedFloat *target, const UnalignedFloat *source, const UnalignedFloat *factor,
                              size_t columns, size_t rows, size_t first, size_t stop, size_t from, size_t to)
{
    const UnalignedFloat *terms = source + first * rows, *factors = factor + first * columns;
    size_t i = from;
    for (; i + TILE <= to; i += TILE)
        floats_tile(TILE, target + i * rows, terms, factors + i, stop - first, rows, columns, 0, rows);
    for (; i < to; i++)
        floats_tile(1, target + i * rows, terms, factors + i, stop - first, rows, columns, 0, rows);
}

static double square_root(double value)
{
    return _mm_cvtsd_f64(_mm_sqrt_sd(_mm_setzero_pd(), _mm_set_sd(value)));
}

/* Subtracts the terms of a block from all rows that follow it. Of the Cholesky factor, row i begins in column i; rows of
 * the inverse end where the block does. */
VECTORS static void follow(UnalignedDouble *target, const UnalignedDouble *source, const UnalignedDouble *factor,
                           size_t count, size_t stride, size_t first, size_t stop, int upper)
{
    size_t end = upper ? stride : (stop + STEP_OF_DOUBLES - 1) / STEP_OF_DOUBLES * STEP_OF_DOUBLES;
    size_t i = stop;
    for (; i + TILE <= count; i += TILE)
        doubles_tile(TILE, target + i * stride, source + first * stride, factor + first * stride + i, stop - first,
                     stride, stride, upper ? i / STEP_OF_DOUBLES * STEP_OF_DOUBLES : 0, end);
    for (; i < count; i++)
        doubles_tile(1, target + i * stride, source + first * stride, factor + first * stride + i, stop - first, stride,
                     stride, upper ? i / STEP_OF_DOUBLES * STEP_OF_DOUBLES : 0, end);
}

/* Turns a symmetric matrix into its upper Cholesky factor, and the identity into the inverse of that, transposed. The
 * lower triangle of the first is left as it happens to be. Returns 0 if the matrix is not positive definite. */
VECTORS static int factorize(UnalignedDouble *matrix, UnalignedDouble *inverse, size_t count, size_t stride)
{
    for (size_t first = 0; first < count; first += BLOCK) {
        size_t stop = first + BLOCK < count ? first + BLOCK : count;
        for (size_t k = first; k < stop; k++) {
            UnalignedDouble *row = matrix + k * stride;
            if (!(row[k] > 0) || row[k] > 1.7976931348623157e308)
                return 0;
            double root = square_root(row[k]);
            for (size_t j = k; j < stride; j++)
                row[j] /= root;
            for (size_t i = k + 1; i < stop; i++)
                doubles_tile(1, matrix + i * stride, row, row + i, 1, stride, stride,
                             i / STEP_OF_DOUBLES * STEP_OF_DOUBLES, stride);
        }
        follow(matrix, matrix, matrix, count, stride, first, stop, 1);
    }
    for (size_t first = 0; first < count; first += BLOCK) {
        size_t stop = first + BLOCK < count ? first + BLOCK : count;
        for (size_t k = first; k < stop; k++) {
            UnalignedDouble *row = inverse + k * stride, pivot = matrix[k * stride + k];
            size_t end = (k + STEP_OF_DOUBLES) / STEP_OF_DOUBLES * STEP_OF_DOUBLES;
            for (size_t j = 0; j <= k; j++)
                row[j] /= pivot;
            for (size_t i = k + 1; i < stop; i++)
                doubles_tile(1, inverse + i * stride, row, matrix + k * stride + i, 1, stride, stride, 0, end);
        }
        follow(inverse, inverse, matrix, count, stride, first, stop, 0);
    }
    return 1;
}

FUNCTION(gptq_factor)
{
    PyObject *matrix_array, *inverse_array, *result = NULL;
    Py_ssize_t count, stride;
    Buffers buffers = {.count = 0};
    UnalignedDouble *matrix, *inverse;
    int definite;
    if (!PyArg_ParseTuple(args, "OOnn", &matrix_array, &inverse_array, &count, &stride))
        return NULL;
    if (count < 0 || stride < count || stride > MOST_COLUMNS || stride % STEP_OF_DOUBLES)
        return PyErr_Format(PyExc_ValueError, "a matrix of %zd rows of %zd numbers", count, stride);
    if ((matrix = writable(&buffers, matrix_array, count, stride, 8)) &&
        (inverse = writable(&buffers, inverse_array, count, stride, 8))) {
        Py_BEGIN_ALLOW_THREADS
        definite = factorize(matrix, inverse, count, stride);
        Py_END_ALLOW_THREADS
        result = PyBool_FromLong(definite);
    }
    release(&buffers);
    return result;
}

/* The arrays of a call of gptq_round. */
typedef struct {
    size_t columns, rows, groups;
    UnalignedFloat *values, *errors;   /* [columns, rows] */
    uint8_t *codes;                    /* [columns, rows] */
    const UnalignedFloat *factor;      /* [columns, columns] */
    const UnalignedI32 *group;         /* [columns] */
    const UnalignedFloat *parameters;  /* [3, groups, rows]: scales, zeros, offsets */
    float high;                        /* the greatest code */
} Columns;

INLINE void round_column(int book, const Bounds *bounds, const UnalignedFloat *levels, const Columns *all, size_t column)
{
    size_t plane = all->groups * all->rows, start = (size_t)all->group[column] * all->rows;
    const UnalignedFloat *scales = all->parameters + start, *zeros = scales + plane, *offsets = zeros + plane;
    __m256 pivot = _mm256_set1_ps(all->factor[column * all->columns + column]), none = _mm256_setzero_ps();
    for (size_t row = 0; row < all->rows; row += 8) {
        size_t i = column * all->rows + row;
        __m256 value = _mm256_loadu_ps(all->values + i), scale = _mm256_loadu_ps(scales + row);
        __m256 zero = _mm256_loadu_ps(zeros + row), offset = _mm256_loadu_ps(offsets + row);
        __m256 some = _mm256_cmp_ps(scale, none, _CMP_NEQ_UQ);
        __m256 divisor = _mm256_blendv_ps(_mm256_set1_ps(1), scale, some);
        __m256 scaled = _mm256_and_ps(_mm256_div_ps(_mm256_sub_ps(value, offset), divisor), some), code, level;
        if (book) {
            __m256i index = rank(scaled, bounds);
            code = _mm256_cvtepi32_ps(index);
            level = _mm256_blendv_ps(_mm256_permutevar8x32_ps(_mm256_loadu_ps(levels), index),
                                     _mm256_permutevar8x32_ps(_mm256_loadu_ps(levels + 8), index),
                                     _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
        } else {
            code = _mm256_round_ps(_mm256_add_ps(scaled, zero), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
            code = _mm256_min_ps(_mm256_max_ps(code, none), _mm256_set1_ps(all->high)); /* NaN becomes 0 */
            level = _mm256_sub_ps(code, zero);
        }
        __m256 rounded = _mm256_add_ps(_mm256_mul_ps(level, scale), offset);
        _mm256_storeu_ps(all->errors + i, _mm256_div_ps(_mm256_sub_ps(value, rounded), pivot));
        int32_t wide[8];
        _mm256_storeu_si256((__m256i *)wide, _mm256_cvtps_epi32(code));
        for (int lane = 0; lane < 8; lane++)
            all->codes[i + lane] = (uint8_t)wide[lane];
    }
}

VECTORS static void round_columns(const Columns *all, const UnalignedFloat *book, size_t first, size_t stop)
{
    Bounds bounds;
    if (book)
        bounds = bounds_of(book);
    for (size_t column = first; column < stop; column++) {
        if (book)
            round_column(1, &bounds, book + 15, all, column);
        else
            round_column(0, NULL, NULL, all, column);
        propagate(all->values, all->errors, all->factor, all->columns, all->rows, column, column + 1, column + 1, stop);
    }
}

/* Returns 1 if columns ``first`` to ``stop``, of rows in whole steps, are some of ``columns``; else 0 with an error. */
static int sizes_fit(Py_ssize_t columns, Py_ssize_t rows, Py_ssize_t first, Py_ssize_t stop)
{
    if (columns < 0 || columns > MOST_COLUMNS || rows < 0 || rows % STEP_OF_FLOATS || first < 0 || stop < first ||
        stop > columns)
        return PyErr_Format(PyExc_ValueError, "columns %zd to %zd of %zd, and %zd rows", first, stop, columns, rows), 0;
    return 1;
}

FUNCTION(gptq_round)
{
    PyObject *value_array, *error_array, *code_array, *factor_array, *group_array, *parameter_array, *book_array;
    PyObject *result = NULL;
    Py_ssize_t columns, rows, groups, first, stop, many;
    int high, fits = 1;
    Buffers buffers = {.count = 0};
    const UnalignedFloat *book = NULL;
    if (!PyArg_ParseTuple(args, "nnnOOOOOOOinn", &columns, &rows, &groups, &value_array, &error_array, &code_array,
                          &factor_array, &group_array, &parameter_array, &book_array, &high, &first, &stop) ||
        !sizes_fit(columns, rows, first, stop))
        return NULL;
    if (high < 0 || high > 255 || groups < 0 || groups > MOST_COLUMNS)
        return PyErr_Format(PyExc_ValueError, "codes up to %d, and %zd groups", high, groups);
    many = 3 * groups;
    Columns all = {.columns = columns, .rows = rows, .groups = groups, .high = (float)high};
    if ((all.values = writable(&buffers, value_array, columns, rows, 4)) &&
        (all.errors = writable(&buffers, error_array, columns, rows, 4)) &&
        (all.codes = writable(&buffers, code_array, columns, rows, 1)) &&
        (all.factor = readable(&buffers, factor_array, columns, columns, 4)) &&
        (all.group = readable(&buffers, group_array, columns, 1, 4)) &&
        (all.parameters = readable(&buffers, parameter_array, many, rows, 4)) &&
        (book_array == Py_None || (book = readable(&buffers, book_array, 31, 1, 4)))) {
        for (Py_ssize_t i = first; i < stop; i++)
            fits = fits && all.group[i] >= 0 && all.group[i] < groups;
        if (fits) {
            Py_BEGIN_ALLOW_THREADS
            round_columns(&all, book, first, stop);
            Py_END_ALLOW_THREADS
            result = Py_NewRef(Py_None);
        } else
            PyErr_Format(PyExc_ValueError, "a column of a group that is none of %zd", groups);
    }
    release(&buffers);
    return result;
}

FUNCTION(gptq_propagate)
{
    PyObject *value_array, *error_array, *factor_array, *result = NULL;
    Py_ssize_t columns, rows, first, stop, from, to;
    Buffers buffers = {.count = 0};
    UnalignedFloat *values;
    const UnalignedFloat *errors, *factor;
    if (!PyArg_ParseTuple(args, "nnOOOnnnn", &columns, &rows, &value_array, &error_array, &factor_array, &first, &stop,
                          &from, &to) ||
        !sizes_fit(columns, rows, first, stop) || !sizes_fit(columns, rows, from, to))
        return NULL;
    if (from < stop)
        return PyErr_Format(PyExc_ValueError, "columns from %zd on, which are not after %zd", from, stop);
    if ((values = writable(&buffers, value_array, columns, rows, 4)) &&
        (errors = readable(&buffers, error_array, columns, rows, 4)) &&
        (factor = readable(&buffers, factor_array, columns, columns, 4))) {
        Py_BEGIN_ALLOW_THREADS
        propagate(values, errors, factor, columns, rows, first, stop, from, to);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    release(&buffers);
    return result;
}

#endif
