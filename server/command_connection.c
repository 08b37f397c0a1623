#include "server/command_internal.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "server/forward.h"
#include "server/scatter.h"

/* Connections: who is there, how it speaks, where it looks.
 *
 * Passwords are verified on another thread. While that lasts the session is blocked: it parses nothing
 * more, and the reply is written from the loop when the answer is there. The session may be gone by
 * then, so what waits holds its id and not its address. */

#define WRONG_PASSWORD "WRONGPASS invalid username-password pair or user is disabled."

void connection_reset(struct session *session)
{
    transaction_discard(session);
    session->flags &= ~(uint32_t)(SESSION_REPLY_OFF | SESSION_REPLY_SKIP | SESSION_REPLY_SKIP_NEXT |
        SESSION_READONLY);
    if (auth_required(session->server)) session->flags &= ~(uint32_t)SESSION_AUTHENTICATED;
    session->bucket = 0;
    session->resp_version = 2;
    session->name[0] = 0;
}

/* PING, ECHO, QUIT, RESET, SELECT, READONLY, READWRITE */

static void run_ping(struct call *call)
{
    if (call->argc > 2) {
        reply_wrong_arity(call);
    } else if (call->argc == 2) {
        resp_bulk(call->out, call->argv[1]);
    } else {
        resp_simple(call->out, "PONG");
    }
}

static void run_echo(struct call *call)
{
    resp_bulk(call->out, call->argv[1]);
}

static void run_quit(struct call *call)
{
    call->session->flags |= SESSION_CLOSE_AFTER;
    reply_ok(call);
}

static void run_reset(struct call *call)
{
    connection_reset(call->session);
    resp_simple(call->out, "RESET");
}

/* Makes a bucket for SELECT, in a transaction of its own unless EXEC's is open. */
static bool make_bucket(struct call *call, struct bytes name, uint16_t *bucket_out)
{
    enum { RECORD_SIZE = 512 };
    enum err err = node_admit(call->node, RECORD_SIZE);
    bool begun = err == OK && !call->in_exec;
    if (begun) node_txn_begin(call->node);
    if (err == OK) err = node_bucket_make(call->node, name, bucket_out);
    if (begun && err == OK) {
        (void)node_txn_commit(call->node); /* read_pending below makes the reply wait for it */
        call->read_pending = true;
    } else if (begun) {
        node_txn_abort(call->node);
    }
    if (err == OK) return true;
    if (err == ERR_FULL) {
        resp_error(call->out, "ERR no room for another bucket: %d at most", NODE_BUCKETS_MAX);
    } else if (err == ERR_AGAIN) {
        resp_error(call->out, "TRYAGAIN the store is catching up with writes; select again");
    } else if (err == ERR_INVALID) {
        reply_not_integer(call);
    } else {
        resp_error(call->out, "ERR the bucket cannot be made: %s", err_text(err));
    }
    return false;
}

static void run_select(struct call *call)
{
    int64_t number;
    uint16_t bucket;
    struct bytes name = call->argv[1];
    if (argument_integer(name, &number)) {
        if (!database_number(call, number, &bucket)) return;
    } else {
        enum err err = node_bucket_find(call->node, name, &bucket);
        if (err == ERR_INVALID) {
            reply_not_integer(call);
            return;
        }
        if (err != OK && !node_alone(call->node)) {
            if (!call->in_exec) {
                scatter_select(call, name);
            } else {
                resp_error(call->out,
                    "ERR a bucket is made by several nodes: SELECT it before the transaction");
            }
            return;
        }
        if (err != OK && !make_bucket(call, name, &bucket)) return;
    }
    call->session->bucket = bucket;
    reply_ok(call);
}

static void run_readonly(struct call *call)
{
    call->session->flags |= SESSION_READONLY;
    reply_ok(call);
}

static void run_readwrite(struct call *call)
{
    call->session->flags &= ~(uint32_t)SESSION_READONLY;
    reply_ok(call);
}

