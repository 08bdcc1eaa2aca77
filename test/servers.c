/* servers.c - one node, tested from outside: flags, the client API, how it
   takes bad input, what survives a restart

   A real process, real sockets, a directory of its own.  The tables below
   are the contract's sentences, one a row. */

#include "harness.h"

#define X16          "xxxxxxxxxxxxxxxx"
#define X127         "x/" X16 X16 X16 X16 X16 X16 X16 "xxxxxxxxxxxxx"
#define COUNT(table) (sizeof(table) / sizeof(table)[0])

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

/* The peer port of a node, as its discovery list tells. */
static int peer_port(const struct server *s) {
    struct client c = client_make(s->port);
    const char *at;
    int port = 0;

    check(client_text(&c, "GET", "/_nodes_discovery", NULL) == 200, "status %d",
          c.status);
    at = strstr(json_squeeze(c.body), "\"Host\":\"127.0.0.1:");
    check(at != NULL, "no Host in %s", c.body);
    port = (int)strtol(strrchr(strtok((char *)at, ","), ':') + 1, NULL, 10);
    check(port > 0 && port != s->port, "peer port %d", port);
    client_end(&c);
    return port;
}

/* ---- Many connections ------------------------------------------------ */

/* Lets this process have so many descriptors; false: it cannot. */
static bool descriptors_allow(rlim_t n) {
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_max < n)
        return false;
    limit.rlim_cur = limit.rlim_cur < n ? n : limit.rlim_cur;
    return setrlimit(RLIMIT_NOFILE, &limit) == 0;
}

/* How many descriptors a server has. */
static size_t descriptors_of(const struct server *s) {
    char path[64];
    size_t n = 0;
    DIR *d;

    snprintf(path, sizeof path, "/proc/%d/fd", (int)s->pid);
    d = opendir(path);
    check(d != NULL, "no %s", path);
    while (readdir(d) != NULL)
        n++;
    closedir(d);
    return n - 2;
}

/* Bytes of memory that a server has. */
static long memory_of(const struct server *s) {
    char path[64], *all, *at;
    size_t len;
    long kib;

    snprintf(path, sizeof path, "/proc/%d/status", (int)s->pid);
    all = file_read(path, &len);
    at = all != NULL ? strstr(all, "VmRSS:") : NULL;
    check(at != NULL, "no VmRSS in %s", path);
    kib = strtol(at + 6, NULL, 10);
    free(all);
    return 1024 * kib;
}

/* Milliseconds of CPU time that a server has taken. */
static long cpu_ms_of(const struct server *s) {
    char path[64], *all, *at;
    long user, system;
    size_t len;

    snprintf(path, sizeof path, "/proc/%d/stat", (int)s->pid);
    all = file_read(path, &len);
    at = all != NULL ? strrchr(all, ')') : NULL;
    check(at != NULL && sscanf(at,
                               ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u "
                               "%*u %ld %ld",
                               &user, &system) == 2,
          "%s: %s", path, all);
    free(all);
    return (user + system) * 1000 / sysconf(_SC_CLK_TCK);
}

static const char one_get[] = "GET /bystander HTTP/1.1\r\nHost: x\r\n\r\n";

/* Opens n connections to a port. */
static void many_open(int port, int *fds, size_t n) {
    struct client c = client_make(port);

    for (size_t i = 0; i < n; i++) {
        check(client_connect(&c), "connection %zu: %s", i, strerror(errno));
        fds[i] = c.fd;
        c.fd = -1;
    }
}

static void many_close(const int *fds, size_t n) {
    for (size_t i = 0; i < n; i++)
        close(fds[i]);
}

/* Sends a text on each of n connections. */
static void many_send(const int *fds, size_t n, const char *text) {
    for (size_t i = 0; i < n; i++)
        check(send(fds[i], text, strlen(text), MSG_NOSIGNAL) ==
                  (ssize_t)strlen(text),
              "connection %zu: %s", i, strerror(errno));
}

/* Reads an answer to GET /bystander from each of n connections. */
static void many_read(const int *fds, size_t n) {
    struct client c = client_make(0);

    for (size_t i = 0; i < n; i++) {
        c.fd = fds[i];
        check(client_read(&c, false) == 200 && strcmp(c.body, "served") == 0 &&
                  c.from == c.len,
              "connection %zu: %d %s", i, c.status, c.body);
    }
    c.fd = -1;
    client_end(&c);
}

/* ---- The command line ------------------------------------------------ */

static void test_flags_refused(void **state) {
    static const struct {
        const char *args, *word;
    } rows[] = {
        {"-nope", "nope"},
        {"--nope=1", "nope"},
        {"stray", "stray"},
        {"-port 8000 stray", "stray"},
        {"-debug perhaps", "perhaps"},
        {"-debug=perhaps", "debug"},
        {"-port", "port"},
        {"-port eighty", "port"},
        {"-port 80x", "port"},
        {"-port 70000", "port"},
        {"-port -1", "port"},
        {"-port=", "port"},
        {"-peerPort 65536", "peerPort"},
        {"-partitions 3", "partitions"},
        {"-partitions 0", "partitions"},
        {"-partitions 8192", "partitions"},
        {"-partitions many", "partitions"},
        {"-replicas 0", "replicas"},
        {"-replicas -3", "replicas"},
        {"-threads 0x", "threads"},
        {"-maxValue junk", "maxValue"},
        {"-maxValue 64Q", "maxValue"},
        {"-maxValue 99999999999999999999", "maxValue"},
        {"-sync often", "sync"},
        {"-scrub soon", "scrub"},
        {"-moveRate fast", "moveRate"},
        {"-etcd https://127.0.0.1:2379", "etcd"},
        {"-etcd nonsense", "etcd"},
        {"-initialCluster nonsense", "initialCluster"},
        {"-name=", "name"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct output o = {0};
        char dir[MAX_PATH + 8];

        snprintf(dir, sizeof dir, "%s/unused", the_run.dir);
        run(&o, "%s -dataPath %s %s", the_run.exe, dir, rows[i].args);
        check(o.code == 2, "%s: exit code %d: %s", rows[i].args, o.code, o.err);
        check_refused(&o, 2, rows[i].word);
        check(file_size(dir) < 0, "%s: made a directory", rows[i].args);
    }
}

static void test_add_refused(void **state) {
    struct output o = {0};

    (void)state;
    run(&o, "%s -dataPath %s/unused -port 0 -peerPort 0 -add", the_run.exe,
        the_run.dir);
    check(o.code != 0, "exit code 0: %s", o.err);
    check_refused(&o, o.code, "add");
}

static void test_help(void **state) {
    static const char *const words[] = {
        "-name",
        "-host",
        "-listen",
        "-port",
        "-peerPort",
        "-dataPath",
        "-initialCluster",
        "-etcd",
        "-add",
        "-replicas",
        "-partitions",
        "-zone",
        "-sync",
        "-threads",
        "-maxValue",
        "-secretFile",
        "-moveRate",
        "-scrub",
        "-acceptDamage",
        "-check",
        "-dump",
        "-debug",
        "node1",
        "127.0.0.1",
        "8000",
        "9000",
        "256",
        "second",
        "64M",
        "24h",
    };
    static const char *const spellings[] = {"-help", "--help"};
    struct output o = {0};

    (void)state;
    for (size_t i = 0; i < COUNT(spellings); i++) {
        run(&o, "%s %s", the_run.exe, spellings[i]);
        check(o.code == 0, "exit code %d", o.code);
        check(o.err[0] == '\0', "on stderr: %s", o.err);
        for (size_t j = 0; j < COUNT(words); j++)
            check(strstr(o.out, words[j]) != NULL, "no %s in:\n%s", words[j],
                  o.out);
        check(strstr(o.out, "estoraje") < strstr(o.out, "-acceptDamage"),
              "the examples do not come first:\n%s", o.out);
        output_free(&o);
    }
    run(&o, "%s -version", the_run.exe);
    check(o.code == 0, "exit code %d", o.code);
    check(text_lines(o.out) == 1 && o.err[0] == '\0', "%s%s", o.out, o.err);
    output_free(&o);
}

static void test_flag_forms(void **state) {
    static const char *const rows[] = {
        "-port 0 -peerPort 0 -name alpha -partitions 16",
        "-port=0 -peerPort=0 -name=alpha -partitions=16",
        "--port=0 --peerPort 0 --name=alpha --partitions=16",
        "-port 0 -peerPort 0 -name alpha -debug -partitions 16",
        "-port 0 -peerPort 0 -debug true -name alpha -partitions 16",
        "-port 0 -peerPort 0 -debug false -name alpha -partitions 16",
        "-port 0 -peerPort 0 -debug=false -name alpha -partitions 16",
        "-host 127.0.0.1 -listen 0.0.0.0 -port 0 -peerPort 0 -name alpha "
        "-partitions 16 -threads 3 -maxValue 1G -sync none -scrub 0 "
        "-moveRate 10M -zone z1 -replicas 1 -add=false",
        "-host localhost -port 0 -peerPort 0 -name alpha -partitions 16",
    };

    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct server *s = server_new("form");
        struct client c;

        server_args(s, "%s", rows[i]);
        server_start(s);
        server_ready(s);
        c = client_make(s->port);
        check(client_text(&c, "GET", "/_cluster_status", NULL) == 200,
              "%s: status %d", rows[i], c.status);
        json_squeeze(c.body);
        check(strstr(c.body, "\"name\":\"alpha\"") != NULL &&
                  strstr(c.body, "\"partitions\":16") != NULL,
              "%s: %s", rows[i], c.body);
        client_end(&c);
        server_stop(s);
    }
}

/* IPv6, where the machine has it: the ready line is a URL that works. */
static void test_ipv6(void **state) {
    struct sockaddr_in6 a = {.sin6_family = AF_INET6,
                             .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    bool have = fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof a) == 0;
    struct output o = {0};
    struct server *s;
    char *log;

    (void)state;
    if (fd >= 0)
        close(fd);
    if (!have)
        skip();
    s = server_new("six");
    server_args(s, "-host ::1 -port 0 -peerPort 0");
    server_start(s);
    wait_until(server_said_ready(s), LIMIT_MS, "no ready line");
    log = server_log(s);
    check(strstr(log, "\nready http://[::1]:") != NULL, "%s", log);
    free(log);
    run(&o, "curl -sS -g -d six http://[::1]:%d/k", s->port);
    check(o.code == 0, "curl: %d %s", o.code, o.err);
    output_free(&o);
    run(&o, "curl -sS -g http://[::1]:%d/k", s->port);
    check(o.code == 0 && strcmp(o.out, "six") == 0, "%s%s", o.out, o.err);
    output_free(&o);
    server_stop(s);
}

/* With no -dataPath the data is in ./data. */
static void test_default_directory(void **state) {
    struct server *s = server_plain("default", the_run.exe);
    char path[MAX_PATH + 32], cwd[MAX_PATH];

    (void)state;
    snprintf(cwd, sizeof cwd, "%.400s/default", the_run.dir);
    memcpy(s->cwd, cwd, sizeof cwd);
    mkdir(s->cwd, 0700);
    server_args(s, "-port 0 -peerPort 0");
    server_start(s);
    server_ready(s);
    snprintf(path, sizeof path, "%s/data/lock", s->cwd);
    check(file_size(path) >= 0, "no %s", path);
    server_stop(s);
}

/* What keeps a node from starting: exit 1, one line, nothing changed. */
static void test_start_refused(void **state) {
    struct server *s = alone("holder", "-partitions 16");
    int peer = peer_port(s);
    uint64_t before;
    struct output o = {0};
    char word[MAX_PATH + 32];
    struct client c = client_make(s->port);

    (void)state;
    part("port in use");
    snprintf(word, sizeof word, "%d", s->port);
    run(&o, "%s -dataPath %s/other -port %d -peerPort 0", the_run.exe,
        the_run.dir, s->port);
    check_refused(&o, 1, word);
    snprintf(word, sizeof word, "%d", peer);
    run(&o, "%s -dataPath %s/other -port 0 -peerPort %d", the_run.exe,
        the_run.dir, peer);
    check_refused(&o, 1, word);

    part("directory in use");
    run(&o, "%s -dataPath %s -port 0 -peerPort 0 -partitions 16", the_run.exe,
        s->dir);
    check_refused(&o, 1, s->dir);
    check(client_text(&c, "PUT", "/k", "still here") == 201, "status %d",
          c.status);
    client_end(&c);
    server_stop(s);

    part("another count of partitions or replicas");
    before = tree_sum(s->dir);
    run(&o, "%s -dataPath %s -port 0 -peerPort 0 -partitions 32", the_run.exe,
        s->dir);
    check_refused(&o, 1, "partitions");
    run(&o,
        "%s -dataPath %s -port 0 -peerPort 0 -partitions 16 "
        "-replicas 2",
        the_run.exe, s->dir);
    check_refused(&o, 1, "replicas");
    check(tree_sum(s->dir) == before, "the directory was changed");

    part("no permission");
    snprintf(word, sizeof word, "%s/a-file", the_run.dir);
    check(file_write(word, "wb", "x", 1), "cannot write %s", word);
    run(&o, "%s -dataPath %s -port 0 -peerPort 0", the_run.exe, word);
    check_refused(&o, 1, word);
    run(&o, "%s -dataPath %s/below -port 0 -peerPort 0", the_run.exe, word);
    check_refused(&o, 1, word);
    run(&o, "%s -dataPath /proc/nothing-here -port 0 -peerPort 0", the_run.exe);
    check_refused(&o, 1, "/proc/nothing-here");

    part("a secret file that is not there");
    run(&o,
        "%s -dataPath %s/other -port 0 -peerPort 0 "
        "-secretFile %s/no-secret",
        the_run.exe, the_run.dir, the_run.dir);
    check_refused(&o, 1, "no-secret");
}

/* A log file of another cluster is refused, and nothing is touched. */
static void test_foreign_log(void **state) {
    struct server *a = alone("mine", "-partitions 1");
    struct server *b = alone("theirs", "-partitions 1");
    struct output o = {0};
    char path[MAX_PATH + 16];
    struct client c = client_make(b->port);
    uint64_t before;
    size_t len;
    char *log;

    (void)state;
    check(client_text(&c, "PUT", "/k", "theirs") == 201, "%d", c.status);
    client_end(&c);
    server_stop(a);
    server_stop(b);
    snprintf(path, sizeof path, "%s/000.log", b->dir);
    log = file_read(path, &len);
    check(log != NULL, "no %s", path);
    snprintf(path, sizeof path, "%s/000.log", a->dir);
    check(file_write(path, "wb", log, len), "cannot write %s", path);
    free(log);
    before = tree_sum(a->dir);
    run(&o, "%s -dataPath %s -port 0 -peerPort 0 -partitions 1", the_run.exe,
        a->dir);
    check_refused(&o, 1, "000.log");
    check(tree_sum(a->dir) == before, "the directory was changed");
}

/* Fewer descriptors than the partitions need: a line, and exit 1.  At the
   limit the listener rests: who is connected is served, logs and peers have
   the descriptors that they need, and once the crowd has gone anybody is
   served. */
