#include "server/command_internal.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/hash.h"
#include "base/prng.h"

/* The command table and the helpers all families share.
 *
 * Each family is a constant table in its own source. Here they become one table and one open hash
 * over it, once, before main(): both are functions of constants alone, so they are the same for every
 * node of a process and never change. Names are hashed as folded to lower case; the table is at most a quarter
 * full, so most look-ups compare one name. */

enum { COMMANDS_MAX = 192, SLOTS = 1024, NAME_MAX_SIZE = 24 };

struct command_index {
    struct command commands[COMMANDS_MAX];
    uint32_t count;
    uint8_t slots[SLOTS]; /* position in commands + 1 */
};

static struct command_index command_index;

static size_t fold(struct bytes name, char *folded_out)
{
    if (name.size == 0 || name.size > NAME_MAX_SIZE) return 0;
    for (size_t i = 0; i < name.size; i++) {
        uint8_t byte = name.at[i];
        folded_out[i] = (char)(byte >= 'A' && byte <= 'Z' ? byte | 0x20 : byte);
    }
    return name.size;
}

static uint32_t slot_of(const char *name, size_t size)
{
    /* FNV-1a: names are short, and nobody gains by choosing colliding ones */
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ (uint8_t)name[i]) * 16777619u;
    return (hash ^ (hash >> 16)) % SLOTS;
}

static void index_family(const struct command *family)
{
    for (; family->name != NULL; family++) {
        size_t size = strlen(family->name);
        ASSERT(command_index.count < COMMANDS_MAX && size <= NAME_MAX_SIZE);
        uint32_t slot = slot_of(family->name, size);
        while (command_index.slots[slot] != 0)
            slot = (slot + 1) % SLOTS;
        command_index.commands[command_index.count++] = *family;
        command_index.slots[slot] = (uint8_t)command_index.count;
    }
}

__attribute__((constructor)) static void build_index(void)
{
    index_family(commands_string);
    index_family(commands_key);
    index_family(commands_expire);
    index_family(commands_transaction);
    index_family(commands_connection);
    index_family(commands_server);
    index_family(commands_describe);
    index_family(commands_once);
}

const struct command *command_table(uint32_t *count_out)
{
    *count_out = command_index.count;
    return command_index.commands;
}

static const struct command *find_folded(const char *name, size_t size)
{
    uint32_t slot = slot_of(name, size);
    while (command_index.slots[slot] != 0) {
        const struct command *command = &command_index.commands[command_index.slots[slot] - 1];
        if (strncmp(command->name, name, size) == 0 && command->name[size] == 0) return command;
        slot = (slot + 1) % SLOTS;
    }
    return NULL;
}

const struct command *command_find(struct bytes name)
{
    char folded[NAME_MAX_SIZE];
    size_t size = fold(name, folded);
    if (size == 0) return NULL;
    if (memchr(folded, 0, size) != NULL) return NULL;
    return find_folded(folded, size);
}

bool command_is_top_level(const struct command *command)
{
    return strchr(command->name, '|') == NULL;
}

bool command_is_subcommand_of(const struct command *command, const struct command *container)
{
    size_t size = strlen(container->name);
    return strncmp(command->name, container->name, size) == 0 && command->name[size] == '|';
}

/* Containers have no run() of their own, but for COMMAND, which alone lists all. */
static bool has_subcommands(const struct command *command)
{
    return command->run == NULL || strcmp(command->name, "command") == 0;
}

static int shown(struct bytes text, size_t most)
{
    return (int)(text.size < most ? text.size : most);
}

static const struct command *refuse_unknown(
    uint32_t argc, const struct bytes *argv, struct buffer *out)
{
    char arguments[192];
    size_t used = 0;
    for (uint32_t i = 1; i < argc && used < 128; i++) {
        int wrote = snprintf(arguments + used, sizeof arguments - used, "'%.*s' ",
            shown(argv[i], 128 - used), (const char *)argv[i].at);
        ASSERT(wrote > 0);
        used += (size_t)wrote;
    }
    arguments[used] = 0;
    resp_error(out, "ERR unknown command '%.*s', with args beginning with: %s", shown(argv[0], 128),
        (const char *)argv[0].at, arguments);
    return NULL;
}

