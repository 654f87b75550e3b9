/* Decodes 4-bit codes, with AVX2. A value is one of the 16 in a codebook times the scale of its block, a single float32
 * multiplication as in schemes/fourbit.py and in bitsandbytes, so results are equal bit for bit.
 *
 * A block has at most 16 distinct values. They are multiplied, and rounded, once per block; its elements are then looked
 * up.
 */
#include "kernels.h"
#if HAVE_VECTORS
#include "shares.h"
#include "sizes.h"

/* The 16 values of a block's codes: two vectors of eight, selected by the highest bit of a code. */
typedef struct {
    __m256 low, high;
} Values;

INLINE Values values_of(const UnalignedFloat *book, float scale, Source to)
{
    __m256 all = _mm256_set1_ps(scale);
    return (Values){rounded(to, _mm256_mul_ps(_mm256_loadu_ps(book), all)),
                    rounded(to, _mm256_mul_ps(_mm256_loadu_ps(book + 8), all))};
}

/* Looks up the values of eight codes in four bytes. */
INLINE __m256 looked_up(const uint8_t *codes, const Values *values)
{
    int32_t four;
    memcpy(&four, codes, 4);
    /* The high nibble of each byte comes first. Bits above a code's own are ignored below. */
    __m256i each = _mm256_srlv_epi32(_mm256_set1_epi32(four), _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24));
    __m256 highest = _mm256_castsi256_ps(_mm256_slli_epi32(each, 28));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(values->low, each), _mm256_permutevar8x32_ps(values->high, each),
                            highest);
}

/* The lower and the upper bytes of 16 values of 16 bits, repeated in both halves of a vector. */
typedef struct {
    __m256i lower, upper;
} Halves;

INLINE Halves halves_of(const Values *values, Source to)
{
    __m128i low = in_16_bits(to, values->low), high = in_16_bits(to, values->high);
    const __m128i byte = _mm_set1_epi16(0xff);
    return (Halves){
        _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_and_si128(low, byte), _mm_and_si128(high, byte))),
        _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_srli_epi16(low, 8), _mm_srli_epi16(high, 8)))};
}

/* Looks up the 16-bit values of 32 codes in 16 bytes. */
INLINE void look_up_halves(const uint8_t *codes, const Halves *halves, uint16_t *out)
{
    __m128i bytes = _mm_loadu_si128((const __m128i *)codes), nibble = _mm_set1_epi8(15);
    __m128i first = _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble), second = _mm_and_si128(bytes, nibble);
    __m256i each = _mm256_set_m128i(_mm_unpackhi_epi8(first, second), _mm_unpacklo_epi8(first, second));
    __m256i lower = _mm256_shuffle_epi8(halves->lower, each), upper = _mm256_shuffle_epi8(halves->upper, each);
    __m256i a = _mm256_unpacklo_epi8(lower, upper), b = _mm256_unpackhi_epi8(lower, upper);
    _mm256_storeu_si256((__m256i *)out, _mm256_permute2x128_si256(a, b, 0x20));
    _mm256_storeu_si256((__m256i *)(out + 16), _mm256_permute2x128_si256(a, b, 0x31));
}

typedef struct {
    const uint8_t *codes;
    size_t blocks, size;
    const UnalignedFloat *book, *absmax; /* [16] and [blocks] */
    Source to, stored;                   /* the dtype values are rounded to, and the one that holds them: the same, or F32 */
    void *out;
} Decoding;

INLINE void decode_blocks(const Decoding *all, size_t first, size_t last, Source to, Source stored)
{
    size_t size = all->size;
    const uint8_t *codes = all->codes + first * size / 2;
    char *out = (char *)all->out + first * size * width(stored);
    for (size_t block = first; block < last; block++, codes += size / 2, out += size * width(stored)) {
        const Values values = values_of(all->book, all->absmax[block], to);
        if (stored == F32) {
            for (size_t i = 0; i < size; i += 8)
                _mm256_storeu_ps((float *)out + i, looked_up(codes + i / 2, &values));
            continue;
        }
        const Halves halves = halves_of(&values, to);
        for (size_t i = 0; i < size; i += 32)
            look_up_halves(codes + i / 2, &halves, (uint16_t *)out + i);
    }
}

VECTORS static void decode_share(const void *task, size_t first, size_t last)
{
    const Decoding *all = task;
    if (all->to == F32)
        decode_blocks(all, first, last, F32, F32);
    else if (all->to == F16 && all->stored == F16)
        decode_blocks(all, first, last, F16, F16);
    else if (all->to == F16)
        decode_blocks(all, first, last, F16, F32);
    else if (all->stored == BF16)
        decode_blocks(all, first, last, BF16, BF16);
    else
        decode_blocks(all, first, last, BF16, F32);
}

/* Decodes scales that are stored in 8 bits: f32 [count], from codes u8 [count] and an f32 scale for each 256 of them. */
static void decode_scales(const uint8_t *codes, size_t count, const UnalignedFloat *book, const UnalignedFloat *absmax,
                          float offset, UnalignedFloat *out)
{
    for (size_t i = 0; i < count; i++)
        out[i] = book[codes[i]] * absmax[i / 256] + offset;
}

FUNCTION(four_bit_values)
{
    const char *dtype;
    PyObject *code_array, *book_array, *scale_array, *out_array, *parallel, *result = NULL;
    Py_ssize_t blocks, size, item, threads;
    Buffers buffers = {.count = 0};
    Team team;
    Decoding all;
    if (!PyArg_ParseTuple(args, "snnOOOnOnO", &dtype, &blocks, &size, &code_array, &book_array, &scale_array, &item,
                          &out_array, &threads, &parallel) ||
        !source_type(dtype, &all.to) || !block_size_fits(size) || !team_of(threads, parallel, &team))
        return NULL;
    if (item != 4 && item != (Py_ssize_t)width(all.to))
        return PyErr_Format(PyExc_ValueError, "%s in %zd bytes", dtype, item);
    all.blocks = blocks, all.size = size, all.stored = item == 4 ? F32 : all.to;
    if ((all.codes = readable(&buffers, code_array, blocks, size / 2, 1)) &&
        (all.book = readable(&buffers, book_array, 16, 1, 4)) &&
        (all.absmax = readable(&buffers, scale_array, blocks, 1, 4)) &&
        (all.out = writable(&buffers, out_array, blocks, size, item))) {
        Py_BEGIN_ALLOW_THREADS
        in_shares(decode_share, &all, blocks, (1 << 16) / size + 1, &team);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    release(&buffers);
    return result;
}

FUNCTION(nested_scales)
{
    PyObject *code_array, *book_array, *scale_array, *out_array, *result = NULL;
    Py_ssize_t count;
    Buffers buffers = {.count = 0};
    const void *codes, *book, *absmax;
    float offset;
    void *out;
    if (!PyArg_ParseTuple(args, "nOOOfO", &count, &code_array, &book_array, &scale_array, &offset, &out_array))
        return NULL;
    if ((codes = readable(&buffers, code_array, count, 1, 1)) && (book = readable(&buffers, book_array, 256, 1, 4)) &&
        (absmax = readable(&buffers, scale_array, chunks(count, 256), 1, 4)) &&
        (out = writable(&buffers, out_array, count, 1, 4))) {
        Py_BEGIN_ALLOW_THREADS
        decode_scales(codes, count, book, absmax, offset, out);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    release(&buffers);
    return result;
}

#endif
