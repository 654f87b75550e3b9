/* Searches for the scales and zero points of groups of values; schemes/scale_search.py defines how, and says why.
 *
 * Every float operation is that of the numpy code, in the same order, so the results are equal bit for bit.
 */
#include "kernels.h"
#if HAVE_VECTORS
#include "search_groups.h"
#include <stdlib.h>

/* Fits one scale: from those that scale the largest magnitude to what is tried, and then from the best. */
INLINE void fit_scale_alone(int kind, const Grid *grid, const Groups *groups, const UnalignedFloat *starts,
                            size_t count, size_t repeats, __m256 *scale, __m256 *zero)
{
    __m256 top = all(0), gained = all(-1);
    for (size_t i = 0; i < groups->size; i++)
        top = where(above(magnitude(groups->values[i]), magnitude(top)), groups->values[i], top);
    __m256 to_top = inverse(top);
    if (kind != INTEGERS)
        to_top = magnitude(to_top);
    *scale = *zero = all(0);
    for (size_t start = 0; start < count + repeats; start++) {
        __m256 inverted = to_top * all(start < count ? starts[2 * start] : 0);
        if (start >= count)
            inverted = inverse(*scale);
        Sum products = {0}, squares = {0};
        for (size_t i = 0; i < groups->size; i += 2)
#pragma GCC unroll 2
            for (int k = 0; k < 2; k++) {
                __m256 value = groups->values[i + k], code = on_grid(kind, grid, value * inverted);
                __m256 weighted = groups->weights[i + k] * code;
                products.of[k] += weighted * value;
                squares.of[k] += weighted * code;
            }
        __m256 product = total(&products), found = product * inverse(total(&squares)), gain = product * found;
        __m256 better = above(gain, gained);
        gained = where(better, gain, gained);
        *scale = where(better, found, *scale);
    }
}

/* Fits a scale and a zero: from ranges that are cut off, and then from the best. */
INLINE void fit_both_alone(const Grid *grid, const Groups *groups, const UnalignedFloat *starts, size_t count,
                           size_t repeats, __m256 *scale, __m256 *zero)
{
    __m256 low = groups->values[0], high = low, gained = all(-1);
    Sum weights = {0}, values = {0};
    for (size_t i = 0; i < groups->size; i += 2)
        for (int k = 0; k < 2; k++) {
            __m256 value = groups->values[i + k];
            low = _mm256_min_ps(low, value);
            high = _mm256_max_ps(high, value);
            weights.of[k] += groups->weights[i + k];
            values.of[k] += groups->weights[i + k] * value;
        }
    __m256 sums = total(&weights), weighted_sums = total(&values), span = inverse(high - low);
    *scale = *zero = all(0);
    for (size_t start = 0; start < count + repeats; start++) {
        __m256 inverted, shift;
        if (start < count) {
            inverted = span * all(starts[2 * start]);
            shift = all(0) - (low * inverted + all(starts[2 * start + 1]));
        } else {
            inverted = inverse(*scale);
            shift = *zero;
        }
        Sum codes = {0}, squares = {0}, products = {0};
        for (size_t i = 0; i < groups->size; i += 2)
#pragma GCC unroll 2
            for (int k = 0; k < 2; k++) {
                __m256 value = groups->values[i + k], code = on_grid(INTEGERS, grid, value * inverted + shift);
                __m256 weighted = groups->weights[i + k] * code;
                codes.of[k] += weighted;
                squares.of[k] += weighted * code;
                products.of[k] += weighted * value;
            }
        __m256 code = total(&codes), square = total(&squares), product = total(&products);
        __m256 first = sums * square, determinant = first - code * code;
        __m256 solved = above(determinant, all(0x1p-20f) * first);
        __m256 divided = inverse(_mm256_and_ps(solved, determinant));
        __m256 slope = (sums * product - weighted_sums * code) * divided;
        __m256 constant = (square * weighted_sums - code * product) * divided;
        __m256 gain = slope * product + constant * weighted_sums;
        __m256 better = _mm256_and_ps(above(gain, gained), above(slope, all(0)));
        gained = where(better, gain, gained);
        *scale = where(better, slope, *scale);
        *zero = where(better, all(0) - constant * inverse(slope), *zero);
    }
}

