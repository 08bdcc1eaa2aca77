/*
 * sim.c - tests of the promises of a cluster, on a simulated network.
 *
 *     make test-sim
 *
 * The program is included, and what it asks of the system goes through this
 * file: a whole cluster is one process with one thread. A "history" is what a
 * few clients see of it: some tens of operations on a few keys, while messages
 * between the nodes are delayed, lost, doubled and overtaken, while nodes are
 * killed, lose their power, stand still and start again, and while their clocks
 * differ. Then the faults end and the cluster comes to rest. What the clients
 * saw must be what the program promises, and all replicas must be equal.
 *
 * Time is simulated, too. A node's threads are coroutines, which give way where
 * the program would wait, and now and then where it takes a lock, writes or
 * sends. What is to happen stands in one queue, and the clock jumps from one
 * event to the next. So a history takes about a millisecond, and all of it
 * follows from its seed.
 *
 * Environment: SEED=n repeats the history of a run that printed it, TRACE=1
 * tells what happens in it, HISTORIES=n asks for so many, TORTURE=1 for ten
 * million; DARK=1 has all of them about losses of power under -sync always,
 * CHANGES=1 has the ring change in all, and with POINTED=1 all of these are
 * about one key that gets other owners. MISSED=1 is about repair, LAGS=1 about
 * answers that come late, STALE=1, of pointed changes, about an owner that goes
 * by the ring before, AWAY=1 about one that is away while keys are deleted, and
 * FORCED=1 about a majority of the owners that is lost.
 *
 * Chapters: Random numbers and memory - Time - Files - The network - The
 * system as the program sees it - A node - etcd - Clients - Faults - A history.
 */
#undef _FORTIFY_SOURCE /* it takes a jump between stacks for an error */

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "../ring.h"
#include "history.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define FIBERS 1

/* Less of what takes time: a process of this kind allocates very much. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) {
    return "malloc_context_size=3:quarantine_size_mb=4:max_free_fill_size=0:"
           "use_sigaltstack=0:detect_leaks=0";
}
#else
#define FIBERS 0
#endif

/* Partitions that there may be: each start looks for the log of every one. And
   members: each view has room for all. */
#undef RING_PARTITIONS_MAX
#define RING_PARTITIONS_MAX 64
#undef RING_MEMBERS_MAX
#define RING_MEMBERS_MAX 64

#define NODES      5
#define PARTS      4
#define HOST_FILES 24
#define NAME_BYTES 16
#define SECOND     UINT64_C(1000000)

/* ------------------------------------------- Random numbers and memory */

/* Bytes that grow. */
struct bytes {
    uint8_t *p;
    size_t n, cap;
};

static uint64_t random_state;

/* The next random number (splitmix64, Sebastiano Vigna). */
static uint64_t random_next(void) {
    uint64_t z = random_state += UINT64_C(0x9E3779B97F4A7C15);

    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

/* A random number below n. */
static uint64_t below(uint64_t n) {
    return (random_next() >> 32) * n >> 32;
}

/* A random number from a to b. */
static uint64_t between(uint64_t a, uint64_t b) {
    return a + below(b - a + 1);
}

/* True in one of n cases; never if n is 0. */
static bool once_in(uint64_t n) {
    return n > 0 && below(n) == 0;
}

/* Ends the test program for a failure of its own. */
static void must(bool good, const char *what) {
    if (!good) {
        fprintf(stderr, "sim: %s\n", what);
        abort();
    }
}

static void bytes_add(struct bytes *b, const void *p, size_t n) {
    if (b->cap - b->n < n) {
        b->cap = 2 * b->cap + n + 256;
        b->p = realloc(b->p, b->cap);
        must(b->p != NULL, "memory");
    }
    if (n > 0)
        memcpy(b->p + b->n, p, n);
    b->n += n;
}

static void bytes_drop(struct bytes *b, size_t n) {
    b->n -= n;
    if (b->n > 0)
        memmove(b->p, b->p + n, b->n);
}

/* ------------------------------------------------------------------ Time
 *
 * The queue of events, and the coroutines. An event is a function with a thing
 * and the thing's number of its life: if that has changed, it is void. */

struct event {
    uint64_t at, order;
    void (*fn)(void *, uint64_t);
    void *thing;
    uint64_t life;
};

struct host;

/* What a coroutine is for: how long it may rest depends on that. */
enum duty {
    DUTY_START,
    DUTY_WORKER,
    DUTY_POOL,
    DUTY_HOUSE,
    DUTY_CARE,
    DUTY_REPAIR,
    DUTY_ETCD
};

#define STACK (256u << 10)
#define TASKS 48

struct task {
    uint64_t life;     /* changes with each wait, and when it ends */
    struct host *host; /* NULL: it is free */
    enum duty duty;
    void *(*run)(void *);
    void *arg;
    ucontext_t entry;
    jmp_buf at;
    bool begun;
    uint8_t *stack;
    void *fake;         /* AddressSanitizer's */
    struct pollfd *fds; /* that it waits for; NULL: none */
    nfds_t count;
    bool roused;         /* its end of waiting is in the queue already */
    struct inode *inode; /* that it syncs */
};

/* A machine, and the process on it. */
struct inode;
struct held;
struct host {
    unsigned number; /* from 1, as of the member */
    bool up;
    uint64_t life;
    uint64_t frozen_until;
    int64_t skew; /* of its clock, us */
    struct node *node;
    struct inode *files[HOST_FILES];
    unsigned file_count;
    char marks[2][64]; /* of this boot, and of the one before; "": none */
    struct held *held;
    unsigned backlog[3]; /* connections not accepted yet, by role */
    struct sock *socks;
    bool unsafe; /* it lost its power, and has not been repaired since */
    bool dark;   /* the same, and no process has made that good since */
    /* Where the ring changes. */
    bool add;            /* it starts with -add */
    bool wanted;         /* it is to be a member */
    bool off;            /* it is not to be started again */
    uint64_t away_until; /* it cannot reach etcd before */
    uint64_t lease, lease_until;
};

static struct {
    uint64_t now; /* us */
    uint64_t order;
    struct event *queue;
    size_t queued, queue_cap;
    struct task *task; /* that runs; NULL: none */
    jmp_buf main;
    const void *main_stack;
    size_t main_stack_size;
    void *main_fake;
    struct host hosts[NODES];
    unsigned host_count;
    bool trace;
    uint64_t seed;
    uint64_t ops; /* of the whole run */
} world;

static struct task tasks[TASKS];

/* Says what happens, if someone wants to know. */
static void __attribute__((format(printf, 1, 2)))
trace(const char *format, ...) {
    va_list args;

    if (!world.trace)
        return;
    fprintf(stderr, "%10.6f ", (double)world.now / 1e6);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n");
}

static bool event_before(const struct event *a, const struct event *b) {
    return a->at < b->at || (a->at == b->at && a->order < b->order);
}

/* Puts an event into the queue, which is a heap. */
static void event_add(uint64_t at, void (*fn)(void *, uint64_t), void *thing,
                      uint64_t life) {
    struct event e = {at, world.order++, fn, thing, life};
    size_t i = world.queued++;

    if (world.queued > world.queue_cap) {
        world.queue_cap = 2 * world.queue_cap + 64;
        world.queue =
            realloc(world.queue, world.queue_cap * sizeof *world.queue);
        must(world.queue != NULL, "memory");
    }
    for (; i > 0 && event_before(&e, &world.queue[(i - 1) / 2]);
         i = (i - 1) / 2)
        world.queue[i] = world.queue[(i - 1) / 2];
    world.queue[i] = e;
}

/* Takes the next event from the queue. */
static struct event event_take(void) {
    struct event first = world.queue[0], last = world.queue[--world.queued];
    size_t i = 0, child;

    while ((child = 2 * i + 1) < world.queued) {
        if (child + 1 < world.queued &&
            event_before(&world.queue[child + 1], &world.queue[child]))
            child++;
        if (!event_before(&world.queue[child], &last))
            break;
        world.queue[i] = world.queue[child];
        i = child;
    }
    world.queue[i] = last;
    return first;
}

/* Lets happen what is due until a time, or until there is nothing any more. */
static void time_pass(uint64_t until) {
    while (world.queued > 0 && world.queue[0].at <= until) {
        struct event e = event_take();

        world.now = e.at;
        e.fn(e.thing, e.life);
    }
    world.now = until;
}

/* Goes from a coroutine to the loop of events, and comes back from there. */
static void task_leave(struct task *t) {
    if (setjmp(t->at) == 0) {
#if FIBERS
        __sanitizer_start_switch_fiber(&t->fake, world.main_stack,
                                       world.main_stack_size);
#endif
        longjmp(world.main, 1);
    }
#if FIBERS
    __sanitizer_finish_switch_fiber(t->fake, &world.main_stack,
                                    &world.main_stack_size);
#endif
}

static void inode_let(struct inode *f);

/* The task is over: what it waited for does not matter any more. */
static void task_free(struct task *t) {
    if (t->inode != NULL)
        inode_let(t->inode);
    t->inode = NULL;
    t->life++;
    t->host = NULL;
}

/* Where a coroutine begins. */
static void task_main(void) {
    struct task *t = world.task;

#if FIBERS
    __sanitizer_finish_switch_fiber(NULL, &world.main_stack,
                                    &world.main_stack_size);
#endif
    t->run(t->arg);
    task_free(t);
    task_leave(t);
}

static bool stop_asked(void);
static void host_quit(struct host *h, int code);

/* An event: a coroutine goes on, unless its machine stands still. */
static void task_run(void *thing, uint64_t life) {
    struct task *volatile t = thing;
    struct host *volatile h;

    if (t->life != life)
        return;
    if (t->host->frozen_until > world.now) {
        event_add(world.now + 10000 + below(100), task_run, t, life);
        return;
    }
    t->life++;
    world.task = t;
    h = t->host;
#if FIBERS
    __sanitizer_start_switch_fiber(&world.main_fake, t->stack, STACK);
#endif
    if (setjmp(world.main) == 0) {
        if (t->begun)
            longjmp(t->at, 1);
        t->begun = true;
        setcontext(&t->entry);
    }
#if FIBERS
    __sanitizer_finish_switch_fiber(world.main_fake, NULL, NULL);
#endif
    world.task = NULL;
    if (stop_asked())
        host_quit(h, 1);
}

/* Makes the context in which a coroutine begins. */
static void task_prepare(struct task *t) {
    getcontext(&t->entry);
    t->entry.uc_stack.ss_sp = t->stack;
    t->entry.uc_stack.ss_size = STACK;
    t->entry.uc_link = NULL;
    makecontext(&t->entry, task_main, 0);
}

/* Makes a coroutine of a host, which begins soon. */
static void task_new(struct host *host, enum duty duty, void *(*run)(void *),
                     void *arg) {
    struct task *t = tasks;

    while (t->host != NULL)
        must(++t < tasks + TASKS, "too many threads");
    if (t->stack == NULL) {
        t->stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | 0x20 /* MAP_ANONYMOUS */, -1, 0);
        must(t->stack != MAP_FAILED, "memory");
    }
#if FIBERS
    __asan_unpoison_memory_region(t->stack, STACK);
#endif
    t->host = host;
    t->duty = duty;
    t->run = run;
    t->arg = arg;
    t->begun = false;
    t->fds = NULL;
    t->fake = NULL;
    task_prepare(t);
    event_add(world.now + below(50), task_run, t, t->life);
}

/* The coroutine that runs gives way for so many us. */
static void task_rest(uint64_t us) {
    struct task *t = world.task;

    event_add(world.now + us, task_run, t, t->life);
    task_leave(t);
}

/* A place where threads may be interrupted for long enough to matter. */
static void task_maybe_rest(uint64_t rarity) {
    if (world.task != NULL && once_in(rarity))
        task_rest(below(once_in(8) ? 20000 : 500));
}

/* ----------------------------------------------------------------- Files
 *
 * A file's content is durable as of its last sync. Names are durable at once:
 * faults.c has what can go wrong with these. */

struct inode {
    char name[NAME_BYTES]; /* "": removed */
    struct bytes now, safe;
    size_t dirty;  /* what lies before it is the same in both */
    unsigned refs; /* of the name and of descriptors */
    off_t reserved;
};

static struct inode *file_find(struct host *h, const char *name) {
    for (unsigned i = 0; i < h->file_count; i++)
        if (strcmp(h->files[i]->name, name) == 0)
            return h->files[i];
    return NULL;
}

static void inode_let(struct inode *f) {
    if (--f->refs > 0)
        return;
    free(f->now.p);
    free(f->safe.p);
    free(f);
}

static struct inode *file_make(struct host *h, const char *name) {
    struct inode *f = calloc(1, sizeof *f);

    must(f != NULL && h->file_count < HOST_FILES && strlen(name) < NAME_BYTES,
         "files");
    strcpy(f->name, name);
    f->refs = 1;
    h->files[h->file_count++] = f;
    return f;
}

static void file_remove(struct host *h, struct inode *f) {
    unsigned i = 0;

    while (h->files[i] != f)
        i++;
    h->files[i] = h->files[--h->file_count];
    f->name[0] = '\0';
    inode_let(f);
}

/* What there is of a file up to an end is durable. */
static void file_sync(struct inode *f, size_t end) {
    size_t from = f->dirty < f->safe.n ? f->dirty : f->safe.n;

    end = end < f->now.n ? end : f->now.n;
    from = from < end ? from : end;
    f->safe.n = from;
    bytes_add(&f->safe, f->now.p + from, end - from);
    f->dirty = end;
}

/* The power is lost: what was not synced is gone, or of what was appended some
   sectors are there. */
static void files_lose(struct host *h) {
    for (unsigned i = 0; i < h->file_count; i++) {
        struct inode *f = h->files[i];
        size_t n = f->safe.n, most = f->now.n;

        if (f->dirty >= n && most > n && once_in(2)) {
            n = (n + below(most - n + 1)) / 512 * 512;
            n = n > f->safe.n ? n : f->safe.n;
            f->now.n = n;
        } else {
            f->now.n = 0;
            bytes_add(&f->now, f->safe.p, n);
        }
        f->dirty = f->safe.n < f->dirty ? f->safe.n : f->dirty;
        file_sync(f, n);
    }
}

