/* history.h - what clients saw, and whether a store may answer so

   Clients record each operation when it begins and when it ends; afterwards
   a checker says whether a store that keeps its promises could have given
   these answers.  Two promises are known:

     linear  each operation takes effect at one moment between its begin and
             its end, and each answer is what a single register would have
             said at that moment
     plain   an acknowledged write is the newest one from then on, and reads
             may lag behind by a bound and no more

   Three rules hold for both.  A key is absent when its history begins.  Each
   value is written by one operation only, so that a read says which one it
   saw.  An operation precedes another if it ended before the other began;
   equal times prove nothing.

   Whatever is wrong is found from what must have happened, never from what
   probably did: a checker that cries wolf is worth nothing.  So an operation
   without an answer may have taken effect at any time after its begin.

   Nothing but libc and threads is needed, and all names begin with history_,
   so that a file which includes the whole server can include this as well.

   Chapters: Operations - Recording - Printing - Keys and their writers - The
   search - Linear histories - Plain histories. */

#ifndef HISTORY_H
#define HISTORY_H

#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Configurations that one search may visit, at 40 to 80 bytes each and a bit
   for each write without an answer. */
#ifndef HISTORY_CONFIGURATIONS
#define HISTORY_CONFIGURATIONS ((size_t)1 << 21)
#endif

#define HISTORY_CHUNK  64u /* operations in the first chunk; each doubles */
#define HISTORY_CHUNKS 40u
#define HISTORY_LINE   160u /* of one operation as text */

/* ---- Operations ------------------------------------------------------ */

enum history_kind { HISTORY_READ, HISTORY_WRITE, HISTORY_DELETE };

/* How it ended.  OPEN and UNKNOWN: it may have taken effect at any time after
   its begin, or never.  FAILED: it certainly has not.  Of a read all three say
   nothing.  A condition that did not hold (412) is OK, with `refused`. */
enum history_outcome {
    HISTORY_OPEN,
    HISTORY_OK,
    HISTORY_FAILED,
    HISTORY_UNKNOWN
};

/* An operation.  Times are of any one clock that never goes back, values are
   numbers, a different one for each write of a key; 0 is absent. */
struct history_op {
    enum history_kind kind;
    enum history_outcome outcome;
    bool consistent;  /* a linearizable one was asked for, or a condition */
    bool conditional; /* WRITE, DELETE: only if the value is `expect` */
    bool refused;     /* the condition failed: it was not `expect` */
    bool stale;       /* READ: marked by the server: it promises nothing but
                         that somebody wrote this */
    unsigned client, key;
    uint64_t value;  /* WRITE: what is written; READ: what was read */
    uint64_t expect; /* 0: only if the key is absent */
    bool existed;    /* WRITE, DELETE that were OK: the server said that the
                        key existed; set it through history_at() */
    uint64_t begin, end;
};

/* A history.  Operations stay where they are, in chunks of which each has
   twice the room of the one before, so that pointers to them stay good. */
struct history {
    pthread_mutex_t lock; /* for count and chunks */
    size_t count;
    struct history_op *chunks[HISTORY_CHUNKS];
    char text[4 * HISTORY_LINE + 256]; /* the answer of the last check */
};

/* ---- Recording ------------------------------------------------------- */

/* Zeroed memory for n things, which the caller frees; dies without it. */
static inline void *history_alloc(size_t n, size_t size) {
    void *p = calloc(n > 0 ? n : 1, size);

    if (p == NULL) {
        fprintf(stderr, "history: out of memory\n");
        abort();
    }
    return p;
}

/* The memory at p made room for n things; dies without it. */
static inline void *history_grow(void *p, size_t n, size_t size) {
    void *grown = n <= SIZE_MAX / size ? realloc(p, n * size) : NULL;

    if (grown == NULL) {
        fprintf(stderr, "history: out of memory\n");
        abort();
    }
    return grown;
}

/* An empty history; free it with history_free(). */
static inline struct history *history_new(void) {
    struct history *h = history_alloc(1, sizeof *h);

    pthread_mutex_init(&h->lock, NULL);
    return h;
}

/* Frees a history and all that points into it; NULL is fine. */
static inline void history_free(struct history *h) {
    if (h == NULL)
        return;
    for (size_t i = 0; i < HISTORY_CHUNKS; i++)
        free(h->chunks[i]);
    pthread_mutex_destroy(&h->lock);
    free(h);
}

/* The place of an operation, whose chunk is made when first asked for; the
   caller holds the lock. */
static inline struct history_op *history_place(struct history *h,
                                               size_t index) {
    size_t chunk = 0, room = HISTORY_CHUNK;

    while (index >= room) {
        index -= room;
        room *= 2;
        chunk++;
    }
    if (h->chunks[chunk] == NULL)
        h->chunks[chunk] = history_alloc(room, sizeof *h->chunks[chunk]);
    return &h->chunks[chunk][index];
}

/* Records that an operation begins, as a copy of *op that is OPEN.  Returns
   its index.  Any thread may call it. */
static inline size_t history_begin(struct history *h,
                                   const struct history_op *op) {
    struct history_op *place;
    size_t index;

    pthread_mutex_lock(&h->lock);
    index = h->count++;
    place = history_place(h, index);
    *place = *op;
    place->outcome = HISTORY_OPEN;
    pthread_mutex_unlock(&h->lock);
    return index;
}

/* Records how an operation ended; value counts if it is a READ.  Any thread
   may call it. */
static inline void history_end(struct history *h, size_t index,
                               enum history_outcome outcome, uint64_t value,
                               bool refused, uint64_t end) {
    struct history_op *op;

    pthread_mutex_lock(&h->lock);
    op = history_place(h, index);
    op->outcome = outcome;
    if (op->kind == HISTORY_READ)
        op->value = value;
    op->refused = refused;
    op->end = end;
    pthread_mutex_unlock(&h->lock);
}

