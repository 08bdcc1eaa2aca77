/*
 * history_test.c - tests of history.h: that it finds each kind of violation,
 * and that it finds none where there is none.
 *
 * Violations are planted by hand, in small histories that say what they are.
 * Random histories come from a register that is right by construction; small
 * ones, of which many are wrong, are compared with a checker that tries every
 * order.  The seed is printed; SEED=n repeats it, TORTURE=1 does all a hundred
 * times.
 *
 * Chapters: Planted by hand - A register - Every order - Valid histories -
 * Small histories - Large histories - Recording.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants those above. */
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "history.h"

#define BOUND   10u /* of plain reads, in all tests */
#define SMALL   7   /* operations of which every order is tried */
#define CLIENTS 32
#define GHOSTS  64   /* operations without an answer, still to take effect */
#define CHANGES 8192 /* of one key of a register */
#define KEYS    2

/* The seed of this run. */
static uint64_t the_seed;

/* How often to repeat what is n times in the short form. */
static unsigned times(unsigned n) {
    const char *s = getenv("TORTURE");

    return s != NULL && strcmp(s, "1") == 0 ? 100 * n : n;
}

/* A number below n, from the splitmix64 sequence in *random. */
static unsigned chance(uint64_t *random, unsigned n) {
    return (unsigned)(history_mix((*random)++) % n);
}

/* A sequence for a test, that no other has. */
static uint64_t random_for(uint64_t test) {
    return history_mix(the_seed ^ history_mix(test));
}

/* Adds an operation that has begun and ended as it says. */
static void record(struct history *h, const struct history_op *op) {
    size_t index = history_begin(h, op);

    if (op->outcome != HISTORY_OPEN)
        history_end(h, index, op->outcome, op->value, op->refused, op->end);
}

/* ---------------------------------------------------------- Planted by hand */

#define OP(k, o, v, b, e)                                                    \
    .kind = HISTORY_##k, .outcome = HISTORY_##o, .value = (v), .begin = (b), \
    .end = (e)
#define READ(v, b, e)          OP(READ, OK, v, b, e)
#define WRITE(v, b, e)         OP(WRITE, OK, v, b, e)
#define DELETE(b, e)           OP(DELETE, OK, 0, b, e)
#define MAYBE(v, b, e)         OP(WRITE, UNKNOWN, v, b, e)
#define WHEN                   .consistent = true, .conditional = true
#define IF(x)                  WHEN, .expect = (x)
#define EXISTED                .existed = true
#define SWAP(x, v, b, e)       WRITE(v, b, e), IF(x)
#define REFUSED(x, v, b, e)    SWAP(x, v, b, e), .refused = true
#define MAYBE_SWAP(x, v, b, e) MAYBE(v, b, e), IF(x)

/* Histories and what is said of them: with all operations taken as consistent
   ones, and as plain ones unless they say otherwise; NULL when they are fine,
   else a part of the answer. */
