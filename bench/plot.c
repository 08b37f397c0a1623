#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "bench/bench_internal.h"

/* The picture: an SVG with three panels, made by hand. Latency against percentile, where the axis is
 * the number of nines, so that the tail takes as much room as the rest; throughput over time; p99 over
 * time. One colour a target, told apart by label as well. */

enum {
    WIDTH = 1000,
    HEIGHT = 900,
    LEFT = 90,
    RIGHT = 960,
    PANEL = 220,
    FIRST_TOP = 90,
    SPACING = 275,
    CURVE_POINTS = 200,
};

static const char *const colours[ENGINES_MAX] = {
    "#0b6fa4", "#d1495b", "#2a9d5c", "#8e5aa8", "#c77c11", "#4a4e69", "#0f8b8d", "#7a4419"};

struct axis {
    double low;
    double high;
    bool log;
};

static double place(const struct axis *axis, double value)
{
    if (axis->log) {
        double clipped = value < axis->low ? axis->low : value;
        return (log10(clipped) - log10(axis->low)) / (log10(axis->high) - log10(axis->low));
    }
    return (value - axis->low) / (axis->high - axis->low);
}

static double across(double part)
{
    return LEFT + part * (RIGHT - LEFT);
}

static double down(int top, double part)
{
    return top + PANEL * (1 - (part < 0 ? 0 : part > 1 ? 1 : part));
}

static void put_escaped(struct buffer *out, const char *text)
{
    for (const char *each = text; *each != 0; each++) {
        if (*each == '&') {
            buffer_printf(out, "&amp;");
        } else if (*each == '<') {
            buffer_printf(out, "&lt;");
        } else {
            buffer_printf(out, "%c", *each);
        }
    }
}

static void put_panel(struct buffer *out, int top, const char *title)
{
    buffer_printf(out,
        "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"none\" stroke=\"#999\"/>"
        "<text x=\"%d\" y=\"%d\" font-weight=\"bold\">%s</text>\n",
        LEFT, top, RIGHT - LEFT, PANEL, LEFT, top - 10, title);
}

static void put_row_line(struct buffer *out, int top, double part, const char *label)
{
    double y = down(top, part);
    buffer_printf(out,
        "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>"
        "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
        LEFT, RIGHT, y, y, LEFT - 8, y + 4, label);
}

static void put_column_line(struct buffer *out, int top, double part, const char *label)
{
    double x = across(part);
    buffer_printf(out,
        "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" stroke=\"#eee\"/>"
        "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n",
        x, x, top, top + PANEL, x, top + PANEL + 18, label);
}

/* Whole decades of nanoseconds that hold low .. high. */
static struct axis time_axis(double low, double high)
{
    struct axis axis = {.log = true};
    axis.low = pow(10, floor(log10(low < 1 ? 1 : low)));
    axis.high = pow(10, ceil(log10(high < 10 ? 10 : high)));
    if (axis.high <= axis.low) {
        axis.high = axis.low * 10;
    }
    return axis;
}

static void put_time_rows(struct buffer *out, int top, const struct axis *axis)
{
    int decades = (int)lround(log10(axis->high / axis->low));
    for (int i = 0; i <= decades; i++) {
        char label[32];
        double value = axis->low * pow(10, i);
        report_time((uint64_t)(value + 0.5), label, sizeof label);
        put_row_line(out, top, place(axis, value), label);
    }
}

static void put_percentiles(
    struct buffer *out, const struct run_result *results, uint32_t count, struct histogram *room)
{
    static const char *const labels[] = {"0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"};
    enum { NINES = 5 };
    int top = FIRST_TOP;
    double low = 1e18;
    double high = 1;
    for (uint32_t i = 0; i < count; i++) {
        recorder_all(results[i].shown->recorder, room);
        low = fmin(low, (double)histogram_quantile(room, 0.01));
        high = fmax(high, (double)room->max);
    }
    struct axis axis = time_axis(low, high);
    put_panel(out, top, "Latency by percentile");
    put_time_rows(out, top, &axis);
    for (int i = 0; i <= NINES; i++)
        put_column_line(out, top, (double)i / NINES, labels[i]);
    for (uint32_t i = 0; i < count; i++) {
        recorder_all(results[i].shown->recorder, room);
        buffer_printf(
            out, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"", colours[i]);
        for (int point = 0; point <= CURVE_POINTS; point++) {
            double nines = (double)NINES * point / CURVE_POINTS;
            double value = (double)histogram_quantile(room, 1 - pow(10, -nines));
            buffer_printf(out, "%.1f,%.1f ", across(nines / NINES), down(top, place(&axis, value)));
        }
        buffer_printf(out, "\"/>\n");
    }
}

