/* Says how packed weights come from Python. */
#pragma once
#include "kernels.h"
#if HAVE_PACKED
#include "packed.h"

/* Returns the weight that packed_weight has put into a capsule, and which lives as long; NULL, with a Python error, for
 * anything else. */
const Weight *weight_in(PyObject *capsule);

#endif