static const struct planted {
    const char *name;
    const char *linear, *plain;
    struct history_op ops[6];
} planted[] = {
#define FINE NULL, NULL
#define BAD  "not linearizable", "is newer than"
#define LOST "not linearizable", "it lost"
    {"in order",
     FINE,
     {{WRITE(1, 0, 1)}, {WRITE(2, 2, 3), EXISTED}, {READ(2, 4, 5)}}},
    {"nothing there", FINE, {{READ(0, 0, 1)}, {DELETE(2, 3)}, {READ(0, 4, 5)}}},
    {"lost acknowledged write", LOST, {{WRITE(1, 0, 1)}, {READ(0, 20, 21)}}},
    {"not seen yet, within the bound",
     "not linearizable",
     NULL,
     {{WRITE(1, 0, 1)}, {READ(0, 11, 21)}}},
    {"not seen by a consistent read",
     LOST,
     {{WRITE(1, 0, 1)}, {READ(0, 2, 3), .consistent = true}}},
    {"old value after the bound",
     BAD,
     {{WRITE(1, 0, 1)}, {WRITE(2, 2, 3), EXISTED}, {READ(1, 14, 15)}}},
    {"old value at the bound",
     "not linearizable",
     NULL,
     {{WRITE(1, 0, 1)}, {WRITE(2, 2, 3), EXISTED}, {READ(1, 13, 15)}}},
    {"old value, consistently",
     BAD,
     {{WRITE(1, 0, 1)},
      {WRITE(2, 2, 3), EXISTED},
      {READ(1, 4, 5), .consistent = true}}},
    {"old value, marked as stale",
     "is stale",
     NULL,
     {{WRITE(1, 0, 1)},
      {WRITE(2, 2, 3), EXISTED},
      {READ(1, 20, 21), .stale = true}}},
    {"equal times overlap",
     FINE,
     {{WRITE(1, 0, 5)},
      {WRITE(2, 5, 6), EXISTED},
      {READ(2, 6, 6)},
      {READ(1, 5, 5)}}},
    {"value that nobody wrote",
     "nobody wrote",
     "nobody wrote",
     {{WRITE(1, 0, 1)}, {READ(2, 0, 5)}}},
    {"stale value that nobody wrote",
     "nobody wrote",
     "nobody wrote",
     {{WRITE(1, 0, 1)}, {READ(2, 0, 5), .stale = true}}},
    {"value of another key",
     "nobody wrote",
     "nobody wrote",
     {{WRITE(1, 0, 1)}, {READ(1, 2, 3), .key = 1}}},
    {"value that failed",
     "nobody wrote",
     "nobody wrote",
     {{OP(WRITE, FAILED, 1, 0, 1)}, {READ(1, 2, 3)}}},
    {"value that was refused",
     "nobody wrote",
     "nobody wrote",
     {{REFUSED(9, 1, 0, 1)}, {READ(1, 2, 3)}}},
    {"condition that nobody wrote",
     "nobody wrote",
     "nobody wrote",
     {{SWAP(9, 1, 0, 1), EXISTED}}},
    {"value from the future",
     "the future",
     "the future",
     {{READ(1, 0, 1)}, {WRITE(1, 2, 3)}}},
    {"deleted key back",
     BAD,
     {{WRITE(1, 0, 1)}, {DELETE(2, 3), EXISTED}, {READ(1, 20, 21)}}},
    {"deleted key back within the bound",
     "not linearizable",
     NULL,
     {{WRITE(1, 0, 1)}, {DELETE(2, 3), EXISTED}, {READ(1, 12, 21)}}},
    {"deleted key back once it was gone",
     LOST,
     {{WRITE(1, 0, 3)},
      {DELETE(2, 4), EXISTED},
      {READ(0, 20, 21)},
      {READ(1, 40, 41)}}},
    {"delete and write overlap",
     FINE,
     {{WRITE(1, 0, 3)}, {DELETE(2, 4)}, {READ(1, 20, 21)}}},
    {"write without answer after a delete",
     FINE,
     {{MAYBE(1, 0, 1)}, {DELETE(2, 3)}, {READ(1, 20, 21)}}},
    {"write without answer, deleted and back",
     "not linearizable",
     NULL,
     {{MAYBE(1, 0, 1)}, {DELETE(2, 3), EXISTED}, {READ(1, 20, 21)}}},
    {"consistent write without answer, swapped and back",
     BAD,
     {{MAYBE(1, 0, 1), .consistent = true},
      {SWAP(1, 2, 2, 3), EXISTED},
      {READ(1, 20, 21)}}},
    {"gone, and written again since",
     LOST,
     {{WRITE(1, 0, 1)},
      {DELETE(2, 3), EXISTED},
      {WRITE(2, 4, 5)},
      {READ(0, 20, 21)}}},
    {"gone without answer",
     FINE,
     {{WRITE(1, 0, 1)}, {OP(DELETE, OPEN, 0, 2, 0)}, {READ(0, 20, 21)}}},
    {"gone though the delete failed",
     LOST,
     {{WRITE(1, 0, 1)}, {OP(DELETE, FAILED, 0, 2, 3)}, {READ(0, 20, 21)}}},
    {"gone before the delete",
     LOST,
     {{WRITE(1, 0, 1)}, {READ(0, 20, 21)}, {DELETE(30, 31), EXISTED}}},
    {"two swaps of one value",
     "not linearizable",
     "succeeded on the same",
     {{WRITE(1, 0, 1)},
      {SWAP(1, 2, 2, 5), EXISTED},
      {SWAP(1, 3, 3, 6), EXISTED}}},
    {"two swaps, one without answer",
     FINE,
     {{WRITE(1, 0, 1)},
      {SWAP(1, 2, 2, 5), EXISTED},
      {MAYBE_SWAP(1, 3, 3, 6)},
      {READ(2, 20, 21)}}},
    {"two swaps of one value without answer",
     "not linearizable",
     NULL,
     {{MAYBE(1, 0, 1)},
      {SWAP(1, 2, 2, 5), EXISTED},
      {SWAP(1, 3, 3, 6), EXISTED}}},
    {"two swaps of a consistent value without answer",
     "not linearizable",
     "succeeded on the same",
     {{MAYBE(1, 0, 1), .consistent = true},
      {SWAP(1, 2, 2, 5), EXISTED},
      {SWAP(1, 3, 3, 6), EXISTED}}},
    {"swap and conditional delete",
     "not linearizable",
     "succeeded on the same",
     {{WRITE(1, 0, 1)},
      {SWAP(1, 2, 2, 5), EXISTED},
      {DELETE(3, 6), IF(1), EXISTED}}},
    {"created twice",
     "not linearizable",
     "created the same",
     {{SWAP(0, 1, 0, 5)}, {SWAP(0, 2, 0, 6)}}},
    {"created twice, deleted between",
     FINE,
     {{SWAP(0, 1, 0, 5)}, {SWAP(0, 2, 0, 6)}, {OP(DELETE, UNKNOWN, 0, 1, 2)}}},
    {"created though it was there",
     LOST,
     {{WRITE(1, 0, 1)}, {SWAP(0, 2, 2, 3)}}},
    {"refused though it was equal",
     "not linearizable",
     NULL,
     {{WRITE(1, 0, 1)}, {REFUSED(1, 2, 2, 3)}, {READ(1, 4, 5)}}},
    {"refused in the middle",
     FINE,
     {{WRITE(1, 0, 1)},
      {REFUSED(1, 2, 2, 9)},
      {WRITE(3, 3, 4), EXISTED},
      {READ(3, 5, 6)}}},
    {"refused by what has no answer",
     FINE,
     {{WRITE(1, 0, 1)}, {MAYBE(2, 2, 3)}, {REFUSED(1, 3, 4, 5)}}},
    {"refused by what was never there after all",
     "not linearizable",
     NULL,
     {{WRITE(1, 0, 1)},
      {MAYBE(2, 2, 3)},
      {REFUSED(1, 3, 4, 5)},
      {READ(1, 6, 7)}}},
    {"lost update",
     BAD,
     {{WRITE(1, 0, 1)},
      {SWAP(1, 2, 2, 3), EXISTED},
      {READ(1, 4, 5), .consistent = true}}},
    {"swap after a write it had to see",
     BAD,
     {{WRITE(1, 0, 1)},
      {WRITE(2, 2, 3), EXISTED},
      {SWAP(1, 3, 4, 5), EXISTED}}},
    {"without answer: not applied",
     FINE,
     {{WRITE(1, 0, 1)}, {MAYBE(2, 2, 3)}, {READ(1, 20, 21)}}},
    {"without answer: applied",
     FINE,
     {{WRITE(1, 0, 1)}, {MAYBE(2, 2, 3)}, {READ(2, 20, 21)}}},
    {"without answer: applied late",
     FINE,
     {{WRITE(1, 0, 1)},
      {MAYBE(2, 2, 3)},
      {READ(1, 20, 21)},
      {READ(2, 22, 23)}}},
    {"without answer: applied and gone",
     "not linearizable",
     NULL,
     {{WRITE(1, 0, 1)},
      {MAYBE(2, 2, 3)},
      {READ(2, 20, 21)},
      {READ(1, 42, 43)}}},
    {"without answer: a chain",
     FINE,
     {{MAYBE(1, 0, 1)},
      {MAYBE_SWAP(1, 2, 0, 1)},
      {MAYBE_SWAP(2, 3, 0, 1)},
      {READ(3, 20, 21)}}},
    {"without answer: a chain with a hole",
     "not linearizable",
     NULL,
     {{MAYBE(1, 0, 1)},
      {MAYBE_SWAP(9, 2, 0, 1)},
      {MAYBE_SWAP(2, 3, 0, 1)},
      {READ(3, 20, 21)}}},
    {"without answer: existed",
     FINE,
     {{MAYBE(1, 0, 1)}, {WRITE(2, 2, 3), EXISTED}, {READ(2, 4, 5)}}},
    {"order of time",
     "not linearizable",
     NULL,
     {{WRITE(1, 0, 1)},
      {WRITE(2, 2, 3), EXISTED},
      {READ(2, 4, 5)},
      {READ(1, 6, 7)}}},
    {"neither of two is the last",
     BAD,
     {{WRITE(1, 0, 5)},
      {WRITE(2, 0, 5), EXISTED},
      {READ(1, 20, 21)},
      {READ(2, 40, 41)}}},
    {"neither is the last yet",
     "not linearizable",
     NULL,
     {{WRITE(1, 0, 5)},
      {WRITE(2, 0, 5), EXISTED},
      {READ(1, 6, 7)},
      {READ(2, 8, 9)}}},
    {"a read going back",
     "not linearizable",
     NULL,
     {{WRITE(1, 0, 90)}, {READ(1, 1, 2)}, {READ(0, 20, 21)}}},
    {"a read of the last two",
     FINE,
     {{WRITE(1, 0, 90)}, {READ(0, 1, 2)}, {READ(1, 20, 21)}}},
    {"created, though it existed",
     "not linearizable",
     NULL,
     {{WRITE(1, 0, 1)}, {WRITE(2, 2, 3)}}},
    {"replaced, though it did not exist",
     "not linearizable",
     NULL,
     {{WRITE(1, 0, 1), EXISTED}}},
    {"one value twice",
     "the same value as",
     "the same value as",
     {{WRITE(1, 0, 1)}, {WRITE(1, 2, 3), EXISTED}}},
    {"time going back", "before it", "before it", {{WRITE(1, 3, 2)}}},
    {"absent, written", "stands for", "stands for", {{WRITE(0, 0, 1)}}},
    {"refused for nothing",
     "without a condition",
     "without a condition",
     {{WRITE(1, 0, 1), .refused = true}}},
};

