/* Describes a tensor as DLPack 0.x hands it over, in a capsule named "dltensor": what lies at its beginning. */
#pragma once
#include <stdint.h>

enum { DL_CPU = 1 };

typedef struct {
    void *data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides; /* in elements; strides may be NULL */
    uint64_t byte_offset;
} DLTensor;