/* An operation, until history_free(); whoever began it may change it. */
static inline struct history_op *history_at(struct history *h, size_t index) {
    struct history_op *op;

    pthread_mutex_lock(&h->lock);
    op = history_place(h, index);
    pthread_mutex_unlock(&h->lock);
    return op;
}

/* How many operations began; for when no thread records any more. */
static inline size_t history_count(const struct history *h) {
    return h->count;
}

/* ---- Printing -------------------------------------------------------- */

/* An operation beside its index, for sorting. */
struct history_ref {
    const struct history_op *op;
    size_t index;
};

/* Orders by key, then begin, then index. */
static inline int history_compare_refs(const void *a, const void *b) {
    const struct history_ref *x = a, *y = b;

    if (x->op->key != y->op->key)
        return x->op->key < y->op->key ? -1 : 1;
    if (x->op->begin != y->op->begin)
        return x->op->begin < y->op->begin ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

/* All operations, by key and begin; the caller frees them. */
static inline struct history_ref *history_sorted(struct history *h) {
    struct history_ref *refs = history_alloc(h->count, sizeof *refs);

    for (size_t i = 0; i < h->count; i++) {
        refs[i].op = history_at(h, i);
        refs[i].index = i;
    }
    qsort(refs, h->count, sizeof *refs, history_compare_refs);
    return refs;
}

/* Writes an operation as text into line and returns that. */
static inline const char *history_line(const struct history_ref *ref,
                                       char line[HISTORY_LINE]) {
    static const char *const kinds[] = {"read", "write", "delete"};
    static const char *const outcomes[] = {"open", "ok", "failed", "unknown"};
    const struct history_op *op = ref->op;
    char value[32] = "", expect[32] = "", end[32] = "...";

    if (op->kind == HISTORY_WRITE ||
        (op->kind == HISTORY_READ && op->outcome == HISTORY_OK))
        snprintf(value, sizeof value, " %llu", (unsigned long long)op->value);
    if (op->conditional)
        snprintf(expect, sizeof expect, " if %llu",
                 (unsigned long long)op->expect);
    if (op->outcome != HISTORY_OPEN)
        snprintf(end, sizeof end, "%llu", (unsigned long long)op->end);
    snprintf(line, HISTORY_LINE, "#%zu %s%s%s %s%s%s%s%s (client %u, %llu-%s)",
             ref->index, kinds[op->kind], value, expect, outcomes[op->outcome],
             op->refused ? " refused" : "", op->existed ? " existed" : "",
             op->stale ? " stale" : "", op->consistent ? " consistent" : "",
             op->client, (unsigned long long)op->begin, end);
    return line;
}

/* Prints the operations of a key to stderr, in the order of their begin. */
static inline void history_print(struct history *h, unsigned key) {
    struct history_ref *refs = history_sorted(h);
    char line[HISTORY_LINE];

    fprintf(stderr, "key %u:\n", key);
    for (size_t i = 0; i < h->count; i++)
        if (refs[i].op->key == key)
            fprintf(stderr, "  %s\n", history_line(&refs[i], line));
    free(refs);
}

/* Makes the answer of a check and returns it. */
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
static inline const char *
history_say(struct history *h, const char *format, ...) {
    va_list list;

    va_start(list, format);
    vsnprintf(h->text, sizeof h->text, format, list);
    va_end(list);
    return h->text;
}

/* The answer that an operation, and maybe another, is not as it must be. */
static inline const char *history_blame(struct history *h,
                                        const struct history_ref *ref,
                                        const char *what,
                                        const struct history_ref *other) {
    char one[HISTORY_LINE], two[HISTORY_LINE];

    return history_say(h, "key %u: %s %s%s%s", ref->op->key,
                       history_line(ref, one), what, other != NULL ? " " : "",
                       other != NULL ? history_line(other, two) : "");
}

/* ---- Keys and their writers ------------------------------------------ */

/* The operations of one key, by begin, and those of them that wrote a value
   or may have, by value. */
struct history_key {
    struct history *h;
    const struct history_ref *refs;
    size_t count;
    struct history_writer {
        uint64_t value;
        const struct history_ref *ref;
        size_t zone; /* in plain histories, its index */
    } * writers;
    size_t writer_count;
};

/* Whether it certainly ended, as it says. */
static inline bool history_ok(const struct history_op *op) {
    return op->outcome == HISTORY_OK;
}

/* Whether it wrote or deleted, or may have. */
static inline bool history_effect(const struct history_op *op) {
    return op->kind != HISTORY_READ && op->outcome != HISTORY_FAILED &&
           !(history_ok(op) && op->refused);
}

/* Whether it tells which value there was: a read, or a condition that held.
   Then *value is that. */
static inline bool history_saw(const struct history_op *op, uint64_t *value) {
    if (!history_ok(op))
        return false;
    *value = op->kind == HISTORY_READ ? op->value : op->expect;
    return op->kind == HISTORY_READ || (op->conditional && !op->refused);
}

/* Orders by value, then index. */
static inline int history_compare_writers(const void *a, const void *b) {
    const struct history_writer *x = a, *y = b;

    if (x->value != y->value)
        return x->value < y->value ? -1 : 1;
    return x->ref->index < y->ref->index ? -1 : x->ref->index > y->ref->index;
}

/* Who wrote a value, or may have; NULL if nobody. */
static inline struct history_writer *
history_writer(const struct history_key *key, uint64_t value) {
    size_t low = 0, high = key->writer_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (key->writers[middle].value < value)
            low = middle + 1;
        else
            high = middle;
    }
    return low < key->writer_count && key->writers[low].value == value
               ? &key->writers[low]
               : NULL;
}

/* NULL, or what makes an operation one that no client can have recorded. */
static inline const char *history_misuse(const struct history_op *op) {
    if (op->outcome != HISTORY_OPEN && op->end < op->begin)
        return "ends before it begins";
    if (op->kind == HISTORY_WRITE && op->value == 0)
        return "writes 0, which stands for absent";
    if (history_ok(op) && op->refused &&
        (op->kind == HISTORY_READ || !op->conditional))
        return "is refused without a condition";
    return NULL;
}