/* Fails unless an answer has what is expected of it. */
static void planted_judge(struct history *h, const struct planted *p,
                          const char *way, const char *said,
                          const char *expected) {
    if (said == NULL && expected == NULL)
        return;
    if (said != NULL && expected != NULL && strstr(said, expected) != NULL)
        return;
    history_print(h, 0);
    fail_msg("%s, %s: \"%s\" instead of \"%s\"", p->name, way,
             said != NULL ? said : "fine",
             expected != NULL ? expected : "fine");
}

/* Each planted violation is found, and nothing beside them. */
static void test_planted(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof planted / sizeof *planted; i++) {
        const struct planted *p = &planted[i];
        struct history *h = history_new();

        for (size_t j = 0;
             j < 6 && (j == 0 || p->ops[j].begin > 0 || p->ops[j].end > 0); j++)
            record(h, &p->ops[j]);
        planted_judge(h, p, "plain", history_check_plain(h, BOUND), p->plain);
        for (size_t j = 0; j < history_count(h); j++)
            history_at(h, j)->consistent = true;
        planted_judge(h, p, "linear", history_check_linear(h), p->linear);
        history_free(h);
    }
}

/* The two kinds are kept apart where they must be. */
static void test_kinds(void **state) {
    static const struct history_op ops[] = {
        {WRITE(1, 0, 1)},
        {READ(0, 20, 21)},
        {WRITE(1, 0, 1), .key = 1, .consistent = true},
    };
    struct history *h = history_new();

    (void)state;
    assert_null(history_check_linear(h));
    assert_null(history_check_plain(h, BOUND));
    for (size_t i = 0; i < 3; i++)
        record(h, &ops[i]);
    assert_null(history_check_linear(h));
    assert_non_null(history_check_plain(h, BOUND));
    history_at(h, 0)->consistent = true;
    assert_non_null(strstr(history_check_linear(h), "is plain"));
    history_free(h);
}

