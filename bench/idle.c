/* idle.c - clients that hold connections and hardly ever ask

   usage: idle PORT CONNECTIONS

   Opens that many connections to 127.0.0.1 and says "open". Then, until its
   stdin ends, one of them after the other asks for /_health, twenty a second,
   so that each has been idle for long when it is its turn. In the end it
   prints "idle", how many were answered, and the median, the 99th percentile
   and the greatest of the answers' times in microseconds. */

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ASKED_MAX 100000

static void give_up(const char *what) {
    perror(what);
    exit(1);
}

static long now_us(void) {
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (long)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* Asks once: the microseconds that the answer took. */
static long ask(int fd) {
    static const char text[] = "GET /_health HTTP/1.1\r\nHost: x\r\n\r\n";
    long begun = now_us();
    char answer[4096];
    ssize_t n;

    if (send(fd, text, sizeof text - 1, MSG_NOSIGNAL) < 0)
        give_up("send");
    n = recv(fd, answer, sizeof answer, 0);
    if (n < 13 || memcmp(answer, "HTTP/1.1 200 ", 13) != 0)
        give_up("an idle connection got no answer");
    return now_us() - begun;
}

/* A connection that has had an answer already. */
static int connected(const struct sockaddr_in *to) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    if (fd < 0 || connect(fd, (const struct sockaddr *)to, sizeof *to) < 0)
        give_up("cannot connect");
    ask(fd);
    return fd;
}

static int by_size(const void *a, const void *b) {
    long x = *(const long *)a, y = *(const long *)b;

    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    struct sockaddr_in to = {.sin_family = AF_INET};
    struct pollfd end = {STDIN_FILENO, POLLIN, 0};
    static long took[ASKED_MAX];
    struct rlimit limit;
    size_t n, asked = 0;
    int *fds;

    if (argc != 3 || (n = (size_t)atol(argv[2])) == 0) {
        fprintf(stderr, "usage: idle PORT CONNECTIONS\n");
        return 2;
    }
    to.sin_port = htons((uint16_t)atoi(argv[1]));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if ((fds = calloc(n, sizeof *fds)) == NULL)
        give_up("memory");
    for (size_t i = 0; i < n; i++)
        fds[i] = connected(&to);
    printf("open\n");
    fflush(stdout);
    while (asked < ASKED_MAX && poll(&end, 1, 50) == 0) {
        took[asked] = ask(fds[asked % n]);
        asked++;
    }
    qsort(took, asked, sizeof *took, by_size);
    if (asked > 0)
        printf("idle %zu %ld %ld %ld\n", asked, took[asked / 2],
               took[asked * 99 / 100], took[asked - 1]);
    return 0;
}