/* ----------------------------------------------------------- The network
 *
 * Nodes send each other requests over sockets that they keep open. What a node
 * sends is cut into requests, and each travels by itself as a message: it may
 * take long, be lost, or be delivered a second time later. At the other end it
 * comes in on a connection that has no other one at work. Its answer travels
 * likewise, and is given to the node that asked in the order of its requests.
 * Where a request or its answer was lost the connection breaks sooner or later.
 */

enum role { ROLE_LINK, ROLE_PEER, ROLE_CLIENT };

struct client;

struct sock {
    bool used;
    struct sock *next, **before; /* of the host */
    uint64_t life;
    struct host *host; /* whose process has it */
    enum role role;
    bool accepted, eof, broken;
    bool gapped; /* an answer will never come: it breaks sooner or later */
    struct bytes in, out;
    unsigned with; /* number of the node at the other end */
    /* A link's. */
    uint64_t sent, answered; /* requests and answers so far */
    bool watch;              /* of etcd */
    struct message *answers; /* that came too early */
    /* Of a connection that came in. */
    struct message *message; /* at work */
    struct client *client;
};

struct message {
    struct message *next; /* free, or an answer that came too early */
    struct bytes bytes;
    unsigned from, to;
    struct sock *link; /* where its answer belongs */
    uint64_t link_life, number;
    bool silent; /* its answer belongs nowhere */
};

#define SOCKS 1024

static struct sock socks[SOCKS];
static struct message *free_messages;
static uint64_t last_arrival; /* of all that were sent under faults */
static unsigned messages_under_way;

/* How the network is: odds are once in so many, 0 is never. */
static struct {
    uint64_t lost, doubled, slow, very_slow;
    uint64_t very_slow_us, doubled_us;
    uint64_t late, late_us; /* promises, and what was promised */
    uint64_t lag, lag_us;   /* answers */
    uint64_t etcd_lost, etcd_slow;
    bool calm;      /* nothing goes wrong any more */
    bool slow_disk; /* each sync takes a while */
    bool brisk;     /* a link breaks as soon as something of it is lost */
    bool cut[NODES + 1][NODES + 1];
    unsigned side; /* a bit for each node that reaches those only; 0: all do */
} weather;

static void host_poke(struct host *h);
static void client_heard(struct client *c, struct sock *s);
static void client_lost(struct client *c);

static struct host *host_of(unsigned number) {
    return &world.hosts[number - 1];
}

static struct sock *sock_new(struct host *h, enum role role, unsigned with) {
    static unsigned from;
    struct sock *s;
    unsigned tries = 0;

    do {
        s = &socks[from++ % SOCKS];
        must(tries++ < SOCKS, "too many sockets");
    } while (s->used);
    s->used = true;
    s->host = h;
    s->role = role;
    s->with = with;
    s->accepted = role == ROLE_LINK;
    h->backlog[role] += !s->accepted;
    s->next = h->socks;
    s->before = &h->socks;
    if (s->next != NULL)
        s->next->before = &s->next;
    h->socks = s;
    s->eof = s->broken = s->gapped = s->watch = false;
    s->in.n = s->out.n = 0;
    s->sent = s->answered = 0;
    s->answers = NULL;
    s->message = NULL;
    s->client = NULL;
    return s;
}

static struct message *message_new(unsigned from, unsigned to, const void *p,
                                   size_t n) {
    struct message *m = free_messages;

    if (m != NULL)
        free_messages = m->next;
    else
        m = calloc(1, sizeof *m);
    must(m != NULL, "memory");
    m->next = NULL;
    m->from = from;
    m->to = to;
    m->bytes.n = 0;
    m->silent = false;
    m->link = NULL;
    bytes_add(&m->bytes, p, n);
    messages_under_way++;
    return m;
}

static void message_free(struct message *m) {
    m->next = free_messages;
    free_messages = m;
    messages_under_way--;
}

/* An event: a connection is broken, as the node that asked sees it. */
static void link_break(void *thing, uint64_t life) {
    struct sock *s = thing;

    if (!s->used || s->life != life)
        return;
    s->broken = true;
    host_poke(s->host);
}

/* The answer to a message will never come. soon: the other end is gone, and
   its machine says so. */
static void message_lost(struct message *m, bool soon) {
    uint64_t most = soon || weather.brisk || once_in(2) ? 2000
                    : once_in(8)                        ? 20 * SECOND
                                                        : 3 * SECOND;

    if (m->link != NULL && !m->silent) {
        m->link->gapped = m->link->gapped || m->link->life == m->link_life;
        event_add(world.now + below(most), link_break, m->link, m->link_life);
    }
    message_free(m);
}

/* The path of a message, for a trace. */
static const char *message_path(const struct message *m) {
    static char text[40];

    snprintf(text, sizeof text, "%.*s", m->bytes.n > 30 ? 30 : (int)m->bytes.n,
             (const char *)m->bytes.p);
    text[strcspn(text, "\r\n")] = '\0';
    return text;
}

/* How long a message takes, us. */
static uint64_t message_delay(const struct message *m) {
    bool promised =
        m->bytes.n > 21 && memcmp(m->bytes.p, "POST /_peer/promised", 20) == 0;

    if (promised && once_in(weather.late))
        return below(weather.late_us);
    if (once_in(weather.very_slow))
        return below(weather.very_slow_us);
    return once_in(weather.slow) ? below(30000) : between(50, 300);
}

/* The size of the request or answer that is at the begin of some bytes, 0: it
   is not whole. *closes: no other one comes after it. */
static size_t http_size(const struct bytes *b, bool *closes) {
    static const char field[] = "Content-Length: ";
    size_t end = 0, size = 0;

    for (size_t i = 3; i < b->n && end == 0; i++)
        if (b->p[i] == '\n' && memcmp(b->p + i - 3, "\r\n\r", 3) == 0)
            end = i + 1;
    for (size_t i = 0; i + sizeof field - 1 < end; i++)
        if (b->p[i] == 'C' && memcmp(b->p + i, field, sizeof field - 1) == 0)
            for (i += sizeof field - 1; b->p[i] >= '0' && b->p[i] <= '9'; i++)
                size = size * 10 + b->p[i] - '0';
        else if (b->p[i] == 'C' &&
                 memcmp(b->p + i, "Connection: close", 17) == 0)
            *closes = true;
    return end > 0 && b->n - end >= size ? end + size : 0;
}

/* An event: an answer arrives. */
static void answer_arrive(void *thing, uint64_t life) {
    struct message *m = thing, **at;
    struct sock *s = m->link;

    (void)life;
    if (s == NULL || m->silent || !s->used || s->life != m->link_life ||
        s->broken) {
        message_free(m);
        return;
    }
    for (at = &s->answers; *at != NULL && (*at)->number < m->number;
         at = &(*at)->next)
        ;
    m->next = *at;
    *at = m;
    while ((m = s->answers) != NULL && m->number == s->answered) {
        s->answers = m->next;
        s->answered++;
        bytes_add(&s->in, m->bytes.p, m->bytes.n);
        message_free(m);
    }
    host_poke(s->host);
}

/* An event: a message arrives. */
static void message_arrive(void *thing, uint64_t life) {
    struct message *m = thing;
    struct host *h = host_of(m->to);
    struct sock *s = NULL;

    (void)life;
    if (weather.cut[m->from][m->to]) {
        message_lost(m, false);
        return;
    }
    if (!h->up) {
        message_lost(m, true);
        return;
    }
    trace("%u -> %u%s %s", m->from, m->to, m->silent ? " again" : "",
          message_path(m));
    s = h->socks;
    while (s != NULL && (s->role != ROLE_PEER || s->with != m->from ||
                         s->message != NULL || s->eof))
        s = s->next;
    if (s == NULL)
        s = sock_new(h, ROLE_PEER, m->from);
    s->message = m;
    bytes_add(&s->in, m->bytes.p, m->bytes.n);
    host_poke(h);
}

/* A message will be there in so many us. */
static void message_under_way(struct message *m,
                              void (*arrive)(void *, uint64_t), uint64_t us) {
    uint64_t at = world.now + us;

    event_add(at, arrive, m, 0);
    last_arrival = at > last_arrival ? at : last_arrival;
}

/* A request sets out. */
static void message_send(struct sock *link, const void *p, size_t n) {
    struct message *m = message_new(link->host->number, link->with, p, n);

    m->link = link;
    m->link_life = link->life;
    m->number = link->sent++;
    if (once_in(weather.doubled) &&
        memcmp(p, "POST /_peer/consistent", 22) != 0) {
        struct message *copy = message_new(m->from, m->to, p, n);

        copy->silent = true;
        message_under_way(copy, message_arrive, below(weather.doubled_us));
    }
    if (once_in(weather.lost)) {
        trace("%u -> %u lost %s", m->from, m->to, message_path(m));
        message_lost(m, false);
    } else {
        message_under_way(m, message_arrive, message_delay(m));
    }
}

static void etcd_send(struct sock *link, const void *p, size_t n);

/* A node has sent bytes over a socket. */
static void sock_sent(struct sock *s) {
    bool closes = false;
    size_t n;

    while ((n = http_size(&s->out, &closes)) > 0) {
        if (s->role == ROLE_LINK && s->with == 0) {
            etcd_send(s, s->out.p, n);
        } else if (s->role == ROLE_LINK) {
            message_send(s, s->out.p, n);
        } else if (s->role == ROLE_CLIENT) {
            if (s->client != NULL)
                client_heard(s->client, s);
            closes = true;
        } else if (s->message != NULL) {
            struct message *m = s->message;

            s->message = NULL;
            m->bytes.n = 0;
            bytes_add(&m->bytes, s->out.p, n);
            trace("%u <- %u%s %s", m->from, m->to, m->silent ? " again" : "",
                  message_path(m));
            if (once_in(weather.lost) || weather.cut[m->to][m->from])
                message_lost(m, false);
            else
                message_under_way(m, answer_arrive,
                                  once_in(weather.lag) ? below(weather.lag_us)
                                                       : message_delay(m));
        }
        bytes_drop(&s->out, n);
        if (closes)
            s->eof = true;
    }
}

/* A node has closed a socket, or is no more. silent: it cannot tell. */
static void sock_close(struct sock *s, bool silent) {
    struct message *m;

    if (s->role == ROLE_CLIENT && s->client != NULL)
        client_lost(s->client);
    if (s->message != NULL)
        message_lost(s->message, !silent);
    while ((m = s->answers) != NULL) {
        s->answers = m->next;
        message_free(m);
    }
    s->host->backlog[s->role] -= !s->accepted;
    *s->before = s->next;
    if (s->next != NULL)
        s->next->before = s->before;
    s->used = false;
    s->life++;
}

/* ---------------------------------------- The system as the program sees it
 *
 * Descriptors are numbers of this table, for all hosts. */

enum thing {
    FREE,
    DIRECTORY,
    RANDOM,
    MARK,
    INODE,
    PIPE_OUT,
    PIPE_IN,
    LISTENER,
    SOCKET
};

struct pipe {
    struct bytes bytes;
    unsigned refs;
};

#define FDS 2048

static struct descriptor {
    enum thing thing;
    struct host *host;
    struct inode *inode;
    struct pipe *pipe;
    struct sock *sock;
    enum role role; /* of those that come in at a listener */
    bool trash;     /* a directory: not that of the data */
} descriptors[FDS];

static int fd_new(enum thing thing) {
    static int from;

    for (int tries = 0; tries < FDS; tries++) {
        int fd = from++ % FDS;

        if (fd < 3 || descriptors[fd].thing != FREE)
            continue;
        descriptors[fd] =
            (struct descriptor){.thing = thing, .host = world.task->host};
        return fd;
    }
    must(false, "too many descriptors");
    return -1;
}

static struct descriptor *fd_of(int fd) {
    must(fd >= 0 && fd < FDS && descriptors[fd].thing != FREE,
         "a bad descriptor");
    return &descriptors[fd];
}

static void fd_close(int fd, bool silent) {
    struct descriptor *d = fd_of(fd);

    if (d->thing == INODE)
        inode_let(d->inode);
    if ((d->thing == PIPE_IN || d->thing == PIPE_OUT) && --d->pipe->refs == 0) {
        free(d->pipe->bytes.p);
        free(d->pipe);
    }
    if (d->thing == SOCKET)
        sock_close(d->sock, silent);
    d->thing = FREE;
}

static int sim_close(int fd) {
    fd_close(fd, false);
    return 0;
}

/* The name of a file: what is in trash/ stands beside the others. */
static const char *name_in(int dir, const char *name) {
    static char text[NAME_BYTES];

    if (!fd_of(dir)->trash)
        return name;
    snprintf(text, sizeof text, "trash/%.9s", name);
    return text;
}

static int sim_openat(int dir, const char *name, int flags, ...) {
    struct host *h = world.task->host;
    struct inode *f = file_find(h, name_in(dir, name));
    int fd;

    if (strcmp(name, "trash") == 0) {
        fd = fd_new(DIRECTORY);
        descriptors[fd].trash = true;
        return fd;
    }
    errno = ENOENT;
    if (f == NULL && (flags & O_CREAT) == 0)
        return -1;
    if (f == NULL)
        f = file_make(h, name);
    if ((flags & O_TRUNC) != 0)
        f->now.n = f->dirty = 0;
    f->refs++;
    fd = fd_new(INODE);
    descriptors[fd].inode = f;
    return fd;
}

static int sim_open(const char *path, int flags, ...) {
    (void)flags;
    return fd_new(strcmp(path, "/dev/urandom") == 0 ? RANDOM : DIRECTORY);
}

static int sim_mkdir(const char *path, mode_t mode) {
    (void)path;
    (void)mode;
    errno = EEXIST;
    return -1;
}

static int sim_mkdirat(int dir, const char *path, mode_t mode) {
    (void)dir;
    return sim_mkdir(path, mode);
}

static int sim_pipe(int ends[2]) {
    struct pipe *p = calloc(1, sizeof *p);

    must(p != NULL, "memory");
    p->refs = 2;
    ends[0] = fd_new(PIPE_OUT);
    ends[1] = fd_new(PIPE_IN);
    descriptors[ends[0]].pipe = descriptors[ends[1]].pipe = p;
    return 0;
}