/* AUTH, HELLO */

struct hello {
    int version; /* 0: as it is */
    bool named;
    bool greets; /* HELLO; else AUTH, which answers OK */
    char name[sizeof((struct session *)NULL)->name];
};

static void reply_hello(struct call *call)
{
    resp_map(call->out, call->version, 7);
    reply_text(call, "server");
    reply_text(call, "redis");
    reply_text(call, "version");
    reply_text(call, REDIS_COMPATIBLE_VERSION);
    reply_text(call, "proto");
    resp_integer(call->out, call->version);
    reply_text(call, "id");
    resp_integer(call->out, (int64_t)call->session->id);
    reply_text(call, "mode");
    reply_text(call, "standalone");
    reply_text(call, "role");
    reply_text(call, "master");
    reply_text(call, "modules");
    resp_array(call->out, 0);
}

/* What AUTH and HELLO do once the password (if any) is settled. */
static void finish_hello(struct call *call, const struct hello *hello)
{
    struct session *session = call->session;
    if (!hello->greets) {
        reply_ok(call);
        return;
    }
    if (hello->named) memcpy(session->name, hello->name, sizeof session->name);
    if ((session->flags & SESSION_AUTHENTICATED) == 0 && auth_required(call->server)) {
        resp_error(call->out,
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the "
            "HELLO "
            "AUTH <user> <pass> option can be used to authenticate the client and select the RESP "
            "protocol version at the same time");
        return;
    }
    if (hello->version != 0) session->resp_version = hello->version;
    call->version = session->resp_version;
    reply_hello(call);
}

static void conclude(struct call *call, const struct hello *hello, enum auth_result result)
{
    switch (result) {
    case AUTH_OK:
        call->session->flags |= SESSION_AUTHENTICATED;
        finish_hello(call, hello);
        break;
    case AUTH_LIMITED:
        resp_error(
            call->out, "ERR too many failed authentications from this address; try again later");
        break;
    case AUTH_WRONG:
    case AUTH_WAIT:
        resp_error(call->out, WRONG_PASSWORD);
        break;
    }
}

struct waiting_auth {
    struct server *server;
    uint64_t session_id;
    struct hello hello;
};

static void on_auth_done(void *ctx, enum auth_result result)
{
    struct waiting_auth *waiting = ctx;
    struct session *session = waiting->server->sessions;
    while (session != NULL && session->id != waiting->session_id)
        session = session->next_all;
    if (session != NULL && (session->flags & SESSION_CLOSING) == 0) {
        struct call call = {.server = waiting->server,
            .session = session,
            .node = waiting->server->node,
            .out = &session->out,
            .version = session->resp_version};
        conclude(&call, &waiting->hello, result);
        session->flags &= ~(uint32_t)SESSION_BLOCKED;
        session_continue(session); /* takes the reply in as well */
    }
    free(waiting);
}

static void authenticate(
    struct call *call, const struct hello *hello, struct bytes user, struct bytes password)
{
    struct bytes only_user = bytes_of_text("default");
    if (!auth_required(call->server)) {
        conclude(call, hello, bytes_equal(user, only_user) ? AUTH_OK : AUTH_WRONG);
        return;
    }
    if (call->in_exec) {
        resp_error(call->out, "ERR AUTH is not possible inside a transaction");
        return;
    }
    if (!bytes_equal(user, only_user)) {
        conclude(call, hello, AUTH_WRONG);
        return;
    }
    struct waiting_auth *waiting = malloc(sizeof *waiting);
    if (waiting == NULL) {
        resp_error(call->out, "ERR out of memory");
        return;
    }
    *waiting = (struct waiting_auth){
        .server = call->server, .session_id = call->session->id, .hello = *hello};
    enum auth_result result =
        auth_check(call->server, password, call->session->source, on_auth_done, waiting);
    if (result == AUTH_WAIT) {
        call->session->flags |= SESSION_BLOCKED;
        return;
    }
    free(waiting);
    conclude(call, hello, result);
}

