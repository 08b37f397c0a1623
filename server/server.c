#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/check.h"
#include "base/logger.h"
#include "server/command.h"
#include "storage/folder.h"

/* A node's life: opens everything in order, runs the loop, closes in reverse.
 *
 * A turn of the loop: the node takes the time; a wake reaps the log, which releases held replies; commands
 * run as their bytes arrive; at the end what was proposed leaves as one log write, and all output as one
 * send per connection. When one client alone is active, the log write is made in this thread:
 * handing it to the log thread and back costs more than anybody else could gain from it.
 *
 * Signals come through a descriptor that the loop watches, so they need no global state. The first
 * SIGTERM or SIGINT stops accepting and parsing, sends what is owed, checkpoints and exits 0;
 * from then on the signals have their default action again, so the second one ends the process at once. */

enum {
    EXIT_FAILED = 1,
    EXIT_USAGE = 2,
    EXIT_DAMAGED = 3,
    EXIT_DURABILITY = 4,
};

enum {
    TICK_MS = 20, /* of the log's idle marks */
    TICKS_PER_ROUND = 5, /* everything else that is periodic */
    FEW_PROCESSORS = 2, /* up to here the log's thread shares the loop's */
    ALONE_AFTER_MS = 10,
    STOP_WITHIN_MS = 2000,
    LISTEN_BACKLOG = 4096,
    COMMAND_BYTES_MAX = 64 << 20,
};

static void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void complain(const char *format, ...)
{
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    fprintf(stderr, "duramen: %s\n", line);
}

/* ---- tickets ---- */

static void run_waiters(struct server *server, ticket_t committed)
{
    while (server->waiters != NULL && server->waiters->ticket <= committed) {
        struct ticket_waiter *waiter = server->waiters;
        server->waiters = waiter->next;
        if (server->waiters == NULL) server->waiters_last = NULL;
        waiter->on_ready(waiter);
    }
}

void server_wait(struct server *server, struct ticket_waiter *waiter)
{
    if (waiter->ticket <= node_committed(server->node)) {
        waiter->on_ready(waiter);
        return;
    }
    /* tickets ascend, so the place is nearly always the end */
    if (server->waiters_last == NULL || server->waiters_last->ticket <= waiter->ticket) {
        waiter->next = NULL;
        if (server->waiters_last == NULL) {
            server->waiters = waiter;
        } else {
            server->waiters_last->next = waiter;
        }
        server->waiters_last = waiter;
        return;
    }
    struct ticket_waiter **at = &server->waiters;
    while ((*at)->ticket <= waiter->ticket)
        at = &(*at)->next;
    waiter->next = *at;
    *at = waiter;
}

void server_unwait(struct server *server, struct ticket_waiter *waiter)
{
    struct ticket_waiter *before = NULL;
    for (struct ticket_waiter *at = server->waiters; at != NULL; before = at, at = at->next) {
        if (at != waiter) continue;
        if (before == NULL) {
            server->waiters = at->next;
        } else {
            before->next = at->next;
        }
        if (server->waiters_last == at) server->waiters_last = before;
        return;
    }
}

/* ---- the loop ---- */

static void on_committed(void *ctx, ticket_t committed)
{
    struct server *server = ctx;
    sessions_on_committed(server, committed);
    run_waiters(server, committed);
}

static void wake_loop(void *ctx)
{
    struct server *server = ctx;
    loop_wake(server->loop);
}

static void on_turn_begin(void *ctx)
{
    struct server *server = ctx;
    server->turn++;
    server->now_ns = server->io.clock.monotonic_ns(server->io.clock.ctx);
    node_turn_begin(server->node);
}

/* Nothing that the log could not make durable may be answered: the process ends here. */
_Noreturn static void stop_poisoned(void)
{
    log_error("the log failed: the node stops, for what it would answer from now on could be lost",
        "exit=%d", EXIT_DURABILITY);
    complain("a write or sync of the log failed; what was acknowledged before is safe; check the "
             "disk, then start again");
    _exit(EXIT_DURABILITY);
}

static void on_wake(void *ctx)
{
    struct server *server = ctx;
    if (node_poll(server->node) != OK) stop_poisoned();
    auth_poll(server);
    sessions_retry(server);
}

