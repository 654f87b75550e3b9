/* The dtypes and schemes of .aibit files: which planes a tensor has. Sections 7 and 10 of spec/aibit-1.md, and
   spec/schemes/. A part of aibit.h. */

#ifndef AIBIT_SCHEMES_H
#define AIBIT_SCHEMES_H

enum { AIBIT_DTYPES = 29 }; /* codes of dtypes are below it; 0 and 17 stand for none */

static inline const char *aibit_dtype_name(unsigned code) {
    static const char *const names[AIBIT_DTYPES] = {
        NULL, "bool", "u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f16", "bf16", "f32", "f64", "f8_e4m3",
        "f8_e5m2", "f8_e8m0", NULL, "f4_e2m1", "u4", "i4", "u2", "i2", "u1", "f6_e2m3", "f6_e3m2", "u3", "u5", "u6"};
    return code < AIBIT_DTYPES ? names[code] : NULL;
}

static inline unsigned aibit_dtype_bits(unsigned code) { /* of an element; 0 for a dtype that is not known here */
    static const uint8_t bits[AIBIT_DTYPES] = {0, 8, 8, 8, 16, 16, 32, 32, 64, 64, 16, 16, 32, 64, 8,
                                               8, 8, 0, 4, 4,  4,  2,  2,  1,  6,  6,  3,  5,  6};
    return code < AIBIT_DTYPES ? bits[code] : 0;
}

/* The bytes of rows of k elements; each row of elements of less than a byte is whole bytes. */
static inline uint64_t aibit_dtype_length(unsigned code, uint64_t rows, uint64_t k) {
    unsigned bits = aibit_dtype_bits(code);
    return bits < 8 ? rows * aibit_up(k * bits, 8) : rows * k * (bits / 8);
}

enum { AIBIT_UNKNOWN, AIBIT_PLAIN, AIBIT_INT8, AIBIT_AFFINE, AIBIT_OUTLIER, AIBIT_CLUSTER, AIBIT_INT4, AIBIT_FOURBIT,
       AIBIT_GGML, AIBIT_ORDERED, AIBIT_FP8BLOCK, AIBIT_INTGROUP, AIBIT_MICRO, AIBIT_TERNARY,
       AIBIT_W8A8 };

/* a and b: plain: its dtype; affine: dtype of codes, and 1 for groups | 2 for zero points; outlier: 1 if their number is
   a parameter of the tensor; four bits: 1 for tiles; ggml, ordered in version 2: elements of a block / 32, and its
   bytes; micro: dtype of codes, 0 for the parameter's, and a block's columns; w8a8: 1 for planes about inputs. */
typedef struct { const char *name; uint8_t family, a, b; } aibit_kind;