/* --------------------------------------------------------------- A register */

/* What a client of the register does. */
enum phase { IDLE, BEGUN, APPLIED };

/* A register per key, its clients, and what they record.  It is right by
   construction: each operation takes effect at one moment while it is under
   way.  If it is plain, reads see a value of up to BOUND ago, and writes may
   take effect several times. */
struct world {
    struct history *h;
    bool plain;
    unsigned clients, keys, unsure; /* of a hundred have no answer */
    uint64_t random, now, values;
    struct {
        uint64_t time, value;
    } changes[KEYS][CHANGES];
    size_t changed[KEYS];
    struct {
        enum phase phase;
        size_t index;
    } client[CLIENTS];
    size_t ghosts[GHOSTS];
    size_t ghost_count;
};

/* The value of a key now. */
static uint64_t world_value(const struct world *w, unsigned key) {
    return w->changed[key] > 0 ? w->changes[key][w->changed[key] - 1].value : 0;
}

/* Changes a key's value now. */
static void world_set(struct world *w, unsigned key, uint64_t value) {
    size_t n = w->changed[key]++;

    assert_true(n < CHANGES);
    w->changes[key][n].time = w->now;
    w->changes[key][n].value = value;
}

/* A value that a plain read may see that began then. */
static uint64_t world_lag(struct world *w, unsigned key, uint64_t begin) {
    uint64_t from = begin > BOUND ? begin - BOUND : 0;
    uint64_t time = from + chance(&w->random, (unsigned)(w->now - from) + 1);
    size_t i = w->changed[key];

    while (i > 0 && w->changes[key][i - 1].time > time)
        i--;
    return i > 0 ? w->changes[key][i - 1].value : 0;
}

