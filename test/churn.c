/* churn.c - nodes that come, go, and are replaced, seen from outside

   Real processes with an etcd of their own that changes of the ring are made
   in. Clients record histories while nodes join, leave, lose their disks, are
   killed, stopped and restarted; the logs of all nodes are read at each step
   of a change, for how many disks have what was acknowledged; and the chain
   of epochs is read from etcd, which keeps all that a key ever was.

   What is chosen by chance follows from a seed that is printed; SEED=n is
   that run again, as far as processes can do anything again. TORTURE=1 asks
   for a hundred cycles, ONLY=test_name for one test. */

#include "stories.h"

#include <limits.h>

enum {
    MEMBERS_LEAST = REPLICAS,
    MEMBERS_MOST = 6,
    LEASE_MS = 5000,
    RING_TEXT = 8192
};

/* ---- etcd, and what it says of the ring ------------------------------ */

static struct server *etcd;
static int etcd_port;

/* Starts an etcd, the one from before if there was one. */
static void etcd_start(void) {
    if (etcd == NULL) {
        int port = port_pair();

        etcd = server_plain("etcd", "etcd");
        etcd_port = port - 1;
        server_args(etcd,
                    "--data-dir %s --name e --initial-cluster "
                    "e=http://127.0.0.1:%d --initial-advertise-peer-urls "
                    "http://127.0.0.1:%d --listen-peer-urls "
                    "http://127.0.0.1:%d --listen-client-urls "
                    "http://127.0.0.1:%d --advertise-client-urls "
                    "http://127.0.0.1:%d --unsafe-no-fsync",
                    etcd->dir, port, port, port, port - 1, port - 1);
    }
    server_start(etcd);
    wait_until(status_of(etcd_port, "GET", "/health") == 200, LIMIT_MS,
               "etcd does not become healthy");
}

/* Ends it; how it says goodbye is its own affair. */
static void etcd_end(void) {
    kill(etcd->pid, SIGKILL);
    process_wait(etcd->pid, LIMIT_MS);
    etcd->pid = 0;
}

/* A ring as etcd had it. The lists of members are as its text has them. */
struct seen {
    unsigned long long epoch, revision, created;
    char text[RING_TEXT];
    char members[RING_TEXT], next[RING_TEXT]; /* "" while no change runs */
};

/* Decodes base64 up to the quote that ends it. */
static void base64_decode(const char *from, char *to, size_t room) {
    static const char digits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned bits_held = 0, count = 0;
    size_t n = 0;

    for (; *from != '"' && *from != '=' && *from != '\0'; from++) {
        const char *digit = strchr(digits, *from);

        check(digit != NULL, "no base64: %.40s", from);
        bits_held = bits_held << 6 | (unsigned)(digit - digits);
        count += 6;
        if (count < 8)
            continue;
        count -= 8;
        check(n + 1 < room, "more than %zu bytes", room);
        to[n++] = (char)(bits_held >> count & 0xFF);
    }
    to[n] = '\0';
}

/* The number in a text behind a word, which must be there if asked for. */
static unsigned long long number_after(const char *text, const char *word) {
    const char *p = strstr(text, word);

    check(p != NULL, "no %s in %s", word, text);
    return strtoull(p + strlen(word), NULL, 10);
}

/* Copies what stands between two words, "" when they are not there. */
static void text_between(const char *text, const char *from, const char *to,
                         char *out) {
    const char *p = strstr(text, from), *end;

    out[0] = '\0';
    if (p == NULL)
        return;
    p += strlen(from);
    end = strstr(p, to);
    snprintf(out, RING_TEXT, "%.*s", (int)(end != NULL ? end - p : 0), p);
}

/* Reads the ring from etcd, as it was at a revision (0: as it is); false when
   there was none. */
static bool ring_seen(struct seen *seen, unsigned long long revision) {
    struct client c = client_make(etcd_port);
    char ask[128];
    const char *value;

    memset(seen, 0, sizeof *seen);
    snprintf(ask, sizeof ask,
             "{\"key\":\"c3Ryal9yaW5n\",\"revision\":\"%llu\"}", revision);
    check(client_text(&c, "POST", "/v3/kv/range", ask) == 200, "etcd: %d %s",
          c.status, c.body != NULL ? c.body : "");
    json_squeeze(c.body);
    value = strstr(c.body, "\"value\":\"");
    if (value != NULL) {
        seen->revision = number_after(c.body, "\"mod_revision\":\"");
        seen->created = number_after(c.body, "\"create_revision\":\"");
        base64_decode(value + 9, seen->text, sizeof seen->text);
        seen->epoch = number_after(seen->text, "\"epoch\":\"");
        text_between(seen->text, "\"members\":[", "]", seen->members);
        text_between(seen->text, "\"next\":[", "]", seen->next);
    }
    client_end(&c);
    return value != NULL;
}

/* How many members a list has. */
static size_t list_count(const char *list) {
    return text_count(list, "{\"name\":");
}

/* Whether all members of a list are in another one. */
static bool list_within(const char *list, const char *other) {
    char member[RING_TEXT];

    for (; (list = strstr(list, "{\"name\":")) != NULL; list++) {
        snprintf(member, sizeof member, "%.*s", (int)strcspn(list, "}"), list);
        if (strstr(other, member) == NULL)
            return false;
    }
    return true;
}

/* Checks that a ring follows from the one before: a change begins, or ends
   with the new members, or the old ones, or somebody is forced out. */
static void chain_step(const struct seen *before, const struct seen *after) {
    bool good;

    if (after->next[0] != '\0')
        good = before->next[0] == '\0' &&
               strcmp(after->members, before->members) == 0;
    else if (before->next[0] != '\0')
        good = strcmp(after->members, before->next) == 0 ||
               list_within(after->members, before->members);
    else
        good = list_within(after->members, before->members) &&
               list_count(after->members) < list_count(before->members);
    check(good && after->epoch == before->epoch + 1,
          "a ring that does not follow: %s\nafter %s", after->text,
          before->text);
}