const struct command *command_resolve(uint32_t argc, const struct bytes *argv, struct buffer *out)
{
    ASSERT(argc > 0);
    const struct command *command = command_find(argv[0]);
    if (command == NULL || !command_is_top_level(command)) return refuse_unknown(argc, argv, out);
    if (argc > 1 && has_subcommands(command)) {
        char name[2 * NAME_MAX_SIZE + 1];
        size_t size = strlen(command->name);
        const struct command *sub = NULL;
        memcpy(name, command->name, size);
        name[size++] = '|';
        size_t sub_size = fold(argv[1], name + size);
        if (sub_size > 0 && size + sub_size <= NAME_MAX_SIZE &&
            memchr(name + size, 0, sub_size) == NULL) {
            sub = find_folded(name, size + sub_size);
        }
        if (sub == NULL) {
            char container[NAME_MAX_SIZE + 1] = {0};
            for (size_t i = 0; command->name[i] != 0; i++)
                container[i] = (char)toupper((unsigned char)command->name[i]);
            resp_error(out, "ERR unknown subcommand '%.*s'. Try %s HELP.", shown(argv[1], 128),
                (const char *)argv[1].at, container);
            return NULL;
        }
        command = sub;
    }
    int64_t count = argc;
    bool fits = command->arity >= 0 ? count == command->arity : count >= -(int64_t)command->arity;
    if (!fits || command->run == NULL) {
        bool exec = strcmp(command->name, "exec") == 0;
        resp_error(out, "%s wrong number of arguments for '%s' command",
            exec ? "EXECABORT Transaction discarded because of:" : "ERR", command->name);
        return NULL;
    }
    return command;
}

bool command_keys(const struct command *command, uint32_t argc, const struct bytes *argv,
    uint32_t *first_out, uint32_t *last_out, uint32_t *step_out)
{
    uint32_t skipped = 0;
    if ((command->flags & COMMAND_WRAPS) != 0) {
        struct buffer ignored = {0};
        skipped = WRAPPED;
        command = argc > WRAPPED ? command_resolve(argc - WRAPPED, argv + WRAPPED, &ignored) : NULL;
        buffer_deinit(&ignored);
        if (command == NULL) return false;
    }
    if ((command->flags & COMMAND_KEYS) == 0) return false;
    int64_t last = command->last_key < 0 ? (int64_t)argc + command->last_key
                                         : (int64_t)skipped + command->last_key;
    if (last >= argc) last = (int64_t)argc - 1;
    *first_out = skipped + (uint32_t)command->first_key;
    *step_out = command->step > 0 ? (uint32_t)command->step : 1;
    if (last < *first_out) return false;
    *last_out = (uint32_t)last;
    return true;
}

bool command_range(struct node *node, const struct command *command, uint32_t argc,
    const struct bytes *argv, uint16_t *range_out)
{
    uint32_t first, last, step;
    *range_out = 0;
    if (!command_keys(command, argc, argv, &first, &last, &step)) return true;
    for (uint32_t i = first; i <= last; i += step) {
        uint16_t range = node_range_of(node, argv[i]);
        if (i > first && range != *range_out) return false;
        *range_out = range;
    }
    return true;
}

/* Access to keys. */

void count_lookup(struct call *call, enum err found)
{
    if (found == OK) {
        call->server->counters.keyspace_hits++;
    } else {
        call->server->counters.keyspace_misses++;
    }
}

enum err call_get(struct call *call, struct bytes key, struct value *value_out)
{
    enum err err = node_get(call->node, call->view, call->bucket, key, value_out);
    if ((call->command->flags & COMMAND_READ) != 0) count_lookup(call, err);
    if (err == OK || err == ERR_NOT_FOUND) return err;
    if (err == ERR_CORRUPT) {
        resp_error(call->out, "ERR the stored value is damaged: it fails its checksum");
    } else {
        resp_error(call->out, "ERR the value cannot be read: %s", err_text(err));
    }
    return ERR_CORRUPT;
}

