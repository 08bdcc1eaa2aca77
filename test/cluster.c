/* cluster.c - three nodes with their etcd sidecars, tested from outside

   One cluster serves most of the tests, one after the other; each begins by
   mending what the one before may have broken.  Then come the tests of
   -etcd, with an etcd of their own.  The bulk work shrinks by SAMPLE=n,
   which the run under ThreadSanitizer sets, and grows by TORTURE=1.
   ONLY=test_name is for one test. */

#include "harness.h"

enum { NODES = 3, MAX_WORKERS = 8 };

static struct server *nodes[NODES];
static int etcd_peer[NODES]; /* its client port is one below */

/* ---- The cluster ----------------------------------------------------- */

/* True when every node says that all three are Ready and alive. */
static bool cluster_is_whole(void) {
    size_t ready = 0, alive = 0;

    for (int i = 0; i < NODES; i++) {
        struct client c = client_make(nodes[i]->port);

        c.limit_ms = 5000;
        if (client_text(&c, "GET", "/_cluster_status", NULL) == 200) {
            json_squeeze(c.body);
            ready += text_count(c.body, "\"status\":\"Ready\"");
            alive += text_count(c.body, "\"alive\":true");
        }
        client_end(&c);
    }
    return ready == NODES * NODES && alive == NODES * NODES;
}

/* Lets every stopped process go on, starts every node that is down, and
   waits until all is well; a cmocka setup. */
static int cluster_mend(void **state) {
    (void)state;
    for (int i = 0; i < NODES; i++) {
        pid_t pids[16];
        size_t n = processes_find(nodes[i]->dir, NULL, pids, 16);

        for (size_t k = 0; k < n; k++)
            kill(pids[k], SIGCONT);
        if (nodes[i]->pid == 0)
            server_start(nodes[i]);
    }
    for (int i = 0; i < NODES; i++)
        server_ready(nodes[i]);
    wait_until(cluster_is_whole(), LIMIT_MS, "not all Ready and alive");
    return 0;
}

/* Makes a cluster of three, with further flags, whose nodes' names begin so. */
static void cluster_make(const char *prefix, const char *flags) {
    char members[256] = "";
    size_t n = 0;

    for (int i = 0; i < NODES; i++) {
        etcd_peer[i] = port_pair();
        n += (size_t)snprintf(members + n, sizeof members - n,
                              "%s%s%d=http://127.0.0.1:%d", i ? "," : "",
                              prefix, i + 1, etcd_peer[i]);
    }
    for (int i = 0; i < NODES; i++) {
        char name[16];
        int port = port_pair();

        snprintf(name, sizeof name, "%s%d", prefix, i + 1);
        nodes[i] = server_new(name);
        server_args(nodes[i],
                    "-name %s -port %d -peerPort %d "
                    "-initialCluster %s %s",
                    name, port, port - 1, members, flags);
        nodes[i]->port = port;
        nodes[i]->peer = port - 1;
    }
}

/* Makes the cluster of three that most tests use, and waits for it. */
static int cluster_begin(void **state) {
    cluster_make("node", "");
    return cluster_mend(state);
}

/* Checks that soon nothing is left of a node that has ended. */
static void check_gone(const struct server *s) {
    wait_until(processes_count(s->dir) == 0, LIMIT_MS,
               "%zu processes of %s are left", processes_count(s->dir),
               s->name);
}

/* Waits until a node that was ended has a ready successor. */
static void again(struct server *s) {
    server_start(s);
    server_ready(s);
}

/* ---- Work done by several threads ------------------------------------ */

/* Items 0, 1, 2, ... are done until count are, or until stop.  An item that
   was begun at or after strict_from must succeed; one that fails and was
   begun before is forgiven, and done again.  One work goes on at a time. */
static struct work {
    bool (*item)(struct work *w, struct client *c, size_t i, char *error);
    int ports[NODES]; /* what each worker's clients speak to */
    size_t count;
    size_t hold; /* items from this one on have to wait; 0: none */
    int round;   /* makes this work's values its own */
    pthread_t threads[MAX_WORKERS];
    size_t thread_count;
    pthread_mutex_t lock; /* of all below */
    size_t next, done;
    long strict_from;
    bool stop;
    size_t errors, forgiven, retries;
    char error[512]; /* the first of them */
} work;

/* Takes the number of the next item; false when there is none. */
static bool work_take(struct work *w, size_t *i) {
    bool more;

    pthread_mutex_lock(&w->lock);
    while (w->hold > 0 && w->next >= w->hold && !w->stop) {
        pthread_mutex_unlock(&w->lock);
        pause_ms(1);
        pthread_mutex_lock(&w->lock);
    }
    more = !w->stop && w->next < w->count && w->errors < 10;
    *i = more ? w->next++ : 0;
    pthread_mutex_unlock(&w->lock);
    return more;
}

/* Records how an item that was begun at a time went; false when it is
   forgiven and must be done again. */
static bool work_note(struct work *w, bool good, long begun,
                      const char *error) {
    bool over;

    pthread_mutex_lock(&w->lock);
    over = good || begun >= w->strict_from;
    w->done += over;
    w->forgiven += !over;
    if (over && !good && w->errors++ == 0)
        snprintf(w->error, sizeof w->error, "%s", error);
    pthread_mutex_unlock(&w->lock);
    return over;
}

static void *work_main(void *arg) {
    struct work *w = arg;
    struct client c[NODES];
    size_t i;

    for (int k = 0; k < NODES; k++)
        c[k] = client_make(w->ports[k]);
    while (work_take(w, &i)) {
        char error[400] = "";
        long begun;
        bool good;

        do {
            begun = now_ms();
            good = w->item(w, c, i, error);
        } while (!work_note(w, good, begun, error));
    }
    for (int k = 0; k < NODES; k++)
        client_end(&c[k]);
    return NULL;
}

/* Begins work in some threads: how is copied. */
static void work_begin(const struct work *how, size_t threads) {
    work = *how;
    pthread_mutex_init(&work.lock, NULL);
    while (work.thread_count < threads) {
        check(pthread_create(&work.threads[work.thread_count], NULL, work_main,
                             &work) == 0,
              "no thread");
        work.thread_count++;
    }
}

/* Lets items go on that have to wait. */
static void work_release(void) {
    pthread_mutex_lock(&work.lock);
    work.hold = 0;
    pthread_mutex_unlock(&work.lock);
}

/* How many items are done. */
static size_t work_done(void) {
    size_t n;

    pthread_mutex_lock(&work.lock);
    n = work.done;
    pthread_mutex_unlock(&work.lock);
    return n;
}

/* True when more than n items are done, or something is wrong. */
static bool work_passed(size_t n) {
    bool passed;

    pthread_mutex_lock(&work.lock);
    passed = work.done > n || work.errors > 0;
    pthread_mutex_unlock(&work.lock);
    return passed;
}

/* Ends work that still goes on, once what is begun is done; a teardown. */
static int work_stop(void **state) {
    (void)state;
    if (work.thread_count == 0)
        return 0;
    pthread_mutex_lock(&work.lock);
    work.stop = true;
    pthread_mutex_unlock(&work.lock);
    while (work.thread_count > 0)
        pthread_join(work.threads[--work.thread_count], NULL);
    pthread_mutex_destroy(&work.lock);
    return 0;
}

/* Waits until all items are done, and checks that none failed. */
static void work_end(void) {
    long until = now_ms() + 4 * LIMIT_MS;

    while (!work_passed(work.count - 1))
        if (now_ms() > until)
            break;
        else
            pause_ms(2);
    work_stop(NULL);
    check(work.errors == 0, "%zu items failed, first: %s", work.errors,
          work.error);
    check(work.done == work.count, "%zu of %zu done", work.done, work.count);
}

/* What all items say when they fail; answers false. */
static bool item_failed(char *error, const struct client *c, const char *method,
                        const char *target) {
    snprintf(error, 400, "%s %.100s at port %d: %d %.200s", method, target,
             c->port, c->status, c->body != NULL ? c->body : "");
    return false;
}

/* Whether a key has a value, or (NULL) none. It must be so at once; but where
   the write took so long that it may have been acknowledged without an owner
   that did not get to run (it is waited for, for GRACE_MS), it must be soon. */
static bool read_written(struct client *c, const char *target,
                         const char *value, long write_ms) {
    long until = now_ms() + (write_ms < 400 ? 0 : LIMIT_MS / 3);
    int status;

    do {
        status = client_text(c, "GET", target, NULL);
        if (value != NULL ? status == 200 && strcmp(c->body, value) == 0
                          : status == 404 && c->body_len == 0)
            return true;
    } while ((status == 200 || status == 404) && now_ms() < until);
    return false;
}