/* Checks all rings that there ever were, from the newest back; how many. */
static size_t chain_check(void) {
    static struct seen after, before;
    size_t n = 1;

    check(ring_seen(&after, 0), "no ring in etcd");
    for (; after.revision > after.created; n++) {
        check(ring_seen(&before, after.revision - 1), "no ring at %llu",
              after.revision - 1);
        chain_step(&before, &after);
        after = before;
    }
    check(after.epoch == 1, "the first ring has epoch %llu", after.epoch);
    return n;
}

/* ---- Nodes ----------------------------------------------------------- */

/* Prepares so many nodes, none of which is started or a member. */
static void nodes_make(int count, int partitions, const char *flags) {
    node_count = count;
    for (int i = 0; i < count; i++) {
        int port = port_pair();
        char name[16];

        snprintf(name, sizeof name, "n%d", i + 1);
        nodes[i] = server_new(name);
        nodes[i]->port = port;
        nodes[i]->peer = port - 1;
        server_args(nodes[i],
                    "-name %s -port %d -peerPort %d -partitions %d "
                    "-etcd http://127.0.0.1:%d %s",
                    name, port, port - 1, partitions, etcd_port, flags);
        atomic_store(&outside[i], true);
    }
}

/* Makes a node's next start one with -add, or one without. */
static void node_adds(struct server *s, bool add) {
    bool has = strcmp(s->argv[s->argc - 1], "-add") == 0;

    if (add && !has)
        server_args(s, "-add");
    else if (!add && has)
        s->argv[--s->argc] = NULL;
}

/* Removes a node's data directory, as if its disk had been lost. */
static void node_wipe(const struct server *s) {
    marks_remove(s->dir);
    command("rm -rf %s", s->dir);
}

/* Whether the log of a node's last start has a text. */
static bool node_said(const struct server *s, const char *text) {
    char *log = server_log(s);
    bool said = strstr(log, text) != NULL;

    free(log);
    return said;
}

/* Asks for the removal of a node at the peer port of another one, whose answer
   must be this status, with this word in it. */
static void node_remove(const struct server *at, const char *name,
                        const char *query, int status, const char *word) {
    struct client c = client_make(at->peer);
    char target[64];

    snprintf(target, sizeof target, "/_nodes/delete/%s%s", name, query);
    wait_until(client_text(&c, "DELETE", target, NULL) != 503, LIMIT_MS,
               "etcd does not answer");
    check(c.status == status && strstr(c.body, word) != NULL,
          "DELETE %s at %s: %d %s", target, at->name, c.status,
          c.body != NULL ? c.body : "");
    client_end(&c);
}

/* How many nodes are members, as far as this program has made them so. */
static int members_count(void) {
    int n = 0;

    for (int i = 0; i < node_count; i++)
        n += !atomic_load(&outside[i]);
    return n;
}

/* Whether a node says that all members are Ready and out of doubt in an epoch,
   and each partition has all its owners. */
static bool node_content(const struct server *s, int members,
                         unsigned long long epoch) {
    struct client c = client_make(s->port);
    unsigned long long owned = 0, partitions, n = (unsigned long long)members;
    bool content = false;

    c.limit_ms = 5000;
    if (client_text(&c, "GET", "/_cluster_status", NULL) == 200) {
        const char *p = json_squeeze(c.body);

        partitions = number_after(p, "\"partitions\":");
        content = number_after(p, "\"epoch\":") == epoch &&
                  text_count(p, "\"status\":\"Ready\"") == n &&
                  text_count(p, "\"in_doubt\":0") == n;
        for (p = strstr(p, "\"nodes\":");
             (p = strstr(p, "\"partitions\":")) != NULL; p++)
            owned += strtoull(p + 13, NULL, 10);
        content =
            content && owned == partitions * (n < REPLICAS ? n : REPLICAS);
    }
    client_end(&c);
    return content;
}

/* Whether a node says that so many others are Down. */
static bool node_says_down(const struct server *s, size_t count) {
    struct client c = client_make(s->port);
    bool says = client_text(&c, "GET", "/_cluster_status", NULL) == 200 &&
                text_count(json_squeeze(c.body), "\"Down\"") == count;

    client_end(&c);
    return says;
}

/* Whether no change runs and all members are content. */
static bool cluster_is_whole(void) {
    static struct seen seen;
    int members = members_count();

    if (!ring_seen(&seen, 0) || seen.next[0] != '\0' ||
        list_count(seen.members) != (size_t)members)
        return false;
    for (int i = 0; i < node_count; i++)
        if (!atomic_load(&outside[i]) &&
            !node_content(nodes[i], members, seen.epoch))
            return false;
    return true;
}

/* Waits for that. */
static void cluster_settle(void) {
    static struct seen seen;

    for (long until = now_ms() + LIMIT_MS; !cluster_is_whole(); pause_ms(20)) {
        if (now_ms() < until)
            continue;
        ring_seen(&seen, 0);
        check(false, "not all %d members Ready, with all partitions; %s",
              members_count(), seen.text);
    }
}

/* Starts a node that joins, and waits until it has. */
static void node_join(int i) {
    node_adds(nodes[i], true);
    again(nodes[i]);
    atomic_store(&outside[i], false);
}

/* Makes a cluster of the first nodes: one founds it, the others join. */
static void cluster_begin(int count) {
    again(nodes[0]);
    node_adds(nodes[0], true);
    for (int i = 1; i < count; i++) {
        node_adds(nodes[i], true);
        server_start(nodes[i]);
    }
    for (int i = 0; i < count; i++) {
        server_ready(nodes[i]);
        atomic_store(&outside[i], false);
    }
    cluster_settle();
}

/* Ends all processes, and forgets them; a cmocka teardown. */
static int cluster_end(void **state) {
    cluster_continue();
    actors_join(state);
    actor_failed = NULL;
    actors_rest = 0;
    servers_end(state);
    etcd = NULL;
    return 0;
}

/* ---- Churn under histories ------------------------------------------- */

