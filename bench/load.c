/* Load for bench.tail and bench.control: a fixed rate of questions over many connections, and how long each answer took.
 *
 *   load PORT CLIENTS RATE SECONDS USER DATABASE
 *
 * Logs CLIENTS in (by trust), each of which asks once: a server's first answer to a connection takes longer, and there are
 * as many of those as connections, however long is measured. Then it asks RATE simple queries a second in all, in turn
 * over the connections, for SECONDS.
 * A question is due at a time that does not depend on the answers; the time counted goes from when it was due to its
 * ReadyForQuery, so that a stall is seen by everything that was due meanwhile. A connection that has not answered yet is
 * asked when it has; that wait counts. RATE 0: each connection is asked anew as soon as it has answered. For each answer it writes two native 32-bit integers to stdout: when its question
 * was due, in microseconds of the monotonic clock after the moment that it tells as `began` on stderr, and how many
 * microseconds it took.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { QUEUE_MAX = 64, ANSWERS_PER_S_MAX = 200000 };

struct client {
    int fd;
    int head, count;          /* questions asked or due, oldest first */
    uint64_t due[QUEUE_MAX];
    int is_busy;
    unsigned char header[5];  /* of the message being read */
    int have;
    uint32_t left;            /* bytes of its body still to come */
};

static struct client *clients;
static uint32_t *told;
static size_t answers, dropped;
static unsigned char chunk[65536];
static const unsigned char question[] = "Q\0\0\0\x35select abalance from pgbench_accounts where aid = 4711";

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void put(int fd, const void *data, size_t size) {
    if (send(fd, data, size, MSG_NOSIGNAL) != (ssize_t)size) die("send");
}

static void ask(struct client *c) {
    static unsigned char message[sizeof question + 4];
    static size_t size;
    if (!size) { /* the length is computed, the text is ours */
        uint32_t length = htonl((uint32_t)(sizeof question - 5 + 4));
        memcpy(message, question, sizeof question);
        memcpy(message + 1, &length, 4);
        size = sizeof question;
    }
    c->is_busy = 1;
    put(c->fd, message, size);
}

/* Returns 1 once a ReadyForQuery has come. */
static int take(struct client *c, const unsigned char *data, ssize_t size) {
    int is_ready = 0;
    while (size > 0) {
        if (c->left) {
            uint32_t part = (uint32_t)size < c->left ? (uint32_t)size : c->left;
            c->left -= part;
            data += part;
            size -= part;
            continue;
        }
        c->header[c->have++] = *data++;
        size--;
        if (c->have == 5) {
            uint32_t length;
            memcpy(&length, c->header + 1, 4);
            c->left = ntohl(length) - 4;
            c->have = 0;
            if (c->header[0] == 'E') fprintf(stderr, "an error was answered\n"), exit(1);
            if (c->header[0] == 'Z') is_ready = 1;
        }
    }
    return is_ready;
}

static void wait_until_ready(struct client *c) {
    int is_ready = 0;
    while (!is_ready) {
        ssize_t got = recv(c->fd, chunk, sizeof chunk, 0);
        if (got <= 0) die("login");
        is_ready = take(c, chunk, got);
    }
}

static void log_in(struct client *c, int port, const char *user, const char *database) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    unsigned char packet[512];
    int on = 1, size = 8;
    uint32_t word;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to) < 0) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    word = htonl(196608);
    memcpy(packet + 4, &word, 4);
    size += sprintf((char *)packet + size, "user%c%s%cdatabase%c%s%c", 0, user, 0, 0, database, 0);
    packet[size++] = 0;
    word = htonl(size);
    memcpy(packet, &word, 4);
    put(c->fd, packet, size);
    wait_until_ready(c);
    ask(c);
    wait_until_ready(c);
    c->is_busy = 0;
}

int main(int argc, char **argv) {
    struct epoll_event events[256];
    int count, epoll_fd, next = 0;
    double gap, rate, seconds;
    uint64_t began, end;
    size_t total, sent = 0;
    if (argc != 7) return fprintf(stderr, "usage: load PORT CLIENTS RATE SECONDS USER DATABASE\n"), 2;
    count = atoi(argv[2]);
    rate = atof(argv[3]);
    seconds = atof(argv[4]);
    gap = rate ? 1e6 / rate : 0;
    total = (size_t)((rate ? rate : ANSWERS_PER_S_MAX) * seconds);
    clients = calloc(count, sizeof *clients);
    told = malloc((2 * total + 2) * sizeof *told);
    epoll_fd = epoll_create1(0);
    for (int i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &clients[i]};
        log_in(&clients[i], atoi(argv[1]), argv[5], argv[6]);
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, clients[i].fd, &event) < 0) die("epoll_ctl");
    }
    began = now_us() + 100000;
    end = began + (uint64_t)(seconds * 1e6) + 20000000;
    if (!rate) { /* each answer is the moment for the next question; `total` is how many there may be */
        end -= 20000000;
        for (int i = 0; i < count; i++) {
            clients[i].due[0] = now_us();
            clients[i].count = 1;
            ask(&clients[i]);
        }
        began = clients[0].due[0];
        sent = total;
    }
    fprintf(stderr, "began %llu\n", (unsigned long long)began);
    while (answers + dropped < total && now_us() < end) {
        uint64_t now = now_us();
        while (sent < total && began + (uint64_t)(sent * gap) <= now) {
            struct client *c = &clients[next];
            next = (next + 1) % count;
            if (c->count == QUEUE_MAX) {
                dropped++;
            } else {
                c->due[(c->head + c->count++) % QUEUE_MAX] = began + (uint64_t)(sent * gap);
                if (!c->is_busy) ask(c);
            }
            sent++;
        }
        int64_t wait = sent < total ? (int64_t)(began + (uint64_t)(sent * gap)) - (int64_t)now_us() : 1000;
        struct timespec pause = {0, wait > 0 ? wait * 1000 : 0};
        if (pause.tv_nsec > 999999999) pause.tv_nsec = 999999999;
        int ready = epoll_pwait2(epoll_fd, events, 256, &pause, NULL);
        for (int i = 0; i < ready; i++) {
            struct client *c = events[i].data.ptr;
            ssize_t got = recv(c->fd, chunk, sizeof chunk, MSG_DONTWAIT);
            if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
            if (got <= 0) die("a connection ended");
            if (!take(c, chunk, got)) continue;
            told[2 * answers] = (uint32_t)(c->due[c->head] - began);
            told[2 * answers++ + 1] = (uint32_t)(now_us() - c->due[c->head]);
            c->head = (c->head + 1) % QUEUE_MAX;
            c->is_busy = 0;
            if (!rate) c->due[(c->head + c->count++) % QUEUE_MAX] = now_us();
            if (--c->count) ask(c);
        }
    }
    if (rate && answers + dropped < total) return fprintf(stderr, "%zu answers are missing\n", total - answers - dropped), 1;
    fprintf(stderr, "dropped %zu\n", dropped);
    fwrite(told, 2 * sizeof *told, answers, stdout);
    return 0;
}
