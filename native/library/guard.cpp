// The guarded calls of llama.h.

#include "afterword-guard.h"
#include "afterword.h"

extern "C" {

int32_t llama_afterword_guarded_model_load_from_file(
    const char * path, llama_model_params params, llama_model ** result) {
    return afterword_guarded_load([&] { *result = llama_model_load_from_file(path, params); });
}

int32_t llama_afterword_guarded_init_from_model(
    llama_model * model, llama_context_params params, llama_context ** result) {
    return afterword_guarded_load([&] { *result = llama_init_from_model(model, params); });
}

int32_t llama_afterword_guarded_model_quantize(
    const char * from, const char * to, const llama_model_quantize_params * params, uint32_t * result) {
    return afterword_guarded(result, [&] { return llama_model_quantize(from, to, params); });
}

int32_t llama_afterword_guarded_decode(llama_context * context, llama_batch batch, int32_t * result) {
    return afterword_guarded(result, [&] { return llama_decode(context, batch); });
}

int32_t llama_afterword_guarded_get_logits(llama_context * context, float ** result) {
    return afterword_guarded(result, [&] { return llama_get_logits(context); });
}

int32_t llama_afterword_guarded_memory_seq_rm(
    llama_memory_t memory, llama_seq_id sequence, llama_pos begin, llama_pos end, bool * result) {
    return afterword_guarded(result, [&] { return llama_memory_seq_rm(memory, sequence, begin, end); });
}

int32_t llama_afterword_guarded_state_seq_get_size_ext(
    llama_context * context, llama_seq_id sequence, llama_state_seq_flags flags, size_t * result) {
    return afterword_guarded(result, [&] { return llama_state_seq_get_size_ext(context, sequence, flags); });
}

int32_t llama_afterword_guarded_state_seq_get_data_ext(
    llama_context * context, uint8_t * to, size_t size, llama_seq_id sequence, llama_state_seq_flags flags,
    size_t * result) {
    return afterword_guarded(
        result, [&] { return llama_state_seq_get_data_ext(context, to, size, sequence, flags); });
}

int32_t llama_afterword_guarded_state_seq_set_data_ext(
    llama_context * context, const uint8_t * from, size_t size, llama_seq_id sequence, llama_state_seq_flags flags,
    size_t * result) {
    return afterword_guarded(
        result, [&] { return llama_state_seq_set_data_ext(context, from, size, sequence, flags); });
}
}