/* Item: a value written through one node is read through the next one. */
static bool item_write_read(struct work *w, struct client *c, size_t i,
                            char *error) {
    struct client *to = &c[i % NODES], *from = &c[(i + 1) % NODES];
    char target[64], value[64], stale[16];
    long begun = now_ms();

    snprintf(target, sizeof target, "/job/%zu", i);
    snprintf(value, sizeof value, "value of %zu in round %d", i, w->round);
    client_text(to, "PUT", target, value);
    if (to->status != 201 && to->status != 204)
        return item_failed(error, to, "PUT", target);
    if (!read_written(from, target, value, now_ms() - begun) ||
        client_header(from, "Estoraje-Stale", stale, sizeof stale))
        return item_failed(error, from, "GET", target);
    return true;
}

/* Item: what item_write_read wrote is read through ports[0]. */
static bool item_read(struct work *w, struct client *c, size_t i, char *error) {
    char target[64], value[64];

    snprintf(target, sizeof target, "/job/%zu", i);
    snprintf(value, sizeof value, "value of %zu in round %d", i, w->round);
    client_text(c, "GET", target, NULL);
    return (c->status == 200 && strcmp(c->body, value) == 0) ||
           item_failed(error, c, "GET", target);
}

/* Reads count keys that item_write_read wrote in a round, through one. */
static void read_back(const struct server *s, size_t count, int round) {
    struct work w = {.item = item_read,
                     .count = count,
                     .round = round,
                     .ports = {s->port, s->port, s->port}};

    work_begin(&w, 4);
    work_end();
}

/* ---- While all is well ----------------------------------------------- */

/* Stores a large value, which is answered with a status; or again, where the
   machine was too slow for a majority to have it in time. */
static void large_put(struct client *c, const char *target, const char *value,
                      size_t n, int status) {
    long until = now_ms() + 2 * LIMIT_MS;
    bool again = false;

    while (client_ask(c, "PUT", target, NULL, value, n) >= 503 &&
           now_ms() < until)
        again = true;
    check(c->status == status || (again && c->status / 100 == 2),
          "PUT %s at port %d: %d", target, c->port, c->status);
}

/* A large value, consistently: from the node that does it, by way of another,
   and to a reader who is slow, so that all owners have answered before the last
   byte is sent. */
static void test_large(void **state) {
    enum { SIZE = 16 << 20 };
    static char value[SIZE], got[65536];

    (void)state;
    random_bytes(value, SIZE, 4);
    for (int i = 0; i < NODES; i++) {
        struct client c = client_make(nodes[i]->port);
        const char *ask = "GET /large?consistent HTTP/1.1\r\nHost: h\r\n\r\n";
        size_t n = 0, body = 0;
        ssize_t part;

        large_put(&c, "/large?consistent", value, SIZE, i == 0 ? 201 : 204);
        for (int k = 0; k < NODES; k++) {
            struct client o = client_make(nodes[k]->port);

            check(client_ask(&o, "GET", "/large?consistent", NULL, NULL, 0) ==
                          200 &&
                      o.body_len == SIZE && memcmp(o.body, value, SIZE) == 0,
                  "GET at node %d: %d, %zu bytes", k, o.status, o.body_len);
            client_end(&o);
        }
        check(client_send(&c, ask, strlen(ask)), "not sent");
        while (client_poll(&c, POLLIN, now_ms() + LIMIT_MS) &&
               (part = recv(c.fd, got, sizeof got, 0)) > 0) {
            const char *from = got;

            if (body == 0) {
                from = strstr(got, "\r\n\r\n");
                check(from != NULL, "no head at node %d", i);
                from += 4;
                body = n = (size_t)(from - got);
                part -= from - got;
                n = 0;
            }
            check(memcmp(from, value + n, (size_t)part) == 0,
                  "other bytes at node %d, from %zu on", i, n);
            n += (size_t)part;
            if (n == SIZE)
                break;
            if (n % (1 << 20) < sizeof got)
                pause_ms(25); /* a reader who is slow */
        }
        check(n == SIZE, "%zu bytes at node %d", n, i);
        client_end(&c);
    }
    check(status_of(nodes[0]->port, "DELETE", "/large?consistent") == 204,
          "DELETE");
}

static void test_everywhere(void **state) {
    struct client c[NODES];
    char etag[64], seen[64], target[64], value[64];

    (void)state;
    for (int i = 0; i < NODES; i++)
        c[i] = client_make(nodes[i]->port);
    for (int k = 0; k < 300; k++) {
        struct client *to = &c[k % NODES];
        long begun = now_ms();

        snprintf(target, sizeof target, "/every/where/%d", k / 2);
        snprintf(value, sizeof value, "from node %d, write %d", k % NODES, k);
        check(client_text(to, "PUT", target, value) == (k % 2 ? 204 : 201),
              "PUT %s: %d", target, to->status);
        check(client_header(to, "ETag", etag, sizeof etag), "no ETag");
        begun = now_ms() - begun;
        for (int i = 0; i < NODES; i++) {
            check(read_written(&c[i], target, value, begun),
                  "write %d on node %d, "
                  "node %d: %d \"%s\"",
                  k, k % NODES, i, c[i].status, c[i].body);
            client_header(&c[i], "ETag", seen, sizeof seen);
            check(strcmp(etag, seen) == 0, "%s, not %s", seen, etag);
        }
    }
    for (int k = 0; k < 150; k++) {
        struct client *to = &c[k % NODES];
        long begun = now_ms();

        snprintf(target, sizeof target, "/every/where/%d", k);
        check(client_text(to, "DELETE", target, NULL) == 204, "%s: %d", target,
              to->status);
        begun = now_ms() - begun;
        for (int i = 0; i < NODES; i++)
            check(read_written(&c[i], target, NULL, begun),
                  "deleted on node %d, node %d: %d", k % NODES, i, c[i].status);
        check(client_text(to, "DELETE", target, NULL) == 404, "%s: %d", target,
              to->status);
    }
    for (int i = 0; i < NODES; i++)
        client_end(&c[i]);
}

static void test_what_nodes_say(void **state) {
    static const char *const targets[] = {
        "/_cluster_status",
        "/_nodes/any/key",
        "/_nodes_discovery",
        "/_nodes_discovery_plain",
    };
    char want[128];

    (void)state;
    for (int i = 0; i < NODES; i++) {
        struct client c = client_make(nodes[i]->port);

        for (size_t k = 0; k < sizeof targets / sizeof targets[0]; k++) {
            wait_until(client_text(&c, "GET", targets[k], NULL) == 200 &&
                           text_count(c.body, "127.0.0.1:") >= NODES,
                       LIMIT_MS, "%s: %d %s", targets[k], c.status, c.body);
            json_squeeze(c.body);
            for (int j = 0; j < NODES; j++) {
                snprintf(want, sizeof want, "127.0.0.1:%d", nodes[j]->port);
                check(text_count(c.body, want) == 1,
                      "node %d: %s not once"
                      " in %s",
                      i + 1, want, c.body);
                snprintf(want, sizeof want, "\"127.0.0.1:%d\"", nodes[j]->peer);
                check(text_count(c.body, want) == (k % 2 == 0),
                      "node %d: "
                      "%s in %s",
                      i + 1, want, c.body);
            }
        }
        snprintf(want, sizeof want, "{\"name\":\"node%d\"", i + 1);
        client_text(&c, "GET", "/_cluster_status", NULL);
        check(strncmp(json_squeeze(c.body), want, strlen(want)) == 0,
              "%s does not begin with %s", c.body, want);
        check(strstr(c.body, "\"moving\":0") != NULL, "%s", c.body);
        client_end(&c);
    }
}

/* Asks with the real curl; it must succeed and print exactly this. */
static void curl_prints(const char *want, const char *options, const char *key,
                        int port) {
    struct output o = {0};

    run(&o, "curl -sS %s http://127.0.0.1:%d/%s", options, port, key);
    check(o.code == 0, "curl %s: exit code %d: %s", options, o.code, o.err);
    check(o.err[0] == '\0', "curl %s: %s", options, o.err);
    check(want == NULL || strcmp(o.out, want) == 0,
          "curl %s: \"%s\", not "
          "\"%s\"",
          options, o.out, want);
    output_free(&o);
}

static void test_curl(void **state) {
    (void)state;
    for (int i = 0; i < NODES; i++) {
        int port = nodes[i]->port, next = nodes[(i + 1) % NODES]->port;

        curl_prints("", "", "greeting", port);
        curl_prints(NULL, "-X POST -d hello", "greeting", port);
        curl_prints("hello", "", "greeting", port);
        curl_prints("hello", "", "greeting", next);
        curl_prints("", "-X DELETE", "greeting", port);
        curl_prints("", "", "greeting", port);
        curl_prints("", "", "greeting", next);
    }
}