/* Lets an operation take effect. */
static void world_apply(struct world *w, size_t index) {
    struct history_op *op = history_at(w->h, index);
    uint64_t value = world_value(w, op->key);

    if (op->kind == HISTORY_READ) {
        op->value = op->consistent ? value : world_lag(w, op->key, op->begin);
        return;
    }
    op->existed = value != 0;
    op->refused = op->conditional && op->expect != value;
    if (!op->refused)
        world_set(w, op->key, op->kind == HISTORY_WRITE ? op->value : 0);
}

/* A client begins something. */
static void world_begin(struct world *w, unsigned client) {
    struct history_op op = {.client = client};
    unsigned kind = chance(&w->random, 10);
    size_t changed;

    op.key = chance(&w->random, w->keys);
    op.kind = kind < 4   ? HISTORY_READ
              : kind < 9 ? HISTORY_WRITE
                         : HISTORY_DELETE;
    op.begin = w->now;
    if (op.kind == HISTORY_WRITE)
        op.value = ++w->values;
    changed = w->changed[op.key];
    if (op.kind != HISTORY_READ && chance(&w->random, 2) == 0) {
        op.conditional = true;
        op.expect = world_value(w, op.key);
        if (changed > 1 && chance(&w->random, 4) == 0)
            op.expect = w->changes[op.key][changed - 2].value;
    }
    op.consistent = !w->plain || op.conditional || chance(&w->random, 3) == 0;
    w->client[client].index = history_begin(w->h, &op);
    w->client[client].phase = BEGUN;
}

/* A client gets an answer, or gives up. */
static void world_end(struct world *w, unsigned client) {
    size_t index = w->client[client].index;
    bool applied = w->client[client].phase == APPLIED;
    struct history_op *op = history_at(w->h, index);
    enum history_outcome outcome = HISTORY_OK;

    if (!applied)
        outcome = chance(&w->random, 2) == 0 ? HISTORY_FAILED : HISTORY_UNKNOWN;
    else if (chance(&w->random, 100) < w->unsure)
        outcome = HISTORY_UNKNOWN;
    if (outcome == HISTORY_UNKNOWN && op->kind != HISTORY_READ &&
        (!applied || (w->plain && !op->consistent)) && w->ghost_count < GHOSTS)
        w->ghosts[w->ghost_count++] = index;
    history_end(w->h, index, outcome, op->value, op->refused, w->now);
    w->client[client].phase = IDLE;
}

