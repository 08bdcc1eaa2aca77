/* harness.h - what the black-box tests share

   The tests that include this file know the program only as a user does:
   a binary (environment ESTORAJE, default ./estoraje), its flags, its exit
   codes, its log and its sockets.  Here is what they need for that:

     the run       a temporary directory, ports of our own, a keeper that
                   cleans up however the test program ends
     processes     start, run to the end, find by command line
     servers       a process with a log: start, ready, stop, kill -9
     the client    a small blocking HTTP client on a raw socket
     files         read, write, add up a whole directory

   Every wait has a deadline and polls for what it waits for.  A check that
   fails says where, shows the last lines of every server's log, and fails
   the cmocka test.  Environment: KEEP=1 keeps the directory, TORTURE=1 asks
   for the long forms, SAMPLE=n for an n-th of the bulk work.

   Checks may be made in the main thread only (cmocka jumps out of the
   test); other threads count their errors and the main thread checks. */

#ifndef HARNESS_H
#define HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    LIMIT_MS = 30000, /* the longest that any one wait may take */
    MAX_SERVERS = 32, /* servers of one test program at a time */
    MAX_ARGS = 40,    /* words of one command line */
    MAX_PATH = 512,   /* a path under the temporary directory */
    MAX_PORTS = 512,  /* ports reserved by one test program */
    LOG_TAIL = 12     /* lines of each log shown on a failure */
};

/* A process with a log that the test starts and ends. */
struct server {
    char name[32];
    char dir[MAX_PATH]; /* its -dataPath */
    char log[MAX_PATH]; /* its stdout and stderr, appended */
    long log_from;      /* where this start's part of it begins */
    char cwd[MAX_PATH]; /* working directory, "" for ours */
    rlim_t descriptors; /* its descriptor limit, 0 for ours */
    char text[4096];    /* the words that argv points to */
    size_t text_len;
    char *argv[MAX_ARGS];
    int argc;
    pid_t pid;      /* 0 when it is not running */
    int port, peer; /* client port and peer port, once known */
};

/* The state of this test program, of which there is one. */
static struct run {
    char dir[MAX_PATH];
    char exe[MAX_PATH]; /* a link to the binary, in dir: so every
                                  process of ours has dir in its command
                                  line and can be found by it */
    pid_t keeper;
    int keeper_fd;
    int ports[MAX_PORTS]; /* sockets that hold our ports */
    size_t port_count;
    uint64_t random;
    struct server servers[MAX_SERVERS];
    size_t server_count;
    unsigned made; /* servers made so far, for their names */
} the_run;

/* ---- Time and chance ------------------------------------------------- */

/* Milliseconds on the monotonic clock. */
static inline long now_ms(void) {
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (long)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Rests between two looks at a condition. */
static inline void pause_ms(long ms) {
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};

    nanosleep(&t, NULL);
}

