/* join.c - sidecars that join an etcd (-add), tested from outside

   Three nodes with their sidecars, and more that come with -add.  What is
   looked at is etcd's own list of its members, asked over HTTP: who is in it,
   who has started, who votes.  Whether the node becomes a member of the ring
   as well is the affair of other tests; here a node that is refused there and
   ends is taken out of etcd by hand before the next one comes, since etcd lets
   nobody in while one that votes is down. */

#include "harness.h"

enum { NODES = 3 };

static struct server *nodes[NODES];
static int etcd_peer[NODES]; /* its client port is one below */

/* ---- What etcd says -------------------------------------------------- */

enum standing { ABSENT, ADDED, LEARNER, VOTER };

static const char *const standings[] = {"absent", "added", "learner", "voter"};

/* Asks the first node's etcd; its answer, which the caller frees, or NULL. It
   may have none for a moment, while it has no leader. */
static char *etcd_ask(const char *path, const char *body) {
    struct client c = client_make(etcd_peer[0] - 1);
    char *answer = NULL;

    c.limit_ms = 5000;
    if (client_text(&c, "POST", path, body) == 200)
        answer = strdup(c.body);
    client_end(&c);
    return answer;
}

/* Its list of members, which the caller frees. */
static char *etcd_list(void) {
    char *list = NULL;

    wait_until((list = etcd_ask("/v3/cluster/member/list", "{}")) != NULL,
               LIMIT_MS, "etcd lists no members");
    return list;
}

/* How the member of a peer port stands; its id, if it is there. */
static enum standing standing_of(int port, char id[32]) {
    char *list = etcd_list(), url[64];
    enum standing standing = ABSENT;

    id[0] = '\0';
    snprintf(url, sizeof url, "\"http://127.0.0.1:%d\"", port);
    for (char *p = list; (p = strstr(p, "\"ID\":\"")) != NULL;) {
        char *end = strchr(p, '}');

        if (end == NULL)
            break;
        *end = '\0';
        if (strstr(p, url) != NULL) {
            snprintf(id, 32, "%.*s", (int)strspn(p + 6, "0123456789"), p + 6);
            standing = strstr(p, "\"name\"") == NULL        ? ADDED
                       : strstr(p, "\"isLearner\"") != NULL ? LEARNER
                                                            : VOTER;
        }
        p = end + 1;
    }
    free(list);
    return standing;
}

/* The same without its id. */
static enum standing standing(int port) {
    char id[32];

    return standing_of(port, id);
}

/* How many members etcd has. */
static size_t members_count(void) {
    char *list = etcd_list();
    size_t n = text_count(list, "\"ID\":\"");

    free(list);
    return n;
}

/* Has etcd do something with a member, which it may have to be asked again and
   again: it wants all that vote to have been connected for five seconds. */
static void member_change(const char *what, const char *body) {
    char path[64], *answer = NULL;
    long until = now_ms() + LIMIT_MS;

    snprintf(path, sizeof path, "/v3/cluster/member/%s", what);
    while ((answer = etcd_ask(path, body)) == NULL && now_ms() < until)
        pause_ms(100);
    check(answer != NULL, "etcd refuses %s %s", path, body);
    free(answer);
}

/* Takes the member of a peer port out, if it is there. */
static void member_remove(int port) {
    char id[32], body[64];

    if (standing_of(port, id) == ABSENT)
        return;
    snprintf(body, sizeof body, "{\"ID\":\"%s\"}", id);
    member_change("remove", body);
    check(standing(port) == ABSENT, "port %d is %s", port,
          standings[standing(port)]);
}

/* ---- Nodes ----------------------------------------------------------- */

/* Makes the cluster of three and waits for it. */
static int cluster_begin(void **state) {
    char members[256] = "";
    size_t n = 0;

    (void)state;
    for (int i = 0; i < NODES; i++) {
        etcd_peer[i] = port_pair();
        n += (size_t)snprintf(members + n, sizeof members - n,
                              "%snode%d=http://127.0.0.1:%d", i ? "," : "",
                              i + 1, etcd_peer[i]);
    }
    for (int i = 0; i < NODES; i++) {
        char name[16];
        int port = port_pair();

        snprintf(name, sizeof name, "node%d", i + 1);
        nodes[i] = server_new(name);
        server_args(nodes[i],
                    "-name %s -port %d -peerPort %d -partitions 16 "
                    "-initialCluster %s",
                    name, port, port - 1, members);
        server_start(nodes[i]);
    }
    for (int i = 0; i < NODES; i++)
        server_ready(nodes[i]);
    return 0;
}

