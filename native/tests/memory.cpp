// Memory of packed weights.

#include "packed_memory.h"

#include "backend.h"
#include "tests.h"

namespace tests {
namespace {

void large_pages_keep_contents() {
    constexpr size_t     LARGE = 2 * 1024 * 1024;
    std::vector<uint8_t> memory(3 * LARGE + 5);
    random_numbers       random(1);
    for (size_t i = 0; i < memory.size(); i += 997) {
        memory[i] = (uint8_t) random.bits();
    }
    const std::vector<uint8_t> before = memory;
    for (const size_t offset : { (size_t) 0, (size_t) 1, (size_t) 4096, LARGE - 1, LARGE }) {
        for (const size_t bytes : { (size_t) 0, (size_t) 1, (size_t) 4095, LARGE, memory.size() - offset - LARGE, memory.size() - offset }) {
            afterword::take_large_pages(memory.data() + offset, bytes);
        }
    }
    check(memory == before, "contents changed");
    afterword::take_large_pages(nullptr, 0);
}

void sizes_of_packed_tensors() {
    const auto packed = packed_buffer_type();
    check(std::string(ggml_backend_buft_name(packed)) == "CPU_PACKED", "its name is ", ggml_backend_buft_name(packed));
    for (const ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1,
                                  GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K,
                                  GGML_TYPE_Q6_K, GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS,
                                  GGML_TYPE_MXFP4, GGML_TYPE_IQ2_S }) {
        for (const int64_t rows : { 1, 15, 16, 17, 160 }) {
            const ggml_init_params params = { 2 * ggml_tensor_overhead(), nullptr, true };
            const std::unique_ptr<ggml_context, free_context> context(ggml_init(params));
            const ggml_tensor * tensor = ggml_new_tensor_2d(context.get(), type, 512, rows);
            const size_t        bytes  = ggml_backend_buft_get_alloc_size(packed, tensor);
            // Weights that are not packed take what they take in a file, and packed ones hardly more. Portable kernels
            // keep values of a table as bytes, or in five bits.
            const bool   of_table = type == GGML_TYPE_IQ4_NL || type == GGML_TYPE_IQ4_XS || type == GGML_TYPE_MXFP4;
            const size_t eighths  = of_table && std::string(packed_kernels_in_use()) == "portable" ? 16 : 9;
            check(bytes >= ggml_nbytes(tensor) && bytes <= ggml_nbytes(tensor) * eighths / 8, ggml_type_name(type),
                  ", ", rows, " rows: ", bytes, " bytes for ", ggml_nbytes(tensor));
        }
    }
}

}  // namespace

void add_memory(test_cases & cases) {
    cases.push_back({ "memory/large pages keep what is in them", large_pages_keep_contents });
    cases.push_back({ "memory/sizes of packed tensors", sizes_of_packed_tensors });
}

}  // namespace tests
