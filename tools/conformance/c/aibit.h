/* aibit.h: list and verify .aibit files, version 1.1 (spec/aibit-1.md). C11, sha256.h and xxh3.h beside it, and nothing else.

       aibit_file file;
       const char *wrong = aibit_open(&file, data, size);       // every rule of level "open"
       if (!wrong) wrong = aibit_verify(&file);                 // digests of all leaves, and padding
       if (wrong) fprintf(stderr, "%s\n", wrong);               // "AIB-E602: the digest of a leaf is another"
       for (uint32_t i = 0; !wrong && i < file.tensors.count; i++) {
           aibit_tensor tensor = aibit_tensor_at(&file, i);
           printf("%.*s\n", tensor.name_length, tensor.name);   // printable ASCII, but no NUL at its end
       }

   `data` is the whole file, mapped or read, and must outlive `file`, which points into it. Nothing is written, printed
   or kept; memory for names and one copy of the front matter is taken while a file is opened. All of it may be called
   by several threads. Numbers of the file are compared with its size before they are used (section 16).

   Not checked: signatures that somebody demands (AIB-E605, AIB-E606); what several shards say together (AIB-E607,
   AIB-E608, and of AIB-E609 what one file does not show); and, of level "full", values and codes of planes
   (AIB-E502, AIB-E503) and the contents of documents (AIB-E705, AIB-E706, AIB-E707). Whoever opens a file answers for
   AIB-E801 to AIB-E803; aibit_list.c does. */

#ifndef AIBIT_H
#define AIBIT_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "sha256.h"
#include "xxh3.h"

enum { AIBIT_METADATA = 1, AIBIT_SCHEMES, AIBIT_DOCUMENTS, AIBIT_TENSORS, AIBIT_PLANES, AIBIT_STRINGS, AIBIT_LEAVES,
       AIBIT_SIGNATURES, AIBIT_STRONG_LEAVES = 10, AIBIT_FRONT_SIGNATURES, AIBIT_SLACK };
enum { AIBIT_ALIAS = 1, AIBIT_TRANSPOSED = 2 };
#define AIBIT_LEAF (UINT64_C(1) << 20)

typedef struct { const uint8_t *at; uint32_t count; uint64_t length; } aibit_section;
typedef struct { uint64_t start, end; } aibit_region;

typedef struct {
    const uint8_t *data;
    uint64_t size, front_end;
    uint32_t alignment;
    aibit_section metadata, schemes, documents, tensors, planes, strings, leaves, signatures, strong_leaves, front_signatures,
        slack;
    aibit_region documents_region, data_region;
} aibit_file;

typedef struct { const char *name; uint16_t name_length, version; uint32_t parameters[6]; } aibit_scheme;
typedef struct { const char *name; uint16_t name_length; uint64_t offset, length; } aibit_document;
typedef struct { uint32_t tensor; uint16_t role; uint8_t dtype; uint64_t offset, length; } aibit_plane;
typedef struct {
    const char *name;
    uint16_t name_length, flags, scheme, plane_count;
    uint32_t first_plane, target;
    uint32_t parameters[2];
    uint8_t dtype, rank;
    uint64_t shape[8];
} aibit_tensor;

/* --- numbers and names --------------------------------------------------------------------------------------- */

static inline uint16_t aibit_u16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static inline uint32_t aibit_u32(const uint8_t *p) { return xxh3_u32(p); }
static inline uint64_t aibit_u64(const uint8_t *p) { return xxh3_u64(p); }
static inline uint64_t aibit_up(uint64_t a, uint64_t b) { return a / b + (a % b != 0); } /* a / b, rounded up */
static inline uint64_t aibit_align(uint64_t x, uint64_t a) { return (x + a - 1) / a * a; } /* x is below 2^63 */

static inline bool aibit_is(const char *p, uint64_t n, const char *word) {
    return strlen(word) == n && !memcmp(p, word, (size_t)n);
}

static inline bool aibit_zero(const uint8_t *p, uint64_t length) {
    while (length > 0 && *p == 0) p++, length--;
    return length == 0;
}

static inline const char *aibit_role_name(unsigned role) {
    static const char *const names[] = {
        NULL, "values", "codes", "row_absmax", "absmax", "nested_absmax", "nested_offset", "scale", "zero_point",
        "codebook", "group_index", "outlier_index", "outlier_values", "tiles", "blocks", "tile_absmax",
        "global_scale", "bias", "column_order", "input_scale", "input_zero_point"};
    return role < sizeof names / sizeof *names ? names[role] : NULL;
}

