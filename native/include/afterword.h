// Every symbol of ours that Python calls. src/afterword/engine/llama/native.py declares the same for ctypes, and a test
// holds the two to each other.
//
// No exception leaves a call. Calls that can fail return a code, one of AFTERWORD_*, and llama_afterword_message() says in
// a line what was wrong; then they leave their results as they were. The others cannot fail. Pointers are the caller's,
// and are read or written during the call only, unless a call says otherwise. Calls are as safe between threads as the
// calls of llama.h that they stand for.
#pragma once

#include "ggml-backend.h"
#include "llama.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    AFTERWORD_OK          = 0,
    AFTERWORD_FAILED      = 1,
    AFTERWORD_UNSPELLABLE = 2, // a text has characters that the vocabulary has no tokens for
};

// Bits of the kind of a token.
enum {
    AFTERWORD_CONTROL      = 1,
    AFTERWORD_END          = 2, // ends a generation
    AFTERWORD_USER_DEFINED = 4, // text is cut at it before anything else
};

// Cells of a block of keys and values.
enum {
    AFTERWORD_BLOCK_CELLS = 64,
};

// --- What this library is ---------------------------------------------------------------------------------------------

// The digest of native/ by which the library was made. Static.
LLAMA_API const char * llama_afterword_changes(void);

// What was wrong with the last call of this thread that did not return 0. Valid until the next such call.
LLAMA_API const char * llama_afterword_message(void);

// The kind of memory for weights in panels. Static.
GGML_BACKEND_API ggml_backend_buffer_type_t ggml_afterword_packed_buffer_type(void);

// The kernels that multiply packed weights: "amx", "avx512", "avx2" or "portable". Static.
GGML_BACKEND_API const char * ggml_afterword_packed_kernels(void);

// --- What the library says --------------------------------------------------------------------------------------------

// A callback for llama_log_set. It passes on warnings and errors alone to listener, a ggml_log_callback, as a listener in
// Python has to wait for the interpreter at each line, and a load says more than a thousand.
LLAMA_API void llama_afterword_log_grave(enum ggml_log_level level, const char * text, void * listener);

// Before the library ends the process, it calls listener with the reason. The listener must stay valid; NULL for none.
// With a listener, the guarded calls that load a model and make a context fail instead, with the reason as their message.
// They fail, too, if the library crashes on what a file says.
LLAMA_API void llama_afterword_on_abort(ggml_abort_callback_t listener);

// --- Threads and rows -------------------------------------------------------------------------------------------------

// Makes a pool of threads. An idle thread looks for work longer with a higher poll (0 to 100) before it sleeps. The caller
// owns the pool, which must outlive the contexts that use it; no call frees it.
GGML_BACKEND_API ggml_threadpool_t ggml_afterword_thread_pool(int32_t threads, uint32_t poll);

// A context computes with the pool's threads from now on, batches of any size.
LLAMA_API void llama_afterword_attach_thread_pool(struct llama_context * context, ggml_threadpool_t pool);

// Writes exp(row[i] - largest) for size numbers, and returns their sum. out may be row.
GGML_BACKEND_API double ggml_afterword_exponentials(int32_t size, float * out, const float * row, float largest);

// --- Drawing and scoring ----------------------------------------------------------------------------------------------

// What became of a row.
enum {
    AFTERWORD_ROW_DONE    = 0,
    AFTERWORD_ROW_BROKEN  = 1, // its logits have NaN or plus infinity, or are all minus infinity
    AFTERWORD_ROW_NOTHING = 2, // no token is left to draw
};

// A row of logits, what to do with it, and the results. Parameters are those of SamplingParams in Python, where a
// temperature of 0 takes the highest logit.
struct afterword_row {
    const float * logits;     // as the model computed them
    const float * changed;    // what is drawn from: logits with bias, penalties and bans; NULL for those above
    double  uniform, second;  // in [0, 1): for the draw, and for whether XTC excludes
    double  temperature, top_p, min_p, typical_p, xtc_probability, xtc_threshold;
    int32_t top_k;
    int32_t top;              // how many of the highest logits are wanted; -1: no score
    int32_t ranked;           // 1: the rank of the token is wanted
    int32_t token;            // to be scored; -1: one is drawn, and its id put here
    int32_t rank;             // result: how many logits are at least that of the token
    int32_t state;            // result: AFTERWORD_ROW_*; unless DONE, there is no other
    double  normaliser;       // result: log(sum(exp(logits)))
    double  logprob;          // result: of the token
    int64_t * top_ids;        // result: highest first, on a tie the lowest id first; fewer than asked for if the
    double  * top_logprobs;   // vocabulary is smaller
};

// How many bytes of memory a thread needs to draw from rows of so many logits.
GGML_BACKEND_API int64_t ggml_afterword_draw_room(int32_t vocabulary);

