/* Multiplies several rows of inputs in codes with eight rows of a weight, a lane of vectors for each of them. */
#pragma once
#include "packed_rows.h"

enum { LANES = 8 };

/* A stretch of eight rows of a weight. */
typedef struct {
    Whole codes[STRETCH][LANES]; /* of each block, four columns at a time */
    Eight scales[STRETCH * 2];   /* of each 16 columns, or of each 32 as in ``Steps`` */
    Eight biases[STRETCH * 2];   /* with what the offset of codes adds */
} Panel;

/* Whether a panel has steps of 32 columns: groups may be whole blocks too. */
STEP int has_block_steps(int format, const Weight *weight)
{
    return FACTS[format].form == GROUPS ? weight->group % BLOCK == 0 : is_of_blocks(format);
}

/* Selects the steps of a half of a stretch, or those of whole blocks. */
STEP Eight steps_in(int format, const Eight halves[2], int half, int of_blocks)
{
    return FACTS[format].form == GROUPS && of_blocks ? of_both(halves[0], halves[1], 0) : halves[half];
}

/* Turns the steps of eight rows. */
STEP void turn_steps(int format, const Weight *weight, const Steps *const steps[LANES], int offset, Panel *panel)
{
    int biased = FACTS[format].form == BIASED || (FACTS[format].form == GROUPS && weight->biased);
    int of_blocks = has_block_steps(format, weight);
    for (int half = 0; half < (of_blocks ? 1 : 2); half++) {
        Whole scales[LANES], biases[LANES];
        for (int lane = 0; lane < LANES; lane++)
            scales[lane] = (Whole)steps_in(format, steps[lane]->scales, half, of_blocks);
        turn(scales);
        if (biased) {
            for (int lane = 0; lane < LANES; lane++)
                biases[lane] = (Whole)steps_in(format, steps[lane]->biases, half, of_blocks);
            turn(biases);
        }
        for (int i = 0; i < STRETCH; i++) {
            Eight scale = (Eight)scales[i];
            panel->scales[STRETCH * half + i] = scale;
            panel->biases[STRETCH * half + i] = (biased ? (Eight)biases[i] : all(0)) - scale * (float)offset;
        }
    }
}

/* Unpacks a stretch of the rows from ``feature`` on; those beyond ``last`` are that one. */
STEP void fill_panel(int format, const Weight *weight, size_t feature, size_t last, size_t block, size_t count, int less,
                     Steps runs[LANES][RUN], Panel *panel)
{
    uint8_t ends[LANES][STRETCH * BLOCK + SLACK];
    const uint8_t *at[LANES];
    const Steps *steps[LANES];
    size_t place = FACTS[format].form == GROUPS ? block / STRETCH % RUN : 0;
    size_t left = (weight->columns + BLOCK - 1) / BLOCK - block;
    int offset = FACTS[format].form == GROUPS ? weight->offset : FACTS[format].offset;
    for (int lane = 0; lane < LANES; lane++) {
        size_t row = feature + lane < last ? feature + lane : last;
        at[lane] = stretch_at(format, weight, row, block, count, ends[lane]);
        if (FACTS[format].form != GROUPS)
            steps_of(format, weight, row, block, count, at[lane], runs[lane]);
        else if (!place)
            put_steps(weight, row, block, left < RUN * STRETCH ? left : RUN * STRETCH, runs[lane]);
        steps[lane] = runs[lane] + place;
        const uint8_t *ahead = weight->codes + (row + LANES) * weight->row_bytes;
        ahead += block / STRETCH * FACTS[format].stretch_bytes;
        for (int byte = 0; byte < FACTS[format].stretch_bytes; byte += 64)
            __builtin_prefetch(ahead + byte);
    }
    turn_steps(format, weight, steps, less ? 0 : offset, panel);
    for (size_t i = 0; i < count; i++) {
        Whole rows[LANES];
#pragma GCC unroll 8
        for (int lane = 0; lane < LANES; lane++)
            rows[lane] = (Whole)codes_in(format, at[lane], i);
        turn(rows);
        memcpy(panel->codes[i], rows, sizeof rows);
    }
}