/* --- records (sections 7, 8, 9, 11) --------------------------------------------------------------------------- */

static inline const char *aibit_name(const aibit_file *f, const uint8_t *record) {
    return (const char *)f->strings.at + aibit_u32(record);
}

static inline aibit_scheme aibit_scheme_at(const aibit_file *f, uint32_t i) {
    const uint8_t *p = f->schemes.at + 32 * (size_t)i;
    aibit_scheme s = {aibit_name(f, p), aibit_u16(p + 4), aibit_u16(p + 6), {0}};
    for (int k = 0; k < 6; k++) s.parameters[k] = aibit_u32(p + 8 + 4 * k);
    return s;
}

static inline aibit_document aibit_document_at(const aibit_file *f, uint32_t i) {
    const uint8_t *p = f->documents.at + 32 * (size_t)i;
    return (aibit_document){aibit_name(f, p), aibit_u16(p + 4), aibit_u64(p + 16), aibit_u64(p + 24)};
}

static inline aibit_plane aibit_plane_at(const aibit_file *f, uint32_t i) {
    const uint8_t *p = f->planes.at + 32 * (size_t)i;
    return (aibit_plane){aibit_u32(p), aibit_u16(p + 4), p[6], aibit_u64(p + 16), aibit_u64(p + 24)};
}

static inline aibit_tensor aibit_tensor_at(const aibit_file *f, uint32_t i) {
    const uint8_t *p = f->tensors.at + 96 * (size_t)i;
    aibit_tensor t = {.name = aibit_name(f, p), .name_length = aibit_u16(p + 4), .first_plane = aibit_u32(p + 8),
                      .target = aibit_u32(p + 12), .flags = aibit_u16(p + 16), .scheme = aibit_u16(p + 18),
                      .dtype = p[20], .rank = p[21], .plane_count = aibit_u16(p + 22),
                      .parameters = {aibit_u32(p + 24), aibit_u32(p + 28)}};
    for (int k = 0; k < 8; k++) t.shape[k] = aibit_u64(p + 32 + 8 * k);
    return t;
}

static inline uint64_t aibit_elements(const aibit_tensor *t) {
    uint64_t n = 1;
    for (int k = 0; k < t->rank; k++) n *= t->shape[k];
    return n;
}

/* --- rules: every check returns NULL or the code and the rule that is broken ------------------------------------- */

#define AIBIT_NEED(holds, text) do { if (!(holds)) return "AIB-" text; } while (0)
#define AIBIT_TRY(check) do { const char *wrong_ = (check); if (wrong_) return wrong_; } while (0)

static inline const char *aibit_check_header(aibit_file *f) { /* section 3 */
    static const uint8_t signature[10] = {0x89, 'a', 'i', 'b', 'i', 't', '\r', '\n', 0x1A, '\n'};
    const uint8_t *p = f->data;
    size_t there = f->size < 10 ? (size_t)f->size : 10;
    if (there > 0 && memcmp(p, signature, there) != 0) {
        size_t skip = p[0] == 0x89 || p[0] == 0x09;
        bool letters = there >= skip + 5 && memcmp(p + skip, "aibit", 5) == 0;
        AIBIT_NEED(!letters, "E103: the signature was damaged by a transfer");
        return "AIB-E102: the file has another signature";
    }
    AIBIT_NEED(f->size >= 128, "E101: the file ends inside its header");
    AIBIT_NEED(aibit_u16(p + 10) == 1, "E104: the major version is another");
    AIBIT_NEED(aibit_u64(p + 32) == 0, "E105: incompatible features");
    AIBIT_NEED(aibit_zero(p + 14, 2) && aibit_zero(p + 56, 56), "E106: reserved bytes of the header are not zero");
    f->alignment = aibit_u32(p + 48);
    AIBIT_NEED(f->alignment == 64 || f->alignment == 4096 || f->alignment == 2 << 20, "E107: alignment");
    AIBIT_NEED(aibit_u64(p + 16) == f->size, "E108: the file has another size than it says");
    uint32_t sections = aibit_u32(p + 52);
    AIBIT_NEED(sections >= 7 && sections <= 64, "E110: number of sections");
    uint64_t front = aibit_u64(p + 24);
    bool fits = front % 64 == 0 && front >= aibit_align(32 * (uint64_t)sections, 64) && front <= 1 << 26;
    AIBIT_NEED(fits && front <= f->size - 128, "E109: length of the front matter");
    f->front_end = 128 + front;
    uint8_t root[16], *joined = malloc((size_t)front + 112);
    if (!joined) return "out of memory";
    memcpy(joined, p, 112);
    memcpy(joined + 112, p + 128, (size_t)front);
    xxh3_128(joined, (size_t)front + 112, root);
    free(joined);
    AIBIT_NEED(memcmp(root, p + 112, 16) == 0, "E111: the root digest is another");
    return NULL;
}