static void refuse_no_room(struct call *call, enum err err)
{
    call->abort = true;
    call->retry = err == ERR_AGAIN;
    if (err == ERR_AGAIN) {
        resp_error(call->out, "TRYAGAIN the store is catching up with writes; nothing was changed");
    } else if (err == ERR_FULL) {
        resp_error(call->out, "OOM disk full: writes are refused until there is space again");
    } else {
        resp_error(call->out,
            "OOM no room for this write: it is larger than one log record may be, or memory is "
            "used "
            "up; nothing was changed");
    }
}

uint8_t *call_put_begin(struct call *call, struct bytes key, size_t size, int64_t expires_ms)
{
    /* The dispatcher has asked for room for the arguments. A value may be much larger (COPY, SETRANGE,
     * EXPIRE of a big one): it is asked for here. */
    enum { ASKED_FOR = 4096 };
    enum err err = size <= ASKED_FOR ? OK : node_admit(call->node, size);
    uint8_t *at = NULL;
    transaction_touch(call->server, call->bucket, key);
    if (err == OK) at = node_put(call->node, call->bucket, key, size, expires_ms);
    if (at == NULL) refuse_no_room(call, err);
    return at;
}

bool call_put(struct call *call, struct bytes key, struct bytes value, int64_t expires_ms)
{
    uint8_t *at = call_put_begin(call, key, value.size, expires_ms);
    if (at == NULL) return false;
    if (value.size > 0) memcpy(at, value.at, value.size);
    return true;
}

bool call_delete(struct call *call, struct bytes key)
{
    if (node_delete(call->node, call->bucket, key)) return true;
    refuse_no_room(call, ERR_TOO_LARGE);
    return false;
}

bool value_fits(struct call *call, uint64_t size)
{
    if (size <= VALUE_SIZE_MAX) return true;
    resp_error(
        call->out, "ERR string exceeds maximum allowed size (%d bytes)", (int)VALUE_SIZE_MAX);
    return false;
}

/* Arguments. */

bool argument_is(struct bytes argument, const char *word)
{
    size_t size = strlen(word);
    if (argument.size != size) return false;
    for (size_t i = 0; i < size; i++) {
        uint8_t byte = argument.at[i];
        if (byte >= 'A' && byte <= 'Z') byte |= 0x20;
        if (byte != (uint8_t)word[i]) return false;
    }
    return true;
}

bool argument_integer(struct bytes argument, int64_t *value_out)
{
    size_t at = 0;
    bool negative = argument.size > 0 && argument.at[0] == '-';
    if (negative) at = 1;
    size_t digits = argument.size - at;
    if (digits == 0 || digits > 19) return false;
    if (argument.at[at] == '0' && (digits > 1 || negative)) return false;
    uint64_t magnitude = 0;
    for (; at < argument.size; at++) {
        uint8_t byte = argument.at[at];
        if (byte < '0' || byte > '9') return false;
        magnitude = magnitude * 10 + (uint64_t)(byte - '0'); /* 19 digits fit */
    }
    if (negative) {
        if (magnitude > (uint64_t)INT64_MAX + 1) return false;
        *value_out = (int64_t)(0 - magnitude);
    } else {
        if (magnitude > INT64_MAX) return false;
        *value_out = (int64_t)magnitude;
    }
    return true;
}

bool integer_argument(struct call *call, struct bytes argument, int64_t *value_out)
{
    if (argument_integer(argument, value_out)) return true;
    reply_not_integer(call);
    return false;
}

bool expiry_argument(struct call *call, struct bytes amount, uint32_t unit, int64_t *expires_ms_out)
{
    int64_t when;
    if (!integer_argument(call, amount, &when)) return false;
    bool fits = when > 0 && !((unit & EXPIRY_SECONDS) != 0 && when > INT64_MAX / 1000);
    if (fits && (unit & EXPIRY_SECONDS) != 0) when *= 1000;
    if (fits && (unit & EXPIRY_ABSOLUTE) == 0) {
        fits = !__builtin_add_overflow(when, node_now_ms(call->node), &when);
    }
    if (!fits) {
        resp_error(call->out, "ERR invalid expire time in '%s' command", call->command->name);
        return false;
    }
    *expires_ms_out = when;
    return true;
}

/* Replies. */

void reply_ok(struct call *call)
{
    resp_simple(call->out, "OK");
}

void reply_text(struct call *call, const char *text)
{
    resp_bulk(call->out, bytes_of_text(text));
}