/* Until when (now_ms()) a node's requests may fail; LONG_MAX: they may now. */
static atomic_long trouble[NODES_MAX];

/* The last time that a node was hit, and until when others may not have
   noticed: what they have asked of it for clients is in flight there. */
static atomic_long hit_at, hit_until;
static atomic_long change_at, change_until; /* of the last change of the ring */

/*
 * What has failed, and by the design may:
 * there    at a node that is down, starts, or has left;
 * leaving  a consistent write that a node was doing when it left, and that some
 *          owners may have: no owner takes a vote from who is no member. All
 *          else it passes on to one;
 * flying   a consistent operation that another node was doing when it was
 *          killed or stopped still, or when it went on after that: whether it
 *          was done nobody can say;
 * late     the client did not wait for long;
 * met      a consistent write to a key that plain ones write, too: one that was
 *          cut short and then replaced cannot know whether it was seen, 504 on
 *          any day;
 * crossed  likewise, where two owners did operations on one key, since the
 *          first owner is another one by another epoch: once a cycle at most;
 * count    what should not have failed. No plain operation is forgiven, and no
 *          503: of three owners two are there in each cycle.
 */
static struct {
    atomic_size_t there, leaving, flying, late, met, crossed, count;
    char error[400]; /* the first */
} blame;

static atomic_int leaver = -1; /* the node that is to leave now */

/* A client's request failed at a node: was that to be expected? */
static void blame_note(int node, const struct client *c, const struct asked *q,
                       long begun) {
    bool consistent = q != NULL && q->op.consistent;
    long now = now_ms();

    if (trouble[node] >= begun ||
        (c != NULL && c->status == 503 &&
         strstr(c->body, "has left the cluster") != NULL))
        atomic_fetch_add(&blame.there, 1);
    else if (consistent && c->status == 504 && node == leaver)
        atomic_fetch_add(&blame.leaving, 1);
    else if (c != NULL && c->status <= 0 && now - begun >= c->limit_ms)
        atomic_fetch_add(&blame.late, 1);
    else if (consistent && begun <= hit_until && now >= hit_at)
        atomic_fetch_add(&blame.flying, 1);
    else if (consistent && c->status == 504 && q->target[1] == 'm')
        atomic_fetch_add(&blame.met, 1);
    else if (consistent && c->status == 504 && begun <= change_until &&
             now >= change_at)
        atomic_fetch_add(&blame.crossed, 1);
    else if (atomic_fetch_add(&blame.count, 1) == 0)
        snprintf(blame.error, sizeof blame.error,
                 "%s %s at %s, %ld to %ld: %d %.200s",
                 q != NULL ? q->method : "connect", q != NULL ? q->target : "",
                 nodes[node]->name, begun, now, c != NULL ? c->status : -1,
                 c != NULL && c->body != NULL ? c->body : "");
}

/* A node is about to be hit. */
static void hit_begin(void) {
    atomic_store(&hit_until, LONG_MAX);
    atomic_store(&hit_at, now_ms());
}

/* It has been: for so long others may not have noticed. */
static void hit_end(long ms) {
    atomic_store(&hit_until, now_ms() + ms);
}

/* Kills a node, and waits until the others know: what they ask of it before may
   be lost on the way. */
static void hit_kill(int i) {
    server_kill(nodes[i]);
    for (int j = 0; j < node_count; j++)
        if (j != i && nodes[j]->pid > 0 && !atomic_load(&outside[j]))
            wait_until(!status_says(nodes[j], nodes[i], "\"alive\":true"),
                       LIMIT_MS, "%s has not noticed", nodes[j]->name);
    hit_end(0);
}

enum cycle { JOIN, LEAVE, REPLACE, KILL, STOP, RESTART, CYCLES };
static const char *const cycle_names[CYCLES] = {
    "joins", "leaves", "is replaced", "is killed", "rests", "restarts"};

/* A node, by chance: a member, or one that is none. */
static int node_choose(uint64_t *seed, bool member) {
    int i;

    do
        i = (int)between(seed, 0, node_count - 1);
    while (atomic_load(&outside[i]) == member);
    return i;
}

/* Kills a node while others change the ring, and starts it again. */
static void cycle_disturb(int i, long ms) {
    pause_ms(ms / 10);
    atomic_store(&trouble[i], LONG_MAX);
    hit_begin();
    hit_kill(i);
    again(nodes[i]);
    atomic_store(&trouble[i], now_ms());
}

/* A node joins; another one may be killed meanwhile. */
static void cycle_join(int i, int disturbed, long ms) {
    node_adds(nodes[i], true);
    server_start(nodes[i]);
    if (disturbed >= 0)
        cycle_disturb(disturbed, ms);
    server_ready(nodes[i]);
    atomic_store(&outside[i], false);
}

/* Removes a node, asking another one, which may be killed then, and stops it
   once it may be. */
static void cycle_leave(int i, int other, bool disturbed, long ms) {
    struct server *s = nodes[i];

    atomic_store(&leaver, i);
    node_remove(nodes[other], s->name, "", 202, s->name);
    if (disturbed)
        cycle_disturb(other, ms);
    wait_until(status_of(s->port, "GET", "/_ready") == 503 &&
                   node_said(s, "it may be stopped"),
               LIMIT_MS, "%s does not get away", s->name);
    atomic_store(&outside[i], true);
    atomic_store(&trouble[i], LONG_MAX);
    atomic_store(&leaver, -1);
    server_stop(s);
}

