/*
 * fuzz.c - what comes from outside, fed with anything at all.
 *
 *     make test-fuzz      a few seconds for each target
 *     make fuzz           ten minutes for each; seconds=n for so many
 *
 * The program is included. With clang's libFuzzer the inputs are sought so that
 * they reach as much of it as can be; without it main() below just runs those
 * in test/corpus. Address and undefined-behaviour sanitizers watch. The target
 * is named in the environment, TARGET=
 *
 *     request   a connection of a client or, where the input begins with P, of
 *               a peer: heads, bodies, routes, and what they do to a store
 *     reply     what peers and etcd answer
 *     json      what is kept in etcd, and base64
 *     record    a record from the network, and a log that is read at a start
 *     peer      what a peer asks a replica: the first byte says what
 *
 * No input is to leave anything for the next: a partition that was written to
 * is begun anew. The log is in memory, its sums are put right where they are
 * not (no input would hit them by chance), and the wall clock stands still.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static FILE *log_file; /* the one file that there is */

/* openat() of a log. */
static int fuzz_openat(int dir, const char *name, int flags, ...) {
    (void)dir;
    (void)name;
    (void)flags;
    return dup(fileno(log_file));
}

/* unlinkat(), fsync() and the like, which have nothing to do. */
static int fuzz_nothing(int fd, ...) {
    (void)fd;
    return 0;
}

/* clock_gettime() with a physical clock that stands still. */
static int fuzz_clock(clockid_t id, struct timespec *t) {
    if (id == CLOCK_REALTIME) {
        *t = (struct timespec){1800000000, 0};
        return 0;
    }
    return clock_gettime(id, t);
}

/* fprintf() to the log of the node, which nobody reads. */
static void __attribute__((format(printf, 2, 3)))
fuzz_print(FILE *file, const char *format, ...) {
    (void)file;
    (void)format;
}

#define openat        fuzz_openat
#define unlinkat      fuzz_nothing
#define fsync         fuzz_nothing
#define fdatasync     fuzz_nothing
#define clock_gettime fuzz_clock
#define fprintf       fuzz_print
#define main          estoraje_main

#include "../estoraje.c"

#undef fprintf
#undef main

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* -------------------------------------------------------- A node of one */

static struct node node;
static struct worker *w;

/* Empties the partition, as before its log was read, and reads it. */
static void part_anew(bool empty) {
    struct part *part = &node.parts[0];

    file_release(part->log.file);
    free(part->log.table);
    memset((char *)part + offsetof(struct part, log), 0,
           sizeof *part - offsetof(struct part, log));
    if (empty && ftruncate(fileno(log_file), 0) != 0)
        die("cannot empty the log");
    part_load(&node, part);
    atomic_store(&node.clock, 0);
    atomic_store(&node.wild, 0);
}

/* Begins the node: alone, with one partition and one worker. */
static void node_begin(void) {
    static const struct flags flags = {.name = "a",
                                       .host = "127.0.0.1",
                                       .data = "data",
                                       .zone = "z",
                                       .max_value = 100000};

    log_file = tmpfile();
    node.flags = flags;
    node.sync = SYNC_NONE;
    node.lock_fd = node.super_fd = node.reserve_fd = node.dir_fd = -1;
    node.log_most = LOG_MAX;
    node.partitions = 1;
    node.self = (struct identity){.partitions = 1,
                                  .replicas = 3,
                                  .cluster = 0xc1,
                                  .id = 0x1d,
                                  .boot = 1,
                                  .hash = {11, 22},
                                  .number = 1};
    atomic_init(&node.ceiling, UINT64_MAX);
    atomic_init(&node.loaded, true);
    wake_pipe(node.pool_queue);
    wake_pipe(node.repair_wake);
    wake_pipe(node.etcd_wake);
    mutex_init(&node.view_lock);
    mutex_init(&node.reserve_lock);
    node.peers = memory(MEMBERS_MAX + 1, sizeof *node.peers);
    node.parts = memory(1, sizeof *node.parts);
    mutex_init(&node.parts[0].lock);
    part_anew(true);
    view_alone(&node);
    node.workers = w = memory(1, sizeof *w);
    node.worker_count = 1;
    worker_init(w, &node, 0);
    w->view = view_hold(&node);
    w->now = now_ms();
    atomic_store(&w->epoch, w->view->epoch);
}

/* A connection without a socket. */
static struct conn *conn_begin(enum conn_kind kind) {
    struct conn *c = memory(1, sizeof *c);