void reply_syntax_error(struct call *call)
{
    resp_error(call->out, "ERR syntax error");
}

void reply_not_integer(struct call *call)
{
    resp_error(call->out, "ERR value is not an integer or out of range");
}

void reply_wrong_arity(struct call *call)
{
    resp_error(call->out, "ERR wrong number of arguments for '%s' command", call->command->name);
}

void reply_help(struct call *call, const char *const *lines)
{
    uint64_t count = 0;
    char name[NAME_MAX_SIZE + 1] = {0};
    char first[96];
    while (lines[count] != NULL)
        count++;
    for (size_t i = 0; call->command->name[i] != 0 && call->command->name[i] != '|'; i++)
        name[i] = (char)toupper((unsigned char)call->command->name[i]);
    snprintf(
        first, sizeof first, "%s <subcommand> [<arg> [value] [opt] ...]. Subcommands are:", name);
    resp_array(call->out, count + 3);
    resp_simple(call->out, first);
    for (uint64_t i = 0; i < count; i++)
        resp_simple(call->out, lines[i]);
    resp_simple(call->out, "HELP");
    resp_simple(call->out, "    Prints this help.");
}

/* A buffer may slide its content when it grows, so places in it are counted from its live start. */
size_t reply_mark(const struct call *call)
{
    return call->out->size - call->out->head;
}

void reply_back(struct call *call, size_t mark)
{
    ASSERT(mark <= reply_mark(call));
    call->out->size = call->out->head + mark;
}

enum { ARRAY_HEADER_MAX = 24 };

size_t reply_array_begin(struct call *call)
{
    static const char room[ARRAY_HEADER_MAX] = {0};
    size_t mark = reply_mark(call);
    if (buffer_append(call->out, room, sizeof room) != OK) return SIZE_MAX;
    return mark;
}

void reply_array_end(struct call *call, size_t mark, uint64_t count)
{
    char header[ARRAY_HEADER_MAX];
    if (mark == SIZE_MAX) return;
    int size = snprintf(header, sizeof header, "*%llu\r\n", (unsigned long long)count);
    ASSERT(size > 0 && size < ARRAY_HEADER_MAX);
    uint8_t *at = call->out->at + call->out->head + mark;
    size_t body = reply_mark(call) - mark - ARRAY_HEADER_MAX;
    memcpy(at, header, (size_t)size);
    memmove(at + size, at + ARRAY_HEADER_MAX, body);
    call->out->size -= (size_t)(ARRAY_HEADER_MAX - size);
}

/* What commands keep in the server. */

struct command_state *commands_state(struct server *server)
{
    if (server->commands != NULL) return server->commands;
    struct command_state *state = calloc(1, sizeof *state);
    if (state == NULL) return NULL;
    state->cursors = calloc(CURSOR_COUNT_MAX + 1, sizeof *state->cursors);
    state->chains = calloc(CURSOR_COUNT_MAX, sizeof *state->chains);
    if (state->cursors == NULL || state->chains == NULL) {
        free(state->cursors);
        free(state->chains);
        free(state);
        return NULL;
    }
    prng_init(&state->random, server->io.seed ^ 0x5343414e);
    state->hash_seed = prng_next(&state->random);
    server->commands = state;
    return state;
}

void commands_close(struct server *server)
{
    struct command_state *state = server->commands;
    slowlog_reset(server);
    if (state == NULL) return;
    for (uint32_t i = 0; i < WATCH_CHAINS; i++) {
        for (struct watch *watch = state->watches[i]; watch != NULL; watch = watch->chain)
            watch->at = NULL;
    }
    for (uint32_t i = 1; i <= state->cursor_count; i++)
        free(state->cursors[i].key);
    transaction_state_close(state);
    free(state->once_tags);
    free(state->cursors);
    free(state->chains);
    free(state);
    server->commands = NULL;
}

uint64_t commands_random(struct server *server, uint64_t most)
{
    struct command_state *state = commands_state(server);
    return state == NULL || most == 0 ? 0 : prng_below(&state->random, most);
}