/* Finds the writers of a key; its caller frees them, whatever the answer.
   NULL if the key's operations are such as clients record, and each value
   that was seen is one that somebody had begun to write. */
static inline const char *history_key_open(struct history_key *key) {
    const char *wrong;

    key->writers = history_alloc(key->count, sizeof *key->writers);
    for (size_t i = 0; i < key->count; i++) {
        const struct history_ref *ref = &key->refs[i];

        if ((wrong = history_misuse(ref->op)) != NULL)
            return history_blame(key->h, ref, wrong, NULL);
        if (ref->op->kind == HISTORY_WRITE && history_effect(ref->op)) {
            key->writers[key->writer_count].value = ref->op->value;
            key->writers[key->writer_count++].ref = ref;
        }
    }
    qsort(key->writers, key->writer_count, sizeof *key->writers,
          history_compare_writers);
    for (size_t i = 1; i < key->writer_count; i++)
        if (key->writers[i - 1].value == key->writers[i].value)
            return history_blame(key->h, key->writers[i].ref,
                                 "writes the same value as",
                                 key->writers[i - 1].ref);
    for (size_t i = 0; i < key->count; i++) {
        const struct history_ref *ref = &key->refs[i];
        const struct history_writer *writer;
        uint64_t value;

        if (!history_saw(ref->op, &value) || value == 0)
            continue;
        writer = history_writer(key, value);
        if (writer == NULL)
            return history_blame(key->h, ref, "saw what nobody wrote", NULL);
        if (writer->ref->op->begin > ref->op->end)
            return history_blame(key->h, ref, "saw the future of", writer->ref);
    }
    return NULL;
}

/* The first answer that check has for a key of the history, or NULL. */
static inline const char *
history_each_key(struct history *h,
                 const char *(*check)(struct history_key *, uint64_t),
                 uint64_t argument) {
    struct history_ref *refs = history_sorted(h);
    const char *wrong = NULL;

    for (size_t from = 0, to; from < h->count && wrong == NULL; from = to) {
        struct history_key key = {.h = h, .refs = refs + from};

        for (to = from; to < h->count && refs[to].op->key == refs[from].op->key;
             to++)
            key.count++;
        wrong = history_key_open(&key);
        if (wrong == NULL)
            wrong = check(&key, argument);
        free(key.writers);
    }
    free(refs);
    return wrong;
}

/* ---- The search ------------------------------------------------------ */

/* After Wing and Gong: build an order in which a register gives all the
   answers, one operation after the other; next may be any of those that began
   before the first end of an operation that is not in the order yet; at a
   dead end, take back the last.  After Lowe: events in a list out of which
   operations are lifted, and no configuration (which operations are in the
   order, and the state they leave) is explored twice.

   What makes it fast is that values are unique.  Of each rule below holds: if
   there is an order at all, then there is one that obeys it.

     at once   An operation that changes nothing and is right now is put in
               order now: later is no better.
     seen      A write comes before whoever saw its value, so that it ends when
               they end, or before; and it has taken effect, answer or not.
     leave     A value that is left never returns (but for absent).  Whoever
               must see it has to have seen it.
     wanted    An operation that need not be in the order, having no answer, is
               put right before one that would be wrong without it; elsewhere
               it might as well come later, or never.
     spent     What need not be in the order and expects a value is of no more
               use once that is left, whether it was used or not.
     more      To have used less of what need not be in the order is as good or
               better.
     equal     Writes of values on which nothing depends any more ("junk") are
               as good as each other, and so are deletes: of equal ones the
               first to end comes first. */

#define HISTORY_ABSENT 0u /* states; those from 2 on are values */
#define HISTORY_JUNK   1u
#define HISTORY_NEVER  UINT32_MAX
#define HISTORY_NONE   SIZE_MAX

/* An operation as the search sees it. */
struct history_move {
    const struct history_ref *ref;
    bool required; /* it must be in the order: it has an answer, or was seen */
    bool effect;   /* it changes the state to `to` */
    bool bound;    /* only if the state is `state`; never set with denied */
    bool denied;   /* only if the state is not `state` */
    bool sure;     /* an effect with an answer, which was */
    bool existed;  /* this */
    uint32_t state, to;
    uint64_t end;
    uint64_t print[2]; /* if required: random; a set has the xor of all */
    size_t option;     /* else: its bit in the set of what was used, or NONE */
};

/* A point to come back to: what was in order, and what else may be next. */
struct history_frame {
    size_t trail;
    uint32_t state;
    size_t first, last; /* candidates not tried yet */
};

/* A search.  Entry 0 of the list is its head, 1 + 2i is the begin of move i,
   2 + 2i its end. */
struct history_search {
    struct history_move *moves;
    size_t count;
    uint32_t *next, *prev;
    uint32_t state;
    size_t left;      /* required moves not in order */
    uint32_t *needed; /* by state: required moves that must see it */
    uint32_t *asked;  /* by state: moves not in order that depend on it */
    uint64_t *wanted; /* by state: the round in which a move wants it */
    uint64_t round;   /* of absorbing */
    bool other;       /* in this round a move wants any other state */
    uint32_t *trail;  /* the order */
    size_t trailed;
    struct history_frame *frames;
    size_t frame_count;
    uint32_t *candidates;
    size_t candidate_count, candidate_room;
    uint64_t print[2]; /* of the required moves in order */
    uint64_t *used;    /* bits of the others, */
    size_t words;      /* in so many words */
    struct history_seen {
        uint64_t print[2]; /* 0: the slot is free */
        size_t used;       /* the first of the sets that it came with */
    } * seen;              /* configurations, an open table of prints */
    size_t seen_count, seen_room;
    uint64_t *sets; /* of `words` words, after the number of the next set */
    size_t set_count, set_room;
    size_t steps;   /* sets compared */
    size_t best;    /* the longest order so far, */
    uint32_t stuck; /* and the move that it would have had to include */
};

