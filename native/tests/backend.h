// ggml's CPU backend, for one operation at a time.
#pragma once

#include "ggml-backend.h"
#include "ggml.h"

#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <vector>

namespace tests {

// A function of the library of kernels. It need not be linked: ggml may have chosen it among libraries for several
// processors.
void * cpu_symbol(const char * name);

template <class Function> Function * cpu_function(const char * name) {
    return (Function *) cpu_symbol(name);
}

// "amx", "avx512", "avx2" or "portable".
const char * packed_kernels_in_use();

ggml_backend_buffer_type_t packed_buffer_type();

// The CPU backend of the process, with so many threads of its own for each graph.
ggml_backend_t cpu_backend(int threads);

struct free_context {
    void operator()(ggml_context * context) const { ggml_free(context); }
};

struct free_buffer {
    void operator()(ggml_backend_buffer * buffer) const { ggml_backend_buffer_free(buffer); }
};

// Tensors of one operation. Each has memory of exactly its size, so that a sanitizer sees what is read behind its end.
class tensors {
public:
    tensors();

    ggml_context * context() const { return owner.get(); }

    // A tensor with the given data, or with zeros.
    ggml_tensor * make(ggml_type type, std::initializer_list<int64_t> shape, const void * data = nullptr);

    // The same in another kind of memory, which may have a form of its own for the data.
    ggml_tensor * make(
        ggml_backend_buffer_type_t kind, ggml_type type, std::initializer_list<int64_t> shape, const void * data);

    // The graph of a result, with memory for all that it computes.
    ggml_cgraph * graph_of(ggml_tensor * result);

    // Computes a result, whose memory is made here.
    std::vector<float> compute(ggml_tensor * result, int threads);
    std::vector<float> compute(ggml_tensor * result, ggml_backend_t backend);

private:
    ggml_tensor * describe(ggml_type type, std::initializer_list<int64_t> shape) const;
    void          take_memory(ggml_tensor * tensor);

    std::unique_ptr<ggml_context, free_context>                   owner;
    std::vector<std::unique_ptr<void, decltype(&std::free)>>      memory;
    std::vector<std::unique_ptr<ggml_backend_buffer, free_buffer>> buffers;
};

// The values of rows in a format of files.
std::vector<float> to_floats(ggml_type type, const void * rows, int64_t n);

// Rows in a format of files.
std::vector<uint8_t> from_floats(ggml_type type, const std::vector<float> & values, int64_t row_size);

}  // namespace tests
