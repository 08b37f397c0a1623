#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

/* `duramen bench`: puts load on any RESP server, or on a storage engine in this process, and reports
 * throughput and latency. What is measured and how: docs/BENCH.md.
 *
 * argv[0] is the subcommand's name. Returns the program's exit code: 0 done, 1 the run failed or
 * replies were wrong, 2 wrong usage. Some usage errors and --help exit from here. */
int bench_main(int argc, char **argv);

#endif