/* A number that depends on x as if by chance (splitmix64). */
static inline uint64_t history_mix(uint64_t x) {
    x += UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}

/* Whether a move is right in a state. */
static inline bool history_legal(const struct history_move *m, uint32_t state) {
    if (m->bound && state != m->state)
        return false;
    if (m->denied && state == m->state)
        return false;
    return !m->sure || m->existed == (state != HISTORY_ABSENT);
}

/* Whether a move that is right in a state leaves it as it is, always. */
static inline bool history_still(const struct history_move *m, uint32_t state) {
    return !m->effect || (m->to == HISTORY_ABSENT && state == HISTORY_ABSENT);
}

/* Counts a move that is in order, or that is not, or not any more. */
static inline void history_count_move(struct history_search *s,
                                      const struct history_move *m, bool in) {
    uint32_t by = in ? UINT32_MAX : 1; /* -1 or 1 */

    s->print[0] ^= m->print[0];
    s->print[1] ^= m->print[1];
    if (m->option != HISTORY_NONE && in)
        s->used[m->option / 64] |= UINT64_C(1) << m->option % 64;
    else if (m->option != HISTORY_NONE)
        s->used[m->option / 64] &= ~(UINT64_C(1) << m->option % 64);
    if ((m->bound || m->denied) && m->state != HISTORY_NEVER)
        s->asked[m->state] += by;
    if (m->required && m->bound)
        s->needed[m->state] += by;
    if (m->required && in)
        s->left--;
    else if (m->required)
        s->left++;
}

/* The state, or JUNK if nothing will ever depend on which it is. */
static inline uint32_t history_class(const struct history_search *s,
                                     uint32_t state) {
    return state > HISTORY_JUNK && s->asked[state] == 0 ? HISTORY_JUNK : state;
}

/* Takes an entry out of the list; it remembers its place. */
static inline void history_unlink(struct history_search *s, uint32_t entry) {
    s->next[s->prev[entry]] = s->next[entry];
    s->prev[s->next[entry]] = s->prev[entry];
}

/* Puts back the entry that was taken out last. */
static inline void history_relink(struct history_search *s, uint32_t entry) {
    s->next[s->prev[entry]] = entry;
    s->prev[s->next[entry]] = entry;
}

/* Puts a move in order; the state is the caller's. */
static inline void history_lift(struct history_search *s, uint32_t move) {
    if (s->moves[move].required)
        history_unlink(s, 2 + 2 * move);
    history_unlink(s, 1 + 2 * move);
    history_count_move(s, &s->moves[move], true);
    s->trail[s->trailed++] = move;
}

/* Takes back all but the first `keep` of the order. */
static inline void history_unlift(struct history_search *s, size_t keep) {
    while (s->trailed > keep) {
        uint32_t move = s->trail[--s->trailed];

        history_count_move(s, &s->moves[move], false);
        history_relink(s, 1 + 2 * move);
        if (s->moves[move].required)
            history_relink(s, 2 + 2 * move);
    }
}

/* Notes which other state a move wants, that is not right now. */
static inline void history_want(struct history_search *s,
                                const struct history_move *m) {
    if (m->bound && m->state != s->state)
        s->wanted[m->state] = s->round;
    else if (m->denied)
        s->other = true;
    else if (!m->bound && m->sure && m->existed)
        s->other = true;
    else if (!m->bound && m->sure)
        s->wanted[HISTORY_ABSENT] = s->round;
}

/* Puts in order what changes nothing and is right ("at once"), and notes what
   the rest wants. */
static inline void history_absorb(struct history_search *s) {
    uint32_t entry;

    s->round++;
    s->other = false;
    for (entry = s->next[0]; entry % 2 == 1; entry = s->next[entry]) {
        uint32_t move = (entry - 1) / 2;
        const struct history_move *m = &s->moves[move];

        if (!history_legal(m, s->state))
            history_want(s, m);
        else if (m->required && history_still(m, s->state))
            history_lift(s, move);
    }
    s->state = history_class(s, s->state);
    if (s->trailed >= s->best && entry != 0) {
        s->best = s->trailed;
        s->stuck = (entry - 2) / 2;
    }
}

/* Whether a move may be next: it is right, it is wanted if it need not be in
   the order, and nobody must still see the state that it ends. */
static inline bool history_possible(const struct history_search *s,
                                    const struct history_move *m) {
    uint32_t needed = s->needed[s->state];

    if (!history_legal(m, s->state) || history_still(m, s->state))
        return false;
    if (!m->required && (history_class(s, m->to) == s->state ||
                         !(s->other || s->wanted[m->to] == s->round)))
        return false;
    if (m->required && m->bound)
        needed--;
    return s->state == HISTORY_ABSENT || needed == 0;
}

/* Whether with a there is no need to try b ("equal"); both may be next.  Of
   two that need not be in the order, the one that can be used in this state
   only is used first. */
static inline bool history_instead(const struct history_search *s,
                                   const struct history_move *a,
                                   const struct history_move *b) {
    uint32_t to = history_class(s, a->to);

    if (to != history_class(s, b->to) || to > HISTORY_JUNK)
        return false;
    if (a->required == b->required && a->bound == b->bound)
        return a->end <= b->end;
    return !b->required && !b->bound && a->required != a->bound;
}

/* Adds a move to the candidates from `first` on, which are ordered: required
   ones first, and of these those that end first. */
static inline void history_candidate(struct history_search *s, size_t first,
                                     uint32_t move) {
    const struct history_move *m = &s->moves[move];
    size_t kept = first, place;

    for (size_t i = first; i < s->candidate_count; i++)
        if (history_instead(s, &s->moves[s->candidates[i]], m))
            return;
    for (size_t i = first; i < s->candidate_count; i++)
        if (!history_instead(s, m, &s->moves[s->candidates[i]]))
            s->candidates[kept++] = s->candidates[i];
    s->candidate_count = kept + 1;
    if (s->candidate_count > s->candidate_room) {
        s->candidate_room = 2 * s->candidate_room + 64;
        s->candidates = history_grow(s->candidates, s->candidate_room,
                                     sizeof *s->candidates);
    }
    for (place = kept; place > first; place--) {
        if (s->moves[s->candidates[place - 1]].end <= m->end)
            break;
        s->candidates[place] = s->candidates[place - 1];
    }
    s->candidates[place] = move;
}

