/* Multiplies random weights of every packed format, with the functions of each kind of processor that this one is, and
 * prints a checksum of the results of the portable ones. Results of other kinds must be close; with ``equal``, the same.
 */
#include "../../aibit_format/native/packed.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 9, FEATURES = 5, COLUMNS = 768 };

#define ENTRY(name, columns, bytes, form, offset, unit) {#name, columns, bytes, form, offset},
static const struct {
    const char *name;
    size_t columns, bytes;
    int form, offset;
} TABLE[] = {FORMATS(ENTRY)};

static const Target *const TARGETS[] = {
    &packed_portable,
#if HAVE_VECTORS
    &packed_avx2, &packed_vnni,
#endif
#if defined(__aarch64__)
    &packed_dotprod,
#endif
};

static uint32_t state = 1;

static uint32_t next(void)
{
    return (state = state * 1664525u + 1013904223u) >> 8;
}

/* Fills memory with bytes that are finite numbers of any dtype. */
static void fill(uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        bytes[i] = (uint8_t)(next() % 0x3c | (next() & 1) << 7);
}

int main(int argc, char **argv)
{
    static uint8_t codes[FEATURES * COLUMNS * 4], scales[FEATURES * COLUMNS];
    static float inputs[ROWS][COLUMNS], book[256], values[ROWS * COLUMNS];
    static InputSteps steps[ROWS * 3];
    static float found[ROWS][FEATURES], first[ROWS][FEATURES];
    int equal = argc > 1 && !strcmp(argv[1], "equal"), ran = 0;
    uint64_t checksum = 14695981039346656037ull;
    for (int i = 0; i < 256; i++)
        book[i] = (float)(int32_t)(next() % 2001) - 1000;
    for (int i = 0; i < ROWS * COLUMNS; i++)
        inputs[i / COLUMNS][i % COLUMNS] = (float)(int32_t)(next() % 20001 - 10000) / 1024;
    for (int format = 0; format < FORMAT_COUNT; format++)
        for (int way = 0; way < 2 * 3; way++) { /* one row and several, with each kind of inputs */
            Activations kind = (Activations)(way / 2);
            size_t columns = TABLE[format].form > BIASED ? COLUMNS - 11 : COLUMNS;
            size_t bytes = columns / TABLE[format].columns * TABLE[format].bytes +
                           (columns % TABLE[format].columns * TABLE[format].bytes + 7) / 8;
            Weight weight = {.format = format, .form = TABLE[format].form, .columns = columns, .row_bytes = bytes,
                             .stretch_bytes = TABLE[format].bytes * 256 / TABLE[format].columns, .codes = codes,
                             .group = 32, .block_rows = 1, .groups = 24, .numbers = 24 * FEATURES,
                             .scale_type = NUMBER_F16, .scales = scales, .zeros = "", .book = book,
                             .offset = TABLE[format].offset, .biased = TABLE[format].form == BIASED};
            Inputs given = {weight.form == VALUES ? IN_F32 : kind, way % 2 ? ROWS : 1, 3, values, steps};
            fill(codes, sizeof codes), fill(scales, sizeof scales);
            for (size_t i = 0; i < sizeof TARGETS / sizeof *TARGETS; i++) {
                PackedProduct product = {&weight, &given, NULL, found, F32, F32, FEATURES};
                if (!TARGETS[i]->runs())
                    continue;
                for (size_t row = 0; row < given.rows; row++)
                    TARGETS[i]->take(F32, inputs[row], columns, row, &given);
                memset(found, 0, sizeof found);
                TARGETS[i]->multiply(&product, 0, FEATURES);
                ran |= 1 << i;
                if (i == 0) {
                    memcpy(first, found, sizeof found);
                    for (size_t byte = 0; byte < sizeof found; byte++)
                        checksum = (checksum ^ ((uint8_t *)found)[byte]) * 1099511628211ull;
                    continue;
                }
                float top = 0;
                for (int k = 0; k < ROWS * FEATURES; k++)
                    top = fmaxf(top, fabsf(first[k / FEATURES][k % FEATURES]));
                for (int k = 0; k < ROWS * FEATURES; k++) {
                    float one = first[k / FEATURES][k % FEATURES], other = found[k / FEATURES][k % FEATURES];
                    if (equal ? memcmp(&one, &other, 4) != 0 : !(fabsf(one - other) <= top * 0x1p-18f)) {
                        fprintf(stderr, "%s, way %d, %s: %a, not %a\n", TABLE[format].name, way, TARGETS[i]->name, other, one);
                        return 1;
                    }
                }
            }
        }
    printf("%016llx %d\n", (unsigned long long)checksum, ran);
    return 0;
}
