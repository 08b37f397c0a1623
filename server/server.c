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
#include "cluster/node/join.h"
#include "server/forward.h"
#include "server/peer.h"
#include "server/renew.h"
#include "server/scatter.h"

/* A node's life: opens everything in order, runs the loop, closes in reverse.
 *
 * A turn of the loop: the node takes the time; a wake reaps the log, which releases held replies; commands
 * run as their bytes arrive; at the end what was proposed leaves as one log write, and all output as one
 * send per connection. When one client alone is active, the log write is made in this thread:
 * handing it to the log thread and back costs more than anybody else could gain from it.
 *
 * Signals come through a descriptor that the loop watches, so they need no global state. The first
 * SIGTERM or SIGINT stops accepting, hands over what this node leads while it still answers, then stops parsing, sends
 * what is owed, checkpoints and exits 0;
 * from then on the signals have their default action again, so the second one ends the process at once. */

enum {
    EXIT_FAILED = 1,
    EXIT_USAGE = 2,
    EXIT_DAMAGED = 3,
    EXIT_DURABILITY = 4,
};

enum {
    TICK_MS = 10, /* elections, heartbeats, deadlines; the log's idle marks */
    TICKS_PER_ROUND = 10, /* everything else that is periodic */
    TICKS_PER_PEERS = 100,
    EXIT_AGAIN = 1000, /* no exit: the folder was renewed, start again */
    FEW_PROCESSORS = 2, /* up to here the log's thread shares the loop's */
    ALONE_AFTER_MS = 10,
    STOP_WITHIN_MS = 2000,
    HAND_OVER_WITHIN_MS = 3000,
    LINGER_MS = 300, /* after the last range was handed over */
    LEAD_WITHIN_MS = 5000, /* a node alone elects itself */
    LISTEN_BACKLOG = 4096,
    COMMAND_BYTES_MAX = 64 << 20,
};

void server_complain(const char *format, ...)
{
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    fprintf(stderr, "duramen: %s\n", line);
}

/* ---- tickets ---- */

static void run_waiters(struct server *server)
{
    struct ticket_waiter **at = &server->waiters;
    while (*at != NULL) {
        struct ticket_waiter *waiter = *at;
        enum ticket_state state = node_ticket(server->node, waiter->ticket);
        if (state == TICKET_WAITING) {
            at = &waiter->next;
            continue;
        }
        *at = waiter->next;
        waiter->on_ready(waiter, state);
    }
}

void server_wait(struct server *server, struct ticket_waiter *waiter)
{
    enum ticket_state state =
        waiter->ticket == 0 ? TICKET_DONE : node_ticket(server->node, waiter->ticket);
    if (state != TICKET_WAITING) {
        waiter->on_ready(waiter, state);
        return;
    }
    waiter->next = server->waiters;
    server->waiters = waiter;
}

void server_unwait(struct server *server, struct ticket_waiter *waiter)
{
    struct ticket_waiter **at = &server->waiters;
    while (*at != NULL && *at != waiter)
        at = &(*at)->next;
    if (*at != NULL) *at = waiter->next;
}

/* ---- the loop ---- */

static void on_tickets(void *ctx)
{
    struct server *server = ctx;
    sessions_on_tickets(server);
    run_waiters(server);
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
    server_complain(
        "a write or sync of the log failed; what was acknowledged before is safe; check the "
        "disk, then start again");
    _exit(EXIT_DURABILITY);
}

/* The cluster does not want this process: it was removed, or its folder is a copy of another's. */
_Noreturn static void stop_refused(void)
{
    server_complain(
        "the cluster refuses this node: it was removed, or another process runs with a copy of its "
        "folder; to take part again, start with an empty folder and --join");
    _exit(EXIT_USAGE);
}

static void poll_node(struct server *server)
{
    enum err err = node_poll(server->node);
    if (err == ERR_PERMISSION) stop_refused();
    if (err != OK) stop_poisoned();
    if (server->bucket_requests != NULL) bucket_requests_poll(server);
}

/* The second half of stopping: nothing new is begun. */
static void stop_serving(struct server *server)
{
    server->stopping = true;
    server->stop_by_ns = server->now_ns + STOP_WITHIN_MS * 1000000ull;
    http_stop(server);
    for (struct session *session = server->sessions; session != NULL; session = session->next_all)
        session_close(session, true);
}

static void hand_over(struct server *server)
{
    if (server->hand_over_by_ns == 0 || server->stopping) return;
    bool late = server->now_ns >= server->hand_over_by_ns;
    if (!node_hand_over(server->node)) {
        server->handed_over_ns = 0;
    } else if (server->handed_over_ns == 0) {
        server->handed_over_ns = server->now_ns;
    }
    /* what others have sent here before they heard of the new leaders is still answered: with where to go */
    uint64_t linger_ns = node_alone(server->node) ? 0 : LINGER_MS * 1000000ull;
    bool done = server->handed_over_ns != 0 && server->now_ns - server->handed_over_ns >= linger_ns;
    if (done || late) stop_serving(server);
}

