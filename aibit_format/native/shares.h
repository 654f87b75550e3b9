/* Runs work in shares, on threads of an OpenMP runtime or on the calling one. */
#pragma once
#include <stddef.h>

/* GOMP_parallel of an OpenMP runtime: calls a function from ``threads`` threads of its own. */
typedef void (*Parallel)(void (*function)(void *), void *argument, unsigned threads, unsigned flags);

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

/* Calls ``function`` for consecutive ranges that cover 0 to ``count``, ``share`` at a time. */
static void in_shares(void (*function)(const void *, size_t, size_t), const void *task, size_t count, size_t share,
                      unsigned threads, Parallel parallel)
{
    Work work = {function, task, count, share, 0};
    if (parallel && threads > 1 && count > share)
        parallel(take_shares, &work, threads, 0);
    else
        take_shares(&work);
}
