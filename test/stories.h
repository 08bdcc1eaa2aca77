/* stories.h - clients of a cluster that record what they see

   What the suites share that run histories of a cluster of processes: the
   nodes, clients which ask random ones of them and record what they asked,
   when, and what came of it, the checks of all that by history.h, and a look
   at what the logs of all nodes hold in the end.

   A suite fills in nodes[] and node_count. One whose nodes come and go says in
   outside[] which are not to be asked now, and gets to know of each request
   that a node did not answer well by actor_failed. */

#ifndef STORIES_H
#define STORIES_H

#include "history.h"

#include "harness.h"

#include <stdatomic.h>

enum {
    NODES_MAX = 8,
    PARTITIONS = 16,
    REPLICAS = 3,
    KEYS = 20,         /* of each history: few, so that they are fought for */
    MODES = 3,         /* plain, consistent and mixed */
    ACTORS = 4,        /* clients of each history */
    BOUND_MS = 2500,   /* 2 s to notice a loss, and a heartbeat */
    HASTY_MS = 400,    /* what some clients wait for an answer, */
    PATIENT_MS = 10000 /* and what the others do */
};
/* ---- The nodes ------------------------------------------------------- */

static struct server *nodes[NODES_MAX];
static int node_count;
static atomic_bool outside[NODES_MAX]; /* not one of the cluster, now */

/* What a node says of one of the cluster's: the text of its status. */
static inline bool status_says(const struct server *asked,
                               const struct server *about, const char *word) {
    struct client c = client_make(asked->port);
    char name[48];
    const char *p, *end;
    bool says = false;

    c.limit_ms = 5000;
    snprintf(name, sizeof name, "{\"name\":\"%s\"", about->name);
    if (client_text(&c, "GET", "/_cluster_status", NULL) == 200) {
        p = strstr(json_squeeze(c.body), "\"nodes\":");
        p = p != NULL ? strstr(p, name) : NULL;
        end = p != NULL ? strchr(p, '}') : NULL;
        p = p != NULL ? strstr(p, word) : NULL;
        says = p != NULL && p < end;
    }
    client_end(&c);
    return says;
}

/* Lets the processes of all nodes go on, where they are stopped. */
static inline void cluster_continue(void) {
    for (int i = 0; i < node_count; i++) {
        pid_t pids[16];
        size_t n = processes_find(nodes[i]->dir, NULL, pids, 16);

        for (size_t k = 0; k < n; k++)
            kill(pids[k], SIGCONT);
    }
}

/* Runs a command of the shell's, which must succeed. */
static inline void command(const char *fmt, ...) {
    struct output o = {0};
    char line[4 * MAX_PATH];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    run(&o, "%s", line);
    check(o.code == 0, "%s: %s", line, o.err);
    output_free(&o);
}

/* Waits until a node that was ended has a ready successor. */
static inline void again(struct server *s) {
    server_start(s);
    server_ready(s);
}

/* The seed of this run, which is printed. */
static inline uint64_t seed_said(void) {
    const char *s = getenv("SEED");
    uint64_t seed = s != NULL ? strtoull(s, NULL, 10) : the_run.random >> 20;

    part("SEED=%llu", (unsigned long long)seed);
    return seed * 0x9E3779B97F4A7C15u | 1;
}

/* From low to high, by the seed. */
static inline long between(uint64_t *seed, long low, long high) {
    return low + (long)(random_next(seed) >> 8) % (high - low + 1);
}

/* ---- Clients that record what they see ------------------------------- */

enum mode { PLAIN, CONSISTENT, MIXED };
static const char *const mode_names[MODES] = {"plain", "consistent", "mixed"};

enum { ETAG_MAX = 40 };

/* One history, of clients that ask in one way, about keys of its own. */
struct story {
    enum mode mode;
    unsigned number; /* its keys' names have it */
    struct history *history;
    char (*etags)[ETAG_MAX]; /* that operations came with, or "" */
    size_t etags_cap;
    pthread_mutex_t lock; /* of what is above, and what is below */
    size_t wrong;         /* answers that nothing allows */
    char error[512];      /* the first of them */
};