/* Garbage on the peer ports: closed or refused; the cluster goes on. */
static void test_peer_garbage(void **state) {
    static const char *const openings[] = {
        "",
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /_peer HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n",
        ("POST /_accept HTTP/1.1\r\nHost: x\r\n"
         "Transfer-Encoding: chunked\r\n\r\nfff\r\n"),
        "PUT /k HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nvalue",
    };
    static char noise[8192];
    struct work w = {.item = item_write_read, .count = 300};

    (void)state;
    for (int i = 0; i < NODES; i++) {
        struct client c = client_make(nodes[i]->peer);

        w.ports[i] = nodes[i]->port;
        for (uint64_t seed = 1; seed <= 100; seed++) {
            const char *opening = openings[seed % 5];

            random_bytes(noise, sizeof noise, seed);
            check(client_connect(&c), "cannot connect");
            client_send(&c, opening, strlen(opening));
            client_send(&c, noise, sizeof noise);
            shutdown(c.fd, SHUT_WR);
            client_read(&c, false);
            check(c.status <= 0 || c.status >= 400, "%s: %d", opening,
                  c.status);
        }
        client_end(&c);
    }
    work_begin(&w, 2);
    work_end();
    check(status_of(nodes[0]->port, "GET", "/k") == 404,
          "a value came in by the peer port");
}

/* A part of a value comes from whichever node, and so does the rest. */
static void test_ranges(void **state) {
    static char value[300000];
    struct client c = client_make(nodes[0]->port);

    (void)state;
    random_bytes(value, sizeof value, 5);
    client_ask(&c, "PUT", "/ranges", NULL, value, sizeof value);
    client_end(&c);
    for (int i = 0; i < NODES; i++) {
        static const char *const queries[] = {"/ranges", "/ranges?consistent"};

        c = client_make(nodes[i]->port);
        for (size_t k = 0; k < 2; k++) {
            check(client_ask(&c, "GET", queries[k],
                             "Range: bytes=65000-140000\r\n", NULL, 0) == 206 &&
                      c.body_len == 75001 &&
                      memcmp(c.body, value + 65000, c.body_len) == 0,
                  "node %d: %d, %zu bytes", i, c.status, c.body_len);
            check(client_ask(&c, "GET", queries[k], "Range: bytes=300000-\r\n",
                             NULL, 0) == 416,
                  "node %d: %d", i, c.status);
        }
        client_end(&c);
    }
}

/* ---- Listing --------------------------------------------------------- */

enum { STAY = 1000 };

static struct {
    int ports[NODES]; /* of nodes that are asked for pages */
    size_t ports_n;
    struct server *dies; /* after some pages; NULL: nobody */
} list;

/* Writes keys that are listed later, through all nodes. */
static void list_fill(void) {
    char key[40];

    for (int i = 0; i < NODES; i++) {
        struct client c = client_make(nodes[i]->port);

        for (int k = i; k < STAY; k += NODES) {
            snprintf(key, sizeof key, "/stay%%20/%d/%%5F", k);
            check(client_text(&c, "PUT", key, key + 1) == 201, "%d", c.status);
            snprintf(key, sizeof key, "/go/%d", k);
            check(client_text(&c, "PUT", key, "") == 201, "%d", c.status);
            snprintf(key, sizeof key, "/gone/%d", k);
            check(client_text(&c, "PUT", key, "") == 201 &&
                      client_text(&c, "DELETE", key, NULL) == 204,
                  "%d", c.status);
        }
        client_end(&c);
    }
}

/* Between pages: a node dies, keys go, others come, some are written again. */
static void list_between(size_t page) {
    struct client c = client_make(list.ports[page % list.ports_n]);
    char key[40];

    if (list.dies != NULL && page == 3)
        server_kill(list.dies);
    for (size_t i = 0; i < 20; i++) {
        snprintf(key, sizeof key, "/go/%zu", page * 20 + i);
        client_text(&c, "DELETE", key, NULL);
        snprintf(key, sizeof key, "/come/%zu", page * 20 + i);
        client_text(&c, "PUT", key, "");
        snprintf(key, sizeof key, "/stay%%20/%zu/%%5F", (page * 20 + i) % STAY);
        client_text(&c, "PUT", key, key + 1);
    }
    client_end(&c);
}

/* Lists all, a page from each node that is asked, in turn; what stays must be
   there once, what was gone before not at all. */
static void list_check(const char *query, void (*between)(size_t)) {
    char key[40], *lines;
    size_t pages;

    lines = list_walk(list.ports, list.ports_n, query, between, &pages);
    check(pages > 5, "%zu pages", pages);
    for (int k = 0; k < STAY; k++) {
        snprintf(key, sizeof key, "stay%%20/%d/_", k);
        check(listed_count(lines, key) == 1, "%s is there %zu times", key,
              listed_count(lines, key));
    }
    check(text_count(lines, "gone/") == 0, "%s", lines);
    free(lines);
}

/* All keys from any node, also while one dies, and with it dead, while keys
   come and go: each that stays is there once. And curl can use the lines. */
static void test_list(void **state) {
    (void)state;
    list.ports_n = NODES;
    for (int i = 0; i < NODES; i++)
        list.ports[i] = nodes[i]->port;
    list_fill();
    list_check("&limit=50", list_between);
    part("one dies");
    list.ports_n = 2;
    list.dies = nodes[2];
    list_check("&limit=50", list_between);
    list.dies = NULL;
    part("one is dead");
    list_check("&prefix=stay%20/&limit=60", list_between);
    part("curl");
    for (int i = 0; i < NODES - 1; i++) {
        char key[40], *lines;
        size_t pages;

        lines = list_walk(list.ports + i, 1, "&prefix=stay%20/7", NULL, &pages);
        check(text_lines(lines) == 111, "%zu lines", text_lines(lines));
        for (char *line = strtok(lines, "\n"); line != NULL;
             line = strtok(NULL, "\n")) {
            snprintf(key, sizeof key, "%.*s%%5F", (int)strlen(line) - 1, line);
            if (text_count(line, "7/_") > 0)
                curl_prints(key, "", line, list.ports[i]);
        }
        free(lines);
    }
}

/* Partitions that a node does not own are listed by one that does. If those are
   in doubt for lack of a majority, there is no list at all: 503. */
static void test_list_elsewhere(void **state) {
    struct client c;
    char text[64];

    cluster_make("few", "-replicas 2 -partitions 32");
    cluster_mend(state);
    list.ports_n = NODES;
    for (int i = 0; i < NODES; i++)
        list.ports[i] = nodes[i]->port;
    list_fill();
    list_check("&limit=70", list_between);
    list_check("&limit=120", list_between);
    list.ports_n = 1;
    list_check("&limit=170", NULL);
    server_kill(nodes[2]);
    c = client_make(nodes[0]->port);
    wait_until(client_text(&c, "GET", "/?list", NULL) == 503, LIMIT_MS, "%d",
               c.status);
    check(client_header(&c, "Retry-After", text, sizeof text) &&
              strstr(c.body, "owners") != NULL,
          "%s%s", c.head, c.body);
    client_end(&c);
}

/* A figure of a node. */
static double figure(int port, const char *series) {
    struct client c = client_make(port);
    double n;

    metrics_get(&c);
    n = metric(&c, series);
    check(n >= 0, "no %s", series);
    client_end(&c);
    return n;
}

/* The node that does not own a key, of three with two replicas. */
static struct server *stranger_of(const char *key) {
    struct client c = client_make(nodes[0]->port);
    char target[64], port[16];
    struct server *found = NULL;

    snprintf(target, sizeof target, "/_nodes%s", key);
    check(client_text(&c, "GET", target, NULL) == 200, "%d", c.status);
    for (int i = 0; i < NODES; i++) {
        snprintf(port, sizeof port, ":%d\"", nodes[i]->port);
        if (strstr(c.body, port) == NULL)
            found = nodes[i];
    }
    check(found != NULL, "%s", c.body);
    client_end(&c);
    return found;
}

/* Uses up the memory that a node has for requests, with bodies that do not end;
   how many. */
static size_t memory_fill(int port, struct client *c, size_t most) {
    enum { SIZE = 64 << 20 };
    static const char buffered[] = "estoraje_buffered_bytes";
    char head[100], *body = calloc(1, SIZE);
    double before;
    size_t n = 0;
    long until;

    for (size_t size = SIZE; size > 64 << 10; n++) {
        check(body != NULL && n < most, "%zu bodies are not enough", n);
        c[n] = client_make(port);
        snprintf(head, sizeof head,
                 "PUT /body HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n",
                 size);
        before = figure(port, buffered);
        if (client_connect(&c[n]) && client_send(&c[n], head, strlen(head)) &&
            client_send(&c[n], body, size - 1)) {
            until = now_ms() + 1000;
            while (!client_poll(&c[n], POLLIN, now_ms() + 5) &&
                   now_ms() < until &&
                   figure(port, buffered) < before + (double)(size / 4 * 3))
                continue;
            if (!client_poll(&c[n], POLLIN, now_ms()))
                continue;
        }
        check(client_read(&c[n], false) == 503, "%d", c[n].status);
        size /= 2;
    }
    free(body);
    return n;
}

/* Of a value on other nodes only the blocks come here that are asked for, also
   when there is no memory for more. */
