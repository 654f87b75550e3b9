/* Names and metadata of .aibit files: sections 5, 6, 11 and 20 of spec/aibit-1.md. A part of aibit.h. */

#ifndef AIBIT_TEXT_H
#define AIBIT_TEXT_H

/* --- names (section 6) ---------------------------------------------------------------------------------------- */

/* Parts of a-z 0-9 _ joined by one of `joints`, beginning with a letter. */
static inline bool aibit_is_parts(const uint8_t *p, uint64_t n, const char *joints, unsigned least) {
    unsigned found = 0;
    bool after_joint = true; /* none comes first */
    for (uint64_t i = 0; i < n; i++) {
        bool joint = p[i] && strchr(joints, p[i]), letter = p[i] >= 'a' && p[i] <= 'z';
        bool word = letter || (i > 0 && (p[i] == '_' || (p[i] >= '0' && p[i] <= '9')));
        if (joint ? after_joint || i + 1 == n : !word) return false;
        after_joint = joint;
        found += joint;
    }
    return n > 0 && found >= least;
}

static inline bool aibit_is_tensor_name(const uint8_t *p, uint64_t n) {
    for (uint64_t i = 0; i < n; i++)
        if (p[i] < 0x21 || p[i] > 0x7E || p[i] == '"' || p[i] == '\'' || p[i] == '\\') return false;
    return n < 2 || p[0] != '_' || p[1] != '_';
}

static inline uint8_t aibit_lower(uint8_t c) { return c >= 'A' && c <= 'Z' ? (uint8_t)(c + 32) : c; }

static inline bool aibit_is_component(const uint8_t *p, uint64_t n) { /* of a document's name */
    uint64_t stem = 0;
    for (uint64_t i = 0; i < n; i++) {
        uint8_t c = aibit_lower(p[i]);
        bool word = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
        if (!word && (i == 0 || (c != '.' && c != '+' && c != '-'))) return false;
        if (stem == i && c != '.') stem++;
    }
    char s[5] = {0};
    for (uint64_t i = 0; i < stem && stem <= 4; i++) s[i] = (char)aibit_lower(p[i]);
    bool device = !strcmp(s, "con") || !strcmp(s, "prn") || !strcmp(s, "aux") || !strcmp(s, "nul");
    bool port = (!strncmp(s, "com", 3) || !strncmp(s, "lpt", 3)) && s[3] >= '0' && s[3] <= '9';
    return n > 0 && p[n - 1] != '.' && !device && !port;
}

static inline bool aibit_is_document_name(const uint8_t *p, uint64_t n) {
    uint64_t start = 0;
    for (uint64_t i = 0; i <= n; i++) {
        if (i < n && p[i] != '/') continue;
        if (!aibit_is_component(p + start, i - start)) return false;
        start = i + 1;
    }
    return true;
}

/* --- metadata (sections 5 and 20) --------------------------------------------------------------------------------- */

enum { AIBIT_INT = 1, AIBIT_FLOAT, AIBIT_BOOL, AIBIT_STRING, AIBIT_BYTES };

static inline const char *aibit_check_text(const uint8_t *p, uint64_t n) {
    for (uint64_t i = 0; i < n;) {
        unsigned c = p[i];
        uint64_t more = c < 0x80 ? 0 : c < 0xC2 ? n : c < 0xE0 ? 1 : c < 0xF0 ? 2 : c < 0xF5 ? 3 : n;
        AIBIT_NEED(more < n - i, "E206: not UTF-8");
        for (uint64_t k = 1; k <= more; k++) { /* no overlong forms, no surrogates, nothing beyond U+10FFFF */
            unsigned low = k > 1 ? 0x80 : c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80;
            unsigned high = k > 1 ? 0xBF : c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
            AIBIT_NEED(p[i + k] >= low && p[i + k] <= high, "E206: not UTF-8");
        }
        i += more + 1;
    }
    for (uint64_t i = 0; i < n; i++)
        AIBIT_NEED((p[i] >= 0x20 && p[i] != 0x7F) || p[i] == '\t' || p[i] == '\n', "E207: a control character");
    return NULL;
}

/* One entry; its key and value point into the file. */
typedef struct {
    const char *key;
    uint16_t key_length;
    uint8_t type, is_array;
    uint32_t count;
    uint64_t length;
    const uint8_t *value;
} aibit_entry;

