/*
 * faults.c - tests of what estoraje.c has on its disk after a process was
 * killed, the power was lost, or a call of the system failed, at each step.
 *
 *     make test-faults
 *
 * The program is included, and what it asks of the system goes through this
 * file. A "life" is what a process does from its start to its end: the real
 * start, logs and superblock and all, then writes, syncs and compactions, in
 * one thread: the work of the pool's threads is done where the program would
 * wait for them. A life can be ended at any call; then its memory and its
 * descriptors are taken from it as from a process that was killed.
 *
 * The files are real ones in a temporary directory. Beside them it is kept what
 * of them is durable; when the power is lost, that is what they are set to.
 * Nothing waits for a real disk, so there are some thousand lives a second.
 *
 * What a key holds is computed from the key and the version, deletes too: so
 * whatever is read shows by itself whether it was ever written. Environment:
 * SEED=n repeats the random lives of a run that printed it, TORTURE=1 makes a
 * hundred times as many.
 *
 * Chapters: The disk - The world - A life - Keys - A node at work -
 * Compaction - Calls that fail - Syncs side by side - Random lives -
 * The superblock.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants those above. */
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include "../ring.h"

/* Partitions that there may be: each start looks for the log of every one. */
#undef RING_PARTITIONS_MAX
#define RING_PARTITIONS_MAX 64

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* A step of a 64-bit linear congruential generator; good bits are high. */
static uint32_t random_next(uint64_t *seed) {
    *seed =
        *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*seed >> 32);
}

/* A random number below n. */
static uint32_t random_below(uint64_t *seed, uint32_t n) {
    return (uint32_t)((uint64_t)random_next(seed) * n >> 32);
}

/* -------------------------------------------------------------- The disk
 *
 * A file's content is durable as of its last sync, and a name as of the last
 * sync of the directory. That is the least that POSIX promises: real file
 * systems keep more, which a loss of power that tears things does, too.
 *
 * A sync that fails leaves the kernel with pages that it takes for clean: they
 * are read, but neither they nor the error come up again at the next sync.
 */

#define INODES     64
#define NAME_BYTES 16

struct bytes {
    uint8_t *p;
    size_t n;
};

struct inode {
    ino_t number;
    int fd;                     /* our own: it is read after its last name */
    char name[NAME_BYTES];      /* "": none */
    char safe_name[NAME_BYTES]; /* the same after a loss of power */
    struct bytes safe;          /* the content after a loss of power */
    struct bytes seen;          /* what the kernel takes for that */
};

static struct {
    char path[PATH_MAX];
    int fd;
    struct inode inode[INODES];
    unsigned count;
} drive;

/* Ends the test program's part of a thing that cannot fail. */
static void must(bool good, const char *what) {
    if (!good) {
        fprintf(stderr, "faults: %s: %s\n", what, strerror(errno));
        abort();
    }
}

/* Memory of these tests' own. */
static struct bytes bytes_new(size_t n) {
    struct bytes b = {calloc(1, n > 0 ? n : 1), n};

    must(b.p != NULL, "memory");
    return b;
}

/* The file of a descriptor; NULL: it is none in the directory. */
static struct inode *disk_of(int fd) {
    struct stat st;

    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        return NULL;
    for (unsigned i = 0; i < drive.count; i++)
        if (drive.inode[i].number == st.st_ino)
            return &drive.inode[i];
    return NULL;
}

/* The file that has a name now, or durably; NULL: there is none. */
static struct inode *disk_named(const char *name, bool safe) {
    for (unsigned i = 0; i < drive.count; i++) {
        struct inode *inode = &drive.inode[i];

        if (strcmp(safe ? inode->safe_name : inode->name, name) == 0)
            return inode;
    }
    return NULL;
}

/* Takes note of a file that was opened, maybe made. */
static struct inode *disk_note(int fd, const char *name) {
    struct inode *inode = disk_of(fd);
    struct stat st;

    if (inode != NULL)
        return inode;
    must(drive.count < INODES && strlen(name) < NAME_BYTES, "too many files");
    inode = &drive.inode[drive.count++];
    memset(inode, 0, sizeof *inode);
    inode->fd = openat(drive.fd, name, O_RDWR | O_CLOEXEC);
    must(inode->fd >= 0 && fstat(inode->fd, &st) == 0, name);
    inode->number = st.st_ino;
    strcpy(inode->name, name);
    inode->safe = bytes_new(0);
    inode->seen = bytes_new(0);
    return inode;
}

/* Forgets a file. */
static void disk_drop(struct inode *inode) {
    close(inode->fd);
    free(inode->safe.p);
    free(inode->seen.p);
    *inode = drive.inode[--drive.count];
}

/* What is in a file now. */
static struct bytes disk_content(const struct inode *inode) {
    struct stat st;
    struct bytes b;

    must(fstat(inode->fd, &st) == 0, "fstat");
    b = bytes_new((size_t)st.st_size);
    must(pread(inode->fd, b.p, b.n, 0) == (ssize_t)b.n, "pread");
    return b;
}

/* The bytes of a block that begins at an offset and ends where the content
   does. */
static size_t block_n(const struct bytes *b, size_t at, size_t block) {
    return at >= b->n ? 0 : b->n - at < block ? b->n - at : block;
}

/* Whether a block is the same in two contents. */
static bool block_same(const struct bytes *a, const struct bytes *b, size_t at,
                       size_t block) {
    size_t n = block_n(a, at, block);

    return n == block_n(b, at, block) && memcmp(a->p + at, b->p + at, n) == 0;
}

/* Copies what there is of a block. */
static void block_copy(const struct bytes *to, const struct bytes *from,
                       size_t at, size_t block) {
    size_t n = block_n(to, at, block), have = block_n(from, at, block);

    if (n > 0)
        memset(to->p + at, 0, n);
    if (have > 0 && n > 0)
        memcpy(to->p + at, from->p + at, have < n ? have : n);
}

/* Syncs a file: what is not clean becomes durable, unless the sync fails. */
static void disk_sync(struct inode *inode, bool good) {
    struct bytes now = disk_content(inode);
    struct bytes safe = bytes_new(good ? now.n : inode->safe.n);

    for (size_t at = 0; at < safe.n; at += 4096)
        block_copy(&safe,
                   good && !block_same(&now, &inode->seen, at, 4096)
                       ? &now
                       : &inode->safe,
                   at, 4096);
    free(inode->safe.p);
    free(inode->seen.p);
    inode->safe = safe;
    inode->seen = now;
}