/* A step of one client, or of an operation without an answer. */
static void world_step(struct world *w) {
    unsigned client = chance(&w->random, w->clients);
    enum phase phase = w->client[client].phase;

    if (chance(&w->random, 4) > 0)
        w->now++;
    if (w->ghost_count > 0 && chance(&w->random, 20) == 0) {
        size_t i = chance(&w->random, (unsigned)w->ghost_count);

        world_apply(w, w->ghosts[i]);
        if (history_at(w->h, w->ghosts[i])->consistent ||
            chance(&w->random, 2) == 0)
            w->ghosts[i] = w->ghosts[--w->ghost_count];
    } else if (phase == IDLE) {
        world_begin(w, client);
    } else if (phase == BEGUN && chance(&w->random, 100) < w->unsure) {
        world_end(w, client);
    } else if (phase == BEGUN) {
        world_apply(w, w->client[client].index);
        w->client[client].phase = APPLIED;
    } else if (!history_at(w->h, w->client[client].index)->consistent &&
               chance(&w->random, 4) == 0) {
        world_apply(w, w->client[client].index);
    } else {
        world_end(w, client);
    }
}

/* Makes a history of about `count` operations; the caller frees it. */
static struct history *world_run(uint64_t random, bool plain, unsigned clients,
                                 unsigned keys, unsigned unsure, size_t count) {
    struct world *w = history_alloc(1, sizeof *w);
    struct history *h = w->h = history_new();

    w->random = random;
    w->plain = plain;
    w->clients = clients;
    w->keys = keys;
    w->unsure = unsure;
    while (history_count(h) < count)
        world_step(w);
    for (unsigned i = 0; i < clients; i++)
        if (w->client[i].phase != IDLE && chance(&w->random, 2) == 0)
            world_end(w, i);
    free(w);
    return h;
}

/* -------------------------------------------------------------- Every order */

/* Whether some order of the operations not in `done` explains all answers,
   from a value on. */
static bool every_order(struct history *h, unsigned done, uint64_t value) {
    size_t count = history_count(h);
    bool left = false;

    for (size_t i = 0; i < count; i++)
        left |= !(done >> i & 1) && history_at(h, i)->outcome == HISTORY_OK;
    if (!left)
        return true;
    for (size_t i = 0; i < count; i++) {
        const struct history_op *op = history_at(h, i);
        bool sure = op->outcome == HISTORY_OK, holds, right = true;
        uint64_t after = value;

        if (done >> i & 1 || op->outcome == HISTORY_FAILED ||
            (!sure && op->kind == HISTORY_READ))
            continue;
        for (size_t j = 0; j < count; j++) {
            const struct history_op *first = history_at(h, j);

            if (!(done >> j & 1) && first->outcome == HISTORY_OK &&
                first->end < op->begin)
                right = false;
        }
        holds = !op->conditional || op->expect == value;
        if (op->kind == HISTORY_READ)
            right &= op->value == value;
        else if (holds)
            after = op->kind == HISTORY_WRITE ? op->value : 0;
        if (sure && op->kind != HISTORY_READ)
            right &= op->refused == !holds &&
                     (op->refused || op->existed == (value != 0));
        if (right && every_order(h, done | 1u << i, after))
            return true;
    }
    return false;
}

/* Compares the checker of linear histories with every order, and looks at the
   other: what is linear is a good plain history too.  Returns whether the
   history is linear. */
static bool small_compare(struct history *h, uint64_t random) {
    bool right = every_order(h, 0, 0);
    const char *said = history_check_linear(h);

    if ((said == NULL) != right) {
        history_print(h, 0);
        fail_msg("seed %llu: linear says %s", (unsigned long long)random,
                 said != NULL ? said : "fine");
    }
    if (right && (said = history_check_plain(h, 0)) != NULL) {
        history_print(h, 0);
        fail_msg("seed %llu: plain says %s", (unsigned long long)random, said);
    }
    return right;
}

/* ---------------------------------------------------------- Valid histories */