static inline const char *aibit_check_sections(aibit_file *f) { /* section 4 */
    aibit_section *const known[] = {NULL,        &f->metadata, &f->schemes, &f->documents,
                                    &f->tensors, &f->planes,   &f->strings, &f->leaves,
                                    &f->signatures, NULL, &f->strong_leaves, &f->front_signatures, &f->slack};
    static const uint32_t record[] = {0, 0, 32, 32, 96, 32, 0, 0};
    static const uint32_t most[] = {0, 1 << 16, 1 << 12, 1 << 12, 1 << 20, UINT32_MAX, 0, UINT32_MAX};
    uint32_t count = aibit_u32(f->data + 52);
    const uint8_t *table = f->data + 128;
    for (uint32_t i = 0; i < count; i++) {
        unsigned kind = aibit_u16(table + 32 * i), before = i ? aibit_u16(table + 32 * (i - 1)) : 0;
        AIBIT_NEED(kind > before && (i >= 7 || kind == i + 1), "E201: kinds of sections");
    }
    uint64_t used = 128 + 32 * (uint64_t)count, position = 128 + aibit_align(32 * (uint64_t)count, 64);
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *p = table + 32 * i;
        unsigned kind = aibit_u16(p), flags = aibit_u16(p + 2);
        uint64_t offset = aibit_u64(p + 8), length = aibit_u64(p + 16);
        AIBIT_NEED(kind <= 7 || !(flags & 1), "E202: a critical section of an unknown kind");
        AIBIT_NEED(flags == (kind <= 7) && aibit_zero(p + 24, 8), "E205: flags or reserved bytes of a section");
        AIBIT_NEED(offset == position && length <= f->front_end - position, "E208: place of a section");
        AIBIT_NEED(aibit_zero(f->data + used, position - used), "E209: padding between sections is not zero");
        used = position + length;
        position = aibit_align(used, 64);
        if (kind <= AIBIT_SLACK && known[kind])
            *known[kind] = (aibit_section){f->data + offset, aibit_u32(p + 4), length};
    }
    AIBIT_NEED(position == f->front_end, "E208: the front matter does not end with its sections");
    AIBIT_NEED(aibit_zero(f->data + used, position - used), "E209: padding after the sections is not zero");
    for (unsigned kind = 1; kind <= 7; kind++) {
        uint64_t entries = known[kind]->count;
        bool right = !record[kind] || known[kind]->length == entries * record[kind];
        AIBIT_NEED(right, "E203: length and count of a section");
        AIBIT_NEED(kind == AIBIT_STRINGS || entries <= most[kind], "E204: too many entries");
    }
    AIBIT_NEED(f->strings.count == 0 && f->slack.count == 0, "E203: the string pool or the slack has a count");
    AIBIT_NEED(f->slack.length % 64 == 0 && f->slack.length <= 1 << 24, "E204: length of the slack");
    AIBIT_NEED(!f->slack.at || aibit_zero(f->slack.at, f->slack.length), "E209: the slack is not zero");
    return NULL;
}

static inline const char *aibit_check_signatures(const aibit_section *s, unsigned algorithm) { /* 24: their shape */
    if (!s->at) return NULL;
    AIBIT_NEED(s->count == 8 && s->length == 8 * 104, "E604: number of signatures");
    unsigned used = 0;
    for (const uint8_t *p = s->at; used < 8 && aibit_u16(p); used++, p += 104) {
        AIBIT_NEED(aibit_u16(p) == algorithm && aibit_zero(p + 2, 6), "E604: algorithm or reserved bytes of a signature");
        AIBIT_NEED(!used || memcmp(p - 104 + 8, p + 8, 32) < 0, "E604: order of signatures");
    }
    bool rest = aibit_zero(s->at + 104 * used, 104 * (8 - used));
    AIBIT_NEED(used > 0 && rest, "E604: no signature, or unused records that are not zero");
    return NULL;
}