/* Syncs the directory; files that have no name any more are gone. */
static void disk_sync_names(void) {
    for (unsigned i = drive.count; i-- > 0;) {
        strcpy(drive.inode[i].safe_name, drive.inode[i].name);
        if (drive.inode[i].name[0] == '\0')
            disk_drop(&drive.inode[i]);
    }
}

/* What is left of a file: with a seed, of what was not synced some blocks, and
   the old size, the new one or one between. */
static struct bytes disk_left(const struct inode *inode, uint64_t *seed) {
    struct bytes now = disk_content(inode), left;
    size_t block = seed != NULL && random_below(seed, 2) ? 512 : 4096;
    size_t n = inode->safe.n;

    if (seed != NULL && random_below(seed, 2))
        n = now.n;
    else if (seed != NULL && now.n > n)
        n += random_below(seed, (uint32_t)(now.n - n)) / 512 * 512;
    left = bytes_new(n);
    for (size_t at = 0; at < n; at += block)
        block_copy(&left,
                   seed != NULL && random_below(seed, 2) ? &now : &inode->safe,
                   at, block);
    free(now.p);
    return left;
}

/* Makes the directory empty. */
static void disk_clear(void) {
    while (drive.count > 0) {
        struct inode *inode = &drive.inode[drive.count - 1];

        if (inode->name[0] != '\0')
            unlinkat(drive.fd, inode->name, 0);
        disk_drop(inode);
    }
}

/* Makes a file that is on the disk. */
static void disk_make(const char *name, struct bytes content) {
    int fd =
        openat(drive.fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);

    must(fd >= 0 && pwrite(fd, content.p, content.n, 0) == (ssize_t)content.n,
         name);
    disk_sync(disk_note(fd, name), true);
    close(fd);
}

/* The power is lost. Without a seed all is as it was synced last; with one each
   name is of the old file or of the new one, and files may be torn. */
static void disk_power_loss(uint64_t *seed) {
    char names[2 * INODES][NAME_BYTES];
    struct bytes left[2 * INODES];
    bool tear = seed != NULL && random_below(seed, 2);
    unsigned count = 0;

    for (unsigned i = 0; i < 2 * drive.count; i++) {
        const struct inode *inode = &drive.inode[i / 2];
        const char *name = i % 2 ? inode->safe_name : inode->name;
        bool safe = seed == NULL || random_below(seed, 2);
        bool again = name[0] == '\0';

        for (unsigned j = 0; j < count; j++)
            again = again || strcmp(names[j], name) == 0;
        inode = disk_named(name, safe);
        if (again)
            continue;
        strcpy(names[count], name);
        left[count].p = NULL;
        if (inode != NULL)
            left[count] = disk_left(inode, tear ? seed : NULL);
        count++;
    }
    disk_clear();
    for (unsigned i = 0; i < count; i++) {
        if (left[i].p != NULL)
            disk_make(names[i], left[i]);
        free(left[i].p);
    }
    disk_sync_names();
}

