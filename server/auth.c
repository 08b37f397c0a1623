/* Passwords.
 *
 * At rest there is an argon2id string. Checking one takes milliseconds on purpose, which a loop that serves
 * everybody must not spend: a worker thread does it, one at a time, from a short queue. What was verified once is
 * remembered as a keyed hash (BLAKE2b under a key drawn at start), so that the same secret costs about a
 * microsecond from then on; that is what makes it bearable to send it with each HTTP request. Comparisons
 * take the same time whatever differs.
 *
 * Guessing is limited per source address by a bucket of tokens: a wrong password costs one, ten are
 * there at first, one comes back each second. Without a token nothing is checked at all, not even against what is
 * remembered, or guessing would go on at full speed there. Checks in flight count as if they were wrong
 * already. Those of the same secret share one check, so a pool of clients that logs in at once is one
 * guess.
 *
 * Cost: 3 passes over 8 MiB, about 10 ms. That is meant for long random secrets; see docs/SECURITY.md. */

#include <pthread.h>
#include <sodium.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/logger.h"
#include "server/server.h"

enum {
    PASSWORD_MAX = 1024,
    JOBS_MAX = 64,
    WAITERS_MAX = 4096,
    SOURCES = 512, /* power of two */
    PROBES = 8,
    BURST = 10,
    DIGEST = 32,
};
#define REFILL_NS UINT64_C(1000000000) /* one token */

struct waiter {
    struct waiter *next;
    void (*on_done)(void *ctx, enum auth_result result);
    void *ctx;
};

struct job {
    struct job *next;
    uint8_t digest[DIGEST];
    uint32_t source;
    struct waiter *waiters; /* the loop's; the worker does not look at it */
    bool right;
    size_t size;
    char password[];
};

struct source {
    bool used;
    uint32_t address;
    uint32_t in_flight;
    uint32_t missing; /* tokens: BURST - missing are there */
    uint64_t filled_ns;
};

struct auth {
    struct server *server;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t work;
    struct job *todo, *todo_last; /* under the mutex, as are `done` and `stop` */
    struct job *done;
    bool stop;
    bool started;
    uint32_t jobs; /* todo + running + done */
    uint32_t waiters;
    struct job *pending[JOBS_MAX]; /* the loop's view of all jobs */
    uint8_t key[crypto_generichash_KEYBYTES];
    bool remembered;
    uint8_t verified[DIGEST];
    struct source sources[SOURCES];
};

enum err auth_hash(const char *password, char *out, size_t size)
{
    if (size < crypto_pwhash_STRBYTES) return ERR_TOO_LARGE;
    if (strlen(password) > PASSWORD_MAX) return ERR_TOO_LARGE;
    if (sodium_init() < 0) return ERR_IO;
    if (crypto_pwhash_str(out, password, strlen(password), 3, 8 << 20) != 0) return ERR_NOMEM;
    return OK;
}

static void *work(void *argument)
{
    struct auth *auth = argument;
    pthread_mutex_lock(&auth->mutex);
    for (;;) {
        while (auth->todo == NULL && !auth->stop)
            pthread_cond_wait(&auth->work, &auth->mutex);
        if (auth->stop) break;
        struct job *job = auth->todo;
        auth->todo = job->next;
        if (auth->todo == NULL) auth->todo_last = NULL;
        pthread_mutex_unlock(&auth->mutex);
        job->right = crypto_pwhash_str_verify(
                         auth->server->config.password_hash, job->password, job->size) == 0;
        pthread_mutex_lock(&auth->mutex);
        job->next = auth->done;
        auth->done = job;
        loop_wake(auth->server->loop);
    }
    pthread_mutex_unlock(&auth->mutex);
    return NULL;
}

bool auth_required(const struct server *server)
{
    return server->config.password_hash != NULL;
}

enum err auth_open(struct server *server)
{
    server->auth = NULL;
    if (!auth_required(server)) return OK;
    if (sodium_init() < 0) return ERR_IO;
    struct auth *auth = calloc(1, sizeof *auth);
    if (auth == NULL) return ERR_NOMEM;
    auth->server = server;
    randombytes_buf(auth->key, sizeof auth->key);
    pthread_mutex_init(&auth->mutex, NULL);
    pthread_cond_init(&auth->work, NULL);
    if (pthread_create(&auth->thread, NULL, work, auth) != 0) {
        pthread_mutex_destroy(&auth->mutex);
        pthread_cond_destroy(&auth->work);
        free(auth);
        return ERR_NOMEM;
    }
    server->auth = auth;
    return OK;
}

static void free_job(struct auth *auth, struct job *job)
{
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        if (auth->pending[i] == job) auth->pending[i] = NULL;
    }
    auth->jobs--;
    sodium_memzero(job, sizeof *job + job->size);
    free(job);
}

static void tell(struct auth *auth, struct job *job, enum auth_result result)
{
    struct waiter *waiter = job->waiters;
    job->waiters = NULL;
    while (waiter != NULL) {
        struct waiter *next = waiter->next;
        auth->waiters--;
        if (result != AUTH_OK) auth->server->counters.auth_failures++;
        waiter->on_done(waiter->ctx, result);
        free(waiter);
        waiter = next;
    }
}

