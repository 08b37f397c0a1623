#include <stdlib.h>

#include "base/check.h"
#include "sim/linear.h"

/* Depth-first search for an order. The list holds beginnings and ends of the operations that have answers, by
 * time; what begins before the first end in it may come next. Taking an operation takes both its entries out,
 * going back puts them in again (in the opposite order, so plain links do).
 *
 * Six things keep it short. A place (which operations with answers are done, and the value) that led nowhere
 * is not entered again, nor is one that differs only by having used up more of those without: places are
 * remembered by a 128-bit hash. A read that fits is taken at once and never reconsidered: whatever order works
 * without it there works with it. Operations without an answer come last, as most of them are not needed. In
 * an order with as few of them as can be, what comes next after one would not be the same without it; so
 * nothing else is tried. Of those that are the same but for their time only the earliest is tried. And
 * appends without an answer are not tried if nothing that can come next can show them. */

enum { NIL = UINT32_MAX };

struct place {
    uint64_t low, high;
};

struct frame {
    uint32_t
        entry; /* what was taken: its number in `entries`, or, from entry_count on, in `unknown` */
    bool forced; /* took it without a choice */
    history_value state; /* before */
    struct place done;
};

/* Where the search has been. Places with the same hash, each with another set of operations without an
 * answer, form a chain. */
struct visit {
    struct place place;
    uint32_t older; /* in the chain; 0: none */
};

struct cache {
    uint32_t slot_count, count, capacity, count_max;
    uint32_t *slots; /* newest of the chain; 0: empty */
    struct visit *visits; /* [0] is not used */
    uint64_t *sets; /* of visits[i] at i * words */
};

struct search {
    struct history *history;
    uint32_t known_count;
    uint32_t *known; /* operations with answers */
    uint32_t unknown_count;
    uint32_t *unknown; /* operations without, by begin */
    uint32_t words; /* of a set of them */
    uint64_t *used; /* those in the order: a set */

    /* entry 2i: begin of known[i], 2i + 1: its end; entry 2 * known_count: the list's head */
    uint32_t *next, *before;

    uint32_t depth, left; /* left: known operations that are not in the order yet */
    struct frame *frames;
    history_value state;
    struct place done;

    struct cache cache;
    uint64_t steps, steps_max;
    bool exhausted;

    struct linear_report *explain; /* NULL: only the verdict is wanted */
    uint32_t least_left;
};