static inline const char *aibit_check_signed(const aibit_file *f) {
    AIBIT_TRY(aibit_check_signatures(&f->signatures, 1));
    AIBIT_TRY(aibit_check_signatures(&f->front_signatures, 2));
    if (!f->front_signatures.at) return NULL;
    AIBIT_NEED(f->strong_leaves.at && !f->signatures.at, "E604: no strong leaves, or both sections of signatures");
    return NULL;
}

static inline int aibit_compare(const uint8_t *a, uint64_t m, const uint8_t *b, uint64_t n) { /* in byte order */
    int order = memcmp(a, b, (size_t)(m < n ? m : n));
    return order ? order : (m > n) - (m < n);
}

typedef struct { const uint8_t *at; uint64_t length; } aibit_bytes;

static inline int aibit_by_bytes(const void *a, const void *b) {
    const aibit_bytes *x = a, *y = b;
    return aibit_compare(x->at, x->length, y->at, y->length);
}

#include "aibit_text.h"

static inline const char *aibit_check_names(const aibit_file *f) { /* section 6 */
    const struct { const aibit_section *table; size_t size; } tables[] = {
        {&f->schemes, 32}, {&f->documents, 32}, {&f->tensors, 96}};
    uint64_t pool = f->strings.length, position = 0;
    for (int rules = 0; rules < 3; rules++) /* every length and place, then every character, then the order */
        for (int k = 0; k < 3; k++)
            for (uint32_t i = 0; i < tables[k].table->count; i++) {
                const uint8_t *p = tables[k].table->at + tables[k].size * i;
                uint64_t offset = aibit_u32(p), n = aibit_u16(p + 4);
                if (rules == 0) {
                    AIBIT_NEED(n >= 1 && n <= 255, "E211: length of a name");
                    AIBIT_NEED(offset <= pool && n <= pool - offset, "E210: a name outside the string pool");
                    continue;
                }
                const uint8_t *name = f->strings.at + offset;
                if (rules == 1) {
                    AIBIT_NEED(k != 0 || aibit_is_parts(name, n, "-.:", 0), "E213: name of a scheme");
                    AIBIT_NEED(k != 1 || aibit_is_document_name(name, n), "E701: name of a document");
                    AIBIT_NEED(k != 2 || aibit_is_tensor_name(name, n), "E214: name of a tensor");
                    continue;
                }
                bool next = offset == position && n < pool - offset && name[n] == '\n';
                AIBIT_NEED(next, "E212: order of the string pool");
                position += n + 1;
            }
    AIBIT_NEED(position == pool, "E212: bytes after the last name");
    return NULL;
}

/* --- schemes (section 7) -------------------------------------------------------------------------------------- */

#include "aibit_schemes.h"

static inline const char *aibit_check_schemes(const aibit_file *f) { /* section 7 */
    for (uint32_t i = 0; i < f->schemes.count; i++) {
        aibit_scheme s = aibit_scheme_at(f, i);
        aibit_kind kind = aibit_kind_of(&s);
        bool fit = kind.family == AIBIT_UNKNOWN || aibit_parameters_fit(kind, s.parameters);
        AIBIT_NEED(fit, "E407: parameters of a scheme");
    }
    bool used[1 << 12] = {false};
    for (uint32_t i = 0; i < f->tensors.count; i++) {
        uint16_t scheme = aibit_u16(f->tensors.at + 96 * (size_t)i + 18);
        AIBIT_NEED(scheme < f->schemes.count, "E416: the scheme of a tensor is not in the table");
        used[scheme] = true;
    }
    for (uint32_t i = 0; i < f->schemes.count; i++) {
        AIBIT_NEED(used[i], "E416: a scheme that no tensor uses");
        if (i == 0) continue;
        aibit_scheme a = aibit_scheme_at(f, i - 1), b = aibit_scheme_at(f, i);
        int order = aibit_compare((const uint8_t *)a.name, a.name_length, (const uint8_t *)b.name, b.name_length);
        if (order == 0) order = (a.version > b.version) - (a.version < b.version);
        for (int k = 0; k < 6 && order == 0; k++)
            order = (a.parameters[k] > b.parameters[k]) - (a.parameters[k] < b.parameters[k]);
        AIBIT_NEED(order < 0, "E416: schemes are not strictly increasing");
    }
    return NULL;
}