static void on_tick(void *ctx)
{
    struct server *server = ctx;
    if (node_poll(server->node) != OK) stop_poisoned();
    node_idle(server->node);
    if (++server->ticks % TICKS_PER_ROUND != 0) return;
    node_tick(server->node);
    sessions_tick(server);
}

static bool is_alone(const struct server *server)
{
    return loop_turn_streams(server->loop) == 1 &&
        server->now_ns - server->other_active_ns > ALONE_AFTER_MS * 1000000ull;
}

static bool on_turn_end(void *ctx)
{
    struct server *server = ctx;
    if (server->http != NULL) http_turn(server);
    node_turn_end(server->node, is_alone(server));
    sessions_turn_end(server);
    if (server->stopping) {
        bool late = server->now_ns >= server->stop_by_ns;
        if (server->session_count == 0 && (late || !http_busy(server))) loop_stop(server->loop);
        if (late) sessions_close_all(server);
    }
    return false;
}

static void stop_listening(struct server *server, int *fd)
{
    if (*fd < 0) return;
    if (fd == &server->listen_fd) loop_unlisten(server->loop, *fd);
    close(*fd);
    *fd = -1;
}

static void on_signal(void *ctx)
{
    struct server *server = ctx;
    struct signalfd_siginfo info;
    if (read(server->signal_fd, &info, sizeof info) != (ssize_t)sizeof info || server->stopping)
        return;
    log_info("stopping", "signal=%u clients=%u", info.ssi_signo, server->session_count);
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_UNBLOCK, &signals, NULL);

    server->stopping = true;
    server->stop_by_ns = server->now_ns + STOP_WITHIN_MS * 1000000ull;
    stop_listening(server, &server->listen_fd);
    http_stop(server);
    for (struct session *session = server->sessions; session != NULL; session = session->next_all)
        session_close(session, true);
}

/* ---- addresses ---- */

static bool is_off(const char *text)
{
    return text == NULL || text[0] == '\0' || strcmp(text, "off") == 0;
}

static bool is_loopback(const struct addrinfo *address)
{
    if (address->ai_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)address->ai_addr;
        return ntohl(in->sin_addr.s_addr) >> 24 == 127;
    }
    if (address->ai_family == AF_INET6) {
        const struct sockaddr_in6 *in6 =
            (const struct sockaddr_in6 *)(const void *)address->ai_addr;
        return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr) ||
            (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr) && in6->sin6_addr.s6_addr[12] == 127);
    }
    return false;
}

/* "host:port" or "[v6]:port". NULL after complaining. */
static struct addrinfo *resolve(const char *flag, const char *text)
{
    char host[256];
    const char *colon = strrchr(text, ':');
    size_t length = colon == NULL ? 0 : (size_t)(colon - text);
    if (colon == NULL || length >= sizeof host || colon[1] == '\0') {
        complain("--%s %s: write it as HOST:PORT, for example 127.0.0.1:7379", flag, text);
        return NULL;
    }
    memcpy(host, text, length);
    host[length] = '\0';
    char *name = host;
    if (length >= 2 && host[0] == '[' && host[length - 1] == ']') {
        host[length - 1] = '\0';
        name++;
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    int code = getaddrinfo(name[0] == '\0' ? NULL : name, colon + 1, &hints, &found);
    if (code != 0) {
        complain("--%s %s: this address cannot be used: %s", flag, text, gai_strerror(code));
        return NULL;
    }
    return found;
}

static void address_text(const struct sockaddr_storage *address, char *text, size_t size)
{
    char host[INET6_ADDRSTRLEN] = "";
    if (address->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)address;
        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof host);
        snprintf(text, size, "[%s]:%u", host, ntohs(in6->sin6_port));
    } else {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)address;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
        snprintf(text, size, "%s:%u", host, ntohs(in->sin_port));
    }
}