static inline aibit_kind aibit_kind_of(const aibit_scheme *s) {
    static const aibit_kind kinds[] = {
        {"int8", AIBIT_INT8, 0, 0}, {"int8-absmax", AIBIT_AFFINE, 3, 1}, {"int8-zp", AIBIT_AFFINE, 2, 3},
        {"fp8-e4m3", AIBIT_AFFINE, 14, 0}, {"int8-outlier", AIBIT_OUTLIER, 0, 0}, {"cluster", AIBIT_CLUSTER, 0, 0},
        {"cluster-group", AIBIT_CLUSTER, 1, 0},
        {"int4-group", AIBIT_INT4, 0, 0}, {"nf4", AIBIT_FOURBIT, 0, 0}, {"fp4", AIBIT_FOURBIT, 0, 0},
        {"nf4-cpu", AIBIT_FOURBIT, 1, 0}, {"gguf:q4_0", AIBIT_GGML, 1, 18}, {"gguf:q4_1", AIBIT_GGML, 1, 20},
        {"gguf:q5_0", AIBIT_GGML, 1, 22}, {"gguf:q5_1", AIBIT_GGML, 1, 24}, {"gguf:q8_0", AIBIT_GGML, 1, 34},
        {"gguf:q2_k", AIBIT_GGML, 8, 84}, {"gguf:q3_k", AIBIT_GGML, 8, 110}, {"gguf:q4_k", AIBIT_GGML, 8, 144},
        {"gguf:q5_k", AIBIT_GGML, 8, 176}, {"gguf:q6_k", AIBIT_GGML, 8, 210}, {"gguf:q1_0", AIBIT_GGML, 4, 18},
        {"gguf:q2_0", AIBIT_GGML, 2, 18}, {"gguf:tq1_0", AIBIT_GGML, 8, 54}, {"gguf:tq2_0", AIBIT_GGML, 8, 66},
        {"gguf:mxfp4", AIBIT_GGML, 1, 17}, {"gguf:nvfp4", AIBIT_GGML, 2, 36}, {"gguf:iq4_nl", AIBIT_GGML, 1, 18},
        {"gguf:iq4_xs", AIBIT_GGML, 8, 136}, {"gguf:iq3_xxs", AIBIT_GGML, 8, 98}, {"gguf:iq3_s", AIBIT_GGML, 8, 110},
        {"gguf:iq2_xxs", AIBIT_GGML, 8, 66}, {"gguf:iq2_xs", AIBIT_GGML, 8, 74}, {"gguf:iq2_s", AIBIT_GGML, 8, 82},
        {"gguf:iq1_s", AIBIT_GGML, 8, 50}, {"gguf:iq1_m", AIBIT_GGML, 8, 56},
        {"fp8-block", AIBIT_FP8BLOCK, 0, 0}, {"int-group", AIBIT_INTGROUP, 0, 0}, {"mxfp4", AIBIT_MICRO, 18, 32},
        {"mxfp8", AIBIT_MICRO, 0, 32}, {"nvfp4", AIBIT_MICRO, 18, 16}, {"ternary", AIBIT_TERNARY, 0, 0},
        {"int8-dynamic", AIBIT_W8A8, 0, 0}, {"int8-static", AIBIT_W8A8, 1, 0}};
    if (s->version == 2 && aibit_is(s->name, s->name_length, "int8-outlier")) return (aibit_kind){"", AIBIT_OUTLIER, 1, 0};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        aibit_kind kind = kinds[i];
        if (kind.family == AIBIT_GGML && s->version == 2) kind.family = AIBIT_ORDERED;
        bool known = s->version == 1 || kind.family == AIBIT_ORDERED;
        if (known && aibit_is(s->name, s->name_length, kind.name)) return kind;
    }
    for (uint8_t dtype = 1; s->version == 1 && dtype < AIBIT_DTYPES; dtype++) {
        const char *name = aibit_dtype_name(dtype);
        if (name && aibit_is(s->name, s->name_length, name)) return (aibit_kind){"", AIBIT_PLAIN, dtype, 0};
    }
    return (aibit_kind){"", AIBIT_UNKNOWN, 0, 0};
}

static inline bool aibit_is_scale(uint32_t dtype) { return dtype >= 10 && dtype <= 12; } /* f16, bf16 or f32 */

static inline bool aibit_parameters_fit(aibit_kind kind, const uint32_t p[6]) {
    uint32_t a = p[0];
    unsigned used = 0;
    bool fit = true, power = a && !(a & (a - 1));
    switch (kind.family) {
        case AIBIT_AFFINE:
            used = 1, fit = !a || a == UINT32_MAX || ((kind.b & 1) && a >= 16 && a <= 65536 && a % 16 == 0);
            break;
        case AIBIT_OUTLIER: used = kind.a ? 1 : 2, fit = a >= 1 && a <= 65535; break;
        case AIBIT_CLUSTER: used = 1 + kind.a, fit = a >= 2 && a <= 8 && p[1] <= 65536; break;
        case AIBIT_INT4: used = 3, fit = (!a || (power && a >= 16 && a <= 1024)) && p[1] <= 1 && p[2] <= (a > 0); break;
        case AIBIT_FOURBIT: used = 2, fit = power && a >= 32 && a <= 4096 && p[1] <= 1; break;
        case AIBIT_FP8BLOCK: used = 3, fit = a <= 65536 && p[1] <= 65536 && (aibit_is_scale(p[2]) || p[2] == 16); break;
        case AIBIT_INTGROUP:
            used = 5, fit = a >= 1 && a <= 8 && a != 7 && p[1] <= 65536 && aibit_is_scale(p[2]) && p[3] <= 3;
            fit = fit && p[4] <= (p[1] > 0);
            break;
        case AIBIT_MICRO:
            used = !kind.a || kind.b == 16, fit = kind.a ? kind.b == 32 || a <= 1 : a == 14 || a == 15;
            break;
        case AIBIT_TERNARY: used = 2, fit = aibit_is_scale(a) && p[1] <= 1; break;
        case AIBIT_W8A8: used = kind.a, fit = a <= kind.a; break;
    }
    for (unsigned i = used; i < 6; i++) fit = fit && p[i] == 0;
    return fit;
}