static void test_large_elsewhere(void **state) {
    enum { SIZE = (8 << 20) + 5, BODIES = 64 };
    static char value[SIZE];
    static const struct {
        size_t first, n;
        const char *range;
    } rows[] = {
        {0, 1, "0-0"},
        {65535, 2, "65535-65536"},
        {65536, 65536, "65536-131071"},
        {70000, 100001, "70000-170000"},
        {SIZE - 7, 7, "-7"},
        {SIZE - 5, 5, "8388608-9999999"},
        {SIZE - 1, 1, "8388612-"},
    };
    static const char peer[] = "estoraje_received_bytes_total{port=\"peer\"}";
    struct client c, bodies[BODIES];
    struct server *s;
    char field[200], etag[64], text[64];
    double before;
    size_t n;

    cluster_make("large", "-replicas 2 -partitions 32");
    cluster_mend(state);
    s = stranger_of("/large");
    c = client_make(s->port);
    random_bytes(value, SIZE, 11);
    large_put(&c, "/large", value, SIZE, 201);
    check(client_text(&c, "PUT", "/small", "0123456789") == 201, "%d",
          c.status);
    before = figure(s->port, peer);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        snprintf(field, sizeof field, "Range: bytes=%s\r\n", rows[i].range);
        check(client_ask(&c, "GET", "/large", field, NULL, 0) == 206 &&
                  c.body_len == rows[i].n &&
                  memcmp(c.body, value + rows[i].first, rows[i].n) == 0,
              "%s: %d, %zu bytes", rows[i].range, c.status, c.body_len);
    }
    check(client_ask(&c, "HEAD", "/large", NULL, NULL, 0) == 200 &&
              client_header(&c, "ETag", etag, sizeof etag) &&
              client_header(&c, "Content-Length", text, sizeof text) &&
              strtol(text, NULL, 10) == SIZE,
          "%s", c.head);
    check(client_ask(&c, "GET", "/large", "Range: bytes=8388613-\r\n", NULL,
                     0) == 416,
          "%d", c.status);
    snprintf(field, sizeof field, "Range: bytes=1-2\r\nIf-Range: %s\r\n", etag);
    check(client_ask(&c, "GET", "/large", field, NULL, 0) == 206 &&
              c.body_len == 2 && memcmp(c.body, value + 1, 2) == 0,
          "%d", c.status);
    check(figure(s->port, peer) - before < 4 << 20, "%.0f bytes have come",
          figure(s->port, peer) - before);
    check(client_ask(&c, "GET", "/large",
                     "Range: bytes=1-2\r\nIf-Range: \"0123456789abcdef\"\r\n",
                     NULL, 0) == 200 &&
              c.body_len == SIZE && memcmp(c.body, value, SIZE) == 0,
          "%d", c.status);
    for (int i = 0; i < NODES; i++) {
        struct client o = client_make(nodes[i]->port);

        check(client_ask(&o, "GET", "/small", "Range: bytes=3-5\r\n", NULL,
                         0) == 206 &&
                  strcmp(o.body, "345") == 0,
              "%d", o.status);
        client_end(&o);
    }
    part("no memory is left");
    for (int tries = 0;; tries++) {
        long begun = now_ms();
        size_t refused = 0;

        n = memory_fill(s->port, bodies, BODIES);
        for (int i = 0; i < 2; i++)
            refused +=
                client_text(&c, "GET", i == 0 ? "/large" : "/large?consistent",
                            NULL) == 503 &&
                strstr(c.body, "too many large values") != NULL;
        if (refused == 2)
            break;
        check(now_ms() - begun > 20000 && tries < 5, "%d", c.status);
        while (n > 0) /* the first ones may have had their time */
            client_end(&bodies[--n]);
    }
    check(client_text(&c, "GET", "/small", NULL) == 200 &&
              client_text(&c, "PUT", "/small", "9") == 204 &&
              client_ask(&c, "GET", "/large", "Range: bytes=1-2\r\n", NULL,
                         0) == 206,
          "%d", c.status);
    part("a little memory is left");
    while (n > 0 && client_text(&c, "GET", "/large", NULL) == 503)
        client_end(&bodies[--n]);
    check(n > 8 && c.status == 200 && c.body_len == SIZE &&
              memcmp(c.body, value, SIZE) == 0,
          "%zu bodies: %d, %zu bytes", n, c.status, c.body_len);
    while (n > 0)
        client_end(&bodies[--n]);
    for (int i = 0; i < NODES; i++)
        wait_until(figure(nodes[i]->port, "estoraje_buffered_bytes") < 1 << 20,
                   LIMIT_MS, "it is still buffered");
    check(client_text(&c, "GET", "/large", NULL) == 200 && c.body_len == SIZE,
          "%d", c.status);
    client_end(&c);
}

/* A client that reads a large value a little at a time. */
struct reader {
    struct client c;
    const char *want; /* what it has to get, */
    size_t n, at;     /* so many bytes, and so many of them came */
    bool begun, over; /* the head has come; the answer has ended, or broke */
};

/* Reads some bytes, if there are any. */
static void reader_sip(struct reader *r, size_t most) {
    static char bytes[65536 + 1];
    char *body = bytes;
    ssize_t n;

    while (!r->over && most > 0 && client_poll(&r->c, POLLIN, now_ms())) {
        n = recv(r->c.fd, bytes, most < 65536 ? most : 65536, 0);
        r->over = n <= 0;
        if (n <= 0)
            return;
        most -= (size_t)n;
        bytes[n] = '\0';
        if (!r->begun) {
            body = strstr(bytes, "\r\n\r\n");
            check(body != NULL && (strncmp(bytes, "HTTP/1.1 20", 11) == 0),
                  "%s", bytes);
            r->begun = true;
            body += 4;
        } else {
            body = bytes;
        }
        n -= body - bytes;
        check(r->at + (size_t)n <= r->n &&
                  memcmp(body, r->want + r->at, (size_t)n) == 0,
              "other bytes from %zu on", r->at);
        r->at += (size_t)n;
        r->over = r->at == r->n;
    }
}

enum { READERS = 8, RELAYED = 12 << 20 };

/* How many readers there are. */
static size_t readers(void) {
    return sampled(READERS);
}

/* Begins eight readers of a value at a node: of all of it, and of a part, half
   of each consistent. */
static void readers_begin(struct reader *r, int port, const char *value) {
    int most = 65536; /* or the kernel takes megabytes for who does not read */
    char text[200];

    for (size_t i = 0; i < readers(); i++) {
        size_t first = i % 4 < 2 ? 0 : 70000;

        r[i] = (struct reader){.c = client_make(port),
                               .want = value + first,
                               .n = RELAYED - first};
        snprintf(text, sizeof text,
                 "GET /relay%s HTTP/1.1\r\nHost: h\r\n%s\r\n",
                 i % 2 == 0 ? "" : "?consistent",
                 first == 0 ? "" : "Range: bytes=70000-\r\n");
        check(client_connect(&r[i].c) &&
                  setsockopt(r[i].c.fd, SOL_SOCKET, SO_RCVBUF, &most,
                             sizeof most) == 0 &&
                  client_send(&r[i].c, text, strlen(text)) &&
                  client_poll(&r[i].c, POLLIN, now_ms() + LIMIT_MS),
              "reader %zu has no answer", i);
        reader_sip(&r[i], 100000);
    }
}

/* Reads a little of each, and looks at what the node buffers for them. */
static void readers_sip(struct reader *r, int port, size_t most) {
    for (size_t i = 0; i < readers(); i++)
        reader_sip(&r[i], most);
    check(figure(port, "estoraje_buffered_bytes") < (double)(readers() << 20),
          "%.0f bytes are buffered", figure(port, "estoraje_buffered_bytes"));
}

/* Reads all to the end; how many got all. */
static size_t readers_end(struct reader *r) {
    long until = now_ms() + 2 * LIMIT_MS;
    size_t whole = 0;

    for (size_t over = 0; over < readers();) {
        struct pollfd fds[READERS];

        check(now_ms() < until, "%zu answers have ended", over);
        for (size_t i = over = 0; i < readers(); i++) {
            reader_sip(&r[i], 1 << 20);
            over += r[i].over;
            fds[i] = (struct pollfd){.fd = r[i].over ? -1 : r[i].c.fd,
                                     .events = POLLIN};
        }
        if (over < readers())
            poll(fds, readers(), 100); /* the others need the processor */
    }
    for (size_t i = 0; i < readers(); i++) {
        whole += r[i].at == r[i].n;
        client_end(&r[i].c);
    }
    return whole;
}

/* Checks that the connection of a relay goes when its reader has all, or leaves.
   Others of the node may come meanwhile, each once: then it is done again, well
   before a relay that rests would be ended for that. */
static void relays_leave(struct client *c, const char *value) {
    static const char links[] = "estoraje_connections{port=\"peer\"}";
    struct reader r[READERS];
    double before, now;

    for (int tries = 0;; tries++) {
        long until;

        before = figure(c->port, links);
        readers_begin(r, c->port, value);
        for (size_t i = 0; i < readers(); i++)
            client_end(&r[i].c);
        for (size_t i = 0; i < readers(); i++)
            check(client_ask(c, "GET", "/relay", "Range: bytes=0-299999\r\n",
                             NULL, 0) == 206 &&
                      memcmp(c->body, value, 300000) == 0,
                  "%d", c->status);
        until = now_ms() + 2000;
        do
            now = figure(c->port, links);
        while (now >= before + (double)readers() && now_ms() < until);
        if (now < before + (double)readers())
            return;
        check(tries < 4, "%.0f connections, %.0f before", now, before);
    }
}