static void on_wake(void *ctx)
{
    struct server *server = ctx;
    poll_node(server);
    auth_poll(server);
    sessions_retry(server);
    hand_over(server);
}

static void on_tick(void *ctx)
{
    struct server *server = ctx;
    poll_node(server);
    node_tick(server->node);
    node_idle(server->node);
    hand_over(server);
    if (server->ticks % TICKS_PER_PEERS == 0) renew_note_peers(server, server->folder);
    if (++server->ticks % TICKS_PER_ROUND == 0) sessions_tick(server);
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
    if (read(server->signal_fd, &info, sizeof info) != (ssize_t)sizeof info ||
        server->hand_over_by_ns != 0)
        return;
    log_info("stopping", "signal=%u clients=%u", info.ssi_signo, server->session_count);
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_UNBLOCK, &signals, NULL);

    server->hand_over_by_ns = server->now_ns + HAND_OVER_WITHIN_MS * 1000000ull;
    stop_listening(server, &server->listen_fd);
    hand_over(server);
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
        server_complain("--%s %s: write it as HOST:PORT, for example 127.0.0.1:7379", flag, text);
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
        server_complain("--%s %s: this address cannot be used: %s", flag, text, gai_strerror(code));
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
        server_complain("--%s %s can be reached from other machines, so it needs a password: set "
                        "requirepass or password-file, or listen on 127.0.0.1",
            flag, text);
        code = EXIT_USAGE;
    } else {
        fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
            bind(fd, address->ai_addr, address->ai_addrlen) != 0) {
            server_complain(errno == EADDRINUSE
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

static bool is_wildcard(const struct addrinfo *address)
{
    if (address->ai_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)address->ai_addr;
        return in->sin_addr.s_addr == htonl(INADDR_ANY);
    }
    if (address->ai_family != AF_INET6) return false;
    return IN6_IS_ADDR_UNSPECIFIED(
        &((const struct sockaddr_in6 *)(const void *)address->ai_addr)->sin6_addr);
}

int server_check_address(const char *flag, const char *text, bool *loopback_out, bool *wildcard_out)
{
    struct addrinfo *address = resolve(flag, text);
    if (address == NULL) return EXIT_USAGE;
    *loopback_out = is_loopback(address);
    *wildcard_out = is_wildcard(address);
    freeaddrinfo(address);
    return 0;
}

static int bind_all(struct server *server)
{
    const struct server_config *config = &server->config;
    int code = bind_address(server, "listen", config->listen, &server->listen_fd,
        &server->resp_address, server->resp_text, sizeof server->resp_text);
    if (code == 0)
        code = bind_address(server, "http", config->http, &server->http_fd, &server->http_address,
            server->http_text, sizeof server->http_text);
    return code == 0 ? peer_open(server) : code;
}

static int start_listening(struct server *server)
{
    if (server->listen_fd >= 0) {
        if (listen(server->listen_fd, LISTEN_BACKLOG) != 0 ||
            loop_listen(server->loop, server->listen_fd, session_accept, server) != OK) {
            server_complain("--listen %s cannot be listened on: %m", server->config.listen);
            return EXIT_FAILED;
        }
    }
    if (server->http_fd >= 0) {
        if (listen(server->http_fd, LISTEN_BACKLOG) != 0 ||
            http_open(server, server->http_fd) != OK) {
            server_complain("--http %s cannot be served: %m", server->config.http);
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
        server_complain("the process cannot be set up: %m");
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
        server_complain(
            "--io uring: this system does not allow io_uring; use --io auto or --io posix");
        return EXIT_FAILED;
    }
    if (err == ERR_UNSUPPORTED) {
        log_info("io_uring is not allowed here; connections use epoll", "io=%s", "posix");
        config.uring = false;
        err = loop_open(&config, &server->loop);
    }
    if (err == OK) err = loop_watch(server->loop, server->signal_fd, on_signal, server);
    if (err == OK) return 0;
    server_complain("the event loop cannot be opened: %s", err_text(err));
    return EXIT_FAILED;
}

static int exit_code_of(enum err err)
{
    if (err == ERR_CORRUPT || err == ERR_GAP) return EXIT_DAMAGED;
    if (err == ERR_POISONED) return EXIT_DURABILITY;
    return EXIT_FAILED;
}

/* A node alone leads every range as soon as it has voted for itself, which is written down. */
static int lead_alone(struct server *server)
{
    const struct clock *clock = &server->io.clock;
    uint64_t until_ns = clock->monotonic_ns(clock->ctx) + LEAD_WITHIN_MS * 1000000ull;
    struct node *node = server->node;
    uint32_t range = 0;
    while (node_alone(node)) {
        while (range <= node_ranges(node) && node_serves(node, (uint16_t)range))
            range++;
        if (range > node_ranges(node)) return 0;
        if (clock->monotonic_ns(clock->ctx) >= until_ns) {
            server_complain(
                "%s: this node alone does not come to lead its ranges", server->config.data);
            return EXIT_FAILED;
        }
        node_turn_begin(node);
        enum err err = node_poll(node);
        if (err != OK) return exit_code_of(err);
        node_tick(node);
        node_turn_end(node, false);
        usleep(500);
    }
    return 0;
}

static int open_node(struct server *server, struct folder *folder)
{
    const struct server_config *config = &server->config;
    uint64_t incarnation;
    enum err counted = folder_next_incarnation(folder, &incarnation);
    if (counted != OK) {
        server_complain("%s: the start cannot be counted: %s", folder->path, err_text(counted));
        return exit_code_of(counted);
    }
    char data_file[sizeof folder->db + 16];
    snprintf(data_file, sizeof data_file, "%s/data.mdb", folder->db);
    struct node_config node_config = {
        .io = &server->io,
        .kv = &kv_lmdb,
        .kv_folder = folder->db,
        .name = folder->identity.name,
        .ranges = folder->identity.ranges,
        .memory = config->memory,
        .log_bytes_max = config->log_bytes,
        .accept_loss = config->accept_loss,
        .number = folder->identity.node_number,
        .incarnation = incarnation,
        .peer = server->peer_text,
        .resp = server->resp_text,
        .http = server->http_text,
        .zone = config->zone,
        .replicas = config->replicas,
        .leases = config->leases,
        .deadline_ms = config->deadline_ms,
        .create = access(data_file, F_OK) != 0,
        .joined = folder->identity.node_number != 1,
        .background = true,
        .scrub = config->scrub,
        .ctx = server,
        .on_tickets = on_tickets,
        .execute = forward_execute,
        .wake = wake_loop,
    };
    peer_known(server, &node_config);
    struct join_peer known[JOIN_PEERS_MAX];
    if (node_config.peer_count == 0) {
        node_config.peer_count = renew_known_peers(folder, known, JOIN_PEERS_MAX);
        node_config.peers = known;
    }
    memcpy(node_config.cluster_id, folder->identity.cluster_id, sizeof node_config.cluster_id);
    memcpy(node_config.store_id, folder->identity.node_id, sizeof node_config.store_id);
    struct engine_report report = {0};
    bool unfinished = renew_unfinished(folder), dies = renew_open_begins(folder);
    enum err err = unfinished || (dies && renew_possible(server, folder))
        ? ERR_CORRUPT
        : node_open(&node_config, &report, &server->node);
    renew_open_done(folder);
    if (err != OK) {
        const char *detail = report.detail[0] != '\0' ? report.detail : report.log.detail;
        if (unfinished) detail = "a repair was cut off";
        if (dies) detail = "it could not be opened twice in a row";
        bool damaged = exit_code_of(err) == EXIT_DAMAGED || err == ERR_TRUNCATED;
        if (damaged && renew_folder(server, folder, detail)) return EXIT_AGAIN;
        server_complain("%s: the data cannot be opened: %s%s%s", config->data, err_text(err),
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
    return lead_alone(server);
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
        server_complain("out of memory");
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
    /* first: its threads wake the node */
    peer_close(server);
    if (server->node != NULL) node_close(server->node, checkpoint);
    if (server->commands != NULL) commands_close(server);
    forward_close(server);
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
    server->folder = folder;
    int settled = peer_settle(server, folder);
    if (settled != 0) {
        close_all(server, false);
        return settled;
    }
    struct disk disk;
    enum log_io mode;
    enum err err = disk_open(folder->wal, server->config.log_io, &disk, &mode);
    if (err != OK) {
        server_complain("%s: the log's folder cannot be used with --log-io %s: %s", folder->wal,
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

static int run_once(struct server_config *config)
{
    struct server *server = calloc(1, sizeof *server);
    struct folder *folder = calloc(1, sizeof *folder);
    if (server == NULL || folder == NULL) {
        free(server);
        free(folder);
        server_complain("out of memory");
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
            server_complain("%s", detail[0] != '\0' ? detail : err_text(err));
            code = exit_code_of(err);
            close_all(server, false);
        }
    } else {
        close_all(server, false);
    }
    peer_close(server);
    free(folder);
    free(server);
    return code;
}

int server_run(struct server_config *config)
{
    int code;
    do {
        code = run_once(config);
    } while (code == EXIT_AGAIN);
    return code;
}
