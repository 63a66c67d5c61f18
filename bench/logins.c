/* Load for bench.idle: clients that log in by SCRAM-SHA-256 and leave.
 *
 *   logins PORT AT_ONCE SECONDS USER DATABASE CLIENT_KEY STORED_KEY
 *
 * AT_ONCE clients at any time, for SECONDS: each connects, logs in, says Terminate as soon as it is told that the server
 * is ready, closes, and is followed by the next one. The keys (64 hexadecimal digits each) are derived from the password
 * by whoever starts this, once, so that a login costs this side one HMAC. Prints how many logins ended well, and in how
 * many microseconds. Exit code 1, with a line that says why, if one did not.
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

enum { BUFFER = 8192, AT_ONCE_MAX = 1024, KEY = 32, BLOCK = 64 };

struct client {
    int fd;
    size_t have;
    unsigned char buffer[BUFFER]; /* what came and is no whole message yet */
};

static struct client clients[AT_ONCE_MAX];
static unsigned char client_key[KEY], stored_key[KEY];
static unsigned char startup[512];
static size_t startup_size;
static int port, epoll_fd;
static const char first_bare[] = "n=,r=bench"; /* the server's nonce makes the login unique */

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void refused(const char *what, const unsigned char *data, size_t size) {
    fprintf(stderr, "%s: %.*s\n", what, (int)size, (const char *)data);
    exit(1);
}

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* --- SHA-256 (FIPS 180-4), HMAC (RFC 2104), base64 (RFC 4648) --- */

static uint32_t rounds[64], initial[8];

/* The first 32 bits of the fractional part of a root of a prime: how the standard defines its constants. */
static uint32_t fraction(unsigned prime, int is_cube) {
    /* the largest r with r^2 <= prime * 2^64, or r^3 <= prime * 2^96 */
    unsigned __int128 low = 0, high = (unsigned __int128)1 << 36;
    while (high - low > 1) {
        unsigned __int128 middle = (low + high) / 2;
        /* r < 2^36: its cube needs 108 bits */
        int is_small = is_cube ? middle * middle * middle <= (unsigned __int128)prime << 96
                               : middle * middle <= (unsigned __int128)prime << 64;
        if (is_small) low = middle;
        else high = middle;
    }
    return (uint32_t)low;
}

static void make_constants(void) {
    int count = 0;
    for (unsigned n = 2; count < 64; n++) {
        int is_prime = 1;
        for (unsigned d = 2; d * d <= n; d++)
            if (n % d == 0) is_prime = 0;
        if (!is_prime) continue;
        rounds[count] = fraction(n, 1);
        if (count < 8) initial[count] = fraction(n, 0);
        count++;
    }
}

static uint32_t turned(uint32_t x, int by) { return x >> by | x << (32 - by); }

static void compress(uint32_t state[8], const unsigned char *block) {
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + w[i - 7] + (turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ w[i - 15] >> 3) +
               (turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(s, state, sizeof s);
    for (int i = 0; i < 64; i++) {
        uint32_t one = s[7] + (turned(s[4], 6) ^ turned(s[4], 11) ^ turned(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) +
                       rounds[i] + w[i];
        uint32_t two = (turned(s[0], 2) ^ turned(s[0], 13) ^ turned(s[0], 22)) +
                       ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += one;
        s[0] = one + two;
    }
    for (int i = 0; i < 8; i++) state[i] += s[i];
}

/* HMAC of at most 1,000 bytes. */
static void hmac(const unsigned char key[KEY], const unsigned char *data, size_t size, unsigned char made[KEY]) {
    unsigned char padded[1152];
    for (int pass = 0; pass < 2; pass++) { /* the inner hash, then the outer one over it */
        uint32_t state[8];
        size_t have = BLOCK + (pass ? KEY : size), whole = (have + 9 + BLOCK - 1) / BLOCK * BLOCK;
        memset(padded, 0, whole);
        memcpy(padded, key, KEY);
        for (int i = 0; i < BLOCK; i++) padded[i] ^= pass ? 0x5c : 0x36;
        memcpy(padded + BLOCK, pass ? made : data, have - BLOCK);
        padded[have] = 0x80;
        for (int i = 0; i < 8; i++) padded[whole - 1 - i] = (uint64_t)have * 8 >> 8 * i;
        memcpy(state, initial, sizeof state);
        for (size_t at = 0; at < whole; at += BLOCK) compress(state, padded + at);
        for (int i = 0; i < KEY; i++) made[i] = state[i / 4] >> (24 - 8 * (i % 4));
    }
}

static size_t base64(const unsigned char *data, size_t size, char *into) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t made = 0;
    for (size_t at = 0; at < size; at += 3) {
        uint32_t word = data[at] << 16 | (at + 1 < size ? data[at + 1] << 8 : 0) | (at + 2 < size ? data[at + 2] : 0);
        into[made++] = digits[word >> 18];
        into[made++] = digits[word >> 12 & 63];
        into[made++] = at + 1 < size ? digits[word >> 6 & 63] : '=';
        into[made++] = at + 2 < size ? digits[word & 63] : '=';
    }
    return made;
}

/* --- a login --- */

static void put(struct client *c, const void *data, size_t size) {
    if (send(c->fd, data, size, MSG_NOSIGNAL) != (ssize_t)size) die("send");
}

static size_t message(unsigned char *into, char tag, const void *body, size_t size) {
    uint32_t length = htonl((uint32_t)size + 4);
    into[0] = tag;
    memcpy(into + 1, &length, 4);
    memcpy(into + 5, body, size);
    return size + 5;
}

static void begin(struct client *c) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->have = 0;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to) < 0) die("connect");
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0) die("epoll_ctl");
    put(c, startup, startup_size);
}