/* Binds, but does not listen yet. On success *fd_out is -1 if the address is "off". Exit code. */
static int bind_address(struct server *server, const char *flag, const char *text, int *fd_out,
    struct sockaddr_storage *bound, char *shown, size_t shown_size)
{
    *fd_out = -1;
    snprintf(shown, shown_size, "off");
    if (is_off(text)) return 0;
    struct addrinfo *address = resolve(flag, text);
    if (address == NULL) return EXIT_USAGE;
    int code = 0, fd = -1, one = 1;
    if (!is_loopback(address) && server->config.password_hash == NULL) {
        complain("--%s %s can be reached from other machines, so it needs a password: set "
                 "requirepass or password-file, or listen on 127.0.0.1",
            flag, text);
        code = EXIT_USAGE;
    } else {
        fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
            bind(fd, address->ai_addr, address->ai_addrlen) != 0) {
            complain(errno == EADDRINUSE
                    ? "--%s %s: the port is in use by another process; stop it or choose another"
                    : "--%s %s cannot be listened on: %m",
                flag, text);
            code = EXIT_FAILED;
        }
    }
    freeaddrinfo(address);
    if (code != 0) {
        if (fd >= 0) close(fd);
        return code;
    }
    *fd_out = fd;
    socklen_t size = sizeof *bound;
    if (getsockname(fd, (struct sockaddr *)bound, &size) == 0)
        address_text(bound, shown, shown_size);
    return 0;
}

/* The peer address is not served yet: it is only looked at. */
static int check_peer(struct server *server)
{
    const char *text = server->config.peer;
    snprintf(server->peer_text, sizeof server->peer_text, "%s", is_off(text) ? "off" : text);
    if (is_off(text)) return 0;
    struct addrinfo *address = resolve("peer", text);
    if (address == NULL) return EXIT_USAGE;
    bool open = !is_loopback(address) && server->config.password_hash == NULL;
    freeaddrinfo(address);
    if (!open) return 0;
    complain(
        "--peer %s can be reached from other machines, so it needs a password: set requirepass "
        "or password-file, or use 127.0.0.1",
        text);
    return EXIT_USAGE;
}

static int bind_all(struct server *server)
{
    const struct server_config *config = &server->config;
    int code = bind_address(server, "listen", config->listen, &server->listen_fd,
        &server->resp_address, server->resp_text, sizeof server->resp_text);
    if (code == 0)
        code = bind_address(server, "http", config->http, &server->http_fd, &server->http_address,
            server->http_text, sizeof server->http_text);
    return code == 0 ? check_peer(server) : code;
}

static int start_listening(struct server *server)
{
    if (server->listen_fd >= 0) {
        if (listen(server->listen_fd, LISTEN_BACKLOG) != 0 ||
            loop_listen(server->loop, server->listen_fd, session_accept, server) != OK) {
            complain("--listen %s cannot be listened on: %m", server->config.listen);
            return EXIT_FAILED;
        }
    }
    if (server->http_fd >= 0) {
        if (listen(server->http_fd, LISTEN_BACKLOG) != 0 ||
            http_open(server, server->http_fd) != OK) {
            complain("--http %s cannot be served: %m", server->config.http);
            return EXIT_FAILED;
        }
    }
    return 0;
}

/* ---- the process ---- */

/* LMDB maps its file: a page that the disk cannot give arrives as this signal. */
static void on_bus_error(int signal)
{
    (void)signal;
    static const char text[] =
        "duramen: a page of the stored data cannot be read (SIGBUS): the data or the disk is "
        "damaged; run duramen verify\n";
    (void)!write(STDERR_FILENO, text, sizeof text - 1);
    _exit(EXIT_DAMAGED);
}

static int prepare_process(struct server *server)
{
    umask(077);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
        files.rlim_cur = files.rlim_max;
        (void)!setrlimit(RLIMIT_NOFILE, &files);
    }
    /* descriptors that are not connections: log, store, HTTP, standard streams */
    enum { RESERVED = 64 };
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur > RESERVED &&
        server->config.connections_max > files.rlim_cur - RESERVED) {
        server->config.connections_max = (uint32_t)(files.rlim_cur - RESERVED);
        log_warn("fewer connections than configured: the limit of open files is too low",
            "connections=%u", server->config.connections_max);
    }
    struct sigaction action = {.sa_handler = SIG_IGN};
    sigaction(SIGPIPE, &action, NULL);
    action.sa_handler = on_bus_error;
    sigaction(SIGBUS, &action, NULL);

    /* before any thread is made, so that all of them inherit it */
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    server->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    if (server->signal_fd < 0 ||
        getrandom(server->run_id, sizeof server->run_id, 0) != (ssize_t)sizeof server->run_id ||
        getrandom(&server->io.seed, sizeof server->io.seed, 0) != (ssize_t)sizeof server->io.seed) {
        complain("the process cannot be set up: %m");
        return EXIT_FAILED;
    }
    return 0;
}