static void run_auth(struct call *call)
{
    struct hello hello = {0};
    if (call->argc > 3) {
        reply_syntax_error(call);
        return;
    }
    if (call->argc == 2 && !auth_required(call->server)) {
        resp_error(call->out,
            "ERR AUTH <password> called without any password configured for the "
            "default user. Are you sure your configuration is correct?");
        return;
    }
    bool with_user = call->argc == 3;
    authenticate(call, &hello, with_user ? call->argv[1] : bytes_of_text("default"),
        call->argv[with_user ? 2 : 1]);
}

/* Printable, no space; an empty name takes the name away. */
static bool text_valid(struct bytes text)
{
    for (size_t i = 0; i < text.size; i++) {
        if (text.at[i] < '!' || text.at[i] > '~') return false;
    }
    return true;
}

bool client_name_valid(struct call *call, struct bytes name)
{
    enum { MOST = sizeof((struct session *)NULL)->name - 1 };
    if (!text_valid(name)) {
        resp_error(
            call->out, "ERR Client names cannot contain spaces, newlines or special characters.");
        return false;
    }
    if (name.size > MOST) {
        resp_error(call->out, "ERR Client names cannot be longer than %d bytes.", (int)MOST);
        return false;
    }
    return true;
}

static void set_text(char *target, size_t size, struct bytes text)
{
    ASSERT(text.size < size);
    memset(target, 0, size);
    memcpy(target, text.at, text.size);
}

static void run_hello(struct call *call)
{
    struct hello hello = {.greets = true};
    struct bytes user = {0}, password = {0};
    bool with_password = false;
    if (call->argc >= 2) {
        int64_t version;
        if (!argument_integer(call->argv[1], &version)) {
            resp_error(call->out, "ERR Protocol version is not an integer or out of range");
            return;
        }
        if (version < 2 || version > 3) {
            resp_error(call->out, "NOPROTO unsupported protocol version");
            return;
        }
        hello.version = (int)version;
    }
    for (uint32_t i = 2; i < call->argc; i++) {
        uint32_t more = call->argc - 1 - i;
        if (argument_is(call->argv[i], "auth") && more >= 2) {
            with_password = true;
            user = call->argv[i + 1];
            password = call->argv[i + 2];
            i += 2;
        } else if (argument_is(call->argv[i], "setname") && more >= 1) {
            if (!client_name_valid(call, call->argv[i + 1])) return;
            hello.named = true;
            set_text(hello.name, sizeof hello.name, call->argv[i + 1]);
            i++;
        } else {
            resp_error(call->out, "ERR Syntax error in HELLO option '%.*s'",
                (int)(call->argv[i].size < 128 ? call->argv[i].size : 128),
                (const char *)call->argv[i].at);
            return;
        }
    }
    if (with_password) {
        authenticate(call, &hello, user, password);
    } else {
        finish_hello(call, &hello);
    }
}

/* CLIENT */

