#define _GNU_SOURCE
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <jansson.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "bench/bench.h"

/* A server that answers by what the request starts with, without storing anything; one thread a
 * connection. What it saw is counted. */

enum { CONNECTIONS = 32, VALUE = 100 };

struct fake {
    int listener;
    int port;
    pthread_t acceptor;
    pthread_t threads[CONNECTIONS];
    int fds[CONNECTIONS];
    int count;
    _Atomic long sets;
    _Atomic long gets;
    _Atomic long waits; /* from the 901st on there are no replicas */
    _Atomic long stalls; /* the n-th request is answered after 300 ms */
    const char *set_reply;
    int chunk; /* bytes per send: replies arrive in pieces */
};

struct visit {
    struct fake *fake;
    int fd;
};

static void answer(struct fake *fake, int fd, const char *text, size_t size)
{
    size_t chunk = fake->chunk > 0 ? (size_t)fake->chunk : size;
    for (size_t at = 0; at < size; at += chunk) {
        size_t part = size - at < chunk ? size - at : chunk;
        if (send(fd, text + at, part, MSG_NOSIGNAL) < 0) return;
    }
}

/* Size of the whole request at the front, 0 if more must come. Requests are arrays of strings. */
static size_t request_size(const char *text, size_t size)
{
    const char *line = memchr(text, '\n', size);
    if (line == NULL) return 0;
    long elements = strtol(text + 1, NULL, 10);
    const char *at = line + 1;
    while (elements-- > 0) {
        line = memchr(at, '\n', size - (size_t)(at - text));
        if (line == NULL) return 0;
        at = line + 1 + strtol(at + 1, NULL, 10) + 2;
        if (at > text + size) return 0;
    }
    return (size_t)(at - text);
}

static void serve_request(struct fake *fake, int fd, const char *request, size_t size)
{
    static const char info[] = "redis_version:7.0.15\r\nprocess_id:1\r\n";
    char reply[VALUE + 32];
    if (atomic_fetch_sub(&fake->stalls, 1) == 1) {
        struct timespec time = {.tv_nsec = 300000000};
        nanosleep(&time, NULL);
    }
    if (memmem(request, size, "\r\nINFO", 6) != NULL) {
        int length = snprintf(reply, sizeof reply, "$%zu\r\n%s\r\n", sizeof info - 1, info);
        answer(fake, fd, reply, (size_t)length);
    } else if (memmem(request, size, "\r\nCONFIG", 8) != NULL) {
        answer(fake, fd, "*0\r\n", 4);
    } else if (memmem(request, size, "\r\nGET\r\n", 7) != NULL) {
        atomic_fetch_add(&fake->gets, 1);
        int length = snprintf(reply, sizeof reply, "$%d\r\n%0*d\r\n", VALUE, VALUE, 7);
        answer(fake, fd, reply, (size_t)length);
    } else if (memmem(request, size, "\r\nWAIT\r\n", 8) != NULL) {
        atomic_fetch_add(&fake->waits, 1);
        answer(fake, fd, fake->waits > 900 ? ":0\r\n" : ":2\r\n", 4);
    } else {
        atomic_fetch_add(&fake->sets, 1);
        answer(fake, fd, fake->set_reply, strlen(fake->set_reply));
    }
}

static void *serve(void *argument)
{
    struct visit *visit = argument;
    struct fake *fake = visit->fake;
    int fd = visit->fd;
    char *text = malloc(1 << 20);
    size_t size = 0;
    free(visit);
    for (;;) {
        ssize_t got = recv(fd, text + size, (1 << 20) - size, 0);
        if (got <= 0) break;
        size += (size_t)got;
        size_t from = 0;
        size_t one;
        while (from < size && (one = request_size(text + from, size - from)) > 0) {
            serve_request(fake, fd, text + from, one);
            from += one;
        }
        memmove(text, text + from, size - from);
        size -= from;
    }
    free(text);
    return NULL;
}

static void *accept_all(void *argument)
{
    struct fake *fake = argument;
    for (;;) {
        int fd = accept(fake->listener, NULL, NULL);
        if (fd < 0 || fake->count == CONNECTIONS) return NULL;
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct visit *visit = malloc(sizeof *visit);
        *visit = (struct visit){.fake = fake, .fd = fd};
        fake->fds[fake->count] = fd;
        pthread_create(&fake->threads[fake->count++], NULL, serve, visit);
    }
}

static void fake_start(struct fake *fake)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    if (fake->set_reply == NULL) fake->set_reply = "+OK\r\n";
    fake->listener = socket(AF_INET, SOCK_STREAM, 0);
    cr_assert_eq(bind(fake->listener, (struct sockaddr *)&address, sizeof address), 0);
    cr_assert_eq(listen(fake->listener, CONNECTIONS), 0);
    getsockname(fake->listener, (struct sockaddr *)&address, &size);
    fake->port = ntohs(address.sin_port);
    pthread_create(&fake->acceptor, NULL, accept_all, fake);
}