/* One cycle, from its begin until all is well again. */
static void cycle_run(enum cycle cycle, uint64_t *seed) {
    int i = node_choose(seed, cycle != JOIN), other;
    struct server *s = nodes[i];
    long ms = between(seed, 300, torture() ? 4000 : 1500);
    bool chance = between(seed, 0, 3) == 0;
    bool disturbed = torture() && between(seed, 0, 2) == 0;

    do
        other = node_choose(seed, true);
    while (other == i);
    part("%s %s%s", s->name, cycle_names[cycle],
         disturbed && cycle <= LEAVE ? ", and another one is killed" : "");
    if (cycle != LEAVE)
        atomic_store(&trouble[i], LONG_MAX);
    if (cycle == KILL || cycle == STOP || (cycle == REPLACE && !chance))
        hit_begin();
    if (cycle <= REPLACE) {
        atomic_store(&change_until, LONG_MAX);
        atomic_store(&change_at, now_ms());
    }
    switch (cycle) {
    case JOIN:
        if (chance)
            node_wipe(s);
        cycle_join(i, disturbed ? other : -1, ms);
        break;
    case LEAVE:
        cycle_leave(i, other, disturbed, ms);
        break;
    case REPLACE:
        if (chance) {
            server_stop(s);
        } else {
            hit_kill(i);
        }
        node_wipe(s);
        again(s);
        break;
    case KILL:
        hit_kill(i);
        pause_ms(ms / 3);
        again(s);
        break;
    case STOP:
        kill(s->pid, SIGSTOP);
        hit_end(BOUND_MS);
        pause_ms(chance ? LEASE_MS + ms : ms);
        hit_begin(); /* it goes on with what it was doing, and others do that */
        kill(s->pid, SIGCONT);
        cluster_settle(); /* first of all it has heard nobody for so long */
        hit_end(0);
        break;
    case RESTART:
        server_stop(s);
        again(s);
        break;
    case CYCLES:
        break;
    }
    if (!atomic_load(&outside[i]))
        atomic_store(&trouble[i], now_ms());
    cluster_settle();
    atomic_store(&change_until, now_ms());
    pause_ms(ms / 4);
}

/* The next cycle: each kind comes once before one comes again, as far as the
   number of members allows it. */
static enum cycle cycle_choose(uint64_t *seed, enum cycle order[CYCLES],
                               size_t number) {
    enum cycle cycle;

    for (int i = 0; number % CYCLES == 0 && i < CYCLES; i++) {
        int k = (int)between(seed, 0, i);

        order[i] = order[k];
        order[k] = (enum cycle)i;
    }
    cycle = order[number % CYCLES];
    if (cycle == JOIN && members_count() == MEMBERS_MOST)
        return LEAVE;
    return cycle == LEAVE && members_count() == MEMBERS_LEAST ? JOIN : cycle;
}

/* Ends the clients, and checks what they have seen and what the logs have. */
static void stories_end(void) {
    void *state = NULL;

    actors_join(&state);
    cluster_settle();
    for (int i = 0; i < MODES; i++)
        story_read_back(&stories[i]);
    for (size_t i = 0; i < MODES * ACTORS; i++)
        actor_end(&actors[i]);
    for (int i = 0; i < MODES; i++)
        story_check(&stories[i]);
    replicas_check();
}

/* Begins stories whose failed requests are counted. */
static void stories_watched(uint64_t seed) {
    memset(&blame, 0, sizeof blame);
    for (int i = 0; i < node_count; i++)
        atomic_store(&trouble[i], 0);
    actor_failed = blame_note;
    hit_end(-1);
    stories_begin(seed);
}

/* Says what has failed in so many cycles, and checks that it had reasons. */
static void blame_check(size_t cycles) {
    part(
        "failed: %zu requests at nodes in trouble, %zu in flight at one that "
        "left, %zu at one that was hit, %zu that were not waited for, %zu that "
        "met plain writes, %zu another epoch's",
        (size_t)blame.there, (size_t)blame.leaving, (size_t)blame.flying,
        (size_t)blame.late, (size_t)blame.met, (size_t)blame.crossed);
    check(blame.crossed <= cycles && blame.leaving <= cycles * MODES * ACTORS,
          "too many of these");
    check(blame.count == 0, "%zu requests failed elsewhere, first: %s",
          (size_t)blame.count, blame.error);
}

/* Cycles under recorded histories: no violation, no request that fails without
   reason, and in the end all owners have the same. */
static void test_churn(void **state) {
    uint64_t seed = seed_said();
    size_t cycles = torture() ? 100 : 5;
    enum cycle order[CYCLES] = {JOIN};

    (void)state;
    etcd_start();
    nodes_make(MEMBERS_MOST, PARTITIONS, "");
    cluster_begin(4);
    stories_watched(seed);
    for (size_t i = 0; i < cycles; i++) {
        cycle_run(cycle_choose(&seed, order, i), &seed);
        if (i % 20 != 19 || i + 1 == cycles)
            continue;
        stories_end();
        blame_check(i);
        stories_begin(seed);
    }
    stories_end();
    blame_check(cycles);
    part("%zu rings, which follow from each other", chain_check());
}

/* ---- Many keys, with their own names as values ----------------------- */

/* Writes keys from one number to another through a node. */
static void keys_write(const struct server *s, int from, int to) {
    struct client c = client_make(s->port);
    char target[32];

    for (int k = from; k < to; k++) {
        snprintf(target, sizeof target, "/key/%d", k);
        check(client_text(&c, "PUT", target, target) / 100 == 2, "%s at %s: %d",
              target, s->name, c.status);
    }
    client_end(&c);
}

/* Checks that each member gives each key of so many its value. */
static void keys_check(int count) {
    for (int i = 0; i < node_count; i++) {
        struct client c = client_make(nodes[i]->port);
        char target[32];

        for (int k = 0; k < count && !atomic_load(&outside[i]); k++) {
            snprintf(target, sizeof target, "/key/%d", k);
            client_text(&c, "GET", target, NULL);
            check(c.status == 200 && strcmp(c.body, target) == 0,
                  "%s at %s: %d %s", target, nodes[i]->name, c.status,
                  c.body != NULL ? c.body : "");
        }
        client_end(&c);
    }
}

/* ---- Two disks ------------------------------------------------------- */

enum {
    DISK_NODES = 5,
    DISK_PARTITIONS = 8,
    DISK_KEYS = 60000,
    DISK_FIRST = 400, /* keys that are there before the change */
    DISK_LOOKS = 3    /* at the disks, during one change */
};