static ssize_t sim_pwrite(int fd, const void *p, size_t n, off_t offset) {
    struct inode *f = fd_of(fd)->inode;
    size_t at = (size_t)offset;
    static const uint8_t zeros[64];

    task_maybe_rest(512);
    while (f->now.n < at)
        bytes_add(&f->now, zeros, at - f->now.n < 64 ? at - f->now.n : 64);
    if (at < f->dirty)
        f->dirty = at;
    if (at + n > f->now.n)
        bytes_add(&f->now, (const uint8_t *)p + (f->now.n - at),
                  at + n - f->now.n);
    memcpy(f->now.p + at, p, n);
    return (ssize_t)n;
}

static ssize_t sim_pread(int fd, void *p, size_t n, off_t offset) {
    struct inode *f = fd_of(fd)->inode;
    size_t at = (size_t)offset;

    n = at >= f->now.n ? 0 : f->now.n - at < n ? f->now.n - at : n;
    if (n > 0)
        memcpy(p, f->now.p + at, n);
    return (ssize_t)n;
}

static int sim_ftruncate(int fd, off_t length) {
    struct inode *f = fd_of(fd)->inode;

    if (f == NULL)
        return 0; /* the mark: no copies of directories are made here */
    if ((size_t)length < f->now.n)
        f->now.n = (size_t)length;
    if (f->dirty > f->now.n)
        f->dirty = f->now.n;
    return 0;
}

static int sim_fsync(int fd) {
    struct descriptor *d = fd_of(fd);
    struct inode *f = d->inode;
    size_t end;

    if (d->thing != INODE)
        return 0;
    end = f->now.n;
    f->refs++;
    world.task->inode = f;
    task_rest(weather.slow_disk || once_in(16) ? below(20000) : below(300));
    file_sync(f, end);
    world.task->inode = NULL;
    inode_let(f);
    return 0;
}

static int sim_renameat(int from_dir, const char *from, int to_dir,
                        const char *to) {
    struct host *h = world.task->host;
    struct inode *f = file_find(h, name_in(from_dir, from));
    struct inode *over = file_find(h, name_in(to_dir, to));

    errno = ENOENT;
    if (f == NULL)
        return -1;
    if (over != NULL)
        file_remove(h, over);
    strcpy(f->name, name_in(to_dir, to));
    return 0;
}

/* linkat(): into trash/, whose files nobody reads. */
static int sim_linkat(int from_dir, const char *from, int to_dir,
                      const char *to, int flags) {
    (void)from_dir;
    (void)from;
    (void)flags;
    file_make(world.task->host, name_in(to_dir, to));
    return 0;
}

static int sim_unlinkat(int dir, const char *name, int flags) {
    struct inode *f = file_find(world.task->host, name_in(dir, name));

    (void)flags;
    errno = ENOENT;
    if (f == NULL)
        return -1;
    file_remove(world.task->host, f);
    return 0;
}

static int sim_fallocate(int fd, off_t offset, off_t n) {
    fd_of(fd)->inode->reserved = offset + n;
    return 0;
}

static int sim_fstat(int fd, struct stat *st) {
    const struct inode *f = fd_of(fd)->inode;

    memset(st, 0, sizeof *st);
    if (f == NULL)
        return 0;
    st->st_size = (off_t)f->now.n;
    st->st_blocks = f->reserved / 512;
    return 0;
}

static int sim_fstatvfs(int fd, struct statvfs *disk) {
    (void)fd;
    memset(disk, 0, sizeof *disk);
    disk->f_bavail = 1 << 20;
    disk->f_frsize = 4096;
    return 0;
}

static off_t sim_lseek(int fd, off_t offset, int whence) {
    (void)offset;
    (void)whence;
    return (off_t)fd_of(fd)->inode->now.n;
}

static void *sim_mmap(void *at, size_t n, int prot, int flags, int fd,
                      off_t offset) {
    (void)at;
    (void)n;
    (void)prot;
    (void)flags;
    (void)offset;
    return fd_of(fd)->inode->now.p;
}

static int sim_munmap(void *p, size_t n) {
    (void)p;
    (void)n;
    return 0;
}

/* fcntl(): locks are not held by others, and nothing blocks anyway. */
static int sim_fcntl(int fd, int command, ...) {
    (void)fd;
    (void)command;
    return 0;
}

static int sim_setsockopt(int fd, int level, int name, const void *value,
                          socklen_t n) {
    (void)fd;
    (void)level;
    (void)name;
    (void)value;
    (void)n;
    return 0;
}

static int sim_setrlimit(int what, const struct rlimit *limit) {
    (void)what;
    (void)limit;
    return 0;
}

static int sim_shm_open(const char *name, int flags, mode_t mode) {
    char(*marks)[64] = world.task->host->marks;

    (void)mode;
    if ((flags & O_CREAT) != 0 && strcmp(marks[0], name) != 0) {
        memcpy(marks[1], marks[0], sizeof marks[1]);
        snprintf(marks[0], sizeof marks[0], "%s", name);
    }
    errno = ENOENT;
    return strcmp(marks[0], name) == 0 || strcmp(marks[1], name) == 0
               ? fd_new(MARK)
               : -1;
}

static int sim_shm_unlink(const char *name) {
    for (unsigned i = 0; i < 2; i++)
        if (strcmp(world.task->host->marks[i], name) == 0)
            world.task->host->marks[i][0] = '\0';
    return 0;
}

/* What poll() would say of a descriptor. */
static short fd_events(int fd, short events) {
    const struct descriptor *d;
    short found = 0;

    if (fd < 0)
        return 0;
    d = fd_of(fd);
    if (d->thing == PIPE_OUT && d->pipe->bytes.n > 0)
        found = POLLIN;
    if (d->thing == SOCKET) {
        const struct sock *s = d->sock;

        found = POLLOUT;
        if (s->in.n > 0 || s->eof || s->broken)
            found |= POLLIN;
        if (s->broken)
            return (short)((found & events) | POLLERR);
    }
    if (d->thing == LISTENER && d->host->backlog[d->role] > 0)
        found = POLLIN;
    return found & events;
}

/* Sets what poll() would say; how many descriptors have something. */
static int fds_look(struct pollfd *p, nfds_t n) {
    int count = 0;

    for (nfds_t i = 0; i < n; i++) {
        p[i].revents = fd_events(p[i].fd, p[i].events);
        count += p[i].revents != 0;
    }
    return count;
}

/* Something may have come for a host: who waits for it goes on. */
static void host_poke(struct host *h) {
    for (struct task *t = tasks; t < tasks + TASKS; t++)
        if (t->host == h && t->fds != NULL && !t->roused &&
            fds_look(t->fds, t->count) > 0) {
            t->roused = true;
            event_add(world.now + between(2, 40), task_run, t, t->life);
        }
}

/* The rests of duties that only look whether there is something to do are made
   longer: that saves the looks. */
static uint64_t rest_of(const struct task *t, uint64_t us) {
    if (t->duty == DUTY_HOUSE)
        return us * between(1, 8);
    if (t->duty == DUTY_CARE)
        return us * 50;
    if (t->duty == DUTY_WORKER && us >= 100000)
        return us + below(150000);
    return us + below(100);
}

static int sim_poll(struct pollfd *p, nfds_t n, int ms) {
    struct task *t = world.task;
    bool ready = fds_look(p, n) > 0;

    t->fds = n > 0 ? p : NULL;
    t->count = n;
    t->roused = ready;
    task_rest(ready ? between(5, 40)
                    : rest_of(t, (uint64_t)(ms < 0 ? 1 << 30 : ms) * 1000));
    t->fds = NULL;
    return fds_look(p, n);
}

static int sim_socket(int family, int type, int protocol) {
    int fd = fd_new(SOCKET);

    (void)family;
    (void)type;
    (void)protocol;
    descriptors[fd].sock = sock_new(world.task->host, ROLE_LINK, 0);
    return fd;
}

/* Nodes' peer ports are 9000 and their number, that of etcd is 9000. */
static int sim_connect(int fd, const struct sockaddr *address, socklen_t n) {
    struct sock *s = fd_of(fd)->sock;
    struct sockaddr_in in;

    memcpy(&in, address, n);
    s->with = ntohs(in.sin_port) - 9000u;
    if (s->with > 0 && !host_of(s->with)->up &&
        !weather.cut[s->host->number][s->with])
        event_add(world.now + below(200), link_break, s, s->life);
    errno = EINPROGRESS;
    return -1;
}

static int sim_getaddrinfo(const char *host, const char *service,
                           const struct addrinfo *hints,
                           struct addrinfo **found) {
    static struct sockaddr_in in;
    static struct addrinfo info;

    if (host[0] == '\0')
        return EAI_NONAME;
    in.sin_family = AF_INET;
    in.sin_port = htons((uint16_t)atoi(service));
    info = *hints;
    info.ai_addr = (struct sockaddr *)&in;
    info.ai_addrlen = sizeof in;
    *found = &info;
    return 0;
}

static void sim_freeaddrinfo(struct addrinfo *info) {
    (void)info;
}

static int sim_accept(int listener, struct sockaddr *address, socklen_t *n) {
    struct descriptor *d = fd_of(listener);

    (void)address;
    (void)n;
    for (struct sock *s = d->host->socks; s != NULL; s = s->next)
        if (!s->accepted && s->role == d->role) {
            int fd = fd_new(SOCKET);

            s->accepted = true;
            d->host->backlog[s->role]--;
            descriptors[fd].sock = s;
            return fd;
        }
    errno = EAGAIN;
    return -1;
}

static ssize_t take(struct bytes *b, void *p, size_t n) {
    n = b->n < n ? b->n : n;
    if (n > 0)
        memcpy(p, b->p, n);
    bytes_drop(b, n);
    return (ssize_t)n;
}

/* read(): only the pool's threads wait in it, for their queue. */
static ssize_t sim_read(int fd, void *p, size_t n) {
    struct descriptor *d = fd_of(fd);
    uint64_t id = random_next();

    if (d->thing == RANDOM) {
        memcpy(p, &id, sizeof id);
        return sizeof id;
    }
    if (d->thing == PIPE_OUT && d->pipe->bytes.n == 0 &&
        world.task->duty == DUTY_POOL) {
        struct pollfd look = {fd, POLLIN, 0};

        while (sim_poll(&look, 1, -1) == 0)
            ;
    }
    if (d->thing == PIPE_OUT && d->pipe->bytes.n > 0)
        return take(&d->pipe->bytes, p, n);
    if (d->thing == SOCKET && d->sock->in.n > 0)
        return take(&d->sock->in, p, n);
    errno = d->thing == SOCKET && d->sock->broken ? ECONNRESET : EAGAIN;
    return d->thing == SOCKET && d->sock->eof ? 0 : -1;
}

static ssize_t sim_recv(int fd, void *p, size_t n, int flags) {
    (void)flags;
    return sim_read(fd, p, n);
}

/* write(): into pipes. */
static ssize_t sim_write(int fd, const void *p, size_t n) {
    struct descriptor *d = fd_of(fd);

    if (d->pipe->bytes.n < 4096)
        bytes_add(&d->pipe->bytes, p, n);
    host_poke(d->host);
    return (ssize_t)n;
}

static ssize_t sim_send(int fd, const void *p, size_t n, int flags) {
    struct sock *s = fd_of(fd)->sock;

    (void)flags;
    task_maybe_rest(256);
    if (s->broken) {
        errno = ECONNRESET;
        return -1;
    }
    bytes_add(&s->out, p, n);
    sock_sent(s);
    return (ssize_t)n;
}

static int sim_shutdown(int fd, int how) {
    (void)how;
    fd_of(fd)->sock->eof = true;
    return 0;
}

static int sim_clock(clockid_t id, struct timespec *t) {
    const struct host *h = world.task == NULL ? NULL : world.task->host;
    uint64_t us = world.now;

    if (id == CLOCK_REALTIME && h != NULL)
        us += (uint64_t)h->skew;
    t->tv_sec = (time_t)(us / SECOND);
    t->tv_nsec = (long)(us % SECOND) * 1000;
    return 0;
}

static time_t sim_time(time_t *t) {
    struct timespec now;

    (void)t;
    sim_clock(CLOCK_REALTIME, &now);
    return now.tv_sec;
}

/* pthread_mutex_lock(). Whoever has the lock may be interrupted. */
static int sim_lock(pthread_mutex_t *mutex) {
    if (world.task == NULL)
        return pthread_mutex_lock(mutex);
    task_maybe_rest(512);
    while (pthread_mutex_trylock(mutex) != 0)
        task_rest(between(1, 20));
    return 0;
}

static enum duty duty_of(void *(*run)(void *));

static int sim_thread(pthread_t *thread, const pthread_attr_t *attr,
                      void *(*run)(void *), void *arg) {
    struct host *h = world.task->host;
    enum duty duty = duty_of(run);
    unsigned same = 0;

    (void)attr;
    memset(thread, 0, sizeof *thread);
    for (const struct task *t = tasks; t < tasks + TASKS; t++)
        same += t->host == h && t->duty == duty;
    if (duty != DUTY_POOL || same < 2) /* of the pool's two are enough */
        task_new(h, duty, run, arg);
    return 0;
}

static int sim_join(pthread_t thread, void **result) {
    (void)thread;
    (void)result;
    return 0;
}

/* Memory of a process: in a list, for its end. */
struct held {
    struct held *next, *before;
};

static struct held *held_of(void *p) {
    return (struct held *)p - 1;
}

static void *held_add(struct held *held) {
    struct host *h = world.task == NULL ? NULL : world.task->host;

    must(held != NULL, "memory");
    held->before = NULL;
    held->next = h == NULL ? NULL : h->held;
    if (held->next != NULL)
        held->next->before = held;
    if (h != NULL)
        h->held = held;
    return held + 1;
}

static void held_remove(struct held *held) {
    struct host *h = world.task == NULL ? NULL : world.task->host;

    if (held->next != NULL)
        held->next->before = held->before;
    if (held->before != NULL)
        held->before->next = held->next;
    else if (h != NULL && h->held == held)
        h->held = held->next;
}

static void *sim_calloc(size_t count, size_t size) {
    return held_add(calloc(1, count * size + sizeof(struct held)));
}

static void sim_free(void *p) {
    if (p == NULL)
        return;
    held_remove(held_of(p));
    free(held_of(p));
}