/* The slot of the table where a print is or has room; print[0] is not 0. */
static inline struct history_seen *history_slot(const struct history_search *s,
                                                const uint64_t print[2]) {
    size_t i = (size_t)print[1] & (s->seen_room - 1);

    while (s->seen[i].print[0] != 0 &&
           (s->seen[i].print[0] != print[0] || s->seen[i].print[1] != print[1]))
        i = (i + 1) & (s->seen_room - 1);
    return &s->seen[i];
}

/* Doubles the table of configurations. */
static inline void history_seen_grow(struct history_search *s) {
    struct history_seen *old = s->seen;
    size_t room = s->seen_room;

    s->seen_room = room > 0 ? 2 * room : 64;
    s->seen = history_alloc(s->seen_room, sizeof *s->seen);
    for (size_t i = 0; i < room; i++)
        if (old[i].print[0] != 0)
            *history_slot(s, old[i].print) = old[i];
    free(old);
}

/* Whether all that a kept set has used is used now. */
static inline bool history_covers(const struct history_search *s,
                                  const uint64_t *set) {
    for (size_t i = 0; i < s->words; i++)
        if ((set[i] & ~s->used[i]) != 0)
            return false;
    return true;
}

/* Keeps the set of what is used now, before the set `next`; its number. */
static inline size_t history_keep(struct history_search *s, size_t next) {
    size_t size = s->words + 1;

    if (s->set_count == s->set_room) {
        s->set_room = 2 * s->set_room + 64;
        s->sets = history_grow(s->sets, s->set_room, size * sizeof *s->sets);
    }
    s->sets[s->set_count * size] = next;
    memcpy(&s->sets[s->set_count * size + 1], s->used,
           s->words * sizeof *s->used);
    return s->set_count++;
}

/* Whether the configuration is a new one; it is not any more.  It is not if it
   was here with the same required moves in order, in the same state, and had
   not used more of the others ("more"): then it had all chances that it has
   now.  Known by prints of 127 bits, of which no two will ever meet. */
static inline bool history_new_here(struct history_search *s) {
    uint64_t print[2] = {s->print[0] ^ history_mix(s->state),
                         s->print[1] ^ history_mix(~(uint64_t)s->state)};
    struct history_seen *slot;

    print[0] |= 1;
    if (2 * s->seen_count >= s->seen_room)
        history_seen_grow(s);
    slot = history_slot(s, print);
    if (slot->print[0] == 0) {
        slot->print[0] = print[0];
        slot->print[1] = print[1];
        slot->used = HISTORY_NONE;
        s->seen_count++;
    }
    for (size_t i = slot->used; i != HISTORY_NONE;
         i = (size_t)s->sets[i * (s->words + 1)]) {
        s->steps++;
        if (history_covers(s, &s->sets[i * (s->words + 1) + 1]))
            return false;
    }
    slot->used = history_keep(s, slot->used);
    return true;
}

/* Goes on from a configuration that was just reached: finds what may be next,
   unless it was here before. */
static inline void history_enter(struct history_search *s) {
    struct history_frame *frame = &s->frames[s->frame_count++];

    history_absorb(s);
    frame->trail = s->trailed;
    frame->state = s->state;
    frame->first = s->candidate_count;
    if (s->left > 0 && history_new_here(s))
        for (uint32_t e = s->next[0]; e % 2 == 1; e = s->next[e])
            if (history_possible(s, &s->moves[(e - 1) / 2]))
                history_candidate(s, frame->first, (e - 1) / 2);
    frame->last = s->candidate_count;
}

/* Searches for an order.  Returns 1 if there is one, 0 if there is none and
   -1 if that would take too long to say. */
static inline int history_search(struct history_search *s) {
    history_enter(s);
    while (s->left > 0) {
        struct history_frame *frame = &s->frames[s->frame_count - 1];
        uint32_t move;

        if (s->set_count + s->steps / 32 > HISTORY_CONFIGURATIONS)
            return -1;
        history_unlift(s, frame->trail);
        s->state = frame->state;
        s->candidate_count = frame->last;
        if (frame->first == frame->last) {
            if (--s->frame_count == 0)
                return 0;
            continue;
        }
        move = s->candidates[frame->first++];
        history_lift(s, move);
        s->state = s->moves[move].to;
        history_enter(s);
    }
    return 1;
}

/* ---- Linear histories ------------------------------------------------ */

/* An event: the begin or the end of a move, or the entry of the list. */
struct history_event {
    uint64_t time;
    uint32_t entry;
};

/* Orders by time; begins come before ends, so that equal times overlap. */
static inline int history_compare_events(const void *a, const void *b) {
    const struct history_event *x = a, *y = b;

    if (x->time != y->time)
        return x->time < y->time ? -1 : 1;
    if (x->entry % 2 != y->entry % 2)
        return x->entry % 2 == 1 ? -1 : 1;
    return x->entry < y->entry ? -1 : x->entry > y->entry;
}

/* Whether the search has use for an operation: it has an answer, or may have
   changed something. */
static inline bool history_counts(const struct history_op *op) {
    return history_ok(op) || history_effect(op);
}

/* The state in which a key has a value; NEVER if nobody wrote it. */
static inline uint32_t history_state(const struct history_key *key,
                                     uint64_t value) {
    const struct history_writer *writer = history_writer(key, value);

    return value == 0 ? HISTORY_ABSENT
           : writer != NULL
               ? HISTORY_JUNK + 1 + (uint32_t)(writer - key->writers)
               : HISTORY_NEVER;
}

/* Makes an operation a move of the search; false if it has no use there: what
   expects a value that nobody wrote, and need not be in the order. */