/* Setup of all: a directory. */
static int disk_begin(void **state) {
    const char *where = getenv("TMPDIR");

    (void)state;
    snprintf(drive.path, sizeof drive.path, "%s/estoraje-faults-XXXXXX",
             where != NULL && where[0] != '\0' ? where : "/tmp");
    if (mkdtemp(drive.path) == NULL)
        return -1;
    drive.fd = open(drive.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return drive.fd >= 0 ? 0 : -1;
}

/* ------------------------------------------------------------- The world
 *
 * What the program meets where it asks the system: each call is a step, at
 * which its life can be ended, and which can be told to fail. */

/* Kinds of calls, as bits. */
enum kind {
    CALL_OPEN = 1,
    CALL_WRITE = 2,
    CALL_CUT = 4,
    CALL_SYNC = 8,
    CALL_RENAME = 16,
    CALL_UNLINK = 32,
    CALL_RESERVE = 64,
    CALL_MARK = 128,
    CALL_MEMORY = 256
};

/* How a life ended. */
enum end { ENDED, KILLED, GAVE_UP, DIED };

#define HELD_MAX 4096
#define FDS_MAX  1024
#define PARTS    4

static struct {
    jmp_buf grave;
    enum end end;
    uint64_t seed; /* of all random numbers, the program's, too */
    uint64_t us;   /* all clocks; each look takes a moment */
    /* When it ends, and what fails. */
    unsigned steps, kill_at; /* 0: never */
    unsigned calls;          /* enum kind of those that fail */
    unsigned failing;        /* such calls so far */
    unsigned fail_at;        /* the number of the first that fails; 0: none */
    unsigned fail_until;     /* of the first that does not any more */
    int error;
    bool brief; /* the first one writes a part */
    bool failed;
    /* What the process has. */
    struct bytes held[HELD_MAX];
    unsigned held_count;
    bool fds[FDS_MAX];
    struct ring *ring;
    /* In shared memory. */
    char mark[64];
    FILE *mark_file;
    /* What the tests look at. */
    bool bad_log[PARTS]; /* a sync of the log failed in this life */
    bool pooling;        /* the pool is at work */
    bool inside;         /* the test is, in a call of the program */
    void (*meanwhile)(bool sync);
    void (*unsynced)(void);
    char said[1200];
} world;

#define SPARES 8

/* Large memory of lives that ended. */
static struct bytes spare[SPARES];
static unsigned spare_count;

/* What needs the program's types; "A life" has them. */
static void world_meanwhile(bool sync);
static bool world_queue(int fd);
static void world_pool(void);

/* Ends the life. */
static void __attribute__((noreturn)) world_end(enum end end) {
    world.end = end;
    longjmp(world.grave, 1);
}

/* Whether a call fails. */
static bool world_fails(enum kind call) {
    if ((world.calls & call) == 0 || world.fail_at == 0)
        return false;
    world.failing++;
    if (world.failing < world.fail_at || world.failing >= world.fail_until)
        return false;
    world.failed = true;
    errno = world.error;
    return true;
}

/* A step: the life may end here. Whether the call fails. */
static bool world_step(enum kind call) {
    if (++world.steps == world.kill_at)
        world_end(KILLED);
    return world_fails(call);
}

/* Takes note of a descriptor that the program has. */
static int world_fd(int fd) {
    must(fd < FDS_MAX, "too many descriptors");
    if (fd >= 0)
        world.fds[fd] = true;
    return fd;
}

static int world_openat(int dir, const char *name, int flags, ...) {
    int fd;

    errno = ENOENT; /* it is asked for the log of each partition there may be */
    if ((flags & O_CREAT) == 0 && disk_named(name, false) == NULL)
        return -1;
    if (world_step(CALL_OPEN))
        return -1;
    fd = world_fd(openat(dir, name, flags, 0666));
    if (fd >= 0)
        disk_note(fd, name);
    return fd;
}

static int world_open(const char *path, int flags, ...) {
    return world_fd(open(path, flags, 0666));
}

static int world_close(int fd) {
    world.fds[fd] = false;
    return close(fd);
}

static int world_pipe(int fds[2]) {
    int result = pipe(fds);

    world_fd(fds[0]);
    world_fd(fds[1]);
    return result;
}

/* pwrite(). A life that ends here may have written a part, but sectors are
   written whole or not. */
static ssize_t world_pwrite(int fd, const void *p, size_t n, off_t offset) {
    size_t part = n == 512 ? 0 : random_below(&world.seed, (uint32_t)n + 1);

    if (world.steps + 1 == world.kill_at)
        must(pwrite(fd, p, part, offset) == (ssize_t)part, "pwrite");
    if (!world_step(CALL_WRITE))
        return pwrite(fd, p, n, offset);
    if (!world.brief || world.failing != world.fail_at || n == 512)
        return -1;
    return pwrite(fd, p, part > 0 && part < n ? part : n / 2, offset);
}

static ssize_t world_pread(int fd, void *p, size_t n, off_t offset) {
    world_meanwhile(false);
    return pread(fd, p, n, offset);
}

/* read(): of the pool's queue, whose end is where it is empty; of a pipe; or of
   random numbers. */
static ssize_t world_read(int fd, void *p, size_t n) {
    struct pollfd look = {.fd = fd, .events = POLLIN};
    uint64_t id;

    if (world_queue(fd) && poll(&look, 1, 0) == 0)
        return 0;
    if (n != sizeof id)
        return read(fd, p, n);
    id = (uint64_t)random_next(&world.seed) << 32;
    id |= random_next(&world.seed);
    memcpy(p, &id, sizeof id);
    return sizeof id;
}

static int world_ftruncate(int fd, off_t length) {
    return world_step(CALL_CUT) ? -1 : ftruncate(fd, length);
}

/* fsync() and fdatasync(), of files and of the directory. A size is not left
   out by either. */
static int world_sync(int fd) {
    struct inode *inode = disk_of(fd);
    bool bad;

    world_meanwhile(true);
    bad = world_step(CALL_SYNC);
    if (inode != NULL)
        disk_sync(inode, !bad);
    else if (!bad)
        disk_sync_names();
    if (bad && world.unsynced != NULL)
        world.unsynced();
    world_meanwhile(true);
    if (bad && inode != NULL && strstr(inode->name, ".log") != NULL)
        world.bad_log[strtoul(inode->name, NULL, 10)] = true;
    errno = world.error;
    return bad ? -1 : 0;
}

static int world_renameat(int from_dir, const char *from, int to_dir,
                          const char *to) {
    struct inode *inode = disk_named(from, false), *over;

    if (world_step(CALL_RENAME) || renameat(from_dir, from, to_dir, to) != 0)
        return -1;
    over = disk_named(to, false);
    if (over != NULL)
        over->name[0] = '\0';
    strcpy(inode->name, to);
    return 0;
}

static int world_unlinkat(int dir, const char *name, int flags) {
    struct inode *inode = disk_named(name, false);

    if (world_step(CALL_UNLINK) || unlinkat(dir, name, flags) != 0)
        return -1;
    inode->name[0] = '\0';
    return 0;
}

/* posix_fallocate(), which only says that there is room. */
static int world_fallocate(int fd, off_t offset, off_t n) {
    (void)fd;
    (void)offset;
    (void)n;
    return world_step(CALL_RESERVE) ? world.error : 0;
}

/* shm_open(): there is one mark, and behind it one file without a name. */
static int world_mark_open(const char *name, int flags, mode_t mode) {
    (void)mode;
    if (world_step(CALL_MARK))
        return -1;
    if ((flags & O_CREAT) != 0 && strcmp(world.mark, name) != 0) {
        snprintf(world.mark, sizeof world.mark, "%s", name);
        must((world.mark_file != NULL || (world.mark_file = tmpfile())) &&
                 (ftruncate)(fileno(world.mark_file), 0) == 0,
             "a file for the mark");
    }
    errno = ENOENT;
    return strcmp(world.mark, name) == 0
               ? world_fd(dup(fileno(world.mark_file)))
               : -1;
}

static int world_mark_unlink(const char *name) {
    if (!world_step(CALL_MARK) && strcmp(world.mark, name) == 0)
        world.mark[0] = '\0';
    return 0;
}

/* Takes note of memory that the program has. */
static void *world_hold(void *p, size_t n) {
    must(p != NULL && world.held_count < HELD_MAX, "memory");
    world.held[world.held_count++] = (struct bytes){p, n};
    return p;
}

/* The program has it no more. */
static void world_let(const void *p) {
    for (unsigned i = world.held_count; i-- > 0;)
        if (world.held[i].p == p) {
            world.held[i] = world.held[--world.held_count];
            return;
        }
}

static void world_free(void *p) {
    world_let(p);
    free(p);
}

/* calloc(). What is large is kept from life to life, which saves time. */
static void *world_calloc(size_t count, size_t size) {
    size_t n = count * size;

    if (world_fails(CALL_MEMORY))
        return NULL;
    for (unsigned i = 0; i < spare_count; i++)
        if (spare[i].n == n) {
            struct bytes old = spare[i];

            spare[i] = spare[--spare_count];
            return world_hold(memset(old.p, 0, n), n);
        }
    return world_hold(calloc(count, size), n);
}

static void *world_realloc(void *old, size_t n) {
    if (world_fails(CALL_MEMORY))
        return NULL;
    world_let(old);
    return world_hold(realloc(old, n), n);
}

static struct ring *world_ring(const struct ring_member *members, size_t count,
                               unsigned partitions, unsigned replicas) {
    world.ring = ring_build(members, count, partitions, replicas);
    return world.ring;
}

/* clock_gettime(): one time for all clocks, which goes on when it is seen. */
static int world_clock(clockid_t id, struct timespec *t) {
    (void)id;
    world.us += 3;
    t->tv_sec = (time_t)(world.us / 1000000);
    t->tv_nsec = (long)(world.us % 1000000) * 1000;
    return 0;
}

/* poll() for nothing, a rest: others are at work meanwhile. */
static int world_rest(struct pollfd *fds, nfds_t n, int ms) {
    (void)fds;
    (void)n;
    world.us += (uint64_t)ms * 1000;
    world_pool();
    world_meanwhile(false);
    return 0;
}

static int world_thread(pthread_t *thread, const pthread_attr_t *attr,
                        void *(*run)(void *), void *arg) {
    (void)thread;
    (void)attr;
    (void)run;
    (void)arg;
    return 0;
}

static int world_join(pthread_t thread, void **result) {
    (void)thread;
    (void)result;
    world_pool();
    return 0;
}

/* fprintf() to stderr: only the last line is kept. */
static void __attribute__((format(printf, 2, 3)))
world_print(FILE *file, const char *format, ...) {
    va_list args;

    (void)file;
    va_start(args, format);
    vsnprintf(world.said, sizeof world.said, format, args);
    va_end(args);
}

static void __attribute__((noreturn)) world_exit(int code) {
    (void)code;
    world_end(GAVE_UP);
}

static void __attribute__((noreturn)) world_abort(void) {
    world_end(DIED);
}

#define openat          world_openat
#define open            world_open
#define close           world_close
#define pipe            world_pipe
#define pwrite          world_pwrite
#define pread           world_pread
#define read            world_read
#define ftruncate       world_ftruncate
#define fsync           world_sync
#define fdatasync       world_sync
#define renameat        world_renameat
#define unlinkat        world_unlinkat
#define posix_fallocate world_fallocate
#define shm_open        world_mark_open
#define shm_unlink      world_mark_unlink
#define calloc          world_calloc
#define realloc         world_realloc
#define free            world_free
#define ring_build      world_ring
#define clock_gettime   world_clock
#define poll            world_rest
#define pthread_create  world_thread
#define pthread_join    world_join
#define fprintf         world_print
#define exit            world_exit
#define abort           world_abort
#define main            estoraje_main

#include "../estoraje.c"

#undef open
#undef close
#undef calloc
#undef free
#undef fprintf
#undef clock_gettime
#undef main

/* ---------------------------------------------------------------- A life
 *
 * Of each key there are three versions to be known: the one that is to be found
 * while nobody takes the power away, the one that is to be found after that,
 * and the highest that was ever tried. */

#define KEYS        24
#define REFUSED_MAX 4096

static struct known {
    uint64_t accepted; /* the highest that was; 0: none */
    uint64_t acked;    /* the highest that is durable */
    uint64_t highest;  /* the highest that was tried */
} known[KEYS];

static struct {
    uint64_t top; /* of all versions that were accepted */
    uint64_t refused[REFUSED_MAX];
    unsigned refused_count;
    unsigned refused_parts; /* a bit each that has refused in this life */
    unsigned damaged;       /* keys that could not be read at the last look */
    unsigned large;         /* of a value, bytes */
} keys;

/* The process that lives, and what its death leaves for the tests to see. */
static struct {
    struct node *node; /* NULL: none does, or it has not begun */
    struct part *busy; /* that is compacted */
    enum sync_mode sync;
    bool accept_damage;
    bool unclean;         /* a start since the last look at all keys said so */
    struct identity self; /* of the process before */
    uint64_t ceiling;     /* likewise */
} process;

/* Lets the test do what it has to do while the program is at work, where the
   partition that is compacted is not locked. sync: before or after a sync. */
static void world_meanwhile(bool sync) {
    if (world.inside || world.meanwhile == NULL || process.busy == NULL ||
        pthread_mutex_trylock(&process.busy->lock) != 0)
        return;
    pthread_mutex_unlock(&process.busy->lock);
    world.inside = true;
    world.meanwhile(sync);
    world.inside = false;
}

static bool world_queue(int fd) {
    return process.node != NULL && process.node->pool_queue[1] > 0 &&
           fd == process.node->pool_queue[0];
}

/* Has the pool do what is queued. */
static void world_pool(void) {
    if (world.pooling || process.node == NULL ||
        process.node->pool_queue[1] == 0)
        return;
    world.pooling = true;
    pool_run(process.node);
    world.pooling = false;
}

/* What a process leaves when it ends goes back to the system. */
static void life_over(void) {
    if (process.node != NULL) {
        process.self = process.node->self;
        process.ceiling = atomic_load(&process.node->ceiling);
    }
    process.node = NULL;
    process.busy = NULL;
    ring_free(world.ring);
    world.ring = NULL;
    while (world.held_count > 0) {
        struct bytes held = world.held[--world.held_count];

        if (held.n >= 65536 && spare_count < SPARES)
            spare[spare_count++] = held;
        else
            free(held.p);
    }
    for (int fd = 0; fd < FDS_MAX; fd++)
        if (world.fds[fd]) {
            world.fds[fd] = false;
            close(fd);
        }
    memset(world.bad_log, 0, sizeof world.bad_log);
    world.pooling = world.inside = false;
    world.meanwhile = NULL;
    world.unsynced = NULL;
}

/* Lives: runs a function until it ends, or until that is the end. kill_at: the
   step at which it is killed, 0: none. */
static enum end life(void (*run)(void), unsigned kill_at) {
    world.steps = world.failing = 0;
    world.failed = false;
    world.kill_at = kill_at;
    if (setjmp(world.grave) == 0) {
        run();
        world.end = ENDED;
    }
    life_over();
    return world.end;
}

/* No file, no mark, nothing that fails; all that is random is of this seed. */
static void world_reset(uint64_t seed) {
    FILE *mark_file = world.mark_file;

    life_over(); /* if a test failed */
    disk_clear();
    memset(&world, 0, sizeof world);
    world.mark_file = mark_file;
    memset(&process, 0, sizeof process);
    world.seed = seed;
    world.us = UINT64_C(1800000000000000);
    world.error = EIO;
}

/* Teardown of all. */
static int disk_end(void **state) {
    (void)state;
    if (world.mark_file != NULL)
        fclose(world.mark_file);
    disk_clear();
    while (spare_count > 0)
        free(spare[--spare_count].p);
    close(drive.fd);
    return rmdir(drive.path);
}

/* The start of a process, as main() has it. */
static void node_up(void) {
    static const struct flags flags = {.name = "a",
                                       .host = "127.0.0.1",
                                       .data = drive.path,
                                       .port = 1,
                                       .peer_port = 2,
                                       .partitions = PARTS,
                                       .replicas = 1,
                                       .threads = 1};
    struct node *node = memory(1, sizeof *node);

    process.node = node;
    node->flags = flags;
    node->flags.accept_damage = process.accept_damage;
    node->sync = process.sync;
    node->log_most = LOG_MAX;
    atomic_store(&node->full, true);
    directory_open(node);
    process.unclean = process.unclean || node->unclean;
    assert_true(node->begin_ceiling >= keys.top);
    directory_check(node);
    logs_check(node);
    node->client_fd = world_open("/dev/null", O_RDONLY | O_CLOEXEC);
    node->peer_fd = world_open("/dev/null", O_RDONLY | O_CLOEXEC);
    workers_begin(node);
    cluster_begin(node);
    store_begin(node);
}

/* The power is lost, and with it what is in memory; see disk_power_loss(). */
static void power_loss(bool torn) {
    disk_power_loss(torn ? &world.seed : NULL);
    world.mark[0] = '\0';
}

/* ------------------------------------------------------------------ Keys */

/* How the process before ended, and what it had to sync. */
static struct {
    bool power, torn;
    enum sync_mode sync;
} before;

/* Nothing was ever written. */
static void keys_reset(unsigned large) {
    memset(known, 0, sizeof known);
    memset(&keys, 0, sizeof keys);
    memset(&before, 0, sizeof before);
    keys.large = large;
}

/* The name of a key. */
static struct slice key_name(unsigned k, char name[32]) {
    snprintf(name, 32, "key-%.*u", (int)(k % 9) + 1, k);
    return slice_of(name);
}

/* The record of a key with a version: all of it follows from these. */
static void key_record(unsigned k, uint64_t version, struct buf *b) {
    uint64_t seed = version * KEYS + k;
    bool remove = random_below(&seed, 4) == 0;
    size_t n = random_below(&seed, random_below(&seed, 8) ? 200 : keys.large);
    char name[32];
    size_t at;

    b->n = 0;
    at = record_begin(b, key_name(k, name), slice_of(k % 2 ? "text/plain" : ""),
                      remove);
    for (; !remove && n > 0; n--) {
        uint8_t byte = (uint8_t)(random_next(&seed) >> 24);

        buf_add(b, &byte, 1);
    }
    record_end(b, at);
    record_stamp(b->p, version, version);
}

/* The partition of a key. */
static unsigned key_part(unsigned k, uint64_t *print) {
    char name[32];
    struct slice key = key_name(k, name);

    *print = ring_fingerprint(key.p, key.n, process.node->self.hash);
    return ring_partition(*print, PARTS);
}

/* Checks that a key has what it must have, and nothing that it must not. */
static void key_check(unsigned k, uint64_t least, bool torn) {
    struct node *node = process.node;
    struct buf b = {0}, want = {0};
    struct record r = {0};
    char name[32];
    uint64_t print;
    unsigned part = key_part(k, &print);
    enum found found =
        store_read(node, &node->parts[part], print, key_name(k, name), SIZE_MAX,
                   &b, &r, NULL, NULL);

    if (found != FOUND)
        r.version = 0;
    assert_true(r.version >= known[k].accepted || before.sync != SYNC_SECOND ||
                process.unclean); /* a loss is known, or had no answer */
    if (torn && (found == UNSURE || found == DAMAGED)) {
        keys.damaged++;
    } else if (found == UNSURE || found == DAMAGED || r.version < least ||
               r.version > known[k].highest) {
        fail_msg("%s of partition %u: found %d, version %" PRIx64
                 ", not at least %" PRIx64 " and at most %" PRIx64,
                 name, part, (int)found, r.version, least, known[k].highest);
    } else if (found == FOUND) {
        for (unsigned i = 0; i < keys.refused_count; i++)
            assert_int_not_equal(keys.refused[i], r.version);
        key_record(k, r.version, &want);
        record_seal(b.p, 0);
        assert_int_equal(b.n, want.n);
        assert_memory_equal(b.p, want.p, b.n);
    }
    known[k].accepted = r.version;
    buf_free(&b);
    buf_free(&want);
}

/* Checks all keys after a start, and that no file of a compaction is left.
   power: it was lost; torn: in a way that may leave damage. */
static void keys_check(bool power, bool torn) {
    bool vouched = process.node->self.clean == 1;

    keys.damaged = keys.refused_parts = 0;
    for (unsigned k = 0; k < KEYS; k++)
        key_check(k, power ? known[k].acked : known[k].accepted, torn);
    for (unsigned k = 0; k < KEYS && keys.damaged == 0; k++) {
        if (power || vouched)
            known[k].acked = known[k].accepted;
        known[k].highest = known[k].accepted; /* none comes up again */
    }
    if (keys.damaged == 0) {
        process.unclean = before.power = before.torn = false;
        process.accept_damage = false;
        before.sync = process.sync;
    }
    for (unsigned i = 0; i < drive.count; i++)
        assert_null(strstr(drive.inode[i].name, ".new"));
    for (unsigned i = 0; i < PARTS; i++) { /* a torn tail is cut off */
        const struct log *log = &process.node->parts[i].log;

        assert_int_equal(lseek(log->file->fd, 0, SEEK_END), log->end);
    }
}

/* -------------------------------------------------------- A node at work */

#define BATCH 4

/* Operations that wait for a sync, as those of requests do. */
static struct op waiting[BATCH];
static unsigned waiting_key[BATCH];

/* What the house thread does in a turn, syncs aside. */
static void house_turn(void) {
    ceiling_raise(process.node);
    reserve_take(process.node);
}

/* A second passes, in a mode in which nobody waits for a sync. */
static void second_passes(void) {
    struct node *node = process.node;
    uint64_t accepted[KEYS], print;

    house_turn();
    for (unsigned k = 0; k < KEYS; k++)
        accepted[k] = known[k].accepted;
    sync_all(node);
    world_pool();
    for (unsigned k = 0; k < KEYS; k++) {
        const struct part *part = &node->parts[key_part(k, &print)];

        if (!part->dead && !part->queued) /* else the next second is for it */
            known[k].acked = accepted[k];
    }
}

/* Has a partition accept a record, as a replica does: once the ceiling is high
   enough. */
static enum verdict key_accept(unsigned k, uint64_t version) {
    struct node *node = process.node;
    struct accepted a = {.verdict = ACCEPT_CEILING};
    struct buf b = {0};
    struct record r;
    uint64_t print;
    struct part *part = &node->parts[key_part(k, &print)];

    key_record(k, version, &b);
    assert_true(record_parse(b.p, b.n, 0, &r));
    for (int i = 0; i < 3 && a.verdict == ACCEPT_CEILING; i++) {
        a = store_accept(node, part, b.p, &r, print, HOW_PLAIN);
        if (a.verdict == ACCEPT_CEILING)
            house_turn();
    }
    buf_free(&b);
    return a.verdict;
}

/* Writes a key. Whether the write was accepted. */
static bool key_write(unsigned k) {
    uint64_t version = clock_version(process.node, 0), print;
    unsigned part = key_part(k, &print);
    enum verdict verdict;

    assert_true(version > keys.top); /* in this life and all before */
    known[k].highest = version;
    verdict = key_accept(k, version);
    if (verdict == ACCEPT_OK) {
        assert_false(world.bad_log[part]);
        keys.top = known[k].accepted = version;
        return true;
    }
    assert_true(verdict >= ACCEPT_FULL);
    if (!process.node->parts[part].dead) { /* nothing of it is there */
        const struct log *log = &process.node->parts[part].log;

        assert_int_equal(lseek(log->file->fd, 0, SEEK_END), log->end);
    }
    assert_true(keys.refused_count < REFUSED_MAX);
    keys.refused[keys.refused_count++] = version;
    if (verdict != ACCEPT_CEILING)
        keys.refused_parts |= 1u << part;
    return false;
}

/* Takes what was synced out of the worker's inbox: the answers go out. */
static void answers_take(void) {
    struct worker *w = &process.node->workers[0];
    uint64_t print;

    for (struct op *op = w->synced; op != NULL; op = op->wait_next) {
        unsigned k = waiting_key[op - waiting];
        unsigned part = key_part(k, &print);

        op->parked = false;
        if (op->wait_result != 0) {
            keys.refused_parts |= 1u << part;
            continue;
        }
        assert_false(world.bad_log[part]);
        if (op->version > known[k].acked)
            known[k].acked = op->version;
    }
    w->synced = NULL;
    w->synced_end = &w->synced;
    wake_drain(w->wake[0]);
}

/* Parks the write of a key that was accepted. */
static void key_park(unsigned k, unsigned i) {
    struct node *node = process.node;
    uint64_t print;

    memset(&waiting[i], 0, offsetof(struct op, rec));
    waiting[i].w = &node->workers[0];
    waiting[i].version = known[k].accepted;
    waiting_key[i] = k;
    sync_park(node, &node->parts[key_part(k, &print)], &waiting[i]);
}

/* Writes some keys at the same time; with -sync always until they are durable,
   unless it is during a sync, of which the end is not here. only: in the
   partition that is compacted. */
static void keys_write(unsigned count, bool only) {
    struct node *node = process.node;
    bool wait = node->sync == SYNC_ALWAYS &&
                (process.busy == NULL || !process.busy->queued);
    uint64_t print;

    for (unsigned i = 0; i < count; i++) {
        unsigned k = random_below(&world.seed, KEYS);

        while (only && &node->parts[key_part(k, &print)] != process.busy)
            k = (k + 1) % KEYS;
        if (key_write(k) && wait)
            key_park(k, i);
    }
    if (!wait)
        return;
    world_pool();
    answers_take();
    for (unsigned i = 0; i < BATCH; i++)
        assert_false(waiting[i].parked);
}

/* What clients do while a partition is compacted, more so when it is synced. */
static void keys_meanwhile(bool sync) {
    uint32_t what = random_below(&world.seed, sync ? 3 : 8);

    if (what < 2)
        keys_write(what + 1, true);
    else if (what == 2 && process.node->sync != SYNC_ALWAYS)
        second_passes();
}

/* Compacts the partition of a key, as the care thread does. */
static void keys_compact(unsigned k) {
    struct node *node = process.node;
    uint64_t print;

    process.busy = &node->parts[key_part(k, &print)];
    world.meanwhile = keys_meanwhile;
    part_compact(node, process.busy);
    world.meanwhile = NULL;
    world_pool();
    process.busy = NULL;
}

/* A start, and a look at all keys. */
static void run_check(void) {
    memset(waiting, 0, sizeof waiting);
    node_up();
    keys_check(before.power, before.torn && !process.accept_damage);
}

/* Starts until a start goes well, the n-th being killed at its n-th step if
   `kills`, and the power lost each time if it was. Damage that a loss of power
   left is given up then. */
static void revive(bool kills) {
    enum end end = KILLED;

    for (unsigned j = 1; end == KILLED; j++) {
        end = life(run_check, kills ? j : 0);
        if (end == KILLED && before.power)
            power_loss(before.torn);
    }
    if (end != ENDED)
        fail_msg("it does not start: %s", world.said);
    if (keys.damaged > 0) {
        process.accept_damage = true;
        assert_int_equal(life(run_check, 0), ENDED);
    }
}

/* ------------------------------------------------------------ Compaction */

static unsigned compact_from; /* the step before the compaction */

/* A start with nothing, keys, overwritten and removed, then a compaction with
   writes during and after it. */
static void run_compaction(void) {
    run_check();
    for (unsigned i = 0; i < 16; i++)
        keys_write(2, false);
    second_passes();
    compact_from = world.steps;
    keys_compact(0);
    keys_write(2, false);
}

/* Kills a compaction at each of its steps, and each start after that at each of
   its own. */
static void compaction_killed(bool power, bool torn, uint64_t seed) {
    enum end end = KILLED;

    for (unsigned k = 0; end == KILLED; k++) {
        world_reset(seed);
        keys_reset(3000);
        process.sync = SYNC_ALWAYS;
        end = life(run_compaction, k == 0 ? 0 : compact_from + k);
        if (k == 0)
            end = KILLED;
        before.power = power;
        before.torn = torn;
        world.seed += k;
        if (power)
            power_loss(torn);
        revive(true);
    }
    assert_int_equal(end, ENDED);
}

/* A process that is killed leaves files as they are. */
static void test_compaction_killed(void **state) {
    (void)state;
    compaction_killed(false, false, 1);
}

/* A loss of power leaves what was synced. */
static void test_compaction_power(void **state) {
    (void)state;
    compaction_killed(true, false, 2);
}

/* The same, and it leaves some of what was not. */
static void test_compaction_torn(void **state) {
    (void)state;
    for (uint64_t seed = 3; seed < 6; seed++)
        compaction_killed(true, true, seed);
}

/* ------------------------------------------------------- Calls that fail */

/* A run of all that writes: puts, deletes, a compaction, syncs, a clean stop.
   When a single call has failed, one partition at most has refused a write, and
   the others go on; a full disk is everybody's. */
static void run_standard(void) {
    bool dead[PARTS];
    uint64_t print;

    run_check();
    for (unsigned i = 0; i < 8; i++) {
        keys_write(1 + i % 2, false);
        house_turn();
    }
    second_passes();
    keys_compact(0);
    for (unsigned k = 0; k < KEYS; k++) {
        house_turn();
        if (k % 2 == 0)
            continue;
        if (key_write(k) && process.sync == SYNC_ALWAYS) {
            key_park(k, 0);
            world_pool();
            answers_take();
        }
    }
    for (unsigned i = 0; i < PARTS; i++)
        dead[i] = process.node->parts[i].dead;
    node_stop(process.node);
    for (unsigned k = 0; k < KEYS; k++) {
        unsigned part = key_part(k, &print);

        if (!dead[part] && !process.node->parts[part].dead)
            known[k].acked = known[k].accepted;
    }
}

/* Ends a run in the middle of a compaction, which leaves its file. */
static void run_begun(void) {
    run_check();
    for (unsigned i = 0; i < 6; i++)
        keys_write(2, false);
    keys_compact(0);
}

/* What fails, and how. */
struct fault {
    unsigned calls; /* enum kind */
    int error;
    bool brief;  /* a write does a part before */
    unsigned in; /* one of so many is tried in each variant, by turns */
};

/* One call fails, the k-th, or all from it on, in a run that finds nothing or
   what another one left. Whether there was one. */
static bool fault_try(const struct fault *fault, unsigned k, bool on,
                      unsigned variant) {
    unsigned refused;
    bool failed;

    world_reset(k + 1);
    keys_reset(500);
    process.sync = variant & 1 ? SYNC_ALWAYS : SYNC_SECOND;
    if (variant & 2)
        life(run_begun, 120 + k % 8);
    world.error = fault->error;
    world.calls = fault->calls;
    world.brief = fault->brief;
    world.fail_at = k;
    world.fail_until = on ? UINT_MAX : k + 1 + fault->brief;
    life(run_standard, 0);
    failed = world.failed;
    refused = keys.refused_parts;
    if (!on && fault->error != ENOSPC && (refused & (refused - 1)) != 0)
        fail_msg("%s: partitions %x refused", world.said, refused);
    world.fail_at = 0;
    before.power = (variant & 4) != 0;
    before.torn = false;
    if (before.power)
        power_loss(false);
    revive(false);
    return failed;
}

/* Each call of a run fails in turn, in several ways: what was answered well is
   there after the next start, what was refused is not. */
static void faults_try(const struct fault *fault) {
    unsigned step = getenv("TORTURE") != NULL ? 1 : fault->in;

    for (unsigned variant = 0; variant < 16; variant++)
        for (unsigned k = 1 + variant % step;
             fault_try(fault, k, variant & 8, variant & 7); k += step)
            ;
}

static void test_open_fails(void **state) {
    (void)state;
    faults_try(&(struct fault){CALL_OPEN, EMFILE, false, 1});
}

static void test_write_fails(void **state) {
    (void)state;
    faults_try(&(struct fault){CALL_WRITE, EIO, false, 8});
    faults_try(&(struct fault){CALL_WRITE, EIO, true, 8});
}

/* The disk is full; then what was written in part is cut off. */
static void test_disk_full(void **state) {
    (void)state;
    faults_try(&(struct fault){CALL_WRITE, ENOSPC, false, 8});
    faults_try(&(struct fault){CALL_WRITE, ENOSPC, true, 8});
    faults_try(&(struct fault){CALL_RESERVE, ENOSPC, false, 1});
}

/* What was written in part cannot be cut off either. */
static void test_cut_fails(void **state) {
    (void)state;
    faults_try(&(struct fault){CALL_CUT, EIO, false, 1});
    faults_try(&(struct fault){CALL_CUT | CALL_WRITE, EIO, true, 8});
}

static void test_sync_fails(void **state) {
    (void)state;
    faults_try(&(struct fault){CALL_SYNC, EIO, false, 5});
}

static void test_names_fail(void **state) {
    (void)state;
    faults_try(&(struct fault){CALL_RENAME, EIO, false, 1});
    faults_try(&(struct fault){CALL_UNLINK, EIO, false, 1});
    faults_try(&(struct fault){CALL_MARK, EIO, false, 1});
}

/* Without memory a process may end, but not forget. */
static void test_memory_fails(void **state) {
    (void)state;
    faults_try(&(struct fault){CALL_MEMORY, ENOMEM, false, 40});
}

/* ----------------------------------------------------- Syncs side by side */

/* While the first sync is at work, another write comes in, and waits. */
static void overlap_write(bool sync) {
    if (sync && waiting[1].w == NULL && key_write(0))
        key_park(0, 1);
}

/* The first sync fails, and its thread does not go on before another one has
   done what is queued. */
static void overlap_sync(void) {
    world.unsynced = NULL;
    pool_run(process.node);
}

static void run_overlap(void) {
    uint64_t print;

    run_check();
    process.busy = &process.node->parts[key_part(0, &print)];
    assert_true(key_write(0));
    key_park(0, 0);
    world.meanwhile = overlap_write;
    world.unsynced = overlap_sync;
    world.calls = CALL_SYNC;
    world.failing = 0;
    world.fail_at = 1;
    world.fail_until = 2;
    world_pool();
    assert_non_null(waiting[1].w);
    answers_take();
    assert_false(waiting[0].parked || waiting[1].parked);
    assert_int_equal(known[0].acked, 0);
    assert_false(key_write(0));
}

/* The kernel tells of a failed sync once for each open file. A sync of the same
   log in another thread that is told nothing of it has nothing to say either. */
static void test_sync_overlap(void **state) {
    (void)state;
    world_reset(1);
    keys_reset(500);
    process.sync = SYNC_ALWAYS;
    assert_int_equal(life(run_overlap, 0), ENDED);
}

/* ---------------------------------------------------------- Random lives */

static bool stopped; /* the last life ended well */

/* Work at random, after a start. */
static void run_random(void) {
    unsigned turns = random_below(&world.seed, 50);

    stopped = false;
    run_check();
    for (unsigned i = 0; i < turns && keys.damaged == 0; i++) {
        uint32_t what = random_below(&world.seed, 16);

        if (what < 12)
            keys_write(1 + what % BATCH, false);
        else if (what < 14)
            second_passes();
        else
            keys_compact(random_below(&world.seed, KEYS));
    }
    process.accept_damage = keys.damaged > 0; /* at the next start */
    if (keys.damaged > 0 || random_below(&world.seed, 4) > 0)
        return;
    node_stop(process.node);
    for (unsigned k = 0; k < KEYS; k++)
        known[k].acked = known[k].accepted;
    stopped = true;
}

/* One life in a directory, and how it ends. */
static void random_life(void) {
    bool kill = random_below(&world.seed, 8) > 0;
    uint32_t how = random_below(&world.seed, 3);
    enum end end;

    process.sync = random_below(&world.seed, 2) ? SYNC_ALWAYS : SYNC_SECOND;
    end = life(run_random, kill ? 1 + random_below(&world.seed, 250) : 0);
    if (end != ENDED && end != KILLED)
        fail_msg("it does not start: %s", world.said);
    before.power = before.power || how > 0; /* until there is a good start */
    before.torn = before.torn || how > 1;
    if (how > 0)
        power_loss(how > 1);
}

/* Many lives in the same directory, of which power losses and deaths end most:
   what was durable is found in the next. */
static void test_random_lives(void **state) {
    const char *long_form = getenv("TORTURE"), *given = getenv("SEED");
    unsigned lives = 0;
    struct timespec t;
    time_t until;
    uint64_t seed;

    (void)state;
    clock_gettime(CLOCK_REALTIME, &t);
    seed = given != NULL ? strtoull(given, NULL, 10) : (uint64_t)t.tv_nsec;
    print_message("SEED=%" PRIu64 "\n", seed);
    clock_gettime(CLOCK_MONOTONIC, &t);
    until = t.tv_sec + (long_form != NULL ? 600 : 6);
    for (; t.tv_sec < until; clock_gettime(CLOCK_MONOTONIC, &t)) {
        world_reset(seed++);
        keys_reset(world.seed % 2 ? 500 : 9000);
        for (unsigned i = 0; i < 6; i++, lives++)
            random_life();
    }
    print_message("%u lives\n", lives);
}

/* -------------------------------------------------------- The superblock */

/* The ceiling is raised again and again, since time goes by. */
static void run_ceiling(void) {
    run_check();
    for (unsigned i = 0; i < 4; i++) {
        keys_write(1, false);
        world.us += 3000000;
        house_turn();
    }
}

/* Reads who the node is, and nothing more. */
static void run_superblock(void) {
    process.node = memory(1, sizeof *process.node);
    process.node->flags.data = drive.path;
    directory_open(process.node);
}

/* The power is lost at each step: what is read is the superblock before or the
   new one. No version that was accepted is above its ceiling (see node_up()),
   synced or not. */
static void test_superblock(void **state) {
    enum end end = KILLED;

    (void)state;
    for (unsigned k = 1; end == KILLED || k % 8 != 1; k++)
        for (unsigned variant = 0; variant < (k < 16 ? 40u : 6u); variant++) {
            struct identity last;
            uint64_t ceiling;

            world_reset(k * 40 + variant);
            keys_reset(500);
            process.sync = variant % 2 ? SYNC_ALWAYS : SYNC_SECOND;
            end = life(run_ceiling, k);
            last = process.self;
            ceiling = process.ceiling;
            before.power = true;
            before.torn = variant > 1;
            power_loss(before.torn);
            if (life(run_superblock, 0) == ENDED && process.self.sequence > 0) {
                assert_true(process.self.ceiling >= keys.top);
                assert_true(process.self.ceiling >= ceiling);
                assert_true(process.self.ceiling <= last.ceiling);
            }
            revive(false);
        }
}

static const struct CMUnitTest all_tests[] = {
    cmocka_unit_test(test_compaction_killed),
    cmocka_unit_test(test_compaction_power),
    cmocka_unit_test(test_compaction_torn),
    cmocka_unit_test(test_open_fails),
    cmocka_unit_test(test_write_fails),
    cmocka_unit_test(test_disk_full),
    cmocka_unit_test(test_cut_fails),
    cmocka_unit_test(test_sync_fails),
    cmocka_unit_test(test_names_fail),
    cmocka_unit_test(test_memory_fails),
    cmocka_unit_test(test_sync_overlap),
    cmocka_unit_test(test_random_lives),
    cmocka_unit_test(test_superblock),
};

/* Runs all tests; not 0 if one failed. */
int main(void) {
    return cmocka_run_group_tests(all_tests, disk_begin, disk_end);
}