static void *sim_realloc(void *p, size_t n) {
    if (p == NULL)
        return held_add(malloc(n + sizeof(struct held)));
    held_remove(held_of(p));
    return held_add(realloc(held_of(p), n + sizeof(struct held)));
}

static void __attribute__((noreturn, format(printf, 1, 2)))
fail(const char *format, ...);

static void __attribute__((noreturn)) sim_exit(int code) {
    host_quit(world.task->host, code);
    task_leave(world.task);
    must(false, "a process goes on that has ended");
    _Exit(1);
}

static void __attribute__((noreturn)) sim_abort(void) {
    fail("node %u died", world.task->host->number);
}

/* fprintf() to stderr. */
static void __attribute__((format(printf, 2, 3)))
sim_print(FILE *file, const char *format, ...) {
    char text[1200];
    va_list args;

    (void)file;
    if (!world.trace)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    text[strcspn(text, "\n")] = '\0';
    trace("node %u: %s", world.task == NULL ? 0 : world.task->host->number,
          text);
}

/* Rings: there are so few in all histories that each is built but once. */
struct known {
    struct known *next;
    struct ring *ring;
    char text[200];
};

static struct ring *sim_ring_build(const struct ring_member *members, size_t n,
                                   unsigned partitions, unsigned replicas) {
    static struct known *known[64];
    struct known **at, *k;
    char text[200];
    int end = snprintf(text, sizeof text, "%u %u", partitions, replicas);
    unsigned sum = 0;

    for (size_t i = 0; i < n; i++)
        end += snprintf(text + end, sizeof text - (size_t)end, " %s %s",
                        members[i].name, members[i].zone);
    must((size_t)end < sizeof text, "a ring's text");
    for (const char *p = text; *p != '\0'; p++)
        sum = 31 * sum + (unsigned char)*p;
    at = &known[sum % 64];
    for (k = *at; k != NULL; k = k->next)
        if (strcmp(k->text, text) == 0)
            return k->ring;
    k = calloc(1, sizeof *k);
    must(k != NULL, "memory");
    memcpy(k->text, text, sizeof text);
    k->ring = ring_build(members, n, partitions, replicas);
    k->next = *at;
    return (*at = k)->ring;
}

static void sim_ring_free(struct ring *ring) {
    (void)ring;
}

#define ring_build         sim_ring_build
#define ring_free          sim_ring_free
#define mkdirat            sim_mkdirat
#define linkat             sim_linkat
#define openat             sim_openat
#define open               sim_open
#define close              sim_close
#define mkdir              sim_mkdir
#define pipe(ends)         sim_pipe(ends)
#define pwrite             sim_pwrite
#define pread              sim_pread
#define read               sim_read
#define write              sim_write
#define ftruncate          sim_ftruncate
#define fsync              sim_fsync
#define fdatasync          sim_fsync
#define renameat           sim_renameat
#define unlinkat           sim_unlinkat
#define posix_fallocate    sim_fallocate
#define fstat              sim_fstat
#define fstatvfs           sim_fstatvfs
#define lseek              sim_lseek
#define mmap               sim_mmap
#define munmap             sim_munmap
#define fcntl              sim_fcntl
#define setsockopt         sim_setsockopt
#define setrlimit          sim_setrlimit
#define shm_open           sim_shm_open
#define shm_unlink         sim_shm_unlink
#define poll               sim_poll
#define socket             sim_socket
#define connect            sim_connect
#define getaddrinfo        sim_getaddrinfo
#define freeaddrinfo       sim_freeaddrinfo
#define accept             sim_accept
#define send               sim_send
#define recv               sim_recv
#define shutdown           sim_shutdown
#define clock_gettime      sim_clock
#define time(t)            sim_time(t)
#define pthread_mutex_lock sim_lock
#define pthread_create     sim_thread
#define pthread_join       sim_join
#define calloc             sim_calloc
#define realloc            sim_realloc
#define free               sim_free
#define fprintf            sim_print
#define exit               sim_exit
#define abort              sim_abort
#define main               estoraje_main

#ifdef PLANTS
/* The error that is planted, as plants.sh numbers them; 0: none. */
static unsigned plant;
#endif

#ifndef PROGRAM
#define PROGRAM "../estoraje.c"
#endif
#include PROGRAM

#undef open
#undef close
#undef pipe
#undef read
#undef write
#undef calloc
#undef realloc
#undef free
#undef fprintf
#undef exit
#undef abort
#undef time
#undef pthread_mutex_lock
#undef main
#undef clock_gettime

/* ---------------------------------------------------------------- A node
 *
 * Starts as main() has it. Where the ring does not change there is no etcd: it
 * is made here then, and is the same for all histories of so many nodes. */

static enum duty duty_of(void *(*run)(void *)) {
    return run == worker_run   ? DUTY_WORKER
           : run == pool_run   ? DUTY_POOL
           : run == house_run  ? DUTY_HOUSE
           : run == care_run   ? DUTY_CARE
           : run == repair_run ? DUTY_REPAIR
           : run == etcd_run   ? DUTY_ETCD
                               : DUTY_START;
}

/* What differs from history to history. A pointed one is about one key, for
   which its first two owners do consistent operations against each other; in a
   dark one all lose their power now and then, and are left with their disks, in
   a missed one they repair all the time. In one with changes the ring is
   another one now and then; in a stale one it changes once, and an owner of the
   key that is to be none hears nothing of that. In one about a node that is
   away there are one or two changes, time for tombstones to go, and now and then
   plain operations; in a forced one most owners are lost for good. */
static struct {
    enum sync_mode sync;
    bool pointed, dark, missed, changes, stale, away, forced;
    unsigned members;       /* at first */
    unsigned owners[NODES]; /* of the key */
    unsigned partition;     /* its own */
    unsigned turn[2];       /* who has it before and after a change, as bits */
    unsigned hidden;        /* the owner that hears nothing of it; 0: none */
} setting;

/* Owners of each key, in a cluster of so many. */
static unsigned replicas_of(unsigned count) {
    return count == NODES && !setting.changes ? NODES : 3;
}

/* The text of a ring with so many members, none of which has started yet. */
static void ring_first(struct buf *text, unsigned count) {
    buf_print(text,
              "{\"cluster\":\"%016x\",\"hash0\":\"%016x\",\"hash1\":\"%016x\","
              "\"epoch\":\"1\",\"partitions\":\"%u\",\"replicas\":\"%u\","
              "\"numbers\":\"%u\",\"members\":[",
              17, 18, 19, PARTS, replicas_of(count), count);
    for (unsigned i = 1; i <= count; i++)
        buf_print(text,
                  "%s{\"name\":\"n%u\",\"number\":\"%u\",\"id\":\"%016x\","
                  "\"zone\":\"z%u\"}",
                  i > 1 ? "," : "", i, i, 0, i);
    buf_text(text, "]}");
}

/* The view of a node, of a cluster of so many. */
static struct view *view_of(unsigned count, unsigned number) {
    static struct view *views[NODES + 1][NODES + 1];
    struct view **view = &views[count][number];
    static struct node blank;
    struct buf text = {0};
    char name[8];

    if (*view != NULL)
        return *view;
    ring_first(&text, count);
    buf_text(&text, "\n");
    for (unsigned i = 1; i <= count; i++)
        buf_print(&text,
                  "{\"name\":\"n%u\",\"host\":\"127.0.0.1\",\"port\":\"%u\","
                  "\"peer\":\"%u\",\"zone\":\"z%u\",\"id\":\"%016x\","
                  "\"boot\":\"1\"}\n",
                  i, 8000 + i, 9000 + i, i, 0);
    snprintf(name, sizeof name, "n%u", number);
    blank.flags.name = name;
    *view = view_parse(&blank, buf_slice(&text));
    must(*view != NULL && (*view)->me == number - 1, "the ring");
    buf_free(&text);
    return *view;
}

/* The start of a process, as main() has it. */
static void *node_begin(void *arg) {
    static const char *const names[] = {"", "n1", "n2", "n3", "n4", "n5"};
    static const char *const zones[] = {"", "z1", "z2", "z3", "z4", "z5"};
    struct host *h = arg;
    struct node *node = memory(1, sizeof *node);
    struct view *view;

    node->flags = (struct flags){.name = names[h->number],
                                 .host = "127.0.0.1",
                                 .listen = "127.0.0.1",
                                 .zone = zones[h->number],
                                 .etcd = "http://127.0.0.1:9000",
                                 .add = h->add,
                                 .data = "data",
                                 .port = 8000 + h->number,
                                 .peer_port = 9000 + h->number,
                                 .partitions = PARTS,
                                 .replicas = replicas_of(world.host_count),
                                 .threads = 1,
                                 .max_value = 1 << 20};
    h->node = node;
    node->sync = setting.sync;
    node->log_most = LOG_MAX;
    atomic_store(&node->full, true);
    etcd_prepare(node);
    directory_open(node);
    if (node->unclean && !h->dark && !setting.changes)
        fail("node %u takes a kill for a loss of power", h->number);
    directory_check(node);
    logs_check(node);
    node->client_fd = fd_new(LISTENER);
    descriptors[node->client_fd].role = ROLE_CLIENT;
    node->peer_fd = fd_new(LISTENER);
    descriptors[node->peer_fd].role = ROLE_PEER;
    node->client_port = (unsigned)node->flags.port;
    node->peer_port = (unsigned)node->flags.peer_port;
    workers_begin(node);
    if (setting.changes) {
        cluster_begin(node);
    } else {
        view = view_of(world.host_count, h->number);
        atomic_fetch_add(&view->refs, 1);
        view_adopt(node, view);
        identity_begin(node);
    }
    store_begin(node);
    return NULL;
}

/* A machine's process starts. */
static void host_start(struct host *h) {
    trace("node %u starts", h->number);
    h->up = true;
    if (!setting.changes) /* it is not the process's memory */
        view_of(world.host_count, h->number);
    task_new(h, DUTY_START, node_begin, h);
}

/* A machine's process is gone: it was killed, or the power is lost. */
static void host_end(struct host *h, bool power) {
    struct held *held;

    trace("node %u %s", h->number, power ? "loses its power" : "is killed");
    h->up = false;
    h->life++;
    h->frozen_until = 0;
    h->dark = power || (h->dark && (h->node == NULL || h->node->unclean));
    h->node = NULL;
    for (struct task *t = tasks; t < tasks + TASKS; t++)
        if (t->host == h)
            task_free(t);
    for (int fd = 0; fd < FDS; fd++)
        if (descriptors[fd].thing != FREE && descriptors[fd].host == h)
            fd_close(fd, power);
    while (h->socks != NULL)
        sock_close(h->socks, power);
    while ((held = h->held) != NULL) {
        h->held = held->next;
        free(held);
    }
    if (power) {
        files_lose(h);
        h->marks[0][0] = h->marks[1][0] = '\0';
    }
}

/* A process ends by itself, which only one may that is not wanted any more. */
static void host_quit(struct host *h, int code) {
    if (h->wanted || !setting.changes)
        fail("node %u gave up with %d", h->number, code);
    trace("node %u stops", h->number);
    h->off = true;
    host_end(h, false);
}

/* Whether a signal was sent, as it were, to the process that has just run. */
static bool stop_asked(void) {
    return atomic_exchange(&stop_requested, 0) != 0;
}

/* Whether a node has ended all its doubts, and no change is under way. */
static bool host_rests(const struct host *h) {
    struct node *node = h->node;
    const struct view *view;

    if (!h->up || node == NULL || !atomic_load(&node->loaded))
        return false;
    view = node->view;
    if (view->me == view->count)
        return atomic_load(&node->left);
    if (view->next != NULL || atomic_load(&node->cut))
        return false;
    for (unsigned i = 0; i < node->partitions; i++) {
        const struct part *part = &node->parts[i];

        if (view_owns(view, i, (unsigned)node->self.number) &&
            (part->doubts != part->cleared || part->recovering))
            return false;
    }
    for (unsigned i = 0; i < view->count; i++) {
        unsigned number = view->member[i].number;

        if (i != view->me && (!member_alive(node, number) ||
                              atomic_load(&node->peers[number].missed_any)))
            return false;
    }
    return true;
}

/* Says of a node, for a trace, why it does not rest. */
static void host_tell(const struct host *h) {
    const struct node *node = h->node;
    const struct view *view = node == NULL ? NULL : node->view;

    fprintf(stderr, "node %u: up=%d", h->number, h->up);
    if (view == NULL) {
        fprintf(stderr, " no ring\n");
        return;
    }
    fprintf(stderr, " loaded=%d cut=%d number=%" PRIu64 " epoch=%" PRIu64 "%s",
            atomic_load(&node->loaded), atomic_load(&node->cut),
            node->self.number, view->epoch,
            view->me == view->count ? " left"
            : view->next != NULL    ? " joint"
                                    : "");
    for (unsigned p = 0; node->parts != NULL && p < node->partitions; p++)
        fprintf(stderr, " %d/%" PRIu64 "-%" PRIu64 "%s",
                view_owns(view, p, (unsigned)node->self.number),
                node->parts[p].doubts, node->parts[p].cleared,
                node->parts[p].recovering ? "recovering" : "");
    for (unsigned i = 0; i < view->count; i++)
        fprintf(stderr, " n%u:%d%s", view->member[i].number,
                member_alive(node, view->member[i].number),
                atomic_load(&node->peers[view->member[i].number].missed_any)
                    ? "missed"
                    : "");
    fprintf(stderr, "\n");
}

static void hosts_tell(void) {
    world.task = NULL;
    for (unsigned i = 0; i < world.host_count; i++)
        host_tell(&world.hosts[i]);
}

static bool etcd_rests(uint64_t *epoch);

/* Whether all is at rest: the changes are made, every node that runs knows it,
   and has no doubt. */
static bool all_rest(void) {
    uint64_t epoch = 1;

    if (setting.changes && !etcd_rests(&epoch))
        return false;
    for (unsigned i = 0; i < world.host_count; i++) {
        const struct host *h = &world.hosts[i];

        if (!h->off && (!host_rests(h) || h->node->view->epoch != epoch))
            return false;
    }
    return true;
}