/* Words of a node that joins: two of the three are enough to find etcd. */
static void joiner_args(struct server *s, const char *name, int port) {
    server_args(s,
                "-name %s -port 0 -peerPort 0 -partitions 16 -add "
                "-initialCluster node2=http://127.0.0.1:%d,"
                "%s=http://127.0.0.1:%d,node1=http://127.0.0.1:%d",
                name, etcd_peer[1], name, port, etcd_peer[0]);
}

/* Whether a process that was started has ended; its exit code then. */
static bool ended(struct server *s, int *code) {
    int status;

    if (waitpid(s->pid, &status, WNOHANG) != s->pid)
        return false;
    *code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    s->pid = 0;
    return true;
}

/* Waits until the member of a node is one that votes. The node may be refused
   by the ring after that, with exit code 2, but must not end before. */
static void voter_wait(struct server *s, int port) {
    long until = now_ms() + 2 * LIMIT_MS;
    int code = -1;

    while (standing(port) != VOTER) {
        if (s->pid > 0 && ended(s, &code))
            check(code == 2, "%s ended with %d", s->name, code);
        check(now_ms() < until, "%s is %s in etcd", s->name,
              standings[standing(port)]);
        pause_ms(20);
    }
}

/* Ends a node that joined as kill -9 does, with its etcd. */
static void joiner_kill(struct server *s) {
    if (s->pid > 0) {
        kill(s->pid, SIGKILL);
        process_wait(s->pid, LIMIT_MS);
        s->pid = 0;
    }
    server_clean(s);
    wait_until(processes_count(s->dir) == 0, LIMIT_MS, "%s has not ended",
               s->name);
}

/* Checks that a word is in a node's log since its last start. */
static bool said(const struct server *s, const char *word) {
    char *log = server_log(s);
    bool found = strstr(log, word) != NULL;

    free(log);
    return found;
}

/* ---- The tests ------------------------------------------------------- */

/* Who cannot join, and the line that says why. */
static void test_refused(void **state) {
    struct output o = {0};
    char dir[MAX_PATH + 16];

    (void)state;
    snprintf(dir, sizeof dir, "%s/unused", the_run.dir);
    part("-add without a cluster, or with nobody to ask");
    run(&o, "%s -dataPath %s -port 0 -peerPort 0 -add", the_run.exe, dir);
    check_refused(&o, 2, "-add");
    run(&o,
        "%s -dataPath %s -port 0 -peerPort 0 -name node4 -add "
        "-initialCluster node4=http://127.0.0.1:%d",
        the_run.exe, dir, port_pair());
    check_refused(&o, 2, "-add");
    check(file_size(dir) < 0, "made a directory");
    part("a name that is live");
    run(&o,
        "%s -dataPath %s -port 0 -peerPort 0 -name node2 -add "
        "-initialCluster node2=http://127.0.0.1:%d,x=http://127.0.0.1:%d",
        the_run.exe, dir, port_pair(), etcd_peer[0]);
    check_refused(&o, 1, "node2 is already live");
    check(members_count() == NODES, "%zu members", members_count());
}

/* A signal ends the wait. */
static void test_signal(void **state) {
    struct server *s = server_new("signal");
    int port = port_pair();

    (void)state;
    server_args(s,
                "-name signal -port %d -peerPort %d -add -initialCluster "
                "signal=http://127.0.0.1:%d,node1=http://127.0.0.1:%d",
                port, port - 1, port_pair(), port_pair());
    server_start(s);
    wait_until(!port_silent(port), LIMIT_MS, "it does not start");
    pause_ms(1000);
    server_stop(s);
}

/* A node that has lost its etcd's data comes back: its dead member is taken
   out, and it has a new one. */
static void test_lost_disk(void **state) {
    struct server *s = nodes[2];
    struct output o = {0};
    char old[32], id[32];

    (void)state;
    check(standing_of(etcd_peer[2], old) == VOTER, "not a voter");
    joiner_kill(s);
    run(&o, "rm -rf %s/etcd", s->dir);
    output_free(&o);
    server_args(s, "-add");
    server_start(s);
    server_ready(s);
    check(standing_of(etcd_peer[2], id) == VOTER, "not a voter again");
    check(strcmp(old, id) != 0, "the member is the same, %s", id);
    check(members_count() == NODES, "%zu members", members_count());
    part("and once more, with all its data");
    server_stop(s);
    server_start(s);
    server_ready(s);
    check(standing_of(etcd_peer[2], old) == VOTER && strcmp(old, id) == 0,
          "another member");
}