/* Writers of keys that are written once, and which of them are acknowledged. */
static struct {
    atomic_uchar acked[DISK_KEYS];
    atomic_int next;
    atomic_bool stop;
    atomic_size_t failed;
    pthread_t threads[2];
} disk;

/* What the disks of all nodes had at a time. */
struct look {
    unsigned char asked[DISK_KEYS]; /* acknowledged before it began */
    unsigned char have[DISK_KEYS];  /* bit i: node i has it */
    unsigned long long epoch;       /* in etcd, before it began */
};

/* Writes the next key through a node. */
static void disk_write(struct client *c) {
    int k = atomic_fetch_add(&disk.next, 1);
    char target[32], value[1000];

    snprintf(target, sizeof target, "/disk/%d", k);
    memset(value, 'v', sizeof value);
    if (client_ask(c, "PUT", target, NULL, value, sizeof value) == 201)
        atomic_store(&disk.acked[k], 1);
    else
        atomic_fetch_add(&disk.failed, 1);
}

/* Writes key after key through one node. */
static void *disk_main(void *arg) {
    struct client c = client_make(*(int *)arg);

    while (!atomic_load(&disk.stop) && disk.next + 2 < DISK_KEYS) {
        disk_write(&c);
        pause_ms(20);
    }
    client_end(&c);
    return NULL;
}

/* Copies the logs of all nodes as they are, from processes that write them. */
static void look_copy(struct look *look, int number) {
    static struct seen seen;

    ring_seen(&seen, 0);
    look->epoch = seen.epoch;
    for (int k = 0; k < DISK_KEYS; k++)
        look->asked[k] = disk.acked[k];
    for (int i = 0; i < node_count * DISK_PARTITIONS; i++) {
        char path[MAX_PATH + 32];
        size_t len;
        char *bytes;

        snprintf(path, sizeof path, "%s/%03d.log",
                 nodes[i / DISK_PARTITIONS]->dir, i % DISK_PARTITIONS);
        bytes = file_read(path, &len);
        if (bytes == NULL || len <= LOG_EMPTY) {
            free(bytes);
            continue;
        }
        snprintf(path, sizeof path, "%.400s/look-%d-%d.log", the_run.dir,
                 number, i);
        check(file_write(path, "wb", bytes, len), "%s", path);
        free(bytes);
    }
}

/* Whether the second field of a line of -dump is "ok". */
static bool line_ok(const char *line) {
    const char *tab = strchr(line, '\t');

    return tab != NULL && strncmp(tab, "\tok\t", 4) == 0;
}

/* Finds what the copies hold, and removes them: by a script, since a process
   for each takes a while. */
static void look_read(struct look *look, int number) {
    char path[MAX_PATH + 16], text[2 * MAX_PATH];
    struct output o = {.limit_ms = 2 * LIMIT_MS};
    int node = -1;

    memset(look->have, 0, sizeof look->have);
    snprintf(path, sizeof path, "%.400s/look.sh", the_run.dir);
    snprintf(text, sizeof text,
             "cd '%.400s'\nfor f in look-%d-*.log; do echo \"$f\"; "
             "./estoraje -dump $f; rm $f; done\n",
             the_run.dir, number);
    check(file_write(path, "wb", text, strlen(text)), "%s", path);
    run(&o, "sh %s", path);
    for (char *p = o.out, *next; *p != '\0'; p = next) {
        const char *key = strstr(p, "\tput\tdisk/");
        long k;

        next = p + strcspn(p, "\n");
        if (strncmp(p, "look-", 5) == 0) /* look-NUMBER-INDEX.log */
            node =
                (int)strtol(strchr(p + 5, '-') + 1, NULL, 10) / DISK_PARTITIONS;
        k = key != NULL && key < next && line_ok(p) ? strtol(key + 10, NULL, 10)
                                                    : -1;
        if (k >= 0 && k < DISK_KEYS)
            look->have[k] |= (unsigned char)(1u << node);
        next += *next != '\0';
    }
    output_free(&o);
}

/* How many keys that were acknowledged before a look are on fewer disks than
   so many. A log may go from one while another is copied to the next: what the
   look after that finds counts as well. */
static size_t look_short(const struct look *look, const struct look *after,
                         int disks, int *which) {
    size_t n = 0;

    for (int k = 0; k < DISK_KEYS; k++)
        if (look->asked[k] && bits(look->have[k] | after->have[k]) < disks) {
            *which = k;
            n++;
        }
    return n;
}

/* Whether a node tells how far a change is that runs, not only that it does. */
static bool node_says_far(const struct server *s) {
    struct client c = client_make(s->port);
    unsigned long long moving = 0, percent = 0, bytes = 0;
    bool says = client_text(&c, "GET", "/_cluster_status", NULL) == 200;

    if (says) {
        const char *p = json_squeeze(c.body);

        moving = number_after(p, "\"moving\":");
        bytes = number_after(p, "\"moved_bytes\":");
        percent = number_after(p, "\"percent\":");
        says = strstr(p, "\"seconds_left\":null") == NULL;
        check(moving > 0 || (!says && bytes == 0), "all is moved: %s", p);
    }
    client_end(&c);
    return says && bytes > 0 && percent > 0 && percent < 100;
}

/* Looks at the disks while a change runs, until it has ended. How many times a
   node told meanwhile how far it is; -1: the looks were too few. */
static int disks_watch(unsigned long long until_epoch) {
    static struct look looks[DISK_LOOKS];
    int n = 0, key = 0, told = 0;
    long until = now_ms() + (torture() ? 10 : 1) * LIMIT_MS; /* more data */

    do {
        told += node_says_far(nodes[0]);
        check(now_ms() < until, "the change does not end");
        if (n == DISK_LOOKS) { /* the last but one has seen enough */
            look_copy(&looks[n - 1], n - 1);
        } else {
            look_copy(&looks[n], n);
            n++;
        }
        pause_ms(10);
    } while (looks[n - 1].epoch < until_epoch);
    for (int i = 0; i < n; i++)
        look_read(&looks[i], i);
    for (int i = 0; i + 1 < n; i++) {
        size_t lost = look_short(&looks[i], &looks[i + 1], 2, &key);

        check(lost == 0, "epoch %llu: %zu keys on one disk or none: %d",
              looks[i].epoch, lost, key);
    }
    part("looked %d times, in epochs %llu to %llu", n, looks[0].epoch,
         looks[n - 1].epoch);
    return n >= DISK_LOOKS ? told : -1;
}