    c->w = w;
    c->fd = -1;
    c->kind = kind;
    atomic_fetch_add(&node.connections, 1);
    c->served = kind == CONN_CLIENT;
    atomic_fetch_add(&node.served, c->served);
    return c;
}

/* Does what waits for the pool, and gives it back to its operations. */
static void pool_turn(void) {
    uint16_t number;

    while (read(node.pool_queue[0], &number, sizeof number) > 0)
        errands_run(&node.parts[0]);
    worker_inbox(w);
}

/* Lets time pass until all that was begun is answered, and frees it. What the
   input has left in the store goes, too. */
static void conn_over(struct conn *c) {
    for (int i = 0; i < 1000 && c->first != NULL && c->reading != c->first;
         i++) {
        struct op *op = c->first;
        void (*due)(struct op *) = op->due;

        op->due = NULL;
        if (stream_ready(c))
            conn_stream(c);
        else if (due != NULL)
            due(op);
        pool_turn();
        w->now += 1000;
        c->out.n = c->out.at = 0;
        conn_retire(c);
    }
    conn_end(c);
    if (c->first != NULL && !c->first->done)
        die("an operation has no end");
    conn_free(c);
    if (node.parts[0].log.end > LOG_HEADER || node.parts[0].promised > 0 ||
        node.parts[0].floor > 0)
        part_anew(true);
}

/* Puts the sums of the records right that follow each other in p. */
static void sums_right(uint8_t *p, size_t n, uint64_t salt) {
    while (n >= RECORD_HEADER && get32(p + 8) == RECORD_MAGIC) {
        size_t meta = record_meta(p), value = get32(p + 32);
        struct slice all = {p + meta, value};

        if (value > n || meta > n - value)
            return;
        for (size_t at = 0; at < value; at += BLOCK)
            put64(p + meta - 8 * (blocks_of(value) - at / BLOCK),
                  block_sum(all, at));
        record_seal(p, salt);
        if (round_up_8(meta + value) >= n)
            return;
        n -= round_up_8(meta + value);
        p += round_up_8(meta + value);
    }
}

/* ----------------------------------------------------------- The targets */

/* A connection reads the input, in two pieces if there is a NUL to cut at. */
static void fuzz_request(const uint8_t *p, size_t n) {
    bool peer = n > 0 && *p == 'P' && memcmp(p, "PUT", n < 3 ? n : 3) != 0 &&
                memcmp(p, "POST", n < 4 ? n : 4) != 0;
    struct conn *c = conn_begin(peer ? CONN_PEER : CONN_CLIENT);
    struct slice rest = {p + peer, n - peer}, piece;

    while (!c->dead && slice_next(&rest, 0, &piece)) {
        buf_add(&c->in, piece.p, piece.n);
        for (size_t before = 0; before != c->in.n - c->in.at && !c->dead;) {
            before = c->in.n - c->in.at;
            conn_consume(c);
            if (stream_ready(c))
                conn_stream(c);
            pool_turn();
            for (struct op *op = c->first; op != NULL; op = op->next)
                if (op->due != NULL) {
                    void (*due)(struct op *) = op->due;

                    op->due = NULL;
                    due(op);
                }
            c->out.n = c->out.at = 0;
            conn_retire(c);
        }
    }
    conn_over(c);
}

/* Takes an answer as a vote, and as a record. */
static void vote_answered(struct op *op, unsigned owner, unsigned status,
                          struct slice body) {
    struct record r;

    vote_take(op, owner, status, body);
    if (body.n > PREPARED_SIZE)
        record_parse(body.p + PREPARED_SIZE, body.n - PREPARED_SIZE, 0, &r);
}

/* A link reads the input as answers to a heartbeat and to votes; and so does a
   caller, as the answer of etcd. */
static void fuzz_reply(const uint8_t *p, size_t n) {
    struct conn *asks = conn_begin(CONN_CLIENT), *c = conn_begin(CONN_LINK);
    struct caller k = {.fd = -1};
    struct link *l = &w->links[1];
    struct op *op = op_new(asks);
    struct http h;
    int fds[2];

    op->answered = vote_answered;
    op->count = 4;
    l->conn = c;
    l->number = 1;
    c->link = l;
    for (unsigned i = 0; i < 4; i++) {
        struct call call = {i % 2 == 0 ? NULL : op, w->now, i, 0};

        op->calls += call.op != NULL;
        buf_add(&l->calls, &call, sizeof call);
    }
    buf_add(&c->in, p, n);
    link_input(c);
    conn_free(c);
    op_finish(op);
    conn_over(asks);
    if (n < 30000 && socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0) {
        k.fd = fds[0];
        if (write(fds[1], p, n) == (ssize_t)n) {
            close(fds[1]);
            caller_answer(&k, &h, 1);
        }
        caller_close(&k);
        buf_free(&k.in);
        buf_free(&k.reply);
    }
}

