/* histories.c - what clients of a cluster saw, under faults

   Clients ask random nodes, and record what they asked, when, and what came
   of it, while processes are killed, stopped and restarted, etcd rests, and
   clocks are wrong; history.h then says whether a correct store could have
   answered so.  With it: what a cluster promises about conditions, counters,
   replicas that were cut off or away, and deleted keys.

   Faults are chosen by a seed that is printed; SEED=n is that run again (as
   far as real processes can do anything again).  TORTURE=1 asks for an hour
   of histories, and a million keys. */

#include "stories.h"

enum {
    COUNTERS = 16, /* clients that raise one counter */
    SKEW_MAX = 20  /* seconds by which a clock is wrong */
};

/* ---- A network that can be cut --------------------------------------- */

/* The last node of a cluster is known to the others by an address where this
   program listens, and passes on what comes to the node's real one.  While it
   is cut, nothing passes; but the node can still be asked by clients, and can
   ask the others.  What was held back goes on afterwards. */
enum { LINKS_MAX = 200 };
static struct {
    int port;     /* of the node; 0: there is no such address here */
    int listener; /* at CUT_HOST, of the same port */
    struct pollfd fds[1 + 2 * LINKS_MAX]; /* the listener; ends, in pairs */
    nfds_t count;
    pthread_t thread;
    atomic_bool cut, stop;
} cable;
#define CUT_HOST "127.0.0.2"

