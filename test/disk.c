/* disk.c - what happens to data on disk, tested from outside: kill -9 under
   load, a full disk, rotten bytes, -check and -dump, copies, foreign files,
   and that nothing is acknowledged before it is on the disk

   Real processes on real files.  The tests know three things of the files:
   partition N is in NNN.log, behind a header of 64 bytes; a value stands there
   as it was sent, so that it can be found by its bytes and spoiled; and where a
   record begins is what -dump says.  What may not be had on a machine, a file
   system of our own or a tracer, is said and skipped. */

#include "harness.h"

#define COUNT(table) (sizeof(table) / sizeof(table)[0])

/* ---- What the tests share -------------------------------------------- */

/* Starts a node that runs alone, with further flags. */
static struct server *alone(const char *name, const char *flags) {
    struct server *s = server_new(name);

    server_args(s, "-port 0 -peerPort 0 %s", flags);
    server_start(s);
    server_ready(s);
    return s;
}

/* Starts a node again that was ended. */
static void again(struct server *s) {
    server_start(s);
    server_ready(s);
}

/* The path of a partition's log. */
static const char *log_path(const char *dir, unsigned partition) {
    static char path[MAX_PATH + 16];

    snprintf(path, sizeof path, "%s/%03u.log", dir, partition);
    return path;
}

/* Bytes in all logs of a directory. */
static long logs_size(const char *dir, unsigned partitions) {
    long sum = 0;

    for (unsigned i = 0; i < partitions; i++)
        sum += file_size(log_path(dir, i));
    return sum;
}

/* Where some bytes stand in a file, for the first time; -1: nowhere. */
static long bytes_find(const char *path, const char *bytes, size_t n) {
    size_t len;
    char *all = file_read(path, &len), *p = all;
    long found = -1;

    while (all != NULL && found < 0 && len - (size_t)(p - all) >= n &&
           (p = memchr(p, bytes[0], len - (size_t)(p - all) - n + 1)) != NULL)
        if (memcmp(p++, bytes, n) == 0)
            found = (long)(p - 1 - all);
    free(all);
    return found;
}

/* Flips all bits of one byte of a file, in place. */
static void byte_flip(const char *path, long offset) {
    int fd = open(path, O_RDWR);
    char byte = 0;

    check(fd >= 0 && pread(fd, &byte, 1, offset) == 1, "%s: %s", path,
          strerror(errno));
    byte = (char)~byte;
    check(pwrite(fd, &byte, 1, offset) == 1, "%s: %s", path, strerror(errno));
    close(fd);
}

/* The partition in whose log some bytes are, and where; -1: in none. */
static int value_find(const char *dir, const char *bytes, size_t n, long *at) {
    for (unsigned i = 0; i < 16; i++)
        if ((*at = bytes_find(log_path(dir, i), bytes, n)) >= 0)
            return (int)i;
    return -1;
}

/* Flips a byte of a value, in the log that has it: so many bytes behind the
   beginning of what is given of it.  Answers the partition.  In a cluster an
   owner may have it later than the client has the answer.  A log that is worth
   a compaction is not for this: what takes its place may have the value as it
   was. */
static unsigned value_spoil(const char *dir, const char *bytes, size_t n,
                            long behind) {
    int partition;
    long at;

    wait_until((partition = value_find(dir, bytes, n, &at)) >= 0, LIMIT_MS,
               "the value is in no log of %s", dir);
    byte_flip(log_path(dir, (unsigned)partition), at + behind);
    return (unsigned)partition;
}

/* One request on a connection of its own; the status and, if it is asked for,
   the body, of which room bytes are kept. */
static int ask(int port, const char *method, const char *target,
               const char *body, char *seen, size_t room) {
    struct client c = client_make(port);
    int status = client_text(&c, method, target, body);

    if (seen != NULL)
        snprintf(seen, room, "%s", c.body != NULL ? c.body : "");
    client_end(&c);
    return status;
}

/* Checks that a GET gives 200 and this text. */
static void check_value(int port, const char *target, const char *want) {
    char seen[256];
    int status = ask(port, "GET", target, NULL, seen, sizeof seen);

    check(status == 200 && strcmp(seen, want) == 0, "GET %s: %d \"%s\"", target,
          status, seen);
}

/* Checks that a key is said to be damaged: in words to GET, and never to be
   absent. */
static void check_damaged(int port, const char *target) {
    char seen[256];
    int status = ask(port, "GET", target, NULL, seen, sizeof seen);

    check(status == 500 && strstr(seen, "damaged") != NULL, "GET %s: %d \"%s\"",
          target, status, seen);
    status = status_of(port, "HEAD", target);
    check(status > 0 && status != 404, "HEAD %s: %d", target, status);
}

/* Stores a text. */
static void put(int port, const char *target, const char *text) {
    int status = ask(port, "PUT", target, text, NULL, 0);

    check(status == 201 || status == 204, "PUT %s: %d", target, status);
}

/* True when the log of a node's last start has all of these words in one of
   its lines. */
static bool told(const struct server *s, const char *const words[4]) {
    char *log = server_log(s), *line = log, *end;
    bool found = false;

    for (; !found && (end = strchr(line, '\n')) != NULL; line = end + 1) {
        *end = '\0';
        found = true;
        for (size_t i = 0; i < 4 && words[i] != NULL; i++)
            found = found && strstr(line, words[i]) != NULL;
    }
    free(log);
    return found;
}

/* ---- kill -9 under load ---------------------------------------------- */

enum {
    WRITERS = 64,
    WRITER_KEYS = 2,
    VALUE_LEAST = 2000,
    VALUE_MOST = 20000,
    PARTITIONS = 4,
    /* bytes, of which less than half can be in logs that are compacted: what
       is live, as much again and 512 KiB, of each partition */
    ENOUGH = 4 * WRITERS * WRITER_KEYS * VALUE_MOST + PARTITIONS * (1 << 20)
};

/* A client that writes its own keys over and over, with values that are told
   by a number.  A request that was not answered is its last. */
struct writer {
    int port, id;
    pthread_t thread;
    uint64_t number;            /* of its last write */
    uint64_t held[WRITER_KEYS]; /* the write acknowledged last; 0: none */
    uint64_t sent[WRITER_KEYS]; /* the write sent last */
    int refused;                /* a status that should not be; 0: none */
    char value[VALUE_MOST];
};

static struct writer writers[WRITERS];
static bool writers_stop;
static size_t writers_done; /* writes acknowledged, by all */
static long writers_bytes;  /* in them */
static pthread_mutex_t writers_lock = PTHREAD_MUTEX_INITIALIZER;

/* The seed of a writer's write. */
static uint64_t writer_seed(const struct writer *w, uint64_t number) {
    return (uint64_t)w->id << 40 | number;
}

/* The length of its value. */
static size_t writer_length(const struct writer *w, uint64_t number) {
    uint64_t s = writer_seed(w, number) * 2654435761u | 1;

    random_next(&s);
    return VALUE_LEAST + random_next(&s) % (VALUE_MOST - VALUE_LEAST);
}

/* Makes the value; its length. */
static size_t writer_value(struct writer *w, uint64_t number) {
    size_t len = writer_length(w, number);

    random_bytes(w->value, len, writer_seed(w, number));
    return len;
}

/* Notes a write that was acknowledged. */
static void writer_note(struct writer *w, size_t k, size_t len) {
    pthread_mutex_lock(&writers_lock);
    w->held[k] = w->sent[k];
    writers_done++;
    writers_bytes += (long)len;
    pthread_mutex_unlock(&writers_lock);
}

/* Whether the writers are to go on. */
static bool writers_go(void) {
    bool go;

    pthread_mutex_lock(&writers_lock);
    go = !writers_stop;
    pthread_mutex_unlock(&writers_lock);
    return go;
}

static void *writer_main(void *arg) {
    struct writer *w = arg;
    struct client c = client_make(w->port);
    char target[32];

    while (writers_go()) {
        size_t k = ++w->number % WRITER_KEYS, len = writer_value(w, w->number);

        snprintf(target, sizeof target, "/w/%d/%zu", w->id, k);
        w->sent[k] = w->number;
        client_ask(&c, "PUT", target, NULL, w->value, len);
        if (c.status != 201 && c.status != 204) {
            w->refused = c.status > 0 ? c.status : 0;
            break;
        }
        writer_note(w, k, len);
    }
    client_end(&c);
    return NULL;
}

/* Lets all writers write to a port. */
static void writers_begin(int port) {
    writers_stop = false;
    for (int i = 0; i < WRITERS; i++) {
        struct writer *w = &writers[i];

        w->port = port;
        w->id = i;
        check(pthread_create(&w->thread, NULL, writer_main, w) == 0,
              "no thread");
    }
}

