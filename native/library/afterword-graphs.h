#pragma once

#include "ggml-cpp.h"
#include "llama-graph.h"

#include <array>
#include <cstdint>

// A graph of one size of batch that a context keeps, with a scheduler of its own. 0 is the size of all larger batches.
struct afterword_graph {
    uint32_t n_tokens;
    ggml_backend_sched_ptr sched;
    std::array<llm_graph_result_ptr, 2> prev;
    llm_graph_result * active;
};