/* Who reads a large value slowly at a node that does not own it gets one value
   to its end, whatever becomes of the key and of who sends it; it costs that
   node little memory, and nobody waits for it. An answer that has no value takes
   none from another node. */
static void test_relay(void **state) {
    static char bytes[RELAYED + 1];
    static const char *const values[] = {bytes, bytes + 1};
    static const char *const targets[] = {"/relay", "/relay?consistent"};
    static const char peer[] = "estoraje_received_bytes_total{port=\"peer\"}";
    static const char done[] = "estoraje_compactions_total{result=\"done\"}";
    struct reader r[READERS];
    struct server *s, *first = NULL, *owner = NULL;
    struct client c, o;
    char field[100], etag[64], text[64], *at;
    double before;
    size_t n;

    cluster_make("relay", "-replicas 2 -partitions 32");
    cluster_mend(state);
    s = stranger_of("/relay");
    c = client_make(s->port);
    check(client_text(&c, "GET", "/_nodes/relay", NULL) == 200, "%d", c.status);
    for (int i = 0; i < NODES; i++) {
        snprintf(text, sizeof text, ":%d\"", nodes[i]->port);
        at = strstr(c.body, text);
        if (at != NULL)
            *(at < strchr(c.body, ',') ? &first : &owner) = nodes[i];
    }
    check(first != NULL && owner != NULL, "%s", c.body);
    o = client_make(owner->port);
    random_bytes(bytes, sizeof bytes, 13);
    large_put(&o, "/relay", values[0], RELAYED, 201);
    check(client_header(&o, "ETag", etag, sizeof etag), "%s", o.head);
    check(client_text(&o, "PUT", "/small", "small") == 201, "%d", o.status);

    part("answers without the value");
    before = figure(s->port, peer);
    for (size_t i = 0; i < 2; i++) {
        snprintf(field, sizeof field, "If-None-Match: %s\r\n", etag);
        check(client_ask(&c, "GET", targets[i], field, NULL, 0) == 304, "%d",
              c.status);
        check(client_ask(&c, "GET", targets[i],
                         "If-Match: \"0123456789abcdef\"\r\n", NULL, 0) == 412,
              "%d", c.status);
        check(client_ask(&c, "GET", targets[i], "Range: bytes=12582912-\r\n",
                         NULL, 0) == 416,
              "%d", c.status);
        check(client_ask(&c, "HEAD", targets[i], NULL, NULL, 0) == 200 &&
                  client_header(&c, "Content-Length", text, sizeof text) &&
                  strtol(text, NULL, 10) == RELAYED,
              "%d", c.status);
    }
    check(figure(s->port, peer) - before < 1 << 20, "%.0f bytes have come",
          figure(s->port, peer) - before);

    part("written over and compacted meanwhile");
    readers_begin(r, s->port, values[0]);
    before = figure(owner->port, done) + figure(first->port, done);
    for (int i = 0; i < 2; i++) {
        readers_sip(r, s->port, 200000);
        large_put(&o, "/relay", values[1], RELAYED, 204);
    }
    wait_until(
        (readers_sip(r, s->port, 4000),
         figure(owner->port, done) + figure(first->port, done) >= before + 2),
        LIMIT_MS, "nothing was compacted");
    check(client_text(&c, "GET", "/small", NULL) == 200 &&
              client_text(&c, "GET", "/small?consistent", NULL) == 200,
          "%d", c.status);
    n = readers_end(r);
    check(n == readers(), "%zu got all", n);
    relays_leave(&c, values[1]);

    part("an owner is killed: the other sends the rest");
    readers_begin(r, s->port, values[1]);
    server_kill(first);
    n = readers_end(r);
    check(n == readers(), "%zu got all", n);
    again(first);
    cluster_mend(state);

    part("one that is stopped sends what it has begun to, written over or not");
    readers_begin(r, s->port, values[1]);
    large_put(&o, "/relay", values[0], RELAYED, 204);
    kill(first->pid, SIGTERM);
    n = readers_end(r);
    check(n == readers(), "%zu got all", n);
    server_stop(first);
    again(first);
    cluster_mend(state);
    large_put(&o, "/relay", values[1], RELAYED, 204);

    part("and written over: it has no rest, and the answer breaks off");
    for (int tries = 0;; tries++) {
        readers_begin(r, s->port, values[1]);
        large_put(&o, "/relay", values[0], RELAYED, 204);
        readers_sip(r, s->port, 200000);
        server_kill(first);
        n = readers_end(r);
        if (n < readers())
            break;
        check(tries < 9, "%zu got all", n); /* the first owner was slow */
        again(first);
        cluster_mend(state);
        large_put(&o, "/relay", values[1], RELAYED, 204);
    }
    wait_until(figure(s->port, "estoraje_buffered_bytes") < 1 << 20, LIMIT_MS,
               "it is still buffered");
    for (size_t i = 0; i < 2; i++)
        check(client_ask(&c, "GET", targets[i], NULL, NULL, 0) ==
                      (i == 0 ? 200 : 503) &&
                  (i > 0 || (c.body_len == RELAYED &&
                             memcmp(c.body, values[0], RELAYED) == 0)),
              "%s: %d, %zu bytes", targets[i], c.status, c.body_len);
    client_end(&c);
    client_end(&o);
}

/* ---- Trouble --------------------------------------------------------- */

/* Large values do not pile up for a node that hangs; it gets them later. */
static void test_large_paused(void **state) {
    enum { SIZE = 16 << 20, VALUES = 4 };
    static char value[SIZE];
    struct server *paused = nodes[2];
    struct client c = client_make(nodes[0]->port);
    struct client late = client_make(paused->port);
    char target[32];

    (void)state;
    random_bytes(value, SIZE, 12);
    kill(paused->pid, SIGSTOP);
    wait_until(figure(c.port, "estoraje_peers{state=\"down\"}") == 1, LIMIT_MS,
               "it is still heard");
    for (int i = 0; i < VALUES; i++) {
        snprintf(target, sizeof target, "/paused/%d", i);
        large_put(&c, target, value, SIZE, 201);
    }
    check(figure(c.port, "estoraje_buffered_bytes") < SIZE,
          "%.0f bytes are buffered", figure(c.port, "estoraje_buffered_bytes"));
    kill(paused->pid, SIGCONT);
    for (int i = 0; i < VALUES; i++) {
        snprintf(target, sizeof target, "/paused/%d%s", i,
                 i % 2 == 0 ? "" : "?consistent");
        wait_until(client_text(&late, "GET", target, NULL) == 200, LIMIT_MS,
                   "%s: %d", target, late.status);
        check(late.body_len == SIZE && memcmp(late.body, value, SIZE) == 0,
              "%s: %zu bytes", target, late.body_len);
        check(client_text(&c, "DELETE", target, NULL) == 204, "%d", c.status);
    }
    client_end(&late);
    client_end(&c);
}

/* A node stopped for 3 s: the others go on; when it goes on, it serves what
   was written meanwhile, and never 404 for what was there all along. */
static void test_pause(void **state) {
    struct server *paused = nodes[2];
    struct client c[2], late = client_make(paused->port);
    char target[64], value[64];
    long begun, slowest = 0;
    int round = 0;

    (void)state;
    for (int i = 0; i < 2; i++)
        c[i] = client_make(nodes[i]->port);
    for (int k = 0; k < 20; k++) {
        snprintf(target, sizeof target, "/pause/%d", k);
        check(client_text(&c[0], "PUT", target, "before") == 201, "%d",
              c[0].status);
    }
    kill(paused->pid, SIGSTOP);
    begun = now_ms();
    while (round < 2 || now_ms() - begun < 3000) {
        round++;
        for (int k = 0; k < 20; k++) {
            long start = now_ms();

            snprintf(target, sizeof target, "/pause/%d", k);
            snprintf(value, sizeof value, "round %d", round);
            check(client_text(&c[k % 2], "PUT", target, value) == 204,
                  "PUT %s: %d %s", target, c[k % 2].status, c[k % 2].body);
            check(client_text(&c[1 - k % 2], "GET", target, NULL) == 200 &&
                      strcmp(c[1 - k % 2].body, value) == 0,
                  "GET %s: %d", target, c[1 - k % 2].status);
            slowest = now_ms() - start > slowest ? now_ms() - start : slowest;
        }
    }
    check(slowest < LIMIT_MS / 3, "a write and a read took %ld ms", slowest);
    kill(paused->pid, SIGCONT);
    begun = now_ms();
    snprintf(value, sizeof value, "round %d", round);
    for (int k = 0; k < 20; k++) {
        snprintf(target, sizeof target, "/pause/%d", k);
        for (;;) {
            client_text(&late, "GET", target, NULL);
            check(late.status == 200, "GET %s: %d", target, late.status);
            if (strcmp(late.body, value) == 0)
                break;
            check(now_ms() - begun < LIMIT_MS / 3, "%s is still %s", target,
                  late.body);
        }
    }
    for (int i = 0; i < 2; i++)
        client_end(&c[i]);
    client_end(&late);
}