static inline bool history_move(const struct history_key *key,
                                const struct history_ref *ref,
                                struct history_move *m) {
    const struct history_op *op = ref->op;
    bool read = op->kind == HISTORY_READ;

    memset(m, 0, sizeof *m);
    m->ref = ref;
    m->required = history_ok(op);
    m->effect = history_effect(op);
    m->sure = m->required && m->effect;
    m->denied = m->required && op->refused;
    m->bound = read || (op->conditional && !m->denied);
    m->existed = op->existed;
    if (m->bound || m->denied)
        m->state = history_state(key, read ? op->value : op->expect);
    if (op->kind == HISTORY_WRITE && m->effect)
        m->to = history_state(key, op->value);
    m->end = m->required ? op->end : UINT64_MAX;
    return !(m->bound && m->state == HISTORY_NEVER);
}

/* Links the events of all moves in the order of time. */
static inline void history_link(struct history_search *s) {
    struct history_event *events = history_alloc(2 * s->count, sizeof *events);
    size_t count = 0;
    uint32_t last = 0;

    for (size_t i = 0; i < s->count; i++) {
        events[count].time = s->moves[i].ref->op->begin;
        events[count++].entry = (uint32_t)(1 + 2 * i);
        if (!s->moves[i].required)
            continue;
        events[count].time = s->moves[i].end;
        events[count++].entry = (uint32_t)(2 + 2 * i);
    }
    qsort(events, count, sizeof *events, history_compare_events);
    for (size_t i = 0; i < count; i++) {
        s->next[last] = events[i].entry;
        s->prev[events[i].entry] = last;
        last = events[i].entry;
    }
    s->next[last] = 0;
    s->prev[0] = last;
    free(events);
}

/* Makes the writes of values that were seen required ones, which end no later
   than those who saw them ("seen").  A write that was seen has itself seen what
   it expected. */
static inline void history_seen(struct history_search *s, size_t states) {
    struct history_move **writers = history_alloc(states, sizeof *writers);

    for (size_t i = 0; i < s->count; i++)
        if (s->moves[i].effect && s->moves[i].to > HISTORY_JUNK)
            writers[s->moves[i].to] = &s->moves[i];
    for (size_t i = 0; i < s->count; i++) {
        const struct history_move *m = &s->moves[i];

        while (m->required && m->bound && m->state > HISTORY_JUNK) {
            struct history_move *writer = writers[m->state];

            if (writer == NULL || (writer->required && writer->end <= m->end))
                break;
            writer->required = true;
            writer->end = m->end;
            m = writer;
        }
    }
    free(writers);
}

/* Gives a move its print, or its bit in the set of what was used.  It has
   neither if it is of use in one state only, which it leaves for good: then it
   makes no difference later whether it was used ("spent"). */
static inline void history_mark_move(struct history_search *s, size_t i) {
    struct history_move *m = &s->moves[i];

    m->option = HISTORY_NONE;
    if (m->required) {
        m->print[0] = history_mix(2 * i) & ~UINT64_C(1);
        m->print[1] = history_mix(2 * i + 1);
    } else if (!m->bound || m->state == HISTORY_ABSENT) {
        m->option = s->words++;
    }
}

/* Prepares the search over a key's operations; history_search_free() ends
   it. */
static inline void history_search_init(struct history_search *s,
                                       const struct history_key *key) {
    size_t states = HISTORY_JUNK + 1 + key->writer_count;

    memset(s, 0, sizeof *s);
    s->moves = history_alloc(key->count, sizeof *s->moves);
    s->needed = history_alloc(states, sizeof *s->needed);
    s->asked = history_alloc(states, sizeof *s->asked);
    s->wanted = history_alloc(states, sizeof *s->wanted);
    for (size_t i = 0; i < key->count; i++) {
        struct history_move *m = &s->moves[s->count];

        if (!history_counts(key->refs[i].op) ||
            !history_move(key, &key->refs[i], m))
            continue;
        s->count++;
    }
    history_seen(s, states);
    for (size_t i = 0; i < s->count; i++)
        history_mark_move(s, i);
    s->words = (s->words + 63) / 64;
    s->used = history_alloc(s->words, sizeof *s->used);
    for (size_t i = 0; i < s->count; i++)
        history_count_move(s, &s->moves[i], false);
    s->next = history_alloc(2 * s->count + 1, sizeof *s->next);
    s->prev = history_alloc(2 * s->count + 1, sizeof *s->prev);
    s->trail = history_alloc(s->count, sizeof *s->trail);
    s->frames = history_alloc(s->count + 1, sizeof *s->frames);
    history_link(s);
}

/* Frees what history_search_init() and the search have made. */
static inline void history_search_free(struct history_search *s) {
    free(s->moves);
    free(s->needed);
    free(s->asked);
    free(s->wanted);
    free(s->next);
    free(s->prev);
    free(s->trail);
    free(s->frames);
    free(s->candidates);
    free(s->used);
    free(s->seen);
    free(s->sets);
}

/* Checks one key of which all operations are consistent, or none. */
static inline const char *history_linear_key(struct history_key *key,
                                             uint64_t unused) {
    struct history_search s;
    const char *wrong = NULL;
    size_t consistent = 0;
    int found;

    (void)unused;
    for (size_t i = 0; i < key->count; i++)
        consistent += key->refs[i].op->consistent;
    for (size_t i = 0; i < key->count && consistent > 0; i++)
        if (!key->refs[i].op->consistent)
            return history_blame(key->h, &key->refs[i],
                                 "is plain, on a key of consistent ones", NULL);
        else if (history_ok(key->refs[i].op) && key->refs[i].op->stale)
            return history_blame(key->h, &key->refs[i],
                                 "is stale, and must not be", NULL);
    if (consistent == 0)
        return NULL;
    history_search_init(&s, key);
    found = history_search(&s);
    if (found < 0)
        wrong = history_say(key->h,
                            "undecided: key %u: after %zu configurations of "
                            "%zu operations",
                            key->refs[0].op->key, s.set_count, s.count);
    else if (found == 0)
        wrong = history_blame(key->h, s.moves[s.stuck].ref,
                              "fits in no order: not linearizable", NULL);
    history_search_free(&s);
    return wrong;
}