static void test_descriptors(void **state) {
    enum { CROWDED = 1000, SERVED = 300 };
    struct server *s = server_new("few");
    int code, peer, fds[CROWDED];
    static char large[100000];
    struct client c;
    size_t before;
    long spent, took;
    char *log;

    (void)state;
    part("too few");
    server_args(s, "-port 0 -peerPort 0 -partitions 256");
    s->descriptors = 300;
    server_start(s);
    code = process_wait(s->pid, LIMIT_MS);
    s->pid = code >= 0 ? 0 : s->pid;
    log = server_log(s);
    check(code == 1 && strstr(log, "descriptor") != NULL, "%d: %s", code, log);
    free(log);
    if (!descriptors_allow(CROWDED + 100)) {
        part("not tested: %d connections, too few descriptors", CROWDED);
        skip();
    }

    part("%d connections where 400 descriptors are allowed", CROWDED);
    s = server_new("crowded");
    server_args(s, "-port 0 -peerPort 0 -partitions 16");
    s->descriptors = 400;
    server_start(s);
    server_ready(s);
    before = descriptors_of(s);
    peer = peer_port(s);
    c = client_make(s->port);
    check(client_text(&c, "PUT", "/bystander", "served") == 201, "%d",
          c.status);
    many_open(s->port, fds, CROWDED);
    many_send(fds, SERVED, one_get);
    many_read(fds, SERVED);
    check(descriptors_of(s) < 400, "all are taken");
    took = now_ms();
    spent = cpu_ms_of(s);
    pause_ms(1000);
    spent = cpu_ms_of(s) - spent;
    took = now_ms() - took;
    check(spent < took / 5, "%ld ms of CPU time in %ld ms", spent, took);
    many_send(fds, SERVED, one_get);
    many_read(fds, SERVED);

    part("logs and peers beside them");
    for (int i = 0; i < 100; i++)
        check(client_ask(&c, "PUT", "/large", NULL, large, sizeof large) ==
                  (i == 0 ? 201 : 204),
              "%d", c.status);
    wait_until((metrics_get(&c),
                metric(&c, "estoraje_compactions_total{result=\"done\"}") > 0),
               LIMIT_MS, "no compaction: %s", c.body);
    check(metric(&c, "estoraje_compactions_total{result=\"failed\"}") == 0,
          "a compaction failed");
    check(status_of(peer, "GET", "/") > 0, "no answer to a peer");

    part("afterwards");
    many_close(fds, CROWDED);
    check(status_of(s->port, "GET", "/bystander") == 200, "not served");
    client_end(&c);
    wait_until(descriptors_of(s) <= before, LIMIT_MS,
               "%zu descriptors, not %zu", descriptors_of(s), before);
    server_stop(s);
}

/* ---- The client API -------------------------------------------------- */

/* The server that the API tests share. */
static struct server *api;

static int api_begin(void **state) {
    (void)state;
    api = alone("api", "-threads 1 -maxValue 8M");
    return 0;
}

/* The rules that every answer keeps, whatever was asked. */
static void check_answer(const struct client *c, const char *method,
                         const char *target) {
    bool system = strncmp(target, "/_", 2) == 0;
    char text[300] = "";

    check(c->status >= 100, "%s %s: no answer (%d)", method, target, c->status);
    if (c->status == 204 || c->status == 304) {
        check(!client_header(c, "Content-Length", text, sizeof text),
              "%s %s: %d with Content-Length", method, target, c->status);
        return;
    }
    check(client_header(c, "Content-Length", text, sizeof text) ||
              client_header(c, "Transfer-Encoding", text, sizeof text),
          "%s %s: no length in\n%s", method, target, c->head);
    if (c->status == 405)
        check(client_header(c, "Allow", text, sizeof text) &&
                  (system || strstr(text, "GET") != NULL),
              "Allow: %s", text);
    if (c->status == 503)
        check(client_header(c, "Retry-After", text, sizeof text),
              "503 without Retry-After");
    if (c->status < 400 || strcmp(method, "HEAD") == 0)
        return;
    if (c->status == 404 && !system) {
        check(c->body_len == 0, "%s %s: 404 with a body: %s", method, target,
              c->body);
        return;
    }
    check(client_header(c, "Content-Type", text, sizeof text) &&
              strncmp(text, "text/plain", 10) == 0,
          "%s %s: %d as %s", method, target, c->status, text);
    check(c->body_len > 1 && text_lines(c->body) == 1 &&
              c->body[c->body_len - 1] == '\n',
          "%s %s: %d is not one line: "
          "\"%s\"",
          method, target, c->status, c->body);
}

/* Checks one "Name: value" of a reply; the value * is any that is there, -
   is none at all, and what ends in * need only begin so. */
static void check_header(const struct client *c, const char *line,
                         const char *what) {
    const char *value = strchr(line, ':') + 2;
    char name[64], seen[300] = "";
    size_t n = strlen(value);
    bool found;

    snprintf(name, sizeof name, "%.*s", (int)(value - 2 - line), line);
    found = client_header(c, name, seen, sizeof seen);
    if (strcmp(value, "-") == 0)
        check(!found, "%s: has %s: %s", what, name, seen);
    else if (n > 0 && value[n - 1] == '*')
        check(found && strncmp(seen, value, n - 1) == 0,
              "%s: %s is \"%s\","
              " not %s",
              what, name, seen, value);
    else
        check(found && strcmp(seen, value) == 0,
              "%s: %s is \"%s\", not "
              "\"%s\"",
              what, name, seen, value);
}

/* One request and what must come back. */
struct call {
    const char *method, *target, *headers, *body;
    int status;
    const char *gives;   /* the exact body; NULL: any */
    const char *head[4]; /* headers, as check_header */
};

/* Asks every call of a table in order, on one connection. */
static void calls_run(int port, const struct call *calls, size_t n) {
    struct client c = client_make(port);

    for (size_t i = 0; i < n; i++) {
        const struct call *r = &calls[i];
        char what[128];
        int status = client_ask(&c, r->method, r->target, r->headers, r->body,
                                r->body ? strlen(r->body) : 0);

        snprintf(what, sizeof what, "row %zu, %s %.80s", i, r->method,
                 r->target);
        check(status == r->status, "%s: %d, not %d: %s", what, status,
              r->status, c.body != NULL ? c.body : "");
        check_answer(&c, r->method, r->target);
        check(r->gives == NULL || strcmp(r->gives, c.body) == 0,
              "%s: gives \"%s\", not \"%s\"", what, c.body, r->gives);
        for (size_t j = 0; j < 4 && r->head[j] != NULL; j++)
            check_header(&c, r->head[j], what);
    }
    client_end(&c);
}

#define FORM   "Content-Type: application/x-www-form-urlencoded\r\n"
#define OCTETS "Content-Type: application/octet-stream"

static const struct call value_calls[] = {
    {"GET", "/a", NULL, NULL, 404, "", {"Content-Length: 0"}},
    {"HEAD", "/a", NULL, NULL, 404, "", {NULL}},
    {"DELETE", "/a", NULL, NULL, 404, "", {NULL}},
    {"POST", "/a", FORM, "hello", 201, NULL, {"ETag: \"*"}},
    {"GET",
     "/a",
     NULL,
     NULL,
     200,
     "hello",
     {"ETag: \"*", "Content-Length: 5", OCTETS, "Accept-Ranges: bytes"}},
    {"HEAD",
     "/a",
     NULL,
     NULL,
     200,
     "",
     {"ETag: \"*", "Content-Length: 5", OCTETS, "Accept-Ranges: bytes"}},
    {"POST", "/a", NULL, "hello again", 204, "", {"ETag: \"*"}},
    {"PUT", "/a", NULL, "third", 204, "", {"ETag: \"*"}},
    {"GET", "/a", NULL, NULL, 200, "third", {OCTETS}},
    {"DELETE", "/a", NULL, NULL, 204, "", {NULL}},
    {"GET", "/a", NULL, NULL, 404, "", {NULL}},
    {"DELETE", "/a", NULL, NULL, 404, "", {NULL}},
    {"PUT", "/a", NULL, "once more", 201, NULL, {"ETag: \"*"}},
    {"GET", "/a", NULL, NULL, 200, "once more", {NULL}},
    /* an empty value is a value */
    {"PUT", "/empty", NULL, "", 201, NULL, {"ETag: \"*"}},
    {"GET", "/empty", NULL, NULL, 200, "", {"Content-Length: 0"}},
    {"POST", "/empty", NULL, NULL, 204, "", {NULL}},
    {"GET", "/empty", NULL, NULL, 200, "", {OCTETS}},
    {"DELETE", "/empty", NULL, NULL, 204, "", {NULL}},
    {"GET", "/empty", NULL, NULL, 404, "", {NULL}},
    /* the type is kept, until the next write */
    {"PUT",
     "/t",
     "Content-Type: text/html; charset=utf-8\r\n",
     "<p>",
     201,
     NULL,
     {NULL}},
    {"GET",
     "/t",
     NULL,
     NULL,
     200,
     "<p>",
     {"Content-Type: text/html; charset=utf-8"}},
    {"HEAD",
     "/t",
     NULL,
     NULL,
     200,
     "",
     {"Content-Type: text/html; charset=utf-8"}},
    {"PUT", "/t", "content-type:image/png\r\n", "<p>", 204, "", {NULL}},
    {"GET", "/t", NULL, NULL, 200, "<p>", {"Content-Type: image/png"}},
    {"PUT", "/t", FORM, "x=1", 204, "", {NULL}},
    {"GET", "/t", NULL, NULL, 200, "x=1", {OCTETS}},
    {"PUT", "/t", "Content-Type: " X127 "\r\n", "y", 204, "", {NULL}},
    {"GET", "/t", NULL, NULL, 200, "y", {"Content-Type: " X127}},
    {"PUT", "/t", "Content-Type: x" X127 "\r\n", "z", 400, NULL, {NULL}},
    {"GET", "/t", NULL, NULL, 200, "y", {NULL}},
};

static const struct call key_calls[] = {
    {"PUT", "/b%20c", NULL, "blank", 201, NULL, {NULL}},
    {"GET", "/%62%20%63", NULL, NULL, 200, "blank", {NULL}},
    {"GET", "/b+c", NULL, NULL, 404, "", {NULL}},
    {"PUT", "/p%2525", NULL, "once", 201, NULL, {NULL}},
    {"GET", "/%70%2525", NULL, NULL, 200, "once", {NULL}},
    {"GET", "/p%25", NULL, NULL, 404, "", {NULL}},
    {"PUT", "/d/e//f/", NULL, "slashes", 201, NULL, {NULL}},
    {"GET", "/d%2Fe%2f/f/", NULL, NULL, 200, "slashes", {NULL}},
    {"GET", "/d/e/f", NULL, NULL, 404, "", {NULL}},
    {"GET", "/d/e//f", NULL, NULL, 404, "", {NULL}},
    {"PUT", "/d/../g", NULL, "dots", 201, NULL, {NULL}},
    {"GET", "/g", NULL, NULL, 404, "", {NULL}},
    {"GET", "/d/../g", NULL, NULL, 200, "dots", {NULL}},
    {"PUT", "//", NULL, "a slash", 201, NULL, {NULL}},
    {"GET", "/%2F", NULL, NULL, 200, "a slash", {NULL}},
    {"PUT", "/z%00y", NULL, "nul", 201, NULL, {NULL}},
    {"GET", "/z%00y", NULL, NULL, 200, "nul", {NULL}},
    {"GET", "/z", NULL, NULL, 404, "", {NULL}},
    {"GET", "/z%00", NULL, NULL, 404, "", {NULL}},
    {"PUT", "/%00", NULL, "only nul", 201, NULL, {NULL}},
    {"GET", "/%00", NULL, NULL, 200, "only nul", {NULL}},
    {"PUT", "/%fF%FE", NULL, "high", 201, NULL, {NULL}},
    {"GET", "/%Ff%fe", NULL, NULL, 200, "high", {NULL}},
    {"PUT", "/q%3Flist", NULL, "question", 201, NULL, {NULL}},
    {"GET", "/q%3flist", NULL, NULL, 200, "question", {NULL}},
    {"PUT", "/%5Fx", NULL, "underscore", 201, NULL, {NULL}},
    {"GET", "/%5fx", NULL, NULL, 200, "underscore", {NULL}},
    {"GET", "/_x", NULL, NULL, 404, NULL, {NULL}},
    {"DELETE", "/%5Fx", NULL, NULL, 204, "", {NULL}},
    {"PUT", "/x_y", NULL, "inside", 201, NULL, {NULL}},
    {"GET", "/x_y", NULL, NULL, 200, "inside", {NULL}},
    {"PUT", "/%zz", NULL, "v", 400, NULL, {NULL}},
    {"GET", "/%zz", NULL, NULL, 400, NULL, {NULL}},
    {"GET", "/a%", NULL, NULL, 400, NULL, {NULL}},
    {"GET", "/a%4", NULL, NULL, 400, NULL, {NULL}},
    {"GET", "/a%4g", NULL, NULL, 400, NULL, {NULL}},
    {"GET", "/%-1", NULL, NULL, 400, NULL, {NULL}},
};

static const struct call system_calls[] = {
    {"GET", "/_unknown", NULL, NULL, 404, NULL, {NULL}},
    {"GET", "/_", NULL, NULL, 404, NULL, {NULL}},
    {"HEAD", "/_unknown", NULL, NULL, 404, "", {NULL}},
    {"PUT", "/_x", NULL, "v", 403, NULL, {NULL}},
    {"POST", "/_x", NULL, "v", 403, NULL, {NULL}},
    {"DELETE", "/_x", NULL, NULL, 403, NULL, {NULL}},
    {"PUT", "/_health", NULL, "v", 403, NULL, {NULL}},
    {"DELETE", "/_nodes/delete/x", NULL, NULL, 403, NULL, {NULL}},
    {"DELETE", "/_nodes/x", NULL, NULL, 403, NULL, {NULL}},
    {"DELETE", "/_nodes/x?force", NULL, NULL, 403, NULL, {NULL}},
    {"GET", "/_health", NULL, NULL, 200, NULL, {NULL}},
    {"HEAD", "/_health", NULL, NULL, 200, "", {NULL}},
    {"HEAD",
     "/_metrics",
     NULL,
     NULL,
     200,
     "",
     {"Content-Type: text/plain; version=0.0.4*"}},
    {"PUT", "/_metrics", NULL, "v", 403, NULL, {NULL}},
    {"GET", "/_ready", NULL, NULL, 200, NULL, {NULL}},
    {"GET", "/", NULL, NULL, 200, NULL, {"Content-Type: text/plain*"}},
    {"HEAD", "/", NULL, NULL, 200, "", {NULL}},
    {"GET", "/k?nothing", NULL, NULL, 400, NULL, {NULL}},
    {"GET", "/k?nothing=1", NULL, NULL, 400, NULL, {NULL}},
    {"PUT", "/k?nothing=1", NULL, "v", 400, NULL, {NULL}},
    {"DELETE", "/k?nothing", NULL, NULL, 400, NULL, {NULL}},
    {"GET", "/?nothing", NULL, NULL, 400, NULL, {NULL}},
    {"GET", "/k?list", NULL, NULL, 400, NULL, {NULL}},
    {"GET", "/k?prefix=a", NULL, NULL, 400, NULL, {NULL}},
    {"PUT", "/k?explain", NULL, "v", 400, NULL, {NULL}},
    {"GET", "/_health?list", NULL, NULL, 400, NULL, {NULL}},
    {"GET", "/_ring?nothing", NULL, NULL, 400, NULL, {NULL}},
    {"GET", "/k", NULL, NULL, 404, "", {NULL}},
    {"PUT", "/k", NULL, "value", 201, NULL, {NULL}},
    {"PATCH", "/k", NULL, "v", 405, NULL, {"Allow: *"}},
    {"OPTIONS", "/k", NULL, NULL, 405, NULL, {"Allow: *"}},
    {"BREW", "/k", NULL, NULL, 501, NULL, {NULL}},
    {"get", "/k", NULL, NULL, 501, NULL, {NULL}},
    {"GET", "/k", NULL, NULL, 200, "value", {NULL}},
};

/* What is not built yet is refused with a line, never ignored.  The issue
   that builds a row takes it out. */
static const struct call unbuilt_calls[] = {
    {"PUT", "/u", NULL, "value", 201, NULL, {NULL}},
    {"GET", "/u?explain", NULL, NULL, 501, NULL, {NULL}},
    {"GET", "/_ring", NULL, NULL, 501, NULL, {NULL}},
    {"GET", "/u", NULL, NULL, 200, "value", {NULL}},
};

/* Consistent operations and conditions, on a node alone. An etag that the
   table cannot know is that of no record. */
