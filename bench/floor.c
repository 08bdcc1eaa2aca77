/*
 * floor.c - the least that a poll() server must do for a key-value request.
 *
 * make bench divides the CPU time that estoraje spends on a request by the
 * time that this program spends on the same bytes in the same minute, so that
 * a slow or a noisy machine weighs on both sides. What is here cannot be
 * left out by any server that keeps its values in files and waits in poll():
 *
 *   GET, present   poll, read, pread of a whole record, writev of header, value
 *   GET, absent    poll, read, write
 *   PUT, DELETE    poll, read, write to a log, write of the answer
 *
 * and what a store adds to it is missing:
 *
 * - No parser. A request's length is worked out once for each connection and
 *   method, and taken for granted after that. The method is its first letter.
 *   A key that begins with "a" is absent, every other one is present.
 * - No index. A GET reads a record chosen at random; a PUT is not remembered.
 * - No copies and no checksum. The request, as it came, is the record that is
 *   appended: its header is about as long as a record's header and key.
 * - No fsync and no compaction: a log of 64 MiB is emptied and begun anew,
 *   which also spares it the cost of memory that was never used before.
 * - No care for a client that does not read: sockets block.
 *
 * One record is one write(), not one write() for all the requests of a turn:
 * a store with many logs seldom has two neighbours to join, and one that does
 * join them must copy them. Each thread has a log of its own, so that no two
 * wait for one another. The main thread accepts connections and deals them
 * out to the threads in turn.
 *
 * usage: floor -p PORT -d DIR [-t THREADS] [-k KEYS] [-v BYTES] [-s SECONDS]
 *
 * The data file (KEYS values of BYTES each) and the logs lie in DIR without
 * a name, so nothing is left behind. It ends after SECONDS, or on a signal.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS_MAX 1024 /* of one thread */
#define THREADS_MAX     64
#define RECORD_HEADER   74                 /* header and key before a value */
#define REQUEST_ROOM    4096               /* for a request's header */
#define LOG_MAX         ((size_t)64 << 20) /* a log starts anew beyond this */

struct answer {
    char text[512];
    size_t length;
};

/* What all threads share; nothing in it changes once they run. */
struct floor {
    unsigned port;
    const char *dir;
    unsigned threads;
    unsigned keys;
    unsigned size;    /* of a value, bytes */
    unsigned seconds; /* to live */
    int data;         /* keys records of record bytes each */
    size_t record;
    struct answer found;   /* a 200, but for its value */
    struct answer absent;  /* a 404 */
    struct answer written; /* a 204 */
};

struct connection {
    char *in;         /* what was read and not answered yet */
    size_t have;      /* bytes of it */
    size_t length[3]; /* of a GET, a PUT, a DELETE; 0: not known yet */
};

struct worker {
    const struct floor *floor;
    int new_fd; /* a pipe: the accepted descriptors */
    int log;
    size_t log_size;
    uint64_t random;
    char *record; /* where a value is read to */
    nfds_t count; /* of fds in use; [0] is new_fd */
    struct pollfd fds[CONNECTIONS_MAX + 1];
    struct connection connections[CONNECTIONS_MAX + 1];
};

static volatile sig_atomic_t stopping;

static void on_signal(int number) {
    (void)number;
    stopping = 1;
}

