// The calls that Python makes and that can throw: an exception must not leave a function of C. Each gives a code of
// afterword-guard.h, and where that is not 0, llama_afterword_message() says in a line what was wrong.

#include "afterword-guard.h"

#include "llama.h"

#include <cstdio>

static thread_local char afterword_message[256];

int32_t afterword_failed(int32_t code, const char * what) {
    snprintf(afterword_message, sizeof(afterword_message), "%s", what);
    return code;
}

extern "C" {

// In llama-vocab.cpp.
int32_t llama_afterword_encode(
    const llama_vocab * vocab, const char * text, int32_t size, llama_token * ids, int32_t room, bool parse_special,
    bool continues);

// What was wrong with the last call of this thread that did not give 0.
LLAMA_API const char * llama_afterword_message() {
    return afterword_message;
}

// Each takes what the function of its name takes, and where to leave the result.

// Adds no special tokens around the text. Text that continues other text gets no space in front that nobody wrote.
LLAMA_API int32_t llama_afterword_guarded_tokenize(
    const llama_vocab * vocab, const char * text, int32_t size, llama_token * ids, int32_t room, bool continues,
    bool parse_special, int32_t * result) {
    return afterword_guarded(
        result, [&] { return llama_afterword_encode(vocab, text, size, ids, room, parse_special, continues); });
}

LLAMA_API int32_t llama_afterword_guarded_model_load_from_file(
    const char * path, llama_model_params params, llama_model ** result) {
    return afterword_guarded(result, [&] { return llama_model_load_from_file(path, params); });
}

LLAMA_API int32_t llama_afterword_guarded_init_from_model(
    llama_model * model, llama_context_params params, llama_context ** result) {
    return afterword_guarded(result, [&] { return llama_init_from_model(model, params); });
}

LLAMA_API int32_t llama_afterword_guarded_model_quantize(
    const char * from, const char * to, const llama_model_quantize_params * params, uint32_t * result) {
    return afterword_guarded(result, [&] { return llama_model_quantize(from, to, params); });
}

LLAMA_API int32_t llama_afterword_guarded_decode(llama_context * context, llama_batch batch, int32_t * result) {
    return afterword_guarded(result, [&] { return llama_decode(context, batch); });
}

LLAMA_API int32_t llama_afterword_guarded_get_logits(llama_context * context, float ** result) {
    return afterword_guarded(result, [&] { return llama_get_logits(context); });
}

LLAMA_API int32_t llama_afterword_guarded_memory_seq_rm(
    llama_memory_t memory, llama_seq_id sequence, llama_pos begin, llama_pos end, bool * result) {
    return afterword_guarded(result, [&] { return llama_memory_seq_rm(memory, sequence, begin, end); });
}

LLAMA_API int32_t llama_afterword_guarded_state_seq_get_size_ext(
    llama_context * context, llama_seq_id sequence, llama_state_seq_flags flags, size_t * result) {
    return afterword_guarded(result, [&] { return llama_state_seq_get_size_ext(context, sequence, flags); });
}

LLAMA_API int32_t llama_afterword_guarded_state_seq_get_data_ext(
    llama_context * context, uint8_t * to, size_t size, llama_seq_id sequence, llama_state_seq_flags flags,
    size_t * result) {
    return afterword_guarded(
        result, [&] { return llama_state_seq_get_data_ext(context, to, size, sequence, flags); });
}

LLAMA_API int32_t llama_afterword_guarded_state_seq_set_data_ext(
    llama_context * context, const uint8_t * from, size_t size, llama_seq_id sequence, llama_state_seq_flags flags,
    size_t * result) {
    return afterword_guarded(
        result, [&] { return llama_state_seq_set_data_ext(context, from, size, sequence, flags); });
}
}