/* Tells systemd (Type=notify) how we are; nothing happens elsewhere. */
static void notify(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (path == NULL || (path[0] != '/' && path[0] != '@')) return;
    size_t length = strlen(path);
    if (length >= sizeof address.sun_path) return;
    memcpy(address.sun_path, path, length);
    if (path[0] == '@') address.sun_path[0] = '\0'; /* the abstract name space */
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return;
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    (void)!sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&address, size);
    close(fd);
}

static int open_the_loop(struct server *server)
{
    const char *wanted = server->config.io == NULL ? "auto" : server->config.io;
    struct loop_config config = {
        .uring = strcmp(wanted, "posix") != 0,
        .tick_ms = TICK_MS,
        .ctx = server,
        .on_turn_begin = on_turn_begin,
        .on_turn_end = on_turn_end,
        .on_wake = on_wake,
        .on_tick = on_tick,
    };
    enum err err = loop_open(&config, &server->loop);
    if (err == ERR_UNSUPPORTED && strcmp(wanted, "uring") == 0) {
        complain("--io uring: this system does not allow io_uring; use --io auto or --io posix");
        return EXIT_FAILED;
    }
    if (err == ERR_UNSUPPORTED) {
        log_info("io_uring is not allowed here; connections use epoll", "io=%s", "posix");
        config.uring = false;
        err = loop_open(&config, &server->loop);
    }
    if (err == OK) err = loop_watch(server->loop, server->signal_fd, on_signal, server);
    if (err == OK) return 0;
    complain("the event loop cannot be opened: %s", err_text(err));
    return EXIT_FAILED;
}

static int exit_code_of(enum err err)
{
    if (err == ERR_CORRUPT || err == ERR_GAP) return EXIT_DAMAGED;
    if (err == ERR_POISONED) return EXIT_DURABILITY;
    return EXIT_FAILED;
}

static int open_node(struct server *server, const struct folder *folder)
{
    const struct server_config *config = &server->config;
    struct node_config node_config = {
        .io = &server->io,
        .kv = &kv_lmdb,
        .kv_folder = folder->db,
        .name = folder->identity.name,
        .ranges = folder->identity.ranges,
        .memory = config->memory,
        .log_bytes_max = config->log_bytes,
        .accept_loss = config->accept_loss,
        .create = true,
        .background = true,
        .scrub = config->scrub,
        .ctx = server,
        .on_committed = on_committed,
        .wake = wake_loop,
    };
    memcpy(node_config.cluster_id, folder->identity.cluster_id, sizeof node_config.cluster_id);
    memcpy(node_config.store_id, folder->identity.node_id, sizeof node_config.store_id);
    struct engine_report report = {0};
    enum err err = node_open(&node_config, &report, &server->node);
    if (err != OK) {
        const char *detail = report.detail[0] != '\0' ? report.detail : report.log.detail;
        complain("%s: the data cannot be opened: %s%s%s", config->data, err_text(err),
            detail[0] != '\0' ? ": " : "", detail);
        return exit_code_of(err);
    }
    log_info("recovered",
        "data=%s checkpointed=%llu replayed=%llu replayed_bytes=%llu last=%llu torn_tail=%d "
        "took_ms=%llu log_io=%s io=%s",
        config->data, (unsigned long long)report.checkpointed,
        (unsigned long long)report.log.records, (unsigned long long)report.log.bytes,
        (unsigned long long)report.log.last, report.log.torn_tail,
        (unsigned long long)(report.replay_ns / 1000000), server->disk->name,
        loop_name(server->loop));
    return 0;
}

static void set_limits(struct server *server)
{
    struct resp_limits open = {
        .arguments_max = RESP_ARGUMENTS_MAX,
        .bulk_max = VALUE_SIZE_MAX,
        .inline_max = RESP_INLINE_MAX,
        .command_max = COMMAND_BYTES_MAX,
    };
    struct resp_limits closed = open;
    closed.arguments_max = 10;
    closed.bulk_max = 16 << 10;
    closed.unauthenticated = true;
    server->limits[0] = closed;
    server->limits[1] = open;
}

