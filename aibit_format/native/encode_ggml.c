/* Searches for the scales and codes of GGML's blocks; schemes/ggml_search.py defines how, and says why.
 *
 * Every float operation is that of the numpy code, in the same order, so the results are equal bit for bit.
 */
#include "kernels.h"
#if HAVE_VECTORS
#include "search_minima.h"
#include "search_scales.h"

INLINE void choose(int book, const Search *search, const Blocks *blocks, Choice *choice)
{
    if (search->minima)
        choose_both(search, blocks, choice);
    else
        choose_factors(book, search, blocks, choice);
}

/* Takes over another choice where its error is smaller. */
INLINE void improve(const Search *search, Choice *best, const Choice *other)
{
    __m256 better = above(best->error, other->error);
    best->scale = where(better, other->scale, best->scale);
    best->minimum = where(better, other->minimum, best->minimum);
    best->next_scale = where(better, other->next_scale, best->next_scale);
    best->next_minimum = where(better, other->next_minimum, best->next_minimum);
    best->error = where(better, other->error, best->error);
    for (size_t group = 0; group < search->groups; group++) {
        best->factors[group] = where(better, other->factors[group], best->factors[group]);
        best->offsets[group] = where(better, other->offsets[group], best->offsets[group]);
    }
}

INLINE Choice search_blocks(int book, const Search *search, Blocks *blocks)
{
    if (search->minima)
        fit_scales_and_minima(search, blocks);
    else
        fit_scales(book, search, blocks);
    __m256 largest = blocks->scales[0], lowest = search->minima ? blocks->minima[0] : all(0);
    for (size_t group = 1; group < search->groups; group++) {
        __m256 scale = blocks->scales[group];
        largest = where(above(magnitude(scale), magnitude(largest)), scale, largest);
        if (search->minima)
            lowest = _mm256_max_ps(lowest, blocks->minima[group]);
    }
    Choice best, other;
    for (size_t i = 0; i < search->divisors; i++) {
        other.scale = held(blocks, largest / all(search->divisor[2 * i]));
        other.minimum = held(blocks, lowest / all(search->divisor[2 * i + 1]));
        other.next_minimum = all(0);
        for (size_t group = 0; group < search->groups; group++)
            other.offsets[group] = all(0);
        choose(book, search, blocks, &other);
        if (i)
            improve(search, &best, &other);
        else
            best = other;
    }
    for (size_t i = 0; i < search->rounds; i++) {
        other.scale = best.next_scale;
        other.minimum = best.next_minimum;
        choose(book, search, blocks, &other);
        improve(search, &best, &other);
    }
    return best;
}

/* Where the results of blocks go. */
typedef struct {
    uint8_t *codes;  /* [blocks, elements] */
    int8_t *factors; /* [blocks, 2, groups] */
    char *halves;    /* [blocks, 2], float16 */
} Results;

INLINE void put_lanes(__m256 value, int8_t *out, size_t stride, size_t count)
{
    int32_t each[8];
    _mm256_storeu_si256((__m256i *)each, _mm256_cvtps_epi32(value));
    for (size_t lane = 0; lane < count; lane++)
        out[lane * stride] = (int8_t)each[lane];
}