#define IM "If-Match: "
#define IN "If-None-Match: "
#define NO "\"0000000000000001\""
static const struct call consistent_calls[] = {
    {"GET", "/c?consistent", NULL, NULL, 404, "", {NULL}},
    {"DELETE", "/c?consistent", NULL, NULL, 404, "", {NULL}},
    {"PUT", "/c?consistent", NULL, "one", 201, "", {"ETag: \"*"}},
    {"POST", "/c?consistent", NULL, "two", 204, NULL, {"ETag: \"*"}},
    {"GET", "/c?consistent", NULL, NULL, 200, "two", {"ETag: \"*"}},
    {"HEAD", "/c?consistent", NULL, NULL, 200, "", {"Content-Length: 3"}},
    {"GET", "/c", IM NO "\r\n", NULL, 412, NULL, {NULL}},
    {"GET", "/c", IM "*\r\n", NULL, 200, "two", {NULL}},
    {"GET", "/none", IM "*\r\n", NULL, 404, "", {NULL}},
    {"GET", "/none?consistent", IM NO "\r\n", NULL, 404, "", {NULL}},
    {"HEAD", "/c", IM NO "\r\n", NULL, 412, "", {NULL}},
    {"GET", "/c", IM NO "\r\n" IN "*\r\n", NULL, 412, NULL, {NULL}},
    {"GET", "/c", IM "*\r\n" IN "*\r\n", NULL, 304, "", {"ETag: \"*"}},
    {"HEAD", "/c", IN "*\r\n", NULL, 304, "", {"ETag: \"*"}},
    {"GET", "/none", IN "*\r\n", NULL, 404, "", {NULL}},
    {"GET", "/c", IN NO ", W/" NO "\r\n", NULL, 200, "two", {NULL}},
    {"PUT", "/c", IN "*\r\n", "x", 412, NULL, {NULL}},
    {"PUT", "/c", IM NO "\r\n", "x", 412, NULL, {NULL}},
    {"PUT", "/c", IM "W/" NO "\r\n", "x", 412, NULL, {NULL}},
    {"DELETE", "/c", IM NO "\r\n", NULL, 412, NULL, {NULL}},
    {"DELETE", "/c", IN "*\r\n", NULL, 412, NULL, {NULL}},
    {"GET", "/c", NULL, NULL, 200, "two", {NULL}},
    {"PUT", "/c", IN NO "\r\n", "three", 204, NULL, {NULL}},
    {"PUT", "/c", IM "*\r\n" IN NO "\r\n", "four", 204, NULL, {NULL}},
    {"PUT", "/c", IM "*\r\n" IN "*\r\n", "x", 412, NULL, {NULL}},
    {"PUT", "/none", IM "*\r\n", "x", 412, NULL, {NULL}},
    {"DELETE", "/none", IM "*\r\n", NULL, 412, NULL, {NULL}},
    {"PUT", "/c", IM "abc\r\n", "x", 400, NULL, {NULL}},
    {"PUT", "/c", IM "\"a\r\n", "x", 400, NULL, {NULL}},
    {"PUT", "/c", IM "\"a\" \"b\"\r\n", "x", 400, NULL, {NULL}},
    {"PUT", "/c", IM "*, \"a\"\r\n", "x", 400, NULL, {NULL}},
    {"PUT", "/c", IM "\r\n", "x", 400, NULL, {NULL}},
    {"GET", "/c", IN "abc\r\n", NULL, 400, NULL, {NULL}},
    {"GET", "/c?consistent=1", NULL, NULL, 400, NULL, {NULL}},
    {"GET", "/c?consistent&nothing", NULL, NULL, 400, NULL, {NULL}},
    {"GET", "/?consistent", NULL, NULL, 400, NULL, {NULL}},
    {"GET", "/_health?consistent", NULL, NULL, 400, NULL, {NULL}},
    {"DELETE", "/c", IM "*\r\n", NULL, 204, "", {NULL}},
    {"PUT", "/c", IN "*\r\n", "five", 201, NULL, {"ETag: \"*"}},
    {"DELETE", "/c?consistent", NULL, NULL, 204, "", {NULL}},
    {"GET", "/c", NULL, NULL, 404, "", {NULL}},
};

/* One range, which has a part of the value, or none; and what counts as no
   range, and gets the whole (RFC 9110, 14.2). */
#define RANGE "Range: bytes="
#define PART  "Content-Range: bytes "
#define WHOLE \
    { "Content-Range: -", "Content-Length: 10" }
static const struct call range_calls[] = {
    {"PUT", "/r", "Content-Type: x/y\r\n", "0123456789", 201, NULL, {NULL}},
    {"PUT", "/r0", NULL, "", 201, NULL, {NULL}},
    {"GET", "/r", RANGE "0-0\r\n", NULL, 206, "0", {PART "0-0/10"}},
    {"GET",
     "/r",
     RANGE "2-5\r\n",
     NULL,
     206,
     "2345",
     {PART "2-5/10", "ETag: \"*", "Content-Type: x/y", "Accept-Ranges: bytes"}},
    {"GET", "/r", RANGE "7-\r\n", NULL, 206, "789", {PART "7-9/10"}},
    {"GET", "/r", RANGE "0-\r\n", NULL, 206, "0123456789", {PART "0-9/10"}},
    {"GET", "/r", RANGE "9-10\r\n", NULL, 206, "9", {PART "9-9/10"}},
    {"GET", "/r", RANGE "-3\r\n", NULL, 206, "789", {PART "7-9/10"}},
    {"GET", "/r", RANGE "-11\r\n", NULL, 206, "0123456789", {PART "0-9/10"}},
    {"GET", "/r", RANGE "08-0008\r\n", NULL, 206, "8", {PART "8-8/10"}},
    {"GET", "/r", "range: BYTES=, 1-2 ,\r\n", NULL, 206, "12", {NULL}},
    {"GET", "/r?consistent", RANGE "1-1\r\n", NULL, 206, "1", {NULL}},
    {"GET", "/r", RANGE "8-18446744073709551616\r\n", NULL, 206, "89", {NULL}},
    {"GET", "/r", RANGE "10-\r\n", NULL, 416, NULL, {PART "*/10"}},
    {"GET", "/r", RANGE "10-20\r\n", NULL, 416, NULL, {PART "*/10"}},
    {"GET", "/r", RANGE "-0\r\n", NULL, 416, NULL, {PART "*/10"}},
    {"GET",
     "/r",
     RANGE "99999999999999999999999-\r\n",
     NULL,
     416,
     NULL,
     {PART "*/10", "ETag: \"*"}},
    {"GET", "/r0", RANGE "0-\r\n", NULL, 416, NULL, {PART "*/0"}},
    {"GET", "/r0", RANGE "-1\r\n", NULL, 200, "", {"Content-Range: -"}},
    {"GET", "/r", RANGE "0-1,3-4\r\n", NULL, 200, "0123456789", WHOLE},
    {"GET", "/r", RANGE "5-4\r\n", NULL, 200, NULL, WHOLE},
    {"GET", "/r", RANGE "\r\n", NULL, 200, NULL, WHOLE},
    {"GET", "/r", RANGE "-\r\n", NULL, 200, NULL, WHOLE},
    {"GET", "/r", RANGE "1\r\n", NULL, 200, NULL, WHOLE},
    {"GET", "/r", RANGE "+1-2\r\n", NULL, 200, NULL, WHOLE},
    {"GET", "/r", RANGE "0x1-2\r\n", NULL, 200, NULL, WHOLE},
    {"GET", "/r", RANGE "1 - 2\r\n", NULL, 200, NULL, WHOLE},
    {"GET", "/r", RANGE "1--2\r\n", NULL, 200, NULL, WHOLE},
    {"GET", "/r", "Range: lines=0-1\r\n", NULL, 200, NULL, WHOLE},
    {"GET", "/r", "Range: 0-1\r\n", NULL, 200, NULL, WHOLE},
    {"HEAD", "/r", RANGE "0-1\r\n", NULL, 200, "", WHOLE},
    {"HEAD", "/r", RANGE "20-\r\n", NULL, 200, "", WHOLE},
    /* conditions come first, and of what is absent there are no ranges */
    {"GET", "/r", RANGE "0-1\r\n" IN "*\r\n", NULL, 304, "", {NULL}},
    {"GET", "/r", RANGE "20-\r\n" IN "*\r\n", NULL, 304, "", {NULL}},
    {"GET", "/r", RANGE "20-\r\n" IM NO "\r\n", NULL, 412, NULL, {NULL}},
    {"GET", "/none", RANGE "0-1\r\n", NULL, 404, "", {NULL}},
    {"PUT", "/r", RANGE "0-1\r\n", "abcdefghij", 204, "", {NULL}},
    {"GET", "/r", NULL, NULL, 200, "abcdefghij", {NULL}},
    /* of another version, or a time, which none has: the whole value */
    {"GET", "/r", RANGE "0-1\r\nIf-Range: " NO "\r\n", NULL, 200, NULL, WHOLE},
    {"GET", "/r", RANGE "0-1\r\nIf-Range: *\r\n", NULL, 200, NULL, WHOLE},
    {"GET", "/r", RANGE "0-1\r\nIf-Range:\r\n", NULL, 200, NULL, WHOLE},
    {"GET", "/r", RANGE "0-1\r\nIf-Range: Sat, 29 Oct 1994 19:43:31 GMT\r\n",
     NULL, 200, NULL, WHOLE},
    {"GET", "/r", "If-Range: " NO "\r\n", NULL, 200, NULL, WHOLE},
};

static void test_ranges(void **state) {
    static const char *const forms[] = {"%s", "W/%s", "%s, %s", "%.17s0\""};
    struct client c = client_make(api->port);
    char etag[64] = "", range[200], form[128];

    (void)state;
    calls_run(api->port, range_calls, COUNT(range_calls));
    part("If-Range is one strong etag, this one");
    client_text(&c, "HEAD", "/r", NULL);
    client_header(&c, "ETag", etag, sizeof etag);
    for (size_t i = 0; i < COUNT(forms); i++) {
        char upper[64];

        snprintf(form, sizeof form, forms[i], etag, etag);
        snprintf(range, sizeof range, RANGE "0-1\r\nIf-Range: %s\r\n", form);
        check(client_ask(&c, "GET", "/r", range, NULL, 0) ==
                  (i == 0 ? 206 : 200),
              "%s: %d", range, c.status);
        for (size_t k = 0; k <= strlen(etag); k++)
            upper[k] = (char)toupper(etag[k]);
        snprintf(range, sizeof range, RANGE "0-1\r\nIf-Range: %s\r\n", upper);
        check(client_ask(&c, "GET", "/r", range, NULL, 0) ==
                  (strcmp(upper, etag) == 0 ? 206 : 200),
              "%s: %d", range, c.status);
    }
    client_end(&c);
}

/* Ranges of values of every kind of size, the ends of blocks among them, from
   memory and from the file; and curl's way with them. */
static void test_ranges_large(void **state) {
    static const size_t sizes[] = {1,      4096,   65535,  65536,  65537,
                                   131072, 200000, 262144, 1000000};
    struct client c = client_make(api->port);
    char *value = malloc(1000000), fields[100], file[MAX_PATH + 8];
    uint64_t seed = 20;
    struct output o = {0};

    (void)state;
    random_bytes(value, 1000000, 8);
    for (size_t i = 0; i < COUNT(sizes); i++) {
        size_t n = sizes[i];

        client_ask(&c, "PUT", "/ranged", NULL, value, n);
        for (size_t k = 0; k < 40; k++) {
            size_t from = random_next(&seed) % n, to = random_next(&seed) % n;

            if (k % 4 == 1) /* about the end of a block */
                from = (from + 2) / 65536 * 65536 + k % 3 - (from > 65536);
            from = from < n ? from : n - 1;
            to = k % 3 == 0 ? from + to % 70000 : to < from ? from : to;
            if (k % 5 == 4)
                snprintf(fields, sizeof fields, RANGE "-%zu\r\n", n - from);
            else
                snprintf(fields, sizeof fields, RANGE "%zu-%zu\r\n", from, to);
            to = k % 5 == 4 || to >= n ? n - 1 : to;
            check(client_ask(&c, "GET", "/ranged", fields, NULL, 0) == 206 &&
                      c.body_len == to - from + 1 &&
                      memcmp(c.body, value + from, c.body_len) == 0,
                  "%zu bytes, %s: %d, %zu bytes", n, fields, c.status,
                  c.body_len);
        }
    }
    part("curl -C - takes up where it was, and is content with all");
    snprintf(file, sizeof file, "%s/resumed", the_run.dir);
    check(file_write(file, "wb", value, 300000), "%s", file);
    for (int i = 0; i < 2; i++) {
        size_t n = 0;
        char *got;

        run(&o, "curl -sS -C - -o %s http://127.0.0.1:%d/ranged", file,
            api->port);
        got = file_read(file, &n);
        check(n == 1000000 && memcmp(got, value, n) == 0, "%zu bytes: %s", n,
              o.err);
        free(got);
        output_free(&o);
    }
    run(&o,
        "curl -sS -r 0-1,4-5 -o /dev/null -w %%{http_code} "
        "http://127.0.0.1:%d/ranged",
        api->port);
    check(strcmp(o.out, "200") == 0, "%s", o.out);
    output_free(&o);
    free(value);
    client_end(&c);
}

#define LIST "/?list"
static const struct call list_calls[] = {
    {"GET", LIST "&prefix=li", NULL, NULL, 200, "", {"Link: -"}},
    {"PUT", "/li%20/%5F", NULL, "1", 201, NULL, {NULL}},
    {"GET",
     LIST "&prefix=li%20",
     NULL,
     NULL,
     200,
     "li%20/_\n",
     {"Content-Type: text/plain*", "X-Content-Type-Options: nosniff"}},
    {"GET",
     LIST "&limit=10000&prefix=%6Ci",
     NULL,
     NULL,
     200,
     "li%20/_\n",
     {NULL}},
    {"GET",
     "/?prefix=li&list&cursor=0000000000000000",
     NULL,
     NULL,
     200,
     "li%20/_\n",
     {"Link: -"}},
    {"GET", LIST "&prefix=li%20/%5F", NULL, NULL, 200, "li%20/_\n", {NULL}},
    {"GET", LIST "&prefix=li%20/_x", NULL, NULL, 200, "", {NULL}},
    {"GET", LIST "&prefix=li+", NULL, NULL, 200, "", {NULL}},
    {"HEAD", LIST "&prefix=li", NULL, NULL, 200, "", {"Content-Length: 8"}},
    {"GET", LIST "&prefix=li&limit=1", NULL, NULL, 200, NULL, {NULL}},
    {"DELETE", "/li%20/%5F", NULL, NULL, 204, "", {NULL}},
    {"GET", LIST "&prefix=li", NULL, NULL, 200, "", {"Content-Length: 0"}},
    {"GET", LIST "=", NULL, NULL, 400, NULL, {NULL}},
    {"GET", LIST "&list", NULL, NULL, 400, NULL, {NULL}},
    {"GET", LIST "&prefix", NULL, NULL, 400, NULL, {NULL}},
    {"GET", LIST "&prefix=%z", NULL, NULL, 400, NULL, {NULL}},
    {"GET", LIST "&prefix=a&prefix=b", NULL, NULL, 400, NULL, {NULL}},
    {"GET", LIST "&limit=", NULL, NULL, 400, NULL, {NULL}},
    {"GET", LIST "&limit=0", NULL, NULL, 400, NULL, {NULL}},
    {"GET", LIST "&limit=-1", NULL, NULL, 400, NULL, {NULL}},
    {"GET", LIST "&limit=10001", NULL, NULL, 400, NULL, {NULL}},
    {"GET", LIST "&limit=18446744073709551617", NULL, NULL, 400, NULL, {NULL}},
    {"GET", LIST "&limit=1x", NULL, NULL, 400, NULL, {NULL}},
    {"GET", LIST "&cursor=", NULL, NULL, 400, NULL, {NULL}},
    {"GET", LIST "&cursor=0", NULL, NULL, 400, NULL, {NULL}},
    {"GET", LIST "&cursor=000000000000000g", NULL, NULL, 400, NULL, {NULL}},
    {"GET", LIST "&cursor=00000000000000000", NULL, NULL, 400, NULL, {NULL}},
    {"GET", LIST "&cursor=0x00000000000000", NULL, NULL, 400, NULL, {NULL}},
    {"GET", LIST "&consistent", NULL, NULL, 400, NULL, {NULL}},
    {"GET", LIST "&explain", NULL, NULL, 400, NULL, {NULL}},
    {"GET", LIST "&nothing", NULL, NULL, 400, NULL, {NULL}},
    {"GET", "/?prefix=a", NULL, NULL, 400, NULL, {NULL}},
    {"GET", "/?limit=1", NULL, NULL, 400, NULL, {NULL}},
    {"GET", "/?cursor=0000000000000000", NULL, NULL, 400, NULL, {NULL}},
    {"PUT", LIST, NULL, "v", 405, NULL, {"Allow: GET, HEAD"}},
    {"DELETE", LIST, NULL, NULL, 405, NULL, {"Allow: GET, HEAD"}},
};

