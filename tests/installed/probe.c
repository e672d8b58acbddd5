/* Loads the library that is named and says what that did to the process. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void descriptors(const char *when)
{
    DIR *dir = opendir("/proc/self/fd");
    struct dirent *entry;
    while (dir != NULL && (entry = readdir(dir)) != NULL) {
        char path[512], target[512];
        ssize_t len;
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
        len = readlink(path, target, sizeof target - 1);
        if (len < 0 || strstr(target, "/proc/") != NULL) continue; /* the directory that is read here */
        printf("%s fd %s %.*s\n", when, entry->d_name, (int)len, target);
    }
    if (dir != NULL) closedir(dir);
}

static void files(const char *when)
{
    char line[1024], last[1024] = "";
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
        char *path = strchr(line, '/');
        if (path == NULL || strcmp(path, last) == 0) continue;
        strcpy(last, path);
        printf("%s map %s", when, path);
    }
    if (maps != NULL) fclose(maps);
}

static void threads(const char *when)
{
    DIR *dir = opendir("/proc/self/task");
    struct dirent *entry;
    while (dir != NULL && (entry = readdir(dir)) != NULL)
        if (entry->d_name[0] != '.') printf("%s thread\n", when);
    if (dir != NULL) closedir(dir);
}

int main(int argc, char **argv)
{
    void *library;
    const char *(*version)(void);
    if (argc != 2) return 2;
    descriptors("before"), files("before"), threads("before");
    library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) return fprintf(stderr, "%s\n", dlerror()), 1;
    descriptors("after"), files("after"), threads("after");
    *(void **)&version = dlsym(library, "kvlink_version");
    if (version != NULL) printf("version %s\n", version());
    return 0;
}