static inline const char *aibit_check_value(const aibit_entry *e, uint64_t *strings) {
    static const uint8_t sizes[] = {0, 8, 8, 1, 0, 0};
    const uint8_t *p = e->value, *end = p + e->length;
    uint64_t size = sizes[e->type], items = e->count;
    AIBIT_NEED(e->is_array <= 1 && (e->is_array || items == 1), "E305: is_array or count of a metadata value");
    AIBIT_NEED(items > 0 || e->type == AIBIT_INT || e->length > 0, "E308: an empty array of another type than int");
    AIBIT_NEED(!size || e->length == items * size, "E305: length of a metadata value");
    for (uint64_t i = 0; size && i < items; i++, p += size) {
        AIBIT_NEED(e->type != AIBIT_FLOAT || (aibit_u64(p) >> 52 & 0x7FF) != 0x7FF, "E307: a float that is not finite");
        AIBIT_NEED(e->type != AIBIT_BOOL || *p <= 1, "E306: a bool that is neither 0 nor 1");
    }
    if (size) return NULL;
    *strings += items;
    AIBIT_NEED(*strings <= 1 << 20, "E305: too many strings");
    for (uint64_t i = 0; i < items; i++) {
        uint64_t n = (uint64_t)(end - p);
        if (e->is_array) {
            AIBIT_NEED(n >= 4, "E305: an item is cut off");
            n = aibit_u32(p), p += 4;
            AIBIT_NEED(n <= (uint64_t)(end - p), "E305: an item ends beyond its value");
        }
        if (e->type == AIBIT_STRING) AIBIT_TRY(aibit_check_text(p, n));
        p += n;
    }
    AIBIT_NEED(p == end, "E305: bytes after the last item");
    return NULL;
}

/* The entry at `position` of the section, which moves behind it. */
static inline const char *aibit_next_entry(const aibit_file *f, uint64_t *position, aibit_entry *e) {
    const uint8_t *p = f->metadata.at + *position;
    uint64_t left = f->metadata.length - *position;
    AIBIT_NEED(left >= 16 && aibit_u16(p) <= left - 16, "E301: a metadata entry is cut off");
    *e = (aibit_entry){(const char *)p + 16, aibit_u16(p), p[2], p[3], aibit_u32(p + 4), aibit_u64(p + 8), NULL};
    e->value = p + 16 + e->key_length;
    left -= 16 + (uint64_t)e->key_length;
    AIBIT_NEED(e->key_length <= 255 && aibit_is_parts(p + 16, e->key_length, ".", 1), "E302: a metadata key");
    AIBIT_NEED(e->type >= 1 && e->type <= 5, "E304: type of a metadata value");
    AIBIT_NEED(e->length <= left, "E301: a metadata value ends beyond the section");
    *position = f->metadata.length - left + e->length;
    return NULL;
}

/* Keys that have a meaning. Those of one group are arrays of one length, all there or none. */
enum { AIBIT_GROUPS = 5 }; /* of parallel arrays, counted from 1 */
enum { AIBIT_ARCHITECTURE, AIBIT_PARAMETERS, AIBIT_ERROR_TENSOR, AIBIT_SHARD_INDEX, AIBIT_SHARD_COUNT,
       AIBIT_SHARD_ROOTS, AIBIT_SHARD_PLACES, AIBIT_VOCABULARY_SIZE, AIBIT_PRUNED, AIBIT_KEYS = 33 };