/* Sends a signal to the etcd of every node. */
static void etcds_signal(int signal_number) {
    for (int i = 0; i < NODES; i++) {
        pid_t pids[4];
        size_t n = processes_find(nodes[i]->dir, "etcd", pids, 4);

        check(n == 1, "%zu etcds of %s", n, nodes[i]->name);
        check(kill(pids[0], signal_number) == 0, "cannot signal etcd");
    }
}

static void test_etcd_stopped(void **state) {
    struct work w = {
        .item = item_write_read, .count = sampled(10000), .round = 1};

    (void)state;
    etcds_signal(SIGSTOP);
    for (int i = 0; i < NODES; i++)
        w.ports[i] = nodes[i]->port;
    work_begin(&w, 4);
    while (!work_passed(w.count - 1)) {
        for (int i = 0; i < NODES; i++)
            check(status_of(nodes[i]->port, "GET", "/_ready") == 200,
                  "%s is not ready", nodes[i]->name);
        pause_ms(100);
    }
    work_end();
    etcds_signal(SIGCONT);
    wait_until(cluster_is_whole(), LIMIT_MS, "not all Ready and alive");
    read_back(nodes[1], w.count, w.round);
}

/* Kills a node with -9 while work goes on; what begins from now on must
   succeed, what was in flight is forgiven. */
static void kill_under_work(struct server *s) {
    pthread_mutex_lock(&work.lock);
    work.strict_from = now_ms() + LIMIT_MS;
    pthread_mutex_unlock(&work.lock);
    server_kill(s);
    pthread_mutex_lock(&work.lock);
    work.strict_from = now_ms();
    pthread_mutex_unlock(&work.lock);
}

/* Lets work go on for n more items, then stops it, and checks that none
   failed but some that were in flight at the kill.  Answers how many were
   begun, and done. */
static size_t work_halt(size_t n) {
    size_t before = work_done();

    wait_until(work_passed(before + n), LIMIT_MS, "stuck at %zu, %zu before",
               work_done(), before);
    work_stop(NULL);
    check(work.errors == 0, "%zu items failed, first: %s", work.errors,
          work.error);
    check(work.forgiven <= 8, "%zu requests in flight failed", work.forgiven);
    return work.next;
}

/* One of three is killed while the others are asked: none of the requests
   that begin after the kill fails, and when it is back it has it all. */
static void test_kill(void **state) {
    struct server *a = nodes[0], *killed = nodes[1], *b = nodes[2];
    struct work w = {.item = item_write_read,
                     .count = SIZE_MAX,
                     .round = 2,
                     .ports = {a->port, b->port, a->port}};
    size_t n;

    (void)state;
    work_begin(&w, 3);
    wait_until(work_passed(300), LIMIT_MS, "%zu done", work_done());
    kill_under_work(killed);
    part("nothing is left of it");
    check_gone(killed);
    check(port_silent(etcd_peer[1] - 1), "its etcd still listens");
    n = work_halt(600);
    part("%zu keys through each that is left, then through it", n);
    read_back(a, n, w.round);
    read_back(b, n, w.round);
    again(killed);
    read_back(killed, n, w.round);
}

/* What the nodes' metrics say of a node that is killed and comes back. */
static void test_metrics(void **state) {
    struct client a = client_make(nodes[0]->port);
    struct client b = client_make(nodes[1]->port);
    double calls, errors, missed, doubts;
    char key[32];

    (void)state;
    wait_until(
        (metrics_get(&a),
         metric(&a, "estoraje_peers{state=\"up\"}") == 2 &&
             metric(&a, "estoraje_peers{state=\"down\"}") == 0 &&
             metric(&a, "estoraje_etcd{state=\"up\"}") == 1 &&
             metric(&a, "estoraje_partitions{state=\"owned\"}") == 256 &&
             metric(&a, "estoraje_connections{port=\"peer\"}") > 0 &&
             metric(&a, "estoraje_received_bytes_total{port=\"peer\"}") > 0),
        LIMIT_MS, "%s", a.body);
    metrics_check(&a);
    calls = metric(&a, "estoraje_peer_calls_total");
    errors = metric(&a, "estoraje_peer_errors_total");
    missed = metric(&a, "estoraje_missed_writes_total");
    doubts = metric(&a, "estoraje_doubts_total");
    check(calls > 0 && errors >= 0 && missed >= 0 && doubts >= 0, "%s", a.body);
    part("one is killed");
    server_kill(nodes[1]);
    wait_until(
        (metrics_get(&a), metric(&a, "estoraje_peers{state=\"down\"}") == 1 &&
                              metric(&a, "estoraje_doubts_total") > doubts),
        LIMIT_MS, "%.0f before\n%s", doubts, a.body);
    for (int i = 0; i < 20; i++) {
        snprintf(key, sizeof key, "/metrics%d", i);
        check(client_text(&a, "PUT", key, "v") == 201, "%d", a.status);
    }
    wait_until((metrics_get(&a),
                metric(&a, "estoraje_peers{state=\"up\"}") == 1 &&
                    metric(&a, "estoraje_peer_calls_total") >= calls + 20 &&
                    metric(&a, "estoraje_peer_errors_total") > errors &&
                    metric(&a, "estoraje_missed_writes_total") >= missed + 20),
               LIMIT_MS, "%.0f %.0f %.0f before\n%s", calls, errors, missed,
               a.body);
    metrics_check(&a);
    part("it comes back, and repairs what it has missed");
    again(nodes[1]);
    wait_until(
        (metrics_get(&b),
         metric(&b, "estoraje_repair_records_total") >= 20 &&
             metric(&b, "estoraje_repair_received_bytes_total") > 20 * 40 &&
             metric(&b, "estoraje_repair_rounds_total{result=\"done\"}") > 0),
        LIMIT_MS, "%s", b.body);
    metrics_check(&b);
    wait_until(
        (metrics_get(&a), metric(&a, "estoraje_peers{state=\"up\"}") == 2),
        LIMIT_MS, "%s", a.body);
    client_end(&a);
    client_end(&b);
}

static void test_ten_restarts(void **state) {
    struct server *s = nodes[2];
    size_t usual = processes_count(s->dir);
    struct client c = client_make(nodes[0]->port);
    int times = torture() ? 50 : 10;

    (void)state;
    check(client_text(&c, "PUT", "/again", "0") == 201, "%d", c.status);
    for (int k = 1; k <= times; k++) {
        struct client own = client_make(s->port);
        char was[16], is[16];
        long begun;

        server_kill(s);
        snprintf(was, sizeof was, "%d", k - 1);
        snprintf(is, sizeof is, "%d", k);
        again(s);
        check(client_text(&own, "GET", "/again", NULL) == 200 &&
                  strcmp(own.body, was) == 0,
              "start %d: %d %s", k, own.status, own.body);
        begun = now_ms();
        check(client_text(&c, "PUT", "/again", is) == 204, "start %d: %d", k,
              c.status);
        check(read_written(&own, "/again", is, now_ms() - begun),
              "start %d: %d %s", k, own.status, own.body);
        client_end(&own);
    }
    client_end(&c);
    wait_until(cluster_is_whole(), LIMIT_MS, "not all Ready and alive");
    wait_until(processes_count(s->dir) == usual, LIMIT_MS,
               "%zu processes, not %zu", processes_count(s->dir), usual);
}

/* One of three alone cannot know: it says so, and never 404. */
static void test_minority(void **state) {
    struct client c = client_make(nodes[0]->port);
    long until, before;
    char text[64] = "", first[64];
    int status;

    (void)state;
    check(client_text(&c, "PUT", "/minor", "old") == 201, "%d", c.status);
    check(client_text(&c, "PUT", "/doomed", "old") == 201, "%d", c.status);
    server_kill(nodes[1]);
    server_kill(nodes[2]);
    part("reads");
    until = now_ms() + LIMIT_MS;
    do {
        check(client_text(&c, "GET", "/minor", NULL) == 200 &&
                  strcmp(c.body, "old") == 0,
              "%d", c.status);
        check(now_ms() < until, "no Estoraje-Stale: true\n%s", c.head);
    } while (!client_header(&c, "Estoraje-Stale", text, sizeof text));
    check(strcmp(text, "true") == 0, "Estoraje-Stale: %s", text);
    check(client_text(&c, "GET", "/unheard-of", NULL) == 503 &&
              client_header(&c, "Retry-After", text, sizeof text),
          "%d", c.status);
    check(client_text(&c, "GET", "/_ready", NULL) == 200 &&
              strstr(c.body, "degraded: ") != NULL,
          "/_ready: %d %s", c.status, c.body);

    part("writes");
    before = now_ms();
    status = client_text(&c, "PUT", "/doomed", "new");
    check(status == 503 || status == 504, "%d", status);
    check(status == 503 || strstr(c.body, "outcome unknown"), "%s", c.body);
    status = client_text(&c, "DELETE", "/minor", NULL);
    check(status == 503 || status == 504, "%d", status);
    check(now_ms() - before < LIMIT_MS, "%ld ms", now_ms() - before);
    client_end(&c);

    part("all are back, and of one mind");
    cluster_mend(state);
    until = now_ms() + LIMIT_MS;
    for (bool same = false; !same; pause_ms(20)) {
        same = true;
        check(now_ms() < until, "the nodes still differ");
        for (int i = 0; i < NODES; i++) {
            c = client_make(nodes[i]->port);
            client_text(&c, "GET", "/doomed", NULL);
            check(c.status == 200 && (strcmp(c.body, "old") == 0 ||
                                      strcmp(c.body, "new") == 0),
                  "%d %s", c.status, c.body);
            if (i == 0)
                snprintf(first, sizeof first, "%s", c.body);
            same = same && strcmp(first, c.body) == 0;
            client_end(&c);
        }
    }
}