static void test_list(void **state) {
    static const char *const keys[] = {
        "ls/plain",  "ls/a%20b",   "ls/%00",    "ls/%FF%FE", "ls/100%25",
        "ls/%3F",    "ls/%23x",    "ls/%2B",    "ls/~-._",   "ls//double",
        "ls/end/",   "ls/%0A%0D",  "ls/%22%3C", "ls/%5B%5D", "ls/%C3%A9",
        "ls/_under", "%5Fls/under"};
    size_t pages;
    char *lines, key[64];
    struct client c = client_make(api->port);

    struct server *s = alone("listed", "-partitions 4");

    (void)state;
    /* a page ends after half a second: this one has few partitions to ask */
    calls_run(s->port, list_calls, COUNT(list_calls));
    server_stop(s);
    part("each line follows a slash");
    for (size_t i = 0; i < COUNT(keys); i++) {
        snprintf(key, sizeof key, "/%s", keys[i]);
        client_text(&c, "PUT", key, keys[i]);
        check(c.status == 201, "%s: %d", key, c.status);
    }
    for (int under = 0; under <= 1; under++) {
        size_t n = 0;

        lines = list_walk(&api->port, 1,
                          under ? "&prefix=_ls&limit=5" : "&prefix=ls/&limit=5",
                          NULL, &pages);
        for (char *line = strtok(lines, "\n"); line != NULL;
             line = strtok(NULL, "\n"), n++) {
            struct output o = {0};

            run(&o, "curl -gsS http://127.0.0.1:%d/%s", api->port, line);
            check(strcmp(o.out, line) == 0, "/%s gives %s", line, o.out);
            output_free(&o);
        }
        check(n == (under ? 1 : COUNT(keys) - 1), "%zu lines", n);
        free(lines);
    }
    client_end(&c);
}

/* Flips a bit in the log of a node that has one and is not running: so many
   bytes behind the place where a text is. */
static void log_flip(const struct server *s, const char *text, size_t behind) {
    char path[MAX_PATH + 16], *log;
    size_t n = 0, at = 0;

    snprintf(path, sizeof path, "%s/000.log", s->dir);
    log = file_read(path, &n);
    check(log != NULL, "%s", path);
    while (at + strlen(text) < n && memcmp(log + at, text, strlen(text)) != 0)
        at++;
    check(at + behind < n, "no %s in %s", text, path);
    log[at + behind] ^= 4;
    check(file_write(path, "wb", log, n), "%s", path);
    free(log);
}

/* A rotten block harms those ranges that have bytes of it, and no others; a
   rotten head takes its key out of no list in silence. */
static void test_rot(void **state) {
    struct server *s = alone("rot", "-partitions 1 -scrub 0");
    struct client c = client_make(s->port);
    char *value = malloc(1000000);

    (void)state;
    random_bytes(value, 1000000, 3);
    client_ask(&c, "PUT", "/the-rotten-one", NULL, value, 1000000);
    client_text(&c, "PUT", "/another", "v");
    check(client_text(&c, "GET", "/?list", NULL) == 200 &&
              text_lines(c.body) == 2,
          "%d %s", c.status, c.body);
    client_drop(&c);
    server_stop(s);
    log_flip(s, "the-rotten-one", 700000);
    again(s);
    c.port = s->port;
    check(client_ask(&c, "GET", "/the-rotten-one", RANGE "0-600000\r\n", NULL,
                     0) == 206 &&
              memcmp(c.body, value, 600001) == 0,
          "%d", c.status);
    check(client_ask(&c, "GET", "/the-rotten-one", RANGE "-200000\r\n", NULL,
                     0) == 206 &&
              memcmp(c.body, value + 800000, 200000) == 0,
          "%d", c.status);
    check(client_ask(&c, "GET", "/the-rotten-one", RANGE "0-699999\r\n", NULL,
                     0) == 500 &&
              strncmp(c.body, "damaged", 7) == 0,
          "%d", c.status);
    check(client_text(&c, "GET", "/the-rotten-one", NULL) == 500, "%d",
          c.status);
    wait_until(client_text(&c, "GET", "/?list", NULL) == 200 &&
                   text_lines(c.body) == 2,
               LIMIT_MS, "%d %s", c.status, c.body);
    client_drop(&c);
    server_stop(s);
    log_flip(s, "the-rotten-one", 2);
    again(s);
    c.port = s->port;
    check(client_text(&c, "GET", "/?list", NULL) == 500 &&
              strncmp(c.body, "damaged", 7) == 0,
          "%d %s", c.status, c.body);
    client_end(&c);
    free(value);
}

static struct server *lister;

/* Between pages of a listing: some keys go, others come, and half of those that
   stay are written again, so that logs are compacted. */
static void list_trouble(size_t page) {
    static char value[3000];
    struct client c = client_make(lister->port);
    char key[40];

    memset(value, 'v', sizeof value);
    for (size_t i = page * 200; i < page * 200 + 200; i++) {
        snprintf(key, sizeof key, "/stay/%zu", i % 400);
        client_ask(&c, "PUT", key, NULL, value, sizeof value);
        snprintf(key, sizeof key, "/go/%zu", i);
        client_text(&c, "DELETE", key, NULL);
        snprintf(key, sizeof key, "/come/%zu", i);
        client_text(&c, "PUT", key, "");
    }
    client_end(&c);
}

/* What is there throughout is listed once, in pages of any size, whatever is
   written meanwhile; what was deleted before, or never was, is not. */
static void test_list_moving(void **state) {
    static const char *const queries[] = {"&limit=97", "&prefix=stay/&limit=30",
                                          ""};
    struct client c;
    char key[40];

    (void)state;
    lister = alone("lister", "-partitions 2 -sync none");
    c = client_make(lister->port);
    for (int i = 0; i < 2000; i++) {
        snprintf(key, sizeof key, "/go/%d", i);
        client_text(&c, "PUT", key, "");
        snprintf(key, sizeof key, "/gone/%d", i);
        client_text(&c, "PUT", key, "");
        client_text(&c, "DELETE", key, NULL);
    }
    list_trouble(0);
    list_trouble(1);
    for (size_t i = 0; i < COUNT(queries); i++) {
        size_t pages;
        char *lines = list_walk(&lister->port, 1, queries[i],
                                i < 2 ? list_trouble : NULL, &pages);

        for (int k = 0; k < 400; k++) {
            snprintf(key, sizeof key, "stay/%d", k);
            check(listed_count(lines, key) == 1, "%s: %s is there %zu times",
                  queries[i], key, listed_count(lines, key));
        }
        check(text_count(lines, "gone/") == 0, "%s", lines);
        check(pages > 3, "%zu pages", pages);
        for (size_t k = 0; k < 8000; k += 111) {
            snprintf(key, sizeof key, "come/%zu", k);
            check(listed_count(lines, key) <= 1, "%s is there twice", key);
        }
        free(lines);
    }
    wait_until((metrics_get(&c),
                metric(&c, "estoraje_compactions_total{result=\"done\"}") > 0),
               LIMIT_MS, "no compaction: %s", c.body);
    client_end(&c);
}

static void test_values(void **state) {
    (void)state;
    calls_run(api->port, value_calls, COUNT(value_calls));
    calls_run(api->port, consistent_calls, COUNT(consistent_calls));
}

static void test_keys(void **state) {
    struct client c = client_make(api->port);
    char key[2 + 3 * 1025 + 1] = "/";
    int status;

    (void)state;
    calls_run(api->port, key_calls, COUNT(key_calls));
    part("1,024 bytes and one more, bare and percent-encoded");
    for (int encoded = 0; encoded <= 1; encoded++) {
        size_t at = 1;
        for (int i = 1; i <= 1025; i++) {
            at += (size_t)sprintf(key + at, "%s", encoded ? "%AB" : "k");
            if (i < 1023)
                continue;
            status = client_text(&c, "PUT", key, "long");
            check(status == (i <= 1024 ? 201 : 400), "%d bytes: %d", i, status);
            check_answer(&c, "PUT", key);
            status = client_text(&c, "GET", key, NULL);
            check(status == (i <= 1024 ? 200 : 400), "%d bytes: %d", i, status);
        }
    }
    client_end(&c);
}

static void test_system_paths(void **state) {
    char want[128], *seen;
    struct client c = client_make(api->port);

    (void)state;
    calls_run(api->port, system_calls, COUNT(system_calls));
    client_text(&c, "DELETE", "/_nodes/delete/x", NULL);
    check(strstr(c.body, "peer") != NULL, "says not where to go: %s", c.body);

    part("help");
    snprintf(want, sizeof want, "127.0.0.1:%d", api->port);
    client_text(&c, "GET", "/", NULL);
    check(strstr(c.body, want) != NULL && strstr(c.body, "curl") != NULL,
          "no curl line with %s in:\n%s", want, c.body);

    part("/_cluster_status");
    check(client_text(&c, "GET", "/_cluster_status", NULL) == 200, "%d",
          c.status);
    check_header(&c, "Content-Type: application/json*", "status");
    seen = json_squeeze(c.body);
    static const char *const keys[] = {
        "\"name\":\"node1\"", "\"epoch\":",           "\"replicas\":3",
        "\"partitions\":256", "\"moving\":0",         "\"nodes\":[{",
        "\"zone\":",          "\"status\":\"Ready\"", "\"alive\":true",
        "\"keys\":",          "\"bytes\":",           "\"percent\":null",
    };
    for (size_t i = 0; i < COUNT(keys); i++)
        check(strstr(seen, keys[i]) != NULL, "no %s in %s", keys[i], seen);
    snprintf(want, sizeof want, "\"host\":\"127.0.0.1:%d\"", api->port);
    check(strstr(seen, want) != NULL, "no %s in %s", want, seen);
    snprintf(want, sizeof want, "\"peer\":\"127.0.0.1:%d\"", peer_port(api));
    check(strstr(seen, want) != NULL, "no %s in %s", want, seen);

    part("/_nodes/{key}");
    check(client_text(&c, "GET", "/_nodes/some/key", NULL) == 200, "%d",
          c.status);
    snprintf(want, sizeof want, "[\"127.0.0.1:%d\"]", api->port);
    check(strcmp(json_squeeze(c.body), want) == 0, "%s, not %s", c.body, want);
    check(client_text(&c, "GET", "/_nodes/%zz", NULL) == 400, "%d", c.status);

    part("discovery");
    check(client_text(&c, "GET", "/_nodes_discovery", NULL) == 200, "%d",
          c.status);
    snprintf(want, sizeof want,
             "[{\"Name\":\"node1\",\"Host\":\"127.0.0.1:"
             "%d\",\"ApiHost\":\"127.0.0.1:%d\",\"Status\":\"Ready\"}]",
             peer_port(api), api->port);
    check(strcmp(json_squeeze(c.body), want) == 0, "%s, not %s", c.body, want);
    check(client_text(&c, "GET", "/_nodes_discovery_plain", NULL) == 200, "%d",
          c.status);
    snprintf(want, sizeof want, "127.0.0.1:%d\n", api->port);
    check(strcmp(c.body, want) == 0, "%s, not %s", c.body, want);
    client_end(&c);
}

static void test_unbuilt(void **state) {
    (void)state;
    calls_run(api->port, unbuilt_calls, COUNT(unbuilt_calls));
}

static void test_etags(void **state) {
    static const char *const reads[] = {"GET", "HEAD", "GET"};
    static const struct {
        const char *field, *tags;
        int status;
    } conditions[] = {
        {"If-None-Match", "%s", 304},
        {"If-None-Match", "W/%s", 304},
        {"If-None-Match", "\"x\" , W/%s,", 304},
        {"If-None-Match", "\"x\"", 200},
        {"If-Match", "%s", 200},
        {"If-Match", "\"x\", %s", 200},
        {"If-Match", "W/%s", 412},
        {"If-Match", "\"x\"", 412},
    };
    struct client c = client_make(api->port);
    char first[64] = "", second[64] = "", seen[64] = "";

    (void)state;
    check(client_text(&c, "PUT", "/tag", "1") == 201, "%d", c.status);
    check(client_header(&c, "ETag", first, sizeof first), "none");
    check(strlen(first) > 2 && first[0] == '"' &&
              strchr(first + 1, '"') == first + strlen(first) - 1,
          "%s", first);
    for (size_t i = 0; i < COUNT(reads); i++) {
        check(client_text(&c, reads[i], "/tag", NULL) == 200, "%d", c.status);
        client_header(&c, "ETag", seen, sizeof seen);
        check(strcmp(seen, first) == 0, "%s %s, not %s", reads[i], seen, first);
    }
    check(client_text(&c, "PUT", "/tag", "1") == 204, "%d", c.status);
    client_header(&c, "ETag", second, sizeof second);
    check(strcmp(second, first) != 0, "another write, the same etag");
    client_text(&c, "GET", "/tag", NULL);
    client_header(&c, "ETag", seen, sizeof seen);
    check(strcmp(seen, second) == 0, "%s, not %s", seen, second);
    part("conditions of a read: weak comparison for one, strong for the other");
    for (size_t i = 0; i < COUNT(conditions); i++) {
        char fields[200], with[100];

        snprintf(with, sizeof with, conditions[i].tags, second);
        snprintf(fields, sizeof fields, "%s: %s\r\n", conditions[i].field,
                 with);
        for (size_t k = 0; k < 2; k++) {
            client_ask(&c, reads[k], "/tag", fields, NULL, 0);
            check(c.status == conditions[i].status, "%s: %d", fields, c.status);
            check_answer(&c, reads[k], "/tag");
            check(c.status == 412 || (client_header(&c, "ETag", seen, 64) &&
                                      strcmp(seen, second) == 0),
                  "%s: %s", fields, c.head);
        }
    }
    client_end(&c);
}

/* ---- HTTP on the wire ------------------------------------------------ */

static void test_wire(void **state) {
    static const char put10[] =
        "PUT /w HTTP/1.0\r\nContent-Length: 3\r\n\r\none";
    struct client c = client_make(api->port);
    char text[64];

    (void)state;
    part("HTTP/1.0 closes");
    check(client_connect(&c) && client_send(&c, put10, sizeof put10 - 1),
          "cannot send");
    check(client_read(&c, false) == 201, "%d", c.status);
    check(client_closed(&c), "open after an HTTP/1.0 answer");

    part("HTTP/1.0 with keep-alive does not");
    for (int i = 0; i < 3; i++) {
        static const char get[] =
            "GET /w HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
        check(i > 0 || client_connect(&c), "cannot connect");
        check(client_send(&c, get, sizeof get - 1), "cannot send");
        check(client_read(&c, false) == 200, "%d", c.status);
        check(client_header(&c, "Connection", text, sizeof text) &&
                  strcasecmp(text, "keep-alive") == 0,
              "Connection: %s", text);
    }

    part("Connection: close closes, and says so");
    client_drop(&c);
    check(client_connect(&c), "cannot connect");
    static const char last[] =
        "GET /w HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    check(client_send(&c, last, sizeof last - 1), "cannot send");
    check(client_read(&c, false) == 200 && strcmp(c.body, "one") == 0, "%d",
          c.status);
    check(c.closes && client_closed(&c), "open after close:\n%s", c.head);

    part("absolute form, and an empty line first");
    static const char absolute[] =
        "\r\nGET http://x/w HTTP/1.1\r\nHost: x\r\n\r\n";
    check(client_connect(&c) && client_send(&c, absolute, sizeof absolute - 1),
          "cannot send");
    check(client_read(&c, false) == 200 && strcmp(c.body, "one") == 0, "%d",
          c.status);
    client_end(&c);
}