/* Ends the writers, and checks that none was refused. */
static void writers_end(void) {
    pthread_mutex_lock(&writers_lock);
    writers_stop = true;
    pthread_mutex_unlock(&writers_lock);
    for (int i = 0; i < WRITERS; i++)
        pthread_join(writers[i].thread, NULL);
    for (int i = 0; i < WRITERS; i++)
        check(writers[i].refused == 0, "writer %d: %d", i, writers[i].refused);
}

/* Writes acknowledged so far. */
static size_t writers_count(void) {
    size_t n;

    pthread_mutex_lock(&writers_lock);
    n = writers_done;
    pthread_mutex_unlock(&writers_lock);
    return n;
}

/* The number of the write whose value this is, of those from one on that were
   sent to a key; 0: it is of none. */
static uint64_t writer_find(struct writer *w, size_t k, uint64_t from,
                            const struct client *c) {
    uint64_t n = from > 0 ? from : k > 0 ? k : WRITER_KEYS;

    for (; n <= w->sent[k]; n += WRITER_KEYS)
        if (c->body_len == writer_length(w, n)) {
            size_t len = writer_value(w, n);

            if (memcmp(c->body, w->value, len) == 0)
                return n;
        }
    return 0;
}

/* Checks that a key holds the write that was acknowledged last, or a later one;
   answers which, 0 for none. */
static uint64_t writer_check(struct writer *w, struct client *c, size_t k,
                             uint64_t held) {
    uint64_t seen = 0;
    char target[32];

    snprintf(target, sizeof target, "/w/%d/%zu", w->id, k);
    client_text(c, "GET", target, NULL);
    if (c->status == 200)
        seen = writer_find(w, k, held, c);
    check(c->status == (seen > 0 ? 200 : 404) && seen >= held,
          "%s: %d, write %llu; %llu was acknowledged, %llu sent", target,
          c->status, (unsigned long long)seen, (unsigned long long)held,
          (unsigned long long)w->sent[k]);
    return seen;
}

/* Checks all keys of all writers.  What is there must stay, even if it was not
   acknowledged; what is not there must not come. */
static void writers_check(int port) {
    struct client c = client_make(port);

    for (size_t i = 0; i < WRITERS; i++)
        for (size_t k = 0; k < WRITER_KEYS; k++) {
            struct writer *w = &writers[i];

            w->held[k] = w->sent[k] = writer_check(w, &c, k, w->held[k]);
        }
    client_end(&c);
}

/* Forgets what was written, for another node. */
static void writers_forget(void) {
    memset(writers, 0, sizeof writers);
    writers_done = 0;
    writers_bytes = 0;
}

/* True while a partition is being compacted. */
static bool compacting(const struct server *s) {
    char path[MAX_PATH + 16];

    for (unsigned i = 0; i < PARTITIONS; i++) {
        snprintf(path, sizeof path, "%s/%03u.new", s->dir, i);
        if (file_size(path) >= 0)
            return true;
    }
    return false;
}

/* Waits for a moment to kill a node: some writes later, or in the middle of a
   compaction, if there is one soon.  True when it is in one. */
static bool moment_wait(const struct server *s, bool in_compaction) {
    size_t from = writers_count();
    size_t more = WRITERS + random_next(&the_run.random) % 400;
    long until = now_ms() + 2000;

    wait_until(writers_count() > from + more, LIMIT_MS, "no writes");
    while (in_compaction && !compacting(s) && now_ms() < until)
        pause_ms(1);
    return compacting(s);
}

/* A node is killed again and again while 64 clients write, so much that it
   compacts its logs meanwhile: no acknowledged write is ever lost. */
static void test_kills(void **state) {
    size_t rounds = sampled(torture() ? 1000 : 20), in_compaction = 0;
    struct server *s = alone("killed", "-partitions 4 -scrub 1s -sync second");

    (void)state;
    writers_forget();
    for (size_t i = 0; i < rounds || writers_bytes < ENOUGH; i++) {
        writers_begin(s->port);
        in_compaction += moment_wait(s, i % 2 == 1);
        server_kill(s);
        writers_end();
        check(!told(s, (const char *const[4]){"compaction", "given up"}),
              "a compaction was given up");
        s->argv[s->argc - 1] = i % 5 == 3 ? "always" : "second";
        again(s);
        writers_check(s->port);
    }
    part("%zu kills, %zu of them in a compaction; %zu writes, %ld MB; the "
         "logs have %ld MB",
         rounds, in_compaction, writers_count(), writers_bytes >> 20,
         logs_size(s->dir, PARTITIONS) >> 20);
    wait_until(logs_size(s->dir, PARTITIONS) < writers_bytes / 2, LIMIT_MS,
               "nothing was compacted");
    server_stop(s);
}

/* ---- A full disk ----------------------------------------------------- */

enum {
    FILLERS = 8,           /* clients that fill the disk together */
    FILL_MOST = 40000,     /* bytes of a value, at most */
    FILL_KEEP = 8,         /* of so many keys one is not deleted */
    SMALL_DISK = 20 << 20, /* bytes */
    SMALL_FILE = 112 << 10 /* a limit of files, less than the reserve */
};

/* A file system of its own in memory, which only a process that holds it has
   mounted, in a namespace: it is gone when that is, however it goes. */
static struct small_disk {
    pid_t holder;
    char point[MAX_PATH];
} small_disk;

/* A process that mounts the disk and waits; false: it may not.  options are
   of unshare. */
static bool small_disk_mount(const char *options) {
    char script[256], out[MAX_PATH + 16], fifo[MAX_PATH + 16];
    char *argv[] = {"unshare", (char *)options,  "sh", "-c",
                    script,    small_disk.point, fifo, NULL};
    size_t len;
    char *said;
    long until = now_ms() + LIMIT_MS;
    bool mounted = false;

    snprintf(fifo, sizeof fifo, "%s.fifo", small_disk.point);
    snprintf(out, sizeof out, "%s.out", small_disk.point);
    snprintf(script, sizeof script,
             "mount -t tmpfs -o size=%d,mode=700 tmpfs \"$0\" && echo mounted "
             "&& exec cat \"$1\"",
             (int)SMALL_DISK);
    mkdir(small_disk.point, 0700);
    mkfifo(fifo, 0600);
    unlink(out); /* it is appended to, and the last disk's may say so, too */
    small_disk.holder = spawn(argv, out, out, NULL, NULL, 0);
    check(small_disk.holder > 0, "cannot fork: %s", strerror(errno));
    while (!mounted && waitpid(small_disk.holder, NULL, WNOHANG) == 0) {
        said = file_read(out, &len);
        mounted = said != NULL && strstr(said, "mounted\n") != NULL;
        free(said);
        check(now_ms() < until, "neither mounted nor refused");
        pause_ms(2);
    }
    if (!mounted)
        small_disk.holder = 0;
    return mounted;
}

/* Makes a small disk, with or without being root; false: neither may. */
static bool small_disk_begin(void) {
    snprintf(small_disk.point, sizeof small_disk.point, "%.400s/small",
             the_run.dir);
    return small_disk_mount("-rm") || small_disk_mount("-m");
}

/* Ends the disk, which was never seen from here; a cmocka teardown. */
static int small_disk_end(void **state) {
    char path[MAX_PATH + 32];

    servers_end(state);
    if (small_disk.holder <= 0)
        return 0;
    snprintf(path, sizeof path, "/proc/%d/root%.400s", (int)small_disk.holder,
             small_disk.point);
    marks_remove(path);
    kill(small_disk.holder, SIGKILL);
    process_wait(small_disk.holder, LIMIT_MS);
    small_disk.holder = 0;
    return rmdir(small_disk.point);
}

/* A client that stores keys until there is no room. */
struct filler {
    int port, id;
    pthread_t thread;
    int stored, deleted; /* keys 0 to stored - 1 were acknowledged */
    int odd;             /* a status that should not be; 0: none */
    char value[FILL_MOST];
};

static struct filler fillers[FILLERS];

/* Makes a value of a filler; its length. */
static size_t filler_value(struct filler *f, int i) {
    uint64_t seed = (uint64_t)f->id << 32 | (uint64_t)i, s = seed + 1;
    size_t len;

    random_next(&s);
    len = random_next(&s) % FILL_MOST;
    random_bytes(f->value, len, seed);
    return len;
}

static void *filler_main(void *arg) {
    struct filler *f = arg;
    struct client c = client_make(f->port);
    char target[32];

    for (int i = f->stored; i < 100000; i++) {
        size_t len = filler_value(f, i);

        snprintf(target, sizeof target, "/f/%d/%d", f->id, i);
        client_ask(&c, "PUT", target, NULL, f->value, len);
        if (c.status != 201)
            break;
        f->stored++;
    }
    f->odd = c.status != 507 ? c.status : 0;
    client_end(&c);
    return NULL;
}