/* Checks that each key with consistent operations is a register: whether one
   order of all its operations, which keeps to the times, explains all answers.
   Keys without any are left to history_check_plain(); one that has both kinds
   is misuse.  Returns NULL, or a line that says what is wrong, which is good
   until the next check; "undecided: ..." if the search was given up. */
static inline const char *history_check_linear(struct history *h) {
    return history_each_key(h, history_linear_key, 0);
}

/* ---- Plain histories ------------------------------------------------- */

/* What is known of the order in which effects (writes and deletes) stand,
   after Gibbons and Korach.  The store orders all of them by versions; that of
   an acknowledged one is above those of all that were acknowledged before it
   began, and a read sees nothing below what was acknowledged `slack` before
   it began: the bound for plain reads, nothing for consistent ones and for
   conditions.  So for each effect there is a time `after`: its own begin, or
   the begin of a read that saw it, less the slack; and what was acknowledged
   before that time has a lower version.

   Two that are each below the other by this rule are a violation, and it can
   be shown that longer circles never come without such a pair.  This finds
   the lost write, the read older than an earlier write, the deleted key that
   is back and values that come and go, all at once.

   What is not concluded, because this store may do so and keep its promises:

   - nothing is below an effect with no answer merely by time, and it is below
     nothing: one of its attempts may surface whenever repair finds it, more
     than once even, and also after later acknowledged writes, since its
     version comes from the clock of another node;
   - nothing about a plain write while it is under way: it is tried again with
     a higher version if it collides, and so may be seen, gone, and seen again;
   - of two reads within the slack, the later may see the older value;
   - plain writes' `existed`, and refusals, say nothing.

   A consistent write is in the order once, and one with a condition stands
   right behind what it expected: two that succeeded on the same value are a
   violation, as is the value back again after one. */

/* An effect and what is known of its place. */
struct history_zone {
    const struct history_ref *ref;
    uint64_t end;                    /* UINT64_MAX when not acknowledged */
    uint64_t after;                  /* what ended before this is below it, */
    const struct history_ref *why;   /* as this shows: itself or a reader */
    const struct history_zone *next; /* what its value was the condition of */
};

/* The plain check of one key. */
struct history_plain {
    struct history_key *key;
    uint64_t bound;
    struct history_zone *zones; /* writes and deletes, by begin */
    size_t count;
    struct history_mark {
        uint64_t end;
        size_t one, two; /* of the zones that end by then, that with the latest
                            `after` and the second; count if none */
    } * marks;           /* for zones that are acknowledged, by end */
    size_t mark_count;
};

/* The time before which what is acknowledged must be seen by a reader. */
static inline uint64_t history_horizon(const struct history_plain *plain,
                                       const struct history_op *op) {
    uint64_t slack = op->consistent || op->conditional ? 0 : plain->bound;

    return op->begin > slack ? op->begin - slack : 0;
}

/* Raises what is known to be below a zone. */
static inline void history_raise(struct history_zone *zone, uint64_t after,
                                 const struct history_ref *why) {
    if (after <= zone->after)
        return;
    zone->after = after;
    zone->why = why;
}

/* Makes the zones of a key, with what their own begins show. */
static inline void history_zones(struct history_plain *plain) {
    struct history_key *key = plain->key;

    plain->zones = history_alloc(key->count, sizeof *plain->zones);
    for (size_t i = 0; i < key->count; i++) {
        const struct history_ref *ref = &key->refs[i];
        struct history_zone *zone = &plain->zones[plain->count];

        if (!history_effect(ref->op))
            continue;
        zone->ref = zone->why = ref;
        zone->end = history_ok(ref->op) ? ref->op->end : UINT64_MAX;
        zone->after = history_ok(ref->op) ? ref->op->begin : 0;
        if (ref->op->kind == HISTORY_WRITE)
            history_writer(key, ref->op->value)->zone = plain->count;
        plain->count++;
    }
}

/* Notes that next, whose condition held, stands right behind the write of what
   it expected.  Returns what is wrong with that, or NULL.  A plain write may
   be there twice while it is under way, and whenever it has no answer. */
static inline const char *history_succeed(struct history_plain *plain,
                                          struct history_zone *zone,
                                          const struct history_zone *next) {
    const struct history_op *write = zone->ref->op;

    if (!write->consistent && !write->conditional &&
        zone->end >= next->ref->op->begin)
        return NULL;
    if (zone->next != NULL)
        return history_blame(plain->key->h, next->ref,
                             "succeeded on the same value as", zone->next->ref);
    zone->next = next;
    return NULL;
}

/* Takes in what readers of values show. */
static inline const char *history_see_values(struct history_plain *plain) {
    struct history_key *key = plain->key;
    size_t own = 0; /* the zone of ref, if it has one */

    for (size_t i = 0; i < key->count; i++) {
        const struct history_ref *ref = &key->refs[i];
        const char *wrong = NULL;
        struct history_zone *zone;
        uint64_t value;

        while (own < plain->count && plain->zones[own].ref < ref)
            own++;
        if (!history_saw(ref->op, &value) || value == 0)
            continue;
        zone = &plain->zones[history_writer(key, value)->zone];
        if (ref->op->kind != HISTORY_READ)
            wrong = history_succeed(plain, zone, &plain->zones[own]);
        if (wrong != NULL)
            return wrong;
        if (ref->op->kind != HISTORY_READ || !ref->op->stale)
            history_raise(zone, history_horizon(plain, ref->op), ref);
    }
    return NULL;
}

/* What is wrong with a reader of no value, or NULL.  The key had none at first,
   and has none after a delete: the newest of what the reader had to see is the
   one or the other, and not a write. */