static void fake_stop(struct fake *fake)
{
    shutdown(fake->listener, SHUT_RDWR);
    pthread_join(fake->acceptor, NULL);
    for (int i = 0; i < fake->count; i++) {
        shutdown(fake->fds[i], SHUT_RDWR);
        pthread_join(fake->threads[i], NULL);
        close(fake->fds[i]);
    }
    close(fake->listener);
}

/* Runs the bench with these flags; returns the exit code, and the first result of its JSON. */
static int run(struct fake *fake, const char *const *flags, json_t **result_out)
{
    char node[64];
    char file[] = "/tmp/bench-run.XXXXXX";
    char *argv[32] = {
        (char *)"bench", (char *)"--no-progress", (char *)"--node", node, (char *)"--json", file};
    int argc = 6;
    int fd = mkstemp(file);
    close(fd);
    snprintf(node, sizeof node, "127.0.0.1:%d", fake->port);
    for (; *flags != NULL; flags++)
        argv[argc++] = (char *)*flags;
    fclose(stdout);
    stdout = fopen("/dev/null", "w");
    int code = bench_main(argc, argv);
    json_t *root = json_load_file(file, 0, NULL);
    *result_out = json_incref(json_array_get(json_object_get(root, "results"), 0));
    json_decref(root);
    unlink(file);
    return code;
}

static long long number(json_t *result, const char *outer, const char *inner)
{
    json_t *object = outer == NULL ? result : json_object_get(result, outer);
    return (long long)json_number_value(json_object_get(object, inner));
}

Test(load_resp, every_request_is_sent_and_answered_once)
{
    struct fake fake = {0};
    json_t *result;
    fake_start(&fake);
    const char *flags[] = {"--workload", "mixed", "--ratio", "1:1", "--clients", "5", "--pipeline",
        "7", "--requests", "10001", NULL};
    cr_assert_eq(run(&fake, flags, &result), 0);
    cr_assert_eq(number(result, NULL, "operations"), 10001);
    cr_assert_eq(number(result, "latency_ns", "count"), 10001);
    cr_assert_eq(fake.sets + fake.gets, 10001);
    cr_assert(fake.sets > 4500 && fake.sets < 5500);
    json_decref(result);
    fake_stop(&fake);
}

Test(load_resp, replies_in_small_pieces_are_put_together)
{
    struct fake fake = {.chunk = 3};
    json_t *result;
    fake_start(&fake);
    const char *flags[] = {
        "--workload", "get", "--clients", "2", "--pipeline", "4", "--requests", "300", NULL};
    cr_assert_eq(run(&fake, flags, &result), 0);
    cr_assert_eq(number(result, NULL, "operations"), 300);
    json_decref(result);
    fake_stop(&fake);
}

Test(load_resp, a_read_modify_write_is_a_get_and_then_a_set)
{
    struct fake fake = {0};
    json_t *result;
    fake_start(&fake);
    const char *flags[] = {
        "--workload", "f", "--clients", "3", "--pipeline", "4", "--requests", "1000", NULL};
    cr_assert_eq(run(&fake, flags, &result), 0);
    cr_assert_eq(number(result, NULL, "operations"), 1000);
    cr_assert_eq(fake.gets, 1000);
    json_t *operations = json_object_get(result, "by_operation_ns");
    cr_assert_eq(fake.sets, number(operations, "rmw", "count"));
    cr_assert(fake.sets > 400 && fake.sets < 600);
    json_decref(result);
    fake_stop(&fake);
}

Test(load_resp, error_replies_are_counted_by_kind_and_fail_the_run)
{
    struct fake fake = {.set_reply = "-LOADING wait for me\r\n"};
    json_t *result;
    fake_start(&fake);
    const char *flags[] = {"--workload", "set", "--clients", "2", "--requests", "10", NULL};
    cr_assert_eq(run(&fake, flags, &result), 1);
    cr_assert_eq(number(result, NULL, "operations"), 0);
    json_t *kind = json_object_get(json_object_get(result, "errors"), "-LOADING");
    cr_assert_eq(number(kind, NULL, "count"), 10);
    cr_assert_str_eq(json_string_value(json_object_get(kind, "example")), "LOADING wait for me");
    json_decref(result);
    fake_stop(&fake);
}

Test(load_resp, values_of_another_size_are_errors)
{
    struct fake fake = {0};
    json_t *result;
    fake_start(&fake);
    const char *flags[] = {
        "--workload", "get", "--value-size", "99", "--clients", "1", "--requests", "10", NULL};
    cr_assert_eq(run(&fake, flags, &result), 1);
    cr_assert_eq(number(json_object_get(result, "errors"), "wrong reply", "count"), 10);
    json_decref(result);
    fake_stop(&fake);
}