/* Waits until every key is on three disks. */
static void disks_rest(void) {
    static struct look look;
    long until = now_ms() + 2 * LIMIT_MS;
    int key = 0;
    size_t lost;

    cluster_settle();
    do {
        look_copy(&look, 0);
        look_read(&look, 0);
        lost = look_short(&look, &look, REPLICAS, &key);
        check(lost == 0 || now_ms() < until,
              "at rest %zu keys are not on three disks: %d", lost, key);
    } while (lost > 0);
}

/* A node leaves, and one joins, while clients write: what was acknowledged is
   on two disks at least at each step, and on three at rest. */
static void test_two_disks(void **state) {
    struct seen seen;
    struct client c;
    int told = 0, looked = 0, want = torture() ? 10 : 2;

    (void)state;
    etcd_start();
    nodes_make(DISK_NODES, DISK_PARTITIONS, "-moveRate 200K");
    cluster_begin(4);
    memset(&disk, 0, sizeof disk);
    c = client_make(nodes[0]->port);
    while (disk.next < DISK_FIRST)
        disk_write(&c);
    client_end(&c);
    check(disk.failed == 0, "%zu writes failed", (size_t)disk.failed);
    for (int i = 0; i < 2; i++)
        check(pthread_create(&disk.threads[i], NULL, disk_main,
                             &nodes[i]->port) == 0,
              "no thread");
    for (int change = 0; looked < want || told == 0 || change % 2 == 1;
         change++) {
        struct server *s = nodes[change % 2 == 0 ? 3 : 4];
        int n;

        check(change < 10 + want,
              "%d changes, in %d of them the disks were seen "
              "often, %d times a node told how far it is",
              change, looked, told);
        ring_seen(&seen, 0);
        part("%s %s", s->name, change % 2 == 0 ? "leaves" : "joins");
        if (change % 2 == 0) {
            node_remove(nodes[0], s->name, "", 202, s->name);
        } else {
            node_adds(s, true);
            server_start(s);
        }
        n = disks_watch(seen.epoch + 2);
        looked += n >= 0;
        told += n > 0 ? n : 0;
        if (change % 2 == 0)
            server_stop(s);
        else
            server_ready(s);
        atomic_store(&outside[s == nodes[3] ? 3 : 4], change % 2 == 0);
        cluster_settle();
        if (change % 2 == 1) { /* and the other way around */
            struct server *other = nodes[3];

            nodes[3] = nodes[4];
            nodes[4] = other;
            atomic_store(&outside[3], false);
            atomic_store(&outside[4], true);
        }
    }
    atomic_store(&disk.stop, true);
    for (int i = 0; i < 2; i++)
        pthread_join(disk.threads[i], NULL);
    check(disk.failed == 0, "%zu writes failed", (size_t)disk.failed);
    disks_rest();
    part("%d keys, at rest on three disks", (int)disk.next);
}

/* ---- Many join at once ----------------------------------------------- */

enum { JOIN_KEYS = 300 };

/* Starts nodes from one index to before another, all at once; one of them is
   killed at random points of its join, again and again. */
static void join_many(uint64_t *seed, int from, int to) {
    int i = (int)between(seed, from, to - 1);
    int times = torture() ? 30 : 4;

    for (int k = from; k < to; k++) {
        node_adds(nodes[k], true);
        server_start(nodes[k]);
    }
    for (int k = 0; k < times; k++) {
        pause_ms(between(seed, 0, 700));
        server_kill(nodes[i]);
        server_start(nodes[i]);
    }
    for (int k = from; k < to; k++) {
        server_ready(nodes[k]);
        atomic_store(&outside[k], false);
    }
    cluster_settle();
    part("%d at once, %s of them killed %d times", to - from, nodes[i]->name,
         times);
}

/* Two, then five nodes start at once, one of which does not get far. */
static void test_many_join(void **state) {
    uint64_t seed = seed_said();

    (void)state;
    etcd_start();
    nodes_make(NODES_MAX, PARTITIONS, "");
    again(nodes[0]);
    atomic_store(&outside[0], false);
    keys_write(nodes[0], 0, JOIN_KEYS);
    join_many(&seed, 1, 3);
    keys_write(nodes[1], JOIN_KEYS, 2 * JOIN_KEYS);
    join_many(&seed, 3, NODES_MAX);
    keys_check(2 * JOIN_KEYS);
    part("%zu rings, which follow from each other", chain_check());
}

/* ---- Nodes that are dead, or are removed ----------------------------- */

enum { DEAD_KEYS = 200 };

/* Checks that a start ends with an exit code and one line with a word. */
static void start_refused(const struct server *s, int code, const char *word) {
    struct output o = {0};
    char line[2048] = "";
    size_t n = 0;

    for (int i = 0; i < s->argc; i++)
        n += (size_t)snprintf(line + n, sizeof line - n, "%s ", s->argv[i]);
    run(&o, "%s", line);
    check(o.code == code && strstr(o.err, word) != NULL, "%s: %d, %s", s->name,
          o.code, o.err);
    output_free(&o);
}

/* A dead node is removed by way of another: the rest has all the data again. */
static void dead_remove(int i, int at, const char *query) {
    if (nodes[i]->pid > 0)
        server_kill(nodes[i]);
    node_remove(nodes[at], nodes[i]->name, query, 202, nodes[i]->name);
    atomic_store(&outside[i], true);
}

