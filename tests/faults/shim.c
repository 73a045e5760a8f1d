/* Counts what a process does to the files under one directory, and faults it at the n-th.

Preloaded (LD_PRELOAD) into a process, it does nothing until `faults_arm` maps a plan, or until the
environment names one (FLAXLM_FAULTS_PLAN, for the processes that a process starts). The plan is a
file that the test maps as well, so what was counted outlives a kill. A point is one call that
changes something on the disk: the counter is atomic, so threads of C++ libraries count like ours.
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, RENAME = 4, REMOVE = 8, MAKE = 16, SIZE = 32 };
enum { COUNT = 0, KILL_BEFORE = 1, KILL_AFTER = 2, FAIL = 3, NOTIFY = 4 };

/* `Plan` of shim.py has the same fields in the same order. */
struct plan {
    int32_t action, error; /* what happens at a point, and the errno of FAIL */
    int32_t sticky;        /* FAIL: every later point fails too */
    int32_t shorten;       /* FAIL: a write writes its first half; what comes next fails */
    int32_t kinds;         /* which kinds are points */
    int32_t signal;        /* sent `delay` nanoseconds after arming; of NOTIFY at the point */
    int64_t delay;
    int64_t at; /* the point, from 1 */
    _Atomic int64_t seen, fired;
    _Atomic int64_t failed; /* the wall clock at the first fault, in nanoseconds */
    _Atomic int64_t process;
    _Atomic int64_t used; /* bytes of `trace` */
    char directory[1024];
    char what[1200];      /* the call and the path that the fault met */
    char trace[1 << 18];  /* a line for each point */
};

static struct plan *plan;
static _Atomic int owed;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int faults_arm(const char *path) {
    int file = open(path, O_RDWR);
    if (file < 0) return -1;
    struct plan *given = mmap(0, sizeof *given, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (given == MAP_FAILED) return -1;
    int64_t none = 0;
    atomic_compare_exchange_strong(&given->process, &none, getpid());
    setenv("FLAXLM_FAULTS_PLAN", path, 1);
    if (given->signal && given->action != NOTIFY && given->process == getpid()) {
        timer_t timer;
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = given->signal};
        struct itimerspec when = {.it_value = {given->delay / 1000000000, given->delay % 1000000000}};
        if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &when, 0))
            return -1;
    }
    plan = given;
    return 0;
}

__attribute__((constructor)) static void inherited(void) {
    const char *path = getenv("FLAXLM_FAULTS_PLAN");
    if (path) faults_arm(path);
}

static int under(const char *path) {
    size_t length = strlen(plan->directory);
    return !strncmp(path, plan->directory, length) && (path[length] == '/' || !path[length]);
}

/* Write the absolute path of `path`, which is relative to the directory `dirfd`, to `out`. */
static int absolute(int dirfd, const char *path, char *out, size_t size) {
    if (path && path[0] == '/') return snprintf(out, size, "%s", path) < (int)size;
    char link[64], base[900];
    snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
    ssize_t n = readlink(dirfd == AT_FDCWD ? "/proc/self/cwd" : link, base, sizeof base - 1);
    if (n < 0) return 0;
    base[n] = 0;
    return snprintf(out, size, path ? "%s/%s" : "%s", base, path) < (int)size;
}

enum { GO = 0, STOP = 1, HALF = 2, DIE = 3 };

/* Count one call; return what becomes of it: GO, STOP (errno is set), HALF, or DIE when done. */
static int point(int kind, const char *name, int dirfd, const char *path) {
    if (!plan || !(plan->kinds & kind)) return GO;
    int saved = errno;
    char full[1024];
    if (!absolute(dirfd, path, full, sizeof full) || !under(full)) {
        errno = saved;
        return GO;
    }
    int64_t number = atomic_fetch_add(&plan->seen, 1) + 1;
    char line[1200];
    int length = snprintf(line, sizeof line, "%s %s\n", name, full);
    int64_t offset = atomic_fetch_add(&plan->used, length);
    if (offset + length < (int64_t)sizeof plan->trace) memcpy(plan->trace + offset, line, length);
    errno = saved;
    if (plan->action == COUNT || !plan->at) return GO;
    int hit = number == plan->at || (number > plan->at && plan->sticky) || atomic_exchange(&owed, 0);
    if (!hit) return GO;
    if (atomic_fetch_add(&plan->fired, 1) == 0) {
        plan->failed = now();
        snprintf(plan->what, sizeof plan->what, "%s %s", name, full);
    }
    if (plan->action == KILL_BEFORE) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    if (plan->action == KILL_AFTER) return DIE;
    if (plan->action == NOTIFY) {
        kill(getpid(), plan->signal);
        return GO;
    }
    if (plan->shorten && kind == WRITE && number == plan->at) {
        atomic_store(&owed, !plan->sticky);
        return HALF;
    }
    errno = plan->error;
    return STOP;
}

static void die(int outcome) {
    if (outcome != DIE) return;
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

#define REAL(type, name, parameters) \
    static type(*real) parameters; \
    if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, name)

