/* skew.c - a clock that is wrong, for one process

   A library to be preloaded.  It adds to CLOCK_REALTIME the seconds that the
   first eight bytes of the file $SKEW hold at that moment, as an int64_t, and
   to CLOCK_MONOTONIC those of the eight bytes behind them, 0 where the file
   has ended; so the clocks of a running process can be made to jump.  It asks the system itself, since what a sanitizer puts in the
   way of clock_gettime() is not ready yet when the first of them is made. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t none[2];
static volatile int64_t *skew = none;

/* Maps the file, before the program begins. */
__attribute__((constructor)) static void skew_begin(void) {
    const char *path = getenv("SKEW");
    int fd = path != NULL ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *p = fd >= 0 ? mmap(NULL, 16, PROT_READ, MAP_SHARED, fd, 0) : NULL;

    if (fd >= 0)
        close(fd);
    if (p != NULL && p != MAP_FAILED)
        skew = p;
}

int clock_gettime(clockid_t clock, struct timespec *t) {
    int failed = (int)syscall(SYS_clock_gettime, clock, t);

    if (failed == 0 && clock == CLOCK_REALTIME)
        t->tv_sec += (time_t)skew[0];
    if (failed == 0 && clock == CLOCK_MONOTONIC)
        t->tv_sec += (time_t)skew[1];
    return failed;
}

time_t time(time_t *to) {
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    if (to != NULL)
        *to = t.tv_sec;
    return t.tv_sec;
}