/* The next number of the xorshift sequence in *s, which is never 0. */
static inline uint64_t random_next(uint64_t *s) {
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

/* Fills len bytes that depend on the seed alone. */
static inline void random_bytes(char *p, size_t len, uint64_t seed) {
    uint64_t s = seed * 0x9E3779B97F4A7C15u | 1;

    for (size_t i = 0; i < len; i++)
        p[i] = (char)(random_next(&s) >> 32);
}

/* True when the environment asks for the long forms. */
static inline bool torture(void) {
    const char *s = getenv("TORTURE");

    return s != NULL && strcmp(s, "1") == 0;
}

/* Bulk work n, or the part of it that SAMPLE leaves; at least 1. */
static inline size_t sampled(size_t n) {
    const char *s = getenv("SAMPLE");
    size_t by = s != NULL ? (size_t)strtoul(s, NULL, 10) : 1;

    return by <= 1 ? n : n / by > 0 ? n / by : 1;
}

/* ---- Files ----------------------------------------------------------- */

/* The bytes of a file and a NUL after them, or NULL; the caller frees. */
static inline char *file_read(const char *path, size_t *len) {
    FILE *f = fopen(path, "rb");
    size_t cap = 4096, n;
    char *p = NULL;

    *len = 0;
    if (f == NULL)
        return NULL;
    do {
        cap *= 2;
        p = realloc(p, cap + 1);
        if (p == NULL)
            abort();
        n = fread(p + *len, 1, cap - *len, f);
        *len += n;
    } while (*len == cap);
    fclose(f);
    p[*len] = '\0';
    return p;
}

/* Makes path hold exactly these bytes; mode is fopen's: "wb" or "ab". */
static inline bool file_write(const char *path, const char *mode, const void *p,
                              size_t len) {
    FILE *f = fopen(path, mode);
    bool ok = f != NULL && fwrite(p, 1, len, f) == len;

    return f != NULL && fclose(f) == 0 && ok;
}

/* The size of a file, or -1 when there is none. */
static inline long file_size(const char *path) {
    struct stat st;

    return stat(path, &st) == 0 ? (long)st.st_size : -1;
}

/* One number for all names and bytes under a directory: equal before and
   after means that nothing was changed. */
static inline uint64_t tree_sum(const char *dir) {
    DIR *d = opendir(dir);
    struct dirent *e;
    uint64_t sum = 0;

    while (d != NULL && (e = readdir(d)) != NULL) {
        char path[2 * MAX_PATH];
        uint64_t h = 14695981039346656037u;
        struct stat st;
        size_t len = 0;
        char *p;

        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        for (p = path; *p != '\0'; p++)
            h = (h ^ (uint8_t)*p) * 1099511628211u;
        if (lstat(path, &st) == 0 && S_ISDIR(st.st_mode))
            sum += tree_sum(path);
        else if ((p = file_read(path, &len)) != NULL) {
            for (size_t i = 0; i < len; i++)
                h = (h ^ (uint8_t)p[i]) * 1099511628211u;
            free(p);
        }
        sum += h;
    }
    if (d != NULL)
        closedir(d);
    return sum;
}

/* ---- Checks ---------------------------------------------------------- */

/* Prints the last lines of the log of one server. */
static inline void log_show(const struct server *s) {
    size_t len, lines = 0;
    char *all = file_read(s->log, &len), *p = all + len;

    if (all == NULL)
        return;
    while (p > all && (p[-1] != '\n' || lines++ < LOG_TAIL + 1))
        p--;
    fprintf(stderr, "--- the end of %s\n%s\n", s->log, p);
    free(all);
}

/* Fails the test that is running: says where and why, shows the logs. */
static inline void test_failed(const char *file, int line, const char *what,
                               const char *fmt, ...) {
    va_list ap;

    fprintf(stderr, "%s:%d: failed: %s\n    ", file, line, what);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\n");
    for (size_t i = 0; i < the_run.server_count; i++)
        log_show(&the_run.servers[i]);
    _fail(file, line);
    abort();
}

/* check(condition, "format", ...): the format says what was seen. */
#define check(cond, ...)                                         \
    do {                                                         \
        if (!(cond))                                             \
            test_failed(__FILE__, __LINE__, #cond, __VA_ARGS__); \
    } while (0)

/* Polls until the condition holds; fails when it does not within ms. */
#define wait_until(cond, ms, ...)                  \
    do {                                           \
        long until_ = now_ms() + (ms);             \
        while (!(cond)) {                          \
            check(now_ms() < until_, __VA_ARGS__); \
            pause_ms(5);                           \
        }                                          \
    } while (0)

/* Says which part of a longer test begins. */
static inline void part(const char *fmt, ...) {
    va_list ap;

    printf("             - ");
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
}

/* The sanitizer's report in a text, or NULL when there is none. */
static inline const char *sanitizer_report(const char *text) {
    static const char *const signs[] = {
        "ERROR: AddressSanitizer",
        "runtime error:",
        "LeakSanitizer",
        "WARNING: ThreadSanitizer",
        "ThreadSanitizer:DEADLYSIGNAL",
        "AddressSanitizer:DEADLYSIGNAL",
    };

    for (size_t i = 0; i < sizeof signs / sizeof signs[0]; i++) {
        const char *at = strstr(text, signs[i]);
        if (at != NULL)
            return at;
    }
    return NULL;
}

/* Lines in a text; a last one that no newline ends counts too. */
static inline size_t text_lines(const char *text) {
    size_t n = 0;

    for (const char *p = text; *p != '\0'; p++)
        n += *p == '\n' || p[1] == '\0';
    return n;
}

/* How often a word occurs in a text. */
static inline size_t text_count(const char *text, const char *word) {
    size_t n = 0;

    for (const char *p = text; (p = strstr(p, word)) != NULL; p++)
        n++;
    return n;
}

/* Takes the blanks outside strings out of a JSON text, in place. */
static inline char *json_squeeze(char *json) {
    bool quoted = false;
    char *to = json;

    for (char *p = json; *p != '\0'; p++) {
        if (*p == '"' && (p == json || p[-1] != '\\'))
            quoted = !quoted;
        if (quoted || !isspace((unsigned char)*p))
            *to++ = *p;
    }
    *to = '\0';
    return json;
}

/* ---- Processes ------------------------------------------------------- */

/* The processes whose command line holds text, at most max of them; with
   comm, only those of that program name.  Answers how many. */
static inline size_t processes_find(const char *text, const char *comm,
                                    pid_t *pids, size_t max) {
    DIR *d = opendir("/proc");
    struct dirent *e;
    size_t n = 0;

    while (d != NULL && n < max && (e = readdir(d)) != NULL) {
        char path[300], *all;
        size_t len;
        bool found;

        if (!isdigit((unsigned char)e->d_name[0]))
            continue;
        snprintf(path, sizeof path, "/proc/%s/cmdline", e->d_name);
        if ((all = file_read(path, &len)) == NULL)
            continue;
        for (size_t i = 0; i < len; i++)
            all[i] = all[i] == '\0' ? ' ' : all[i];
        found = strstr(all, text) != NULL;
        free(all);
        if (found && comm != NULL) {
            snprintf(path, sizeof path, "/proc/%s/comm", e->d_name);
            all = file_read(path, &len);
            found = all != NULL && strncmp(all, comm, strlen(comm)) == 0;
            free(all);
        }
        if (found)
            pids[n++] = (pid_t)strtol(e->d_name, NULL, 10);
    }
    if (d != NULL)
        closedir(d);
    return n;
}

/* How many processes have text in their command line. */
static inline size_t processes_count(const char *text) {
    pid_t pids[64];

    return processes_find(text, NULL, pids, 64);
}

/* Starts argv, its output appended to two files, in a process group of its
   own.  cwd and path (a PATH for it) may be NULL, descriptors 0.  Safe while
   threads run: the child does little more than exec. */
static inline pid_t spawn(char *const argv[], const char *out, const char *err,
                          const char *cwd, const char *path,
                          rlim_t descriptors) {
    int flags = O_WRONLY | O_CREAT | O_APPEND;
    struct rlimit limit = {descriptors, descriptors};
    pid_t pid = fork();

    if (pid != 0)
        return pid;
    setpgid(0, 0);
    if (dup2(open("/dev/null", O_RDONLY), 0) < 0 ||
        dup2(open(out, flags, 0600), 1) < 0 ||
        dup2(open(err, flags, 0600), 2) < 0 ||
        (cwd != NULL && chdir(cwd) < 0) ||
        (path != NULL && setenv("PATH", path, 1) < 0))
        _exit(126);
    for (int fd = 3; fd < 1024; fd++)
        close(fd);
    if (descriptors > 0 && setrlimit(RLIMIT_NOFILE, &limit) < 0)
        _exit(126);
    signal(SIGPIPE, SIG_DFL);
    execvp(argv[0], argv);
    _exit(127);
}

/* Waits until a child has ended; its exit code, 128 + the signal that ended
   it, or -1 when it is still there after ms. */
static inline int process_wait(pid_t pid, long ms) {
    long until = now_ms() + ms;
    int status;

    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (now_ms() >= until)
            return -1;
        pause_ms(2);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Cuts a line of words at its blanks, in place; answers how many. */
static inline int words_cut(char *line, char **argv, int max) {
    int n = 0;

    while (n < max - 1) {
        line += strspn(line, " ");
        if (*line == '\0')
            break;
        argv[n++] = line;
        line += strcspn(line, " ");
        if (*line != '\0')
            *line++ = '\0';
    }
    argv[n] = NULL;
    return n;
}

/* What a command that ran to its end gave. */
struct output {
    int code;
    char *out, *err;
    const char *path; /* in: a PATH for it, or NULL */
    long limit_ms;    /* in: how long it may take; 0: LIMIT_MS */
};

static inline void output_free(struct output *o) {
    free(o->out);
    free(o->err);
    o->out = o->err = NULL;
}

/* Runs a command line of words to its end, within the time allowed, and
   checks that no sanitizer spoke.  The caller frees the output. */
static inline void run(struct output *o, const char *fmt, ...) {
    char line[4096], out[MAX_PATH + 16], err[MAX_PATH + 16];
    char *argv[MAX_ARGS];
    size_t len;
    pid_t pid;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    words_cut(line, argv, MAX_ARGS);
    snprintf(out, sizeof out, "%s/run.out", the_run.dir);
    snprintf(err, sizeof err, "%s/run.err", the_run.dir);
    unlink(out);
    unlink(err);
    pid = spawn(argv, out, err, NULL, o->path, 0);
    check(pid > 0, "cannot fork: %s", strerror(errno));
    o->code = process_wait(pid, o->limit_ms > 0 ? o->limit_ms : LIMIT_MS);
    if (o->code < 0) {
        kill(pid, SIGKILL);
        process_wait(pid, LIMIT_MS);
    }
    o->out = file_read(out, &len);
    o->err = file_read(err, &len);
    check(o->out != NULL && o->err != NULL, "no output of %s", fmt);
    check(o->code >= 0, "%s: did not end; it said:\n%s", fmt, o->err);
    check(sanitizer_report(o->err) == NULL, "%s", o->err);
}

/* Checks that a command was refused as the contract says: the exit code,
   nothing on stdout, one line on stderr that names the word. */
static inline void check_refused(struct output *o, int code, const char *word) {
    check(o->code == code, "exit code %d, not %d: %s", o->code, code, o->err);
    check(text_lines(o->err) == 1, "not one line: \"%s\"", o->err);
    check(o->err[strlen(o->err) - 1] == '\n', "no newline: %s", o->err);
    check(strstr(o->err, word) != NULL, "\"%s\" not named in: %s", word,
          o->err);
    check(o->out[0] == '\0', "on stdout: %s", o->out);
    output_free(o);
}

/* ---- The run --------------------------------------------------------- */

/* Removes the marks in shared memory that killed nodes have left: a node has
   them by its id and boot number, which are in its superblock's two slots. */
static inline void marks_remove(const char *dir) {
    DIR *d = opendir(dir);
    struct dirent *e;

    while (d != NULL && (e = readdir(d)) != NULL) {
        char path[2 * MAX_PATH], name[64];
        unsigned char *slot;
        struct stat st;
        size_t len = 0;

        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (e->d_name[0] != '.' && lstat(path, &st) == 0 && S_ISDIR(st.st_mode))
            marks_remove(path);
        if (strcmp(e->d_name, "superblock") != 0 ||
            (slot = (unsigned char *)file_read(path, &len)) == NULL)
            continue;
        for (size_t at = 0; at + 48 <= len; at += 512) {
            uint64_t id = 0, boot = 0;

            for (int i = 7; i >= 0; i--) {
                id = id << 8 | slot[at + 32 + (size_t)i];
                boot = boot << 8 | slot[at + 40 + (size_t)i];
            }
            snprintf(name, sizeof name, "/estoraje-%016llx-%llu",
                     (unsigned long long)id, (unsigned long long)boot);
            shm_unlink(name);
        }
        free(slot);
    }
    if (d != NULL)
        closedir(d);
}

/* The keeper's life: waits until the test program is gone, however it went,
   then kills every process with the directory in its command line, until
   none is left, and removes the directory. */
static inline void keeper_run(int fd) {
    int quiet = 0;
    char byte;

    while (read(fd, &byte, 1) > 0)
        continue;
    for (int turn = 0; turn < 100 && quiet < 2; turn++) {
        pid_t pids[64];
        size_t n = processes_find(the_run.dir, NULL, pids, 64);

        for (size_t i = 0; i < n; i++)
            kill(pids[i], SIGKILL);
        quiet = n == 0 ? quiet + 1 : 0;
        pause_ms(20);
    }
    marks_remove(the_run.dir);
    if (getenv("KEEP") == NULL)
        execlp("rm", "rm", "-rf", "--", the_run.dir, (char *)NULL);
    _exit(0);
}

/* Lets the keeper clean up, and waits for it. */
static inline void run_end(void) {
    if (getenv("KEEP") != NULL)
        fprintf(stderr, "kept: %s\n", the_run.dir);
    close(the_run.keeper_fd);
    waitpid(the_run.keeper, NULL, 0);
}

/* The exit code for so many failed tests.  A test that failed has freed
   nothing, so a look for leaks would only hide why. */
static inline int run_result(int failed) {
    if (failed > 0) {
        run_end();
        _exit(1);
    }
    return 0;
}

/* Begins the run: the directory, the keeper, the link to the binary.  The
   whole program may take limit seconds, which only one that hangs needs; then
   it is killed. */
static inline void run_begin(unsigned limit) {
    const char *tmp = getenv("TMPDIR"), *exe = getenv("ESTORAJE");
    char full[MAX_PATH], cwd[MAX_PATH] = "";
    struct timespec t;
    int ends[2];

    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    clock_gettime(CLOCK_REALTIME, &t);
    the_run.random = ((uint64_t)t.tv_nsec << 20 ^ (uint64_t)getpid()) | 1;
    exe = exe != NULL ? exe : "./estoraje";
    if (exe[0] != '/' && getcwd(cwd, sizeof cwd - 1) == NULL)
        abort();
    snprintf(the_run.dir, sizeof the_run.dir, "%.200s/estoraje-test-XXXXXX",
             tmp != NULL && tmp[0] == '/' ? tmp : "/tmp");
    if (snprintf(full, sizeof full, "%s%s%s", cwd, cwd[0] ? "/" : "", exe) >=
            MAX_PATH ||
        mkdtemp(the_run.dir) == NULL || pipe(ends) < 0) {
        perror("cannot begin the tests");
        exit(1);
    }
    snprintf(the_run.exe, sizeof the_run.exe, "%.400s/estoraje", the_run.dir);
    if (access(full, X_OK) < 0 || symlink(full, the_run.exe) < 0) {
        fprintf(stderr, "cannot run %s: %s\n", full, strerror(errno));
        rmdir(the_run.dir);
        exit(1);
    }
    the_run.keeper = fork();
    if (the_run.keeper == 0) {
        setpgid(0, 0);
        close(ends[1]);
        keeper_run(ends[0]);
    }
    close(ends[0]);
    the_run.keeper_fd = ends[1];
    atexit(run_end);
    alarm(limit);
    if (getenv("ONLY") != NULL)
        cmocka_set_test_filter(getenv("ONLY"));
}

/* Tries to reserve one port on the loopback address: a bound socket that
   does not listen.  Once SO_REUSEADDR is set after the bind, a server may
   bind the port beside it, while other copies of the tests are refused. */
static inline int port_reserve(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;

    a.sin_port = htons((uint16_t)port);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof a) == 0 &&
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

/* A port of our own with the one below it, for as long as we run. */
static inline int port_pair(void) {
    check(the_run.port_count + 2 <= MAX_PORTS, "too many ports");
    for (int turn = 0; turn < 10000; turn++) {
        int port = 12001 + (int)(random_next(&the_run.random) % 19999);
        int low = port_reserve(port - 1);
        int high = low >= 0 ? port_reserve(port) : -1;

        if (high >= 0) {
            the_run.ports[the_run.port_count++] = low;
            the_run.ports[the_run.port_count++] = high;
            return port;
        }
        if (low >= 0)
            close(low);
    }
    check(false, "no free port between 12000 and 32000");
    return -1;
}

/* ---- The client ------------------------------------------------------ */

/* A connection, and the last reply that was read from it. */
struct client {
    int fd; /* -1 when not connected */
    int port;
    long limit_ms; /* for one send or one reply */
    char *in;      /* received; [from, len) is not yet taken */
    size_t from, len, cap;
    int status;  /* of the last reply, or -1 */
    bool closes; /* the reply says that the server closes */
    char *head;  /* its status line and headers, and a NUL */
    char *body;  /* its body, and a NUL */
    size_t body_len;
};

/* A client of a port of 127.0.0.1; it connects when it first asks. */
static inline struct client client_make(int port) {
    return (struct client){
        .fd = -1, .port = port, .limit_ms = LIMIT_MS, .status = -1};
}

/* Drops the connection; the last reply stays. */
static inline void client_drop(struct client *c) {
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->from = c->len = 0;
}

/* Drops the connection and frees all. */
static inline void client_end(struct client *c) {
    client_drop(c);
    free(c->in);
    free(c->head);
    free(c->body);
    c->in = c->head = c->body = NULL;
    c->cap = 0;
}

/* Connects afresh; false when the port refuses. */
static inline bool client_connect(struct client *c) {
    struct sockaddr_in a = {.sin_family = AF_INET};
    int one = 1;

    client_drop(c);
    a.sin_port = htons((uint16_t)c->port);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&a, sizeof a) < 0) {
        client_drop(c);
        return false;
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    return true;
}

/* Waits for an event on the connection until a time; true when it came. */
static inline bool client_poll(struct client *c, short events, long until) {
    struct pollfd p = {.fd = c->fd, .events = events};
    long left = until - now_ms();

    return poll(&p, 1, left > 0 ? (int)left : 0) > 0;
}

/* Sends all of the bytes; false when the connection failed first. */
static inline bool client_send(struct client *c, const void *p, size_t len) {
    long until = now_ms() + c->limit_ms;
    const char *at = p;

    while (len > 0) {
        ssize_t n = send(c->fd, at, len, MSG_NOSIGNAL);
        if (n > 0) {
            at += n;
            len -= (size_t)n;
        } else if (n < 0 && errno != EAGAIN && errno != EINTR) {
            return false;
        } else if (!client_poll(c, POLLOUT, until)) {
            return false;
        }
    }
    return true;
}

/* Receives once: 1 when bytes came, 0 at the end, -1 failed or too late. */
static inline int client_fill(struct client *c, long until) {
    ssize_t n;

    if (c->from > 0) {
        memmove(c->in, c->in + c->from, c->len - c->from);
        c->len -= c->from;
        c->from = 0;
    }
    if (c->cap - c->len < 65536) {
        c->cap = 2 * c->cap + 65536;
        c->in = realloc(c->in, c->cap);
        if (c->in == NULL)
            abort();
    }
    for (;;) {
        n = recv(c->fd, c->in + c->len, c->cap - c->len, 0);
        if (n >= 0 || (errno != EAGAIN && errno != EINTR))
            break;
        if (!client_poll(c, POLLIN, until))
            return -1;
    }
    c->len += n > 0 ? (size_t)n : 0;
    return n > 0 ? 1 : (int)n;
}

/* The value of a header of the last reply, in a buffer of out_len bytes;
   false when there is no such header. */
static inline bool client_header(const struct client *c, const char *name,
                                 char *out, size_t out_len) {
    size_t n = strlen(name);

    for (const char *p = strstr(c->head, "\r\n"); p != NULL && p[2] != '\0';
         p = strstr(p + 2, "\r\n")) {
        const char *v = p + 2 + n, *end;
        if (strncasecmp(p + 2, name, n) != 0 || *v != ':')
            continue;
        v += 1 + strspn(v + 1, " \t");
        end = strstr(v, "\r\n");
        snprintf(out, out_len, "%.*s", (int)(end != NULL ? end - v : 0), v);
        return true;
    }
    return false;
}

/* A copy of len bytes and a NUL in place of what *to held. */
static inline void copy_to(char **to, const char *p, size_t len) {
    *to = realloc(*to, len + 1);
    if (*to == NULL)
        abort();
    if (len > 0)
        memcpy(*to, p, len);
    (*to)[len] = '\0';
}

/* Takes the chunks of a body that begins at p: the bytes used, 0 when more
   are needed, -1 when they are no chunks.  The body goes to c->body. */
static inline long chunks_take(struct client *c, const char *p, size_t len) {
    size_t at = 0;

    copy_to(&c->body, "", 0);
    c->body_len = 0;
    for (;;) {
        const char *eol = memchr(p + at, '\n', len - at);
        unsigned long n;
        char *end;

        if (eol == NULL)
            return 0;
        n = strtoul(p + at, &end, 16);
        if (!isxdigit((unsigned char)p[at]) || *end != '\r')
            return -1;
        at = (size_t)(eol - p) + 1;
        if (len - at < n + 2)
            return 0;
        c->body = realloc(c->body, c->body_len + n + 1);
        if (c->body == NULL)
            abort();
        memcpy(c->body + c->body_len, p + at, n);
        c->body_len += n;
        c->body[c->body_len] = '\0';
        at += n + 2;
        if (n == 0)
            return (long)at;
    }
}

/* Takes one reply from the bytes received: 1 when it is whole, 0 when more
   are needed, -1 when it is no HTTP.  bodyless is for answers to HEAD, eof
   says that no more will come. */
static inline int client_take(struct client *c, bool bodyless, bool eof) {
    const char *p = c->in + c->from, *end = p, *body;
    size_t len = c->len - c->from, have, want = 0;
    char text[64];
    bool until_close = false;

    for (; end + 4 <= p + len && memcmp(end, "\r\n\r\n", 4) != 0; end++)
        continue;
    if (len == 0 || end + 4 > p + len)
        return 0;
    copy_to(&c->head, p, (size_t)(end - p) + 2);
    if (strncmp(c->head, "HTTP/1.", 7) != 0 || strlen(c->head) < 15)
        return -1;
    body = end + 4;
    have = len - (size_t)(body - p);
    c->status = (int)strtol(c->head + 9, NULL, 10);
    c->closes = c->head[7] == '0';
    if (client_header(c, "Connection", text, sizeof text))
        c->closes = strcasecmp(text, "close") == 0;
    if (bodyless || c->status / 100 == 1 || c->status == 204 ||
        c->status == 304) {
        want = 0;
    } else if (client_header(c, "Transfer-Encoding", text, sizeof text)) {
        long n = chunks_take(c, body, have);
        c->from = n > 0 ? (size_t)(body + n - c->in) : c->from;
        return n > 0 ? 1 : (int)n;
    } else if (client_header(c, "Content-Length", text, sizeof text)) {
        want = (size_t)strtoul(text, NULL, 10);
    } else {
        until_close = true;
        want = have;
    }
    if (have < want || (until_close && !eof))
        return 0;
    copy_to(&c->body, body, want);
    c->body_len = want;
    c->from = (size_t)(body + want - c->in);
    return 1;
}

/* Reads one reply: its status, 0 when the server closed instead of giving
   one, -1 when it failed, came too late or is no HTTP. */
static inline int client_read(struct client *c, bool bodyless) {
    long until = now_ms() + c->limit_ms;
    bool eof = false;

    c->status = -1;
    for (;;) {
        int got = c->len > c->from ? client_take(c, bodyless, eof) : 0;
        if (got != 0)
            return got > 0 ? c->status : -1;
        if (eof)
            return c->len == c->from ? 0 : -1;
        got = client_fill(c, until);
        if (got < 0)
            return errno == ECONNRESET && c->len == c->from ? 0 : -1;
        eof = got == 0;
    }
}

/* True when the server closes the connection and sends nothing more. */
static inline bool client_closed(struct client *c) {
    bool closed = client_read(c, false) == 0;

    client_drop(c);
    return closed;
}

/* Asks one request and reads the answer, on the open connection when there
   is one: the status, or 0 or -1 as client_read.  headers are whole lines
   with their \r\n, or NULL; body NULL is no body. */
static inline int client_ask(struct client *c, const char *method,
                             const char *target, const char *headers,
                             const void *body, size_t len) {
    char *head =
        malloc(strlen(target) + 512 + (headers != NULL ? strlen(headers) : 0));
    int n, status;

    c->status = -1;
    if (head == NULL || (c->fd < 0 && !client_connect(c))) {
        free(head);
        return -1;
    }
    n = sprintf(head, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s", method,
                target, c->port, headers != NULL ? headers : "");
    if (body != NULL)
        n += sprintf(head + n, "Content-Length: %zu\r\n", len);
    n += sprintf(head + n, "\r\n");
    if (client_send(c, head, (size_t)n) && body != NULL)
        client_send(c, body, len);
    free(head);
    status = client_read(c, strcmp(method, "HEAD") == 0);
    if (status <= 0 || c->closes)
        client_drop(c);
    return status;
}

/* As client_ask, for text and no headers of its own. */
static inline int client_text(struct client *c, const char *method,
                              const char *target, const char *body) {
    return client_ask(c, method, target, NULL, body,
                      body != NULL ? strlen(body) : 0);
}

/* Asks once on a connection of its own; the status alone. */
static inline int status_of(int port, const char *method, const char *target) {
    struct client c = client_make(port);
    int status;

    c.limit_ms = LIMIT_MS / 2; /* so that it can be asked again in time */
    status = client_ask(&c, method, target, NULL, NULL, 0);
    client_end(&c);
    return status;
}

/* Follows a listing from its first page to its last, each page from the next
   of n ports, and calls between(page), if there is one, after each page: all
   lines, which the caller frees, and *pages. */
static inline char *list_walk(const int *ports, size_t n, const char *query,
                              void (*between)(size_t page), size_t *pages) {
    char target[600], link[600], *all = calloc(1, 1);
    size_t len = 0;

    snprintf(target, sizeof target, "/?list%s", query);
    for (size_t page = 0;; page++) {
        struct client c = client_make(ports[page % n]);
        bool more;

        check(client_text(&c, "GET", target, NULL) == 200, "%s: %d: %s", target,
              c.status, c.body);
        all = realloc(all, len + c.body_len + 1);
        memcpy(all + len, c.body, c.body_len + 1);
        len += c.body_len;
        more = client_header(&c, "Link", link, sizeof link);
        client_end(&c);
        if (between != NULL)
            between(page);
        *pages = page + 1;
        if (!more)
            return all;
        check(sscanf(link, "<%599[^>]>; rel=\"next\"", target) == 1 &&
                  strstr(link, ">; rel=\"next\"") != NULL,
              "Link: %s", link);
    }
}

/* How often a line is among the lines of a listing. */
static inline size_t listed_count(const char *lines, const char *line) {
    size_t count = 0, n = strlen(line);

    for (const char *p = lines; p != NULL && *p != '\0';
         p = strchr(p, '\n'), p = p != NULL ? p + 1 : NULL)
        count += strncmp(p, line, n) == 0 && p[n] == '\n';
    return count;
}

/* True when nobody listens on a port. */
static inline bool port_silent(int port) {
    struct client c = client_make(port);
    bool silent = !client_connect(&c);

    client_end(&c);
    return silent;
}

/* ---- Metrics --------------------------------------------------------- */

/* Asks a node for its metrics; c->body has them. */
static inline void metrics_get(struct client *c) {
    check(client_text(c, "GET", "/_metrics", NULL) == 200, "%d", c->status);
}

/* The figure of a series, as it is written: name{label="value"}; -1: there is
   none. */
static inline double metric(const struct client *c, const char *series) {
    const char *at = c->body;
    size_t n = strlen(series);

    while (at != NULL && (strncmp(at, series, n) != 0 || at[n] != ' ')) {
        at = strchr(at, '\n');
        at = at != NULL ? at + 1 : NULL;
    }
    return at != NULL ? strtod(at + n, NULL) : -1;
}

/* Has promtool look at the metrics, where it is installed. */
static inline void metrics_check(const struct client *c) {
    static const char script[] = "command -v promtool >/dev/null || exit 99\n"
                                 "promtool check metrics <\"$1\"\n";
    char path[MAX_PATH + 32], text[MAX_PATH + 32];
    struct output o = {0};

    snprintf(path, sizeof path, "%s/promtool.sh", the_run.dir);
    snprintf(text, sizeof text, "%s/metrics", the_run.dir);
    check(file_write(path, "wb", script, sizeof script - 1) &&
              file_write(text, "wb", c->body, c->body_len),
          "cannot write %s", text);
    run(&o, "sh %s %s", path, text);
    if (o.code == 99)
        part("not checked: there is no promtool");
    else
        check(o.code == 0 && o.out[0] == '\0' && o.err[0] == '\0',
              "promtool: %d %s%s", o.code, o.out, o.err);
    output_free(&o);
}

/* ---- Servers --------------------------------------------------------- */

/* Adds words to a server's command line. */
static inline void server_args(struct server *s, const char *fmt, ...) {
    char *at = s->text + s->text_len;
    size_t room = sizeof s->text - s->text_len;
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(at, room, fmt, ap);
    va_end(ap);
    check(n >= 0 && (size_t)n < room, "command line too long");
    s->text_len += (size_t)n + 1;
    s->argc += words_cut(at, s->argv + s->argc, MAX_ARGS - s->argc);
}

/* A new server, not yet started, whose command line so far is the program's
   name.  Its directory and log are named after it. */
static inline struct server *server_plain(const char *name,
                                          const char *program) {
    struct server *s = &the_run.servers[the_run.server_count];
    char base[400];

    check(the_run.server_count < MAX_SERVERS, "too many servers");
    the_run.server_count++;
    memset(s, 0, sizeof *s);
    snprintf(s->name, sizeof s->name, "%s", name);
    the_run.made++;
    snprintf(base, sizeof base, "%.300s/%.60s-%u", the_run.dir, name,
             the_run.made);
    snprintf(s->dir, sizeof s->dir, "%s.d", base);
    snprintf(s->log, sizeof s->log, "%s.log", base);
    server_args(s, "%s", program);
    return s;
}

/* A new node with a data directory of its own. */
static inline struct server *server_new(const char *name) {
    struct server *s = server_plain(name, the_run.exe);

    server_args(s, "-dataPath %s", s->dir);
    return s;
}

/* Starts the process; the log's part of this start begins here. */
static inline void server_start(struct server *s) {
    long size = file_size(s->log);

    s->log_from = size > 0 ? size : 0;
    s->pid = spawn(s->argv, s->log, s->log, s->cwd[0] ? s->cwd : NULL, NULL,
                   s->descriptors);
    check(s->pid > 0, "cannot fork: %s", strerror(errno));
}

/* This start's part of the log; the caller frees. */
static inline char *server_log(const struct server *s) {
    size_t len;
    char *all = file_read(s->log, &len);

    if (all == NULL || (size_t)s->log_from > len) {
        free(all);
        return strdup("");
    }
    memmove(all, all + s->log_from, len - (size_t)s->log_from + 1);
    return all;
}

/* True once the ready line is in the log; it gives the port. */
static inline bool server_said_ready(struct server *s) {
    char *log = server_log(s), *p = log;
    bool ready = false;

    while (p != NULL && !ready) {
        if (strncmp(p, "ready http://", 13) == 0 && strchr(p, '\n')) {
            char *colon = strchr(p, '\n');
            while (*colon != ':')
                colon--;
            s->port = (int)strtol(colon + 1, NULL, 10);
            ready = s->port > 0;
        }
        p = strchr(p, '\n');
        p = p != NULL ? p + 1 : NULL;
    }
    free(log);
    return ready;
}

/* Waits until a node that was started is ready: it has said so, and
   /_ready answers 200. */
static inline void server_ready(struct server *s) {
    long until = now_ms() + 2 * LIMIT_MS;

    while (!server_said_ready(s)) {
        if (waitpid(s->pid, NULL, WNOHANG) != 0)
            s->pid = 0;
        check(s->pid > 0, "%s ended instead of becoming ready", s->name);
        check(now_ms() < until, "%s: no ready line", s->name);
        pause_ms(5);
    }
    wait_until(status_of(s->port, "GET", "/_ready") == 200, LIMIT_MS,
               "%s: /_ready does not answer 200", s->name);
}

/* Checks that no sanitizer spoke in a server's log. */
static inline void server_clean(const struct server *s) {
    size_t len;
    char *all = file_read(s->log, &len);
    const char *report = all != NULL ? sanitizer_report(all) : NULL;

    if (report != NULL)
        fprintf(stderr, "%s: %.6000s\n", s->name, report);
    check(report == NULL, "%s: a sanitizer's report", s->name);
    free(all);
}

/* Ends a server with SIGTERM; it must exit 0, with a clean log. */
static inline void server_stop(struct server *s) {
    pid_t pid = s->pid;
    int code;

    check(pid > 0 && kill(pid, SIGTERM) == 0, "%s not running", s->name);
    code = process_wait(pid, LIMIT_MS);
    if (code < 0) {
        kill(pid, SIGKILL);
        process_wait(pid, LIMIT_MS);
    }
    s->pid = 0;
    server_clean(s);
    check(code == 0, "%s: exit code %d after SIGTERM", s->name, code);
}

/* Ends a server with kill -9. */
static inline void server_kill(struct server *s) {
    int code;

    check(s->pid > 0, "%s is not running", s->name);
    kill(s->pid, SIGKILL);
    code = process_wait(s->pid, LIMIT_MS);
    s->pid = 0;
    server_clean(s);
    check(code == 128 + SIGKILL, "%s: ended by itself, %d", s->name, code);
}

/* A cmocka teardown: ends what a failed test left running, checks all the
   logs, and forgets the servers. */
static inline int servers_end(void **state) {
    size_t n = the_run.server_count;

    (void)state;
    for (size_t i = 0; i < n; i++) {
        struct server *s = &the_run.servers[i];
        if (s->pid <= 0)
            continue;
        kill(s->pid, SIGKILL);
        process_wait(s->pid, LIMIT_MS);
        s->pid = 0;
    }
    the_run.server_count = 0;
    for (size_t i = 0; i < n; i++)
        server_clean(&the_run.servers[i]);
    return 0;
}

#endif