/* Fails if a checker has something to say of a valid history. */
static void valid_check(struct history *h, bool plain, uint64_t random) {
    const char *said = history_check_plain(h, plain ? BOUND : 0);

    if (said == NULL && !plain)
        said = history_check_linear(h);
    if (said == NULL)
        return;
    if (history_count(h) < 200)
        for (unsigned key = 0; key < KEYS; key++)
            history_print(h, key);
    fail_msg("seed %llu: %s", (unsigned long long)random, said);
}

/* Histories of a register that is right are found right. */
static void test_valid(void **state) {
    (void)state;
    for (unsigned i = 0; i < times(1500); i++) {
        uint64_t random = random_for(i), r = random;
        bool plain = i % 2 == 0;
        unsigned clients = 1 + chance(&r, i % 10 == 0 ? CLIENTS : 8);
        struct history *h = world_run(r, plain, clients, 1 + chance(&r, KEYS),
                                      chance(&r, 30), 10 + chance(&r, 100));

        valid_check(h, plain, random);
        history_free(h);
    }
}

/* ---------------------------------------------------------- Small histories */

/* A history of random operations, with a few values. */
static struct history *small_random(uint64_t r) {
    struct history *h = history_new();
    unsigned count = 1 + chance(&r, SMALL), values = 1 + chance(&r, SMALL);
    unsigned span = 2 + chance(&r, 24), unsure = chance(&r, 4);

    for (unsigned i = 0; i < count; i++) {
        struct history_op op = {.client = i, .consistent = true};

        op.kind = (enum history_kind)(chance(&r, 5) * 3 / 5);
        op.outcome = chance(&r, 8) < unsure
                         ? (enum history_outcome)(chance(&r, 4))
                         : HISTORY_OK;
        op.begin = chance(&r, span);
        op.end = op.begin + chance(&r, span);
        op.value = op.kind == HISTORY_WRITE ? i + 1 : chance(&r, values + 1);
        if (op.kind != HISTORY_READ && chance(&r, 2) == 0) {
            op.conditional = true;
            op.expect = chance(&r, values + 1);
            op.refused = chance(&r, 3) == 0;
        }
        op.existed = op.conditional ? op.expect != 0 : chance(&r, 2);
        record(h, &op);
        history_at(h, i)->outcome = op.outcome;
    }
    return h;
}

/* Changes something in a history that the clients did not see so. */
static void small_mutate(struct history *h, uint64_t *r) {
    size_t count = history_count(h);
    struct history_op *op = history_at(h, chance(r, (unsigned)count));
    const struct history_op *from = history_at(h, chance(r, (unsigned)count));

    switch (chance(r, 7)) {
    case 0:
        if (op->kind == HISTORY_READ)
            op->value = from->value;
        break;
    case 1:
        if (op->conditional)
            op->expect = from->value;
        break;
    case 2:
        op->refused ^= op->conditional;
        break;
    case 3:
        op->existed = !op->existed;
        break;
    case 4:
        op->outcome = (enum history_outcome)chance(r, 4);
        break;
    case 5:
        op->end = op->begin + (op->end > op->begin ? op->end - op->begin : 0) /
                                  (1 + chance(r, 3));
        break;
    default:
        op->begin = from->begin;
        break;
    }
    if (op->end < op->begin)
        op->end = op->begin + chance(r, 3);
}

/* On random histories the checker agrees with one that tries every order. */
static void test_small_random(void **state) {
    unsigned right = 0, count = times(15000);

    (void)state;
    for (unsigned i = 0; i < count; i++) {
        uint64_t random = random_for(UINT64_C(1) << 40 | i);
        struct history *h = small_random(random);

        right += small_compare(h, random);
        history_free(h);
    }
    print_message("random: %u of %u are linear\n", right, count);
    assert_in_range(right, count / 100, count - count / 100);
}

/* The same on histories that were right and are changed a little. */
static void test_small_mutated(void **state) {
    unsigned right = 0, count = times(15000);

    (void)state;
    for (unsigned i = 0; i < count; i++) {
        uint64_t random = random_for(UINT64_C(2) << 40 | i), r = random;
        struct history *h =
            world_run(r, false, 2 + chance(&r, 5), 1, chance(&r, 40), SMALL);

        for (unsigned n = chance(&r, 4); n > 0; n--)
            small_mutate(h, &r);
        right += small_compare(h, random);
        history_free(h);
    }
    print_message("mutated: %u of %u are linear\n", right, count);
    assert_in_range(right, count / 100, count - count / 100);
}