INLINE void put_halves(__m256 value, char *out, size_t count)
{
    uint16_t each[8];
    _mm_storeu_si128((__m128i *)each, _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
    for (size_t lane = 0; lane < count; lane++)
        memcpy(out + 4 * lane, each + lane, 2);
}

INLINE void put_blocks(int book, const Search *search, const Blocks *blocks, const Choice *choice, Results results,
                       size_t count)
{
    size_t elements = search->groups * search->size;
    for (size_t group = 0; group < search->groups; group++) {
        __m256 each = inverse(choice->scale * choice->factors[group]), shift = all(0);
        if (search->minima)
            shift = choice->minimum * choice->offsets[group] * each;
        put_lanes(choice->factors[group], results.factors + group, 2 * search->groups, count);
        put_lanes(choice->offsets[group], results.factors + search->groups + group, 2 * search->groups, count);
        for (size_t i = group * search->size; i < (group + 1) * search->size; i++) {
            __m256 value = blocks->values[i] * each + shift;
            __m256 code;
            if (book)
                code = _mm256_cvtepi32_ps(rank(value, &search->bounds));
            else
                code = whole(value, search->low, search->high) - all(search->low);
            put_lanes(code, (int8_t *)results.codes + i, elements, count);
        }
    }
    put_halves(choice->scale * blocks->up + all(0), results.halves, count); /* a zero has no sign */
    put_halves(choice->minimum * blocks->up + all(0), results.halves + 2, count);
}

/* Loads blocks into lanes, and normalizes them: multiplied by a power of two, the largest magnitude is from 1 to 2.
 * Returns 0 if a value is not finite. */
INLINE int load_blocks(Source source, size_t elements, const char *values, size_t count, Blocks *blocks)
{
    float *lanes = (float *)blocks->values, row[MOST_ELEMENTS];
    float up[LANES_OF_BLOCKS] = {0}, down[LANES_OF_BLOCKS] = {0};
    memset(blocks->values, 0, elements * sizeof(__m256));
    for (size_t lane = 0; lane < count; lane++, values += elements * width(source)) {
        __m256i top = _mm256_setzero_si256();
        for (size_t i = 0; i < elements; i += 8) {
            __m256 eight = load(source, values, i);
            top = _mm256_max_epu32(top, magnitudes(eight));
            _mm256_storeu_ps(row + i, eight);
        }
        float largest = largest_magnitude(top);
        if (!(largest <= 3.402823466e38f))
            return 0;
        uint32_t exponent;
        memcpy(&exponent, &largest, 4);
        exponent >>= 23;
        exponent = exponent < 27 ? 27 : exponent > 253 ? 253 : exponent;
        uint32_t bits[2] = {exponent << 23, (254 - exponent) << 23};
        memcpy(up + lane, bits, 4);
        memcpy(down + lane, bits + 1, 4);
        for (size_t i = 0; i < elements; i++)
            lanes[i * LANES_OF_BLOCKS + lane] = row[i] * down[lane];
    }
    blocks->up = _mm256_loadu_ps(up);
    blocks->down = _mm256_loadu_ps(down);
    return 1;
}

/* Weights by the values: sqrt(2 mean(x^2) + x^2). */
INLINE void weigh(size_t elements, Blocks *blocks)
{
    __m256 sum = all(0);
    for (size_t i = 0; i < elements; i++)
        sum += blocks->values[i] * blocks->values[i];
    sum *= all(2.0f / (float)elements);
    for (size_t i = 0; i < elements; i++)
        blocks->weights[i] = _mm256_sqrt_ps(sum + blocks->values[i] * blocks->values[i]);
}

/* The arrays of a call. */
typedef struct {
    Source source;
    const char *values; /* [count, elements] */
    size_t count;
    const UnalignedFloat *weights; /* [periods, elements] */
    size_t periods;
    Results results;
} Task;

INLINE int search_all(int book, const Search *search, const Task *task)
{
    size_t elements = search->groups * search->size;
    Results results = task->results;
    Blocks blocks;
    for (size_t first = 0; first < task->count; first += LANES_OF_BLOCKS) {
        size_t count = task->count - first < LANES_OF_BLOCKS ? task->count - first : LANES_OF_BLOCKS;
        const char *values = task->values + first * elements * width(task->source);
        if (!load_blocks(task->source, elements, values, count, &blocks))
            return 0;
        if (search->by_value)
            weigh(elements, &blocks);
        else if (first == 0 || task->periods > 1)
            for (size_t lane = 0; lane < LANES_OF_BLOCKS; lane++)
                for (size_t i = 0; i < elements; i++)
                    ((float *)blocks.weights)[i * LANES_OF_BLOCKS + lane] =
                        task->weights[(first + lane) % task->periods * elements + i];
        Choice choice = search_blocks(book, search, &blocks);
        put_blocks(book, search, &blocks, &choice, results, count);
        results.codes += count * elements;
        results.factors += count * 2 * search->groups;
        results.halves += count * 4;
    }
    return 1;
}

VECTORS static int search_numbers(const Search *search, const Task *task)
{
    return search_all(0, search, task);
}

VECTORS static int search_book(const Search *search, const Task *task)
{
    return search_all(1, search, task);
}

VECTORS static void set_book(Search *search, const UnalignedFloat *book)
{
    search->bounds = bounds_of(book);
    search->book[0] = _mm256_loadu_ps(book + 15);
    search->book[1] = _mm256_loadu_ps(book + 23);
}

FUNCTION(ggml_blocks)
{
    const char *dtype;
    PyObject *array, *weight_array, *start_array, *divisor_array, *book_array, *code_array, *factor_array, *half_array;
    PyObject *result = NULL;
    Py_ssize_t count, periods, starts, divisors, groups, size, steps, repeats, rounds;
    int low, high, least, most, minima, by_value, finite;
    Buffers buffers = {.count = 0};
    Task task;
    const void *book = NULL;
    if (!PyArg_ParseTuple(args, "sOnOnOnOnOOOOnniiiiinnni", &dtype, &array, &count, &weight_array, &periods,
                          &start_array, &starts, &divisor_array, &divisors, &book_array, &code_array, &factor_array,
                          &half_array, &groups, &size, &low, &high, &least, &most, &minima, &steps, &repeats,
                          &rounds, &by_value) ||
        !source_type(dtype, &task.source))
        return NULL;
    if (groups < 1 || groups > MOST_GROUPS || (size != 16 && size != 32) || groups * size > MOST_ELEMENTS ||
        low < -128 || high > 127 || low >= high || least < -128 || most > 127 || least > most || minima < NO_MINIMA ||
        minima > ANY_MINIMA || steps < 1 || steps > MOST_STEPS || repeats < 0 || repeats > MOST_TURNS || rounds < 0 ||
        rounds > MOST_TURNS || starts < 1 || divisors < 1 || periods < 1)
        return PyErr_Format(PyExc_ValueError, "no search of %zd groups of %zd elements has such numbers", groups, size);
    Search search = {groups, size, low, high, least, most, minima, starts, divisors, steps, repeats, rounds, by_value};
    if ((task.values = readable(&buffers, array, count, groups * size, width(task.source))) &&
        (task.weights = readable(&buffers, weight_array, periods, groups * size, 4)) &&
        (search.start = readable(&buffers, start_array, starts, 2, 4)) &&
        (search.divisor = readable(&buffers, divisor_array, divisors, 2, 4)) &&
        (book_array == Py_None || (book = readable(&buffers, book_array, 31, 1, 4))) &&
        (task.results.codes = writable(&buffers, code_array, count, groups * size, 1)) &&
        (task.results.factors = writable(&buffers, factor_array, count, 2 * groups, 1)) &&
        (task.results.halves = writable(&buffers, half_array, count, 2, 2))) {
        task.count = count;
        task.periods = periods;
        Py_BEGIN_ALLOW_THREADS
        if (book)
            set_book(&search, book);
        finite = book ? search_book(&search, &task) : search_numbers(&search, &task);
        Py_END_ALLOW_THREADS
        result = PyBool_FromLong(finite);
    }
    release(&buffers);
    return result;
}

#endif