// Answers rows, each as if it were alone, with up to so many threads of a pool that computes nothing else meanwhile. rooms
// has memory for each thread, and its address is a multiple of 64. pool may be NULL: the calling thread then does it all.
GGML_BACKEND_API void ggml_afterword_draw(
    ggml_threadpool_t pool, int32_t threads, int32_t vocabulary, struct afterword_row * rows, int32_t count, void * rooms);

// --- Models and their vocabulary --------------------------------------------------------------------------------------

// Contexts of the model that are made from now on have a sliding window of so many tokens. Returns the one before; 0 for
// none.
LLAMA_API uint32_t llama_afterword_window(struct llama_model * model, uint32_t tokens);

// The bytes of every token, one after another, special tokens by their names; of each token its length in bytes, and its
// kind (bits). Returns how many bytes there are, and writes bytes only as far as whole tokens fit into room.
LLAMA_API int64_t llama_afterword_pieces(
    const struct llama_vocab * vocab, char * bytes, int64_t room, int32_t * lengths, uint8_t * kinds);

// --- Contexts and their memory ----------------------------------------------------------------------------------------

// Writes four numbers of bytes that a context takes once all of it is used: of its memory (keys, values, states), of its
// compute buffers, of weights in memory of their own, and of weights that are mapped from the file.
LLAMA_API int32_t llama_afterword_memory(const struct llama_context * context, uint64_t * sizes);

// Whether a batch is computed at once if its sequences have unequal numbers of tokens.
LLAMA_API bool llama_afterword_ragged(llama_memory_t memory);

// The next context that this thread makes has one pool of n_cells cells for all of its sequences, in blocks, if the model's
// memory is cells of keys and values alone; else each sequence has a stream, as without this call. n_cells is a multiple
// of AFTERWORD_BLOCK_CELLS, and not less than what one sequence may have.
LLAMA_API void llama_afterword_want_blocks(uint32_t n_cells);

// Whether a context got a pool of blocks. The caller then gives blocks to sequences, and no sequence has any of its own.
LLAMA_API bool llama_afterword_has_blocks(llama_memory_t memory);

// Sequences 0 to n_sequences - 1 have these tables of blocks, and so many tokens. A table has a block for each
// AFTERWORD_BLOCK_CELLS tokens that the sequence has or gets in the next batch. It is read until the batch is computed.
LLAMA_API void llama_afterword_bind(
    llama_memory_t memory, int32_t n_sequences, const int32_t * const * tables, const int32_t * lengths);

// Copies the first n_cells cells of a block to another block.
LLAMA_API void llama_afterword_copy_cells(llama_memory_t memory, int32_t from, int32_t to, int32_t n_cells);

// Makes an empty sequence the first n_pos positions of another one. The result is false if that is not possible.
LLAMA_API int32_t llama_afterword_fork(
    llama_memory_t memory, llama_seq_id from, llama_seq_id to, llama_pos n_pos, bool * result);

// --- Calls of llama.h, guarded ----------------------------------------------------------------------------------------
// Each takes what the function of its name takes, and where to leave what that returns.

// This one adds no special tokens around the text; text that continues other text gets no space in front that nobody
// wrote. The result is the number of ids, negative if there is no room for so many.
LLAMA_API int32_t llama_afterword_guarded_tokenize(
    const struct llama_vocab * vocab, const char * text, int32_t size, llama_token * ids, int32_t room, bool continues,
    bool parse_special, int32_t * result);

LLAMA_API int32_t llama_afterword_guarded_model_load_from_file(
    const char * path, struct llama_model_params params, struct llama_model ** result);

LLAMA_API int32_t llama_afterword_guarded_model_quantize(
    const char * from, const char * to, const struct llama_model_quantize_params * params, uint32_t * result);

LLAMA_API int32_t llama_afterword_guarded_init_from_model(
    struct llama_model * model, struct llama_context_params params, struct llama_context ** result);

LLAMA_API int32_t llama_afterword_guarded_decode(
    struct llama_context * context, struct llama_batch batch, int32_t * result);

// The rows are the context's, until its next batch.
LLAMA_API int32_t llama_afterword_guarded_get_logits(struct llama_context * context, float ** result);

LLAMA_API int32_t llama_afterword_guarded_memory_seq_rm(
    llama_memory_t memory, llama_seq_id sequence, llama_pos begin, llama_pos end, bool * result);

// Flag 1 << 16: the state has the cells behind a sliding window, too.
LLAMA_API int32_t llama_afterword_guarded_state_seq_get_size_ext(
    struct llama_context * context, llama_seq_id sequence, llama_state_seq_flags flags, size_t * result);

LLAMA_API int32_t llama_afterword_guarded_state_seq_get_data_ext(
    struct llama_context * context, uint8_t * to, size_t size, llama_seq_id sequence, llama_state_seq_flags flags,
    size_t * result);

LLAMA_API int32_t llama_afterword_guarded_state_seq_set_data_ext(
    struct llama_context * context, const uint8_t * from, size_t size, llama_seq_id sequence,
    llama_state_seq_flags flags, size_t * result);

#ifdef __cplusplus
}
#endif