static const struct { const char *key; uint8_t type, is_array, group; } aibit_keys[AIBIT_KEYS] = {
    [AIBIT_ARCHITECTURE] = {"model.architecture", AIBIT_STRING, 0, 0},
    [AIBIT_PARAMETERS] = {"model.parameters", AIBIT_INT, 0, 0},
    [AIBIT_ERROR_TENSOR] = {"quantization.error.tensor", AIBIT_INT, 1, 2},
    [AIBIT_SHARD_INDEX] = {"shard.index", AIBIT_INT, 0, 0},
    [AIBIT_SHARD_COUNT] = {"shard.count", AIBIT_INT, 0, 0},
    [AIBIT_SHARD_ROOTS] = {"shard.roots", AIBIT_STRING, 1, 0},
    [AIBIT_SHARD_PLACES] = {"shard.places", AIBIT_INT, 1, 0},
    [AIBIT_VOCABULARY_SIZE] = {"vocabulary.size", AIBIT_INT, 0, 0},
    [AIBIT_PRUNED] = {"pruning.kept.count", AIBIT_INT, 1, 4}, {"vocabulary.source", AIBIT_STRING, 1, 0},
    {"pruning.kept.step", AIBIT_INT, 1, 4},
    {"pruning.kept.kind", AIBIT_STRING, 1, 4}, {"pruning.kept.layer", AIBIT_INT, 1, 4},
    {"pruning.kept.expert", AIBIT_INT, 1, 4},
    {"pruning.applied", AIBIT_STRING, 1, 3}, {"pruning.scores", AIBIT_STRING, 1, 3},
    {"quantization.error.relative_rms", AIBIT_FLOAT, 1, 2}, {"quantization.error.largest", AIBIT_FLOAT, 1, 2},
    {"quantization.error.signal_to_noise_db", AIBIT_FLOAT, 1, 2},
    {"source.files", AIBIT_STRING, 1, 1}, {"source.sizes", AIBIT_INT, 1, 1}, {"source.xxh3_128", AIBIT_STRING, 1, 1},
    {"source.kind", AIBIT_STRING, 0, 0}, {"tool.name", AIBIT_STRING, 0, 0}, {"tool.version", AIBIT_STRING, 0, 0},
    {"tool.libraries", AIBIT_STRING, 1, 0}, {"model.type", AIBIT_STRING, 0, 0}, {"model.dtype", AIBIT_STRING, 0, 0},
    {"model.missing", AIBIT_STRING, 0, 0}, {"config.dropped_keys", AIBIT_STRING, 1, 0},
    {"quantization.recipe", AIBIT_STRING, 1, 0}, {"quantization.compute_dtype", AIBIT_STRING, 0, 0},
    {"quantization.outlier_threshold", AIBIT_FLOAT, 0, 0}};

/* All entries after each was looked at by itself: those of known keys, if they are there, and how many there are. */
typedef struct { aibit_entry known[AIBIT_KEYS]; uint64_t count, of_shards; } aibit_known;

static inline const char *aibit_check_type(const aibit_entry *e, aibit_known *all) {
    all->count++;
    all->of_shards += e->key_length > 6 && !memcmp(e->key, "shard.", 6);
    for (size_t i = 0; i < AIBIT_KEYS; i++) {
        if (!aibit_is(e->key, e->key_length, aibit_keys[i].key)) continue;
        bool empty = e->is_array && e->count == 0 && aibit_keys[i].is_array;
        bool right = e->type == aibit_keys[i].type && e->is_array == aibit_keys[i].is_array;
        AIBIT_NEED(empty || right, "E309: type of a known metadata key");
        all->known[i] = *e;
    }
    return NULL;
}

/* What a file says of the set of shards that it belongs to, as far as it shows (section 25). */
static inline const char *aibit_check_shard(const aibit_file *f, const aibit_known *all) {
    const aibit_entry *index = all->known + AIBIT_SHARD_INDEX, *count = all->known + AIBIT_SHARD_COUNT;
    const aibit_entry *roots = all->known + AIBIT_SHARD_ROOTS, *places = all->known + AIBIT_SHARD_PLACES;
    AIBIT_NEED(index->key && count->key, "E609: shard.index or shard.count is missing");
    uint64_t i = aibit_u64(index->value), n = aibit_u64(count->value);
    AIBIT_NEED(i >= 1 && i <= n && n <= 99999, "E609: place in the set of shards");
    AIBIT_NEED(i == 1 || (all->count == 2 && f->documents.count == 0), "E609: metadata or documents in a later shard");
    if (i > 1) return NULL;
    AIBIT_NEED(roots->key && places->key && roots->count == n - 1, "E609: shard.roots or shard.places");
    const uint8_t *p = roots->value;
    for (uint64_t k = 0; k + 1 < n; k++, p += 36) { /* each a length and 32 digits */
        AIBIT_NEED(aibit_u32(p) == 32, "E609: a root digest in shard.roots");
        for (int d = 4; d < 36; d++)
            AIBIT_NEED((p[d] >= '0' && p[d] <= '9') || (p[d] >= 'a' && p[d] <= 'f'), "E609: a digit in shard.roots");
    }
    return NULL;
}