static void test_expect(void **state) {
    struct client c = client_make(api->port);
    static const char head[] =
        "PUT /e HTTP/1.1\r\nHost: x\r\n"
        "Content-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    static const char big[] =
        "PUT /e HTTP/1.1\r\nHost: x\r\n"
        "Content-Length: 8388609\r\nExpect: 100-continue\r\n\r\n";

    (void)state;
    part("100, then the answer");
    check(client_connect(&c) && client_send(&c, head, sizeof head - 1),
          "cannot send");
    check(client_read(&c, false) == 100, "%d, not 100", c.status);
    check(client_send(&c, "hello", 5) && client_read(&c, false) == 201, "%d",
          c.status);
    check(client_text(&c, "GET", "/e", NULL) == 200 &&
              strcmp(c.body, "hello") == 0,
          "%d", c.status);
    part("413 instead of 100");
    client_drop(&c);
    check(client_connect(&c) && client_send(&c, big, sizeof big - 1),
          "cannot send");
    check(client_read(&c, false) == 413, "%d, not 413", c.status);
    check_answer(&c, "PUT", "/e");
    client_end(&c);
}

static void test_chunked(void **state) {
    static const char *const bodies[] = {
        "5\r\nhello\r\n0\r\n\r\n",
        "1\r\nh\r\n4\r\nello\r\n0\r\n\r\n",
        "005\r\nhello\r\n000\r\n\r\n",
        "5;name=value\r\nhello\r\n0\r\n\r\n",
        "2;n=\"v\"\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: yes\r\n\r\n",
    };
    struct client c = client_make(api->port);

    (void)state;
    for (size_t i = 0; i < COUNT(bodies); i++) {
        char text[256];
        int n = snprintf(text, sizeof text,
                         "PUT /c%zu HTTP/1.1\r\nHost: x"
                         "\r\nTransfer-Encoding: chunked\r\n\r\n%s",
                         i, bodies[i]);
        check(c.fd >= 0 || client_connect(&c), "cannot connect");
        check(client_send(&c, text, (size_t)n) && client_read(&c, false) == 201,
              "row %zu: %d", i, c.status);
        snprintf(text, sizeof text, "/c%zu", i);
        check(client_text(&c, "GET", text, NULL) == 200 &&
                  strcmp(c.body, "hello") == 0,
              "row %zu: \"%s\"", i, c.body);
    }
    client_end(&c);
}

static void test_pipeline(void **state) {
    static const char ten[] =
        "PUT /p HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1"
        "GET /p HTTP/1.1\r\nHost: x\r\n\r\n"
        "PUT /p HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n2"
        "GET /p HTTP/1.1\r\nHost: x\r\n\r\n"
        "GET /_health HTTP/1.1\r\nHost: x\r\n\r\n"
        "HEAD /p HTTP/1.1\r\nHost: x\r\n\r\n"
        "DELETE /p HTTP/1.1\r\nHost: x\r\n\r\n"
        "GET /p HTTP/1.1\r\nHost: x\r\n\r\n"
        "GET /_unknown HTTP/1.1\r\nHost: x\r\n\r\n"
        "GET /_ready HTTP/1.1\r\nHost: x\r\n\r\n";
    static const struct {
        int status;
        const char *body;
    } answers[] = {
        {201, NULL}, {200, "1"}, {204, ""}, {200, "2"},  {200, NULL},
        {200, ""},   {204, ""},  {404, ""}, {404, NULL}, {200, NULL},
    };
    struct client c = client_make(api->port);

    (void)state;
    check(client_connect(&c) && client_send(&c, ten, sizeof ten - 1),
          "cannot send");
    for (size_t i = 0; i < COUNT(answers); i++) {
        client_read(&c, i == 5);
        check(c.status == answers[i].status, "answer %zu: %d", i, c.status);
        check(answers[i].body == NULL || strcmp(c.body, answers[i].body) == 0,
              "answer %zu: %s", i, c.body);
    }
    client_end(&c);
}

/* What follows the GET of a large value in one packet is answered, too, and
   nothing of the value is taken for a request. */
static void test_pipeline_large(void **state) {
    static const char gets[] = "GET /large HTTP/1.1\r\nHost: x\r\n\r\n"
                               "GET /small HTTP/1.1\r\nHost: x\r\n\r\n";
    size_t size = 1000000;
    char *value = malloc(size);
    struct client c = client_make(api->port);

    (void)state;
    random_bytes(value, size, 7);
    check(client_ask(&c, "PUT", "/large", "", value, size) == 201 &&
              client_text(&c, "PUT", "/small", "1") == 201,
          "%d", c.status);
    for (int i = 0; i < 3; i++) {
        check(client_send(&c, gets, sizeof gets - 1), "cannot send");
        client_read(&c, false);
        check(c.status == 200 && c.body_len == size &&
                  memcmp(c.body, value, size) == 0,
              "the large value: %d", c.status);
        client_read(&c, false);
        check(c.status == 200 && strcmp(c.body, "1") == 0,
              "the small value: %d", c.status);
    }
    client_end(&c);
    free(value);
}

/* ---- Memory ---------------------------------------------------------- */

/* Bytes that a node says it has buffered. */
static double buffered(int port) {
    struct client c = client_make(port);
    double bytes;

    metrics_get(&c);
    bytes = metric(&c, "estoraje_buffered_bytes");
    check(bytes >= 0, "no such metric");
    client_end(&c);
    return bytes;
}

/* KiB of memory that a process has. */
static long resident(pid_t pid) {
    char path[64], *text, *at;
    size_t len;
    long kib;

    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    text = file_read(path, &len);
    at = text != NULL ? strstr(text, "VmRSS:") : NULL;
    check(at != NULL, "no VmRSS in %s", path);
    kib = strtol(at + 6, NULL, 10);
    free(text);
    return kib;
}

/* Who asks for more and more and does not read is not read from; all is
   answered when he does. */
static void test_unread(void **state) {
    static const char get[] = "GET /unread HTTP/1.1\r\nHost: x\r\n\r\n";
    enum { GETS = 1000, SIZE = 60000 };
    static char value[SIZE];
    struct client c = client_make(api->port);
    long from, until;

    (void)state;
    random_bytes(value, SIZE, 8);
    check(client_ask(&c, "PUT", "/unread", "", value, SIZE) == 201, "%d",
          c.status);
    for (int i = 0; i < GETS; i++)
        check(client_send(&c, get, sizeof get - 1), "cannot send");
    from = now_ms();
    for (until = from + 300; now_ms() < until; pause_ms(20))
        check(buffered(api->port) < 1 << 20, "%.0f bytes are buffered",
              buffered(api->port));
    for (int i = 0; i < GETS; i++)
        check(client_read(&c, false) == 200 && c.body_len == SIZE &&
                  memcmp(c.body, value, SIZE) == 0,
              "answer %d: %d", i, c.status);
    client_end(&c);
    wait_until(buffered(api->port) == 0, LIMIT_MS, "it is still buffered");
}

/* Readers of a large value who read nothing cost little, and hold up nobody. */
static void test_slow_readers(void **state) {
    static const char get[] = "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n";
    enum { READERS = 50, SIZE = 16 << 20 };
    struct server *s = alone("slow", "-partitions 16");
    struct client c[READERS], other = client_make(s->port);
    char *value = malloc(SIZE);
    long before;

    (void)state;
    random_bytes(value, SIZE, 9);
    check(client_ask(&other, "PUT", "/slow", "", value, SIZE) == 201 &&
              client_text(&other, "PUT", "/k", "small") == 201 &&
              client_ask(&other, "GET", "/slow", "", NULL, 0) == 200,
          "%d", other.status);
    before = resident(s->pid);
    for (int i = 0; i < READERS; i++) {
        c[i] = client_make(s->port);
        check(client_connect(&c[i]) &&
                  client_send(&c[i], get, sizeof get - 1) &&
                  client_poll(&c[i], POLLIN, now_ms() + LIMIT_MS),
              "reader %d has no answer", i);
    }
    check(client_text(&other, "GET", "/k", NULL) == 200 &&
              strcmp(other.body, "small") == 0,
          "%d", other.status);
    check(buffered(s->port) < 1 << 20, "%.0f bytes are buffered",
          buffered(s->port));
    /* A record in one piece may be among it, as of the scrubber; not of each. */
    check(resident(s->pid) - before < 3 * SIZE >> 10, "%ld KiB more",
          resident(s->pid) - before);
    check(client_read(&c[0], false) == 200 && c[0].body_len == SIZE &&
              memcmp(c[0].body, value, SIZE) == 0,
          "%d, %zu bytes", c[0].status, c[0].body_len);
    for (int i = 0; i < READERS; i++)
        client_end(&c[i]);
    wait_until(buffered(s->port) == 0, LIMIT_MS, "it is still buffered");
    client_end(&other);
    free(value);
    server_stop(s);
}

/* Bodies that do not end use up the memory that all have: then large ones are
   refused and small requests go on; when they are gone all is as before. */
static void test_memory(void **state) {
    enum { BODIES = 20, SIZE = 64 << 20, LIMIT = 1 << 30 };
    struct server *s = alone("memory", "-partitions 16");
    struct client c[BODIES], other = client_make(s->port);
    char *value = malloc(SIZE), retry[32], head[100];
    int refused = 0;

    (void)state;
    random_bytes(value, SIZE, 10);
    for (int i = 0; i < BODIES; i++) {
        c[i] = client_make(s->port);
        snprintf(head, sizeof head,
                 "PUT /%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", i,
                 SIZE);
        check(client_connect(&c[i]) && client_send(&c[i], head, strlen(head)),
              "cannot send");
        for (int k = 0; k < i; k++) /* each has to bring so much in 30 s */
            send(c[k].fd, value, 64 << 10, MSG_NOSIGNAL);
        if (client_send(&c[i], value, SIZE - BODIES * (64 << 10)) &&
            !client_poll(&c[i], POLLIN, now_ms() + 20))
            continue;
        refused++;
        check(client_read(&c[i], false) == 503 &&
                  client_header(&c[i], "Retry-After", retry, sizeof retry) &&
                  strstr(c[i].body, "too many large values") != NULL,
              "body %d: %d", i, c[i].status);
        check(client_text(&other, "PUT", "/k", "small") < 205 &&
                  client_text(&other, "GET", "/k", NULL) == 200,
              "%d", other.status);
        check(buffered(s->port) > LIMIT / 2 && buffered(s->port) < LIMIT,
              "%.0f bytes are buffered", buffered(s->port));
    }
    check(refused > 0 && refused < BODIES - 8, "%d are refused", refused);
    for (int i = 0; i < BODIES; i++)
        client_end(&c[i]);
    wait_until(buffered(s->port) == 0, LIMIT_MS, "it is still buffered");
    check(client_ask(&other, "PUT", "/large", "", value, SIZE) == 201, "%d",
          other.status);
    client_end(&other);
    free(value);
    server_stop(s);
}

static void test_limits(void **state) {
    static const struct {
        size_t line, header; /* bytes of the target, of one header */
        int status;
    } rows[] = {
        {1, 1, 200},     {1025, 1, 404},  {8000, 1, 400},  {8192, 1, 414},
        {8400, 1, 414},  {15000, 1, 414}, {60000, 1, 414}, {1, 15000, 200},
        {1, 17000, 431}, {1, 60000, 431},
    };
    static char text[65536];
    struct client c = client_make(api->port);

    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        size_t n = 0;

        n += (size_t)sprintf(text, "GET /");
        memset(text + n, 'l', rows[i].line - 1);
        n += rows[i].line - 1;
        n += (size_t)sprintf(text + n, " HTTP/1.1\r\nHost: x\r\nX-Long: ");
        memset(text + n, 'h', rows[i].header);
        n += rows[i].header;
        n += (size_t)sprintf(text + n, "\r\n\r\n");
        check(client_connect(&c), "cannot connect");
        client_send(&c, text, n);
        client_read(&c, false);
        check(c.status == rows[i].status, "row %zu: %d", i, c.status);
        if (c.status >= 400)
            check_answer(&c, "GET", c.status == 404 ? "/" : "/_");
    }

    part("413 at -maxValue and one byte");
    for (int over = 0; over <= 1; over++) {
        size_t len = (size_t)8 * 1024 * 1024 + (size_t)over;
        char *value = calloc(1, len);

        client_drop(&c);
        client_ask(&c, "PUT", "/big", NULL, value, len);
        free(value);
        check(c.status == (over ? 413 : 201), "%zu bytes: %d", len, c.status);
        check(!over || strstr(c.body, "8388608 bytes") != NULL,
              "the limit is not in %s", c.body);
        check_answer(&c, "PUT", "/big");
    }
    check(client_text(&c, "DELETE", "/big", NULL) == 204, "%d", c.status);

    part("413 for chunks that are too many");
    client_drop(&c);
    static const char head[] = "PUT /big HTTP/1.1\r\nHost: x\r\n"
                               "Transfer-Encoding: chunked\r\n\r\n900000\r\n";
    check(client_connect(&c) && client_send(&c, head, sizeof head - 1),
          "cannot send");
    check(client_read(&c, false) == 413, "%d", c.status);
    check(status_of(api->port, "GET", "/big") == 404, "it was stored");
    client_end(&c);
}

/* What is no request, or a broken one: the answer, and then the end of the
   connection. */
static void test_broken_requests(void **state) {
#define H "Host: x\r\n"
    static const struct {
        const char *text;
        int status, other;
    } rows[] = {
        {"garbage\r\n\r\n", 400, 400},
        {"\x16\x03\x01\x02\x01\xfe\x03\x03\r\n\r\n", 400, 400},
        {"GET /a\r\n\r\n", 400, 400},
        {"GET  /a HTTP/1.1\r\n" H "\r\n", 400, 400},
        {"GET a HTTP/1.1\r\n" H "\r\n", 400, 400},
        {"GET /a b HTTP/1.1\r\n" H "\r\n", 400, 400},
        {"GET /a http/1.1\r\n" H "\r\n", 400, 505},
        {"GET /a HTTP/2.0\r\n" H "\r\n", 505, 400},
        {"GET /a HTTP/1.1 \r\n" H "\r\n", 400, 400},
        {"GET /a HTTP/1.1\r\n\r\n", 400, 400},
        {"GET /a HTTP/1.1\r\n" H H "\r\n", 400, 400},
        {"GET /a HTTP/1.1\r\nHost : x\r\n\r\n", 400, 400},
        {"GET /a HTTP/1.1\r\n" H "no colon\r\n\r\n", 400, 400},
        {"GET /a HTTP/1.1\r\n" H ": empty\r\n\r\n", 400, 400},
        {"GET /a HTTP/1.1\r\n" H "A b: c\r\n\r\n", 400, 400},
        {"PUT /a HTTP/1.1\r\n" H "Content-Length: x\r\n\r\n", 400, 400},
        {"PUT /a HTTP/1.1\r\n" H "Content-Length: -1\r\n\r\n", 400, 400},
        {"PUT /a HTTP/1.1\r\n" H "Content-Length: +1\r\n\r\n1", 400, 400},
        {"PUT /a HTTP/1.1\r\n" H "Content-Length: 1 1\r\n\r\n1", 400, 400},
        {"PUT /a HTTP/1.1\r\n" H "Content-Length: 1\r\n"
         "Content-Length: 2\r\n\r\n12",
         400, 400},
        {"PUT /a HTTP/1.1\r\n" H
         "Content-Length: 18446744073709551617\r\n\r\n1",
         400, 413},
        {"PUT /a HTTP/1.1\r\n" H "Transfer-Encoding: gzip\r\n\r\n", 400, 501},
        {"PUT /a HTTP/1.1\r\n" H "Transfer-Encoding: chunked, gzip\r\n"
         "\r\n",
         400, 501},
        {"PUT /a HTTP/1.1\r\n" H "Content-Length: 4\r\n"
         "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
         400, 201},
        {"PUT /a HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n"
         "zz\r\n",
         400, 400},
        {"PUT /a HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n"
         "-1\r\n",
         400, 400},
        {"PUT /a HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n"
         "1\r\n1x0\r\n\r\n",
         400, 400},
        {"PUT /a HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n"
         "fffffffffffffffff\r\n",
         400, 413},
    };
#undef H
    struct client c = client_make(api->port);

    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        check(client_connect(&c) &&
                  client_send(&c, rows[i].text, strlen(rows[i].text)),
              "row %zu: cannot send", i);
        client_read(&c, false);
        check(c.status == rows[i].status || c.status == rows[i].other,
              "row %zu: %d, not %d, to:\n%s", i, c.status, rows[i].status,
              rows[i].text);
        check_answer(&c, "GET", "/_");
        check(client_closed(&c), "row %zu: still open", i);
    }
    client_end(&c);
}