static void describe_client(
    const struct session *session, const struct session *asking, struct buffer *out)
{
    const struct server *server = session->server;
    uint64_t now = server->io.clock.monotonic_ns(server->io.clock.ctx);
    char flags[8];
    size_t count = 0;
    if ((session->flags & SESSION_MULTI) != 0) flags[count++] = 'x';
    if ((session->flags & SESSION_BLOCKED) != 0) flags[count++] = 'b';
    if ((session->flags & SESSION_CLOSE_AFTER) != 0) flags[count++] = 'c';
    if ((session->flags & SESSION_READONLY) != 0) flags[count++] = 'r';
    if (count == 0) flags[count++] = 'N';
    flags[count] = 0;
    const char *bucket = node_bucket_name(server->node, session->bucket);
    size_t in = session->in.size - session->in.head,
           out_size = session->out.size - session->out.head;
    buffer_printf(out,
        "id=%llu addr=%s laddr=%s fd=%d name=%s age=%llu idle=%llu flags=%s db=%s sub=0 psub=0 "
        "ssub=0 multi=%lld qbuf=%zu qbuf-free=%zu argv-mem=0 multi-mem=%llu rbs=%zu rbp=%zu "
        "obl=%zu "
        "oll=%u omem=%zu tot-mem=%zu events=%s cmd=%s user=default redir=-1 resp=%d lib-name=%s "
        "lib-ver=%s\n",
        (unsigned long long)session->id, session->address, session->local_address,
        session->stream.fd, session->name,
        (unsigned long long)((now - session->created_ns) / 1000000000u),
        (unsigned long long)(session == asking || now < session->last_ns
                ? 0
                : (now - session->last_ns) / 1000000000u),
        flags, bucket == NULL ? "0" : bucket,
        (session->flags & SESSION_MULTI) != 0 ? (long long)session->queue_count : -1, in,
        session->in.capacity - session->in.size, (unsigned long long)session->queue_bytes,
        session->out.capacity, session->out.capacity, out_size, session->held_count,
        session->sending.size - session->sending.head,
        session->in.capacity + session->out.capacity + session->sending.capacity + sizeof *session,
        session->sending.size > session->sending.head ? "rw" : "r",
        session->last_command == NULL ? "NULL" : session->last_command->name, session->resp_version,
        session->lib_name, session->lib_version);
}

static struct session *find_client(struct server *server, int64_t id)
{
    struct session *session = server->sessions;
    while (session != NULL && (int64_t)session->id != id)
        session = session->next_all;
    return session;
}

/* Client types are Redis's; here every client is a normal one. */
static bool type_argument(struct call *call, struct bytes type, bool *normal_out)
{
    *normal_out = argument_is(type, "normal");
    if (*normal_out || argument_is(type, "master") || argument_is(type, "replica") ||
        argument_is(type, "slave") || argument_is(type, "pubsub")) {
        return true;
    }
    resp_error(call->out, "ERR Unknown client type '%.*s'",
        (int)(type.size < 128 ? type.size : 128), (const char *)type.at);
    return false;
}

static void reply_verbatim_and_free(struct call *call, struct buffer *text)
{
    resp_verbatim(call->out, call->version, buffer_view(text));
    buffer_deinit(text);
}

static void run_client_list(struct call *call)
{
    struct buffer text = {0};
    bool normal = true;
    if (call->argc == 4 && argument_is(call->argv[2], "type")) {
        if (!type_argument(call, call->argv[3], &normal)) return;
    } else if (call->argc > 3 && argument_is(call->argv[2], "id")) {
        for (uint32_t i = 3; i < call->argc; i++) {
            int64_t id;
            if (!argument_integer(call->argv[i], &id)) {
                buffer_deinit(&text);
                resp_error(call->out, "ERR Invalid client ID");
                return;
            }
            struct session *session = find_client(call->server, id);
            if (session != NULL) describe_client(session, call->session, &text);
        }
        reply_verbatim_and_free(call, &text);
        return;
    } else if (call->argc != 2) {
        reply_syntax_error(call);
        return;
    }
    struct session *session = normal ? call->server->sessions : NULL;
    while (session != NULL && session->next_all != NULL)
        session = session->next_all;
    for (; session != NULL; session = session->previous_all) {
        if ((session->flags & SESSION_CLOSING) == 0) describe_client(session, call->session, &text);
    }
    reply_verbatim_and_free(call, &text);
}

static void run_client_info(struct call *call)
{
    struct buffer text = {0};
    describe_client(call->session, call->session, &text);
    reply_verbatim_and_free(call, &text);
}

static void run_client_id(struct call *call)
{
    resp_integer(call->out, (int64_t)call->session->id);
}

static void run_client_getname(struct call *call)
{
    if (call->session->name[0] == 0) {
        resp_null(call->out, call->version);
    } else {
        reply_text(call, call->session->name);
    }
}