static uint64_t mix(uint64_t value)
{
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

static struct place place_with(struct place place, uint64_t what)
{
    place.low ^= mix(what + 0x9e3779b97f4a7c15u);
    place.high ^= mix(what * 0xd1342543de82ef95u + 0x2545f4914f6cdd1du);
    return place;
}

/* Open addressing by place. */
static uint32_t *cache_slot(const struct cache *cache, struct place place)
{
    uint32_t slot = (uint32_t)place.low & (cache->slot_count - 1);
    for (uint32_t visit; (visit = cache->slots[slot]) != 0;
         slot = (slot + 1) & (cache->slot_count - 1)) {
        const struct place *there = &cache->visits[visit].place;
        if (there->low == place.low && there->high == place.high) break;
    }
    return &cache->slots[slot];
}

static bool cache_grow(struct cache *cache, uint32_t words)
{
    uint32_t capacity = cache->capacity == 0 ? 1024 : cache->capacity * 2;
    struct visit *visits = realloc(cache->visits, capacity * sizeof *visits);
    if (visits == NULL) return false;
    cache->visits = visits;
    uint64_t *sets = realloc(cache->sets, ((size_t)capacity * words + 1) * sizeof *sets);
    if (sets == NULL) return false;
    cache->sets = sets;
    uint32_t *slots = calloc((size_t)capacity * 2, sizeof *slots);
    if (slots == NULL) return false;
    free(cache->slots);
    cache->slots = slots;
    cache->slot_count = capacity * 2;
    cache->capacity = capacity;
    /* oldest first: the newest of a chain stays */
    for (uint32_t visit = 1; visit <= cache->count; visit++)
        *cache_slot(cache, cache->visits[visit].place) = visit;
    return true;
}

static void cache_deinit(struct cache *cache)
{
    free(cache->slots);
    free(cache->visits);
    free(cache->sets);
    *cache = (struct cache){.count_max = cache->count_max};
}

/* True if the search has been at this place with no more of the operations without an answer used up: it
 * could do then all it can do now. */
static bool cache_has(struct search *search, struct place place)
{
    const struct cache *cache = &search->cache;
    if (cache->slot_count == 0) return false;
    for (uint32_t visit = *cache_slot(cache, place); visit != 0;
         visit = cache->visits[visit].older) {
        const uint64_t *set = cache->sets + (size_t)visit * search->words;
        uint64_t more = 0;
        for (uint32_t i = 0; i < search->words; i++)
            more |= set[i] & ~search->used[i];
        search->steps++;
        if (more == 0) return true;
    }
    return false;
}

static void cache_add(struct search *search, struct place place)
{
    struct cache *cache = &search->cache;
    bool full = cache->count + 1 >= cache->capacity;
    if (cache->count == cache->count_max || (full && !cache_grow(cache, search->words))) {
        search->exhausted = true;
        return;
    }
    uint32_t *slot = cache_slot(cache, place);
    cache->visits[++cache->count] = (struct visit){.place = place, .older = *slot};
    *slot = cache->count;
    uint64_t *set = cache->sets + (size_t)cache->count * search->words;
    memcpy(set, search->used, search->words * sizeof *set);
}

/* The list */

static uint32_t head_of(const struct search *search)
{
    return 2 * search->known_count;
}

static void unlink_entry(struct search *search, uint32_t entry)
{
    search->next[search->before[entry]] = search->next[entry];
    search->before[search->next[entry]] = search->before[entry];
}

static void relink_entry(struct search *search, uint32_t entry)
{
    search->next[search->before[entry]] = entry;
    search->before[search->next[entry]] = entry;
}

struct moment {
    uint64_t time;
    uint32_t entry;
};

/* By time; what begins when another ends does not come after it. */
static int by_time(const void *a, const void *b)
{
    const struct moment *x = a, *y = b;
    if (x->time != y->time) return (x->time > y->time) - (x->time < y->time);
    if (x->entry % 2 != y->entry % 2) return (int)(x->entry % 2) - (int)(y->entry % 2);
    return (x->entry > y->entry) - (x->entry < y->entry);
}

static bool list_build(struct search *search)
{
    uint32_t head = head_of(search), last = head;
    struct moment *moments = malloc((head + 1) * sizeof *moments);
    if (moments == NULL) return false;
    for (uint32_t i = 0; i < search->known_count; i++) {
        const struct history_op *op = &search->history->ops[search->known[i]];
        moments[2 * i] = (struct moment){op->invoke, 2 * i};
        moments[2 * i + 1] = (struct moment){op->ret, 2 * i + 1};
    }
    qsort(moments, head, sizeof *moments, by_time);
    for (uint32_t i = 0; i < head; i++) {
        search->next[last] = moments[i].entry;
        search->before[moments[i].entry] = last;
        last = moments[i].entry;
    }
    search->next[last] = head;
    search->before[head] = last;
    free(moments);
    return true;
}

/* Beginning of an operation that may come next, at or after `entry`; NIL: an end comes first. */
static uint32_t candidate_from(const struct search *search, uint32_t entry)
{
    return entry == head_of(search) || entry % 2 == 1 ? NIL : entry;
}

/* No operation that begins later may come next. */
static uint64_t first_end(const struct search *search)
{
    uint32_t entry = search->next[head_of(search)];
    while (entry % 2 == 0)
        entry = search->next[entry];
    return search->history->ops[search->known[entry / 2]].ret;
}

/* Moves */

static uint32_t op_of(const struct search *search, uint32_t entry)
{
    uint32_t head = head_of(search);
    return entry < head ? search->known[entry / 2] : search->unknown[entry - head];
}

/* True if the last operation of the order is one without an answer. */
static bool after_unknown(const struct search *search)
{
    return search->depth > 0 && search->frames[search->depth - 1].entry >= head_of(search);
}

/* True if `entry` may come next by its result; *state_out: then. Not after one without an answer that makes
 * no difference to it. */
static bool fits(struct search *search, uint32_t entry, history_value *state_out)
{
    search->steps++;
    history_value otherwise;
    const struct history_op *op = &search->history->ops[op_of(search, entry)];
    if (!history_apply(search->history, op, search->state, state_out, &search->exhausted))
        return false;
    if (!after_unknown(search)) return true;
    history_value before = search->frames[search->depth - 1].state;
    return !history_apply(search->history, op, before, &otherwise, &search->exhausted) ||
        otherwise != *state_out;
}

static bool is_used(const struct search *search, uint32_t unknown)
{
    return search->used[unknown / 64] >> unknown % 64 & 1;
}

static void flip_used(struct search *search, uint32_t unknown)
{
    search->used[unknown / 64] ^= UINT64_C(1) << unknown % 64;
}

static void take(struct search *search, uint32_t entry, bool forced, history_value state)
{
    uint32_t head = head_of(search);
    search->frames[search->depth++] = (struct frame){
        .entry = entry, .forced = forced, .state = search->state, .done = search->done};
    search->state = state;
    if (entry >= head) {
        flip_used(search, entry - head);
        return;
    }
    search->done = place_with(search->done, search->known[entry / 2]);
    unlink_entry(search, entry);
    unlink_entry(search, entry + 1);
    search->left--;
}

static void put_back(struct search *search, const struct frame *frame)
{
    uint32_t head = head_of(search);
    search->state = frame->state;
    search->done = frame->done;
    if (frame->entry >= head) {
        flip_used(search, frame->entry - head);
        return;
    }
    relink_entry(search, frame->entry + 1);
    relink_entry(search, frame->entry);
    search->left++;
}

/* With the answer it had it changes nothing, wherever it comes. */
static bool only_reads(const struct history_op *op)
{
    switch (op->kind) {
    case HISTORY_GET:
        return true;
    case HISTORY_SETNX:
    case HISTORY_CAS:
    case HISTORY_DEL:
        return op->answer == 0;
    case HISTORY_SET:
    case HISTORY_INCR:
    case HISTORY_APPEND:
    case HISTORY_GETSET:
        return false;
    }
    UNREACHABLE();
}

static bool take_forced(struct search *search)
{
    history_value state;
    uint32_t entry = candidate_from(search, search->next[head_of(search)]);
    for (; entry != NIL; entry = candidate_from(search, search->next[entry])) {
        if (!only_reads(&search->history->ops[op_of(search, entry)])) continue;
        if (!fits(search, entry, &state)) continue;
        take(search, entry, true, state);
        return true;
    }
    return false;
}

/* Takes it if that leads to a place where the search has not been. */
static bool try_take(struct search *search, uint32_t entry)
{
    history_value state, before = search->state;
    if (!fits(search, entry, &state)) return false;
    take(search, entry, false, state);
    struct place place = place_with(search->done, (UINT64_C(1) << 40) + state);
    bool been = cache_has(search, place);
    if (!been && after_unknown(search)) {
        /* here what may come next depends on the state before, too */
        place = place_with(place, (UINT64_C(1) << 41) + before);
        been = cache_has(search, place);
    }
    if (!been) cache_add(search, place);
    if (been) put_back(search, &search->frames[--search->depth]);
    return !been;
}

/* Those with an answer that comes after the end of the prefix have it to agree with. */
static bool same_but_time(const struct history_op *a, const struct history_op *b)
{
    if (a->kind != b->kind || a->outcome != b->outcome) return false;
    if (a->argument != b->argument || a->expected != b->expected || a->delta != b->delta)
        return false;
    return a->outcome != HISTORY_OK || (a->result == b->result && a->answer == b->answer);
}

/* An unused one that is the same began earlier. */
static bool has_elder(const struct search *search, uint32_t unknown)
{
    const struct history_op *ops = search->history->ops;
    for (uint32_t i = 0; i < unknown; i++) {
        if (!is_used(search, i) &&
            same_but_time(&ops[search->unknown[i]], &ops[search->unknown[unknown]]))
            return true;
    }
    return false;
}

/* After an append without an answer has made `before` into `after`: can `op` come next, or after more such
 * appends, and show the difference? */
static bool shows_append(const struct search *search, const struct history_op *op,
    history_value before, history_value after)
{
    enum { NUMBER_SIZE_MAX = 20 };
    const struct history *history = search->history;
    struct bytes start = history_bytes(history, after);
    history_value seen = op->result;
    switch (op->kind) {
    case HISTORY_CAS:
        if (before == op->expected) return true;
        seen = op->expected;
        break;
    case HISTORY_GET:
    case HISTORY_GETSET:
        if (op->outcome != HISTORY_OK) return false;
        break;
    case HISTORY_APPEND:
        return op->outcome == HISTORY_OK &&
            (uint64_t)op->answer >= start.size + history_bytes(history, op->argument).size;
    case HISTORY_INCR:
        return start.size <= NUMBER_SIZE_MAX;
    case HISTORY_SETNX:
    case HISTORY_DEL:
        return before == HISTORY_NONE;
    case HISTORY_SET:
        return false;
    }
    return seen != HISTORY_NONE && bytes_have_prefix(history_bytes(history, seen), start);
}

/* Orders of appends are many, and most lead to values that nobody can have seen. */
static bool append_in_vain(const struct search *search, history_value after)
{
    const struct history_op *ops = search->history->ops;
    uint32_t entry = candidate_from(search, search->next[head_of(search)]);
    for (; entry != NIL; entry = candidate_from(search, search->next[entry])) {
        if (shows_append(search, &ops[op_of(search, entry)], search->state, after)) return false;
    }
    for (uint32_t i = 0; i < search->unknown_count; i++) {
        const struct history_op *op = &ops[search->unknown[i]];
        /* those with an answer to come are seen like the others */
        bool shows =
            op->outcome == HISTORY_OK || op->kind == HISTORY_INCR || op->kind == HISTORY_CAS;
        if (shows && !is_used(search, i) && shows_append(search, op, search->state, after))
            return false;
    }
    return true;
}

static bool take_unknown(struct search *search, uint32_t from)
{
    history_value state;
    uint64_t end = first_end(search);
    for (uint32_t i = from; i < search->unknown_count; i++) {
        const struct history_op *op = &search->history->ops[search->unknown[i]];
        if (op->invoke > end) break;
        if (is_used(search, i) || has_elder(search, i)) continue;
        uint32_t entry = head_of(search) + i;
        if (!fits(search, entry, &state) || state == search->state) continue;
        if (op->kind == HISTORY_APPEND && append_in_vain(search, state)) continue;
        if (try_take(search, entry)) return true;
    }
    return false;
}

/* The next choice; `after` is the one that led nowhere, NIL at a new place. */
static bool take_next(struct search *search, uint32_t after)
{
    uint32_t head = head_of(search);
    if (after == NIL || after < head) {
        uint32_t first = after == NIL ? search->next[head] : search->next[after];
        uint32_t entry = candidate_from(search, first);
        for (; entry != NIL; entry = candidate_from(search, search->next[entry])) {
            if (try_take(search, entry)) return true;
        }
        return take_unknown(search, 0);
    }
    return take_unknown(search, after - head + 1);
}

/* Nowhere has a longer order been found. */
static void note_deepest(struct search *search)
{
    struct linear_report *report = search->explain;
    uint32_t kept = search->depth < LINEAR_EXPLAIN_MAX / 2 ? search->depth : LINEAR_EXPLAIN_MAX / 2;
    search->least_left = search->left;
    report->order_count = kept;
    for (uint32_t i = 0; i < kept; i++)
        report->order[i] = op_of(search, search->frames[search->depth - kept + i].entry);
    report->state = search->state;
    report->op_count = 0;
    uint32_t entry = candidate_from(search, search->next[head_of(search)]);
    for (; entry != NIL && report->op_count < LINEAR_EXPLAIN_MAX;
         entry = candidate_from(search, search->next[entry]))
        report->ops[report->op_count++] = op_of(search, entry);
}

static enum linear_verdict run(struct search *search)
{
    uint32_t after = NIL;
    while (search->left > 0) {
        if (search->exhausted || search->steps > search->steps_max) return GAVE_UP;
        if (search->explain != NULL && after == NIL && search->left < search->least_left)
            note_deepest(search);
        if (after == NIL && take_forced(search)) continue;
        if (take_next(search, after)) {
            after = NIL;
            continue;
        }
        do {
            if (search->depth == 0) return search->exhausted ? GAVE_UP : NOT_LINEAR;
            put_back(search, &search->frames[--search->depth]);
        } while (search->frames[search->depth].forced);
        after = search->frames[search->depth].entry;
    }
    return LINEAR;
}

/* Building and the shortest prefix */

/* Only what has ended by `until` has ended; what began later is not there. */
static void choose_ops(struct search *search, const uint32_t *ops, uint32_t count, uint64_t until)
{
    search->known_count = search->unknown_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct history_op *op = &search->history->ops[ops[i]];
        ASSERT_IF(i > 0, search->history->ops[ops[i - 1]].invoke <= op->invoke);
        if (op->outcome == HISTORY_FAILED || op->invoke > until) continue;
        if (op->outcome == HISTORY_OK && op->ret <= until)
            search->known[search->known_count++] = ops[i];
        else if (op->kind != HISTORY_GET)
            search->unknown[search->unknown_count++] = ops[i];
    }
}

