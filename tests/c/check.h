/* The smallest harness that does: checks that say what was wrong, tests with a name, a watchdog. */
#ifndef CHECK_H
#define CHECK_H

#include <stddef.h>
#include <stdint.h>

/* Ends the program with a message unless the condition holds. */
#define CHECK(condition) check_that(__FILE__, __LINE__, #condition, (condition) ? 1 : 0)

/* The same for two integers; tells both. */
#define CHECK_EQ(a, b) check_equal(__FILE__, __LINE__, #a, (long long)(a), (long long)(b))

/* The status of a call; tells the library's message if it is another one. */
#define CHECK_STATUS(call, status) check_status(__FILE__, __LINE__, #call, (call), (status))
#define CHECK_OK(call) CHECK_STATUS(call, KVLINK_OK)

/* A failed call whose message (kvlink_last_error) contains all these texts. */
#define CHECK_ERROR(call, status, ...) \
    check_error(__FILE__, __LINE__, #call, (call), (status), (const char *const[]){__VA_ARGS__, NULL})

/* Text within text; tells both. */
#define CHECK_HAS(text, part) check_has(__FILE__, __LINE__, (text), (part))

/* Runs a test. */
#define RUN(name) check_run(#name, name)

void check_that(const char *file, int line, const char *what, int holds);
void check_equal(const char *file, int line, const char *what, long long a, long long b);
void check_status(const char *file, int line, const char *call, int32_t got, int32_t want);
void check_error(const char *file, int line, const char *call, int32_t got, int32_t want, const char *const *texts);
void check_has(const char *file, int line, const char *text, const char *part);
void check_run(const char *name, void (*test)(void));

#endif