/* Multiplies a part of a block, from its ``first`` four columns on. */
STEP Whole panel_dot(Activations kind, int wide, const Whole codes[LANES], int first, int count, const char *input)
{
    Whole sums[4] = {{0}}; /* apart, as each waits for the one before */
#pragma GCC unroll 8
    for (int k = first; k < first + count; k++) {
        Unsigned some = (Unsigned)codes[k];
        int i = k % 2;
        if (kind == IN_I8)
            sums[i] = add_dot_i8(sums[i], some, wide, (Bytes)four_at(input + 4 * k));
        else {
            sums[i] = add_pairs(sums[i], even_codes(some), (Shorts)four_at(input + 4 * k));
            sums[2 + i] = add_pairs(sums[2 + i], odd_codes(some), (Shorts)four_at(input + 32 + 4 * k));
        }
    }
    return kind == IN_I8 ? sums[0] + sums[1] : (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* Multiplies ``rows`` of the input with a panel; ``at`` is that of the first row. */
STEP void multiply_panel(Activations kind, int wide, int of_blocks, int biased, const Panel *panel, const Inputs *inputs,
                         size_t at, size_t rows, size_t count, Eight *sums)
{
    const size_t item = kind == IN_I8 ? 1 : 2;
    Eight parts[MOST_ROWS]; /* of inputs of 16 bits, whose scale is that of a stretch */
    memset(parts, 0, rows * sizeof parts[0]);
    for (size_t i = 0; i < count; i++) {
        Whole codes[LANES];
        memcpy(codes, panel->codes[i], sizeof codes);
        for (size_t row = 0; row < rows; row++) {
            size_t stretch = at + row * inputs->stretches;
            const char *input = (const char *)input_at(inputs, stretch, item) + i * BLOCK * item;
            Eight sum = kind == IN_I16 ? parts[row] : all(0);
            if (of_blocks)
                sum = fused(to_floats(panel_dot(kind, wide, codes, 0, 8, input)), panel->scales[i], sum);
            else {
                sum = fused(to_floats(panel_dot(kind, wide, codes, 0, 4, input)), panel->scales[2 * i], sum);
                sum = fused(to_floats(panel_dot(kind, wide, codes, 4, 4, input)), panel->scales[2 * i + 1], sum);
            }
            if (kind == IN_I16)
                parts[row] = sum;
            else
                sums[row] = fused(sum, all(inputs->steps[stretch].scales[i]), sums[row]);
        }
    }
    for (size_t row = 0; kind == IN_I16 && row < rows; row++)
        sums[row] = fused(parts[row], all(inputs->steps[at + row * inputs->stretches].scales[0]), sums[row]);
    for (size_t row = 0; biased && row < rows; row++) {
        const InputSteps *steps = inputs->steps + at + row * inputs->stretches;
        for (size_t i = 0; i < (of_blocks ? count : 2 * count); i++)
            sums[row] = fused(panel->biases[i], all(of_blocks ? steps->block_sums[i] : steps->sums[i]), sums[row]);
    }
}

typedef void Filler(const Weight *weight, size_t feature, size_t last, size_t block, size_t count, int less,
                    Steps runs[LANES][RUN], Panel *panel);

#define PANEL_FILLER(name, ...)                                                                                        \
    TARGET static void fill_##name(const Weight *weight, size_t feature, size_t last, size_t block, size_t count,      \
                                   int less, Steps runs[LANES][RUN], Panel *panel)                                     \
    {                                                                                                                  \
        fill_panel(FORMAT_##name, weight, feature, last, block, count, less, runs, panel);                             \
    }
CODE_FORMATS(PANEL_FILLER)

#define FORMAT_FILLER(name, ...) fill_##name,
static Filler *const FILLERS[] = {CODE_FORMATS(FORMAT_FILLER)}; /* formats of values come last, and have none */

/* Multiplies up to MOST_ROWS rows of codes, from ``top`` on, with rows ``first`` to ``last`` of a weight. */
STEP void multiply_eights(Activations kind, const PackedProduct *product, size_t top, size_t rows, size_t first,
                          size_t last)
{
    const Weight *weight = product->weight;
    const Inputs *inputs = product->inputs;
    size_t blocks = (weight->columns + BLOCK - 1) / BLOCK;
    int format = weight->format, of_blocks = has_block_steps(format, weight), wide = FACTS[format].offset == 128;
    int less = kind == IN_I8 && wide && !WIDE_CODES, biased = weight->biased || (weight->offset && !less);
    Steps runs[LANES][RUN];
    Panel panel;
    for (size_t feature = first; feature < last; feature += LANES) {
        Eight sums[MOST_ROWS] = {all(0)};
        for (size_t block = 0; block < blocks; block += STRETCH) {
            size_t count = blocks - block < STRETCH ? blocks - block : STRETCH;
            size_t at = top * inputs->stretches + block / STRETCH;
            FILLERS[format](weight, feature, last - 1, block, count, less, runs, &panel);
            if (of_blocks && (wide && !WIDE_CODES))
                multiply_panel(kind, 1, 1, biased, &panel, inputs, at, rows, count, sums);
            else if (of_blocks)
                multiply_panel(kind, 0, 1, biased, &panel, inputs, at, rows, count, sums);
            else if (wide && !WIDE_CODES)
                multiply_panel(kind, 1, 0, biased, &panel, inputs, at, rows, count, sums);
            else
                multiply_panel(kind, 0, 0, biased, &panel, inputs, at, rows, count, sums);
        }
        for (size_t row = 0; row < rows; row++)
            for (size_t lane = 0; lane < LANES && feature + lane < last; lane++)
                put_sum(product, sums[row][lane], top + row, feature + lane);
    }
}