/* --- tensors, planes and documents (sections 8, 9, 11) ----------------------------------------------------------- */

static inline const char *aibit_check_shape(const aibit_tensor *t) {
    AIBIT_NEED(t->flags <= 3 && (!(t->flags & AIBIT_TRANSPOSED) || t->rank == 2 || t->rank == 3), "E415: flags of a tensor");
    AIBIT_NEED(t->rank <= 8, "E402: rank of a tensor");
    for (int k = t->rank; k < 8; k++) AIBIT_NEED(t->shape[k] == 0, "E402: a dimension beyond the rank");
    uint64_t left = (UINT64_C(1) << 60) - 1; /* divide, so that nothing wraps */
    for (int k = 0; k < t->rank; k++) {
        AIBIT_NEED(t->shape[k] <= left, "E403: the shape is beyond any file");
        if (t->shape[k]) left /= t->shape[k];
    }
    return NULL;
}

/* Whether planes follow from the scheme; if it or the dtype is unknown here, the plane table alone says which there are. */
static inline bool aibit_is_known(const aibit_scheme *s, const aibit_tensor *t) {
    return aibit_kind_of(s).family != AIBIT_UNKNOWN && aibit_dtype_bits(t->dtype) > 0;
}

static inline const char *aibit_check_tensors(const aibit_file *f) {
    uint64_t first = 0;
    for (uint32_t i = 0; i < f->tensors.count; i++) {
        const uint8_t *record = f->tensors.at + 96 * (size_t)i;
        aibit_tensor t = aibit_tensor_at(f, i);
        aibit_scheme s = aibit_scheme_at(f, t.scheme);
        aibit_plane planes[6];
        bool alias = t.flags & AIBIT_ALIAS;
        AIBIT_NEED(aibit_zero(record + 6, 2), "E415: reserved bytes of a tensor");
        unsigned own = aibit_tensor_parameters(aibit_kind_of(&s));
        for (unsigned k = own; k < 2; k++) AIBIT_NEED(t.parameters[k] == 0, "E415: parameters of a tensor");
        AIBIT_TRY(aibit_check_shape(&t));
        AIBIT_NEED(alias ? t.target < i : t.target == 0, "E411: target of a tensor");
        if (alias) { /* scheme to rank, and parameters and shape, are the same bytes */
            const uint8_t *other = f->tensors.at + 96 * (size_t)t.target;
            bool same = !memcmp(record + 18, other + 18, 4) && !memcmp(record + 24, other + 24, 72);
            AIBIT_NEED(same && (aibit_u16(other + 16) ^ t.flags) == AIBIT_ALIAS, "E411: an alias of something else");
        }
        unsigned count = t.plane_count;
        if (aibit_is_known(&s, &t)) {
            count = aibit_planes_of(aibit_kind_of(&s), s.parameters, &t, planes);
            AIBIT_NEED(count > 0, "E413: the scheme cannot hold the tensor");
        }
        if (alias) count = 0;
        AIBIT_NEED(t.plane_count == count && t.first_plane == (count ? first : 0), "E401: planes of a tensor");
        first += count;
    }
    AIBIT_NEED(f->planes.count == first, "E401: number of planes");
    uint8_t roles[1 << 13];
    for (uint32_t i = 0; i < f->tensors.count; i++) {
        aibit_tensor t = aibit_tensor_at(f, i);
        aibit_scheme s = aibit_scheme_at(f, t.scheme);
        aibit_plane planes[6];
        bool known = aibit_is_known(&s, &t);
        if (known) aibit_planes_of(aibit_kind_of(&s), s.parameters, &t, planes);
        for (unsigned k = 0; k < t.plane_count; k++) {
            aibit_plane p = aibit_plane_at(f, t.first_plane + k);
            bool right = p.tensor == i && (!known || (p.role == planes[k].role && p.dtype == planes[k].dtype));
            if (!known) { /* each role once */
                if (k == 0) memset(roles, 0, sizeof roles);
                right = right && !(roles[p.role / 8] & 1 << p.role % 8);
                roles[p.role / 8] |= (uint8_t)(1 << p.role % 8);
            }
            AIBIT_NEED(right, "E412: tensor, role or dtype of a plane");
            unsigned size = aibit_dtype_bits(p.dtype) / 8; /* 0 also where nobody knows the length of a row */
            bool whole = known ? p.length == planes[k].length : size == 0 || p.length % size == 0;
            AIBIT_NEED(whole, "E405: length of a plane");
            const uint8_t *reserved = f->planes.at + 32 * (size_t)(t.first_plane + k) + 7;
            AIBIT_NEED(aibit_zero(reserved, 9), "E415: reserved bytes of a plane");
        }
    }
    return NULL;
}