/* Has all fillers go on until there is no room. */
static void fillers_fill(int port) {
    for (int i = 0; i < FILLERS; i++) {
        fillers[i].port = port;
        fillers[i].id = i;
        check(pthread_create(&fillers[i].thread, NULL, filler_main,
                             &fillers[i]) == 0,
              "no thread");
    }
    for (int i = 0; i < FILLERS; i++)
        pthread_join(fillers[i].thread, NULL);
    for (int i = 0; i < FILLERS; i++)
        check(fillers[i].odd == 0, "filler %d ended with %d", i,
              fillers[i].odd);
}

/* Checks one key of a filler: what was acknowledged and not deleted is there,
   all else is absent. */
static void filler_check(struct filler *f, struct client *c, int i) {
    bool there = i < f->stored && (i >= f->deleted || i % FILL_KEEP == 0);
    size_t len = filler_value(f, i);
    char target[32];

    snprintf(target, sizeof target, "/f/%d/%d", f->id, i);
    client_text(c, "GET", target, NULL);
    check(c->status == (there ? 200 : 404), "%s: %d", target, c->status);
    check(!there || (c->body_len == len && memcmp(c->body, f->value, len) == 0),
          "%s: other bytes", target);
}

/* Checks all keys of all fillers, and the one that each was refused. */
static void fillers_check(int port) {
    struct client c = client_make(port);

    for (int k = 0; k < FILLERS; k++)
        for (int i = 0; i <= fillers[k].stored; i++)
            filler_check(&fillers[k], &c, i);
    client_end(&c);
}

/* Deletes most keys: each delete must be done. */
static void fillers_delete(int port) {
    struct client c = client_make(port);
    char target[32];

    for (int k = 0; k < FILLERS; k++) {
        struct filler *f = &fillers[k];

        for (int i = f->deleted; i < f->stored; i++) {
            snprintf(target, sizeof target, "/f/%d/%d", k, i);
            if (i % FILL_KEEP != 0)
                check(client_text(&c, "DELETE", target, NULL) == 204,
                      "DELETE %s: %d %s", target, c.status, c.body);
        }
        f->deleted = f->stored;
    }
    client_end(&c);
}

/* Checks that the disk is full and says so, and that a value which is refused
   leaves the one before as it was. */
static void check_full(int port) {
    char ready[512];

    check(ask(port, "PUT", "/new", "x", ready, sizeof ready) == 507,
          "a byte is taken");
    check(text_lines(ready) == 1, "507 with: %s", ready);
    check(status_of(port, "GET", "/new") == 404, "it was stored");
    check(ask(port, "PUT", "/f/0/0", "other", NULL, 0) == 507,
          "an overwrite is taken");
    check(ask(port, "GET", "/_ready", NULL, ready, sizeof ready) == 200 &&
              strstr(ready, "\ndegraded: ") != NULL &&
              strstr(ready, "full") != NULL,
          "/_ready: %s", ready);
}

/* Checks that a directory has no damage. */
static void check_sound(const char *dir) {
    struct output o = {0};

    run(&o, "%s -check %s", the_run.exe, dir);
    check(o.code == 0, "%s%s", o.out, o.err);
    output_free(&o);
}

/* Keeps the superblock where the marks of killed nodes are looked for. */
static void superblock_keep(const struct server *s) {
    char path[2 * MAX_PATH], *all;
    size_t len;

    snprintf(path, sizeof path, "%s/superblock", s->dir);
    all = file_read(path, &len);
    check(all != NULL, "no %s", path);
    snprintf(path, sizeof path, "%s/kept", the_run.dir);
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/kept/superblock", the_run.dir);
    check(file_write(path, "wb", all, len), "cannot write %s", path);
    free(all);
}

/* A node on the small disk. */
static struct server *small_disk_node(void) {
    struct server *s = server_plain("small", the_run.exe);

    snprintf(s->dir, sizeof s->dir, "/proc/%d/root%.400s/d",
             (int)small_disk.holder, small_disk.point);
    server_args(s, "-dataPath %s -port 0 -peerPort 0 -partitions 16", s->dir);
    again(s);
    superblock_keep(s);
    return s;
}

/* Someone else's file takes all that is left of the disk, when nobody who
   writes has noticed: maybe the first to notice is a delete, and it is done.
   Later ones are, too, if they make room. */
static void neighbour_fills(const struct server *s) {
    static const char bytes[4096];
    char path[MAX_PATH + 32], target[32];
    int fd, status;

    snprintf(path, sizeof path, "%s/../neighbour", s->dir);
    fd = open(path, O_WRONLY | O_CREAT, 0600);
    check(fd >= 0, "%s: %s", path, strerror(errno));
    while (write(fd, bytes, sizeof bytes) > 0)
        continue;
    check(errno == ENOSPC, "%s: %s", path, strerror(errno));
    close(fd);
    for (int i = 0; i < 1500; i++) {
        snprintf(target, sizeof target, "/absent/%d", i);
        status = status_of(s->port, "DELETE", target);
        check(status == 404 || status == 507, "DELETE %s: %d", target, status);
    }
    check(status_of(s->port, "DELETE", "/room") == 204, "not deleted");
    unlink(path);
    wait_until(ask(s->port, "PUT", "/room", "z", NULL, 0) == 201, LIMIT_MS,
               "no room after the file is gone");
}

/* A disk that is full: what was acknowledged is there, deletes are taken, and
   make room; all of it outlives a restart, one on the full disk, too. */
static void test_full_disk(void **state) {
    struct server *s;

    (void)state;
    if (!small_disk_begin()) {
        part("no file system may be mounted");
        skip();
    }
    memset(fillers, 0, sizeof fillers);
    part("a tmpfs of %d MiB", (int)SMALL_DISK >> 20);
    s = small_disk_node();
    fillers_fill(s->port);
    check_full(s->port);
    fillers_check(s->port);

    part("deletes make room");
    fillers_delete(s->port);
    wait_until(ask(s->port, "PUT", "/room", "x", NULL, 0) == 201, LIMIT_MS,
               "no room after the deletes");
    fillers_check(s->port);

    part("full again, and kill -9; full by someone else's file");
    fillers_fill(s->port);
    server_kill(s);
    check_sound(s->dir);
    again(s);
    superblock_keep(s);
    check_value(s->port, "/room", "x");
    fillers_check(s->port);
    fillers_delete(s->port);
    fillers_check(s->port);
    wait_until(ask(s->port, "PUT", "/room", "y", NULL, 0) == 204, LIMIT_MS,
               "no room after the restart");
    neighbour_fills(s);
    server_stop(s);
    check_sound(s->dir);
    again(s);
    superblock_keep(s);
    check_value(s->port, "/room", "z");
    fillers_check(s->port);
    server_stop(s);
}

/* Damage that is to be given up on a disk that is full: if the log cannot be
   written anew such a start is refused. Nothing else is taken along, and with
   room it is done. */
static void test_full_given_up(void **state) {
    struct server *s;
    unsigned partition;
    int status = -1;

    (void)state;
    if (!small_disk_begin()) {
        part("no file system may be mounted");
        skip();
    }
    memset(fillers, 0, sizeof fillers);
    s = small_disk_node();
    put(s->port, "/rotten", "this one will rot");
    fillers_fill(s->port);
    partition = value_spoil(s->dir, "this one will rot", 17, 3);
    server_kill(s);
    s->argv[s->argc++] = (char *)"-acceptDamage";
    server_start(s);
    wait_until(server_said_ready(s) || (status = process_wait(s->pid, 0)) >= 0,
               LIMIT_MS, "neither ready nor ended");
    s->argv[--s->argc] = NULL;
    if (status >= 0) {
        s->pid = 0;
        check(status == 1, "exit code %d", status);
        check(told(s, (const char *const[4]){"is there room", ".log anew"}),
              "not said why");
        again(s);
    }
    server_ready(s);
    superblock_keep(s);
    fillers_check(s->port);
    status = status_of(s->port, "GET", "/rotten");
    check(status == 404 || status == 500, "/rotten: %d", status);
    fillers_delete(s->port);
    wait_until(ask(s->port, "PUT", "/room", "x", NULL, 0) == 201, LIMIT_MS,
               "no room after the deletes");
    server_kill(s);
    s->argv[s->argc++] = (char *)"-acceptDamage";
    again(s);
    superblock_keep(s);
    wait_until(file_size(log_path(s->dir, partition)) < SMALL_DISK / 32,
               LIMIT_MS, "the log of partition %u is not compacted", partition);
    check(status_of(s->port, "GET", "/rotten") == 404, "it is not given up");
    fillers_check(s->port);
    server_stop(s);
    check_sound(s->dir);
}

