// The message of the last guarded call that failed.

#include "afterword-guard.h"
#include "afterword.h"

#include <cstdio>

static thread_local char afterword_message[256];

int32_t afterword_failed(int32_t code, const char * what) {
    snprintf(afterword_message, sizeof(afterword_message), "%s", what);
    return code;
}

extern "C" const char * llama_afterword_message(void) {
    return afterword_message;
}
