#include "kernels.h"
#if HAVE_VECTORS
#include "layers.h"

int output_of(Buffers *buffers, PyObject *scale_array, PyObject *bias_array, PyObject *out_array, Py_ssize_t rows,
              Py_ssize_t out_features, Output *output)
{
    output->out_features = out_features, output->bias = NULL;
    return (output->scales = readable(buffers, scale_array, out_features, 1, 4)) &&
           (bias_array == Py_None || (output->bias = readable(buffers, bias_array, out_features, 1, 4))) &&
           (output->out = writable(buffers, out_array, rows, out_features, width(output->to)));
}

int layer_of(PyObject *args, Layer *layer)
{
    const char *dtype;
    PyObject *input_array, *code_array, *scale_array, *bias_array, *out_array, *parallel;
    Py_ssize_t out_features, threads;
    layer->buffers.count = 0, layer->threshold = 0;
    if (!PyArg_ParseTuple(args, "snnnOOOfOOnO|f", &dtype, &layer->rows, &layer->columns, &out_features, &input_array,
                          &code_array, &scale_array, &layer->output.factor, &bias_array, &out_array, &threads,
                          &parallel, &layer->threshold) ||
        !source_type(dtype, &layer->output.to) || !team_of(threads, parallel, &layer->team))
        return 0;
    layer->empty = !layer->rows || !out_features;
    return (layer->inputs =
                readable(&layer->buffers, input_array, layer->rows, layer->columns, width(layer->output.to))) &&
           (layer->codes = readable(&layer->buffers, code_array, out_features, layer->columns, 1)) &&
           output_of(&layer->buffers, scale_array, bias_array, out_array, layer->rows, out_features, &layer->output);
}

#endif
