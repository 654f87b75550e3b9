#include "shares.h"
#if defined(__has_include)
#if __has_include(<dlfcn.h>)
#include <dlfcn.h>
#define HAVE_DLFCN 1
#endif
#endif

/* Only this file makes capsules of this name, so what is called is never a number that came from Python. */
static const char capsule_name[] = "aibit_format.native.kernels.GOMP_parallel";

/* Looks up GOMP_parallel in a library that the process has already loaded, and loads none. */
FUNCTION(gomp_parallel)
{
    PyObject *path, *capsule = NULL;
    void *function = NULL;
    if (!PyArg_ParseTuple(args, "O&", PyUnicode_FSConverter, &path))
        return NULL;
#ifdef HAVE_DLFCN
    /* The library is not closed again: its function is called for as long as the process lives. */
    void *library = dlopen(PyBytes_AsString(path), RTLD_LAZY | RTLD_NOLOAD);
    function = library ? dlsym(library, "GOMP_parallel") : NULL;
#endif
    Py_DECREF(path);
    capsule = function ? PyCapsule_New(function, capsule_name, NULL) : Py_NewRef(Py_None);
    return capsule;
}

#if HAVE_VECTORS || HAVE_PACKED

enum { MOST_THREADS = 1 << 12 }; /* beyond, a runtime may end the process because it cannot start them */

int team_of(Py_ssize_t threads, PyObject *parallel, Team *team)
{
    if (threads < 1 || threads > MOST_THREADS)
        return PyErr_Format(PyExc_ValueError, "%zd threads, where 1 to %d can be had", threads, MOST_THREADS), 0;
    if (parallel != Py_None && !PyCapsule_IsValid(parallel, capsule_name))
        return PyErr_Format(PyExc_TypeError, "parallel: %R, which gomp_parallel has not returned", parallel), 0;
    team->threads = (unsigned)threads;
    team->parallel = parallel == Py_None ? NULL : (Parallel)PyCapsule_GetPointer(parallel, capsule_name);
    return 1;
}

typedef struct {
    void (*function)(const void *task, size_t first, size_t last);
    const void *task;
    size_t count, share;
    size_t next; /* the first index that no thread has taken */
} Work;

static void take_shares(void *argument)
{
    Work *work = argument;
    size_t first;
    while ((first = __atomic_fetch_add(&work->next, work->share, __ATOMIC_RELAXED)) < work->count)
        work->function(work->task, first, work->count - first < work->share ? work->count : first + work->share);
}

void in_shares(void (*function)(const void *, size_t, size_t), const void *task, size_t count, size_t share,
               const Team *team)
{
    Work work = {function, task, count, share, 0};
    if (team->parallel && team->threads > 1 && count > share)
        team->parallel(take_shares, &work, team->threads, 0);
    else
        take_shares(&work);
}

#endif
