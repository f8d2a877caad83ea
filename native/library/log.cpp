// What the library says, to listeners in Python.

#include "afterword.h"

extern "C" {

void llama_afterword_log_grave(ggml_log_level level, const char * text, void * listener) {
    if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) {
        ((ggml_log_callback) listener)(level, text, nullptr);
    }
}
}
