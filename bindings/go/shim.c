#include "shim.h"

#include <stdlib.h>

char *go_last_error(void)
{
    char none[1], *text;
    size_t len = 0;
    (void)kvlink_last_error(none, sizeof none, &len);
    text = malloc(len + 1);
    if (text != NULL && kvlink_last_error(text, len + 1, NULL) != KVLINK_OK) {
        free(text);
        text = NULL;
    }
    return text;
}