static enum linear_verdict attempt(struct search *search, const uint32_t *ops, uint32_t count,
    uint64_t until, struct linear_report *explain)
{
    choose_ops(search, ops, count, until);
    search->depth = 0;
    search->left = search->known_count;
    search->least_left = UINT32_MAX;
    search->state = HISTORY_NONE;
    search->done = (struct place){0};
    search->explain = explain;
    search->exhausted = false;
    search->steps = 0;
    search->words = (search->unknown_count + 63) / 64;
    memset(search->used, 0, search->words * sizeof *search->used);
    cache_deinit(&search->cache); /* its sets may have another size now */
    return list_build(search) ? run(search) : GAVE_UP;
}

static int by_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* A longer history is no better than its beginning, so the first end that spoils it is found by halving. Shorter
 * ones are easier too: where all of it is too much to search, a beginning may show what is wrong. */
static bool find_prefix(struct search *search, const uint32_t *ops, uint32_t count,
    const uint64_t *ends, uint32_t end_count, uint64_t *end_out)
{
    uint32_t low = 0, high = end_count;
    bool found = false;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        enum linear_verdict verdict = attempt(search, ops, count, ends[middle], NULL);
        if (verdict == NOT_LINEAR) {
            found = true;
            *end_out = ends[middle];
        }
        if (verdict == LINEAR)
            low = middle + 1;
        else
            high = middle;
    }
    return found;
}

