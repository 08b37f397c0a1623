#ifndef BASE_LOGGER_H
#define BASE_LOGGER_H

#include <stdbool.h>

/* Structured log lines to stderr, logfmt by default ("level=warn at=... msg=\"...\" key=value"), JSON on
 * request, with the "<N>" priority prefix when stderr is the journal (JOURNAL_STREAM). A
 * line is one write(2). Repeats of one place beyond 10 a second are counted, not written. Never
 * pass values or secrets; text from clients is escaped here. Thread-safe. */
/* LOG_NONE is for logger_setup() alone: nothing is written. */
enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_NONE };

void logger_setup(enum log_level least, bool json);
/* `message` is a fixed sentence; `format` gives the key=value details, "" for none. */
void logger_line(enum log_level level, const char *message, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define log_debug(...) logger_line(LOG_DEBUG, __VA_ARGS__)
#define log_info(...) logger_line(LOG_INFO, __VA_ARGS__)
#define log_warn(...) logger_line(LOG_WARN, __VA_ARGS__)
#define log_error(...) logger_line(LOG_ERROR, __VA_ARGS__)

#endif