static uint64_t cursor_id(
    const struct command_state *state, uint16_t bucket, const struct node_position *position)
{
    uint8_t place[4 + KEY_SIZE_MAX];
    store_u16(place, bucket);
    store_u16(place + 2, position->range);
    memcpy(place + 4, position->key, position->key_size);
    /* 63 bits: some clients keep a cursor in a signed number */
    uint64_t id = hash64(state->hash_seed, bytes_of(place, 4u + position->key_size)) >> 1;
    return id == 0 ? 1 : id;
}

static uint32_t cursor_lookup(const struct command_state *state, uint64_t id)
{
    uint32_t number = state->chains[id % CURSOR_COUNT_MAX];
    while (number != 0 && state->cursors[number].id != id)
        number = state->cursors[number].next;
    return number;
}

static void cursor_unlink_use(struct command_state *state, uint32_t number)
{
    struct cursor *cursor = &state->cursors[number];
    if (cursor->newer != 0) {
        state->cursors[cursor->newer].older = cursor->older;
    } else {
        state->newest = cursor->older;
    }
    if (cursor->older != 0) {
        state->cursors[cursor->older].newer = cursor->newer;
    } else {
        state->oldest = cursor->newer;
    }
}

static void cursor_link_use(struct command_state *state, uint32_t number)
{
    struct cursor *cursor = &state->cursors[number];
    cursor->newer = 0;
    cursor->older = state->newest;
    if (state->newest != 0) state->cursors[state->newest].newer = number;
    state->newest = number;
    if (state->oldest == 0) state->oldest = number;
}

static void cursor_unlink_chain(struct command_state *state, uint32_t number)
{
    uint32_t *link = &state->chains[state->cursors[number].id % CURSOR_COUNT_MAX];
    while (*link != number) {
        ASSERT(*link != 0);
        link = &state->cursors[*link].next;
    }
    *link = state->cursors[number].next;
}

uint64_t cursor_keep(
    struct command_state *state, uint16_t bucket, const struct node_position *position)
{
    ASSERT(position->key_size <= KEY_SIZE_MAX);
    uint64_t id = cursor_id(state, bucket, position);
    uint32_t number = cursor_lookup(state, id);
    if (number != 0) {
        cursor_unlink_use(state, number);
        cursor_link_use(state, number);
        return id;
    }
    bool full = state->cursor_count == CURSOR_COUNT_MAX;
    number = full ? state->oldest : state->cursor_count + 1;
    struct cursor *cursor = &state->cursors[number];
    if (cursor->key_capacity < position->key_size) {
        uint8_t *key = realloc(cursor->key, position->key_size);
        if (key == NULL) return 0;
        cursor->key = key;
        cursor->key_capacity = position->key_size;
    }
    if (full) {
        cursor_unlink_use(state, number);
        cursor_unlink_chain(state, number);
    } else {
        state->cursor_count++;
    }
    cursor->id = id;
    cursor->bucket = bucket;
    cursor->range = position->range;
    cursor->key_size = position->key_size;
    if (position->key_size > 0) memcpy(cursor->key, position->key, position->key_size);
    cursor->next = state->chains[id % CURSOR_COUNT_MAX];
    state->chains[id % CURSOR_COUNT_MAX] = number;
    cursor_link_use(state, number);
    return id;
}

bool cursor_find(
    struct command_state *state, uint16_t bucket, uint64_t id, struct node_position *position_out)
{
    uint32_t number = id == 0 ? 0 : cursor_lookup(state, id);
    if (number == 0 || state->cursors[number].bucket != bucket) return false;
    const struct cursor *cursor = &state->cursors[number];
    position_out->range = cursor->range;
    position_out->key_size = cursor->key_size;
    if (cursor->key_size > 0) memcpy(position_out->key, cursor->key, cursor->key_size);
    cursor_unlink_use(state, number);
    cursor_link_use(state, number);
    return true;
}

bool database_number(struct call *call, int64_t number, uint16_t *bucket_out)
{
    if (number < INT32_MIN || number > INT32_MAX) {
        resp_error(
            call->out, "ERR value is out of range, value must between -2147483648 and 2147483647");
        return false;
    }
    if (number < 0 || number >= NODE_BUCKETS_NUMBERED) {
        resp_error(call->out, "ERR DB index is out of range");
        return false;
    }
    *bucket_out = (uint16_t)number;
    return true;
}