/* The ring and the members, as etcd may have them. */
static void fuzz_json(const uint8_t *p, size_t n) {
    static const char *const names[] = {"name", "key", "value", "epoch"};
    struct slice text = {p, n};
    struct buf b = {0};
    struct view *view = view_parse(&node, text);
    char room[20];

    if (view != NULL)
        view_release(view);
    for (size_t i = 0; i < COUNT(names); i++) {
        struct slice rest = text, value;

        while (json_next(&rest, names[i], &value))
            base64_decode(&b, value);
        rest = text;
        json_text(&rest, names[i], room, sizeof room);
        json_number(&rest, names[i], 16);
        json_unsigned(&rest, names[i]);
    }
    b.n = 0;
    base64_encode(&b, text);
    base64_decode(&b, text);
    buf_free(&b);
}

/* One record from a peer; and a log that has the input for records, of which
   all that were found are read again. */
static void fuzz_record(const uint8_t *p, size_t n) {
    struct part *part = &node.parts[0];
    struct buf copy = {0}, b = {0};
    struct record r;

    buf_add(&copy, p, n);
    sums_right(copy.p, n, 0);
    if (record_parse(copy.p, n, 0, &r) && r.size <= n)
        record_intact(&r);
    sums_right(copy.p, n, part->log.file->salt);
    if (write_at(fileno(log_file), copy.p, n, LOG_HEADER) != 0)
        die("cannot write the log");
    part_anew(false);
    for (uint32_t i = 0; i < part->log.total; i++)
        if (part->log.table[i].version != 0)
            entry_read(part->log.file, &part->log.table[i], SIZE_MAX, &b, &r);
    buf_free(&copy);
    buf_free(&b);
    part_anew(true);
}

/* What a peer asks: all of it twice, since the first changes what the second
   finds. */
static void fuzz_peer(const uint8_t *p, size_t n) {
    static void (*const bodies[])(struct op *) = {
        accept_body, read_body, prepare_body, promised_body, consistent_body,
        value_body,  beat_body, digest_body,  list_body,     pull_body};
    struct conn *c = conn_begin(CONN_PEER);

    for (int i = 0; i < 2 && n > 0; i++) {
        struct op *op = op_new(c);

        op->epoch = w->view->epoch;
        buf_add(&op->rec, p + 1, n - 1);
        sums_right(op->rec.p, op->rec.n, 0);
        if (op->rec.n > 3) /* of a forwarded one the record is further on */
            for (size_t at = 3; at + RECORD_HEADER <= op->rec.n; at++)
                sums_right(op->rec.p + at, op->rec.n - at, 0);
        bodies[*p % COUNT(bodies)](op);
    }
    conn_over(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n) {
    static const struct {
        const char *name;
        void (*run)(const uint8_t *p, size_t n);
    } targets[] = {{"request", fuzz_request},
                   {"reply", fuzz_reply},
                   {"json", fuzz_json},
                   {"record", fuzz_record},
                   {"peer", fuzz_peer}};
    static void (*run)(const uint8_t *, size_t);
    const char *target = getenv("TARGET");

    if (log_file == NULL)
        node_begin();
    for (size_t i = 0; run == NULL && i < COUNT(targets); i++)
        if (target != NULL && strcmp(target, targets[i].name) == 0)
            run = targets[i].run;
    if (run == NULL)
        give_up(2, "TARGET is request, reply, json, record or peer");
    run(p, n);
    return 0;
}

#ifdef NO_LIBFUZZER
/* Runs the inputs in the files that are named. */
int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        struct buf b = {0};
        size_t n;

        if (f == NULL) {
            perror(argv[i]);
            return 1;
        }
        do {
            n = fread(buf_grow(&b, READ_SIZE), 1, READ_SIZE, f);
            b.n -= READ_SIZE - n;
        } while (n > 0);
        fclose(f);
        LLVMFuzzerTestOneInput(b.p, b.n);
        buf_free(&b);
    }
    return 0;
}
#endif
