/* XXH3 of 64 and 128 bits, as far as .aibit needs it: seed 0, the default secret, one buffer at a time.

   Our own code, from the description of the algorithm that xxHash publishes (doc/xxhash_spec.md, Yann Collet), under
   the licence of this repository. Plain C11, without vector instructions but for those that compilers find.

   xxh3_64(data, size)         any size: the leaves of a file
   xxh3_128(data, size, out)   241 bytes or more, canonical form: the root of a file, which covers 368 or more */

#ifndef AIBIT_XXH3_H
#define AIBIT_XXH3_H

#include <stddef.h>
#include <stdint.h>

static const uint8_t xxh3_secret[192] = {
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

#define XXH3_P32_1 UINT64_C(0x9E3779B1)
#define XXH3_P32_2 UINT64_C(0x85EBCA77)
#define XXH3_P32_3 UINT64_C(0xC2B2AE3D)
#define XXH3_P64_1 UINT64_C(0x9E3779B185EBCA87)
#define XXH3_P64_2 UINT64_C(0xC2B2AE3D27D4EB4F)
#define XXH3_P64_3 UINT64_C(0x165667B19E3779F9)
#define XXH3_P64_4 UINT64_C(0x85EBCA77C2B2AE63)
#define XXH3_P64_5 UINT64_C(0x27D4EB2F165667C5)

static inline uint32_t xxh3_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline uint64_t xxh3_u64(const uint8_t *p) { return xxh3_u32(p) | (uint64_t)xxh3_u32(p + 4) << 32; }

static inline uint64_t xxh3_key(size_t at) { return xxh3_u64(xxh3_secret + at); }

static inline uint64_t xxh3_rotated(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

static inline uint64_t xxh3_swapped(uint64_t x) {
    uint64_t out = 0;
    for (int i = 0; i < 8; i++) out = out << 8 | (x >> 8 * i & 0xFF);
    return out;
}

/* The halves of the 128-bit product, one on the other. */
static inline uint64_t xxh3_folded(uint64_t a, uint64_t b) {
    uint64_t al = a & 0xFFFFFFFF, ah = a >> 32, bl = b & 0xFFFFFFFF, bh = b >> 32;
    uint64_t low = al * bl, middle = ah * bl + (low >> 32), other = al * bh + (middle & 0xFFFFFFFF);
    return (other << 32 | (low & 0xFFFFFFFF)) ^ (ah * bh + (middle >> 32) + (other >> 32));
}

static inline uint64_t xxh3_avalanche(uint64_t h) {
    h = (h ^ h >> 37) * UINT64_C(0x165667919E3779F9);
    return h ^ h >> 32;
}

/* The finish of XXH64, which the shortest inputs get. */
static inline uint64_t xxh3_avalanche_64(uint64_t h) {
    h = (h ^ h >> 33) * XXH3_P64_2;
    h = (h ^ h >> 29) * XXH3_P64_3;
    return h ^ h >> 32;
}

static inline uint64_t xxh3_mix(const uint8_t *p, size_t secret) {
    return xxh3_folded(xxh3_u64(p) ^ xxh3_key(secret), xxh3_u64(p + 8) ^ xxh3_key(secret + 8));
}

/* One stripe of 64 bytes: each value to its neighbour's lane, and to its own the product of its halves, keyed. */
static inline void xxh3_add(uint64_t lanes[8], const uint8_t *p, size_t secret) {
    for (int i = 0; i < 8; i++) {
        uint64_t value = xxh3_u64(p + 8 * i), key = value ^ xxh3_key(secret + 8 * (size_t)i);
        lanes[i ^ 1] += value;
        lanes[i] += (key & 0xFFFFFFFF) * (key >> 32);
    }
}

/* The eight lanes after more than 240 bytes. */
static inline void xxh3_long(uint64_t lanes[8], const uint8_t *p, size_t size) {
    const uint64_t start[8] = {XXH3_P32_3, XXH3_P64_1, XXH3_P64_2, XXH3_P64_3,
                               XXH3_P64_4, XXH3_P32_2, XXH3_P64_5, XXH3_P32_1};
    for (int i = 0; i < 8; i++) lanes[i] = start[i];
    for (size_t stripe = 0; stripe < (size - 1) / 64; stripe++) {
        xxh3_add(lanes, p + 64 * stripe, 8 * (stripe % 16));
        if (stripe % 16 == 15)
            for (size_t i = 0; i < 8; i++) lanes[i] = (lanes[i] ^ lanes[i] >> 47 ^ xxh3_key(128 + 8 * i)) * XXH3_P32_1;
    }
    xxh3_add(lanes, p + size - 64, 192 - 64 - 7);
}

static inline uint64_t xxh3_merged(const uint64_t lanes[8], size_t secret, uint64_t h) {
    for (size_t i = 0; i < 8; i += 2)
        h += xxh3_folded(lanes[i] ^ xxh3_key(secret + 8 * i), lanes[i + 1] ^ xxh3_key(secret + 8 * (i + 1)));
    return xxh3_avalanche(h);
}

static inline uint64_t xxh3_64(const uint8_t *p, size_t size) {
    uint64_t h = size * XXH3_P64_1;
    if (size > 240) {
        uint64_t lanes[8];
        xxh3_long(lanes, p, size);
        return xxh3_merged(lanes, 11, h);
    }
    if (size > 128) {
        for (size_t i = 0; i < 8; i++) h += xxh3_mix(p + 16 * i, 16 * i);
        h = xxh3_avalanche(h);
        for (size_t i = 8; i < size / 16; i++) h += xxh3_mix(p + 16 * i, 16 * (i - 8) + 3);
        return xxh3_avalanche(h + xxh3_mix(p + size - 16, 136 - 17));
    }
    if (size > 16) { /* from both ends inwards */
        for (size_t i = 0; i <= (size - 1) / 32; i++)
            h += xxh3_mix(p + 16 * i, 32 * i) + xxh3_mix(p + size - 16 * (i + 1), 32 * i + 16);
        return xxh3_avalanche(h);
    }
    if (size > 8) {
        uint64_t low = xxh3_u64(p) ^ xxh3_key(24) ^ xxh3_key(32);
        uint64_t high = xxh3_u64(p + size - 8) ^ xxh3_key(40) ^ xxh3_key(48);
        return xxh3_avalanche(size + xxh3_swapped(low) + high + xxh3_folded(low, high));
    }
    if (size > 3) {
        h = (xxh3_u32(p + size - 4) + ((uint64_t)xxh3_u32(p) << 32)) ^ xxh3_key(8) ^ xxh3_key(16);
        h = (h ^ xxh3_rotated(h, 49) ^ xxh3_rotated(h, 24)) * UINT64_C(0x9FB21C651E98DF25);
        h = (h ^ ((h >> 35) + size)) * UINT64_C(0x9FB21C651E98DF25);
        return h ^ h >> 28;
    }
    if (size > 0) {
        h = (uint64_t)p[0] << 16 | (uint64_t)p[size >> 1] << 24 | p[size - 1] | (uint64_t)size << 8;
        return xxh3_avalanche_64(h ^ xxh3_u32(xxh3_secret) ^ xxh3_u32(xxh3_secret + 4));
    }
    return xxh3_avalanche_64(xxh3_key(56) ^ xxh3_key(64));
}

/* Canonical form: the most significant byte first. `size` is 241 or more. */
static inline void xxh3_128(const uint8_t *p, size_t size, uint8_t out[16]) {
    uint64_t lanes[8];
    xxh3_long(lanes, p, size);
    uint64_t low = xxh3_merged(lanes, 11, size * XXH3_P64_1);
    uint64_t high = xxh3_merged(lanes, 192 - 64 - 11, ~(size * XXH3_P64_2));
    for (int i = 0; i < 8; i++) {
        out[i] = (uint8_t)(high >> (56 - 8 * i));
        out[8 + i] = (uint8_t)(low >> (56 - 8 * i));
    }
}

#endif
