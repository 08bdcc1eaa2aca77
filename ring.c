/*
 * ring.c - consistent hashing with bounded loads and zones; ring.h says what
 * is promised, this file how it is done.
 *
 * The circle. Picture the circle of hashes cut into as many arcs as there are
 * partitions, partition p standing at the start of arc p. Each member has one
 * virtual node in every arc. How far into its arc a virtual node stands is
 * decided by hashing, and does not depend on other members. Plain consistent
 * hashing goes clockwise from each partition and takes the first members that
 * it meets. A member that joins then takes the slots where it comes early, and
 * nothing else changes.
 *
 * Even loads. Were the distances plain hashes, the loads would differ by the
 * square root of their size, and the bound of 5 % would have to move many
 * slots. So a member's hashes are only used to sort its own virtual nodes: the
 * one with the k-th smallest hash stands k steps into its arc. Each member now
 * has exactly one virtual node at each distance, and the loads differ by about
 * half as much. That is the cheapest balance there is: it moves nothing.
 *
 * The bound. All arcs are walked at the same time, step by step, and whichever
 * pair of a partition and a member meets first is settled first: the member
 * becomes an owner unless the partition has enough or the member is full. No
 * partition and member would both rather have each other than what they got,
 * so a slot moves only if something nearer took or left its place.
 *
 * The rest. A walk can end with a partition short of an owner, because
 * whoever has room left owns it already or is in a zone that it has. Such
 * slots are handed on: a member takes the partition and passes another one on,
 * until it comes to a member with room. This is the method of shortest
 * augmenting paths for flows of least cost (Jewell 1958, Busacker and Gowen
 * 1960), and therefore what it leaves cannot be bettered.
 *
 * Chapters: Keys - Hashes - The plan - The walk - Handing on - The ring.
 */
#include "ring.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The ring: what is left when it is built. */
struct ring {
    unsigned replicas; /* owners of each partition: min(replicas, members) */
    unsigned *owners;  /* [partition][replicas] indexes of members as given */
    unsigned loads[];  /* [member as given] */
};

/* -------------------------------------------------------------------- Keys */

/* The 8 bytes at p, or fewer, as a little-endian number. */
static uint64_t key_word(const unsigned char *p, size_t length) {
    uint64_t word = 0;

    for (size_t i = 0; i < length; i++)
        word |= (uint64_t)p[i] << 8 * i;
    return word;
}

static uint64_t rotate(uint64_t x, unsigned bits) {
    return x << bits | x >> (64 - bits);
}

static void sip_round(uint64_t v[4]) {
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0];
    v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32) + v[3];
    v[2] += v[1];
    v[3] = rotate(v[3], 21) ^ v[0];
    v[1] = rotate(v[1], 17) ^ v[2];
    v[2] = rotate(v[2], 32);
}

uint64_t ring_fingerprint(const void *key, size_t length,
                          const uint64_t secret[2]) {
    const unsigned char *p = key;
    uint64_t v[4] = {
        secret[0] ^ UINT64_C(0x736f6d6570736575),
        secret[1] ^ UINT64_C(0x646f72616e646f6d),
        secret[0] ^ UINT64_C(0x6c7967656e657261),
        secret[1] ^ UINT64_C(0x7465646279746573),
    };

    for (size_t left = length;; p += 8, left -= 8) {
        uint64_t word = left >= 8 ? key_word(p, 8)
                                  : key_word(p, left) | (uint64_t)length << 56;

        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
        if (left < 8)
            break;
    }
    v[2] ^= 0xff;
    for (int i = 0; i < 3; i++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

unsigned ring_partition(uint64_t fingerprint, unsigned partitions) {
    return (unsigned)((fingerprint >> 32) * partitions >> 32);
}

/* ------------------------------------------------------------------ Hashes
 *
 * Every node must come to the same ring, so the hash is spelt out here, in
 * integers of fixed width, byte by byte: the order of bytes in a machine's
 * words has no part in it. It need not withstand an attacker, since only an
 * operator names members.
 */

/* FNV-1a, 64 bits (Fowler, Noll and Vo; constants from their page). */
static uint64_t hash_name(const char *name) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);

    for (; *name != '\0'; name++) {
        hash ^= (unsigned char)*name;
        hash *= UINT64_C(0x100000001b3);
    }
    return hash;
}