static void run_client_setname(struct call *call)
{
    if (!client_name_valid(call, call->argv[2])) return;
    set_text(call->session->name, sizeof call->session->name, call->argv[2]);
    reply_ok(call);
}

static void run_client_setinfo(struct call *call)
{
    struct session *session = call->session;
    struct bytes option = call->argv[2], text = call->argv[3];
    bool name = argument_is(option, "lib-name");
    if (!name && !argument_is(option, "lib-ver")) {
        resp_error(call->out, "ERR Unrecognized option '%.*s'",
            (int)(option.size < 128 ? option.size : 128), (const char *)option.at);
        return;
    }
    const char *label = name ? "lib-name" : "lib-ver";
    if (!text_valid(text)) {
        resp_error(
            call->out, "ERR %s cannot contain spaces, newlines or special characters.", label);
        return;
    }
    size_t most = (name ? sizeof session->lib_name : sizeof session->lib_version) - 1;
    if (text.size > most) text.size = most; /* for show only: a part of it serves */
    if (name) {
        set_text(session->lib_name, sizeof session->lib_name, text);
    } else {
        set_text(session->lib_version, sizeof session->lib_version, text);
    }
    reply_ok(call);
}

struct kill_filter {
    struct bytes address, local_address;
    bool by_address, by_local_address;
    int64_t id; /* 0: any */
    bool none; /* a type that no client here has */
    bool skip_me;
};

static bool parse_kill(struct call *call, struct kill_filter *filter)
{
    *filter = (struct kill_filter){.skip_me = true};
    if (call->argc == 3) {
        filter->address = call->argv[2];
        filter->by_address = true;
        filter->skip_me = false;
        return true;
    }
    for (uint32_t i = 2; i < call->argc; i += 2) {
        struct bytes option = call->argv[i];
        if (i + 1 >= call->argc) {
            reply_syntax_error(call);
            return false;
        }
        struct bytes argument = call->argv[i + 1];
        if (argument_is(option, "id")) {
            if (!argument_integer(argument, &filter->id) || filter->id < 1) {
                resp_error(call->out, "ERR client-id should be greater than 0");
                return false;
            }
        } else if (argument_is(option, "type")) {
            bool normal;
            if (!type_argument(call, argument, &normal)) return false;
            filter->none = !normal;
        } else if (argument_is(option, "addr")) {
            filter->address = argument;
            filter->by_address = true;
        } else if (argument_is(option, "laddr")) {
            filter->local_address = argument;
            filter->by_local_address = true;
        } else if (argument_is(option, "user")) {
            if (!bytes_equal(argument, bytes_of_text("default"))) {
                resp_error(call->out, "ERR No such user '%.*s'",
                    (int)(argument.size < 128 ? argument.size : 128), (const char *)argument.at);
                return false;
            }
        } else if (argument_is(option, "skipme") && argument_is(argument, "yes")) {
            filter->skip_me = true;
        } else if (argument_is(option, "skipme") && argument_is(argument, "no")) {
            filter->skip_me = false;
        } else {
            reply_syntax_error(call);
            return false;
        }
    }
    return true;
}

static void run_client_kill(struct call *call)
{
    struct kill_filter filter;
    int64_t killed = 0;
    if (!parse_kill(call, &filter)) return;
    struct session *session = filter.none ? NULL : call->server->sessions;
    while (session != NULL) {
        struct session *next = session->next_all;
        bool wanted = (session->flags & SESSION_CLOSING) == 0;
        if (filter.by_address && !bytes_equal(filter.address, bytes_of_text(session->address)))
            wanted = false;
        if (filter.by_local_address &&
            !bytes_equal(filter.local_address, bytes_of_text(session->local_address)))
            wanted = false;
        if (filter.id != 0 && (int64_t)session->id != filter.id) wanted = false;
        if (filter.skip_me && session == call->session) wanted = false;
        if (wanted) {
            killed++;
            if (session == call->session) {
                session->flags |= SESSION_CLOSE_AFTER;
            } else {
                session_close(session, false);
            }
        }
        session = next;
    }
    if (call->argc != 3) {
        resp_integer(call->out, killed);
    } else if (killed == 0) {
        resp_error(call->out, "ERR No such client");
    } else {
        reply_ok(call);
    }
}