/* True if a beginning of the history is not linearizable; fills the report. */
static bool explain(
    struct search *search, const uint32_t *ops, uint32_t count, struct linear_report *report)
{
    uint32_t end_count = 0;
    uint64_t end = 0;
    uint64_t *ends = malloc((count + 1u) * sizeof *ends);
    if (ends == NULL) return false;
    for (uint32_t i = 0; i < count; i++) {
        const struct history_op *op = &search->history->ops[ops[i]];
        if (op->outcome == HISTORY_OK) ends[end_count++] = op->ret;
    }
    qsort(ends, end_count, sizeof *ends, by_u64);
    bool found = find_prefix(search, ops, count, ends, end_count, &end);
    free(ends);
    if (!found) return false;
    (void)!attempt(search, ops, count, end, report); /* again, to say where it ends */
    report->searched = true;
    report->reason = "no order of the operations explains their results";
    for (uint32_t i = 0; i < count; i++) {
        const struct history_op *op = &search->history->ops[ops[i]];
        if (op->outcome == HISTORY_OK && op->ret == end) report->prefix = ops[i];
    }
    return true;
}

static bool search_init(struct search *search, struct history *history, uint32_t count,
    const struct linear_settings *settings)
{
    size_t room = (size_t)count + 1;
    *search = (struct search){
        .history = history,
        .known = malloc(room * sizeof *search->known),
        .unknown = malloc(room * sizeof *search->unknown),
        .used = calloc(room / 64 + 1, sizeof *search->used),
        .next = malloc(2 * room * sizeof *search->next),
        .before = malloc(2 * room * sizeof *search->before),
        .frames = malloc(room * sizeof *search->frames),
        .steps_max = settings->steps_max > 0 ? settings->steps_max : 8000000,
        .cache.count_max = settings->cache_max > 0 ? settings->cache_max : 4000000,
    };
    return search->known != NULL && search->unknown != NULL && search->used != NULL &&
        search->next != NULL && search->before != NULL && search->frames != NULL;
}

static void search_deinit(struct search *search)
{
    free(search->known);
    free(search->unknown);
    free(search->used);
    free(search->next);
    free(search->before);
    free(search->frames);
    cache_deinit(&search->cache);
}

enum linear_verdict linear_search(struct history *history, const uint32_t *ops, uint32_t count,
    const struct linear_settings *settings, struct linear_report *report)
{
    struct search search;
    enum linear_verdict verdict = GAVE_UP;
    if (search_init(&search, history, count, settings)) {
        verdict = attempt(&search, ops, count, UINT64_MAX, NULL);
        report->steps += search.steps;
        if (verdict != LINEAR && explain(&search, ops, count, report)) verdict = NOT_LINEAR;
    }
    search_deinit(&search);
    report->by_search++;
    return verdict;
}