/*
 * The output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014; the
 * constants are David Stafford's "Mix13"): a bijection in which each bit of x
 * flips each bit of the result half of the time.
 */
static uint64_t hash_mix(uint64_t x) {
    x ^= x >> 30;
    x *= UINT64_C(0xbf58476d1ce4e5b9);
    x ^= x >> 27;
    x *= UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/*
 * The hash of the virtual node that the member with the hashed name has in the
 * arc of the partition. Partitions are one multiple of the golden ratio apart,
 * as the numbers of SplitMix64 are, so that no two meet.
 */
static uint64_t hash_node(uint64_t name, unsigned partition) {
    uint64_t step = UINT64_C(0x9e3779b97f4a7c15);

    return hash_mix(hash_mix(name) + step * ((uint64_t)partition + 1));
}

/* ---------------------------------------------------------------- The plan
 *
 * A plan is a ring in the making. In it members are numbered in the order of
 * their names, never as given: that is what makes the ring the same for every
 * order of the same members.
 */

struct member {
    const char *name; /* the caller's strings */
    const char *zone;
    unsigned given; /* index in the caller's array */
    unsigned group; /* the number of the first member in the same zone */
    unsigned load;  /* slots that it fills so far */
    /* The rest is for "Handing on". */
    int stale;     /* its row of steps is to be worked out again */
    int64_t cost;  /* of the cheapest chain that ends here, or COST_NONE */
    unsigned from; /* the member before this one in that chain */
};

/* The cheapest way for a member to hand a partition to another one. */
struct step {
    int64_t cost; /* COST_NONE: there is no way */
    unsigned partition;
};

struct plan {
    unsigned count; /* of members */
    unsigned partitions;
    unsigned replicas;      /* owners that a partition gets, <= count */
    unsigned bound;         /* the greatest load allowed */
    unsigned missing;       /* slots that are still to be filled */
    struct member *members; /* [count] by name */
    unsigned *circle;       /* [member][k] the partition in whose arc its
                               virtual node stands k steps from the start */
    unsigned *distance;     /* [member][partition] that k: the inverse */
    unsigned *owners;       /* [partition][replicas] of which held are there */
    unsigned *held;         /* [partition] owners that it has so far */
    struct step *steps;     /* [count + 1][count] */
};

/* Frees what plan_init allocated, all or part of it. */
static void plan_clear(struct plan *plan) {
    free(plan->members);
    free(plan->circle);
    free(plan->distance);
    free(plan->owners);
    free(plan->held);
    free(plan->steps);
}

/* Allocates the arrays; the numbers are set. -1: memory ran out. */
static int plan_init(struct plan *plan) {
    size_t count = plan->count, partitions = plan->partitions;

    plan->members = calloc(count, sizeof *plan->members);
    plan->circle = calloc(count * partitions, sizeof *plan->circle);
    plan->distance = calloc(count * partitions, sizeof *plan->distance);
    plan->owners = calloc(partitions * plan->replicas, sizeof *plan->owners);
    plan->held = calloc(partitions, sizeof *plan->held);
    plan->steps = calloc((count + 1) * count, sizeof *plan->steps);
    return plan->members && plan->circle && plan->distance && plan->owners &&
                   plan->held && plan->steps
               ? 0
               : -1;
}

/*
 * The bound: the mean plus 5 %, rounded up, in integers; never more than all
 * partitions, since an owner counts once. It leaves room for every slot.
 */
static unsigned plan_bound(const struct plan *plan) {
    uint64_t slots = (uint64_t)plan->partitions * plan->replicas;
    uint64_t whole = (uint64_t)plan->count * 100;
    uint64_t bound = (slots * 105 + whole - 1) / whole;

    return bound < plan->partitions ? (unsigned)bound : plan->partitions;
}

/* For qsort: by the bytes of the name. */
static int member_compare(const void *left, const void *right) {
    const struct member *a = left, *b = right;

    return strcmp(a->name, b->name);
}

/* Numbers the members by name, and the zones. -1: a name came twice. */
static int plan_number(struct plan *plan, const struct ring_member *given) {
    struct member *members = plan->members;

    for (unsigned m = 0; m < plan->count; m++) {
        members[m].name = given[m].name;
        members[m].zone = given[m].zone;
        members[m].given = m;
    }
    qsort(members, plan->count, sizeof *members, member_compare);
    for (unsigned m = 0; m < plan->count; m++) {
        if (m > 0 && strcmp(members[m - 1].name, members[m].name) == 0)
            return -1;
        while (strcmp(members[members[m].group].zone, members[m].zone) != 0)
            members[m].group++;
    }
    return 0;
}

/* One virtual node, for the sort by hash. */
struct node {
    uint64_t hash;
    unsigned partition;
};

/* For qsort: by hash. One member's are all distinct, so there are no ties. */
static int node_compare(const void *left, const void *right) {
    const struct node *a = left, *b = right;

    return (a->hash > b->hash) - (a->hash < b->hash);
}

/* Puts every member's virtual nodes on the circle. -1: memory ran out. */
static int plan_circle(struct plan *plan) {
    struct node *nodes = calloc(plan->partitions, sizeof *nodes);

    if (nodes == NULL)
        return -1;
    for (unsigned m = 0; m < plan->count; m++) {
        uint64_t name = hash_name(plan->members[m].name);
        size_t row = (size_t)m * plan->partitions;

        for (unsigned p = 0; p < plan->partitions; p++) {
            nodes[p].hash = hash_node(name, p);
            nodes[p].partition = p;
        }
        qsort(nodes, plan->partitions, sizeof *nodes, node_compare);
        for (unsigned k = 0; k < plan->partitions; k++) {
            plan->circle[row + k] = nodes[k].partition;
            plan->distance[row + nodes[k].partition] = k;
        }
    }
    free(nodes);
    return 0;
}

/* How far into the partition's arc the member's virtual node stands. */
static unsigned plan_distance(const struct plan *plan, unsigned member,
                              unsigned partition) {
    return plan->distance[(size_t)member * plan->partitions + partition];
}

/* The owners of a partition; plan->held says how many there are so far. */
static unsigned *plan_owners(const struct plan *plan, unsigned partition) {
    return plan->owners + (size_t)partition * plan->replicas;
}

/* Whether the member owns the partition. */
static int plan_owns(const struct plan *plan, unsigned member,
                     unsigned partition) {
    const unsigned *owners = plan_owners(plan, partition);

    for (unsigned i = 0; i < plan->held[partition]; i++)
        if (owners[i] == member)
            return 1;
    return 0;
}

/* How many owners of the partition are in the member's zone. */
static unsigned plan_zoned(const struct plan *plan, unsigned member,
                           unsigned partition) {
    const unsigned *owners = plan_owners(plan, partition);
    unsigned group = plan->members[member].group, zoned = 0;

    for (unsigned i = 0; i < plan->held[partition]; i++)
        zoned += plan->members[owners[i]].group == group;
    return zoned;
}

/* ---------------------------------------------------------------- The walk
 *
 * The walk is taken in rounds. In round 0 a partition takes only owners that
 * are the first of their zone there, in round 1 only those that are the second
 * and so on, so that a zone is repeated when nothing else is left.
 */

/* Makes the member one more owner of the partition. */
static void plan_add(struct plan *plan, unsigned member, unsigned partition) {
    plan_owners(plan, partition)[plan->held[partition]++] = member;
    plan->missing--;
}

/*
 * Walks all arcs, a step at a time, and settles the pairs that meet.
 * Invariant: no load exceeds the bound, no partition has an owner twice.
 */
static void plan_walk(struct plan *plan, unsigned round) {
    for (unsigned k = 0; k < plan->partitions; k++) {
        for (unsigned m = 0; m < plan->count; m++) {
            unsigned p = plan->circle[(size_t)m * plan->partitions + k];

            if (plan->members[m].load == plan->bound ||
                plan->held[p] == plan->replicas || plan_owns(plan, m, p) ||
                plan_zoned(plan, m, p) != round)
                continue;
            plan_add(plan, m, p);
            plan->members[m].load++;
        }
    }
}

/* -------------------------------------------------------------- Handing on
 *
 * A chain begins at a partition that is short of an owner. A member takes it
 * and hands one of its own to a second member, which hands one to a third, and
 * so on to a member with room. Those between keep their loads, and a partition
 * that is handed on has as many owners as before.
 *
 * A chain costs what it adds to the pairs of owners that share a zone; among
 * equals, the distances of the new owners, so that chains are short and owners
 * near. Always the cheapest one is taken. The walk in round r adds owners that
 * cost r pairs each, when no chain costs less, so its steps are cheapest
 * chains as well. It follows that the sum of all pairs is the least possible,
 * that no cycle of steps has a cost below zero, and that no chain meets a
 * member twice.
 *
 * Chains are searched for among members only: steps[a][b] is the cheapest
 * partition that a can hand to b, and the row behind the last member stands
 * for the partitions that are short of an owner.
 */

#define COST_NONE INT64_MAX
#define COST_PAIR (INT64_C(1) << 32) /* more than all distances of a chain */

/* The step from a member, or plan->count for "no one", to another. */
static struct step *plan_step(const struct plan *plan, unsigned from,
                              unsigned to) {
    return plan->steps + (size_t)from * plan->count + to;
}

/*
 * Notes for each member what it costs to give it the partition: in place of
 * the owner at index i or, if i is the number of owners, as one more.
 */
static void plan_offer(struct plan *plan, unsigned partition, unsigned i) {
    int gives = i < plan->held[partition];
    unsigned from = gives ? plan_owners(plan, partition)[i] : plan->count;
    int64_t spared = gives ? plan_zoned(plan, from, partition) - 1 : 0;

    for (unsigned m = 0; m < plan->count; m++) {
        struct step *step = plan_step(plan, from, m);
        int64_t pairs = (int64_t)plan_zoned(plan, m, partition) - spared;
        int64_t cost = plan_distance(plan, m, partition) + 1;

        if (plan_owns(plan, m, partition))
            continue;
        if (gives && plan->members[from].group == plan->members[m].group)
            pairs--; /* the one that leaves was counted */
        cost += pairs * COST_PAIR;
        if (cost < step->cost)
            *step = (struct step){cost, partition};
    }
}

/* Works out the rows of steps that are stale; that of no one always is. */
static void plan_offer_all(struct plan *plan) {
    for (unsigned b = 0; b < plan->count; b++) {
        plan_step(plan, plan->count, b)->cost = COST_NONE;
        for (unsigned a = 0; a < plan->count; a++)
            if (plan->members[a].stale)
                plan_step(plan, a, b)->cost = COST_NONE;
    }
    for (unsigned p = 0; p < plan->partitions; p++) {
        for (unsigned i = 0; i < plan->held[p]; i++)
            if (plan->members[plan_owners(plan, p)[i]].stale)
                plan_offer(plan, p, i);
        if (plan->held[p] < plan->replicas)
            plan_offer(plan, p, plan->held[p]);
    }
    for (unsigned m = 0; m < plan->count; m++)
        plan->members[m].stale = 0;
}

/*
 * Finds the cheapest chain to each member by the method of Bellman and Ford,
 * which allows costs below zero: a step that parts two of a zone has one.
 */
static void plan_search(struct plan *plan) {
    int better = 1;

    for (unsigned m = 0; m < plan->count; m++) {
        plan->members[m].cost = plan_step(plan, plan->count, m)->cost;
        plan->members[m].from = plan->count;
    }
    while (better) {
        better = 0;
        for (unsigned a = 0; a < plan->count; a++) {
            for (unsigned b = 0; b < plan->count; b++) {
                int64_t so_far = plan->members[a].cost;
                int64_t cost = plan_step(plan, a, b)->cost;

                if (so_far == COST_NONE || cost == COST_NONE ||
                    so_far + cost >= plan->members[b].cost)
                    continue;
                plan->members[b].cost = so_far + cost;
                plan->members[b].from = a;
                better = 1;
            }
        }
    }
}

/*
 * Carries out the chain that ends at the member, which has room. The owners of
 * a partition that changed hands are stale: what they can spare has changed.
 */
static void plan_apply(struct plan *plan, unsigned member) {
    plan->members[member].load++;
    while (member != plan->count) {
        unsigned from = plan->members[member].from;
        unsigned p = plan_step(plan, from, member)->partition;
        unsigned *owners = plan_owners(plan, p);

        if (from == plan->count)
            plan_add(plan, member, p);
        for (unsigned i = 0; i < plan->held[p]; i++) {
            if (owners[i] == from)
                owners[i] = member;
            plan->members[owners[i]].stale = 1;
        }
        member = from;
    }
}

/*
 * Fills missing slots, each by the cheapest chain there is, as long as that
 * adds no more than round pairs.
 */
static void plan_hand_on(struct plan *plan, unsigned round) {
    for (unsigned m = 0; m < plan->count; m++)
        plan->members[m].stale = 1; /* by the walk */
    while (plan->missing > 0) {
        int64_t least = (round + 1) * COST_PAIR;
        unsigned last = plan->count;

        plan_offer_all(plan);
        plan_search(plan);
        for (unsigned m = 0; m < plan->count; m++) {
            if (plan->members[m].load < plan->bound &&
                plan->members[m].cost < least) {
                least = plan->members[m].cost;
                last = m;
            }
        }
        if (last == plan->count)
            return;
        plan_apply(plan, last);
    }
}

/* ---------------------------------------------------------------- The ring */

/* Sorts a partition's owners by distance, equal ones by name. */
static void plan_sort(const struct plan *plan, unsigned partition) {
    unsigned *owners = plan_owners(plan, partition);

    for (unsigned i = 1; i < plan->held[partition]; i++) {
        unsigned owner = owners[i], at = i;
        unsigned distance = plan_distance(plan, owner, partition);

        for (; at > 0; at--) {
            unsigned other = plan_distance(plan, owners[at - 1], partition);

            if (other < distance ||
                (other == distance && owners[at - 1] < owner))
                break;
            owners[at] = owners[at - 1];
        }
        owners[at] = owner;
    }
}

/*
 * Makes the ring of a plan that lacks nothing; it takes the array of owners
 * over and numbers the members as they were given. NULL: memory ran out.
 */
static struct ring *ring_from(struct plan *plan) {
    size_t slots = (size_t)plan->partitions * plan->replicas;
    struct ring *ring =
        calloc(1, sizeof *ring + plan->count * sizeof *ring->loads);

    if (ring == NULL)
        return NULL;
    for (unsigned p = 0; p < plan->partitions; p++)
        plan_sort(plan, p);
    for (size_t i = 0; i < slots; i++)
        plan->owners[i] = plan->members[plan->owners[i]].given;
    for (unsigned m = 0; m < plan->count; m++)
        ring->loads[plan->members[m].given] = plan->members[m].load;
    ring->replicas = plan->replicas;
    ring->owners = plan->owners;
    plan->owners = NULL;
    return ring;
}

/* Whether ring_build() may go on; that names differ is seen later. */
static int ring_allowed(const struct ring_member *members, size_t count,
                        unsigned partitions, unsigned replicas) {
    if (members == NULL || count < 1 || count > RING_MEMBERS_MAX ||
        partitions < 1 || partitions > RING_PARTITIONS_MAX || replicas < 1)
        return 0;
    for (size_t i = 0; i < count; i++)
        if (members[i].name == NULL || members[i].zone == NULL)
            return 0;
    return 1;
}

/*
 * See ring.h. The rounds come to an end: the bound leaves room for each slot,
 * and by the last round a zone may be repeated as often as there are owners.
 */
struct ring *ring_build(const struct ring_member *members, size_t count,
                        unsigned partitions, unsigned replicas) {
    struct plan plan = {.count = (unsigned)count, .partitions = partitions};
    struct ring *ring = NULL;

    if (!ring_allowed(members, count, partitions, replicas))
        return NULL;
    plan.replicas = replicas < count ? replicas : (unsigned)count;
    plan.bound = plan_bound(&plan);
    plan.missing = partitions * plan.replicas;
    if (plan_init(&plan) == 0 && plan_number(&plan, members) == 0 &&
        plan_circle(&plan) == 0) {
        for (unsigned round = 0; plan.missing > 0; round++) {
            plan_walk(&plan, round);
            plan_hand_on(&plan, round);
        }
        ring = ring_from(&plan);
    }
    plan_clear(&plan);
    return ring;
}

/* See ring.h. */
void ring_free(struct ring *ring) {
    if (ring == NULL)
        return;
    free(ring->owners);
    free(ring);
}

/* See ring.h. */
const unsigned *ring_owners(const struct ring *ring, unsigned partition,
                            unsigned *count) {
    *count = ring->replicas;
    return ring->owners + (size_t)partition * ring->replicas;
}

/* See ring.h. */
unsigned ring_load(const struct ring *ring, size_t member) {
    return ring->loads[member];
}