static void offer(struct client *c) {
    unsigned char body[128], out[160];
    char first[64];
    uint32_t length = htonl((uint32_t)sprintf(first, "n,,%s", first_bare));
    size_t size = sizeof "SCRAM-SHA-256";
    memcpy(body, "SCRAM-SHA-256", size);
    memcpy(body + size, &length, 4);
    memcpy(body + size + 4, first, strlen(first));
    put(c, out, message(out, 'p', body, size + 4 + strlen(first)));
}

static void prove(struct client *c, const unsigned char *server_first, size_t size) {
    char without_proof[512], all[1000];
    unsigned char proof[KEY], out[800];
    const unsigned char *comma = memchr(server_first, ',', size);
    if (size > 256 || !comma) refused("not SCRAM", server_first, size);
    int nonce = (int)(comma - server_first);
    int bare = sprintf(without_proof, "c=biws,%.*s", nonce, (const char *)server_first);
    int count = sprintf(all, "%s,%.*s,%s", first_bare, (int)size, (const char *)server_first, without_proof);
    hmac(stored_key, (unsigned char *)all, count, proof);
    for (int i = 0; i < KEY; i++) proof[i] ^= client_key[i];
    memcpy(without_proof + bare, ",p=", 3);
    bare += 3 + base64(proof, KEY, without_proof + bare + 3);
    put(c, out, message(out, 'p', without_proof, bare));
}

/* Returns 1 when the client is logged in and has left. */
static int go_on(struct client *c) {
    ssize_t got = recv(c->fd, c->buffer + c->have, BUFFER - c->have, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (got < 0) die("recv");
    if (got == 0) refused("the proxy ended a login", (const unsigned char *)"", 0);
    c->have += got;
    size_t at = 0;
    while (c->have - at >= 5) {
        const unsigned char *head = c->buffer + at;
        uint32_t length, kind;
        memcpy(&length, head + 1, 4);
        length = ntohl(length);
        if (length > BUFFER - 1) refused("a message is too long", head, 1);
        if (c->have - at <= length) break;
        if (head[0] == 'E') refused("refused", head + 5, length - 4);
        if (head[0] == 'Z') {
            put(c, "X\0\0\0\4", 5);
            close(c->fd);
            return 1;
        }
        if (head[0] == 'R' && length >= 8) {
            memcpy(&kind, head + 5, 4);
            if (ntohl(kind) == 10) offer(c);
            if (ntohl(kind) == 11) prove(c, head + 9, length - 8);
        }
        at += length + 1;
    }
    memmove(c->buffer, c->buffer + at, c->have - at);
    c->have -= at;
    return 0;
}

static void read_key(const char *digits, unsigned char key[KEY]) {
    if (strlen(digits) != 2 * KEY) refused("not a key", (const unsigned char *)"", 0);
    for (int i = 0; i < KEY; i++) {
        unsigned value;
        if (sscanf(digits + 2 * i, "%2x", &value) != 1) refused("not a key", (const unsigned char *)"", 0);
        key[i] = value;
    }
}

int main(int argc, char **argv) {
    struct epoll_event events[AT_ONCE_MAX];
    int at_once, living;
    size_t done = 0;
    uint64_t began, end;
    uint32_t word;
    if (argc != 8)
        return fprintf(stderr, "usage: logins PORT AT_ONCE SECONDS USER DATABASE CLIENT_KEY STORED_KEY\n"), 2;
    port = atoi(argv[1]);
    at_once = living = atoi(argv[2]);
    if (at_once < 1 || at_once > AT_ONCE_MAX || strlen(argv[4]) + strlen(argv[5]) > 400)
        return fprintf(stderr, "logins: out of range\n"), 2;
    read_key(argv[6], client_key);
    read_key(argv[7], stored_key);
    make_constants();
    word = htonl(196608);
    memcpy(startup + 4, &word, 4);
    startup_size = 8 + sprintf((char *)startup + 8, "user%c%s%cdatabase%c%s%c", 0, argv[4], 0, 0, argv[5], 0) + 1;
    word = htonl((uint32_t)startup_size);
    memcpy(startup, &word, 4);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    began = now_us();
    end = began + (uint64_t)(atof(argv[3]) * 1e6);
    for (int i = 0; i < at_once; i++) begin(&clients[i]);
    while (living) {
        int ready = epoll_wait(epoll_fd, events, at_once, 10000);
        if (ready == 0) refused("no answer for 10 s", (const unsigned char *)"", 0);
        for (int i = 0; i < ready; i++) {
            struct client *c = events[i].data.ptr;
            if (!go_on(c)) continue;
            done++;
            if (now_us() < end) begin(c);
            else living--;
        }
    }
    printf("%zu %llu\n", done, (unsigned long long)(now_us() - began));
    return 0;
}