/* The arrays of a call. */
typedef struct {
    Source source;
    const char *values; /* [count, size] */
    size_t count, size;
    const UnalignedFloat *weights; /* [periods, size] */
    size_t periods;
    const UnalignedFloat *starts; /* [tried, 2] */
    size_t tried, repeats;
    int has_zero;
    const UnalignedFloat *scales, *zeros; /* [tried, count] of candidates */
    UnalignedFloat *found, *found_zeros;  /* [count] */
    uint8_t *index;                       /* [count] */
} Task;

/* Loads groups into lanes, and normalizes them: multiplied by a power of two, the largest magnitude is from 1 to 2. */
INLINE void load_groups(const Task *task, size_t first, size_t count, Groups *groups)
{
    float *lanes = (float *)groups->values, *weights = (float *)groups->weights;
    float up[LANES_OF_BLOCKS] = {0}, down[LANES_OF_BLOCKS] = {0};
    size_t size = task->size, whole = size / 8 * 8;
    if (count < LANES_OF_BLOCKS)
        memset(groups->values, 0, size * sizeof(__m256));
    for (size_t lane = 0; lane < count; lane++) {
        const char *values = task->values + (first + lane) * size * width(task->source);
        __m256i top = _mm256_setzero_si256();
        for (size_t i = 0; i < whole + 8; i += 8) {
            char rest[32] = {0};
            size_t some = i < whole ? 8 : size - whole;
            const char *from = values + i * width(task->source);
            if (!some)
                break;
            if (some < 8)
                from = memcpy(rest, from, some * width(task->source));
            float row[8];
            __m256 eight = load(task->source, from, 0);
            top = _mm256_max_epu32(top, magnitudes(eight));
            _mm256_storeu_ps(row, eight);
            for (size_t k = 0; k < some; k++)
                lanes[(i + k) * LANES_OF_BLOCKS + lane] = row[k];
        }
        float largest = largest_magnitude(top);
        uint32_t exponent;
        memcpy(&exponent, &largest, 4);
        exponent >>= 23;
        exponent = exponent < 27 ? 27 : exponent > 253 ? 253 : exponent;
        uint32_t bits[2] = {exponent << 23, (254 - exponent) << 23};
        memcpy(up + lane, bits, 4);
        memcpy(down + lane, bits + 1, 4);
    }
    groups->up = _mm256_loadu_ps(up);
    groups->down = _mm256_loadu_ps(down);
    for (size_t i = 0; i < size; i++)
        groups->values[i] *= groups->down;
    if (first == 0 || task->periods > 1)
        for (size_t lane = 0; lane < LANES_OF_BLOCKS; lane++) {
            const UnalignedFloat *from = task->weights + (first + lane) % task->periods * size;
            for (size_t i = 0; i < size; i++)
                weights[i * LANES_OF_BLOCKS + lane] = from[i];
        }
}

INLINE void put_some(__m256 value, UnalignedFloat *out, size_t count)
{
    float each[8];
    _mm256_storeu_ps(each, value);
    memcpy(out, each, count * 4);
}

INLINE void fit_all(int kind, const Grid *grid, const Task *task, Groups groups)
{
    for (size_t first = 0; first < task->count; first += LANES_OF_BLOCKS) {
        size_t count = task->count - first < LANES_OF_BLOCKS ? task->count - first : LANES_OF_BLOCKS;
        __m256 scale, zero;
        load_groups(task, first, count, &groups);
        if (task->has_zero)
            fit_both_alone(grid, &groups, task->starts, task->tried, task->repeats, &scale, &zero);
        else
            fit_scale_alone(kind, grid, &groups, task->starts, task->tried, task->repeats, &scale, &zero);
        put_some(scale * groups.up, task->found + first, count);
        put_some(zero, task->found_zeros + first, count);
    }
}

