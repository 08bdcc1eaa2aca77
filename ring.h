/*
 * ring.h - which members of the cluster own which partition.
 *
 * The key space is cut into a fixed number of partitions; ring_fingerprint()
 * and ring_partition() say which one a key is in. ring_build() gives
 * each partition its owners, the members that keep a copy of its keys. Every
 * node works the owners out for itself, so that no node has to be asked: the
 * ring is a function of the set of members and of nothing else. It does not
 * depend on the order in which they are given, on the rings that were there
 * before, on time, on chance or on the machine.
 *
 * Terms. A slot is one place in a partition's list of owners. With P
 * partitions and M members there are S = P * min(replicas, M) slots; a
 * member's load is the number of slots that it fills, the mean load is S / M.
 *
 * What is promised, always:
 *
 *  1. Each partition has min(replicas, M) owners, all of them distinct.
 *  2. No load exceeds the mean plus 5 %, rounded up: ceil(1.05 * S / M), nor P.
 *  3. Zones come after the load. Count, over all partitions, the pairs of
 *     owners that are in the same zone: no ring that keeps 1 and 2 has fewer.
 *     So if 1 and 2 leave room for distinct zones in every partition, then
 *     every partition has them. There is room if M >= replicas and the sum,
 *     over the zones, of min(P, bound * members of the zone) is at least S.
 *     If there is not, as few owners as possible share a zone.
 *
 * What holds in practice, is measured by test/ring_test.c, and is no theorem:
 * a member that joins takes about S / (M + 1) slots, one that leaves gives up
 * those that it had, and few other slots change owner, since the bound that
 * moves with M pushes some on. At 256 partitions, with a zone for each member
 * and M at most S / 48 (16 members at 3 replicas), the slots that change owner
 * are 1.04 times the least possible on the average and at most 1.3 times; of
 * half a million joins and leaves with random names 17 passed that, the worst
 * with 1.35. It is more with many partitions and one replica (1.46 at 1024),
 * where the loads are smaller (256 partitions and 3 replicas: 1.6 with up to
 * 34 members, 5 with up to 100), and where a join or a leave changes what the
 * zones have room for (up to 2).
 *
 * What is not: there is no lower bound for a load, members have no weights,
 * and first places are spread by chance alone.
 *
 * Where it comes from: virtual nodes on a circle of hashes are Karger et al.,
 * "Consistent Hashing and Random Trees" (STOC 1997); the bound is that of
 * Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads"
 * (SODA 2018); that pairs are settled nearest first makes the outcome a stable
 * matching, Gale and Shapley, "College Admissions and the Stability of
 * Marriage" (1962), and each member's turn at its own permutation is how
 * Maglev fills its table, Eisenbud et al. (NSDI 2016).
 */
#ifndef RING_H
#define RING_H

#include <stddef.h>
#include <stdint.h>

/* Limits of ring_build(): they keep its memory below some 70 MiB. */
#define RING_MEMBERS_MAX    1024
#define RING_PARTITIONS_MAX 4096

/* What may own partitions. Both strings are read by ring_build() only. */
struct ring_member {
    const char *name; /* unique in the ring; its bytes decide the place */
    const char *zone; /* members with equal zones are likely to fail at once */
};

/* Immutable once built: any number of threads may read it with no lock. */
struct ring;

/*
 * Builds the ring of count members; the caller frees it with ring_free().
 * Neither the array nor its strings are kept. replicas is the number of owners
 * wanted for each partition. NULL if memory runs out or an argument is not
 * valid: count not within 1..RING_MEMBERS_MAX, partitions not within
 * 1..RING_PARTITIONS_MAX, replicas 0, a NULL pointer, or a name given twice.
 */
struct ring *ring_build(const struct ring_member *members, size_t count,
                        unsigned partitions, unsigned replicas);

/* Frees the ring and every array got from it. NULL is allowed. */
void ring_free(struct ring *ring);

/*
 * The owners of a partition (below the count given to ring_build) as indexes
 * into the array that was given to ring_build; *count is how many there are,
 * min(replicas, members). The array belongs to the ring. Owners stand in order
 * of their distance on the circle; the first one has the partition's
 * operations to order. Two owners that stay keep their order whoever joins or
 * leaves.
 */
const unsigned *ring_owners(const struct ring *ring, unsigned partition,
                            unsigned *count);

/* The number of slots that a member (an index as above) fills. */
unsigned ring_load(const struct ring *ring, size_t member);

/*
 * The fingerprint of a key: SipHash-1-3 under a secret of the cluster, so that
 * nobody can choose keys that meet in one partition or one slot of an index.
 * Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012); one round
 * a word and three at the end are what hash tables use today.
 */
uint64_t ring_fingerprint(const void *key, size_t length,
                          const uint64_t secret[2]);

/* The partition that a key with this fingerprint is in, by its top bits.
   partitions is a power of two. */
unsigned ring_partition(uint64_t fingerprint, unsigned partitions);

#endif
