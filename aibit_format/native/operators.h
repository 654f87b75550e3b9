/* Describes what models compute between products: norms, rotary embeddings, attention over a cache, and gates.
 *
 * All is computed in float32. Where transformers' models round to the dtype on the way, so do these.
 */
#pragma once
#include "shares.h"
#include "sizes.h"

/* out = x / sqrt(mean(x^2) + epsilon) * (offset + weight), in rows. */
typedef struct {
    Source type, weight_type;
    size_t rows, columns;
    const void *values, *weight; /* weight: NULL for none */
    void *out;
    float epsilon, offset;
    int rounds; /* whether the quotient is rounded to the dtype before it is multiplied */
} Normalization;

/* Turns pairs (x[i], x[i + turned / 2]) by an angle for each position, and moves [batch, positions, heads, size] to
 * [batch, heads, capacity, size], from position ``first`` on. Elements after ``turned`` stay. */
typedef struct {
    Source type;
    size_t batches, positions, heads, size, turned, capacity, first;
    const char *values;
    const void *cosines, *sines; /* [angles, positions, turned]: a set for each batch, or one for all; NULL: only moved */
    size_t angles;
    char *out;
} Rotation;

/* Attends from the last ``queries`` positions of ``keys`` to all up to themselves, or to the last ``window`` of these. */
typedef struct {
    Source type;
    size_t pairs;          /* batches times heads of keys */
    size_t group;          /* heads of queries for each head of keys */
    size_t heads;          /* of keys */
    size_t queries, keys, capacity, size, value_size; /* sizes are multiples of 8 */
    size_t window;         /* 0: all */
    float scale, cap;      /* cap * tanh(score / cap), if it is not 0 */
    const char *query;     /* [batch, heads * group, queries, size] */
    const char *key, *value; /* [pairs, capacity, size] */
    char *out;             /* [batch, queries, heads * group, value_size] */
    float *scratch;        /* [pairs, group * queries, scratch_row] */
    size_t scratch_row;    /* keys, size and value_size, each a multiple of 8 */
} Attention;

typedef enum { SILU, GELU_TANH, RELU } Activation;

/* out = activation(gate) * up. */
typedef struct {
    Source type;
    Activation activation;
    const char *gate, *up; /* up: NULL for 1 */
    char *out;
} Gate;

/* The functions for a kind of processor: each does what its task says for a range of rows, heads, pairs or elements. */
typedef struct {
    int (*runs)(void);
    void (*normalize)(const void *normalization, size_t first, size_t last);
    void (*rotate)(const void *rotation, size_t first, size_t last);
    void (*attend)(const void *attention, size_t first, size_t last);
    void (*open)(const void *gate, size_t first, size_t last);
} Operators;

extern const Operators operators_portable;
#if HAVE_VECTORS
extern const Operators operators_avx2;
#endif