/* The first partition that two of its owners do not hold alike; PARTS: none. */
static unsigned parts_differ(void) {
    for (unsigned p = 0; p < PARTS; p++) {
        const struct part *first = NULL;

        for (unsigned i = 0; i < world.host_count; i++) {
            struct node *node = world.hosts[i].node;
            const struct part *part = node == NULL ? NULL : &node->parts[p];

            if (part == NULL ||
                !view_owns(node->view, p, (unsigned)node->self.number))
                continue;
            if (first != NULL && (first->log.sum != part->log.sum ||
                                  first->log.used != part->log.used))
                return p;
            first = part;
        }
    }
    return PARTS;
}

/* ------------------------------------------------------------------ etcd
 *
 * One for the whole cluster, which does what this program asks of it, and never
 * fails; but a node may not reach it for a while, and calls and answers may be
 * late or lost. Keys are kept as they are, values in base64, as they come. */

#define ETCD_KEYS 24

struct entry_of_etcd {
    char key[32], value[4096];
    uint64_t revision; /* when it was put; 0: it is not there */
};

static struct {
    struct entry_of_etcd entries[ETCD_KEYS];
    uint64_t revision, leases;
    struct view *view; /* the ring, as the operator sees it */
} etcd;

static void change_seen(const struct view *before);
static void report_seen(struct host *h);

/* The host of a member. */
static struct host *host_named(const char *name) {
    return host_of((unsigned)atoi(name + 1));
}

/* The entry of a key, which may not be there. */
static struct entry_of_etcd *etcd_entry(const char *key) {
    struct entry_of_etcd *e = etcd.entries, *blank = NULL;

    for (; e < etcd.entries + ETCD_KEYS; e++)
        if (strcmp(e->key, key) == 0)
            return e;
        else if (e->revision == 0)
            blank = e;
    must(blank != NULL && strlen(key) < sizeof blank->key, "keys in etcd");
    strcpy(blank->key, key);
    return blank;
}

/* The entry of a key in base64, which ends with a quote. */
static struct entry_of_etcd *etcd_entry_64(const char *text) {
    struct buf key = {0};
    struct entry_of_etcd *e;

    base64_decode(&key,
                  (struct slice){(const uint8_t *)text, strcspn(text, "\"")});
    buf_add(&key, "", 1);
    e = etcd_entry((char *)key.p);
    buf_free(&key);
    return e;
}

/* An event: a watch says something. */
static void watch_tell(void *thing, uint64_t life) {
    struct sock *s = thing;

    if (!s->used || s->life != life)
        return;
    bytes_add(&s->in, "x", 1);
    host_poke(s->host);
}

/* Something has changed: those who watch are told, sooner or later or not. */
static void etcd_changed(void) {
    for (unsigned i = 0; i < world.host_count; i++) {
        struct host *h = &world.hosts[i];

        for (struct sock *s = h->socks; s != NULL; s = s->next)
            if (s->watch && h->away_until <= world.now &&
                !once_in(weather.etcd_lost))
                event_add(world.now +
                              below(once_in(weather.etcd_slow) ? SECOND : 2000),
                          watch_tell, s, s->life);
    }
}

/* The text that an entry has, with a line's end. */
static void etcd_text(struct buf *text, const struct entry_of_etcd *e) {
    base64_decode(text, slice_of(e->value));
    buf_text(text, "\n");
}

/* The ring has changed: the operator takes a look at it. */
static void etcd_look_on(void) {
    static struct node blank = {.flags = {.name = ""}};
    struct view *before = etcd.view;
    struct buf text = {0};

    etcd_text(&text, etcd_entry("strj_ring"));
    trace("etcd: %.*s", (int)text.n - 1, (char *)text.p);
    etcd.view = view_parse(&blank, buf_slice(&text));
    must(etcd.view != NULL, "a ring in etcd");
    buf_free(&text);
    change_seen(before);
    view_release(before);
}

/* Puts a value, in base64 and up to a quote, or removes the key (NULL). */
static void etcd_set(struct entry_of_etcd *e, const char *value) {
    size_t n = value == NULL ? 0 : strcspn(value, "\"");

    must(n < sizeof e->value, "room for a value in etcd");
    e->revision = value == NULL ? 0 : etcd.revision;
    memcpy(e->value, value == NULL ? "" : value, n);
    e->value[n] = '\0';
    etcd_changed();
    if (strcmp(e->key, "strj_ring") == 0) {
        etcd_look_on();
    } else if (value != NULL && strncmp(e->key, "strj_node_", 10) == 0) {
        struct buf text = {0};

        etcd_text(&text, e);
        trace("etcd: %.*s", (int)text.n - 1, (char *)text.p);
        buf_add(&text, "", 1);
        if (strstr((char *)text.p, "\"report\":\"0\"") == NULL)
            report_seen(host_named(e->key + 10));
        buf_free(&text);
    }
}

/* The same of a value as it is. */
static void etcd_set_text(const char *key, struct slice value) {
    struct buf text = {0};

    base64_encode(&text, value);
    buf_add(&text, "", 1);
    etcd.revision++;
    etcd_set(etcd_entry(key), (char *)text.p);
    buf_free(&text);
}

/* Whether the comparisons of a transaction hold. */
static bool etcd_compare(const char *text) {
    static const char key[] = "{\"key\":\"", mod[] = "\"mod_revision\":";
    const char *end = strstr(text, "\"success\""), *at = text;

    while ((at = strstr(at, key)) != NULL && at < end) {
        const struct entry_of_etcd *e = etcd_entry_64(at += sizeof key - 1);
        const char *number = strstr(at, mod), *value = strstr(at, "\"value\":");
        size_t n = strlen(e->value);

        if (strncmp(strstr(at, "\"target\":"), "\"target\":\"MOD\"", 14) == 0) {
            if (strtoull(number + sizeof mod - 1, NULL, 10) != e->revision)
                return false;
        } else if (e->revision == 0 || strncmp(value + 9, e->value, n) != 0 ||
                   value[9 + n] != '"') {
            return false;
        }
    }
    return true;
}

/* Does a transaction; whether it holds. */
static bool etcd_transact(const char *text) {
    static const char key[] = "\"key\":\"", value[] = "\"value\":\"";
    const char *at = strstr(text, "\"success\""), *next;

    if (!etcd_compare(text))
        return false;
    etcd.revision++;
    while ((at = strstr(at, key)) != NULL) {
        struct entry_of_etcd *e = etcd_entry_64(at += sizeof key - 1);

        next = strstr(at, value);
        if (strncmp(at + strcspn(at, "\""), "\",\"value\"", 9) != 0)
            etcd_set(e, NULL);
        else if (strncmp(e->key, "strj_alive_", 11) != 0)
            etcd_set(e, next + sizeof value - 1);
    }
    return true;
}

/* Lists what the nodes look at, downward. */
static void etcd_list(struct buf *out) {
    char last[32] = "strj_s";

    buf_text(out, ",\"kvs\":[");
    for (;;) {
        const struct entry_of_etcd *next = NULL;

        for (const struct entry_of_etcd *e = etcd.entries;
             e < etcd.entries + ETCD_KEYS; e++)
            if (e->revision > 0 && strcmp(e->key, last) < 0 &&
                (next == NULL || strcmp(e->key, next->key) > 0))
                next = e;
        if (next == NULL)
            break;
        strcpy(last, next->key);
        buf_text(out, "{\"key\":\"");
        base64_encode(out, slice_of(next->key));
        buf_print(out, "\",\"mod_revision\":\"%" PRIu64 "\",\"value\":\"",
                  next->revision);
        buf_text(out, next->value);
        buf_text(out, "\"},");
    }
    buf_text(out, "]");
}

/* Takes a lease, or keeps it if it has not lapsed. */
static void etcd_lease(struct host *h, bool grant, struct buf *out) {
    if (grant) {
        h->lease = ++etcd.leases;
        h->lease_until = 0;
    }
    if (grant || (h->lease_until > world.now && !once_in(20)))
        h->lease_until = world.now + 10 * SECOND;
    buf_print(out, ",\"ID\":\"%" PRIu64 "\"", h->lease);
    if (h->lease_until > world.now)
        buf_text(out, ",\"TTL\":\"10\"");
}

/* An event: a call reaches etcd, and its answer sets out. */
static void etcd_arrive(void *thing, uint64_t life) {
    struct message *m = thing;
    struct host *h = host_of(m->from);
    struct buf out = {0};
    char *text, head[80];
    bool live =
        m->link != NULL && m->link->used && m->link->life == m->link_life;
    int n;

    (void)life;
    if (h->away_until > world.now || once_in(weather.etcd_lost)) {
        message_lost(m, false);
        return;
    }
    bytes_add(&m->bytes, "", 1);
    text = (char *)m->bytes.p;
    if (strncmp(text, "POST /v3/watch", 14) == 0) {
        if (live) {
            m->link->watch = true;
            event_add(world.now + below(2000), watch_tell, m->link,
                      m->link->life);
        }
        message_free(m);
        return;
    }
    buf_print(&out, "{\"header\":{\"revision\":\"%" PRIu64 "\"}",
              etcd.revision);
    if (strncmp(text, "POST /v3/kv/range", 17) == 0) {
        etcd_list(&out);
    } else if (strncmp(text, "POST /v3/cluster/member/list", 28) == 0) {
        buf_text(&out, ",\"members\":[{\"ID\":\"1\",\"name\":\"etcd\"}]");
    } else if (strncmp(text, "POST /v3/lease/", 15) == 0) {
        bool grant = text[15] == 'g';

        out.n = 0;
        buf_print(&out, grant ? "{\"x\":\"\"" : "{\"result\":{\"x\":\"\"");
        etcd_lease(h, grant, &out);
    } else if (etcd_transact(strstr(text, "\r\n\r\n"))) {
        buf_text(&out, ",\"succeeded\":true");
    } else {
        trace("etcd: a transaction of node %u fails", m->from);
    }
    buf_text(&out, "}");
    n = snprintf(head, sizeof head,
                 "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", out.n);
    m->bytes.n = 0;
    bytes_add(&m->bytes, head, (size_t)n);
    bytes_add(&m->bytes, out.p, out.n);
    buf_free(&out);
    if (once_in(weather.etcd_lost))
        message_lost(m, false);
    else
        event_add(world.now + below(once_in(weather.etcd_slow) ? 500000 : 1000),
                  answer_arrive, m, 0);
}

/* A call to etcd sets out. */
static void etcd_send(struct sock *link, const void *p, size_t n) {
    struct message *m = message_new(link->host->number, 0, p, n);

    m->link = link;
    m->link_life = link->life;
    m->number = link->sent++;
    event_add(world.now + below(once_in(weather.etcd_slow) ? 500000 : 1000),
              etcd_arrive, m, 0);
}

/* The member of a host's name, in the ring or in the one that is next; NULL:
   there is none. */
static const struct member *etcd_member(const struct host *h) {
    for (unsigned i = 0; i < etcd.view->count; i++)
        if (host_named(etcd.view->member[i].name) == h)
            return &etcd.view->member[i];
    return NULL;
}

/* Whether a node is to be removed that has not been removed yet. */
static bool etcd_wished(void) {
    for (const struct entry_of_etcd *e = etcd.entries;
         e < etcd.entries + ETCD_KEYS; e++)
        if (e->revision > 0 && strncmp(e->key, "strj_leave_", 11) == 0)
            return true;
    return false;
}

/* Whether no change is under way, or to be made; in which epoch. */
static bool etcd_rests(uint64_t *epoch) {
    *epoch = etcd.view->epoch;
    return etcd.view->next == NULL && !etcd_wished();
}

/* A new one, with a ring of so many. */
static void etcd_new(unsigned count) {
    struct buf text = {0};

    memset(etcd.entries, 0, sizeof etcd.entries);
    etcd.revision = 0;
    view_release(etcd.view);
    etcd.view = NULL;
    ring_first(&text, count);
    etcd_set_text("strj_ring", buf_slice(&text));
    buf_free(&text);
}

/* --------------------------------------------------------------- Clients
 *
 * A client has one request at work at a time, each over a connection of its
 * own. It gives up after a while, and knows nothing then. */

#define CLIENTS 6
#define KEYS    3
#define VALUES  200
#define AUDITOR CLIENTS /* the client that looks at all in the end */

/* Which operations there are. */
enum mix { MIX_PLAIN, MIX_CONSISTENT, MIX_BOTH };

struct client {
    unsigned number;
    struct sock *sock; /* NULL: it waits for nothing */
    uint64_t life;     /* of its turn */
    size_t index;      /* of its operation */
    struct history_op op;
    uint64_t seen[KEYS]; /* a value of the key, or 0: absent */
    unsigned status;     /* of the last answer */
    bool plainly;        /* it asks so, although more is expected */
};

static struct {
    struct history *history;
    enum mix mix;
    unsigned keys, clients;
    unsigned left; /* operations to begin */
    unsigned at_work;
    uint64_t pause_us; /* of a client, at most */
    uint64_t patience_us;
    uint64_t values;
    char etags[VALUES][20]; /* "" not known */
    struct client client[CLIENTS + 1];
} show;

/* Ends the test program with what was found. */
static void __attribute__((noreturn, format(printf, 1, 2)))
fail(const char *format, ...) {
    va_list args;

    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n");
    for (unsigned key = 0; key < show.keys; key++)
        history_print(show.history, key);
    hosts_tell();
    fprintf(stderr,
            "sim: failed at %.6f s, after %" PRIu64
            " histories; repeat it with SEED=%" PRIu64 "\n",
            (double)world.now / 1e6, world.ops, world.seed);
    _Exit(1);
}

static void client_next(void *thing, uint64_t life);

/* The operation is over. */
static void client_end(struct client *c, enum history_outcome outcome,
                       uint64_t value, bool refused) {
    history_end(show.history, c->index, outcome, value, refused, world.now);
    c->sock = NULL;
    c->life++;
    show.at_work--;
    if (c->number != AUDITOR)
        event_add(world.now + below(show.pause_us + 1), client_next, c,
                  c->life);
}

/* The answer will not come. */
static void client_lost(struct client *c) {
    trace("client %u: no answer", c->number);
    c->status = 0;
    client_end(c, c->op.kind == HISTORY_READ ? HISTORY_FAILED : HISTORY_UNKNOWN,
               0, false);
}