/* Takes a connection for the node, and makes the one behind it. */
static void cable_accept(void) {
    struct sockaddr_in a = {.sin_family = AF_INET};
    int from = accept(cable.listener, NULL, NULL);
    int to = socket(AF_INET, SOCK_STREAM, 0), one = 1;

    a.sin_port = htons((uint16_t)cable.port);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (from < 0 || to < 0 || cable.count + 2 > 1 + 2 * LINKS_MAX ||
        connect(to, (struct sockaddr *)&a, sizeof a) < 0) {
        close(from);
        close(to);
        return;
    }
    setsockopt(from, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(to, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    cable.fds[cable.count++] = (struct pollfd){.fd = from, .events = POLLIN};
    cable.fds[cable.count++] = (struct pollfd){.fd = to, .events = POLLIN};
}

/* Passes on what has come to one end; false when it has closed. */
static bool cable_pass(int from, int to) {
    static char bytes[65536];
    ssize_t n = recv(from, bytes, sizeof bytes, 0), done = 0;

    while (done < n) {
        ssize_t sent = send(to, bytes + done, (size_t)(n - done), MSG_NOSIGNAL);

        if (sent < 0 && errno != EINTR)
            return false;
        done += sent > 0 ? sent : 0;
    }
    return n > 0;
}

static void *cable_main(void *arg) {
    (void)arg;
    while (!atomic_load(&cable.stop)) {
        if (atomic_load(&cable.cut)) {
            pause_ms(5);
            continue;
        }
        if (poll(cable.fds, cable.count, 20) <= 0)
            continue;
        for (nfds_t i = cable.count; i-- > 1;) {
            nfds_t pair = ((i - 1) ^ 1) + 1, low = pair < i ? pair : i;

            if (cable.fds[i].revents == 0 || atomic_load(&cable.cut) ||
                cable_pass(cable.fds[i].fd, cable.fds[pair].fd))
                continue;
            close(cable.fds[i].fd);
            close(cable.fds[pair].fd);
            cable.count -= 2;
            cable.fds[low] = cable.fds[cable.count];
            cable.fds[low + 1] = cable.fds[cable.count + 1];
            cable.fds[low].revents = cable.fds[low + 1].revents = 0;
            i = low;
        }
        if (cable.fds[0].revents != 0)
            cable_accept();
    }
    return NULL;
}

/* Lays the cable to a port, if the machine has an address for it. */
static void cable_begin(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET};
    int one = 1;

    cable.listener = socket(AF_INET, SOCK_STREAM, 0);
    a.sin_port = htons((uint16_t)port);
    inet_pton(AF_INET, CUT_HOST, &a.sin_addr);
    setsockopt(cable.listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(cable.listener, (struct sockaddr *)&a, sizeof a) < 0 ||
        listen(cable.listener, 100) < 0) {
        close(cable.listener);
        return;
    }
    cable.port = port;
    cable.fds[0] = (struct pollfd){.fd = cable.listener, .events = POLLIN};
    cable.count = 1;
    atomic_store(&cable.cut, false);
    atomic_store(&cable.stop, false);
    check(pthread_create(&cable.thread, NULL, cable_main, NULL) == 0,
          "no thread");
}

static void cable_end(void) {
    if (cable.port == 0)
        return;
    atomic_store(&cable.stop, true);
    pthread_join(cable.thread, NULL);
    for (nfds_t i = 0; i < cable.count; i++)
        close(cable.fds[i].fd);
    cable.port = 0;
}

/* ---- Clusters of three and of five ----------------------------------- */

static int64_t *skews[NODES_MAX]; /* seconds; NULL where clocks are right */
static int64_t clocks_at;         /* what those that are right have */
static char skew_library[MAX_PATH];

/* True when every node says that all are Ready and alive. */
static bool cluster_is_whole(void) {
    for (int i = 0; i < node_count; i++)
        for (int j = 0; j < node_count; j++)
            if (nodes[i]->pid == 0 ||
                !status_says(nodes[i], nodes[j], "\"status\":\"Ready\"") ||
                !status_says(nodes[i], nodes[j], "\"alive\":true"))
                return false;
    return true;
}

/* Lets every stopped process go on, joins the network, sets the clocks right,
   starts every node that is down, and waits until all is well; a cmocka
   setup. */
static int cluster_mend(void **state) {
    (void)state;
    cluster_continue();
    atomic_store(&cable.cut, false);
    for (int i = 0; i < node_count; i++) {
        if (skews[i] != NULL)
            *skews[i] = clocks_at;
        if (nodes[i]->pid == 0)
            server_start(nodes[i]);
    }
    for (int i = 0; i < node_count; i++)
        server_ready(nodes[i]);
    wait_until(cluster_is_whole(), LIMIT_MS, "not all Ready and alive");
    return 0;
}

/* Lets time pass, for all nodes at once; it cannot be taken back. */
static void clocks_forward(int64_t seconds) {
    clocks_at += seconds;
    for (int i = 0; i < node_count; i++)
        if (skews[i] != NULL)
            *skews[i] = clocks_at;
}

/* A file that the i-th node's clock reads how wrong it is from; its path. */
static void skew_make(int i, char *path) {
    int fd;
    void *p;

    snprintf(path, MAX_PATH + 16, "%.400s/skew-%d-%d", the_run.dir, node_count,
             i);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    check(fd >= 0 && ftruncate(fd, sizeof *skews[i]) == 0, "%s", path);
    p = mmap(NULL, sizeof *skews[i], PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    check(p != MAP_FAILED, "cannot map %s", path);
    close(fd);
    skews[i] = p;
}

/* A node whose clock can be set wrong, if the library for it is there. */
static struct server *node_new(int i) {
    const char *options = getenv("ASAN_OPTIONS");
    char name[16], path[MAX_PATH + 16];
    struct server *s;

    snprintf(name, sizeof name, "node%d", i + 1);
    skews[i] = NULL;
    if (access(skew_library, R_OK) != 0)
        return server_new(name);
    skew_make(i, path);
    s = server_plain(name, "env");
    server_args(s,
                "LD_PRELOAD=%s SKEW=%s "
                "ASAN_OPTIONS=%s:verify_asan_link_order=0 %s -dataPath %s",
                skew_library, path, options != NULL ? options : "", the_run.exe,
                s->dir);
    return s;
}

/* Makes a cluster of so many nodes and waits for it. */
static int cluster_begin(int count) {
    char members[512] = "";
    size_t n = 0;

    node_count = count;
    clocks_at = 0;
    for (int i = 0; i < count; i++)
        n += (size_t)snprintf(members + n, sizeof members - n,
                              "%snode%d=http://127.0.0.1:%d", i ? "," : "",
                              i + 1, port_pair());
    for (int i = 0; i < count; i++) {
        int port = port_pair();

        nodes[i] = node_new(i);
        server_args(nodes[i],
                    "-name %s -port %d -peerPort %d -partitions %d "
                    "-replicas %d -initialCluster %s",
                    nodes[i]->name, port, port - 1, PARTITIONS, REPLICAS,
                    members);
        nodes[i]->port = port;
        nodes[i]->peer = port - 1;
    }
    cable_begin(nodes[count - 1]->peer);
    if (cable.port != 0)
        server_args(nodes[count - 1], "-host %s -listen 127.0.0.1", CUT_HOST);
    return cluster_mend(NULL);
}

/* Ends a cluster; a cmocka teardown. */
static int cluster_end(void **state) {
    servers_end(state);
    cable_end();
    return 0;
}

static int cluster_of_three(void **state) {
    (void)state;
    return cluster_begin(3);
}

static int cluster_of_five(void **state) {
    (void)state;
    return cluster_begin(5);
}

/* ---- Faults ---------------------------------------------------------- */

enum fault {
    FAULT_KILL,     /* kill -9, and a start soon after */
    FAULT_STOP,     /* a process rests, and goes on */
    FAULT_ETCD,     /* all etcds rest */
    FAULT_RESTART,  /* a clean end, and a start */
    FAULT_CUT,      /* the network to a node */
    FAULT_CLOCK,    /* a clock jumps */
    FAULT_MAJORITY, /* one is killed while another rests */
    FAULT_KILL_ALL, /* kill -9 of all at once */
    FAULTS
};

/* Sends a signal to the etcd of every node that has one. */
static void etcds_signal(int number) {
    for (int i = 0; i < node_count; i++) {
        pid_t pids[4];
        size_t n = processes_find(nodes[i]->dir, "etcd", pids, 4);

        for (size_t k = 0; k < n; k++)
            kill(pids[k], number);
    }
}

/* One fault, from its begin to its end. */
static void fault_run(enum fault fault, uint64_t *seed) {
    int victim = (int)between(seed, 0, node_count - 1);
    struct server *s = nodes[victim], *other = nodes[(victim + 1) % node_count];
    long ms = between(seed, 500, torture() ? 4000 : 2800);

    switch (fault) {
    case FAULT_KILL:
        server_kill(s);
        pause_ms(ms / 3);
        again(s);
        break;
    case FAULT_STOP:
        kill(s->pid, SIGSTOP);
        pause_ms(ms);
        kill(s->pid, SIGCONT);
        break;
    case FAULT_ETCD:
        etcds_signal(SIGSTOP);
        pause_ms(ms / 2);
        etcds_signal(SIGCONT);
        break;
    case FAULT_RESTART:
        server_stop(s);
        again(s);
        break;
    case FAULT_CUT:
        atomic_store(&cable.cut, true);
        pause_ms(ms);
        atomic_store(&cable.cut, false);
        break;
    case FAULT_CLOCK:
        if (skews[victim] != NULL)
            *skews[victim] = clocks_at + between(seed, -SKEW_MAX, SKEW_MAX);
        break;
    case FAULT_MAJORITY:
        kill(other->pid, SIGSTOP);
        server_kill(s);
        pause_ms(ms / 3);
        kill(other->pid, SIGCONT);
        again(s);
        break;
    case FAULT_KILL_ALL:
        for (int i = 0; i < node_count; i++)
            server_kill(nodes[i]);
        for (int i = 0; i < node_count; i++)
            server_start(nodes[i]);
        for (int i = 0; i < node_count; i++)
            server_ready(nodes[i]);
        break;
    case FAULTS:
        break;
    }
    pause_ms(ms / 4);
}

/* ---- Histories ------------------------------------------------------- */

/* A story of each mode with some faults, each kind of them once, and a
   check of it all. */
static void histories_run(uint64_t *seed, size_t count) {
    enum fault order[FAULTS] = {FAULT_KILL};
    void *state = NULL;

    for (int i = 0; i < FAULTS; i++) {
        int k = (int)between(seed, 0, i);

        order[i] = order[k];
        order[k] = (enum fault)i;
    }
    stories_begin(*seed);
    for (size_t i = 0; i < count; i++)
        fault_run(order[i % FAULTS], seed);
    actors_join(&state);
    cluster_mend(&state);
    for (int i = 0; i < MODES; i++)
        story_read_back(&stories[i]);
    for (size_t i = 0; i < MODES * ACTORS; i++)
        actor_end(&actors[i]);
    for (int i = 0; i < MODES; i++)
        story_check(&stories[i]);
    replicas_check();
}

static void test_histories(void **state) {
    uint64_t seed = seed_said();
    long until = now_ms() + 1800000;

    (void)state;
    if (skews[0] == NULL)
        part("clocks are right: no %s", skew_library);
    do
        histories_run(&seed, torture() ? FAULTS + 3 : 3);
    while (torture() && now_ms() < until);
}

/* ---- A counter ------------------------------------------------------- */

/* What the clients of the counter have come to. */
static struct {
    atomic_size_t raised, unknown, wrong;
    char error[300]; /* one of those that were wrong */
} counter;

/* Raises the counter once, if nobody else does so first. */
static void counter_raise(struct actor *a) {
    struct client *c = actor_choose(a);
    char etag[ETAG_MAX], headers[64], text[32];

    if (c == NULL || client_text(c, "GET", "/counter", NULL) != 200 ||
        !client_header(c, "ETag", etag, sizeof etag)) {
        if (c != NULL && c->status <= 0)
            a->avoid[c - a->to] = now_ms() + 500;
        pause_ms(2);
        return;
    }
    snprintf(text, sizeof text, "%llu", strtoull(c->body, NULL, 10) + 1);
    snprintf(headers, sizeof headers, "If-Match: %s\r\n", etag);
    if ((c = actor_choose(a)) == NULL)
        return;
    client_ask(c, "PUT", "/counter", headers, text, strlen(text));
    if (c->status <= 0)
        a->avoid[c - a->to] = now_ms() + 500;
    if (c->status == 204) {
        atomic_fetch_add(&counter.raised, 1);
    } else if (c->status <= 0 || c->status == 504) {
        atomic_fetch_add(&counter.unknown, 1);
    } else if (c->status != 412 && c->status != 503) {
        if (atomic_fetch_add(&counter.wrong, 1) == 0)
            snprintf(counter.error, sizeof counter.error, "%d %.200s",
                     c->status, c->body);
    }
}

static void *counter_main(void *arg) {
    while (!atomic_load(&actors_stop))
        counter_raise(arg);
    return NULL;
}

/* 16 clients raise a counter by compare-and-set, each on random nodes, while
   nodes are killed: no raise is lost, and none is done twice. */
static void test_counter(void **state) {
    static struct actor raisers[COUNTERS];
    pthread_t threads[COUNTERS];
    uint64_t seed = seed_said();
    long until = now_ms() + LIMIT_MS;
    struct client c = client_make(nodes[0]->port);
    size_t value, raised, unknown;

    (void)state;
    memset(&counter, 0, sizeof counter);
    check(client_text(&c, "PUT", "/counter", "0") / 100 == 2, "%d", c.status);
    atomic_store(&actors_stop, false);
    for (unsigned i = 0; i < COUNTERS; i++) {
        actor_make(&raisers[i], NULL, i, seed);
        check(pthread_create(&threads[i], NULL, counter_main, &raisers[i]) == 0,
              "no thread");
    }
    for (int i = 0; i < (torture() ? 100 : 2) ||
                    (counter.raised <= 20 && now_ms() < until);
         i++)
        fault_run(FAULT_KILL, &seed);
    atomic_store(&actors_stop, true);
    for (unsigned i = 0; i < COUNTERS; i++) {
        pthread_join(threads[i], NULL);
        actor_end(&raisers[i]);
    }
    check(counter.wrong == 0, "%zu wrong answers: %s", (size_t)counter.wrong,
          counter.error);
    raised = counter.raised;
    unknown = counter.unknown;
    for (int i = 0; i < node_count; i++) {
        c.port = nodes[i]->port;
        client_drop(&c);
        check(client_text(&c, "GET", "/counter?consistent", NULL) == 200,
              "%d %s", c.status, c.body);
        value = strtoul(c.body, NULL, 10);
        check(value >= raised && value <= raised + unknown,
              "the counter is %zu after %zu raises and %zu unknown", value,
              raised, unknown);
    }
    client_end(&c);
    part("%zu raises, %zu of unknown outcome", raised, unknown);
    check(raised > 20, "%zu raises", raised);
}

/* ---- A replica that is cut off --------------------------------------- */

enum { BOUND_KEYS = 8, BOUND_WRITES = 100000 };

/* A writer of rising numbers, which notes when each was acknowledged, and a
   reader at one node, which looks how old is what it gets. */
static struct {
    _Atomic uint64_t acked[BOUND_KEYS][BOUND_WRITES]; /* ns, 0: not yet */
    int port;                                         /* of the reader */
    atomic_size_t written, reads;
    atomic_ullong oldest; /* ns */
    atomic_size_t wrong;
} bound;

/* Writes through the first two nodes, as fast as it can but not too fast. */
static void *bound_write(void *arg) {
    struct client c[2] = {client_make(nodes[0]->port),
                          client_make(nodes[1]->port)};

    (void)arg;
    for (unsigned n = 1; n < BOUND_WRITES && !atomic_load(&actors_stop); n++)
        for (unsigned k = 0; k < BOUND_KEYS; k++) {
            struct client *to = &c[(n + k) % 2];
            char target[32], value[32];

            snprintf(target, sizeof target, "/bound/%u", k);
            snprintf(value, sizeof value, "%u", n);
            client_text(to, "PUT", target, value);
            if (to->status == 201 || to->status == 204)
                atomic_store(&bound.acked[k][n], now_ns());
            else
                atomic_fetch_add(&bound.wrong, 1);
            atomic_fetch_add(&bound.written, 1);
        }
    client_end(&c[0]);
    client_end(&c[1]);
    return NULL;
}

/* Notes a read that was begun at a time and gave n: how long ago the first
   write after it had been acknowledged then. */
static void bound_note(unsigned k, size_t n, uint64_t begun) {
    uint64_t acked = n + 1 < BOUND_WRITES ? bound.acked[k][n + 1] : 0;

    if (acked != 0 && acked < begun && begun - acked > bound.oldest)
        bound.oldest = begun - acked;
    atomic_fetch_add(&bound.reads, 1);
}

static void *bound_read(void *arg) {
    struct client c = client_make(bound.port);

    (void)arg;
    for (unsigned k = 0; !atomic_load(&actors_stop); k = (k + 1) % BOUND_KEYS) {
        uint64_t begun = now_ns();
        char target[32];

        snprintf(target, sizeof target, "/bound/%u", k);
        if (client_text(&c, "GET", target, NULL) == 200)
            bound_note(k, strtoul(c.body, NULL, 10), begun);
        else if (c.status != 503)
            atomic_fetch_add(&bound.wrong, 1);
    }
    client_end(&c);
    return NULL;
}

/* Waits until so many more reads are done. */
static void bound_go(size_t more) {
    size_t reads = bound.reads;

    wait_until(bound.reads > reads + more, LIMIT_MS, "%zu reads",
               (size_t)bound.reads);
}

/* A replica rests, and goes on; then it is cut off from the others, but goes
   on to be read.  It notices within the bound that it has missed something. */
static void test_bound(void **state) {
    static const long rests[] = {400, 1600};
    struct server *cut = nodes[node_count - 1];
    pthread_t writer, reader;
    struct client c = client_make(nodes[0]->port);

    (void)state;
    for (unsigned k = 0; k < BOUND_KEYS; k++) {
        char target[32];

        snprintf(target, sizeof target, "/bound/%u", k);
        check(client_text(&c, "PUT", target, "0") == 201, "%d", c.status);
    }
    client_end(&c);
    bound.port = cut->port;
    atomic_store(&actors_stop, false);
    check(pthread_create(&writer, NULL, bound_write, NULL) == 0 &&
              pthread_create(&reader, NULL, bound_read, NULL) == 0,
          "no thread");
    for (size_t i = 0; i < sizeof rests / sizeof rests[0]; i++) {
        kill(cut->pid, SIGSTOP);
        pause_ms(rests[i]);
        kill(cut->pid, SIGCONT);
        bound_go(500);
    }
    part("stopped: of %zu reads the oldest was %llu ms old; %zu writes",
         (size_t)bound.reads, bound.oldest / 1000000, (size_t)bound.written);
    if (cable.port != 0) {
        long until = now_ms() + BOUND_MS + 500;

        atomic_store(&cable.cut, true);
        while (now_ms() < until)
            bound_go(100);
        atomic_store(&cable.cut, false);
        bound_go(500);
        part("cut off: of %zu the oldest was %llu ms old; %zu writes",
             (size_t)bound.reads, bound.oldest / 1000000,
             (size_t)bound.written);
    }
    atomic_store(&actors_stop, true);
    pthread_join(writer, NULL);
    pthread_join(reader, NULL);
    check(bound.wrong == 0, "%zu wrong answers", (size_t)bound.wrong);
    check(bound.oldest < (uint64_t)BOUND_MS * 1000000, "over the bound");
}

/* ---- A node that was away -------------------------------------------- */

enum { BATCH = 100 };

/* Which of many keys a bulk is about, and what is in them. */
struct bulk {
    const char *prefix;
    size_t count, step; /* numbers 0, step, 2 * step, ... below count */
    int round;          /* its values tell */
    bool drop;          /* delete them instead */
};

/* The target, and the value, of one of many keys. */
static void bulk_text(const struct bulk *b, size_t i, char *target,
                      char *value) {
    sprintf(target, "/%s/%zu", b->prefix, i);
    sprintf(value, "%070zu of round %02d", i, b->round);
}

/* Does a batch of a bulk, from a number on, through one connection. */
static void bulk_send(struct client *c, const struct bulk *b, size_t from) {
    char *text = malloc(BATCH * 512), target[64], value[128];
    size_t len = 0;

    check(text != NULL && (c->fd >= 0 || client_connect(c)), "cannot connect");
    for (size_t i = from; i < b->count && i < from + BATCH * b->step;
         i += b->step) {
        bulk_text(b, i, target, value);
        len +=
            (size_t)sprintf(text + len,
                            "%s %s HTTP/1.1\r\nHost: x\r\n"
                            "Content-Length: %zu\r\n\r\n%s",
                            b->drop ? "DELETE" : "PUT", target,
                            b->drop ? 0 : strlen(value), b->drop ? "" : value);
    }
    check(client_send(c, text, len), "cannot send");
    free(text);
    for (size_t i = from; i < b->count && i < from + BATCH * b->step;
         i += b->step)
        check(client_read(c, false) == 201 || c->status == 204,
              "number %zu: %d %s", i, c->status, c->body);
}

/* Does a bulk through two nodes, a batch each in turn. */
static void bulk_run(const struct bulk *b, const struct server *one,
                     const struct server *other) {
    struct client c[2] = {client_make(one->port), client_make(other->port)};
    int turn = 0;

    for (size_t i = 0; i < b->count; i += BATCH * b->step, turn++)
        bulk_send(&c[turn % 2], b, i);
    client_end(&c[0]);
    client_end(&c[1]);
}

/* The sum of a figure in all lines of this start's log about repair, and how
   many lines these are; false as long as none of them says that no doubt is
   left. */
static bool repair_sum(const struct server *s, const char *name, size_t *sum,
                       size_t *lines) {
    char *log = server_log(s), *line = log;
    bool over = false;

    *sum = *lines = 0;
    while ((line = strstr(line, " repair records=")) != NULL) {
        char *end = strchr(line, '\n'), *at;

        if (end == NULL)
            break;
        *end = '\0';
        at = strstr(line, name);
        ++*lines;
        *sum += at != NULL ? strtoul(at + strlen(name), NULL, 10) : 0;
        over = over || strstr(line, "partitions_in_doubt=0") != NULL;
        line = end + 1;
    }
    free(log);
    return over;
}

/* A node was away while a tenth of the keys changed: soon after its start it
   is out of doubt, and has had little more sent than what changed. */
static void test_away(void **state) {
    size_t total = torture() ? 1000000 : sampled(20000), changed = total / 10;
    struct server *away = nodes[2];
    struct bulk b = {.prefix = "away", .count = total, .step = 1, .round = 1};
    size_t records, bytes, rounds;
    long begun;

    (void)state;
    bulk_run(&b, nodes[0], nodes[1]);
    server_kill(away);
    b.round = 2;
    b.step = 10;
    bulk_run(&b, nodes[0], nodes[1]);
    begun = now_ms();
    again(away);
    wait_until(repair_sum(away, "records=", &records, &rounds), 2 * LIMIT_MS,
               "still in doubt");
    wait_until(status_says(away, away, "\"status\":\"Ready\""), LIMIT_MS,
               "not Ready");
    part("%zu keys changed; out of doubt %ld ms after the start", changed,
         now_ms() - begun);
    repair_sum(away, "records=", &records, &rounds);
    repair_sum(away, "bytes=", &bytes, &rounds);
    part("%zu records and %zu bytes pulled, %zu times", records, bytes, rounds);
    check(records >= changed && records <= changed * 12 / 10 + 100,
          "%zu records pulled, %zu keys changed", records, changed);
    /* With the lists of what differs, 17 bytes a key of two other owners: where
       each bucket has some keys that changed, that is of all keys. And with the
       digests, which are compared anew at each doubt. */
    check(bytes >= changed * 80 && bytes <= changed * 600 + rounds * 100000,
          "%zu bytes pulled", bytes);
    for (size_t i = 0; i < total; i += total / 1000 + 1) {
        struct client c = client_make(away->port);
        char target[64], value[128];

        b.round = i % 10 == 0 ? 2 : 1;
        bulk_text(&b, i, target, value);
        check(client_text(&c, "GET", target, NULL) == 200 &&
                  strcmp(c.body, value) == 0,
              "%s: %d %s", target, c.status, c.body);
        client_end(&c);
    }
}

/* ---- Deleted keys stay deleted --------------------------------------- */

enum {
    GONE_KEYS = 200,    /* of which the even ones are deleted */
    AWAY_SECONDS = 1200 /* longer than all times in the rules */
};

/* Asks a node for all keys: no deleted one is there and each other one has
   the value of a round.  How many answers were none, or said themselves that
   they may be old. */
static size_t gone_look(const struct server *s, int round) {
    struct bulk b = {.prefix = "gone", .round = round};
    struct client c = client_make(s->port);
    size_t unsure = 0;

    for (size_t i = 0; i < GONE_KEYS; i++) {
        char target[64], value[128], text[16];
        int want = i % 2 == 0 ? 404 : 200;

        bulk_text(&b, i, target, value);
        client_text(&c, "GET", target, NULL);
        if (c.status == 503 ||
            (c.status > 0 &&
             client_header(&c, "Estoraje-Stale", text, sizeof text)))
            unsure++;
        else
            check(c.status == want &&
                      (want == 404 || strcmp(c.body, value) == 0),
                  "%s at %s: %d %s", target, s->name, c.status, c.body);
    }
    client_end(&c);
    return unsure;
}

/* A node has just started: looks at all nodes that run until it is Ready,
   and once more after that. */
static void gone_watch(const struct server *back, int round) {
    long until = now_ms() + LIMIT_MS;
    bool ready = false;

    for (int more = 1; more > 0; more -= ready) {
        ready = status_says(back, back, "\"status\":\"Ready\"");
        check(ready || now_ms() < until, "%s does not get Ready", back->name);
        for (int i = 0; i < node_count; i++)
            if (nodes[i]->pid > 0)
                gone_look(nodes[i], round);
    }
    for (int i = 0; i < node_count; i++)
        if (nodes[i]->pid > 0)
            wait_until(gone_look(nodes[i], round) == 0, LIMIT_MS,
                       "%s is unsure", nodes[i]->name);
}

/* Deletes the even keys, and writes the odd ones of a round, through two of
   the nodes. */
static void gone_change(int round) {
    struct client c = client_make(nodes[0]->port);

    for (size_t i = 0; i < GONE_KEYS; i++) {
        struct bulk b = {.prefix = "gone", .round = round};
        char target[64], value[128];

        bulk_text(&b, i, target, value);
        if (i % 2 == 0)
            client_text(&c, "DELETE", target, NULL);
        else
            client_text(&c, "PUT", target, value);
        check(c.status == 204, "%s: %d %s", target, c.status, c.body);
    }
    client_end(&c);
}

/* Makes a copy of a data directory without etcd's; or puts one back, over
   all but that. */
static void copy_take(const struct server *s, const char *copy) {
    command("cp -a %s %s", s->dir, copy);
    command("rm -rf %s/etcd", copy);
}

static void copy_back(const struct server *s, const char *copy) {
    marks_remove(s->dir); /* which the copy does not know of */
    command("mv %s/etcd %s.etcd", s->dir, copy);
    command("rm -rf %s", s->dir);
    command("cp -a %s %s", copy, s->dir);
    command("mv %s.etcd %s/etcd", copy, s->dir);
}

/* Whether a node is ready and has been with its etcd, which so knows of this
   start. */
static bool etcd_knows(struct server *s) {
    struct client c = client_make(s->port);
    bool knows;

    c.limit_ms = 5000;
    knows = server_said_ready(s) &&
            client_text(&c, "GET", "/_ready", NULL) == 200 &&
            strstr(c.body, "degraded: etcd") == NULL;
    client_end(&c);
    return knows;
}

/* Starts a node on an old copy of its directory.  It may end, and ask to be
   started again, once it has heard from etcd that it is one. */
static void copy_start(struct server *s) {
    long until = now_ms() + LIMIT_MS;

    server_start(s);
    while (!etcd_knows(s)) {
        int code = process_wait(s->pid, 20);

        if (code >= 0) {
            server_clean(s);
            check(code == 1, "exit code %d", code);
            part("it has asked to be started again");
            server_start(s);
        }
        check(now_ms() < until, "no start on an old copy");
    }
    server_ready(s);
}

static void test_deleted(void **state) {
    struct bulk b = {
        .prefix = "gone", .count = GONE_KEYS, .step = 1, .round = 1};
    struct server *away = nodes[2];
    char copy[2][MAX_PATH + 16];

    (void)state;
    for (int i = 0; i < 2; i++)
        snprintf(copy[i], sizeof copy[i], "%.400s/copy-%d", the_run.dir, i);
    bulk_run(&b, nodes[0], nodes[1]);
    copy_take(away, copy[0]);
    server_stop(away);
    copy_take(away, copy[1]);
    again(away);
    wait_until(etcd_knows(away), LIMIT_MS, "etcd does not answer");
    cluster_mend(state);

    part("a node that was away during the deletes, and %d minutes more",
         AWAY_SECONDS / 60);
    server_kill(away);
    gone_change(2);
    clocks_forward(AWAY_SECONDS);
    again(away);
    gone_watch(away, 2);
    for (int i = 0; i < 2; i++) {
        part("a copy of its directory, made %s, put back",
             i == 0 ? "while it ran" : "after a clean end");
        if (i == 0)
            server_kill(away);
        else
            server_stop(away);
        copy_back(away, copy[i]);
        copy_start(away);
        gone_watch(away, 2);
        part("and another node killed");
        server_kill(nodes[i]);
        wait_until(gone_look(nodes[1 - i], 2) + gone_look(away, 2) == 0,
                   LIMIT_MS, "two of three are unsure");
        cluster_mend(state);
        gone_watch(nodes[i], 2);
    }
}

/* Whether a node has the keys of a bulk, with the values of its round. */
static bool bulk_is(const struct bulk *b, const struct server *s) {
    struct client c = client_make(s->port);
    bool is = true;

    for (size_t i = 0; is && i < b->count; i++) {
        char target[64], value[128];

        bulk_text(b, i, target, value);
        client_text(&c, "GET", target, NULL);
        is = c.status == 200 && strcmp(c.body, value) == 0;
    }
    client_end(&c);
    return is;
}

/* A whole cluster is put back from copies that were made while it ran, on the
   machine on which it was killed later: each node's directory is an older copy,
   and they are all that there is. */
static void test_restored(void **state) {
    struct bulk b = {
        .prefix = "gone", .count = GONE_KEYS, .step = 1, .round = 1};

    (void)state;
    bulk_run(&b, nodes[0], nodes[1]);
    etcds_signal(
        SIGSTOP); /* a file that it writes meanwhile may not be whole */
    for (int i = 0; i < node_count; i++)
        command("cp -a %s %.400s/whole-%d", nodes[i]->dir, the_run.dir, i);
    etcds_signal(SIGCONT);
    gone_change(2);
    for (int i = 0; i < node_count; i++)
        server_kill(nodes[i]);
    for (int i = 0; i < node_count; i++) {
        command("rm -rf %s", nodes[i]->dir);
        command("mv %.400s/whole-%d %s", the_run.dir, i, nodes[i]->dir);
        server_start(nodes[i]);
    }
    for (int i = 0; i < node_count; i++)
        server_ready(nodes[i]);
    for (int i = 0; i < node_count; i++)
        wait_until(bulk_is(&b, nodes[i]), LIMIT_MS, "a key is not there");
}

/* ---- Conditions, and ?consistent, over HTTP -------------------------- */

/* A request, and its answer.  "@" in its headers stands for the etag of what
   the key has; before each, it has a value, or nothing. */
static const struct row {
    bool present;
    int status;
    const char *method, *query, *headers;
} rows[] = {
    /* ?consistent */
    {true, 200, "GET", "?consistent", ""},
    {false, 404, "GET", "?consistent", ""},
    {true, 200, "HEAD", "?consistent", ""},
    {false, 404, "HEAD", "?consistent", ""},
    {true, 204, "PUT", "?consistent", ""},
    {false, 201, "PUT", "?consistent", ""},
    {true, 204, "POST", "?consistent", ""},
    {false, 201, "POST", "?consistent", ""},
    {true, 204, "DELETE", "?consistent", ""},
    {false, 404, "DELETE", "?consistent", ""},
    {true, 304, "GET", "?consistent", "If-None-Match: @\r\n"},
    {true, 204, "PUT", "?consistent", "If-Match: @\r\n"},
    {true, 412, "PUT", "?consistent", "If-Match: \"other\"\r\n"},
    {true, 400, "GET", "?consistent&unheard-of", ""},
    {true, 400, "PUT", "?unheard-of&consistent", ""},
    {true, 400, "DELETE", "?consistent&unheard-of=1", ""},
    /* If-Match */
    {true, 204, "PUT", "", "If-Match: @\r\n"},
    {true, 204, "POST", "", "If-Match: @\r\n"},
    {true, 204, "DELETE", "", "If-Match: @\r\n"},
    {true, 204, "PUT", "", "If-Match: *\r\n"},
    {true, 204, "POST", "", "If-Match: *\r\n"},
    {true, 204, "DELETE", "", "If-Match: *\r\n"},
    {true, 412, "PUT", "", "If-Match: \"other\"\r\n"},
    {true, 412, "POST", "", "If-Match: \"other\"\r\n"},
    {true, 412, "DELETE", "", "If-Match: \"other\"\r\n"},
    {true, 412, "PUT", "", "If-Match: \"\"\r\n"},
    {false, 412, "PUT", "", "If-Match: \"other\"\r\n"},
    {false, 412, "POST", "", "If-Match: *\r\n"},
    {false, 412, "PUT", "", "If-Match: *\r\n"},
    {false, 412, "DELETE", "", "If-Match: *\r\n"},
    {false, 412, "DELETE", "", "If-Match: \"other\"\r\n"},
    /* a weak one never does; a list does if one does */
    {true, 412, "PUT", "", "If-Match: W/@\r\n"},
    {true, 412, "DELETE", "", "If-Match: W/@\r\n"},
    {true, 204, "PUT", "", "If-Match: \"other\", @\r\n"},
    {true, 204, "PUT", "", "If-Match: @,\"other\"\r\n"},
    {true, 204, "PUT", "", "If-Match: W/@, @\r\n"},
    {true, 204, "PUT", "", "If-Match: \"a,b\" ,\t@\r\n"},
    {true, 204, "PUT", "", "If-Match: , \"a\",, @\r\n"},
    {true, 412, "PUT", "", "If-Match: \"a\", W/\"b\", \"c\"\r\n"},
    /* If-None-Match */
    {false, 201, "PUT", "", "If-None-Match: *\r\n"},
    {false, 201, "POST", "", "If-None-Match: *\r\n"},
    {false, 404, "DELETE", "", "If-None-Match: *\r\n"},
    {true, 412, "PUT", "", "If-None-Match: *\r\n"},
    {true, 412, "POST", "", "If-None-Match: *\r\n"},
    {true, 412, "DELETE", "", "If-None-Match: *\r\n"},
    {true, 412, "PUT", "", "If-None-Match: @\r\n"},
    {true, 412, "POST", "", "If-None-Match: @\r\n"},
    {true, 412, "DELETE", "", "If-None-Match: @\r\n"},
    {true, 412, "PUT", "", "If-None-Match: W/@\r\n"},
    {true, 412, "PUT", "", "If-None-Match: \"other\", W/@\r\n"},
    {true, 204, "PUT", "", "If-None-Match: \"other\"\r\n"},
    {true, 204, "DELETE", "", "If-None-Match: \"other\", W/\"b\"\r\n"},
    {false, 201, "PUT", "", "If-None-Match: \"other\"\r\n"},
    /* both */
    {true, 204, "PUT", "", "If-Match: @\r\nIf-None-Match: \"other\"\r\n"},
    {true, 412, "PUT", "", "If-Match: @\r\nIf-None-Match: *\r\n"},
    {true, 412, "PUT", "", "If-Match: \"a\"\r\nIf-None-Match: \"b\"\r\n"},
    /* what is no entity tag, or no list of them */
    {true, 400, "PUT", "", "If-Match: abc\r\n"},
    {true, 400, "PUT", "", "If-Match: \"a\r\n"},
    {true, 400, "PUT", "", "If-Match: a\"\r\n"},
    {true, 400, "PUT", "", "If-Match: W/\r\n"},
    {true, 400, "PUT", "", "If-Match: W/abc\r\n"},
    {true, 400, "PUT", "", "If-Match: w/@\r\n"},
    {true, 400, "PUT", "", "If-Match: @ @\r\n"},
    {true, 400, "PUT", "", "If-Match: *, @\r\n"},
    {true, 400, "PUT", "", "If-Match: @, *\r\n"},
    {true, 400, "PUT", "", "If-Match: **\r\n"},
    {true, 400, "PUT", "", "If-Match:\r\n"},
    {true, 400, "POST", "", "If-None-Match: abc\r\n"},
    {true, 400, "POST", "", "If-None-Match: \"a\r\n"},
    {true, 400, "POST", "", "If-None-Match: W/\r\n"},
    {true, 400, "POST", "", "If-None-Match: \"a\" \"b\"\r\n"},
    {true, 400, "POST", "", "If-None-Match: *, \"a\"\r\n"},
    {true, 400, "POST", "", "If-None-Match: \r\n"},
    {true, 400, "DELETE", "", "If-Match: abc\r\n"},
    {true, 400, "DELETE", "", "If-None-Match: \"a\r\n"},
    {false, 400, "PUT", "", "If-Match: \"a\" \"b\"\r\n"},
};

/* The headers of a row, with the etag in its place. */
static void row_headers(const struct row *row, const char *etag, char *out) {
    for (const char *p = row->headers; *p != '\0'; p++) {
        if (*p == '@')
            out += sprintf(out, "%s", etag);
        else
            *out++ = *p;
    }
    *out = '\0';
}

/* Checks that a node says of a row's key what it must after the row. */
static void row_after(const struct row *row, struct client *c,
                      const char *target, const char *etag) {
    bool write = row->method[0] == 'P', done = row->status / 100 == 2;
    bool drop = row->method[0] == 'D' && (done || row->status == 404);
    const char *want = write && done ? "newer" : "value";
    bool present = (write && done) || (row->present && !drop);
    char seen[ETAG_MAX] = "";

    client_text(c, "GET", target, NULL);
    check(c->status == (present ? 200 : 404), "after %s %s%s: %d", row->method,
          row->headers, row->query, c->status);
    check(!present || strcmp(c->body, want) == 0, "after %s %s%s: %s",
          row->method, row->headers, row->query, c->body);
    if (present)
        client_header(c, "ETag", seen, sizeof seen);
    check(!present || strcmp(seen, etag) == 0, "after %s %s%s: etag %s, not %s",
          row->method, row->headers, row->query, seen, etag);
}

/* One row: prepared at one node, asked at a second, looked at on a third.
   False, and a line, when the status is another. */
static bool row_run(const struct row *row, struct client *c, int n,
                    const char *target) {
    struct client *by = &c[1 % n], *at = &c[2 % n];
    char etag[ETAG_MAX] = "", headers[256], full[96];
    bool write = row->method[0] == 'P';

    if (row->present) {
        client_text(c, "PUT", target, "value");
        client_header(c, "ETag", etag, sizeof etag);
    } else {
        client_text(c, "DELETE", target, NULL);
    }
    check(c->status > 0 && c->status < 500, "%s: %d", target, c->status);
    row_headers(row, etag, headers);
    snprintf(full, sizeof full, "%s%s", target, row->query);
    client_ask(by, row->method, full, headers, write ? "newer" : NULL,
               write ? 5 : 0);
    if (by->status != row->status) {
        fprintf(stderr, "%s %s, %s: %d, not %d\n%s%s\n", row->method, full,
                row->present ? "there" : "absent", by->status, row->status,
                headers, by->body != NULL ? by->body : "");
        return false;
    }
    check(by->status < 400 || by->status == 404 || by->body_len == 0 ||
              (text_lines(by->body) == 1 && by->body[by->body_len - 1] == '\n'),
          "not one line: %s", by->body);
    if (write && row->status / 100 == 2)
        client_header(by, "ETag", etag, sizeof etag);
    row_after(row, at, target, etag);
    return true;
}

/* The whole table, at nodes in turn. */
static void rows_run(int *ports, int n) {
    size_t wrong = 0;

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct client c[NODES_MAX];
        char target[32];

        for (int k = 0; k < n; k++)
            c[k] = client_make(ports[((size_t)k + i) % (size_t)n]);
        snprintf(target, sizeof target, "/row/%zu", i);
        wrong += !row_run(&rows[i], c, n, target);
        for (int k = 0; k < n; k++)
            client_end(&c[k]);
    }
    check(wrong == 0, "%zu rows are wrong", wrong);
}

static void test_rows(void **state) {
    int ports[NODES_MAX];

    (void)state;
    for (int i = 0; i < node_count; i++)
        ports[i] = nodes[i]->port;
    rows_run(ports, node_count);
}

static void test_rows_alone(void **state) {
    struct server *s = server_new("alone");
    int port = port_pair();

    (void)state;
    server_args(s, "-port %d -peerPort %d -partitions %d", port, port - 1,
                PARTITIONS);
    again(s);
    rows_run(&port, 1);
    server_stop(s);
}

/* Checks what one consistent operation is answered by a node. */
static void quorum_check(const struct server *s, const char *method,
                         const char *target, const char *headers, int status,
                         const char *word) {
    struct client c = client_make(s->port);
    bool write = method[0] == 'P';

    client_ask(&c, method, target, headers, write ? "value" : NULL,
               write ? 5 : 0);
    check(c.status == status && (word == NULL || strstr(c.body, word) != NULL),
          "%s %s at %s: %d %s", method, target, s->name, c.status,
          c.body != NULL ? c.body : "");
    client_end(&c);
}

/* Waits until those that run know that a node does not: what they ask of it
   before may be lost on the way, and of unknown outcome. */
static void quorum_notices(const struct server *killed) {
    for (int i = 0; i < node_count; i++)
        if (nodes[i]->pid > 0)
            wait_until(status_says(nodes[i], killed, "\"alive\":false"),
                       LIMIT_MS, "%s has not noticed", nodes[i]->name);
}

/* Consistent operations go on with two of three nodes, and say so when they
   cannot, with one. */
static void test_quorum(void **state) {
    (void)state;
    quorum_check(nodes[0], "PUT", "/quorum", NULL, 201, NULL);
    part("two of three");
    server_kill(nodes[1]);
    quorum_notices(nodes[1]);
    for (int i = 0; i < 3; i += 2) {
        quorum_check(nodes[i], "PUT", "/quorum?consistent", NULL, 204, NULL);
        quorum_check(nodes[i], "GET", "/quorum?consistent", NULL, 200, "value");
        quorum_check(nodes[i], "GET", "/none?consistent", NULL, 404, NULL);
        quorum_check(nodes[i], "PUT", "/quorum", "If-Match: *\r\n", 204, NULL);
        quorum_check(nodes[i], "PUT", "/quorum", "If-None-Match: *\r\n", 412,
                     NULL);
        quorum_check(nodes[i], "DELETE", "/none?consistent", NULL, 404, NULL);
    }
    part("one of three");
    server_kill(nodes[2]);
    quorum_notices(nodes[2]);
    quorum_check(nodes[0], "PUT", "/quorum?consistent", NULL, 503,
                 "not applied");
    quorum_check(nodes[0], "DELETE", "/quorum?consistent", NULL, 503,
                 "not applied");
    quorum_check(nodes[0], "PUT", "/quorum", "If-Match: *\r\n", 503,
                 "not applied");
    quorum_check(nodes[0], "PUT", "/quorum", "If-None-Match: *\r\n", 503,
                 "not applied");
    quorum_check(nodes[0], "GET", "/quorum?consistent", NULL, 503, NULL);
    quorum_check(nodes[0], "GET", "/none?consistent", NULL, 503, NULL);
    part("and all are back");
    cluster_mend(state);
    for (int i = 0; i < node_count; i++)
        quorum_check(nodes[i], "GET", "/quorum?consistent", NULL, 200, "value");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, cluster_mend, actors_join)

int main(int argc, char **argv) {
    const struct CMUnitTest three[] = {
        TEST(test_histories), TEST(test_counter), TEST(test_bound),
        TEST(test_rows),      TEST(test_quorum),  TEST(test_deleted),
        TEST(test_restored),  TEST(test_away),
    };
    const struct CMUnitTest five[] = {TEST(test_histories)};
    const struct CMUnitTest others[] = {
        cmocka_unit_test_teardown(test_rows_alone, servers_end),
    };
    const char *slash = strrchr(argv[0], '/');
    char cwd[MAX_PATH / 2] = "";
    int failed;

    (void)argc;
    if (argv[0][0] != '/' && getcwd(cwd, sizeof cwd) == NULL)
        return 1;
    snprintf(skew_library, sizeof skew_library, "%s%s%.*sskew.so", cwd,
             cwd[0] != '\0' ? "/" : "",
             slash != NULL ? (int)(slash - argv[0]) + 1 : 0, argv[0]);
    run_begin(torture() ? 10800 : 1200);
    failed = cmocka_run_group_tests(others, NULL, NULL);
    failed += cmocka_run_group_tests(three, cluster_of_three, cluster_end);
    failed += cmocka_run_group_tests(five, cluster_of_five, cluster_end);
    return run_result(failed);
}
