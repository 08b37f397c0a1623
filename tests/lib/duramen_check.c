#include <stdio.h>
#include <string.h>

#include "sim/history.h"
#include "sim/linear.h"

/* Is a recorded history linearizable? Reads the text form of sim/history.h from the file named, or from standard input.
 *
 *     duramen-check [FILE]
 *
 * Exit status: 0 it is; 1 it is not, and the reason is printed; 2 the text is malformed or cannot be read; 3 not
 * decided within the limits. */

enum { EXIT_LINEAR = 0, EXIT_VIOLATION = 1, EXIT_MALFORMED = 2, EXIT_UNDECIDED = 3 };

static int load(struct history *history, const char *path)
{
    uint32_t line = 0;
    const char *why = NULL;
    bool standard = path == NULL || strcmp(path, "-") == 0;
    FILE *file = standard ? stdin : fopen(path, "r");
    if (file == NULL) {
        fprintf(stderr, "duramen-check: %s cannot be opened\n", path);
        return EXIT_MALFORMED;
    }
    enum err err = history_read(history, file, &line, &why);
    if (!standard) fclose(file);
    if (err == OK) return 0;
    fprintf(
        stderr, "duramen-check: %s: line %u: %s\n", standard ? "standard input" : path, line, why);
    return EXIT_MALFORMED;
}

static int judge(struct history *history)
{
    struct linear_settings settings = {0};
    struct linear_report report;
    enum linear_verdict verdict = linear_check(history, &settings, &report);
    printf("%u operations on %u keys: %u by zones, %u by search, %u not decided\n", history->count,
        report.keys, report.by_zones, report.by_search, report.gave_up);
    linear_explain(history, &report, stdout);
    switch (verdict) {
    case LINEAR:
        return EXIT_LINEAR;
    case NOT_LINEAR:
        return EXIT_VIOLATION;
    case GAVE_UP:
        return EXIT_UNDECIDED;
    }
    return EXIT_UNDECIDED;
}

int main(int argc, char **argv)
{
    struct history history;
    if (argc > 2) {
        fprintf(stderr, "usage: duramen-check [FILE]\n");
        return EXIT_MALFORMED;
    }
    history_init(&history);
    int status = load(&history, argc > 1 ? argv[1] : NULL);
    if (status == 0) status = judge(&history);
    history_deinit(&history);
    return status;
}
