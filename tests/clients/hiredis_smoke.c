#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* hiredis, the C client, over RESP2: hiredis_smoke PORT. Blocking calls, a pipeline, binary values,
 * a transaction, and errors as replies. */

static redisContext *connection;

static void fail(const char *what, const redisReply *reply)
{
    fprintf(stderr, "%s: %s\n", what,
        reply == NULL            ? connection->errstr
            : reply->str == NULL ? "another reply"
                                 : reply->str);
    exit(1);
}

static redisReply *next(const char *what, redisReply *reply, int type)
{
    if (reply == NULL || reply->type != type) fail(what, reply);
    return reply;
}

static void expect_text(const char *command, int type, const char *text)
{
    redisReply *reply = next(command, redisCommand(connection, command), type);
    if (strcmp(reply->str, text) != 0) fail(command, reply);
    freeReplyObject(reply);
}

static void expect_integer(const char *command, long long value)
{
    redisReply *reply = next(command, redisCommand(connection, command), REDIS_REPLY_INTEGER);
    if (reply->integer != value) fail(command, reply);
    freeReplyObject(reply);
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    connection = redisConnect("127.0.0.1", atoi(argv[1]));
    if (connection == NULL || connection->err != 0) {
        fprintf(stderr, "connect: %s\n", connection == NULL ? "no memory" : connection->errstr);
        return 1;
    }
    expect_text("FLUSHALL", REDIS_REPLY_STATUS, "OK");
    expect_text("PING", REDIS_REPLY_STATUS, "PONG");
    expect_text("SET k value", REDIS_REPLY_STATUS, "OK");
    expect_text("GET k", REDIS_REPLY_STRING, "value");
    freeReplyObject(next("nil", redisCommand(connection, "GET nokey"), REDIS_REPLY_NIL));
    expect_integer("INCR n", 1);
    expect_integer("DEL n nokey", 1);
    expect_text("INCR k", REDIS_REPLY_ERROR, "ERR value is not an integer or out of range");

    static const char bytes[] = {'a', 0, '\r', '\n', (char)0xff};
    freeReplyObject(next("binary set",
        redisCommand(connection, "SET %b %b", "bin", (size_t)3, bytes, sizeof bytes),
        REDIS_REPLY_STATUS));
    redisReply *reply = next("binary get", redisCommand(connection, "GET bin"), REDIS_REPLY_STRING);
    if (reply->len != sizeof bytes || memcmp(reply->str, bytes, sizeof bytes) != 0)
        fail("binary value", reply);
    freeReplyObject(reply);

    for (int i = 0; i < 10000; i++)
        redisAppendCommand(connection, "INCR counter");
    for (int i = 0; i < 10000; i++) {
        void *answer = NULL;
        if (redisGetReply(connection, &answer) != REDIS_OK) fail("pipeline", NULL);
        reply = next("pipeline", answer, REDIS_REPLY_INTEGER);
        if (reply->integer != i + 1) fail("pipeline out of order", reply);
        freeReplyObject(reply);
    }

    expect_text("MULTI", REDIS_REPLY_STATUS, "OK");
    expect_text("INCR m", REDIS_REPLY_STATUS, "QUEUED");
    expect_text("GET m", REDIS_REPLY_STATUS, "QUEUED");
    reply = next("EXEC", redisCommand(connection, "EXEC"), REDIS_REPLY_ARRAY);
    if (reply->elements != 2 || reply->element[0]->integer != 1) fail("EXEC", reply);
    freeReplyObject(reply);
    reply = next("SCAN", redisCommand(connection, "SCAN 0 COUNT 100"), REDIS_REPLY_ARRAY);
    if (reply->elements != 2 || reply->element[1]->elements != 4) fail("SCAN", reply);
    freeReplyObject(reply);
    redisFree(connection);
    puts("ok hiredis");
    return 0;
}
