// The thread pool that computes for a context.

#include "afterword.h"

extern "C" void llama_afterword_attach_thread_pool(llama_context * context, ggml_threadpool_t pool) {
    llama_attach_threadpool(context, pool, pool);
}