/* ---- Real input ------------------------------------------------------ */

static struct {
    char **paths;
    size_t count, cap;
} files;

/* Adds every regular file below a directory. */
static void files_find(const char *dir) {
    DIR *d = opendir(dir);
    struct dirent *e;

    while (d != NULL && (e = readdir(d)) != NULL) {
        char path[1024];
        struct stat st;

        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (lstat(path, &st) != 0)
            continue;
        if (S_ISDIR(st.st_mode))
            files_find(path);
        if (!S_ISREG(st.st_mode) || strlen(path) > 1000)
            continue;
        if (files.count == files.cap) {
            files.cap = 2 * files.cap + 1024;
            files.paths =
                realloc(files.paths, files.cap * sizeof files.paths[0]);
            if (files.paths == NULL)
                abort();
        }
        files.paths[files.count++] = strdup(path);
    }
    if (d != NULL)
        closedir(d);
}

/* A path as a request target: what is not plain is percent-encoded. */
static void target_of(const char *path, char *out) {
    for (; *path != '\0'; path++) {
        if (isalnum((unsigned char)*path) || strchr("/-._~", *path))
            *out++ = *path;
        else
            out += sprintf(out, "%%%02X", (unsigned char)*path);
    }
    *out = '\0';
}

/* Item: a file is stored through ports[0].  While a node dies in the
   middle of a request, that request is tried again, and counted. */
static bool item_file_put(struct work *w, struct client *c, size_t i,
                          char *error) {
    char target[3072];
    size_t len;
    char *value = file_read(files.paths[i], &len);
    bool good = false;

    if (value == NULL)
        return item_failed(error, c, "no file", files.paths[i]);
    target_of(files.paths[i], target);
    for (int tries = 0; tries < 20 && !good; tries++) {
        client_ask(c, "PUT", target, NULL, value, len);
        good = c->status == 201 || c->status == 204;
        if (!good && c->status > 0 && c->status != 502 && c->status != 503 &&
            c->status != 504)
            break;
        if (!good) {
            pthread_mutex_lock(&w->lock);
            w->retries++;
            pthread_mutex_unlock(&w->lock);
            pause_ms(20);
        }
    }
    free(value);
    return good || item_failed(error, c, "PUT", target);
}

/* Item: a file is read through ports[0] and equal to what it is on disk. */
static bool item_file_get(struct work *w, struct client *c, size_t i,
                          char *error) {
    char target[3072];
    size_t len;
    char *value = file_read(files.paths[i], &len);
    bool good;

    (void)w;
    if (value == NULL)
        return item_failed(error, c, "no file", files.paths[i]);
    target_of(files.paths[i], target);
    client_ask(c, "GET", target, NULL, NULL, 0);
    good = c->status == 200 && c->body_len == len &&
           memcmp(c->body, value, len) == 0;
    free(value);
    if (!good && c->status == 200)
        snprintf(error, 400, "GET %.200s: %zu bytes differ from %zu", target,
                 c->body_len, len);
    return good || (c->status != 200 && item_failed(error, c, "GET", target));
}

/* Starts haproxy in front of the three nodes, and waits for it. */
static struct server *haproxy_start(void) {
    struct server *s = server_plain("haproxy", "haproxy");
    char text[2048], path[MAX_PATH + 16];
    int port = port_pair(), n;

    n = snprintf(text, sizeof text,
                 "defaults\n"
                 "    mode http\n"
                 "    timeout connect 2s\n"
                 "    timeout client 60s\n"
                 "    timeout server 30s\n"
                 "    timeout check 2s\n"
                 "    retries 3\n"
                 "    option redispatch 1\n"
                 "    retry-on all-retryable-errors\n"
                 "frontend front\n"
                 "    bind 127.0.0.1:%d\n"
                 "    default_backend nodes\n"
                 "backend nodes\n"
                 "    balance roundrobin\n"
                 "    option httpchk GET /_ready\n"
                 "    default-server inter 300ms fall 2 rise 1\n",
                 port);
    for (int i = 0; i < NODES; i++)
        n += snprintf(text + n, sizeof text - (size_t)n,
                      "    server %s "
                      "127.0.0.1:%d check\n",
                      nodes[i]->name, nodes[i]->port);
    snprintf(path, sizeof path, "%s/haproxy.cfg", the_run.dir);
    check(file_write(path, "wb", text, (size_t)n), "cannot write %s", path);
    server_args(s, "-db -f %s", path);
    server_start(s);
    s->port = port;
    wait_until(status_of(port, "GET", "/_ready") == 200, LIMIT_MS,
               "haproxy does not answer");
    return s;
}

/* All files through one node, compared. */
static void files_check(const struct server *s) {
    struct work w = {.item = item_file_get,
                     .count = files.count,
                     .ports = {s->port, s->port, s->port}};

    work_begin(&w, 4);
    work_end();
}

static void test_real_input(void **state) {
    struct server *proxy = haproxy_start(), *killed = nodes[1];
    struct work w = {.item = item_file_put,
                     .ports = {proxy->port, proxy->port, proxy->port}};
    size_t all;

    (void)state;
    files_find("/usr/include");
    all = files.count;
    check(all > 100, "%zu files under /usr/include", all);
    files.count = sampled(all);
    for (size_t i = 0, step = all / files.count; i < files.count; i++) {
        char *path = files.paths[i]; /* an even sample */

        files.paths[i] = files.paths[i * step];
        files.paths[i * step] = path;
    }
    w.count = files.count;

    part("%zu files are stored, %s dies halfway", files.count, killed->name);
    w.hold = files.count * 3 / 4; /* not all are stored before the kill */
    work_begin(&w, 4);
    wait_until(work_passed(files.count / 2), 4 * LIMIT_MS, "%zu stored",
               work_done());
    work_release();
    server_kill(killed);
    work_end();
    check(work.retries <= 64, "%zu retries", work.retries);
    part("read through each that is left (%zu writes were retried)",
         work.retries);
    files_check(nodes[0]);
    files_check(nodes[2]);
    part("and through the one that comes back");
    again(killed);
    files_check(killed);
    wait_until(cluster_is_whole(), LIMIT_MS, "not all Ready and alive");
    kill(proxy->pid, SIGKILL);
    process_wait(proxy->pid, LIMIT_MS);
    proxy->pid = 0;
    while (all > 0)
        free(files.paths[--all]);
    free(files.paths);
}

/* ---- The end, and the beginning again -------------------------------- */

static void test_stop_all(void **state) {
    static const int orders[][NODES] = {{2, 0, 1}, {0, 1, 2}};
    struct client c = client_make(nodes[0]->port);

    check(client_text(&c, "PUT", "/lasting", "value") == 201, "%d", c.status);
    client_end(&c);
    for (size_t k = 0; k < 2; k++) {
        for (int i = 0; i < NODES; i++) {
            struct server *s = nodes[orders[k][i]];

            server_stop(s);
            check_gone(s);
        }
        if (k > 0)
            break;
        cluster_mend(state);
        for (int i = 0; i < NODES; i++) {
            c = client_make(nodes[i]->port);
            check(client_text(&c, "GET", "/lasting", NULL) == 200 &&
                      strcmp(c.body, "value") == 0,
                  "%s: %d", nodes[i]->name, c.status);
            client_end(&c);
        }
    }
}

/* ---- Starts that must fail ------------------------------------------- */

/* Who may not join the running cluster: exit code, and a line that names
   the reason. */