/* What a node that has left says to clients, and then to its operator. */
static void dead_says(struct server *s) {
    wait_until(node_said(s, "it may be stopped"), LIMIT_MS, "%s stays",
               s->name);
    check(status_of(s->port, "GET", "/_ready") == 503, "/_ready");
    check(status_of(s->port, "GET", "/key/1") == 503, "a GET");
    check(status_of(s->port, "PUT", "/key/1") == 503, "a PUT");
    check(status_of(s->port, "GET", "/key/1?consistent") == 503, "consistent");
    check(status_of(s->port, "GET", "/_health") == 200, "/_health");
    server_stop(s);
    node_adds(s, false);
    start_refused(s, 2, "-add");
}

/* Whether a node's process has ended by itself. */
static bool node_ended(struct server *s) {
    if (process_wait(s->pid, 0) < 0)
        return false;
    s->pid = 0;
    return true;
}

/* A node that joins serves as soon as the ring names it: it does not say that
   it is starting, but asks who is there. It is stopped, and removed. */
static void dead_joiner(int i) {
    static struct seen seen;

    node_adds(nodes[i], true);
    server_start(nodes[i]);
    wait_until(ring_seen(&seen, 0) &&
                   (seen.next[0] != '\0' || server_said_ready(nodes[i])),
               LIMIT_MS, "%s does not join", nodes[i]->name);
    check(status_of(nodes[i]->peer, "POST", "/_peer/heartbeat") == 403,
          "%s does not serve", nodes[i]->name);
    kill(nodes[i]->pid, SIGSTOP);
    wait_until(status_says(nodes[0], nodes[i], "\"status\""), LIMIT_MS,
               "%s has not heard of %s", nodes[0]->name, nodes[i]->name);
    part("removed in epoch %llu, a change %s", seen.epoch,
         seen.next[0] != '\0' ? "runs" : "has ended");
    node_remove(nodes[0], nodes[i]->name, "", 202, nodes[i]->name);
    cluster_settle();
    keys_check(DEAD_KEYS);
    kill(nodes[i]->pid, SIGCONT);
    wait_until(status_of(nodes[i]->port, "GET", "/_ready") == 503 ||
                   node_ended(nodes[i]),
               LIMIT_MS, "%s goes on", nodes[i]->name);
    if (nodes[i]->pid > 0)
        server_kill(nodes[i]);
}

/* Nodes are removed, dead, live and joining, with majorities and without, down
   to the last one; the data is there all the while. */
static void test_dead_node(void **state) {
    (void)state;
    etcd_start();
    nodes_make(5, PARTITIONS, "");
    cluster_begin(5);
    keys_write(nodes[0], 0, DEAD_KEYS);
    part("two of five die: some partitions have one owner left");
    server_kill(nodes[3]);
    server_kill(nodes[4]);
    node_remove(nodes[0], "nobody", "", 404, "nobody");
    wait_until(node_says_down(nodes[0], 2), LIMIT_MS, "nobody is Down");
    node_remove(nodes[0], "n4", "", 409, "majority");
    dead_remove(3, 0, "?force");
    dead_remove(4, 1, "?force");
    cluster_settle();
    keys_check(DEAD_KEYS);
    keys_write(nodes[1], 0, DEAD_KEYS);
    part("they join anew; one dies, and is removed");
    node_join(3);
    cluster_settle();
    dead_remove(3, 2, "");
    cluster_settle();
    replicas_check();
    node_adds(nodes[3], false);
    start_refused(nodes[3], 2, "-add");
    node_join(3);
    cluster_settle();
    keys_check(DEAD_KEYS);
    part("a live one is removed, at its own port; one that joins");
    node_remove(nodes[3], "n4", "", 202, "n4");
    atomic_store(&outside[3], true);
    cluster_settle();
    dead_says(nodes[3]);
    dead_joiner(4);
    node_join(4);
    cluster_settle();
    dead_remove(4, 0, "");
    cluster_settle();
    part("fewer than replicas, down to one");
    node_remove(nodes[0], "n3", "", 409, "-replicas 3");
    dead_remove(2, 0, "?force");
    cluster_settle();
    keys_check(DEAD_KEYS);
    node_remove(nodes[0], "n2", "", 409, "-replicas 3");
    node_remove(nodes[0], "n2", "?force", 202, "n2");
    atomic_store(&outside[1], true);
    cluster_settle();
    node_remove(nodes[0], "n1", "", 409, "last");
    node_remove(nodes[0], "n1", "?force", 409, "last");
    keys_check(DEAD_KEYS);
    part("%zu rings, which follow from each other", chain_check());
}

/* ---- A node that ran alone ------------------------------------------- */

/* Writes of one key, those that gave up, and other answers: plain ones, and
   consistent ones; how many threads are still to do some of these. */
static struct { atomic_size_t written, gave_up, wrong; } fought[2];
static atomic_int fighting;

/* Writes one key through a node, once. */
static void fight_by(struct client *c, bool consistent) {
    int status =
        client_text(c, "PUT", consistent ? "/fight?consistent" : "/fight", "x");

    atomic_fetch_add(status / 100 == 2 ? &fought[consistent].written
                     : status == 504   ? &fought[consistent].gave_up
                                       : &fought[consistent].wrong,
                     1);
}

/* The same again and again, as long as there are consistent ones. */
static void *fight_main(void *arg) {
    struct client c = client_make(*(int *)arg);

    while (atomic_load(&fighting) > 0)
        fight_by(&c, false);
    client_end(&c);
    return NULL;
}

static void *fight_consistent(void *arg) {
    struct client c = client_make(*(int *)arg);

    for (int i = 0; i < 10; i++)
        fight_by(&c, true);
    atomic_fetch_sub(&fighting, 1);
    client_end(&c);
    return NULL;
}

/* While one of three owners is away, writes to one key succeed, though each two
   that meet at the others fail each other at first. One may meet others each
   time that it tries: of 10,000 one did, and 1,500 that tried three times. Of
   20 consistent ones that meet these 14 never got their turn, as long as each
   took its version before its rest. Those that do may not know what became of
   them, as plain ones replace what they have begun. */