/* A stream of requests and the answers to it.  Cut wherever it may be, the
   answers are the same. */
struct stream {
    const char *text;
    const char *heads; /* an answer each: h to HEAD, . to others */
};

/* Adds the reply to what came so far, but for headers that may differ. */
static void stream_note(struct client *c, char *seen, size_t room) {
    size_t n = strlen(seen);

    for (const char *p = c->head, *end; *p != '\0'; p = end + 2) {
        end = strstr(p, "\r\n");
        if (strncasecmp(p, "Date:", 5) != 0 && strncasecmp(p, "ETag:", 5) != 0)
            n += (size_t)snprintf(seen + n, room - n, "%.*s\n", (int)(end - p),
                                  p);
    }
    snprintf(seen + n, room - n, "%s|\n", c->body);
}

/* Sends a stream with a cut after each byte where cut says so (at a cut a
   round trip on another connection makes sure that the server, which has
   one loop, has read what came before), and notes the answers. */
static void stream_run(const struct stream *s, bool (*cut)(size_t, size_t),
                       size_t where, struct client *c, struct client *probe,
                       char *seen, size_t room) {
    size_t len = strlen(s->text), from = 0;

    check(client_connect(c), "cannot connect");
    for (size_t i = 1; i < len; i++) {
        if (!cut(i, where))
            continue;
        client_send(c, s->text + from, i - from);
        from = i;
        check(client_text(probe, "GET", "/_health", NULL) == 200, "probe: %d",
              probe->status);
    }
    client_send(c, s->text + from, len - from);
    seen[0] = '\0';
    for (const char *h = s->heads; *h != '\0'; h++) {
        check(client_read(c, *h == 'h') > 0,
              "cut at %zu: no answer to:\n%s"
              "\nseen so far:\n%s",
              where, s->text, seen);
        stream_note(c, seen, room);
    }
}

static bool cut_never(size_t at, size_t where) {
    return at == where && false;
}

static bool cut_once(size_t at, size_t where) {
    return at == where;
}

static bool cut_always(size_t at, size_t where) {
    return at > 0 || where > 0;
}

static void test_cuts(void **state) {
    static const struct stream streams[] = {
        {"PUT /s%20t HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n"
         "Content-Type: text/plain\r\n\r\nsecond"
         "GET /s%20t HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n"
         "HEAD /%73%20t HTTP/1.1\r\nHost:x\r\n\r\n"
         "DELETE /nothing HTTP/1.1\r\nHost: x\r\n\r\n",
         "..h."},
        {"PUT /chunks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked"
         "\r\n\r\n3;e=1\r\none\r\nA\r\n0123456789\r\n0\r\nT: 1\r\n\r\n"
         "GET /chunks HTTP/1.1\r\nHost: x\r\n\r\n",
         ".."},
        {"PUT /old HTTP/1.0\r\nContent-Length: 3\r\n"
         "Connection: keep-alive\r\n\r\nold"
         "GET /old HTTP/1.0\r\n\r\n",
         ".."},
        {"GET /_health HTTP/1.1\r\nHost: x\r\n\r\n"
         "GET /a%2g HTTP/1.1\r\nHost: x\r\n\r\n",
         ".."},
        {"GET /_health HTTP/1.1\r\nHost: x\r\n\r\n"
         "GET /a HTTP/1.1\r\nHost : x\r\n\r\n",
         ".."},
        {"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1x\r\n\r\n", "."},
        {"PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
         "\r\n2\r\nabcd",
         "."},
    };
    static char want[16384], seen[16384];
    struct client c = client_make(api->port), probe = c;

    (void)state;
    for (size_t i = 0; i < COUNT(streams); i++) {
        const struct stream *s = &streams[i];

        stream_run(s, cut_never, 0, &c, &probe, want, sizeof want);
        stream_run(s, cut_never, 0, &c, &probe, want, sizeof want);
        for (size_t at = 1; at < strlen(s->text); at++) {
            stream_run(s, cut_once, at, &c, &probe, seen, sizeof seen);
            check(strcmp(seen, want) == 0,
                  "stream %zu cut at %zu:\n%s\n"
                  "instead of:\n%s",
                  i, at, seen, want);
        }
        stream_run(s, cut_always, 0, &c, &probe, seen, sizeof seen);
        check(strcmp(seen, want) == 0,
              "stream %zu byte by byte:\n%s\n"
              "instead of:\n%s",
              i, seen, want);
    }
    client_end(&c);
    client_end(&probe);
}

/* ---- Abuse, and the others ------------------------------------------- */

/* What nobody waits for an answer, though the machine may be busy: who does was
   held up by the others. */
enum { HELD_UP_MS = LIMIT_MS / 2 };

/* A client that is served all the while: it asks until it is stopped. */
static struct bystander {
    int port;
    bool running;
    pthread_t thread;
    pthread_mutex_t lock; /* of all below */
    bool stop;
    long served, errors, worst_ms;
} bystander;

static void *bystander_main(void *arg) {
    struct bystander *b = arg;
    struct client c = client_make(b->port);
    bool stop = false;

    while (!stop) {
        long before = now_ms(), took;
        bool good = client_text(&c, "GET", "/bystander", NULL) == 200 &&
                    strcmp(c.body, "served") == 0;

        took = now_ms() - before;
        pthread_mutex_lock(&b->lock);
        b->served += good;
        b->errors += !good;
        b->worst_ms = took > b->worst_ms ? took : b->worst_ms;
        stop = b->stop;
        pthread_mutex_unlock(&b->lock);
    }
    client_end(&c);
    return NULL;
}

static void bystander_begin(int port) {
    struct bystander *b = &bystander;
    struct client c = client_make(port);

    memset(b, 0, sizeof *b);
    b->port = port;
    client_text(&c, "PUT", "/bystander", "served");
    client_end(&c);
    pthread_mutex_init(&b->lock, NULL);
    b->running = pthread_create(&b->thread, NULL, bystander_main, b) == 0;
    check(b->running, "no thread");
}

/* Answers served so far. */
static long bystander_served(void) {
    long n;

    pthread_mutex_lock(&bystander.lock);
    n = bystander.served;
    pthread_mutex_unlock(&bystander.lock);
    return n;
}

/* Ends the bystander, if it still runs; a cmocka teardown. */
static int bystander_end(void **state) {
    struct bystander *b = &bystander;

    (void)state;
    if (!b->running)
        return 0;
    pthread_mutex_lock(&b->lock);
    b->stop = true;
    pthread_mutex_unlock(&b->lock);
    pthread_join(b->thread, NULL);
    pthread_mutex_destroy(&b->lock);
    b->running = false;
    return 0;
}

/* Sends n pipelined requests and reads the answers meanwhile; how many of
   them were right, and in order. */
static size_t flood(struct client *c, size_t n) {
    size_t unit = sizeof one_get - 1, total = n * unit, sent = 0, good = 0;
    long until = now_ms() + 4 * c->limit_ms;
    char *all = malloc(total);

    if (all == NULL || !client_connect(c)) {
        free(all);
        return 0;
    }
    for (size_t i = 0; i < n; i++)
        memcpy(all + i * unit, one_get, unit);
    while (good < n && now_ms() < until) {
        struct pollfd p = {.fd = c->fd, .events = POLLIN};

        p.events |= sent < total ? POLLOUT : 0;
        poll(&p, 1, 1000);
        if (p.revents & POLLOUT) {
            ssize_t k = send(c->fd, all + sent, total - sent, MSG_NOSIGNAL);
            sent += k > 0 ? (size_t)k : 0;
        }
        if (p.revents & (POLLIN | POLLHUP | POLLERR)) {
            if (client_fill(c, now_ms()) <= 0)
                break;
            while (c->from < c->len && client_take(c, false, false) > 0)
                good += c->status == 200 && strcmp(c->body, "served") == 0;
        }
    }
    free(all);
    return good;
}

static void test_abuse(void **state) {
    static const char half[] = "PUT /half HTTP/1.1\r\nHost: x\r\n"
                               "Content-Length: 100\r\n\r\nhalf";
    static const char surplus[] =
        "PUT /surplus HTTP/1.1\r\nHost: x\r\n"
        "Content-Length: 5\r\n\r\nhelloEXTRA BYTES\r\n\r\n";
    struct client c = client_make(api->port), deaf[8];
    static char noise[17 * 1024];
    size_t n;
    long before;

    bystander_begin(api->port);

    part("half a request, then the end");
    for (size_t i = 1; i < sizeof half - 1; i++) {
        check(client_connect(&c) && client_send(&c, half, i), "cannot send");
        if (i % 2 == 0) {
            shutdown(c.fd, SHUT_WR);
            client_read(&c, false);
            check(c.status <= 0 || c.status >= 400, "%zu bytes: %d", i,
                  c.status);
        }
    }
    check(status_of(api->port, "GET", "/half") == 404, "half was stored");

    part("a body longer than announced");
    check(client_connect(&c) && client_send(&c, surplus, sizeof surplus - 1),
          "cannot send");
    check(client_read(&c, false) == 201, "%d", c.status);
    check(client_read(&c, false) == 400 && client_closed(&c), "%d", c.status);
    check(client_text(&c, "GET", "/surplus", NULL) == 200 &&
              strcmp(c.body, "hello") == 0,
          "\"%s\"", c.body);

    part("noise");
    for (uint64_t seed = 1; seed <= 200; seed++) {
        random_bytes(noise, sizeof noise, seed);
        check(client_connect(&c), "cannot connect");
        client_send(&c, noise, sizeof noise);
        shutdown(c.fd, SHUT_WR);
        client_read(&c, false);
        check(c.status <= 0 || c.status / 100 == 4 || c.status / 100 == 5,
              "seed %d: %d", (int)seed, c.status);
    }

    part("100,000 pipelined requests");
    before = bystander_served();
    n = flood(&c, 100000);
    check(n == 100000, "%zu right answers", n);
    check(bystander_served() > before + 10, "the other client starved");

    part("clients that send and never read");
    for (size_t i = 0; i < COUNT(deaf); i++) {
        deaf[i] = client_make(api->port);
        check(client_connect(&deaf[i]), "cannot connect");
        deaf[i].limit_ms = 100;
        for (n = 0; n < 100000; n++)
            if (!client_send(&deaf[i], one_get, sizeof one_get - 1))
                break;
    }
    before = bystander_served();
    wait_until(bystander_served() > before + 10, LIMIT_MS,
               "the other client starves");
    for (size_t i = 0; i < COUNT(deaf); i++)
        client_end(&deaf[i]);
    client_end(&c);
    bystander_end(state);
    check(bystander.errors == 0, "the other client: %ld errors",
          bystander.errors);
    check(bystander.worst_ms < HELD_UP_MS, "it waited %ld ms once",
          bystander.worst_ms);
}

/* Requests with bytes changed, left out and repeated at random: whatever
   the answer, the node lives on and the sanitizers are silent. */
static void test_mutations(void **state) {
    static const char *const seeds[] = {
        "PUT /m HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
        ("PUT /m HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
         "\r\n3\r\nabc\r\n0\r\n\r\n"),
        "GET /m?explain HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\n\r\n",
        "GET /?list&prefix=%5F&limit=3 HTTP/1.1\r\nHost: x\r\n\r\n",
        "DELETE /%6d HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        "GET /_nodes/m HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n",
    };
    size_t rounds = torture() ? 100000 : 2000;
    struct client c = client_make(api->port);
    uint64_t seed = the_run.random, s = seed;

    (void)state;
    part("seed %llu", (unsigned long long)seed);
    for (size_t i = 0; i < rounds; i++) {
        char text[512];
        const char *from = seeds[i % COUNT(seeds)];
        size_t len = strlen(from);

        memcpy(text, from, len + 1);
        for (uint64_t k = random_next(&s) % 3 + 1; k > 0; k--) {
            size_t at = random_next(&s) % len;
            size_t to = random_next(&s) % len;

            if (k == 1)
                text[at] = (char)random_next(&s);
            else if (k == 2)
                memmove(text + at, text + to, len - (at > to ? at : to));
            else
                text[at] = "\r\n :%/?0"[to % 8];
        }
        check(client_connect(&c), "round %zu: cannot connect", i);
        client_send(&c, text, len);
        shutdown(c.fd, SHUT_WR);
        while (client_read(&c, false) > 0)
            continue;
    }
    client_end(&c);
    check(status_of(api->port, "GET", "/_ready") == 200, "it is gone");
}

static void test_sizes(void **state) {
    static const size_t sizes[] = {
        1, 1023, 4096, 65535, 65536, 65537, 131072, 131073, 1 << 20, 5 << 20,
    };
    struct client c = client_make(api->port);

    (void)state;
    for (size_t i = 0; i < COUNT(sizes); i++) {
        char *value = malloc(sizes[i]), target[32], length[32];

        check(value != NULL, "no memory");
        random_bytes(value, sizes[i], sizes[i]);
        snprintf(target, sizeof target, "/size/%zu", sizes[i]);
        client_ask(&c, "PUT", target, NULL, value, sizes[i]);
        check(c.status == 201, "PUT %s: %d", target, c.status);
        client_text(&c, "HEAD", target, NULL);
        snprintf(length, sizeof length, "Content-Length: %zu", sizes[i]);
        check_header(&c, length, target);
        client_text(&c, "GET", target, NULL);
        check(c.status == 200 && c.body_len == sizes[i] &&
                  memcmp(c.body, value, sizes[i]) == 0,
              "GET %s: %d, %zu bytes", target, c.status, c.body_len);
        free(value);
    }
    client_end(&c);
}

/* ---- Many clients at once -------------------------------------------- */

enum { CROWD = 64, CROWD_KEYS = 8 };

/* One of the crowd: keys of its own, and what they must hold. */
struct member {
    int port, id, ops;
    pthread_t thread;
    char error[256]; /* what was wrong first, "" for nothing */
};

/* One random operation; false, with m->error set, when it went wrong. */
static bool member_turn(struct member *m, struct client *c, uint64_t *s,
                        int *held, int turn) {
    size_t k = random_next(s) % CROWD_KEYS;
    uint64_t what = random_next(s) % 4;
    char target[64], value[64], want[64];
    int status, expect;

    snprintf(target, sizeof target, "/crowd/%d/%zu", m->id, k);
    snprintf(value, sizeof value, "%d wrote %d", m->id, turn);
    snprintf(want, sizeof want, "%d wrote %d", m->id, held[k]);
    if (what == 0) {
        status = client_text(c, "PUT", target, value);
        expect = held[k] ? 204 : 201;
        held[k] = turn;
    } else if (what == 1) {
        status = client_text(c, "DELETE", target, NULL);
        expect = held[k] ? 204 : 404;
        held[k] = 0;
    } else {
        status = client_text(c, "GET", target, NULL);
        expect = held[k] ? 200 : 404;
        if (status == 200 && strcmp(c->body, want) != 0) {
            snprintf(m->error, sizeof m->error,
                     "%s gave \"%.60s\", not "
                     "\"%s\"",
                     target, c->body, want);
            return false;
        }
    }
    if (status != expect)
        snprintf(m->error, sizeof m->error, "%s, operation %d: %d, not %d",
                 target, (int)what, status, expect);
    return status == expect;
}

static void *member_main(void *arg) {
    struct member *m = arg;
    struct client c = client_make(m->port);
    uint64_t s = (uint64_t)m->id * 7919 + 1;
    int held[CROWD_KEYS] = {0};

    for (int turn = 1; turn <= m->ops; turn++)
        if (!member_turn(m, &c, &s, held, turn))
            break;
    client_end(&c);
    return NULL;
}