/* Starts a node whose files may not grow over a limit. */
static void start_limited(struct server *s) {
    struct rlimit all, some;

    check(getrlimit(RLIMIT_FSIZE, &all) == 0, "%s", strerror(errno));
    some = all;
    some.rlim_cur = SMALL_FILE;
    check(setrlimit(RLIMIT_FSIZE, &some) == 0, "%s", strerror(errno));
    server_start(s);
    setrlimit(RLIMIT_FSIZE, &all);
    server_ready(s);
}

enum { LIMITED = 1600 };

/* Stores, checks or deletes a key of the node with the limit: values that are
   so small that they leave no room at all.  Answers the status. */
static int limited_ask(struct client *c, const char *method, int i) {
    struct filler *f = &fillers[0];
    size_t len = filler_value(f, i) % 1000;
    bool puts = method[0] == 'P';
    char target[32];

    snprintf(target, sizeof target, "/l/%d", i);
    client_ask(c, method, target, NULL, puts ? f->value : NULL, len);
    if (method[0] == 'G' && c->status == 200)
        check(c->body_len == len && memcmp(c->body, f->value, len) == 0,
              "%s: other bytes", target);
    return c->status;
}

/* Logs that may not grow any more: each refuses for itself, deletes are taken
   and make room in it.  (The reserve is over the limit, too: the signal that
   comes of that does not end the node.) */
static void test_file_limit(void **state) {
    struct server *s = server_new("limited");
    int status[LIMITED], taken = 0, refused = 0, late = 0, again_taken = 0;
    struct client c;

    (void)state;
    part("files of at most %d KiB", (int)SMALL_FILE >> 10);
    server_args(s, "-port 0 -peerPort 0 -partitions 8");
    start_limited(s);
    c = client_make(s->port);
    for (int i = 0; i < LIMITED; i++) {
        status[i] = limited_ask(&c, "PUT", i);
        check(status[i] == 201 || status[i] == 507, "%d: %d", i, status[i]);
        taken += status[i] == 201;
        late += status[i] == 201 && refused > 0;
        refused += status[i] == 507;
    }
    check(taken > 200 && refused > 200 && late > 20,
          "%d taken, %d refused, %d late", taken, refused, late);
    check(status_of(s->port, "GET", "/_ready") == 200, "not ready");
    for (int i = 0; i < LIMITED; i++)
        check(limited_ask(&c, "GET", i) == (status[i] == 201 ? 200 : 404),
              "%d: %d", i, c.status);
    for (int i = 0; i < LIMITED; i++)
        check(limited_ask(&c, "DELETE", i) == (status[i] == 201 ? 204 : 404),
              "DELETE %d: %d", i, c.status);
    for (int i = 0; i < LIMITED; i++)
        if (status[i] == 507 && again_taken < 3) { /* these fit in one log */
            wait_until(limited_ask(&c, "PUT", i) == 201, LIMIT_MS, "%d: %d", i,
                       c.status);
            status[i] = 1;
            again_taken++;
        }
    server_kill(s);
    start_limited(s);
    client_end(&c);
    c = client_make(s->port);
    for (int i = 0; i < LIMITED; i++)
        check(limited_ask(&c, "GET", i) == (status[i] == 1 ? 200 : 404),
              "%d: %d", i, c.status);
    client_end(&c);
    server_stop(s);
    check_sound(s->dir);
}

/* ---- Rotten bytes, on a node alone ----------------------------------- */

/* True when /_ready says that there is damage; it is 200 all the same. */
static bool damage_told(int port) {
    char ready[512];
    int status = ask(port, "GET", "/_ready", NULL, ready, sizeof ready);

    check(status == 200, "/_ready: %d", status);
    return strstr(ready, "\ndegraded: ") != NULL &&
           strstr(ready, "damage") != NULL;
}

/* Values that are rotten while the node runs: their keys are damaged, also
   after a restart, until they are written or deleted. */
static void test_rot(void **state) {
    static char large[1 << 20];
    struct server *s = alone("rot", "-partitions 1 -scrub 0");
    struct client c = client_make(s->port);

    (void)state;
    random_bytes(large, sizeof large, 3);
    put(s->port, "/small", "a value that will rot");
    put(s->port, "/again", "another that will rot");
    client_ask(&c, "PUT", "/large", NULL, large, sizeof large);
    check(c.status == 201, "%d", c.status);
    put(s->port, "/fine", "all is well");
    value_spoil(s->dir, "a value that will rot", 21, 7);
    value_spoil(s->dir, "another that will rot", 21, 20);
    value_spoil(s->dir, large, 64, sizeof large / 2);
    for (int turn = 0; turn < 2; turn++) {
        part("%s", turn == 0 ? "while it runs" : "after a restart");
        for (int times = 0; times < 3; times++) {
            check_damaged(s->port, "/large"); /* first: not yet in doubt */
            check_damaged(s->port, "/small");
            check_damaged(s->port, "/again");
            if (times == 1) /* then: a round that heals nothing ends doubt */
                pause_ms(500);
        }
        check_value(s->port, "/fine", "all is well");
        check(status_of(s->port, "GET", "/nothing") == 404, "not absent");
        wait_until(damage_told(s->port), LIMIT_MS, "/_ready tells nothing");
        server_kill(s);
        again(s);
    }

    part("healed by a PUT, a DELETE");
    put(s->port, "/small", "new");
    client_end(&c);
    c = client_make(s->port);
    large[0]++;
    client_ask(&c, "PUT", "/large", NULL, large, sizeof large);
    check(c.status == 204, "%d", c.status);
    check(status_of(s->port, "DELETE", "/again") == 204, "not deleted");
    wait_until(!damage_told(s->port), LIMIT_MS, "/_ready tells of damage");
    for (int turn = 0; turn < 2; turn++) {
        check_value(s->port, "/small", "new");
        check(client_text(&c, "GET", "/large", NULL) == 200 &&
                  c.body_len == sizeof large &&
                  memcmp(c.body, large, sizeof large) == 0,
              "/large: %d", c.status);
        check(status_of(s->port, "GET", "/again") == 404, "not absent");
        server_stop(s);
        again(s);
        client_end(&c);
        c = client_make(s->port);
    }
    client_end(&c);
    server_stop(s);
    check_sound(s->dir);
}

/* A value that is rotten when its log is to be compacted, which nobody has
   noticed before: its key does not become absent by that.  Once it is written
   anew the log is compacted, at the latest after a restart. */
static void test_rot_compacted(void **state) {
    static char fat[100 * 1024];
    struct server *s = alone("compacted", "-partitions 1 -scrub 0");
    struct client c = client_make(s->port);

    (void)state;
    put(s->port, "/rotten", "this one will rot");
    value_spoil(s->dir, "this one will rot", 17, 3);
    for (int i = 0; i < 12; i++) {
        client_ask(&c, "PUT", "/fat", NULL, fat, sizeof fat);
        check(c.status == (i == 0 ? 201 : 204), "%d", c.status);
    }
    client_end(&c);
    wait_until(told(s, (const char *const[4]){"damaged", "000.log", "offset="}),
               LIMIT_MS, "compaction does not come across it");
    for (int turn = 0; turn < 2; turn++) {
        check_damaged(s->port, "/rotten");
        server_kill(s);
        again(s);
    }
    put(s->port, "/rotten", "new");
    server_stop(s);
    again(s);
    wait_until(file_size(log_path(s->dir, 0)) < 3 * (long)sizeof fat, LIMIT_MS,
               "it is not compacted");
    check_value(s->port, "/rotten", "new");
    check(status_of(s->port, "GET", "/fat") == 200, "/fat is lost");
    server_stop(s);
    check_sound(s->dir);
}

/* A line of -dump. */
struct line {
    long offset, size; /* of the record, of its value */
    bool ok;
    char version[17], what[8], key[128];
};

/* What -dump prints of a log, of which so many lines are kept; how many there
   are.  *code: its exit code. */
static size_t dump(const char *path, struct line *lines, size_t most,
                   int *code) {
    struct output o = {0};
    size_t n = 0;

    run(&o, "%s -dump %s", the_run.exe, path);
    *code = o.code;
    for (char *p = o.out, *end; (end = strchr(p, '\n')) != NULL; p = end + 1) {
        struct line l = {0};
        char verdict[8] = "";

        *end = '\0';
        check(text_count(p, "\t") == 6 &&
                  sscanf(p, "%ld\t%7[a-z]\t%16s\t%*s\t%7s\t%127s\t%ld",
                         &l.offset, verdict, l.version, l.what, l.key,
                         &l.size) == 6,
              "not 7 columns: %s", p);
        l.ok = strcmp(verdict, "ok") == 0;
        check(l.ok || strcmp(verdict, "bad") == 0, "neither ok nor bad: %s", p);
        if (n < most)
            lines[n] = l;
        n++;
    }
    output_free(&o);
    return n;
}

