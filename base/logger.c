#define _GNU_SOURCE
#include "base/logger.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 2048, PLACES = 64, PER_SECOND = 10 };

static atomic_int least_level = LOG_INFO;
static atomic_bool as_json;
static bool journal;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct place {
    const char *message;
    time_t second;
    unsigned count;
} places[PLACES];

static const char *const level_names[] = {"debug", "info", "warn", "error"};
static const int journal_priority[] = {7, 6, 4, 3};

void logger_setup(enum log_level least, bool json)
{
    atomic_store(&least_level, (int)least);
    atomic_store(&as_json, json);
    const char *stream = getenv("JOURNAL_STREAM");
    unsigned long device = 0, inode = 0;
    struct stat status;
    journal = stream != NULL && sscanf(stream, "%lu:%lu", &device, &inode) == 2 &&
              fstat(STDERR_FILENO, &status) == 0 && status.st_dev == device &&
              status.st_ino == inode;
}

/* true if this message was written more than PER_SECOND times in this second */
static bool too_often(const char *message, time_t second)
{
    struct place *place = &places[((uintptr_t)message >> 3) % PLACES];
    pthread_mutex_lock(&lock);
    if (place->message != message || place->second != second) {
        place->message = message;
        place->second = second;
        place->count = 0;
    }
    bool often = ++place->count > PER_SECOND;
    pthread_mutex_unlock(&lock);
    return often;
}

/* keeps a line one line: control bytes and (for JSON) quotes and backslashes are escaped */
static void escape(char *target, size_t capacity, const char *source, bool json)
{
    size_t used = 0;
    for (; *source != '\0' && used + 7 < capacity; source++) {
        unsigned char c = (unsigned char)*source;
        if (c < 0x20 || c == 0x7f) {
            used += (size_t)snprintf(target + used, capacity - used, "\\u%04x", c);
        } else {
            if (json && (c == '"' || c == '\\')) target[used++] = '\\';
            target[used++] = (char)c;
        }
    }
    target[used] = '\0';
}

void logger_line(enum log_level level, const char *message, const char *format, ...)
{
    if ((int)level < atomic_load_explicit(&least_level, memory_order_relaxed)) return;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (too_often(message, now.tv_sec)) return;

    bool json = atomic_load(&as_json);
    char raw[LINE_MAX_BYTES / 2];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(raw, sizeof raw, format, arguments);
    va_end(arguments);
    char details[LINE_MAX_BYTES / 2 + 256];
    escape(details, sizeof details, raw, json);

    struct tm tm;
    gmtime_r(&now.tv_sec, &tm);
    char stamp[32];
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &tm);
    char line[LINE_MAX_BYTES];
    int used = journal ? snprintf(line, sizeof line, "<%d>", journal_priority[level]) : 0;
    int more = snprintf(line + used, sizeof line - (size_t)used,
        json ? "{\"time\":\"%s.%03ldZ\",\"level\":\"%s\",\"msg\":\"%s\",\"details\":\"%s\"}\n"
             : "time=%s.%03ldZ level=%s msg=\"%s\" %s\n",
        stamp, now.tv_nsec / 1000000, level_names[level], message, details);
    size_t size = (size_t)(used + more);
    if (size >= sizeof line) {
        size = sizeof line - 1;
        line[size - 1] = '\n';
    }
    /* nothing can be done about a stderr that does not take the line */
    ssize_t ignored = write(STDERR_FILENO, line, size);
    (void)ignored;
}