/* An event: a client has waited for long enough. */
static void client_bored(void *thing, uint64_t life) {
    struct client *c = thing;

    if (c->sock == NULL || c->life != life)
        return;
    c->sock->client = NULL;
    c->sock->eof = true;
    host_poke(c->sock->host);
    client_lost(c);
}

/* Takes note of the etag of a value, which is always the same. */
static void etag_seen(uint64_t value, const char *etag) {
    const char *tag = etag == NULL ? NULL : strchr(etag, '"');

    if (tag == NULL || value == 0 || value >= VALUES)
        fail("a value that is none, or has no etag");
    if (show.etags[value][0] == '\0')
        memcpy(show.etags[value], tag, 18);
    else if (memcmp(show.etags[value], tag, 18) != 0)
        fail("value %" PRIu64 " has another etag than before", value);
}

/* The answer is there. */
static void client_heard(struct client *c, struct sock *s) {
    struct history_op *op = history_at(show.history, c->index);
    bool read = op->kind == HISTORY_READ, stale;
    uint64_t value = 0;
    const char *body, *text;
    unsigned status;

    bytes_add(&s->out, "", 1);
    text = (const char *)s->out.p;
    s->out.n--;
    body = strstr(text, "\r\n\r\n") + 4;
    status = c->status = (unsigned)atoi(text + 9);
    stale = strstr(text, "\r\nEstoraje-Stale: ") != NULL;
    s->client = NULL;
    trace("client %u: %.*s%s %.60s", c->number, 20, text, stale ? " stale" : "",
          body);
    op->stale = stale;
    op->existed = !read && status == 204;
    if (read && status == 200)
        etag_seen(value = strtoull(body, NULL, 10), strstr(text, "\r\nETag: "));
    else if (!read &&
             (status == 201 || (status == 204 && op->kind == HISTORY_WRITE)))
        etag_seen(value = op->value, strstr(text, "\r\nETag: "));
    if (status == 200 || status == 201 || status == 204 || status == 404)
        c->seen[op->key] = value;
    if (status == 200 || status == 201 || status == 204 || status == 404)
        client_end(c, HISTORY_OK, value, false);
    else if (status == 412 && op->conditional)
        client_end(c, HISTORY_OK, 0, true);
    else if (status == 503 || status == 507)
        client_end(c, HISTORY_FAILED, 0, false);
    else if (status == 504 || status == 500)
        client_end(c, read ? HISTORY_FAILED : HISTORY_UNKNOWN, 0, false);
    else
        fail("an answer that should not be: %.300s", text);
}

/* Sends the operation to a node. */
static void client_ask(struct client *c, struct host *h) {
    static const char *const methods[] = {"GET", "PUT", "DELETE"};
    const struct history_op *op = &c->op;
    char condition[60] = "", body[30] = "", text[400];

    if (op->conditional && op->expect == 0)
        snprintf(condition, sizeof condition, "If-None-Match: *\r\n");
    else if (op->conditional)
        snprintf(condition, sizeof condition, "If-Match: %s\r\n",
                 show.etags[op->expect]);
    if (op->kind == HISTORY_WRITE)
        snprintf(body, sizeof body, "%" PRIu64, op->value);
    snprintf(text, sizeof text,
             "%s /key%u%s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %zu\r\n"
             "\r\n%s",
             methods[op->kind], op->key,
             op->consistent && !c->plainly &&
                     (!op->conditional || op->expect % 2 > 0)
                 ? "?consistent"
                 : "",
             condition, strlen(body), body);
    trace("client %u -> %u: %s key%u value=%" PRIu64 "%s%s expect=%" PRIu64,
          c->number, h->number, methods[op->kind], op->key, op->value,
          op->consistent ? " consistent" : "",
          op->conditional ? " conditional" : "", op->expect);
    c->index = history_begin(show.history, op);
    c->sock = sock_new(h, ROLE_CLIENT, 0);
    c->sock->client = c;
    bytes_add(&c->sock->in, text, strlen(text));
    c->life++;
    show.at_work++;
    event_add(world.now + show.patience_us, client_bored, c, c->life);
    host_poke(h);
}

/* Chooses an operation. */
static void client_choose(struct client *c) {
    struct history_op *op = &c->op;
    unsigned dice = (unsigned)below(16);

    *op = (struct history_op){.client = c->number, .begin = world.now};
    op->key = (unsigned)below(show.keys);
    op->kind = dice < 6                          ? HISTORY_READ
               : dice < (setting.away ? 11 : 14) ? HISTORY_WRITE
                                                 : HISTORY_DELETE;
    op->consistent =
        show.mix == MIX_CONSISTENT || (show.mix == MIX_BOTH && once_in(2));
    if (op->consistent && op->kind != HISTORY_READ &&
        (once_in(2) || (setting.pointed && once_in(2)))) {
        unsigned of = once_in(4) ? (unsigned)below(show.clients) : c->number;

        op->conditional = true;
        op->expect = show.client[of].seen[op->key];
    }
    if (op->kind == HISTORY_WRITE)
        op->value = ++show.values;
}

/* Whether a node is on the side of those that are among themselves. */
static bool camp_has(unsigned number) {
    return (weather.side >> number & 1) != 0;
}

/* An event: a client begins its next operation, if there is one to begin. */
static void client_next(void *thing, uint64_t life) {
    struct client *c = thing;
    struct host *h = &world.hosts[below(world.host_count)];

    if (c->life != life || show.left == 0)
        return;
    if (setting.pointed && setting.changes)
        while (weather.side != 0 && !camp_has(h->number) && !once_in(4))
            h = &world.hosts[below(world.host_count)];
    else if (setting.pointed) /* one of those two, for the most part */
        h = host_of(setting.owners[below(once_in(4) ? world.host_count : 2)]);
    show.left--;
    if (!h->up) {
        event_add(world.now + below(show.pause_us + 1), client_next, c, life);
        return;
    }
    client_choose(c);
    client_ask(c, h);
}

/* ---------------------------------------------------------------- Faults
 *
 * Each is an event with an end of its own. */

/* An event: a process starts again. */
static void fault_over(void *thing, uint64_t life) {
    struct host *h = thing;

    if (h->up || h->life != life || h->off)
        return;
    if (setting.changes && !h->wanted && etcd_member(h) == NULL)
        h->off = true;
    else
        host_start(h);
}

/* Whether it does not matter any more what a machine has lost: it has made that
   good as a member, or is none. */
static bool host_safe(const struct host *h) {
    return (!setting.changes || etcd.view->next == NULL) &&
           ((setting.changes && etcd_member(h) == NULL) ||
            (host_rests(h) && !h->node->unclean &&
             h->node->view->me < h->node->view->count));
}

/* Whether this machine may lose what it has not synced: no other has lost
   anything that it has not made good. One that is away lacks things, too, but
   says so to nobody. */
static bool power_may_fail(const struct host *h) {
    bool may = true;

    for (unsigned i = 0; i < world.host_count; i++) {
        struct host *other = &world.hosts[i];

        if (other->unsafe && host_safe(other))
            other->unsafe = false;
        may = may && (!other->unsafe || other == h);
    }
    return may || setting.sync == SYNC_ALWAYS;
}

static void fault_kill(void *thing, uint64_t life) {
    struct host *h = thing;
    bool power = once_in(3) && power_may_fail(h);

    (void)life;
    if (!h->up)
        return;
    h->unsafe = h->unsafe || power;
    host_end(h, power);
    event_add(world.now + below(once_in(2) ? 20000 : 2 * SECOND), fault_over, h,
              h->life);
}

/* A machine stands still. */
static void fault_freeze(void *thing, uint64_t life) {
    struct host *h = thing;

    (void)life;
    h->frozen_until = world.now + below(once_in(2) ? 300000 : 4 * SECOND);
    trace("node %u stands still until %.6f", h->number,
          (double)h->frozen_until / 1e6);
}

static void fault_uncut(void *thing, uint64_t life) {
    (void)thing;
    (void)life;
    memset(weather.cut, 0, sizeof weather.cut);
    trace("the network is whole");
}

/* A node is cut off from one other or from all, in one direction or both. */
static void fault_cut(void *thing, uint64_t life) {
    struct host *h = thing;
    unsigned other = (unsigned)between(0, world.host_count);
    unsigned way = (unsigned)below(4);

    (void)life;
    trace("node %u is cut off from %u (0: all), way %u", h->number, other, way);
    for (unsigned i = 1; i <= world.host_count; i++)
        if (i != h->number &&
            (other == 0 || other == h->number || i == other)) {
            weather.cut[h->number][i] |= way != 1;
            weather.cut[i][h->number] |= way != 2;
        }
    event_add(world.now + below(once_in(2) ? 500000 : 5 * SECOND), fault_uncut,
              h, 0);
}

/* An event, again and again: a node takes the one before it for dead, so that
   operations on a key are not all done by the same owner. */
static void fault_deaf(void *thing, uint64_t life) {
    struct host *h = thing;

    (void)life;
    if (h->up && h->node != NULL && atomic_load(&h->node->loaded))
        atomic_store(
            &h->node->peers[1 + h->node->self.number % world.host_count].heard,
            0);
    event_add(world.now + between(10000, 60000), fault_deaf, h, 0);
}

/* The owners of the key of a pointed history. */
static void owners_find(void) {
    const struct view *view = view_of(setting.members, 1);
    uint64_t print = ring_fingerprint("key0", 4, view->hash);
    unsigned n;
    const unsigned *owners;

    setting.partition = ring_partition(print, PARTS);
    owners = ring_owners(view->ring, setting.partition, &n);
    for (unsigned i = 0; i < n; i++)
        setting.owners[i] = view->member[owners[i]].number;
    for (unsigned i = 1; n < world.host_count && i <= world.host_count; i++) {
        unsigned k = 0;

        while (k < n && setting.owners[k] != i)
            k++;
        if (k == n)
            setting.owners[n++] = i;
    }
}

/* An event: a process is killed, and started again before long. */
static void fault_blink(void *thing, uint64_t life) {
    struct host *h = thing;

    (void)life;
    if (!h->up)
        return;
    host_end(h, false);
    event_add(world.now + below(3000), fault_over, h, h->life);
}

/* An event: all machines lose their power at once. Only what was synced is left
   then, and it has to be all that anybody was told of. */
static void fault_blackout(void *thing, uint64_t life) {
    (void)thing;
    (void)life;
    for (unsigned i = 0; i < world.host_count; i++) {
        struct host *h = &world.hosts[i];

        if (h->up)
            host_end(h, true);
        event_add(world.now + below(10000), fault_over, h, h->life);
    }
}

/* An event, again and again: the second owner takes the first for dead, so
   that both do operations; now and then any one does so, which then repairs. */
static void fault_rival(void *thing, uint64_t life) {
    unsigned by = setting.owners[1], of = setting.owners[0];
    struct host *h;

    (void)thing;
    (void)life;
    if (once_in(8)) {
        by = (unsigned)between(1, world.host_count);
        of =
            1 + (by + (unsigned)below(world.host_count - 1)) % world.host_count;
    }
    h = host_of(by);
    if (h->up && h->node != NULL && atomic_load(&h->node->loaded))
        atomic_store(&h->node->peers[of].heard, 0);
    event_add(world.now + between(5000, 30000) / (weather.slow_disk ? 10 : 1),
              fault_rival, h, 0);
}

/* An event, again and again: an owner tells another one that it has missed a
   write, so that this one repairs. */
static void fault_missed(void *thing, uint64_t life) {
    struct host *h = host_of(setting.owners[below(world.host_count)]);
    unsigned to = setting.owners[below(world.host_count)];

    (void)life;
    if (h->up && h->node != NULL && atomic_load(&h->node->loaded)) {
        atomic_store(&h->node->peers[to].missed[0], UINT64_MAX);
        atomic_store(&h->node->peers[to].missed_any, true);
    }
    event_add(world.now + between(5000, 50000), fault_missed, thing, 0);
}

/* An event, again and again: of the owners each two may not reach each other,
   the first two more often than not. */
static void fault_part(void *thing, uint64_t life) {
    unsigned rarity = once_in(4) ? 0 : (unsigned)between(2, 6);

    (void)life;
    memset(weather.cut, 0, sizeof weather.cut);
    for (unsigned i = 1; i < world.host_count; i++)
        for (unsigned j = 0; j < i; j++)
            if (once_in(rarity) || (rarity > 0 && i == 1 && once_in(2))) {
                unsigned one = setting.owners[i], two = setting.owners[j];

                weather.cut[one][two] = weather.cut[two][one] = true;
                trace("nodes %u and %u are cut off", one, two);
            }
    event_add(world.now + between(20000, 600000), fault_part, thing, 0);
}

/* Chooses what will go wrong in a pointed history on slow disks: whatever one
   coordinator has had stored another one sees before it is synced, and then the
   power is lost. */
static void faults_dark(uint64_t span) {
    weather.slow_disk = true;
    fault_rival(NULL, 0);
    for (unsigned i = (unsigned)between(1, 5); i > 0; i--)
        event_add(world.now + below(span), fault_blackout, world.hosts, 0);
}

/*
 * Chooses what will go wrong in a pointed history: what is left of a promise
 * between it and its record. So records of it come late, some never, while
 * owners lose their memory and repair, and other majorities go on.
 */
static void faults_point(uint64_t span) {
    owners_find();
    if (setting.dark) {
        faults_dark(span);
        return;
    }
    weather.late = between(1, 3);
    weather.late_us = once_in(2) ? 100000 : SECOND;
    weather.lost = once_in(2) ? between(10, 40) : 0;
    weather.doubled = once_in(2) ? between(2, 10) : 0;
    weather.doubled_us = 500000;
    if (getenv("LAGS") != NULL || once_in(4)) {
        weather.lag = between(1, 4);
        weather.lag_us = once_in(2) ? 20000 : 200000;
    }
    fault_rival(NULL, 0);
    fault_part(NULL, 0);
    if (setting.missed)
        fault_missed(NULL, 0);
    for (unsigned i = (unsigned)below(4); i > 0; i--)
        event_add(
            world.now + below(span), fault_blink,
            host_of(setting.owners[once_in(2) ? 2 : below(world.host_count)]),
            0);
}

