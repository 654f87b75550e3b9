/* Computes the xxh3_64 of whole leaves, with AVX2: many in one call, because threads that hash one leaf at a time wait
 * for the interpreter's lock in between.
 *
 * Our own code, written from xxHash's published description (doc/xxhash_spec.md, Yann Collet): seed 0, the default
 * secret, and only the algorithm for more than 240 bytes.
 */
#include "kernels.h"
#if HAVE_VECTORS
#include "sizes.h"

enum { STRIPE = 64, STRIPES = 16, SHORTEST = 241 }; /* bytes, stripes of a block, and bytes of a leaf */

static const uint8_t secret[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

#define P32_1 UINT64_C(0x9E3779B1)
#define P32_2 UINT64_C(0x85EBCA77)
#define P32_3 UINT64_C(0xC2B2AE3D)
#define P64_1 UINT64_C(0x9E3779B185EBCA87)
#define P64_2 UINT64_C(0xC2B2AE3D27D4EB4F)
#define P64_3 UINT64_C(0x165667B19E3779F9)
#define P64_4 UINT64_C(0x85EBCA77C2B2AE63)
#define P64_5 UINT64_C(0x27D4EB2F165667C5)

INLINE __m256i bytes_at(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

INLINE __m256i high_halves(__m256i values)
{
    return _mm256_srli_epi64(values, 32);
}

/* Mixes in half a stripe: adds each value to its neighbour's lane, and the product of its keyed halves to its own. */
INLINE __m256i mixed_in(__m256i lanes, const uint8_t *p, const uint8_t *key)
{
    __m256i value = bytes_at(p), keyed = _mm256_xor_si256(value, bytes_at(key));
    lanes = _mm256_add_epi64(lanes, _mm256_shuffle_epi32(value, 0x4e));
    return _mm256_add_epi64(lanes, _mm256_mul_epu32(keyed, high_halves(keyed)));
}

/* Scrambles the lanes at the end of a block: (lane ^ lane >> 47 ^ key) * P32_1. */
INLINE __m256i scrambled(__m256i lanes, const uint8_t *key)
{
    const __m256i prime = _mm256_set1_epi64x(P32_1);
    lanes = _mm256_xor_si256(_mm256_xor_si256(lanes, _mm256_srli_epi64(lanes, 47)), bytes_at(key));
    return _mm256_add_epi64(_mm256_mul_epu32(lanes, prime),
                            _mm256_slli_epi64(_mm256_mul_epu32(high_halves(lanes), prime), 32));
}

static uint64_t number_at(const uint8_t *p)
{
    uint64_t number;
    memcpy(&number, p, 8);
    return number;
}

static uint64_t merged(const uint64_t lanes[8], uint64_t hash)
{
    for (int i = 0; i < 8; i += 2) {
        unsigned __int128 product = (unsigned __int128)(lanes[i] ^ number_at(secret + 11 + 8 * i)) *
                                    (lanes[i + 1] ^ number_at(secret + 19 + 8 * i));
        hash += (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    hash = (hash ^ hash >> 37) * UINT64_C(0x165667919E3779F9);
    return hash ^ hash >> 32;
}

/* Returns the xxh3_64 of ``size`` bytes, SHORTEST or more. */
INLINE uint64_t leaf_digest(const uint8_t *p, size_t size)
{
    __m256i low = _mm256_setr_epi64x(P32_3, P64_1, P64_2, P64_3), high = _mm256_setr_epi64x(P64_4, P32_2, P64_5, P32_1);
    const uint8_t *last = p + size - STRIPE, *end = secret + sizeof secret - STRIPE;
    for (size_t left = (size - 1) / STRIPE; left;) {
        size_t stripes = left < STRIPES ? left : STRIPES;
        for (size_t i = 0; i < stripes; i++, p += STRIPE) {
            _mm_prefetch((const char *)p + 512, _MM_HINT_T0);
            low = mixed_in(low, p, secret + 8 * i);
            high = mixed_in(high, p + 32, secret + 8 * i + 32);
        }
        if (stripes == STRIPES)
            low = scrambled(low, end), high = scrambled(high, end + 32);
        left -= stripes;
    }
    uint64_t lanes[8];
    _mm256_storeu_si256((__m256i *)lanes, mixed_in(low, last, end - 7));
    _mm256_storeu_si256((__m256i *)(lanes + 4), mixed_in(high, last + 32, end - 7 + 32));
    return merged(lanes, size * P64_1);
}

/* Computes the digests of ``count`` consecutive leaves of ``size`` bytes each. */
VECTORS static void leaf_digests_of(const uint8_t *data, size_t count, size_t size, UnalignedU64 *digests)
{
    for (size_t i = 0; i < count; i++)
        digests[i] = leaf_digest(data + i * size, size);
}

FUNCTION(leaf_digests)
{
    PyObject *array, *digest_array, *result = NULL;
    Py_ssize_t count, size;
    Buffers buffers = {.count = 0};
    const void *data;
    void *digests;
    if (!PyArg_ParseTuple(args, "OnnO", &array, &count, &size, &digest_array))
        return NULL;
    if (size < SHORTEST)
        return PyErr_Format(PyExc_ValueError, "leaves of %zd bytes, fewer than %d", size, SHORTEST);
    if ((data = readable(&buffers, array, count, size, 1)) && (digests = writable(&buffers, digest_array, count, 1, 8))) {
        Py_BEGIN_ALLOW_THREADS
        leaf_digests_of(data, count, size, digests);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    release(&buffers);
    return result;
}

#endif