static void test_crowd(void **state) {
    struct server *s = alone("crowd", "-threads 4");
    static struct member members[CROWD];

    (void)state;
    for (int i = 0; i < CROWD; i++) {
        members[i] = (struct member){
            .port = s->port, .id = i, .ops = torture() ? 20000 : 200};
        check(pthread_create(&members[i].thread, NULL, member_main,
                             &members[i]) == 0,
              "no thread");
    }
    for (int i = 0; i < CROWD; i++)
        pthread_join(members[i].thread, NULL);
    for (int i = 0; i < CROWD; i++)
        check(members[i].error[0] == '\0', "%s", members[i].error);
    server_stop(s);
}

static int connections_end(void **state) {
    bystander_end(state);
    return servers_end(state);
}

/* Connections that are idle for long get their answers, in a burst and one by
   one, beside a client that never rests. */
static void test_idle(void **state) {
    enum { IDLE = 5000 };
    struct server *s;
    static int fds[IDLE];

    (void)state;
    if (!descriptors_allow(IDLE + 100)) {
        part("not tested: too few descriptors for %d connections", IDLE);
        skip();
    }
    s = alone("idle", "-threads 2");
    bystander_begin(s->port);
    many_open(s->port, fds, IDLE);
    for (int round = 0; round < (torture() ? 50 : 2); round++) {
        pause_ms(500); /* none of them has been active of late */
        many_send(fds, IDLE, one_get);
        many_read(fds, IDLE);
        pause_ms(500);
        for (int i = 0; i < IDLE; i += 50) {
            many_send(fds + i, 1, one_get);
            many_read(fds + i, 1);
        }
    }
    bystander_end(state);
    check(bystander.errors == 0 && bystander.worst_ms < HELD_UP_MS,
          "the other client: %ld errors, %ld ms once", bystander.errors,
          bystander.worst_ms);
    many_close(fds, IDLE);
    server_stop(s);
}

/* The server closes what the other side has closed half of, though that never
   closes the other half, and whatever was being said. */
static void test_half_closed(void **state) {
    static const char *const texts[] = {
        "", "GET /bystander HT", one_get,
        "PUT /half HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf",
        "PUT /half HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4"};
    enum { EACH = 20 };
    struct server *s = alone("half", "-threads 2");
    const struct linger reset = {1, 0};
    int ports[] = {s->port, peer_port(s)}, fds[EACH];
    size_t before;

    (void)state;
    wait_until(status_of(s->port, "PUT", "/bystander") > 0, LIMIT_MS, "gone");
    pause_ms(100);
    before = descriptors_of(s);
    for (size_t i = 0; i < COUNT(ports) * COUNT(texts) * (torture() ? 50 : 2);
         i++) {
        many_open(ports[i % 2], fds, EACH);
        many_send(fds, EACH, texts[i / 2 % COUNT(texts)]);
        for (int k = 0; k < EACH; k++)
            if (i / 2 / COUNT(texts) % 2 == 0)
                shutdown(fds[k], SHUT_WR);
            else
                setsockopt(fds[k], SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        if (i / 2 / COUNT(texts) % 2 != 0)
            many_close(fds, EACH);
        wait_until(descriptors_of(s) <= before, LIMIT_MS,
                   "%zu descriptors, not %zu, after \"%s\"", descriptors_of(s),
                   before, texts[i / 2 % COUNT(texts)]);
        if (i / 2 / COUNT(texts) % 2 == 0)
            many_close(fds, EACH);
    }
    server_stop(s);
}

/* Who asks for a large value and does not read it is sent little of it: what
   the node and the kernel keep for a connection is bounded. */
static void test_deaf(void **state) {
    enum { DEAF = 20 };
    static const char text[] = "GET /large HTTP/1.1\r\nHost: x\r\n\r\n";
    const char *series = "estoraje_sent_bytes_total{port=\"client\"}";
    struct server *s = alone("deaf", "");
    struct client c = client_make(s->port);
    static char large[8 << 20];
    double before, sent, now;
    int fds[DEAF];

    (void)state;
    check(client_ask(&c, "PUT", "/large", NULL, large, sizeof large) == 201,
          "%d", c.status);
    metrics_get(&c);
    before = sent = metric(&c, series);
    many_open(s->port, fds, DEAF);
    many_send(fds, DEAF, text);
    wait_until((metrics_get(&c), metric(&c, series) > before + DEAF * 1000),
               LIMIT_MS, "%s", c.body);
    do {
        now = sent;
        pause_ms(500);
        metrics_get(&c);
        sent = metric(&c, series);
    } while (sent > now + 100000);
    sent = (sent - before) / DEAF;
    check(sent > 1000 && sent < 1 << 20, "%.0f bytes for each", sent);
    many_close(fds, DEAF);
    client_end(&c);
    server_stop(s);
}

/* slowhttptest's three modes, with a thousand connections each: the others are
   served meanwhile, and memory is what it was, but for a little that serves the
   next attack. */
static void test_slow(void **state) {
    static const struct {
        const char *what, *flags;
    } modes[] = {
        {"headers", "-H -i 1 -x 24 -u http://127.0.0.1:%d/bystander"},
        {"bodies", "-B -i 1 -t PUT -s 100000 -x 24 -u http://127.0.0.1:%d/b"},
        {"reads", "-X -n 1 -z 32 -w 512 -y 1024 -u http://127.0.0.1:%d/large"},
    };
    const long mib = 1 << 20, bounds[] = {48 * mib, 8 * mib};
    static char large[4 << 20];
    char flags[200], *old = getenv("ASAN_OPTIONS");

    old = strdup(old != NULL ? old : "");
    snprintf(flags, sizeof flags, "%.100s:quarantine_size_mb=1", old);
    for (size_t i = 0; i < 2 * COUNT(modes); i++) {
        static struct server *s;
        struct output o = {.limit_ms = 60000};
        struct client c;
        char line[200];
        long before;

        if (i % 2 == 0) {
            setenv("ASAN_OPTIONS", flags, 1);
            s = alone(modes[i / 2].what, "-threads 2");
            setenv("ASAN_OPTIONS", old, 1);
        }
        c = client_make(s->port);
        client_ask(&c, "PUT", "/large", NULL, large, sizeof large);
        client_end(&c);
        bystander_begin(s->port);
        pause_ms(200);
        before = memory_of(s);
        snprintf(line, sizeof line, modes[i / 2].flags, s->port);
        run(&o, "slowhttptest -c 1000 -r 1000 -p 3 -l %d %s",
            torture() ? 15 : 2, line);
        bystander_end(state);
        output_free(&o);
        if (o.code == 127) {
            free(old);
            part("not tested: there is no slowhttptest");
            skip();
        }
        part("slow %s: %ld MiB of memory, then %ld", modes[i / 2].what,
             before / mib, memory_of(s) / mib);
        wait_until(memory_of(s) < before + bounds[i % 2], LIMIT_MS,
                   "%ld bytes, not %ld", memory_of(s), before);
        check(bystander.errors == 0 && bystander.worst_ms < HELD_UP_MS,
              "the other client: %ld errors, %ld ms once", bystander.errors,
              bystander.worst_ms);
        i += i % 2 == 0 && !torture(); /* the second attack is left out */
        if (i % 2 == 1)
            server_stop(s);
    }
    free(old);
}

/* ---- What survives --------------------------------------------------- */

enum { KEYS = 500 };

/* What key i holds after fill: a function of i and of the round. */
static const char *value_of(int i, int round, char *text, size_t room) {
    if (i % 10 == 3)
        return NULL; /* deleted */
    if (i % 10 == 4)
        return "";
    snprintf(text, room, "value %d of round %d%*s", i, i % 2 ? round : 0, i,
             "");
    return text;
}

/* Writes all keys: in round 0 each, later every second, so that there are
   overwrites, deletes of what was there, and empty values. */
static void fill(const struct server *s, int round) {
    struct client c = client_make(s->port);
    char target[32], text[1024];

    for (int i = 0; i < KEYS; i++) {
        const char *value = value_of(i, round, text, sizeof text);

        snprintf(target, sizeof target, "/kept/%d", i);
        if (round > 0 && i % 2 == 0)
            continue;
        client_text(&c, "PUT", target, value != NULL ? value : "gone");
        check(c.status == 201 || c.status == 204, "%s: %d", target, c.status);
        if (value == NULL)
            check(client_text(&c, "DELETE", target, NULL) == 204, "%s: %d",
                  target, c.status);
    }
    client_end(&c);
}

/* Checks that every key holds what fill wrote last. */
static void filled(const struct server *s, int round) {
    struct client c = client_make(s->port);
    char target[32], text[1024];

    for (int i = 0; i < KEYS; i++) {
        const char *value = value_of(i, round, text, sizeof text);

        snprintf(target, sizeof target, "/kept/%d", i);
        client_text(&c, "GET", target, NULL);
        check(c.status == (value != NULL ? 200 : 404), "round %d, %s: %d",
              round, target, c.status);
        check(strcmp(c.body, value != NULL ? value : "") == 0,
              "round %d, "
              "%s: \"%s\"",
              round, target, c.body);
    }
    client_end(&c);
}

static void test_restarts(void **state) {
    static const char *const flags[] = {
        "-sync second",
        "-sync always -partitions 16",
        "-sync none -partitions 1 -threads 1",
    };
    int kills = torture() ? 100 : 10;

    (void)state;
    for (size_t i = 0; i < COUNT(flags); i++) {
        struct server *s = alone("kept", flags[i]);
        char etag[2][64] = {"", ""};
        struct client c = client_make(s->port);

        part("%s: SIGTERM and kill -9", flags[i]);
        fill(s, 0);
        client_ask(&c, "PUT", "/typed", "Content-Type: image/gif\r\n", "GIF",
                   3);
        client_header(&c, "ETag", etag[0], sizeof etag[0]);
        filled(s, 0);
        server_stop(s);
        again(s);
        filled(s, 0);
        fill(s, 1);
        server_kill(s);
        again(s);
        filled(s, 1);

        client_end(&c);
        c = client_make(s->port);
        check(client_text(&c, "GET", "/typed", NULL) == 200, "%d", c.status);
        check_header(&c, "Content-Type: image/gif", "after restarts");
        client_header(&c, "ETag", etag[1], sizeof etag[1]);
        check(strcmp(etag[0], etag[1]) == 0, "the etag was %s, is %s", etag[0],
              etag[1]);
        client_end(&c);
        if (i == 0)
            part("kill -9, %d times in a row", kills);
        for (int k = 2, round = 1; i == 0 && k < kills + 2; k++) {
            server_kill(s);
            again(s);
            filled(s, round);
            if (k % 3 == 0)
                fill(s, round = k);
        }
        server_stop(s);
    }
}

/* The end of a log as a crash may leave it: what was whole before is all
   there, the cut is told in a line, and writing goes on. */
static void test_torn_tail(void **state) {
    static const struct {
        const char *what;
        long cut;            /* bytes taken from the end */
        long garbage, zeros; /* then bytes put there */
    } rows[] = {
        {"one byte short", 1, 0, 0},
        {"the value missing", 100, 0, 0},
        {"nearly nothing left", 130, 0, 0},
        {"a byte too many", 0, 1, 0},
        {"garbage at the end", 0, 300, 0},
        {"zeros at the end", 0, 0, 4096},
        {"short, then garbage", 7, 100000, 0},
        {"short, then zeros", 9, 0, 70000},
    };
    static char bytes[100000];
    char value[101] = "", target[32], path[MAX_PATH + 16];

    (void)state;
    memset(value, 'v', 100);
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct server *s = alone("torn", "-partitions 1");
        struct client c = client_make(s->port);
        char *log;

        part("%s", rows[i].what);
        for (int k = 0; k < 20; k++) {
            snprintf(target, sizeof target, "/torn/%d", k);
            check(client_text(&c, "PUT", target, value) == 201, "%d", c.status);
        }
        client_end(&c);
        server_kill(s);

        snprintf(path, sizeof path, "%s/000.log", s->dir);
        check(file_size(path) > 2000, "%s: %ld bytes", path, file_size(path));
        check(truncate(path, file_size(path) - rows[i].cut) == 0,
              "truncate: %s", strerror(errno));
        random_bytes(bytes, (size_t)rows[i].garbage, i + 1);
        memset(bytes + rows[i].garbage, 0, (size_t)rows[i].zeros);
        check(file_write(path, "ab", bytes,
                         (size_t)(rows[i].garbage + rows[i].zeros)),
              "cannot append");

        again(s);
        log = server_log(s);
        check(strstr(log, "000.log") != NULL, "no line about it:\n%s", log);
        free(log);
        for (int turn = 0; turn < 2; turn++) {
            c = client_make(s->port);
            for (int k = 0; k < 20; k++) {
                bool lost = k == 19 && rows[i].cut > 0 && turn == 0;

                snprintf(target, sizeof target, "/torn/%d", k);
                client_text(&c, "GET", target, NULL);
                check(c.status == (lost ? 404 : 200), "%s: %d", target,
                      c.status);
                check(strcmp(c.body, lost ? "" : value) == 0, "%s: %s", target,
                      c.body);
            }
            client_text(&c, "PUT", "/torn/19", value);
            check(c.status == (rows[i].cut > 0 && turn == 0 ? 201 : 204),
                  "writing goes on: %d", c.status);
            client_end(&c);
            server_kill(s);
            again(s);
        }
        server_stop(s);
    }
}

/* Sends a request as it is, and reads the answer; adds up the bytes of both. */
static void raw_ask(struct client *c, const char *request, double *sent,
                    double *received) {
    check(client_send(c, request, strlen(request)) && client_read(c, false) > 0,
          "%d to %.40s", c->status, request);
    *sent += (double)strlen(request);
    *received += (double)(strlen(c->head) + 2 + c->body_len);
}