/* Chooses what will go wrong in the next so many us. */
static void faults_choose(uint64_t span) {
    unsigned count = (unsigned)below(once_in(4) ? 12 : 5);

    memset(&weather, 0, sizeof weather);
    if (once_in(2))
        weather.slow = between(2, 20);
    if (once_in(2))
        weather.very_slow = between(5, 100);
    if (once_in(3))
        weather.lost = between(5, 100);
    if (once_in(2))
        weather.doubled = between(2, 30);
    weather.very_slow_us = once_in(2) ? 200000 : 3 * SECOND;
    weather.doubled_us = once_in(4) ? 5 * SECOND : 500000;
    if (once_in(3))
        for (unsigned i = 0; i < world.host_count; i++)
            event_add(world.now + below(span), fault_deaf, &world.hosts[i], 0);
    for (unsigned i = 0; i < count; i++) {
        struct host *h = &world.hosts[below(world.host_count)];
        unsigned dice = (unsigned)below(8);

        event_add(world.now + below(span),
                  dice < 5   ? fault_kill
                  : dice < 6 ? fault_freeze
                             : fault_cut,
                  h, 0);
    }
}

/* ---- Changes of the ring, as an operator makes them. */

/* Whether all machines have all that they ever said they have. */
static bool all_safe(void) {
    bool safe = true;

    for (unsigned i = 0; i < world.host_count; i++) {
        struct host *h = &world.hosts[i];

        h->unsafe = h->unsafe && !host_safe(h);
        safe = safe && !h->unsafe;
    }
    return safe;
}

/* How many are members and are to stay so. */
static unsigned members_stay(void) {
    unsigned n = 0;

    for (unsigned i = 0; i < etcd.view->old; i++)
        n += host_named(etcd.view->member[i].name)->wanted;
    return n;
}

/* A node is to be removed; forced: at once. */
static void change_leave_how(struct host *h, bool forced) {
    char key[32], value[60];

    trace("node %u is to leave", h->number);
    h->wanted = false;
    snprintf(key, sizeof key, "strj_leave_n%u", h->number);
    snprintf(value, sizeof value, "{\"leave\":\"n%u\",\"force\":\"%d\"}",
             h->number, forced);
    etcd_set_text(key, slice_of(value));
}

static void change_leave(struct host *h) {
    change_leave_how(h, false);
}

/* A node's disk is lost. gone: so is the machine; or it starts anew, and is to
   take the place of its lost self. */
static void change_lose(struct host *h, bool gone) {
    trace("node %u loses its disk", h->number);
    if (h->up)
        host_end(h, true);
    while (h->file_count > 0)
        file_remove(h, h->files[0]);
    h->unsafe = h->add = true;
    h->off = gone;
    if (gone)
        change_leave(h);
    else
        event_add(world.now + below(once_in(2) ? 20000 : SECOND), fault_over, h,
                  h->life);
}

/* A node that is none starts, and is to join; an old disk is in its way. */
static void change_join_by(struct host *h) {
    trace("node %u is to join", h->number);
    h->wanted = h->add = true;
    h->off = false;
    host_start(h);
}

/* An event: what happens to a node in the middle of a change. */
static void change_kill(void *thing, uint64_t life) {
    struct host *h = thing;

    if (!h->up || h->life != life)
        return;
    if (once_in(3)) {
        h->frozen_until = world.now + below(SECOND);
        trace("node %u stands still until %.6f", h->number,
              (double)h->frozen_until / 1e6);
    } else if (once_in(2)) {
        fault_kill(h, 0);
    } else {
        fault_blink(h, 0);
    }
}

/* Who owns the key before and after the change, if one is under way. */
static void turn_note(const struct view *view) {
    unsigned owners[OWNERS_MAX];
    uint64_t groups[GROUPS];
    unsigned n = view_owners(view, setting.partition, owners, groups);

    memset(setting.turn, 0, sizeof setting.turn);
    for (unsigned i = 0; i < n; i++)
        for (unsigned g = 0; g < GROUPS; g++)
            if ((groups[view->next == NULL ? GROUP_OLD : g] >> i & 1) != 0)
                setting.turn[g] |=
                    1u << host_named(view->member[owners[i]].name)->number;
}

/* An owner that is to be none goes by the ring before until the faults end: it
   does not reach etcd. */
static void change_hide_stale(void) {
    unsigned leaver = setting.turn[GROUP_OLD] & ~setting.turn[GROUP_NEW];

    while (leaver >> (setting.hidden + 1) != 0)
        setting.hidden++;
    if (setting.hidden == 0)
        return;
    host_of(setting.hidden)->away_until = UINT64_MAX;
    trace("node %u does not reach etcd any more", setting.hidden);
}

/* Some of the owners go by the ring before for a while: they do not reach
   etcd. */
static void change_hide(void) {
    uint64_t until = world.now + below(once_in(2) ? 100000 : 2 * SECOND);

    for (unsigned n = (unsigned)between(1, 2); n > 0;) {
        struct host *h = host_of((unsigned)between(1, world.host_count));

        if ((setting.turn[GROUP_OLD] >> h->number & 1) == 0)
            continue;
        n--;
        if (h->away_until >= until)
            continue;
        h->away_until = until;
        trace("node %u does not reach etcd until %.6f", h->number,
              (double)until / 1e6);
    }
}

/* A change has begun or ended. Now and then something happens to one of those
   whom it is about. */
static void change_seen(const struct view *before) {
    const struct view *view = etcd.view;
    unsigned i = view->next != NULL && !once_in(3)
                     ? view->count - 1
                     : (unsigned)below(view->count);

    if (before != NULL && view->epoch > before->epoch && !weather.calm &&
        once_in(2))
        event_add(world.now + below(once_in(2) ? 3000 : 50000), change_kill,
                  host_named(view->member[i].name),
                  host_named(view->member[i].name)->life);
    if (!weather.brisk || weather.calm)
        return;
    if (view->next != NULL)
        turn_note(view);
    if (setting.stale && view->next != NULL)
        change_hide_stale();
    else if (!setting.stale && !once_in(4))
        change_hide();
}

/* An event: a node loses its power. */
static void change_dark(void *thing, uint64_t life) {
    struct host *h = thing;

    if (!h->up || h->life != life || weather.calm || !power_may_fail(h))
        return;
    h->unsafe = true;
    host_end(h, true);
    event_add(world.now + below(20000), fault_over, h, h->life);
}

/* A new owner has reported. Now and then it loses its power then. */
static void report_seen(struct host *h) {
    if (!weather.calm && once_in(setting.pointed ? 2 : 4))
        event_add(world.now + below(once_in(2) ? 3000 : 60000), change_dark, h,
                  h->life);
}

/* One or all cannot reach etcd for a while. */
static void change_away(struct host *h) {
    uint64_t until = world.now + below(once_in(2) ? 500000 : 5 * SECOND);
    bool all = once_in(4);

    for (unsigned i = 0; i < world.host_count; i++)
        if (all || &world.hosts[i] == h) {
            trace("node %u does not reach etcd until %.6f", i + 1,
                  (double)until / 1e6);
            world.hosts[i].away_until = until;
        }
}

/* An event, again and again: an operator does something. A majority of those
   who have all that was written is left in any case. */
static void change_next(void *thing, uint64_t left) {
    struct host *h = &world.hosts[below(world.host_count)];
    const struct view *view = etcd.view;
    unsigned dice = (unsigned)below(10);
    bool quiet = view->next == NULL && !etcd_wished() && all_safe();
    bool member = h->wanted && etcd_member(h) != NULL;

    if (dice < 2)
        change_away(h);
    else if (h->off && etcd_member(h) == NULL)
        change_join_by(h);
    else if (dice < 4 && view->next != NULL && view->count > view->old)
        change_leave(host_named(view->member[view->old].name));
    else if (dice < 7 && member && etcd_member(h)->id != 0 && quiet &&
             view->old > 2)
        change_lose(h, members_stay() > 3 && once_in(2));
    else if (member && all_safe() && members_stay() > 2)
        change_leave(h);
    else
        left++;
    if (left > 1)
        event_add(world.now + below(once_in(4)        ? 5000
                                    : setting.pointed ? 300000
                                                      : 600000),
                  change_next, thing, left - 1);
}

/* A change that cannot go on, since a new owner's disk is lost, waits for the
   operator, who has that owner removed. */
static void changes_unstick(void) {
    for (unsigned i = 0; etcd.view->next != NULL && i < etcd.view->count; i++) {
        const struct member *m = &etcd.view->member[i];
        struct host *h = host_named(m->name);

        if (h->node == NULL || h->node->self.id != m->id) {
            change_leave(h);
            break;
        }
    }
}

/* An owner that recovers waits for one that is gone for good: the operator has
   that one removed by force. Nothing is lost by it here, since no two machines
   lose anything at a time. */
static void changes_force(void) {
    for (unsigned i = 0; i < etcd.view->old; i++) {
        const struct member *m = &etcd.view->member[i];
        struct host *h = host_named(m->name);

        if (h->node == NULL || h->node->self.id != m->id)
            change_leave_how(h, true);
    }
}

/* An event: the last node joins, who was none. */
static void change_stale(void *thing, uint64_t life) {
    (void)life;
    change_join_by(thing);
}

/* Chooses how often the ring is to change in the next so many us. */
static void changes_choose(uint64_t span) {
    if (setting.stale) {
        event_add(world.now + below(50000), change_stale,
                  host_of(world.host_count), 0);
        return;
    }
    if (once_in(3))
        weather.etcd_lost = between(5, 50);
    if (once_in(3))
        weather.etcd_slow = between(2, 20);
    event_add(world.now + below(setting.pointed ? 50000 : span / 2),
              change_next, NULL, between(1, 7));
}

/* Adds a majority of some nodes to a side. */
static unsigned side_add(unsigned side, unsigned of) {
    unsigned some = 0;

    while (bits_count(some) <= bits_count(of) / 2)
        some |= of & 1u << between(1, NODES);
    return side | some;
}

/* Chooses a side: a majority of the key's owners by the ring before the change
   or after it, even when that is over: some may not know. Or of both. If one
   does not know it is with another one, and then the others are a side. */
static unsigned side_choose(void) {
    unsigned dice = (unsigned)below(3), side = 0;

    if (setting.hidden != 0) {
        unsigned hidden = 1u << setting.hidden;

        if (etcd.view->next != NULL)
            return 0;
        if ((weather.side & hidden) != 0)
            return ((2u << world.host_count) - 2) & ~weather.side;
        while (bits_count(side) < 2)
            side = hidden | (setting.turn[GROUP_OLD] &
                             1u << between(1, world.host_count));
        return side;
    }
    if (dice != 1)
        side = side_add(side, setting.turn[GROUP_OLD]);
    if (dice != 0)
        side = side_add(side, setting.turn[GROUP_NEW]);
    return side;
}

/* An event, again and again: a majority of the key's owners is by itself, or
   all reach each other; and each node knows that at once. */
static void fault_side(void *thing, uint64_t life) {
    (void)life;
    memset(weather.cut, 0, sizeof weather.cut);
    weather.side = setting.hidden != 0 || once_in(2) ? side_choose() : 0;
    for (unsigned i = 1; i <= world.host_count; i++)
        for (unsigned j = 1; j <= world.host_count; j++) {
            struct node *node = host_of(i)->node;
            bool cut = weather.side != 0 && camp_has(i) != camp_has(j);

            weather.cut[i][j] = cut;
            if (i == j || node == NULL || !atomic_load(&node->loaded))
                continue;
            for (unsigned k = 0; k < node->view->count; k++)
                if (host_named(node->view->member[k].name) == host_of(j))
                    atomic_store(
                        &node->peers[node->view->member[k].number].heard,
                        cut || !host_of(j)->up || i == setting.hidden
                            ? 0
                            : world.now / 1000);
        }
    trace("side %x", weather.side);
    event_add(world.now + between(5000, 150000), fault_side, thing, 0);
}

/*
 * Chooses what will go wrong in a pointed history while the ring changes: who
 * may reach whom is another each few moments, and answers come late, so that
 * majorities by the rings of all epochs are at work at once.
 */
static void faults_turn(void) {
    owners_find();
    weather.slow = once_in(2) ? between(1, 4) : between(4, 20);
    if (once_in(2))
        weather.very_slow = between(5, 40);
    weather.very_slow_us = 200000;
    if (once_in(3))
        weather.lost = between(10, 40);
    if (getenv("LAGS") != NULL || once_in(4)) {
        weather.lag = between(1, 4);
        weather.lag_us = once_in(2) ? 20000 : 200000;
    }
    weather.brisk = true;
    turn_note(etcd.view);
    fault_side(NULL, 0);
}

/* Nothing goes wrong any more. */
static void faults_end(void) {
    trace("the faults are over");
    weather.slow = weather.very_slow = weather.lost = weather.doubled = 0;
    weather.late = weather.lag = weather.etcd_lost = weather.etcd_slow = 0;
    weather.slow_disk = false;
    weather.side = 0;
    weather.calm = true;
    fault_uncut(NULL, 0);
    for (size_t i = 0; i < world.queued; i++)
        if (world.queue[i].fn == fault_kill ||
            world.queue[i].fn == fault_blink ||
            world.queue[i].fn == fault_blackout ||
            world.queue[i].fn == fault_freeze ||
            world.queue[i].fn == fault_rival ||
            world.queue[i].fn == fault_part ||
            world.queue[i].fn == fault_side ||
            world.queue[i].fn == change_next ||
            world.queue[i].fn == change_stale ||
            world.queue[i].fn == change_kill ||
            world.queue[i].fn == fault_missed ||
            world.queue[i].fn == fault_deaf || world.queue[i].fn == fault_cut)
            world.queue[i].fn = fault_uncut;
    for (unsigned i = 0; i < world.host_count; i++) {
        world.hosts[i].frozen_until = world.hosts[i].away_until = 0;
        fault_over(&world.hosts[i], world.hosts[i].life);
        for (struct sock *s = world.hosts[i].socks; s != NULL; s = s->next)
            if (s->gapped)
                event_add(world.now + below(200000), link_break, s, s->life);
    }
}

/* ------------------------------------------------------------- A history */

