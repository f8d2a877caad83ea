// Pools of threads.

#include "afterword.h"
#include "ggml-cpu.h"

extern "C" ggml_threadpool_t ggml_afterword_thread_pool(int32_t threads, uint32_t poll) {
    ggml_threadpool_params params = ggml_threadpool_params_default(threads);
    params.poll = poll;
    return ggml_threadpool_new(&params);
}