static inline const char *history_see_absent(struct history_plain *plain,
                                             const struct history_ref *ref) {
    uint64_t horizon = history_horizon(plain, ref->op);
    const struct history_zone *newest = NULL;

    for (size_t i = 0; i < plain->count; i++) {
        const struct history_zone *zone = &plain->zones[i];

        if (zone->ref->op->kind == HISTORY_WRITE && zone->end < horizon &&
            (newest == NULL || zone->after > newest->after))
            newest = zone;
    }
    if (newest == NULL)
        return NULL;
    for (size_t i = 0; i < plain->count; i++) {
        const struct history_zone *zone = &plain->zones[i];

        if (zone->ref->op->kind == HISTORY_DELETE && zone->ref != ref &&
            zone->ref->op->begin <= ref->op->end && zone->end >= newest->after)
            return NULL;
    }
    return history_blame(plain->key->h, ref, "saw no value: it lost",
                         newest->ref);
}

/* What is wrong with all readers of no value, or NULL.  More than one write can
   have succeeded on an absent key only if something deleted it. */
static inline const char *history_see_absents(struct history_plain *plain) {
    const struct history_ref *first = NULL;
    const char *wrong = NULL;
    bool deletes = false;

    for (size_t i = 0; i < plain->count; i++)
        deletes |= plain->zones[i].ref->op->kind == HISTORY_DELETE;
    for (size_t i = 0; i < plain->key->count && wrong == NULL; i++) {
        const struct history_ref *ref = &plain->key->refs[i];
        uint64_t value;

        if (!history_saw(ref->op, &value) || value != 0 ||
            (ref->op->kind == HISTORY_READ && ref->op->stale))
            continue;
        wrong = history_see_absent(plain, ref);
        if (wrong != NULL || deletes || ref->op->kind != HISTORY_WRITE)
            continue;
        if (first != NULL)
            wrong = history_blame(plain->key->h, ref, "created the same key as",
                                  first);
        first = ref;
    }
    return wrong;
}

/* Orders by end. */
static inline int history_compare_marks(const void *a, const void *b) {
    const struct history_mark *x = a, *y = b;

    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return x->one < y->one ? -1 : x->one > y->one;
}

/* Whether zone a, if it is one, has a later `after` than zone b. */
static inline bool history_later(const struct history_plain *plain, size_t a,
                                 size_t b) {
    return a < plain->count &&
           (b >= plain->count || plain->zones[a].after > plain->zones[b].after);
}

/* Makes the marks, so that the latest of all zones that end before a time are
   found at once. */
static inline void history_marks(struct history_plain *plain) {
    struct history_mark *marks = history_alloc(plain->count, sizeof *marks);

    for (size_t i = 0; i < plain->count; i++)
        if (plain->zones[i].end != UINT64_MAX) {
            marks[plain->mark_count].end = plain->zones[i].end;
            marks[plain->mark_count].two = plain->count;
            marks[plain->mark_count++].one = i;
        }
    qsort(marks, plain->mark_count, sizeof *marks, history_compare_marks);
    for (size_t i = 1; i < plain->mark_count; i++) {
        size_t own = marks[i].one;

        marks[i].one = marks[i - 1].one;
        marks[i].two = marks[i - 1].two;
        if (history_later(plain, own, marks[i].one)) {
            marks[i].two = marks[i].one;
            marks[i].one = own;
        } else if (history_later(plain, own, marks[i].two)) {
            marks[i].two = own;
        }
    }
    plain->marks = marks;
}

/* Of the zones other than this one that are below it, that with the latest
   `after`; NULL if there is none. */
static inline struct history_zone *
history_below(const struct history_plain *plain, size_t zone) {
    size_t low = 0, high = plain->mark_count, found;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (plain->marks[middle].end < plain->zones[zone].after)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return NULL;
    found = plain->marks[low - 1].one;
    if (found == zone)
        found = plain->marks[low - 1].two;
    return found < plain->count ? &plain->zones[found] : NULL;
}

/* The answer that two zones are each newer than the other. */
static inline const char *history_twist(struct history_plain *plain,
                                        const struct history_zone *a,
                                        const struct history_zone *b,
                                        const struct history_ref *why_a) {
    char one[HISTORY_LINE], two[HISTORY_LINE];
    char why_one[HISTORY_LINE], why_two[HISTORY_LINE];

    return history_say(
        plain->key->h, "key %u: %s is newer than %s by %s, and older by %s",
        a->ref->op->key, history_line(a->ref, one), history_line(b->ref, two),
        why_a == a->ref ? "its time" : history_line(why_a, why_one),
        b->why == b->ref ? "its time" : history_line(b->why, why_two));
}

/* Looks for two zones that are each below the other. */
static inline const char *history_circle(struct history_plain *plain) {
    for (size_t i = 0; i < plain->count; i++) {
        const struct history_zone *zone = &plain->zones[i];
        const struct history_zone *below = history_below(plain, i);

        if (zone->next != NULL && zone->next->end < zone->after)
            return history_twist(plain, zone->next, zone, zone->next->ref);
        if (below != NULL && below->after > zone->end)
            return history_twist(plain, below, zone, below->why);
    }
    return NULL;
}

/* Checks one key. */
static inline const char *history_plain_key(struct history_key *key,
                                            uint64_t bound) {
    struct history_plain plain = {.key = key, .bound = bound};
    const char *wrong;

    history_zones(&plain);
    wrong = history_see_values(&plain);
    if (wrong == NULL)
        wrong = history_see_absents(&plain);
    if (wrong == NULL) {
        history_marks(&plain);
        wrong = history_circle(&plain);
    }
    free(plain.zones);
    free(plain.marks);
    return wrong;
}

/* Checks what holds for all operations, plain or consistent, on each key:
   values were written by somebody who had begun to, no acknowledged write is
   lost, no plain read misses one that ended more than `bound` before it began,
   no consistent one misses any, no deleted value is back.  Returns NULL, or a
   line that says what is wrong, which is good until the next check. */
static inline const char *history_check_plain(struct history *h,
                                              uint64_t bound) {
    return history_each_key(h, history_plain_key, bound);
}

#endif