/* ---------------------------------------------------------- Large histories */

/* Milliseconds of a clock that only goes forward. */
static double clock_ms(void) {
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

/* Lets one late read see the first value that was written and acknowledged. */
static void large_spoil(struct history *h) {
    size_t first = 0, late = history_count(h) * 3 / 4;

    while (history_at(h, first)->kind != HISTORY_WRITE ||
           history_at(h, first)->conditional ||
           history_at(h, first)->outcome != HISTORY_OK)
        first++;
    while (history_at(h, late)->kind != HISTORY_READ ||
           history_at(h, late)->stale ||
           history_at(h, late)->outcome != HISTORY_OK)
        late++;
    history_at(h, late)->value = history_at(h, first)->value;
}

/* Thousands of operations on one key by up to 32 clients are checked soon,
   and one wrong answer among them is found. */
static void large_check(bool plain, unsigned clients, unsigned unsure,
                        uint64_t random) {
    struct history *h = world_run(random, plain, clients, 1, unsure, 3000);
    double begun = clock_ms(), took;
    const char *said;

    valid_check(h, plain, random);
    took = clock_ms() - begun;
    large_spoil(h);
    begun = clock_ms();
    said = plain ? history_check_plain(h, BOUND) : history_check_linear(h);
    print_message("%-6s %2u clients, %2u %% without answer: %6.1f ms, and "
                  "%6.1f ms for a wrong one\n",
                  plain ? "plain" : "linear", clients, unsure, took,
                  clock_ms() - begun);
    if (said == NULL || strncmp(said, "undecided", 9) == 0)
        fail_msg("seed %llu: says %s", (unsigned long long)random,
                 said != NULL ? said : "fine");
    history_free(h);
}

/* Runs them. */
static void test_large(void **state) {
    static const unsigned clients[] = {1, 4, 16, 32};

    (void)state;
    for (unsigned n = 0; n < times(1); n++)
        for (unsigned i = 0; i < 4; i++)
            for (unsigned unsure = 0; unsure <= 10; unsure += 5) {
                uint64_t test = UINT64_C(3) << 40 | n << 8 | i << 4 | unsure;

                large_check(false, clients[i], unsure, random_for(test));
                large_check(true, clients[i], unsure, random_for(test));
            }
}

/* ---------------------------------------------------------------- Recording */

/* Records a thousand operations of one client, whose number is at state. */
static void *recording_client(void *state) {
    struct history *h = *(struct history **)state;

    for (uint64_t i = 1; i <= 1000; i++) {
        struct history_op op = {.kind = HISTORY_READ, .begin = i};
        size_t index = history_begin(h, &op);
        const struct history_op *place = history_at(h, index);

        history_end(h, index, HISTORY_OK, 0, false, i + 1);
        if (place != history_at(h, index) || place->end != i + 1)
            return h;
    }
    return NULL;
}

/* Many threads record at once, and what is recorded does not move. */
static void test_recording(void **state) {
    struct history *h = history_new();
    pthread_t threads[4];

    (void)state;
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(
            pthread_create(&threads[i], NULL, recording_client, &h), 0);
    for (size_t i = 0; i < 4; i++) {
        void *wrong;

        assert_int_equal(pthread_join(threads[i], &wrong), 0);
        assert_null(wrong);
    }
    assert_int_equal(history_count(h), 4000);
    assert_null(history_check_plain(h, BOUND));
    history_free(h);
}

/* Runs all tests; not 0 if one failed. */
int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_planted),
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_recording),
        cmocka_unit_test(test_valid),
        cmocka_unit_test(test_small_random),
        cmocka_unit_test(test_small_mutated),
        cmocka_unit_test(test_large),
    };
    const char *seed = getenv("SEED");

    the_seed = seed != NULL ? strtoull(seed, NULL, 10) : (uint64_t)time(NULL);
    print_message("SEED=%llu\n", (unsigned long long)the_seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
