/*
 * repair.c - tests of repair: digests, lists and pulls, what is decided from
 * them, and the tombstones that go after it.
 *
 *     make test-repair
 *
 * The program is included. Some nodes of one partition live in this process,
 * each in a directory of its own, and no thread runs: what one sends to another
 * is given to the function that answers it, and the answer is there at once.
 * The physical clock stands where a test puts it; the monotonic clock goes on
 * with each rest, which takes no time. Environment: SEED=n repeats the random
 * operations of a run that printed it.
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
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../ring.h"

/* ------------------------------------------------------------- The world */

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define NOON         UINT64_C(1800000000000000) /* a time, in us since 1970 */
#define NODES        5
#define DAY          UINT64_C(86400000) /* in ms */
#define FIRST_PORT   9000               /* of the first node */
#define FDS          1024

static struct {
    uint64_t us;      /* the physical clock */
    uint64_t ms;      /* the monotonic one: only rests move it */
    bool same;        /* all keys have one fingerprint */
    int at[FDS];      /* which node a descriptor is connected to */
    uint64_t traffic; /* bytes sent and received */
    unsigned calls, pulls;
    bool unsynced; /* what nodes have is on their disks only when synced */
    unsigned mute; /* bit i: what node i says to a coordinator is lost */
    void (*before)(int node, const char *path); /* a call is answered */
} world;

static int world_clock(clockid_t id, struct timespec *t) {
    uint64_t us = id == CLOCK_REALTIME ? world.us : world.ms * 1000;

    t->tv_sec = (time_t)(us / 1000000);
    t->tv_nsec = (long)(us % 1000000) * 1000;
    return 0;
}

static int world_poll(struct pollfd *fds, nfds_t n, int ms) {
    if (n > 0)
        return poll(fds, n, ms);
    world.ms += (uint64_t)ms;
    return 0;
}

static int world_socket(int domain, int type, int protocol) {
    (void)domain, (void)type, (void)protocol;
    return open("/dev/null", O_RDWR | O_CLOEXEC);
}

static int world_connect(int fd, const struct sockaddr *address, socklen_t n) {
    (void)n;
    world.at[fd] =
        ntohs(((const struct sockaddr_in *)(const void *)address)->sin_port) -
        FIRST_PORT;
    return 0;
}

static ssize_t world_send(int fd, const void *p, size_t n, int flags);
static ssize_t world_recv(int fd, void *p, size_t n, int flags);

static uint64_t world_print(const void *p, size_t n, const uint64_t hash[2]) {
    return world.same ? UINT64_C(0x7777777777777777)
                      : ring_fingerprint(p, n, hash);
}

static void __attribute__((format(printf, 2, 3)))
world_say(FILE *file, const char *format, ...) {
    (void)file, (void)format;
}

#define clock_gettime    world_clock
#define poll             world_poll
#define socket           world_socket
#define connect          world_connect
#define send             world_send
#define recv             world_recv
#define ring_fingerprint world_print
#define fprintf          world_say
#define main             estoraje_main
#include "../estoraje.c"
#undef main
#undef fprintf
#undef ring_fingerprint
#undef poll
#undef clock_gettime

/* ------------------------------------------------------------- The nodes */

static struct node nodes[NODES];
static struct worker workers[NODES];
static struct repair repairs[NODES];
static struct conn conns[NODES];
static struct conn wires[NODES][NODES]; /* from a coordinator to an owner */
static unsigned settled;                /* calls to /_peer/consistent */
static bool settles;                    /* they are answered with 200 */
static bool works;                      /* they are done */

static struct part *part_of(int i) {
    return &nodes[i].parts[0];
}

static void op_work(struct op *op);

/* Has a node answer a request, whose answer then is in conns[i].out. Its size;
   0: it is not whole. */
static size_t node_answer(int i, struct slice request) {
    size_t scanned = 0;
    const char *refusal = NULL;
    size_t head = http_head_end(request.p, request.n, &scanned, &refusal);
    struct worker *w = &workers[i];
    struct conn *c = &conns[i];
    struct http h = {0};
    struct op *op;
    char path[64];

    assert_true(head > 0 && http_parse(request.p, head, true, &h) == NULL);
    assert_true(slice_copy(h.target, path, sizeof path));
    if (request.n < head + h.length)
        return 0;
    if (world.before != NULL)
        world.before(i, path);
    world.calls++;
    world.pulls += strcmp(path, "/_peer/pull") == 0;
    *c = (struct conn){.w = w, .out = c->out};
    c->out.n = c->out.at = 0;
    op = op_new(c);
    op->rec.n = 0;
    buf_add(&op->rec, request.p + head, (size_t)h.length);
    w->node->loaded = true;
    intro_take(op, h.estoraje);
    refusal = peer_check(op);
    if (refusal != NULL)
        answer_error(op, (unsigned)strtoul(refusal, NULL, 10), "%s", refusal);
    else if (strcmp(path, "/_peer/digest") == 0)
        digest_body(op);
    else if (strcmp(path, "/_peer/list") == 0)
        list_body(op);
    else if (strcmp(path, "/_peer/pull") == 0)
        pull_body(op);
    else if (strcmp(path, "/_peer/prepare") == 0)
        prepare_body(op);
    else if (strcmp(path, "/_peer/promised") == 0)
        promised_body(op);
    else if (works)
        op_work(op);
    else
        answer_error(op, settles ? 200 : 404, "as it is");
    settled += strcmp(path, "/_peer/consistent") == 0;
    op->next = w->free_ops;
    w->free_ops = op;
    world.traffic += c->out.n;
    return head + (size_t)h.length;
}

/* Does a consistent operation, to its end: the last of the nodes that it asks
   answers first. */
static void op_work(struct op *op) {
    struct worker *w = op->w;

    consistent_body(op);
    while (!op->done || op->calls > 0) {
        void (*due)(struct op *);

        for (int n = NODES; n > 0; n--) {
            struct conn *wire = w->links[n].conn;

            if (wire == NULL || wire->out.at == wire->out.n)
                continue;
            wire->out.at += node_answer(n - 1, buf_slice(&wire->out));
            if (world.mute >> (n - 1) & 1) {
                link_answer(w, wire->link, 0, slice_of(""));
            } else {
                buf_add(&wire->in, conns[n - 1].out.p, conns[n - 1].out.n);
                link_input(wire);
            }
        }
        w->now += TICK_MS;
        due = op->due;
        op->due = NULL;
        if (due != NULL)
            due(op);
    }
}

static struct buf requests[FDS];

static ssize_t world_send(int fd, const void *p, size_t n, int flags) {
    (void)flags;
    buf_add(&requests[fd], p, n);
    world.traffic += n;
    return (ssize_t)n;
}

static ssize_t world_recv(int fd, void *p, size_t n, int flags) {
    struct conn *c = &conns[world.at[fd]];

    (void)flags;
    if (requests[fd].n > 0) {
        node_answer(world.at[fd], buf_slice(&requests[fd]));
        requests[fd].n = 0;
    }
    n = n < c->out.n - c->out.at ? n : c->out.n - c->out.at;
    memcpy(p, c->out.p + c->out.at, n);
    c->out.at += n;
    return (ssize_t)n;
}

/* A view of so many members, all of them owners. */
static struct view *view_make(unsigned count) {
    struct ring_member members[NODES];
    struct view *view = memory(1, sizeof *view);

