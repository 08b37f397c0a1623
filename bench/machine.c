#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "bench/bench_internal.h"

/* What the numbers were measured on, and who used the processors meanwhile: a run that somebody else
 * disturbed must be visible as such. */

static bool line_of(const char *file, const char *field, char *at, size_t size)
{
    FILE *in = fopen(file, "re");
    if (in == NULL) return false;
    char line[512];
    bool found = false;
    while (!found && fgets(line, sizeof line, in) != NULL) {
        if (strncmp(line, field, strlen(field)) != 0) continue;
        const char *value = strchr(line, ':');
        value = value == NULL ? line + strlen(field) : value + 1;
        value += strspn(value, " \t");
        snprintf(at, size, "%.*s", (int)strcspn(value, "\n"), value);
        found = true;
    }
    fclose(in);
    return found;
}

void machine_describe(struct machine *machine_out)
{
    memset(machine_out, 0, sizeof *machine_out);
    if (!line_of("/proc/cpuinfo", "model name", machine_out->cpu, sizeof machine_out->cpu)) {
        snprintf(machine_out->cpu, sizeof machine_out->cpu, "unknown processor");
    }
    struct utsname names;
    if (uname(&names) == 0) {
        snprintf(machine_out->kernel, sizeof machine_out->kernel, "%.20s %.60s", names.sysname,
            names.release);
    }
    machine_out->cores = sysconf(_SC_NPROCESSORS_ONLN);
    machine_out->memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t ticks_to_ns(uint64_t ticks)
{
    return ticks * (1000000000u / (uint64_t)sysconf(_SC_CLK_TCK));
}

static uint64_t process_ns(long pid)
{
    char file[64];
    char line[1024];
    snprintf(file, sizeof file, "/proc/%ld/stat", pid);
    FILE *in = fopen(file, "re");
    if (in == NULL) return 0;
    size_t size = fread(line, 1, sizeof line - 1, in);
    fclose(in);
    line[size] = 0;
    const char *after_name = strrchr(line, ')');
    uint64_t user = 0;
    uint64_t kernel = 0;
    if (after_name == NULL ||
        sscanf(after_name + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %" SCNu64 " %" SCNu64,
            &user, &kernel) != 2)
        return 0;
    return ticks_to_ns(user + kernel);
}

static uint64_t machine_busy_ns(void)
{
    char line[256];
    uint64_t user = 0;
    uint64_t nice = 0;
    uint64_t kernel = 0;
    uint64_t interrupts = 0;
    uint64_t soft = 0;
    if (!line_of("/proc/stat", "cpu ", line, sizeof line)) return 0;
    if (sscanf(line, "%" SCNu64 " %" SCNu64 " %" SCNu64 " %*u %*u %" SCNu64 " %" SCNu64, &user,
            &nice, &kernel, &interrupts, &soft) != 5)
        return 0;
    return ticks_to_ns(user + nice + kernel + interrupts + soft);
}

void cpu_mark_take(struct cpu_mark *mark_out, const struct servers *servers)
{
    struct clock clock = clock_real();
    struct rusage usage;
    memset(mark_out, 0, sizeof *mark_out);
    if (getrusage(RUSAGE_SELF, &usage) == 0) {
        uint64_t us = (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000u +
            (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
        mark_out->self_ns = us * 1000;
    }
    for (uint32_t i = 0; i < servers->count; i++)
        mark_out->server_ns += process_ns(servers->pids[i]);
    mark_out->machine_ns = machine_busy_ns();
    mark_out->wall_ns = clock.monotonic_ns(clock.ctx);
}