static double longest(const struct run_result *results, uint32_t count)
{
    double seconds = 0.1;
    for (uint32_t i = 0; i < count; i++)
        seconds = fmax(seconds, results[i].shown->seconds);
    return seconds;
}

static void put_seconds(struct buffer *out, int top, double seconds)
{
    for (int i = 0; i <= 5; i++) {
        char label[32];
        snprintf(label, sizeof label, "%.1f s", seconds * i / 5);
        put_column_line(out, top, i / 5.0, label);
    }
}

/* 1, 2 or 5 times a power of ten, at or above `value`. */
static double round_up_nicely(double value)
{
    double power = pow(10, floor(log10(value < 1 ? 1 : value)));
    double digit = value / power;
    return power * (digit <= 1 ? 1 : digit <= 2 ? 2 : digit <= 5 ? 5 : 10);
}

static void put_course(
    struct buffer *out, const struct run_result *results, uint32_t count, bool throughput)
{
    int top = FIRST_TOP + SPACING * (throughput ? 1 : 2);
    double seconds = longest(results, count);
    double high = 1;
    double low = 1e18;
    for (uint32_t i = 0; i < count; i++) {
        const struct recorder *recorder = results[i].shown->recorder;
        double a_second = 1e9 / (double)recorder->interval_ns;
        for (uint32_t j = 0; j < recorder->interval_count; j++) {
            const struct interval *interval = &recorder->intervals[j];
            double value =
                throughput ? (double)interval->operations * a_second : (double)interval->p99_ns;
            high = fmax(high, value);
            if (value > 0) {
                low = fmin(low, value);
            }
        }
    }
    struct axis axis = {.low = 0, .high = round_up_nicely(high)};
    put_panel(out, top, throughput ? "Operations a second over time" : "p99 latency over time");
    if (throughput) {
        for (int i = 0; i <= 4; i++) {
            char label[32];
            report_count((uint64_t)(axis.high * i / 4), label, sizeof label);
            put_row_line(out, top, i / 4.0, label);
        }
    } else {
        axis = time_axis(low, high);
        put_time_rows(out, top, &axis);
    }
    put_seconds(out, top, seconds);
    for (uint32_t i = 0; i < count; i++) {
        const struct recorder *recorder = results[i].shown->recorder;
        double step = (double)recorder->interval_ns / 1e9;
        buffer_printf(out, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\" points=\"",
            colours[i]);
        for (uint32_t j = 0; j < recorder->interval_count; j++) {
            const struct interval *interval = &recorder->intervals[j];
            double value =
                throughput ? (double)interval->operations / step : (double)interval->p99_ns;
            buffer_printf(out, "%.1f,%.1f ", across(fmin(1, (j + 0.5) * step / seconds)),
                down(top, place(&axis, value)));
        }
        buffer_printf(out, "\"/>\n");
    }
}

static void put_legend(struct buffer *out, const struct run_result *results, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        char rate[32];
        int x = LEFT + (int)i * (RIGHT - LEFT) / (int)count;
        report_count((uint64_t)results[i].shown->rate, rate, sizeof rate);
        buffer_printf(out,
            "<rect x=\"%d\" y=\"50\" width=\"12\" height=\"12\" fill=\"%s\"/>"
            "<text x=\"%d\" y=\"61\">",
            x, colours[i], x + 18);
        put_escaped(out, results[i].name);
        buffer_printf(out, ", %s/s</text>\n", rate);
    }
}

bool plot_write(const char *file, const struct bench_options *options,
    const struct run_result *results, uint32_t count)
{
    struct buffer out = {0};
    char title[512];
    struct histogram *room = malloc(sizeof *room);
    if (room == NULL) return false;
    options_describe(options, title, sizeof title);
    buffer_printf(&out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
        "height=\"%d\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n"
        "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n"
        "<text x=\"%d\" y=\"30\" font-size=\"15\">",
        WIDTH, HEIGHT, WIDTH, HEIGHT, LEFT);
    put_escaped(&out, title);
    buffer_printf(&out, "</text>\n");
    put_legend(&out, results, count);
    put_percentiles(&out, results, count, room);
    put_course(&out, results, count, true);
    put_course(&out, results, count, false);
    enum err last = buffer_printf(&out, "</svg>\n");
    free(room);

    FILE *to = fopen(file, "we");
    bool fine = last == OK && to != NULL && fwrite(out.at, 1, out.size, to) == out.size;
    fine = to != NULL && fclose(to) == 0 && fine;
    buffer_deinit(&out);
    return fine;
}
