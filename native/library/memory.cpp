// What a context takes in memory.

#include "afterword-guard.h"
#include "afterword.h"
#include "llama-context.h"
#include "llama-model.h"

#include <cstring>

extern "C" int32_t llama_afterword_memory(const llama_context * context, uint64_t * sizes) {
    return afterword_guarded([&] {
        uint64_t states = 0, compute = 0, own = 0, mapped = 0;
        for (const auto & [type, size] : context->memory_breakdown()) {
            states  += size.context;
            compute += size.compute;
        }
        for (const auto & [name, tensor] : context->get_model().tensors_by_name) {
            if (tensor->buffer) {
                const bool is_mapped = strstr(ggml_backend_buffer_name(tensor->buffer), "Mapped");
                (is_mapped ? mapped : own) += ggml_backend_buffer_get_alloc_size(tensor->buffer, tensor);
            }
        }
        sizes[0] = states;
        sizes[1] = compute;
        sizes[2] = own;
        sizes[3] = mapped;
    });
}