static inline int aibit_by_letters(const void *a, const void *b) { /* case aside */
    const aibit_bytes *x = a, *y = b;
    for (uint64_t i = 0; i < x->length && i < y->length; i++) {
        int order = aibit_lower(x->at[i]) - aibit_lower(y->at[i]);
        if (order) return order;
    }
    return (x->length > y->length) - (x->length < y->length);
}

static inline const char *aibit_check_unique(const aibit_file *f) {
    uint32_t most = f->tensors.count > f->documents.count ? f->tensors.count : f->documents.count;
    aibit_bytes *names = malloc((most + (size_t)1) * sizeof *names);
    if (!names) return "out of memory";
    bool tensors = true, documents = true;
    for (uint32_t i = 0; i < f->tensors.count; i++) {
        aibit_tensor t = aibit_tensor_at(f, i);
        names[i] = (aibit_bytes){(const uint8_t *)t.name, t.name_length};
    }
    qsort(names, f->tensors.count, sizeof *names, aibit_by_bytes);
    for (uint32_t i = 1; i < f->tensors.count; i++) tensors = tensors && aibit_by_bytes(names + i - 1, names + i) < 0;
    for (uint32_t i = 0; i < f->documents.count; i++) {
        aibit_document d = aibit_document_at(f, i);
        names[i] = (aibit_bytes){(const uint8_t *)d.name, d.name_length};
        documents = documents && (i == 0 || aibit_by_bytes(names + i - 1, names + i) < 0);
    }
    qsort(names, f->documents.count, sizeof *names, aibit_by_letters);
    for (uint32_t i = 0; i < f->documents.count; i++) {
        documents = documents && (i == 0 || aibit_by_letters(names + i - 1, names + i) < 0);
        aibit_bytes folder = names[i];
        for (folder.length = 1; folder.length < names[i].length; folder.length++) {
            if (folder.at[folder.length] != '/') continue;
            if (bsearch(&folder, names, f->documents.count, sizeof folder, aibit_by_letters)) documents = false;
        }
    }
    free(names);
    AIBIT_NEED(tensors, "E414: two tensors have one name");
    AIBIT_NEED(documents, "E703: order of the documents, or names that clash");
    return NULL;
}

/* --- placement (section 13) ------------------------------------------------------------------------------------ */

static inline bool aibit_is_bulk(const aibit_file *f, const aibit_plane *p) {
    return p->length >= f->alignment && 
           (p->role == 1 || p->role == 2 || p->role == 13 || p->role == 14 || p->role >= 0x8000);
}