    atomic_init(&view->refs, 1);
    view->cluster = 0xc1;
    view->epoch = 1;
    view->partitions = 1;
    view->replicas = view->count = view->old = count;
    for (unsigned i = 0; i < count; i++) {
        struct member *m = &view->member[i];

        snprintf(m->name, sizeof m->name, "node%u", i + 1);
        snprintf(m->zone, sizeof m->zone, "zone%u", i + 1);
        snprintf(m->host, sizeof m->host, "127.0.0.1");
        m->peer_port = FIRST_PORT + i;
        m->number = i + 1;
        m->id = 100 + i;
        members[i] = (struct ring_member){m->name, m->zone};
    }
    view->ring = ring_build(members, count, 1, count);
    return view;
}

static void node_open(int i, unsigned count) {
    struct node *node = &nodes[i];
    char path[] = "/tmp/estoraje-repair-XXXXXX";

    assert_non_null(mkdtemp(path));
    node->flags.data = strdup(path);
    node->dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    node->super_fd =
        openat(node->dir_fd, "superblock", O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    node->reserve_fd =
        openat(node->dir_fd, "reserve", O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    node->lock_fd = -1;
    wake_pipe(node->repair_wake);
    wake_pipe(node->etcd_wake);
    wake_pipe(node->pool_queue);
    node->log_most = LOG_MAX;
    node->sync = SYNC_NONE;
    node->partitions = 1;
    node->self = (struct identity){.cluster = 0xc1,
                                   .id = 100 + (unsigned)i,
                                   .boot = 5,
                                   .hash = {11, 22},
                                   .partitions = 1,
                                   .number = (unsigned)i + 1};
    atomic_init(&node->ceiling, UINT64_MAX);
    node->parts = memory(1, sizeof *node->parts);
    mutex_init(&node->parts->lock);
    mutex_init(&node->view_lock);
    part_load(node, node->parts);
    node->peers = memory(MEMBERS_MAX + 1, sizeof *node->peers);
    for (unsigned n = 1; n <= count; n++)
        atomic_store(&node->peers[n].heard, now_ms() + DAY);
    node->view = view_make(count);
    node->view->me = (unsigned)i;
    workers[i] = (struct worker){.node = node, .view = node->view};
    for (unsigned n = 1; n <= count; n++) {
        struct link *l = &workers[i].links[n];

        l->id = 99 + n;
        l->conn = &wires[i][n - 1];
        *l->conn = (struct conn){.w = &workers[i], .link = l};
    }
    repairs[i].node = node;
    repairs[i].view = node->view;
}

static void node_close(int i) {
    struct node *node = &nodes[i];
    DIR *dir = opendir(node->flags.data);
    struct dirent *e;
    struct op *op;

    while (dir != NULL && (e = readdir(dir)) != NULL)
        if (e->d_name[0] != '.')
            unlinkat(dirfd(dir), e->d_name, 0);
    closedir(dir);
    rmdir(node->flags.data);
    free((char *)(uintptr_t)node->flags.data);
    close(node->dir_fd);
    close(node->super_fd);
    close(node->reserve_fd);
    for (int k = 0; k < 2; k++) {
        close(node->repair_wake[k]);
        close(node->etcd_wake[k]);
        close(node->pool_queue[k]);
    }
    file_release(node->parts->log.file);
    free(node->parts->log.table);
    free(node->parts);
    free(node->peers);
    view_release(node->view);
    while ((op = workers[i].free_ops) != NULL) {
        workers[i].free_ops = op->next;
        buf_free(&op->rec);
        buf_free(&op->old);
        buf_free(&op->text);
        free(op);
    }
    for (unsigned n = 0; n < NODES; n++) {
        buf_free(&workers[i].links[n + 1].calls);
        buf_free(&wires[i][n].in);
        buf_free(&wires[i][n].out);
    }
    buf_free(&workers[i].record);
    buf_free(&conns[i].out);
    for (unsigned n = 0; n <= NODES; n++)
        if (repairs[i].callers[n] != NULL) {
            caller_close(repairs[i].callers[n]);
            buf_free(&repairs[i].callers[n]->in);
            buf_free(&repairs[i].callers[n]->reply);
            free(repairs[i].callers[n]);
        }
    for (unsigned n = 0; n < REPLICAS_MAX; n++)
        buf_free(&repairs[i].others[n].wants);
    buf_free(&repairs[i].fields);
    buf_free(&repairs[i].ask);
    buf_free(&repairs[i].mine);
    memset(&repairs[i], 0, sizeof repairs[i]);
    memset(node, 0, sizeof *node);
}

static unsigned open_nodes;

static void nodes_open(unsigned count) {
    open_nodes = count;
    for (unsigned i = 0; i < count; i++)
        node_open((int)i, count);
}

static int world_begin(void **state) {
    (void)state;
    memset(&world, 0, sizeof world);
    world.us = NOON;
    world.ms = 9 * DAY;
    settled = 0;
    settles = works = false;
    return 0;
}

static int world_end(void **state) {
    (void)state;
    for (unsigned i = 0; i < open_nodes; i++)
        node_close((int)i);
    for (int i = 0; i < FDS; i++)
        buf_free(&requests[i]);
    open_nodes = 0;
    return 0;
}

/* A version of so many seconds before noon. */
static uint64_t ago(uint64_t seconds) {
    return VERSION_TIME(NOON - seconds * 1000000) | 1;
}

/* Has a node take a record: a value, or (NULL) a tombstone. */
static enum verdict put(int i, const char *key, const char *value,
                        uint64_t version, enum how how) {
    struct node *node = &nodes[i];
    struct buf b = {0};
    struct record r;
    struct accepted a;
    size_t at = record_begin(&b, slice_of(key), slice_of(""), value == NULL);

    buf_text(&b, value != NULL ? value : "");
    record_end(&b, at);
    record_stamp(b.p, version, version);
    assert_true(record_parse(b.p, b.n, 0, &r));
    a = store_accept(node, node->parts, b.p, &r,
                     world_print(key, strlen(key), node->self.hash), how);
    buf_free(&b);
    return a.verdict;
}

/* The version that a node has of a key, 0: none. */
static uint64_t held(int i, const char *key) {
    uint32_t at;
    const struct entry *e = log_find(
        &nodes[i], &part_of(i)->log,
        world_print(key, strlen(key), nodes[i].self.hash), slice_of(key), &at);

    return e != NULL ? e->version : 0;
}

/* The etag of what a node has of a key, as a version, 0: none. */
static uint64_t etag_of(int i, const char *key) {
    struct slice name = slice_of(key);
    struct buf b = {0};
    struct record r = {0};
    enum found found = store_read(
        &nodes[i], part_of(i), world_print(name.p, name.n, nodes[i].self.hash),
        name, SIZE_MAX, &b, &r, NULL, NULL);

    buf_free(&b);
    return found == FOUND ? r.etag : 0;
}

/* A node's digest under a cutoff. */
static uint64_t digest(int i, uint64_t cutoff) {
    uint64_t sums[BUCKETS];

    return part_digest(&nodes[i], part_of(i), cutoff, sums);
}

static bool round_of(int i) {
    for (unsigned k = 0; k < open_nodes && !world.unsynced; k++)
        part_of((int)k)->log.synced = part_of((int)k)->log.end;
    return repair_part(&repairs[i], part_of(i));
}

static bool told(int from, int to) {
    return atomic_exchange(&nodes[from].peers[to + 1].missed[0], 0) != 0;
}

/* Marks a key's record as rotten. */
static void rot(int i, const char *key) {
    uint32_t at;
    struct entry *e = log_find(
        &nodes[i], &part_of(i)->log,
        world_print(key, strlen(key), nodes[i].self.hash), slice_of(key), &at);

    part_damaged(&nodes[i], part_of(i), e);
}

/* Checks what a log counts against a count of its table. */
static void check_counts(int i) {
    const struct log *log = &part_of(i)->log;
    struct log count = {0};

    for (uint32_t at = 0; at < log->total; at++)
        if (log->table[at].version != 0) {
            count.used++;
            log_count(&nodes[i], &count, &log->table[at], 1);
            assert_int_equal(
                table_seek(&nodes[i], log, log->table[at].fingerprint), at);
        }
    assert_int_equal(count.used, log->used);
    assert_int_equal(count.keys, log->keys);
    assert_int_equal(count.bytes, log->bytes);
    assert_int_equal(count.live, log->live);
    assert_int_equal(count.rotten, log->rotten);
    assert_true(count.sum == log->sum);
    assert_memory_equal(count.sums, log->sums, sizeof count.sums);
}

static uint64_t random_next(uint64_t *seed) {
    *seed = *seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return *seed >> 33;
}

/* -------------------------------------------------------------- Digests */

/* Equal contents have equal digests, whatever the order of the writes; one
   version makes a difference, in the sum and in one bucket. */
static void test_digest(void **state) {
    char key[16];
    uint64_t sums[2][BUCKETS];
    unsigned differ = 0;

    (void)state;
    nodes_open(2);
    for (unsigned n = 0; n < 1000; n++) {
        snprintf(key, sizeof key, "key %u", n);
        put(0, key, "value", ago(100), HOW_PLAIN);
        put(0, key, "newer", ago(50), HOW_PLAIN);
        snprintf(key, sizeof key, "key %u", 999 - n);
        put(1, key, "newer", ago(50), HOW_PLAIN);
        put(1, key, "value", ago(100), HOW_PLAIN);
    }
    assert_true(digest(0, 0) == digest(1, 0));
    put(1, "key 7", "newest", ago(49), HOW_PLAIN);
    part_digest(&nodes[0], part_of(0), 0, sums[0]);
    part_digest(&nodes[1], part_of(1), 0, sums[1]);
    for (unsigned i = 0; i < BUCKETS; i++)
        differ += sums[0][i] != sums[1][i];
    assert_int_equal(differ, 1);
    assert_true(digest(0, 0) != digest(1, 0));
    check_counts(0);
    check_counts(1);
}

/* A tombstone counts from the cutoff on, and what is rotten makes a difference
   even to nothing. */
static void test_digest_tombstones(void **state) {
    uint64_t at = ago(900);

    (void)state;
    nodes_open(2);
    put(0, "a", "value", ago(2000), HOW_PLAIN);
    put(1, "a", "value", ago(2000), HOW_PLAIN);
    put(0, "b", "value", ago(1000), HOW_PLAIN);
    put(0, "b", NULL, at, HOW_PLAIN);
    assert_true(digest(0, at + 1) == digest(1, at + 1));
    assert_true(digest(0, at) != digest(1, at));
    put(1, "b", NULL, at, HOW_PLAIN);
    assert_true(digest(0, at) == digest(1, at));
    rot(0, "b");
    assert_true(digest(0, at + 1) != digest(1, at + 1));
    rot(0, "a");
    assert_true(digest(0, 0) != digest(1, 0));
    check_counts(0);
}

/* Random writes, deletes, compactions, drops and restarts: what is counted is
   what is there. */
static void test_digest_counts(void **state) {
    const char *text = getenv("SEED");
    uint64_t seed =
        text != NULL ? strtoull(text, NULL, 10) : (uint64_t)time(NULL);
    struct part *part;
    char key[16];

    (void)state;
    print_message("SEED=%" PRIu64 "\n", seed);
    nodes_open(1);
    part = part_of(0);
    for (unsigned n = 0; n < 5000; n++) {
        uint64_t before = digest(0, 0), gone = part->gone;

        snprintf(key, sizeof key, "%u", (unsigned)(random_next(&seed) % 300));
        switch (random_next(&seed) % 200) {
        case 0:
            assert_true(part_compact(&nodes[0], part));
            if (gone == 0)
                assert_true(digest(0, 0) == before);
            break;
        case 1: {
            uint64_t highest = part->floor;

            file_release(part->log.file);
            free(part->log.table);
            memset(&part->log, 0, sizeof part->log);
            part_load(&nodes[0], part);
            part->floor = highest;
            assert_true(digest(0, 0) == before);
        } break;
        case 2:
            part_droppable(part, ago(random_next(&seed) % 1000));
            break;
        default:
            put(0, key, random_next(&seed) % 2 ? "value" : NULL,
                ago(random_next(&seed) % 1000), HOW_PLAIN);
        }
        if (n % 50 == 0)
            check_counts(0);
    }
    check_counts(0);
}

/* ---------------------------------------------------------------- Calls */

/* Answers what a call with this body, of so many numbers, is answered. */
static unsigned call(const char *path, const uint64_t *numbers, size_t n) {
    struct repair *repair = &repairs[1];
    int status;

    repair->ask.n = repair->fields.n = 0;
    for (size_t i = 0; i < n; i++)
        buf_word(&repair->ask, numbers[i]);
    intro_text(&repair->fields, repair->node, repair->view, 1, 100, 0);
    buf_zero(&repair->fields, 1);
    if (repair->callers[1] == NULL) {
        repair->callers[1] = memory(1, sizeof(struct caller));
        repair->callers[1]->fd = -1;
    }
    caller_aim(repair->callers[1], "127.0.0.1", FIRST_PORT);
    status =
        caller_call(repair->callers[1], path, (const char *)repair->fields.p,
                    buf_slice(&repair->ask), 1000);
    return (unsigned)status;
}

/* What is no call is refused; a floor above the ceiling is not promised. */
static void test_malformed(void **state) {
    static const uint64_t list[10] = {0, 0, 3, 4, 1, 1};
    uint64_t bad[300] = {0};

    (void)state;
    nodes_open(2);
    put(0, "a", "value", ago(10), HOW_PLAIN);
    assert_int_equal(call("/_peer/digest", list, 3), 200);
    assert_int_equal(call("/_peer/list", list, 6), 200);
    assert_int_equal(call("/_peer/pull", list, 2), 200);
    for (size_t n = 0; n < 10; n++) {
        if (n != 3)
            assert_int_equal(call("/_peer/digest", list, n), 400);
        if (n != 6 && n <= 6)
            assert_int_equal(call("/_peer/list", list, n), 400);
        if (n < 2)
            assert_int_equal(call("/_peer/pull", list, n), 400);
    }
    bad[0] = 1; /* there is no such partition */
    assert_int_equal(call("/_peer/digest", bad, 3), 400);
    assert_int_equal(call("/_peer/pull", bad, 2), 400);
    bad[3] = 0;
    assert_int_equal(call("/_peer/list", bad, 5), 400);
    bad[0] = 0;
    bad[2] = 4, bad[3] = 3; /* the last bucket is before the first */
    assert_int_equal(call("/_peer/list", bad, 4), 400);
    bad[2] = 0, bad[3] = BUCKETS;
    assert_int_equal(call("/_peer/list", bad, 4 + BUCKETS + 1), 400);
    bad[3] = BUCKETS - 1;
    assert_int_equal(call("/_peer/list", bad, 4 + BUCKETS), 200);
    bad[1] = ago(0);
    atomic_store(&nodes[0].ceiling, ago(1));
    assert_int_equal(call("/_peer/digest", bad, 3), 503);
    assert_int_equal(part_of(0)->floor, 0);
    bad[1] = ago(1);
    assert_int_equal(call("/_peer/digest", bad, 3), 200);
    assert_true(part_of(0)->floor == ago(1));
}

/* A call to another directory, to a later boot than this one, or to another
   process after as many starts, is refused. */
static void test_intro(void **state) {
    (void)state;
    nodes_open(2);
    put(0, "a", "value", ago(10), HOW_PLAIN);
    assert_true(round_of(1));
    assert_true(held(1, "a") == ago(10));
    atomic_store(&nodes[1].peers[1].boot, 6);
    assert_false(round_of(1));
    atomic_store(&nodes[1].peers[1].boot, 4); /* as many starts, and not this */
    assert_false(round_of(1));
    atomic_store(&nodes[1].peers[1].boot, 5);
    assert_true(round_of(1));
    nodes[1].view->member[0].boot = 6; /* as etcd says */
    assert_false(round_of(1));
    nodes[1].view->member[0].boot = 5;
    nodes[0].self.id = 99;
    assert_false(round_of(1));
}

/* Who speaks is a member by its number, all of it, and its id. To one of an older
   ring an operation is told to wait for this ring, and a heartbeat of who is no
   member any more that it is none; never one that has no number yet. */
static void test_intro_who(void **state) {
    static const struct {
        int newer;       /* its ring, than that here */
        uint64_t number; /* 1: that of a member */
        bool id;         /* it is that member's */
        bool beats;
        const char *refusal; /* "": none */
    } rows[] = {
        {0, 1, true, true, ""},
        {0, 1, true, false, ""},
        {0, UINT64_C(1) << 32 | 1, true, true, "403"},
        {0, 1, false, true, "403"},
        {0, 7, true, true, "403"},
        {-1, 1, true, true, "409"},
        {-1, 1, false, true, "410"},
        {-1, 1, false, false, "409"},
        {-1, 7, true, true, "410"},
        {-1, 7, true, false, "409"},
        {-1, 0, false, true, "409"},
        {1, 7, true, true, ""},
    };

    (void)state;
    nodes_open(2);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct op op = {.w = &workers[1]};
        const char *refusal;

        op.act = rows[i].beats ? beat_body : prepare_body;
        op.intro[0] = INTRO_VERSION;
        op.intro[1] = nodes[1].view->cluster;
        op.intro[2] = nodes[1].view->epoch + (uint64_t)rows[i].newer;
        op.intro[3] = rows[i].number;
        op.intro[4] = nodes[0].self.id + !rows[i].id;
        op.intro[5] = nodes[0].self.boot;
        refusal = peer_check(&op);
        if (strncmp(refusal != NULL ? refusal : "", rows[i].refusal, 3) != 0)
            fail_msg("row %zu: %s", i, refusal != NULL ? refusal : "none");
    }
}

/* Who is told that he is no member has left, if he was one by the ring that he
   spoke by. */
static void test_beat_gone(void **state) {
    struct worker *w = &workers[0];

    (void)state;
    nodes_open(2);
    w->view_at = now_ms();
    w->view->me = w->view->count;
    beat_answered(w, 2, w->view_at + 1, 410, (struct slice){0});
    assert_false(nodes[0].left);
    w->view->me = 0;
    beat_answered(w, 2, w->view_at, 410, (struct slice){0});
    assert_false(nodes[0].left);
    beat_answered(w, 2, w->view_at + 1, 410, (struct slice){0});
    assert_true(nodes[0].left);
}

/* --------------------------------------------------------------- Rounds */

/* Equal replicas are done with their digests. */
static void test_equal(void **state) {
    char key[16];

    (void)state;
    nodes_open(3);
    for (unsigned n = 0; n < 3000; n++) {
        snprintf(key, sizeof key, "key %u", n);
        for (int i = 0; i < 3; i++)
            put(i, key, "value", ago(100), HOW_PLAIN);
    }
    part_of(0)->doubts = 9;
    assert_true(round_of(0));
    assert_int_equal(part_of(0)->cleared, 9);
    assert_int_equal(world.calls, 2);
    print_message("%" PRIu64 " bytes for one partition of three replicas\n",
                  world.traffic);
    assert_true(world.traffic < 1500);
    assert_int_equal(repairs[0].records, 0);
    put(1, "key 5", "newer", ago(50), HOW_PLAIN); /* and one that differs */
    world.traffic = 0;
    assert_true(round_of(0));
    assert_true(held(0, "key 5") == ago(50));
    assert_int_equal(repairs[0].records, 1);
    assert_int_equal(world.calls, 6); /* two digests, a list and a pull */
    assert_true(world.traffic < 6000);
}

#define GONE 0xffff /* in a row below: there is no such owner */

/* What three or five replicas have, seconds before noon (0: nothing; negative:
   a tombstone), the asker first, what the asker has after a round, whether it
   asked to have it settled, whether the round was good, and (a bit each) which
   owners were told that they lack something. */
static void test_decide(void **state) {
    static const struct {
        int has[NODES];
        uint64_t floor;
        bool recovering;
        int then;
        bool settles, good;
        unsigned told;
    } rows[] = {
        /* newer elsewhere; newer here; on its way */
        {{100, 50, 50}, 0, false, 50, false, true, 0},
        {{100, 50, 100}, 0, false, 50, false, true, 4},
        {{50, 100, 100}, 0, false, 50, false, true, 6},
        {{1, 100, 100}, 0, false, 1, false, true, 0},
        {{0, 50, 40}, 0, false, 40, false, true, 2},
        /* below the floor: on a majority, on a minority */
        {{100, 50, 50}, 10, false, 50, false, true, 0},
        {{100, 50, 0}, 10, false, 100, true, false, 4},
        {{100, 50, GONE}, 10, false, 100, true, false, 0},
        {{100, 10, GONE}, 10, false, 10, false, true, 0},
        {{100, 50, 50, 50, 0}, 10, false, 50, false, true, 16},
        {{100, 50, 50, 40, 0}, 10, false, 100, true, false, 22},
        {{100, 50, 50, 0, 0}, 10, false, 100, true, false, 24},
        /* it recovers: with all of the others, or not */
        {{100, 50, 0}, 10, true, 50, false, true, 4},
        {{100, 50, GONE}, 10, true, 100, true, false, 0},
        {{100, 50, 0, 0, GONE}, 10, true, 100, true, false, 12},
        {{100, 50, 0, 0, 0}, 10, true, 50, false, true, 28},
        /* not enough owners */
        {{100, GONE, GONE}, 0, false, 100, false, false, 0},
        {{100, 50, GONE, GONE, GONE}, 0, false, 50, false, false, 0},
        /* tombstones: young; old, against nothing, and against values */
        {{100, -50, 100}, 0, false, -50, false, true, 4},
        {{0, -50, 0}, 0, false, -50, false, true, 4},
        {{0, -1000, 0}, 0, false, 0, false, true, 0},
        {{-1000, 0, 0}, 0, false, -1000, false, true, 0},
        {{-1000, -2000, 0}, 0, false, -1000, false, true, 0},
        {{2000, -1000, 2000}, 0, false, -1000, false, true, 4},
        {{-1000, 2000, 0}, 0, false, -1000, false, true, 2},
        {{-2000, 1000, -2000}, 0, false, 1000, false, true, 4},
        /* an old one below the floor: where a value is; and for one that
           recovers and may have lost it, where none is, or an owner is away */
        {{2000, -1000, 0}, 10, false, 2000, true, false, 0},
        {{2000, -1000, 2000}, 10, false, 2000, true, false, 4},
        {{0, -1000, 2000}, 10, true, -1000, false, true, 4},
        {{0, -1000, 0}, 10, true, 0, false, true, 0},
        {{0, -1000, 0, 0, GONE}, 10, true, 0, true, false, 0},
        {{0, -1000, -1000, -1000, GONE}, 10, true, -1000, false, true, 0},
    };

    (void)state;
    for (size_t n = 0; n < COUNT(rows); n++) {
        unsigned count =
            rows[n].has[3] == 0 && rows[n].has[4] == 0 && rows[n].told < 8 ? 3
                                                                           : 5;
        uint64_t then = (uint64_t)abs(rows[n].then);
        bool good;

        world_begin(state);
        nodes_open(count);
        for (unsigned i = 0; i < count; i++) {
            int has = rows[n].has[i];

            if (has == GONE)
                atomic_store(&nodes[0].peers[i + 1].heard, 0);
            else if (has != 0)
                put((int)i, "a", has > 0 ? "value" : NULL,
                    ago((uint64_t)abs(has)), HOW_PLAIN);
        }
        part_of(0)->floor = rows[n].floor > 0 ? ago(rows[n].floor) : 0;
        nodes[0].begin_ceiling = part_of(0)->floor;
        part_of(0)->recovering = rows[n].recovering;
        part_of(0)->doubts = 2;
        good = round_of(0);
        if (held(0, "a") != (then > 0 ? ago(then) : 0) ||
            (settled > 0) != rows[n].settles || good != rows[n].good ||
            (part_of(0)->cleared == 2) != good)
            fail_msg("row %zu: held %d s ago, settled %u, good %d", n,
                     (int)((ago(0) - held(0, "a")) / VERSION_TIME(1000000)),
                     settled, good);
        for (int i = 1; i < (int)count; i++)
            if (told(0, i) != (rows[n].told >> i & 1))
                fail_msg("row %zu: node %d is told, or not", n, i);
        if (rows[n].recovering)
            for (int i = 1; i < (int)count; i++)
                assert_int_equal(part_of(i)->floor > ago(rows[n].floor),
                                 rows[n].has[i] != GONE);
        world_end(state);
    }
}

/* While a round is made a newer write comes: it stays. And one that was listed
   is replaced by one that no majority has: it is not taken below the floor. */
static void newer_comes(int node, const char *path) {
    if (node == 1 && strcmp(path, "/_peer/pull") == 0 && world.before != NULL) {
        put(0, "a", "newest", ago(20), HOW_MAJORITY);
        put(1, "b", "other", ago(30), HOW_MAJORITY);
    }
}

static void test_meanwhile(void **state) {
    (void)state;
    nodes_open(3);
    for (int i = 1; i < 3; i++) {
        put(i, "a", "newer", ago(50), HOW_PLAIN);
        put(i, "b", "newer", ago(50), HOW_PLAIN);
    }
    part_of(0)->floor = ago(10);
    world.before = newer_comes;
    assert_false(round_of(0));
    world.before = NULL;
    assert_true(held(0, "a") == ago(20));
    assert_int_equal(held(0, "b"), 0);
    assert_int_equal(settled, 1);
}

/* A key that is settled is done with when its newest version is here; one that
   a majority without this replica holds is not. */
static void settle_here(int node, const char *path) {
    if (node == 1 && strcmp(path, "/_peer/consistent") == 0)
        put(0, "a", "newer", ago(5), HOW_PLAIN);
}

static void test_settle(void **state) {
    (void)state;
    nodes_open(3);
    put(1, "a", "newer", ago(50), HOW_PLAIN);
    part_of(0)->floor = ago(10);
    settles = true;
    assert_false(round_of(0));
    assert_int_equal(settled, 1);
    assert_int_equal(repairs[0].settled, 0);
    world.before = settle_here;
    assert_true(round_of(0));
    assert_int_equal(repairs[0].settled, 1);
    assert_true(held(0, "a") == ago(5));
}

/* Records that one owner alone has are settled by that owner: each is on a
   majority after one round, under its etag, though another owner, which agrees
   with the asker, is the first to answer. */
static void test_settle_owner(void **state) {
    char key[16];

    (void)state;
    nodes_open(3);
    works = true;
    for (unsigned n = 0; n < 5; n++) {
        snprintf(key, sizeof key, "key %u", n);
        for (int i = 0; i < 3; i++)
            put(i, key, "value", ago(100), HOW_PLAIN);
        put(1, key, "newer", ago(50), HOW_PLAIN);
    }
    part_of(0)->floor = part_of(2)->floor = ago(10);
    assert_true(round_of(0));
    assert_int_equal(repairs[0].settled, 5);
    assert_int_equal(settled, 5);
    for (unsigned n = 0; n < 5; n++) {
        snprintf(key, sizeof key, "key %u", n);
        for (int i = 0; i < 3; i++) {
            assert_true(etag_of(i, key) == ago(50));
            assert_true(held(i, key) == held(0, key));
        }
    }
}

/* Another coordinator is always faster: whoever has promised promises more
   before the record comes. What node 2 says of a record is lost, and so is all
   that it says after that; and node 1 is not reached after its next promise. */
static void promise_more(int i) {
    struct node *node = &nodes[i];
    struct slice key = slice_of("a");
    struct entry entry;
    struct file *file;

    store_prepare(node, part_of(i), clock_version(node, 0),
                  world_print(key.p, key.n, node->self.hash), key, &entry,
                  &file);
    file_release(file);
}

static void others_win(int node, const char *path) {
    if (strcmp(path, "/_peer/prepare") == 0)
        promise_more(0);
    if (strcmp(path, "/_peer/promised") == 0)
        promise_more(node);
    if (node == 1 && strcmp(path, "/_peer/prepare") == 0 && world.mute != 0)
        wires[0][1].dead = true;
    if (node == 2 && strcmp(path, "/_peer/promised") == 0)
        world.mute = 1 << 2;
}

/* Nobody can say what became of a record that was to be settled. But it is not
   the client's: that is refused by this node, and sent to no other, so it was
   not applied, and the client is told so. */
static void test_settle_short(void **state) {
    struct repair *repair = &repairs[1];
    struct buf b = {0};
    char etag[20];
    size_t at;

    (void)state;
    nodes_open(3);
    works = true;
    for (int i = 0; i < 3; i++)
        put(i, "a", "value", ago(100), HOW_PLAIN);
    put(2, "a", "newer", ago(50), HOW_PLAIN);
    at = record_begin(&b, slice_of("a"), slice_of(""), false);
    buf_text(&b, "mine");
    record_end(&b, at);
    record_stamp(b.p, 1, 1);
    snprintf(etag, sizeof etag, "\"%016" PRIx64 "\"", ago(100));
    buf_zero(&repair->ask, 3);
    repair->ask.p[1] = (uint8_t)strlen(etag);
    buf_text(&repair->ask, etag);
    buf_add(&repair->ask, b.p, b.n);
    buf_free(&b);
    world.before = others_win;
    assert_true(repair_call(repair, &repair->view->member[0], 0,
                            "/_peer/consistent", 16));
    assert_int_equal(get64(repair->callers[0]->reply.p), 503);
    assert_true(world.mute != 0 && wires[0][1].dead);
    assert_true(etag_of(0, "a") == ago(100) && etag_of(1, "a") == ago(100));
}

/* Rotten records: healed from another owner, not counted on, and hidden by
   nothing. */
static void test_rotten(void **state) {
    (void)state;
    nodes_open(3);
    for (int i = 0; i < 3; i++)
        put(i, "a", "value", ago(100), HOW_PLAIN);
    part_of(0)->floor = ago(1);
    rot(0, "a");
    assert_true(round_of(0));
    assert_int_equal(part_of(0)->log.rotten, 0);
    put(1, "a", "newer", ago(50), HOW_PLAIN);
    rot(1, "a");
    assert_true(round_of(0)); /* with node 2; node 1's word is not complete */
    assert_true(held(0, "a") == ago(100));
    assert_int_equal(part_of(0)->droppable, 0);
    atomic_store(&nodes[0].peers[3].heard, 0);
    assert_false(round_of(0));
    put(0, "old", NULL, ago(1000), HOW_REPAIR);
    part_of(0)->floor = 0;
    put(0, "old", NULL, ago(1000), HOW_REPAIR);
    put(1, "old", "value", ago(2000), HOW_PLAIN);
    rot(1, "old");
    round_of(1);
    assert_true(held(1, "old") == ago(1000));
}

/* The other two of node 0's owners are lost in the middle of its round. */
static void links_lost(int node, const char *path) {
    (void)node;
    (void)path;
    for (int i = 1; i < 3; i++)
        atomic_store(&nodes[0].peers[i + 1].heard, 0);
}

/* An owner whose link is lost in a round is asked all the same, or has no part
   in it: one that recovers missed what it alone had, since it took the word of
   an owner that it had not asked. */
static void test_lost(void **state) {
    (void)state;
    nodes_open(3);
    for (int i = 1; i < 3; i++)
        put(i, "a", "value", ago(100), HOW_PLAIN);
    nodes[0].begin_ceiling = ago(1);
    part_of(0)->recovering = true;
    world.before = links_lost;
    assert_true(!round_of(0) || held(0, "a") == ago(100));
    for (int i = 1; i < 3; i++)
        assert_true(part_of(0)->recovering || part_of(i)->floor > ago(1));
}

/* Two keys of one fingerprint: each replica gets both. */
static void test_collide(void **state) {
    (void)state;
    world.same = true;
    nodes_open(2);
    put(0, "a", "value", ago(100), HOW_PLAIN);
    put(1, "b", "value", ago(50), HOW_PLAIN);
    assert_true(round_of(0)); /* a is not seen to be another key */
    assert_true(held(0, "b") == ago(50));
    for (int n = 0; n < 2; n++)
        round_of(1);
    assert_true(held(1, "a") == ago(100));
    put(1, "a", "newer", ago(40), HOW_PLAIN);
    put(0, "c", "value", ago(60), HOW_PLAIN);
    assert_true(round_of(0));
    assert_true(told(0, 1));
    assert_true(round_of(1));
    assert_true(held(0, "a") == ago(40) && held(1, "c") == ago(60));
    assert_true(digest(0, 0) == digest(1, 0));
    world.calls = 0;
    assert_true(round_of(0));
    assert_int_equal(world.calls, 1);
}

/* Random contents on three replicas: after each has made a round, and each of
   those that were told once more, they are equal, and it is the newest that
   they have; lists of part of the buckets, pulls of many pages. */
static void test_random(void **state) {
    uint64_t seed = 5, newest[400] = {0};
    static char value[20000];
    char key[16];

    (void)state;
    memset(value, 'x', sizeof value - 1);
    nodes_open(3);
    for (unsigned n = 0; n < 2000; n++) {
        unsigned k = (unsigned)(random_next(&seed) % 400);
        uint64_t version = ago(random_next(&seed) % 800 + 3);

        snprintf(key, sizeof key, "%u", k);
        put((int)(random_next(&seed) % 3), key,
            random_next(&seed) % 4 ? value : NULL, version, HOW_PLAIN);
    }
    for (unsigned k = 0; k < 400; k++)
        for (int i = 0; i < 3; i++) {
            snprintf(key, sizeof key, "%u", k);
            if (held(i, key) > newest[k])
                newest[k] = held(i, key);
        }
    for (int i = 0; i < 3; i++)
        assert_true(round_of(i));
    for (int i = 0; i < 3; i++) {
        check_counts(i);
        assert_true(digest(i, 0) == digest(0, 0));
        for (unsigned k = 0; k < 400; k++) {
            snprintf(key, sizeof key, "%u", k);
            assert_true(held(i, key) == newest[k]);
        }
    }
}

/* ----------------------------------------------------------------- Rests */

/* Has a node make the passes of so many ms, which end no doubt. How many times
   it has pulled. */
static unsigned passes(int i, uint64_t ms) {
    const struct peer *me = &nodes[i].peers[nodes[i].self.number];
    uint64_t until = now_ms() + ms;
    unsigned before = world.pulls;

    while (now_ms() < until) {
        assert_int_equal(repair_all(&repairs[i]), 1);
        assert_int_equal(atomic_load(&me->said[SAID_DOUBT]), 1);
        rest_ms(200 + TICK_MS);
    }
    return world.pulls - before;
}

/* A replica that cannot store what it pulls tries again at once, a few times;
   then it rests, up to five seconds. It is in doubt all the time, and says so.
   A new cause of doubt has it try at once, and with the hindrance gone it is
   done after one rest. */
static void test_again(void **state) {
    struct part *part;
    unsigned n;

    (void)state;
    nodes_open(3);
    part = part_of(0);
    put(1, "a", "value", ago(100), HOW_PLAIN);
    put(2, "a", "value", ago(100), HOW_PLAIN);
    part->dead = true;
    doubt_part(&nodes[0], 0);
    assert_int_equal(passes(0, 1000), 5);
    n = passes(0, 9000);
    if (n < 5 || n > 15)
        fail_msg("%u pulls more", n);
    n = passes(0, 60000);
    if (n < 8 || n > 13)
        fail_msg("%u pulls a minute", n);
    while (passes(0, 1) == 0)
        continue;
    assert_int_equal(passes(0, 1), 0);
    doubt_part(&nodes[0], 0);
    assert_int_equal(passes(0, 1), 1);
    passes(0, 60000);
    part->dead = false;
    for (n = 0; repair_all(&repairs[0]) > 0; n++) {
        assert_true(n < 26);
        rest_ms(200 + TICK_MS);
    }
    assert_true(held(0, "a") == ago(100));
    assert_true(part->cleared == part->doubts);
}

/* With -moveRate what was pulled is stored at once, and what it has cost is
   rested before the next call. */
static void test_rate(void **state) {
    static char value[10000];
    uint64_t began;

    (void)state;
    memset(value, 'x', sizeof value - 1);
    nodes_open(2);
    nodes[0].flags.move_rate = 1000;
    put(1, "a", value, ago(100), HOW_PLAIN);
    began = now_ms();
    assert_true(round_of(0));
    assert_true(held(0, "a") == ago(100));
    assert_true(now_ms() - began < 5000); /* a digest and a list */
    put(1, "b", "value", ago(100), HOW_PLAIN);
    began = now_ms();
    assert_true(round_of(0));
    assert_true(held(0, "b") == ago(100));
    assert_true(now_ms() - began >= 10000);
}

/* ----------------------------------------------------------- Tombstones */

/* Tombstones go when all owners have answered and none needs them: from the
   index and from the log. What they cover is refused from then on. */
static void test_drop(void **state) {
    struct part *part;
    char key[16];

    (void)state;
    nodes_open(3);
    part = part_of(0);
    for (int i = 0; i < 3; i++)
        for (unsigned n = 0; n < 100; n++) {
            snprintf(key, sizeof key, "%u", n);
            put(i, key, "value", ago(2000), HOW_PLAIN);
            if (n % 2 == 0)
                put(i, key, NULL, ago(n < 50 ? 1000 : 500), HOW_PLAIN);
        }
    atomic_store(&nodes[0].peers[3].heard, 0);
    assert_true(round_of(0));
    assert_int_equal(part->droppable, 0); /* one is away */
    atomic_store(&nodes[0].peers[3].heard, now_ms());
    part_of(2)->recovering = true;
    assert_true(round_of(0));
    assert_int_equal(part->droppable, 0); /* what it says does not count */
    part_of(2)->recovering = false;
    assert_true(part_compact(&nodes[0], part)); /* they are all that is dead */
    assert_int_equal(part->log.used, 100);
    assert_true(round_of(0));
    assert_true(part->droppable == ago(900) - 1);
    assert_int_equal(part->gone, 25 * 48);
    assert_true(compact_wanted(&nodes[0], part, UINT64_MAX));
    assert_true(part_compact(&nodes[0], part));
    check_counts(0);
    assert_int_equal(part->log.used, 75);
    assert_int_equal(part->log.keys, 50);
    assert_int_equal(part->log.end, LOG_HEADER + part->log.live);
    assert_true(part->floor == ago(1000));
    assert_int_equal(part->droppable + part->gone, 0);
    for (unsigned n = 0; n < 100; n++) {
        snprintf(key, sizeof key, "%u", n);
        assert_true(held(0, key) == (n % 2    ? ago(2000)
                                     : n < 50 ? 0
                                              : ago(500)));
    }
    assert_int_equal(put(0, "0", "value", ago(2000), HOW_PLAIN), ACCEPT_FLOOR);
    assert_int_equal(put(0, "0", "value", ago(2000), HOW_REPAIR), ACCEPT_FLOOR);
    world.calls = 0; /* and those that have them still are equal */
    for (int i = 0; i < 3; i++)
        assert_true(round_of(i));
    assert_int_equal(world.calls, 6);
    put(1, "new", "value", ago(5), HOW_PLAIN); /* nor are they moved now */
    put(1, "0", NULL, ago(3), HOW_PLAIN);
    assert_true(round_of(0));
    assert_int_equal(repairs[0].records, 2);
}

/* They stay while an owner has a value that one covers, while they are new
   here, and what comes after the round stays, too. */
static void test_drop_needed(void **state) {
    (void)state;
    nodes_open(3);
    put(0, "a", NULL, ago(1000), HOW_PLAIN);
    put(1, "a", "value", ago(2000), HOW_PLAIN);
    assert_true(round_of(0));
    assert_int_equal(part_of(0)->droppable, 0);
    assert_true(told(0, 1));
    assert_true(round_of(1)); /* takes it */
    assert_true(held(1, "a") == ago(1000));
    assert_int_equal(part_of(1)->droppable, 0);
    assert_true(round_of(0));
    assert_true(part_of(0)->droppable > 0);
    put(0, "a", "value", ago(100), HOW_PLAIN);
    put(0, "b", NULL, ago(100), HOW_PLAIN);
    assert_true(part_compact(&nodes[0], part_of(0)));
    assert_true(held(0, "a") == ago(100) && held(0, "b") == ago(100));
    assert_int_equal(part_of(0)->log.used, 2);
}

/* An owner takes one over after its digest. */
static void takes_it(int node, const char *path) {
    if (node == 1 && strcmp(path, "/_peer/list") == 0)
        put(1, "b", NULL, ago(1000), HOW_REPAIR);
}

/* All that a node has is on its disk, or nothing. */
static void synced(int i, bool all) {
    part_of(i)->log.synced = all ? part_of(i)->log.end : LOG_HEADER;
}

/* They stay while one of them is not yet on the disk of an owner, this one or
   another: a loss of power would bring back there what it covers, and nobody
   would know better. That is asked with the list again. */
static void test_drop_unsynced(void **state) {
    (void)state;
    nodes_open(3);
    world.unsynced = true;
    for (int i = 0; i < 3; i++) {
        put(i, "a", NULL, ago(1000), HOW_PLAIN);
        put(i, "new", NULL, ago(10), HOW_PLAIN);
        synced(i, i != 1);
    }
    for (int i = 0; i < 3; i++) {
        part_of(1)->queued = false;
        assert_true(round_of(i));
        assert_int_equal(part_of(i)->droppable, 0);
        assert_true(part_of(1)->queued);
    }
    sync_part(&nodes[1], part_of(1));
    assert_true(part_of(1)->log.synced == part_of(1)->log.end);
    synced(2, false);
    put(1, "c", "value", ago(100), HOW_PLAIN);
    assert_true(round_of(0)); /* such owners count all the same */
    assert_true(told(0, 2));
    assert_int_equal(part_of(0)->droppable, 0);
    put(2, "c", "value", ago(100), HOW_PLAIN);
    sync_part(&nodes[2], part_of(2));
    for (int i = 0; i < 3; i++) {
        put(i, "newer", NULL, ago(5), HOW_PLAIN); /* too new to go */
        assert_true(round_of(i));
    }
    for (int i = 0; i < 3; i++)
        assert_true(part_of(i)->droppable > 0);
    put(0, "b", NULL, ago(1000), HOW_PLAIN);
    put(1, "b", "value", ago(2000), HOW_PLAIN);
    put(2, "b", NULL, ago(1000), HOW_PLAIN);
    for (int i = 0; i < 3; i++)
        synced(i, true);
    world.before = takes_it;
    assert_true(round_of(0));
    world.before = NULL;
    assert_true(held(1, "b") == ago(1000));
    assert_int_equal(part_of(0)->droppable, 0);
}

/* A replica that recovers takes them, however old: it may have lost one, and an
   owner that was away may have what that covers. One that is well needs none. */
static void test_drop_recovering(void **state) {
    (void)state;
    nodes_open(3);
    put(1, "a", NULL, ago(1000), HOW_PLAIN);
    put(1, "b", NULL, ago(1000), HOW_PLAIN);
    assert_true(round_of(0)); /* it knows of nothing that it has lost */
    assert_int_equal(held(0, "a") + held(0, "b"), 0);
    put(2, "a", "value", ago(2000), HOW_PLAIN);
    part_of(0)->recovering = true;
    assert_true(round_of(0));
    assert_false(part_of(0)->recovering);
    assert_true(held(0, "a") == ago(1000));
    assert_int_equal(held(0, "b"), 0); /* all are heard, and none has a value */
    world.unsynced = true;
    synced(1, false); /* but may have one after a loss of power */
    part_of(0)->recovering = true;
    assert_true(round_of(0));
    assert_true(held(0, "b") == ago(1000));
    put(1, "d", NULL, ago(1000), HOW_PLAIN);
    synced(1, true);
    put(1, "e", NULL, ago(10), HOW_PLAIN); /* too new to matter */
    part_of(0)->recovering = true;
    assert_true(round_of(0));
    assert_int_equal(held(0, "d"), 0);
    assert_true(held(0, "e") == ago(10));
    part_of(0)->recovering = part_of(1)->recovering = true;
    synced(1, false); /* who recovers does not say so */
    nodes[0].full = true;
    assert_true(round_of(0));
    assert_true(held(0, "d") == ago(1000));
}

/* A node goes by a ring of three nodes, and a change to the three from that one
   on. */
static void changes(int i, unsigned from) {
    struct view *view = nodes[i].view;
    struct ring_member was[3], then[3];

    for (unsigned k = 0; k < 3; k++) {
        const struct member *m = &view->member[k], *n = &view->member[from + k];

        was[k] = (struct ring_member){m->name, m->zone};
        then[k] = (struct ring_member){n->name, n->zone};
        view->next_at[k] = (uint16_t)(from + k);
    }
    ring_free(view->ring);
    view->ring = ring_build(was, 3, 1, 3);
    view->next = ring_build(then, 3, 1, 3);
    view->old = view->next_count = 3;
}

/* While a change runs a new owner, who is not asked, may have a value. One that
   joins needs none all the same, if it has lost nothing. */
static void test_drop_joint(void **state) {
    (void)state;
    nodes_open(4);
    put(1, "a", NULL, ago(1000), HOW_PLAIN);
    changes(0, 0);
    changes(3, 1);
    assert_true(round_of(3));
    assert_int_equal(held(3, "a"), 0);
    for (int i = 0; i < 4; i += 3) {
        part_of(i)->recovering = true;
        assert_true(round_of(i));
        assert_true(held(i, "a") == ago(1000));
    }
}

/* A node alone drops them, too; few of them beside much that lives only after a
   day. */
static void test_drop_alone(void **state) {
    struct part *part;
    char key[16];

    (void)state;
    nodes_open(1);
    part = part_of(0);
    for (unsigned n = 0; n < 1000; n++) {
        snprintf(key, sizeof key, "%u", n);
        put(0, key, "value", ago(2000), HOW_PLAIN);
    }
    assert_true(part_compact(&nodes[0], part));
    put(0, "0", NULL, ago(1000), HOW_PLAIN);
    assert_true(round_of(0));
    assert_int_equal(part->gone, 48);
    assert_false(compact_wanted(&nodes[0], part, UINT64_MAX));
    part->compacted = now_ms() - COMPACT_DAY - 1;
    assert_true(compact_wanted(&nodes[0], part, UINT64_MAX));
    assert_true(part_compact(&nodes[0], part));
    assert_int_equal(held(0, "0"), 0);
    assert_int_equal(part->log.used, 999);
    assert_int_equal(part->log.end, LOG_HEADER + part->log.live);
}

/* What a node does about a log of which it is no owner any more. */
static void leave(int i) {
    part_of(i)->again_at = 0;
    repair_leave(&repairs[i], part_of(i));
}

/* A former owner's log stays as long as some owner lacks what another has of
   it; it goes when each has that or a newer one, and into trash/ if there are
   keys that no owner has. */
static void test_leave(void **state) {
    struct ring_member members[3];
    int from = 0, to[2];

    (void)state;
    nodes_open(3);
    for (int i = 0; i < 3; i++) {
        const struct member *m = &nodes[0].view->member[i];

        members[i] = (struct ring_member){m->name, m->zone};
    }
    for (int i = 0; i < 3; i++) { /* each partition has two owners */
        ring_free(nodes[i].view->ring);
        nodes[i].view->ring = ring_build(members, 3, 1, 2);
        nodes[i].epoch = nodes[i].view->epoch;
    }
    while (view_owns(nodes[0].view, 0, (unsigned)from + 1) != 0)
        from++;
    to[0] = (from + 1) % 3;
    to[1] = (from + 2) % 3;
    put(from, "a", "value", ago(100), HOW_PLAIN);
    put(to[0], "a", "value", ago(100), HOW_PLAIN);
    leave(from);
    assert_true(held(from, "a") == ago(100));
    put(to[1], "a", "older", ago(110), HOW_PLAIN);
    leave(from);
    assert_true(held(from, "a") == ago(100));
    put(to[1], "a", "newer", ago(90), HOW_PLAIN);
    atomic_store(&nodes[from].peers[to[1] + 1].heard, 0);
    leave(from); /* nobody can say what that one has */
    assert_true(held(from, "a") == ago(100));
    atomic_store(&nodes[from].peers[to[1] + 1].heard, now_ms() + DAY);
    world.pulls = 0;
    leave(from);
    assert_int_equal(part_of(from)->log.end, LOG_HEADER);
    assert_int_equal(world.pulls, 0);
    assert_int_equal(faccessat(nodes[from].dir_fd, "trash/000.log", F_OK, 0),
                     -1);
    put(from, "b", "value", ago(80), HOW_PLAIN);
    put(from, "c", NULL, ago(2000), HOW_PLAIN); /* it counts as absent */
    put(to[0], "c", "older", ago(3000), HOW_PLAIN);
    leave(from);
    assert_int_equal(part_of(from)->log.end, LOG_HEADER);
    put(to[0], "d", "value", ago(70), HOW_PLAIN);
    put(to[1], "d", "value", ago(70), HOW_PLAIN);
    put(from, "d", "value", ago(70), HOW_PLAIN);
    leave(from); /* proven to be with both: what was kept before stays */
    assert_int_equal(part_of(from)->log.end, LOG_HEADER);
    assert_int_equal(unlinkat(nodes[from].dir_fd, "trash/000.log", 0), 0);
    assert_int_equal(unlinkat(nodes[from].dir_fd, "trash", AT_REMOVEDIR), 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, world_begin, world_end)

int main(void) {
    static const struct CMUnitTest tests[] = {
        TEST(test_digest),
        TEST(test_digest_tombstones),
        TEST(test_digest_counts),
        TEST(test_malformed),
        TEST(test_intro),
        TEST(test_intro_who),
        TEST(test_beat_gone),
        TEST(test_equal),
        TEST(test_decide),
        TEST(test_meanwhile),
        TEST(test_settle),
        TEST(test_settle_owner),
        TEST(test_settle_short),
        TEST(test_rotten),
        TEST(test_lost),
        TEST(test_collide),
        TEST(test_random),
        TEST(test_again),
        TEST(test_rate),
        TEST(test_drop),
        TEST(test_drop_needed),
        TEST(test_drop_unsynced),
        TEST(test_drop_recovering),
        TEST(test_drop_joint),
        TEST(test_drop_alone),
        TEST(test_leave),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