/* How many parameters of a tensor the scheme uses; of those that are not known here, all. */
static inline unsigned aibit_tensor_parameters(aibit_kind kind) {
    return kind.family == AIBIT_UNKNOWN ? 2 : kind.family == AIBIT_OUTLIER ? kind.a : 0;
}

static inline aibit_plane aibit_new_plane(uint16_t role, unsigned dtype, uint64_t elements) {
    return (aibit_plane){.role = role, .dtype = (uint8_t)dtype, .length = aibit_dtype_length(dtype, 1, elements)};
}

/* The planes of a tensor, their offsets aside; returns how many, or 0 if the scheme cannot hold it. The product of the
   dimensions that are not zero is below 2^60, so that nothing here wraps. */
static inline unsigned aibit_planes_of(aibit_kind kind, const uint32_t p[6], const aibit_tensor *t,
                                       aibit_plane out[6]) {
    enum { BOOL = 1, U8, I8, U16, I16, U32, I32, U64, I64, F16, BF16, F32, F64, F8_E4M3, F8_E5M2, F8_E8M0 };
    static const uint8_t unsigned_of[9] = {0, 23, 21, 26, 19, 27, 28, 0, U8}; /* u1 to u8 */
    enum { VALUES = 1, CODES, ROW_ABSMAX, ABSMAX, NESTED_ABSMAX, NESTED_OFFSET, SCALE, ZERO_POINT, CODEBOOK,
           GROUP_INDEX, OUTLIER_INDEX, OUTLIER_VALUES, TILES, BLOCKS, TILE_ABSMAX, GLOBAL_SCALE, BIAS, COLUMN_ORDER,
           INPUT_SCALE, INPUT_ZERO_POINT };
    unsigned n = 0;
    uint64_t k = t->rank ? t->shape[t->rank - 1] : 1, rows = 1, a = p[0], scales;
    uint64_t outliers = kind.a ? t->parameters[0] : p[1];
    uint64_t matrices = 1, high;
    unsigned codes;
    for (int i = 0; i + 1 < t->rank; i++) rows *= t->shape[i];
    for (int i = 0; i + 2 < t->rank; i++) matrices *= t->shape[i];
    if (kind.family == AIBIT_PLAIN) {
        if (t->dtype != kind.a) return 0;
        out[n] = aibit_new_plane(VALUES, t->dtype, 0);
        out[n++].length = aibit_dtype_length(t->dtype, rows, k);
        return n;
    }
    bool two = kind.family >= AIBIT_FP8BLOCK || kind.family == AIBIT_INT8 || kind.family == AIBIT_OUTLIER ||
               kind.family == AIBIT_INT4;
    if (t->dtype < F16 || t->dtype > F32 || t->rank < 1 + two) return 0;
    switch (kind.family) {
        case AIBIT_OUTLIER:
            if (outliers > rows || rows > UINT64_C(1) << 32) return 0; /* fall through */
        case AIBIT_INT8:
            out[n++] = aibit_new_plane(CODES, I8, rows * k);
            out[n++] = aibit_new_plane(ROW_ABSMAX, F32, rows);
            if (kind.family == AIBIT_INT8) break;
            out[n++] = aibit_new_plane(OUTLIER_INDEX, U32, outliers);
            out[n++] = aibit_new_plane(OUTLIER_VALUES, F16, outliers * k);
            break;
        case AIBIT_AFFINE:
            scales = a == UINT32_MAX ? 1 : a ? rows * aibit_up(k, a) : rows;
            out[n++] = aibit_new_plane(CODES, kind.a, rows * k);
            out[n++] = aibit_new_plane(SCALE, F32, scales);
            if (kind.b & 2) out[n++] = aibit_new_plane(ZERO_POINT, U8, scales);
            break;
        case AIBIT_CLUSTER:
            out[n++] = aibit_new_plane(CODES, U8, rows * aibit_up(k * a, 8));
            if (kind.a) out[n++] = aibit_new_plane(SCALE, F16, rows * (p[1] ? aibit_up(k, p[1]) : k > 0));
            out[n++] = aibit_new_plane(CODEBOOK, F32, UINT64_C(1) << a);
            break;
        case AIBIT_INT4:
            scales = rows * (a ? aibit_up(k, a) : k > 0);
            out[n++] = aibit_new_plane(CODES, U8, rows * aibit_up(k, 2));
            out[n++] = aibit_new_plane(SCALE, F16, scales);
            if (!p[1]) out[n++] = aibit_new_plane(ZERO_POINT, U8, scales);
            if (p[2]) out[n++] = aibit_new_plane(GROUP_INDEX, I32, k);
            break;
        case AIBIT_FOURBIT:
            if (kind.a && (t->rank != 2 || rows % 32 || k % 64 || k % a)) return 0;
            scales = aibit_up(rows * k, a);
            out[n++] = aibit_new_plane(CODES, U8, aibit_up(rows * k, 2));
            out[n++] = aibit_new_plane(ABSMAX, p[1] ? U8 : F32, scales);
            if (p[1]) out[n++] = aibit_new_plane(NESTED_ABSMAX, F32, aibit_up(scales, 256));
            if (p[1]) out[n++] = aibit_new_plane(NESTED_OFFSET, F32, UINT64_C(1));
            if (kind.a) out[n++] = aibit_new_plane(TILES, U8, rows * (k / 2));
            if (kind.a) out[n++] = aibit_new_plane(TILE_ABSMAX, BF16, k / a * rows);
            break;
        case AIBIT_GGML: case AIBIT_ORDERED:
            if (k % (32 * kind.a)) return 0;
            out[n++] = aibit_new_plane(BLOCKS, U8, rows * (k / (32 * kind.a)) * kind.b);
            if (kind.family == AIBIT_ORDERED) out[n++] = aibit_new_plane(COLUMN_ORDER, I32, k);
            break;
        case AIBIT_FP8BLOCK:
            high = t->shape[t->rank - 2];
            scales = matrices * (a ? aibit_up(high, a) : high > 0);
            out[n++] = aibit_new_plane(CODES, F8_E4M3, rows * k);
            out[n++] = aibit_new_plane(SCALE, p[2], scales * (p[1] ? aibit_up(k, p[1]) : k != 0));
            break;
        case AIBIT_INTGROUP:
            scales = rows * (p[1] ? aibit_up(k, p[1]) : k != 0);
            out[n] = aibit_new_plane(CODES, unsigned_of[a], 0);
            out[n++].length = aibit_dtype_length(unsigned_of[a], rows, k);
            out[n++] = aibit_new_plane(SCALE, p[2], scales);
            if (p[3]) out[n++] = aibit_new_plane(p[3] == 3 ? BIAS : ZERO_POINT, p[3] == 1 ? U8 : p[2], scales);
            if (p[4]) out[n++] = aibit_new_plane(GROUP_INDEX, I32, k);
            break;
        case AIBIT_MICRO:
            codes = kind.a ? kind.a : p[0];
            out[n] = aibit_new_plane(CODES, codes, 0);
            out[n++].length = aibit_dtype_length(codes, rows, k);
            out[n++] = aibit_new_plane(SCALE, kind.b == 16 ? F8_E4M3 : F8_E8M0, rows * aibit_up(k, kind.b));
            if (kind.b == 16) out[n++] = aibit_new_plane(GLOBAL_SCALE, F32, matrices);
            break;
        case AIBIT_TERNARY:
            out[n] = aibit_new_plane(CODES, unsigned_of[2], 0);
            out[n++].length = aibit_dtype_length(unsigned_of[2], rows, k);
            out[n++] = aibit_new_plane(SCALE, a, matrices);
            break;
        case AIBIT_W8A8:
            out[n++] = aibit_new_plane(CODES, I8, rows * k);
            out[n++] = aibit_new_plane(SCALE, F32, rows);
            if (kind.a) out[n++] = aibit_new_plane(INPUT_SCALE, F32, matrices);
            if (a) out[n++] = aibit_new_plane(INPUT_ZERO_POINT, I8, matrices);
            break;
    }
    return n;
}

#endif