static inline const char *aibit_check_places(aibit_file *f) {
    uint64_t position = f->front_end, total = 0;
    for (uint32_t i = 0; i < f->documents.count; i++) {
        aibit_document d = aibit_document_at(f, i);
        AIBIT_NEED(aibit_zero(f->documents.at + 32 * (size_t)i + 6, 10), "E415: reserved bytes of a document");
        AIBIT_NEED(d.length <= 1 << 28, "E702: size of a document");
        AIBIT_NEED(d.offset == position, "E704: place of a document");
        position += aibit_align(d.length, 64);
    }
    f->documents_region = (aibit_region){f->front_end, position};
    for (uint32_t i = 0; i < f->planes.count; i++) {
        aibit_plane p = aibit_plane_at(f, i);
        AIBIT_NEED(p.length <= f->size - total, "E408: planes larger than the file");
        total += p.length;
    }
    uint64_t length = 0, next = 0, step = 64, start = 0;
    for (int placed = 0; placed < 2; placed++) { /* how long the data are; then, from where they start, every plane */
        next = length = 0;
        for (int bulk = 0; bulk < 2; bulk++)
            for (uint32_t i = 0; i < f->planes.count; i++) {
                aibit_plane p = aibit_plane_at(f, i);
                if (aibit_is_bulk(f, &p) != bulk) continue;
                uint64_t a = bulk ? f->alignment : 64, at = aibit_align(next, a);
                if (bulk) step = a;
                if (placed) {
                    bool inside = p.offset >= start && p.offset <= f->size && p.length <= f->size - p.offset;
                    AIBIT_NEED(inside, "E408: a plane outside the data");
                    AIBIT_NEED(p.offset % a == 0, "E409: alignment of a plane");
                    AIBIT_NEED(p.offset == start + at, "E410: place of a plane");
                }
                length = at + p.length;
                next = aibit_align(length, a);
            }
        if (length >= 64 << 20 && step < 2 << 20) step = 2 << 20;
        start = aibit_align(position, step);
    }
    AIBIT_NEED(start + length == f->size, "E108: the file does not end where its data do");
    f->data_region = (aibit_region){start, f->size};
    uint64_t leaves = aibit_up(position - f->front_end, AIBIT_LEAF) + aibit_up(length, AIBIT_LEAF);
    AIBIT_NEED(f->leaves.count == leaves && f->leaves.length == 8 * leaves, "E601: length of the leaf table");
    bool strong = f->strong_leaves.count == leaves && f->strong_leaves.length == 32 * leaves;
    AIBIT_NEED(!f->strong_leaves.at || strong, "E601: length of the strong leaves");
    return NULL;
}

/* --- opening and verification ---------------------------------------------------------------------------------- */

static inline const char *aibit_open(aibit_file *f, const void *data, uint64_t size) {
    *f = (aibit_file){.data = data, .size = size};
    if (size > SIZE_MAX) return "AIB-E803: the file does not fit into the address space";
    AIBIT_TRY(aibit_check_header(f));
    AIBIT_TRY(aibit_check_sections(f));
    AIBIT_TRY(aibit_check_signed(f));
    AIBIT_TRY(aibit_check_names(f));
    AIBIT_TRY(aibit_check_schemes(f));
    AIBIT_TRY(aibit_check_tensors(f));
    AIBIT_TRY(aibit_check_unique(f));
    AIBIT_TRY(aibit_check_places(f));
    return aibit_check_metadata(f);
}

static inline const char *aibit_verify(const aibit_file *f) { /* section 14 */
    const aibit_region regions[] = {f->documents_region, f->data_region};
    const uint8_t *leaf = f->leaves.at, *strong = f->strong_leaves.at;
    for (int i = 0; i < 2; i++)
        for (uint64_t at = regions[i].start; at < regions[i].end; at += AIBIT_LEAF, leaf += 8) {
            uint64_t length = regions[i].end - at < AIBIT_LEAF ? regions[i].end - at : AIBIT_LEAF;
            bool same = xxh3_64(f->data + at, (size_t)length) == aibit_u64(leaf);
            AIBIT_NEED(same, "E602: the digest of a leaf is another");
            if (!strong) continue;
            uint8_t digest[32];
            sha256(f->data + at, (size_t)length, digest);
            AIBIT_NEED(memcmp(digest, strong, 32) == 0, "E602: the strong digest of a leaf is another");
            strong += 32;
        }
    uint64_t position = f->front_end;
    for (uint32_t i = 0; i < f->documents.count; i++) {
        aibit_document d = aibit_document_at(f, i);
        AIBIT_NEED(aibit_zero(f->data + position, d.offset - position), "E603: padding after a document is not zero");
        position = d.offset + d.length;
    }
    for (int bulk = 0; bulk < 2; bulk++)
        for (uint32_t i = 0; i < f->planes.count; i++) {
            aibit_plane p = aibit_plane_at(f, i);
            if (aibit_is_bulk(f, &p) != bulk) continue;
            AIBIT_NEED(aibit_zero(f->data + position, p.offset - position), "E603: padding before a plane is not zero");
            position = p.offset + p.length;
        }
    AIBIT_NEED(aibit_zero(f->data + position, f->size - position), "E603: padding at the end is not zero");
    return NULL;
}

#endif