/* Where the record of the n-th line of -dump begins. */
static long record_at(const char *path, size_t n) {
    struct line lines[32];
    size_t found;
    int code;

    found = dump(path, lines, COUNT(lines), &code);
    check(n < found, "%zu records in %s", found, path);
    return lines[n].offset;
}

enum { ROW = 10, ROTTEN = 5 };

/* A node with keys /0 to /9, one after the other in one log, and /0 written
   anew after them. */
static struct server *row_of_keys(const char *name) {
    struct server *s = alone(name, "-partitions 1 -scrub 0");
    char target[8];

    for (int i = 0; i <= ROW; i++) {
        snprintf(target, sizeof target, "/%d", i % ROW);
        put(s->port, target, i < ROW ? target : "anew");
    }
    return s;
}

/* Checks the keys before and after the rotten one; sure: those before it are
   served. */
static void row_check(int port, bool sure) {
    char target[8];

    check_value(port, "/0", "anew");
    for (int i = 1; i < ROW; i++) {
        snprintf(target, sizeof target, "/%d", i);
        if (i < ROTTEN && !sure)
            check_damaged(port, target);
        else if (i != ROTTEN)
            check_value(port, target, target);
    }
}

/* A record whose header is rotten may be of any key: after a restart what is
   older is not sure, and nothing is absent, until -acceptDamage. */
static void test_rotten_header(void **state) {
    struct server *s = row_of_keys("header");
    const char *path = log_path(s->dir, 0);
    char offset[64], bytes[64];
    long at = record_at(path, ROTTEN);

    (void)state;
    snprintf(offset, sizeof offset, "offset=%ld", at);
    snprintf(bytes, sizeof bytes, "bytes=%ld",
             record_at(path, ROTTEN + 1) - at);
    server_stop(s);
    byte_flip(path, at + 16);
    for (int turn = 0; turn < 2; turn++) {
        again(s);
        row_check(s->port, false);
        check_damaged(s->port, "/5");
        check_damaged(s->port, "/nothing");
        server_kill(s);
    }

    part("what is written is sure");
    again(s);
    put(s->port, "/1", "/1");
    check_value(s->port, "/1", "/1");
    check(status_of(s->port, "DELETE", "/nothing") == 204, "not deleted");
    check(status_of(s->port, "GET", "/nothing") == 404, "not absent");
    check_damaged(s->port, "/5");

    part("-acceptDamage");
    server_stop(s);
    s->argv[s->argc++] = (char *)"-acceptDamage";
    again(s);
    check(told(s, (const char *const[4]){"damaged", "000.log", offset, bytes}),
          "no line with %s", offset);
    s->argv[--s->argc] = NULL;
    for (int turn = 0; turn < 3; turn++) {
        row_check(s->port, true);
        check(status_of(s->port, "GET", "/5") == 404, "/5 is not given up");
        check(status_of(s->port, "GET", "/nothing") == 404, "not absent");
        server_kill(s);
        again(s);
    }
    server_stop(s);
    check_sound(s->dir);
}

/* A rotten value that is given up: what the key had before is there again. */
static void test_given_up(void **state) {
    struct server *s = row_of_keys("given-up");
    char offset[64];

    (void)state;
    put(s->port, "/5", "this one will rot");
    put(s->port, "/6", "/6");
    value_spoil(s->dir, "this one will rot", 17, 3);
    snprintf(offset, sizeof offset, "offset=%ld",
             record_at(log_path(s->dir, 0), ROW + 1));
    check_damaged(s->port, "/5");
    server_kill(s);
    s->argv[s->argc++] = (char *)"-acceptDamage";
    again(s);
    check(
        told(s, (const char *const[4]){"damaged", "000.log", offset, "bytes="}),
        "no line with %s", offset);
    s->argv[--s->argc] = NULL;
    for (int turn = 0; turn < 3; turn++) {
        row_check(s->port, true);
        check_value(s->port, "/5", "/5");
        server_kill(s);
        again(s);
    }
    put(s->port, "/5", "new");
    check_value(s->port, "/5", "new");
    server_stop(s);
    check_sound(s->dir);
}

/* ---- -check and -dump ------------------------------------------------ */

/* Runs -check on a directory: its exit code, and that it says of a file, if
   one is given, what is the matter with it.  Nothing may be changed. */
static int inspect(const char *dir, const char *file, const char *word) {
    uint64_t before = tree_sum(dir);
    struct output o = {0};
    bool said = file == NULL;

    run(&o, "%s -check %s", the_run.exe, dir);
    for (char *p = strtok(o.out, "\n"); p != NULL; p = strtok(NULL, "\n"))
        said = said || (strstr(p, file) != NULL && strstr(p, word) != NULL);
    check(said, "no line with %s and %s: %s", file, word, o.err);
    check(tree_sum(dir) == before, "-check has changed %s", dir);
    output_free(&o);
    return o.code;
}

/* What a log may have: what -check says of it, and its exit code, for which a
   torn tail is no damage; how many bad lines -dump prints. */
static void test_check(void **state) {
    static const struct {
        const char *what, *word;
        long flip; /* where in the third record; -1: nothing */
        long cut;  /* bytes taken from the end */
        int check;
        size_t bad;
    } rows[] = {
        {"nothing", "ok", -1, 0, 0, 0},
        {"a rotten value", "damaged", 60, 0, 1, 1},
        {"a rotten key", "damaged", 40, 0, 1, 1},
        {"a rotten header", "damaged", 16, 0, 1, 1},
        {"a torn tail", "torn", -1, 3, 0, 1},
    };
    struct server *s = alone("checked", "-partitions 4 -scrub 0");
    char target[32], path[MAX_PATH + 16];
    static struct line lines[200];
    struct output o = {0};
    size_t len, n, bad;
    long third;
    char *all;
    int code;

    (void)state;
    for (int i = 0; i < 100; i++) {
        snprintf(target, sizeof target, "/%03d", i);
        put(s->port, target, "with a value of some length");
    }
    part("while the node runs");
    snprintf(path, sizeof path, "%s", log_path(s->dir, 2));
    kill(s->pid, SIGSTOP); /* it may write its superblock of itself */
    check(inspect(s->dir, "002.log", "ok") == 0, "-check");
    kill(s->pid, SIGCONT);
    n = dump(path, lines, COUNT(lines), &code);
    check(n > 5 && code == 0, "-dump: %d", code);
    third = lines[2].offset;
    server_stop(s);
    all = file_read(path, &len);
    for (size_t i = 0; i < COUNT(rows); i++) {
        uint64_t before;

        part("%s", rows[i].what);
        if (rows[i].flip >= 0)
            byte_flip(path, third + rows[i].flip);
        check(truncate(path, (off_t)len - rows[i].cut) == 0, "truncate");
        before = tree_sum(s->dir);
        code = inspect(s->dir, "002.log", rows[i].word);
        check(code == rows[i].check, "-check: %d", code);
        check(inspect(s->dir, "001.log", "ok") == code, "another file");
        n = dump(path, lines, COUNT(lines), &code);
        for (bad = 0; n > 0; n--)
            bad += !lines[n - 1].ok;
        check(code == 0 && bad == rows[i].bad, "-dump: %d, %zu bad", code, bad);
        check(tree_sum(s->dir) == before, "-dump has changed it");
        if (i + 1 < COUNT(rows))
            check(file_write(path, "wb", all, len), "cannot write");
    }
    free(all);
    part("and what a start leaves of that");
    again(s);
    check(told(s, (const char *const[4]){"torn tail", "002.log", "offset="}),
          "the log says nothing of it");
    server_stop(s);
    run(&o, "%s -check %s", the_run.exe, s->dir);
    check(o.code == 0 && strstr(o.out, "torn") == NULL, "%s", o.out);
    output_free(&o);
}

/* Keys of all sorts come out of -dump so that they can follow a slash, and
   each record has a line of its own. */