void auth_close(struct server *server)
{
    struct auth *auth = server->auth;
    if (auth == NULL) return;
    pthread_mutex_lock(&auth->mutex);
    auth->stop = true;
    pthread_cond_signal(&auth->work);
    pthread_mutex_unlock(&auth->mutex);
    pthread_join(auth->thread, NULL);
    /* nobody is left waiting for an answer that will not come */
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        struct job *job = auth->pending[i];
        if (job == NULL) continue;
        tell(auth, job, AUTH_LIMITED);
        free_job(auth, job);
    }
    server->auth = NULL;
    pthread_mutex_destroy(&auth->mutex);
    pthread_cond_destroy(&auth->work);
    sodium_memzero(auth, sizeof *auth);
    free(auth);
}

/* The source's bucket, refilled up to now. A full table forgets who has been quiet longest. */
static struct source *source_find(struct auth *auth, uint32_t address)
{
    struct server *server = auth->server;
    uint64_t now = server->io.clock.monotonic_ns(server->io.clock.ctx);
    uint32_t start = (address * UINT32_C(2654435761)) >> 16;
    struct source *place = NULL;
    for (uint32_t i = 0; i < PROBES; i++) {
        struct source *source = &auth->sources[(start + i) & (SOURCES - 1)];
        if (source->used && source->address == address) {
            uint64_t tokens = (now - source->filled_ns) / REFILL_NS;
            if (tokens > 0) {
                source->filled_ns += tokens * REFILL_NS;
                source->missing -= tokens < source->missing ? (uint32_t)tokens : source->missing;
            }
            return source;
        }
        bool better = place == NULL || (place->used && !source->used) ||
            (place->used && source->used && source->in_flight == 0 &&
                (place->in_flight > 0 || source->filled_ns < place->filled_ns));
        if (better) place = source;
    }
    *place = (struct source){.used = true, .address = address, .filled_ns = now};
    return place;
}

static bool wait_for(struct auth *auth, struct job *job,
    void (*on_done)(void *ctx, enum auth_result result), void *ctx)
{
    struct waiter *waiter = auth->waiters < WAITERS_MAX ? malloc(sizeof *waiter) : NULL;
    if (waiter == NULL) return false;
    *waiter = (struct waiter){.next = job->waiters, .on_done = on_done, .ctx = ctx};
    job->waiters = waiter;
    auth->waiters++;
    return true;
}

static enum auth_result limited(struct auth *auth)
{
    auth->server->counters.auth_failures++;
    return AUTH_LIMITED;
}

enum auth_result auth_check(struct server *server, struct bytes password, uint32_t source_address,
    void (*on_done)(void *ctx, enum auth_result result), void *ctx)
{
    struct auth *auth = server->auth;
    if (auth == NULL) return AUTH_OK;
    if (password.size == 0 || password.size > PASSWORD_MAX) {
        server->counters.auth_failures++;
        return AUTH_WRONG;
    }
    struct source *source = source_find(auth, source_address);
    if (source->missing >= BURST) return limited(auth);

    uint8_t digest[DIGEST];
    crypto_generichash(
        digest, sizeof digest, password.at, password.size, auth->key, sizeof auth->key);
    if (auth->remembered && sodium_memcmp(digest, auth->verified, sizeof digest) == 0)
        return AUTH_OK;

    uint32_t slot = JOBS_MAX;
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        struct job *job = auth->pending[i];
        if (job == NULL) {
            slot = i;
        } else if (sodium_memcmp(digest, job->digest, sizeof digest) == 0) {
            return wait_for(auth, job, on_done, ctx) ? AUTH_WAIT : limited(auth);
        }
    }
    if (slot == JOBS_MAX || source->missing + source->in_flight >= BURST) return limited(auth);
    struct job *job = calloc(1, sizeof *job + password.size);
    if (job == NULL) return limited(auth);
    if (!wait_for(auth, job, on_done, ctx)) {
        free(job);
        return limited(auth);
    }
    memcpy(job->digest, digest, sizeof digest);
    memcpy(job->password, password.at, password.size);
    job->size = password.size;
    job->source = source_address;
    auth->pending[slot] = job;
    auth->jobs++;
    source->in_flight++;
    pthread_mutex_lock(&auth->mutex);
    if (auth->todo_last != NULL) auth->todo_last->next = job;
    if (auth->todo_last == NULL) auth->todo = job;
    auth->todo_last = job;
    pthread_cond_signal(&auth->work);
    pthread_mutex_unlock(&auth->mutex);
    return AUTH_WAIT;
}

void auth_poll(struct server *server)
{
    struct auth *auth = server->auth;
    if (auth == NULL) return;
    pthread_mutex_lock(&auth->mutex);
    struct job *job = auth->done;
    auth->done = NULL;
    pthread_mutex_unlock(&auth->mutex);
    while (job != NULL) {
        struct job *next = job->next;
        struct source *source = source_find(auth, job->source);
        if (source->in_flight > 0) source->in_flight--;
        if (job->right) {
            memcpy(auth->verified, job->digest, sizeof auth->verified);
            auth->remembered = true;
        } else {
            if (source->missing == 0) {
                source->filled_ns = server->io.clock.monotonic_ns(server->io.clock.ctx);
            }
            source->missing++;
            log_warn("wrong password", "source=%08x", job->source);
        }
        tell(auth, job, job->right ? AUTH_OK : AUTH_WRONG);
        free_job(auth, job);
        job = next;
    }
}