static void test_refused(void **state) {
    const char *etcd = "http://127.0.0.1";
    struct output o = {0};
    char dir[MAX_PATH + 16], path[MAX_PATH + 16];

    (void)state;
    snprintf(dir, sizeof dir, "%s/unused", the_run.dir);
    part("no etcd on the PATH");
    snprintf(path, sizeof path, "%s/no-programs", the_run.dir);
    o.path = path;
    run(&o,
        "%s -dataPath %s -port 0 -peerPort 0 -name node1 "
        "-initialCluster node1=%s:%d",
        the_run.exe, dir, etcd, port_pair());
    check_refused(&o, 1, "etcd");
    o.path = NULL;

    part("a name that is live");
    run(&o, "%s -dataPath %s -port 0 -peerPort 0 -name node1 -etcd %s:%d",
        the_run.exe, dir, etcd, etcd_peer[1] - 1);
    check_refused(&o, 1, "node1");
    part("no member, and no -add");
    run(&o,
        "%s -dataPath %s -port 0 -peerPort 0 -name stranger -etcd "
        "%s:%d",
        the_run.exe, dir, etcd, etcd_peer[0] - 1);
    check_refused(&o, 2, "-add");
    part("not named in its own -initialCluster");
    run(&o,
        "%s -dataPath %s -port 0 -peerPort 0 -name node9 "
        "-initialCluster node1=%s:%d",
        the_run.exe, dir, etcd, port_pair());
    check(o.code != 0, "exit code 0");
    check_refused(&o, o.code, "node9");
    wait_until(cluster_is_whole(), LIMIT_MS, "the cluster was disturbed");
}

/* ---- An etcd that runs already (-etcd) ------------------------------- */

static int lone_etcd_port;

/* Starts an etcd on its own, or again, with one more flag. */
static struct server *etcd_start(struct server *s, const char *flag) {
    if (s == NULL) {
        int port = port_pair();

        s = server_plain("etcd", "etcd");
        lone_etcd_port = port - 1;
        server_args(
            s,
            "--data-dir %s --name e --initial-cluster "
            "e=http://127.0.0.1:%d --initial-advertise-peer-urls "
            "http://127.0.0.1:%d --listen-peer-urls http://127.0.0.1:%d "
            "--listen-client-urls http://127.0.0.1:%d "
            "--advertise-client-urls http://127.0.0.1:%d",
            s->dir, port, port, port, port - 1, port - 1);
    }
    if (flag != NULL)
        server_args(s, "%s", flag);
    server_start(s);
    wait_until(status_of(lone_etcd_port, "GET", "/health") == 200, LIMIT_MS,
               "etcd does not become healthy");
    return s;
}

/* Ends an etcd; how it says goodbye is its own affair. */
static void etcd_end(struct server *s) {
    kill(s->pid, SIGKILL);
    process_wait(s->pid, LIMIT_MS);
    s->pid = 0;
}

/* Checks that a node that is alone in its ring holds the ten keys. */
static void check_ten(const struct server *s) {
    struct client c = client_make(s->port);
    char target[32];

    for (int k = 0; k < 10; k++) {
        snprintf(target, sizeof target, "/ten/%d", k);
        check(client_text(&c, "GET", target, NULL) == 200 &&
                  strcmp(c.body, target) == 0,
              "%s: %d", target, c.status);
    }
    check(client_text(&c, "GET", "/_cluster_status", NULL) == 200, "%d",
          c.status);
    json_squeeze(c.body);
    check(text_count(c.body, "\"status\":\"Ready\"") == 1, "%s", c.body);
    client_end(&c);
}

static void test_gateway_off(void **state) {
    struct server *etcd = etcd_start(NULL, "--enable-grpc-gateway=false");
    struct output o = {0};

    (void)state;
    run(&o,
        "%s -dataPath %s/unused -port 0 -peerPort 0 -etcd "
        "http://127.0.0.1:%d",
        the_run.exe, the_run.dir, lone_etcd_port);
    check_refused(&o, 1, "gateway");
    etcd_end(etcd);
}

/* A node that ran alone brings its data to a ring in etcd, and stays there
   through kill -9 and without etcd. */
static void test_etcd_mode(void **state) {
    struct server *etcd = etcd_start(NULL, NULL), *s, *other;
    int port = port_pair();
    struct output o = {0};
    struct client c;
    char target[32];
    uint64_t before;

    (void)state;
    part("alone first, then with -etcd");
    s = server_new("solo");
    server_args(s, "-name solo -port %d -peerPort %d", port, port - 1);
    again(s);
    c = client_make(port);
    for (int k = 0; k < 10; k++) {
        snprintf(target, sizeof target, "/ten/%d", k);
        check(client_text(&c, "PUT", target, target) == 201, "%d", c.status);
    }
    client_end(&c);
    server_stop(s);
    server_args(s, "-etcd http://127.0.0.1:%d", lone_etcd_port);
    again(s);
    check_ten(s);
    part("a second of its name");
    run(&o,
        "%s -dataPath %s/second -port 0 -peerPort 0 -name solo -etcd "
        "http://127.0.0.1:%d",
        the_run.exe, the_run.dir, lone_etcd_port);
    check_refused(&o, 1, "solo");
    part("kill -9, and again; then again without etcd");
    server_kill(s);
    again(s);
    check_ten(s);
    server_kill(s);
    etcd_end(etcd);
    again(s);
    check_ten(s);
    etcd_start(etcd, NULL);
    check_ten(s);
    server_stop(s);

    part("a data directory of another cluster");
    static const char wipe[] = /* all from strj_ to strj` */
        "{\"key\":\"c3Ryal8=\",\"range_end\":\"c3RyamA=\"}";
    c = client_make(lone_etcd_port);
    check(client_text(&c, "POST", "/v3/kv/deleterange", wipe) == 200 &&
              strstr(c.body, "\"deleted\"") != NULL,
          "%d %s", c.status, c.body);
    client_end(&c);
    other = server_new("other");
    server_args(other,
                "-name solo -port %d -peerPort %d -etcd "
                "http://127.0.0.1:%d",
                port, port - 1, lone_etcd_port);
    again(other);
    server_stop(other);
    before = tree_sum(s->dir);
    run(&o,
        "%s -dataPath %s -name solo -port %d -peerPort %d -etcd "
        "http://127.0.0.1:%d",
        the_run.exe, s->dir, port, port - 1, lone_etcd_port);
    check_refused(&o, 1, "cluster");
    check(tree_sum(s->dir) == before, "the directory was changed");
    part("another count of partitions than the ring's");
    run(&o,
        "%s -dataPath %s/third -name solo -port %d -peerPort %d "
        "-partitions 32 -etcd http://127.0.0.1:%d",
        the_run.exe, the_run.dir, port, port - 1, lone_etcd_port);
    check_refused(&o, 1, "partitions");
    again(other);
    server_stop(other);
    etcd_end(etcd);
}

/* An etcd that nobody answers for: given up after 60 s. */
static void test_etcd_unreachable(void **state) {
    struct output o = {.limit_ms = 90000};
    long before = now_ms();

    (void)state;
    if (!torture())
        skip();
    run(&o,
        "%s -dataPath %s/unused -port 0 -peerPort 0 -etcd "
        "http://127.0.0.1:%d",
        the_run.exe, the_run.dir, port_pair());
    check(now_ms() - before > 50000, "after %ld ms", now_ms() - before);
    check(o.code == 1 && strstr(o.err, "etcd") != NULL, "%d %s", o.code, o.err);
    output_free(&o);
}

/* Any node killed at any moment, again and again, under load: what was
   acknowledged is there.  Only in the long form. */
static void test_storm(void **state) {
    uint64_t seed = the_run.random;
    long until = now_ms() + 120000;

    if (!torture())
        skip();
    part("seed %llu", (unsigned long long)seed);
    for (int round = 3; now_ms() < until; round++) {
        size_t victim = random_next(&seed) % NODES, n;
        struct server *s = nodes[victim];
        struct work w = {
            .item = item_write_read, .count = SIZE_MAX, .round = round};

        for (size_t i = 0; i < NODES; i++)
            w.ports[i] = nodes[i == victim ? (i + 1) % NODES : i]->port;
        work_begin(&w, 4);
        pause_ms((long)(random_next(&seed) % 1000));
        kill_under_work(s);
        pause_ms((long)(random_next(&seed) % 3000));
        again(s);
        n = work_halt(10);
        read_back(s, n, round);
    }
    cluster_mend(state);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, cluster_mend, work_stop)

int main(void) {
    const struct CMUnitTest three[] = {
        TEST(test_everywhere),   TEST(test_what_nodes_say),
        TEST(test_curl),         TEST(test_list),
        TEST(test_ranges),       TEST(test_peer_garbage),
        TEST(test_refused),      TEST(test_pause),
        TEST(test_etcd_stopped), TEST(test_kill),
        TEST(test_minority),     TEST(test_ten_restarts),
        TEST(test_real_input),   TEST(test_storm),
        TEST(test_metrics),      TEST(test_large),
        TEST(test_large_paused), TEST(test_stop_all),
    };
    const struct CMUnitTest others[] = {
        cmocka_unit_test_teardown(test_list_elsewhere, servers_end),
        cmocka_unit_test_teardown(test_large_elsewhere, servers_end),
        cmocka_unit_test_teardown(test_relay, servers_end),
        cmocka_unit_test_teardown(test_gateway_off, servers_end),
        cmocka_unit_test_teardown(test_etcd_mode, servers_end),
        cmocka_unit_test_teardown(test_etcd_unreachable, servers_end),
    };
    int failed;

    run_begin(torture() ? 3600 : 1200);
    failed = cmocka_run_group_tests(three, cluster_begin, servers_end);
    failed += cmocka_run_group_tests(others, NULL, NULL);
    return run_result(failed);
}