static int serve(struct server *server)
{
    uint32_t count;
    command_table(&count);
    server->command_stats = calloc(count, sizeof *server->command_stats);
    if (server->command_stats == NULL || auth_open(server) != OK) {
        complain("out of memory");
        return EXIT_FAILED;
    }
    int code = start_listening(server);
    if (code != 0) return code;
    server->started_ns = server->io.clock.monotonic_ns(server->io.clock.ctx);
    server->started_wall_ms = server->io.clock.wall_ms(server->io.clock.ctx);
    server->now_ns = server->started_ns;
    printf(
        "ready resp=%s http=%s peer=%s\n", server->resp_text, server->http_text, server->peer_text);
    fflush(stdout);
    notify("READY=1\n");
    loop_run(server->loop);
    notify("STOPPING=1\n");
    return 0;
}

static void close_all(struct server *server, bool checkpoint)
{
    /* after a failed start there may be connections already */
    if (server->loop != NULL && server->listen_fd >= 0 && server->session_count == 0)
        stop_listening(server, &server->listen_fd);
    if (server->http != NULL) http_close(server);
    if (server->auth != NULL) auth_close(server);
    if (server->node != NULL) node_close(server->node, checkpoint);
    if (server->commands != NULL) commands_close(server);
    slowlog_reset(server);
    if (server->command_stats != NULL) {
        uint32_t count;
        command_table(&count);
        for (uint32_t i = 0; i < count; i++)
            free(server->command_stats[i].latency_ns);
        free(server->command_stats);
    }
    if (server->listen_fd >= 0) close(server->listen_fd);
    if (server->http_fd >= 0) close(server->http_fd);
    if (server->signal_fd >= 0) close(server->signal_fd);
}

static int run_in_folder(struct server *server, struct folder *folder)
{
    struct disk disk;
    enum log_io mode;
    enum err err = disk_open(folder->wal, server->config.log_io, &disk, &mode);
    if (err != OK) {
        complain("%s: the log's folder cannot be used with --log-io %s: %s", folder->wal,
            log_io_name(server->config.log_io), err_text(err));
        return EXIT_FAILED;
    }
    if (sysconf(_SC_NPROCESSORS_ONLN) <= FEW_PROCESSORS) disk_follow(&disk);
    server->io.disk = disk;
    server->disk = &server->io.disk;
    int code = open_the_loop(server);
    if (code == 0) disk.set_wake(disk.ctx, wake_loop, server);
    if (code == 0) code = open_node(server, folder);
    if (code == 0) code = serve(server);
    close_all(server, code == 0);
    disk_close(&disk);
    /* last: the disk's threads may wake the loop until they have ended */
    if (server->loop != NULL) loop_close(server->loop);
    return code;
}

int server_run(struct server_config *config)
{
    if (config->join != NULL && config->join[0] != '\0') {
        complain("--join %s: this version runs clusters of one node; joining another comes with "
                 "replication, so leave --join out",
            config->join);
        return EXIT_USAGE;
    }
    struct server *server = calloc(1, sizeof *server);
    struct folder *folder = calloc(1, sizeof *folder);
    if (server == NULL || folder == NULL) {
        free(server);
        free(folder);
        complain("out of memory");
        return EXIT_FAILED;
    }
    server->config = *config;
    server->io.clock = clock_real();
    server->listen_fd = server->http_fd = server->signal_fd = -1;
    set_limits(server);

    int code = prepare_process(server);
    if (code == 0) code = bind_all(server);
    if (code == 0) {
        struct folder_identity wanted = {.ranges = config->ranges};
        char detail[512] = "";
        if (config->name != NULL) snprintf(wanted.name, sizeof wanted.name, "%s", config->name);
        enum err err = folder_open(config->data, false, &wanted, folder, detail, sizeof detail);
        if (err == OK) {
            code = run_in_folder(server, folder);
            folder_close(folder);
        } else {
            complain("%s", detail[0] != '\0' ? detail : err_text(err));
            code = exit_code_of(err);
            close_all(server, false);
        }
    } else {
        close_all(server, false);
    }
    free(folder);
    free(server);
    return code;
}
