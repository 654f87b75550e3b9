/* Computes products of packed weights, for the kind of processor that the including file names: its functions make up one
 * ``Target``.
 */
#pragma once
#include "packed_inputs.h"
#include "packed_row.h"

/* Multiplies up to MOST_ROWS rows, from ``top`` on, with one row of the weight, which is decoded once. */
STEP void multiply_feature(const PackedProduct *product, size_t top, size_t rows, size_t feature)
{
    const Weight *weight = product->weight;
    const Inputs *inputs = product->inputs;
    Decoder *decode = DECODERS[weight->format];
    size_t blocks = (weight->columns + BLOCK - 1) / BLOCK;
    Eight sums[MOST_ROWS];
    Stretch stretch;
    memset(sums, 0, rows * sizeof sums[0]);
    for (size_t block = 0; block < blocks; block += STRETCH) {
        size_t count = blocks - block < STRETCH ? blocks - block : STRETCH, row = 0;
        size_t at = top * inputs->stretches + block / STRETCH;
        const char *ahead = (const char *)weight->codes + feature * weight->row_bytes;
        ahead += block / STRETCH * weight->stretch_bytes + FETCHED;
        for (size_t byte = 0; byte < weight->stretch_bytes; byte += 64)
            __builtin_prefetch(ahead + byte);
        decode(weight, feature, block, count, &stretch);
        for (; row + 8 <= rows; row += 8)
            multiply_rows(8, weight, &stretch, inputs, at + row * inputs->stretches, count, sums + row);
        for (; row + 2 <= rows; row += 2)
            multiply_rows(2, weight, &stretch, inputs, at + row * inputs->stretches, count, sums + row);
        if (row < rows)
            multiply_rows(1, weight, &stretch, inputs, at + row * inputs->stretches, count, sums + row);
    }
    for (size_t row = 0; row < rows; row++)
        put_sum(product, sum_of(sums[row]), top + row, feature);
}

/* Multiplies the only row of inputs with rows of 8-bit floats. */
STEP void multiply_floats(int format, const PackedProduct *product, size_t first, size_t last)
{
    for (size_t feature = first; feature < last; feature++) {
        int none;
        float sum = floats_product(format, product->weight, product->inputs, feature, &none);
        if (none) /* which columns those are decides what becomes of zeros among the inputs */
            multiply_feature(product, 0, 1, feature);
        else
            put_sum(product, sum, 0, feature);
    }
}

TARGET static void multiply(const void *task, size_t first, size_t last)
{
    const PackedProduct *product = task;
    /* A second row finds the codes in the cache, and takes less time than turning them. */
    if (product->inputs->rows <= (product->inputs->kind == IN_F32 ? 1 : 2) && product->weight->form != VALUES) {
        for (size_t row = 0; row < product->inputs->rows; row++)
            ROW_PRODUCTS[product->weight->format](product, row, first, last);
        return;
    }
    switch (product->inputs->rows == 1 ? product->weight->format : FORMAT_COUNT) {
    case FORMAT_e4m3: multiply_floats(FORMAT_e4m3, product, first, last); return;
    case FORMAT_e5m2: multiply_floats(FORMAT_e5m2, product, first, last); return;
    default: break;
    }
    for (size_t top = 0; top < product->inputs->rows; top += MOST_ROWS) {
        size_t left = product->inputs->rows - top, rows = left < MOST_ROWS ? left : MOST_ROWS;
        if (product->weight->form != VALUES && product->inputs->kind == IN_I16)
            multiply_eights(IN_I16, product, top, rows, first, last);
        else if (product->weight->form != VALUES && product->inputs->kind == IN_I8)
            multiply_eights(IN_I8, product, top, rows, first, last);
        else
            for (size_t feature = first; feature < last; feature++)
                multiply_feature(product, top, rows, feature);
    }
}

/* Turns codes into values, rounding after each operation as the schemes do. */
STEP void values_of_codes(const Weight *weight, Stretch *stretch, size_t count)
{
    const Unsigned offset = (Unsigned){0} + (uint8_t)weight->offset;
    for (size_t i = 0; i < count; i++) {
        Unsigned codes = stretch->codes[i] - offset;
        for (int k = 0; k < 4; k++) {
            size_t half = 2 * i + k / 2;
            Eight values = floats_of((const int8_t *)&codes + 8 * k) * all(((const float *)stretch->steps.scales)[half]);
            if (weight->biased)
                values += all(((const float *)stretch->steps.biases)[half]);
            stretch->values[4 * i + k] = values;
        }
    }
}

STEP void put_values(const Eight *values, size_t count, Source to, char *out)
{
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        store_eight(to, values[i / 8], out + i * width(to));
    for (; i < count; i++)
        put_number(to, ((const float *)values)[i], out, i);
}

TARGET static void decode(const void *task, size_t first, size_t last)
{
    const PackedValues *task_values = task;
    const Weight *weight = task_values->weight;
    size_t columns = weight->columns, each = width(task_values->to);
    Stretch stretch;
    for (size_t row = first; row < last; row++)
        for (size_t column = 0; column < columns; column += STRETCH * BLOCK) {
            size_t left = columns - column < STRETCH * BLOCK ? columns - column : STRETCH * BLOCK;
            size_t count = (left + BLOCK - 1) / BLOCK;
            DECODERS[weight->format](weight, task_values->first + row, column / BLOCK, count, &stretch);
            if (weight->form != VALUES)
                values_of_codes(weight, &stretch, count);
            put_values(stretch.values, left, task_values->to, (char *)task_values->out + (row * columns + column) * each);
        }
}