static void run_client_reply(struct call *call)
{
    struct session *session = call->session;
    if (argument_is(call->argv[2], "on")) {
        session->flags &= ~(uint32_t)(SESSION_REPLY_OFF | SESSION_REPLY_SKIP);
        reply_ok(call);
    } else if (argument_is(call->argv[2], "off")) {
        session->flags |= SESSION_REPLY_OFF;
    } else if (argument_is(call->argv[2], "skip")) {
        if ((session->flags & SESSION_REPLY_OFF) == 0) session->flags |= SESSION_REPLY_SKIP_NEXT;
    } else {
        reply_syntax_error(call);
    }
}

/* Nothing is evicted and reads leave no trace, so both switches hold already. */
static void run_client_switch(struct call *call)
{
    if (argument_is(call->argv[2], "on") || argument_is(call->argv[2], "off")) {
        reply_ok(call);
    } else {
        reply_syntax_error(call);
    }
}

static void run_client_help(struct call *call)
{
    static const char *const lines[] = {
        "GETNAME",
        "    Return the name of the current connection.",
        "ID",
        "    Return the ID of the current connection.",
        "INFO",
        "    Return information about the current client connection.",
        "KILL <ip:port>",
        "    Kill connection made from <ip:port>.",
        "KILL <option> <value> [<option> <value> [...]]",
        "    Kill connections. Options are:",
        "    * ADDR (<ip:port>|<unixsocket>:0)",
        "      Kill connections made from the specified address",
        "    * LADDR (<ip:port>|<unixsocket>:0)",
        "      Kill connections made to specified local address",
        "    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)",
        "      Kill connections by type.",
        "    * USER <username>",
        "      Kill connections authenticated by <username>.",
        "    * SKIPME (YES|NO)",
        "      Skip killing current connection (default: yes).",
        "    * ID <client-id>",
        "      Kill connections by client id.",
        "LIST [options ...]",
        "    Return information about client connections. Options:",
        "    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)",
        "      Return clients of specified type.",
        "    * ID <client-id> [<client-id> ...]",
        "      Return clients of specified IDs only.",
        "NO-EVICT (ON|OFF)",
        "    Accepted: clients are never evicted.",
        "NO-TOUCH (ON|OFF)",
        "    Accepted: reads never alter anything.",
        "REPLY (ON|OFF|SKIP)",
        "    Control the replies sent to the current connection.",
        "SETINFO <option> <value>",
        "    Set client meta attr. Options are:",
        "    * LIB-NAME: the client lib name.",
        "    * LIB-VER: the client lib version.",
        "SETNAME <name>",
        "    Assign the name <name> to the current connection.",
        NULL,
    };
    reply_help(call, lines);
}

#define ANY_TIME COMMAND_FAST | COMMAND_LOADING
#define CONNECTION_FAST "@fast @connection"
#define CONNECTION_SLOW "@slow @connection"
#define CONNECTION_ADMIN "@admin @slow @dangerous @connection"