/* A call whose result is `type`, `failed` where it is made to fail. */
#define WRAP(type, name, kind, dirfd, path, failed, parameters, ...) \
    type name parameters { \
        REAL(type, #name, parameters); \
        int outcome = point(kind, #name, dirfd, path); \
        if (outcome == STOP) return failed; \
        type result = real(__VA_ARGS__); \
        die(outcome); \
        return result; \
    }

/* The same for a write of `count` bytes or buffers, or of as many as there are: of those one. */
#define WRAP_WRITE(name, fd, count, parameters, ...) \
    ssize_t name parameters { \
        REAL(ssize_t, #name, parameters); \
        int outcome = point(WRITE, #name, fd, NULL); \
        if (outcome == STOP) return -1; \
        if (outcome == HALF) count = count >= 1 << 23 ? 1 : count > 1 ? count / 2 : count; \
        ssize_t result = real(__VA_ARGS__); \
        die(outcome); \
        return result; \
    }

WRAP_WRITE(write, fd, n, (int fd, const void *data, size_t n), fd, data, n)
WRAP_WRITE(pwrite, fd, n, (int fd, const void *data, size_t n, off_t at), fd, data, n, at)
WRAP_WRITE(pwrite64, fd, n, (int fd, const void *data, size_t n, off64_t at), fd, data, n, at)
WRAP_WRITE(writev, fd, n, (int fd, const struct iovec *v, int n), fd, v, n)
WRAP_WRITE(pwritev, fd, n, (int fd, const struct iovec *v, int n, off_t at), fd, v, n, at)
WRAP_WRITE(pwritev64, fd, n, (int fd, const struct iovec *v, int n, off64_t at), fd, v, n, at)
WRAP_WRITE(sendfile, to, n, (int to, int from, off_t *at, size_t n), to, from, at, n)
WRAP_WRITE(sendfile64, to, n, (int to, int from, off64_t *at, size_t n), to, from, at, n)
WRAP_WRITE(copy_file_range, to, n,
           (int from, off64_t *a, int to, off64_t *b, size_t n, unsigned flags),
           from, a, to, b, n, flags)

WRAP(int, fsync, SYNC, fd, NULL, -1, (int fd), fd)
WRAP(int, fdatasync, SYNC, fd, NULL, -1, (int fd), fd)
WRAP(int, ftruncate, SIZE, fd, NULL, -1, (int fd, off_t n), fd, n)
WRAP(int, ftruncate64, SIZE, fd, NULL, -1, (int fd, off64_t n), fd, n)
WRAP(int, truncate, SIZE, AT_FDCWD, path, -1, (const char *path, off_t n), path, n)
WRAP(int, fallocate, SIZE, fd, NULL, -1, (int fd, int mode, off_t at, off_t n), fd, mode, at, n)
WRAP(int, fallocate64, SIZE, fd, NULL, -1, (int fd, int mode, off64_t at, off64_t n),
     fd, mode, at, n)
/* These return the error and do not set errno. */
WRAP(int, posix_fallocate, SIZE, fd, NULL, errno, (int fd, off_t at, off_t n), fd, at, n)
WRAP(int, posix_fallocate64, SIZE, fd, NULL, errno, (int fd, off64_t at, off64_t n), fd, at, n)
WRAP(int, rename, RENAME, AT_FDCWD, to, -1, (const char *from, const char *to), from, to)
WRAP(int, renameat, RENAME, d, to, -1, (int c, const char *from, int d, const char *to),
     c, from, d, to)
WRAP(int, renameat2, RENAME, d, to, -1,
     (int c, const char *from, int d, const char *to, unsigned flags), c, from, d, to, flags)
WRAP(int, link, RENAME, AT_FDCWD, to, -1, (const char *from, const char *to), from, to)
WRAP(int, linkat, RENAME, d, to, -1, (int c, const char *from, int d, const char *to, int flags),
     c, from, d, to, flags)
WRAP(int, symlink, RENAME, AT_FDCWD, to, -1, (const char *from, const char *to), from, to)
WRAP(int, unlink, REMOVE, AT_FDCWD, path, -1, (const char *path), path)
WRAP(int, unlinkat, REMOVE, d, path, -1, (int d, const char *path, int flags), d, path, flags)
WRAP(int, rmdir, REMOVE, AT_FDCWD, path, -1, (const char *path), path)
WRAP(int, mkdir, MAKE, AT_FDCWD, path, -1, (const char *path, mode_t mode), path, mode)
WRAP(int, mkdirat, MAKE, d, path, -1, (int d, const char *path, mode_t mode), d, path, mode)

/* Opening is a point where it makes or empties a file. */
#define WRAP_OPEN(name, dirfd, parameters, ...) \
    int name parameters { \
        REAL(int, #name, parameters); \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        int outcome = GO; \
        if (flags & (O_CREAT | O_TRUNC)) outcome = point(MAKE, #name, dirfd, path); \
        if (outcome == STOP) return -1; \
        int result = real(__VA_ARGS__); \
        die(outcome); \
        return result; \
    }

WRAP_OPEN(open, AT_FDCWD, (const char *path, int flags, ...), path, flags, mode)
WRAP_OPEN(open64, AT_FDCWD, (const char *path, int flags, ...), path, flags, mode)
WRAP_OPEN(openat, d, (int d, const char *path, int flags, ...), d, path, flags, mode)
WRAP_OPEN(openat64, d, (int d, const char *path, int flags, ...), d, path, flags, mode)

#define WRAP_FOPEN(name) \
    FILE *name(const char *path, const char *how) { \
        REAL(FILE *, #name, (const char *, const char *)); \
        int outcome = how[0] == 'r' ? GO : point(MAKE, #name, AT_FDCWD, path); \
        if (outcome == STOP) return NULL; \
        FILE *result = real(path, how); \
        die(outcome); \
        return result; \
    }

WRAP_FOPEN(fopen)
WRAP_FOPEN(fopen64)