/* The second word of a clock's file: seconds added to the monotonic clock. */
static int64_t *skew_make(char path[MAX_PATH + 16]) {
    int fd;
    void *p;

    snprintf(path, MAX_PATH + 16, "%.400s/skew", the_run.dir);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    check(fd >= 0 && ftruncate(fd, 16) == 0, "%s", path);
    p = mmap(NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    check(p != MAP_FAILED, "cannot map %s", path);
    close(fd);
    return (int64_t *)p + 1;
}

/* A learner that was added and does not start is taken out after 30 s, which
   pass in a moment. A node whose own member was taken out while it was down
   sets its data aside and comes anew. */
static void test_stale(void **state) {
    const char *options = getenv("ASAN_OPTIONS");
    struct server *s = server_plain("node4", "env");
    int port = port_pair(), stale = port_pair();
    char path[MAX_PATH + 16], exe[MAX_PATH], body[100], id[32], old[32];
    int64_t *seconds = skew_make(path);

    (void)state;
    snprintf(exe, sizeof exe, "%s",
             getenv("ESTORAJE") != NULL ? getenv("ESTORAJE") : "./estoraje");
    if (strstr(exe, "/asan/") == NULL)
        skip(); /* the library is where that build is */
    strcpy(strstr(exe, "/asan/"), "/test/skew.so");
    server_args(s,
                "LD_PRELOAD=%s SKEW=%s "
                "ASAN_OPTIONS=%s:verify_asan_link_order=0 %s -dataPath %s",
                exe, path, options != NULL ? options : "", the_run.exe, s->dir);
    joiner_args(s, "node4", port);

    part("another was added, and does not start");
    snprintf(body, sizeof body,
             "{\"peerURLs\":[\"http://127.0.0.1:%d\"],\"isLearner\":true}",
             stale);
    member_change("add", body);
    check(standing(stale) == ADDED, "%s", standings[standing(stale)]);
    server_start(s);
    pause_ms(3000);
    check(standing(stale) == ADDED, "%s", standings[standing(stale)]);
    check(standing(port) == ABSENT, "%s", standings[standing(port)]);
    for (long until = now_ms() + LIMIT_MS; standing(stale) != ABSENT;) {
        check(now_ms() < until, "it is still there");
        *seconds += 31; /* again, where it had not begun to wait */
        for (long next = now_ms() + LIMIT_MS / 6;
             now_ms() < next && standing(stale) != ABSENT;)
            pause_ms(20);
    }
    voter_wait(s, port);
    check(said(s, "does not run"), "no word of it");
    check(members_count() == NODES + 1, "%zu members", members_count());

    part("a member that was taken out while it was down");
    standing_of(port, old);
    joiner_kill(s);
    member_remove(port);
    server_start(s);
    voter_wait(s, port);
    check(said(s, "joins anew"), "no word of it");
    check(standing_of(port, id) == VOTER && strcmp(id, old) != 0,
          "the member is the same, %s", id);
    joiner_kill(s);
    member_remove(port);
}

/* A node that is killed at any moment of its join gets there in the end, with
   one member. */
static void test_killed(void **state) {
    struct server *s = server_new("node5");
    int port = port_pair(), rounds = torture() ? 40 : 4;
    uint64_t seed = the_run.random;

    (void)state;
    joiner_args(s, "node5", port);
    part("seed %llu", (unsigned long long)seed);
    for (int round = 0; round < rounds; round++) {
        server_start(s);
        wait_until(standing(port) != ABSENT, LIMIT_MS, "not added");
        for (long until = now_ms() + (long)(random_next(&seed) % 500);
             now_ms() < until && standing(port) != VOTER;)
            pause_ms(10);
        part("killed when %s", standings[standing(port)]);
        joiner_kill(s);
        if (standing(port) == VOTER)
            member_remove(port);
    }
    server_start(s);
    voter_wait(s, port);
    check(members_count() == NODES + 1, "%zu members", members_count());
    joiner_kill(s);
    member_remove(port);
}

/* Three who come at once are let in one after the other. */
static void test_together(void **state) {
    struct server *s[3];
    int port[3], code = 0;

    (void)state;
    for (int i = 0; i < 3; i++) {
        char name[16];

        snprintf(name, sizeof name, "node%d", 6 + i);
        s[i] = server_new(name);
        port[i] = port_pair();
        joiner_args(s[i], name, port[i]);
        server_start(s[i]);
    }
    for (long until = now_ms() + 4 * LIMIT_MS; members_count() < NODES + 3;) {
        for (int i = 0; i < 3; i++)
            if (ended(s[i], &code)) {
                check(code == 2, "%s ended with %d", s[i]->name, code);
                part("skipped: the ring takes nobody yet");
                skip();
            }
        check(now_ms() < until, "%zu members", members_count());
        pause_ms(50);
    }
    for (int i = 0; i < 3; i++)
        voter_wait(s[i], port[i]);
}

/* Has the third node, which does not answer, removed, and its etcd with it. */
static void removed_delete(struct client *c) {
    struct client admin = client_make(nodes[0]->port - 1);

    wait_until(client_text(c, "GET", "/_cluster_status", NULL) == 200 &&
                   text_count(c->body, "\"alive\":false") > 0,
               LIMIT_MS, "%s", c->body);
    wait_until(client_text(&admin, "DELETE", "/_nodes/delete/node3", NULL) ==
                   202,
               LIMIT_MS, "%s", admin.body);
    wait_until(client_text(c, "GET", "/_cluster_status", NULL) == 200 &&
                   strstr(c->body, "\"node3\"") == NULL,
               LIMIT_MS, "%s", c->body);
    wait_until(standing(etcd_peer[2]) == ABSENT, LIMIT_MS, "%s",
               standings[standing(etcd_peer[2])]);
    client_end(&admin);
}

/* Waits until it answers that it has left; whether it had another answer to a
   read than 503 before. */
static bool removed_says(struct server *s) {
    struct client c = client_make(s->port);
    bool answered = false;

    wait_until(said(s, "has left the cluster"), LIMIT_MS, "not said");
    for (long until = now_ms() + LIMIT_MS;; pause_ms(5)) {
        answered |= client_text(&c, "GET", "/removed", NULL) != 503;
        if (c.status == 503 && strstr(c.body, "has left the cluster") != NULL)
            break;
        check(now_ms() < until, "%d %s", c.status, c.body);
    }
    check(status_of(s->port, "GET", "/_ready") == 503, "it is ready");
    client_end(&c);
    return answered;
}

/* A node of the first three is removed while it is down, or stands still, and
   its etcd with it. When it is back it serves nothing that may be old, though no
   etcd tells it so; started with -add it joins anew. */
static void test_removed(void **state) {
    struct server *s = nodes[2];
    struct client c = client_make(nodes[0]->port);
    struct client back = client_make(s->port);
    static const char get[] = "GET /removed HTTP/1.1\r\nHost: x\r\n\r\n";

    (void)state;
    check(client_text(&c, "PUT", "/removed", "old") == 201, "%d", c.status);
    server_kill(s);
    removed_delete(&c);
    check(client_text(&c, "PUT", "/removed", "new") == 204, "%d", c.status);

    part("it is back");
    if (strcmp(s->argv[s->argc - 1], "-add") == 0) /* of test_lost_disk */
        s->argv[--s->argc] = NULL;
    server_start(s);
    check(!removed_says(s), "it has answered a read");
    server_stop(s);

    part("with -add");
    s->argv[s->argc++] = (char *)"-add";
    server_start(s);
    server_ready(s);
    wait_until(client_text(&back, "GET", "/removed", NULL) == 200 &&
                   strcmp(back.body, "new") == 0,
               LIMIT_MS, "%d %s", back.status, back.body);

    part("it stands still meanwhile");
    kill(s->pid, SIGSTOP);
    removed_delete(&c);
    check(client_text(&c, "PUT", "/removed", "newer") == 204 &&
              client_send(&back, get, sizeof get - 1),
          "%d", c.status);
    kill(s->pid, SIGCONT);
    check(client_read(&back, false) == 503, "%d %s", back.status, back.body);
    removed_says(s);
    server_stop(s);
    client_end(&c);
    client_end(&back);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused),   cmocka_unit_test(test_signal),
        cmocka_unit_test(test_lost_disk), cmocka_unit_test(test_stale),
        cmocka_unit_test(test_killed),    cmocka_unit_test(test_together),
        cmocka_unit_test(test_removed),
    };

    run_begin(1200);
    return run_result(
        cmocka_run_group_tests(tests, cluster_begin, servers_end));
}