static void test_dump(void **state) {
    static const char *const keys[] = {
        "plain", "a%20b", "p%25q", "n%0Al",    "t%09b", "h%FFx", "%5Flead",
        "x_y",   "s/l/a", "%00",   "q%3Fx%23", "~-._",  "%22",   "%C3%A9",
    };
    struct server *s = alone("dumped", "-partitions 1");
    struct line lines[32];
    char target[160];
    size_t n;
    int code;

    (void)state;
    for (size_t i = 0; i < COUNT(keys); i++) {
        snprintf(target, sizeof target, "/%s", keys[i]);
        put(s->port, target, keys[i]);
    }
    check(status_of(s->port, "DELETE", "/plain") == 204, "not deleted");
    n = dump(log_path(s->dir, 0), lines, COUNT(lines), &code);
    check(n == COUNT(keys) + 1 && code == 0, "%zu lines, %d", n, code);
    for (size_t i = 0; i < COUNT(keys); i++) {
        const struct line *l = &lines[i];

        check(l->ok && strcmp(l->key, keys[i]) == 0 &&
                  strcmp(l->what, "put") == 0 &&
                  l->size == (long)strlen(keys[i]) &&
                  strspn(l->version, "0123456789abcdef") == 16,
              "line %zu: %s %s %ld %s", i, l->key, l->what, l->size,
              l->version);
        check(i == 0 || (strcmp(l->version, l[-1].version) > 0 &&
                         l->offset > l[-1].offset),
              "line %zu is not after the one before", i);
        snprintf(target, sizeof target, "/%.127s", l->key);
        if (i > 0)
            check_value(s->port, target, keys[i]);
    }
    check(strcmp(lines[n - 1].what, "delete") == 0 &&
              strcmp(lines[n - 1].key, "plain") == 0,
          "%s %s", lines[n - 1].what, lines[n - 1].key);
    server_stop(s);
}

/* What is no directory of data, or no log: a line, and exit 1. */
static void test_no_data(void **state) {
    static const struct {
        const char *flag, *name;
    } rows[] = {
        {"-check", "nothing"}, {"-check", "text"}, {"-check", "empty"},
        {"-dump", "nothing"},  {"-dump", "text"},  {"-dump", "empty"},
        {"-dump", "void"},     {"-dump", "zeros"},
    };
    static const char zeros[4096];
    char path[MAX_PATH + 16];

    (void)state;
    snprintf(path, sizeof path, "%s/empty", the_run.dir);
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/text", the_run.dir);
    file_write(path, "wb", "estorlog, it says, and is not", 29);
    snprintf(path, sizeof path, "%s/void", the_run.dir);
    file_write(path, "wb", "", 0);
    snprintf(path, sizeof path, "%s/zeros", the_run.dir);
    file_write(path, "wb", zeros, sizeof zeros);
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct output o = {0};

        run(&o, "%s %s %s/%s", the_run.exe, rows[i].flag, the_run.dir,
            rows[i].name);
        check_refused(&o, 1, rows[i].name);
    }
}

/* ---- Copies, and files of others ------------------------------------- */

/* The exit code of -check, while the node may be at work. */
static int check_code(const char *dir) {
    struct output o = {0};

    run(&o, "%s -check %s", the_run.exe, dir);
    output_free(&o);
    return o.code;
}

/* Looks at the files of a node that is written to: nothing is wrong with them,
   but that the last record may not be all there yet. */
static void look_beside(const struct server *s) {
    static struct line lines[20000];
    int code;
    size_t n;

    check(check_code(s->dir) == 0, "-check finds damage");
    n = dump(log_path(s->dir, 1), lines, COUNT(lines), &code);
    check(code == 0 && n <= COUNT(lines), "-dump: %d, %zu lines", code, n);
    for (size_t i = 0; i + 1 < n; i++)
        check(lines[i].ok, "record %zu of %zu is bad", i, n);
}

/* Copies the directory of a node that is at work.  A file of a compaction may
   go meanwhile; where it takes a log's place between two calls of cp, that log
   is left out with a complaint, and cp is to be run again. */
static void directory_copy(const char *from, const char *to) {
    struct output o = {0};
    bool again = true;

    for (int times = 0; again && times < 20; times++) {
        output_free(&o);
        run(&o, "rm -rf %s", to);
        output_free(&o);
        run(&o, "cp -a %s %s", from, to);
        again = strstr(o.err, "replaced while being copied") != NULL;
    }
    check(text_lines(o.err) == text_count(o.err, ".new'"), "cp: %s", o.err);
    output_free(&o);
}

/* A copy of the directory of a node that is written to, and compacts: a node
   that starts on it has all that was acknowledged before. */
static void test_backup(void **state) {
    static uint64_t held[WRITERS][WRITER_KEYS];
    struct server *s = alone("copied", "-partitions 4"), *copy;
    size_t rounds = torture() ? 25 : 3; /* each has a server of its own */
    struct client c;

    (void)state;
    writers_forget();
    writers_begin(s->port);
    for (size_t round = 0; round < rounds; round++) {
        moment_wait(s, round % 2 == 0);
        pthread_mutex_lock(&writers_lock);
        for (size_t i = 0; i < WRITERS; i++)
            memcpy(held[i], writers[i].held, sizeof held[i]);
        pthread_mutex_unlock(&writers_lock);
        copy = server_plain("copy", the_run.exe);
        server_args(copy, "-dataPath %s -port 0 -peerPort 0", copy->dir);
        directory_copy(s->dir, copy->dir);
        check(inspect(copy->dir, NULL, NULL) == 0, "the copy is damaged");
        look_beside(s);
        again(copy);
        writers_end();
        c = client_make(copy->port);
        for (size_t i = 0; i < WRITERS; i++)
            for (size_t k = 0; k < WRITER_KEYS; k++)
                writer_check(&writers[i], &c, k, held[i][k]);
        client_end(&c);
        server_stop(copy);
        if (round + 1 < rounds)
            writers_begin(s->port);
    }
    writers_check(s->port);
    server_stop(s);
}

/* Checks that a start on a directory is refused, with a line that names a
   file, and that nothing is changed. */
static void check_no_start(const char *dir, const char *file) {
    uint64_t before = tree_sum(dir);
    struct output o = {0};

    run(&o, "%s -dataPath %s -port 0 -peerPort 0", the_run.exe, dir);
    check_refused(&o, 1, file);
    check(tree_sum(dir) == before, "the directory was changed");
}

/* Swaps the names of two logs. */
static void logs_swap(const char *dir, unsigned a, unsigned b) {
    char one[MAX_PATH + 16], two[MAX_PATH + 16], aside[MAX_PATH + 16];

    snprintf(one, sizeof one, "%s", log_path(dir, a));
    snprintf(two, sizeof two, "%s", log_path(dir, b));
    snprintf(aside, sizeof aside, "%s/aside", the_run.dir);
    check(rename(one, aside) == 0 && rename(two, one) == 0 &&
              rename(aside, two) == 0,
          "rename: %s", strerror(errno));
}

/* Files that are not where they belong, of another format or with a rotten
   header: refused, and left as they are.  (A log of another cluster: see
   servers.c.) */
static void test_foreign_files(void **state) {
    struct server *s = alone("foreign", "-partitions 4");
    char super[MAX_PATH + 16], path[MAX_PATH + 16];
    size_t len;
    char *all;

    (void)state;
    put(s->port, "/k", "value");
    server_stop(s);
    part("two logs swapped");
    logs_swap(s->dir, 1, 2);
    check_no_start(s->dir, "001.log");
    check(inspect(s->dir, "001.log", "foreign") == 1, "-check");
    check(inspect(s->dir, "002.log", "foreign") == 1, "-check");
    logs_swap(s->dir, 1, 2);

    part("a log under a number that is none");
    all = file_read(log_path(s->dir, 0), &len);
    check(file_write(log_path(s->dir, 7), "wb", all, len), "cannot write");
    free(all);
    check_no_start(s->dir, "007.log");
    unlink(log_path(s->dir, 7));

    part("a log that is missing, or empty");
    all = file_read(log_path(s->dir, 2), &len);
    unlink(log_path(s->dir, 2));
    check_no_start(s->dir, "002.log");
    check(inspect(s->dir, "002.log", "missing") == 1, "-check");
    check(file_write(log_path(s->dir, 2), "wb", "", 0), "cannot write");
    check_no_start(s->dir, "002.log");
    check(inspect(s->dir, "002.log", "empty") == 1, "-check");
    check(file_write(log_path(s->dir, 2), "wb", all, len), "cannot write");
    free(all);

    part("a header of which any byte is rotten");
    snprintf(path, sizeof path, "%s", log_path(s->dir, 3));
    for (long at = 1; at < 64; at += 7) {
        byte_flip(path, at);
        check_no_start(s->dir, "003.log");
        check(inspect(s->dir, "003.log", "header") == 1, "-check");
        byte_flip(path, at);
    }

    part("a superblock of which both slots are rotten; one of them");
    snprintf(super, sizeof super, "%s/superblock", s->dir);
    byte_flip(super, 100);
    byte_flip(super, 612);
    check_no_start(s->dir, "superblock");
    byte_flip(super, 612);
    again(s);
    check_value(s->port, "/k", "value");
    server_stop(s);
}

