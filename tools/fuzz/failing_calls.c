/* Makes the n-th call that changes a file fail, fall short, or end the process: a library for LD_PRELOAD.
 *
 * `fail_at(n, how)` arms it, from Python through ctypes; `fail_calls()` says how many calls were counted since, and
 * `fail_name()` which one was the n-th. Standard input, output and error are left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* The numbers are those of `tools/fuzz/disk.py`. */
enum how { INPUT_OUTPUT_ERROR, NO_SPACE, SHORT, KILLED, TERMINATED, INTERRUPTED };

static int counted, wanted, how;
static const char *name = "";

void fail_at(int n, int manner) { counted = 0; wanted = n; how = manner; name = ""; }
int fail_calls(void) { return __atomic_load_n(&counted, __ATOMIC_SEQ_CST); }
const char *fail_name(void) { return name; }

/* Count a call; whether it is to fail. After a signal it goes on, as a real one does not stop a call that is done. */
static int fails(const char *call)
{
    if (!wanted || __atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST) != wanted)
        return 0;
    name = call;
    switch (how) {
    case KILLED: kill(getpid(), SIGKILL); pause(); return 0;
    case TERMINATED: kill(getpid(), SIGTERM); return 0;
    case INTERRUPTED: kill(getpid(), SIGINT); return 0;
    default: return 1;
    }
}

static int failed(void) { errno = how == NO_SPACE ? ENOSPC : EIO; return -1; }

/* The next library's function of the same name. */
#define REAL(result, call, ...)                                        \
    static result (*real)(__VA_ARGS__);                                \
    if (!real) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #call)

/* A call that writes bytes: it may also fall short. */
#define WRITES(call, parameters, arguments, shorter, ...)              \
    ssize_t call parameters                                            \
    {                                                                  \
        REAL(ssize_t, call, __VA_ARGS__);                              \
        if (fd > 2 && fails(#call)) return how == SHORT && n > 1 ? real shorter : failed(); \
        return real arguments;                                         \
    }

/* A call that succeeds or not: short of that there is nothing. */
#define CHANGES(call, parameters, arguments, ...)                      \
    int call parameters                                                \
    {                                                                  \
        REAL(int, call, __VA_ARGS__);                                  \
        if (fails(#call) && how != SHORT) return failed();             \
        return real arguments;                                         \
    }

WRITES(write, (int fd, const void *b, size_t n), (fd, b, n), (fd, b, n / 2), int, const void *, size_t)
WRITES(pwrite, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o), (fd, b, n / 2, o), int, const void *, size_t, off_t)
WRITES(pwrite64, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o), (fd, b, n / 2, o), int, const void *, size_t, off64_t)
WRITES(writev, (int fd, const struct iovec *v, int n), (fd, v, n), (fd, v, n / 2), int, const struct iovec *, int)
WRITES(copy_file_range, (int from, off64_t *a, int fd, off64_t *b, size_t n, unsigned l), (from, a, fd, b, n, l), (from, a, fd, b, n / 2, l), int, off64_t *, int, off64_t *, size_t, unsigned)
CHANGES(fsync, (int fd), (fd), int)
CHANGES(fdatasync, (int fd), (fd), int)
CHANGES(ftruncate, (int fd, off_t n), (fd, n), int, off_t)
CHANGES(ftruncate64, (int fd, off64_t n), (fd, n), int, off64_t)
CHANGES(fallocate, (int fd, int m, off_t o, off_t n), (fd, m, o, n), int, int, off_t, off_t)
CHANGES(fallocate64, (int fd, int m, off64_t o, off64_t n), (fd, m, o, n), int, int, off64_t, off64_t)
CHANGES(link, (const char *a, const char *b), (a, b), const char *, const char *)
CHANGES(linkat, (int f, const char *a, int g, const char *b, int l), (f, a, g, b, l), int, const char *, int, const char *, int)
CHANGES(rename, (const char *a, const char *b), (a, b), const char *, const char *)
CHANGES(renameat, (int f, const char *a, int g, const char *b), (f, a, g, b), int, const char *, int, const char *)
CHANGES(unlink, (const char *a), (a), const char *)
CHANGES(unlinkat, (int f, const char *a, int l), (f, a, l), int, const char *, int)
CHANGES(rmdir, (const char *a), (a), const char *)
CHANGES(mkdir, (const char *a, mode_t m), (a, m), const char *, mode_t)
CHANGES(mkdirat, (int f, const char *a, mode_t m), (f, a, m), int, const char *, mode_t)
CHANGES(fchmod, (int fd, mode_t m), (fd, m), int, mode_t)
CHANGES(chmod, (const char *a, mode_t m), (a, m), const char *, mode_t)

/* These return the error, and leave errno alone. */
#define ALLOCATES(call, offset)                                        \
    int call(int fd, offset o, offset n)                               \
    {                                                                  \
        REAL(int, call, int, offset, offset);                          \
        if (fails(#call) && how != SHORT) return failed(), errno;      \
        return real(fd, o, n);                                         \
    }
ALLOCATES(posix_fallocate, off_t)
ALLOCATES(posix_fallocate64, off64_t)

/* Of all the kinds of ioctl, sharing extents changes a file. */
int ioctl(int fd, unsigned long request, ...)
{
    REAL(int, ioctl, int, unsigned long, void *);
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (request == FICLONERANGE && fails("ioctl") && how != SHORT) return failed();
    return real(fd, request, argument);
}

/* Opening counts where it creates or is to write, and not in /proc and /dev, where nothing is kept but in memory. */
static int changes(const char *path, int flags)
{
    if (!strncmp(path, "/proc/", 6) || (!strncmp(path, "/dev/", 5) && strncmp(path, "/dev/shm/", 9)))
        return 0;
    return (flags & (O_CREAT | O_WRONLY | O_RDWR)) || (flags & O_TMPFILE) == O_TMPFILE;
}

#define OPENS(call, parameters, arguments, ...)                        \
    int call parameters                                                \
    {                                                                  \
        REAL(int, call, __VA_ARGS__);                                  \
        va_list rest;                                                  \
        va_start(rest, flags);                                         \
        mode_t mode = va_arg(rest, mode_t);                            \
        va_end(rest);                                                  \
        if (changes(path, flags) && fails(#call) && how != SHORT) return failed(); \
        return real arguments;                                         \
    }
OPENS(open, (const char *path, int flags, ...), (path, flags, mode), const char *, int, mode_t)
OPENS(open64, (const char *path, int flags, ...), (path, flags, mode), const char *, int, mode_t)
OPENS(openat, (int f, const char *path, int flags, ...), (f, path, flags, mode), int, const char *, int, mode_t)
OPENS(openat64, (int f, const char *path, int flags, ...), (f, path, flags, mode), int, const char *, int, mode_t)