/* One client, with a connection to each node. */
struct actor {
    struct story *story;
    unsigned number;
    uint64_t random;
    struct client to[NODES_MAX];
    long avoid[NODES_MAX];      /* not asked until then, if others can be */
    char etags[KEYS][ETAG_MAX]; /* last seen of each key, "" for none */
    uint64_t values[KEYS];      /* that they belong to */
    pthread_t thread;
};

static atomic_bool actors_stop;
static long actors_rest; /* ms, from one request of a client to its next */
static atomic_ullong values_made; /* no two writes have one value */

/* Nanoseconds on the monotonic clock. */
static inline uint64_t now_ns(void) {
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* The text of a value: its number, and more or less behind it.  One in
   eight is of more than a packet. */
enum { VALUE_TEXT = 3100 };
static inline size_t value_text(uint64_t value, char *out) {
    int n = snprintf(out, VALUE_TEXT, "%llu.", (unsigned long long)value);
    size_t len = (size_t)n + (value % 8 == 0 ? 3000 : value % 32);

    memset(out + n, 'a' + (int)(value % 26), len - (size_t)n);
    out[len] = '\0';
    return len;
}

/* The number of a text that value_text() made, or 0. */
static inline uint64_t value_number(const char *text, size_t len) {
    uint64_t value = strtoull(text, NULL, 10);
    char want[VALUE_TEXT];

    return value_text(value, want) == len && memcmp(want, text, len) == 0
               ? value
               : 0;
}

/* Notes an answer that is wrong in itself; under the story's lock. */
static inline void story_wrong(struct story *s, const struct client *c,
                               const char *what) {
    if (s->wrong++ == 0)
        snprintf(s->error, sizeof s->error, "%s: %d from port %d: %.200s", what,
                 c->status, c->port, c->body != NULL ? c->body : "");
}

/* A client of a story, not yet connected. */
static inline void actor_make(struct actor *a, struct story *s, unsigned number,
                              uint64_t seed) {
    memset(a, 0, sizeof *a);
    a->story = s;
    a->number = number;
    a->random = (seed + number) * 0x9E3779B97F4A7C15u | 1;
    for (int i = 0; i < node_count; i++) {
        a->to[i] = client_make(nodes[i]->port);
        a->to[i].limit_ms = number % 2 ? HASTY_MS : PATIENT_MS;
    }
}

static inline void actor_end(struct actor *a) {
    for (int i = 0; i < node_count; i++)
        client_end(&a->to[i]);
}

/* An operation that is about to be asked. */
struct asked {
    struct history_op op;
    size_t index;
    char target[64], headers[64];
    const char *method;
};

/* Where a suite wants to know of them: a node did not take a connection (then
   the client is NULL), gave no answer or one of 500 and above to what it was
   asked at a time of now_ms().  Called by the clients' threads. */
static void (*actor_failed)(int node, const struct client *c,
                            const struct asked *q, long begun);

/* A connection to a node, or NULL when there is none to be had now.  One
   that the server has closed meanwhile is made anew. */
static inline struct client *actor_reach(struct actor *a, int node) {
    struct client *c = &a->to[node];
    long begun = now_ms();

    if (c->fd >= 0 && client_poll(c, POLLIN, 0))
        client_drop(c);
    if (c->fd >= 0 || client_connect(c))
        return c;
    if (actor_failed != NULL)
        actor_failed(node, NULL, NULL, begun);
    a->avoid[node] = now_ms() + 100;
    return NULL;
}

/* A connection to a random node of the cluster, rather one that was not in
   trouble; NULL when there is none. */
static inline struct client *actor_choose(struct actor *a) {
    int node = 0;

    for (int turn = 0; turn < 4; turn++) {
        node = (int)between(&a->random, 0, node_count - 1);
        if (a->avoid[node] <= now_ms() && !atomic_load(&outside[node]))
            break;
    }
    return atomic_load(&outside[node]) ? NULL : actor_reach(a, node);
}

/* The outcome of an operation that was asked, by the answer to it. */
static inline enum history_outcome outcome_of(const struct history_op *op,
                                              const struct client *c) {
    bool read = op->kind == HISTORY_READ;
    int s = c->status;

    if (s == 200 || s == 201 || s == 204 || s == 404 || s == 412)
        return HISTORY_OK;
    if (s == 503)
        return HISTORY_FAILED;
    return read ? HISTORY_FAILED : HISTORY_UNKNOWN;
}

/* What nothing allows an operation to be answered with, or NULL. */
static inline const char *answer_wrong(const struct history_op *op,
                                       const struct client *c, uint64_t value) {
    bool read = op->kind == HISTORY_READ, stale = op->stale;
    const char *body = c->body != NULL ? c->body : "";

    switch (c->status) {
    case 200:
        return !read ? "a write" : value == 0 ? "a value of nobody" : NULL;
    case 201:
        return op->kind != HISTORY_WRITE ? "not a write" : NULL;
    case 204:
        return read ? "a read" : NULL;
    case 404:
        return op->kind == HISTORY_WRITE ? "a write"
               : stale                   ? "stale, and absent"
                                         : NULL;
    case 412:
        return !op->conditional ? "no condition was made" : NULL;
    case 503:
        return strstr(body, "unknown") != NULL ? "503 means not applied" : NULL;
    case 504:
        return !read && strstr(body, "outcome unknown") == NULL
                   ? "does not say \"outcome unknown\""
                   : NULL;
    default:
        return c->status > 0 ? "not one of the answers" : NULL;
    }
}

/* Puts an operation's answer into the story, and the etag into the table
   of the client. */
static inline void actor_note(struct actor *a, struct asked *q,
                              const struct client *c) {
    struct history_op *op = &q->op;
    struct story *s = a->story;
    uint64_t value = op->value;
    const char *wrong;
    char text[ETAG_MAX] = "";

    if (c->status == 200 && op->kind == HISTORY_READ)
        value = value_number(c->body, c->body_len);
    if (op->kind == HISTORY_READ && c->status > 0)
        op->stale = client_header(c, "Estoraje-Stale", text, sizeof text);
    op->existed = c->status == 204;
    op->refused = c->status == 412;
    text[0] = '\0';
    if (c->status == 200 || c->status == 201 ||
        (c->status == 204 && op->kind == HISTORY_WRITE)) {
        client_header(c, "ETag", text, sizeof text);
        snprintf(a->etags[op->key], ETAG_MAX, "%s", text);
        a->values[op->key] = value;
    }
    wrong = answer_wrong(op, c, value);
    pthread_mutex_lock(&s->lock);
    if (wrong != NULL)
        story_wrong(s, c, wrong);
    snprintf(s->etags[q->index], ETAG_MAX, "%s", text);
    history_at(s->history, q->index)->stale = op->stale;
    history_at(s->history, q->index)->existed = op->existed;
    history_end(s->history, q->index, outcome_of(op, c), value, op->refused,
                now_ns());
    pthread_mutex_unlock(&s->lock);
}

/* Puts an operation that is about to be asked into the story. */
static inline void actor_begin(struct actor *a, struct asked *q) {
    struct story *s = a->story;

    pthread_mutex_lock(&s->lock);
    q->op.begin = now_ns();
    q->index = history_begin(s->history, &q->op);
    if (q->index >= s->etags_cap) {
        s->etags_cap = 2 * q->index + 4096;
        s->etags = realloc(s->etags, s->etags_cap * sizeof s->etags[0]);
        if (s->etags == NULL)
            abort();
    }
    s->etags[q->index][0] = '\0';
    pthread_mutex_unlock(&s->lock);
}

/* Asks one operation on an open connection, and records it. */
static inline void actor_ask(struct actor *a, struct asked *q,
                             struct client *c) {
    struct history_op *op = &q->op;
    char value[VALUE_TEXT] = "";
    bool write = op->kind == HISTORY_WRITE;
    size_t len = write ? value_text(op->value, value) : 0;
    int node = (int)(c - a->to);
    long begun = now_ms();

    op->client = a->number;
    snprintf(q->target, sizeof q->target, "/%s/%u/%u%s",
             mode_names[a->story->mode], a->story->number, op->key,
             op->consistent ? "?consistent" : "");
    actor_begin(a, q);
    client_ask(c, q->method, q->target, q->headers, write ? value : NULL, len);
    actor_note(a, q, c);
    if (c->status <= 0 || c->status >= 500) {
        if (actor_failed != NULL)
            actor_failed(node, c, q, begun);
        a->avoid[node] = now_ms() + (c->status <= 0 ? 1000 : 50);
        if (c->status > 0)
            pause_ms(5);
    }
}

/* Makes an operation conditional: on the value last seen of its key, or on
   there being none. */
static inline void condition_make(struct actor *a, struct asked *q,
                                  bool absent) {
    struct history_op *op = &q->op;

    op->conditional = op->consistent = true;
    if (absent) {
        snprintf(q->headers, sizeof q->headers, "If-None-Match: *\r\n");
    } else {
        op->expect = a->values[op->key];
        snprintf(q->headers, sizeof q->headers, "If-Match: %s\r\n",
                 a->etags[op->key]);
    }
}

/* Chooses an operation: half of them reads.  Some keys are asked for more
   often than others. */
static inline void actor_plan(struct actor *a, struct asked *q) {
    static const char *const methods[] = {"GET", "PUT", "DELETE"};
    struct history_op *op = &q->op;
    unsigned k = (unsigned)between(&a->random, 0, KEYS - 1);
    unsigned m = (unsigned)between(&a->random, 0, KEYS - 1);
    long dice = between(&a->random, 0, 99);

    memset(q, 0, sizeof *q);
    op->key = k < m ? k : m;
    op->kind = dice < 45   ? HISTORY_READ
               : dice < 88 ? HISTORY_WRITE
                           : HISTORY_DELETE;
    op->consistent =
        a->story->mode == CONSISTENT ||
        (a->story->mode == MIXED && between(&a->random, 0, 1) == 1);
    if (op->kind != HISTORY_READ && op->consistent) {
        dice = between(&a->random, 0, 99);
        if (dice < 55 && a->etags[op->key][0] != '\0')
            condition_make(a, q, false);
        else if (dice >= 85 && op->kind == HISTORY_WRITE)
            condition_make(a, q, true);
    }
    if (op->kind == HISTORY_WRITE)
        op->value = atomic_fetch_add(&values_made, 1) + 1;
    q->method = methods[op->kind];
    if (op->kind == HISTORY_WRITE && between(&a->random, 0, 3) == 0)
        q->method = "POST";
}

static inline void *actor_main(void *arg) {
    struct actor *a = arg;

    while (!atomic_load(&actors_stop)) {
        struct client *c = actor_choose(a);
        struct asked q;

        if (c == NULL) {
            pause_ms(2);
            continue;
        }
        actor_plan(a, &q);
        actor_ask(a, &q, c);
        if (actors_rest > 0)
            pause_ms(actors_rest);
    }
    return NULL;
}

/* ---- Stories --------------------------------------------------------- */

static struct story stories[MODES];
static struct actor actors[MODES * ACTORS];
static size_t actors_running;

/* Begins a story of each mode, and its clients. */
static inline void stories_begin(uint64_t seed) {
    static unsigned number;

    number++;
    atomic_store(&actors_stop, false);
    for (unsigned i = 0; i < MODES * ACTORS; i++) {
        struct story *s = &stories[i % MODES];

        if (i < MODES) {
            memset(s, 0, sizeof *s);
            s->mode = (enum mode)i;
            s->number = number;
            s->history = history_new();
            pthread_mutex_init(&s->lock, NULL);
        }
        actor_make(&actors[i], s, i, seed);
    }
    for (; actors_running < MODES * ACTORS; actors_running++)
        check(pthread_create(&actors[actors_running].thread, NULL, actor_main,
                             &actors[actors_running]) == 0,
              "no thread");
}

/* Ends the clients, once what they have asked is answered; a teardown. */
static inline int actors_join(void **state) {
    (void)state;
    atomic_store(&actors_stop, true);
    cluster_continue();
    while (actors_running > 0)
        pthread_join(actors[--actors_running].thread, NULL);
    return 0;
}

/* Asks a node for a key, and says what it holds: 0 when it is absent. */
static inline uint64_t story_read(struct actor *a, int node, unsigned key,
                                  bool consistent) {
    struct asked q = {
        .op = {.kind = HISTORY_READ, .key = key, .consistent = consistent},
        .method = "GET"};
    struct client *c = actor_reach(a, node);

    check(c != NULL, "cannot connect to %s", nodes[node]->name);
    actor_ask(a, &q, c);
    check(c->status == 200 || c->status == 404, "%s at %s: %d %s", q.target,
          nodes[node]->name, c->status, c->body);
    return history_at(a->story->history, q.index)->value;
}

/* Reads all keys at all nodes until these agree about each; with what the
   majority says, where the story is not a plain one. */
static inline void story_read_back(struct story *s) {
    struct actor *a = malloc(sizeof *a);
    long until = now_ms() + 2 * LIMIT_MS;

    check(a != NULL, "no memory");
    actor_make(a, s, MODES * ACTORS + s->mode, 1);
    for (int i = 0; i < node_count; i++)
        a->to[i].limit_ms = PATIENT_MS;
    for (unsigned key = 0; key < KEYS; key++) {
        uint64_t first, other;
        bool same;

        do {
            int i = 0;

            while (atomic_load(&outside[i]))
                i++;
            same = true;
            first = story_read(a, i, key, s->mode != PLAIN);
            for (; i < node_count; i++) {
                if (atomic_load(&outside[i]))
                    continue;
                other = story_read(a, i, key, s->mode == CONSISTENT);
                same = same && other == first;
            }
            check(same || now_ms() < until, "%s: the nodes differ about %u",
                  mode_names[s->mode], key);
        } while (!same);
    }
    actor_end(a);
    free(a);
}

/* What came with an etag, for the check of all of them. */
struct tagged {
    const char *etag;
    uint64_t value;
};

static inline int tagged_order(const void *a, const void *b) {
    const struct tagged *x = a, *y = b;
    int by = strcmp(x->etag, y->etag);

    return by != 0 ? by : (x->value > y->value) - (x->value < y->value);
}

static inline int tagged_order_value(const void *a, const void *b) {
    const struct tagged *x = a, *y = b;
    int by = (x->value > y->value) - (x->value < y->value);

    return by != 0 ? by : strcmp(x->etag, y->etag);
}

/* Checks that each value has one etag and each etag one value, wherever it
   was read and however often it was written again. */
static inline void story_check_etags(struct story *s) {
    size_t count = history_count(s->history), n = 0;
    struct tagged *all = malloc((count + 1) * sizeof *all);

    check(all != NULL, "no memory");
    for (size_t i = 0; i < count; i++)
        if (s->etags[i][0] != '\0')
            all[n++] =
                (struct tagged){s->etags[i], history_at(s->history, i)->value};
    qsort(all, n, sizeof *all, tagged_order);
    for (size_t i = 1; i < n; i++)
        check(strcmp(all[i].etag, all[i - 1].etag) != 0 ||
                  all[i].value == all[i - 1].value,
              "%s: etag %s has values %llu and %llu", mode_names[s->mode],
              all[i].etag, (unsigned long long)all[i - 1].value,
              (unsigned long long)all[i].value);
    qsort(all, n, sizeof *all, tagged_order_value);
    for (size_t i = 1; i < n; i++)
        check(all[i].value != all[i - 1].value ||
                  strcmp(all[i].etag, all[i - 1].etag) == 0,
              "%s: value %llu has etags %s and %s", mode_names[s->mode],
              (unsigned long long)all[i].value, all[i - 1].etag, all[i].etag);
    free(all);
}

/* Says what a story was made of. */
static inline void story_sum(struct story *s) {
    size_t outcomes[4] = {0}, count = history_count(s->history), refused = 0;
    size_t stale = 0;

    for (size_t i = 0; i < count; i++) {
        const struct history_op *op = history_at(s->history, i);

        outcomes[op->outcome]++;
        refused += op->refused;
        stale += op->stale;
    }
    part("%s: %zu operations; %zu failed, %zu unknown, %zu refused, "
         "%zu stale",
         mode_names[s->mode], count, outcomes[HISTORY_FAILED],
         outcomes[HISTORY_UNKNOWN], refused, stale);
}

/* Checks a story that has ended. */
static inline void story_check(struct story *s) {
    const char *wrong;

    story_sum(s);
    check(s->wrong == 0, "%s: %zu wrong answers, first: %s",
          mode_names[s->mode], s->wrong, s->error);
    wrong = s->mode == CONSISTENT
                ? history_check_linear(s->history)
                : history_check_plain(s->history, (uint64_t)BOUND_MS * 1000000);
    if (wrong != NULL && strncmp(wrong, "key ", 4) == 0)
        history_print(s->history, (unsigned)strtoul(wrong + 4, NULL, 10));
    check(wrong == NULL, "%s: %s", mode_names[s->mode], wrong);
    story_check_etags(s);
    history_free(s->history);
    free(s->etags);
    pthread_mutex_destroy(&s->lock);
}

/* ---- What the logs hold ---------------------------------------------- */

enum { LOG_EMPTY = 64 }; /* the size of a log with no record */

/* A record of a key in one node's log. */
struct held {
    char key[48];
    int node;
    unsigned long long version;
    bool put;
};

static struct {
    struct held *all;
    size_t count, cap;
} helds;

/* Takes a line of -dump: offset, ok or bad, version, time, put or delete,
   key, size. false: it is bad, and says of what. */
static inline bool held_take(char *line, int node, char *error) {
    struct held h = {.node = node};
    char *field[7] = {line};

    for (int i = 1; i < 7; i++) {
        char *tab = strchr(field[i - 1], '\t');

        check(tab != NULL, "a line of -dump: %s", line);
        *tab = '\0';
        field[i] = tab + 1;
    }
    if (strcmp(field[1], "ok") != 0) {
        snprintf(error, 200, "%.100s of %s is %s", field[5], nodes[node]->name,
                 field[1]);
        return false;
    }
    snprintf(h.key, sizeof h.key, "%s", field[5]);
    h.version = strtoull(field[2], NULL, 16);
    h.put = strcmp(field[4], "put") == 0;
    if (helds.count == helds.cap) {
        helds.cap = 2 * helds.cap + 4096;
        helds.all = realloc(helds.all, helds.cap * sizeof helds.all[0]);
        if (helds.all == NULL)
            abort();
    }
    helds.all[helds.count++] = h;
    return true;
}

/* By key, the newest first; what is of one version together. */
static inline int held_order(const void *a, const void *b) {
    const struct held *x = a, *y = b;
    int by = strcmp(x->key, y->key);

    if (by != 0)
        return by;
    if (x->version != y->version)
        return x->version < y->version ? 1 : -1;
    return x->node - y->node;
}

/* Reads the logs of all nodes of the cluster. false, and what is bad: a record
   that was being written, if it is not so the next time. */
static inline bool helds_read(char *error) {
    bool good = true;

    helds.count = 0;
    for (int i = 0; i < node_count; i++)
        for (int k = 0; k < PARTITIONS; k++) {
            struct output o = {0};
            char path[MAX_PATH + 16], *next;

            snprintf(path, sizeof path, "%s/%03d.log", nodes[i]->dir, k);
            if (atomic_load(&outside[i]) || file_size(path) <= LOG_EMPTY)
                continue;
            run(&o, "%s -dump %s", the_run.exe, path);
            check(o.code == 0, "-dump %s: %d %s", path, o.code, o.err);
            for (char *line = o.out; *line != '\0'; line = next) {
                next = line + strcspn(line, "\n");
                if (*next != '\0')
                    *next++ = '\0';
                good = held_take(line, i, error) && good;
            }
            output_free(&o);
        }
    qsort(helds.all, helds.count, sizeof helds.all[0], held_order);
    return good;
}

/* How many bits are set. */
static inline int bits(unsigned x) {
    int n = 0;

    for (; x != 0; x &= x - 1)
        n++;
    return n;
}

/* Whether each key's newest record is on all of its owners, or a tombstone
   that is newer than what any other has: if not, names one. */
static inline bool helds_agree(char *error) {
    for (size_t i = 0, next; i < helds.count; i = next) {
        const struct held *newest = &helds.all[i];
        unsigned have = 0, had = 0;

        for (next = i; next < helds.count &&
                       strcmp(newest->key, helds.all[next].key) == 0;
             next++) {
            unsigned bit = 1u << helds.all[next].node;

            had |= bit;
            have |= helds.all[next].version == newest->version ? bit : 0;
        }
        if (have == had && (!newest->put || bits(have) == REPLICAS))
            continue;
        snprintf(error, 200, "%s version %llu (%s): nodes %x hold it, of %x",
                 newest->key, newest->version, newest->put ? "put" : "delete",
                 have, had);
        return false;
    }
    return true;
}

/* Waits until the logs of all owners hold the same. */
static inline void replicas_check(void) {
    long until = now_ms() + 2 * LIMIT_MS;
    char error[200] = "";

    while (!helds_read(error) || !helds_agree(error))
        check(now_ms() < until, "the replicas differ: %s", error);
    part("%zu records in the logs, and the owners agree", helds.count);
}

#endif