/* Ends the program with a line that names what failed. */
static void die(const char *what) {
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *allocate(size_t size) {
    void *p = calloc(1, size);

    if (p == NULL)
        die("memory");
    return p;
}

/* Opens a new file in the data directory and takes its name away. */
static int file_new(const struct floor *f) {
    char path[4096];
    int fd;

    snprintf(path, sizeof path, "%s/floor-XXXXXX", f->dir);
    fd = mkstemp(path);
    if (fd < 0 || unlink(path) != 0)
        die(path);
    return fd;
}

/* Fills the data file, so that each pread finds its pages in memory. */
static void data_make(struct floor *f) {
    char *record;
    unsigned i;

    f->record = RECORD_HEADER + f->size;
    f->data = file_new(f);
    record = allocate(f->record);
    memset(record, 'v', f->record);
    for (i = 0; i < f->keys; i++)
        if (write(f->data, record, f->record) != (ssize_t)f->record)
            die("data file");
    free(record);
}

/* Makes one answer: its first lines, then those that all of them have. */
static void answer_make(struct answer *a, const char *first) {
    char date[64];
    struct tm tm;
    time_t now = time(NULL);

    gmtime_r(&now, &tm);
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", &tm);
    a->length = (size_t)snprintf(
        a->text, sizeof a->text,
        "%sX-Content-Type-Options: nosniff\r\nDate: %s\r\n\r\n", first, date);
}

/* Makes the answers, with the fields and so about the bytes of estoraje's. */
static void answers_make(struct floor *f) {
    char first[256];

    snprintf(first, sizeof first,
             "HTTP/1.1 200 OK\r\nContent-Length: %u\r\n"
             "Content-Type: application/octet-stream\r\n"
             "ETag: \"0123456789abcdef\"\r\nAccept-Ranges: bytes\r\n",
             f->size);
    answer_make(&f->found, first);
    answer_make(&f->absent, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n");
    answer_make(&f->written,
                "HTTP/1.1 204 No Content\r\nETag: \"0123456789abcdef\"\r\n");
}

/*
 * The length of the first request in have bytes, header and body, or 0 if
 * its header is not complete. Called once for each connection and method.
 */
static size_t request_measure(const char *in, size_t have) {
    char header[REQUEST_ROOM + 1];
    const char *end;
    const char *field;
    size_t length;

    if (have > REQUEST_ROOM)
        have = REQUEST_ROOM;
    memcpy(header, in, have);
    header[have] = '\0';
    end = strstr(header, "\r\n\r\n");
    if (end == NULL)
        return 0;
    length = (size_t)(end - header) + 4;
    field = strstr(header, "Content-Length: ");
    if (field != NULL && field < end)
        length += (size_t)strtoul(field + 16, NULL, 10);
    return length;
}

/* Answers a GET of a present key. False: the client is gone. */
static int answer_value(struct worker *w, int fd) {
    const struct floor *f = w->floor;
    struct iovec parts[2];
    uint64_t i;

    w->random ^= w->random << 13;
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    i = w->random % f->keys;
    if (pread(f->data, w->record, f->record, (off_t)(i * f->record)) !=
        (ssize_t)f->record)
        die("pread");
    parts[0].iov_base = (void *)(uintptr_t)f->found.text;
    parts[0].iov_len = f->found.length;
    parts[1].iov_base = w->record + RECORD_HEADER;
    parts[1].iov_len = f->size;
    return writev(fd, parts, 2) > 0;
}

/* Appends a request to the log and answers it. False: the client is gone. */
static int answer_write(struct worker *w, int fd, const char *in,
                        size_t length) {
    if (w->log_size > LOG_MAX) {
        if (ftruncate(w->log, 0) != 0 || lseek(w->log, 0, SEEK_SET) != 0)
            die("log");
        w->log_size = 0;
    }
    if (write(w->log, in, length) != (ssize_t)length)
        die("log");
    w->log_size += length;
    return write(fd, w->floor->written.text, w->floor->written.length) > 0;
}

/*
 * Reads once and answers every whole request that is there; what is left
 * moves to the buffer's start. False: close the connection.
 */
static int connection_serve(struct worker *w, struct connection *c, int fd) {
    const struct floor *f = w->floor;
    size_t room = REQUEST_ROOM + f->size;
    size_t done = 0;
    ssize_t got = read(fd, c->in + c->have, room - c->have);

    if (got <= 0)
        return 0;
    c->have += (size_t)got;
    while (done < c->have) {
        const char *in = c->in + done;
        int method = *in == 'G' ? 0 : *in == 'P' ? 1 : 2;
        size_t length = c->length[method];
        int ok;

        if (length == 0)
            length = request_measure(in, c->have - done);
        if (length > room)
            return 0;
        if (length == 0 || length > c->have - done)
            break;
        c->length[method] = length;
        if (method != 0)
            ok = answer_write(w, fd, in, length);
        else if (in[5] != 'a')
            ok = answer_value(w, fd);
        else
            ok = write(fd, f->absent.text, f->absent.length) > 0;
        if (!ok)
            return 0;
        done += length;
    }
    c->have -= done;
    if (c->have > 0)
        memmove(c->in, c->in + done, c->have);
    return c->have < room;
}

/* Takes a connection that the main thread has accepted. */
static void worker_add(struct worker *w) {
    struct connection *c = &w->connections[w->count];
    int fd;

    if (read(w->new_fd, &fd, sizeof fd) != (ssize_t)sizeof fd)
        die("pipe");
    if (w->count > CONNECTIONS_MAX) {
        close(fd);
        return;
    }
    memset(c, 0, sizeof *c);
    c->in = allocate(REQUEST_ROOM + w->floor->size);
    w->fds[w->count].fd = fd;
    w->fds[w->count].events = POLLIN;
    w->fds[w->count].revents = 0;
    w->count++;
}

/* Closes connection i; the last one takes its place. */
static void worker_drop(struct worker *w, nfds_t i) {
    close(w->fds[i].fd);
    free(w->connections[i].in);
    w->count--;
    w->fds[i] = w->fds[w->count];
    w->connections[i] = w->connections[w->count];
}

/* A thread's life. It walks backwards, so that a drop hides no neighbour. */
static void *worker_run(void *argument) {
    struct worker *w = argument;
    nfds_t i;

    for (;;) {
        if (poll(w->fds, w->count, -1) < 0 && errno != EINTR)
            die("poll");
        for (i = w->count - 1; i > 0; i--)
            if (w->fds[i].revents != 0 &&
                !connection_serve(w, &w->connections[i], w->fds[i].fd))
                worker_drop(w, i);
        if (w->fds[0].revents != 0)
            worker_add(w);
    }
    return NULL;
}

/* Starts thread number n; the answer is where to write its connections. */
static int worker_start(const struct floor *f, unsigned n) {
    struct worker *w = allocate(sizeof *w);
    pthread_t thread;
    int ends[2];

    if (pipe(ends) != 0)
        die("pipe");
    w->floor = f;
    w->new_fd = ends[0];
    w->log = file_new(f);
    w->random = 88172645463325252u + n;
    w->record = allocate(f->record);
    w->fds[0].fd = w->new_fd;
    w->fds[0].events = POLLIN;
    w->count = 1;
    if (pthread_create(&thread, NULL, worker_run, w) != 0)
        die("thread");
    return ends[1];
}

static int listener_open(const struct floor *f) {
    struct sockaddr_in address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    int on = 1;

    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons((uint16_t)f->port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(fd, CONNECTIONS_MAX) != 0)
        die("listen");
    return fd;
}

/* Reads the command line; a mistake ends the program. */
static void flags_read(struct floor *f, int argc, char **argv) {
    int c;

    while ((c = getopt(argc, argv, "p:d:t:k:v:s:")) != -1) {
        unsigned number = optarg ? (unsigned)strtoul(optarg, NULL, 10) : 0;

        switch (c) {
        case 'p':
            f->port = number;
            break;
        case 'd':
            f->dir = optarg;
            break;
        case 't':
            f->threads = number;
            break;
        case 'k':
            f->keys = number;
            break;
        case 'v':
            f->size = number;
            break;
        case 's':
            f->seconds = number;
            break;
        default:
            exit(2);
        }
    }
    if (f->port == 0 || f->port > 65535 || f->dir == NULL || f->keys == 0 ||
        f->size == 0 || f->threads == 0 || f->threads > THREADS_MAX) {
        fprintf(stderr, "floor: -p PORT and -d DIR are needed,"
                        " and no number may be 0\n");
        exit(2);
    }
}

int main(int argc, char **argv) {
    struct floor f = {.keys = 100000, .size = 1024, .seconds = 600};
    struct sigaction action = {.sa_handler = on_signal};
    struct pollfd wait = {.events = POLLIN};
    int give[THREADS_MAX];
    time_t end;
    unsigned n;
    int on = 1;
    int fd;

    f.threads = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
    flags_read(&f, argc, argv);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    answers_make(&f);
    data_make(&f);
    wait.fd = listener_open(&f);
    for (n = 0; n < f.threads; n++)
        give[n] = worker_start(&f, n);
    end = time(NULL) + (time_t)f.seconds;
    for (n = 0; !stopping && time(NULL) < end;) {
        if (poll(&wait, 1, 200) <= 0)
            continue;
        fd = accept(wait.fd, NULL, NULL);
        if (fd < 0)
            continue;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (write(give[n++ % f.threads], &fd, sizeof fd) != (ssize_t)sizeof fd)
            die("pipe");
    }
    return 0;
}
