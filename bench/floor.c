/* The floor: what moving bytes between two sockets costs when nothing is looked at.
 *
 *   floor PORT SERVER_PORT      listens on 127.0.0.1:PORT, one connection to 127.0.0.1:SERVER_PORT for each client
 *
 * One thread, level-triggered epoll, one buffer for the whole process, no parsing. Bytes that a peer does not take are
 * kept for it, and meanwhile its other half is not read; nothing is allocated for a chunk that is sent whole.
 * An end of file closes both sides: PostgreSQL's protocol has no half-open connections.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CHUNK_BYTES = 65536, EVENTS_AT_ONCE = 64 };

struct side {
    int fd;              /* -1: closed */
    struct side *peer;
    char *unsent;        /* bytes for this side that its socket did not take; NULL: none */
    size_t start, end;   /* they are unsent[start..end) */
    struct side *next_dead;
};

static int epoll_fd;
static char chunk[CHUNK_BYTES];
static struct side *dead; /* freed after the batch: later events of it may still point to them */

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void watch(struct side *s, int act) {
    /* Read while the peer has nothing unsent; write while this side has. */
    struct epoll_event event = {.data.ptr = s};
    event.events = (s->peer->unsent ? 0 : EPOLLIN) | (s->unsent ? EPOLLOUT : 0);
    if (epoll_ctl(epoll_fd, act, s->fd, &event) < 0) die("epoll_ctl");
}

static void drop(struct side *s) {
    if (s->fd < 0) return;
    close(s->fd);
    s->fd = -1;
    free(s->unsent);
    s->unsent = NULL;
    s->next_dead = dead;
    dead = s;
}

static void drop_both(struct side *s) {
    drop(s->peer);
    drop(s);
}

static void readable(struct side *s) {
    struct side *to = s->peer;
    ssize_t size = recv(s->fd, chunk, sizeof chunk, MSG_DONTWAIT), sent;
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (size <= 0) return drop_both(s);
    sent = send(to->fd, chunk, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) return drop_both(s);
    if (sent < 0) sent = 0;
    if (sent == size) return;
    to->unsent = malloc(size - sent);
    if (!to->unsent) die("malloc");
    memcpy(to->unsent, chunk + sent, size - sent);
    to->start = 0;
    to->end = size - sent;
    watch(to, EPOLL_CTL_MOD);
    watch(s, EPOLL_CTL_MOD);
}

static void writable(struct side *s) {
    ssize_t sent = send(s->fd, s->unsent + s->start, s->end - s->start, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (sent < 0) return drop_both(s);
    s->start += sent;
    if (s->start < s->end) return;
    free(s->unsent);
    s->unsent = NULL;
    watch(s, EPOLL_CTL_MOD);
    watch(s->peer, EPOLL_CTL_MOD);
}

static struct side *make(int fd) {
    struct side *s = calloc(1, sizeof *s);
    int on = 1;
    if (!s) die("calloc");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    s->fd = fd;
    return s;
}

static void accepted(int client_fd, int server_port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(server_port)};
    int server_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct side *client, *server;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    /* Waits: on loopback it takes microseconds, and logins are not measured here. */
    if (server_fd < 0 || connect(server_fd, (struct sockaddr *)&to, sizeof to) < 0) {
        perror("connect");
        close(client_fd);
        if (server_fd >= 0) close(server_fd);
        return;
    }
    client = make(client_fd);
    server = make(server_fd);
    client->peer = server;
    server->peer = client;
    watch(client, EPOLL_CTL_ADD);
    watch(server, EPOLL_CTL_ADD);
}

int main(int argc, char **argv) {
    struct epoll_event events[EVENTS_AT_ONCE], listening = {.events = EPOLLIN, .data.ptr = NULL};
    struct sockaddr_in here = {.sin_family = AF_INET};
    int listener, on = 1;
    if (argc != 3) return fprintf(stderr, "usage: floor PORT SERVER_PORT\n"), 2;
    here.sin_port = htons(atoi(argv[1]));
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) < 0) die("bind");
    if (listen(listener, 4096) < 0) die("listen");
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &listening) < 0) die("epoll_ctl");
    for (;;) {
        int count = epoll_wait(epoll_fd, events, EVENTS_AT_ONCE, -1);
        for (int i = 0; i < count; i++) {
            struct side *s = events[i].data.ptr;
            if (!s) {
                int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
                if (fd >= 0) accepted(fd, atoi(argv[2]));
                continue;
            }
            if (s->fd >= 0 && s->unsent && events[i].events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) writable(s);
            if (s->fd >= 0 && !s->peer->unsent && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(s);
        }
        while (dead) {
            struct side *next = dead->next_dead;
            free(dead);
            dead = next;
        }
    }
}