INLINE void choose_all(int kind, const Grid *grid, const Task *task, Groups groups)
{
    for (size_t first = 0; first < task->count; first += LANES_OF_BLOCKS) {
        size_t count = task->count - first < LANES_OF_BLOCKS ? task->count - first : LANES_OF_BLOCKS;
        __m256 best = all(0), fitted = all(0), index = all(0);
        load_groups(task, first, count, &groups);
        for (size_t candidate = 0; candidate < task->tried; candidate++) {
            __m256 scale = load_some(task->scales + candidate * task->count + first, count) * groups.down;
            __m256 zero = load_some(task->zeros + candidate * task->count + first, count), inverted = inverse(scale);
            Sum errors = {0}, products = {0}, squares = {0};
            for (size_t i = 0; i < groups.size; i += 2)
#pragma GCC unroll 2
                for (int k = 0; k < 2; k++) {
                    __m256 value = groups.values[i + k];
                    __m256 code = on_grid(kind, grid, value * inverted + zero) - zero;
                    __m256 weighted = groups.weights[i + k] * code, rest = value - scale * code;
                    errors.of[k] += groups.weights[i + k] * rest * rest;
                    products.of[k] += weighted * value;
                    squares.of[k] += weighted * code;
                }
            __m256 error = total(&errors), found = total(&products) * inverse(total(&squares));
            __m256 better = candidate ? above(best, error) : _mm256_castsi256_ps(_mm256_set1_epi32(-1));
            best = where(better, error, best);
            fitted = where(better, found, fitted);
            index = where(better, all((float)candidate), index);
        }
        put_some(fitted * groups.up, task->found + first, count);
        float each[8];
        _mm256_storeu_ps(each, index);
        for (size_t lane = 0; lane < count; lane++)
            task->index[first + lane] = (uint8_t)each[lane];
    }
}

/* One function for each kind, so that the innermost loops branch on nothing. */
#define OF_KIND(name, kind)                                                                                            \
    VECTORS static void name##_##kind(const Grid *grid, const Task *task, Groups groups)                               \
    {                                                                                                                  \
        name##_all(kind, grid, task, groups);                                                                          \
    }
OF_KIND(fit, INTEGERS)
OF_KIND(fit, FLOATS)
OF_KIND(fit, BOOK)
OF_KIND(choose, INTEGERS)
OF_KIND(choose, FLOATS)
OF_KIND(choose, BOOK)

typedef void (*OfKind)(const Grid *grid, const Task *task, Groups groups);
static const OfKind fits[] = {fit_INTEGERS, fit_FLOATS, fit_BOOK};
static const OfKind choices[] = {choose_INTEGERS, choose_FLOATS, choose_BOOK};

VECTORS static void put_book(Grid *grid, const UnalignedFloat *book)
{
    grid->bounds = bounds_of(book);
    grid->book[0] = _mm256_loadu_ps(book + 15);
    grid->book[1] = _mm256_loadu_ps(book + 23);
}

/* Runs a function for a kind of grid with memory for eight groups; 0, with a Python error, if there is none. */
static int with_groups(OfKind function, const Grid *grid, const Task *task)
{
    size_t bytes = task->size * sizeof(__m256);
    char *aligned = aligned_alloc(sizeof(__m256), 2 * bytes); /* sizes have been bounded */
    if (!aligned)
        return PyErr_NoMemory(), 0;
    Groups groups = {.size = task->size, .values = (__m256 *)aligned, .weights = (__m256 *)(aligned + bytes)};
    Py_BEGIN_ALLOW_THREADS
    function(grid, task, groups);
    Py_END_ALLOW_THREADS
    free(aligned);
    return 1;
}

enum { LARGEST_GROUP = 1 << 17 };