static void fight(struct server *const at[2]) {
    pthread_t threads[10];

    fighting = 2;
    for (int i = 0; i < 10; i++)
        check(pthread_create(&threads[i], NULL,
                             i < 8 ? fight_main : fight_consistent,
                             &at[i % 2]->port) == 0,
              "no thread");
    for (int i = 0; i < 10; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 2; i++)
        part("%zu %s writes of one key, %zu gave up", (size_t)fought[i].written,
             i == 0 ? "plain" : "consistent", (size_t)fought[i].gave_up);
    check(fought[0].wrong == 0 && fought[1].wrong <= 5 &&
              fought[0].gave_up <= 2 + fought[0].written / 50,
          "other answers: %zu plain ones, %zu of 20 consistent ones",
          (size_t)fought[0].wrong, (size_t)fought[1].wrong);
}

/* A node that ran alone founds a cluster, and all members have its data. */
static void test_alone_founds(void **state) {
    struct server *alone;

    (void)state;
    etcd_start();
    nodes_make(3, PARTITIONS, "");
    alone = server_plain("alone", the_run.exe);
    server_args(alone, "-name n1 -port %d -peerPort %d -partitions %d",
                nodes[0]->port, nodes[0]->peer, PARTITIONS);
    server_args(alone, "-dataPath %s", nodes[0]->dir);
    again(alone);
    keys_write(alone, 0, DEAD_KEYS);
    server_stop(alone);
    cluster_begin(3);
    keys_check(DEAD_KEYS);
    replicas_check();
}

/* ---- An etcd that was wiped ------------------------------------------ */

/* How many logs there are in a node's directory. */
static int logs_count(const struct server *s) {
    char path[MAX_PATH + 16];
    int n = 0;

    for (int k = 0; k < PARTITIONS; k++) {
        snprintf(path, sizeof path, "%s/%03d.log", s->dir, k);
        n += file_size(path) > LOG_EMPTY;
    }
    return n;
}

/* All that etcd had is gone: the nodes go on with the ring they have, and do so
   when they are started anew; no log goes, and no request fails. */
static void test_etcd_wiped(void **state) {
    uint64_t seed = seed_said();

    (void)state;
    etcd_start();
    nodes_make(3, PARTITIONS, "");
    cluster_begin(3);
    keys_write(nodes[0], 0, DEAD_KEYS);
    actors_rest = 10;
    stories_watched(seed);
    etcd_end();
    command("rm -rf %s", etcd->dir);
    etcd_start();
    for (int i = 0; i < 3; i++)
        wait_until(node_said(nodes[i], "has lost the ring"), LIMIT_MS,
                   "%s does not say that the ring is lost", nodes[i]->name);
    for (int i = 0; i < 3; i++) {
        atomic_store(&trouble[i], LONG_MAX);
        server_stop(nodes[i]);
        again(nodes[i]);
        atomic_store(&trouble[i], now_ms());
        wait_until(node_said(nodes[i], "has lost the ring"), LIMIT_MS,
                   "%s says nothing", nodes[i]->name);
        check(logs_count(nodes[i]) == PARTITIONS, "%s has %d logs",
              nodes[i]->name, logs_count(nodes[i]));
        wait_until(node_content(nodes[i], 3, 5), LIMIT_MS, "%s is not well",
                   nodes[i]->name);
    }
    actors_join(state);
    check(blame.count == 0, "%zu requests failed, first: %s",
          (size_t)blame.count, blame.error);
    keys_check(DEAD_KEYS);
    for (int i = 0; i < MODES; i++)
        story_check(&stories[i]);
    for (int i = 0; i < MODES * ACTORS; i++)
        actor_end(&actors[i]);
    replicas_check();
}

/* ---- Two with one name, or one directory ----------------------------- */

/* What starts under a name that is live is refused; what starts on a copy of
   another one's directory fetches everything, and does that one no harm. */
static void test_name_live(void **state) {
    struct output o = {0};
    int port = port_pair();

    (void)state;
    etcd_start();
    nodes_make(3, PARTITIONS, "");
    cluster_begin(3);
    keys_write(nodes[0], 0, DEAD_KEYS);
    part("a name that is live, with another directory, and with its own");
    for (int add = 0; add < 2; add++) {
        run(&o,
            "%s -dataPath %s/other%d -name n2 -port %d -peerPort %d -etcd "
            "http://127.0.0.1:%d %s",
            the_run.exe, the_run.dir, add, port, port - 1, etcd_port,
            add ? "-add" : "");
        check_refused(&o, 1, "n2");
    }
    run(&o,
        "%s -dataPath %s -name n2 -port %d -peerPort %d -etcd "
        "http://127.0.0.1:%d",
        the_run.exe, nodes[1]->dir, port, port - 1, etcd_port);
    check_refused(&o, 1, nodes[1]->dir);
    wait_until(cluster_is_whole(), LIMIT_MS, "the cluster was disturbed");
    part("the directory of one under the name of another, which is dead");
    server_kill(nodes[2]);
    fight(nodes);
    node_wipe(nodes[2]);
    command("cp -a %s %s", nodes[1]->dir, nodes[2]->dir);
    again(nodes[2]);
    cluster_settle();
    keys_check(DEAD_KEYS);
    replicas_check();
    part("and the one whose directory it was, after kill -9");
    server_kill(nodes[1]);
    again(nodes[1]);
    check(!node_said(nodes[1], "the machine went down"), "%s has lost its mark",
          nodes[1]->name);
    cluster_settle();
    keys_check(DEAD_KEYS);
}

#define TEST(f) cmocka_unit_test_teardown(f, cluster_end)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_churn),     TEST(test_two_disks),    TEST(test_many_join),
        TEST(test_dead_node), TEST(test_alone_founds), TEST(test_etcd_wiped),
        TEST(test_name_live),
    };

    run_begin(torture() ? 7200 : 1200);
    return run_result(cmocka_run_group_tests(tests, NULL, NULL));
}