/* The server is away for 300 ms once. In an open loop of 1,000 a second, about 300 requests arrive
 * meanwhile and wait 150 ms on average: the tail must show it, though only one request was in the server's
 * hands. */
Test(load_resp, an_open_loop_does_not_omit_what_waited)
{
    struct fake fake = {.stalls = 200};
    json_t *result;
    fake_start(&fake);
    const char *flags[] = {
        "--workload", "get", "--rate", "1000", "--clients", "1", "--seconds", "1.5", NULL};
    cr_assert_eq(run(&fake, flags, &result), 0);
    cr_assert(number(result, "latency_ns", "count") >= 1490);
    cr_assert(number(result, "latency_ns", "p90") > 100000000, "p90 is %lld ns",
        number(result, "latency_ns", "p90"));
    cr_assert(number(result, "latency_ns", "max") > 280000000);
    json_decref(result);
    fake_stop(&fake);
}

Test(load_resp, clients_are_spread_over_the_nodes)
{
    struct fake fakes[3] = {{0}, {0}, {0}};
    json_t *result;
    char two[64];
    char third[64];
    for (int i = 0; i < 3; i++)
        fake_start(&fakes[i]);
    snprintf(two, sizeof two, "127.0.0.1:%d", fakes[1].port);
    snprintf(third, sizeof third, "127.0.0.1:%d", fakes[2].port);
    const char *flags[] = {"--node", two, "--node", third, "--workload", "set", "--clients", "7",
        "--threads", "2", "--requests", "9000", NULL};
    cr_assert_eq(run(&fakes[0], flags, &result), 0);
    cr_assert_eq(number(result, NULL, "operations"), 9000);
    cr_assert_str_eq(json_string_value(json_object_get(result, "name")), "3 nodes");
    /* one more connection asks who answers there */
    cr_assert_eq(fakes[0].count, 3 + 1);
    cr_assert_eq(fakes[1].count, 2 + 1);
    cr_assert_eq(fakes[2].count, 2 + 1);
    cr_assert_eq(fakes[0].sets + fakes[1].sets + fakes[2].sets, 9000);
    json_decref(result);
    for (int i = 0; i < 3; i++)
        fake_stop(&fakes[i]);
}

Test(load_resp, nodes_may_stand_in_one_list)
{
    struct fake fakes[2] = {{0}, {0}};
    json_t *result;
    char both[96];
    fake_start(&fakes[0]);
    fake_start(&fakes[1]);
    snprintf(both, sizeof both, "127.0.0.1:%d,127.0.0.1:%d", fakes[1].port, fakes[1].port);
    const char *flags[] = {"--node", both, "--clients", "6", "--requests", "600", NULL};
    cr_assert_eq(run(&fakes[0], flags, &result), 0);
    cr_assert_eq(fakes[0].count, 2 + 1);
    cr_assert_eq(fakes[1].count, 4 + 2);
    json_decref(result);
    fake_stop(&fakes[0]);
    fake_stop(&fakes[1]);
}

Test(load_resp, errors_of_a_cluster_are_counted_apart)
{
    struct fake fakes[2] = {{.set_reply = "-UNKNOWN the leader was lost\r\n"},
        {.set_reply = "-CLUSTERDOWN no majority\r\n"}};
    json_t *result;
    char second[64];
    fake_start(&fakes[0]);
    fake_start(&fakes[1]);
    snprintf(second, sizeof second, "127.0.0.1:%d", fakes[1].port);
    const char *flags[] = {
        "--node", second, "--workload", "set", "--clients", "2", "--requests", "100", NULL};
    cr_assert_eq(run(&fakes[0], flags, &result), 1);
    json_t *errors = json_object_get(result, "errors");
    long long unknown = number(errors, "-UNKNOWN", "count");
    long long down = number(errors, "-CLUSTERDOWN", "count");
    cr_assert(unknown > 0 && down > 0);
    cr_assert_eq(unknown + down, 100);
    json_decref(result);
    fake_stop(&fakes[0]);
    fake_stop(&fakes[1]);
}

Test(load_resp, a_set_with_its_wait_is_one_operation)
{
    struct fake fake = {.chunk = 2};
    json_t *result;
    fake_start(&fake);
    const char *flags[] = {"--workload", "set", "--wait", "2", "--clients", "3", "--pipeline", "4",
        "--requests", "1000", NULL};
    cr_assert_eq(run(&fake, flags, &result), 1);
    cr_assert_eq(fake.sets, 1000);
    cr_assert_eq(fake.waits, 1000);
    cr_assert_eq(number(result, NULL, "operations"), 900);
    json_t *errors = json_object_get(result, "errors");
    cr_assert_eq(number(errors, "too few replicas", "count"), 100);
    json_decref(result);
    fake_stop(&fake);
}