/* Everything is gone. */
static void world_end(void) {
    for (size_t i = 0; i < world.queued; i++)
        if (world.queue[i].fn == message_arrive ||
            world.queue[i].fn == answer_arrive ||
            world.queue[i].fn == etcd_arrive)
            message_free(world.queue[i].thing);
    world.queued = 0;
    for (unsigned i = 0; i < CLIENTS + 1; i++)
        if (show.client[i].sock != NULL)
            show.client[i].sock->client = NULL;
    for (unsigned i = 0; i < world.host_count; i++) {
        struct host *h = &world.hosts[i];

        host_end(h, false);
        while (h->file_count > 0)
            file_remove(h, h->files[0]);
        for (unsigned j = 1; j <= world.host_count; j++)
            view_of(world.host_count, j)->refs = 1;
    }
    while (world.queued > 0) /* breaks of links */
        event_take();
}

/* A new cluster. */
static void world_begin(uint64_t seed) {
    bool some;

    random_state = world.seed = seed;
    world.now = UINT64_C(1800000000) * SECOND;
    world.order = 0;
    last_arrival = 0;
    setting.dark = getenv("DARK") != NULL || once_in(24);
    setting.missed = getenv("MISSED") != NULL || once_in(6);
    setting.pointed =
        setting.dark || setting.missed || getenv("LAGS") != NULL || once_in(4);
    setting.changes = getenv("CHANGES") != NULL;
    if (setting.changes) {
        setting.dark = setting.missed = false;
        setting.pointed = getenv("POINTED") != NULL || once_in(2);
    }
    some = setting.changes && setting.pointed && getenv("POINTED") == NULL;
    setting.away = getenv("AWAY") != NULL || (some && once_in(16));
    setting.forced =
        !setting.away && (getenv("FORCED") != NULL || (some && once_in(16)));
    setting.stale = !setting.away && !setting.forced &&
                    (getenv("STALE") != NULL || (some && once_in(8)));
    setting.hidden = 0;
    if (setting.changes)
        world.host_count = setting.away || setting.forced
                               ? NODES
                               : (unsigned)between(4, NODES);
    else if (setting.pointed)
        world.host_count = once_in(4) ? NODES : 3;
    else
        world.host_count = once_in(4) ? once_in(3) ? 4 : 5 : 3;
    setting.members = world.host_count;
    memset(&weather, 0, sizeof weather);
    if (setting.changes) {
        setting.members = setting.stale || setting.away ? world.host_count - 1
                          : setting.forced
                              ? world.host_count
                              : (unsigned)between(3, world.host_count);
        etcd_new(setting.members);
    }
    setting.sync = setting.dark || once_in(4) ? SYNC_ALWAYS
                   : once_in(8)               ? SYNC_NONE
                                              : SYNC_SECOND;
    for (unsigned i = 0; i < world.host_count; i++) {
        struct host *h = &world.hosts[i];

        *h = (struct host){.number = i + 1, .life = h->life + 1};
        h->skew = !setting.pointed && once_in(2)
                      ? 0
                      : (int64_t)below(setting.pointed ? SECOND : 30 * SECOND);
        h->wanted = i < setting.members;
        h->off = !h->wanted;
        if (h->wanted)
            host_start(h);
    }
}

/* Clients for it. */
static void show_begin(void) {
    history_free(show.history);
    memset(&show, 0, sizeof show);
    show.history = history_new();
    show.mix = (enum mix)below(3);
    if (getenv("PLAIN") != NULL)
        show.mix = MIX_PLAIN;
    else if (setting.pointed && !(setting.away && once_in(2)))
        show.mix = MIX_CONSISTENT;
    show.keys = setting.pointed ? 1 : (unsigned)between(1, KEYS);
    show.clients = (unsigned)between(2, CLIENTS);
    show.left = (unsigned)(!setting.pointed  ? between(10, 40)
                           : setting.changes ? between(40, 120)
                                             : between(4, 12));
    show.patience_us = once_in(2) ? 15 * SECOND : between(100000, 5 * SECOND);
    for (unsigned i = 0; i <= CLIENTS; i++)
        show.client[i].number = i;
}

/* Lets time pass, in steps, until something is so, or for so long. */
static bool time_until(bool (*so)(void), uint64_t us) {
    uint64_t end = world.now + us;

    while (!so() && world.now < end)
        time_pass(world.now + 20000);
    return so();
}

static bool clients_rest(void) {
    return show.at_work == 0 && show.left == 0;
}

static bool parts_equal(void) {
    return all_rest() && parts_differ() == PARTS;
}

/* Whether a host is a member, and runs. */
static bool host_serves(const struct host *h) {
    return h->node != NULL && h->node->view->me < h->node->view->count;
}

/* In the end each node is asked for each key. */
static void show_audit(bool consistent) {
    struct client *c = &show.client[AUDITOR];

    show.patience_us = 20 * SECOND;
    c->plainly = !consistent; /* at rest that is no less */
    for (unsigned i = 0; i < world.host_count; i++)
        for (unsigned key = 0; key < show.keys && host_serves(&world.hosts[i]);
             key++) {
            c->op = (struct history_op){
                .kind = HISTORY_READ,
                .consistent = consistent || show.mix == MIX_CONSISTENT,
                .key = key,
                .client = AUDITOR,
                .begin = world.now};
            client_ask(c, &world.hosts[i]);
            if (!time_until(clients_rest, 20 * SECOND) ||
                (c->status != 200 && c->status != 404))
                fail("node %u cannot say what key%u is, after all faults",
                     i + 1, key);
        }
}

#define STALE_US (5 * SECOND / 2) /* the 2 s, and until they are noticed */

/* The clients begin, or go on with so many operations more. */
static void show_go(unsigned more) {
    show.left += more;
    for (unsigned i = 0; i < show.clients; i++)
        event_add(world.now + below(show.pause_us), client_next,
                  &show.client[i], show.client[i].life);
}

/* So many us are over in which all stood still. */
static void time_jump(uint64_t us) {
    trace("all stand still");
    world.now += us;
    for (size_t i = 0; i < world.queued; i++)
        world.queue[i].at += us;
}

/* Whether no change of the ring runs; one runs; one was made, and none runs. */
static bool ring_rests(void) {
    return etcd.view->next == NULL;
}

static bool ring_changes(void) {
    return !ring_rests();
}

static bool ring_changed(void) {
    return etcd.view->epoch > 1 && ring_rests();
}

/* Now and then an owner of the key by the first ring, if it runs, loses its
   power before long. */
static void away_dark(void) {
    unsigned n = replicas_of(world.host_count);
    struct host *h = host_of(setting.owners[below(n)]);

    if (once_in(2))
        event_add(world.now + below(once_in(2) ? 50000 : SECOND), change_dark,
                  h, h->life);
}

/* The owner of the key that is to be away: one from which the next change takes
   it, or any one. */
static struct host *away_chosen(bool any) {
    const struct view *later = view_of(world.host_count, 1);
    unsigned n = replicas_of(world.host_count);
    struct host *h = NULL;

    owners_find();
    for (unsigned i = 0; i < n; i++)
        if (view_owns(later, setting.partition, setting.owners[i]) == 0)
            h = host_of(setting.owners[i]);
    must(h != NULL, "an owner that is none by the later ring");
    return any ? host_of(setting.owners[below(n)]) : h;
}

/*
 * An owner of the key is away while a change takes the key from it, or from
 * another one, or there is none; the key is deleted, and tombstones go. It comes
 * back with the next change, which may make it an owner again. What it has is
 * out of date then, and nothing tells but that. Owners lose their power
 * meanwhile, and it, too, once it is back.
 */
static void history_away(void) {
    struct host *joiner = host_of(world.host_count), *leaver = joiner;
    bool any = once_in(2);
    struct host *h = away_chosen(any);

    show.pause_us = 100000;
    show_go(0);
    time_pass(world.now + between(50000, SECOND));
    host_end(h, false);
    h->off = true;
    away_dark();
    time_pass(world.now + below(500000));
    if (!any || !once_in(4)) {
        change_join_by(joiner);
        time_until(ring_changed, 60 * SECOND);
    }
    time_until(clients_rest, 60 * SECOND);
    show.left = 0; /* some may wait for the one that is away */
    time_until(clients_rest, 60 * SECOND);
    time_jump(between(TOMBSTONE_OLD / 2, 2 * TOMBSTONE_OLD) * SECOND);
    time_pass(world.now + between(SECOND, 30 * SECOND));
    while (leaver == h || !leaver->wanted)
        leaver = host_of((unsigned)between(1, world.host_count));
    change_leave(leaver);
    if (!once_in(4))
        time_until(ring_changes, 60 * SECOND);
    if (any && once_in(2))
        time_until(ring_rests, 60 * SECOND);
    h->off = false;
    host_start(h);
    show_go((unsigned)between(4, 20));
    away_dark();
    away_dark();
    time_pass(world.now + between(SECOND, 5 * SECOND));
}

/* What the clients have seen so far must fit. It is forgotten: they begin anew
   with what the key is now, if that is what they once wrote, and with what they
   asked for and nobody has answered, which may be done yet. */
static void show_anew(void) {
    struct history *before = show.history;
    const char *wrong = history_check_linear(before);
    struct client *c = &show.client[AUDITOR];
    size_t n = history_count(before);

    if (wrong != NULL)
        fail("%s", wrong);
    show_audit(true); /* each node has the same, or it fails here */
    wrong = history_check_linear(before);
    c->op = (struct history_op){.kind = HISTORY_WRITE,
                                .consistent = true,
                                .client = AUDITOR,
                                .value = c->seen[0],
                                .begin = world.now};
    trace("key0 is %" PRIu64 " now%s", c->seen[0],
          wrong == NULL ? "" : ", and what was written last is lost");
    show.history = history_new();
    if (c->seen[0] != 0)
        history_end(show.history, history_begin(show.history, &c->op),
                    HISTORY_OK, c->seen[0], false, world.now);
    for (size_t i = 0; i < n; i++) {
        const struct history_op *op = history_at(before, i);

        if (op->kind != HISTORY_READ && op->outcome == HISTORY_UNKNOWN &&
            (op->kind == HISTORY_DELETE || op->value != c->seen[0]))
            history_end(show.history, history_begin(show.history, op),
                        HISTORY_UNKNOWN, 0, false, op->end);
    }
    history_free(before);
}

/*
 * A majority of the key's owners is lost for good, with what they had, and the
 * operator has them removed by force: what was written last may be lost then,
 * and nothing else. The others must come to rest without them, and the clients
 * find one value.
 */
static void history_forced(void) {
    owners_find();
    show.pause_us = 100000;
    weather.slow = between(2, 20);
    if (once_in(2))
        weather.lost = between(5, 40);
    show_go(0);
    time_pass(world.now + between(50000, SECOND));
    for (unsigned i = 0; i < 2; i++) {
        struct host *h = host_of(setting.owners[i]);

        host_end(h, true);
        while (h->file_count > 0)
            file_remove(h, h->files[0]);
        h->off = true;
    }
    time_pass(world.now + below(5 * SECOND));
    show.left = 0;
    weather.slow = weather.lost = 0;
    time_until(clients_rest, 60 * SECOND);
    for (unsigned i = 0; i < 2; i++) {
        change_leave_how(host_of(setting.owners[i]), true);
        time_pass(world.now + below(once_in(2) ? 2000 : SECOND));
    }
    if (!time_until(all_rest, 120 * SECOND))
        fail("the cluster does not come to rest after a removal by force");
    show_anew();
    show_go((unsigned)between(4, 20));
    time_pass(world.now + between(SECOND, 5 * SECOND));
}

/* Things go wrong while the clients are at work. */
static void history_faults(void) {
    uint64_t span;

    span = once_in(4) ? between(SECOND, 5 * SECOND) : between(30000, SECOND);
    if (setting.changes && setting.pointed)
        span = between(SECOND, 3 * SECOND);
    show.pause_us = 2 * span * show.clients / show.left;
    if (setting.changes && !setting.pointed)
        span += between(SECOND, 4 * SECOND);
    if (setting.changes && setting.pointed)
        faults_turn();
    else if (setting.pointed)
        faults_point(span);
    else
        faults_choose(span);
    if (setting.changes)
        changes_choose(span);
    show_go(0);
    time_pass(world.now + span);
}

static void history_run(uint64_t seed) {
    const char *wrong;

    world_begin(seed);
    show_begin();
    if (setting.pointed || !once_in(4))
        time_until(all_rest, 5 * SECOND);
    if (setting.away)
        history_away();
    else if (setting.forced)
        history_forced();
    else
        history_faults();
    faults_end();
    time_pass(world.now + 250000); /* until broken links are gone */
    time_until(clients_rest, 60 * SECOND);
    if (setting.changes && !time_until(all_rest, 15 * SECOND))
        changes_unstick();
    for (int i = 0; i < 2; i++) { /* before and after what came very late */
        if (setting.changes && !time_until(all_rest, 30 * SECOND))
            changes_force();
        if (!time_until(all_rest, 60 * SECOND))
            fail("the cluster does not come to rest");
        if (last_arrival > world.now)
            time_pass(last_arrival);
    }
    if (show.mix != MIX_PLAIN)
        show_audit(true);
    if (getenv("UNEQUAL") == NULL && !time_until(parts_equal, 600 * SECOND))
        fail("the replicas of partition %u differ", parts_differ());
    show_audit(false);
    wrong = show.mix == MIX_CONSISTENT
                ? history_check_linear(show.history)
                : history_check_plain(show.history, STALE_US);
    if (wrong != NULL)
        fail("%s", wrong);
    world_end();
}

static uint64_t environment(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);

    return text != NULL ? strtoull(text, NULL, 10) : otherwise;
}

int main(void) {
    struct timespec t;
    uint64_t seed, histories, state;

    clock_gettime(CLOCK_REALTIME, &t);
    seed = environment("SEED", 0);
    histories = seed != 0                       ? 1
                : environment("TORTURE", 0) > 0 ? 10000000
                                                : 10000;
    histories = environment("HISTORIES", histories);
    world.trace = environment("TRACE", 0) > 0;
#ifdef PLANTS
    plant = (unsigned)environment("PLANT", 0);
#endif
    state = seed != 0 ? seed : (uint64_t)t.tv_sec << 20;
    fprintf(stderr, "sim: %" PRIu64 " histories from seed %" PRIu64 "\n",
            histories, state);
    for (world.ops = 0; world.ops < histories; world.ops++)
        history_run(state + world.ops);
    fprintf(stderr, "sim: no violation\n");
    return 0;
}
