/* What a conversion to int8 in memory could do at best on this machine: the compiled encoder and digests of the package,
 * and nothing of Python. One thread reads 2 GiB of float16 from a file system in memory, takes their digest and encodes;
 * another takes the digests of what becomes of them, and writes it. Prints GB/s of input, five times.
 *
 *   cc -O3 -no-pie -ffp-contract=off -pthread -I$(python3 -c "import sysconfig; print(sysconfig.get_paths()['include'])") \
 *      tools/bench/limit.c aibit_format/native/{sizes,shares,floats}.c -Wl,--unresolved-symbols=ignore-all -o limit
 *   ./limit /dev/shm
 *
 * What those files want of Python is never called here, and stays unresolved.
 */
#define _GNU_SOURCE
#include "../../aibit_format/native/encode.c"
#include "../../aibit_format/native/leaves.c"
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { COLUMNS = 2048, PIECE = 1 << 20, SLOTS = 32 }; /* elements of a row, bytes of input of a piece, pieces between */
static const size_t SIZE = (size_t)2 << 30;

typedef struct {
    int in, out;
    char *pieces; /* of codes, [SLOTS, PIECE / 2] */
    size_t made, written;
    uint64_t digest; /* of everything, so that no compiler leaves it out */
} Work;

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static char *memory(size_t size)
{
    char *found = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED)
        abort();
    madvise(found, size, MADV_HUGEPAGE);
    memset(found, 1, size);
    return found;
}

static void moved(ssize_t found, size_t wanted)
{
    if (found != (ssize_t)wanted) {
        perror("limit");
        exit(1);
    }
}

static void *make(void *argument)
{
    Work *work = argument;
    char *input = memory(PIECE);
    static float absmax[PIECE / 2 / COLUMNS];
    for (size_t i = 0; i < SIZE / PIECE; i++) {
        moved(pread(work->in, input, PIECE, i * PIECE), PIECE);
        uint64_t digest;
        leaf_digests_of((uint8_t *)input, 1, PIECE, &digest);
        __atomic_fetch_add(&work->digest, digest, __ATOMIC_RELAXED);
        while (i - __atomic_load_n(&work->written, __ATOMIC_ACQUIRE) >= SLOTS)
            usleep(50);
        encode_int8(F16, input, PIECE / 2 / COLUMNS, COLUMNS, (int8_t *)work->pieces + i % SLOTS * (PIECE / 2), absmax);
        __atomic_store_n(&work->made, i + 1, __ATOMIC_RELEASE);
    }
    munmap(input, PIECE);
    return NULL;
}

static void *write_out(void *argument)
{
    Work *work = argument;
    for (size_t i = 0; i < SIZE / PIECE; i++) {
        while (__atomic_load_n(&work->made, __ATOMIC_ACQUIRE) <= i)
            usleep(50);
        char *piece = work->pieces + i % SLOTS * (PIECE / 2);
        uint64_t digest;
        leaf_digests_of((uint8_t *)piece, 1, PIECE / 2, &digest);
        __atomic_fetch_add(&work->digest, digest, __ATOMIC_RELAXED);
        moved(pwrite(work->out, piece, PIECE / 2, i * (PIECE / 2)), PIECE / 2);
        __atomic_store_n(&work->written, i + 1, __ATOMIC_RELEASE);
    }
    return NULL;
}

/* A file that has no name any more. */
static int scratch_file(const char *folder)
{
    char name[4096];
    snprintf(name, sizeof name, "%s/limit-XXXXXX", folder);
    int file = mkstemp(name);
    moved(file < 0 ? -1 : 0, 0);
    unlink(name);
    return file;
}

int main(int count, char **arguments)
{
    const char *folder = count > 1 ? arguments[1] : "/dev/shm";
    Work work = {.in = scratch_file(folder), .pieces = memory((size_t)SLOTS * PIECE / 2)};
    uint16_t *values = (uint16_t *)memory(PIECE);
    for (size_t i = 0; i < PIECE / 2; i++)
        values[i] = (rand() & 0x8bff) | 0x2000; /* finite, of both signs */
    for (size_t i = 0; i < SIZE; i += PIECE)
        moved(pwrite(work.in, values, PIECE, i), PIECE);
    for (int round = 0; round < 5; round++) {
        pthread_t maker, writer;
        work.out = scratch_file(folder), work.made = work.written = 0;
        double begin = seconds();
        pthread_create(&maker, NULL, make, &work);
        pthread_create(&writer, NULL, write_out, &work);
        pthread_join(maker, NULL);
        pthread_join(writer, NULL);
        printf("%.2f GB/s\n", SIZE / (seconds() - begin) / 1e9);
        close(work.out);
    }
    printf("digest %016llx\n", (unsigned long long)work.digest);
    return 0;
}