static inline const char *aibit_check_known(const aibit_file *f, const aibit_known *all) {
    unsigned there[AIBIT_GROUPS] = {0}, wanted[AIBIT_GROUPS] = {0};
    uint32_t lengths[AIBIT_GROUPS] = {0};
    for (size_t i = 0; i < AIBIT_KEYS; i++) {
        unsigned group = aibit_keys[i].group;
        wanted[group]++;
        if (!all->known[i].key) continue;
        bool parallel = group == 0 || there[group] == 0 || lengths[group] == all->known[i].count;
        AIBIT_NEED(parallel, "E310: parallel arrays of different lengths");
        there[group]++, lengths[group] = all->known[i].count;
    }
    for (int group = 1; group < AIBIT_GROUPS; group++)
        AIBIT_NEED(!there[group] || there[group] == wanted[group], "E310: some of several parallel arrays are missing");
    bool config = false, kept = false, whole = true, numbers = false;
    uint64_t left = 0; /* bytes of numbers that no row has counted yet */
    const aibit_entry *rows = all->known + AIBIT_VOCABULARY_SIZE;
    for (uint32_t i = 0; i < f->documents.count; i++) {
        aibit_document d = aibit_document_at(f, i);
        config = config || aibit_is(d.name, d.name_length, "config.json");
        if (aibit_is(d.name, d.name_length, "pruning.kept")) numbers = true, left = d.length;
        if (!aibit_is(d.name, d.name_length, "vocabulary.kept")) continue;
        kept = true;
        whole = d.length % 4 == 0 && d.length > 0 && rows->key && !(aibit_u64(rows->value) >> 63) &&
                d.length / 4 <= aibit_u64(rows->value);
    }
    AIBIT_NEED(config || !all->known[AIBIT_ARCHITECTURE].key, "E310: model.architecture, and no config.json");
    AIBIT_NEED(kept == (rows->key != NULL) && whole, "E310: vocabulary.size and vocabulary.kept do not agree");
    const aibit_entry *pruned = all->known + AIBIT_PRUNED;
    AIBIT_NEED(numbers == (pruned->key != NULL), "E310: pruning.kept.count and pruning.kept do not agree");
    for (uint32_t i = 0; pruned->key && i < pruned->count; i++) {
        uint64_t count = aibit_u64(pruned->value + 8 * (size_t)i);
        AIBIT_NEED(count >= 1 && count <= left / 4, "E310: a count of pruning.kept.count");
        left -= 4 * count;
    }
    AIBIT_NEED(left == 0 && (!pruned->key || pruned->count > 0), "E310: pruning.kept has more than is counted");
    if (all->of_shards > 0) return aibit_check_shard(f, all); /* what follows is about the tensors of all shards */
    uint64_t sum = 0;
    for (uint32_t i = 0; i < f->tensors.count; i++) {
        aibit_tensor t = aibit_tensor_at(f, i);
        if (!(t.flags & AIBIT_ALIAS)) sum += aibit_elements(&t);
    }
    const aibit_entry *parameters = all->known + AIBIT_PARAMETERS, *errors = all->known + AIBIT_ERROR_TENSOR;
    AIBIT_NEED(!parameters->key || aibit_u64(parameters->value) == sum, "E310: model.parameters is not their number");
    for (uint32_t i = 0; errors->key && i < errors->count; i++)
        AIBIT_NEED(aibit_u64(errors->value + 8 * (size_t)i) < f->tensors.count, "E310: an error figure of no tensor");
    return NULL;
}

/* Tables are checked before metadata, which speak of them. */
static inline const char *aibit_check_metadata(const aibit_file *f) {
    uint64_t position = 0, strings = 0;
    aibit_known all = {0};
    aibit_entry e, before = {0};
    for (; position < f->metadata.length; before = e) {
        AIBIT_TRY(aibit_next_entry(f, &position, &e));
        const uint8_t *last = (const uint8_t *)before.key, *key = (const uint8_t *)e.key;
        bool rises = !last || aibit_compare(last, before.key_length, key, e.key_length) < 0;
        AIBIT_NEED(rises, "E303: metadata keys are not strictly increasing");
        AIBIT_TRY(aibit_check_value(&e, &strings));
        AIBIT_TRY(aibit_check_type(&e, &all));
    }
    AIBIT_NEED(all.count == f->metadata.count, "E203: number of metadata entries");
    return aibit_check_known(f, &all);
}

#endif
