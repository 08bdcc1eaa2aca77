/*
 * estoraje.c - a distributed key-value store that you use with curl.
 *
 *     curl -X POST -d hello http://localhost:8000/greeting
 *     curl http://localhost:8001/greeting
 *
 * Every node is this program, and any node answers for any key. The key space
 * is cut into partitions; ring.c gives each of them its owners, the nodes that
 * keep a copy (a replica) of its values. A write is done when a majority of the
 * owners has it, a read comes from an owner that knows of nothing it missed.
 *
 * On disk a node has, in its data directory,
 *
 *     NNN.log      one append-only file a partition: a header, then records
 *     NNN.new      what is to replace it, while it is compacted
 *     reserve      room on the disk, for deletes and compaction when it is full
 *     superblock   who the node is, and how far its clock may have run
 *     ring         the ring it knew last, so that it can start without etcd
 *     lock         locked while a process uses the directory
 *     trash/       logs that do not count any more: of an older copy, a replaced
 *                  member, a partition given away
 *     etcd/        the data of the etcd beside it, if it keeps one
 *
 * and in memory one table a partition, from a key's fingerprint to the place
 * of its newest record. One record format serves disk, network and repair; a
 * record is applied if and only if its version is higher than what is held.
 *
 * What is promised: an acknowledged write is on a majority of its owners and is
 * the newest there is; what cannot be known is never said to be absent; bytes
 * that fail their checksum are never served; after kill -9 nothing is lost, and
 * after a loss of power, with -sync second, at most the last second of one
 * machine, which the others make good; with -sync always, nothing. What is not:
 * two plain writes at the same moment are ordered, but either may be seen
 * first, unless `?consistent` is asked for; nothing is encrypted.
 *
 * Threads: -threads workers, each a poll() loop with connections of its own; a
 * pool that reads and syncs logs; one that speaks with etcd, one that repairs,
 * one that compacts and scrubs, one that keeps house. A partition has a lock.
 * The cluster's view is immutable and is swapped. All state hangs off struct
 * node; the one mutable global is the flag that a signal sets.
 *
 * Chapters, each of which uses only what stands above it:
 *
 *     Limits and includes     The data        Small tools    Bytes
 *     The log                 The store       HTTP as text   Connections
 *     The loop                etcd            The cluster    Replication
 *     Repair                  Membership      Listing        Routes
 *     Starting up
 */

/* --------------------------------------------------- Limits and includes */

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
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
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
#include <unistd.h>

#include "ring.h"

#define VERSION      "0.1"
#define VERSION_TEXT "estoraje " VERSION

/* What a client may send. */
#define KEY_MAX       1024                /* bytes, decoded */
#define TYPE_MAX      127                 /* bytes of a Content-Type */
#define LINE_MAX_HTTP (8u << 10)          /* a request line */
#define HEAD_MAX      (16u << 10)         /* request line and header fields */
#define VALUE_MAX     (UINT64_C(1) << 30) /* the most that -maxValue allows */
#define CHUNK_LINE    1024                /* a chunk's size and extensions */
#define TRAILER_MAX   (8u << 10)          /* what follows the last chunk */
#define DRAIN_MAX     (64u << 10)         /* body read for a refused request */
#define LIMIT         1000                /* keys of a listing's page, */
#define LIMIT_MAX     10000               /* and the most that may be asked */

/* What is kept for it, and for how long: milliseconds of the monotonic
   clock. */
#define READ_SIZE   (64u << 10)         /* taken from a socket at once */
#define OUT_MAX     (256u << 10)        /* unsent answer: then no reading */
#define BUFFER_MAX  (UINT64_C(1) << 30) /* of all, or buffer_most() */
#define INLINE_MAX  (128u << 10) /* a record; a larger one's value is streamed */
#define RELAY_MAX   READ_SIZE /* of that, come from a peer: then no reading */
#define PEER_QUEUE  (256u << 20) /* unsent bytes for one peer */
#define PEER_OPS    1024         /* of one peer at work at a time */
#define CALM_FROM   64  /* connections of a worker: of so many, those */
#define CALM_MS     100 /* without activity for so long are asked about */
#define CALM_ASK_MS 5   /* only so often */
#define IDLE_MS     75000
#define HEAD_MS     10000
#define PROGRESS_MS 30000
#define RELAY_MS    300000 /* the same of what a peer reads for a client */
#define LINGER_MS   2000
#define STOP_MS     10000 /* for what is in flight at a stop */

/* The cluster. */
#define NAME_MAX_BYTES    63
#define MEMBERS_MAX       (RING_MEMBERS_MAX - 1) /* 10 bits of a version */
#define PARTITIONS_MAX    RING_PARTITIONS_MAX
#define REPLICAS_MAX      15
#define OWNERS_MAX        (2 * REPLICAS_MAX) /* while a change runs */
#define PARTITIONS_FIT(n) ((n) > 0 && (n) <= PARTITIONS_MAX && !((n) & ((n)-1)))
#define BEAT_MS           500   /* from heartbeat to heartbeat */
#define LOST_MS           2000  /* without one a link is lost */
#define PAUSE_MS          1000  /* a turn that took so long: stopped */
#define GRACE_MS          500   /* with a majority, for the others that live */
#define ASK_MS            100   /* for one owner, before more are asked */
#define ATTEMPT_MS        2000  /* for one attempt of a write */
#define RETRY_MS          100   /* until a link, or accept(), is tried again */
#define CALL_MS           10000 /* for an answer of a peer */
#define ATTEMPTS          8
#define TICK_MS           20          /* while operations are at work */
#define CLOCK_AHEAD       60          /* seconds, at most */
#define PAGE_BYTES        (1u << 20)  /* of a pull */
#define LIST_MOST         (64u << 10) /* entries of a list, or about */
#define LIST_LOOK         1000        /* keys of one partition, at a time */
#define LIST_MS           500    /* for that, and for a page of a listing */
#define ROUND_MS          240000 /* from one round of repair to the next */
#define TOMBSTONE_OLD     900    /* seconds: then it counts as absent */
#define FIRST_HAND_OLD    600    /* seconds: then a write is refused */

/* etcd. */
#define LEASE_TTL     "10"  /* seconds */
#define ETCD_MS       5000  /* for one call */
#define ETCD_PATIENCE 60    /* seconds, with no ring kept */
#define LOOK_MS       2500  /* a look at etcd, for the lease */
#define JOINER_MS     30000 /* who joins and is not heard so long is given up */
#define ETCDS_MAX     7     /* of one cluster */

#define SCRUB_MAX (8760 * 3600u) /* seconds; a year */

#define WORKERS_MAX    256
#define POOL_THREADS   32 /* that read and sync logs */
#define FILES_RESERVED 64 /* descriptors beside the logs */

/* --------------------------------------------------------------- The data
 *
 * Read this chapter first and come back to it. One struct node is a whole node;
 * what is in it is grouped as the chapters are. "Atomic" fields are read and
 * written by any thread, others belong to whom the comment says.
 */

/* Bytes that someone else owns. */
struct slice {
    const uint8_t *p;
    size_t n;
};

/* Bytes of our own; p is NULL until the first is added. */
struct buf {
    uint8_t *p;
    size_t n;
    size_t cap;
    size_t at; /* bytes at the front that are used up */
};

/* A record that was parsed; it points into the bytes that it was parsed from.
   The chapter "The log" has the format. */
struct record {
    uint64_t version; /* orders the records of a key; never 0 */
    uint64_t etag;    /* the version that the client's request took first */
    bool tombstone;   /* the key was deleted; there is no value */
    struct slice key;
    struct slice type;   /* Content-Type; empty: none was given */
    struct slice value;  /* maybe not there yet, see record_parse() */
    const uint8_t *sums; /* one for each 64 KiB of the value */
    size_t size;         /* of the whole record, a multiple of 8 */
};

/* An open log. Whoever reads from it holds a reference, so that a file that
   is replaced lives until its last reader is done. */
struct file {
    atomic_uint refs;
    int fd;
    uint64_t salt; /* seeds the checksum of every record in this file */
};

/* Where the newest record of one key is. 24 bytes for each key in memory. */
struct entry {
    uint64_t fingerprint;
    uint64_t version; /* 0: the slot is empty */
    uint32_t offset;  /* in units of 8 bytes */
    uint32_t size;    /* likewise; the two highest bits are marks */
};
#define ENTRY_TOMBSTONE UINT32_C(0x80000000)
#define ENTRY_DAMAGED   UINT32_C(0x40000000) /* it was read, and is rotten */

#define BUCKETS 256 /* of a partition, for its digest */

/* A log and its index: where in it the newest record of each key is. */
struct log {
    struct file *file; /* NULL until it is loaded */
    uint64_t end;      /* bytes in it that are whole records */
    uint64_t synced;   /* of these, what a sync has surely covered */
    struct entry *table;
    uint32_t slots; /* where an entry's home can be; more lie behind */
    uint32_t total; /* slots and the run-over behind them */
    uint32_t used;
    uint64_t keys;  /* entries that are no tombstones */
    uint64_t bytes; /* of those keys' records */
    uint64_t live;  /* of the records of all entries */
    uint64_t sum;   /* of entry_sum() of those: equal logs have equal ones */
    uint64_t sums[BUCKETS]; /* of the keys alone, a bucket each */
    uint32_t rotten;        /* entries that are marked as damaged */
};

/* What was promised to the coordinator of a consistent write: that nothing
   lower is taken for this key. */
struct promise {
    uint64_t fingerprint;
    uint64_t version;
};
#define PROMISES 64 /* of one partition, at a time */

/* One partition: its log, and what is known of its other replicas. All of it
   is under the lock, file contents aside. */
struct part {
    pthread_mutex_t lock;
    unsigned number;
    struct log log;
    struct log next;     /* what is written goes there as well: it will replace
                         the log when all that is live is in it; while there is
                         no compaction it has no file */
    bool dead;           /* a write or sync failed: nothing is added any more */
    bool renamed;        /* the directory is to be synced before the log is */
    bool rewrite;        /* the log has damage that is not needed any more */
    uint64_t unsure;     /* damage before this offset may hide newer records of
                         any key that is absent or stands before it */
    uint64_t rest_until; /* ms: no compaction before, the last one failed */
    uint64_t compacted;  /* ms: when the last one was, or the start */
    uint64_t droppable;  /* tombstones with versions below may go */
    uint64_t gone;       /* bytes of their records */
    /* Replication. */
    uint64_t floor; /* versions below are refused, of all keys */
    struct promise promises[PROMISES]; /* and of single ones */
    unsigned promised;                 /* so many */
    struct op *turns;  /* consistent operations: of each key one is at work, the
                         others wait for it */
    uint64_t doubts;   /* causes of doubt so far */
    uint64_t cleared;  /* value of doubts when the last good round began */
    uint64_t round_at; /* ms: the next round of repair, doubt or not */
    uint64_t again_at; /* ms: the next after one that failed (and, where this
                          node is no owner any more, the next look) */
    uint64_t failed;   /* it did for that value of doubts, */
    unsigned failures; /* so many times in a row */
    bool recovering;   /* after an unclean start: what it says does not count */
    uint64_t agreed; /* as a new owner: epoch of the change in which it had all
                         that a majority of the old owners has */
    /* Syncing. */
    bool dirty;         /* it has records that no sync has begun to cover */
    bool queued;        /* in pool_queue, or at work */
    bool awaited;       /* the next sync is that of who waits for this one */
    struct op *waiters; /* for the next sync that begins */
    struct op *errands; /* what the pool is to do for operations */
    uint64_t intact;    /* version of the value that was last found so, all of
                           it, and when that began, ns */
    uint64_t intact_from;
};

/* One member of the cluster as the ring and its record in etcd describe it. */
struct member {
    char name[NAME_MAX_BYTES + 1];
    char zone[256];
    unsigned number; /* 1 to 1023, for ever its own: versions end in it */
    uint64_t id;     /* random, of its data directory; 0: not started yet */
    char host[256];  /* "" until its record was seen, like the rest */
    unsigned port, peer_port;
    char at[300], peer_at[300]; /* host:port, of clients and of peers */
    uint64_t boot;              /* as etcd says; a peer's own word is newer */
    uint64_t report;            /* epoch of the change for which it has all */
    bool leaves, forced;        /* it is to be removed; at once */
    struct sockaddr_storage address; /* of host and peer_port */
    socklen_t address_n;             /* 0: not known */
};

/* What the cluster is: immutable, counted, swapped as a whole. */
struct view {
    atomic_uint refs;
    uint64_t epoch;
    uint64_t cluster; /* random id */
    uint64_t hash[2]; /* SipHash key of the fingerprints */
    unsigned partitions;
    unsigned replicas;
    unsigned numbers; /* that were given to members so far: the highest */
    struct ring *ring;
    unsigned count;
    unsigned me; /* index of this node, or count when it is no member */
    struct member member[MEMBERS_MAX + 1]; /* [count], and one that joins */
    /* While a change runs: the ring that comes next. Of the members the first
       `old` are those of the ring in force, which is all of them otherwise. */
    struct ring *next; /* NULL: there is no change */
    unsigned old, next_count;
    uint16_t next_at[MEMBERS_MAX]; /* index of each of its members */
};

/* The groups of a partition's owners: of the ring in force, of the next one. */
enum group { GROUP_OLD, GROUP_NEW, GROUPS };

/* What a member tells of itself in the answer to a heartbeat. */
enum said {
    SAID_DOUBT,
    SAID_OWNED,
    SAID_KEYS,
    SAID_BYTES,
    SAID_HEARS,
    SAID_MOVING,
    SAID_GAINS,
    SAID_MOVED,
    SAID_SECONDS,
    SAIDS
};

#define METHODS  6   /* that requests are counted by, see method_names[] */
#define STATUSES 600 /* of HTTP: any below */
#define BOUNDS   16  /* of the histogram of times, see bounds[] */

/*
 * What /_metrics tells, beside requests: a row is a field of struct
 * figures, how many figures that has, name, a label's name and values (one for
 * each figure, none for a single one), and help. A name in _total is that of a
 * count, which only grows, others are gauges.
 */
#define FIGURES(X)                                                             \
    X(received, 2, "estoraje_received_bytes_total", "port=client,peer",        \
      "Bytes read from sockets.")                                              \
    X(sent, 2, "estoraje_sent_bytes_total", "port=client,peer",                \
      "Bytes written to sockets.")                                             \
    X(connections, 2, "estoraje_connections", "port=client,peer",              \
      "Connections that are open.")                                            \
    X(most, 1, "estoraje_max_connections", "", "Of both ports, at most.")      \
    X(keys, 1, "estoraje_keys", "", "Keys that this node holds.")              \
    X(live, 1, "estoraje_live_bytes", "", "Bytes of logs that are needed.")    \
    X(logged, 1, "estoraje_log_bytes", "", "Bytes of logs.")                   \
    X(buffered, 1, "estoraje_buffered_bytes", "",                              \
      "Memory of requests and answers.")                                       \
    X(full, 1, "estoraje_disk_full", "", "1: only deletes are taken.")         \
    X(parts, 5, "estoraje_partitions",                                         \
      "state=owned,doubt,moving,damaged,dead",                                 \
      "Those owned, and of these some.")                                       \
    X(rotten, 1, "estoraje_damaged_records_total", "", "As found by reads.")   \
    X(compactions, 2, "estoraje_compactions_total", "result=done,failed",      \
      "Logs written anew.")                                                    \
    X(peers, 2, "estoraje_peers", "state=up,down",                             \
      "Other nodes: heard, or not.")                                           \
    X(calls, 1, "estoraje_peer_calls_total", "", "To others, but repair's.")   \
    X(errors, 1, "estoraje_peer_errors_total", "", "Calls failed or refused.") \
    X(stored, 2, "estoraje_replica_writes_total", "result=stored,refused",     \
      "Writes that came to this replica.")                                     \
    X(missed, 1, "estoraje_missed_writes_total", "",                           \
      "That another owner lacks.")                                             \
    X(stale, 1, "estoraje_stale_reads_total", "", "Of less than a majority.")  \
    X(doubts, 1, "estoraje_doubts_total", "", "About all partitions.")         \
    X(rounds, 2, "estoraje_repair_rounds_total", "result=done,failed",         \
      "Rounds, each of one partition.")                                        \
    X(repaired, 1, "estoraje_repair_records_total", "", "Records pulled.")     \
    X(pulled, 1, "estoraje_repair_received_bytes_total", "", "By its calls.")  \
    X(epoch, 1, "estoraje_ring_epoch", "", "Of the ring in force.")            \
    X(etcd, 3, "estoraje_etcd", "state=up,down,none", "1: so it is.")          \
    X(build, 1, "estoraje_build_info", "version=" VERSION, "What runs here.")  \
    X(began, 1, "process_start_time_seconds", "", "Start, since 1970.")        \
    X(cpu, 1, "process_cpu_seconds_total", "", "CPU time, whole seconds.")

/*
 * Each worker counts in one of these of its own, which no other thread writes;
 * what other threads count, and does not happen with each request, is in the
 * node's, by atomic_fetch_add(). So a count is the sum of all of these. All
 * are numbers of one type, to be added up field by field; gauges are mostly
 * set in the sum.
 */
struct figures {
    atomic_ullong requests[METHODS][STATUSES]; /* of clients, answered */
    atomic_ullong times[METHODS][BOUNDS + 1];  /* of these, by bounds[] */
    atomic_ullong times_ns[METHODS];           /* their sum */
#define FIGURE_FIELD(field, n, name, label, help) atomic_ullong field[n];
    FIGURES(FIGURE_FIELD)
};

/* What this node knows first-hand of a member, by its number; of itself there
   is only what it says. Atomic. */
struct peer {
    atomic_ullong heard;       /* when it last answered, ms; 0 never */
    atomic_ullong stopped;     /* when it said that it stops, ms; 0 never */
    atomic_ullong boot;        /* its boot number as it said; 0 unknown */
    atomic_ullong said[SAIDS]; /* partitions in doubt, partitions, keys, bytes;
                                  bit n: it hears member n (of the first 64);
                                  partitions that it has still to take over,
                                  of how many; bytes that came for these, and
                                  the seconds that took so far */
    atomic_bool behind;        /* its clock is, by more than CLOCK_AHEAD */
    bool was_alive;            /* worker 0's: at the last look */
    atomic_bool missed_any;
    atomic_ullong missed[PARTITIONS_MAX / 64]; /* it lacks a write there */
};

/* The command line; "Starting up" has the table. */
struct flags {
    const char *name, *host, *listen, *data, *initial_cluster, *etcd, *zone;
    const char *sync, *secret_file;
    uint64_t port, peer_port, replicas, partitions, threads, max_value;
    uint64_t move_rate; /* bytes a second; 0: no limit */
    uint64_t scrub;     /* seconds; 0: never */
    const char *check, *dump;
    bool add, accept_damage, debug, help, version;
    bool partitions_given, replicas_given;
};

enum sync_mode { SYNC_ALWAYS, SYNC_SECOND, SYNC_NONE };

/* Whether a data directory is an older copy of itself, put back. */
enum standing { STANDING_UNKNOWN, STANDING_SOUND, STANDING_OLDER };

/* Who this node is and how far it has come: the superblock holds these numbers
   in this order, but for the last. */
struct identity {
    uint64_t magic, format;
    uint64_t sequence; /* of the superblock; 0: there was none */
    uint64_t cluster;  /* 0: not known yet */
    uint64_t id;       /* of this data directory, random */
    uint64_t boot;     /* starts so far, then BOOT_BITS at random */
    uint64_t hash[2];  /* SipHash key of the fingerprints */
    uint64_t ceiling;  /* no version above it was issued or kept */
    uint64_t partitions, replicas;
    uint64_t spare;
    uint64_t clean; /* 1: the last process ended well */
    uint64_t alone; /* 1: it has only run alone */
    uint64_t logs;  /* 1: the logs of all partitions were begun */
    uint64_t
        older; /* 0, or the boot of which this is told to be an older copy */
    _Atomic uint64_t number; /* of the member; 0: it is none yet */
};

struct node {
    struct flags flags;
    char secret[256];
    enum sync_mode sync;

    /* The directory. */
    int dir_fd;
    int lock_fd;
    int super_fd;
    int reserve_fd;
    pthread_mutex_t reserve_lock;
    struct identity self;      /* house thread, once it runs */
    bool begun;                /* the superblock has this boot */
    bool joins;                /* as a new member: it has begun anew */
    bool unclean;              /* the machine went down under the last boot */
    bool older;                /* the directory is a copy from before its end */
    atomic_int standing;       /* enum standing: what is known of that so far */
    atomic_int mark_fd;        /* 0 or below: there is no mark */
    uint64_t begin_ceiling;    /* as the last process left it */
    atomic_ullong told_older;  /* a later boot that a member knows; or 0 */
    uint64_t known_boot;       /* no higher one was told to etcd from here */
    atomic_ullong ceiling;     /* of self, for all to read */
    atomic_bool ceiling_short; /* someone waits for a higher one */

    /* The store. */
    struct part *parts; /* [partitions] */
    unsigned partitions;
    atomic_ullong clock;   /* the highest version issued or seen */
    atomic_ullong wild;    /* the highest issued above a wild one */
    uint64_t log_most;     /* bytes in a log */
    atomic_bool full;      /* the disk is; the reserve is not there */
    atomic_ullong largest; /* live bytes of a partition, in whole MiB */
    int super_error;       /* of the last try to write the superblock */
    /* Bytes of logs to be read at the start, when that began, and how many were
       read. */
    uint64_t load_total;
    atomic_ullong load_began, load_done;
    atomic_uint dead_logs;
    atomic_uint
        damaged; /* partitions with damage, when the care thread looked */
    atomic_ullong buffered; /* bytes of memory; see buffer_room() */

    /* Syncing. */
    pthread_t pool[POOL_THREADS];
    int pool_queue[2];      /* a pipe of partition numbers */
    atomic_uint parts_read; /* partitions whose logs are in the index */

    /* Threads. */
    struct worker *workers;
    unsigned worker_count;
    pthread_t threads[WORKERS_MAX + 4]; /* all but the pool's */
    unsigned thread_count;
    int client_fd, peer_fd; /* listening */
    unsigned client_port, peer_port;
    atomic_uint connections;
    atomic_uint served; /* of these: clients, and peers that relay a value */
    atomic_uint connections_max;
    atomic_uint at_work;  /* consistent operations that were begun here */
    atomic_bool loaded;   /* the logs are read */
    atomic_bool stopping; /* no new requests */
    atomic_bool parting;  /* the others are told so */
    atomic_bool ended;    /* threads are to end */

    /* The cluster. */
    pthread_mutex_t view_lock;
    struct view *view; /* NULL until the first ring */
    atomic_ullong view_changes;
    struct peer *peers;               /* [MEMBERS_MAX + 1] by number */
    atomic_ullong epoch, heard_epoch; /* in force; the highest of a peer */
    atomic_bool cut; /* a member that lives does not hear this node */
    atomic_bool etcd_lost;
    int etcd_wake[2];     /* a byte ends the etcd thread's wait */
    atomic_ullong report; /* epoch of the change for which all is here */
    uint64_t reported;    /* the last one that this directory has told etcd */
    struct etcd *etcd;

    struct op *leaves;  /* removals of nodes that are asked for; view_lock */
    atomic_bool left;   /* this node is no member any more */
    atomic_bool forget; /* for the house thread: call identity_forget() */

    int exit_code; /* when the node stops for a reason of its own */

    struct figures figures; /* that no worker counts */

    /* Repair. */
    int repair_wake[2]; /* a byte ends the repair thread's rest */
    struct repair *repair;

    /* The sidecar. */
    pid_t guardian;
    int guardian_fd;
};

/* One range of bytes, as a request asks for it. */
struct range {
    bool suffix;          /* the last so many: `last` */
    uint64_t first, last; /* both are in it; UINT64_MAX: no end was given */
};

/* What an HTTP head says. Slices point into it. */
struct http {
    struct slice method, target; /* of a request, */
    struct slice path, query;    /* and what the target says */
    unsigned status;             /* of a reply */
    unsigned minor;              /* HTTP/1.minor */
    bool chunked;
    bool keep; /* the connection stays open after it */
    bool expect;
    uint64_t length;
    struct slice host, type, if_match, if_none_match, if_range, range, estoraje,
        authorization, origin, part;
    struct slice content_length, coding, encoding, connection, expectation;
};

/* How far a body was read. */
struct chunks {
    int state;
    bool plain;    /* not chunked: one stretch of data */
    uint64_t left; /* of the data; at the end, bytes of trailers so far */
};

enum conn_kind { CONN_CLIENT, CONN_PEER, CONN_LINK };

/* A connection: of a client, from a peer, or (a link) to a peer. Its worker's
   own. Freed by the sweep at the end of a turn, never before. */
struct conn {
    struct worker *w;
    size_t place; /* in w->conns, from 1; 0: not there */
    enum conn_kind kind;
    int fd;
    struct buf in;    /* read and not consumed; empty: it has no memory */
    size_t scanned;   /* of the head, by http_head_end() */
    struct buf out;   /* to be sent */
    uint64_t counted; /* of node->buffered: both */
    struct op *first; /* operations in the order of their requests */
    struct op *last;
    unsigned ops;
    struct op *reading;   /* whose body is read; NULL: it is drained */
    struct chunks chunks; /* of the body; ended while a head is read */
    uint64_t since;       /* the state's clock, ms */
    bool old;             /* its last request was HTTP/1.0 */
    bool close_after;     /* no more requests; close when all is sent */
    bool lingers;         /* all is sent; until the other side closes */
    bool dead;            /* to be swept */
    bool touched;         /* to be served at the end of the turn */
    bool expect;          /* its last request waits for a 100 */
    struct link *link;    /* of a link */
    bool served;          /* node->served counts it */
    /* A value too large for one read is sent block by block, from a file or as
       the relay of the operation brings it; in rec of that is the record up to
       the value, with the sums. */
    bool streams;
    struct file *stream; /* NULL: it is relayed */
    struct entry stream_entry;
    uint64_t stream_value; /* where the value is in the file, */
    uint64_t stream_size;  /* its bytes, */
    uint64_t stream_at;    /* the next of these to be sent, */
    uint64_t stream_end;   /* and where that ends */
};

/* A call to a peer that was sent and not answered. */
struct call {
    struct op *op; /* NULL: a heartbeat */
    uint64_t since;
    unsigned owner;   /* index among the op's owners */
    unsigned attempt; /* of the op; an answer to an earlier one is void */
};

/* The way from one worker to one member; or a relay, which an operation has of
   its own, for one call whose answer is sent on as it comes. */
struct link {
    struct conn *conn; /* NULL: not connected */
    unsigned number;   /* of the member */
    uint64_t id, boot; /* of it, as known when it was connected */
    struct buf calls;  /* struct call each, in the order of their answers */
    uint64_t skip;     /* bytes of an answer that nobody wants */
    bool relays;       /* it is a relay: */
    uint64_t left;     /* bytes of its answer that were not taken off yet;
                          UINT64_MAX: its head is still to come */
    uint64_t retry_at; /* no new attempt before */
};

/* What the store says to a record that is to be accepted. */
enum verdict {
    ACCEPT_OK,      /* stored, or that very version was */
    ACCEPT_HELD,    /* a higher version is held */
    ACCEPT_FLOOR,   /* below the floor */
    ACCEPT_AHEAD,   /* its clock is wild */
    ACCEPT_FULL,    /* no room on the disk or in memory */
    ACCEPT_DEAD,    /* the log takes nothing more */
    ACCEPT_DAMAGED, /* what is held cannot be said */
    ACCEPT_CEILING  /* try again when the ceiling is higher */
};

/* How a record comes to the store, and so which promises bind it. */
enum how {
    HOW_PLAIN,    /* first-hand: not below the floor */
    HOW_PROMISED, /* first-hand: exactly what its key was promised */
    HOW_REPAIR,   /* from another owner: not below the floor, either */
    HOW_MAJORITY  /* the same, and a majority of the owners holds it: no promise
                     stands in the way of what is decided */
};

struct accepted {
    enum verdict verdict;
    uint64_t held;  /* the version held before, 0: none */
    bool existed;   /* it was no tombstone */
    bool unsynced;  /* a loss of power could take it back; store_prepare() */
    uint64_t above; /* what the next version has to be above */
};

/* How far an owner is, and what its word is worth. A bit each, so that a set of
   them can be counted; nodes send them to each other. */
enum answer {
    ANSWER_NONE = 1,
    ANSWER_WAIT = 2,
    ANSWER_FAILED = 4,
    ANSWER_LAME = 8, /* well, but it is recovering: counts for no majority */
    ANSWER_OK = 16,
    ANSWER_SURE = 32 /* and it is not in doubt: one such answer is enough */
};
#define ANSWER_COUNTS (ANSWER_OK | ANSWER_SURE)
#define ANSWER_WELL   (ANSWER_LAME | ANSWER_COUNTS)

/* Where a consistent operation is; see "Consistent operations". */
enum phase {
    PHASE_NONE,    /* it is a plain one, or has had its turn */
    PHASE_ROUTE,   /* sent to the owner that does it */
    PHASE_TURN,    /* waits there for those before it */
    PHASE_LOOK,    /* asks what the owners hold */
    PHASE_PROMISE, /* asks that, and for a promise */
    PHASE_WRITE    /* has a record stored by those that promised */
};

#define INTRO_WORDS 8 /* that say who calls a node; see intro_text() */

/* One request at work, from its head until it is answered and no call to a
   peer is left. Its worker's own, but for the fields of a wait. */
struct op {
    struct op *next; /* in its connection, or free */
    struct conn *c;  /* NULL: answered, and left */
    struct worker *w;
    void (*due)(struct op *);    /* to be called at the next tick */
    void (*body)(struct op *);   /* called when the body is there */
    void (*act)(struct op *);    /* a peer's: called when its epoch is here */
    void (*errand)(struct op *); /* what a thread of the pool does for it */
    void (*resume)(struct op *); /* called when what it waited for is done: a
                                    sync, or its errand */
    unsigned status;             /* of the answer */
    unsigned method;             /* index in method_names[] */
    uint64_t arrived;            /* as w->now_ns was when all of it was here */
    bool done;                   /* answered */
    bool parked;                 /* waits for another thread */
    bool head;                   /* HEAD: no body in the answer */
    bool keep;
    bool remove;         /* DELETE */
    bool force;          /* ?force */
    bool explain, lists; /* ?explain, ?list */
    const char *allow;   /* the methods that a 405 names */
    unsigned calls;      /* to peers, not answered */
    bool busy;           /* no memory for what an owner answered, or is sent */
    uint64_t body_most;  /* bytes of a body that are allowed */
    uint64_t counted;    /* of node->buffered: its buffers */

    struct slice key;  /* in key_bytes */
    struct slice path; /* the route's star; gone with the head */
    char if_match[256], if_none_match[256]; /* "": there was none */
    bool ranged;                            /* a GET wants a range, */
    struct range range;
    uint64_t if_range; /* but only of the value with this etag; 0: of any */
    uint64_t intro[INTRO_WORDS]; /* a peer's: who asks; see intro_text() */
    uint64_t fingerprint;
    size_t value_at; /* where the value in rec begins */

    /* As coordinator. */
    unsigned partition;
    uint64_t epoch;
    unsigned owners[OWNERS_MAX]; /* member numbers */
    enum answer answers[OWNERS_MAX];
    uint64_t groups[GROUPS]; /* bit i: owner i is in it; see view_owners() */
    void (*answered)(struct op *, unsigned owner, unsigned status,
                     struct slice body);
    struct accepted vote; /* of this node's replica */
    unsigned mine;        /* its index, or count: it is no owner */
    unsigned count, attempt;
    bool reached;    /* a replica may have taken the write */
    unsigned rounds; /* consistent: those that no later epoch has ended */
    bool refused;    /* an owner is at a later epoch, and will be asked again */
    bool full, damaged;
    bool existed; /* before the first attempt, by the newest record */
    uint64_t existed_version, highest, version, etag;
    uint64_t attempt_since, majority_since;

    /* A large value of this node's own, before it is sent. */
    bool intact;                    /* an errand has found it so; */
    void (*otherwise)(struct op *); /* if not, this is called */

    /* A read of what another owner has. */
    bool stale;        /* of fewer than a majority */
    bool rest;         /* a peer's: of an answer that has begun */
    unsigned holder;   /* the owner that has sent the record */
    struct link relay; /* brings the value, if it is large: of op->etag */
    uint64_t relayed;  /* bit i: owner i was asked for that */
    unsigned relays;   /* times that all of them had another one by then */

    /* A listing. */
    uint64_t limit, listed; /* keys: at most, and so far */
    uint64_t list_until;    /* ms: no further step after */

    /* The same of a consistent operation. */
    enum phase phase;
    bool consistent; /* ?consistent was in the query, or a write has a condition
                      */
    bool forwarded;  /* by another node, which has the client */
    bool at_work;    /* node->at_work counts it */
    bool reads;      /* GET or HEAD */
    bool settles;    /* what is stored is the newest, not the client's record */
    bool tried;      /* the client's record was sent */
    bool turn;       /* it is this one's: in part->turns, under its lock */
    bool jumped;     /* it got its turn before older ones */
    uint64_t promised;         /* bit i: owner i has answered in this round */
    uint64_t held[OWNERS_MAX]; /* version that it held then */
    uint64_t began;            /* ms: when it got in line for its turn */
    uint64_t next_at;          /* no further round before */
    uint64_t newest, newest_etag; /* held by those that count; 0: absent */
    bool newest_tombstone;
    uint64_t first_etag;  /* of the newest, before the client's was sent */
    uint64_t here;        /* version of entry, which this node holds */
    struct entry entry;   /* and where its record is in file */
    struct file *file;    /* held; NULL: here is 0 */
    struct op *turn_next; /* in part->turns, under its lock */

    /* Waiting for a sync; under the partition's lock, then in the inbox. */
    struct op *wait_next;
    int wait_result;
    struct part *part;

    /* Not cleared when an operation is used again. */
    struct buf rec;  /* the record written, or the newest one read */
    struct buf old;  /* the newest record that other owners hold */
    struct buf text; /* the answer, until those before it are complete */
    struct buf list; /* the lines of a listing */
    uint8_t key_bytes[KEY_MAX];
};

/* A poll() loop. */
#define FDS_FIXED 3
struct worker {
    struct node *node;
    unsigned index;
    struct view *view;   /* as of this turn */
    atomic_ullong epoch; /* of it, for other threads; no turn goes back */
    uint64_t view_at;    /* ms: since when it has that epoch */
    uint64_t view_seen;
    uint64_t now;    /* ms of the monotonic clock, once a turn */
    uint64_t now_ns; /* the same reading */
    uint64_t wall;   /* seconds; date is the field that is made of it */
    char date[48];
    struct pollfd *fds;  /* wake pipe, listeners, then as conns */
    struct conn **conns; /* [count] */
    size_t active;       /* of these the first, which poll() is asked about;
                            the others are calm, and none is touched */
    size_t count, cap;
    bool touched;      /* one of them is */
    bool waiting;      /* an operation waits for a tick */
    char refusal[200]; /* one that is no constant */
    uint8_t *scratch;  /* READ_SIZE: a block of a value, to be verified */
    struct buf input;  /* memory for who reads next */
    struct buf record; /* a record read from a log */
    struct op *free_ops;
    struct link links[MEMBERS_MAX + 1];  /* by number; [0] unused */
    struct link routes[MEMBERS_MAX + 1]; /* for what another node is to do:
                                            it takes longer than an answer */
    struct link beats[MEMBERS_MAX + 1];  /* worker 0's: for heartbeats */
    uint64_t beat_at;
    uint64_t accept_at; /* no new connection before */
    unsigned turn;      /* of round-robins */
    struct figures figures;
    /* From other threads. */
    int wake[2];
    pthread_mutex_t inbox_lock;
    struct op *synced, **synced_end; /* their waits are over */
};

/* ----------------------------------------------------------- Small tools */

static atomic_int stop_requested; /* lock-free, so a handler may set it */

static uint64_t clock_ns(clockid_t id) {
    struct timespec t;

    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* Milliseconds of the monotonic clock: for all timeouts. */
static uint64_t now_ms(void) {
    return clock_ns(CLOCK_MONOTONIC) / 1000000;
}

/* Microseconds since 1970: for versions, never for timeouts. */
static uint64_t now_us(void) {
    return clock_ns(CLOCK_REALTIME) / 1000;
}

/* Counts n more where only this thread counts: for the price of an addition,
   which atomic_fetch_add() is not. */
static void figure_add(atomic_ullong *at, uint64_t n) {
    atomic_store_explicit(at,
                          atomic_load_explicit(at, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

/* How many bits are set. */
static unsigned bits_count(uint64_t set) {
    unsigned n = 0;

    for (; set != 0; set &= set - 1)
        n++;
    return n;
}

/* Rests; a caller that has something to listen for polls instead. */
static void rest_ms(uint64_t ms) {
    poll(NULL, 0, (int)ms);
}

/* Rests likewise, but not longer than the node lives. */
static void node_rest(const struct node *node, uint64_t ms) {
    uint64_t until = now_ms() + ms;

    while (now_ms() < until && !atomic_load(&node->ended))
        rest_ms(TICK_MS / 2);
}

/* Writes one line to stderr in one piece: UTC time, level, text. */
static void __attribute__((format(printf, 2, 3)))
say(const char *level, const char *format, ...) {
    char text[1000], date[32];
    struct timespec t;
    struct tm tm;
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (char *p = text; *p != '\0'; p++) /* one event is one line */
        if ((unsigned char)*p < ' ')
            *p = '?';
    clock_gettime(CLOCK_REALTIME, &t);
    gmtime_r(&t.tv_sec, &tm);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &tm);
    fprintf(stderr, "%s.%03ldZ %s %s\n", date, t.tv_nsec / 1000000, level,
            text);
}

/* Ends a start that cannot go on: one line, and the exit code. */
static void __attribute__((format(printf, 2, 3), noreturn))
give_up(int code, const char *format, ...) {
    char text[1000];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "estoraje: %s\n", text);
    exit(code);
}

/* The end for what cannot happen, or when memory that must be had is not:
   better no node than one that goes on wrongly. */
static void __attribute__((noreturn)) die(const char *what) {
    say("fatal", "%s", what);
    abort();
}

/* Zeroed memory that must be had. */
static void *memory(size_t count, size_t size) {
    void *p = calloc(count, size);

    if (p == NULL)
        die("out of memory");
    return p;
}

static void mutex_init(pthread_mutex_t *mutex) {
    if (pthread_mutex_init(mutex, NULL) != 0)
        die("cannot make a mutex");
}

/* A random number that nobody can guess and that is not 0. */
static uint64_t random_id(void) {
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    uint64_t id = 0;

    while (id == 0)
        if (read(fd, &id, sizeof id) != sizeof id)
            die("cannot read /dev/urandom");
    close(fd);
    return id;
}

/* ms, give or take a quarter, so that many do not retry in step. */
static uint64_t jitter(uint64_t ms) {
    return ms - ms / 4 + now_us() % (ms / 2 + 1);
}

static void fd_nonblocking(int fd) {
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
}

/* A pipe that never blocks and that no other program inherits. */
static void wake_pipe(int fds[2]) {
    if (pipe(fds) != 0)
        give_up(1, "cannot make a pipe: %s", strerror(errno));
    fd_nonblocking(fds[0]);
    fd_nonblocking(fds[1]);
}

/* A byte into a wake pipe; a full pipe wakes as well. */
static void wake_write(int fd) {
    if (write(fd, "", 1) < 0 && errno != EAGAIN && errno != EINTR)
        say("error", "cannot wake a thread: %s", strerror(errno));
}

static void wake_drain(int fd) {
    char bytes[256];

    while (read(fd, bytes, sizeof bytes) > 0)
        ;
}

/* ----------------------------------------------------------------- Bytes
 *
 * Network and disk data are pointer and length, never strings. Integers on disk
 * and between nodes are little-endian, whatever the machine; compilers make one
 * load of the shifts below.
 */

static uint32_t get32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
           (uint32_t)p[3] << 24;
}

static uint64_t get64(const uint8_t *p) {
    return (uint64_t)get32(p) | (uint64_t)get32(p + 4) << 32;
}

static void put32(uint8_t *p, uint32_t x) {
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(x >> 8 * i);
}

static void put64(uint8_t *p, uint64_t x) {
    put32(p, (uint32_t)x);
    put32(p + 4, (uint32_t)(x >> 32));
}

static struct slice slice_of(const char *text) {
    return (struct slice){(const uint8_t *)text, strlen(text)};
}

static bool slice_equal(struct slice a, struct slice b) {
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

static bool slice_is(struct slice s, const char *text) {
    return slice_equal(s, slice_of(text));
}

/* The same without regard to the case of ASCII letters. */
static bool slice_is_nocase(struct slice s, const char *text) {
    return s.n == strlen(text) &&
           (s.n == 0 || strncasecmp((const char *)s.p, text, s.n) == 0);
}

static bool slice_begins(struct slice s, const char *text) {
    size_t n = strlen(text);

    return s.n >= n && memcmp(s.p, text, n) == 0;
}

/* The slice without its first n bytes. */
static struct slice slice_skip(struct slice s, size_t n) {
    return (struct slice){s.p + n, s.n - n};
}

/* Copies the slice as a string into text; false: no room, or a NUL in it. */
static bool slice_copy(struct slice s, char *text, size_t room) {
    if (s.n >= room || (s.p != NULL && memchr(s.p, '\0', s.n) != NULL))
        return false;
    if (s.p != NULL)
        memcpy(text, s.p, s.n);
    text[s.n] = '\0';
    return true;
}

/* What a character stands for as a hexadecimal digit; 16: it is none. */
static unsigned digit_of(unsigned c) {
    if (c - '0' < 10)
        return c - '0';
    return (c | 32) - 'a' < 6 ? (c | 32) - 'a' + 10 : 16;
}

/* All of the slice as a number; false: it is none, or too large. */
static bool slice_digits(struct slice s, unsigned base, uint64_t *number) {
    uint64_t x = 0;

    for (size_t i = 0; i < s.n; i++) {
        unsigned digit = digit_of(s.p[i]);

        if (digit >= base || x > (UINT64_MAX - digit) / base)
            return false;
        x = x * base + digit;
    }
    *number = x;
    return s.n > 0;
}

/* Room for more bytes; false: there is no memory. */
static bool buf_room(struct buf *b, size_t more) {
    size_t cap = b->n + more + b->cap / 2 + 256;
    uint8_t *p;

    if (b->cap - b->n >= more)
        return true;
    p = realloc(b->p, cap);
    if (p == NULL)
        return false;
    b->p = p;
    b->cap = cap;
    return true;
}

/* Makes the buffer n bytes longer and answers where they are, not yet set.
   Memory must be had: sizes are bounded elsewhere. */
static uint8_t *buf_grow(struct buf *b, size_t n) {
    if (!buf_room(b, n))
        die("out of memory");
    b->n += n;
    return b->p + (b->n - n);
}

static void buf_add(struct buf *b, const void *p, size_t n) {
    if (n > 0)
        memcpy(buf_grow(b, n), p, n);
}

static void buf_zero(struct buf *b, size_t n) {
    if (n > 0)
        memset(buf_grow(b, n), 0, n);
}

static void buf_text(struct buf *b, const char *text) {
    buf_add(b, text, strlen(text));
}

/* What is in the buffer as a string: a NUL stands behind it, until more is
   added. */
static const char *buf_string(struct buf *b) {
    *buf_grow(b, 1) = '\0';
    b->n--;
    return (const char *)b->p;
}

static void buf_number(struct buf *b, uint64_t x) {
    char digits[20];
    size_t at = sizeof digits;

    do
        digits[--at] = (char)('0' + x % 10);
    while ((x /= 10) > 0);
    buf_add(b, digits + at, sizeof digits - at);
}

/* 16 hexadecimal digits: ids and etags. */
static void buf_hex(struct buf *b, uint64_t x) {
    char digits[16];

    for (int i = 0; i < 16; i++)
        digits[i] = "0123456789abcdef"[x >> (60 - 4 * i) & 15];
    buf_add(b, digits, sizeof digits);
}

/* Appends a short text; names and addresses in it are of limited length. */
static void __attribute__((format(printf, 2, 3)))
buf_print(struct buf *b, const char *format, ...) {
    char text[4096];
    va_list args;
    int n;

    va_start(args, format);
    n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof text)
        die("a text is too long");
    buf_add(b, text, (size_t)n);
}

/* Appends a key as it stands in a path: letters, digits, -._~ and / as they
   are, but no _ in front. */
static void buf_key(struct buf *b, struct slice key) {
    for (size_t i = 0; i < key.n; i++)
        if (strchr("/-._~", key.p[i]) == NULL
                ? !isalnum(key.p[i])
                : key.p[i] == 0 || (i == 0 && key.p[i] == '_'))
            buf_print(b, "%%%02X", key.p[i]);
        else
            buf_add(b, key.p + i, 1);
}

static void buf_free(struct buf *b) {
    free(b->p);
    *b = (struct buf){0};
}

/* Empties it, and does not keep much memory for a next time. */
static void buf_reset(struct buf *b, size_t keep) {
    if (b->cap > keep)
        buf_free(b);
    b->n = b->at = 0;
}

/* What is not used up. */
static struct slice buf_slice(const struct buf *b) {
    return (struct slice){b->p + b->at, b->n - b->at};
}

/* Takes what is used up off the front, if that moves no more than it. */
static void buf_drop(struct buf *b, size_t keep) {
    if (b->at == b->n) {
        buf_reset(b, keep);
    } else if (b->at >= b->n - b->at) {
        b->n -= b->at;
        memmove(b->p, b->p + b->at, b->n);
        b->at = 0;
    }
}

#define ROTATE(x, bits) ((x) << (bits) | (x) >> (64 - (bits)))

#define XXH_1 UINT64_C(0x9E3779B185EBCA87)
#define XXH_2 UINT64_C(0xC2B2AE3D27D4EB4F)
#define XXH_3 UINT64_C(0x165667B19E3779F9)
#define XXH_4 UINT64_C(0x85EBCA77C2B2AE63)
#define XXH_5 UINT64_C(0x27D4EB2F165667C5)

static uint64_t xxh_round(uint64_t sum, uint64_t word) {
    sum += word * XXH_2;
    return ROTATE(sum, 31) * XXH_1;
}

/* The checksum of all that is stored: XXH64 (Yann Collet, xxHash
   specification). It finds accidents, it does not keep out an attacker. */
static uint64_t xxh64(const uint8_t *p, size_t n, uint64_t seed) {
    uint64_t a = seed + XXH_1 + XXH_2, b = seed + XXH_2, c = seed;
    uint64_t d = seed - XXH_1, h = seed + XXH_5, length = n;

    if (n >= 32) { /* four lanes, which a processor works on side by side */
        for (; n >= 32; p += 32, n -= 32) {
            a = xxh_round(a, get64(p));
            b = xxh_round(b, get64(p + 8));
            c = xxh_round(c, get64(p + 16));
            d = xxh_round(d, get64(p + 24));
        }
        h = ROTATE(a, 1) + ROTATE(b, 7) + ROTATE(c, 12) + ROTATE(d, 18);
        h = (h ^ xxh_round(0, a)) * XXH_1 + XXH_4;
        h = (h ^ xxh_round(0, b)) * XXH_1 + XXH_4;
        h = (h ^ xxh_round(0, c)) * XXH_1 + XXH_4;
        h = (h ^ xxh_round(0, d)) * XXH_1 + XXH_4;
    }
    h += length;
    for (; n >= 8; p += 8, n -= 8) {
        h ^= xxh_round(0, get64(p));
        h = ROTATE(h, 27) * XXH_1 + XXH_4;
    }
    if (n >= 4) {
        h ^= get32(p) * XXH_1;
        h = ROTATE(h, 23) * XXH_2 + XXH_3;
        p += 4, n -= 4;
    }
    for (; n > 0; p++, n--) {
        h ^= *p * XXH_5;
        h = ROTATE(h, 11) * XXH_1;
    }
    h = (h ^ h >> 33) * XXH_2;
    h = (h ^ h >> 29) * XXH_3;
    return h ^ h >> 32;
}

/* Writes all of it at an offset. 0, or an errno: then a part may be there. */
static int write_at(int fd, const void *bytes, size_t n, uint64_t offset) {
    const uint8_t *p = bytes;

    while (n > 0) {
        ssize_t done = pwrite(fd, p, n, (off_t)offset);

        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done < 0 ? errno : ENOSPC;
        p += done, n -= (size_t)done, offset += (uint64_t)done;
    }
    return 0;
}

/* Reads n bytes, fewer only at the end of the file. The count, or -1. */
static ssize_t read_at(int fd, void *bytes, size_t n, uint64_t offset) {
    size_t got = 0;

    while (got < n) {
        ssize_t done =
            pread(fd, (uint8_t *)bytes + got, n - got, (off_t)(offset + got));

        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -1;
        if (done == 0)
            break;
        got += (size_t)done;
    }
    return (ssize_t)got;
}

/* --------------------------------------------------------------- The log
 *
 * One record, on disk, between nodes and in repair. Numbers are little-endian,
 * sizes are bytes:
 *
 *      0  8  sum of bytes 8 to the end of the block sums, seeded with the salt
 *      8  4  magic
 *     12  1  flags: 1 is a tombstone
 *     13  1  length of the content type
 *     14  2  length of the key
 *     16  8  version
 *     24  8  etag
 *     32  4  length of the value
 *     36  4  0
 *     40     key, content type,
 *            block sums: 8 for each 64 KiB of the value, not seeded,
 *            value, and zeros up to a multiple of 8
 *
 * The first sum covers the block sums and these cover the value, so any block
 * can be verified from the very bytes that are sent. The salt is the log's, and
 * 0 between nodes. A client that stores the bytes of a record as a value does
 * not know the salt, so they never pass for a record when a log is searched.
 * To move a record from one log to another only the first sum is made anew.
 *
 * A log is a header of 64 bytes and then records. It is appended to, and never
 * changed before its end:
 *
 *      0  8  "estorlog"          24  8  cluster id
 *      8  4  format, 1           32  8  salt
 *     12  4  partition           40 16  0
 *     16  4  partitions          56  8  sum of the 56 bytes before
 *     20  4  0
 */

#define RECORD_HEADER 40
#define RECORD_MAGIC  UINT32_C(0x65a5c39d)
#define RECORD_MAX    (UINT64_C(1) << 31) /* of a whole record */
#define BLOCK         65536u
#define VERSION_BITS  10 /* the lowest: of the node; above, microseconds */
#define LOG_HEADER    64
#define LOG_MAGIC     "estorlog"
#define LOG_FORMAT    1
#define LOG_MAX       (UINT64_C(1) << 35) /* an index entry reaches so far */
#define LOG_SPARE     (64u << 10)         /* the end of it is for tombstones */

static size_t round_up_8(size_t n) {
    return (n + 7) & ~(size_t)7;
}

static size_t blocks_of(size_t value) {
    return (value + BLOCK - 1) / BLOCK;
}

/* The length of a record's key. */
static size_t record_key(const uint8_t *p) {
    return (size_t)p[14] | (size_t)p[15] << 8;
}

/* Bytes from the record's beginning to its value. */
static size_t record_meta(const uint8_t *p) {
    return RECORD_HEADER + record_key(p) + p[13] + 8 * blocks_of(get32(p + 32));
}

/* The sum of the block of a value that begins at an offset. */
static uint64_t block_sum(struct slice value, size_t at) {
    size_t n = value.n - at < BLOCK ? value.n - at : BLOCK;

    return xxh64(value.p + at, n, 0);
}

/*
 * Begins a record in an empty buffer: all but the value, its sums, and what
 * record_seal() gives. Answers where the value is to be put; the buffer's
 * length is that, and the caller appends the value.
 */
static size_t record_begin(struct buf *b, struct slice key, struct slice type,
                           bool tombstone) {
    buf_zero(b, RECORD_HEADER);
    put32(b->p + 8, RECORD_MAGIC);
    b->p[12] = tombstone;
    b->p[13] = (uint8_t)type.n;
    b->p[14] = (uint8_t)key.n;
    b->p[15] = (uint8_t)(key.n >> 8);
    buf_add(b, key.p, key.n);
    buf_add(b, type.p, type.n);
    return b->n;
}

/* Ends it once the value is there, which begins at value_at, but makes room for
   its sums: how many there are was not known before. */
static void record_end(struct buf *b, size_t value_at) {
    size_t n = b->n - value_at, meta = value_at + 8 * blocks_of(n);
    struct slice value;

    put32(b->p + 32, (uint32_t)n);
    buf_zero(b, meta - value_at);
    value = (struct slice){b->p + meta, n};
    memmove(b->p + meta, b->p + value_at, n);
    for (size_t at = 0; at < n; at += BLOCK)
        put64(b->p + value_at + at / BLOCK * 8, block_sum(value, at));
    buf_zero(b, round_up_8(b->n) - b->n);
}

/* Makes the first sum fit the salt of the place that the record goes to. */
static void record_seal(uint8_t *p, uint64_t salt) {
    put64(p, xxh64(p + 8, record_meta(p) - 8, salt));
}

/* Gives a record its version and etag, sealed for the network. */
static void record_stamp(uint8_t *p, uint64_t version, uint64_t etag) {
    put64(p + 16, version);
    put64(p + 24, etag);
    record_seal(p, 0);
}

/* Parses a record of which n bytes are at p. true: all but the value is there
   and verified, and *r is set. Lengths are bounded before they are used. */
static bool record_parse(const uint8_t *p, size_t n, uint64_t salt,
                         struct record *r) {
    size_t key, type, value, meta;

    if (n < RECORD_HEADER)
        return false;
    type = p[13];
    key = record_key(p);
    value = get32(p + 32);
    if (get32(p + 8) != RECORD_MAGIC || p[12] > 1 || type > TYPE_MAX ||
        key < 1 || key > KEY_MAX || value > VALUE_MAX || get64(p + 16) == 0 ||
        get32(p + 36) != 0 || (p[12] && value > 0))
        return false;
    meta = record_meta(p);
    if (n < meta || get64(p) != xxh64(p + 8, meta - 8, salt))
        return false;
    r->version = get64(p + 16);
    r->etag = get64(p + 24);
    r->tombstone = p[12];
    r->key = (struct slice){p + RECORD_HEADER, key};
    r->type = (struct slice){p + RECORD_HEADER + key, type};
    r->sums = p + RECORD_HEADER + key + type;
    r->value = (struct slice){p + meta, value};
    r->size = round_up_8(meta + value);
    return true;
}

/* Whether a part of the value of a parsed record is intact: the blocks from
   `at` to `end`, which are at p. */
static bool blocks_intact(const struct record *r, const uint8_t *p, size_t at,
                          size_t end) {
    struct slice part = {p, end - at};

    for (size_t i = 0; i < part.n; i += BLOCK)
        if (get64(r->sums + (at + i) / BLOCK * 8) != block_sum(part, i))
            return false;
    return true;
}

/* Whether the value of a parsed record, all of which is there, is intact. */
static bool record_intact(const struct record *r) {
    return blocks_intact(r, r->value.p, 0, r->value.n);
}

/* Whether the value of a parsed record is intact in its file, where it begins
   at an offset: the blocks, that is, in which its bytes from `at` to `end` are;
   block has room for one. */
static bool value_intact(const struct file *file, const struct record *r,
                         uint64_t offset, uint64_t at, uint64_t end,
                         uint8_t *block) {
    for (at -= at % BLOCK; at < end; at += BLOCK) {
        uint64_t left = r->value.n - at;
        size_t n = left < BLOCK ? (size_t)left : BLOCK;

        if (read_at(file->fd, block, n, offset + at) != (ssize_t)n ||
            get64(r->sums + at / BLOCK * 8) != xxh64(block, n, 0))
            return false;
    }
    return true;
}

/* A file that was opened, with one reference, the caller's. */
static struct file *file_new(int fd, uint64_t salt) {
    struct file *file = memory(1, sizeof *file);

    *file = (struct file){1, fd, salt};
    return file;
}

static struct file *file_hold(struct file *file) {
    atomic_fetch_add(&file->refs, 1);
    return file;
}

static void file_release(struct file *file) {
    if (file != NULL && atomic_fetch_sub(&file->refs, 1) == 1) {
        close(file->fd);
        free(file);
    }
}

/* Fills in a log's header. */
static void log_header(const struct node *node, unsigned partition,
                       uint64_t salt, uint8_t header[LOG_HEADER]) {
    memset(header, 0, LOG_HEADER);
    memcpy(header, LOG_MAGIC, 8);
    put32(header + 8, LOG_FORMAT);
    put32(header + 12, partition);
    put32(header + 16, (uint32_t)node->self.partitions);
    put64(header + 24, node->self.cluster);
    put64(header + 32, salt);
    put64(header + 56, xxh64(header, 56, 0));
}

/* Begins a log in a file: no record in it, a salt of its own, and the header on
   the disk. false, and errno: that failed. */
static bool log_begin(const struct node *node, unsigned partition,
                      struct file *file) {
    uint8_t header[LOG_HEADER];

    file->salt = random_id();
    log_header(node, partition, file->salt, header);
    return ftruncate(file->fd, 0) == 0 &&
           (errno = write_at(file->fd, header, sizeof header, 0)) == 0 &&
           fsync(file->fd) == 0;
}

/* Ends a log after a failure that leaves unknown what of it is on the disk:
   it is read, and takes nothing more. Under the partition's lock. */
static void log_die(struct node *node, struct part *part, int error) {
    if (part->dead)
        return;
    part->dead = true;
    atomic_fetch_add(&node->dead_logs, 1);
    say("error", "a log takes nothing more partition=%u error=%s", part->number,
        strerror(error));
}

/* ---- The reserve.
 *
 * A file that keeps some room on the disk: for tombstones in each partition,
 * and for the largest to be compacted. When the disk is full it is emptied, for
 * just that, which makes room in the end. All else is refused from then on,
 * until there is room for the reserve and as much again. */

#define RESERVE_PART (16u << 10) /* of each partition: it takes whole blocks */
#define FULL_ROOM    (1u << 20)  /* a disk with less is full */

static void reserve_empty(const struct node *node) {
    if (ftruncate(node->reserve_fd, 0) != 0)
        say("error", "cannot empty the reserve error=%s", strerror(errno));
}

/* Gives the reserve away. Others may come here at the same time. */
static void reserve_use(struct node *node) {
    pthread_mutex_lock(&node->reserve_lock);
    if (!atomic_exchange(&node->full, true)) {
        say("error",
            "the disk is full: only deletes are taken until there is room");
        reserve_empty(node);
    }
    pthread_mutex_unlock(&node->reserve_lock);
}

/* Bytes that the disk has left. */
static uint64_t disk_room(const struct node *node) {
    struct statvfs disk;

    return fstatvfs(node->reserve_fd, &disk) != 0
               ? 0
               : (uint64_t)disk.f_bavail * disk.f_frsize;
}

/* Has the reserve as large as it should be, if the disk has as much room again:
   then it is not full any more. A file system that cannot reserve anything does
   without. */
static void reserve_take(struct node *node) {
    uint64_t want =
        (uint64_t)node->partitions * RESERVE_PART + atomic_load(&node->largest);
    struct statvfs disk;
    struct stat st;
    uint64_t there;
    int error = 0;

    if (fstatvfs(node->reserve_fd, &disk) != 0)
        return;
    if (want > (uint64_t)disk.f_blocks * disk.f_frsize / 8)
        want = (uint64_t)disk.f_blocks * disk.f_frsize / 8;
    pthread_mutex_lock(&node->reserve_lock);
    there =
        fstat(node->reserve_fd, &st) != 0 ? 0 : (uint64_t)st.st_blocks * 512;
    if (there < want)
        error = disk_room(node) < 2 * (want - there)
                    ? ENOSPC
                    : posix_fallocate(node->reserve_fd, 0, (off_t)want);
    if (error != ENOSPC && error != EDQUOT) {
        if (atomic_exchange(&node->full, false) && atomic_load(&node->loaded))
            say("info", "there is room on the disk again");
    } else if (atomic_load(&node->full)) {
        reserve_empty(node); /* a part of it may be there, the last room */
    }
    pthread_mutex_unlock(&node->reserve_lock);
}

/*
 * Appends a record, sealing it for this log. 0: all of it is there, up to
 * log->end. An errno: nothing is, because what was written is cut off again;
 * where even that fails the partition takes nothing more. On a full disk, and
 * near the end of what a file can hold, there is room only for tombstones and
 * for the log of a compaction. Under the partition's lock.
 */
static int log_append(struct node *node, struct part *part, struct log *log,
                      uint8_t *record, size_t size) {
    uint64_t sum = get64(record); /* as it is sealed for the network */
    bool urgent = record[12] != 0 || log != &part->log, told = false;
    int error;

    if (log->end + size + (urgent ? 0 : LOG_SPARE) > node->log_most)
        return EFBIG;
    if (!urgent && atomic_load(&node->full))
        return ENOSPC;
    record_seal(record, log->file->salt);
    error = write_at(log->file->fd, record, size, log->end);
    if (urgent && (error == ENOSPC || error == EDQUOT)) {
        told = atomic_load(&node->full);
        reserve_use(node);
        error = write_at(log->file->fd, record, size, log->end);
    }
    put64(record, sum);
    if (error == 0) {
        log->end += size;
        part->dirty = true;
        return 0;
    }
    if (!told)
        say("error", "cannot append to a log partition=%u error=%s",
            part->number, strerror(error));
    if (ftruncate(log->file->fd, (off_t)log->end) != 0 && log == &part->log)
        log_die(node, part, error);
    if (error == EDQUOT || (error == ENOSPC && disk_room(node) < FULL_ROOM))
        reserve_use(node); /* else it was only too large for what is left */
    return error;
}

/* The first offset, from one on, at which there is a record: all before its
   value verifies, the value may be rotten or cut off. size: there is none. */
static uint64_t log_search(const uint8_t *log, uint64_t size, uint64_t salt,
                           uint64_t offset, struct record *r) {
    for (; offset < size; offset += 8)
        if (record_parse(log + offset, (size_t)(size - offset), salt, r))
            return offset;
    return size;
}

/* The name of a partition's log, or of the one that is to replace it. */
static void log_name(char name[16], unsigned partition, bool next) {
    snprintf(name, 16, "%03u.%s", partition, next ? "new" : "log");
}

/*
 * Opens a partition's log. -1: there is none. *salt is 0 if it has nothing in
 * it but zeros: it was not begun, or never synced. *fits: it is that, or its
 * header is of this log and whole. An error of the disk ends the program.
 */
static int log_open(struct node *node, unsigned partition, int flags,
                    uint64_t *salt, bool *fits) {
    uint8_t header[LOG_HEADER] = {0}, want[LOG_HEADER] = {0};
    char name[16];
    ssize_t n = -1;
    off_t size;
    int fd;

    log_name(name, partition, false);
    fd = openat(node->dir_fd, name, flags | O_CLOEXEC, 0666);
    if (fd < 0 && errno == ENOENT)
        return -1;
    if (fd >= 0)
        n = read_at(fd, header, LOG_HEADER, 0);
    if (n < 0 || (size = lseek(fd, 0, SEEK_END)) < 0)
        give_up(1, "cannot read %s/%s: %s", node->flags.data, name,
                strerror(errno));
    *fits = n < LOG_HEADER;
    *salt = *fits ? 0 : get64(header + 32);
    if (*fits)
        return fd;
    if (memcmp(header, want, LOG_HEADER) != 0)
        log_header(node, partition, *salt, want);
    *fits = memcmp(header, want, LOG_HEADER) == 0;
    for (off_t at = n; *salt == 0 && *fits && at < size; at += n) {
        n = read_at(fd, header, LOG_HEADER, (uint64_t)at);
        *fits = n > 0 && memcmp(header, want, (size_t)n) == 0;
    }
    return fd;
}

/* Whether a log has to be there that is not, or has nothing in it. */
static bool log_lost(const struct node *node, unsigned partition, int fd,
                     uint64_t salt) {
    return node->self.logs != 0 && partition < node->self.partitions &&
           (fd < 0 || salt == 0);
}

/* Looks at every log's header before a start changes anything, and adds up how
   much there is to read. */
static void logs_check(struct node *node) {
    uint64_t salt = 0;
    bool fits = true;

    for (unsigned i = 0; i < PARTITIONS_MAX; i++) {
        int fd = log_open(node, i, O_RDONLY, &salt, &fits);

        if (log_lost(node, i, fd, salt) && !node->flags.accept_damage)
            give_up(1,
                    "%s/%03u.log is missing or empty, and was not: put it back "
                    "from a backup, or do without it with -acceptDamage; "
                    "nothing was changed",
                    node->flags.data, i);
        if (fd < 0)
            continue;
        if (!fits)
            give_up(1,
                    "%s/%03u.log is not a log of partition %u of %" PRIu64
                    " of this cluster, in format %d, or its header is damaged: "
                    "put it back from a backup; nothing was changed",
                    node->flags.data, i, i, node->self.partitions, LOG_FORMAT);
        node->load_total += (uint64_t)lseek(fd, 0, SEEK_END);
        close(fd);
    }
}

/* Prints the line of a record. */
static void dump_line(uint64_t offset, const struct record *r, bool good) {
    time_t seconds = (time_t)((r->version >> VERSION_BITS) / 1000000);
    struct buf key = {0};
    char date[32];
    struct tm tm;

    gmtime_r(&seconds, &tm);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &tm);
    buf_key(&key, r->key);
    printf("%" PRIu64 "\t%s\t%016" PRIx64 "\t%s\t%s\t%.*s\t%zu\n", offset,
           good ? "ok" : "bad", r->version, date,
           r->tombstone ? "delete" : "put", (int)key.n, (char *)key.p,
           r->value.n);
    buf_free(&key);
}

/* -dump: prints what is in a log. */
static void __attribute__((noreturn)) log_dump(const char *path) {
    uint64_t at = LOG_HEADER, next, salt;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t size = (size_t)lseek(fd, 0, SEEK_END); /* none fits -1, nor 0 */
    const uint8_t *log = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    struct record r;

    if (log == MAP_FAILED || size < LOG_HEADER ||
        memcmp(log, LOG_MAGIC, 8) != 0 || get32(log + 8) != LOG_FORMAT ||
        get64(log + 56) != xxh64(log, 56, 0))
        give_up(1, "%s cannot be read, or is no log of format %d", path,
                LOG_FORMAT);
    salt = get64(log + 32);
    for (; at < size; at = next) {
        next = log_search(log, size, salt, at, &r);
        if (next > at) {
            printf("%" PRIu64 "\tbad\t-\t-\t-\t-\t%" PRIu64 "\n", at,
                   next - at);
            continue;
        }
        dump_line(at, &r, r.size <= size - at && record_intact(&r));
        next = r.size < size - at ? at + r.size : size;
    }
    exit(0);
}

/* ------------------------------------------------------------- The store
 *
 * What a node keeps, a partition at a time: the index of a log, the clock, the
 * mark and the superblock that tell one start from another, the one rule by
 * which records are written, reading and what happens to a record that is
 * rotten, the syncs, compaction, and the reading of all logs at a start.
 *
 * The index of a partition is a table sorted by fingerprint, with gaps: an
 * entry's home is its fingerprint scaled to the number of slots, and it stands
 * at home or behind it, in order, with no gap between (linear probing that
 * keeps the order: Amble and Knuth, "Ordered hash tables", 1974). So a search
 * that fails ends early, the table grows by any factor, which keeps memory
 * near 24 / 0.8 bytes a key, and a list in order of fingerprints, which is
 * what replicas compare, needs no sorting.
 *
 * Fingerprints are hashes under a secret key, hence evenly spread; that two
 * keys share one is as good as impossible and harmless all the same, since
 * the key itself is compared in the log.
 */

#define TABLE_SLOTS       32                  /* the smallest */
#define TABLE_LEFT(slots) (64 + (slots) / 64) /* run-over behind the slots */

static uint64_t entry_offset(const struct entry *e) {
    return (uint64_t)e->offset * 8;
}

static size_t entry_size(const struct entry *e) {
    return (size_t)(e->size & ~(ENTRY_TOMBSTONE | ENTRY_DAMAGED)) * 8;
}

static bool entry_tombstone(const struct entry *e) {
    return (e->size & ENTRY_TOMBSTONE) != 0;
}

static bool entry_damaged(const struct entry *e) {
    return (e->size & ENTRY_DAMAGED) != 0;
}

/* What an entry adds to the sum of its log: a hash of its key and version. */
static uint64_t entry_sum(const struct entry *e) {
    const uint64_t pair[2] = {e->fingerprint, e->version};

    return xxh64((const uint8_t *)pair, sizeof pair, 0);
}

/* The bucket of a fingerprint: the bits below those of its partition, so that a
   bucket is a range of the table. */
static unsigned bucket_of(const struct node *node, uint64_t print) {
    return (unsigned)(print * node->partitions >> 56);
}

/* The lowest fingerprint in a bucket of a partition. */
static uint64_t bucket_print(const struct node *node, unsigned partition,
                             unsigned bucket) {
    uint64_t last = UINT64_MAX / node->partitions;

    return partition * (last + 1) + bucket * (last / BUCKETS + 1);
}

/* Adds an entry to what is counted of a log, or (sign: -1) takes it away. */
static void log_count(const struct node *node, struct log *log,
                      const struct entry *e, int sign) {
    uint64_t by = (uint64_t)sign, value = !entry_tombstone(e);

    log->rotten += (uint32_t)sign * entry_damaged(e);
    log->sum += by * entry_sum(e);
    log->live += by * entry_size(e);
    log->keys += by * value;
    log->bytes += by * value * entry_size(e);
    log->sums[bucket_of(node, e->fingerprint)] += by * value * entry_sum(e);
}

/* The first slot, from the one where an entry would like to stand, that is
   empty or whose fingerprint is not below; log->total: there is none. */
static uint32_t table_seek(const struct node *node, const struct log *log,
                           uint64_t print) {
    uint64_t low = print * node->partitions >> 32; /* without the top bits */
    uint32_t at = (uint32_t)(low * log->slots >> 32);

    while (at < log->total && log->table[at].version != 0 &&
           log->table[at].fingerprint < print)
        at++;
    return at;
}

/* Puts an entry before the slot that table_seek() found. */
static void table_put(struct log *log, uint32_t at, struct entry entry) {
    uint32_t gap = at;

    while (gap < log->total && log->table[gap].version != 0)
        gap++;
    if (gap >= log->total)
        die("the index's table overflows");
    memmove(log->table + at + 1, log->table + at,
            (gap - at) * sizeof *log->table);
    log->table[at] = entry;
    log->used++;
}

/* Makes a table anew, full to .65, without the tombstones below a cutoff.
   false: no memory, and it is as it was. */
static bool table_renew(const struct node *node, struct log *log,
                        uint64_t cutoff) {
    struct entry *table, *old = log->table;
    uint32_t total = log->total;
    uint32_t slots = log->used + log->used / 2 + log->used / 32 + TABLE_SLOTS;

    table = calloc(slots + TABLE_LEFT(slots), sizeof *table);
    if (table == NULL)
        return false;
    log->table = table;
    log->slots = slots;
    log->total = slots + TABLE_LEFT(slots);
    log->used = 0;
    for (uint32_t i = 0; i < total; i++)
        if (entry_tombstone(&old[i]) && old[i].version < cutoff)
            log_count(node, log, &old[i], -1);
        else if (old[i].version != 0)
            table_put(log, table_seek(node, log, old[i].fingerprint), old[i]);
    free(old);
    return true;
}

/* Room for one table_put() more: a table that is full to .85, or has run over
   to its end, gives way to a larger one. false: no memory. */
static bool table_room(const struct node *node, struct log *log) {
    return (log->used < log->slots / 20 * 17 &&
            log->table[log->total - 1].version == 0) ||
           table_renew(node, log, 0);
}

/* The entry of a record at an offset. */
static struct entry entry_of(uint64_t print, const struct record *r,
                             uint64_t offset) {
    uint32_t mark = r->tombstone ? ENTRY_TOMBSTONE : 0;

    return (struct entry){print, r->version, (uint32_t)(offset / 8),
                          (uint32_t)(r->size / 8) | mark};
}

/* Reads the record of an entry into b: `most` bytes of it, but always all that
   is before the value, which is looked at only if it is all asked for. Whether
   what is there verifies; *r points into b. */
static bool entry_read(const struct file *file, const struct entry *e,
                       size_t most, struct buf *b, struct record *r) {
    size_t size = entry_size(e);
    size_t least = RECORD_HEADER + KEY_MAX + TYPE_MAX + 8 * blocks_of(size);
    size_t want = most > least ? most : least;

    if (want > size)
        want = size;
    b->n = 0;
    return read_at(file->fd, buf_grow(b, want), want, entry_offset(e)) ==
               (ssize_t)want &&
           record_parse(b->p, want, file->salt, r) && r->size == size &&
           r->version == e->version && (most < size || record_intact(r));
}

/* The entry in a slot if it has this fingerprint, else NULL. */
static struct entry *entry_at(const struct log *log, uint32_t at,
                              uint64_t print) {
    if (at >= log->total || log->table[at].version == 0 ||
        log->table[at].fingerprint != print)
        return NULL;
    return &log->table[at];
}

/*
 * The entry of a key, or NULL; *at is where one would be put. A record that
 * does not verify counts as of this key: its fingerprint says so, and to take
 * it for another key's would hide the damage. Under the partition's lock.
 */
static struct entry *log_find(const struct node *node, struct log *log,
                              uint64_t print, struct slice key, uint32_t *at) {
    struct buf b = {0};
    struct record r;
    struct entry *e;

    *at = table_seek(node, log, print);
    for (; (e = entry_at(log, *at, print)) != NULL; ++*at)
        if (!entry_read(log->file, e, 0, &b, &r) || slice_equal(r.key, key))
            break;
    buf_free(&b);
    return e;
}

/* Points the index at a record that is in the log; old and at are of
   log_find(), and table_room() came before it. */
static void log_index(const struct node *node, struct log *log,
                      struct entry *old, uint32_t at, struct entry new) {
    if (old != NULL)
        log_count(node, log, old, -1);
    log_count(node, log, &new, 1);
    if (old != NULL)
        *old = new;
    else
        table_put(log, at, new);
}

/* ---- The clock and its ceiling.
 *
 * A version is 54 bits of microseconds since 1970 and 10 bits of the number of
 * the node that made it: a hybrid logical clock (Kulkarni et al., 2014) in
 * which the counter is the microsecond itself, since a node's next version is
 * above all that it has seen.
 *
 * The ceiling is on the disk, above every version that this node has issued,
 * stored or promised; what is above it waits until a higher one is there. A
 * start begins at the ceiling. Without it a process whose clock was set back
 * could give a version twice, or one below what was acknowledged before, and
 * would not know what the process before it had promised. */

#define VERSION_TIME(us) ((uint64_t)(us) << VERSION_BITS)

#define VERSION_AHEAD VERSION_TIME(CLOCK_AHEAD *UINT64_C(1000000))

/* Whether a version is further ahead of the physical clock than any honest
   clock can be. */
static bool clock_too_far(uint64_t version) {
    return version > VERSION_TIME(now_us()) + VERSION_AHEAD;
}

/* What this node tells others of its clock: that and the physical one. */
static uint64_t clock_now(struct node *node) {
    uint64_t clock = atomic_load(&node->clock);
    uint64_t physical = VERSION_TIME(now_us());

    return clock > physical ? clock : physical;
}

/* Moves the clock past a version that was seen. A wild one moves nothing: one
   clock that is far ahead would carry those of all nodes with it. */
static void clock_see(struct node *node, uint64_t version) {
    unsigned long long clock = atomic_load(&node->clock);

    while (version > clock && !clock_too_far(version) &&
           !atomic_compare_exchange_weak(&node->clock, &clock, version))
        ;
}

/* The number of the member that this node is; 0: it has not joined yet. */
static unsigned self_number(const struct node *node) {
    return (unsigned)atomic_load(&node->self.number);
}

/*
 * A new version: above all that this node has seen, above `above`, and not
 * below the physical clock. Above a record whose clock was wild it is given
 * by a second clock, so that the first stays where it is and yet no version
 * is given twice.
 */
static uint64_t clock_version(struct node *node, uint64_t above) {
    atomic_ullong *of = clock_too_far(above) ? &node->wild : &node->clock;
    unsigned long long clock = atomic_load(of);
    uint64_t version, physical = VERSION_TIME(now_us());

    do {
        version = clock > physical ? clock : physical;
        version = version > above ? version : above;
        version = VERSION_TIME((version >> VERSION_BITS) + 1);
        version |= self_number(node);
    } while (!atomic_compare_exchange_weak(of, &clock, version));
    return version;
}

/* Whether a version may be stored: below the ceiling. If not, the ceiling is
   soon higher, and the caller tries again. */
static bool ceiling_allows(struct node *node, uint64_t version) {
    if (version <= atomic_load(&node->ceiling))
        return true;
    atomic_store(&node->ceiling_short, true);
    return false;
}

/* ---- How the process before this one ended.
 *
 * A mark in POSIX shared memory outlives a process and not the machine. Its
 * name has the boot number of the process that made it, which takes it away
 * when it ends well, or when a sync fails. So if the superblock says that the
 * last process did not end well, and the mark is not there, the machine went
 * down with it, and what was not synced may be lost. The mark's length is the
 * sequence number of the superblock that the process wrote last: a directory
 * whose superblock has a lower one is an older copy, put back. */

static void mark_name(const struct node *node, uint64_t boot, char name[64]) {
    snprintf(name, 64, "/estoraje-%016" PRIx64 "-%" PRIu64, node->self.id,
             boot);
}

/* The length of this boot's mark; -1: there is none. */
static int64_t mark_length(const struct node *node) {
    struct stat st = {.st_size = -1};
    char name[64];
    int fd;

    mark_name(node, node->self.boot, name);
    fd = shm_open(name, O_RDONLY, 0600);
    if (fd >= 0) {
        fstat(fd, &st);
        close(fd);
    }
    return st.st_size;
}

/* Gives the mark its length: after the superblock is on the disk. */
static void mark_set(struct node *node) {
    int fd = atomic_load(&node->mark_fd);

    if (fd > 0 && ftruncate(fd, (off_t)node->self.sequence) != 0)
        say("warning", "the mark in shared memory cannot be written error=%s",
            strerror(errno));
}

static void mark_remove(const struct node *node, uint64_t boot) {
    char name[64];

    mark_name(node, boot, name);
    shm_unlink(name);
}

/* Leaves a mark for this boot. Without one the next start looks unclean, which
   is slow but safe. */
static void mark_make(struct node *node) {
    char name[64];
    int fd;

    mark_name(node, node->self.boot, name);
    fd = shm_open(name, O_RDWR | O_CREAT, 0600);
    atomic_store(&node->mark_fd, fd);
    if (fd < 0)
        say("warning", "no mark in shared memory: if this process is killed, "
                       "the next one takes it for a crash of the machine");
    if (atomic_load(&node->dead_logs) > 0) /* a sync has failed before this */
        mark_remove(node, node->self.boot);
}

/* ---- The superblock: two slots of 512 bytes, written in turn, each with a
 * sequence number and a sum. The higher good one counts, so that a write that
 * is torn leaves the one before. A slot is the numbers of struct identity, of 8
 * bytes each, zeros, and at 504 the sum of what is before. */

#define SUPER_SIZE    512
#define SUPER_MAGIC   UINT64_C(0x707573726f747365) /* "estorsup" */
#define SUPER_NUMBERS (offsetof(struct identity, number) / sizeof(uint64_t))

/* Writes the superblock and has it on the disk. 0 or an errno: then the slot
   that is still good is left alone by the next try, too. */
static int super_write(struct node *node) {
    struct identity *self = &node->self;
    uint64_t numbers[SUPER_NUMBERS];
    uint8_t p[SUPER_SIZE] = {0};
    int error;

    self->magic = SUPER_MAGIC;
    self->format = LOG_FORMAT;
    self->sequence++;
    memcpy(numbers, self, sizeof numbers);
    for (size_t i = 0; i < SUPER_NUMBERS; i++)
        put64(p + 8 * i, numbers[i]);
    put64(p + 504, xxh64(p, 504, 0));
    error =
        write_at(node->super_fd, p, sizeof p, self->sequence % 2 * SUPER_SIZE);
    if (error == 0 && fsync(node->super_fd) != 0)
        error = errno;
    if (error != 0)
        self->sequence--;
    else
        mark_set(node);
    return error;
}

/* Reads the superblock. 1: there is one; 0: the file is new, or all that the
   first write has left is zeros; -1: damaged. */
static int super_read(struct node *node) {
    static const uint8_t zeros[2 * SUPER_SIZE];
    uint8_t slots[2 * SUPER_SIZE] = {0};
    uint64_t numbers[SUPER_NUMBERS];
    ssize_t n = read_at(node->super_fd, slots, sizeof slots, 0);

    for (const uint8_t *p = slots; p < slots + sizeof slots; p += SUPER_SIZE) {
        for (size_t i = 0; i < SUPER_NUMBERS; i++)
            numbers[i] = get64(p + 8 * i);
        if (numbers[0] == SUPER_MAGIC && numbers[1] == LOG_FORMAT &&
            numbers[2] > node->self.sequence &&
            get64(p + 504) == xxh64(p, 504, 0))
            memcpy(&node->self, numbers, sizeof numbers);
    }
    if (node->self.sequence > 0)
        return 1;
    return n >= 0 && memcmp(slots, zeros, sizeof slots) == 0 ? 0 : -1;
}

/* Writes the superblock at a start, which ends if that cannot be done. */
static void identity_save(struct node *node) {
    int error = super_write(node);

    if (error != 0 || fsync(node->dir_fd) != 0)
        give_up(1, "cannot write %s/superblock: %s", node->flags.data,
                strerror(error != 0 ? error : errno));
}

/*
 * A boot number is a count of starts with random bits behind it. Without these
 * the process on a copy of the directory as it was before the last start would
 * have the number that the lost one had: nobody could tell the two apart, and
 * what the copy holds would count and spread.
 */
#define BOOT_BITS 24

static uint64_t boot_next(uint64_t boot) {
    return ((boot >> BOOT_BITS) + 1) << BOOT_BITS |
           (random_id() & ((UINT64_C(1) << BOOT_BITS) - 1));
}

/* Whether a boot that is known of a directory is not this one, nor before it:
   then who has this one runs on an older copy. */
static bool boot_later(uint64_t known, uint64_t boot) {
    return known != boot && known >> BOOT_BITS >= boot >> BOOT_BITS;
}

/* Claims the directory for this process: the boot number is on the disk before
   anybody is told of it, and its mark is there before that, or a kill between
   the two would look unclean. Main does it, however often it comes here. */
static void identity_begin(struct node *node) {
    uint64_t last = node->self.boot;

    if (node->begun)
        return;
    node->begun = true;
    node->self.boot = boot_next(last);
    if (!node->unclean) /* else when that is made good */
        mark_make(node);
    identity_save(node);
    mark_remove(node, last);
}

/* At a start, before a log loses what it may have promised: until that is made
   good each start after this one is unclean. Threads of the pool come here. */
static void identity_forget(struct node *node) {
    pthread_mutex_lock(&node->view_lock);
    mark_remove(node, node->self.boot);
    if (node->self.clean) {
        node->self.clean = 0;
        identity_save(node);
    }
    pthread_mutex_unlock(&node->view_lock);
}

/* Raises the ceiling where it is near and there are writes, or where someone
   waits for it. The house thread's. */
static void ceiling_raise(struct node *node) {
    uint64_t physical = VERSION_TIME(now_us());
    uint64_t clock = atomic_load(&node->clock);
    uint64_t second = VERSION_TIME(1000000); /* a bad clock must not raise it */
    uint64_t next = (clock < physical ? clock : physical) + 2 * second;
    uint64_t margin = clock > physical ? second / 40 : second;
    int error;

    if (!atomic_exchange(&node->ceiling_short, false) &&
        (clock + margin < node->self.ceiling || clock + second < physical))
        return;
    if (next < clock + second / 20) /* the clock is ahead, as after a start: */
        next = clock + second / 20; /* restarts must not run it away */
    node->self.ceiling = next;
    error = super_write(node);
    if (error != 0 && error != node->super_error)
        say("error", "cannot write the superblock: writes wait error=%s",
            strerror(error));
    node->super_error = error;
    if (error == 0)
        atomic_store(&node->ceiling, node->self.ceiling);
    else
        atomic_store(&node->ceiling_short, true);
}

/* ---- Writing: one rule, wherever a record comes from */

/*
 * Applies a record if and only if its version is above the one that is held:
 * it is appended and put into the index. The version that is held is ok, even
 * below the floor: it was here first, so whoever raised the floor knows of it,
 * and to refuse it would count a replica that has the record as one without.
 * Where the copy held is rotten, the same version takes its place; a replay,
 * which does not know what was rotten, takes the later of two. From outside a
 * record must not be below the floor, nor from a wild clock unless what is held
 * is, too. decided: a majority has it. bytes is the record as it is sealed for the network; NULL: a replay
 * has found it in the log, just before log->end. Under the partition's lock.
 */
static struct accepted part_apply(struct node *node, struct part *part,
                                  struct log *log, uint8_t *bytes,
                                  const struct record *r, uint64_t print,
                                  uint64_t floor, bool decided) {
    struct accepted a = {.verdict = ACCEPT_OK};
    bool outside = bytes != NULL && log == &part->log, heals = false;
    bool room = table_room(node, log); /* first: it moves the entries */
    uint32_t at;
    struct entry *e = log_find(node, log, print, r->key, &at);

    if (e != NULL) {
        a.held = a.above = e->version;
        a.existed = !entry_tombstone(e) || entry_offset(e) < part->unsure;
        heals = r->version == a.held && (bytes == NULL || entry_damaged(e));
    } else if (part->unsure > 0) { /* there may have been one, of any version */
        a.held = 1;
        a.existed = true;
    }
    if (outside && part->dead) {
        a.verdict = ACCEPT_DEAD;
    } else if (r->version <= a.held && !heals) {
        a.verdict = r->version == a.held ? ACCEPT_OK : ACCEPT_HELD;
    } else if (r->version < floor && !heals) {
        a.verdict = ACCEPT_FLOOR;
        a.above = floor;
    } else if (outside && clock_too_far(r->version) && !clock_too_far(a.held)) {
        a.verdict = ACCEPT_AHEAD;
    } else if (outside && !a.existed && r->tombstone && !decided &&
               atomic_load(&node->full)) {
        a.verdict = ACCEPT_FULL; /* it would take room and make none; but one
                                    that a majority has may be needed here */
    } else if (room && (bytes == NULL ||
                        log_append(node, part, log, bytes, r->size) == 0)) {
        log_index(node, log, e, at, entry_of(print, r, log->end - r->size));
    } else {
        a.verdict = part->dead ? ACCEPT_DEAD : ACCEPT_FULL;
    }
    return a;
}

/* Ends a compaction: what was copied goes. Under the partition's lock. */
static void compact_end(struct node *node, struct part *part) {
    char name[16];

    log_name(name, part->number, true);
    unlinkat(node->dir_fd, name, 0);
    file_release(part->next.file);
    free(part->next.table);
    part->next = (struct log){0};
}

/* ---- Promises.
 *
 * The floor of a key is the highest version promised for it, and never goes
 * down: what was read under a promise stays the newest until the promised
 * version is written, or fails. If a floor were forgotten, an older operation
 * could still succeed after a newer one has read without seeing it, and one of
 * the two would be lost.
 *
 * Floors live in memory. When the table is full the lowest promise is folded
 * into the floor of the whole partition. That still keeps lower versions out,
 * but whose promise it was is forgotten, so the promised version itself is
 * refused, too: another key's would look the same. At a start the partition's
 * floor is the ceiling, above all that earlier processes have promised. */

/* The promise for a key; NULL: there is none, or it was folded. Under the
   partition's lock, like all of these. */
static struct promise *promise_find(struct part *part, uint64_t print) {
    struct promise *p = part->promises, *end = p + part->promised;

    while (p < end && p->fingerprint != print)
        p++;
    return p < end && p->version > part->floor ? p : NULL;
}

/* The floor of a key. */
static uint64_t promise_floor(struct part *part, uint64_t print) {
    const struct promise *p = promise_find(part, print);

    return p != NULL ? p->version : part->floor;
}

/* The highest version that was promised, for any key. */
static uint64_t promise_highest(const struct part *part) {
    uint64_t highest = part->floor;

    for (unsigned i = 0; i < part->promised; i++)
        if (part->promises[i].version > highest)
            highest = part->promises[i].version;
    return highest;
}

/* Makes room for one more promise: the lowest is folded, unless the floor is
   above it already. One of a wild clock would refuse everything; it is only
   made by a node that runs alone, and can be dropped. */
static void promise_fold(const struct node *node, struct part *part) {
    struct promise *lowest = part->promises;

    for (struct promise *p = lowest; p < part->promises + part->promised; p++)
        if (p->version < lowest->version)
            lowest = p;
    if (lowest->version > part->floor &&
        (node->etcd != NULL || !clock_too_far(lowest->version)))
        part->floor = lowest->version;
    *lowest = part->promises[--part->promised];
}

/* Promises a version of a key, above its floor, to a coordinator. */
static void promise_make(struct part *part, uint64_t print, uint64_t version) {
    struct promise *p = part->promises, *end = p + part->promised;

    while (p < end && p->fingerprint != print)
        p++;
    part->promised += p == end;
    *p = (struct promise){print, version};
}

/* A record of a key was stored: it is held now, and a promise up to its version
   is kept by that. */
static void promise_keep(struct part *part, uint64_t print, uint64_t version) {
    struct promise *p = promise_find(part, print);

    if (p != NULL && p->version <= version)
        *p = part->promises[--part->promised];
}

/*
 * Promises a version for a key, if it is above what is held and what was
 * promised: a duplicate is refused, or two coordinators could both take one
 * promise for theirs. Version 0 promises nothing. Either way it says what is
 * held: a.held, and if that is not 0 *entry and *file, held for the caller;
 * and, with -sync always, whether the disk has it yet: if not, a loss of power
 * may take it back. Like an accepted version a promised one is below the
 * ceiling: that is the floor of the next process, which so keeps the promise.
 */
static struct accepted store_prepare(struct node *node, struct part *part,
                                     uint64_t version, uint64_t print,
                                     struct slice key, struct entry *entry,
                                     struct file **file) {
    struct accepted a = {.verdict = ACCEPT_CEILING};
    bool far = clock_too_far(version);
    const struct entry *e;
    uint32_t at;

    *file = NULL;
    clock_see(node, version);
    if (!far && !ceiling_allows(node, version))
        return a;
    pthread_mutex_lock(&part->lock);
    e = log_find(node, &part->log, print, key, &at);
    if (e != NULL) {
        a.held = e->version;
        a.existed = !entry_tombstone(e);
        a.unsynced =
            node->sync == SYNC_ALWAYS && entry_offset(e) >= part->log.synced;
        *entry = *e;
        *file = file_hold(part->log.file);
    }
    if (version != 0 && part->promised == PROMISES)
        promise_fold(node, part);
    a.verdict = ACCEPT_OK;
    a.above = promise_floor(part, print);
    if (part->unsure > (e != NULL ? entry_offset(e) : 0)) {
        a.verdict = ACCEPT_DAMAGED;
    } else if (version == 0) {
        ;
    } else if (part->dead) {
        a.verdict = ACCEPT_DEAD;
    } else if (version <= a.held) {
        a.verdict = ACCEPT_HELD;
        a.above = a.held;
    } else if (version <= a.above) {
        a.verdict = ACCEPT_FLOOR;
    } else if (far && node->etcd != NULL) {
        a.verdict = ACCEPT_AHEAD; /* no ceiling could keep it */
    } else {
        promise_make(part, print, version);
    }
    pthread_mutex_unlock(&part->lock);
    return a;
}

/* The lowest version that a record may have if it comes in this way; what is
   held is looked at elsewhere. One that was promised has to be exactly that: a
   replica which has not promised it may have stored a record since that its
   coordinator was not told of, and would bury it. */
static uint64_t part_least(struct part *part, const struct record *r,
                           uint64_t print, enum how how) {
    const struct promise *p = promise_find(part, print);

    if (how == HOW_MAJORITY)
        return 0;
    if (how == HOW_PROMISED)
        return p != NULL && p->version == r->version ? 0 : r->version + 1;
    return promise_floor(part, print);
}

/* The one way in from outside: a client's write, a peer's, a repair. The record
   was verified by whoever received it. */
static struct accepted store_accept(struct node *node, struct part *part,
                                    uint8_t *bytes, const struct record *r,
                                    uint64_t print, enum how how) {
    struct accepted a = {.verdict = ACCEPT_CEILING};

    clock_see(node, r->version); /* first: the ceiling follows the clock */
    if (!clock_too_far(r->version) && !ceiling_allows(node, r->version))
        return a;
    pthread_mutex_lock(&part->lock);
    a = part_apply(node, part, &part->log, bytes, r, print,
                   part_least(part, r, print, how), how == HOW_MAJORITY);
    if (a.verdict == ACCEPT_OK) {
        promise_keep(part, print, r->version);
        if (part->next.file != NULL &&
            part_apply(node, part, &part->next, bytes, r, print, 0, true)
                    .verdict != ACCEPT_OK)
            compact_end(node, part);
    }
    pthread_mutex_unlock(&part->lock);
    return a;
}

/* Tells of a stretch of a log that cannot be used: in the log of events, or
   as -check's findings. */
static void log_complain(const struct node *node, const struct part *part,
                         const char *level, const char *what, uint64_t offset,
                         uint64_t bytes) {
    char text[200];

    snprintf(text, sizeof text,
             "%s file=%03u.log offset=%" PRIu64 " bytes=%" PRIu64, what,
             part->number, offset, bytes);
    if (node->flags.check != NULL)
        puts(text);
    else
        say(level, "%s", text);
}

/*
 * Puts what is in the log into the index, and has log.end behind it. What does
 * not verify, a header or a value, is the torn tail if no record follows it.
 * Otherwise it is damage: if only a value is rotten, reading it will find that
 * out, and only that key has it. A tail that was surely torn is the first
 * part of a longer record; any other may have been rot, and has
 * part->recovering set. How many records there are.
 */
static uint64_t log_replay(struct node *node, struct part *part,
                           const uint8_t *bytes, uint64_t size) {
    uint64_t at, next, records = 0, told = 0, salt = part->log.file->salt;
    struct record r, after = {0};

    part->log.end = LOG_HEADER;
    at = log_search(bytes, size, salt, LOG_HEADER, &r);
    for (; at < size; at = next, r = after, records++) {
        next = size;
        if (r.size < size - at)
            next = log_search(bytes, size, salt, at + r.size, &after);
        if (next == size && (r.size > size - at || !record_intact(&r)))
            break;
        if (at > part->log.end) {
            log_complain(node, part, "error", "damaged: records may be lost",
                         part->log.end, at - part->log.end);
            part->unsure = at;
        }
        part->log.end = at + r.size;
        if (node->flags.accept_damage && !record_intact(&r)) {
            log_complain(node, part, "error",
                         "damaged: a rotten record is given up", at, r.size);
            part->rewrite = true;
            continue;
        }
        if (part_apply(node, part, &part->log, NULL, &r,
                       ring_fingerprint(r.key.p, r.key.n, node->self.hash), 0,
                       true)
                .verdict == ACCEPT_FULL)
            die("out of memory for the index");
        clock_see(node, r.version); /* a copy's superblock may be older */
        if (next - told > PAGE_BYTES || next == size) {
            atomic_fetch_add(&node->load_done, next - told);
            told = next;
        }
    }
    at = part->log.end;
    part->recovering =
        at < size &&
        !(record_parse(bytes + at, (size_t)(size - at), salt, &r) &&
          r.size > size - at);
    return records;
}

/* Reads a log, which is mapped: an error of the disk ends the program with
   SIGBUS, since to go on would take it for a torn tail. The number of records;
   *size is that of the file. */
static uint64_t part_read(struct node *node, struct part *part,
                          uint64_t *size) {
    int fd = part->log.file->fd;
    off_t length = lseek(fd, 0, SEEK_END);
    uint64_t records;
    void *bytes;

    *size = (uint64_t)length;
    bytes = mmap(NULL, (size_t)*size, PROT_READ, MAP_SHARED, fd, 0);
    if (length < 0 || bytes == MAP_FAILED)
        give_up(1, "cannot map %s/%03u.log: %s", node->flags.data, part->number,
                strerror(errno));
    records = log_replay(node, part, bytes, *size);
    munmap(bytes, (size_t)*size);
    if (part->log.end < *size)
        log_complain(node, part, "warning", "torn tail", part->log.end,
                     *size - part->log.end);
    return records;
}

/*
 * Opens a partition's log, begins one that was not begun, and reads it. The
 * torn tail is cut off, and the cut is on the disk before anything is appended.
 * A compaction that was not finished leaves a file that nobody needs.
 */
static void part_load(struct node *node, struct part *part) {
    uint64_t salt = 0, size;
    char name[16];
    bool fits = false, lost, begun;
    int fd = log_open(node, part->number, O_RDWR | O_CREAT, &salt, &fits);

    log_name(name, part->number, true);
    if (!fits || (unlinkat(node->dir_fd, name, 0) != 0 && errno != ENOENT))
        give_up(1, "cannot use %s/%03u.log, or remove %s", node->flags.data,
                part->number, name);
    lost = log_lost(node, part->number, fd, salt);
    if (lost)
        identity_forget(node);
    part->log.file = file_new(fd, salt);
    if (salt == 0) /* one of a start that was cut short may not be synced yet */
        begun = log_begin(node, part->number, part->log.file);
    else
        begun = node->self.logs != 0 || fsync(fd) == 0;
    if (!begun)
        give_up(1, "cannot begin %s/%03u.log: %s", node->flags.data,
                part->number, strerror(errno));
    part_read(node, part, &size);
    part->dirty =
        part->log.end > LOG_HEADER; /* kill -9 left it to us to sync */
    if (part->recovering)
        identity_forget(node);
    part->recovering = part->recovering || lost;
    if (part->log.end < size &&
        (ftruncate(fd, (off_t)part->log.end) != 0 || fsync(fd) != 0))
        give_up(1, "cannot cut the torn tail of %s/%03u.log: %s",
                node->flags.data, part->number, strerror(errno));
}

/* ---- Reading */

enum found { FOUND, ABSENT, UNSURE, DAMAGED };

/* The place of the n-th entry that has a fingerprint, and the file, held for
   the caller. false: there is none; *unsure says if damage may hide one. */
static bool part_place(const struct node *node, struct part *part,
                       uint64_t print, unsigned n, struct entry *entry,
                       struct file **file, bool *unsure) {
    const struct log *log = &part->log;
    const struct entry *e;

    pthread_mutex_lock(&part->lock);
    e = entry_at(log, table_seek(node, log, print) + n, print);
    if (e != NULL) {
        *entry = *e;
        *file = file_hold(log->file);
    }
    *unsure = part->unsure > (e != NULL ? entry_offset(e) : 0);
    pthread_mutex_unlock(&part->lock);
    return e != NULL;
}

/* Notes that the record of an entry is rotten, if it is still the newest: a
   round of repair will bring it anew, if any other owner has it. */
static void part_damaged(struct node *node, struct part *part,
                         const struct entry *rotten) {
    uint64_t print = rotten->fingerprint;
    uint32_t at;
    struct entry *e;

    pthread_mutex_lock(&part->lock);
    at = table_seek(node, &part->log, print);
    for (; (e = entry_at(&part->log, at, print)) != NULL; at++) {
        if (e->version != rotten->version || e->offset != rotten->offset ||
            entry_damaged(e))
            continue;
        e->size |= ENTRY_DAMAGED;
        part->log.rotten++;
        atomic_fetch_add(node->figures.rotten, 1);
        part->doubts++;
        log_complain(node, part, "error", "damaged: a record is rotten",
                     entry_offset(e), entry_size(e));
        wake_write(node->repair_wake[1]);
    }
    pthread_mutex_unlock(&part->lock);
}

/*
 * Reads the newest record of a key into b, as entry_read() does. FOUND: *r is
 * set (r->tombstone may be, too), and if `kept` is not NULL it is the file,
 * held for the caller, and *entry is where the record is in it.
 */
static enum found store_read(struct node *node, struct part *part,
                             uint64_t print, struct slice key, size_t most,
                             struct buf *b, struct record *r,
                             struct file **kept, struct entry *entry) {
    struct entry e = {0};
    struct file *file = NULL;
    bool unsure;

    for (unsigned n = 0; part_place(node, part, print, n, &e, &file, &unsure);
         n++) {
        bool good = entry_read(file, &e, most, b, r);
        bool other = good && !slice_equal(r->key, key);

        if (good && !other && !unsure && kept != NULL) {
            *kept = file;
            *entry = e;
        } else {
            file_release(file);
        }
        if (!good)
            part_damaged(node, part, &e);
        if (!other) /* else another key has the same fingerprint */
            return !good ? DAMAGED : unsure ? UNSURE : FOUND;
    }
    return unsure ? UNSURE : ABSENT;
}

/* Copies out the entries from *print on whose records make up about a page, an
   array of struct entry, and holds their file for the caller. *print is then
   where the next page begins. false: this was the last. */
static bool part_page(const struct node *node, struct part *part,
                      uint64_t *print, struct buf *page, struct file **file) {
    const struct log *log = &part->log;
    uint64_t bytes = 0, from = *print;
    bool more = false;

    page->n = 0;
    pthread_mutex_lock(&part->lock);
    *file = file_hold(log->file);
    for (uint32_t at = table_seek(node, log, from); at < log->total; at++) {
        const struct entry *e = &log->table[at];

        if (e->version == 0)
            continue;
        more = bytes > PAGE_BYTES && e->fingerprint != *print;
        *print = e->fingerprint;
        if (more)
            break;
        buf_add(page, e, sizeof *e);
        bytes += entry_size(e);
    }
    pthread_mutex_unlock(&part->lock);
    return more;
}

/* Reads and verifies the next page of a partition. false: it was the last.
   *bytes: how much it was. */
static bool part_verify(struct node *node, struct part *part, uint64_t *print,
                        uint64_t *bytes) {
    struct buf page = {0}, b = {0};
    struct file *file;
    struct record r;
    bool more = part_page(node, part, print, &page, &file);
    const struct entry *e = (const void *)page.p;

    *bytes = 0;
    for (size_t n = page.n / sizeof *e; n > 0; n--, e++) {
        *bytes += entry_size(e);
        if (!entry_read(file, e, SIZE_MAX, &b, &r))
            part_damaged(node, part, e);
    }
    file_release(file);
    buf_free(&page);
    buf_free(&b);
    return more;
}

/* ---- The pool.
 *
 * Threads that do for a partition what takes a while: they read its log at the
 * start, sync it when it has bytes that are not on the disk yet, and read for
 * operations what would hold up a poll() loop. Many logs are synced side by
 * side and share the file system's commits. The queue is a pipe of partition
 * numbers: reading waits, and the end of the pipe is the end of the threads. A
 * partition is in it at most twice, for a sync and for errands, so it is never
 * full. */

#define POOL_ERRAND 0x8000 /* marks the number of a partition that has some */

/* Puts a partition into the queue, unless it is there, or someone is about to
   sync it. Under its lock. */
static void pool_enqueue(struct node *node, struct part *part) {
    uint16_t number = (uint16_t)part->number;

    if (part->queued || part->awaited)
        return;
    part->queued = true;
    if (write(node->pool_queue[1], &number, sizeof number) != sizeof number)
        die("cannot queue a partition");
}

/* Hands operations whose wait is over, a list, back to their workers. */
static void ops_post(struct op *list, int result) {
    while (list != NULL) {
        struct op *op = list;
        struct worker *w = op->w;

        list = op->wait_next;
        op->wait_next = NULL;
        op->wait_result = result;
        pthread_mutex_lock(&w->inbox_lock);
        if (w->synced == NULL)
            wake_write(w->wake[1]);
        *w->synced_end = op;
        w->synced_end = &op->wait_next;
        pthread_mutex_unlock(&w->inbox_lock);
    }
}

/* Has op->errand() done by a thread of the pool; its worker finds the operation
   in the inbox then. */
static void errand_park(struct node *node, struct part *part, struct op *op) {
    uint16_t number = (uint16_t)(part->number | POOL_ERRAND);

    op->parked = true;
    pthread_mutex_lock(&part->lock);
    op->wait_next = part->errands;
    part->errands = op;
    if (op->wait_next == NULL &&
        write(node->pool_queue[1], &number, sizeof number) != sizeof number)
        die("cannot queue a partition");
    pthread_mutex_unlock(&part->lock);
}

/* Does the errands of a partition. */
static void errands_run(struct part *part) {
    struct op *op, *next;

    pthread_mutex_lock(&part->lock);
    next = part->errands;
    part->errands = NULL;
    pthread_mutex_unlock(&part->lock);
    while ((op = next) != NULL) {
        next = op->wait_next;
        op->wait_next = NULL;
        op->errand(op);
        ops_post(op, 0);
    }
}

/* Has an operation wait for a sync that begins after this; its worker finds it
   in the inbox then. */
static void sync_park(struct node *node, struct part *part, struct op *op) {
    op->parked = true;
    pthread_mutex_lock(&part->lock);
    op->wait_next = part->waiters;
    part->waiters = op;
    pool_enqueue(node, part);
    pthread_mutex_unlock(&part->lock);
}

/*
 * Syncs one log, for all that waited when it began, and with it the one that
 * may take its place, and the name that it may have since. After a failed sync
 * nobody knows what is on the disk, and a second one would not tell: the log is
 * dead. The kernel tells of a failure once, so there is one sync of a log at a
 * time; who comes meanwhile has the next one.
 */
static void sync_part(struct node *node, struct part *part) {
    struct op *waiters;
    struct file *file, *next;
    bool dead, renamed;
    uint64_t end;
    int error = 0, next_error = 0;

    pthread_mutex_lock(&part->lock);
    part->dirty = false;
    waiters = part->waiters;
    part->waiters = NULL;
    file = file_hold(part->log.file);
    end = part->log.end;
    next = part->next.file != NULL ? file_hold(part->next.file) : NULL;
    renamed = part->renamed;
    pthread_mutex_unlock(&part->lock);

    if ((renamed && fsync(node->dir_fd) != 0) || fdatasync(file->fd) != 0)
        error = errno;
    else if (next != NULL && fdatasync(next->fd) != 0)
        next_error = errno;

    pthread_mutex_lock(&part->lock);
    if (next_error != 0 && part->next.file != NULL)
        compact_end(node, part);
    if (error != 0 || (next_error != 0 && part->log.file == next)) {
        log_die(node, part, error != 0 ? error : next_error);
        /* The next start repairs what may be lost. */
        mark_remove(node, node->self.boot);
    }
    if (part->log.file == file) {
        part->renamed = false;
        part->log.synced = error == 0 ? end : part->log.synced;
    }
    dead = part->dead;
    part->queued = false;
    if (part->waiters != NULL)
        pool_enqueue(node, part);
    pthread_mutex_unlock(&part->lock);
    file_release(file);
    file_release(next);
    ops_post(waiters, dead ? EIO : 0);
}

/* Waits until no sync of a partition is queued or at work. With its lock held,
   but for the rests. */
static void sync_idle(struct part *part) {
    while (part->queued) {
        pthread_mutex_unlock(&part->lock);
        rest_ms(1);
        pthread_mutex_lock(&part->lock);
    }
}

/* Syncs a log here and now, after the sync that is under way. */
static void sync_now(struct node *node, struct part *part) {
    pthread_mutex_lock(&part->lock);
    part->awaited = true;
    sync_idle(part);
    part->queued = true;
    part->awaited = false;
    pthread_mutex_unlock(&part->lock);
    sync_part(node, part);
}

/* ---- Compaction.
 *
 * A log that is more dead than alive is written anew, one partition at a time,
 * while it is read and written. A second log is begun under a temporary name.
 * From then on each write goes to both logs, and what the old one holds is
 * copied page by page, under the same rule: a record goes in if and only if its
 * version is higher. So when the last page is copied the second log holds what
 * the first does, and takes its place and name in one step. Its bytes are on
 * the disk before that, and its name before anything is acknowledged that is in
 * no other log. Whatever goes wrong, it is the old log that stays; who reads
 * from that keeps it open.
 *
 * Old tombstones go first, where every owner has answered in the last round of
 * repair, none has a value that one of them covers, and none has an old
 * tombstone that is not on its disk: such a value would come back. The floor of
 * the partition takes their place, since a copy of such a value may still be on
 * its way here. One on its way to an owner that never had the tombstone is
 * refused there for its age: a tombstone goes after 15 minutes, a record that
 * comes first-hand is refused after 10, and the 5 between are for clocks that
 * differ.
 *
 * A log with damage is left as it is until that is repaired, written over or
 * given up: what cannot be copied must not become absent. */

#define COMPACT_DEAD  (512u << 10) /* bytes beside as many as live */
#define COMPACT_AGAIN 10000        /* ms from a failure to the next try */
#define COMPACT_DAY   86400000     /* ms: then one tombstone is enough */

/* Bytes of a log that no key needs. Under the partition's lock. */
static uint64_t part_dead_bytes(const struct part *part) {
    return part->log.end - LOG_HEADER - part->log.live + part->gone;
}

/* Whether a partition is worth a compaction: sooner where room is short, or to
   be rid of tombstones, but not of a few every few minutes. room: what the disk
   has left, which must not be taken from the deletes in vain. */
static bool compact_wanted(const struct node *node, const struct part *part,
                           uint64_t room) {
    const struct log *log = &part->log;
    bool tight =
        atomic_load(&node->full) || log->end + 2 * LOG_SPARE > node->log_most;
    uint64_t most = tight            ? log->live / 64 + 4096
                    : part->gone > 0 ? log->live / 8
                                     : log->live + COMPACT_DEAD;

    if (part->gone > 0 && now_ms() - part->compacted > COMPACT_DAY)
        most = 0;
    return !part->dead && part->unsure == 0 && log->rotten == 0 &&
           now_ms() >= part->rest_until && log->live + RESERVE_PART < room &&
           (part->rewrite || part_dead_bytes(part) > most);
}

/* Begins the log that is to replace a partition's; NULL: that failed, or one is
   on its way. Its name is its lock: several threads may want to begin one. */
static struct file *compact_begin(const struct node *node,
                                  const struct part *part) {
    const int flags = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC;
    struct file *file;
    char name[16];
    int fd;

    log_name(name, part->number, true);
    fd = openat(node->dir_fd, name, flags, 0666);
    if (fd < 0)
        return NULL;
    file = file_new(fd, 0);
    if (log_begin(node, part->number, file))
        return file;
    unlinkat(node->dir_fd, name, 0);
    file_release(file);
    return NULL;
}

/* Copies the records of a page. false: that is not possible. */
static bool compact_copy(struct node *node, struct part *part,
                         const struct file *file, const struct buf *page) {
    struct buf b = {0};
    struct record r;
    bool good = true;
    const struct entry *e = (const void *)page->p;

    for (size_t n = page->n / sizeof *e; good && n > 0; n--, e++) {
        good = entry_read(file, e, SIZE_MAX, &b, &r);
        if (!good)
            part_damaged(node, part, e);
        pthread_mutex_lock(&part->lock);
        good = good && part->next.file != NULL &&
               part_apply(node, part, &part->next, b.p, &r, e->fingerprint, 0,
                          true)
                       .verdict <= ACCEPT_HELD;
        pthread_mutex_unlock(&part->lock);
    }
    buf_free(&b);
    return good;
}

/* Puts the second log, which was synced, in the place of the first if it holds
   the same. Under the partition's lock. */
static bool compact_swap(struct node *node, struct part *part) {
    char from[16], to[16];

    log_name(from, part->number, true);
    log_name(to, part->number, false);
    if (part->dead || part->next.sum != part->log.sum)
        return false;
    if (renameat(node->dir_fd, from, node->dir_fd, to) != 0) {
        if (errno == EIO) /* then the name may have gone over (POSIX) */
            log_die(node, part, errno);
        return false;
    }
    part->log = part->next;
    part->next = (struct log){0};
    part->renamed = part->dirty = true;
    part->rewrite = false;
    return true;
}

/* Copies all that is live, with rests as long as the work, so that requests
   have the disk and the processor, too; without when room is short. */
static bool compact_all(struct node *node, struct part *part) {
    struct buf page = {0};
    struct file *file;
    uint64_t print = 0, began;
    bool good, more;

    do {
        began = now_ms();
        more = part_page(node, part, &print, &page, &file);
        good =
            compact_copy(node, part, file, &page) && !atomic_load(&node->ended);
        file_release(file);
        if (more && !atomic_load(&node->full))
            rest_ms(now_ms() - began);
    } while (good && more);
    buf_free(&page);
    return good;
}

/* Notes that tombstones below a cutoff may go, or (0) none. Under the lock. */
static void part_droppable(struct part *part, uint64_t cutoff) {
    const struct log *log = &part->log;

    part->droppable = cutoff;
    part->gone = 0;
    for (uint32_t i = 0; cutoff > 0 && i < log->total; i++)
        if (entry_tombstone(&log->table[i]) && log->table[i].version < cutoff)
            part->gone += entry_size(&log->table[i]);
}

/* Drops the tombstones that may go: from the index, so that the log which is
   written next is without them. Before that the floor is raised above them. If
   no log is written their records stay, and a start finds them again, newer
   than what they cover. */
static void part_drop(const struct node *node, struct part *part) {
    const struct log *log = &part->log;

    pthread_mutex_lock(&part->lock);
    for (uint32_t i = 0; part->gone > 0 && i < log->total; i++) {
        const struct entry *e = &log->table[i];

        if (entry_tombstone(e) && e->version < part->droppable &&
            e->version > part->floor)
            part->floor = e->version;
    }
    if (part->gone > 0 && table_renew(node, &part->log, part->droppable))
        part_droppable(part, 0);
    pthread_mutex_unlock(&part->lock);
}

/* Compacts a partition, without the tombstones that may go, and syncs it once
   more, for its name. Whether the second log is in place. */
static bool part_compact(struct node *node, struct part *part) {
    struct file *file = compact_begin(node, part);
    struct log old;
    uint64_t end;
    bool good;

    if (file != NULL)
        part_drop(node, part);
    pthread_mutex_lock(&part->lock); /* now a write that fails may end it */
    part->next = (struct log){.file = file, .end = LOG_HEADER};
    pthread_mutex_unlock(&part->lock);
    good = file != NULL && compact_all(node, part);
    if (good)
        sync_now(node, part);
    pthread_mutex_lock(&part->lock);
    old = part->log;
    good = good && part->next.file != NULL && compact_swap(node, part);
    if (part->next.file != NULL)
        compact_end(node, part);
    end = part->log.end;
    part->rest_until = good ? 0 : now_ms() + COMPACT_AGAIN;
    part->compacted = good ? now_ms() : part->compacted;
    pthread_mutex_unlock(&part->lock);
    atomic_fetch_add(&node->figures.compactions[!good], 1);
    if (good) {
        file_release(old.file);
        free(old.table);
        sync_now(node, part);
        if (node->flags.debug)
            say("info", "compacted partition=%u from=%" PRIu64 " to=%" PRIu64,
                part->number, old.end, end);
    } else if (!atomic_load(&node->ended)) {
        say("warning", "a compaction was given up partition=%u", part->number);
    }
    return good;
}

/* ---- The pool at a start: it reads the logs. */

/* At a start with -acceptDamage: the log is written anew without what cannot be
   read, which was named. In a cluster the others are asked for it before what
   this replica says counts. */
static void part_give_up(struct node *node, struct part *part) {
    if (part->unsure == 0 && !part->rewrite)
        return;
    part->unsure = 0;
    part->recovering = true;
    identity_forget(node);
    if (!part_compact(node, part))
        give_up(1,
                "cannot write %s/%03u.log anew without what is damaged: is "
                "there room on the disk?",
                node->flags.data, part->number);
}

static void *pool_run(void *arg) {
    struct node *node = arg;
    uint16_t number;
    ssize_t n;

    while ((n = read(node->pool_queue[0], &number, sizeof number)) != 0) {
        if (n != sizeof number)
            continue; /* a signal */
        if (number & POOL_ERRAND) {
            errands_run(&node->parts[number - POOL_ERRAND]);
        } else if (atomic_load(&node->parts_read) < node->partitions) {
            node->parts[number].queued = false;
            part_load(node, &node->parts[number]);
            if (node->flags.accept_damage)
                part_give_up(node, &node->parts[number]);
            atomic_fetch_add(&node->parts_read, 1);
        } else {
            sync_part(node, &node->parts[number]);
        }
    }
    return NULL;
}

/* Queues every log that has records to be synced. */
static void sync_all(struct node *node) {
    for (unsigned i = 0; i < node->partitions; i++) {
        struct part *part = &node->parts[i];

        pthread_mutex_lock(&part->lock);
        if (part->dirty && !part->dead)
            pool_enqueue(node, part);
        pthread_mutex_unlock(&part->lock);
    }
}

/* How far the reading of the logs has come. */
static void load_text(const struct node *node, char text[100]) {
    uint64_t all = node->load_total, done = atomic_load(&node->load_done);
    uint64_t ms = now_ms() - atomic_load(&node->load_began);
    double part = all > 0 ? (double)done / (double)all : 1;

    snprintf(text, 100, "%.0f %% of %" PRIu64 " bytes, %.0f s to go",
             part * 100, all,
             done > 0 ? (double)ms / 1000 / part * (1 - part) : 0);
}

/* Makes the partitions, starts the pool and has it read the logs. Their names
   are on the disk, too, before anything is acknowledged. */
static void store_load(struct node *node) {
    uint64_t began = now_ms(), tell = began + 1000;
    char text[100];

    atomic_store(&node->load_began, began);
    node->parts = memory(node->partitions, sizeof *node->parts);
    if (pipe(node->pool_queue) != 0)
        give_up(1, "cannot make a pipe: %s", strerror(errno));
    for (unsigned i = 0; i < POOL_THREADS; i++)
        if (pthread_create(&node->pool[i], NULL, pool_run, node) != 0)
            give_up(1, "cannot start a thread: %s", strerror(errno));
    for (unsigned i = 0; i < node->partitions; i++) {
        struct part *part = &node->parts[i];

        mutex_init(&part->lock);
        part->number = i;
        part->floor = node->self.ceiling;
        part->doubts = 1;
        part->round_at = began + ROUND_MS;
        part->compacted = began;
        pool_enqueue(node, part);
    }
    while (atomic_load(&node->parts_read) < node->partitions) {
        rest_ms(1);
        if (stop_requested)
            exit(node->exit_code); /* nothing is under way that kill -9 harms */
        if (now_ms() < tell)
            continue;
        load_text(node, text);
        say("info", "reading logs: %s", text);
        tell += 1000;
    }
    if (fsync(node->dir_fd) != 0)
        give_up(1, "cannot sync %s: %s", node->flags.data, strerror(errno));
    say("info", "logs read ms=%" PRIu64, now_ms() - began);
}

/* Syncs what is not yet, once no sync is at work any more, and ends the pool,
   which takes what is queued first. No other thread runs. */
static void store_end(struct node *node) {
    for (unsigned i = 0; i < node->partitions; i++) {
        pthread_mutex_lock(&node->parts[i].lock);
        sync_idle(&node->parts[i]);
        pthread_mutex_unlock(&node->parts[i].lock);
    }
    if (node->sync != SYNC_NONE)
        sync_all(node);
    close(node->pool_queue[1]);
    for (unsigned i = 0; i < POOL_THREADS; i++)
        pthread_join(node->pool[i], NULL);
}

/* ---------------------------------------------------------- HTTP as text
 *
 * One parser for what clients ask, what peers ask and answer, and what etcd
 * answers. It is pure, and strict where the standards leave a choice (RFC 9110
 * and 9112), since what two programs read differently is where requests are
 * smuggled. First the end of the head is found, then the head is parsed as a
 * whole; a body has a length, or is chunked.
 */

/* A refusal is a text: the status, a blank, and the line that says why. NULL:
   nothing is refused. */

/*
 * Looks for the empty line that ends a head. The answer is the head's length
 * with that line, or 0: more is needed. *scanned remembers where to go on.
 * A head that has no end within its limits is refused.
 */
static size_t http_head_end(const uint8_t *p, size_t n, size_t *scanned,
                            const char **refusal) {
    *refusal = NULL;
    for (;;) {
        size_t at = *scanned; /* always just behind a line */
        const uint8_t *lf = at < n ? memchr(p + at, '\n', n - at) : NULL;
        size_t end = lf != NULL ? (size_t)(lf - p) + 1 : n;

        if (at == 0 && end > LINE_MAX_HTTP + 2)
            *refusal = "414 the request line is over 8 KiB: shorten it";
        else if (end > HEAD_MAX)
            *refusal = "431 the header is over 16 KiB: send fewer fields";
        else if (lf != NULL && (end < at + 2 || lf[-1] != '\r'))
            *refusal = "400 a line must end in CR LF";
        if (lf == NULL || *refusal != NULL)
            return 0;
        *scanned = end;
        if (end == at + 2)
            return end;
    }
}

/* A character of a method or a field name (RFC 9110, 5.6.2). */
static bool http_tchar(unsigned c) {
    return (c | 32) - 'a' < 26 || c - '0' < 10 ||
           (c != 0 && c < 128 && strchr("!#$%&'*+-.^_`|~", (int)c) != NULL);
}

/* Takes a token off the front; false: there is none. */
static bool token_next(struct slice *s) {
    size_t n = 0;

    while (n < s->n && http_tchar(s->p[n]))
        n++;
    *s = slice_skip(*s, n);
    return n > 0;
}

static bool http_token(struct slice s) {
    return token_next(&s) && s.n == 0;
}

/* Takes a character off the front; false: another one is there, or none. */
static bool char_next(struct slice *s, int c) {
    if (s->n == 0 || *s->p != c)
        return false;
    *s = slice_skip(*s, 1);
    return true;
}

/* Cuts off what stands before the first c; false: there is none. */
static bool slice_cut(struct slice *rest, int c, struct slice *before) {
    const uint8_t *at = rest->n > 0 ? memchr(rest->p, c, rest->n) : NULL;

    if (at == NULL)
        return false;
    *before = (struct slice){rest->p, (size_t)(at - rest->p)};
    *rest = slice_skip(*rest, before->n + 1);
    return true;
}

static struct slice slice_trim(struct slice s) {
    while (s.n > 0 && (s.p[0] == ' ' || s.p[0] == '\t'))
        s = slice_skip(s, 1);
    while (s.n > 0 && (s.p[s.n - 1] == ' ' || s.p[s.n - 1] == '\t'))
        s.n--;
    return s;
}

/* Takes what stands before the next c, or all; false: nothing is left. */
static bool slice_next(struct slice *rest, int c, struct slice *before) {
    if (rest->n == 0)
        return false;
    if (!slice_cut(rest, c, before)) {
        *before = *rest;
        rest->n = 0;
    }
    return true;
}

/* Takes the next word of a comma-separated list; false: there is none. */
static bool list_next(struct slice *list, struct slice *word) {
    bool more = slice_next(list, ',', word);

    if (more)
        *word = slice_trim(*word);
    return more;
}

/* Whether a list has this word. */
static bool list_has(struct slice list, const char *text) {
    struct slice word;

    while (list_next(&list, &word))
        if (slice_is_nocase(word, text))
            return true;
    return false;
}

/* Takes a token, or a text in quotes, off the front; false: there is none. */
static bool word_next(struct slice *s) {
    if (!char_next(s, '"'))
        return token_next(s);
    while (s->n > 0 && *s->p != '"')
        *s = slice_skip(*s, *s->p == '\\' && s->n > 1 ? 2 : 1);
    return char_next(s, '"');
}

/* Whether this is type/subtype, maybe with parameters, ;name=value each (RFC
   9110, 8.3.1 and 5.6.6); that it has no control characters was seen. */
static bool http_media_type(struct slice s) {
    bool fine = token_next(&s) && char_next(&s, '/') && token_next(&s);

    while (fine && (s = slice_trim(s)).n > 0) {
        fine = char_next(&s, ';');
        s = slice_trim(s);
        if (s.n > 0 && *s.p != ';')
            fine =
                fine && token_next(&s) && char_next(&s, '=') && word_next(&s);
    }
    return fine;
}

/* Takes "HTTP/1.x" off the front. */
static bool http_version(struct slice *s, struct http *h) {
    if (!slice_begins(*s, "HTTP/1.") || s->n < 8 || (unsigned)s->p[7] - '0' > 9)
        return false;
    h->minor = s->p[7] - '0';
    *s = slice_skip(*s, 8);
    return true;
}

/* Whether this is a host, with or without a port, and nothing in it is
   percent-encoded. It may be empty, as a Host may (RFC 9112, 3.2; RFC 3986,
   3.2.2). */
static bool http_host(struct slice s) {
    char text[INET6_ADDRSTRLEN];
    struct in6_addr address;
    struct slice name;

    if (char_next(&s, '[')) {
        if (!slice_cut(&s, ']', &name) ||
            !slice_copy(name, text, sizeof text) ||
            inet_pton(AF_INET6, text, &address) != 1)
            return false;
    } else {
        while (s.n > 0 &&
               (isalnum(*s.p) || strchr("-._~!$&'()*+,;=", *s.p) != NULL))
            s = slice_skip(s, 1);
    }
    if (char_next(&s, ':'))
        while (s.n > 0 && digit_of(*s.p) < 10)
            s = slice_skip(s, 1);
    return s.n == 0;
}

/* Takes the path and the query out of a target. It is a path, a URI with one,
   a host for CONNECT, or a * for OPTIONS (RFC 9112, 3.2). */
static bool http_target(struct http *h) {
    struct slice rest = h->target, host = {rest.p, 0};
    size_t scheme = strlen("http://");

    if (slice_is(rest, "*") || slice_is(h->method, "CONNECT")) {
        h->path = rest;
        return slice_is(rest, "*") ? slice_is(h->method, "OPTIONS")
                                   : http_host(rest);
    }
    if (rest.n > scheme &&
        slice_is_nocase((struct slice){rest.p, scheme}, "http://")) {
        rest = slice_skip(rest, scheme);
        for (host.p = rest.p; rest.n > 0 && strchr("/?", *rest.p) == NULL;)
            rest = slice_skip(rest, 1);
        host.n = (size_t)(rest.p - host.p);
        if (host.n == 0 || *host.p == ':' || !http_host(host))
            return false;
    }
    h->query = rest;
    slice_next(&h->query, '?', &h->path);
    if (host.n > 0 && h->path.n == 0)
        h->path = slice_of("/");
    return slice_begins(h->path, "/");
}

/* METHOD SP target SP HTTP/1.x */
static const char *http_request_line(struct slice line, struct http *h) {
    bool whole = slice_cut(&line, ' ', &h->method) && http_token(h->method) &&
                 slice_cut(&line, ' ', &h->target) && h->target.n > 0;

    for (size_t i = 0; i < h->target.n; i++)
        if (h->target.p[i] <= ' ' || h->target.p[i] >= 127 ||
            h->target.p[i] == '#')
            return "400 the path has bytes that must be percent-encoded";
    if (whole && http_version(&line, h) && line.n == 0)
        return http_target(h) ? NULL : "400 the target must be a path, /key";
    return whole && slice_begins(line, "HTTP/") && !slice_begins(line, "HTTP/1")
               ? "505 only HTTP/1.0 and HTTP/1.1 are spoken here"
               : "400 the request line must be METHOD /key HTTP/1.1";
}

/* HTTP/1.x SP status SP reason */
static const char *http_status_line(struct slice line, struct http *h) {
    uint64_t status;

    if (!http_version(&line, h) || line.n < 4 || line.p[0] != ' ' ||
        !slice_digits((struct slice){line.p + 1, 3}, 10, &status) ||
        status < 100)
        return "400 not an HTTP status line";
    h->status = (unsigned)status;
    return NULL;
}

/* The fields of interest, and where their values go; others are skipped. */
#define FIELD(name, member) \
    { name, sizeof name - 1, offsetof(struct http, member) }

static const struct {
    const char *name;
    size_t n, at;
} http_fields[] = {
    FIELD("Host", host),          FIELD("Content-Length", content_length),
    FIELD("Content-Type", type),  FIELD("Connection", connection),
    FIELD("Expect", expectation), FIELD("Transfer-Encoding", encoding),
    FIELD("If-Match", if_match),  FIELD("If-None-Match", if_none_match),
    FIELD("Range", range),        FIELD("Content-Encoding", coding),
    FIELD("Estoraje", estoraje),  FIELD("Authorization", authorization),
    FIELD("Origin", origin),      FIELD("Content-Range", part),
    FIELD("If-Range", if_range),
};

/* Whether a line is free of control characters, tabs aside. */
static bool line_clean(struct slice line) {
    for (size_t i = 0; i < line.n; i++)
        if ((line.p[i] < ' ' && line.p[i] != '\t') || line.p[i] == 127)
            return false;
    return true;
}

/* Notes one field. Each may be there once, since it would not be clear which
   one counts; but for Connection, of which a "close" counts wherever it is. */
static const char *http_field(struct slice line, struct http *h) {
    struct slice name;

    if (!slice_cut(&line, ':', &name) || !http_token(name))
        return "400 a header line must be Name: value";
    line = slice_trim(line);
    if (!line_clean(line))
        return "400 a header field has a control character: leave it out";
    for (size_t i = 0; i < sizeof http_fields / sizeof http_fields[0]; i++) {
        struct slice *field = (void *)((uint8_t *)h + http_fields[i].at);

        if (name.n != http_fields[i].n ||
            !slice_is_nocase(name, http_fields[i].name))
            continue;
        if (field->p != NULL && field != &h->connection)
            return "400 a header field is there twice: send it once";
        if (field != &h->connection || !list_has(*field, "close"))
            *field = line;
        break;
    }
    return NULL;
}

/* Works out what the fields mean for the body and the connection. */
static const char *http_meaning(struct http *h, bool request) {
    struct slice codings = h->encoding, last = {0};

    h->chunked = h->encoding.p != NULL;
    h->expect = h->expectation.n > 0 && h->minor >= 1;
    h->keep = !list_has(h->connection, "close") &&
              (h->minor >= 1 || list_has(h->connection, "keep-alive"));
    if (h->content_length.p != NULL &&
        !slice_digits(h->content_length, 10, &h->length))
        return "400 Content-Length must be a decimal number";
    if (h->chunked && (h->content_length.p != NULL || h->minor == 0))
        return "400 Transfer-Encoding wants HTTP/1.1, and no Content-Length";
    while (list_next(&codings, &last))
        ;
    if (h->chunked && !slice_is_nocase(last, "chunked"))
        return "400 the last Transfer-Encoding must be chunked";
    if (h->chunked && !slice_is_nocase(h->encoding, "chunked"))
        return "501 the only Transfer-Encoding is chunked";
    if (h->expect && !slice_is_nocase(h->expectation, "100-continue"))
        return "417 the only Expect is 100-continue: leave others out";
    if (request && h->minor >= 1 && h->host.p == NULL)
        return "400 HTTP/1.1 wants a Host field: send Host: host:port";
    if (request && !http_host(h->host))
        return "400 the Host field must be host:port";
    return NULL;
}

/*
 * Parses a whole head, which http_head_end() has measured. Slices in *h point
 * into it. A request that is refused has said nothing that can be relied on
 * but its method; the connection must be closed after the answer.
 */
static const char *http_parse(const uint8_t *p, size_t n, bool request,
                              struct http *h) {
    struct slice rest = {p, n}, line = {p, 1};
    const char *refusal;

    memset(h, 0, sizeof *h);
    slice_cut(&rest, '\n', &line);
    line.n--; /* its CR; that each line has one was seen */
    refusal = request ? http_request_line(line, h) : http_status_line(line, h);
    while (refusal == NULL && slice_cut(&rest, '\n', &line) && --line.n > 0)
        refusal = http_field(line, h);
    return refusal != NULL ? refusal : http_meaning(h, request);
}

/* A body is a stretch of data, or chunks: a line with a size, data, and an
   empty line each; a size of 0 is the last, and trailers may follow. */
enum { CHUNK_END, CHUNK_SIZE, CHUNK_DATA, CHUNK_DATA_END, CHUNK_TRAILER };

/* Begins with the body that a head announces. */
static struct chunks chunks_begin(const struct http *h) {
    return (struct chunks){.plain = !h->chunked,
                           .left = h->length,
                           .state = h->chunked      ? CHUNK_SIZE
                                    : h->length > 0 ? CHUNK_DATA
                                                    : CHUNK_END};
}

/* A line between the data, without its CR. false: it is malformed. */
static bool chunks_line(struct chunks *k, struct slice line) {
    struct slice size = line;
    bool extended;

    if (k->state == CHUNK_DATA_END) {
        k->state = CHUNK_SIZE;
        return line.n == 0;
    }
    if (k->state == CHUNK_TRAILER) {
        k->left += line.n;
        k->state = line.n == 0 ? CHUNK_END : CHUNK_TRAILER;
        return k->left <= TRAILER_MAX &&
               (line.n == 0 || (token_next(&line) && char_next(&line, ':')));
    }
    extended = slice_cut(&line, ';', &size); /* it says nothing to us */
    k->state = CHUNK_DATA;
    if (size.n == 0 || size.p[0] <= ' ' ||
        !slice_digits(extended ? slice_trim(size) : size, 16, &k->left))
        return false;
    if (k->left == 0)
        k->state = CHUNK_TRAILER;
    return true;
}

/*
 * Goes on with a body. Each call consumes bytes up to the end of a stretch of
 * data, which is in *data (maybe empty). The answer is the number of bytes
 * consumed, 0: more are needed, or -1: malformed. k->state is CHUNK_END after
 * the last.
 */
static ssize_t chunks_read(struct chunks *k, const uint8_t *p, size_t n,
                           struct slice *data) {
    struct slice rest = {p, n}, line;

    *data = (struct slice){p, 0};
    while (k->state != CHUNK_DATA && k->state != CHUNK_END) {
        if (!slice_cut(&rest, '\n', &line))
            return rest.n > (k->state == CHUNK_DATA_END ? 1 : CHUNK_LINE)
                       ? -1
                       : rest.p - p;
        if (line.n == 0 || line.n > CHUNK_LINE || line.p[--line.n] != '\r' ||
            !line_clean(line) || !chunks_line(k, line))
            return -1;
    }
    if (k->state == CHUNK_DATA) {
        *data = rest;
        if (data->n > k->left)
            data->n = (size_t)k->left;
        k->left -= data->n;
        if (k->left == 0)
            k->state = k->plain ? CHUNK_END : CHUNK_DATA_END;
        rest = slice_skip(rest, data->n);
    }
    return rest.p - p;
}

/* Decodes percent-encoding, once. The length, or -1: malformed, or over
   room. */
static ssize_t percent_decode(struct slice s, uint8_t *to, size_t room) {
    size_t n = 0;

    for (size_t i = 0; i < s.n; i++) {
        uint64_t byte = s.p[i];

        if (byte == '%') {
            if (s.n - i < 3 ||
                !slice_digits((struct slice){s.p + i + 1, 2}, 16, &byte))
                return -1;
            i += 2;
        }
        if (n == room)
            return -1;
        to[n++] = (uint8_t)byte;
    }
    return (ssize_t)n;
}

/* Takes the next entity tag off a list (RFC 9110, 5.6.1 and 8.8.3). 1: it is
   in *tag; 0: that was the end; -1: what comes is none. */
static int etag_next(struct slice *rest, struct slice *tag) {
    while (rest->n > 0 && strchr(", \t", *rest->p) != NULL)
        *rest = slice_skip(*rest, 1);
    if (rest->n == 0)
        return 0;
    tag->p = rest->p;
    if (slice_begins(*rest, "W/"))
        *rest = slice_skip(*rest, 2);
    if (!char_next(rest, '"'))
        return -1;
    while (rest->n > 0 && strchr("\"\x7f", *rest->p) == NULL && *rest->p > ' ')
        *rest = slice_skip(*rest, 1);
    if (!char_next(rest, '"'))
        return -1;
    tag->n = (size_t)(rest->p - tag->p);
    *rest = slice_trim(*rest);
    return rest->n == 0 || *rest->p == ',' ? 1 : -1;
}

/* Whether a field, if it is there, is "*" or a list of entity tags. */
static bool etags_fine(struct slice list) {
    struct slice tag;
    bool any = list.p == NULL || slice_is(list, "*");
    int more = any ? 0 : 1;

    while (more > 0 && (more = etag_next(&list, &tag)) > 0)
        any = true;
    return any && more == 0;
}

/* Whether an etag is in a list that is fine. weak: W/ makes no difference, as
   in If-None-Match; in If-Match such a tag is equal to none (RFC 9110, 13.1).
   No etag, 0, is in no list, not even in "*". */
static bool etag_listed(struct slice list, uint64_t etag, bool weak) {
    struct slice one;
    char text[24];

    if (etag == 0 || list.n == 0)
        return false;
    if (slice_is(list, "*"))
        return true;
    snprintf(text, sizeof text, "\"%016" PRIx64 "\"", etag);
    while (etag_next(&list, &one) > 0) {
        if (weak && slice_begins(one, "W/"))
            one = slice_skip(one, 2);
        if (slice_is(one, text))
            return true;
    }
    return false;
}

/* The etag that a text is; 0: it is of no value. */
static uint64_t etag_parse(struct slice text) {
    uint64_t etag;

    if (text.n != 18 ||
        !slice_digits((struct slice){text.p + 1, 16}, 16, &etag) ||
        !etag_listed(text, etag, false)) /* as of other quotes or letters */
        return 0;
    return etag;
}

/* A position in a value. One that no number can hold is behind any end. */
static bool range_digits(struct slice s, uint64_t *n) {
    for (size_t i = 0; i < s.n; i++)
        if (digit_of(s.p[i]) > 9)
            return false;
    if (!slice_digits(s, 10, n))
        *n = UINT64_MAX;
    return s.n > 0;
}

/*
 * Takes a Range that is one range of bytes (RFC 9110, 14.1): a-b, a- or -n.
 * false: it is something else, and counts as not there, as 14.2 has it: other
 * units, what is malformed, and several ranges, which are answered with the
 * whole value, since most who ask for them want to gain something by it.
 */
static bool range_parse(struct slice s, struct range *range) {
    struct slice unit, one, first, last = {NULL, 0};

    if (!slice_cut(&s, '=', &unit) || !slice_is_nocase(unit, "bytes"))
        return false;
    while (list_next(&s, &one)) { /* a list may have empty words */
        if (one.n > 0 && last.n > 0)
            return false;
        last = one.n > 0 ? one : last;
    }
    if (!slice_cut(&last, '-', &first))
        return false;
    *range = (struct range){first.n == 0, 0, UINT64_MAX};
    if (range->suffix)
        return range_digits(last, &range->last);
    return range_digits(first, &range->first) &&
           (last.n == 0 ||
            (range_digits(last, &range->last) && range->first <= range->last));
}

/* Whether a range has bytes of a value of a size: those from *first to before
   *end. */
static bool range_fits(const struct range *range, uint64_t size,
                       uint64_t *first, uint64_t *end) {
    if (range->suffix) {
        *first = range->last < size ? size - range->last : 0;
        *end = size;
        return range->last > 0;
    }
    *first = range->first;
    *end = range->last < size ? range->last + 1 : size;
    return range->first < size;
}

/* Whether the conditions of a request let it go on where the key has an etag;
   0: it is absent. */
static bool op_may(const struct op *op, uint64_t etag) {
    struct slice match = slice_of(op->if_match);
    struct slice none = slice_of(op->if_none_match);

    return (match.n == 0 || etag_listed(match, etag, false)) &&
           (none.n == 0 || !etag_listed(none, etag, true));
}

/* What stands behind HTTP/1.1 in a status line, and the field that some
   statuses must have. */
static struct slice status_text(unsigned status) {
    static const char texts[] =
        "200 OK;201 Created;204 No Content;404 Not Found;304 Not Modified;202 "
        "Accepted;206 Partial Content;400 Bad Request;401 Unauthorized\r\n"
        "WWW-Authenticate: Bearer;403 Forbidden;405 Method Not Allowed;408 "
        "Request Timeout;409 Conflict;410 Gone;412 Precondition Failed;413 "
        "Content Too Large;414 URI Too Long;415 Unsupported Media Type\r\n"
        "Accept-Encoding: identity;416 Range Not Satisfiable;417 Expectation "
        "Failed;431 Request Header Fields Too Large;501 Not Implemented;503 "
        "Service Unavailable"
        "\r\nRetry-After: 1;504 Gateway Timeout;505 HTTP Version Not Supported;"
        "507 Insufficient Storage;";
    struct slice rest = {(const uint8_t *)texts, sizeof texts - 1}, text;

    while (slice_cut(&rest, ';', &text))
        if ((unsigned)atoi((const char *)text.p) == status)
            return text;
    return slice_of("500 Internal Server Error");
}

/* ----------------------------------------------------------- Connections
 *
 * A connection belongs to one worker and is touched by no other thread. It is
 * one of three kinds: of a client, from a peer, or a link of ours to a peer.
 * Requests become operations, which stand in their connection in the order of
 * arrival and are answered in that order. A client has one at work at a time;
 * a peer may have many, since each may wait for a sync.
 *
 * Whoever changes a connection touches it, and it is served at the end of the
 * turn. So all that a turn has for one peer leaves in one write, and nothing is
 * freed or re-entered while it is in use: to answer an operation or to kill a
 * connection is to mark it. One that is dead stays until its operations are
 * done, so an operation at work always has its connection.
 */

/* The places that call up into later chapters: what a connection is for is
   known there. (Two more prototypes stand where they are needed.) */
static const char *route_request(struct op *op, const struct http *h);
static void link_input(struct conn *c);
static void link_lost(struct conn *c);
static void worker_beat(struct worker *w);

/* Whether there are as many connections as there may be. */
static bool conns_full(const struct node *node) {
    return atomic_load(&node->connections) >=
           atomic_load(&node->connections_max);
}

/* Exchanges the places of two connections. */
static void conns_swap(struct worker *w, size_t i, size_t j) {
    struct conn *c = w->conns[i];

    w->conns[i] = w->conns[j];
    w->conns[j] = c;
    w->conns[i]->place = i + 1;
    w->conns[j]->place = j + 1;
}

/* Has it served at the end of the turn; then it is not calm any more. */
static void conn_touch(struct conn *c) {
    c->touched = c->w->touched = true;
    if (c->place > c->w->active)
        conns_swap(c->w, c->place - 1, c->w->active++);
}

/* Marks it as at its end. */
static void conn_kill(struct conn *c) {
    c->dead = true;
    conn_touch(c);
}

/* A new connection on a socket, which it owns from now on. */
static struct conn *conn_new(struct worker *w, int fd, enum conn_kind kind) {
    struct conn *c = memory(1, sizeof *c);
    int on = 1, most = OUT_MAX / 2;

    fd_nonblocking(fd);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (kind == CONN_CLIENT) /* or it takes megabytes for who does not read */
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &most, sizeof most);
    c->w = w;
    c->fd = fd;
    c->kind = kind;
    c->since = w->now;
    if (w->count == w->cap) {
        w->cap = w->cap * 2 + 64;
        w->fds = realloc(w->fds, (FDS_FIXED + w->cap) * sizeof *w->fds);
        w->conns = realloc(w->conns, w->cap * sizeof(struct conn *));
        if (w->fds == NULL || w->conns == NULL)
            die("out of memory");
    }
    w->conns[w->count++] = c;
    c->place = w->count;
    figure_add(&w->figures.connections[kind != CONN_CLIENT], 1);
    atomic_fetch_add(&w->node->connections, 1);
    c->served = kind == CONN_CLIENT;
    atomic_fetch_add(&w->node->served, c->served);
    conn_touch(c);
    return c;
}

/* ---- The memory of requests and answers.
 *
 * What the buffers of all connections and operations have is counted, but for
 * what is small, and beyond a limit nothing large is begun: a body is not read,
 * a value not fetched, a record not sent to its owners; the answer is 503. What
 * is small goes on, and while all is used up who does not read his answers has
 * one at a time. Not counted is what a worker has for one record at a time.
 * The count is made of the buffers as they are, so nothing can leak from it. */

#define BUSY "too many large values are under way at this node: try again later"

/* Bytes that may be buffered: a write is with each of its owners' links. */
static uint64_t buffer_most(const struct worker *w) {
    uint64_t copies = w->view != NULL ? w->view->replicas + 1 : 0;
    uint64_t least = 2 * copies * w->node->flags.max_value;

    return least > BUFFER_MAX ? least : BUFFER_MAX;
}

/* Whether what is to have `size` bytes in all may get so many more. */
static bool buffer_room(const struct worker *w, uint64_t size, uint64_t more) {
    return size <= READ_SIZE ||
           atomic_load(&w->node->buffered) + more <= buffer_most(w);
}

/* Notes that memory has `now` bytes of which *counted were counted. */
static void buffer_count(struct node *node, uint64_t *counted, uint64_t now) {
    if (now <= READ_SIZE / 4)
        now = 0;
    if (now != *counted)
        atomic_fetch_add(&node->buffered, now - *counted);
    *counted = now;
}

static void conn_count_memory(struct conn *c) {
    buffer_count(c->w->node, &c->counted, c->in.cap + c->out.cap);
}

static void op_count_memory(struct op *op) {
    buffer_count(op->w->node, &op->counted,
                 op->rec.cap + op->old.cap + op->text.cap + op->list.cap);
}

static size_t conn_unsent(const struct conn *c) {
    return c->out.n - c->out.at;
}

/* Whether so much is unsent that nothing is added to it; while all memory is
   used up that is anything. */
static bool conn_full(const struct conn *c) {
    return conn_unsent(c) > 0 &&
           (conn_unsent(c) > OUT_MAX || !buffer_room(c->w, SIZE_MAX, 0));
}

/* Whether more input is wanted: a client's next request waits for the one
   before, no request is read behind one that closes the connection, and nobody
   is read from who does not read. A link always reads, or two nodes that send
   each other much would wait for each other; but a relay, whose client may be
   slow, has little that is not sent on. */
static bool conn_reads(const struct conn *c) {
    size_t unread = c->in.n - c->in.at;

    if (c->dead)
        return false;
    if (c->kind == CONN_LINK)
        return !c->link->relays || unread == 0 ||
               (unread < RELAY_MAX && unread < c->link->left);
    if (c->close_after || conn_full(c))
        return false;
    if (c->first == NULL || c->reading != NULL)
        return true;
    return c->kind == CONN_PEER && c->ops < PEER_OPS && c->last->keep;
}

/* Bytes of the block of a value that is sent next, or of what is left of it. */
static size_t stream_block(const struct conn *c) {
    uint64_t left = c->stream_size - (c->stream_at - c->stream_at % BLOCK);

    return left < BLOCK ? (size_t)left : BLOCK;
}

/* Whether that block is here: in a file always, of a relay when all of it has
   come, or it could not be verified. */
static bool stream_ready(const struct conn *c) {
    const struct link *relay;

    if (!c->streams || c->stream != NULL)
        return c->streams;
    relay = &c->first->relay;
    return relay->conn != NULL && !relay->conn->dead &&
           relay->left != UINT64_MAX &&
           buf_slice(&relay->conn->in).n >= stream_block(c);
}

/* What poll() is to wait for: computed from the state. Nothing, not even an
   error, takes the socket out. */
static struct pollfd conn_poll(const struct conn *c) {
    struct pollfd fd = {c->fd, 0, 0};

    if (conn_reads(c) || c->lingers)
        fd.events |= POLLIN;
    if (conn_unsent(c) > 0 || stream_ready(c))
        fd.events |= POLLOUT;
    if (fd.events == 0 || c->dead)
        fd.fd = -1;
    return fd;
}

/* ---- Operations */

/* A new operation of a connection. One that was used before keeps the memory
   of its buffers. */
static struct op *op_new(struct conn *c) {
    struct worker *w = c->w;
    struct op *op = w->free_ops;

    if (op != NULL)
        w->free_ops = op->next;
    else
        op = memory(1, sizeof *op);
    memset(op, 0, offsetof(struct op, rec));
    op->w = w;
    op->c = c;
    op->keep = true;
    op->method = METHODS - 1;
    op->arrived = w->now_ns;
    if (c->first != NULL)
        c->last->next = op;
    else
        c->first = op;
    c->last = op;
    c->ops++;
    return op;
}

/* Has due(op) called at the next tick. */
static void op_due(struct op *op, void (*due)(struct op *)) {
    op->due = due;
    op->w->waiting = true;
}

/* Frees an operation that has left its connection, and waits for nothing any
   more. */
static void op_release(struct op *op) {
    if (op->c != NULL || op->calls > 0 || op->parked)
        return;
    if (op->at_work)
        atomic_fetch_sub(&op->w->node->at_work, 1);
    buf_reset(&op->rec, READ_SIZE / 8);
    buf_reset(&op->old, READ_SIZE / 8);
    buf_reset(&op->text, READ_SIZE / 8);
    buf_reset(&op->list, READ_SIZE / 8);
    buffer_count(op->w->node, &op->counted, 0);
    op->next = op->w->free_ops;
    op->w->free_ops = op;
}

/* Where an answer is written: to the connection once its turn has come. */
static struct buf *op_out(struct op *op) {
    return op->c->first == op ? &op->c->out : &op->text;
}

/* The answer is complete. */
static void op_finish(struct op *op) {
    op->done = true;
    op->due = NULL;
    conn_touch(op->c);
}

/* Lets operations go that are answered, with all that came before them. */
static void conn_retire(struct conn *c) {
    struct op *op;

    while ((op = c->first) != NULL && op->done) {
        c->first = op->next;
        c->ops--;
        c->since = c->w->now;
        if (!op->keep)
            c->close_after = true;
        op->c = NULL;
        op_release(op);
        if (c->first != NULL) {
            buf_add(&c->out, c->first->text.p, c->first->text.n);
            c->first->text.n = 0;
        }
    }
}

/* The rest of a body is not wanted: a short one is drained, and a peer's, which
   has other calls behind it. What is long, or of unknown length, or waits for a
   100, ends the connection after the answer that says so. */
static void conn_skip_body(struct conn *c) {
    const struct chunks *k = &c->chunks;
    bool call = c->kind == CONN_PEER && c->reading->body != NULL;

    if (!k->plain || k->left > (call ? RECORD_MAX : DRAIN_MAX) ||
        (c->expect && k->left > 0)) {
        c->close_after = true;
        c->reading->keep = false;
    }
    c->reading = NULL;
}

static const char *const method_names[METHODS] = {"GET",  "HEAD",   "PUT",
                                                  "POST", "DELETE", "other"};

/* The upper bounds of the histogram's buckets but the last, microseconds. */
static const unsigned bounds[BOUNDS] = {
    100,   250,    500,    1000,   2500,    5000,    10000,   25000,
    50000, 100000, 250000, 500000, 1000000, 2500000, 5000000, 10000000};

/*
 * Counts a client's request and its time, when its answer begins. The time is
 * from the turn in which all of the request was here, so the requests that the
 * turn had before it are in it. It ends with a reading of the clock that is
 * made for it: by the turn's own one a request that holds up the loop, reading
 * from a slow disk, would have taken no time. Not in it: what waits in the
 * kernel for the turn before to end, and what the client takes to send a body
 * and to read the answer.
 */
static void op_count(const struct op *op, unsigned status) {
    struct figures *f = &op->w->figures;
    uint64_t ns;
    int i = 0;

    if (op->c->kind != CONN_CLIENT)
        return;
    ns = clock_ns(CLOCK_MONOTONIC) - op->arrived;
    while (i < BOUNDS && ns > bounds[i] * UINT64_C(1000))
        i++;
    figure_add(&f->requests[op->method][status < STATUSES ? status : 500], 1);
    figure_add(&f->times[op->method][i], 1);
    figure_add(&f->times_ns[op->method], ns);
}

/* Begins an answer: status line and the fields that all of a status have. A
   body that was not read by now is not wanted. */
static struct buf *answer_begin(struct op *op, unsigned status) {
    struct slice text = status_text(status);
    struct buf *out = op_out(op);

    if (op->c->reading == op)
        conn_skip_body(op->c);
    op->c->since = op->w->now; /* it has its time from now on */
    op->status = status;
    op_count(op, status);
    buf_text(out, "HTTP/1.1 ");
    buf_add(out, text.p, text.n);
    buf_text(out, op->w->date);
    if (!op->keep)
        buf_text(out, "\r\nConnection: close");
    else if (op->c->old)
        buf_text(out, "\r\nConnection: keep-alive");
    if (status == 405) {
        buf_text(out, "\r\nAllow: ");
        buf_text(out, op->allow);
    }
    return out;
}

/* Ends it with a body, which a HEAD only announces, and 204 and 304 cannot
   have (RFC 9110, 8.6). */
static void answer_body(struct op *op, const void *body, size_t n) {
    struct buf *out = op_out(op);

    if (op->status != 204 && op->status != 304) {
        buf_text(out, "\r\nContent-Length: ");
        buf_number(out, n);
    }
    buf_text(out, "\r\n\r\n");
    if (!op->head)
        buf_add(out, body, n);
    if (n > READ_SIZE) { /* at once: more may follow in this turn */
        conn_count_memory(op->c);
        op_count_memory(op);
    }
    op_finish(op);
}

/* Ends it with a body of a type. */
static void answer_typed(struct op *op, const char *type, struct slice body) {
    struct buf *out = op_out(op);

    buf_text(out, "\r\nContent-Type: ");
    buf_text(out, type);
    buf_text(out, "\r\nX-Content-Type-Options: nosniff");
    answer_body(op, body.p, body.n);
}

#define TEXT_PLAIN "text/plain; charset=utf-8"

/* Answers with a line of text: what, which limit or value, what to do. */
static void __attribute__((format(printf, 3, 4)))
answer_error(struct op *op, unsigned status, const char *format, ...) {
    char line[400];
    va_list args;
    size_t n;

    va_start(args, format);
    vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    n = strlen(line);
    line[n++] = '\n';
    answer_begin(op, status);
    answer_typed(op, TEXT_PLAIN, (struct slice){(uint8_t *)line, n});
}

/* ---- Input */

/* Answers with a refusal. */
static void op_refuse(struct op *op, const char *refusal) {
    answer_error(op, (unsigned)atoi(refusal), "%s", refusal + 4);
}

/* Adds bytes to a body, if its limit and the memory of all allow for them and
   for what is announced. */
static const char *op_take(struct op *op, struct slice data,
                           const struct chunks *k) {
    uint64_t left = k->state == CHUNK_DATA ? k->left : 0;
    size_t n = op->rec.n + data.n;
    struct worker *w = op->w;

    if (left > op->body_most || n - op->value_at > op->body_most - left) {
        snprintf(w->refusal, sizeof w->refusal,
                 "413 the body is over %" PRIu64 " bytes, -maxValue of this "
                 "node: send less, or several values",
                 op->body_most);
        return w->refusal;
    }
    if (!buffer_room(w, n + left, data.n + left) || !buf_room(&op->rec, data.n))
        return "503 " BUSY;
    buf_add(&op->rec, data.p, data.n);
    op_count_memory(op);
    return NULL;
}

/* Goes on with a body; op->body() is called when it is all there. false: more
   is needed. A large body has not moved before it is READ_SIZE longer, or a few
   who send a byte now and then would keep the memory of all. */
static bool conn_body(struct conn *c) {
    struct op *op = c->reading;
    const char *refusal = NULL;
    struct slice data = buf_slice(&c->in);
    ssize_t used = chunks_read(&c->chunks, data.p, data.n, &data);
    size_t had = op != NULL ? op->rec.n : 0;

    if (used > 0) {
        c->in.at += (size_t)used;
        if (had < READ_SIZE || had / READ_SIZE < (had + data.n) / READ_SIZE)
            c->since = c->w->now;
    }
    if (used < 0)
        refusal = "400 a chunk is malformed, its line over 1 KiB, or the "
                  "trailers over 8 KiB: see RFC 9112, 7.1";
    else if (op != NULL)
        refusal = op_take(op, data, &c->chunks);
    if (refusal != NULL) {
        op_refuse(op, refusal); /* what is left may be drained */
        return true;
    }
    if (c->chunks.state != CHUNK_END) {
        if (op != NULL && c->expect && c->in.at == c->in.n)
            buf_text(op_out(op), "HTTP/1.1 100 Continue\r\n\r\n");
        c->expect = false;
        return used > 0;
    }
    c->reading = NULL;
    if (op != NULL) {
        op->arrived = op->w->now_ns;
        op->body(op);
    }
    return true;
}

/* Refuses the request that is being read, of which nobody knows where it ends;
   so the connection does. */
static void conn_refuse(struct conn *c, const char *refusal) {
    if (c->reading == NULL) {
        c->reading = op_new(c);
        c->reading->head = slice_begins(buf_slice(&c->in), "HEAD ");
    }
    c->reading->arrived = c->w->now_ns;
    c->chunks = (struct chunks){.plain = false};
    op_refuse(c->reading, refusal);
}

/* Takes a head off the input, begins its operation, and goes on with its body,
   which is skipped unless the route has set op->body and body_most. false: more
   is needed. */
static bool conn_head(struct conn *c) {
    const char *refusal;
    struct slice data;
    struct http h;
    struct op *op;
    size_t n;

    while (c->scanned == 0 && slice_begins(buf_slice(&c->in), "\r\n"))
        c->in.at += 2; /* RFC 9112, 2.2 allows for it */
    data = buf_slice(&c->in);
    n = http_head_end(data.p, data.n, &c->scanned, &refusal);
    if (n == 0 && refusal == NULL)
        return false;
    if (refusal == NULL)
        refusal = http_parse(data.p, n, true, &h);
    if (refusal != NULL) {
        conn_refuse(c, refusal);
        return false;
    }
    c->reading = op = op_new(c);
    c->scanned = 0;
    c->in.at += n;
    c->since = c->w->now;
    c->old = h.minor == 0;
    c->expect = h.expect;
    c->chunks = chunks_begin(&h);
    if ((refusal = route_request(op, &h)) != NULL)
        op_refuse(op, refusal);
    if (c->reading != NULL && op->body == NULL)
        conn_skip_body(c);
    return !c->close_after && conn_body(c);
}

/* Consumes its input as far as it goes. A little that is left is kept in little
   memory, and the rest of it is for the connection that reads next. */
static void conn_consume(struct conn *c) {
    struct worker *w = c->w;
    struct buf left = {0};
    bool more = true;

    if (c->kind == CONN_LINK)
        link_input(c);
    else
        while (more && conn_reads(c)) {
            more = c->chunks.state != CHUNK_END
                       ? conn_body(c)
                       : c->in.at < c->in.n && conn_head(c);
            conn_retire(c);
        }
    if (c->close_after)
        c->in.at = c->in.n; /* nobody will look at it */
    buf_drop(&c->in, 2 * READ_SIZE);
    if (c->in.n < READ_SIZE / 16 && c->in.cap > w->input.cap) {
        buf_add(&left, c->in.p + c->in.at, c->in.n - c->in.at);
        buf_free(&w->input);
        w->input = c->in;
        buf_reset(&w->input, 4 * READ_SIZE);
        c->in = left;
    } else if (c->in.n == 0) {
        buf_free(&c->in);
    }
}

/* Reads once, and consumes. The end of the input is only read once all requests
   before it are begun, so that none is to come: what is at work is answered
   yet. What comes after the last request is discarded, so that the client can
   read the answer. */
static void conn_input(struct conn *c) {
    bool fresh = c->in.n == 0;
    ssize_t n;

    if (fresh) {
        c->in = c->w->input;
        c->w->input = (struct buf){0};
    }
    n = read(c->fd, buf_grow(&c->in, READ_SIZE), READ_SIZE);
    c->in.n -= READ_SIZE - (n > 0 ? (size_t)n : 0);
    if (n > 0)
        figure_add(&c->w->figures.received[c->kind != CONN_CLIENT],
                   (uint64_t)n);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        c->close_after = true;
        if (n < 0 || c->reading != NULL || c->kind == CONN_LINK ||
            (c->first == NULL && conn_unsent(c) == 0))
            conn_kill(c);
    } else if (!c->close_after && (c->kind == CONN_LINK ||
                                   (fresh && c->chunks.state == CHUNK_END))) {
        c->since = c->w->now; /* a head that begins has so long to end */
    }
    conn_consume(c);
}

/* ---- Output */

/* Sends bytes: as many as the kernel takes, that is. Answers how many. */
static size_t conn_send(struct conn *c, const uint8_t *p, size_t n) {
    size_t sent = 0;

    while (!c->dead && sent < n) {
        ssize_t some = send(c->fd, p + sent, n - sent, MSG_NOSIGNAL);

        if (some < 0 && (errno == EAGAIN || errno == ENOTCONN))
            break; /* a link is not connected yet: poll() will tell */
        if (some < 0 && errno != EINTR)
            conn_kill(c);
        if (some > 0)
            sent += (size_t)some;
    }
    figure_add(&c->w->figures.sent[c->kind != CONN_CLIENT], sent);
    if (sent > 0 && (c->kind != CONN_LINK || sent < n))
        c->since = c->w->now; /* what the kernel takes of a call at once says
                                 nothing about the peer */
    return sent;
}

/* Sends what there is. */
static void conn_flush(struct conn *c) {
    if (conn_unsent(c) > 0)
        c->out.at += conn_send(c, c->out.p + c->out.at, conn_unsent(c));
    buf_drop(&c->out, c->kind == CONN_CLIENT ? READ_SIZE / 4 : 4 * READ_SIZE);
}

/* The block is not what it was: it is rotten here, or another owner is to send
   it again. */
static void stream_broken(struct conn *c) {
    if (c->stream != NULL) {
        part_damaged(c->w->node, c->first->part, &c->stream_entry);
        conn_kill(c);
    } else {
        conn_kill(c->first->relay.conn);
    }
}

/* Goes on with a value that is sent by a block a turn, verified first. What the
   kernel does not take of it is read again when it does, or stays with the
   relay: a slow reader of a file costs no memory, one of a relay little. */
static void conn_stream(struct conn *c) {
    size_t skip = c->stream_at % BLOCK, n = stream_block(c), size = n;
    uint64_t block = c->stream_at - skip;
    struct link *relay = c->stream == NULL ? &c->first->relay : NULL;
    uint8_t *bytes =
        relay == NULL ? c->w->scratch : relay->conn->in.p + relay->conn->in.at;
    const uint8_t *p = c->first->rec.p;
    const uint8_t *sums = p + record_meta(p) - 8 * blocks_of(c->stream_size);

    if ((c->stream != NULL && read_at(c->stream->fd, bytes, n,
                                      c->stream_value + block) != (ssize_t)n) ||
        xxh64(bytes, n, 0) != get64(sums + 8 * (block / BLOCK))) {
        stream_broken(c);
        return;
    }
    if (c->stream_end - block < n)
        n = (size_t)(c->stream_end - block);
    c->stream_at += conn_send(c, bytes + skip, n - skip);
    if (relay != NULL && c->stream_at == block + n) {
        relay->conn->in.at += size;
        relay->left -= size;
        c->first->relayed = 0; /* who was asked before may be there again */
        relay->conn->since = c->w->now; /* it waits for more from now on */
        conn_touch(relay->conn);
    }
    if (c->stream_at < c->stream_end)
        return;
    file_release(c->stream);
    c->stream = NULL;
    c->streams = false;
    op_finish(c->first);
    if (relay != NULL)
        conn_kill(relay->conn); /* whatever else may come */
}

/* Serves a connection that was touched: output, input that waited for it, and
   the end. Input is left only if it is a part of a request, or waits for an
   operation or for the socket, which bring the connection back here. When all
   is sent and no more is to come, it is the other side that ends the
   connection: a close with unread input would reset it, and the answer might
   be lost (RFC 9112, 9.6). */
static void conn_serve(struct conn *c) {
    size_t unread;

    do {
        unread = buf_slice(&c->in).n;
        if (stream_ready(c) && conn_unsent(c) == 0)
            conn_stream(c);
        conn_retire(c);
        conn_flush(c);
        if (unread > 0 && c->kind != CONN_LINK && conn_reads(c))
            conn_consume(c);
    } while (buf_slice(&c->in).n < unread);
    conn_count_memory(c);
    if (c->dead || !c->close_after || conn_unsent(c) > 0 || c->first != NULL ||
        c->lingers)
        return;
    shutdown(c->fd, SHUT_WR);
    c->lingers = true;
    c->since = c->w->now;
}

/* The end of a dead connection, or a step to it: operations at work go on
   without it, but for one whose body is not all there, or whose answer was
   being sent. */
static void conn_end(struct conn *c) {
    if (c->reading != NULL)
        op_finish(c->reading);
    if (c->streams)
        op_finish(c->first);
    if (c->streams && c->first->relay.conn != NULL)
        conn_kill(c->first->relay.conn);
    c->reading = NULL;
    c->streams = false;
    conn_retire(c);
}

/* Frees a connection that has no operations any more. */
static void conn_free(struct conn *c) {
    figure_add(&c->w->figures.connections[c->kind != CONN_CLIENT], UINT64_MAX);
    atomic_fetch_sub(&c->w->node->connections, 1);
    atomic_fetch_sub(&c->w->node->served, c->served);
    if (c->kind == CONN_LINK)
        link_lost(c);
    close(c->fd);
    file_release(c->stream);
    buf_free(&c->in);
    buf_free(&c->out);
    conn_count_memory(c);
    free(c);
}

/* The clock of a connection's state. A link's calls have clocks of their own,
   as operations have. A client whose request has begun is told that its time is
   over. */
static void conn_check_time(struct conn *c) {
    bool stopping = atomic_load(&c->w->node->stopping);
    bool rests = c->first == NULL;
    uint64_t most = UINT64_MAX;

    if (c->kind == CONN_LINK)
        return;
    if (c->lingers)
        most = LINGER_MS;
    else if (conn_unsent(c) > 0 || stream_ready(c))
        most = c->kind == CONN_PEER ? RELAY_MS : PROGRESS_MS;
    else if (c->chunks.state != CHUNK_END)
        most = PROGRESS_MS;
    else if (rests && c->in.n > 0)
        most = HEAD_MS;
    else if (rests && c->kind == CONN_PEER)
        most = 2 * IDLE_MS; /* it is the caller's to end it */
    else if (rests)
        most = stopping ? 0 : IDLE_MS;
    if (c->w->now - c->since > most && (conn_unsent(c) > 0 || stream_ready(c)))
        conn_serve(c); /* there may be room, and less than poll() waits for */
    if (c->w->now - c->since <= most)
        return;
    if (c->kind == CONN_CLIENT && !c->close_after && conn_unsent(c) == 0 &&
        (c->reading != NULL || (c->first == NULL && c->in.n > 0)))
        conn_refuse(c, "408 the rest of the request has not come (a header has "
                       "10 s; a body 30 s for more of it, or 64 KiB of a large "
                       "one): send it again");
    else
        conn_kill(c);
}

/* -------------------------------------------------------------- The loop
 *
 * A worker's turn: wait in poll(), read the clock once, read from the sockets
 * that have something, take what other threads have left in the inbox, accept
 * a connection, do what is due, and then settle: serve what was touched and
 * free what is dead, until there is neither. Durable, then visible, then
 * acknowledged: an answer leaves in the settling, when all that it says has
 * been done.
 *
 * What poll() costs grows with what it is asked about, and most connections are
 * idle most of the time. So those of clients that nothing has happened on for a
 * while are calm: they stand behind the active ones, and cost nothing until
 * they are touched, or all are made active again, which is every few
 * milliseconds. Then whoever has something stays active.
 */

/* The node's view, held for the caller; NULL before the first ring. */
static struct view *view_hold(struct node *node) {
    struct view *view;

    pthread_mutex_lock(&node->view_lock);
    view = node->view;
    if (view != NULL)
        atomic_fetch_add(&view->refs, 1);
    pthread_mutex_unlock(&node->view_lock);
    return view;
}

static void view_release(struct view *view) {
    if (view != NULL && atomic_fetch_sub(&view->refs, 1) == 1) {
        ring_free(view->ring);
        ring_free(view->next);
        free(view);
    }
}

/* Wakes all workers that wait in poll(). */
static void workers_wake(struct node *node) {
    for (unsigned i = 0; i < node->worker_count; i++)
        wake_write(node->workers[i].wake[1]);
}

/* Accepts one connection. A worker that has more than its share leaves it to
   the others, unless they take too long. At a limit the listener rests:
   descriptors are kept for logs and peers. */
static void worker_accept(struct worker *w, int listener, enum conn_kind kind) {
    struct node *node = w->node;
    int fd;

    if (w->count > atomic_load(&node->connections) / node->worker_count &&
        ++w->turn % 64 != 0)
        return;
    fd = accept(listener, NULL, NULL);
    if (fd >= 0)
        conn_new(w, fd, kind);
    else if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR)
        w->accept_at = w->now + RETRY_MS;
}

/* Goes on with operations whose syncs are done. */
static void worker_inbox(struct worker *w) {
    struct op *op, *next;

    wake_drain(w->wake[0]);
    pthread_mutex_lock(&w->inbox_lock);
    next = w->synced;
    w->synced = NULL;
    w->synced_end = &w->synced;
    pthread_mutex_unlock(&w->inbox_lock);
    while ((op = next) != NULL) {
        next = op->wait_next;
        op->parked = false;
        op->resume(op);
        op_release(op);
    }
}

/* Looks at the clock of every connection, and calls every operation that waits
   for time to pass; it says so again if it still does. All are active, so none
   changes its place meanwhile. */
static void worker_tick(struct worker *w) {
    w->waiting = false;
    for (size_t i = 0; i < w->count; i++) {
        conn_check_time(w->conns[i]);
        for (struct op *op = w->conns[i]->first; op != NULL; op = op->next) {
            void (*due)(struct op *) = op->due;

            op->due = NULL;
            if (due != NULL)
                due(op);
        }
    }
}

/* Serves what was touched and frees what is dead, until there is neither: to
   free a link fails its calls, which touches other connections. Then w->fds
   says what poll() is to wait for. */
static void worker_settle(struct worker *w) {
    struct node *node = w->node;
    bool rests = w->now < w->accept_at, full;

    do {
        w->touched = false;
        for (size_t i = 0; i < w->active; i++) {
            struct conn *c = w->conns[i];

            if (c->touched) {
                c->touched = false;
                if (!c->dead)
                    conn_serve(c);
                if (c->dead)
                    conn_end(c);
            }
            if (c->dead && c->first == NULL) {
                conns_swap(w, i--, --w->active);
                conns_swap(w, w->active, --w->count);
                conn_free(c);
            } else {
                w->fds[FDS_FIXED + i] = conn_poll(c);
            }
        }
    } while (w->touched);
    full = conns_full(node) || atomic_load(&node->stopping);
    w->fds[0] = (struct pollfd){w->wake[0], POLLIN, 0};
    w->fds[1] =
        (struct pollfd){rests || full ? -1 : node->client_fd, POLLIN, 0};
    w->fds[2] = (struct pollfd){rests ? -1 : node->peer_fd, POLLIN, 0};
}

/* Of a later chapter: this node may have missed writes. */
static void doubt_all(struct node *node, const char *cause);

/* Reads the clock, and notices a new view, and when the process was stopped
   meanwhile: then this node may have missed writes, and nothing is read here
   until doubt is raised, by whoever notices first. */
static void worker_clock(struct worker *w) {
    uint64_t before = w->now, changes;
    time_t wall = time(NULL);
    struct tm tm;

    w->now_ns = clock_ns(CLOCK_MONOTONIC);
    w->now = w->now_ns / 1000000;
    if (before != 0 && (w->now - before > PAUSE_MS ||
                        (uint64_t)wall - w->wall > 1 + PAUSE_MS / 1000))
        doubt_all(w->node, "this process was paused");
    if ((uint64_t)wall != w->wall) {
        w->wall = (uint64_t)wall;
        gmtime_r(&wall, &tm);
        strftime(w->date, sizeof w->date, "\r\nDate: %a, %d %b %Y %H:%M:%S GMT",
                 &tm);
    }
    changes = atomic_load(&w->node->view_changes);
    if (w->view_seen != changes) {
        w->view_seen = changes;
        view_release(w->view);
        w->view = view_hold(w->node);
        w->beat_at = w->now; /* whoever does not know it yet is told so */
    }
    if (w->view != NULL && w->view->epoch != atomic_load(&w->epoch)) {
        atomic_store(&w->epoch, w->view->epoch);
        w->view_at = w->now;
    }
}

/* Reads from a connection for which poll() has something. */
static void conn_event(struct conn *c, int events) {
    if (!c->dead && (events & (POLLIN | POLLERR | POLLHUP)))
        conn_input(c);
    conn_touch(c);
}

/* Whether a connection is to be calm. Those with peers are few, and never. */
static bool conn_calm(const struct conn *c) {
    return c->kind == CONN_CLIENT && !c->touched && c->w->count > CALM_FROM &&
           c->w->now - c->since > CALM_MS;
}

/* Waits until there is something to do, reads the clock, and reads from the
   connections that have something. From the last one to the first: a place
   that changes is then one that was looked at. */
static void worker_wait(struct worker *w) {
    int most = w->waiting ? TICK_MS : BEAT_MS / 5;

    if (w->active < w->count)
        most = CALM_ASK_MS;
    poll(w->fds, (nfds_t)(FDS_FIXED + w->active), most);
    worker_clock(w);
    for (size_t i = w->active; i-- > 0;)
        if (w->fds[FDS_FIXED + i].revents != 0)
            conn_event(w->conns[i], w->fds[FDS_FIXED + i].revents);
        else if (conn_calm(w->conns[i]))
            conns_swap(w, i, --w->active);
}

static void *worker_run(void *arg) {
    struct worker *w = arg;
    struct node *node = w->node;
    uint64_t asked = 0, ticked = 0;

    while (!atomic_load(&node->ended)) {
        worker_settle(w);
        worker_wait(w);
        if (w->fds[0].revents != 0)
            worker_inbox(w);
        if (w->fds[1].revents != 0)
            worker_accept(w, node->client_fd, CONN_CLIENT);
        if (w->fds[2].revents != 0)
            worker_accept(w, node->peer_fd, CONN_PEER);
        if (w->now - asked < CALM_ASK_MS)
            continue;
        asked = w->now;
        w->active = w->count;
        if (w->now - ticked >= TICK_MS) {
            ticked = w->now;
            worker_tick(w);
            worker_beat(w);
        }
    }
    return NULL;
}

/* Prepares a worker. */
static void worker_init(struct worker *w, struct node *node, unsigned index) {
    w->node = node;
    w->index = index;
    w->synced_end = &w->synced;
    w->scratch = memory(1, READ_SIZE);
    w->fds = memory(FDS_FIXED, sizeof *w->fds);
    mutex_init(&w->inbox_lock);
    wake_pipe(w->wake);
}

/* ------------------------------------------------------------------ etcd
 *
 * etcd keeps what the nodes must agree on when the cluster changes, and nobody
 * waits for it in the path of a request. It is spoken to over its HTTP/JSON
 * gateway, by one thread, in plain blocking code with deadlines: first JSON,
 * then a blocking HTTP client that repair uses as well, then the few calls to
 * etcd that are needed, then the sidecar, which is an etcd of our own, and who
 * else is in etcd. What a node does by what etcd holds is Membership.
 *
 * The JSON reader takes the members of a text in the order in which they stand
 * there, and passes over all else. Every value that is wanted is a string: etcd
 * quotes its 64-bit numbers, and so does this program. It does not decode
 * escapes, since nothing that is read here has any: ids, numbers, base64, and
 * names and hosts that were checked before they were written.
 */

/* Goes behind the name of the next member that has it, at whatever depth.
   false: there is none. */
static bool json_find(struct slice *rest, const char *name) {
    struct slice word; /* what stands between two quotes */

    while (slice_cut(rest, '"', &word))
        if (slice_is(word, name) && slice_begins(*rest, ":"))
            return true;
    return false;
}

/* Goes behind that member; its value is the next string behind the name. */
static bool json_next(struct slice *rest, const char *name,
                      struct slice *value) {
    struct slice gap;

    return json_find(rest, name) && slice_cut(rest, '"', &gap) &&
           slice_cut(rest, '"', value);
}

/* Whether a member of that name is true, which is left out otherwise. */
static bool json_true(struct slice rest, const char *name) {
    return json_find(&rest, name) && slice_begins(rest, ":true");
}

/* The next member of that name as a string; false: there is none, or no room
   for it. */
static bool json_text(struct slice *rest, const char *name, char *text,
                      size_t room) {
    struct slice value;

    return json_next(rest, name, &value) && slice_copy(value, text, room);
}

/* The same as a number, which is 0 if it is none. */
static uint64_t json_number(struct slice *rest, const char *name,
                            unsigned base) {
    struct slice value;
    uint64_t x;

    return json_next(rest, name, &value) && slice_digits(value, base, &x) ? x
                                                                          : 0;
}

/* The same, in decimal, of what fits an unsigned; else 0. */
static unsigned json_unsigned(struct slice *rest, const char *name) {
    uint64_t x = json_number(rest, name, 10);

    return x <= UINT_MAX ? (unsigned)x : 0;
}

static const char base64_digits[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* Appends a text in base64, which is how etcd wants keys and values. */
static void base64_encode(struct buf *b, struct slice s) {
    for (size_t bit = 0; bit < s.n * 8; bit += 6) {
        const uint8_t *p = s.p + bit / 8;
        unsigned x = p[0] * 256u + (bit / 8 + 1 < s.n ? p[1] : 0);

        buf_add(b, &base64_digits[x >> (10 - bit % 8) & 63], 1);
    }
    buf_add(b, "==", (3 - s.n % 3) % 3);
}

/* Appends what a text in base64 stands for, up to its end or to what is no
   base64. */
static void base64_decode(struct buf *b, struct slice text) {
    uint32_t x = 0;
    const char *at;

    for (size_t i = 0; i < text.n; i++) {
        at = memchr(base64_digits, text.p[i], 64);
        if (at == NULL)
            return;
        x = x << 6 | (uint32_t)(at - base64_digits);
        if (i % 4 > 0) /* the bits of the first digit make no whole byte */
            *buf_grow(b, 1) = (uint8_t)(x >> (6 - 2 * (i % 4)));
    }
}

/* ---- A blocking HTTP client. A caller keeps one connection; every wait has
 * a deadline on the monotonic clock, or ends when the process is to end. */

struct caller {
    int fd; /* -1: not connected */
    char host[256];
    unsigned port;
    struct buf in;
    struct buf reply; /* the body of the last answer */
};

/* Finds the address of a host, which may take its time. */
static bool resolve(const char *host, unsigned port,
                    struct sockaddr_storage *address, socklen_t *n) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    char service[16];

    snprintf(service, sizeof service, "%u", port);
    if (getaddrinfo(host, service, &hints, &found) != 0)
        return false;
    memcpy(address, found->ai_addr, found->ai_addrlen);
    *n = found->ai_addrlen;
    freeaddrinfo(found);
    return true;
}

/* host:port, an IPv6 address in brackets. */
static void where_text(char text[300], const char *host, unsigned port) {
    snprintf(text, 300, strchr(host, ':') ? "[%.255s]:%u" : "%.255s:%u", host,
             port);
}

static void caller_close(struct caller *k) {
    if (k->fd >= 0)
        close(k->fd);
    k->fd = -1;
}

/* Says whom it calls from now on; a connection to another is closed. */
static void caller_aim(struct caller *k, const char *host, unsigned port) {
    if (port == k->port && strcmp(host, k->host) == 0)
        return;
    caller_close(k);
    snprintf(k->host, sizeof k->host, "%s", host);
    k->port = port;
}

/* Sends or receives once the socket is ready for it. The number of bytes; 0:
   the end, an error, or too late: nothing has moved for so many ms. */
static size_t caller_move(const struct caller *k, bool out, uint8_t *p,
                          size_t n, uint64_t ms) {
    struct pollfd fd = {k->fd, out ? POLLOUT : POLLIN, 0};
    uint64_t until = now_ms() + ms;
    ssize_t moved;

    while (poll(&fd, 1, 100) <= 0)
        if (now_ms() >= until || stop_requested)
            return 0;
    moved = out ? send(k->fd, p, n, MSG_NOSIGNAL) : recv(k->fd, p, n, 0);
    return moved > 0 ? (size_t)moved : 0;
}

/* Opens a connection. One that is refused may look well until it is used: the
   first send waits for it, and tells. */
static bool caller_connect(struct caller *k) {
    struct sockaddr_storage address = {0};
    socklen_t n = 0;
    int on = 1;

    if (!resolve(k->host, k->port, &address, &n))
        return false;
    k->fd = socket(address.ss_family, SOCK_STREAM, 0);
    if (k->fd < 0)
        return false;
    fd_nonblocking(k->fd);
    setsockopt(k->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return connect(k->fd, (struct sockaddr *)&address, n) == 0 ||
           errno == EINPROGRESS;
}

/* Reads more into k->in. false: the end, an error, or too late. */
static bool caller_more(struct caller *k, uint64_t ms) {
    uint8_t *to = buf_grow(&k->in, READ_SIZE);
    size_t n = caller_move(k, false, to, READ_SIZE, ms);

    k->in.n -= READ_SIZE - n;
    return n > 0;
}

/* Reads an answer: its head, of which the slices are not to be used, and its
   body into k->reply. */
static bool caller_answer(struct caller *k, struct http *h, uint64_t ms) {
    size_t at = 0, scanned = 0;
    const char *refusal = NULL;
    struct chunks chunks;
    struct slice data;

    k->in.n = k->reply.n = 0;
    while (at == 0 && refusal == NULL) {
        if (!caller_more(k, ms))
            return false;
        at = http_head_end(k->in.p, k->in.n, &scanned, &refusal);
    }
    if (refusal != NULL || http_parse(k->in.p, at, false, h) != NULL)
        return false;
    chunks = chunks_begin(h);
    while (chunks.state != CHUNK_END) {
        ssize_t used = chunks_read(&chunks, k->in.p + at, k->in.n - at, &data);

        if (used < 0 || data.n > RECORD_MAX - k->reply.n)
            return false;
        buf_add(&k->reply, data.p, data.n);
        at += (size_t)used;
        if (at == k->in.n)
            at = k->in.n = 0;
        if (used == 0 && !caller_more(k, ms))
            return false; /* what is left is a part of a line */
    }
    return true;
}

/* Sends a POST, over a new connection if there is none. fields: more header
   lines, each with its CR LF, or "". */
static bool caller_post(struct caller *k, const char *path, const char *fields,
                        struct slice body, uint64_t ms) {
    struct buf b = {0};
    char where[300];
    size_t sent = 0, n;

    if (k->fd < 0 && !caller_connect(k))
        return false;
    where_text(where, k->host, k->port);
    buf_print(&b, "POST %s HTTP/1.1\r\nHost: %s\r\n%sContent-Length: ", path,
              where, fields);
    buf_print(&b, "%zu\r\n\r\n", body.n);
    buf_add(&b, body.p, body.n);
    do {
        n = caller_move(k, true, b.p + sent, b.n - sent, ms);
        sent += n;
    } while (n > 0 && sent < b.n);
    n = b.n;
    buf_free(&b);
    return sent == n;
}

/*
 * One call, a POST: the status, with the answer's body in k->reply, or -1, also
 * when nothing has moved for so many ms. A connection that was kept may have
 * been closed meanwhile, so that a call is tried once more on a new one: calls
 * must be such that twice is no harm.
 */
static int caller_call(struct caller *k, const char *path, const char *fields,
                       struct slice body, uint64_t ms) {
    uint64_t until = now_ms() + ms;
    struct http h = {0};
    bool kept, done;

    do {
        kept = k->fd >= 0;
        done =
            caller_post(k, path, fields, body, ms) && caller_answer(k, &h, ms);
        if (!done || !h.keep)
            caller_close(k);
    } while (!done && kept && now_ms() < until);
    return done ? (int)h.status : -1;
}

/* ---- Calls to etcd
 *
 * Its field names, its paths and its habits are those of the gateway of 3.4
 * and later: 64-bit numbers come as strings, what is 0 or false is left out,
 * keys and values are in base64.
 *
 * A watch tells that something has changed, but not here what: whatever it says
 * is a cause to look at everything again. So its messages need not be found in
 * a stream that never ends, and one that is lost, or a watch that dies in
 * silence, costs no more than the time until the next look. */

/* Where an etcd is. */
struct endpoint {
    char name[NAME_MAX_BYTES + 1]; /* of a sidecar's node */
    char host[256];
    unsigned port; /* for clients; a sidecar's port for peers is one above */
    bool tls;      /* between sidecars */
};

/* What is known of etcd: main's at start, then the etcd thread's. */
struct etcd {
    struct endpoint endpoints[ETCDS_MAX]; /* as the command line has them */
    unsigned count, at;                   /* at: asked now; the sidecar here */
    unsigned ms;                          /* for one call */
    struct caller call, watch;
    struct buf peers;         /* what a sidecar that joins begins with */
    bool begins;              /* at the start: this node may join, once */
    bool left;                /* it was said that this node has left */
    const char *trouble;      /* what is wrong with etcd; NULL: nothing */
    char lease[24];           /* "" while there is none */
    uint64_t patience;        /* until then others may say their zones */
    char next_revision[24];   /* the first after what was read */
    char ring_revision[24];   /* when the ring was changed last; "0": no ring */
    char record_revision[24]; /* the same of this node's record */
    struct buf text;          /* strj_ring and strj_node_..., a line each */
    struct buf obeyed;        /* the same, of the view in force */
    uint64_t reported;        /* what the record here says of it */
    uint64_t joiner_at;       /* when the node that joins was heard last, */
    uint64_t joiner_epoch;    /* in this epoch */
    uint64_t waits_at;        /* when it is said next whom a change waits for */
};

static const char gateway_off[] =
    "has its HTTP gateway off: start it with --enable-grpc-gateway (or "
    "enable-grpc-gateway: true in its configuration file)";

/*
 * A call to etcd: the reply's text in *reply, or false. In the request each $
 * stands for the next string, each @ for the next string in base64. It is
 * refused rather than kept waiting when etcd has no leader. reply NULL: the
 * call is a watch, which has a connection of its own, on which its answer never
 * ends.
 */
static bool etcd_call(struct etcd *e, const char *path, struct slice *reply,
                      const char *request, ...) {
    static const char fields[] = "Grpc-Metadata-hasleader: true\r\n";
    struct caller *k = reply != NULL ? &e->call : &e->watch;
    const struct endpoint *at = &e->endpoints[e->at];
    struct buf body = {0};
    va_list args;
    int status;

    va_start(args, request);
    for (; *request != '\0'; request++)
        if (*request == '@')
            base64_encode(&body, slice_of(va_arg(args, const char *)));
        else if (*request == '$')
            buf_text(&body, va_arg(args, const char *));
        else
            buf_add(&body, request, 1);
    va_end(args);
    caller_aim(k, at->host, at->port);
    status = reply == NULL
                 ? caller_post(k, path, fields, buf_slice(&body), e->ms)
                 : caller_call(k, path, fields, buf_slice(&body), e->ms);
    buf_free(&body);
    if (reply == NULL)
        return status;
    *reply = buf_slice(&e->call.reply);
    if (status == 200)
        return true;
    e->trouble = status == 404 && slice_begins(*reply, "404 page")
                     ? gateway_off
                     : "does not answer";
    return false;
}

/* Of a transaction: key, value, and lease or "0". */
#define ETCD_PUT "{\"request_put\":{\"key\":\"@\",\"value\":\"@\",\"lease\":$}}"

/* Puts this node's record and, leased, the sign that it lives, unless the
   record has changed since it was read: what a process has sent may arrive
   after its end, and must not take the place of what the next one has said.
   false: no answer; *put: whether they were put. */
static bool etcd_record(struct etcd *e, const char *name, const char *record,
                        const char *lease, bool *put) {
    char node[NAME_MAX_BYTES + 16], alive[NAME_MAX_BYTES + 16];
    struct slice reply;

    snprintf(node, sizeof node, "strj_node_%s", name);
    snprintf(alive, sizeof alive, "strj_alive_%s", name);
    if (!etcd_call(e, "/v3/kv/txn", &reply,
                   "{\"compare\":[{\"key\":\"@\",\"target\":\"MOD\","
                   "\"result\":\"EQUAL\",\"mod_revision\":$}],"
                   "\"success\":[" ETCD_PUT "," ETCD_PUT "]}",
                   node, e->record_revision, node, record, "0", alive, "1",
                   lease))
        return false;
    *put = json_true(reply, "succeeded");
    return true;
}

/* Takes a lease, and says by it that this node is there. Without an answer, or
   if the record has changed since it was read, there is no lease. false: no
   answer. */
static bool etcd_announce(struct etcd *e, const char *name,
                          const char *record) {
    struct slice reply;
    char lease[24];
    bool put;

    if (!etcd_call(e, "/v3/lease/grant", &reply, "{\"TTL\":" LEASE_TTL "}") ||
        !json_text(&reply, "ID", lease, sizeof lease) ||
        !etcd_record(e, name, record, lease, &put))
        return false;
    if (put)
        memcpy(e->lease, lease, sizeof lease);
    e->patience = now_ms() + 2000;
    return true;
}

/* A beat of the lease, which is "" if it has lapsed; then etcd answers all the
   same, with no TTL. false: no answer. */
static bool etcd_beat(struct etcd *e) {
    struct slice reply, result;

    if (!etcd_call(e, "/v3/lease/keepalive", &reply, "{\"ID\":$}", e->lease) ||
        !json_next(&reply, "result", &result))
        return false;
    if (json_number(&reply, "TTL", 10) == 0)
        e->lease[0] = '\0';
    return true;
}

/* Changes the ring, unless somebody else did since it was read (revision 0:
   it must not be there yet), or one of some more comparisons fails. false: no
   answer. */
static bool etcd_change_ring(struct etcd *e, const char *ring,
                             const char *more) {
    struct slice reply;

    return etcd_call(e, "/v3/kv/txn", &reply,
                     "{\"compare\":[{\"key\":\"@\",\"target\":\"MOD\","
                     "\"result\":\"EQUAL\",\"mod_revision\":$}$],"
                     "\"success\":[" ETCD_PUT "]}",
                     "strj_ring", e->ring_revision, more, "strj_ring", ring,
                     "0");
}

/* Says who is to leave, unless that was said of anybody since it was read: who
   may leave depends on who else does. false: no answer; *put: it is said. */
static bool etcd_leave(struct etcd *e, const char *name, const char *value,
                       bool *put) {
    char key[NAME_MAX_BYTES + 16];
    struct slice reply;

    snprintf(key, sizeof key, "strj_leave_%.*s", NAME_MAX_BYTES, name);
    if (!etcd_call(e, "/v3/kv/txn", &reply,
                   "{\"compare\":[{\"key\":\"@\",\"range_end\":\"@\","
                   "\"target\":\"MOD\",\"result\":\"LESS\","
                   "\"mod_revision\":$}],\"success\":[" ETCD_PUT "]}",
                   "strj_leave_", "strj_leave`", e->next_revision, key, value,
                   "0"))
        return false;
    *put = json_true(reply, "succeeded");
    return true;
}

/* Removes what is there of a node that is no member any more. */
static bool etcd_forget(struct etcd *e, const char *name) {
    char node[NAME_MAX_BYTES + 16], leave[NAME_MAX_BYTES + 16];
    struct slice reply;

    snprintf(node, sizeof node, "strj_node_%s", name);
    snprintf(leave, sizeof leave, "strj_leave_%s", name);
    return etcd_call(e, "/v3/kv/txn", &reply,
                     "{\"success\":[{\"request_delete_range\":{\"key\":\"@\"}},"
                     "{\"request_delete_range\":{\"key\":\"@\"}}]}",
                     node, leave);
}

/* Reads the ring, the nodes' records and who is to leave into e->text, in this
   order, which is downward, and each only if there is one. */
static bool etcd_read(struct etcd *e, const char *name) {
    char record[NAME_MAX_BYTES + 16];
    struct slice reply, value;
    struct buf key = {0};
    uint64_t revision;

    if (!etcd_call(e, "/v3/kv/range", &reply,
                   "{\"key\":\"@\",\"range_end\":\"@\","
                   "\"sort_order\":\"DESCEND\"}",
                   "strj_leave_", "strj_s"))
        return false;
    revision = json_number(&reply, "revision", 10); /* of the header */
    snprintf(e->next_revision, sizeof e->next_revision, "%" PRIu64,
             revision + 1);
    strcpy(e->ring_revision, "0");
    strcpy(e->record_revision, "0");
    snprintf(record, sizeof record, "strj_node_%s", name);
    base64_encode(&key, slice_of(record));
    e->text.n = 0;
    while (json_next(&reply, "key", &value)) {
        if (slice_is(value, "c3Ryal9yaW5n")) /* strj_ring */
            json_text(&reply, "mod_revision", e->ring_revision,
                      sizeof e->ring_revision);
        if (slice_equal(value, buf_slice(&key)))
            json_text(&reply, "mod_revision", e->record_revision,
                      sizeof e->record_revision);
        if (json_next(&reply, "value", &value))
            base64_decode(&e->text, value);
        buf_text(&e->text, "\n");
    }
    buf_free(&key);
    return revision > 0;
}

/* Watches the keys that are looked at, from the last look on. */
static void etcd_watch(struct etcd *e) {
    if (!etcd_call(e, "/v3/watch", NULL,
                   "{\"create_request\":{\"key\":\"@\",\"range_end\":\"@\","
                   "\"start_revision\":$}}",
                   "strj_leave_", "strj_s", e->next_revision))
        caller_close(&e->watch);
}

/* Takes what the watch has said. One that was canceled, or fails, is closed:
   the gateway leaves its connection open, in silence. */
static void etcd_heard(struct etcd *e) {
    char text[4096];
    ssize_t n = recv(e->watch.fd, text, sizeof text - 1, 0);

    text[n > 0 ? n : 0] = '\0';
    if (n <= 0 || strstr(text, "canceled") || strstr(text, "\"error\""))
        caller_close(&e->watch);
}

/* ---- The sidecar: an etcd of our own.
 *
 * It must end with this process, however that ends. So a guardian is forked
 * before there is any thread, and starts etcd. It holds one end of a pipe of
 * which this process has the only other end. When the pipe is closed this
 * process ends or is gone, and etcd is killed at once, as it is made to
 * survive, so that the next process finds its ports free. */

#define SIDECAR_AGAIN 2000 /* ms until one that has ended is started again */

/* Starts etcd, with its output in a log of its own. What it advertises is the
   command line's, what it binds is `address`. With -add it must never begin a
   cluster of its own. The pid, or -1. */
static pid_t sidecar_start(const struct node *node, const char *address) {
    extern char **environ;
    const struct endpoint *me = &node->etcd->endpoints[node->etcd->at];
    const char *data = node->flags.data, *scheme = me->tls ? "https" : "http";
    const struct buf *peers = &node->etcd->peers;
    char text[3 * PATH_MAX], log[PATH_MAX], where[4][300], **to = environ;
    char *argv[24] = {"etcd"};
    pid_t pid = fork();
    unsigned n = 1;
    int fd;

    if (pid != 0)
        return pid;
    for (unsigned i = 0; i < 4; i++) /* two for peers, two for clients */
        where_text(where[i], i % 2 == 0 ? me->host : address,
                   me->port + 1 - i / 2);
    snprintf(text, sizeof text,
             "--name=%s\n--data-dir=%s/etcd\n--initial-cluster=%s\n"
             "--initial-cluster-state=%s\n--initial-cluster-token=estoraje\n"
             "--initial-advertise-peer-urls=%s://%s\n"
             "--listen-peer-urls=%s://%s\n--advertise-client-urls=http://%s\n"
             "--listen-client-urls=http://%s\n--auto-compaction-retention=1\n"
             "--logger=zap\n--log-level=warn%s",
             me->name, data,
             peers->n > 0 ? (char *)peers->p : node->flags.initial_cluster,
             node->flags.add ? "existing" : "new", scheme, where[0], scheme,
             where[1], where[2], where[3], me->tls ? "\n--peer-auto-tls" : "");
    for (char *word = strtok(text, "\n"); word != NULL;
         word = strtok(NULL, "\n"))
        argv[n++] = word;
    snprintf(log, sizeof log, "%s/etcd.log", data);
    fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    dup2(fd, STDOUT_FILENO); /* without one it is what this process has */
    dup2(fd, STDERR_FILENO);
    for (char **from = environ; (*to = *from) != NULL; from++)
        if (strncmp(*from, "ETCD_", 5) != 0 || /* it takes them for flags */
            strncmp(*from, "ETCD_UNSUPPORTED_ARCH=", 22) == 0)
            to++;
    execvp("etcd", argv);
    _exit(127);
}

/* The guardian's whole life: keeps etcd running until the pipe is closed.
   Signals that are to end the node do nothing here. */
static void __attribute__((noreturn))
guardian_run(const struct node *node, const char *address, int fd) {
    struct pollfd end = {fd, POLLIN, 0};
    pid_t etcd;

    setpgid(0, 0); /* a Ctrl-C is for the node to act on */
    do {
        etcd = sidecar_start(node, address);
        while (waitpid(etcd, NULL, WNOHANG) == 0)
            if (poll(&end, 1, 100) > 0) {
                kill(etcd, SIGKILL);
                waitpid(etcd, NULL, 0);
                _exit(0);
            }
        say("warning",
            "etcd has ended and is started again; its log is %s/etcd.log",
            node->flags.data);
    } while (poll(&end, 1, SIDECAR_AGAIN) <= 0);
    _exit(0);
}

/* Forks the guardian, which lets go of the ports: the next process of this node
   may want them before it has ended. */
static void guardian_begin(struct node *node, const char *address) {
    int fds[2];

    wake_pipe(fds);
    node->guardian = fork();
    if (node->guardian < 0)
        give_up(1, "cannot fork: %s", strerror(errno));
    if (node->guardian == 0) {
        close(fds[1]);
        close(node->client_fd);
        close(node->peer_fd);
        guardian_run(node, address, fds[0]);
    }
    close(fds[0]);
    node->guardian_fd = fds[1];
}

/* Ends the sidecar, and waits for it. */
static void guardian_stop(const struct node *node) {
    if (node->guardian > 0 && close(node->guardian_fd) == 0)
        waitpid(node->guardian, NULL, 0);
}

/* Whether a text is made of letters, digits and .:-_%: it can stand in JSON as
   it is. */
static bool text_plain(const char *text, size_t most) {
    size_t n = strlen(text);

    return n <= most && strspn(text, "abcdefghijklmnopqrstuvwxyz"
                                     "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                     "0123456789.:-_%") == n;
}

/* Splits http://host:port; false: malformed. */
static bool url_parse(struct slice url, struct endpoint *to) {
    struct slice scheme, host, gap = {0};
    uint64_t port = 0;
    bool v6;

    url.n -= url.n > 0 && url.p[url.n - 1] == '/';
    if (!slice_cut(&url, ':', &scheme) || !slice_begins(url, "//"))
        return false;
    v6 = slice_begins(url, "//[");
    url = slice_skip(url, v6 ? 3 : 2);
    if (!slice_cut(&url, v6 ? ']' : ':', &host) ||
        (v6 && !slice_cut(&url, ':', &gap)) || !slice_digits(url, 10, &port) ||
        port < 2 || port > 65535)
        return false;
    to->port = (unsigned)port;
    to->tls = slice_is(scheme, "https");
    return (to->tls || slice_is(scheme, "http")) && gap.n == 0 && host.n > 0 &&
           slice_copy(host, to->host, sizeof to->host) &&
           text_plain(to->host, 255);
}

/* ---- Who is in etcd. Its members are etcds, each the sidecar of a node of the
 * same name; they need not be the members of our ring. One that was added and
 * has not started has no name yet; a learner follows, and does not vote. */

/* A member of etcd. */
struct etcd_member {
    char id[24];
    char name[256];    /* the id, if it has none */
    char client[300];  /* its URL for clients; "": none is known */
    struct slice urls; /* those for peers: for etcd_url_next() */
    bool started;      /* once, at least */
    bool learner;
    bool only; /* no other one votes, so that etcd ends with it; as found */
};

/* Takes the next URL from an array of texts; false: it has ended. */
static bool etcd_url_next(struct slice *urls, struct slice *url) {
    struct slice gap;

    return !slice_begins(*urls, "]") && slice_cut(urls, '"', &gap) &&
           slice_cut(urls, '"', url);
}

/* Takes the next member from etcd's list, into which its urls point; false:
   there is none. */
static bool etcd_member_next(struct slice *list, struct etcd_member *m) {
    struct slice text, rest, word;

    *m = (struct etcd_member){0};
    if (!json_text(list, "ID", m->id, sizeof m->id) ||
        !slice_cut(list, '}', &text))
        return false;
    rest = text;
    m->started = json_next(&rest, "name", &word);
    if (!m->started || !slice_copy(word, m->name, sizeof m->name))
        memcpy(m->name, m->id, sizeof m->id);
    rest = text;
    json_text(&rest, "clientURLs", m->client, sizeof m->client);
    m->learner = json_true(text, "isLearner");
    rest = text;
    if (json_find(&rest, "peerURLs"))
        m->urls = rest;
    return true;
}

/* Whether a member is reached by its peers at this URL. */
static bool etcd_member_at(const struct etcd_member *m, const char *url) {
    struct slice urls = m->urls, one;

    while (etcd_url_next(&urls, &one))
        if (slice_is(one, url))
            return true;
    return false;
}

/* Looks for the sidecar of a node in etcd; found->id "": there is none. false:
   no answer, in which one at least would vote. */
static bool etcd_member_find(struct etcd *e, const char *name,
                             struct etcd_member *found) {
    struct etcd_member m;
    unsigned voters = 0;
    struct slice reply;

    *found = (struct etcd_member){0};
    if (!etcd_call(e, "/v3/cluster/member/list", &reply, "{}"))
        return false;
    while (etcd_member_next(&reply, &m)) {
        voters += !m.learner;
        if (m.started && strcmp(m.name, name) == 0)
            *found = m;
    }
    found->only = voters == 1 && found->id[0] != '\0' && !found->learner;
    return voters > 0;
}

/* Takes the sidecar of a node out of etcd. true: there is none of that name
   (any more); false: no answer, a refusal, or it is the only one that votes. */
static bool etcd_member_remove(struct node *node, struct etcd *e,
                               const char *name) {
    struct etcd_member found;
    struct slice reply;

    if (!etcd_member_find(e, name, &found))
        return false;
    if (found.id[0] == '\0')
        return true;
    if (found.only) {
        say("warning", "%s: the etcd of %s is the only one, and stays",
            node->flags.name, name);
        return false;
    }
    return etcd_call(e, "/v3/cluster/member/remove", &reply, "{\"ID\":\"$\"}",
                     found.id);
}

/* ----------------------------------------------------------- The cluster
 *
 * A view is what this node knows of the cluster: the ring with its epoch, and
 * how its members are reached. It is made from a text that etcd holds, is
 * never changed, and is swapped as a whole. The text is kept on disk as well,
 * before it is obeyed, so that a node starts and serves without etcd. Its
 * epoch never goes back. In the text each key's value is a line, in this order:
 *
 * strj_ring   {"cluster":ID,"hash0":ID,"hash1":ID,"epoch":"1",
 *             "partitions":"256","replicas":"3","numbers":"3",
 *             "members":[{"name","number","id","zone"}], and while a change
 *             runs "next", the members after it, likewise}
 * strj_node_N {"name","host","port","peer","zone","id","boot","report",
 *             "sidecar"}
 * strj_leave_N {"leave":NAME,"force":"0"}: the member is to be removed
 * strj_alive_N (not in the text) is leased and says that the node was there
 *             not long ago.
 *
 * The order of the members matters, all values are strings. An id is 0 until
 * its node has started for the first time and has claimed the name for its data
 * directory.
 */

/* Notes what a node's record says of a member. A zone that the ring has stays
   as it is: owners depend on it. */
static void member_complete(struct member *m, struct slice record) {
    json_text(&record, "host", m->host, sizeof m->host);
    m->port = json_unsigned(&record, "port");
    m->peer_port = json_unsigned(&record, "peer");
    if (m->zone[0] == '\0')
        json_text(&record, "zone", m->zone, sizeof m->zone);
    json_number(&record, "id", 16);
    m->boot = json_number(&record, "boot", 10);
    m->report = json_number(&record, "report", 10);
    where_text(m->at, m->host, m->port);
    where_text(m->peer_at, m->host, m->peer_port);
    resolve(m->host, m->peer_port, &m->address, &m->address_n);
}

/* The id that is in a node's record. */
static uint64_t record_id(struct slice record) {
    return json_number(&record, "id", 16);
}

/* Takes the next line of what etcd holds whose first member is this: of a
   node's record "name", of the wish that it leaves "leave". false: none. */
static bool line_next(struct slice *text, const char *member, const char *name,
                      struct slice *line) {
    char begin[NAME_MAX_BYTES + 16];

    snprintf(begin, sizeof begin, "{\"%s\":\"%.*s\"", member, NAME_MAX_BYTES,
             name);
    while (slice_cut(text, '\n', line))
        if (slice_begins(*line, begin))
            return true;
    return false;
}

/* Builds the ring of some members of a view; at: their indexes, NULL: they are
   the first ones. NULL: it cannot be built. */
static struct ring *view_ring(const struct view *view, unsigned count,
                              const uint16_t *at) {
    struct ring_member members[MEMBERS_MAX];

    for (unsigned i = 0; i < count; i++) {
        const struct member *m = &view->member[at != NULL ? at[i] : i];

        members[i] = (struct ring_member){m->name, m->zone};
    }
    return ring_build(members, count, view->partitions, view->replicas);
}

/* Whether a node is to be removed, by what etcd holds; forced: at once. */
static bool leave_wished(struct slice text, const char *name, bool *forced) {
    struct slice line = {0};
    bool wished = line_next(&text, "leave", name, &line);

    *forced = wished && json_number(&line, "force", 10) != 0;
    return wished;
}

/* Completes a view from the nodes' records, a line each, and works out who owns
   what. A name may be there twice, of a directory that was lost and of the one
   that replaces it: a record is the one's whose id it has. */
static bool view_complete(const struct node *node, struct view *view,
                          struct slice records) {
    view->me = view->count;
    for (unsigned i = 0; i < view->count; i++) {
        struct member *m = &view->member[i];
        struct slice rest = records, line;

        while (line_next(&rest, "name", m->name, &line))
            if (m->id == 0 || record_id(line) == m->id)
                member_complete(m, line);
        m->leaves = leave_wished(records, m->name, &m->forced);
        if (m->zone[0] == '\0') /* as in a first ring */
            memcpy(m->zone, m->host, sizeof m->host);
        if (strcmp(m->name, node->flags.name) == 0 &&
            (view->me == view->count || m->id == node->self.id))
            view->me = i;
    }
    view->ring = view_ring(view, view->old, NULL);
    if (view->next_count > 0)
        view->next = view_ring(view, view->next_count, view->next_at);
    return view->ring != NULL && (view->next_count == 0 || view->next != NULL);
}

/* Parses a list of members, up to its bracket; one that is known by its number
   is not added once more. at: gets the index of each; *count of them. */
static bool members_parse(struct view *view, struct slice *ring, uint16_t *at,
                          unsigned *count) {
    bool good;

    do {
        struct member m = {0};
        unsigned i = 0;

        good = json_text(ring, "name", m.name, sizeof m.name);
        m.number = json_unsigned(ring, "number");
        m.id = json_number(ring, "id", 16);
        good = good && json_text(ring, "zone", m.zone, sizeof m.zone) &&
               m.number >= 1 && m.number <= MEMBERS_MAX && *count < MEMBERS_MAX;
        while (good && i < view->count && view->member[i].number != m.number)
            i++;
        good = good && i < MEMBERS_MAX;
        if (good && i == view->count)
            view->member[view->count++] = m;
        if (good)
            at[(*count)++] = (uint16_t)i;
    } while (good && slice_begins(*ring, "},{"));
    return good && slice_begins(*ring, "}]");
}

/* Makes a view, which the caller owns; NULL: the first line is no ring. */
static struct view *view_parse(const struct node *node, struct slice text) {
    struct view *view = memory(1, sizeof *view);
    struct slice ring = {0};
    bool good;

    atomic_init(&view->refs, 1);
    slice_cut(&text, '\n', &ring);
    view->cluster = json_number(&ring, "cluster", 16);
    view->hash[0] = json_number(&ring, "hash0", 16);
    view->hash[1] = json_number(&ring, "hash1", 16);
    view->epoch = json_number(&ring, "epoch", 10);
    view->partitions = json_unsigned(&ring, "partitions");
    view->replicas = json_unsigned(&ring, "replicas");
    view->numbers = json_unsigned(&ring, "numbers");
    good = view->cluster != 0 && view->hash[0] != 0 && view->hash[1] != 0 &&
           PARTITIONS_FIT(view->partitions) && view->replicas > 0 &&
           view->replicas <= REPLICAS_MAX && view->numbers > 0 &&
           members_parse(view, &ring, view->next_at, &view->old) &&
           view->old == view->count;
    if (good && slice_begins(ring, "}],\"next\":"))
        good = members_parse(view, &ring, view->next_at, &view->next_count);
    if (good && slice_is(ring, "}]}") && view_complete(node, view, text))
        return view;
    view_release(view);
    return NULL;
}

#define CALLED_WRONG "403 the data directory that is called is not this one"

/* The member with a number, or NULL. */
static const struct member *view_member(const struct view *view,
                                        uint64_t number) {
    for (unsigned i = 0; i < view->count; i++)
        if (view->member[i].number == number)
            return &view->member[i];
    return NULL;
}

/*
 * The owners of a partition, as indexes of members; how many there are. While a
 * change runs there are two groups, each with a majority of its own: the owners
 * by the ring in force, which come first and in its order, and those by the
 * next one, some of whom are in both. groups: bit i, owner i is in it; the
 * second is empty while no change runs.
 */
static unsigned view_owners(const struct view *view, unsigned partition,
                            unsigned owners[OWNERS_MAX],
                            uint64_t groups[GROUPS]) {
    unsigned count, next = 0, k;
    const unsigned *ring = ring_owners(view->ring, partition, &count);

    memcpy(owners, ring, count * sizeof *ring);
    groups[GROUP_OLD] = (UINT64_C(1) << count) - 1;
    groups[GROUP_NEW] = 0;
    if (view->next != NULL)
        ring = ring_owners(view->next, partition, &next);
    for (unsigned i = 0; i < next; i++) {
        unsigned at = view->next_at[ring[i]];

        for (k = 0; k < count && owners[k] != at; k++)
            ;
        if (k == count)
            owners[count++] = at;
        groups[GROUP_NEW] |= UINT64_C(1) << k;
    }
    return count;
}

/* Of which groups of a partition's owners a member is, a bit each. */
static unsigned view_owns(const struct view *view, unsigned partition,
                          unsigned number) {
    unsigned owners[OWNERS_MAX], of = 0;
    uint64_t groups[GROUPS];
    unsigned n = view_owners(view, partition, owners, groups);

    for (unsigned i = 0; i < n; i++)
        if (view->member[owners[i]].number == number)
            for (unsigned g = 0; g < GROUPS; g++)
                of |= (groups[g] >> i & 1) != 0 ? 1u << g : 0;
    return of;
}
#define OWNS_OLD (1u << GROUP_OLD)
#define OWNS_NEW (1u << GROUP_NEW)

/*
 * Whether a member, by its number, must take over what the old owners of a
 * partition have before the next ring is in force: a new owner that is no old
 * one. If there will be fewer owners than before it is each of the new ones:
 * what was acknowledged may be on only one of these, which could lose its power
 * after that, and nobody else would have it.
 */
static bool view_takes(const struct view *view, unsigned partition,
                       unsigned number) {
    unsigned of = view_owns(view, partition, number);
    bool fewer =
        view->next_count < view->old && view->next_count < view->replicas;

    return of == OWNS_NEW || (of == (OWNS_OLD | OWNS_NEW) && fewer);
}

/* Appends a list of members; at: their indexes, NULL: they are the first. */
static void members_text(struct buf *b, const struct view *view, unsigned count,
                         const uint16_t *at) {
    for (unsigned i = 0; i < count; i++) {
        const struct member *m = &view->member[at != NULL ? at[i] : i];

        buf_print(b,
                  "%s{\"name\":\"%s\",\"number\":\"%u\",\"id\":\"%016" PRIx64
                  "\",\"zone\":\"%s\"}",
                  i > 0 ? "," : "", m->name, m->number, m->id, m->zone);
    }
}

/* Appends a ring's text: that of a view but for its epoch and its members, of
   which so many are in force, and so many (0: no change runs) are next. */
static void ring_text(struct buf *b, const struct view *view, uint64_t epoch,
                      unsigned count, const uint16_t *at, unsigned next_count,
                      const uint16_t *next_at) {
    buf_print(b,
              "{\"cluster\":\"%016" PRIx64 "\",\"hash0\":\"%016" PRIx64
              "\",\"hash1\":\"%016" PRIx64 "\",\"epoch\":\"%" PRIu64
              "\",\"partitions\":\"%u\",\"replicas\":\"%u\","
              "\"numbers\":\"%u\",\"members\":[",
              view->cluster, view->hash[0], view->hash[1], epoch,
              view->partitions, view->replicas, view->numbers);
    members_text(b, view, count, at);
    if (next_count > 0) {
        buf_text(b, "],\"next\":[");
        members_text(b, view, next_count, next_at);
    }
    buf_text(b, "]}");
}

/* This node's own record. */
static void record_text(struct buf *b, struct node *node) {
    buf_print(b,
              "{\"name\":\"%s\",\"host\":\"%s\",\"port\":\"%u\","
              "\"peer\":\"%u\",\"zone\":\"%s\",\"id\":\"%016" PRIx64
              "\",\"boot\":\"%" PRIu64 "\",\"report\":\"%llu\","
              "\"sidecar\":\"%d\"}",
              node->flags.name, node->flags.host, node->client_port,
              node->peer_port, node->flags.zone, node->self.id, node->self.boot,
              atomic_load(&node->report), node->flags.initial_cluster != NULL);
}

/* ---- Who is there, and doubt.
 *
 * A replica is in doubt about a partition when it may have missed a write to
 * it: then it does not read from its own log, until a round of repair with a
 * majority of the owners, begun after the cause, has brought it up to date.
 * Causes are counted, so that a round ends the doubt of no later one. */

/* Whether a member has answered not long ago. */
static bool member_alive(const struct node *node, unsigned number) {
    uint64_t heard = atomic_load(&node->peers[number].heard);

    return number == self_number(node) ||
           (heard != 0 && now_ms() < heard + LOST_MS);
}

/* Whether a majority of the members is alive and far behind this node's clock:
   then it is this one that is wrong, and its versions would bury all others. */
static bool clock_wrong(const struct node *node, const struct view *view) {
    unsigned behind = 0;

    for (unsigned i = 0; i < view->count; i++) {
        unsigned number = view->member[i].number;

        behind += i != view->me && member_alive(node, number) &&
                  atomic_load(&node->peers[number].behind);
    }
    return behind > (view->count - 1) / 2;
}

/* Raises doubt about one partition. */
static void doubt_part(struct node *node, unsigned number) {
    struct part *part = &node->parts[number];

    pthread_mutex_lock(&part->lock);
    part->doubts++;
    pthread_mutex_unlock(&part->lock);
    wake_write(node->repair_wake[1]);
}

/* Has an owner told, with the next heartbeat, that it has missed a write. */
static void peer_missed(struct node *node, unsigned number,
                        unsigned partition) {
    struct peer *peer = &node->peers[number];

    atomic_fetch_or(&peer->missed[partition / 64], UINT64_C(1)
                                                       << partition % 64);
    atomic_store(&peer->missed_any, true);
    atomic_fetch_add(node->figures.missed, 1);
}

/* Raises doubt about all. A node that is alone has nobody to miss. */
static void doubt_all(struct node *node, const char *cause) {
    struct view *view = view_hold(node);

    if (atomic_load(&node->loaded) && view != NULL && view->count > 1) {
        say("info", "in doubt about all partitions cause=\"%s\"", cause);
        atomic_fetch_add(node->figures.doubts, 1);
        for (unsigned i = 0; i < node->partitions; i++)
            doubt_part(node, i);
    }
    view_release(view);
}

/* What the word of this node about a partition is worth. Sure: it may read from
   its own log alone. Not while a peer has a later ring: by that this node may
   not be an owner any more, and writes pass it by. */
static enum answer part_worth(const struct node *node, struct part *part) {
    enum answer worth;

    pthread_mutex_lock(&part->lock);
    worth = part->recovering ? ANSWER_LAME
            : part->doubts != part->cleared || atomic_load(&node->cut) ||
                    atomic_load(&node->heard_epoch) > atomic_load(&node->epoch)
                ? ANSWER_OK
                : ANSWER_SURE;
    pthread_mutex_unlock(&part->lock);
    return worth;
}

/* A peer said who it is. false: it is one that has been replaced, to be
   refused. A new boot of a peer is a cause of doubt: what it knew of writes
   that this node missed is gone with its last process. */
static bool peer_booted(struct node *node, unsigned number, uint64_t boot) {
    struct peer *peer = &node->peers[number];
    unsigned long long known = atomic_load(&peer->boot);

    while (known == 0 || boot >> BOOT_BITS > known >> BOOT_BITS)
        if (atomic_compare_exchange_weak(&peer->boot, &known, boot)) {
            if (known != 0)
                doubt_all(node, "a peer has started anew");
            return true;
        }
    return boot == known;
}

/* ---- A partition that is begun anew */

/* Opens trash/, which is made if it has to be; -1, and errno: it cannot. */
static int trash_open(const struct node *node) {
    if (mkdirat(node->dir_fd, "trash", 0777) != 0 && errno != EEXIST)
        return -1;
    return openat(node->dir_fd, "trash", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

/*
 * Begins a partition anew, by an epoch in which this node is no owner of it: as
 * that ends, or after it. Its log goes to trash/ first, and from there only if
 * it is proven that nobody needs it. The new one takes the name of the old one
 * at once, so that no start ever misses it. false: it stays as it is, or
 * another epoch has come.
 */
static bool part_restart(struct node *node, struct part *part, uint64_t epoch,
                         bool proven) {
    int trash = trash_open(node);
    struct log fresh = {.end = LOG_HEADER}, old = {0};
    char name[16], next[16], *to = proven ? next : name; /* what stays, stays */
    bool good;

    log_name(name, part->number, false);
    log_name(next, part->number, true);
    pthread_mutex_lock(&part->lock);
    if (part->next.file != NULL)
        compact_end(node, part);
    pthread_mutex_unlock(&part->lock);
    if (trash >= 0)
        fresh.file = compact_begin(node, part);
    good = fresh.file != NULL &&
           (unlinkat(trash, to, 0) == 0 || errno == ENOENT) &&
           linkat(node->dir_fd, name, trash, to, 0) == 0 && fsync(trash) == 0;
    pthread_mutex_lock(&part->lock);
    good = good && atomic_load(&node->epoch) == epoch &&
           renameat(node->dir_fd, next, node->dir_fd, name) == 0;
    if (good) {
        old = part->log;
        part->log = fresh;
        part->renamed = part->dirty = true;
        part->unsure = part->agreed = 0;
        part->rewrite = false;
        part_droppable(part, 0);
        part->doubts++;
    }
    pthread_mutex_unlock(&part->lock);
    file_release(good ? old.file : fresh.file);
    free(old.table);
    if (!good && fresh.file != NULL)
        unlinkat(node->dir_fd, next, 0);
    good = good && fsync(node->dir_fd) == 0;
    if (proven)
        unlinkat(trash, to, 0);
    if (trash >= 0)
        close(trash);
    return good;
}

/* ----------------------------------------------------------- Replication
 *
 * Any node coordinates. It finds the owners of the key in its view, sends them
 * the record, and counts: an answer counts for the attempt that it was asked
 * in and no other. Peers are spoken to in HTTP over links that are kept open,
 * with many calls under way in each; answers come in the order of the calls.
 *
 *     POST /_peer/accept     a record; the answer is a vote
 *     POST /_peer/read       a key; the answer is a record, or none
 *     POST /_peer/value      a part of a large value, see "Relays" below
 *     POST /_peer/prepare    see "Consistent operations" below
 *     POST /_peer/promised   a record; like accept, but only as promised
 *     POST /_peer/consistent a whole operation
 *     POST /_peer/heartbeat  see "heartbeats" below
 *     POST /_peer/digest, list, pull
 *                            see "Repair"
 *     POST /_peer/keys       see "Listing"
 *     POST /_peer/standing   asked at a start: is the directory an older copy?
 *
 * A record in an answer is all there, but of a large one all before the value:
 * it would hold up what others ask on that link, and it is not all kept here.
 *
 * Each request says, in the field Estoraje, of which cluster, epoch, member,
 * data directory and boot it is, and for which directory and boot. What does
 * not fit is refused unread: the answers of a process that runs on an older
 * copy of its directory must not count, either.
 */

#define INTRO_VERSION 6 /* of the protocol */

/* The field, words of 16 hexadecimal digits with a blank between, and the
   others that every call to a peer has. id and boot: of the member that is
   called, as etcd said, 0: not known; the member may have said more since.
   While the ring has no id of it a boot is of nobody knows which directory: it
   may have been lost, and another one be there. */
static void intro_text(struct buf *b, const struct node *node,
                       const struct view *view, unsigned number, uint64_t id,
                       uint64_t boot) {
    const struct identity *self = &node->self;
    uint64_t said = atomic_load(&node->peers[number].boot);
    const uint64_t words[INTRO_WORDS] = {INTRO_VERSION,
                                         view->cluster,
                                         view->epoch,
                                         self_number(node),
                                         self->id,
                                         self->boot,
                                         id,
                                         id == 0       ? 0
                                         : said > boot ? said
                                                       : boot};

    buf_text(b, "Estoraje:");
    for (int i = 0; i < INTRO_WORDS; i++) {
        buf_text(b, " ");
        buf_hex(b, words[i]);
    }
    buf_text(b, "\r\n");
    if (node->secret[0] != '\0')
        buf_print(b, "Authorization: Bearer %s\r\n", node->secret);
}

/* Connects a link, as far as that goes without waiting; l->conn is NULL if it
   does not go at all. */
static void link_open(struct worker *w, struct link *l) {
    const struct member *m = view_member(w->view, l->number);
    int fd, most = OUT_MAX / 2;

    if (m == NULL || m->address_n == 0 || w->now < l->retry_at ||
        (l->relays && conns_full(w->node)) ||
        (fd = socket(m->address.ss_family, SOCK_STREAM, 0)) < 0)
        return;
    fd_nonblocking(fd);
    if (l->relays) /* or the kernel has megabytes of each */
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &most, sizeof most);
    if (connect(fd, (const struct sockaddr *)&m->address, m->address_n) != 0 &&
        errno != EINPROGRESS) {
        l->retry_at = w->now + jitter(RETRY_MS);
        close(fd);
        return;
    }
    l->conn = conn_new(w, fd, CONN_LINK);
    l->conn->link = l;
    l->skip = 0;
    l->id = m->id;
    l->boot = m->boot;
}

/* Calls a member, as an owner for an op or (NULL) with a heartbeat. false:
   nothing was sent, and no answer will come. What is large is not kept for one
   that is not heard: repair brings it. */
static bool link_call(struct worker *w, struct link *l, unsigned number,
                      const char *path, struct slice body, struct op *op,
                      unsigned owner) {
    struct call call = {op, w->now, owner, op == NULL ? 0 : op->attempt};
    struct buf *out;

    l->number = number;
    if (body.n > READ_SIZE && !member_alive(w->node, number))
        return false;
    if (l->conn == NULL)
        link_open(w, l);
    if (l->conn == NULL || l->conn->dead || conn_unsent(l->conn) > PEER_QUEUE)
        return false;
    out = &l->conn->out;
    buf_text(out, "POST /_peer/");
    buf_text(out, path);
    buf_text(out, " HTTP/1.1\r\nHost: peer\r\n");
    intro_text(out, w->node, w->view, number, l->id, l->boot);
    buf_text(out, "Content-Length: ");
    buf_number(out, body.n);
    buf_text(out, "\r\n\r\n");
    buf_add(out, body.p, body.n);
    conn_count_memory(l->conn);
    conn_touch(l->conn);
    buf_add(&l->calls, &call, sizeof call);
    figure_add(w->figures.calls, 1);
    return true;
}

/* The call that is answered next; NULL: none is under way. */
static const struct call *link_oldest(const struct link *l) {
    struct slice calls = buf_slice(&l->calls);

    return calls.n == 0 ? NULL : (const struct call *)(const void *)calls.p;
}

static void beat_answered(struct worker *w, unsigned number, uint64_t since,
                          unsigned status, struct slice body);

/* Takes the oldest call off a link and gives its answer to who waits for it;
   0: it failed. The op is let go last: until then it lives. */
static void link_answer(struct worker *w, struct link *l, unsigned status,
                        struct slice body) {
    struct call call = *link_oldest(l);
    struct op *op = call.op;

    l->calls.at += sizeof call;
    buf_drop(&l->calls, READ_SIZE);
    figure_add(w->figures.errors, status != 200);
    if (status == 409)
        wake_write(w->node->etcd_wake[1]);
    if (op == NULL) {
        beat_answered(w, l->number, call.since, status, body);
        return;
    }
    if (!op->done && op->attempt == call.attempt)
        op->answered(op, call.owner, status, body);
    op->calls--;
    op_release(op);
}

/* Makes room for an answer with so many bytes, once, if it is large; twice,
   since what comes of it is buffered as well. false: there is none, and the
   operation is told. */
static bool link_room(struct conn *c, size_t n) {
    struct op *op = link_oldest(c->link)->op;

    if (n <= READ_SIZE || c->in.cap - c->in.at >= n + READ_SIZE)
        return true;
    if (buffer_room(c->w, n, 2 * n) &&
        buf_room(&c->in, n + READ_SIZE)) { /* conn_input() has some to spare */
        conn_count_memory(c);
        return true;
    }
    if (op != NULL && op->attempt == link_oldest(c->link)->attempt)
        op->busy = true;
    return false;
}

/* A relay has brought something: of the head of its answer, which is h if it is
   all there (else NULL), the operation is told, of what follows its client. */
static void relay_input(struct conn *c, const struct http *h) {
    const struct call *call = link_oldest(c->link);
    struct op *op = call->op;

    op->c->since = c->w->now; /* a client has its time for what comes */
    if (h == NULL)
        conn_touch(op->c);
    else
        op->answered(op, call->owner, h->status,
                     (struct slice){NULL, (size_t)h->length});
}

/* Reads answers of a peer, as many as are whole. */
static void link_input(struct conn *c) {
    struct link *l = c->link;
    const char *refusal;
    struct http h;

    while (c->in.at < c->in.n) {
        struct slice data = buf_slice(&c->in);
        size_t scanned = 0, n = data.n < l->skip ? data.n : (size_t)l->skip;

        if (l->relays && l->left != UINT64_MAX) {
            relay_input(c, NULL);
            return;
        }
        if (n > 0) {
            c->in.at += n;
            l->skip -= n;
            continue;
        }
        n = http_head_end(data.p, data.n, &scanned, &refusal);
        if (n == 0 && refusal == NULL)
            return;
        if (n == 0 || http_parse(data.p, n, false, &h) != NULL || h.chunked ||
            h.length > RECORD_MAX || link_oldest(l) == NULL) {
            conn_kill(c);
            return;
        }
        if (l->relays) {
            c->in.at += n;
            l->left = h.length;
            relay_input(c, &h);
            continue;
        }
        if (!link_room(c, n + (size_t)h.length)) {
            c->in.at += n;
            l->skip = h.length;
            link_answer(c->w, l, 503, (struct slice){NULL, 0});
            continue;
        }
        data = buf_slice(&c->in); /* it may have moved */
        if (data.n - n < h.length)
            return;
        link_answer(c->w, l, h.status,
                    (struct slice){data.p + n, (size_t)h.length});
        c->in.at += n + (size_t)h.length;
    }
}

/* The connection of a link is gone, and with it the calls under way; that of a
   relay may have done what it was there for. */
static void link_lost(struct conn *c) {
    struct link *l = c->link;

    l->conn = NULL;
    if (link_oldest(l) != NULL) /* else it was only idle */
        l->retry_at = c->w->now + jitter(RETRY_MS);
    while (link_oldest(l) != NULL)
        link_answer(c->w, l, l->relays && link_oldest(l)->op->done ? 200 : 0,
                    (struct slice){NULL, 0});
    buf_free(&l->calls);
    if (l == &c->w->beats[l->number]) /* whoever is there next is asked first */
        atomic_store(&c->w->node->peers[l->number].heard, 0);
}

/* Ends a link whose oldest call has waited for too long while nothing moved; a
   route once the member is not heard any more: what was sent there has no other
   clock, and a read can be asked of the next owner. (One that has left is not
   heard, and hands over what it was sent.) So does a relay end, but not while it
   is the client that it waits for. */
static void link_check(struct worker *w, const struct link *l) {
    const struct call *call = link_oldest(l);
    uint64_t waited = call != NULL ? w->now - call->since : 0;
    uint64_t rested = w->now - l->conn->since;
    bool route = l == &w->routes[l->number];
    bool lost = view_member(w->view, l->number) != NULL &&
                !member_alive(w->node, l->number);
    uint64_t most = CALL_MS;

    if (l->relays)
        most = lost ? LOST_MS : PROGRESS_MS; /* it may verify all first */
    if (call == NULL
            ? rested > IDLE_MS
            : conn_reads(l->conn) && ((waited > most && rested > most) ||
                                      (waited > LOST_MS && route && lost)))
        conn_kill(l->conn);
}

/* Whether two secrets are equal, in a time that tells nothing about them. */
static bool secret_equal(struct slice given, const char *secret) {
    size_t n = strlen(secret);
    volatile uint8_t differ = given.n != n;

    for (size_t i = 0; i < given.n; i++)
        differ |= given.p[i] ^ (uint8_t)secret[n > 0 ? i % n : 0];
    return differ == 0;
}

#define OTHER_EPOCH "409 another epoch of the ring is in force here"
#define NO_MEMBER   "410 this node is no member of the cluster any more"

/* A peer has a later ring: this node looks for it. */
static void epoch_heard(struct node *node, uint64_t epoch) {
    unsigned long long heard = atomic_load(&node->heard_epoch);

    while (epoch > heard &&
           !atomic_compare_exchange_weak(&node->heard_epoch, &heard, epoch))
        ;
    wake_write(node->etcd_wake[1]);
}

/* etcd or a member knows another boot of this directory than this one: it is an
   older copy. The next start goes by this; etcd may not be there to say so. */
static void copy_told(struct node *node, uint64_t boot) {
    unsigned long long none = 0;

    if (node->etcd == NULL ||
        !atomic_compare_exchange_strong(&node->told_older, &none, boot))
        return;
    say("fatal", "this data directory is an older copy of itself, as others "
                 "know: start the node again, it then begins anew");
    node->exit_code = 1;
    stop_requested = 1;
}

/* Notes what a peer says in the field; zeros, if it is not one. */
static void intro_take(struct op *op, struct slice field) {
    for (size_t i = 0; i < INTRO_WORDS && field.n == 17 * INTRO_WORDS - 1; i++)
        slice_digits((struct slice){field.p + 17 * i, 16}, 16, &op->intro[i]);
}

static void beat_body(struct op *op);

/* What can be said against who speaks. */
static const char *peer_check(struct op *op) {
    const uint64_t *x = op->intro;
    const struct view *view = op->w->view;
    const struct member *m = view_member(view, x[3]);
    bool stranger = m == NULL || (m->id != 0 && m->id != x[4]);

    if (x[0] != INTRO_VERSION)
        return "403 no Estoraje field of the protocol version spoken here: "
               "this port is for the cluster's own nodes";
    if (x[6] != 0 && x[6] != op->w->node->self.id)
        return CALLED_WRONG;
    if (x[1] != view->cluster)
        return "403 another cluster";
    if (x[7] != 0 && boot_later(x[7], op->w->node->self.boot)) {
        copy_told(op->w->node, x[7]);
        return "403 this node runs on an older copy of its data directory: "
               "start it again";
    }
    op->epoch = x[2];
    if (x[2] < view->epoch) /* others wait for the ring, a heartbeat need not */
        return stranger && x[3] != 0 && op->act == beat_body ? NO_MEMBER
                                                             : OTHER_EPOCH;
    if (x[2] > view->epoch) { /* it waits, and so does what it says of itself */
        epoch_heard(op->w->node, x[2]);
        return NULL;
    }
    if (m == NULL && op->forwarded)
        return NULL; /* as if its client had come here: done by this node */
    if (stranger)
        return "403 not a member of this cluster";
    if (!peer_booted(op->w->node, m->number, x[5]))
        return "403 a later process of that node has spoken";
    return NULL;
}

/*
 * The body of a peer's request is there, and meanwhile another ring may be.
 * What is asked by an older one is refused: others may be owners by now, who
 * would not see what comes of it. What is asked by a newer one waits until that
 * is in force here. What has to wait for something else comes by here again.
 */
static void peer_body(struct op *op) {
    const struct worker *w = op->w;
    const char *refusal = peer_check(op);

    if (op->began == 0)
        op->began = w->now;
    if (refusal == NULL && op->epoch > w->view->epoch &&
        w->now - op->began >= LOST_MS)
        refusal = OTHER_EPOCH;
    if (refusal != NULL)
        op_refuse(op, refusal);
    else if (op->epoch > w->view->epoch)
        op_due(op, peer_body);
    else
        op->act(op);
}

/* ---- The replica: votes and reads.
 *
 * It is asked in one of two ways: in a request of a peer, or by the coordinator
 * of the same op, who takes its word like that of any other owner. */

/* Notes the fingerprint and partition of a key. Of which groups of its owners
   this node is; 0: of none. */
static unsigned op_part(struct op *op, struct slice key) {
    struct node *node = op->w->node;

    op->fingerprint = ring_fingerprint(key.p, key.n, node->self.hash);
    op->partition = ring_partition(op->fingerprint, node->partitions);
    op->part = &node->parts[op->partition];
    return view_owns(op->w->view, op->partition, self_number(node));
}

/* Gives what this replica says to whoever asked: a peer, as an answer with
   bytes that it understands, or the coordinator. */
static void replica_says(struct op *op, unsigned status, const void *p,
                         size_t n) {
    if (op->answered != NULL && !op->done) {
        op->answered(op, op->mine, status, (struct slice){p, n});
    } else if (op->answered == NULL) {
        answer_begin(op, status);
        answer_body(op, p, n);
    }
}

/* A vote: verdict 1; existed 1; worth 1; 0 5; held 8; above 8. */
#define VOTE_SIZE 24

/* Votes, as op->vote says, once the log is synced if it has to be. */
static void replica_vote(struct op *op) {
    uint8_t vote[VOTE_SIZE] = {0};

    vote[0] = (uint8_t)(op->wait_result != 0 ? ACCEPT_DEAD : op->vote.verdict);
    vote[1] = op->vote.existed;
    vote[2] = (uint8_t)part_worth(op->w->node, op->part);
    vote[3] = op->wait_result != 0; /* it may be there all the same */
    put64(vote + 8, op->vote.held);
    put64(vote + 16, op->vote.above);
    replica_says(op, 200, vote, sizeof vote);
}

/* Stores op->rec, or what is to be settled, which is verified, and votes. It
   waits for the ceiling, but not for ever. A record that was on its way for too
   long is refused: the tombstone that covers it may have been dropped. */
static void replica_accept(struct op *op) {
    struct node *node = op->w->node;
    struct buf *bytes = op->settles ? &op->old : &op->rec;
    uint64_t least =
        VERSION_TIME(now_us() - FIRST_HAND_OLD * UINT64_C(1000000));
    struct record r;

    if (op->epoch != op->w->view->epoch) { /* it has waited for too long */
        replica_says(op, 409, NULL, 0);
        return;
    }
    if (!record_parse(bytes->p, bytes->n, 0, &r))
        die("a record that was verified does not verify");
    op->vote = (struct accepted){.verdict = ACCEPT_FLOOR, .above = least};
    if (r.version >= least)
        op->vote =
            store_accept(node, op->part, bytes->p, &r, op->fingerprint,
                         op->phase == PHASE_WRITE ? HOW_PROMISED : HOW_PLAIN);
    if (op->vote.verdict == ACCEPT_CEILING &&
        op->w->now - op->attempt_since < CALL_MS) {
        op_due(op, replica_accept);
        return;
    }
    figure_add(&op->w->figures.stored[op->vote.verdict != ACCEPT_OK], 1);
    if (op->vote.verdict == ACCEPT_FLOOR && op->phase != PHASE_WRITE)
        doubt_part(node, op->partition); /* the others may have taken it, and
                                            it is acknowledged before a
                                            heartbeat tells */
    op->resume = replica_vote;
    if (op->vote.verdict == ACCEPT_OK && node->sync == SYNC_ALWAYS)
        sync_park(node, op->part, op);
    else
        replica_vote(op);
}

/* A peer's record has arrived. */
static void accept_body(struct op *op) {
    struct record r;

    op->attempt_since = op->w->now;
    if (record_parse(op->rec.p, op->rec.n, 0, &r) && r.size == op->rec.n &&
        record_intact(&r) && op_part(op, r.key))
        replica_accept(op);
    else
        answer_error(op, 400, "not a record of a partition owned here");
}

/* A peer's record has arrived that this replica has promised to store. */
static void promised_body(struct op *op) {
    op->phase = PHASE_WRITE;
    accept_body(op);
}

/* Bytes of a sealed record that an answer has: all of it, or of a large one
   all before the value. */
static size_t record_told(const uint8_t *p) {
    size_t meta = record_meta(p), size = round_up_8(meta + get32(p + 32));

    return size > INLINE_MAX ? meta : size;
}

/* Whether bytes of an answer are so much of a record of the op's key, or all of
   it. */
static bool record_came(const struct op *op, struct slice bytes,
                        struct record *r) {
    return record_parse(bytes.p, bytes.n, 0, r) &&
           slice_equal(r->key, op->key) &&
           (bytes.n == r->size ? record_intact(r)
                               : bytes.n == record_told(bytes.p));
}

/* Says what this replica holds of a key: what its word is worth, 8 bytes, and
   the record if there is one. 500: damage, it cannot say. */
static void replica_read(struct op *op, struct slice key) {
    struct worker *w = op->w;
    enum answer worth = part_worth(w->node, op->part); /* before it looks */
    struct buf answer = {0};
    struct record r;
    enum found found = store_read(w->node, op->part, op->fingerprint, key,
                                  INLINE_MAX, &w->record, &r, NULL, NULL);

    buf_zero(&answer, 8);
    answer.p[0] = (uint8_t)worth;
    if (found == FOUND) {
        record_seal(w->record.p, 0);
        buf_add(&answer, w->record.p, record_told(w->record.p));
    }
    if (found == FOUND || found == ABSENT)
        replica_says(op, 200, answer.p, answer.n);
    else
        replica_says(op, 500, NULL, 0);
    buf_free(&answer);
}

/* A peer asks for a key. */
static void read_body(struct op *op) {
    struct slice key = buf_slice(&op->rec);

    if (key.n == 0 || key.n > KEY_MAX || !op_part(op, key))
        answer_error(op, 400, "not a key of a partition owned here");
    else
        replica_read(op, key);
}

/* ---- The coordinator */

/* Notes the owners of the op's partition, of whom nobody was asked yet. */
static void op_owners(struct op *op) {
    const struct view *view = op->w->view;
    unsigned owners[OWNERS_MAX];

    op->count = view_owners(view, op->partition, owners, op->groups);
    op->mine = op->count;
    for (unsigned i = 0; i < op->count; i++) {
        op->owners[i] = view->member[owners[i]].number;
        op->answers[i] = ANSWER_NONE;
        if (owners[i] == view->me)
            op->mine = i;
    }
    op->epoch = view->epoch;
}

/* The links that its calls go by: not those of writes and reads, if what it
   asks for may take a while, as answers come in the order of the calls. */
static struct link *op_links(const struct op *op) {
    return op->phase == PHASE_ROUTE || op->limit > 0 ? op->w->routes
                                                     : op->w->links;
}

/* Asks one of the owners, another node than this. */
static void op_call(struct op *op, unsigned owner, const char *path,
                    struct slice body) {
    unsigned number = op->owners[owner];
    bool sent =
        link_call(op->w, &op_links(op)[number], number, path, body, op, owner);

    op->answers[owner] = sent ? ANSWER_WAIT : ANSWER_FAILED;
    op->calls += sent;
}

/* The owners that are at one of these, a bit each: of all, or of those believed
   alive. */
static uint64_t op_set(const struct op *op, unsigned at, bool alive) {
    uint64_t set = 0;

    for (unsigned i = 0; i < op->count; i++)
        if ((op->answers[i] & at) != 0 &&
            (!alive || member_alive(op->w->node, op->owners[i])))
            set |= UINT64_C(1) << i;
    return set;
}

/* Whether a set of owners is a majority, of each group by itself. */
static bool op_majority(const struct op *op, uint64_t set) {
    for (int i = 0; i < GROUPS; i++)
        if (op->groups[i] != 0 &&
            bits_count(set & op->groups[i]) <= bits_count(op->groups[i]) / 2)
            return false;
    return true;
}

/* The field of a key's etag. */
static void answer_etag(struct buf *out, uint64_t etag) {
    buf_text(out, "\r\nETag: \"");
    buf_hex(out, etag);
    buf_text(out, "\"");
}

/* Notes who has missed a write that some have. An owner is told with the next
   heartbeat, and repairs; this node itself does so at once, but what it waits
   to have synced it has. */
static void write_missed(struct op *op) {
    struct node *node = op->w->node;

    for (unsigned i = 0; i < op->count; i++)
        if (op->answers[i] & ANSWER_WELL || (i == op->mine && op->parked))
            continue;
        else if (i == op->mine)
            doubt_part(node, op->partition);
        else
            peer_missed(node, op->owners[i], op->partition);
}

/* Answers a write that is done. */
static void write_answer(struct op *op) {
    struct buf *out = answer_begin(op, op->remove && !op->existed  ? 404
                                       : op->remove || op->existed ? 204
                                                                   : 201);

    if (!op->remove)
        answer_etag(out, op->etag);
    answer_body(op, NULL, 0);
}

/* An owner has refused a version: the next one has to be above this. */
static void op_above(struct op *op, uint64_t above) {
    clock_see(op->w->node, above);
    if (above > op->highest)
        op->highest = above;
}

/* Takes an owner's vote. Status 0: its link has failed, and the record may have
   arrived all the same. What else is no vote was refused unread. */
static void vote_take(struct op *op, unsigned i, unsigned status,
                      struct slice body) {
    bool voted = status == 200 && body.n == VOTE_SIZE;
    int verdict = voted ? body.p[0] : ACCEPT_DEAD;

    op->answers[i] = verdict == ACCEPT_OK ? body.p[2] : ANSWER_FAILED;
    op->refused = op->refused || status == 409;
    op->reached = op->reached || verdict == ACCEPT_OK || status == 0 ||
                  (voted && body.p[3]);
    op->full = op->full || verdict == ACCEPT_FULL;
    if (verdict == ACCEPT_HELD || verdict == ACCEPT_FLOOR)
        op_above(op, get64(body.p + 16));
}

static void write_judge(struct op *op);
/* Of the next sections. */
static void op_failed(struct op *op);
static void hand_over(struct op *op);
static void read_begin(struct op *op);
static void turn_give(struct op *op, uint64_t etag);
static void consistent_again(struct op *op);

/* Whether this node has left the cluster: no member counts on it, and so takes
   anything from it, but whole operations. */
static bool op_left(const struct op *op) {
    return op->w->view->me == op->w->view->count;
}

/* An owner has answered to a plain write, or its link has failed. Whether the
   key existed is what the newest record says that was held before the first
   attempt. */
static void write_answered(struct op *op, unsigned i, unsigned status,
                           struct slice body) {
    bool voted = status == 200 && body.n == VOTE_SIZE;
    uint64_t held = voted ? get64(body.p + 8) : 0;

    if (op->attempt == 1 && held != op->version && held > op->existed_version) {
        op->existed_version = held;
        op->existed = body.p[1];
    }
    vote_take(op, i, status, body);
    write_judge(op);
}

/*
 * Sends the record to all owners of the view: to this node itself last, since
 * that may be the end of it. If an attempt has met a higher version, it gets a
 * new one above that, with the same etag; it waits while that is above the
 * ceiling, but not for ever. Answers are counted anew then: a majority has to
 * hold one and the same version, or none of them would outlast the others.
 * From the third attempt on a random rest comes before the next: with one of
 * three owners away each of two writes that meet fails the other, so that many
 * on one key would all give up.
 */
static void write_attempt(struct op *op) {
    struct node *node = op->w->node;

    if (op_left(op)) {
        op->reached = op->reached || op_set(op, ANSWER_WAIT, false) != 0;
        op->tried = op->reached;
        hand_over(op);
        return;
    }
    if (op->w->now < op->next_at) {
        op_due(op, write_attempt);
        return;
    }
    if (op->version <= op->highest)
        op->version = clock_version(node, op->highest);
    if (op->etag == 0)
        op->etag = op->version;
    if (!ceiling_allows(node, op->version) && !clock_too_far(op->version)) {
        if (op->w->now - op->attempt_since < CALL_MS)
            op_due(op, write_attempt);
        else
            op_failed(op);
        return;
    }
    record_stamp(op->rec.p, op->version, op->etag);
    op->attempt++; /* whoever has not answered to the last may have that */
    op->reached = op->reached || op_set(op, ANSWER_WAIT, false) != 0;
    op->attempt_since = op->w->now;
    op->next_at = op->attempt < 3 ? 0 : op->w->now + jitter(5u << op->attempt);
    op->majority_since = op->highest = 0;
    op->refused = false;
    op_owners(op);
    op_due(op, write_judge);
    for (unsigned i = 0; i < op->count; i++)
        if (i == op->mine)
            op->answers[i] = ANSWER_WAIT;
        else
            op_call(op, i, "accept", buf_slice(&op->rec));
    if (op->mine < op->count)
        replica_accept(op);
    else
        write_judge(op);
}

/* Whether an attempt has had its time: since it began, and since anything moved
   on a link to an owner that it waits for. Large values take longer. */
static bool op_stalled(const struct op *op) {
    const struct worker *w = op->w;
    uint64_t moved = op->attempt_since;

    for (unsigned i = 0; i < op->count; i++) {
        const struct conn *c = op_links(op)[op->owners[i]].conn;

        if (op->answers[i] == ANSWER_WAIT && c != NULL && c->since > moved)
            moved = c->since;
    }
    return w->now - moved >= ATTEMPT_MS;
}

/*
 * What the answers so far amount to. With a majority it waits a little for the
 * others that live, so that on a healthy cluster every replica has what was
 * acknowledged. Without a chance for a majority it tries again above the
 * highest version it was told, if it was told one: what is acknowledged has to
 * be the newest, or the next repair would take it away again. Or, if owners
 * that have a later ring have refused it, with the same version by that ring,
 * counting from zero: majorities by two rings need not meet.
 */
static void write_judge(struct op *op) {
    struct worker *w = op->w;
    uint64_t oks = op_set(op, ANSWER_COUNTS, false);
    uint64_t waiting = op_set(op, ANSWER_WAIT, false);
    bool hope = op_majority(op, oks | waiting), again;

    /* Where disks are full the last one's word is waited for: that nothing was
       stored; and where it was refused, the ring that the others have. */
    hope = waiting != 0 &&
           (op->parked ||
            ((hope || (op->full && !op->reached)) && !op_stalled(op)));
    again = !hope && op->attempt < ATTEMPTS &&
            (op->highest > 0 || w->view->epoch != op->epoch);
    hope = hope || (op->refused && w->now - op->attempt_since < LOST_MS);
    if (op_majority(op, oks)) {
        if (op->majority_since == 0)
            op->majority_since = w->now;
        if (op_set(op, ANSWER_WAIT, true) == 0 ||
            w->now - op->majority_since >= GRACE_MS) {
            write_missed(op);
            write_answer(op);
        } else {
            op_due(op, write_judge);
        }
    } else if (again) {
        write_attempt(op);
    } else if (hope) {
        op_due(op, write_judge);
    } else {
        op->reached = op->reached || waiting != 0;
        op_failed(op);
    }
}

/* Whether a majority of the owners is believed alive; *wait: maybe soon, as
   those that a new ring brings have not been heard yet. */
static bool op_hopeful(const struct op *op, bool *wait) {
    bool alive = op_majority(op, op_set(op, ANSWER_NONE, true));

    *wait = !alive && op->w->view->next != NULL &&
            op->w->now - op->w->view_at < LOST_MS;
    return alive;
}

/* Whether a record may be sent to all other owners of its key. */
static bool write_room(struct op *op) {
    size_t others;

    op_owners(op);
    others = op->count - (op->mine < op->count);
    return buffer_room(op->w, op->rec.n, others * op->rec.n);
}

/* Begins a write to the owners of the view. */
static void write_start(struct op *op) {
    bool wait = false;

    op->busy = !write_room(op);
    op->attempt_since = op->w->now;
    op->answered = write_answered;
    if (!op->busy && !clock_wrong(op->w->node, op->w->view) &&
        op_hopeful(op, &wait))
        write_attempt(op);
    else if (wait)
        op_due(op, write_start);
    else
        op_failed(op);
}

#define REFUSED                                                              \
    "the condition of If-Match or If-None-Match does not hold: nothing was " \
    "done; read the key for its ETag"

#define ROTTEN                                                     \
    "damaged: the value fails its checksum, and no other replica " \
    "has it: write it again"

/* What a read is answered that meets a record (a version of 0: none), and which
   bytes of the value it gets: those from *first to before *end. The conditions
   go in the order of RFC 9110, 13.2.2, and what is absent is absent under any
   (13.2.1). */
static unsigned read_status(const struct op *op, const struct record *r,
                            uint64_t *first, uint64_t *end) {
    struct slice match = slice_of(op->if_match);
    struct slice none = slice_of(op->if_none_match);
    bool fits;

    *first = *end = 0;
    if (r->version == 0 || r->tombstone)
        return 404;
    if (match.n > 0 && !etag_listed(match, r->etag, false))
        return 412;
    if (etag_listed(none, r->etag, true))
        return 304;
    if (op->ranged && (op->if_range == 0 || op->if_range == r->etag)) {
        fits = range_fits(&op->range, r->value.n, first, end);
        if (fits && *first < *end)
            return 206;
        *first = *end = 0;
        if (!fits)
            return 416; /* an empty value has no last bytes, but is all of
                           them */
    }
    *end = op->head ? 0 : r->value.n;
    return 200;
}

/* Answers a read with a record. The value is in r; or it is sent from a file,
   of which c->stream_... says where, or as the relay brings it. */
static void read_answer(struct op *op, const struct record *r,
                        struct file *file) {
    struct conn *c = op->c;
    uint64_t first, end;
    unsigned status = read_status(op, r, &first, &end);
    bool streams = first < end && (file != NULL || op->relay.conn != NULL);
    size_t n = status == 200 ? r->value.n : (size_t)(end - first);
    struct buf *out;
    char text[100];

    if (!streams)
        file_release(file);
    if (status == 412) {
        answer_error(op, 412, REFUSED);
        return;
    }
    out = answer_begin(op, status);
    figure_add(op->w->figures.stale, op->stale);
    if (op->stale)
        buf_text(out, "\r\nEstoraje-Stale: true");
    if (status != 404) {
        answer_etag(out, r->etag);
        buf_text(out, "\r\nAccept-Ranges: bytes");
    }
    if (status == 416) {
        buf_print(out, "\r\nContent-Range: bytes */%zu", r->value.n);
        snprintf(text, sizeof text,
                 "the range has none of the %zu bytes of the value: ask for "
                 "less\n",
                 r->value.n);
        answer_typed(op, TEXT_PLAIN, slice_of(text));
        return;
    }
    if (status == 206)
        buf_print(out, "\r\nContent-Range: bytes %" PRIu64 "-%" PRIu64 "/%zu",
                  first, end - 1, r->value.n);
    if (status == 200 || status == 206) { /* RFC 9110, 15.4.5 */
        buf_text(out, "\r\nX-Content-Type-Options: nosniff\r\nContent-Type: ");
        if (r->type.n > 0)
            buf_add(out, r->type.p, r->type.n);
        else
            buf_text(out, "application/octet-stream");
    }
    if (!streams) {
        answer_body(op, r->value.p + first, n);
        return;
    }
    buf_text(out, "\r\nContent-Length: ");
    buf_number(out, n);
    buf_text(out, "\r\n\r\n");
    c->streams = true;
    c->stream = file;
    c->stream_size = r->value.n;
    c->stream_at = first;
    c->stream_end = end;
    conn_touch(c);
}

/* Keeps what is before the value of a record in op->rec. */
static void read_keep(struct op *op, const struct record *r) {
    const uint8_t *p = r->key.p - RECORD_HEADER;

    if (p == op->rec.p)
        return;
    op->rec.n = 0;
    buf_add(&op->rec, p, record_meta(p));
    record_seal(op->rec.p, 0);
}

/* Bytes of a record that are read at once for an answer. A large value is sent
   from the file; no HEAD needs one. */
static size_t read_most(const struct op *op) {
    return op->head ? RECORD_HEADER + KEY_MAX + TYPE_MAX : INLINE_MAX;
}

/* The errand of a thread of the pool: whether the blocks that a client is to
   get of op->entry are intact, which takes a while. One that has verified all of
   the value does so for all who had asked for it before it began. */
static void value_check(struct op *op) {
    uint8_t *block = memory(1, BLOCK);
    uint64_t first, end, from = op->arrived;
    struct part *part = op->part;
    struct record r;
    bool known;

    op->intact = record_parse(op->rec.p, op->rec.n, 0, &r);
    pthread_mutex_lock(&part->lock);
    known = part->intact == op->entry.version && part->intact_from >= from;
    pthread_mutex_unlock(&part->lock);
    if (op->intact && !known && !atomic_load(&op->w->node->ended)) {
        from = clock_ns(CLOCK_MONOTONIC);
        read_status(op, &r, &first, &end);
        op->intact = value_intact(
            op->file, &r, entry_offset(&op->entry) + record_meta(op->rec.p),
            first, end, block);
        if (op->intact && end - first == r.value.n) {
            pthread_mutex_lock(&part->lock);
            part->intact = op->entry.version;
            part->intact_from = from;
            pthread_mutex_unlock(&part->lock);
        }
    }
    free(block);
}

/* Sends what was found intact; else it goes on otherwise. */
static void value_checked(struct op *op) {
    struct file *file = op->file;
    struct conn *c = op->c;
    struct record r;

    op->file = NULL;
    if (op->intact && record_parse(op->rec.p, op->rec.n, 0, &r)) {
        c->stream_entry = op->entry;
        c->stream_value = entry_offset(&op->entry) + record_meta(op->rec.p);
        read_answer(op, &r, file);
        turn_give(op, r.etag);
    } else {
        part_damaged(op->w->node, op->part, &op->entry);
        file_release(file);
        op->damaged = true;
        op->otherwise(op);
    }
}

/* Answers with a record of this node's own, of which read_most() bytes are in
   w->record, and all of it in a file, which is let go. A large value, or the
   part of it that is wanted, is verified before, as after the head of the answer
   it is too late (so the rest of one is not), and again block by block when it
   is sent. If it turns out to be damaged, otherwise() is called. */
static void read_file(struct op *op, const struct record *r, struct file *file,
                      const struct entry *entry,
                      void (*otherwise)(struct op *)) {
    uint64_t first, end;

    read_status(op, r, &first, &end);
    if (first == end || op->w->record.n >= r->size) {
        file_release(file);
        read_answer(op, r, NULL);
        turn_give(op, r->etag);
        return;
    }
    read_keep(op, r);
    op->attempt++; /* answers that are still to come are void */
    op->due = NULL;
    op->entry = *entry;
    op->file = file;
    op->otherwise = otherwise;
    op->errand = value_check;
    op->resume = value_checked;
    op->intact = op->rest;
    if (op->rest)
        value_checked(op);
    else
        errand_park(op->w->node, op->part, op);
}

/* Answers from this node's own replica; if etag is not 0 only with the value
   that has it. false: it is damaged there, or there is another one; otherwise()
   is for what turns out later. */
static bool read_own(struct op *op, uint64_t etag,
                     void (*otherwise)(struct op *)) {
    struct worker *w = op->w;
    struct record r = {0};
    struct file *file = NULL;
    struct entry entry;
    enum found found = store_read(w->node, op->part, op->fingerprint, op->key,
                                  read_most(op), &w->record, &r, &file, &entry);
    bool other;

    if (found == ABSENT && etag == 0) {
        read_answer(op, &r, NULL);
        return true;
    }
    other = found == ABSENT || (found == FOUND && etag != 0 && r.etag != etag);
    if (found == FOUND && !other) {
        read_file(op, &r, file, &entry, otherwise);
        return true;
    }
    file_release(file);
    *(other ? &op->refused : &op->damaged) = true;
    return false;
}

/* ---- Relays.
 *
 * A large value that an owner has is sent on as it comes, over a connection of
 * its own, so that a slow client holds up nobody. The owner sends it from its
 * log, which it holds open so long: it is one value to its end, whatever is
 * written meanwhile. It is verified on the way, and if it stops another owner
 * sends the rest. An etag says which value it is: one that was written again
 * has the same.
 *
 *     value     etag, where the blocks begin that are wanted, and end; 1, a
 *               byte, if it is the rest of an answer that has begun; key
 *               answers 206 and these, or that there is another value by now */

#define RELAY_ASK 25

/* It is not here any more (404), or it is damaged. */
static void value_lacks(struct op *op) {
    answer_error(op, op->refused ? 404 : 500, "it is not here");
}

/* A peer relays a value. */
static void value_body(struct op *op) {
    struct slice ask = buf_slice(&op->rec);
    int most = OUT_MAX / 2;

    op->key = slice_skip(ask, ask.n < RELAY_ASK ? ask.n : RELAY_ASK);
    if (op->key.n == 0 || op->key.n > KEY_MAX || !op_part(op, op->key) ||
        op->c->first != op) {
        answer_error(op, 400, "not a value of a partition owned here");
        return;
    }
    op->keep = false;
    op->rest = ask.p[24] != 0;
    op->ranged = true;
    op->range = (struct range){false, get64(ask.p + 8), get64(ask.p + 16) - 1};
    setsockopt(op->c->fd, SOL_SOCKET, SO_SNDBUF, &most, sizeof most);
    atomic_fetch_add(&op->w->node->served, !op->c->served);
    op->c->served = true;
    if (conns_full(op->w->node))
        answer_error(op, 503, "too many connections: ask another owner");
    else if (!read_own(op, get64(ask.p), value_lacks))
        value_lacks(op);
}

/* Where what a client still has to get of a value ends, in whole blocks. */
static uint64_t relay_end(const struct conn *c) {
    uint64_t end = (c->stream_end + BLOCK - 1) / BLOCK * BLOCK;

    return end < c->stream_size ? end : c->stream_size;
}

/* Asks the next owner for the value, or the rest of it. When all were asked an
   answer that has begun is broken off; and else, if some have another value by
   now, or another ring is in force, the read begins anew. */
static void relay_ask(struct op *op) {
    struct conn *c = op->c;
    uint8_t ask[RELAY_ASK + KEY_MAX];

    put64(ask, op->etag);
    put64(ask + 8, c->stream_at - c->stream_at % BLOCK);
    put64(ask + 16, relay_end(c));
    ask[24] = c->streams;
    memcpy(ask + RELAY_ASK, op->key.p, op->key.n);
    for (unsigned k = 0; k < op->count; k++) {
        unsigned i = (op->holder + k) % op->count;

        if ((op->relayed >> i & 1) != 0)
            continue;
        op->relayed |= UINT64_C(1) << i;
        op->relay = (struct link){.relays = true, .left = UINT64_MAX};
        if (i == op->mine) {
            if (!c->streams && read_own(op, op->etag, relay_ask))
                return;
        } else if (link_call(op->w, &op->relay, op->owners[i], "value",
                             (struct slice){ask, RELAY_ASK + op->key.n}, op,
                             i)) {
            op->calls++;
            return;
        }
    }
    if (c->streams) {
        conn_kill(c);
    } else if ((op->refused || op->epoch != op->w->view->epoch) &&
               op->relays++ < ATTEMPTS) {
        op->version = 0;
        op->settles = op->damaged = false;
        (op->consistent ? hand_over : read_begin)(op);
    } else if (op->damaged) {
        answer_error(op, 500, ROTTEN);
    } else {
        answer_error(op, 503,
                     "no owner that has the value can send it now: try again");
    }
}

/* The head of an owner's answer has come, of which body.n bytes follow; or (0)
   its connection is gone before all of it was sent on. */
static void relay_answered(struct op *op, unsigned i, unsigned status,
                           struct slice body) {
    const struct conn *c = op->c;
    uint64_t from = c->stream_at - c->stream_at % BLOCK;
    struct record r;

    (void)i;
    if (status == 206 && body.n == relay_end(c) - from &&
        record_parse(op->rec.p, op->rec.n, 0, &r)) {
        if (c->streams)
            return;
        if (buffer_room(op->w, c->stream_end - from, 4 * RELAY_MAX)) {
            read_answer(op, &r, NULL);
        } else {
            conn_kill(op->relay.conn);
            answer_error(op, 503, BUSY);
        }
        return;
    }
    op->refused = op->refused || status == 404 || status == 409;
    op->damaged = op->damaged || status == 500;
    if (status == 0)
        op_due(op, relay_ask);
    else
        conn_kill(op->relay.conn);
}

/* Answers with a record that an owner has sent, the newest. Only what is before
   a large value is looked at. */
static void read_tell(struct op *op, const struct record *r) {
    struct conn *c = op->c;
    uint64_t first, end;

    read_status(op, r, &first, &end);
    if (first == end || r->size <= INLINE_MAX) {
        read_answer(op, r, NULL);
        return;
    }
    c->stream_size = r->value.n;
    c->stream_at = first;
    c->stream_end = end;
    op->etag = r->etag;
    read_keep(op, r);
    buf_reset(&op->old, 0); /* where it was settled all of it is there */
    op_count_memory(op);
    op->attempt++; /* answers that are still to come are void */
    op->due = NULL;
    op->refused = op->damaged = false;
    op->relayed = 0;
    op->answered = relay_answered;
    relay_ask(op);
}

/* Answers with the newest record that has come, in op->rec. stale: of fewer
   than a majority, whose word is not enough for "absent". */
static void read_newest(struct op *op, bool stale) {
    struct record r = {0};

    if (op->version != 0 && !record_parse(op->rec.p, op->rec.n, 0, &r))
        die("a record that was verified does not verify");
    op->stale = stale;
    if (stale && (op->version == 0 || r.tombstone))
        answer_error(op, 503,
                     "the key is not on the replicas that can be "
                     "asked, and they are no majority of its %u owners: try "
                     "again",
                     op->count);
    else
        read_tell(op, &r);
}

/* Asks one more owner, of those that live as long as there are any: values may
   be large, and one answer is enough if it is not in doubt. */
static bool read_ask(struct op *op) {
    unsigned from = op->w->turn++;

    for (unsigned k = 0; k < 2 * op->count; k++) {
        unsigned i = (from + k) % op->count;

        if (op->answers[i] != ANSWER_NONE ||
            (k < op->count && !member_alive(op->w->node, op->owners[i])))
            continue;
        op->attempt_since = op->w->now;
        op_call(op, i, "read", op->key);
        return true;
    }
    return false;
}

/* What the answers so far amount to. An owner by a new ring must not be asked
   in a read that began by the one before: together with one that is no owner
   any more it would make a majority of neither. So the read begins anew. */
static void read_judge(struct op *op) {
    uint64_t now = op->w->now;
    bool hope;

    if (op_set(op, ANSWER_SURE, false) != 0 ||
        op_majority(op, op_set(op, ANSWER_COUNTS, false))) {
        read_newest(op, false);
        return;
    }
    if (op->busy) {
        answer_error(op, 503, BUSY);
        return;
    }
    if (op->w->view->epoch != op->epoch) {
        read_begin(op);
        return;
    }
    while ((op_set(op, ANSWER_WAIT, false) == 0 ||
            now - op->attempt_since >= ASK_MS) &&
           read_ask(op))
        ;
    hope = op_set(op, ANSWER_WAIT, false) != 0 && !op_stalled(op);
    if (hope || (op->refused && now - op->began < LOST_MS))
        op_due(op, read_judge); /* or for the ring that the others have */
    else if (op_set(op, ANSWER_WELL, false) != 0 &&
             !atomic_load(&op->w->node->left))
        read_newest(op, true);
    else if (op->damaged)
        answer_error(op, 500, ROTTEN);
    else
        answer_error(op, 503,
                     "none of the key's %u owners can be asked: try again",
                     op->count);
}

/* An owner's answer to a read has come, or its link has failed. */
static void read_answered(struct op *op, unsigned i, unsigned status,
                          struct slice body) {
    bool good = status == 200 && body.n >= 8;
    enum answer worth = good ? body.p[0] : ANSWER_FAILED;
    struct record r;

    op->damaged = op->damaged || status == 500;
    op->refused = op->refused || status == 409;
    if (good && body.n > 8) {
        body = slice_skip(body, 8);
        good = record_came(op, body, &r);
        if (good && r.version > op->version) {
            op->version = r.version;
            op->holder = i;
            op->rec.n = 0;
            buf_add(&op->rec, body.p, body.n);
            op_count_memory(op);
        }
    }
    op->answers[i] = good ? worth : ANSWER_FAILED;
    read_judge(op);
}

/* Asks the owners, this node's own replica first if it is one. */
static void read_owners(struct op *op) {
    op_owners(op);
    op->count = bits_count(op->groups[GROUP_OLD]);
    op->groups[GROUP_NEW] = 0;
    op->answered = read_answered;
    if (op->mine < op->count)
        replica_read(op, op->key);
    else
        read_judge(op);
}

/* Begins a read. While a change runs the owners by the ring in force are asked:
   the others may not have all yet. */
static void read_begin(struct op *op) {
    bool mine = (op_part(op, op->key) & OWNS_OLD) != 0;

    op->began = op->began != 0 ? op->began : op->w->now;
    op->attempt++; /* answers of owners by an older ring are void */
    op->version = 0;
    op->refused = op->stale = op->damaged = false;
    if (op_left(op)) {
        hand_over(op);
        return;
    }
    if (!mine || part_worth(op->w->node, op->part) != ANSWER_SURE ||
        !read_own(op, 0, read_owners))
        read_owners(op);
}

/* ---- Consistent operations.
 *
 * One key is one register of CASPaxos (Rystsov, 2018), without a leader. The
 * coordinator of a write takes a version and has a majority of the owners
 * promise to store nothing lower from then on, and say what they hold now. The
 * newest of that is what the write's condition is checked against, and what it
 * replaces; then the record is stored, under that version, by those that
 * promised. Two majorities have an owner in common, so of two such writes one
 * sees the other, or makes it fail.
 *
 *     prepare   version, or 0 to look only; a version that the asker has; 1, a
 *               byte, if it wants all of a large record; key
 *               answers verdict 1, tombstone 1, worth 1, unsynced 1, 0 4;
 *               version held; what the next version has to be above; etag;
 *               then the record held, if the asker has another
 *     consistent  1 reads, 2 is a DELETE; lengths of If-Match and
 *               If-None-Match, a byte each; these; then the key or the record
 *               answers status 8, etag 8, then the record or a line of text
 *
 * A read looks at what the owners hold, and answers with what a majority holds
 * in one version. If there is no such version, a write was cut short or is
 * under way: which is the newest then depends on whom one asks, and a later
 * read could find an older one. So the newest is settled before anybody is told
 * of it: it is written once more, consistently, and keeps its etag.
 *
 * Operations on one key that run side by side keep failing each other: each
 * prepare voids the promises of the one before. So they all go to the first
 * owner that is alive, and are done there one at a time. If two nodes take
 * different owners for the first, their operations do fail each other, but are
 * safe all the same. */

#define CONSISTENT_MS     5000 /* for all rounds of an operation */
#define CONSISTENT_ROUNDS 12
#define FORWARD_READ      1
#define FORWARD_DELETE    2
#define PREPARE_ASK       17
#define PREPARED_SIZE     32 /* of an answer without the record */

/* Has this node's replica promise a version, and say what it holds, as it is
   answered to a peer. *entry and *file are of that, as store_prepare() says;
   its record is in w->record, and all of it if a peer is to get it: if that has
   another than `known`, and it is not large or all of it is asked for. */
static enum verdict replica_prepare(struct op *op, uint64_t version,
                                    uint64_t known, struct entry *entry,
                                    struct file **file,
                                    uint8_t said[PREPARED_SIZE]) {
    struct worker *w = op->w;
    enum answer worth = part_worth(w->node, op->part); /* before it looks */
    struct accepted a = store_prepare(w->node, op->part, version,
                                      op->fingerprint, op->key, entry, file);
    bool whole = *file != NULL && op->answered == NULL &&
                 a.verdict == ACCEPT_OK && a.held != known &&
                 (op->settles || entry_size(entry) <= INLINE_MAX);
    size_t size = whole ? entry_size(entry) : 0;
    struct record r = {0};

    if (*file != NULL && !buffer_room(w, size, 2 * size)) {
        a.verdict = ACCEPT_DEAD; /* a promise that nobody hears of */
    } else if (*file != NULL &&
               !entry_read(*file, entry, size, &w->record, &r)) {
        part_damaged(w->node, op->part, entry);
        a.verdict = ACCEPT_DAMAGED;
    }
    memset(said, 0, PREPARED_SIZE);
    said[0] = (uint8_t)a.verdict;
    said[1] = r.tombstone;
    said[2] = (uint8_t)worth;
    said[3] = a.unsynced;
    put64(said + 8, a.held);
    put64(said + 16, a.above);
    put64(said + 24, r.etag);
    return a.verdict;
}

/* A peer asks for a promise, or looks. It waits for the ceiling, but not for
   ever. */
static void prepare_body(struct op *op) {
    struct slice ask = buf_slice(&op->rec);
    struct buf answer = {0}, *record = &op->w->record;
    uint8_t said[PREPARED_SIZE];
    enum verdict verdict;
    struct entry entry;
    struct file *file;

    op->key = slice_skip(ask, ask.n < PREPARE_ASK ? ask.n : PREPARE_ASK);
    if (op->key.n == 0 || op->key.n > KEY_MAX || !op_part(op, op->key)) {
        answer_error(op, 400, "not a key of a partition owned here");
        return;
    }
    op->settles = ask.p[16] != 0;
    verdict = replica_prepare(op, get64(ask.p), get64(ask.p + 8), &entry, &file,
                              said);
    if (verdict == ACCEPT_CEILING && op->w->now - op->began < CALL_MS) {
        op_due(op, peer_body);
        return;
    }
    buf_add(&answer, said, sizeof said);
    if (file != NULL && verdict == ACCEPT_OK &&
        get64(said + 8) != get64(ask.p + 8)) {
        record_seal(record->p, 0);
        buf_add(&answer, record->p,
                op->settles ? record->n : record_told(record->p));
    }
    file_release(file);
    buf_reset(record, 2 * READ_SIZE);
    replica_says(op, 200, answer.p, answer.n);
    buf_free(&answer);
}

/* ---- The turns of a key */

static void consistent_start(struct op *op);

/* Ends an operation's turn, and gives it to the next one on the key, whose etag
   is this now (0: absent, or not known). The oldest goes first; but every other
   time one may jump the queue whose If-Match names what was just written. Where
   many compare and set one key, most of those that wait have lost already, and
   while they find that out the one that could succeed would lose as well. */
static void turn_give(struct op *op, uint64_t etag) {
    struct op **at, *oldest = NULL, *next = NULL;

    file_release(op->file);
    op->file = NULL;
    if (op->part == NULL || op->phase <= PHASE_ROUTE)
        return;
    pthread_mutex_lock(&op->part->lock);
    for (at = &op->part->turns; *at != op; at = &(*at)->turn_next)
        ;
    *at = op->turn_next;
    for (struct op *o = op->turn ? op->part->turns : NULL; o != NULL;
         o = o->turn_next) {
        if (o->fingerprint != op->fingerprint)
            continue;
        if (oldest == NULL)
            oldest = o;
        if (next == NULL && !op->jumped && !o->reads &&
            o->if_match[0] != '\0' &&
            etag_listed(slice_of(o->if_match), etag, false))
            next = o;
    }
    if (next == NULL)
        next = oldest;
    if (next != NULL) {
        next->jumped = next != oldest;
        next->turn = true;
    }
    pthread_mutex_unlock(&op->part->lock);
    op->phase = PHASE_NONE;
    op->attempt++; /* answers that are still to come are void, and nothing is
                      due: a large value may be sent for long after this */
    op->due = NULL;
    if (next != NULL)
        ops_post(next, 0);
}

/* Puts an operation behind those on its key, and begins it if there is none. */
static void turn_take(struct op *op) {
    struct op **at = &op->part->turns;

    op->began = op->w->now;
    op->phase = PHASE_TURN;
    op->resume = consistent_start;
    pthread_mutex_lock(&op->part->lock);
    op->turn = true;
    for (; *at != NULL; at = &(*at)->turn_next)
        if ((*at)->fingerprint == op->fingerprint)
            op->turn = false;
    *at = op;
    op->turn_next = NULL;
    op->parked = !op->turn;
    pthread_mutex_unlock(&op->part->lock);
    if (!op->parked)
        consistent_start(op);
}

/* ---- How a consistent operation ends: a read with a record, a write with its
   etag, either with a line of text. First the next one is given its turn. */

/* Tells the node that has the client. */
static void forward_answer(struct op *op, unsigned status, uint64_t etag,
                           const void *p, size_t n) {
    struct buf answer = {0};

    put64(buf_grow(&answer, 8), status);
    put64(buf_grow(&answer, 8), etag);
    buf_add(&answer, p, n);
    answer_begin(op, 200);
    answer_body(op, answer.p, answer.n);
    buf_free(&answer);
}

/* Ends with an error, a line of text. */
static void consistent_error(struct op *op, unsigned status, const char *text) {
    turn_give(op, op->newest_etag);
    if (op->forwarded)
        forward_answer(op, status, 0, text, strlen(text));
    else
        answer_error(op, status, "%s", text);
}

/* Ends without success, a plain write or a consistent operation. What some have
   stored the others are told of: so that all are equal again before the next
   round, whichever it comes to. */
static void op_failed(struct op *op) {
    if (op->reached && op->phase != PHASE_ROUTE)
        write_missed(op);
    if (op->reached)
        consistent_error(op, 504,
                         "outcome unknown: some replicas may have the write, "
                         "and a majority has not said so; read the key, or "
                         "write it again");
    else if (!op->reads && clock_wrong(op->w->node, op->w->view))
        consistent_error(op, 503,
                         "not applied: this node's clock is far ahead of the "
                         "others': set it");
    else if (op->busy)
        consistent_error(op, 503, op->reads ? BUSY : "not applied: " BUSY);
    else if (op->damaged)
        consistent_error(op, 500,
                         "damaged: the value fails its checksum, and no "
                         "majority of replicas has it: write it again");
    else if (op->full && !op->reads)
        consistent_error(op, 507,
                         "no room left on the disk: nothing was stored; "
                         "delete something, or make room");
    else if (op->reads)
        consistent_error(op, 503,
                         "a majority of the key's owners cannot be asked now: "
                         "try again, or read without ?consistent");
    else
        consistent_error(op, 503,
                         "not applied: a majority of the key's owners cannot "
                         "be reached or cannot store it now: try again");
}

/* Ends a write that is done. */
static void consistent_written(struct op *op) {
    turn_give(op, op->etag);
    if (!op->forwarded)
        write_answer(op);
    else
        forward_answer(op, op->existed ? 204 : 201, op->etag, NULL, 0);
}

/* Ends a read with a record; version 0: none. */
static void consistent_record(struct op *op, const struct record *r) {
    const uint8_t *p = r->version == 0 ? NULL : r->key.p - RECORD_HEADER;

    turn_give(op, r->etag);
    if (!op->forwarded)
        read_tell(op, r);
    else
        forward_answer(op, 200, 0, p, p == NULL ? 0 : record_told(p));
}

/* Ends a read with the record that this node holds. false: it is damaged. */
static bool consistent_here(struct op *op) {
    struct worker *w = op->w;
    struct file *file = op->file;
    struct record r;

    if (!entry_read(file, &op->entry, read_most(op), &w->record, &r)) {
        part_damaged(w->node, op->part, &op->entry);
        return false;
    }
    if (op->forwarded) {
        record_seal(w->record.p, 0);
        consistent_record(op, &r);
        return true;
    }
    op->file = NULL;
    read_file(op, &r, file, &op->entry, consistent_again);
    return true;
}

/* ---- The rounds */

static void consistent_round(struct op *op);
static void consistent_judge(struct op *op);
static void consistent_route(struct op *op);

/* Another round: at once, or after a random rest that grows, so that two nodes
   do not go on failing each other. Rounds that were lost to other operations are
   not counted, nor are they while the others have a later ring: it takes a
   disk's time until that is in force here. */
static void consistent_again(struct op *op) {
    struct worker *w = op->w;

    if (op->phase == PHASE_WRITE && !op->settles &&
        op_set(op, ANSWER_WAIT, false) != 0)
        op->reached = true; /* an owner that has not answered may have it */
    op->tried = op->tried && op->reached; /* else all have refused it */
    op->attempt++; /* answers to this round are void, and so is its version */
    op->rounds += !op->refused && op->highest == 0;
    op->version = 0;
    if (op_left(op) && !op->forwarded && !op->tried) {
        turn_give(op, 0);
        hand_over(op);
        return;
    }
    if ((op->damaged && op->count == 1) || w->now - op->began > CONSISTENT_MS ||
        op->rounds > CONSISTENT_ROUNDS || op_left(op)) {
        op_failed(op);
        return;
    }
    op->next_at = op->attempt < 3 ? 0 : w->now + jitter(10 * op->attempt);
    consistent_round(op);
}

/* Whether a majority of the owners that count holds the newest version. */
static bool consistent_decided(const struct op *op) {
    uint64_t set = op->promised & op_set(op, ANSWER_COUNTS, false);

    for (unsigned i = 0; i < op->count; i++)
        if (op->held[i] != op->newest)
            set &= ~(UINT64_C(1) << i);
    return op_majority(op, set);
}

/* Notes what an owner said to a prepare. Only owners that are not
   recovering count, and the newest is the newest of what those hold. An owner
   that has not synced it yet does not count as a holder: what a client is told
   has to survive a loss of power, and settling waits for the disks. If an owner
   has promised or holds a higher version, the next round is above that. */
static void consistent_note(struct op *op, unsigned i, const uint8_t *said) {
    enum verdict verdict = said[0];
    bool unsynced = said[3] != 0;
    uint64_t held = get64(said + 8);

    op->answers[i] = ANSWER_FAILED;
    if (verdict == ACCEPT_OK) {
        op->answers[i] = said[2];
        op->promised |= UINT64_C(1) << i;
        op->held[i] = unsynced ? 0 : held;
        if ((op->answers[i] & ANSWER_COUNTS) != 0 && held > op->newest &&
            op->phase != PHASE_WRITE) {
            op->newest = held;
            op->newest_etag = get64(said + 24);
            op->newest_tombstone = said[1];
        }
    } else if (verdict == ACCEPT_HELD || verdict == ACCEPT_FLOOR) {
        op_above(op, get64(said + 16));
    } else if (verdict == ACCEPT_DAMAGED) {
        op->damaged = true;
    }
}

/* Has a record stored as it was promised: by an owner that is another node. */
static void consistent_send(struct op *op, unsigned i) {
    op_call(op, i, "promised", buf_slice(op->settles ? &op->old : &op->rec));
}

/* Has the client's record, or the newest as it is, stored by all owners that
   have promised, this node last. Only answers of this same round count. */
static void consistent_store(struct op *op) {
    struct buf *bytes = op->settles ? &op->old : &op->rec;

    if (op->epoch != op->w->view->epoch) { /* those were other owners */
        consistent_again(op);
        return;
    }
    record_stamp(bytes->p, op->version,
                 op->settles ? op->newest_etag : op->etag);
    op->phase = PHASE_WRITE;
    op->majority_since = 0;
    op->attempt_since = op->w->now;
    op_due(op, consistent_judge);
    for (unsigned i = 0; i < op->count; i++)
        if ((op->promised >> i & 1) != 0 && i != op->mine)
            consistent_send(op, i);
    if ((op->promised >> op->mine & 1) != 0) {
        op->answers[op->mine] = ANSWER_WAIT;
        replica_accept(op);
    } else {
        consistent_judge(op);
    }
}

/* Writes the newest once more, which takes a promise first: then a majority
   holds it in one version. */
static void consistent_settle(struct op *op) {
    struct record r = {0};

    op->settles = true;
    if (op->phase == PHASE_LOOK) {
        consistent_again(op);
        return;
    }
    if (op->newest == op->here) {
        if (!entry_read(op->file, &op->entry, SIZE_MAX, &op->old, &r)) {
            part_damaged(op->w->node, op->part, &op->entry);
            consistent_again(op);
            return;
        }
        record_seal(op->old.p, 0);
        op_count_memory(op);
    }
    if (!record_parse(op->old.p, op->old.n, 0, &r) || r.version != op->newest ||
        op->old.n < r.size)
        consistent_again(op); /* and all of it is asked for */
    else
        consistent_store(op);
}

/* Answers a read, or a write whose condition does not hold, with the newest. */
static void consistent_tell(struct op *op) {
    struct record r = {0};
    bool told = true;

    if (!op->reads)
        consistent_error(op, 412, REFUSED);
    else if (op->newest != 0 && op->newest == op->here)
        told = consistent_here(op);
    else if (op->newest == 0 || (record_parse(op->old.p, op->old.n, 0, &r) &&
                                 r.version == op->newest))
        consistent_record(op, &r);
    else
        told = false;
    if (!told)
        consistent_again(op);
}

/*
 * A majority has promised: what is to be written? If the client's record was
 * sent before and fell short, another operation may have found it, gone on from
 * it and replaced it: to write it again would do it twice. So that is done only
 * where the newest is that record, or what was there before it; else nobody can
 * say what became of it. That a condition does not hold is told only when a
 * majority holds the record for which it does not: one that few hold may still
 * vanish, and the client would be refused for what never was.
 */
static void consistent_decide(struct op *op) {
    bool present = op->newest != 0 && !op->newest_tombstone;
    bool ours = op->tried && op->newest_etag == op->etag;

    if (op->tried && !ours && op->newest_etag != op->first_etag) {
        op_failed(op);
    } else if (!op->reads &&
               (op->tried || op_may(op, present ? op->newest_etag : 0))) {
        if (!op->tried) {
            op->existed = present;
            op->first_etag = op->newest_etag;
        }
        op->tried = true;
        op->settles = false;
        consistent_store(op);
    } else if (consistent_decided(op)) {
        consistent_tell(op);
    } else {
        consistent_settle(op);
    }
}

/* What the answers so far amount to. */
static void consistent_judge(struct op *op) {
    struct worker *w = op->w;
    uint64_t oks = op_set(op, ANSWER_COUNTS, false);
    uint64_t waiting = op_set(op, ANSWER_WAIT, false);
    bool enough = op_majority(op, oks);
    bool hope = op->parked || (waiting != 0 && op_majority(op, oks | waiting) &&
                               !op_stalled(op));

    if (op->phase == PHASE_LOOK && enough && consistent_decided(op)) {
        consistent_tell(op);
    } else if (op->phase == PHASE_LOOK && enough &&
               (op_set(op, ANSWER_WAIT, true) == 0 ||
                w->now - op->attempt_since >= ASK_MS)) {
        consistent_settle(op);
    } else if (op->phase == PHASE_PROMISE && enough) {
        consistent_decide(op);
    } else if (op->phase == PHASE_WRITE && enough) {
        if (op->majority_since == 0)
            op->majority_since = w->now;
        if ((op->settles && op->parked) || /* it goes on living after this */
            (op_set(op, ANSWER_WAIT, true) != 0 &&
             w->now - op->majority_since < GRACE_MS)) {
            op_due(op, consistent_judge);
            return;
        }
        write_missed(op);
        if (!op->settles) {
            consistent_written(op);
            return;
        }
        op->here = 0; /* what was settled is in op->old */
        op->newest = op->version;
        consistent_tell(op);
    } else if (hope) {
        op_due(op, consistent_judge);
    } else {
        consistent_again(op);
    }
}

/* Takes what an owner answered to a prepare: a record, if there is one, is kept
   as long as it is the newest that has come. false: it makes no sense. */
static bool consistent_prepared(struct op *op, unsigned i, struct slice body) {
    const uint8_t *said = body.p;
    struct record r;
    uint64_t held;

    if (body.n < PREPARED_SIZE)
        return false;
    held = get64(said + 8);
    body = slice_skip(body, PREPARED_SIZE);
    if (body.n == 0 && said[0] == ACCEPT_OK && held != 0 && held != op->here)
        return false;
    if (body.n > 0 && (!record_came(op, body, &r) || r.version != held))
        return false;
    if (body.n > 0 && op->phase != PHASE_WRITE && held >= op->newest &&
        said[0] == ACCEPT_OK && (said[2] & ANSWER_COUNTS) != 0) {
        op->old.n = 0;
        buf_add(&op->old, body.p, body.n);
        op_count_memory(op);
        op->holder = i;
    }
    consistent_note(op, i, said);
    return true;
}

/*
 * An owner's answer has come, or its link has failed. Its first answer is to
 * the prepare, its second to the record: an owner that promises while the
 * record is on its way to others is sent it at once. Those that said ok to the
 * record have to be a majority of all owners, not of those that promised, or
 * two majorities might have nobody in common.
 */
static void consistent_answered(struct op *op, unsigned i, unsigned status,
                                struct slice body) {
    op->refused = op->refused || status == 409;
    if ((op->promised >> i & 1) == 0) {
        bool good = status == 200 && consistent_prepared(op, i, body);

        if (good && op->phase == PHASE_WRITE && (op->promised >> i & 1) != 0 &&
            op->epoch == op->w->view->epoch)
            consistent_send(op, i);
        else if (!good || op->phase == PHASE_WRITE)
            op->answers[i] = ANSWER_FAILED; /* nor does it have the record */
    } else {
        bool reached = op->reached;

        vote_take(op, i, status, body);
        op->reached = op->settles ? reached : op->reached;
    }
    consistent_judge(op);
}

/* One round: all owners are asked what they hold, and, but for a first look,
   for a promise. */
static void consistent_round(struct op *op) {
    struct worker *w = op->w;
    bool looks = op->reads && !op->settles, alive, wait;
    uint8_t said[PREPARED_SIZE];
    struct buf ask = {0};

    op_owners(op);
    alive = op_hopeful(op, &wait);
    if (wait) {
        op_due(op, consistent_round);
        return;
    }
    if (!alive ||
        (!looks && clock_wrong(w->node, w->view))) { /* a read settles, too */
        op_failed(op);
        return;
    }
    if (w->now < op->next_at) { /* first: meanwhile versions grow */
        op_due(op, consistent_round);
        return;
    }
    if (!looks && op->version <= op->highest)
        op->version = clock_version(w->node, op->highest);
    if (!looks && !ceiling_allows(w->node, op->version) &&
        !clock_too_far(op->version) && w->now - op->began < CONSISTENT_MS) {
        op_due(op, consistent_round);
        return;
    }
    if (op->etag == 0)
        op->etag = op->version;
    op->phase = looks ? PHASE_LOOK : PHASE_PROMISE;
    op->attempt_since = w->now;
    op->promised = op->highest = op->newest = op->newest_etag = 0;
    op->newest_tombstone = op->damaged = op->refused = false;
    op->old.n = 0;
    file_release(op->file);
    op->file = NULL;
    op->here = 0;
    if (op->mine < op->count) { /* it may be an owner no longer */
        if (replica_prepare(op, looks ? 0 : op->version, 0, &op->entry,
                            &op->file, said) != ACCEPT_DAMAGED &&
            op->file != NULL && !entry_damaged(&op->entry))
            op->here = get64(said + 8);
        consistent_note(op, op->mine, said);
        op->damaged = op->damaged || (op->file != NULL && op->here == 0);
    }
    put64(buf_grow(&ask, 8), looks ? 0 : op->version);
    put64(buf_grow(&ask, 8), op->here);
    *buf_grow(&ask, 1) = op->settles;
    buf_add(&ask, op->key.p, op->key.n);
    for (unsigned i = 0; i < op->count; i++)
        if (i != op->mine)
            op_call(op, i, "prepare", buf_slice(&ask));
    buf_free(&ask);
    consistent_judge(op);
}

/* On a node that stops an operation whose turn has come goes on to the next
   owner, if there is one: none is at work here then that it could meet. */
static bool consistent_pass(struct op *op) {
    uint64_t others =
        op_set(op, ANSWER_NONE, true) & ~(UINT64_C(1) << op->mine);

    if (!atomic_load(&op->w->node->stopping) || (!op->forwarded && others == 0))
        return false;
    turn_give(op, 0);
    if (op->forwarded) {
        answer_error(op, 503, "this node is stopping");
    } else {
        op->phase = PHASE_ROUTE;
        op->answers[op->mine] = ANSWER_FAILED;
        consistent_route(op);
    }
    return true;
}

/* Its turn has come. */
static void consistent_start(struct op *op) {
    const struct worker *w = op->w;

    if (consistent_pass(op))
        return;
    atomic_fetch_add(&w->node->at_work, !op->at_work);
    op->at_work = true;
    op->answered = consistent_answered;
    op->attempt++;
    op->busy = !op->reads && !write_room(op);
    if (op->busy || (!op->reads && clock_wrong(w->node, w->view)) ||
        w->now - op->began > CONSISTENT_MS)
        op_failed(op);
    else
        consistent_round(op);
}

/* ---- The way to the owner that does it */

/* The node that was asked has answered, or its link has failed. In that case a
   write may have been done, and a read is asked of the next owner. */
static void forward_answered(struct op *op, unsigned i, unsigned status,
                             struct slice body);

/* Owners have refused the operation, or were asked by a ring that is not in
   force any more: begins by the new one, once that is in force here. */
static void consistent_wait(struct op *op) {
    if (op->w->view->epoch != op->epoch) {
        op->refused = false;
        op_owners(op);
        consistent_route(op);
    } else if (op->w->now - op->began < LOST_MS) {
        op_due(op, consistent_wait);
    } else {
        op_failed(op);
    }
}

/* Sends an operation to the first owner that lives and was not asked yet, or
   begins it if that is this node. When none is left it begins anew if another
   ring has come meanwhile: nobody has begun it. */
static void consistent_route(struct op *op) {
    struct buf b = {0};

    buf_zero(&b, 3);
    b.p[0] = (uint8_t)((op->reads ? FORWARD_READ : 0) |
                       (op->remove ? FORWARD_DELETE : 0));
    b.p[1] = (uint8_t)strlen(op->if_match);
    b.p[2] = (uint8_t)strlen(op->if_none_match);
    buf_text(&b, op->if_match);
    buf_text(&b, op->if_none_match);
    if (op->reads)
        buf_add(&b, op->key.p, op->key.n);
    else
        buf_add(&b, op->rec.p, op->rec.n);
    op->answered = forward_answered;
    for (unsigned i = 0; i < op->count; i++) {
        if (op->answers[i] != ANSWER_NONE ||
            !member_alive(op->w->node, op->owners[i]))
            continue;
        if (i == op->mine) {
            buf_free(&b);
            turn_take(op);
            return;
        }
        op_call(op, i, "consistent", buf_slice(&b));
        if (op->answers[i] == ANSWER_WAIT)
            break;
    }
    buf_free(&b);
    if (op_set(op, ANSWER_WAIT, false) != 0)
        return;
    if (op->refused || op->epoch != op->w->view->epoch)
        consistent_wait(op);
    else
        op_failed(op);
}

static void forward_answered(struct op *op, unsigned i, unsigned status,
                             struct slice body) {
    uint64_t said = status == 200 && body.n >= 16 ? get64(body.p) : 0;
    struct slice rest = slice_skip(body, said != 0 ? 16 : 0);
    struct record r = {0};

    op->answers[i] = ANSWER_FAILED;
    op->refused = op->refused || status == 409;
    if (said == 503 && op->w->now - op->began < CONSISTENT_MS) {
        said = 0; /* not applied: it may have started just now, and not have
                     heard the others yet */
        status = 503;
    }
    if (said >= 400 && op->tried) { /* in vain; but here it was begun before */
        op_failed(op);
    } else if (said >= 400) {
        answer_error(op, (unsigned)said, "%.*s", (int)rest.n,
                     (const char *)rest.p);
    } else if (said != 0 && op->reads &&
               (rest.n == 0 || record_came(op, rest, &r))) {
        op->holder = i;
        read_tell(op, &r);
    } else if (said != 0 && !op->reads) {
        op->existed = op->tried ? op->existed : said == 204;
        op->etag = get64(body.p + 8);
        write_answer(op);
    } else if (op->busy) {
        op_failed(op);
    } else if (op->reads || status >= 400) {
        consistent_route(op); /* it was not begun */
    } else {
        op->tried = op->reached = true;
        op_failed(op);
    }
}

/* Has an operation of a client done by the first owner that lives. It is begun
   like this; or a change of the ring has made this node leave while it was at
   it: then what was done of it counts for nothing, and it is done once more. Of
   a plain write that some owners have this is another attempt, as it is where
   one has met a higher version: above all that it had, and under its etag. */
static void hand_over(struct op *op) {
    op->phase = PHASE_ROUTE;
    op->began = op->w->now;
    op->attempt++; /* answers that are still to come are void */
    op->due = NULL;
    op->refused = false;
    if (!op->reads) /* for the way: it gets a higher version there */
        record_stamp(op->rec.p, op->tried ? op->version : 1,
                     op->tried ? op->etag : 1);
    if (write_room(op) || op->reads || op->reached)
        consistent_route(op);
    else
        answer_error(op, 503, "not applied: " BUSY);
}

/* Begins an operation of a client, whose body has arrived. */
static void op_begin(struct op *op) {
    if (!op->reads)
        record_end(&op->rec, op->value_at);
    if (op->reads && !op->consistent) {
        read_begin(op);
        return;
    }
    op_part(op, op->key);
    (op->consistent ? hand_over : write_start)(op);
}

/* A whole operation has arrived from another node, or from this one's repair:
   it is done here, whoever this node takes for the first owner. */
static void consistent_body(struct op *op) {
    struct slice ask = buf_slice(&op->rec), text;
    struct record r = {0};
    bool good = ask.n > 3;
    size_t skip = 3;

    op->reads = good && (ask.p[0] & FORWARD_READ) != 0;
    op->remove = good && (ask.p[0] & FORWARD_DELETE) != 0;
    for (int i = 1; good && i < 3; i++) {
        text = slice_skip(ask, skip < ask.n ? skip : ask.n);
        good = text.n > ask.p[i];
        text.n = ask.p[i];
        good =
            good && slice_copy(text, i == 1 ? op->if_match : op->if_none_match,
                               sizeof op->if_match);
        skip += ask.p[i];
    }
    if (good && !op->reads) {
        op->rec.n -= skip;
        memmove(op->rec.p, op->rec.p + skip, op->rec.n);
        good = record_parse(op->rec.p, op->rec.n, 0, &r) &&
               r.size == op->rec.n && record_intact(&r);
        ask = r.key;
        if (good && r.version > 1) { /* some owners may have it */
            op->etag = r.etag;
            op->highest = r.version;
        }
    } else if (good) {
        ask = slice_skip(ask, skip);
    }
    if (!good || ask.n > KEY_MAX || !op_part(op, ask)) {
        answer_error(op, 400, "not an operation on a key that is owned here");
        return;
    }
    memcpy(op->key_bytes, ask.p, ask.n);
    op->key = (struct slice){op->key_bytes, ask.n};
    op->forwarded = true;
    turn_take(op);
}

/* ---- Heartbeats.
 *
 * Every half second each node asks each other one for a sign of life. The
 * question: its clock, 8 bytes, or 0 from one that stops and does not count as
 * heard from then on; then the partitions in which the other has missed a write,
 * a bit each. The answer: clock, then what it says of itself;
 * 8 bytes each. A member may go on coordinating writes which never reach this
 * node, and cannot tell it so: one that others hear and this node does not, or
 * one that does not hear this node. As long as there is one this node is cut
 * off, and trusts none of its partitions. */

#define BEAT_ANSWER (8 + 8 * SAIDS)

/* Sends a heartbeat, and with it the missed bits. */
static void beat_send(struct worker *w, unsigned number) {
    struct peer *peer = &w->node->peers[number];
    size_t n = (w->node->partitions + 63) / 64;
    uint8_t body[8 + PARTITIONS_MAX / 8];

    put64(body, atomic_load(&w->node->parting) ? 0 : clock_now(w->node));
    atomic_store(&peer->missed_any, false);
    for (size_t i = 0; i < n; i++)
        put64(body + 8 + 8 * i, atomic_exchange(&peer->missed[i], 0));
    if (!link_call(w, &w->beats[number], number, "heartbeat",
                   (struct slice){body, 8 + 8 * n}, NULL, 0))
        beat_answered(w, number, 0, 0, (struct slice){NULL, 0});
}

/* A heartbeat has been answered, or not. The peer was there when it was sent,
   at least. If not, which missed bits it had is not known any more: the peer is
   told of all. Who is told that he is no member has left, if he was one by the
   ring that he spoke by: else he is about to join, under a number that others
   may not know yet. */
static void beat_answered(struct worker *w, unsigned number, uint64_t since,
                          unsigned status, struct slice body) {
    struct peer *peer = &w->node->peers[number];
    bool member = w->view != NULL && w->view->me < w->view->count;

    if (status == 410 && member && since > w->view_at &&
        !atomic_exchange(&w->node->left, true))
        wake_write(w->node->etcd_wake[1]);
    if (status != 200 || body.n != BEAT_ANSWER) {
        for (unsigned i = 0; i < PARTITIONS_MAX / 64; i++)
            atomic_store(&peer->missed[i], UINT64_MAX);
        atomic_store(&peer->missed_any, true);
        return;
    }
    clock_see(w->node, get64(body.p));
    atomic_store(&peer->behind,
                 get64(body.p) + VERSION_AHEAD < VERSION_TIME(now_us()));
    for (size_t i = 0; i < SAIDS; i++)
        atomic_store(&peer->said[i], get64(body.p + 8 + 8 * i));
    if (since > atomic_load(&peer->stopped))
        atomic_store(&peer->heard, since);
}

/* A peer's heartbeat has arrived. */
static void beat_body(struct op *op) {
    struct node *node = op->w->node;
    uint8_t answer[BEAT_ANSWER];

    if (op->rec.n != 8 + (node->partitions + 63) / 64 * 8) {
        answer_error(op, 400, "not a heartbeat");
        return;
    }
    if (get64(op->rec.p) == 0) { /* it stops */
        atomic_store(&node->peers[op->intro[3]].stopped, op->w->now);
        atomic_store(&node->peers[op->intro[3]].heard, 0);
    }
    clock_see(node, get64(op->rec.p));
    for (unsigned i = 0; i < node->partitions; i++)
        if (op->rec.p[8 + i / 8] >> i % 8 & 1)
            doubt_part(node, i);
    put64(answer, clock_now(node));
    for (size_t i = 0; i < SAIDS; i++)
        put64(answer + 8 + 8 * i,
              atomic_load(&node->peers[self_number(node)].said[i]));
    replica_says(op, 200, answer, sizeof answer);
}

/* Looks who is there: a link that is lost, or back, is a cause of doubt. Where
   numbers are 64 apart two members share a bit, and the loss of one of the two
   is seen by these two alone. */
static void peers_watch(struct worker *w) {
    struct node *node = w->node;
    uint64_t mine = 0, any = 0, all = UINT64_MAX, me = 0;
    bool cut;

    for (unsigned i = 0; i < w->view->count; i++) {
        const struct member *m = &w->view->member[i];
        struct peer *peer = &node->peers[m->number];
        bool alive = member_alive(node, m->number);
        uint64_t bit = UINT64_C(1) << m->number % 64;

        mine |= alive ? bit : 0;
        if (i == w->view->me) {
            me = bit;
            continue;
        }
        if (alive) {
            any |= atomic_load(&peer->said[SAID_HEARS]);
            all &= atomic_load(&peer->said[SAID_HEARS]);
        }
        if (alive == peer->was_alive)
            continue;
        say("info", "%s %s", m->name, alive ? "is heard" : "is not heard");
        doubt_all(node, alive ? "a link is there" : "a link is lost");
        peer->was_alive = alive;
    }
    atomic_store(&node->peers[self_number(node)].said[SAID_HEARS], mine);
    cut = (any & ~mine) != 0 || (me & ~all) != 0 ||
          (any != 0 && atomic_load(&node->parting));
    if (!cut && atomic_load(&node->cut)) /* before it is trusted again */
        doubt_all(node, "this node was cut off");
    atomic_store(&node->cut, cut);
}

/* What a worker does for its links each tick; the first one also sends the
   heartbeats, at once to who has missed something or is not heard yet. */
static void worker_beat(struct worker *w) {
    struct node *node = w->node;
    bool due = w->now >= w->beat_at;

    if (w->view == NULL || !atomic_load(&node->loaded) ||
        self_number(node) == 0)
        return;
    if (w->index == 0)
        peers_watch(w);
    for (size_t i = 0; i < w->count; i++) /* to former members, too */
        if (w->conns[i]->kind == CONN_LINK)
            link_check(w, w->conns[i]->link);
    for (unsigned i = 0; i < w->view->count; i++) {
        unsigned number = w->view->member[i].number;

        if (w->index == 0 && i != w->view->me &&
            (due || (member_alive(node, number)
                         ? atomic_load(&node->peers[number].missed_any)
                         : link_oldest(&w->beats[number]) == NULL)))
            beat_send(w, number);
    }
    if (due)
        w->beat_at = w->now + BEAT_MS;
}

/* ---------------------------------------------------------------- Repair
 *
 * A round of repair brings one partition up to date. It ends the doubt about it
 * if a majority of the owners, this one among them, has taken part. One thread
 * makes the rounds, in blocking code; the threads that answer it never wait, or
 * two nodes that ask each other would wait for ever. First the owners' digests
 * are compared: a partition is cut into 256 buckets by fingerprint, and the sum
 * of a bucket adds up a hash of each key's fingerprint and version. Between
 * replicas that are equal this is all. Otherwise each owner is asked for a list
 * of the buckets in which it differs; then it is decided what is missing here,
 * and that is pulled. In these calls a number has 8 bytes:
 *
 *     digest  partition, floor, cutoff
 *             answers what its word is worth, entries, sum of all buckets, the
 *             highest version that it has promised, for any key
 *     list    partition, cutoff, first and last bucket, the asker's sum of each
 *             answers what its word is worth; a bit for each bucket, set if it
 *             differs, 32 bytes; the entries of these, in order
 *     pull    partition, fingerprints in order
 *             answers what its word is worth, how many of the fingerprints were
 *             looked up, and their records
 *
 * A tombstone below the cutoff counts as absent, so that owners which dropped
 * it at different times are equal; lists name it all the same, or an owner with
 * an older value would keep that. The asker sends the cutoff: two clocks would
 * make two of it, and a difference where there is none. A replica that does not
 * count yet, since it is new or recovers, asks with a cutoff of 0. It takes old
 * tombstones, too: soon it may be in the majority that is to know of a delete,
 * while an owner that was away has the value. Only where all owners are heard
 * and well, and none has a value, it needs none.
 *
 * After an unclean start a replica may have lost what it had accepted, and has
 * forgotten what it had promised. It must not be counted until it has made that
 * good: it is recovering. It raises the floors of so many other owners above
 * its ceiling that there is no majority without one of them: from then on no
 * operation that counted on it can still succeed unseen. Then it takes over
 * what these owners hold.
 */

/* What the word of a replica is worth in a round, best first. Up to
   WORD_UNSYNCED it counts for a majority. */
enum word {
    WORD_GOOD,
    WORD_UNSYNCED, /* but a loss of power could undo an old delete */
    WORD_LAME,     /* it is recovering */
    WORD_HIDES,    /* damage may hide something */
    WORD_NONE      /* it did not answer */
};

#define PULL_MOST 4096 /* fingerprints at once; their records take pages */

#define LIST_ENTRY 17 /* fingerprint, version, and a byte of marks */
#define LIST_TOMB  1
#define LIST_BAD   2 /* it is rotten: nobody counts on it */

static void buf_word(struct buf *b, uint64_t x) {
    put64(buf_grow(b, 8), x);
}

/*
 * The sum of each bucket, and of all. Tombstones from the cutoff on are added
 * here, which takes a look at each entry, but only where there are some. What
 * is rotten has a sum of its own: to leave it out would hide it behind a
 * tombstone that counts as absent, and it would never be healed. Under the
 * partition's lock.
 */
static uint64_t part_digest(const struct node *node, const struct part *part,
                            uint64_t cutoff, uint64_t sums[BUCKETS]) {
    const struct log *log = &part->log;
    bool plain = log->used == log->keys && log->rotten == 0;
    uint64_t all = 0;

    memcpy(sums, log->sums, sizeof log->sums);
    for (uint32_t at = 0; !plain && at < log->total; at++) {
        struct entry e = log->table[at];
        uint64_t *sum = &sums[bucket_of(node, e.fingerprint)];

        if (e.version == 0)
            continue;
        if (entry_tombstone(&e) && e.version >= cutoff)
            *sum += entry_sum(&e);
        if (entry_damaged(&e)) {
            e.version = ~e.version;
            *sum += entry_sum(&e);
        }
    }
    for (unsigned i = 0; i < BUCKETS; i++)
        all += sums[i];
    return all;
}

/* Whether a bucket's bit is set. */
static bool bucket_in(const uint8_t *map, unsigned bucket) {
    return map[bucket / 8] >> bucket % 8 & 1;
}

/* Appends the entries of those buckets from first to last that are in a map.
   Under the partition's lock. */
static void list_add(const struct node *node, const struct part *part,
                     unsigned first, unsigned last, const uint8_t *map,
                     struct buf *list) {
    const struct log *log = &part->log;
    uint32_t at =
        table_seek(node, log, bucket_print(node, part->number, first));

    for (; at < log->total; at++) {
        const struct entry *e = &log->table[at];
        unsigned bucket = bucket_of(node, e->fingerprint);

        if (e->version == 0)
            continue;
        if (bucket > last)
            break;
        if (!bucket_in(map, bucket))
            continue;
        buf_word(list, e->fingerprint);
        buf_word(list, e->version);
        *buf_grow(list, 1) = (uint8_t)((entry_tombstone(e) ? LIST_TOMB : 0) |
                                       (entry_damaged(e) ? LIST_BAD : 0));
    }
}

/* What this replica's own word is worth. Under the partition's lock. */
static enum word part_word(const struct part *part) {
    return part->unsure > 0   ? WORD_HIDES
           : part->recovering ? WORD_LAME
                              : WORD_GOOD;
}

/* What it is worth in a round: less while a tombstone that is old may not be on
   the disk. A loss of power would bring back what it covers, so no owner may
   drop its own until then; such a log is synced soon, with -sync none, too. An
   asker without a cutoff (0) has no clock to go by: then one is old as soon as
   it may not come first-hand any more. */
static enum word part_says(struct node *node, struct part *part,
                           uint64_t cutoff) {
    const struct log *log = &part->log;
    uint64_t early =
        VERSION_TIME(now_us() - FIRST_HAND_OLD * UINT64_C(1000000));
    enum word word = part_word(part);
    bool looks = log->synced < log->end && log->used > log->keys;

    for (uint32_t at = 0; looks && word == WORD_GOOD && at < log->total; at++) {
        const struct entry *e = &log->table[at];

        if (entry_tombstone(e) && e->version < (cutoff > 0 ? cutoff : early) &&
            entry_offset(e) >= log->synced)
            word = WORD_UNSYNCED;
    }
    if (word == WORD_UNSYNCED && !part->dead)
        pool_enqueue(node, part);
    return word;
}

/* The partition that a call is about; NULL: the call is refused. */
static struct part *ask_part(struct op *op, bool good) {
    struct slice ask = buf_slice(&op->rec);

    if (good && get64(ask.p) < op->w->node->partitions)
        return &op->w->node->parts[get64(ask.p)];
    answer_error(op, 400, "not a call that repair makes");
    return NULL;
}

/* Whether all workers go by the ring that this one goes by. */
static bool workers_agree(const struct worker *w) {
    const struct node *node = w->node;

    for (unsigned i = 0; i < node->worker_count; i++)
        if (atomic_load(&node->workers[i].epoch) != w->view->epoch)
            return false;
    return true;
}

/* Answers a digest. A floor is a promise: it has to be below the ceiling, which
   outlives the process. It is raised under the same lock under which the sums
   are taken, or a write could slip in between that is in neither. Nor may one
   by the ring before: what a new owner is told must be all that can still come
   of it, so no worker may go by that any more. */
static void digest_body(struct op *op) {
    struct node *node = op->w->node;
    struct slice ask = buf_slice(&op->rec);
    struct part *part = ask_part(op, ask.n == 24);
    uint64_t floor = part != NULL ? get64(ask.p + 8) : 0, sums[BUCKETS];
    struct buf answer = {0};

    if (part == NULL)
        return;
    if (!workers_agree(op->w)) {
        op_due(op, peer_body);
        return;
    }
    clock_see(node, floor); /* first: the ceiling follows the clock */
    if (clock_too_far(floor) || !ceiling_allows(node, floor)) {
        answer_error(op, 503, "the floor is above the ceiling here: try again");
        return;
    }
    pthread_mutex_lock(&part->lock);
    if (floor > part->floor)
        part->floor = floor;
    buf_word(&answer, part_says(node, part, get64(ask.p + 16)));
    buf_word(&answer, part->log.used);
    buf_word(&answer, part_digest(node, part, get64(ask.p + 16), sums));
    buf_word(&answer, promise_highest(part));
    pthread_mutex_unlock(&part->lock);
    replica_says(op, 200, answer.p, answer.n);
    buf_free(&answer);
}

/* Answers a list. */
static void list_body(struct op *op) {
    struct slice ask = buf_slice(&op->rec);
    bool good = ask.n >= 40 && get64(ask.p + 16) <= get64(ask.p + 24) &&
                get64(ask.p + 24) < BUCKETS &&
                ask.n == 40 + 8 * (get64(ask.p + 24) - get64(ask.p + 16));
    struct part *part = ask_part(op, good);
    uint8_t head[8 + BUCKETS / 8] = {0}, *map = head + 8;
    uint64_t sums[BUCKETS];
    struct buf answer = {0};
    unsigned first, last;

    if (part == NULL)
        return;
    first = (unsigned)get64(ask.p + 16);
    last = (unsigned)get64(ask.p + 24);
    pthread_mutex_lock(&part->lock);
    put64(head, part_says(op->w->node, part, get64(ask.p + 8)));
    part_digest(op->w->node, part, get64(ask.p + 8), sums);
    for (unsigned i = first; i <= last; i++)
        if (sums[i] != get64(ask.p + 32 + 8 * (i - first)))
            map[i / 8] |= (uint8_t)(1u << i % 8);
    buf_add(&answer, head, sizeof head);
    list_add(op->w->node, part, first, last, map, &answer);
    pthread_mutex_unlock(&part->lock);
    replica_says(op, 200, answer.p, answer.n);
    buf_free(&answer);
}

/* Appends the records that have a fingerprint, of whatever keys. false: one is
   damaged, and left out. */
static bool pull_print(struct op *op, struct part *part, uint64_t print,
                       struct buf *answer) {
    struct node *node = op->w->node;
    struct buf *record = &op->w->record;
    struct file *file;
    struct entry e;
    struct record r;
    bool good = true, unsure;

    for (unsigned n = 0; part_place(node, part, print, n, &e, &file, &unsure);
         n++) {
        if (entry_read(file, &e, SIZE_MAX, record, &r)) {
            record_seal(record->p, 0);
            buf_add(answer, record->p, record->n);
        } else {
            part_damaged(node, part, &e);
            good = false;
        }
        file_release(file);
    }
    return good;
}

/* Answers a pull: at least one fingerprint, and about a page of records. What
   is damaged here must be had from another owner. */
static void pull_body(struct op *op) {
    struct slice ask = buf_slice(&op->rec);
    struct part *part = ask_part(op, ask.n >= 16 && ask.n % 8 == 0);
    struct buf answer = {0};
    size_t at = 8;

    if (part == NULL)
        return;
    buf_zero(&answer, 16);
    pthread_mutex_lock(&part->lock);
    put64(answer.p, part_word(part));
    pthread_mutex_unlock(&part->lock);
    for (; at < ask.n && answer.n < PAGE_BYTES; at += 8)
        if (!pull_print(op, part, get64(ask.p + at), &answer))
            put64(answer.p, WORD_HIDES);
    put64(answer.p + 8, at / 8 - 1);
    buf_reset(&op->w->record, 2 * READ_SIZE);
    replica_says(op, 200, answer.p, answer.n);
    buf_free(&answer);
}

/* ---- The asker. */

/* A record to be pulled. */
struct want {
    uint64_t fingerprint;
    uint64_t version; /* as it was listed */
    enum how how;     /* that version may come */
};

/* Another owner, in a round. */
struct other {
    const struct member *m;
    enum word word; /* the worst that it said */
    uint64_t entries;
    bool differs;
    uint8_t map[BUCKETS / 8]; /* buckets of the range in which it differs */
    struct slice list;        /* what it has in these, in its caller's reply */
    struct buf wants;         /* struct want each, to be pulled from it */
};

/* What a replica has of one fingerprint. */
struct claim {
    unsigned n;       /* entries; more than 1: keys share it */
    uint64_t version; /* of the newest, 0: none */
    uint64_t sum;     /* of all versions */
    unsigned marks;
};

/* What the repair thread has: a caller for each member it has spoken to, what
   it did in this pass, and the round under way. */
struct repair {
    struct node *node;
    struct view *view;
    struct caller *callers[MEMBERS_MAX + 1]; /* by number; [0]: for settling,
                                                while another's reply is used */
    uint64_t rest;                           /* ms, before the next call */
    struct buf fields, ask;                  /* of a call */
    uint64_t records, bytes, settled;
    uint64_t began, tell_at; /* ms: of this pass; the next line about it */
    uint64_t change, moved;  /* epoch of a change, bytes taken over in it */
    uint64_t change_at;      /* ms: when it was first seen */
    struct part *part;
    struct other others[REPLICAS_MAX];
    unsigned count;    /* of them */
    unsigned owners;   /* of which a majority is wanted */
    bool joins;        /* this node is none of these, but will be an owner */
    uint64_t promised; /* by others, at most */
    uint64_t floor;    /* for the others; 0: this replica is not recovering */
    uint64_t cutoff;   /* tombstones below it are old */
    uint64_t entries;  /* here */
    uint64_t sums[BUCKETS];
    struct buf mine; /* a list */
    bool whole;      /* all others took part, some maybe recovering */
    bool failed;    /* something is still missing here, or (leaves) elsewhere */
    bool needed;    /* some tombstone is, by another owner or here */
    bool leaves;    /* this node is no owner any more, and takes nothing: */
    uint64_t alone; /* of so many keys no owner has what is here */
    /* Partitions: to be taken over, and still left of these; in doubt, and
       recovering. See repair_count(). */
    unsigned gains, moving, doubted, recovering;
};

/* Calls a member, not faster than -moveRate: the rest that an answer costs is
   before the next call, since what has come may get old. slot: of the caller.
   true: the answer, of that size at least, is in its reply. */
static bool repair_call(struct repair *repair, const struct member *m,
                        unsigned slot, const char *path, size_t least) {
    struct node *node = repair->node;
    uint64_t rate = node->flags.move_rate;
    struct caller *k = repair->callers[slot];
    bool good;

    node_rest(node, repair->rest);
    repair->rest = 0;
    if (k == NULL) {
        k = repair->callers[slot] = memory(1, sizeof *k);
        k->fd = -1;
    }
    caller_aim(k, m->host, m->peer_port);
    repair->fields.n = 0;
    intro_text(&repair->fields, node, repair->view, m->number, m->id, m->boot);
    good = caller_call(k, path, buf_string(&repair->fields),
                       buf_slice(&repair->ask), CALL_MS) == 200 &&
           k->reply.n >= least;
    atomic_fetch_add(node->figures.errors, !good);
    if (!good)
        return false;
    repair->bytes += k->reply.n;
    atomic_fetch_add(node->figures.pulled, k->reply.n);
    repair->moved += repair->joins ? k->reply.n : 0;
    repair->rest = rate == 0 ? 0 : k->reply.n * 1000 / rate;
    return true;
}

/* Calls an owner, whose answer begins with what its word is worth and goes on
   with `least` bytes or more, which is what the caller gets. One that does not
   answer well has no part in the round any more: then it is none. */
static struct slice other_call(struct repair *repair, struct other *other,
                               const char *path, size_t least) {
    unsigned number = other->m->number;
    struct slice answer = {0};
    uint64_t word = WORD_NONE;

    if (repair_call(repair, other->m, number, path, 8 + least)) {
        answer = buf_slice(&repair->callers[number]->reply);
        word = get64(answer.p);
    }
    if (word > other->word)
        other->word = word < WORD_NONE ? (enum word)word : WORD_NONE;
    return word < WORD_NONE ? slice_skip(answer, 8) : (struct slice){0};
}

/* Begins a call about the partition of the round. */
static void repair_ask(struct repair *repair) {
    repair->ask.n = 0;
    buf_word(&repair->ask, repair->part->number);
}

/* The cutoff in this round's calls: 0, so that no tombstone is left out of the
   sums, for a replica that does not count yet. */
static uint64_t repair_cutoff(const struct repair *repair) {
    return repair->joins || repair->floor > 0 ? 0 : repair->cutoff;
}

/* Has the key of a record settled which is below the floor here and is not held
   by a majority. To take it as it is would break a promise: an operation that
   counts on the floor here may not have seen the record. It is done by the
   owner that has it: others might find a majority that agrees without it, and
   settle nothing. */
static bool repair_settle(struct repair *repair, const struct other *from,
                          struct slice key) {
    static const uint8_t head[3] = {FORWARD_READ, 0, 0}; /* no conditions */

    repair->ask.n = 0;
    buf_add(&repair->ask, head, sizeof head);
    buf_add(&repair->ask, key.p, key.n);
    return repair_call(repair, from->m, 0, "/_peer/consistent", 0);
}

/* Stores a pulled record; waits for the ceiling. */
static enum verdict repair_accept(struct repair *repair, struct slice record,
                                  const struct record *r, uint64_t print,
                                  enum how how) {
    struct node *node = repair->node;
    enum verdict verdict;

    while (verdict = store_accept(node, repair->part,
                                  (uint8_t *)(uintptr_t)record.p, r, print, how)
                         .verdict,
           verdict == ACCEPT_CEILING && !atomic_load(&node->ended))
        rest_ms(10);
    return verdict;
}

/*
 * Stores pulled records, which come in the order in which they were wanted. One
 * that is newer than it was when listed may not be what a majority holds: the
 * floor counts for it. To settle a key is to have it written by a coordinator,
 * maybe to a majority without this replica: so the record is tried once more,
 * to see if what is held here now is as new. A new owner has all settled that
 * no majority of the old ones holds: together with the one that has it, it
 * would make a majority for what may never have been decided. false: a record
 * is missing or malformed, or cannot be stored.
 */
static bool repair_store(struct repair *repair, const struct other *from,
                         const struct want *want, const struct want *end,
                         struct slice records) {
    struct node *node = repair->node;
    const struct want *now = NULL;
    enum verdict verdict;
    enum how how;
    struct record r;

    for (; records.n > 0; records = slice_skip(records, r.size)) {
        uint64_t print;

        if (!record_parse(records.p, records.n, 0, &r) || r.size > records.n ||
            !record_intact(&r))
            return false;
        print = ring_fingerprint(r.key.p, r.key.n, node->self.hash);
        if (want < end && want->fingerprint == print)
            now = want++;
        if (now == NULL || now->fingerprint != print)
            return false;
        how = r.version == now->version ? now->how : HOW_REPAIR;
        verdict = ACCEPT_FLOOR;
        if (!repair->joins || how == HOW_MAJORITY)
            verdict = repair_accept(repair, records, &r, print, how);
        if (verdict == ACCEPT_FLOOR && repair_settle(repair, from, r.key)) {
            verdict = repair_accept(repair, records, &r, print, HOW_REPAIR);
            repair->settled += verdict != ACCEPT_FLOOR;
        }
        if (verdict != ACCEPT_OK && verdict != ACCEPT_HELD)
            return false;
        repair->records++;
        atomic_fetch_add(node->figures.repaired, 1);
    }
    return want == end;
}

/* Each second of a pass that takes long: how far it is, and how many seconds
   the rest may take. */
static void repair_tell(struct repair *repair) {
    uint64_t now = now_ms(), done = repair->part->number;
    uint64_t left = repair->node->partitions - done;

    if (now < repair->tell_at)
        return;
    repair->tell_at = now + 1000;
    say("info",
        "%s percent=%" PRIu64 " records=%" PRIu64 " bytes=%" PRIu64
        " seconds_left=%" PRIu64,
        repair->joins ? "partitions are taken over" : "repair is at work",
        done * 100 / (done + left), repair->records, repair->bytes,
        (now - repair->began) * left / (done + 1) / 1000);
}

/* Pulls what is wanted from an owner. */
static void repair_pull(struct repair *repair, struct other *other) {
    const struct want *want = (const void *)other->wants.p;
    const struct want *end = want + other->wants.n / sizeof *want;

    while (want < end && !repair->failed) {
        struct slice answer;
        uint64_t n;

        repair_ask(repair);
        for (const struct want *w = want; w < end && w < want + PULL_MOST; w++)
            buf_word(&repair->ask, w->fingerprint);
        answer = other_call(repair, other, "/_peer/pull", 8);
        n = answer.n > 0 ? get64(answer.p) : 0;
        if (n == 0 || n > (uint64_t)(end - want) ||
            !repair_store(repair, other, want, want + n, slice_skip(answer, 8)))
            repair->failed = true;
        else
            want += n;
        repair_tell(repair);
    }
    other->wants.n = 0;
}

/* Takes what a list says of a fingerprint off its front. */
static struct claim claim_take(struct slice *list, uint64_t print) {
    struct claim c = {0};

    for (; list->n >= LIST_ENTRY && get64(list->p) == print;
         *list = slice_skip(*list, LIST_ENTRY)) {
        uint64_t version = get64(list->p + 8);

        if (c.n++ == 0 || version > c.version) {
            c.version = version;
            c.marks = list->p[16];
        }
        c.sum += version;
    }
    return c;
}

/* Whether a claim is of a tombstone that counts as absent, or of nothing. */
static bool claim_absent(const struct repair *repair, const struct claim *c) {
    return c->n == 0 || (c->marks == LIST_TOMB && c->version < repair->cutoff);
}

/* Notes that a record is wanted from an owner. */
static void repair_want(struct other *other, uint64_t print, uint64_t version,
                        enum how how) {
    struct want want = {print, version, how};

    buf_add(&other->wants, &want, sizeof want);
}

/* What follows for an owner from the newest record that anybody has of a
   fingerprint. An owner that lacks it is told so, else it would find out only
   with its own next round. But not while the record is so new that it may still
   be on its way: two replicas under load would keep each other repairing. */
static void other_judge(struct repair *repair, struct other *other,
                        const struct claim *c, const struct claim *newest) {
    uint64_t settled = VERSION_TIME(now_us() - LOST_MS * UINT64_C(1000));
    bool lacks = c->version < newest->version && !(c->marks & LIST_BAD) &&
                 !(claim_absent(repair, c) && claim_absent(repair, newest));

    if (c->marks & LIST_BAD && c->version > newest->version)
        other->word = WORD_HIDES; /* it had one that nobody has whole */
    if (lacks && other->word <= WORD_UNSYNCED && newest->version < settled)
        peer_missed(repair->node, other->m->number, repair->part->number);
}

/* Two keys have one fingerprint, and versions do not tell them apart: what is
   not the same is pulled, all of it, and each key's versions decide. */
static void repair_collide(struct repair *repair, uint64_t print,
                           const struct claim *mine,
                           const struct claim *claims) {
    repair->needed = true;
    for (unsigned i = 0; i < repair->count; i++) {
        struct other *other = &repair->others[i];

        if (claims[i].n == mine->n && claims[i].sum == mine->sum)
            continue;
        if (claims[i].n > 0)
            repair_want(other, print, 0, HOW_REPAIR);
        if (other->word <= WORD_UNSYNCED)
            peer_missed(repair->node, other->m->number, repair->part->number);
    }
}

/* Decides whether a key may go from here: if all owners have that version of it
   or a higher one. If some have, and some do not, none may. */
static void leave_decide(struct repair *repair, const struct claim *mine,
                         const struct claim *claims) {
    unsigned have = 0;

    for (unsigned i = 0; i < repair->count; i++)
        have += mine->n > 1
                    ? claims[i].sum == mine->sum && claims[i].n == mine->n
                    : claims[i].version >= mine->version &&
                          (claims[i].marks & LIST_BAD) == 0;
    if (have == repair->count || claim_absent(repair, mine))
        return;
    repair->failed = repair->failed || have > 0;
    repair->alone += have == 0;
}

/*
 * How a version may come that is newest. What a majority of the owners holds is
 * decided, and no promise stands in its way. A replica that recovers takes what
 * is newest among all owners, too: each has refused, from before it was asked,
 * what this one may have promised and forgotten, so nothing of that can still
 * succeed unseen; and to have it settled could mean to wait for others that
 * recover, and wait for this one. All else is bound by the floor.
 */
static enum how repair_how(const struct repair *repair, unsigned holders) {
    return holders > repair->owners / 2 || (repair->floor > 0 && repair->whole)
               ? HOW_MAJORITY
               : HOW_REPAIR;
}

/* Whether no owner has a value, if so many of those asked are well and have
   none. While a change runs a new owner, who is not asked, may have one: it may
   have missed a delete after it reported. A replica that joins and has lost
   nothing still has each delete that counted on it; one that recovers has not. */
static bool absent_all(const struct repair *repair, unsigned absent) {
    return absent == repair->count && (repair->view->next == NULL ||
                                       (repair->joins && repair->floor == 0));
}

/* Decides about one fingerprint, the first of what is left of the lists; an
   owner whose bucket does not differ has what is here, and no list of it. What
   is old and absent everywhere is left as it is. */
static void repair_decide(struct repair *repair, struct slice *list,
                          uint64_t print) {
    struct claim mine = claim_take(list, print), claims[REPLICAS_MAX];
    struct claim newest = mine;
    unsigned bucket = bucket_of(repair->node, print);
    unsigned holders = 0, absent = 0;
    struct other *from = NULL;
    bool collide = mine.n > 1;

    if (mine.marks & LIST_BAD)
        newest = (struct claim){0};
    for (unsigned i = 0; i < repair->count; i++) {
        struct claim *c = &claims[i];

        *c = mine;
        if (bucket_in(repair->others[i].map, bucket))
            *c = claim_take(&repair->others[i].list, print);
        collide = collide || c->n > 1;
        if (c->n == 0 || c->marks & LIST_BAD || c->version < newest.version)
            continue;
        if (c->version > newest.version) {
            newest = *c;
            holders = 0;
            from = &repair->others[i];
        }
        holders++;
    }
    if (repair->leaves || collide) {
        if (repair->leaves)
            leave_decide(repair, &mine, claims);
        else
            repair_collide(repair, print, &mine, claims);
        return;
    }
    for (unsigned i = 0; i < repair->count; i++) {
        struct other *other = &repair->others[i];
        const struct claim *c = &claims[i];

        other_judge(repair, other, c, &newest);
        absent += other->word == WORD_GOOD && claim_absent(repair, c);
        if (mine.marks & LIST_TOMB && c->n > 0 && !(c->marks & LIST_TOMB) &&
            c->version <= mine.version)
            repair->needed = true;
    }
    if (from == NULL || newest.version < mine.version)
        return;
    if (claim_absent(repair, &newest) && claim_absent(repair, &mine) &&
        (repair_cutoff(repair) > 0 || absent_all(repair, absent)))
        return;
    if (newest.marks & LIST_TOMB)
        repair->needed = true; /* it is new here, whoever else lacks it */
    repair_want(from, print, newest.version, repair_how(repair, holders));
}

/* Goes over lists side by side, and decides about each fingerprint. */
static void repair_merge(struct repair *repair, struct slice list) {
    for (;;) {
        bool any = list.n > 0;
        uint64_t print = any ? get64(list.p) : UINT64_MAX;

        for (unsigned i = 0; i < repair->count; i++) {
            struct slice other = repair->others[i].list;

            if (other.n > 0 && get64(other.p) <= print)
                print = get64(other.p);
            any = any || other.n > 0;
        }
        if (!any)
            return;
        repair_decide(repair, &list, print);
    }
}

/* Asks an owner for the list of a range of buckets. Nothing of it, nor of what
   it says of buckets outside, is left if the answer is not one. */
static void other_list(struct repair *repair, struct other *other,
                       unsigned first, unsigned last) {
    struct slice answer;

    memset(other->map, 0, sizeof other->map);
    other->list.n = 0;
    if (!other->differs || other->word == WORD_NONE)
        return;
    repair_ask(repair);
    buf_word(&repair->ask, repair_cutoff(repair));
    buf_word(&repair->ask, first);
    buf_word(&repair->ask, last);
    for (unsigned i = first; i <= last; i++)
        buf_word(&repair->ask, repair->sums[i]);
    answer = other_call(repair, other, "/_peer/list", sizeof other->map);
    if (answer.n == 0)
        return;
    other->list = slice_skip(answer, sizeof other->map);
    if (other->list.n % LIST_ENTRY == 0) {
        memcpy(other->map, answer.p, sizeof other->map);
    } else {
        other->list.n = 0;
        other->word = WORD_NONE;
    }
}

/* Compares a range of buckets with all owners that differ, and takes over what
   is newer there. What is here is listed last: what arrives meanwhile need not
   be pulled. */
static void repair_range(struct repair *repair, unsigned first, unsigned last) {
    struct part *part = repair->part;
    uint8_t map[BUCKETS / 8] = {0};

    repair->whole = true;
    for (unsigned i = 0; i < repair->count; i++) {
        struct other *other = &repair->others[i];

        other_list(repair, other, first, last);
        for (size_t k = 0; k < sizeof map; k++)
            map[k] |= other->map[k];
        repair->whole = repair->whole && other->word <= WORD_LAME;
    }
    repair->mine.n = 0;
    pthread_mutex_lock(&part->lock);
    list_add(repair->node, part, first, last, map, &repair->mine);
    pthread_mutex_unlock(&part->lock);
    repair_merge(repair, buf_slice(&repair->mine));
    for (unsigned i = 0; i < repair->count; i++)
        repair_pull(repair, &repair->others[i]);
}

/* Asks an owner for its digest, and raises its floor. */
static void other_digest(struct repair *repair, struct other *other,
                         uint64_t mine) {
    struct slice answer;

    repair_ask(repair);
    buf_word(&repair->ask, repair->floor);
    buf_word(&repair->ask, repair_cutoff(repair));
    answer = other_call(repair, other, "/_peer/digest", 24);
    if (answer.n == 0)
        return;
    other->entries = get64(answer.p);
    other->differs = get64(answer.p + 8) != mine;
    if (get64(answer.p + 16) > repair->promised)
        repair->promised = get64(answer.p + 16);
}

/* A new owner takes over what the old ones have promised, before it has any of
   their records: in a majority it may stand for one of them, and would store
   what that one has refused. */
static bool repair_promise(struct repair *repair) {
    struct node *node = repair->node;
    struct part *part = repair->part;

    clock_see(node, repair->promised);
    while (!ceiling_allows(node, repair->promised))
        if (clock_too_far(repair->promised) || atomic_load(&node->ended))
            return false;
        else
            rest_ms(10);
    pthread_mutex_lock(&part->lock);
    if (repair->promised > part->floor)
        part->floor = repair->promised;
    pthread_mutex_unlock(&part->lock);
    return true;
}

/* Whether all other owners take part in the round, and none says worse. */
static bool others_say(const struct repair *repair, enum word worst) {
    for (unsigned i = 0; i < repair->count; i++)
        if (repair->others[i].word > worst)
            return false;
    return true;
}

/* Compares the partition with its other owners, and takes over what is newer
   there: first the digests of all, since their floors are to be raised before
   anything is decided; then ranges of buckets of which a list is not too long.
   mine: the sum of all buckets here. */
static void repair_compare(struct repair *repair, uint64_t mine) {
    uint64_t most = repair->entries;
    unsigned step = 1;
    bool differs = false;

    for (unsigned i = 0; i < repair->count; i++) {
        struct other *other = &repair->others[i];

        if (other->word != WORD_NONE)
            other_digest(repair, other, mine);
        differs = differs || other->differs;
        most = other->entries > most ? other->entries : most;
    }
    repair->failed = (repair->joins && !repair_promise(repair)) ||
                     (repair->leaves && !others_say(repair, WORD_UNSYNCED));
    if (most < BUCKETS * LIST_MOST)
        step =
            most > LIST_MOST ? BUCKETS * LIST_MOST / (unsigned)most : BUCKETS;
    for (unsigned first = 0; differs && first < BUCKETS && !repair->failed;
         first += step)
        repair_range(repair, first,
                     (first + step < BUCKETS ? first + step : BUCKETS) - 1);
}

/* Whether enough owners took part in the round. */
static bool repair_enough(const struct repair *repair) {
    unsigned good = 0, lame = 0, need = repair->owners / 2; /* and this one */

    for (unsigned i = 0; i < repair->count; i++) {
        good += repair->others[i].word <= WORD_UNSYNCED;
        lame += repair->others[i].word == WORD_LAME;
    }
    if (repair->joins) { /* this one does not count */
        need = repair->owners / 2 + 1;
    } else if (repair->floor > 0) { /* no majority may be without one of them */
        need = (repair->owners + 1) / 2;
        if (lame > 0 || need > repair->count)
            need = repair->count;
        good += lame;
    }
    return good >= need;
}

/* Begins a round: who takes part in it. While a change runs that are the owners
   by the ring in force, for the new ones, too. */
static void repair_others(struct repair *repair, struct part *part) {
    const struct view *view = repair->view;
    unsigned owners[OWNERS_MAX];
    unsigned of = view_owns(view, part->number, self_number(repair->node));
    uint64_t groups[GROUPS];

    view_owners(view, part->number, owners, groups);
    repair->part = part;
    repair->owners = bits_count(groups[GROUP_OLD]);
    repair->count = 0;
    repair->joins = of == OWNS_NEW;
    repair->leaves = of == 0;
    repair->promised = repair->alone = 0;
    repair->failed = repair->needed = false;
    repair->cutoff = VERSION_TIME(now_us() - TOMBSTONE_OLD * UINT64_C(1000000));
    for (unsigned i = 0; i < repair->owners; i++) {
        struct other *other = &repair->others[repair->count];
        struct buf wants = other->wants;

        if (owners[i] == view->me)
            continue;
        *other = (struct other){
            .m = &view->member[owners[i]], .word = WORD_GOOD, .wants = wants};
        if (!member_alive(repair->node, other->m->number))
            other->word = WORD_NONE;
        repair->count++;
    }
}

/* How long to rest after a round that failed, and some before it: what hinders
   it may last, and each costs as much as the first. */
static uint64_t again_ms(unsigned failures) {
    if (failures < 8)
        return 0;
    return failures < 14 ? UINT64_C(100) << (failures - 8) : 5000;
}

/* One round about one partition. How many causes of doubt there were before. */
static uint64_t repair_round(struct repair *repair, struct part *part) {
    const struct node *node = repair->node;
    uint64_t doubts, mine;

    repair_others(repair, part);
    pthread_mutex_lock(&part->lock);
    part_droppable(part, 0); /* this round may bring tombstones that others
                                need, and only its end will tell */
    doubts = part->doubts;
    repair->floor =
        part->recovering && !repair->leaves ? node->begin_ceiling + 1 : 0;
    repair->entries = part->log.used;
    mine = part_digest(node, part, repair_cutoff(repair), repair->sums);
    pthread_mutex_unlock(&part->lock);
    repair_compare(repair, mine);
    return doubts;
}

/* A round that ends the doubt which there was before, if enough owners took
   part in it, and nothing is missing here any more. Whether that is so. */
static bool repair_part(struct repair *repair, struct part *part) {
    struct node *node = repair->node;
    uint64_t doubts = repair_round(repair, part);
    bool good = !repair->failed && repair_enough(repair);

    pthread_mutex_lock(&part->lock);
    if (good && others_say(repair, WORD_GOOD) && !repair->needed &&
        part_says(node, part, repair->cutoff) == WORD_GOOD &&
        repair->view->next == NULL) /* else a new owner may need them */
        part_droppable(part, repair->cutoff);
    part->round_at = now_ms() + jitter(ROUND_MS);
    part->failures = good || part->failed != doubts ? 0 : part->failures + 1;
    part->failed = good ? 0 : doubts;
    part->again_at = now_ms() + again_ms(part->failures);
    if (good) {
        part->cleared = doubts;
        if (repair->floor > 0) /* else a new ring has it recover since then */
            part->recovering = false;
        part->agreed = repair->view->epoch;
    }
    if (good && repair->count > 0) {
        part->rewrite = part->rewrite || part->unsure > 0;
        part->unsure = 0;
    }
    pthread_mutex_unlock(&part->lock);
    atomic_fetch_add(&node->figures.rounds[!good], 1);
    repair_tell(repair);
    return good;
}

#define LEAVE_MS 2000 /* until a partition that could not go is looked at */

/*
 * This node is no owner of a partition any more. What it has of it goes once
 * each owner has, of each key, that version or a higher one. A key that all of
 * them lack, or have older, was never acknowledged, or its tombstone is gone by
 * now: when they took over they had all that was. Not so where a node was
 * forced out, and took over nothing: so a log with such keys stays in trash/.
 * Where some have it and some have not yet, the partition stays as it is; so it
 * does while another change runs.
 */
static void repair_leave(struct repair *repair, struct part *part) {
    const struct view *view = repair->view;
    bool empty;

    pthread_mutex_lock(&part->lock);
    empty = part->log.end == LOG_HEADER || now_ms() < part->again_at;
    pthread_mutex_unlock(&part->lock);
    if (empty || view->next != NULL || view->me == view->count)
        return;
    part->again_at = now_ms() + jitter(LEAVE_MS);
    repair_round(repair, part);
    if (!repair->failed &&
        others_say(repair, WORD_UNSYNCED) && /* its sync is theirs to see to */
        part_restart(repair->node, part, view->epoch, repair->alone == 0) &&
        repair->alone > 0)
        say("warning",
            "the log of a former partition stays in trash/: it has keys that "
            "no owner has, partition=%u keys=%" PRIu64,
            part->number, repair->alone);
}

/* Has the heartbeats tell how far this node is with the partitions that the
   next ring gives it. */
static void repair_progress(const struct repair *repair) {
    struct node *node = repair->node;
    struct peer *me = &node->peers[self_number(node)];

    atomic_store(&me->said[SAID_MOVING], repair->moving);
    atomic_store(&me->said[SAID_GAINS], repair->gains);
    atomic_store(&me->said[SAID_MOVED], repair->moved);
    atomic_store(&me->said[SAID_SECONDS],
                 (now_ms() - repair->change_at) / 1000);
}

/* Counts this node's partitions, and what is to be done about them; has the
   heartbeats tell of it, but for the doubts. */
static void repair_count(struct repair *repair) {
    struct node *node = repair->node;
    const struct view *view = repair->view;
    unsigned number = self_number(node), owned = 0;
    struct peer *me = &node->peers[number];
    uint64_t keys = 0, bytes = 0;

    if (repair->change != view->epoch) {
        repair->change = view->epoch;
        repair->change_at = now_ms();
        repair->moved = 0;
    }
    repair->gains = repair->moving = repair->doubted = repair->recovering = 0;
    for (unsigned i = 0; i < node->partitions; i++) {
        struct part *part = &node->parts[i];
        bool takes = view_takes(view, i, number);

        if (!view_owns(view, i, number))
            continue;
        pthread_mutex_lock(&part->lock);
        repair->doubted += part->doubts != part->cleared || part->recovering;
        repair->recovering += part->recovering;
        repair->moving += takes && (part->agreed != view->epoch || part->dead);
        keys += part->log.keys;
        bytes += part->log.bytes;
        pthread_mutex_unlock(&part->lock);
        repair->gains += takes;
        owned++;
    }
    atomic_store(&me->said[SAID_OWNED], owned);
    atomic_store(&me->said[SAID_KEYS], keys);
    atomic_store(&me->said[SAID_BYTES], bytes);
    repair_progress(repair);
}

/* When this node has taken over all that the next ring gives it, and has it on
   the disk, it says so in etcd, with its boot number: so a process that starts
   anew takes that back. */
static void repair_report(struct repair *repair) {
    struct node *node = repair->node;
    const struct view *view = repair->view;

    repair_count(repair);
    if (repair->gains == 0 || repair->moving > 0 ||
        atomic_load(&node->report) == view->epoch)
        return;
    for (unsigned i = 0; i < node->partitions; i++)
        if (view_takes(view, i, self_number(node))) {
            sync_now(node, &node->parts[i]);
            if (node->parts[i].dead)
                return;
        }
    say("info", "taken over partitions=%u epoch=%" PRIu64, repair->gains,
        view->epoch);
    atomic_store(&node->report, view->epoch);
    wake_write(node->etcd_wake[1]);
}

/* Goes over all partitions owned here and repairs those in doubt, and those
   whose time has come. How many are left in doubt. */
static unsigned repair_all(struct repair *repair) {
    struct node *node = repair->node;
    unsigned number = self_number(node), left = 0;
    struct peer *me = &node->peers[number];
    const struct view *view = repair->view;

    repair_count(repair);
    if (repair->recovering == 0)
        atomic_store(&node->standing, STANDING_SOUND);
    if (node->unclean && repair->recovering == 0) {
        node->unclean = false; /* from now on a kill -9 is one */
        mark_make(node);
    } else if (repair->recovering > 0) {
        node->unclean = true; /* a partition may come that has to recover */
    }
    for (unsigned i = 0; i < node->partitions && !atomic_load(&node->ended);
         i++) {
        struct part *part = &node->parts[i];
        bool doubt, due, was, takes = view_takes(view, i, number);

        if (view_owns(view, i, number) == 0) {
            repair_leave(repair, part);
            continue;
        }
        pthread_mutex_lock(&part->lock);
        was = doubt = part->doubts != part->cleared || part->recovering ||
                      (takes && part->agreed != view->epoch);
        due = (doubt &&
               (now_ms() >= part->again_at || part->failed != part->doubts)) ||
              now_ms() >= part->round_at;
        pthread_mutex_unlock(&part->lock);
        if (due)
            doubt = !repair_part(repair, part) && doubt;
        if (takes && was && !doubt && repair->moving > 0) {
            repair->moving--;
            repair_progress(repair);
        }
        left += doubt;
        repair->doubted -= was && repair->doubted > 0;
        atomic_store(&me->said[SAID_DOUBT], repair->doubted + left);
    }
    atomic_store(&me->said[SAID_DOUBT], left);
    repair_report(repair);
    return left;
}

/* The repair thread: a pass a second, at once when there is new doubt, and soon
   after one that could not end it. */
static void *repair_run(void *arg) {
    struct node *node = arg;
    struct repair *repair = node->repair = memory(1, sizeof *repair);
    struct pollfd poke = {node->repair_wake[0], POLLIN, 0};
    unsigned before, doubted = 1;

    repair->node = node;
    while (!atomic_load(&node->ended)) {
        repair->view = view_hold(node);
        repair->records = repair->bytes = repair->settled = 0;
        repair->began = now_ms();
        repair->tell_at = repair->began + 1000;
        before = doubted;
        doubted = repair_all(repair);
        if (repair->records > 0 || (doubted == 0 && before > 0))
            say("info",
                "repair records=%" PRIu64 " bytes=%" PRIu64 " settled=%" PRIu64
                " partitions_in_doubt=%u",
                repair->records, repair->bytes, repair->settled, doubted);
        view_release(repair->view);
        poll(&poke, 1, doubted > 0 ? 200 : 1000);
        rest_ms(TICK_MS); /* causes come in swarms */
        wake_drain(poke.fd);
    }
    return NULL;
}

/* ------------------------------------------------------------ Membership
 *
 * Nodes join, leave and take the place of others while all go on. A change runs
 * in two epochs, so that no majority by the old ring and none by the new one
 * can be without an owner in common. In the first, joint epoch the old owners'
 * majority and the new owners' are both wanted, for all but plain reads; the
 * new owners take over what the old ones have, which is Repair's work. When all
 * of these have reported that, the second epoch begins, by the new ring alone.
 * Each step is a transaction in etcd that fails if another one was quicker, and
 * any member makes it that sees it due. One change runs at a time.
 *
 * So there is no leader, and no plan but what etcd holds: a node looks at all
 * of that, again and again, and does the one thing that is due.
 *
 *     etcd_look         keeps the lease, and steps until the ring is obeyed
 *       etcd_step       reads all that etcd holds, and does one of these:
 *         etcd_tell     says that this node is there
 *         etcd_claim    makes the first ring, joins, or claims its place
 *         ring_obey     keeps the ring on disk, and puts it in force;
 *           etcd_tend   then reports, takes a change's next step, removes
 */

/* ---- Whose directory this is.
 *
 * A member is a data directory, known by its id; its name says only whom it may
 * replace. What stands in etcd under this node's name may be of this directory,
 * of a later boot of it (then this one is an older copy), or of another one: of
 * a live node, then this one must not start, or of one that is lost, whose
 * place it takes. */

/* Asks a member, by its id and whatever its boot is: the status, or -1.
   *begins: whether the answer begins with a text. */
static int member_ask(const struct node *node, const struct view *view,
                      const struct member *m, const char *path, uint64_t ms,
                      const char *text, bool *begins) {
    struct caller k = {.fd = -1};
    struct buf fields = {0};
    int status;

    caller_aim(&k, m->host, m->peer_port);
    intro_text(&fields, node, view, m->number, m->id, 0);
    status =
        caller_call(&k, path, buf_string(&fields), (struct slice){NULL, 0}, ms);
    *begins = slice_begins(buf_slice(&k.reply), text);
    caller_close(&k);
    buf_free(&fields);
    buf_free(&k.in);
    buf_free(&k.reply);
    return status;
}

/* Whether a member is there, as its address says: whoever answers there and
   does not mind being called by its id is. This node does not call itself,
   which has taken the address of the one that it replaces. */
static bool member_answers(const struct node *node, const struct view *view,
                           const struct member *m) {
    bool wrong, own = m->peer_port == node->peer_port &&
                      strcmp(m->host, node->flags.host) == 0;

    return m->address_n != 0 && !own &&
           member_ask(node, view, m, "/_peer/heartbeat", LOST_MS,
                      &CALLED_WRONG[4], &wrong) > 0 &&
           !wrong;
}

/* Whether this node may go by a view, from etcd or kept (NULL: it is none). If
   it can never, the node stops, as a signal stops it. */
static bool view_check(struct node *node, const struct view *view) {
    const struct flags *f = &node->flags;
    const struct view *now = node->view;
    uint64_t cluster = now != NULL ? now->cluster : node->self.cluster;
    const uint64_t *hash = now != NULL ? now->hash : node->self.hash;
    const struct member *me = view == NULL ? NULL : &view->member[view->me];
    bool here = me != NULL && me->peer_port == node->peer_port &&
                strcmp(me->host, f->host) == 0; /* the port is this process's */
    int code = 1;

    if (view == NULL) {
        say("fatal", "strj_ring in etcd is not a ring of this version");
    } else if (cluster != 0 &&
               (view->cluster != cluster ||
                memcmp(view->hash, hash, sizeof view->hash) != 0)) {
        say("fatal", "this data directory belongs to another cluster");
    } else if ((f->partitions_given && view->partitions != f->partitions) ||
               (f->replicas_given && view->replicas != f->replicas)) {
        say("fatal", "the cluster was made with -partitions %u -replicas %u",
            view->partitions, view->replicas);
    } else if (view->me == view->count) {
        if (f->add || atomic_load(&node->loaded))
            return true; /* it joins; it has left */
        code = 2;
        say("fatal",
            "%s is not a member of this cluster: a node joins with -add",
            f->name);
    } else if (me->id == 0 ||
               (me->id == node->self.id && (node->begun || here))) {
        return true;
    } else if (!node->begun || node->joins) {
        if (here || !member_answers(node, view, me))
            return true; /* it moved, or its directory was lost: then it joins
                            in its place */
        say("fatal",
            "the name %s is that of a live node, at %s: choose another -name",
            me->name, me->peer_at);
    } else {
        say("fatal",
            "the name %s is that of another data directory now (node id "
            "%016" PRIx64 "): this one was replaced while it was away",
            me->name, me->id);
    }
    node->exit_code = code;
    stop_requested = 1;
    return false;
}

/* Moves all logs to trash/, to be begun anew, or ends the start. */
static void logs_discard(struct node *node) {
    int trash = trash_open(node);
    bool good = trash >= 0;
    char name[16];

    node->load_total = 0;
    for (unsigned i = 0; good && i < PARTITIONS_MAX; i++) {
        log_name(name, i, false);
        good =
            renameat(node->dir_fd, name, trash, name) == 0 || errno == ENOENT;
    }
    if (!good || fsync(trash) != 0 || fsync(node->dir_fd) != 0)
        give_up(1, "cannot move the logs to %s/trash: %s", node->flags.data,
                strerror(errno));
    close(trash);
}

/* Whether one of the others, at least, has a directory that is no older copy;
   waits until one says so, or all have said the opposite. */
static bool members_sound(struct node *node, const struct view *view) {
    uint64_t tell = 0;
    unsigned count;
    bool older;

    atomic_store(&node->standing, STANDING_OLDER);
    do {
        count = 1; /* this one is older */
        for (unsigned i = 0; i < view->count && !stop_requested; i++) {
            if (i == view->me ||
                member_ask(node, view, &view->member[i], "/_peer/standing",
                           BEAT_MS, "older", &older) != 200)
                continue;
            if (!older)
                return true;
            count++;
        }
        if (count < view->count && now_ms() >= tell) {
            tell = now_ms() + 10000;
            say("warning",
                "this data directory is an older copy of itself: it waits "
                "until one of the others is there which is not, or all are "
                "that are, asked=%u answers=%u",
                view->count - 1, count - 1);
        }
        rest_ms(count < view->count ? 100 : 0);
    } while (count < view->count && !stop_requested);
    return stop_requested;
}

/*
 * etcd or another member knows of a later boot of this data directory, or the
 * mark in shared memory of a later superblock: it is an older copy, put back.
 * What it holds must not count or spread: what it accepted and promised since
 * then is forgotten, and the others may have dropped the tombstones of keys
 * that it still has. So it begins empty, and recovers, with a ceiling above
 * that of its lost self; before a log goes that is on the disk, or an end here
 * would leave a directory which looks well. Where all nodes have older copies,
 * as of a cluster that was put back, or there is only one, these are what there
 * is. A process that serves already has to be started again: false.
 */
static bool copy_found(struct node *node, const struct view *view) {
    uint64_t ceiling = VERSION_TIME(now_us() + LOST_MS * UINT64_C(1000));
    bool others = view->count > 1 && view->replicas > 1;
    struct identity *self = &node->self;

    if (node->begun) {
        copy_told(node, view->member[view->me].boot);
        return false;
    }
    if (others && members_sound(node, view)) {
        if (stop_requested)
            return false;
        say("warning", "this data directory is an older copy of itself: its "
                       "logs go to trash/, and all is fetched from the others");
        self->logs = 0;
    } else {
        say("warning", "this data directory is an older copy of itself, which "
                       "is used: no node has a later one");
    }
    if (self->ceiling < ceiling)
        self->ceiling = ceiling;
    node->begin_ceiling = self->ceiling;
    node->unclean = true;
    self->clean = 0;
    identity_save(node);
    if (self->logs == 0)
        logs_discard(node);
    if (view->member[view->me].boot > self->boot)
        self->boot = view->member[view->me].boot;
    if (self->older > self->boot)
        self->boot = self->older;
    self->older = 0;
    node->known_boot = self->boot;
    node->older = false;
    return true;
}

/* Puts a view, or none, in the place of the one in force, which the caller owns
   from now on. */
static struct view *view_swap(struct node *node, struct view *view) {
    struct view *old;

    pthread_mutex_lock(&node->view_lock);
    old = node->view;
    node->view = view;
    pthread_mutex_unlock(&node->view_lock);
    atomic_store(&node->epoch, view != NULL ? view->epoch : 0);
    atomic_fetch_add(&node->view_changes, 1);
    return old;
}

/* This directory is to be a new member's, whatever it was before: it gets an id
   of its own, and what it has goes to trash/. By a ring that was kept it is the
   old member still, with that one's number and partitions: none is in force. */
static void joiner_begin(struct node *node, const struct view *view) {
    struct identity *self = &node->self;
    bool others = false; /* a copy of the directory of one that is a member */

    if (node->joins)
        return;
    node->joins = true;
    if (self->cluster == 0 && node->view == NULL)
        return;
    view_release(view_swap(node, NULL));
    atomic_store(&self->number, 0);
    node->etcd->obeyed.n = 0;
    say("warning", "this directory was another member's, or of one that has "
                   "left: its logs go to trash/, and all is fetched anew");
    for (unsigned i = 0; i < view->count; i++)
        others = others || view->member[i].id == self->id;
    if (!others)
        mark_remove(node, self->boot);
    self->id = random_id();
    self->clean = 1;
    self->logs = self->older = 0;
    node->unclean = node->older = false;
    identity_save(node);
    logs_discard(node);
}

/* ---- The ring in force */

/* Keeps the text on disk: whole, or not at all. */
static bool ring_keep(struct node *node, struct slice text) {
    int dir = node->dir_fd;
    int fd =
        openat(dir, "ring.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    bool kept = fd >= 0 && write_at(fd, text.p, text.n, 0) == 0 &&
                fsync(fd) == 0 && renameat(dir, "ring.new", dir, "ring") == 0 &&
                fsync(dir) == 0;

    if (fd >= 0)
        close(fd);
    return kept;
}

/* Puts a view in force; the node owns it from now on. With the first one of
   which it is a member it gets its number, and is in doubt about all. So it is
   when somebody is no member any more: what that one wrote last may have missed
   this node, which takes no word of it from now on. */
static void view_adopt(struct node *node, struct view *view) {
    const struct member *me = &view->member[view->me];
    struct view *old;
    bool gone = false;

    if (view->me < view->count && me->number != self_number(node)) {
        atomic_store(&node->peers[me->number].said[SAID_DOUBT],
                     view->partitions);
        atomic_store(&node->self.number, me->number);
    }
    old = view_swap(node, view);
    for (unsigned i = 0; old != NULL && i < old->count; i++)
        gone = gone || view_member(view, old->member[i].number) == NULL;
    view_release(old);
    if (gone)
        doubt_all(node, "a member is gone");
    workers_wake(node);
    wake_write(node->repair_wake[1]);
}

/*
 * Whether a view may take the place of the one in force. The ring never goes
 * back: not to a lower epoch, and within an epoch not to members that lack an
 * id which was there.
 */
static bool view_newer(const struct view *now, const struct view *next) {
    if (now == NULL || next->epoch > now->epoch)
        return true;
    if (next->epoch < now->epoch || next->count != now->count ||
        next->old != now->old || next->next_count != now->next_count ||
        memcmp(next->next_at, now->next_at, sizeof now->next_at) != 0)
        return false;
    for (unsigned i = 0; i < now->count; i++)
        if (next->member[i].number != now->member[i].number ||
            (now->member[i].id != 0 && next->member[i].id != now->member[i].id))
            return false;
    return true;
}

/* Whether a view (NULL: it is none) is of the same cluster as another. */
static bool view_same(const struct view *now, const struct view *view) {
    return view != NULL && view->cluster == now->cluster &&
           memcmp(view->hash, now->hash, sizeof view->hash) == 0 &&
           view->partitions == now->partitions &&
           view->replicas == now->replicas;
}

/*
 * A view that is to be obeyed makes this node an owner of partitions that it
 * does not own now: what it may have of them, from when it did, is out of date
 * in ways that nobody can tell. So it is where the node owns one by the view in
 * force, and by another epoch of which it knows nothing was no owner between:
 * the next ring, which is to give it to the node, says so. If there was no
 * change before in which to take a partition over, or it did not come to its
 * end, this node recovers, and does so after the next start as well. false: a
 * log could not be moved away.
 */
static bool parts_clear(struct node *node, const struct view *view) {
    unsigned number = self_number(node);
    const struct view *now = node->view;

    for (unsigned i = 0; i < node->partitions; i++) {
        struct part *part = &node->parts[i];
        unsigned was = view_owns(now, i, number);
        unsigned of = view_owns(view, i, number);
        bool anew = of != 0 &&
                    (was == 0 || (of == OWNS_NEW && view->epoch != now->epoch));
        bool late = was == OWNS_NEW && node->reported != now->epoch;
        bool counts = (of & OWNS_OLD) != 0 && (anew || late), empty;

        pthread_mutex_lock(&part->lock);
        empty = part->log.end == LOG_HEADER;
        pthread_mutex_unlock(&part->lock);
        atomic_store(&node->forget, counts);
        while (atomic_load(&node->forget) && !atomic_load(&node->ended))
            rest_ms(1);
        pthread_mutex_lock(&part->lock);
        part->recovering = part->recovering || counts;
        pthread_mutex_unlock(&part->lock);
        if (anew && !empty && !part_restart(node, part, now->epoch, false))
            return false;
    }
    return true;
}

/* Durable, then in force: takes over the ring that was read, whose view is the
   node's from then on, or freed. It is left as it is if it is obeyed already;
   and at the start, if it is a later one than the ring that was kept, until the
   logs are read: parts_clear() may have to move some away. false: the disk does
   not take it. */
static bool ring_obey(struct node *node, struct etcd *e, struct view *view) {
    struct buf text = e->text;
    bool same = slice_equal(buf_slice(&text), buf_slice(&e->obeyed));
    bool loaded = atomic_load(&node->loaded);

    if (!same && !loaded && node->view != NULL &&
        view->epoch > node->view->epoch)
        same = true;
    if (same) {
        view_release(view);
        return true;
    }
    if ((loaded && !parts_clear(node, view)) ||
        !ring_keep(node, buf_slice(&text))) {
        e->trouble = "has a ring that cannot be kept on the disk here";
        view_release(view);
        return false;
    }
    e->text = e->obeyed;
    e->obeyed = text;
    if (node->view == NULL || view->epoch > node->view->epoch) {
        say("info", "the ring is another epoch=%" PRIu64 " members=%u next=%u",
            view->epoch, view->old, view->next_count);
        e->waits_at = now_ms() + JOINER_MS / 2;
    }
    view_adopt(node, view);
    return true;
}

/* A first ring, which the caller owns: of the sidecars that the command line
   names, or of this node alone. Zones are in the nodes' records; hosts stand in
   for those that are not yet. */
static struct view *view_first(const struct node *node, struct slice records) {
    const struct etcd *e = node->etcd;
    bool listed = e != NULL && node->flags.initial_cluster != NULL;
    const struct identity *self = &node->self;
    struct view *view = memory(1, sizeof *view);
    bool alone = self->cluster != 0; /* it brings the data of a node alone */

    atomic_init(&view->refs, 1);
    view->epoch = 1;
    view->cluster = alone ? self->cluster : random_id();
    view->hash[0] = alone ? self->hash[0] : random_id();
    view->hash[1] = alone ? self->hash[1] : random_id();
    view->partitions =
        (unsigned)(alone ? self->partitions : node->flags.partitions);
    view->replicas = (unsigned)(alone ? self->replicas : node->flags.replicas);
    view->count = view->old = view->numbers = listed ? e->count : 1;
    for (unsigned i = 0; i < view->count; i++) {
        struct member *m = &view->member[i];

        m->number = i + 1;
        snprintf(m->name, sizeof m->name, "%s",
                 listed ? e->endpoints[i].name : node->flags.name);
        snprintf(m->host, sizeof m->host, "%s",
                 listed ? e->endpoints[i].host : node->flags.host);
    }
    if (!view_complete(node, view, records))
        die("the first ring cannot be built");
    view->member[view->me].id = self->id;
    return view;
}

/* At start: a view is put in force if this node may go by it. */
static void view_begin(struct node *node, struct view *view) {
    if (view_check(node, view))
        view_adopt(node, view);
    else
        view_release(view);
}

/* At start of a node that runs alone: a ring of itself. */
static void view_alone(struct node *node) {
    struct buf record = {0};

    record_text(&record, node);
    buf_text(&record, "\n");
    view_begin(node, view_first(node, buf_slice(&record)));
    buf_free(&record);
}

/* At start: the ring that was kept on disk is in force, if there is one. */
static void ring_begin(struct node *node, struct etcd *e) {
    int fd = openat(node->dir_fd, "ring", O_RDONLY | O_CLOEXEC);
    struct view *view;
    struct stat st;

    if (fd < 0 || fstat(fd, &st) != 0)
        return;
    buf_zero(&e->obeyed, (size_t)st.st_size);
    read_at(fd, e->obeyed.p, e->obeyed.n, 0);
    close(fd);
    view = view_parse(node, buf_slice(&e->obeyed));
    if (view == NULL)
        give_up(1,
                "%s/ring is damaged: start with an empty -dataPath and -add, "
                "then all is fetched from the other nodes",
                node->flags.data);
    if (view->me == view->count && node->guardian > 0 && !node->flags.add)
        give_up(2, "%s has left the cluster: a node joins with -add",
                node->flags.name); /* its etcd cannot say so any more */
    if (view->me < view->count && view->member[view->me].id == node->self.id)
        view_begin(node, view);
    else
        view_release(view); /* this node was no member then, or another one */
}

/* ---- The steps of a change.
 *
 * A member that is to leave stands in strj_leave_N until its record is gone;
 * who wants to join makes that step itself, when no change runs, and when it
 * already serves: from then on majorities may need it. If it dies before the
 * second epoch, and stays away, the change is given up. A node that finds its
 * name taken by a directory which does not answer takes that one's place, under
 * a number of its own: versions end in it, and which ones the lost directory
 * has given away nobody knows. */

/* Whether a member is one of the ring that comes next. */
static bool view_next_has(const struct view *view, unsigned member) {
    for (unsigned i = 0; i < view->next_count; i++)
        if (view->next_at[i] == member)
            return true;
    return false;
}

/* Whether the node that joins has not been heard for so long that it is given
   up: by nobody of a majority of the members in force, of which this one is. */
static bool joiner_lost(const struct node *node, struct etcd *e,
                        const struct view *view) {
    uint64_t heard = 0, now = now_ms();
    unsigned alive = 0, number = view->member[view->count - 1].number;

    if (view->count == view->old)
        return false;
    for (unsigned i = 0; i < view->old; i++) {
        const struct peer *peer = &node->peers[view->member[i].number];

        if (member_alive(node, view->member[i].number)) {
            heard |= atomic_load(&peer->said[SAID_HEARS]);
            alive++;
        }
    }
    if (e->joiner_epoch != view->epoch || alive <= view->old / 2 ||
        member_alive(node, number) || (heard >> number % 64 & 1) != 0) {
        e->joiner_epoch = view->epoch;
        e->joiner_at = now;
    }
    return now >= e->joiner_at + JOINER_MS;
}

/* Whether a member takes partitions over; number: its own. */
static bool member_gains(const struct view *view, unsigned number) {
    unsigned p = 0;

    while (p < view->partitions && !view_takes(view, p, number))
        p++;
    return p < view->partitions;
}

/* Whether a change cannot go on, or is not wanted any more: of the next ring
   somebody is to leave who joins, or who is not there to take over what it has
   to; or who joins is gone, or has lost its directory, as another has said its
   name. */
static bool change_dropped(const struct node *node, struct etcd *e,
                           const struct view *view) {
    for (unsigned i = 0; i < view->count; i++) {
        const struct member *m = &view->member[i];
        bool lost = !member_alive(node, m->number);

        if (view_next_has(view, i) &&
            (i >= view->old ? m->leaves || (lost && m->host[0] == '\0')
                            : m->leaves && lost && m->report != view->epoch &&
                                  member_gains(view, m->number)))
            return true;
    }
    return joiner_lost(node, e, view);
}

/* Says now and then whom a change waits for who is not there. */
static void change_waits(const struct node *node, struct etcd *e,
                         const struct view *view) {
    if (view->next == NULL || now_ms() < e->waits_at)
        return;
    e->waits_at = now_ms() + JOINER_MS;
    for (unsigned i = 0; i < view->count; i++) {
        const struct member *m = &view->member[i];

        if (member_alive(node, m->number))
            continue;
        if (m->report != view->epoch && member_gains(view, m->number))
            say("warning",
                "a change of the ring waits for a node that is not heard: "
                "start it, or remove it with DELETE /_nodes/delete/%s",
                m->name);
        else if (m->leaves)
            say("warning",
                "a node that is not heard is being removed: if that does not "
                "end, an owner waits for it, which lost its power: start it, "
                "or give it up with DELETE /_nodes/delete/%s?force",
                m->name);
    }
}

/* Whether all new owners have reported; more: gets the comparisons by which the
   step fails if one of them has started anew since. */
static bool change_complete(const struct view *view, struct slice text,
                            struct buf *more) {
    for (unsigned i = 0; i < view->count; i++) {
        const struct member *m = &view->member[i];
        struct slice rest = text, line;
        char key[NAME_MAX_BYTES + 16];

        if (!member_gains(view, m->number))
            continue;
        if (m->report != view->epoch)
            return false;
        snprintf(key, sizeof key, "strj_node_%s", m->name);
        while (line_next(&rest, "name", m->name, &line)) {
            if (record_id(line) != m->id)
                continue;
            buf_text(more, ",{\"key\":\"");
            base64_encode(more, slice_of(key));
            buf_text(more, "\",\"target\":\"VALUE\",\"result\":\"EQUAL\","
                           "\"value\":\"");
            base64_encode(more, line);
            buf_text(more, "\"}");
        }
    }
    return true;
}

/*
 * The next step of the ring, if one is due by what etcd holds: its text, and
 * what must not have changed meanwhile. Who is forced out leaves in one epoch,
 * since with a majority of some owners gone no joint one would ever end; who
 * leaves in good order, and may have what these had, only after that.
 */
static bool change_due(const struct node *node, struct etcd *e,
                       const struct view *view, struct buf *ring,
                       struct buf *more) {
    struct slice text = buf_slice(&e->obeyed);
    uint16_t at[MEMBERS_MAX];
    unsigned n = 0, leavers = 0;
    bool forced = false;

    for (unsigned i = 0; i < view->old; i++) {
        leavers += view->member[i].leaves;
        forced = forced || view->member[i].forced;
    }
    for (unsigned i = 0; i < view->old; i++)
        if (forced ? !view->member[i].forced : !view->member[i].leaves)
            at[n++] = (uint16_t)i;
    if (forced && n > 0)
        ring_text(ring, view, view->epoch + 1, n, at, 0, NULL);
    else if (view->next != NULL && change_dropped(node, e, view))
        ring_text(ring, view, view->epoch + 1, view->old, NULL, 0, NULL);
    else if (view->next != NULL && change_complete(view, text, more))
        ring_text(ring, view, view->epoch + 1, view->next_count, view->next_at,
                  0, NULL);
    else if (view->next == NULL && leavers > 0 && n > 0)
        ring_text(ring, view, view->epoch + 1, view->old, NULL, n, at);
    else
        return false;
    return true;
}

/* The step by which this node joins, in the place of a member of its name if
   there is one. The view is changed, and is good for nothing else after that.
   */
static void change_join(const struct node *node, struct view *view,
                        struct buf *ring) {
    struct member *m = &view->member[view->count];
    unsigned n = 0;

    for (unsigned i = 0; i < view->old; i++)
        if (strcmp(view->member[i].name, node->flags.name) != 0)
            view->next_at[n++] = (uint16_t)i;
    *m = (struct member){.number = view->numbers + 1, .id = node->self.id};
    if (m->number > MEMBERS_MAX) /* all were given once: one that is free */
        for (m->number = 1; view_member(view, m->number) != NULL; m->number++)
            ;
    else
        view->numbers = m->number;
    snprintf(m->name, sizeof m->name, "%s", node->flags.name);
    snprintf(m->zone, sizeof m->zone, "%s", node->flags.zone);
    view->next_at[n++] = (uint16_t)view->count;
    ring_text(ring, view, view->epoch + 1, view->old, NULL, n, view->next_at);
}

/* How a step ended. */
enum look {
    LOOK_TROUBLE, /* no answer, or one that cannot be gone by */
    LOOK_AGAIN,   /* done, or somebody was quicker: look again, at once */
    LOOK_DONE,    /* nothing is due */
};

/* ---- Asking for a removal.
 *
 * Whoever asks waits for the etcd thread, which looks whether it can be done
 * and writes the wish into etcd; all else follows from that. */

/* How many of the members in force are not to leave. */
static unsigned view_stay(const struct view *view) {
    unsigned stay = 0;

    for (unsigned i = 0; i < view->old; i++)
        stay += !view->member[i].leaves;
    return stay;
}

/* How many partitions have no majority of owners that live; list: gets their
   numbers, as 0-3,7. */
static unsigned parts_lost(const struct node *node, const struct view *view,
                           struct buf *list) {
    unsigned lost = 0, first = 0;

    for (unsigned p = 0; p <= view->partitions; p++) {
        unsigned n = 0, alive = 0;
        const unsigned *owners =
            p < view->partitions ? ring_owners(view->ring, p, &n) : NULL;

        for (unsigned i = 0; i < n; i++)
            alive += member_alive(node, view->member[owners[i]].number);
        if (owners != NULL && alive <= n / 2) {
            lost++;
            continue;
        }
        if (p > first)
            buf_print(list, first + 1 < p ? "%s%u-%u" : "%s%u",
                      list->n > 0 ? "," : "", first, p - 1);
        first = p + 1;
    }
    return lost;
}

/* Whether a node has an etcd beside it, as its record says. */
static bool record_sidecar(struct slice text, const char *name) {
    struct slice line;
    bool sidecar = false;

    while (line_next(&text, "name", name, &line))
        sidecar = json_number(&line, "sidecar", 10) == 1;
    return sidecar;
}

/* Answers who asks for the removal of a node: the status; what is to be said is
   in op->rec. Nothing is written but the wish, which outlives this process. 0:
   somebody else has asked meanwhile, so that all is to be looked at again. Who
   is dead and was to leave before is forced out if that is asked for: owners
   that are alive may wait for it, if they recover. */
static int leave_ask(struct node *node, struct etcd *e, const struct view *view,
                     struct op *op) {
    const char *name = op->if_match;
    unsigned i = 0, lost, stay;
    char value[NAME_MAX_BYTES + 40];
    bool again, force, put = false;
    struct etcd_member m;
    struct buf *said = &op->rec;

    stay = view_stay(view);
    while (i < view->count && strcmp(view->member[i].name, name) != 0)
        i++;
    if (i == view->count) {
        buf_print(said, "no node of the cluster is named %s", name);
        return 404;
    }
    again = view->member[i].leaves;
    if (!again && i < view->old) {
        stay--;
        if (stay == 0) {
            buf_print(said, "%s is the last node: stop it instead", name);
            return 409;
        }
        if (stay < view->replicas && !op->force) {
            buf_print(said,
                      "%u nodes would be left, fewer than -replicas %u: add "
                      "one first, or use ?force",
                      stay, view->replicas);
            return 409;
        }
    }
    if (record_sidecar(buf_slice(&e->obeyed), name) &&
        etcd_member_find(e, name, &m) && m.only) {
        buf_print(said,
                  "the etcd beside %s is the only one: add a node with an etcd "
                  "beside it first",
                  name);
        return 409;
    }
    lost = parts_lost(node, view, said);
    if (lost > 0 && !op->force) {
        buf_text(said, ": no majority of the owners of these partitions is "
                       "alive: start them, or, if they are gone for good, use "
                       "?force: what was written last there may be lost");
        return 409;
    }
    force = op->force && !member_alive(node, view->member[i].number) &&
            (lost > 0 || again);
    snprintf(value, sizeof value, "{\"leave\":\"%.*s\",\"force\":\"%d\"}",
             NAME_MAX_BYTES, name, force);
    if (!etcd_leave(e, name, value, &put))
        return 503;
    if (!put)
        return 0;
    if (force) {
        say("warning",
            "a node is forced out: what was written last may be lost node=%s "
            "partitions=%.*s",
            name, (int)said->n, (char *)said->p);
        if (lost > 0)
            buf_text(said, ": what was written last there may be lost; ");
    } else {
        say("info", "a node is to leave node=%s", name);
        said->n = 0;
    }
    buf_print(said, "%s is being removed: see /_cluster_status", name);
    return 202;
}

/* Has the etcd thread answer who asks for the removal of a node. */
static void leave_wait(struct node *node, struct op *op) {
    pthread_mutex_lock(&node->view_lock);
    op->wait_next = node->leaves;
    node->leaves = op;
    pthread_mutex_unlock(&node->view_lock);
    wake_write(node->etcd_wake[1]);
}

/* Answers all who ask for the removal of a node. */
static void leaves_answer(struct node *node, struct etcd *e,
                          const struct view *view) {
    struct op *list, *op;
    int status;

    pthread_mutex_lock(&node->view_lock);
    list = node->leaves;
    node->leaves = NULL;
    pthread_mutex_unlock(&node->view_lock);
    while ((op = list) != NULL) {
        list = op->wait_next;
        op->wait_next = NULL;
        op->rec.n = 0;
        status = view == NULL ? 503 : leave_ask(node, e, view, op);
        if (status == 503) {
            op->rec.n = 0;
            buf_text(&op->rec, "etcd does not answer: try again");
        }
        if (status != 0)
            ops_post(op, status);
        else
            leave_wait(node, op);
    }
}

/* Removes from etcd what is left of members that have left, an etcd beside one
   first: that may have to wait, for the sake of etcd's own quorum. */
static enum look leavers_forget(struct node *node, struct etcd *e,
                                const struct view *view) {
    struct slice text = buf_slice(&e->obeyed), rest = text, line, value;
    char name[NAME_MAX_BYTES + 1];

    while (slice_cut(&rest, '\n', &line)) {
        bool member = false;

        if (!json_next(&line, "leave", &value) ||
            !slice_copy(value, name, sizeof name))
            continue;
        for (unsigned i = 0; i < view->count; i++)
            member = member || strcmp(view->member[i].name, name) == 0;
        if (!member &&
            (!record_sidecar(text, name) || etcd_member_remove(node, e, name)))
            return etcd_forget(e, name) ? LOOK_AGAIN : LOOK_TROUBLE;
    }
    return LOOK_DONE;
}

/* ---- The etcd thread */

/* This node is no member any more, nor is its etcd one of etcd's. */
static void left_tell(struct etcd *e) {
    if (!e->left)
        say("info", "this node has left the cluster: it may be stopped");
    e->left = true;
}

/* The ring in etcd is in force here: does what is due of changes. */
static enum look etcd_tend(struct node *node, struct etcd *e) {
    const struct view *view = node->view;
    struct buf text = {0}, more = {0};
    uint64_t report = atomic_load(&node->report);
    enum look step = LOOK_AGAIN;
    bool put = false;

    leaves_answer(node, e, view);
    if (view->me == view->count) {
        if (self_number(node) != 0) {
            atomic_store(&node->left, true);
            if (node->guardian <= 0) /* else once etcd has done without it */
                left_tell(e);
        }
        return LOOK_DONE;
    }
    if (e->reported != report) {
        record_text(&text, node);
        if (!etcd_record(e, node->flags.name, buf_string(&text), e->lease,
                         &put))
            step = LOOK_TROUBLE;
        if (put) /* else it is tried again */
            e->reported = report;
    } else if (change_due(node, e, view, &text, &more)) {
        if (!etcd_change_ring(e, buf_string(&text), buf_string(&more)))
            step = LOOK_TROUBLE;
        rest_ms(jitter(20)); /* others try the same */
    } else {
        change_waits(node, e, view);
        step = leavers_forget(node, e, view);
    }
    buf_free(&text);
    buf_free(&more);
    return step;
}

/* What an operator can do about a ring in etcd that is not to be obeyed. */
#define GIVE_BACK                                           \
    "give it the newest that any node has kept: head -n 1 " \
    "DATAPATH/ring | etcdctl put strj_ring"

/* The ring that was read from etcd, or (first) one to begin with, which the
   caller owns; NULL: this node may not go by it. */
static struct view *etcd_view(struct node *node, struct etcd *e, bool first) {
    struct view *view;

    if (first && (node->view != NULL ||
                  (node->self.cluster != 0 && !node->self.alone))) {
        e->trouble = /* a new one would be another cluster's */
            "has lost the ring, and this node goes on with the one that it "
            "kept: " GIVE_BACK;
        return NULL;
    }
    if (first && node->flags.add) {
        e->trouble = "has no cluster that this node could join (-add)";
        return NULL;
    }
    view = first ? view_first(node, buf_slice(&e->text))
                 : view_parse(node, buf_slice(&e->text));
    if (atomic_load(&node->loaded) && !view_same(node->view, view))
        e->trouble = /* a slip of somebody's, which must not end all nodes */
            "has another cluster's ring, or none that makes sense, which is "
            "not obeyed: " GIVE_BACK;
    else if (view_check(node, view)) {
        if (view_newer(node->view, view))
            return view;
        e->trouble =
            "has an older ring, which is not obeyed: if it was restored from a "
            "backup, " GIVE_BACK;
    }
    view_release(view);
    return NULL;
}

/* Makes the ring that is read anew with this node's step in it: it joins, or
   claims its place, which in a first ring is made with it. false: no answer. */
static bool etcd_claim(struct node *node, struct etcd *e, struct view *view,
                       bool first, bool joins) {
    struct buf text = {0};
    bool wait = false, done = true;

    for (unsigned i = 0; first && i < view->count; i++)
        wait = wait || view->member[i].boot == 0; /* its zone will come */
    if (wait && now_ms() < e->patience) {
        rest_ms(50);
        return true;
    }
    if (joins && view->count == MEMBERS_MAX) {
        e->trouble = "has a ring with as many members as there can be";
        return false;
    }
    if (joins) {
        change_join(node, view, &text);
    } else {
        view->member[view->me].id = node->self.id;
        ring_text(&text, view, view->epoch, view->old, NULL, view->next_count,
                  view->next_at);
    }
    done = etcd_change_ring(e, buf_string(&text), "");
    buf_free(&text);
    return done;
}

/* Says that this node is there. false: no answer. */
static bool etcd_tell(struct node *node, struct etcd *e) {
    struct buf text = {0};
    bool done;

    identity_begin(node);
    node->known_boot = node->self.boot; /* first: it may be told unheard */
    e->reported = atomic_load(&node->report);
    record_text(&text, node);
    done = etcd_announce(e, node->flags.name, buf_string(&text));
    buf_free(&text);
    return done;
}

/*
 * Looks at everything in etcd and takes the next step that is due: says that
 * this node is there, makes the first ring, joins or claims its place in it,
 * obeys it. Nothing is written before what is there was checked.
 */
static enum look etcd_step(struct node *node, struct etcd *e) {
    bool first, member, joins, wished;
    struct view *view;
    uint64_t epoch;
    bool done;

    if (!etcd_read(e, node->flags.name))
        return LOOK_TROUBLE;
    first = strcmp(e->ring_revision, "0") == 0;
    view = etcd_view(node, e, first);
    if (view == NULL)
        return LOOK_TROUBLE;
    epoch = view->epoch;
    member =
        view->me < view->count && (view->member[view->me].id == 0 ||
                                   view->member[view->me].id == node->self.id);
    if (member && view->member[view->me].report > 0)
        node->reported = view->member[view->me].report;
    /* It is to become a member: it is none by this ring, and has been none
       since its start. One that has left would have to be started again. */
    joins = !first && !member && (e->begins || self_number(node) == 0);
    if (joins)
        joiner_begin(node, view);
    if (!first && !member)
        view->me = view->count; /* its name may be that of one that is lost */
    if (!first && member && view->member[view->me].id != 0 &&
        (view->member[view->me].boot > node->known_boot || node->older) &&
        !copy_found(node, view)) {
        view_release(view);
        return LOOK_TROUBLE;
    }
    if ((e->lease[0] == '\0' || strcmp(e->record_revision, "0") == 0) &&
        !atomic_load(&node->left)) { /* it was forgotten, as one that had left,
                                        or etcd was wiped */
        done = etcd_tell(node, e);
    } else if (first || (member && view->member[view->me].id == 0) ||
               (joins && view->next == NULL && atomic_load(&node->loaded) &&
                !leave_wished(buf_slice(&e->text), node->flags.name,
                              &wished))) {
        done = etcd_claim(node, e, view, first, joins);
    } else {
        if (!ring_obey(node, e, view)) /* it has the view, either way */
            return LOOK_TROUBLE;
        return node->view->epoch == epoch ? etcd_tend(node, e) : LOOK_DONE;
    }
    view_release(view);
    return done ? LOOK_AGAIN : LOOK_TROUBLE;
}

/* Keeps the lease, and steps until the ring in etcd is obeyed. What is in the
   way is in e->trouble, and is said when it is another than before; with -etcd
   it is the next endpoint's turn then. Without a ring it ends the process when
   nothing will help, or after `until`. */
static void etcd_look(struct node *node, struct etcd *e, uint64_t until) {
    const struct endpoint *at = &e->endpoints[e->at];
    const char *told = e->trouble;
    struct etcd_member m;
    char where[300];
    enum look step = LOOK_TROUBLE;

    e->trouble = "gives answers that make no sense";
    if (e->lease[0] == '\0' || etcd_beat(e))
        do
            step = etcd_step(node, e);
        while (step == LOOK_AGAIN && !stop_requested);
    if (step != LOOK_DONE && atomic_load(&node->loaded))
        leaves_answer(node, e, NULL);
    if (step == LOOK_DONE)
        e->trouble = NULL;
    else if (node->flags.etcd != NULL)
        e->at = (e->at + 1) % e->count;
    where_text(where, at->host, at->port);
    if (e->trouble != NULL && told != NULL && atomic_load(&node->left) &&
        (node->guardian <= 0 || !etcd_member_find(e, node->flags.name, &m))) {
        guardian_stop(node); /* its etcd was removed with it, and has ended */
        node->guardian = 0;
        left_tell(e);
    }
    atomic_store(&node->etcd_lost, e->trouble != NULL);
    if (e->trouble != NULL && node->view == NULL &&
        (e->trouble == gateway_off || now_ms() >= until))
        give_up(1, "etcd at %s %s; no ring was kept from before", where,
                e->trouble);
    if (e->trouble != told && !stop_requested)
        say(e->trouble == NULL ? "info" : "warning", "etcd at %s %s", where,
            e->trouble == NULL ? "answers" : e->trouble);
}

/* At start: has a ring in force, the one kept or etcd's first. Even with a ring
   kept etcd is asked, but not for long: it may be another cluster's, or this
   directory an older copy, and an etcd beside this node starts with it. */
static void etcd_begin(struct node *node, struct etcd *e) {
    uint64_t began = now_ms(), until = began + ETCD_PATIENCE * UINT64_C(1000);

    ring_begin(node, e);
    e->ms = LOST_MS;
    e->begins = true;
    do {
        etcd_look(node, e, until);
        rest_ms(e->trouble == NULL ? 0 : node->view == NULL ? 100 : TICK_MS);
    } while (!stop_requested &&
             (node->view == NULL ||
              (e->trouble != NULL && now_ms() < began + LOST_MS)));
    e->begins = false;
    e->ms = ETCD_MS;
}

/* The etcd thread: looks at etcd, and looks again when the watch says
   something, when a peer knows of a newer ring, when the lease wants a beat. */
static void *etcd_run(void *arg) {
    struct node *node = arg;
    struct etcd *e = node->etcd;

    while (!stop_requested) {
        struct pollfd fds[2] = {{node->etcd_wake[0], POLLIN, 0},
                                {-1, POLLIN, 0}};

        etcd_look(node, e, 0);
        if (e->trouble == NULL && e->watch.fd < 0)
            etcd_watch(e);
        fds[1].fd = e->watch.fd;
        poll(fds, 2, (int)jitter(e->watch.fd < 0 ? 1000 : LOOK_MS));
        wake_drain(node->etcd_wake[0]);
        if (fds[1].revents != 0)
            etcd_heard(e);
    }
    return NULL;
}

/* ---- The way of a sidecar into an etcd that exists (-add).
 *
 * It is added as a learner, begins with the members that there are, and is
 * promoted to one that votes when it has caught up: so a sidecar that is slow,
 * or never starts, takes nothing from the majority. etcd has one learner at a
 * time; who finds another one waits for it, and takes it out if it is dead.
 *
 * A process may end at any point of this. Whoever comes next goes by what etcd
 * says, and by whether the sidecar has begun here. Every list is read behind a
 * read of a key, which only a member that votes and has a leader answers, and
 * only when it knows all that was changed before. */

#define JOIN_LEARNER_MS 30000 /* for another learner to start */
#define JOIN_CALL_MS    2000  /* for one call */

/* What is due, by etcd's list. Of several members the highest decides. */
enum join_step {
    JOIN_ADD,   /* this node is to be added */
    JOIN_WAIT,  /* for another one, which is on its way in */
    JOIN_TAKEN, /* another member has the URL of this node's */
    JOIN_START, /* this node was added, and has not started */
    JOIN_NAMED, /* a member has this node's name: it lives, or is to go */
    JOIN_STALE, /* the other one has taken too long */
    JOIN_FULL,
};

/* How far it has come. */
struct join {
    const char *name;   /* this node's */
    char url[320];      /* its sidecar's, for peers */
    unsigned at;        /* of the endpoints, the one here */
    bool promote;       /* the sidecar may be a learner when it has started */
    char other[24];     /* the id of the one that it waits for; "": none */
    uint64_t since;     /* when it was first seen, or seen alive */
    uint64_t sum;       /* of the list; another one is progress */
    uint64_t until;     /* then it has failed */
    char answered[700]; /* what was asked last and did not work, and why */
};

/* A call to the etcd at hand, as etcd_call(); the request has one word. What
   etcd would not do, and what it said, is noted. */
static bool join_call(struct etcd *e, struct join *j, const char *path,
                      const char *request, const char *word,
                      struct slice *reply) {
    const struct endpoint *at = &e->endpoints[e->at];
    char where[300], why[256];

    e->call.reply.n = 0;
    e->trouble = "does not answer";
    if (etcd_call(e, path, reply, request, word))
        return true;
    *reply = buf_slice(&e->call.reply);
    where_text(where, at->host, at->port);
    if (e->trouble == gateway_off || !json_text(reply, "message", why, 256))
        snprintf(why, sizeof why, "it %s", e->trouble);
    snprintf(j->answered, sizeof j->answered, "etcd at %s was asked %s: %s",
             where, path, why);
    return false;
}

/* Finds an etcd that answers, and has its list of members. The one here is
   asked, and first, if it may have started. A list has a member at least. */
static bool join_list(struct etcd *e, struct join *j, bool here,
                      struct slice *list) {
    struct etcd_member m;

    for (unsigned i = here ? 0 : 1; i < e->count && !stop_requested; i++) {
        e->at = (j->at + i) % e->count;
        if (join_call(e, j, "/v3/kv/range", "{\"key\":\"@\"}", "strj_ring",
                      list) &&
            join_call(e, j, "/v3/cluster/member/list", "{}", NULL, list)) {
            struct slice rest = *list;

            if (etcd_member_next(&rest, &m))
                return true;
        }
    }
    return false;
}

/* This node's member in the list; false: there is none. */
static bool join_self(const struct join *j, struct slice list,
                      struct etcd_member *m) {
    while (etcd_member_next(&list, m))
        if (etcd_member_at(m, j->url) || strcmp(m->name, j->name) == 0)
            return true;
    return false;
}

/* What to do by the list, and with which member. */
static enum join_step join_decide(struct join *j, struct slice list,
                                  uint64_t now, struct etcd_member *about) {
    enum join_step step = JOIN_ADD, due;
    struct etcd_member m;
    unsigned count = 0;
    uint64_t sum = 0;

    for (; etcd_member_next(&list, &m); count++) {
        bool at = etcd_member_at(&m, j->url);

        due = m.started && strcmp(m.name, j->name) == 0 ? JOIN_NAMED
              : at && !m.started                        ? JOIN_START
              : at                                      ? JOIN_TAKEN
              : !m.started || m.learner                 ? JOIN_WAIT
                                                        : JOIN_ADD;
        if (due > step) {
            step = due;
            *about = m;
        }
        sum = xxh64((uint8_t *)m.id, strlen(m.id),
                    sum + m.started + 2 * (uint64_t)m.learner);
    }
    if (sum != j->sum)
        j->until = now + ETCD_PATIENCE * UINT64_C(1000);
    j->sum = sum;
    if (step == JOIN_WAIT && strcmp(about->id, j->other) != 0) {
        memcpy(j->other, about->id, sizeof j->other);
        j->since = now;
    }
    if (step == JOIN_WAIT && now - j->since >= JOIN_LEARNER_MS)
        step = JOIN_STALE;
    return step == JOIN_ADD && count >= ETCDS_MAX ? JOIN_FULL : step;
}

/* Whether a member of etcd is there and answers; of one that cannot be asked
   it is believed. */
static bool etcd_member_lives(struct etcd *e, const struct etcd_member *m) {
    struct endpoint to = {0};
    struct slice reply, id;
    int status;

    if (!m->started)
        return false;
    if (!url_parse(slice_of(m->client), &to) || to.tls)
        return true;
    caller_aim(&e->call, to.host, to.port);
    status = caller_call(&e->call, "/v3/maintenance/status", "", slice_of("{}"),
                         ETCD_MS);
    reply = buf_slice(&e->call.reply);
    return status >= 0 && json_next(&reply, "member_id", &id) &&
           slice_is(id, m->id);
}

/* What the sidecar is to begin with: all members, by the names that they have,
   this one by its own. */
static void join_peers(struct etcd *e, const struct join *j,
                       struct slice list) {
    struct etcd_member m;
    struct slice url;

    e->peers.n = 0;
    while (etcd_member_next(&list, &m)) {
        const char *name = etcd_member_at(&m, j->url) ? j->name : m.name;

        while (etcd_url_next(&m.urls, &url))
            buf_print(&e->peers, "%s%s=%.*s", e->peers.n > 0 ? "," : "", name,
                      (int)url.n, (const char *)url.p);
    }
    buf_string(&e->peers);
}

/* Takes the next step; true: the sidecar can start. What makes no sense to try
   again ends the process. */
static bool join_next(struct etcd *e, struct join *j) {
    struct etcd_member m = {0};
    enum join_step step;
    struct slice list;

    if (!join_list(e, j, false, &list))
        return false;
    step = join_decide(j, list, now_ms(), &m);
    switch (step) {
    case JOIN_ADD:
        if (join_call(e, j, "/v3/cluster/member/add",
                      "{\"peerURLs\":[\"$\"],\"isLearner\":true}", j->url,
                      &list))
            say("info", "added to etcd as a learner, at %s", j->url);
        break;
    case JOIN_START:
        join_peers(e, j, list);
        return true;
    case JOIN_STALE:
    case JOIN_NAMED:
        if (etcd_member_lives(e, &m)) {
            if (step == JOIN_NAMED)
                give_up(1,
                        "the name %s is already live: etcd's member of that "
                        "name answers at %s; choose another -name",
                        j->name, m.client);
            j->since = now_ms();
        } else if (join_call(e, j, "/v3/cluster/member/remove",
                             "{\"ID\":\"$\"}", m.id, &list)) {
            say("warning", "etcd's member %s, %s, does not run: it is removed",
                m.id, m.name);
        }
        break;
    case JOIN_WAIT:
        snprintf(j->answered, sizeof j->answered,
                 "etcd's member %s is still on its way in", m.name);
        break;
    case JOIN_TAKEN:
        give_up(1,
                "etcd's member %s is at %s already: choose another port in "
                "-initialCluster, or remove that member",
                m.name, j->url);
    case JOIN_FULL:
        give_up(1,
                "etcd has %d members already, which is the most: join with "
                "-etcd, without an etcd here",
                ETCDS_MAX);
    }
    return false;
}

/* Rests between two tries, unless it is too late or the process is to end. */
static void join_rest(const struct join *j) {
    if (stop_requested)
        exit(0);
    if (now_ms() >= j->until)
        give_up(1,
                "cannot join: %s; see that a majority of etcd's members run "
                "and reach each other, then start this node again",
                j->answered);
    rest_ms(jitter(400));
}

/* Sets the sidecar's data aside: the log of a member that is none any more, as
   it was long in starting, is of no use. */
static void sidecar_discard(const struct node *node) {
    char to[64];

    snprintf(to, sizeof to, "trash/etcd-%" PRIu64, now_us());
    if ((mkdirat(node->dir_fd, "trash", 0777) != 0 && errno != EEXIST) ||
        renameat(node->dir_fd, "etcd", node->dir_fd, to) != 0 ||
        fsync(node->dir_fd) != 0)
        give_up(1, "cannot move %s/etcd away: %s", node->flags.data,
                strerror(errno));
    say("warning",
        "etcd has removed its member here: it joins anew, and its "
        "old data is in %s/%s",
        node->flags.data, to);
}

/* Before the sidecar starts: it has begun and is still a member of etcd, or is
   added to it. If nobody can tell it may start as it is, since all nodes may
   have been started at once. */
static void join_begin(struct node *node, struct join *j) {
    struct etcd *e = node->etcd;
    const struct endpoint *me = &e->endpoints[e->at];
    bool begun = faccessat(node->dir_fd, "etcd/member/wal", F_OK, 0) == 0;
    struct etcd_member m;
    struct slice list;
    char where[300];

    *j = (struct join){.name = me->name, .at = e->at, .promote = true};
    where_text(where, me->host, me->port + 1);
    snprintf(j->url, sizeof j->url, "%s://%s", me->tls ? "https" : "http",
             where);
    e->ms = JOIN_CALL_MS;
    if (begun && !join_list(e, j, false, &list)) {
        j->promote = faccessat(node->dir_fd, "ring", F_OK, 0) != 0;
    } else if (begun && join_self(j, list, &m)) {
        j->promote = m.learner;
    } else {
        if (begun)
            sidecar_discard(node);
        j->until = now_ms() + ETCD_PATIENCE * UINT64_C(1000);
        while (!join_next(e, j))
            join_rest(j);
    }
    caller_close(&e->call); /* the guardian must not keep it */
    e->trouble = NULL;
    e->at = j->at;
}

/* When the sidecar has started: it is promoted, as soon as etcd agrees. */
static void join_end(struct node *node, struct join *j) {
    struct etcd *e = node->etcd;
    struct etcd_member m;
    struct slice list;

    j->until = now_ms() + ETCD_PATIENCE * UINT64_C(1000);
    for (; j->promote; join_rest(j)) {
        if (!join_list(e, j, true, &list))
            continue;
        if (!join_self(j, list, &m))
            give_up(1, "etcd has removed its member here, which was long in "
                       "starting: start this node again");
        if (!m.learner)
            break;
        join_call(e, j, "/v3/cluster/member/promote", "{\"ID\":\"$\"}", m.id,
                  &list);
    }
    if (j->promote)
        say("info", "etcd here is a full member");
    e->trouble = NULL;
    e->at = j->at;
}

/* --------------------------------------------------------------- Listing
 *
 * A listing goes through all keys in the order of their fingerprints, which is
 * that of the partitions, too. Its place is a fingerprint, and a cursor has
 * nothing else. Whatever is written, deleted, moved or compacted meanwhile, a
 * key keeps its fingerprint: one that is there throughout is come by once. Keys
 * that share a fingerprint are never parted: a page that ends with such keys
 * may have more of them than was asked for.
 *
 * The index has no keys, these are in the log. So a thread of the pool reads
 * them, so many entries at a time. Of a partition that this node does not own,
 * or is in doubt about, an owner is asked that is sure:
 *
 *     keys   fingerprint, how many keys at most, prefix
 *            answers the fingerprint where to go on, 0: the partition has no
 *            more; keys, the length before each
 *
 * One that is in doubt, or has damage, lists nothing: a key that is missing in
 * a list looks like one that is absent.
 */

/* In the pool: reads the next keys of op->part that begin with a prefix, at
   least one, and for so long or so many. What is asked for is in op->rec and
   the answer goes to op->old, as in a call. */
static void keys_read(struct op *op) {
    struct node *node = op->w->node;
    struct slice ask = buf_slice(&op->rec), prefix = slice_skip(ask, 16);
    uint64_t print = get64(ask.p), most = get64(ask.p + 8), last = print;
    uint64_t found = 0, looked = 0, until = now_ms() + LIST_MS;
    struct buf page = {0}, b = {0};
    struct file *file;
    struct record r;
    bool more = true, full = false;

    op->old.n = 0;
    buf_zero(&op->old, 8);
    while (more && !full) {
        const struct entry *e;

        more = part_page(node, op->part, &print, &page, &file);
        e = (const void *)page.p;
        for (size_t n = page.n / sizeof *e; n > 0; n--, e++) {
            full = looked > 0 && e->fingerprint != last &&
                   (found >= most || looked >= LIST_LOOK ||
                    op->old.n >= READ_SIZE || now_ms() >= until);
            if (full)
                break;
            last = e->fingerprint;
            looked++;
            if (entry_tombstone(e))
                continue;
            if (!entry_read(file, e, 0, &b, &r)) {
                part_damaged(node, op->part, e);
                op->damaged = true;
            } else if (r.key.n >= prefix.n &&
                       memcmp(r.key.p, prefix.p, prefix.n) == 0) {
                buf_word(&op->old, r.key.n);
                buf_add(&op->old, r.key.p, r.key.n);
                found++;
            }
        }
        print = full ? e->fingerprint : print;
        file_release(file);
    }
    put64(op->old.p, full ? print : 0);
    buf_free(&page);
    buf_free(&b);
}

/* Whether what this replica holds of op->part is a whole list of its keys: it
   is sure, no damage hides any, and the ring is still that of the operation. */
static bool keys_sure(struct op *op) {
    enum word word;

    pthread_mutex_lock(&op->part->lock);
    word = part_word(op->part);
    pthread_mutex_unlock(&op->part->lock);
    op->damaged = op->damaged || word == WORD_HIDES;
    return word == WORD_GOOD && op->epoch == op->w->view->epoch &&
           part_worth(op->w->node, op->part) == ANSWER_SURE;
}

/* Gives the page that was read to who asked for it, if this replica was sure
   before, and still is. */
static void keys_answer(struct op *op) {
    bool sure = keys_sure(op) && !op->damaged;

    replica_says(op,
                 sure          ? 200
                 : op->damaged ? 500
                               : 503,
                 op->old.p, sure ? op->old.n : 0);
}

/* Has a page read, for a peer or for this node's own listing. */
static void keys_begin(struct op *op) {
    op->old.n = 0;
    op->errand = keys_read;
    op->resume = keys_answer;
    if (keys_sure(op))
        errand_park(op->w->node, op->part, op);
    else
        keys_answer(op);
}

/* A peer asks for a page of keys. */
static void keys_body(struct op *op) {
    struct slice ask = buf_slice(&op->rec);
    struct node *node = op->w->node;
    unsigned at;

    if (ask.n >= 16 && ask.n <= 16 + KEY_MAX) {
        at = ring_partition(get64(ask.p), node->partitions);
        op->part = &node->parts[at];
        if (view_owns(op->w->view, at, self_number(node)) & OWNS_OLD) {
            keys_begin(op);
            return;
        }
    }
    answer_error(op, 400, "not keys of a partition owned here");
}

/* Ends a listing with the lines there are. */
static void list_answer(struct op *op) {
    struct buf *out = answer_begin(op, 200);

    if (op->fingerprint != 0) {
        buf_text(out, "\r\nLink: </?list&prefix=");
        buf_key(out, slice_skip(buf_slice(&op->rec), 16));
        buf_print(out, "&limit=%" PRIu64 "&cursor=", op->limit);
        buf_hex(out, op->fingerprint);
        buf_text(out, ">; rel=\"next\"");
    }
    answer_typed(op, TEXT_PLAIN, buf_slice(&op->list));
}

/* Takes a page of keys of op->partition, and notes where to go on: at 0, when
   all partitions are done. false: it is malformed, and not taken. */
static bool list_take(struct op *op, struct slice page) {
    uint64_t next = page.n >= 8 ? get64(page.p) : 0, found = 0;
    size_t before = op->list.n;
    bool good = page.n >= 8 && (next == 0 || next > op->fingerprint);

    for (page = slice_skip(page, good ? 8 : 0); good && page.n > 0; found++) {
        uint64_t n = page.n >= 8 ? get64(page.p) : UINT64_MAX;

        good = page.n >= 8 && n <= page.n - 8;
        if (!good)
            break;
        page = slice_skip(page, 8);
        buf_key(&op->list, (struct slice){page.p, (size_t)n});
        buf_text(&op->list, "\n");
        page = slice_skip(page, (size_t)n);
    }
    if (!good) {
        op->list.n = before;
        return false;
    }
    op->listed += found;
    op->fingerprint =
        next != 0 ? next : bucket_print(op->w->node, op->partition + 1, 0);
    return true;
}

static void list_step(struct op *op);
static void list_ask(struct op *op);

/* An owner takes its time. */
static void list_wait(struct op *op) {
    if (op_stalled(op))
        list_ask(op);
    else
        op_due(op, list_wait);
}

/* Asks an owner that lives and was not asked yet. If there is none, those who
   are in doubt may be sure soon, or another ring may come. */
static void list_ask(struct op *op) {
    struct worker *w = op->w;
    unsigned from = w->turn++;

    for (unsigned k = 0; k < op->count; k++) {
        unsigned i = (from + k) % op->count;

        if (op->answers[i] != ANSWER_NONE ||
            !member_alive(w->node, op->owners[i]))
            continue;
        op->attempt++; /* what was asked before is void */
        op->attempt_since = w->now;
        op_call(op, i, "keys", buf_slice(&op->rec));
        if (op->answers[i] == ANSWER_WAIT) {
            op_due(op, list_wait);
            return;
        }
    }
    if (w->now - op->began < LOST_MS)
        op_due(op, list_step);
    else if (op->damaged)
        answer_error(op, 500,
                     "damaged: partition %u has records that cannot be read, "
                     "and no other replica lists its keys: see the log",
                     op->partition);
    else
        answer_error(op, 503,
                     "none of partition %u's %u owners can list its keys now: "
                     "try again",
                     op->partition, op->count);
}

/* An owner, or this node, has listed keys, or cannot. */
static void list_answered(struct op *op, unsigned i, unsigned status,
                          struct slice body) {
    uint64_t now = op->w->now;

    op->due = NULL;
    op->answers[i] = ANSWER_FAILED;
    op->damaged = op->damaged || status == 500;
    if (status != 200 || !list_take(op, body)) {
        list_ask(op);
        return;
    }
    op->began = now;
    op_count_memory(op);
    if (!buffer_room(op->w, op->list.n, op->list.n)) /* it is copied */
        answer_error(op, 503, BUSY);
    else if (op->fingerprint == 0 || op->listed >= op->limit ||
             op->list.n >= OUT_MAX || now >= op->list_until)
        list_answer(op);
    else
        list_step(op);
}

/* Goes on with a listing: with the keys from op->fingerprint on, of this node
   if it owns them. As in a read, owners are those by the ring in force. */
static void list_step(struct op *op) {
    struct node *node = op->w->node;

    op->partition = ring_partition(op->fingerprint, node->partitions);
    op->part = &node->parts[op->partition];
    op->damaged = false;
    op_owners(op);
    op->count = bits_count(op->groups[GROUP_OLD]);
    put64(op->rec.p, op->fingerprint);
    put64(op->rec.p + 8, op->limit - op->listed);
    op->attempt_since = op->w->now;
    if (op->mine < op->count)
        keys_begin(op);
    else
        list_ask(op);
}

/* What a query asks for; p is NULL for what is not there. */
struct query {
    struct slice prefix, limit, cursor;
};

/* Begins a listing. */
static const char *list_begin(struct op *op, const struct query *q) {
    ssize_t n = percent_decode(q->prefix, op->key_bytes, KEY_MAX);

    op->limit = LIMIT;
    if (n < 0)
        return "400 prefix has up to 1024 bytes, and a % in it begins %XX";
    if (q->limit.p != NULL && (!slice_digits(q->limit, 10, &op->limit) ||
                               op->limit < 1 || op->limit > LIMIT_MAX))
        return "400 limit is a number from 1 to 10000";
    if (q->cursor.p != NULL &&
        (q->cursor.n != 16 || !slice_digits(q->cursor, 16, &op->fingerprint)))
        return "400 cursor is not one that the Link of a page has: begin anew, "
               "without it";
    buf_zero(&op->rec, 16);
    buf_add(&op->rec, op->key_bytes, (size_t)n);
    op->answered = list_answered;
    op->began = op->w->now;
    op->list_until = op->w->now + LIST_MS;
    list_step(op);
    return NULL;
}

/* ---------------------------------------------------------------- Routes
 *
 * First the paths of the system: a short function each, which appends a text
 * or says why there is none. Then the table of all paths, and what a request
 * for a key and one of a peer begin with. At the end is the one function that
 * every request goes through: it asks a list of checks, and whatever refuses
 * the request, the refusal is sent from there.
 */

static const char *help_text(struct op *op, struct buf *b) {
    static const char text[] = /* @: here */
        "estoraje: a key-value store. Any node answers for any key.\n\n"
        "  curl -X POST -d hello @/greeting   stores a value (PUT too)\n"
        "  curl @/greeting   reads it\n"
        "  curl -I @/greeting   its ETag and size\n"
        "  curl '@/greeting?consistent'   linearizable, as is any request "
        "with it\n"
        "  curl -X PUT -d 1 -H 'If-None-Match: *' @/counter   only if it is "
        "absent;\n"
        "                    with If-Match: and its ETag, if it is unchanged\n"
        "  curl -X DELETE @/greeting   deletes it\n"
        "  curl -T FILE @/path/of/file   stores a file\n"
        "  curl -C - -O @/path/of/file   reads it, from where it was cut off\n"
        "  curl -r 0-99 @/path/of/file   reads a part of it\n"
        "  curl '@/?list&prefix=path/&limit=100'   keys, a line each; Link has "
        "the next page\n"
        "  curl @/_cluster_status   the nodes, as JSON\n"
        "  curl @/_nodes/greeting   who owns a key\n"
        "  curl @/_nodes_discovery   the nodes in short\n"
        "  curl @/_nodes_discovery_plain   those that live, a line each\n"
        "  curl @/_health   200: it runs\n"
        "  curl @/_ready   200: it serves\n"
        "  curl @/_metrics   figures, for Prometheus\n\n";
    const struct node *node = op->w->node;
    struct slice rest = slice_of(text), part;
    char at[300];

    where_text(at, node->flags.host, node->client_port);
    while (slice_next(&rest, '@', &part)) {
        buf_add(b, part.p, part.n);
        if (rest.n > 0)
            buf_print(b, "http://%s", at);
    }
    buf_print(b,
              "Keys have 1 to %d bytes, percent-encoded; values up to %" PRIu64
              " bytes (-maxValue).\nA key that begins with _ is written "
              "%%5F...\n",
              KEY_MAX, node->flags.max_value);
    return NULL;
}

#define LEFT "503 this node has left the cluster: ask another one"

/* Whether this node is no member any more, by its own ring or as a member with
   a later one has said: its etcd, removed with it, may never tell. */
static bool node_left(const struct worker *w) {
    return w->view->me == w->view->count || atomic_load(&w->node->left);
}

/* Trouble that does not keep the node from answering is told in the text. */
static const char *ready_text(struct op *op, struct buf *b) {
    struct node *node = op->w->node;
    const struct view *view = op->w->view;
    unsigned dead = atomic_load(&node->dead_logs);
    unsigned damaged = atomic_load(&node->damaged);

    if (atomic_load(&node->stopping))
        return "503 this node is stopping: ask another one";
    if (node_left(op->w))
        return LEFT;
    if (view->next != NULL && !view_next_has(view, view->me))
        return "503 this node is leaving the cluster: ask another one";
    buf_text(b, "ready\n");
    if (atomic_load(&node->etcd_lost))
        buf_text(b, "degraded: etcd does not answer\n");
    for (unsigned i = 0; i < view->count; i++)
        if (!member_alive(node, view->member[i].number))
            buf_print(b, "degraded: %s is not heard\n", view->member[i].name);
    if (clock_wrong(node, view))
        buf_text(b, "degraded: this node's clock is far ahead\n");
    if (dead > 0)
        buf_print(b, "degraded: %u logs take no more writes: the disk failed\n",
                  dead);
    if (atomic_load(&node->full))
        buf_text(b, "degraded: the disk is full, only deletes are taken\n");
    if (damaged > 0)
        buf_print(b, "degraded: %u partitions have damage: see the log\n",
                  damaged);
    return NULL;
}

/* Says to another node whether this one's directory is an older copy. */
static const char *standing_text(struct op *op, struct buf *b) {
    int standing = atomic_load(&op->w->node->standing);

    if (standing == STANDING_UNKNOWN)
        return "503 this node is starting, and does not know yet";
    buf_text(b, standing == STANDING_OLDER ? "older\n" : "sound\n");
    return NULL;
}

/* What a member is. */
static const char *member_status(const struct node *node,
                                 const struct view *view, unsigned i) {
    const struct member *m = &view->member[i];

    if (!member_alive(node, m->number))
        return "Down";
    if (i >= view->old)
        return "Joining";
    if (view->next != NULL && !view_next_has(view, i))
        return "Leaving";
    if (atomic_load(&node->peers[m->number].said[SAID_DOUBT]) > 0)
        return "Recovering";
    return "Ready";
}

/* The etcd thread has looked at the removal of a node: op->rec says it. */
static void leave_answer(struct op *op) {
    buf_text(&op->rec, "\n");
    answer_begin(op, (unsigned)op->wait_result);
    answer_typed(op, TEXT_PLAIN, buf_slice(&op->rec));
}

/* A node is to leave: the etcd thread looks whether that may be, and sees to
   it; until it has, this waits. */
static const char *leave_text(struct op *op, struct buf *b) {
    struct node *node = op->w->node;

    (void)b;
    if (node->etcd == NULL && slice_is(op->path, node->flags.name))
        return "409 this node runs alone: stop it instead";
    if (node->etcd == NULL)
        return "404 this node runs alone, and has another name";
    if (!slice_copy(op->path, op->if_match, NAME_MAX_BYTES + 1))
        return "404 no node of the cluster has a name as long";
    op->parked = true;
    op->resume = leave_answer;
    leave_wait(node, op);
    return NULL;
}

/* How far the change is that runs, as those that take over partitions tell. */
static void moving_text(struct buf *b, const struct node *node,
                        const struct view *view) {
    unsigned long long sum[SAIDS] = {0}, seconds = 0, done, left;

    for (unsigned i = 0; i < view->count; i++) {
        struct peer *peer = &node->peers[view->member[i].number];

        for (int k = 0; k < SAIDS; k++)
            sum[k] += atomic_load(&peer->said[k]);
        if (atomic_load(&peer->said[SAID_SECONDS]) > seconds)
            seconds = atomic_load(&peer->said[SAID_SECONDS]);
    }
    left = sum[SAID_MOVING];
    done = sum[SAID_GAINS] > left ? sum[SAID_GAINS] - left : 0;
    buf_print(b, "\"moving\":%llu,", left);
    if (left == 0)
        buf_text(b, "\"moved_bytes\":null,\"percent\":null,");
    else
        buf_print(b, "\"moved_bytes\":%llu,\"percent\":%llu,", sum[SAID_MOVED],
                  done * 100 / (done + left));
    if (left == 0 || done == 0)
        buf_text(b, "\"seconds_left\":null,");
    else
        buf_print(b, "\"seconds_left\":%llu,", seconds * left / done);
}

static const char *cluster_text(struct op *op, struct buf *b) {
    const struct node *node = op->w->node;
    const struct view *view = op->w->view;

    buf_print(b,
              "{\"name\":\"%s\",\"epoch\":%" PRIu64 ",\"replicas\":%u,"
              "\"partitions\":%u,",
              node->flags.name, view->epoch, view->replicas, view->partitions);
    moving_text(b, node, view);
    buf_text(b, "\"nodes\":[");
    for (unsigned i = 0; i < view->count; i++) {
        const struct member *m = &view->member[i];
        struct peer *peer = &node->peers[m->number];
        const char *status = member_status(node, view, i);

        buf_print(b,
                  "%s{\"name\":\"%s\",\"host\":\"%s\",\"peer\":\"%s\","
                  "\"zone\":\"%s\",\"status\":\"%s\",",
                  i > 0 ? "," : "", m->name, m->at, m->peer_at, m->zone,
                  status);
        if (strcmp(status, "Down") == 0)
            buf_text(b, "\"alive\":false,\"in_doubt\":null,\"moving\":null,"
                        "\"partitions\":null,\"keys\":null,"
                        "\"bytes\":null}");
        else
            buf_print(b,
                      "\"alive\":true,\"in_doubt\":%llu,\"moving\":%llu,"
                      "\"partitions\":%llu,\"keys\":%llu,"
                      "\"bytes\":%llu}",
                      atomic_load(&peer->said[SAID_DOUBT]),
                      atomic_load(&peer->said[SAID_MOVING]),
                      atomic_load(&peer->said[SAID_OWNED]),
                      atomic_load(&peer->said[SAID_KEYS]),
                      atomic_load(&peer->said[SAID_BYTES]));
    }
    buf_text(b, "]}\n");
    return NULL;
}

static const char *nodes_text(struct op *op, struct buf *b) {
    const struct view *view = op->w->view;

    for (unsigned i = 0; i < view->count; i++) {
        const struct member *m = &view->member[i];

        buf_print(b,
                  "%s{\"Name\":\"%s\",\"Host\":\"%s\",\"ApiHost\":\"%s\","
                  "\"Status\":\"%s\"}",
                  i > 0 ? "," : "[", m->name, m->peer_at, m->at,
                  member_status(op->w->node, view, i));
    }
    buf_text(b, "]\n");
    return NULL;
}

static const char *plain_text(struct op *op, struct buf *b) {
    const struct view *view = op->w->view;

    for (unsigned i = 0; i < view->count; i++)
        if (member_alive(op->w->node, view->member[i].number))
            buf_print(b, "%s\n", view->member[i].at);
    return NULL;
}

/* Decodes a key into the op. */
static const char *op_key(struct op *op, struct slice raw) {
    ssize_t n = percent_decode(raw, op->key_bytes, KEY_MAX);

    if (n <= 0)
        return "400 a key has 1 to 1024 bytes, and a % in it begins %XX";
    op->key = (struct slice){op->key_bytes, (size_t)n};
    return NULL;
}

static const char *owners_text(struct op *op, struct buf *b) {
    const struct view *view = op->w->view;
    const char *refusal = op_key(op, op->path);
    const unsigned *owners;
    unsigned n;

    if (refusal != NULL)
        return refusal;
    op_part(op, op->key);
    owners = ring_owners(view->ring, op->partition, &n);
    for (unsigned i = 0; i < n; i++)
        buf_print(b, "%s\"%s\"", i > 0 ? "," : "[", view->member[owners[i]].at);
    buf_text(b, "]\n");
    return NULL;
}

/* ---- Metrics.
 *
 * What Prometheus is told, in its text format 0.0.4. No label has a value that
 * a client could make up: there are as many series as rows, methods and
 * statuses. Of the process_... figures that are usual POSIX has but two. */

#define TIMES "estoraje_http_request_duration_seconds"

/* Begins a family of figures. */
static void family_text(struct buf *b, const char *name, const char *type,
                        const char *help) {
    buf_print(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* Appends all rows of FIGURES. */
static void figures_text(struct buf *b, const struct figures *all) {
#define FIGURE_ROW(field, n, name, label, help) {name, label, help, all->field},
    const struct {
        const char *name, *label, *help;
        const atomic_ullong *figure;
    } rows[] = {FIGURES(FIGURE_ROW)};

    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *name = rows[i].name;
        const atomic_ullong *figure = rows[i].figure;
        struct slice words = slice_of(rows[i].label), label, word;
        bool counts = strcmp(name + strlen(name) - 6, "_total") == 0;

        family_text(b, name, counts ? "counter" : "gauge", rows[i].help);
        if (words.n == 0)
            buf_print(b, "%s %llu\n", name, *figure);
        slice_next(&words, '=', &label);
        for (; slice_next(&words, ',', &word); figure++)
            buf_print(b, "%s{%.*s=\"%.*s\"} %llu\n", name, (int)label.n,
                      (const char *)label.p, (int)word.n, (const char *)word.p,
                      *figure);
    }
}

/* Appends what is counted of requests. */
static void requests_text(struct buf *b, const struct figures *all) {
    unsigned long long n;

    family_text(b, "estoraje_http_requests_total", "counter",
                "Requests of clients that were answered.");
    for (int m = 0; m < METHODS; m++)
        for (int s = 0; s < STATUSES; s++)
            if ((n = all->requests[m][s]) > 0)
                buf_print(b,
                          "estoraje_http_requests_total{method=\"%s\","
                          "code=\"%d\"} %llu\n",
                          method_names[m], s, n);
    family_text(b, TIMES, "histogram", "Time until an answer begins.");
    for (int m = 0; m < METHODS; m++) {
        n = 0;
        for (int i = 0; i < BOUNDS; i++)
            buf_print(b, TIMES "_bucket{method=\"%s\",le=\"%g\"} %llu\n",
                      method_names[m], bounds[i] / 1e6, n += all->times[m][i]);
        n += all->times[m][BOUNDS];
        buf_print(b,
                  TIMES "_bucket{method=\"%s\",le=\"+Inf\"} %llu\n" TIMES
                        "_sum{method=\"%s\"} %.9f\n" TIMES
                        "_count{method=\"%s\"} %llu\n",
                  method_names[m], n, method_names[m],
                  (double)all->times_ns[m] / 1e9, method_names[m], n);
    }
}

/* Adds all figures of a thread. */
static void figures_add(struct figures *all, const struct figures *more) {
    const atomic_ullong *from = (const void *)more;
    atomic_ullong *to = (void *)all;

    for (size_t i = 0; i < sizeof *all / sizeof *to; i++)
        figure_add(&to[i],
                   atomic_load_explicit(&from[i], memory_order_relaxed));
}

static const char *metrics_text(struct op *op, struct buf *b) {
    struct node *node = op->w->node;
    const struct view *view = op->w->view;
    const atomic_ullong *said = node->peers[self_number(node)].said;
    struct figures *all = memory(1, sizeof *all);

    figures_add(all, &node->figures);
    for (unsigned i = 0; i < node->worker_count; i++)
        figures_add(all, &node->workers[i].figures);
    all->parts[0] = said[SAID_OWNED];
    all->parts[1] = said[SAID_DOUBT];
    all->parts[2] = said[SAID_MOVING];
    all->parts[3] = node->damaged;
    all->parts[4] = node->dead_logs;
    for (unsigned i = 0; i < view->count; i++)
        if (i != view->me)
            all->peers[!member_alive(node, view->member[i].number)]++;
    *all->most = node->connections_max;
    *all->buffered = node->buffered;
    *all->full = node->full;
    *all->epoch = view->epoch;
    all->etcd[node->etcd == NULL ? 2 : node->etcd_lost] = 1;
    *all->build = 1;
    *all->cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID) / 1000000000;
    requests_text(b, all);
    figures_text(b, all);
    free(all);
    return NULL;
}

#define READ      "GET, HEAD"
#define ALLOW_ALL "GET, HEAD, PUT, POST, DELETE"
#define JSON      "application/json"
#define METRICS   "text/plain; version=0.0.4; charset=utf-8"
#define UNBUILT   "501 this is not built yet"
#define UNKNOWN   "404 no such path here: / of the client port says which exist"

/* The first row that fits is the one; a * at the end stands for anything, which
   the function finds in op->path. A row without functions says all there is to
   say, or is a key's. */
static const struct route {
    enum conn_kind port; /* a client's or a peer's */
    const char *path;
    const char *allow; /* the methods */
    bool early;        /* it answers before there is a ring, too */
    const char *says;  /* the type of the text, or the answer */
    const char *(*text)(struct op *, struct buf *);
    void (*body)(struct op *); /* gets the body, once a peer has said who it
                                  is */
} routes[] = {
    {CONN_CLIENT, "/", READ, true, TEXT_PLAIN, help_text, NULL},
    {CONN_CLIENT, "/_health", READ, true, "200 ok", NULL, NULL},
    {CONN_CLIENT, "/_ready", READ, false, TEXT_PLAIN, ready_text, NULL},
    {CONN_CLIENT, "/_cluster_status", READ, false, JSON, cluster_text, NULL},
    {CONN_CLIENT, "/_nodes/*", READ, false, JSON, owners_text, NULL},
    {CONN_CLIENT, "/_nodes_discovery", READ, false, JSON, nodes_text, NULL},
    {CONN_CLIENT, "/_nodes_discovery_plain", READ, false, TEXT_PLAIN,
     plain_text, NULL},
    {CONN_CLIENT, "/_metrics", READ, false, METRICS, metrics_text, NULL},
    {CONN_CLIENT, "/_ring", READ, true, UNBUILT, NULL, NULL},
    {CONN_CLIENT, "/_*", READ, true, UNKNOWN, NULL, NULL},
    {CONN_CLIENT, "*", ALLOW_ALL, false, NULL, NULL, NULL},
    {CONN_PEER, "/_peer/accept", "POST", false, NULL, NULL, accept_body},
    {CONN_PEER, "/_peer/read", "POST", false, NULL, NULL, read_body},
    {CONN_PEER, "/_peer/value", "POST", false, NULL, NULL, value_body},
    {CONN_PEER, "/_peer/prepare", "POST", false, NULL, NULL, prepare_body},
    {CONN_PEER, "/_peer/promised", "POST", false, NULL, NULL, promised_body},
    {CONN_PEER, "/_peer/consistent", "POST", false, NULL, NULL,
     consistent_body},
    {CONN_PEER, "/_peer/heartbeat", "POST", false, NULL, NULL, beat_body},
    {CONN_PEER, "/_peer/digest", "POST", false, NULL, NULL, digest_body},
    {CONN_PEER, "/_peer/list", "POST", false, NULL, NULL, list_body},
    {CONN_PEER, "/_peer/pull", "POST", false, NULL, NULL, pull_body},
    {CONN_PEER, "/_peer/keys", "POST", false, NULL, NULL, keys_body},
    {CONN_PEER, "/_peer/standing", "POST", true, TEXT_PLAIN, standing_text,
     NULL},
    {CONN_PEER, "/_nodes/delete/*", "DELETE", false, NULL, leave_text, NULL},
    {CONN_PEER, "/_nodes/*", "DELETE", false, NULL, leave_text, NULL},
    {CONN_PEER, "*", ALLOW_ALL, true, UNKNOWN, NULL, NULL},
};

/* The route of a path: there is one for each. */
static const struct route *route_find(struct op *op, struct slice path) {
    const struct route *r = routes;

    for (;; r++) {
        size_t n = 0;

        while (n < path.n && r->path[n] == path.p[n] && r->path[n] != '*' &&
               r->path[n] != '\0')
            n++;
        op->path = slice_skip(path, n);
        if (r->port == op->c->kind &&
            (r->path[n] == '*' || (r->path[n] == '\0' && n == path.n)))
            return r;
    }
}

/* Whether a word, case and all, is one of a list. */
static bool word_in(struct slice word, const char *list) {
    struct slice rest = slice_of(list), next;

    while (list_next(&rest, &next))
        if (slice_equal(next, word))
            return true;
    return false;
}

/* Takes what a query asks for. What is not known, or not of this path, is
   refused, and so is what does not go together. */
static const char *query_check(struct op *op, struct slice query,
                               const struct route *r, bool read,
                               struct query *q) {
    const char *known = r->text == leave_text  ? "force"
                        : r->text == help_text ? "list,prefix,limit,cursor"
                        : r->port == CONN_CLIENT && r->path[0] == '*'
                            ? "consistent,explain"
                            : "";
    struct slice one, name;

    while (slice_next(&query, '&', &one)) {
        bool valued = slice_cut(&one, '=', &name), *flag;
        struct slice *field;

        name = valued ? name : one;
        flag = slice_is(name, "consistent") ? &op->consistent
               : slice_is(name, "explain")  ? &op->explain
               : slice_is(name, "force")    ? &op->force
               : slice_is(name, "list")     ? &op->lists
                                            : NULL;
        field = slice_is(name, "prefix")  ? &q->prefix
                : slice_is(name, "limit") ? &q->limit
                                          : &q->cursor;
        if (!word_in(name, known))
            return "400 a query parameter is not of this path: leave it out";
        if (flag != NULL ? valued || *flag : !valued || field->p != NULL)
            return "400 a query parameter is there twice, or has a value and "
                   "takes none, or takes one and has none";
        if (flag != NULL)
            *flag = true;
        else
            *field = one;
    }
    if (!op->lists &&
        (q->prefix.p != NULL || q->limit.p != NULL || q->cursor.p != NULL))
        return "400 prefix, limit and cursor go with list: add it";
    if (op->explain && !read)
        return "400 explain goes with GET only: leave it out";
    return op->explain ? UNBUILT : NULL;
}

/* The refusal of a node that is starting, until the next one of this worker. */
static const char *starting_text(struct op *op) {
    struct worker *w = op->w;
    char text[100];

    if (atomic_load(&w->node->load_began) == 0)
        return "503 this node is starting, without a ring: ask another one";
    if (atomic_load(&w->node->loaded))
        return "503 this node is starting, not yet joined: ask another one";
    load_text(w->node, text);
    snprintf(w->refusal, sizeof w->refusal,
             "503 this node reads its logs, try again later: %s", text);
    return w->refusal;
}

/* What can be said against a request before its route looks at it. */
static const char *route_check(struct op *op, const struct http *h,
                               const struct route *r, struct slice query,
                               struct query *q) {
    const struct node *node = op->w->node;
    struct slice secret = h->authorization, scheme;
    const char *refusal;

    if (r->port == CONN_PEER && h->origin.p != NULL)
        return "403 this port is not for browsers: leave Origin out";
    if (r->port == CONN_PEER && node->secret[0] != '\0' &&
        (!slice_cut(&secret, ' ', &scheme) ||
         !slice_is_nocase(scheme, "Bearer") ||
         !secret_equal(secret, node->secret)))
        return "401 this port wants Authorization: Bearer, with the secret";
    if (!word_in(h->method, r->allow)) {
        if (!word_in(h->method, ALLOW_ALL ", PATCH, OPTIONS, TRACE, CONNECT"))
            return "501 the methods are " ALLOW_ALL;
        op->allow = r->allow;
        if (r->port == CONN_CLIENT && r->path[1] == '_' &&
            word_in(h->method, ALLOW_ALL))
            return "403 paths that begin with /_ are the system's: nodes are "
                   "removed on the peer port, a key is written as /%5F...";
        return "405 this path does not have that method: Allow says which";
    }
    refusal = query_check(op, query, r, word_in(h->method, READ), q);
    if (refusal != NULL)
        return refusal;
    if ((!r->early || op->lists) &&
        (op->w->view == NULL || !atomic_load(&node->loaded) ||
         (self_number(node) == 0 && r->body == NULL)))
        return starting_text(op);
    if (op->w->view != NULL && node_left(op->w) &&
        (r->path[0] == '*' || op->lists) && r->port == CONN_CLIENT)
        return LEFT;
    if (atomic_load(&node->parting) && r->body == beat_body)
        return "503 this node is stopping";
    return NULL;
}

/* What can be said against a write by its fields. *type is the one to keep. */
static const char *write_check(const struct http *h, struct slice *type) {
    struct slice rest = *type = h->type, bare = rest;

    if (h->part.p != NULL) /* RFC 9110, 14.5 */
        return "400 Content-Range is of a part: send the whole value, without "
               "it";
    if (h->coding.n > 0 && !slice_is_nocase(h->coding, "identity"))
        return "415 Content-Encoding is not kept, and nobody could tell that "
               "the value is encoded: send it decoded, or without the field";
    if (rest.n > TYPE_MAX)
        return "400 Content-Type is over 127 bytes: use a shorter one";
    if (rest.n > 0 && !http_media_type(rest))
        return "400 Content-Type must be type/subtype, then ;name=value each";
    slice_next(&rest, ';', &bare);
    if (slice_is_nocase(slice_trim(bare), "application/x-www-form-urlencoded"))
        type->n = 0;
    return NULL;
}

/* Begins a request for a key. */
static const char *key_begin(struct op *op, const struct http *h) {
    bool get = slice_is(h->method, "GET");
    struct slice type = {0};
    const char *refusal;

    refusal = op_key(op, slice_skip(op->path, 1));
    if (refusal != NULL)
        return refusal;
    if (!etags_fine(h->if_match) || !etags_fine(h->if_none_match))
        return "400 If-Match and If-None-Match have * or entity tags, like "
               "\"0123456789abcdef\", with commas between";
    if (!slice_copy(h->if_match, op->if_match, sizeof op->if_match) ||
        !slice_copy(h->if_none_match, op->if_none_match,
                    sizeof op->if_none_match))
        return "400 If-Match or If-None-Match is over 255 bytes: send fewer "
               "tags";
    op->reads = get || op->head;
    op->if_range = etag_parse(h->if_range);
    op->ranged = get && range_parse(h->range, &op->range) &&
                 (h->if_range.p == NULL || op->if_range != 0);
    if (op->reads) {
        op_begin(op);
        return NULL;
    }
    op->consistent =
        op->consistent || h->if_match.p != NULL || h->if_none_match.p != NULL;
    if (!op->remove && (refusal = write_check(h, &type)) != NULL)
        return refusal;
    op->body_most = op->w->node->flags.max_value;
    op->value_at = record_begin(&op->rec, op->key, type, op->remove);
    if (op->remove)
        op_begin(op);
    else
        op->body = op_begin;
    return NULL;
}

/* A whole head has arrived: the operation that it asks for begins. A body is
   read if op->body was set, and else skipped by whoever called. */
static const char *route_request(struct op *op, const struct http *h) {
    const struct node *node = op->w->node;
    struct buf text = {0};
    struct query q = {0};
    const struct route *r;
    const char *refusal;

    if (node->flags.debug)
        say("info", "request method=%.*s target=%.*s", (int)h->method.n,
            (const char *)h->method.p, (int)h->target.n,
            (const char *)h->target.p);
    op->keep = h->keep && (op->c->kind == CONN_PEER || /* more is behind it */
                           !atomic_load(&node->stopping));
    op->head = slice_is(h->method, "HEAD");
    op->remove = slice_is(h->method, "DELETE");
    op->method = 0; /* of those that are counted, or the last, "other" */
    while (op->method < METHODS - 1 &&
           !slice_is(h->method, method_names[op->method]))
        op->method++;
    r = route_find(op, h->path);
    refusal = route_check(op, h, r, h->query, &q);
    if (refusal != NULL)
        return refusal;
    if (op->lists) {
        refusal = list_begin(op, &q);
    } else if (r->text != NULL) {
        refusal = r->text(op, &text);
        if (refusal == NULL && !op->parked) {
            answer_begin(op, 200);
            answer_typed(op, r->says, buf_slice(&text));
        }
        buf_free(&text);
    } else if (r->body == NULL) {
        refusal = r->says != NULL ? r->says : key_begin(op, h);
    } else {
        intro_take(op, h->estoraje);
        op->body = peer_body;
        op->act = r->body;
        op->forwarded = r->body == consistent_body || r->body == value_body;
        op->body_most = RECORD_MAX;
        refusal = peer_check(op);
    }
    /* cppcheck-suppress returnDanglingLifetime ; refusals are literals */
    return refusal;
}

/* ----------------------------------------------------------- Starting up
 *
 * First all that can be refused without a trace: the command line, then the
 * directory, then the ports. Next the ring, from etcd if there is a cluster,
 * and with it the logs; only then the superblock says that this process has
 * begun. "ready" is printed when it is true.
 */

/* A number is at least 1; a port, and a time in seconds, may be 0. */
enum flag_kind { TEXT, PORT, NUMBER, SIZE, TIME, SWITCH };

#define AT(field) offsetof(struct flags, field)

static const struct flag {
    const char *name;
    enum flag_kind kind;
    size_t offset; /* in struct flags */
    uint64_t most;
    const char *value; /* the default */
    const char *help;
} flag_table[] = {
    {"name", TEXT, AT(name), 0, "node1", "of this node, unique in the cluster"},
    {"host", TEXT, AT(host), 0, "127.0.0.1", "where all reach this node"},
    {"listen", TEXT, AT(listen), 0, NULL, "address to bind, if not -host"},
    {"port", PORT, AT(port), 65535, "8000", "client API; 0 takes a free one"},
    {"peerPort", PORT, AT(peer_port), 65535, "9000",
     "node-to-node and administration, a private port; 0 likewise"},
    {"dataPath", TEXT, AT(data), 0, "data", "data directory"},
    {"initialCluster", TEXT, AT(initial_cluster), 0, NULL,
     "name=peerURL,... as etcd has it: runs an etcd here"},
    {"etcd", TEXT, AT(etcd), 0, NULL, "http://host:port,... of a running etcd"},
    {"add", SWITCH, AT(add), 0, "false", "join a cluster that already exists"},
    {"replicas", NUMBER, AT(replicas), REPLICAS_MAX, "3",
     "copies of each value; fixed when the cluster is created"},
    {"partitions", NUMBER, AT(partitions), PARTITIONS_MAX, "256",
     "of the key space, a power of two; fixed likewise"},
    {"zone", TEXT, AT(zone), 0, NULL, "replicas prefer distinct ones [-host]"},
    {"sync", TEXT, AT(sync), 0, "second",
     "always: acknowledged means on disk; second: flushed each second; none"},
    {"threads", NUMBER, AT(threads), WORKERS_MAX, NULL,
     "poll() loops [as many as CPUs]"},
    {"maxValue", SIZE, AT(max_value), VALUE_MAX, "64M",
     "largest value (K, M, G suffixes), 1G at most"},
    {"secretFile", TEXT, AT(secret_file), 0, NULL,
     "file with a secret that every peer-port request must carry"},
    {"moveRate", SIZE, AT(move_rate), UINT64_MAX, NULL,
     "bytes a second at most for joins, leaves and repair"},
    {"scrub", TIME, AT(scrub), SCRUB_MAX, "24h",
     "every value is read and verified once in this time (s, m, h); 0: never"},
    {"acceptDamage", SWITCH, AT(accept_damage), 0, "false",
     "start with unreadable records given up, after naming them"},
    {"check", TEXT, AT(check), 0, NULL,
     "look at the data directory of that name, and exit: 1 if it is damaged"},
    {"dump", TEXT, AT(dump), 0, NULL,
     "print the records of a log, a line each, and exit"},
    {"debug", SWITCH, AT(debug), 0, "false", "log every request"},
    {"help", SWITCH, AT(help), 0, "false", "this text"},
    {"version", SWITCH, AT(version), 0, "false", "the version"},
};

#define FLAGS (sizeof flag_table / sizeof flag_table[0])

static void flags_help(void) {
    printf("estoraje: a distributed key-value store that you use with curl\n\n"
           "  estoraje                            one node, on port 8000, data "
           "in ./data\n"
           "  estoraje -name node1 -initialCluster \\\n"
           "    node1=http://127.0.0.1:2380       a cluster of one, with an "
           "etcd beside it\n\n");
    for (const struct flag *f = flag_table; f < flag_table + FLAGS; f++)
        printf("  -%-14s %-9s %s\n", f->name, f->value ? f->value : "",
               f->help);
    exit(0);
}

/* Sets a flag. false: the value is bad. */
static bool flag_set(struct flags *flags, const struct flag *f,
                     const char *value) {
    static const struct unit {
        char letter;
        enum flag_kind kind;
        uint64_t of;
    } units[] = {{'K', SIZE, 1u << 10}, {'M', SIZE, 1u << 20},
                 {'G', SIZE, 1u << 30}, {'s', TIME, 1},
                 {'m', TIME, 60},       {'h', TIME, 3600}};
    void *field = (char *)flags + f->offset;
    struct slice s = slice_of(value);
    uint64_t x, of = 1;

    if (f->kind == TEXT) {
        *(const char **)field = value;
        return s.n > 0;
    }
    if (f->kind == SWITCH) {
        *(bool *)field = slice_is(s, "true");
        return *(bool *)field || slice_is(s, "false");
    }
    for (const struct unit *u = units; u < units + 6; u++)
        if (u->kind == f->kind && s.n > 0 && value[s.n - 1] == u->letter) {
            of = u->of;
            s.n--;
            break;
        }
    if (!slice_digits(s, 10, &x) || x > f->most / of ||
        (x == 0 && f->kind != PORT && f->kind != TIME))
        return false;
    *(uint64_t *)field = x * of;
    return true;
}

/* Reads the command line. */
static void flags_parse(struct flags *flags, char **argv) {
    for (const struct flag *f = flag_table; f < flag_table + FLAGS; f++)
        if (f->value != NULL)
            flag_set(flags, f, f->value);
    while (*++argv != NULL) {
        struct slice rest = slice_of(*argv), name = rest;
        const char *word = *argv, *value = strchr(word, '=');
        const struct flag *f = flag_table;

        if (rest.n < 2 || word[0] != '-')
            give_up(2, "stray word %s: flags begin with -, see -help", word);
        slice_next(&rest, '=', &name);
        name = slice_skip(name, word[1] == '-' ? 2 : 1);
        while (f < flag_table + FLAGS && !slice_is(name, f->name))
            f++;
        if (f == flag_table + FLAGS)
            give_up(2, "unknown flag %s, see -help", word);
        if (value != NULL)
            value++;
        else if (f->kind != SWITCH)
            value = *++argv;
        else
            value = argv[1] != NULL && flag_set(flags, f, argv[1]) ? *++argv
                                                                   : "true";
        if (value == NULL || !flag_set(flags, f, value))
            give_up(2, "-%s %s is not a value for it: %s", f->name,
                    value ? value : "(nothing)", f->help);
        flags->partitions_given |= f->offset == AT(partitions);
        flags->replicas_given |= f->offset == AT(replicas);
    }
}

/* Looks at what the flags say together; fills in what was not given. */
static void flags_check(struct node *node) {
    static const char *const syncs[] = {"always", "second", "none"};
    struct flags *f = &node->flags;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);

    if (f->threads == 0)
        f->threads = cpus < 1             ? 1
                     : cpus > WORKERS_MAX ? WORKERS_MAX
                                          : (uint64_t)cpus;
    f->listen = f->listen != NULL ? f->listen : f->host;
    f->zone = f->zone != NULL ? f->zone : f->host;
    while (node->sync <= SYNC_NONE && strcmp(f->sync, syncs[node->sync]) != 0)
        node->sync++;
    if (node->sync > SYNC_NONE)
        give_up(2, "-sync %s is not always, second or none", f->sync);
    if (!PARTITIONS_FIT(f->partitions))
        give_up(2, "-partitions %" PRIu64 " is not a power of two up to %d",
                f->partitions, PARTITIONS_MAX);
    if (!text_plain(f->name, NAME_MAX_BYTES) || strpbrk(f->name, ":%") != NULL)
        give_up(2, "-name %s: a name has 1 to %d letters, digits and .-_",
                f->name, NAME_MAX_BYTES);
    if (!text_plain(f->host, 255) || !text_plain(f->zone, 255))
        give_up(2, "-host %s, -zone %s: up to 255 letters, digits and .:-_%%",
                f->host, f->zone);
    if (f->initial_cluster != NULL && f->etcd != NULL)
        give_up(2, "-initialCluster and -etcd exclude each other");
    if (f->add && f->initial_cluster == NULL && f->etcd == NULL)
        give_up(2, "-add: say with -initialCluster or -etcd which cluster");
}

/* The secret is the file's first line. */
static void secret_read(struct node *node) {
    const char *path = node->flags.secret_file;
    const size_t most = sizeof node->secret - 2;
    char *secret = node->secret;
    size_t n = 0;
    int fd;

    if (path == NULL)
        return;
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read_at(fd, secret, most + 1, 0) < 0)
        give_up(1, "cannot read -secretFile %s: %s", path, strerror(errno));
    close(fd);
    while (secret[n] > ' ' && secret[n] < 127)
        n++;
    if (n == 0 || n > most || strchr("\r\n", secret[n]) == NULL)
        give_up(1, "-secretFile %s: no line of 1 to %zu ASCII characters", path,
                most);
    secret[n] = '\0';
}

/* ---- etcd: where it is, and the one beside this node. */

/* Whether there is an etcd on the PATH. */
static bool etcd_found(void) {
    const char *path = getenv("PATH");
    struct slice rest = slice_of(path != NULL ? path : ""), dir;
    char file[PATH_MAX];

    while (slice_next(&rest, ':', &dir)) {
        snprintf(file, sizeof file, "%.*s/etcd", (int)dir.n, (char *)dir.p);
        if (access(file, X_OK) == 0)
            return true;
    }
    return false;
}

/* Parses a list of URLs: of -initialCluster, each behind its name=, or of
   -etcd. false: malformed, or too long, at *bad. */
static bool endpoints_parse(struct etcd *e, const char *text, bool named,
                            struct slice *bad) {
    struct slice rest = slice_of(text), url, name;

    for (e->count = 0; list_next(&rest, bad); e->count++) {
        struct endpoint *to = &e->endpoints[e->count];

        url = *bad;
        if (e->count == ETCDS_MAX ||
            (named && (!slice_cut(&url, '=', &name) || !http_token(name) ||
                       !slice_copy(name, to->name, sizeof to->name))) ||
            !url_parse(url, to) || (to->tls && !named))
            return false;
        to->port -= named; /* it is the one for peers */
        for (unsigned i = 0; named && i < e->count; i++)
            if (strcmp(e->endpoints[i].name, to->name) == 0)
                return false;
    }
    return e->count > 0;
}

/* Notes where etcd is, and which one this node has beside it. */
static void etcd_prepare(struct node *node) {
    const struct flags *f = &node->flags;
    bool named = f->initial_cluster != NULL;
    const char *text = named ? f->initial_cluster : f->etcd;
    struct etcd *e = node->etcd = memory(1, sizeof *e);
    struct slice bad = {0};

    e->call.fd = e->watch.fd = -1;
    if (!endpoints_parse(e, text, named, &bad))
        give_up(2, "-%s: %.*s is not %s://host:port, one of %d at most",
                named ? "initialCluster" : "etcd", (int)bad.n, (char *)bad.p,
                named ? "name=http" : "http", ETCDS_MAX);
    while (named && strcmp(e->endpoints[e->at].name, f->name) != 0)
        if (++e->at == e->count)
            give_up(2, "-initialCluster does not name this node, -name %s",
                    f->name);
    if (named && f->add && e->count < 2)
        give_up(2, "-add: -initialCluster names no member of the cluster "
                   "beside this node");
    if (named && !etcd_found())
        give_up(1, "etcd is not on the PATH: install it (Debian: etcd-server), "
                   "or use a running one with -etcd");
}

/* A socket that is bound to a port, and the address that the host has; -1, and
   errno, if it cannot be. */
static int socket_bound(const char *host, unsigned port,
                        struct sockaddr_storage *address, socklen_t *n) {
    int fd, on = 1;

    if (!resolve(host, port, address, n))
        give_up(1, "cannot find the address of %s", host);
    fd = socket(address->ss_family, SOCK_STREAM, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)address, *n) == 0)
        return fd;
    close(fd);
    return -1;
}

/* Starts the sidecar, once its ports are free: those of the process before may
   take a moment. An etcd of somebody else must not be taken for it. */
static void sidecar_begin(struct node *node) {
    const struct endpoint *me = &node->etcd->endpoints[node->etcd->at];
    uint64_t until = now_ms() + STOP_MS / 2;
    struct sockaddr_storage address;
    struct join join;
    char text[300];
    socklen_t n = 0;
    int fd;

    for (unsigned port = me->port; port <= me->port + 1; port++) {
        while ((fd = socket_bound(me->host, port, &address, &n)) < 0) {
            if (stop_requested)
                exit(0);
            if (now_ms() >= until)
                give_up(1, "port %u of %s, which etcd here needs: %s", port,
                        me->host, strerror(errno));
            rest_ms(50);
        }
        close(fd);
    }
    getnameinfo((struct sockaddr *)&address, n, text, sizeof text, NULL, 0,
                NI_NUMERICHOST);
    if (node->flags.add)
        join_begin(node, &join);
    guardian_begin(node, text);
    if (node->flags.add)
        join_end(node, &join);
}

/* ---- The directory, and who this node is. */

/* Opens and locks the data directory, and reads who this node is. */
static void directory_open(struct node *node) {
    const char *path = node->flags.data;
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    const int flags = O_RDWR | O_CREAT | O_CLOEXEC;
    struct identity *self = &node->self;
    int64_t mark;
    int known;

    node->dir_fd = node->lock_fd = -1;
    if (mkdir(path, 0777) == 0 || errno == EEXIST)
        node->dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (node->dir_fd >= 0)
        node->lock_fd = openat(node->dir_fd, "lock", flags, 0666);
    if (node->lock_fd < 0)
        give_up(1, "cannot use the data directory %s: %s", path,
                strerror(errno));
    if (fcntl(node->lock_fd, F_SETLK, &lock) != 0)
        give_up(1, "the data directory %s is in use by another process", path);
    node->super_fd = openat(node->dir_fd, "superblock", flags, 0666);
    node->reserve_fd = openat(node->dir_fd, "reserve", flags, 0666);
    if (node->super_fd < 0 || node->reserve_fd < 0)
        give_up(1, "cannot open superblock or reserve in %s: %s", path,
                strerror(errno));
    known = super_read(node);
    if (known < 0)
        give_up(1, "%s/superblock is damaged or foreign; nothing was changed",
                path);
    if (known == 0) {
        self->id = random_id();
        self->clean = 1;
    }
    mark = known > 0 ? mark_length(node) : -1;
    node->unclean = !self->clean && mark < 0;
    node->older = mark > (int64_t)self->sequence || self->older != 0;
    node->begin_ceiling = self->ceiling;
    node->known_boot = self->boot;
}

/* -check: says of each file of a data directory, and of each stretch of one
   that is damaged, what is the matter, and changes nothing. */
static void __attribute__((noreturn)) directory_inspect(struct node *node) {
    const char *path = node->flags.data = node->flags.check;
    uint64_t salt = 0, size, bytes;
    bool fits = true, bad = false, damaged;

    node->dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    node->super_fd = openat(node->dir_fd, "superblock", O_RDONLY | O_CLOEXEC);
    if (node->dir_fd < 0 || node->super_fd < 0 || super_read(node) != 1)
        give_up(1, "%s has no superblock that can be read", path);
    printf("superblock ok id=%016" PRIx64 " cluster=%016" PRIx64
           " partitions=%" PRIu64 " replicas=%" PRIu64 "\n",
           node->self.id, node->self.cluster, node->self.partitions,
           node->self.replicas);
    node->partitions = (unsigned)node->self.partitions;
    wake_pipe(node->repair_wake);
    for (unsigned i = 0; i < PARTITIONS_MAX; i++) {
        struct part part = {.number = i};
        int fd = log_open(node, i, O_RDONLY, &salt, &fits);
        struct file file = {1, fd, salt};
        struct log *log = &part.log;
        uint64_t records = 0, print = 0;
        bool lost = log_lost(node, i, fd, salt);

        if (lost || (fd >= 0 && !fits))
            printf("%03u.log %s\n", i,
                   lost ? "damaged: missing or empty"
                        : "foreign, or its header is damaged");
        bad = bad || lost || (fd >= 0 && !fits);
        if (fd < 0 || lost || !fits)
            continue;
        mutex_init(&part.lock);
        log->file = &file;
        log->end = LOG_HEADER;
        if (salt != 0) /* else it was not begun */
            records = part_read(node, &part, &size);
        while (part_verify(node, &part, &print, &bytes))
            ;
        damaged = part.unsure > 0 || log->rotten > 0;
        bad = bad || damaged;
        printf("%03u.log %s records=%" PRIu64 " live=%u live_bytes=%" PRIu64
               " dead_bytes=%" PRIu64 "\n",
               i, damaged ? "damaged" : "ok", records, log->used, log->live,
               part_dead_bytes(&part));
        close(file.fd);
        free(log->table);
    }
    exit(bad);
}

/* What the flags and the directory say together. */
static void directory_check(const struct node *node) {
    const struct flags *f = &node->flags;
    const struct identity *self = &node->self;

    if (self->cluster != 0 && node->etcd == NULL && !self->alone)
        give_up(1, "%s is of a cluster: -initialCluster or -etcd is needed",
                f->data);
    if (self->alone && f->initial_cluster != NULL)
        give_up(1, "%s ran alone: it can found a cluster with -etcd only",
                f->data);
}

/* ---- The process: descriptors, ports, threads. */

/* Raises the limit of descriptors, and sees whether it is enough. */
static void descriptors_check(struct node *node, uint64_t partitions) {
    const rlim_t most = 1000000;
    rlim_t need = (rlim_t)partitions + FILES_RESERVED;
    struct rlimit limit;

    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < LOG_MAX)
        node->log_most = (uint64_t)limit.rlim_cur;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur <= need)
        give_up(1,
                "%u descriptors are too few for %u -partitions: see ulimit -n",
                (unsigned)limit.rlim_cur, (unsigned)partitions);
    limit.rlim_cur = limit.rlim_cur < most ? limit.rlim_cur : most;
    atomic_store(&node->connections_max, (unsigned)(limit.rlim_cur - need));
}

/* A listening socket; *port is the one that it got. */
static int listen_on(const char *host, uint64_t wanted, unsigned *port) {
    struct sockaddr_storage address;
    socklen_t n;
    int fd = socket_bound(host, (unsigned)wanted, &address, &n);
    char where[300];

    where_text(where, host, (unsigned)wanted);
    if (fd < 0 || listen(fd, 1024) != 0)
        give_up(1, "cannot listen on %s: %s", where, strerror(errno));
    fd_nonblocking(fd);
    getsockname(fd, (struct sockaddr *)&address, &n);
    *port = ntohs(address.ss_family == AF_INET6
                      ? ((struct sockaddr_in6 *)&address)->sin6_port
                      : ((struct sockaddr_in *)&address)->sin_port);
    return fd;
}

static void on_signal(int number) {
    (void)number;
    stop_requested = 1;
}

/* A log that is being read lies on a disk that fails. */
static void on_bus_error(int number) {
    static const char line[] = "estoraje: a log cannot be read from the disk\n";

    _exit(write(STDERR_FILENO, line, sizeof line - 1) < 0 ? number : 1);
}

/* What a signal interrupts, in any thread, goes on, unless it is a rest. */
static void signals_prepare(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    action.sa_handler = on_bus_error;
    sigaction(SIGBUS, &action, NULL);
    action.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &action, NULL);
    sigaction(SIGXFSZ, &action, NULL);
}

/* Starts a thread for whose end node_stop() waits. */
static void thread_start(struct node *node, void *(*run)(void *), void *arg) {
    if (pthread_create(&node->threads[node->thread_count++], NULL, run, arg))
        give_up(1, "cannot start a thread");
}

/* The house thread: the ceiling, the syncs of each second. A write that waits
   for the ceiling waits for this rest, and is tried again with the next
   tick of its worker. */
static void *house_run(void *arg) {
    struct node *node = arg;
    uint64_t sync_at = 0;

    while (!atomic_load(&node->ended)) {
        ceiling_raise(node);
        if (atomic_load(&node->forget)) {
            identity_forget(node);
            atomic_store(&node->forget, false);
        }
        if (now_ms() >= sync_at) {
            sync_at = now_ms() + 1000;
            reserve_take(node);
            if (node->sync != SYNC_NONE)
                sync_all(node);
        }
        rest_ms(TICK_MS / 2);
    }
    return NULL;
}

/* The partition that has most to gain from a compaction; NULL: there is none
   that is worth it. Adds up what is live, for the pace of the scrubber, and
   what else there is, for /_metrics. */
static struct part *care_choose(struct node *node, uint64_t *live) {
    uint64_t most = 0, largest = 0, room = disk_room(node), keys = 0, bytes = 0;
    struct part *chosen = NULL;
    unsigned damaged = 0;

    *live = 0;
    for (unsigned i = 0; i < node->partitions; i++) {
        struct part *part = &node->parts[i];

        pthread_mutex_lock(&part->lock);
        *live += part->log.live;
        keys += part->log.keys;
        bytes += part->log.end;
        if (part->log.live > largest)
            largest = part->log.live;
        damaged += part->log.rotten > 0 || part->unsure > 0;
        if (compact_wanted(node, part, room) && part_dead_bytes(part) >= most) {
            most = part_dead_bytes(part);
            chosen = part;
        }
        pthread_mutex_unlock(&part->lock);
    }
    *node->figures.live = *live;
    *node->figures.keys = keys;
    *node->figures.logged = bytes;
    atomic_store(&node->damaged, damaged);
    atomic_store(&node->largest, (largest >> 20 << 20) + (1u << 20));
    return chosen;
}

#define SCRUB_PAGES 16 /* at once, where it is late */

/* The care thread: compacts, for half of its time at most, unless room is
   short; and reads all values over and over, a page at a time, spread over the
   time that -scrub gives for a round. */
static void *care_run(void *arg) {
    struct node *node = arg;
    uint64_t due = now_ms(), began, live, bytes, pages, print = 0;
    unsigned number = 0;

    while (!atomic_load(&node->ended)) {
        struct part *part = care_choose(node, &live);

        began = now_ms();
        if (part != NULL)
            part_compact(node, part);
        pages = node->flags.scrub > 0 && live > 0 ? SCRUB_PAGES : 0;
        for (unsigned i = 0; i < node->partitions && pages > 0 && due <= began;
             i++) {
            if (!part_verify(node, &node->parts[number], &print, &bytes)) {
                number = (number + 1) % node->partitions;
                print = 0;
            }
            due += (uint64_t)((double)node->flags.scrub * 1000 *
                              ((double)bytes / (double)live));
            pages -= bytes > 0;
        }
        if (part == NULL)
            node_rest(node, 5 * TICK_MS);
        else if (!atomic_load(&node->full))
            node_rest(node, now_ms() - began);
    }
    return NULL;
}

/* Has a view in force, of this node alone or of the cluster, and the directory
   claimed. */
static void cluster_begin(struct node *node) {
    if (node->etcd == NULL)
        view_alone(node);
    else
        etcd_begin(node, node->etcd);
    if (stop_requested)
        exit(node->exit_code);
    if (node->older && !copy_found(node, node->view))
        exit(node->exit_code);
    if (atomic_load(&node->standing) == STANDING_UNKNOWN)
        atomic_store(&node->standing, STANDING_SOUND);
    identity_begin(node);
    if (node->etcd != NULL)
        thread_start(node, etcd_run, node);
}

/* Makes what the threads share, and starts the workers: /_health is answered
   from now on. */
static void workers_begin(struct node *node) {
    *node->figures.began = now_us() / 1000000;
    node->peers = memory(MEMBERS_MAX + 1, sizeof *node->peers);
    mutex_init(&node->view_lock);
    mutex_init(&node->reserve_lock);
    wake_pipe(node->repair_wake);
    wake_pipe(node->etcd_wake);
    node->worker_count = (unsigned)node->flags.threads;
    node->workers = memory(node->worker_count, sizeof *node->workers);
    for (unsigned i = 0; i < node->worker_count; i++)
        worker_init(&node->workers[i], node, i);
    for (unsigned i = 0; i < node->worker_count; i++)
        thread_start(node, worker_run, &node->workers[i]);
}

/* Takes over what the ring says, and reads the logs; says in the superblock
   that this process uses them from now on, which is not clean but with -sync
   always; starts the other threads. */
static void store_begin(struct node *node) {
    struct view *view = view_hold(node);
    struct identity *self = &node->self;
    bool first = self->cluster == 0, forgets = false, had = self->logs != 0;

    self->cluster = view->cluster;
    memcpy(self->hash, view->hash, sizeof self->hash);
    self->partitions = node->partitions = view->partitions;
    self->replicas = view->replicas;
    self->alone = node->etcd == NULL;
    atomic_store(&node->clock, self->ceiling);
    atomic_store(&node->ceiling, self->ceiling);
    descriptors_check(node, node->partitions);
    reserve_take(node);
    if (first) /* logs must not be there before whose they are is known */
        identity_save(node);
    store_load(node);
    self->logs = 1;
    if (node->unclean && had)
        say("warning", "the machine went down while this node ran: what it "
                       "wrote last may be lost, and is repaired first");
    if (view->count == 1) {
        node->unclean = false; /* nobody could make it good */
        mark_make(node);
    }
    for (unsigned i = 0; i < node->partitions; i++) {
        struct part *part = &node->parts[i]; /* damage makes it forget, too */

        part->recovering =
            view->count > 1 &&
            (node->unclean || part->recovering || part->unsure > 0);
        forgets = forgets || part->recovering;
    }
    node->unclean = forgets;
    view_release(view);
    self->clean = node->sync == SYNC_ALWAYS && !node->unclean;
    for (unsigned i = 0; self->clean && i < node->partitions; i++)
        sync_part(node, &node->parts[i]); /* what others left, and it vouches */
    self->clean = self->clean && atomic_load(&node->dead_logs) == 0;
    identity_save(node);
    atomic_store(&node->loaded, true);
    thread_start(node, house_run, node);
    thread_start(node, repair_run, node);
    thread_start(node, care_run, node);
    workers_wake(node);
    wake_write(node->etcd_wake[1]); /* now it can join */
}

/* Waits until this node is a member, and then until there is no doubt left, for
   two seconds at most: then the first reads need not. The last line is bare. */
static void ready_wait(struct node *node) {
    uint64_t until = now_ms() + LOST_MS;
    const struct peer *me;
    char where[300];

    while (self_number(node) == 0 && !stop_requested) {
        rest_ms(5);
        if (now_ms() < until)
            continue;
        say("info", "this node joins when no other change of the ring runs");
        until = now_ms() + 10000;
    }
    me = &node->peers[self_number(node)];
    until = now_ms() + LOST_MS;
    while (atomic_load(&me->said[SAID_DOUBT]) > 0 && now_ms() < until &&
           !stop_requested)
        rest_ms(5);
    where_text(where, node->flags.host, node->client_port);
    say("info", "listening port=%u peerPort=%u", node->client_port,
        node->peer_port);
    if (!stop_requested && !atomic_load(&node->left))
        fprintf(stderr, "ready http://%s\n", where);
}

/* Whether all members that live know that this node stops, or had time to hear
   it since that began. They are told with a heartbeat, at once. */
static bool stop_known(struct node *node, uint64_t began) {
    struct view *view = view_hold(node);
    bool known = true;

    for (unsigned i = 0; i < view->count && now_ms() < began + BEAT_MS; i++) {
        struct peer *peer = &node->peers[view->member[i].number];

        if (i == view->me || !member_alive(node, view->member[i].number) ||
            atomic_load(&peer->heard) > began)
            continue;
        atomic_store(&peer->missed_any, true);
        known = false;
    }
    view_release(view);
    return known;
}

/* Stops: no new connections; what is in flight is finished, for clients of the
   other nodes, too, who take another owner for what comes; all is synced. */
static void node_stop(struct node *node) {
    uint64_t until = now_ms() + STOP_MS, told = 0, quiet = 0;

    say("info", "stopping");
    atomic_store(&node->stopping, true);
    dup2(node->dir_fd, node->client_fd); /* closes the listener, and keeps its
                                            number from other use */
    workers_wake(node);
    for (; now_ms() < until; rest_ms(10)) {
        if (told == 0 && atomic_load(&node->at_work) == 0) {
            told = now_ms();
            atomic_store(&node->parting, true);
        }
        if (told != 0 && !stop_known(node, told)) /* and what was asked before
                                                     is on its way */
            quiet = now_ms() + BEAT_MS / 5;
        else if (told != 0 && now_ms() >= quiet &&
                 atomic_load(&node->served) == 0)
            break;
    }
    dup2(node->dir_fd, node->peer_fd); /* not before: what is in flight */
    atomic_store(&node->ended, true);
    workers_wake(node);
    wake_write(node->etcd_wake[1]);
    wake_write(node->repair_wake[1]);
    for (unsigned i = 0; i < node->thread_count; i++)
        pthread_join(node->threads[i], NULL);
    store_end(node);
    guardian_stop(node);
    node->self.clean = node->sync != SYNC_NONE && !node->unclean &&
                       atomic_load(&node->dead_logs) == 0;
    if (node->told_older > node->self.older)
        node->self.older = node->told_older;
    if (super_write(node) == 0 && node->self.clean)
        mark_remove(node, node->self.boot);
}

int main(int argc, char **argv) {
    struct node here = {0}, *node = &here;
    struct flags *flags = &node->flags;

    (void)argc;
    flags_parse(flags, argv);
    if (flags->help)
        flags_help();
    if (flags->version)
        exit(puts(VERSION_TEXT) < 0);
    node->log_most = LOG_MAX;
    atomic_store(&node->full, true); /* until the reserve is there */
    if (flags->check != NULL)
        directory_inspect(node);
    if (flags->dump != NULL)
        log_dump(flags->dump);
    flags_check(node);
    secret_read(node);
    if (flags->etcd != NULL || flags->initial_cluster != NULL)
        etcd_prepare(node);
    directory_open(node);
    directory_check(node);
    logs_check(node);
    descriptors_check(node, flags->partitions);
    signals_prepare();
    node->client_fd = listen_on(flags->listen, flags->port, &node->client_port);
    node->peer_fd =
        listen_on(flags->listen, flags->peer_port, &node->peer_port);
    if (flags->initial_cluster != NULL)
        sidecar_begin(node);
    workers_begin(node);
    cluster_begin(node);
    store_begin(node);
    ready_wait(node);
    while (!stop_requested) /* a thread that fails sets it, too */
        rest_ms(100);
    node_stop(node);
    exit(node->exit_code); /* which frees all that hangs off node */
}
