#define _GNU_SOURCE
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Where there is no libFuzzer: runs a fuzz target over the files of the folders (or the files) given, so
 * that every build replays the corpus. Each input sits in memory of its exact size, for AddressSanitizer. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned long replayed;

static int replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    struct stat status;
    if (file == NULL || fstat(fileno(file), &status) != 0) {
        perror(path);
        if (file != NULL) fclose(file);
        return 1;
    }
    size_t size = (size_t)status.st_size;
    uint8_t *data = malloc(size > 0 ? size : 1);
    int failed = data == NULL || fread(data, 1, size, file) != size;
    if (failed) {
        perror(path);
    } else {
        LLVMFuzzerTestOneInput(data, size);
        replayed++;
    }
    free(data);
    fclose(file);
    return failed;
}

static int replay(const char *path)
{
    struct stat status;
    if (stat(path, &status) == 0 && !S_ISDIR(status.st_mode)) return replay_file(path);
    DIR *folder = opendir(path);
    if (folder == NULL) {
        perror(path);
        return 1;
    }
    int failed = 0;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        char name[4352];
        if (entry->d_name[0] == '.') continue;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        failed |= replay_file(name);
    }
    closedir(folder);
    return failed;
}

int main(int argc, char **argv)
{
    int failed = 0;
    for (int i = 1; i < argc; i++)
        failed |= replay(argv[i]);
    printf("%lu inputs replayed\n", replayed);
    return failed || replayed == 0;
}
