#include "backend.h"

#include "tests.h"

#include <dlfcn.h>

#include <algorithm>

namespace tests {
namespace {

constexpr size_t ALIGNMENT = 64;
constexpr size_t TENSORS   = 64;  // of an operation, at most

// The directory of the libraries, for those that are loaded when the program runs.
std::string library_folder() {
    Dl_info found;
    check(dladdr((void *) ggml_backend_load_all_from_path, &found) != 0, "the library of ggml has no file");
    const std::string file = found.dli_fname;
    return file.substr(0, file.rfind('/'));
}

ggml_backend_reg_t cpu() {
    static const ggml_backend_reg_t found = [] {
        if (ggml_backend_reg_by_name("CPU") == nullptr) {
            ggml_backend_load_all_from_path(library_folder().c_str());
        }
        ggml_backend_reg_t registered = ggml_backend_reg_by_name("CPU");
        check(registered != nullptr, "ggml has no CPU backend");
        return registered;
    }();
    return found;
}

template <class Function> Function registered(const char * name) {
    const auto found = (Function) ggml_backend_reg_get_proc_address(cpu(), name);
    check(found != nullptr, "the CPU backend has no ", name);
    return found;
}

}  // namespace

void * cpu_symbol(const char * name) {
    static void * const library = [] {
        Dl_info found;
        check(dladdr((void *) registered<ggml_backend_set_n_threads_t>("ggml_backend_set_n_threads"), &found) != 0,
              "the library of kernels has no file");
        return dlopen(found.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    }();
    void * const found = library ? dlsym(library, name) : nullptr;
    check(found != nullptr, "the library of kernels has no ", name);
    return found;
}

const char * packed_kernels_in_use() {
    return cpu_function<const char *()>("ggml_afterword_packed_kernels")();
}

ggml_backend_buffer_type_t packed_buffer_type() {
    return cpu_function<ggml_backend_buffer_type_t()>("ggml_afterword_packed_buffer_type")();
}

ggml_backend_t cpu_backend(int threads) {
    static ggml_backend * const backend = ggml_backend_dev_init(ggml_backend_reg_dev_get(cpu(), 0), nullptr);
    registered<ggml_backend_set_n_threads_t>("ggml_backend_set_n_threads")(backend, threads);
    return backend;
}

tensors::tensors() {
    const ggml_init_params params = { TENSORS * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true };
    owner.reset(ggml_init(params));
}

ggml_tensor * tensors::describe(ggml_type type, std::initializer_list<int64_t> shape) const {
    return ggml_new_tensor(context(), type, (int) shape.size(), shape.begin());
}

void tensors::take_memory(ggml_tensor * tensor) {
    const size_t size  = std::max<size_t>(1, ggml_nbytes(tensor));
    void *       place = nullptr;
    check(posix_memalign(&place, ALIGNMENT, size) == 0, "there is no memory for a tensor");
    memory.emplace_back(place, &std::free);
    buffers.emplace_back(ggml_backend_cpu_buffer_from_ptr(place, size));
    check(ggml_backend_tensor_alloc(buffers.back().get(), tensor, place) == GGML_STATUS_SUCCESS, "no place for a tensor");
}

ggml_tensor * tensors::make(ggml_type type, std::initializer_list<int64_t> shape, const void * data) {
    ggml_tensor * tensor = describe(type, shape);
    take_memory(tensor);
    if (data) {
        std::memcpy(tensor->data, data, ggml_nbytes(tensor));
    } else {
        std::memset(tensor->data, 0, ggml_nbytes(tensor));
    }
    return tensor;
}

ggml_tensor * tensors::make(
    ggml_backend_buffer_type_t kind, ggml_type type, std::initializer_list<int64_t> shape, const void * data) {
    ggml_tensor * tensor = describe(type, shape);
    buffers.emplace_back(ggml_backend_buft_alloc_buffer(kind, ggml_backend_buft_get_alloc_size(kind, tensor)));
    ggml_backend_buffer * buffer = buffers.back().get();
    check(ggml_backend_tensor_alloc(buffer, tensor, ggml_backend_buffer_get_base(buffer)) == GGML_STATUS_SUCCESS,
          "no place for a tensor");
    ggml_backend_tensor_set(tensor, data, 0, ggml_nbytes(tensor));
    return tensor;
}

std::vector<float> tensors::compute(ggml_tensor * result, int threads) {
    return compute(result, cpu_backend(threads));
}

ggml_cgraph * tensors::graph_of(ggml_tensor * result) {
    ggml_cgraph * graph = ggml_new_graph(context());
    ggml_build_forward_expand(graph, result);
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        ggml_tensor * node = ggml_graph_node(graph, i);
        if (!node->data && !node->view_src) {
            take_memory(node);
            // What the kernel does not write is no number.
            std::memset(node->data, 0xff, ggml_nbytes(node));
        }
    }
    return graph;
}

std::vector<float> tensors::compute(ggml_tensor * result, ggml_backend_t backend) {
    ggml_cgraph * graph = graph_of(result);
    check(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS, "the graph was not computed");
    const float * values = (const float *) result->data;
    return { values, values + ggml_nelements(result) };
}

std::vector<float> to_floats(ggml_type type, const void * rows, int64_t n) {
    std::vector<float> values(n);
    if (type == GGML_TYPE_F32) {
        std::memcpy(values.data(), rows, n * sizeof(float));
    } else {
        ggml_get_type_traits(type)->to_float(rows, values.data(), n);
    }
    return values;
}

std::vector<uint8_t> from_floats(ggml_type type, const std::vector<float> & values, int64_t row_size) {
    const int64_t        rows = (int64_t) values.size() / row_size;
    std::vector<uint8_t> bytes(rows * ggml_row_size(type, row_size));
    ggml_quantize_chunk(type, values.data(), bytes.data(), 0, rows, row_size, nullptr);
    return bytes;
}

}  // namespace tests
