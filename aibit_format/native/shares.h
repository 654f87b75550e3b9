/* Runs work in shares, on threads of an OpenMP runtime or on the calling one. */
#pragma once
#include "kernels.h"

/* GOMP_parallel of an OpenMP runtime: calls a function from ``threads`` threads of its own. */
typedef void (*Parallel)(void (*function)(void *), void *argument, unsigned threads, unsigned flags);

/* The threads that a call may use. */
typedef struct {
    unsigned threads;
    Parallel parallel; /* NULL: the calling thread alone */
} Team;

/* Fills in a team from a number of threads and what gomp_parallel returned; 0, with a Python error, for anything else. */
int team_of(Py_ssize_t threads, PyObject *parallel, Team *team);

/* Calls ``function`` for consecutive ranges that cover 0 to ``count``, ``share`` at a time. */
void in_shares(void (*function)(const void *task, size_t first, size_t last), const void *task, size_t count,
               size_t share, const Team *team);