static int is_search(int kind, Py_ssize_t size, Py_ssize_t periods, Py_ssize_t tried, PyObject *book)
{
    if (kind < INTEGERS || kind > BOOK || (kind == BOOK) != (book != Py_None) || size < 2 || size % 2 ||
        size > LARGEST_GROUP || periods < 1 || tried < 1 || tried > 255)
        return PyErr_Format(PyExc_ValueError, "no search of groups of %zd elements has such numbers", size), 0;
    return 1;
}

FUNCTION(fit_groups)
{
    const char *dtype;
    PyObject *array, *weight_array, *book_array, *start_array, *scale_array, *zero_array, *result = NULL;
    Py_ssize_t count, size, periods, tried, repeats;
    int kind, has_zero;
    Buffers buffers = {.count = 0};
    Task task;
    Grid grid;
    const void *book = NULL;
    if (!PyArg_ParseTuple(args, "sOnnOniffffOOnniOO", &dtype, &array, &count, &size, &weight_array, &periods, &kind,
                          &grid.low, &grid.high, &grid.least, &grid.magic, &book_array, &start_array, &tried, &repeats,
                          &has_zero, &scale_array, &zero_array) ||
        !source_type(dtype, &task.source) || !is_search(kind, size, periods, tried, book_array))
        return NULL;
    if (repeats < 0 || repeats > MOST_TURNS || (has_zero && kind != INTEGERS))
        return PyErr_Format(PyExc_ValueError, "no search with %zd repeats and zeros: %d", repeats, has_zero);
    if ((task.values = readable(&buffers, array, count, size, width(task.source))) &&
        (task.weights = readable(&buffers, weight_array, periods, size, 4)) &&
        (book_array == Py_None || (book = readable(&buffers, book_array, 31, 1, 4))) &&
        (task.starts = readable(&buffers, start_array, tried, 2, 4)) &&
        (task.found = writable(&buffers, scale_array, count, 1, 4)) &&
        (task.found_zeros = writable(&buffers, zero_array, count, 1, 4))) {
        task.count = count, task.size = size, task.periods = periods, task.tried = tried, task.repeats = repeats;
        task.has_zero = has_zero;
        if (book)
            put_book(&grid, book);
        if (with_groups(fits[kind], &grid, &task))
            result = Py_NewRef(Py_None);
    }
    release(&buffers);
    return result;
}

FUNCTION(choose_groups)
{
    const char *dtype;
    PyObject *array, *weight_array, *book_array, *scale_array, *zero_array, *index_array, *found_array, *result = NULL;
    Py_ssize_t count, size, periods, tried;
    int kind;
    Buffers buffers = {.count = 0};
    Task task;
    Grid grid;
    const void *book = NULL;
    if (!PyArg_ParseTuple(args, "sOnnOniffffOnOOOO", &dtype, &array, &count, &size, &weight_array, &periods, &kind,
                          &grid.low, &grid.high, &grid.least, &grid.magic, &book_array, &tried, &scale_array,
                          &zero_array, &index_array, &found_array) ||
        !source_type(dtype, &task.source) || !is_search(kind, size, periods, tried, book_array))
        return NULL;
    if ((task.values = readable(&buffers, array, count, size, width(task.source))) &&
        (task.weights = readable(&buffers, weight_array, periods, size, 4)) &&
        (book_array == Py_None || (book = readable(&buffers, book_array, 31, 1, 4))) &&
        (task.scales = readable(&buffers, scale_array, tried, count, 4)) &&
        (task.zeros = readable(&buffers, zero_array, tried, count, 4)) &&
        (task.index = writable(&buffers, index_array, count, 1, 1)) &&
        (task.found = writable(&buffers, found_array, count, 1, 4))) {
        task.count = count, task.size = size, task.periods = periods, task.tried = tried;
        if (book)
            put_book(&grid, book);
        if (with_groups(choices[kind], &grid, &task))
            result = Py_NewRef(Py_None);
    }
    release(&buffers);
    return result;
}

#endif
