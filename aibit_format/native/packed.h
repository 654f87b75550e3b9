/* Describes packed weights, and what is computed with them for a kind of processor.
 *
 * A row of a weight is read in stretches of up to 256 columns, a block of 32 at a time. Whatever the format, a block
 * becomes 32 codes of 8 bits with a scale and a bias for each half. Formats of floats, and codebooks of float32, become
 * 32 float32 values instead.
 */
#pragma once
#include "shares.h"
#include "sizes.h"

enum {
    BLOCK = 32,    /* columns */
    STRETCH = 8,   /* blocks */
    MOST_ROWS = 16, /* of the input, for which a stretch is decoded once */
    FETCHED = 1536, /* bytes ahead that are fetched: a row may be shorter than what a processor looks ahead by itself */
};

/* Vectors that GCC and Clang have on any processor; where registers are shorter, they take several. */
typedef uint8_t Half __attribute__((vector_size(16)));
typedef int8_t Bytes __attribute__((vector_size(32)));
typedef uint8_t Unsigned __attribute__((vector_size(32)));
typedef int32_t Whole __attribute__((vector_size(32)));
typedef float Eight __attribute__((vector_size(32)));

/* Blocks with their scales; with biases too; codes with scales aside; the same, of float values. */
enum { BLOCKS, BIASED, GROUPS, VALUES };

/* A format's name; the columns of its smallest whole part, and the bytes of that part; what it is made of; what is taken
 * away from its codes, which are not negative (a weight may have a ``middle`` of its own in its place); and how many
 * columns of a block have the same scale. */
#define BLOCK_FORMATS(X)                                                                                      \
    X(q4_0, 32, 18, BLOCKS, 8, 32) X(q4_1, 32, 20, BIASED, 0, 32) X(q5_0, 32, 22, BLOCKS, 16, 32)             \
    X(q5_1, 32, 24, BIASED, 0, 32) X(q8_0, 32, 34, BLOCKS, 128, 32) X(q2_k, 256, 84, BIASED, 0, 16)           \
    X(q3_k, 256, 110, BLOCKS, 4, 16) X(q4_k, 256, 144, BIASED, 0, 32) X(q5_k, 256, 176, BIASED, 0, 32)        \
    X(q6_k, 256, 210, BLOCKS, 32, 16) X(iq4_nl, 32, 18, BLOCKS, 128, 32)                                      \
    X(iq4_xs, 256, 136, BLOCKS, 128, 32) X(q1_0, 128, 18, BLOCKS, 1, 32) X(q2_0, 64, 18, BLOCKS, 1, 32)       \
    X(tq2_0, 256, 66, BLOCKS, 1, 32) X(mxfp4, 32, 17, BLOCKS, 12, 32) X(nvfp4, 64, 36, BLOCKS, 12, 16)
#define GROUP_FORMATS(X)                                                                                      \
    X(u1, 8, 1, GROUPS, 0, 0) X(u2, 8, 2, GROUPS, 0, 0) X(u3, 8, 3, GROUPS, 0, 0) X(u4, 8, 4, GROUPS, 0, 0)   \
    X(u5, 8, 5, GROUPS, 0, 0) X(u6, 8, 6, GROUPS, 0, 0) X(u8, 8, 8, GROUPS, 128, 0)                           \
    X(s8, 8, 8, GROUPS, 128, 0) X(nibbles, 8, 4, GROUPS, 0, 0) X(e2m1, 8, 4, GROUPS, 12, 0)
#define VALUE_FORMATS(X)                                                                                      \
    X(e4m3, 8, 8, VALUES, 0, 0) X(e5m2, 8, 8, VALUES, 0, 0) X(book2, 8, 2, VALUES, 0, 0)                      \
    X(book3, 8, 3, VALUES, 0, 0) X(book4, 8, 4, VALUES, 0, 0) X(book5, 8, 5, VALUES, 0, 0)                    \
    X(book6, 8, 6, VALUES, 0, 0) X(book7, 8, 7, VALUES, 0, 0) X(book8, 8, 8, VALUES, 0, 0)