/* The figures of /_metrics after requests that are known. */
static void test_metrics(void **state) {
#define HTTP " HTTP/1.1\r\nHost: x\r\n"
#define SIZE "Content-Length: 5\r\n\r\n"
    static const char ask[] = "GET /_metrics" HTTP "\r\n";
    static const char *const requests[] = {
        "PUT /1" HTTP SIZE "hello",
        "PUT /2" HTTP SIZE "hello",
        "PUT /3" HTTP SIZE "hello",
        "PUT /1" HTTP SIZE "HELLO",
        "GET /1" HTTP "\r\n",
        "GET /2" HTTP "\r\n",
        "GET /4" HTTP "\r\n",
        "POST /5" HTTP SIZE "hello",
        "DELETE /5" HTTP "\r\n",
        "GET /x?evil" HTTP "\r\n",
        "EVIL /x{evil=\"\"}" HTTP "\r\n",
    };
    static const struct {
        const char *method, *code;
        int times;
    } rows[] = {
        {"PUT", "201", 3},   {"PUT", "204", 1}, {"GET", "404", 1},
        {"POST", "201", 1},  {"GET", "400", 1}, {"DELETE", "204", 1},
        {"other", "501", 1},
    };
    static const struct {
        const char *series;
        double least, most;
    } figures[] = {
        {"estoraje_connections{port=\"client\"}", 1, 1},
        {"estoraje_connections{port=\"peer\"}", 0, 0},
        {"estoraje_max_connections", 100, 1e9},
        {"estoraje_keys", 3, 3},
        {"estoraje_live_bytes", 4 * 40, 4 * 64},
        {"estoraje_log_bytes", 6 * 40, 64 * 64 + 6 * 64},
        {"estoraje_disk_full", 0, 0},
        {"estoraje_partitions{state=\"owned\"}", 16, 16},
        {"estoraje_partitions{state=\"doubt\"}", 0, 0},
        {"estoraje_partitions{state=\"moving\"}", 0, 0},
        {"estoraje_partitions{state=\"damaged\"}", 0, 0},
        {"estoraje_partitions{state=\"dead\"}", 0, 0},
        {"estoraje_replica_writes_total{result=\"stored\"}", 6, 6},
        {"estoraje_replica_writes_total{result=\"refused\"}", 0, 0},
        {"estoraje_peers{state=\"up\"}", 0, 0},
        {"estoraje_peers{state=\"down\"}", 0, 0},
        {"estoraje_peer_calls_total", 0, 0},
        {"estoraje_etcd{state=\"none\"}", 1, 1},
        {"estoraje_ring_epoch", 1, 1},
        {"estoraje_build_info{version=\"0.1\"}", 1, 1},
    };
    long began = now_ms();
    struct server *s = alone("metrics", "-threads 2 -partitions 16");
    struct client c = client_make(s->port), others[4];
    double sent = 0, received = 0, before[2], was, n, took;
    char name[128], *large;

    (void)state;
    part("bytes, exactly");
    wait_until(/* another worker counts what it sent before it closes */
               (metrics_get(&c),
                metric(&c, "estoraje_connections{port=\"client\"}") == 1),
               LIMIT_MS, "%s", c.body);
    before[0] = metric(&c, "estoraje_received_bytes_total{port=\"client\"}");
    before[1] = metric(&c, "estoraje_sent_bytes_total{port=\"client\"}");
    was =
        metric(&c, "estoraje_http_requests_total{method=\"GET\",code=\"200\"}");
    received = (double)(strlen(c.head) + 2 + c.body_len);
    for (size_t i = 0; i < COUNT(requests); i++)
        raw_ask(&c, requests[i], &sent, &received);
    check(client_send(&c, ask, sizeof ask - 1) && client_read(&c, false) == 200,
          "%d", c.status);
    n = metric(&c, "estoraje_received_bytes_total{port=\"client\"}") -
        before[0];
    check(n == sent + sizeof ask - 1, "%.0f bytes, not %.0f", n,
          sent + sizeof ask - 1);
    n = metric(&c, "estoraje_sent_bytes_total{port=\"client\"}") - before[1];
    check(n == received, "%.0f bytes, not %.0f", n, received);

    part("requests and their times");
    for (size_t i = 0; i < COUNT(rows); i++) {
        snprintf(name, sizeof name,
                 "estoraje_http_requests_total{method=\"%s\",code=\"%s\"}",
                 rows[i].method, rows[i].code);
        check(metric(&c, name) == rows[i].times, "%s %.0f, not %d", name,
              metric(&c, name), rows[i].times);
    }
    n = metric(&c, "estoraje_http_requests_total{method=\"GET\",code=\"200\"}");
    check(n == (was > 0 ? was : 0) + 3, "%.0f after %.0f", n, was);
#define TOOK "estoraje_http_request_duration_seconds"
    check(metric(&c, TOOK "_count{method=\"PUT\"}") == 4 &&
              metric(&c, TOOK "_bucket{method=\"PUT\",le=\"+Inf\"}") == 4,
          "%s", c.body);
    check(metric(&c, TOOK "_bucket{method=\"PUT\",le=\"1\"}") >=
              metric(&c, TOOK "_bucket{method=\"PUT\",le=\"0.0001\"}"),
          "%s", c.body);
    took = metric(&c, TOOK "_sum{method=\"GET\"}"); /* each within a turn */
    check(took > 1e-6 && took < (double)(now_ms() - began + 1) / 1000, "%.9f s",
          took);
    check(strstr(c.body, "evil") == NULL && strstr(c.body, "EVIL") == NULL,
          "%s", c.body);
    metrics_check(&c);

    part("of both workers");
    for (size_t i = 0; i < COUNT(others); i++) {
        others[i] = client_make(s->port);
        check(client_text(&others[i], "HEAD", "/1", NULL) == 200, "%d",
              others[i].status);
    }
    metrics_get(&c);
    check(metric(&c, "estoraje_http_requests_total{method=\"HEAD\",code="
                     "\"200\"}") == COUNT(others),
          "%s", c.body);
    for (size_t i = 0; i < COUNT(others); i++)
        client_end(&others[i]);

    part("gauges, when the care thread has looked");
    for (size_t i = 0; i < COUNT(figures); i++)
        wait_until((metrics_get(&c),
                    metric(&c, figures[i].series) >= figures[i].least &&
                        metric(&c, figures[i].series) <= figures[i].most),
                   LIMIT_MS, "%s %.0f", figures[i].series,
                   metric(&c, figures[i].series));
    n = (double)time(NULL) - metric(&c, "process_start_time_seconds");
    check(n >= 0 && n < 120, "started %.0f s ago", n);

    part("compactions");
    large = calloc(1, 65536);
    check(large != NULL, "no memory");
    for (int i = 0; i < 20; i++)
        check(client_ask(&c, "PUT", "/1", NULL, large, 65536) == 204, "%d",
              c.status);
    free(large);
    wait_until((metrics_get(&c),
                metric(&c, "estoraje_compactions_total{result=\"done\"}") > 0),
               LIMIT_MS, "%s", c.body);
    check(metric(&c, "estoraje_log_bytes") >= 65536, "%s", c.body);
    check(metric(&c, TOOK "_count{method=\"PUT\"}") == 24, "%s", c.body);
    client_end(&c);
    server_stop(s);
}

/* SIGTERM with a request half sent: it is finished, then the node ends. */
static void test_stop_in_flight(void **state) {
    static const char head[] = "PUT /late HTTP/1.1\r\nHost: x\r\n"
                               "Content-Length: 10\r\n\r\nhalf-";
    struct server *s = alone("late", "");
    struct client c = client_make(s->port), idle = c;
    int code;

    (void)state;
    check(client_text(&idle, "GET", "/_health", NULL) == 200, "%d",
          idle.status);
    check(client_connect(&c) && client_send(&c, head, sizeof head - 1),
          "cannot send");
    check(status_of(s->port, "GET", "/_health") == 200, "not served");
    kill(s->pid, SIGTERM);
    wait_until(port_silent(s->port), LIMIT_MS, "still accepts");
    check(waitpid(s->pid, NULL, WNOHANG) == 0, "did not wait for it");
    check(client_send(&c, "whole", 5), "cannot send the rest");
    check(client_read(&c, false) == 201, "%d", c.status);
    code = process_wait(s->pid, LIMIT_MS);
    s->pid = 0;
    check(code == 0, "exit code %d", code);
    server_clean(s);
    again(s);
    client_end(&c);
    c = client_make(s->port);
    check(client_text(&c, "GET", "/late", NULL) == 200 &&
              strcmp(c.body, "half-whole") == 0,
          "%d %s", c.status, c.body);
    client_end(&c);
    client_end(&idle);

    part("SIGINT does the same");
    kill(s->pid, SIGINT);
    code = process_wait(s->pid, LIMIT_MS);
    s->pid = 0;
    check(code == 0, "exit code %d after SIGINT", code);
}

/* ---- The peer port --------------------------------------------------- */

static void test_secret(void **state) {
    static const char *const wrong[] = {
        NULL,
        "Authorization: Bearer wrong\r\n",
        "Authorization: sesame\r\n",
        "Authorization: Basic sesame\r\n",
        "Estoraje-Secret: wrong\r\n",
    };
    static const char *const right[] = {
        "Authorization: Bearer sesame\r\n",
        "authorization: bEARER sesame\r\n",
    };
    static const char *const targets[] = {
        "/_nodes/delete/x",
        "/_nodes/x",
        "/_nodes/delete/node1",
        "/k",
    };
    struct server *s;
    struct client c;
    char path[MAX_PATH + 16];

    (void)state;
    part("no secret: a node that is unknown is 404");
    s = alone("open", "");
    c = client_make(peer_port(s));
    client_text(&c, "DELETE", "/_nodes/delete/x", NULL);
    check(c.status == 404 || c.status == 501, "%d", c.status);
    client_text(&c, "DELETE", "/_nodes/delete/node1?force=false", NULL);
    check(c.status == 400, "force=false is taken for force: %d", c.status);
    client_end(&c);
    server_stop(s);

    part("a secret that the request lacks: 401");
    snprintf(path, sizeof path, "%s/secret", the_run.dir);
    check(file_write(path, "wb", "sesame\n", 7), "cannot write %s", path);
    chmod(path, 0600);
    s = server_new("closed");
    server_args(s, "-port 0 -peerPort 0 -secretFile %s", path);
    server_start(s);
    server_ready(s);
    c = client_make(peer_port(s));
    for (size_t i = 0; i < COUNT(wrong); i++)
        for (size_t j = 0; j < COUNT(targets); j++) {
            client_ask(&c, "DELETE", targets[j], wrong[i], NULL, 0);
            check(c.status == 401, "DELETE %s with %s: %d", targets[j],
                  wrong[i] ? wrong[i] : "nothing", c.status);
            check_answer(&c, "DELETE", "/_");
        }
    part("with it the node is asked; the scheme has no case (RFC 9110, 11.1)");
    for (size_t i = 0; i < COUNT(right); i++)
        check(client_ask(&c, "DELETE", "/_nodes/x", right[i], NULL, 0) == 404,
              "%s: %d", right[i], c.status);
    client_end(&c);
    check(status_of(s->port, "GET", "/k") == 404, "the client port asks "
                                                  "for the secret");
    server_stop(s);
}

/* What a page of another site can have a browser send to the peer port is
   refused, and so is what it may ask before (the preflight of CORS): it gets no
   leave. The last rows are of a page whose name has been made to point here. */
static void test_browser(void **state) {
#define PAGE  "Origin: http://elsewhere\r\n"
#define PLAIN PAGE "Content-Type: text/plain\r\n"
#define LEAVE "Access-Control-Allow-Origin: -"
    static const struct call calls[] = {
        {"POST",
         "/_peer/accept",
         "Content-Type: text/plain\r\n",
         "x",
         403,
         NULL,
         {LEAVE}},
        {"POST", "/_peer/accept", PLAIN, "x", 403, NULL, {LEAVE}},
        {"POST", "/_peer/standing", PLAIN, "x", 403, NULL, {LEAVE}},
        {"POST", "/_nodes/delete/node1", NULL, "x", 405, NULL, {LEAVE}},
        {"GET", "/_nodes/delete/node1", NULL, NULL, 405, NULL, {LEAVE}},
        {"OPTIONS",
         "/_nodes/delete/node1",
         PAGE "Access-Control-Request-Method: DELETE\r\n",
         NULL,
         403,
         NULL,
         {LEAVE, "Access-Control-Allow-Methods: -"}},
        {"OPTIONS", "/_peer/accept", NULL, NULL, 405, NULL, {LEAVE}},
        {"DELETE", "/_nodes/delete/node1", PAGE, NULL, 403, NULL, {LEAVE}},
        {"DELETE",
         "/_nodes/node1?force",
         "origin: null\r\n",
         NULL,
         403,
         NULL,
         {LEAVE}},
        {"DELETE", "/_nodes/delete/node1", NULL, NULL, 409, NULL, {NULL}},
    };

    (void)state;
    calls_run(peer_port(api), calls, COUNT(calls));
}

/* Garbage on the peer port: closed or refused, and the node goes on. */
static void test_peer_garbage(void **state) {
    static const char head[] = "POST /_peer HTTP/1.1\r\nHost: x\r\n"
                               "Content-Length: 4000\r\n\r\n";
    struct client c = client_make(peer_port(api));
    static char noise[4096];

    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        random_bytes(noise, sizeof noise, seed);
        if (seed % 4 == 0)
            memcpy(noise, head, sizeof head - 1);
        check(client_connect(&c), "cannot connect");
        client_send(&c, noise, sizeof noise);
        shutdown(c.fd, SHUT_WR);
        client_read(&c, false);
        check(c.status <= 0 || c.status >= 400, "seed %d: %d", (int)seed,
              c.status);
    }
    client_end(&c);
    check(status_of(api->port, "GET", "/_ready") == 200, "it is gone");
}

/* ---- The long forms -------------------------------------------------- */

/* A client that stalls is let go after the time that section 6 names, and told
   so if a part of its request has come. */
static void test_timeouts(void **state) {
    static const struct {
        const char *text;
        long least, most; /* ms until the server closes */
        int status;       /* of its last answer; 0: there is none */
    } rows[] = {
        {"GET /k HTTP/1.1\r\nHost:", 8000, 25000, 408},
        {"HEAD /k HTTP/1.1\r\n", 8000, 25000, 408}, /* without a body */
        {"PUT /k HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx", 25000,
         45000, 408},
        {"PUT /k HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1",
         25000, 45000, 408},
        {"POST /_health HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx",
         25000, 45000, 403},
        {"GET /_health HTTP/1.1\r\nHost: x\r\n\r\n", 65000, 95000, 200},
        {"\r\n", 65000, 95000, 0},
    };
    struct client c[COUNT(rows)];
    long begin = now_ms();

    (void)state;
    if (!torture())
        skip();
    for (size_t i = 0; i < COUNT(rows); i++) {
        c[i] = client_make(api->port);
        check(client_connect(&c[i]) &&
                  client_send(&c[i], rows[i].text, strlen(rows[i].text)),
              "cannot send");
    }
    for (size_t i = 0; i < COUNT(rows); i++) {
        bool head = strncmp(rows[i].text, "HEAD", 4) == 0;
        int status, last = 0;

        c[i].limit_ms = rows[i].most;
        while ((status = client_read(&c[i], head)) > 0)
            last = status;
        check(last == rows[i].status, "row %zu: %d", i, last);
        check(now_ms() - begin >= rows[i].least && client_closed(&c[i]),
              "row %zu: after %ld ms", i, now_ms() - begin);
        client_end(&c[i]);
    }
}

static int api_end(void **state) {
    if (api->pid > 0)
        server_stop(api);
    return servers_end(state);
}

int main(void) {
    const struct CMUnitTest flags[] = {
        cmocka_unit_test_teardown(test_flags_refused, servers_end),
        cmocka_unit_test_teardown(test_add_refused, servers_end),
        cmocka_unit_test_teardown(test_help, servers_end),
        cmocka_unit_test_teardown(test_flag_forms, servers_end),
        cmocka_unit_test_teardown(test_ipv6, servers_end),
        cmocka_unit_test_teardown(test_default_directory, servers_end),
        cmocka_unit_test_teardown(test_start_refused, servers_end),
        cmocka_unit_test_teardown(test_foreign_log, servers_end),
        cmocka_unit_test_teardown(test_descriptors, servers_end),
    };
    const struct CMUnitTest requests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_list),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_ranges_large),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_system_paths),
        cmocka_unit_test(test_unbuilt),
        cmocka_unit_test(test_etags),
        cmocka_unit_test(test_wire),
        cmocka_unit_test(test_expect),
        cmocka_unit_test(test_chunked),
        cmocka_unit_test(test_pipeline),
        cmocka_unit_test(test_pipeline_large),
        cmocka_unit_test(test_unread),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_broken_requests),
        cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test_teardown(test_abuse, bystander_end),
        cmocka_unit_test(test_mutations),
        cmocka_unit_test(test_browser),
        cmocka_unit_test(test_peer_garbage),
        cmocka_unit_test(test_timeouts),
    };
    const struct CMUnitTest lives[] = {
        cmocka_unit_test_teardown(test_restarts, servers_end),
        cmocka_unit_test_teardown(test_list_moving, servers_end),
        cmocka_unit_test_teardown(test_rot, servers_end),
        cmocka_unit_test_teardown(test_torn_tail, servers_end),
        cmocka_unit_test_teardown(test_metrics, servers_end),
        cmocka_unit_test_teardown(test_slow_readers, servers_end),
        cmocka_unit_test_teardown(test_memory, servers_end),
        cmocka_unit_test_teardown(test_stop_in_flight, servers_end),
        cmocka_unit_test_teardown(test_crowd, servers_end),
        cmocka_unit_test_teardown(test_idle, connections_end),
        cmocka_unit_test_teardown(test_half_closed, servers_end),
        cmocka_unit_test_teardown(test_deaf, servers_end),
        cmocka_unit_test_teardown(test_slow, connections_end),
        cmocka_unit_test_teardown(test_secret, servers_end),
    };
    int failed;

    run_begin(torture() ? 3600 : 900);
    failed = cmocka_run_group_tests(flags, NULL, NULL);
    failed += cmocka_run_group_tests(requests, api_begin, api_end);
    failed += cmocka_run_group_tests(lives, NULL, NULL);
    return run_result(failed);
}