/* ---- Rotten bytes, in a cluster -------------------------------------- */

enum { NODES = 3, CLUSTER_KEYS = 100, CLUSTER_PARTITIONS = 16 };

static struct server *nodes[NODES];

/* True when a node knows all of them to be alive and Ready. */
static bool node_sees_all(const struct server *s) {
    struct client c = client_make(s->port);
    bool all;

    c.limit_ms = 5000;
    all = client_text(&c, "GET", "/_cluster_status", NULL) == 200 &&
          text_count(json_squeeze(c.body), "\"status\":\"Ready\"") == NODES &&
          text_count(c.body, "\"alive\":true") == NODES;
    client_end(&c);
    return all;
}

/* Starts a cluster of three, each with an etcd; -scrub is the last flag. */
static void cluster_begin(void) {
    char members[256] = "";
    size_t n = 0;

    for (int i = 0; i < NODES; i++)
        n += (size_t)snprintf(members + n, sizeof members - n,
                              "%snode%d=http://127.0.0.1:%d", i ? "," : "",
                              i + 1, port_pair());
    for (int i = 0; i < NODES; i++) {
        char name[16];
        int port = port_pair();

        snprintf(name, sizeof name, "node%d", i + 1);
        nodes[i] = server_new(name);
        server_args(nodes[i],
                    "-name %s -port %d -peerPort %d -initialCluster %s "
                    "-partitions %d -scrub 0",
                    name, port, port - 1, members, (int)CLUSTER_PARTITIONS);
        nodes[i]->port = port;
        server_start(nodes[i]);
    }
    for (int i = 0; i < NODES; i++)
        server_ready(nodes[i]);
    for (int i = 0; i < NODES; i++)
        wait_until(node_sees_all(nodes[i]), LIMIT_MS, "not all Ready");
}

/* The n-th key of the cluster, and what it holds. */
static void cluster_key(int n, char target[16], char value[64]) {
    snprintf(target, 16, "/key-%03d", n);
    snprintf(value, 64, "the value of key number %03d of the cluster", n);
}

/* Checks all keys through a node. */
static void cluster_check(const struct server *s) {
    char target[16], value[64];

    for (int i = 0; i < CLUSTER_KEYS; i++) {
        cluster_key(i, target, value);
        check_value(s->port, target, value);
    }
}

/* True when a log has a bad record of a key, and after it an intact one of the
   same version. */
static bool key_healed(const char *dir, unsigned partition, const char *key) {
    static struct line lines[4 * CLUSTER_KEYS];
    const struct line *bad = NULL;
    int code;
    size_t n = dump(log_path(dir, partition), lines, COUNT(lines), &code);

    for (size_t i = 0; i < n && i < COUNT(lines); i++) {
        const struct line *l = &lines[i];

        if (strcmp(l->key, key) != 0)
            continue;
        if (bad != NULL && l->ok && strcmp(l->version, bad->version) == 0)
            return true;
        bad = l->ok ? NULL : l;
    }
    return false;
}

/* Spoils a key's value on a node; the partition that it is in. */
static unsigned key_spoil(const struct server *s, int n, char target[16]) {
    char value[64];

    cluster_key(n, target, value);
    return value_spoil(s->dir, value, strlen(value), 30);
}

/* A value that is rotten on one owner: each node answers with the right bytes,
   and the owner gets them again. */
static void rot_is_read(void) {
    struct server *s = nodes[0];
    char target[16], value[64];
    unsigned partition;

    part("found by a read");
    partition = key_spoil(s, 3, target);
    check(!key_healed(s->dir, partition, target + 1), "nothing was spoiled");
    cluster_key(3, target, value);
    for (int i = 0; i < NODES; i++)
        check_value(nodes[i]->port, target, value);
    wait_until(key_healed(s->dir, partition, target + 1), LIMIT_MS,
               "%s is not healed", target);
    check_value(s->port, target, value);
}

/* The same of a large value, which is found before any of it is sent.  A key is
   written once: its log would else be compacted while its bytes are looked for. */
static void large_rot_is_read(void) {
    static char large[1 << 20];
    static const char *const keys[] = {"/large", "/larger"};
    static const char *const targets[] = {"/large", "/larger?consistent"};
    struct server *s = nodes[0];
    struct client c = client_make(s->port);

    part("of a large value");
    for (size_t i = 0; i < sizeof targets / sizeof targets[0]; i++) {
        random_bytes(large, sizeof large, 7 + i);
        client_ask(&c, "PUT", keys[i], NULL, large, sizeof large);
        check(c.status == 201, "%d", c.status);
        value_spoil(s->dir, large, 64, sizeof large / 2);
        for (int n = 0; n < NODES; n++) {
            struct client other = client_make(nodes[n]->port);

            check(client_ask(&other, "GET", targets[i], NULL, NULL, 0) == 200 &&
                      other.body_len == sizeof large &&
                      memcmp(other.body, large, sizeof large) == 0,
                  "node %d: %d", n, other.status);
            client_end(&other);
        }
    }
    client_end(&c);
}

/* The same with no read at all: the scrubber finds it. */
static void rot_is_scrubbed(void) {
    struct server *s = nodes[1];
    char target[16];
    unsigned partition;

    part("found by -scrub");
    server_stop(s);
    s->argv[s->argc - 1] = (char *)"1s";
    again(s);
    partition = key_spoil(s, 5, target);
    wait_until(key_healed(s->dir, partition, target + 1), LIMIT_MS,
               "%s is not healed", target);
    cluster_check(s);
}

/* A header that is rotten when a node starts: what it may have lost comes from
   the others, and its log is written anew. */
static void rot_hides_keys(void) {
    struct server *s = nodes[2];
    static struct line lines[4 * CLUSTER_KEYS];
    char path[MAX_PATH + 16];
    unsigned partition = 0;
    int code;

    part("a rotten header, at a start");
    do /* some have few keys, or none, but not all */
        snprintf(path, sizeof path, "%s",
                 log_path(s->dir, partition++ % CLUSTER_PARTITIONS));
    while (dump(path, lines, COUNT(lines), &code) <= 2);
    server_stop(s);
    byte_flip(path, lines[0].offset + 17);
    check(check_code(s->dir) == 1, "nothing was spoiled");
    again(s);
    cluster_check(s);
    wait_until(status_of(s->port, "GET", "/nothing") == 404, LIMIT_MS,
               "not absent");
    check(status_of(s->port, "GET", "/_ready") == 200, "not ready");
    wait_until(check_code(s->dir) == 0, LIMIT_MS, "%s is not rewritten", path);
    cluster_check(s);
}

/* The last record of a log is rotten when a node starts, and is cut off. Of those
   that are there no other has it: it cannot be known whether the key is absent,
   however often the node starts, until the third is back. */
static void rot_outlives_starts(void) {
    static const char late[] = "written while one of three was away";
    struct server *s = nodes[0];

    part("a rotten last record, cut off, and more starts");
    server_stop(nodes[2]);
    put(s->port, "/late", late);
    server_stop(s);
    server_stop(nodes[1]);
    value_spoil(s->dir, late, strlen(late), 3);
    server_start(s);
    server_start(nodes[2]);
    server_ready(nodes[2]);
    for (int turn = 0; turn < 3; turn++) {
        server_ready(s);
        for (int i = 0; i < NODES; i += 2)
            check(status_of(nodes[i]->port, "GET", "/late") == 503,
                  "start %d, node %d: it is known", turn + 1, i);
        if (turn == 0)
            server_kill(s);
        else
            server_stop(s);
        server_start(s);
    }
    server_ready(s);
    again(nodes[1]);
    for (int i = 0; i < NODES; i++)
        wait_until(status_of(nodes[i]->port, "GET", "/late") == 200, LIMIT_MS,
                   "it does not come back");
    check_value(s->port, "/late", late);
    cluster_check(s);
}

/* Rotten bytes on one owner are never seen by a client, and are made good. */
static void test_cluster_rot(void **state) {
    char target[16], value[64];

    (void)state;
    cluster_begin();
    for (int i = 0; i < CLUSTER_KEYS; i++) {
        cluster_key(i, target, value);
        put(nodes[i % NODES]->port, target, value);
    }
    rot_is_read();
    large_rot_is_read();
    rot_is_scrubbed();
    rot_hides_keys();
    rot_outlives_starts();
    for (int i = 0; i < NODES; i++)
        server_stop(nodes[i]);
}

/* ---- Durable, then acknowledged -------------------------------------- */

/* What the trace of a node's system calls has told so far.  Keys are numbers:
   their names are chosen so that they are found in the traced bytes. */
enum { TRACED_KEYS = 320, TRACED_CLIENTS = 8, TRACED_THREADS = 64, FDS = 512 };