#define CODE_FORMATS(X) BLOCK_FORMATS(X) GROUP_FORMATS(X)
#define FORMATS(X) CODE_FORMATS(X) VALUE_FORMATS(X)

#define FORMAT_NUMBER(name, ...) FORMAT_##name,
enum { FORMATS(FORMAT_NUMBER) FORMAT_COUNT };

typedef enum { NO_NUMBER, NUMBER_F16, NUMBER_BF16, NUMBER_F32, NUMBER_E8M0, NUMBER_E4M3, NUMBER_U8 } Number;

/* A matrix [out_features, columns]. A value is (code - zero) * scale, (code - offset) * scale or code * scale + bias. */
typedef struct {
    int format, form;
    size_t rows, columns, row_bytes, stretch_bytes; /* bytes of codes, or of blocks */
    const uint8_t *codes;
    /* The rest belongs to formats with scales aside. */
    size_t group;            /* columns with the same scale, a multiple of 16; 0: all */
    size_t block_rows;       /* rows with the same scales */
    size_t groups;           /* of a row */
    size_t numbers;          /* scales there are */
    Number scale_type, zero_type; /* NO_NUMBER: scales of 1; zeros of 0 */
    const void *scales, *zeros;   /* [rows / block_rows, groups] */
    const UnalignedFloat *book;   /* the values of codes */
    int zeros_are_biases, offset;
    int biased; /* whether any of its biases may not be zero */
    int halved;                   /* codes are twice what they stand for */
    int reciprocal;               /* scales are divided by the factor; without one, they are what codes are divided by */
    const UnalignedFloat *factor; /* that all scales are multiplied by, or NULL */
} Weight;

/* What codes of a stretch stand for: value = (code - offset) * scale + bias. There are numbers for each 16 columns, or for
 * each 32 in the first vector alone. */
typedef struct {
    Eight scales[2], biases[2]; /* of weights that have biases */
} Steps;

/* A stretch that is decoded. Formats of values leave the codes alone, and others the values. */
typedef struct {
    Unsigned codes[STRETCH];
    Steps steps;
    Eight values[STRETCH * 4];
} Stretch;

/* What inputs become: float32; codes of 16 bits with a scale for each stretch of a row, or of 8 with one for each block. */
typedef enum { IN_F32, IN_I16, IN_I8 } Activations;

/* What is known of a stretch of inputs. */
typedef struct {
    float scales[STRETCH]; /* of codes, for each block */
    float block_sums[STRETCH], sums[STRETCH * 2]; /* of each 32 columns, and of each 16 */
} InputSteps;

typedef struct {
    Activations kind;
    size_t rows, stretches; /* columns missing at the end are zeros */
    void *values;           /* [rows, stretches * STRETCH * BLOCK] */
    InputSteps *steps;      /* [rows, stretches] */
} Inputs;

/* A product: out [rows, out_features] = inputs @ weight.T + bias. */
typedef struct {
    const Weight *weight;
    const Inputs *inputs;
    const void *bias; /* or NULL */
    void *out;
    Source bias_from, to;
    size_t out_features;
} PackedProduct;

/* Decoded rows, from ``first`` on: out [rows, columns]. */
typedef struct {
    const Weight *weight;
    size_t first;
    void *out;
    Source to;
} PackedValues;

/* The functions for a kind of processor. */
typedef struct {
    const char *name;
    int (*runs)(void); /* whether this processor is of that kind */
    void (*take)(Source source, const void *values, size_t columns, size_t row, Inputs *inputs); /* a row of inputs */
    void (*multiply)(const void *product, size_t first, size_t last);
    void (*decode)(const void *values, size_t first, size_t last);
} Target;

extern const Target packed_portable;
#if HAVE_VECTORS
extern const Target packed_avx2, packed_vnni;
#endif
#if defined(__aarch64__)
extern const Target packed_dotprod;
#endif
