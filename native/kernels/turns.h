// How the threads of a pool share a graph. turns.cpp has the parts; docs/decisions/0072-threads-take-turns.md the reasons.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_tensor;
struct ggml_threadpool;
struct afterword_turns;

struct afterword_turns * afterword_turns_new(void);
void                     afterword_turns_free(struct afterword_turns * turns);

// Begins a graph. The threads of the last one may still be on their way out. `threads` of
// the pool compute this one, if `reference` is true with ggml's plain kernels.
void afterword_turns_begin(struct afterword_turns * turns, int threads, bool reference);

// Computes with the others until the graph is done. `leads` is true for the one thread that began the graph.
void afterword_turns_take(struct afterword_turns * turns, struct ggml_threadpool * pool, bool leads);

// True if the parts of the operation at hand do not wait for each other. Any thread computes any of them at any time.
bool afterword_turns_apart(const struct afterword_turns * turns);

// The stage of the operation at hand: 0, or 1 where afterword_packed_stages says so.
int afterword_turns_stage(const struct ggml_threadpool * pool);

// Spares the processor for a moment: the `times`-th time that a thread finds nothing to do.
void afterword_turns_pause(int times);

// Of packed_buffer.cpp: in how many stages a product is computed; 0 if its weights are not packed.
int afterword_packed_stages(const struct ggml_tensor * op);

// Of attention.cpp: in how many stages it is computed; 2 where threads share the context of a row. The last has one seat.
int afterword_attention_stages(const struct ggml_tensor * op, int threads);

// Of attention.cpp: bytes of scratch memory that it needs.
size_t afterword_attention_bytes(const struct ggml_tensor * op, int threads);

// What ggml-cpu.c does for them.

// Returns the first tensor from `*node` on that is computed, and puts its number there; null in the end.
struct ggml_tensor * afterword_pool_node(struct ggml_threadpool * pool, int * node);

// Computes part `ith` of `nth` of a node. Returns how many nodes behind it were computed with it.
int afterword_pool_compute(struct ggml_threadpool * pool, int node, int ith, int nth);

// The next chunk that ggml_threadpool_chunk_add returns.
void afterword_pool_chunk(struct ggml_threadpool * pool, int next);

const struct afterword_turns * afterword_pool_turns(const struct ggml_threadpool * pool);

#ifdef __cplusplus
}
#endif