struct trace {
    struct call {
        long tid; /* 0: none */
        int fd;
        int key;               /* of a pwrite64; -1: none */
        long now;              /* when it began */
    } calls[TRACED_THREADS];   /* begun, not ended */
    int log[TRACED_KEYS];      /* the descriptor that a key's record went to */
    long written[TRACED_KEYS]; /* when that write ended; 0: not yet */
    bool durable[TRACED_KEYS]; /* a sync that was begun later has ended */
    int asked[FDS];            /* the key last asked on a connection; -1 */
    long now;                  /* lines read */
    size_t answers, violations;
};

/* The number of the key in a line, behind some text; -1: there is none.  What
   may follow the key in a record is no digit, since a key ends in a dash. */
static int trace_key(const char *line, const char *before) {
    char text[32];
    const char *at;

    snprintf(text, sizeof text, "%sdurable-", before);
    at = strstr(line, text);
    return at != NULL ? (int)strtol(at + strlen(text), NULL, 10) : -1;
}

/* The call that a thread is in, or a place for one. */
static struct call *trace_call(struct trace *t, long tid) {
    struct call *free_one = NULL;

    for (size_t i = 0; i < TRACED_THREADS; i++) {
        if (t->calls[i].tid == tid)
            return &t->calls[i];
        if (t->calls[i].tid == 0)
            free_one = &t->calls[i];
    }
    check(free_one != NULL, "too many threads");
    *free_one = (struct call){.tid = tid};
    return free_one;
}

/* A call of this name begins. */
static void trace_begins(struct trace *t, struct call *c, const char *name,
                         const char *line) {
    const char *paren = strchr(line, '(');

    c->fd = (int)strtol(paren + 1, NULL, 10);
    c->key = trace_key(line, "");
    c->now = t->now;
    if (strcmp(name, "sendto") != 0 || c->fd < 0 || c->fd >= FDS ||
        (strstr(line, "\"HTTP/1.1 201") == NULL &&
         strstr(line, "\"HTTP/1.1 204") == NULL))
        return;
    check(t->asked[c->fd] >= 0, "an answer to nothing: %s", line);
    t->answers++;
    t->violations += !t->durable[t->asked[c->fd]];
}

/* A call of this name ends. */
static void trace_ends(struct trace *t, const struct call *c, const char *name,
                       const char *line) {
    const char *equals = strrchr(line, '=');
    long result = equals != NULL ? strtol(equals + 1, NULL, 10) : -1;
    int key = trace_key(line, "\"PUT /");

    if (strcmp(name, "read") == 0 && key >= 0 && key < TRACED_KEYS &&
        c->fd >= 0 && c->fd < FDS)
        t->asked[c->fd] = key;
    if (strcmp(name, "pwrite64") == 0 && c->key >= 0 && c->key < TRACED_KEYS) {
        check(result > 0, "a write failed: %s", line);
        t->log[c->key] = c->fd;
        t->written[c->key] = t->now;
    }
    if ((strcmp(name, "fdatasync") == 0 || strcmp(name, "fsync") == 0) &&
        result == 0)
        for (int i = 0; i < TRACED_KEYS; i++)
            t->durable[i] |= t->log[i] == c->fd && t->written[i] > 0 &&
                             t->written[i] < c->now;
}

/* Takes a line: "TID name(...) = result", or its two halves: "TID name(...
   <unfinished ...>" and "TID <... name resumed>...) = result". */
static void trace_line(struct trace *t, const char *line) {
    char name[32] = "";
    long tid;
    int at = 0;
    struct call *c;

    t->now++;
    if (sscanf(line, "%ld %n", &tid, &at) != 1 || at == 0)
        return;
    c = trace_call(t, tid);
    if (sscanf(line + at, "<... %31[a-z0-9] resumed", name) == 1) {
        trace_ends(t, c, name, line);
    } else if (sscanf(line + at, "%31[a-z0-9](", name) == 1 &&
               line[at + (int)strlen(name)] == '(') {
        trace_begins(t, c, name, line);
        if (strstr(line, "<unfinished ...>") != NULL)
            return;
        trace_ends(t, c, name, line);
    }
    c->tid = 0;
}

/* Reads a trace from a file. */
static void trace_read(struct trace *t, const char *path) {
    FILE *f = fopen(path, "r");
    static char line[4096];

    check(f != NULL, "no %s", path);
    memset(t, 0, sizeof *t);
    memset(t->asked, -1, sizeof t->asked);
    while (fgets(line, sizeof line, f) != NULL)
        trace_line(t, line);
    fclose(f);
}

/* A client that stores each of its keys once. */
struct traced {
    pthread_t thread;
    int port, id;
    int stored;
};

static void *traced_main(void *arg) {
    struct traced *w = arg;
    struct client c = client_make(w->port);
    char target[32];

    for (int i = w->id; i < TRACED_KEYS; i += TRACED_CLIENTS) {
        snprintf(target, sizeof target, "/durable-%d-", i);
        w->stored += client_text(&c, "PUT", target, "small") == 201;
    }
    client_end(&c);
    return NULL;
}

/* Stores all keys, by several clients at once. */
static void traced_store(int port) {
    struct traced clients[TRACED_CLIENTS];
    int stored = 0;

    for (int i = 0; i < TRACED_CLIENTS; i++) {
        clients[i] = (struct traced){.port = port, .id = i};
        check(pthread_create(&clients[i].thread, NULL, traced_main,
                             &clients[i]) == 0,
              "no thread");
    }
    for (int i = 0; i < TRACED_CLIENTS; i++) {
        pthread_join(clients[i].thread, NULL);
        stored += clients[i].stored;
    }
    check(stored == TRACED_KEYS, "%d stored", stored);
}

/* Runs a node under strace while clients write, and reads the trace.  The leak
   checker cannot work beside a tracer. */
static void trace_node(struct trace *t, const char *sync) {
    struct server *s = server_plain("traced", "strace");
    const char *options = getenv("ASAN_OPTIONS");
    char path[MAX_PATH + 16], before[256];

    snprintf(path, sizeof path, "%s.trace", s->dir);
    snprintf(before, sizeof before, "%s", options != NULL ? options : "");
    server_args(s,
                "-D -f -s 200 -o %s "
                "-e trace=read,pwrite64,fdatasync,fsync,sendto,write "
                "%s -dataPath %s -port 0 -peerPort 0 -partitions 2 -threads 2 "
                "-sync %s",
                path, the_run.exe, s->dir, sync);
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
    server_start(s);
    setenv("ASAN_OPTIONS", before, 1);
    server_ready(s);
    traced_store(s->port);
    server_stop(s);
    wait_until(processes_count(path) == 0, LIMIT_MS, "the tracer goes on");
    trace_read(t, path);
    part("-sync %s: %zu answers, %zu before they should", sync, t->answers,
         t->violations);
    check(t->answers == TRACED_KEYS, "%zu answers", t->answers);
}

/* With -sync always no answer to a write leaves before its record is on the
   disk: a sync of that log was begun after the write of the record had ended,
   and has ended well.  With -sync none they do, and that is seen. */
static void test_durable_first(void **state) {
    static struct trace trace;
    struct output o = {0};

    (void)state;
    run(&o, "strace -f -o /dev/null true");
    if (o.code != 0) {
        part("no process may be traced: %s", o.err);
        output_free(&o);
        skip();
    }
    output_free(&o);
    trace_node(&trace, "none");
    check(trace.violations == TRACED_KEYS, "nothing is seen in the trace");
    trace_node(&trace, "always");
    check(trace.violations == 0, "%zu answers", trace.violations);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_kills, servers_end),
        cmocka_unit_test_teardown(test_full_disk, small_disk_end),
        cmocka_unit_test_teardown(test_full_given_up, small_disk_end),
        cmocka_unit_test_teardown(test_file_limit, servers_end),
        cmocka_unit_test_teardown(test_rot, servers_end),
        cmocka_unit_test_teardown(test_rot_compacted, servers_end),
        cmocka_unit_test_teardown(test_rotten_header, servers_end),
        cmocka_unit_test_teardown(test_given_up, servers_end),
        cmocka_unit_test_teardown(test_check, servers_end),
        cmocka_unit_test_teardown(test_dump, servers_end),
        cmocka_unit_test_teardown(test_no_data, servers_end),
        cmocka_unit_test_teardown(test_backup, servers_end),
        cmocka_unit_test_teardown(test_foreign_files, servers_end),
        cmocka_unit_test_teardown(test_cluster_rot, servers_end),
        cmocka_unit_test_teardown(test_durable_first, servers_end),
    };

    run_begin(torture() ? 3600 : 900);
    return run_result(cmocka_run_group_tests(tests, NULL, NULL));
}