const struct command commands_connection[] = {
    {"auth", -2, ANY_TIME | COMMAND_NO_AUTH | COMMAND_NO_MULTI, 0, 0, 0, run_auth, "connection",
        "1.0.0", "O(1)", "Authenticate to the server", CONNECTION_FAST},
    {"client", -2, 0, 0, 0, 0, NULL, "connection", "2.4.0", "Depends on subcommand.",
        "A container for client connection commands", "@slow"},
    {"client|getname", 2, COMMAND_LOADING, 0, 0, 0, run_client_getname, "connection", "2.6.9",
        "O(1)", "Get the current connection name", CONNECTION_SLOW},
    {"client|help", 2, COMMAND_LOADING, 0, 0, 0, run_client_help, "connection", "5.0.0", "O(1)",
        "Show helpful text about the different subcommands", CONNECTION_SLOW},
    {"client|id", 2, COMMAND_LOADING, 0, 0, 0, run_client_id, "connection", "5.0.0", "O(1)",
        "Returns the client ID for the current connection", CONNECTION_SLOW},
    {"client|info", 2, COMMAND_LOADING, 0, 0, 0, run_client_info, "connection", "6.2.0", "O(1)",
        "Returns information about the current client connection.", CONNECTION_SLOW},
    {"client|kill", -3, COMMAND_ADMIN | COMMAND_LOADING, 0, 0, 0, run_client_kill, "connection",
        "2.4.0", "O(N) where N is the number of client connections",
        "Kill the connection of a client", CONNECTION_ADMIN},
    {"client|list", -2, COMMAND_ADMIN | COMMAND_LOADING, 0, 0, 0, run_client_list, "connection",
        "2.4.0", "O(N) where N is the number of client connections",
        "Get the list of client connections", CONNECTION_ADMIN},
    {"client|no-evict", 3, COMMAND_ADMIN | COMMAND_LOADING, 0, 0, 0, run_client_switch,
        "connection", "7.0.0", "O(1)", "Set client eviction mode for the current connection",
        CONNECTION_ADMIN},
    {"client|no-touch", 3, COMMAND_LOADING, 0, 0, 0, run_client_switch, "connection", "7.2.0",
        "O(1)", "Controls whether commands alter the access times of keys", CONNECTION_SLOW},
    {"client|reply", 3, COMMAND_LOADING, 0, 0, 0, run_client_reply, "connection", "3.2.0", "O(1)",
        "Instruct the server whether to reply to commands", CONNECTION_SLOW},
    {"client|setinfo", 4, COMMAND_LOADING, 0, 0, 0, run_client_setinfo, "connection", "7.2.0",
        "O(1)", "Set client or connection specific info", CONNECTION_SLOW},
    {"client|setname", 3, COMMAND_LOADING, 0, 0, 0, run_client_setname, "connection", "2.6.9",
        "O(1)", "Set the current connection name", CONNECTION_SLOW},
    {"echo", 2, ANY_TIME, 0, 0, 0, run_echo, "connection", "1.0.0", "O(1)", "Echo the given string",
        CONNECTION_FAST},
    {"hello", -1, ANY_TIME | COMMAND_NO_AUTH, 0, 0, 0, run_hello, "connection", "6.0.0", "O(1)",
        "Handshake with the server", CONNECTION_FAST},
    {"ping", -1, ANY_TIME, 0, 0, 0, run_ping, "connection", "1.0.0", "O(1)", "Ping the server",
        CONNECTION_FAST},
    {"quit", -1, ANY_TIME | COMMAND_NO_AUTH | COMMAND_IN_MULTI, 0, 0, 0, run_quit, "connection",
        "1.0.0", "O(1)", "Close the connection", CONNECTION_FAST},
    {"readonly", 1, ANY_TIME, 0, 0, 0, run_readonly, "cluster", "3.0.0", "O(1)",
        "Enables read queries for a connection to a replica", CONNECTION_FAST},
    {"readwrite", 1, ANY_TIME, 0, 0, 0, run_readwrite, "cluster", "3.0.0", "O(1)",
        "Disables read queries for a connection to a replica", CONNECTION_FAST},
    {"reset", 1, ANY_TIME | COMMAND_NO_AUTH | COMMAND_IN_MULTI, 0, 0, 0, run_reset, "connection",
        "6.2.0", "O(1)", "Reset the connection", CONNECTION_FAST},
    {"select", 2, ANY_TIME, 0, 0, 0, run_select, "connection", "1.0.0", "O(1)",
        "Change the selected database or bucket for the current connection", CONNECTION_FAST},
    {.name = NULL},
};
