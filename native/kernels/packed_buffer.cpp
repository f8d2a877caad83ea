// The kind of memory that holds packed weights, and the operation that multiplies them: an extra buffer type of ggml's
// CPU backend, as ggml's own repacking is one. docs/decisions/0007-packed-weights.md has the reasons.
//
// The weights of 16 rows are kept together, a lane for each row. A lane is one chain of sums over its row, in one
// order, whatever else is in the batch. The weights are put in another order, not changed.

#include "afterword.h"
#include "packed_kernels.h"
#include "packed_memory.h"
#include "packed_products.h"
#include "turns.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "traits.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace afterword {
namespace {

// Calls work(i) for every i below count, on as many processors as pay: packing is most of a large file's load.
template <class Work> void share_out(int64_t count, int64_t bytes, const Work & work) {
    constexpr int64_t BYTES_OF_A_THREAD = 512 * 1024, MOST_THREADS = 8;
    const int64_t processors = std::max<int64_t>(1, std::thread::hardware_concurrency());
    const int64_t threads    = std::min({ processors, MOST_THREADS, bytes / BYTES_OF_A_THREAD, count });
    std::atomic<int64_t> next{ 0 };
    const auto take = [&] {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
            work(i);
        }
    };
    std::vector<std::thread> helpers;
    helpers.reserve(threads);
    try {
        for (int64_t t = 1; t < threads; t++) {
            helpers.emplace_back(take);
        }
    } catch (const std::exception & error) {  // no thread, or no memory for one
        GGML_LOG_DEBUG("weights are packed by %zu threads: %s\n", helpers.size() + 1, error.what());
    }
    take();
    for (std::thread & helper : helpers) {
        helper.join();
    }
}

// What ggml calls for a tensor of packed weights: it is the tensor's `extra`.
class traits : public ggml::cpu::tensor_traits {
  public:
    explicit traits(const packed_kernel & of) : kernel(of) {}

    size_t bytes(const ggml_tensor * tensor) const {
        return ggml_nrows(tensor) / ROWS * kernel.panel_bytes(tensor->ne[0]);
    }

    void pack(const void * file, ggml_tensor * tensor) const {
        const int64_t values = tensor->ne[0];
        const size_t  from   = ROWS * ggml_row_size(tensor->type, values), to = kernel.panel_bytes(values);
        share_out(ggml_nrows(tensor) / ROWS, bytes(tensor), [&](int64_t panel) {
            kernel.pack((const char *) file + panel * from, (uint8_t *) tensor->data + panel * to, values);
        });
    }

    bool work_size(int threads, const ggml_tensor * op, size_t & size) override {
        return with_product(const_cast<ggml_tensor *>(op), [&](const auto & product) {
            size = few_columns(op) ? threads * product.work_bytes(1) : product.work_bytes(threads);
        });
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        return with_product(op, [&](const auto & product) {
            GGML_ASSERT(op->src[1]->nb[0] == sizeof(float) && op->nb[0] == sizeof(float));
            char * work = (char *) params->wdata;
            if (few_columns(op)) {
                work += params->ith * product.work_bytes(1);
                product.prepare(work, 0, 1);
                product.multiply(*params, work);
            } else if (afterword_turns_stage(params->threadpool) == 0) {
                product.prepare(work, params->ith, params->nth);
            } else {
                product.multiply(*params, work);
            }
        });
    }

  private:
    // Returns false if the operation is no product.
    template <class Use> bool with_product(ggml_tensor * op, const Use & use) const {
        switch (op->op) {
            case GGML_OP_MUL_MAT:
                use(matrix_product(kernel, op));
                return true;
            case GGML_OP_MUL_MAT_ID:
                use(expert_product(kernel, op));
                return true;
            default:
                return false;
        }
    }

    const packed_kernel & kernel;
};

// A place for each type of tensor; null if there is no kernel.
std::vector<traits *> make_traits() {
    const packed_kernels & set = packed_kernels_in_use();
    std::vector<traits *>  of_types(GGML_TYPE_COUNT, nullptr);
    for (size_t i = 0; i < set.count; i++) {
        of_types[set.kernels[i].type] = new traits(set.kernels[i]);  // as long as the process
    }
    return of_types;
}

traits * traits_for(const ggml_tensor * tensor) {
    // As long as the process: a thread may still compute while others end it.
    static const auto & of_types = *new std::vector<traits *>(make_traits());
    return ggml_n_dims(tensor) >= 2 && tensor->ne[1] % ROWS == 0 ? of_types[tensor->type] : nullptr;
}

const char * buffer_name(ggml_backend_buffer_type_t) { return "CPU_PACKED"; }

size_t buffer_alignment(ggml_backend_buffer_type_t) { return 64; }

size_t buffer_tensor_bytes(ggml_backend_buffer_type_t, const ggml_tensor * tensor) {
    const traits * found = traits_for(tensor);
    return found ? found->bytes(tensor) : ggml_nbytes(tensor);
}

ggml_status buffer_init_tensor(ggml_backend_buffer_t, ggml_tensor * tensor) {
    tensor->extra = static_cast<ggml::cpu::tensor_traits *>(traits_for(tensor));
    return GGML_STATUS_SUCCESS;
}

void buffer_set_tensor(
    ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    GGML_ASSERT(tensor->extra && offset == 0 && size == ggml_nbytes(tensor));
    auto * found = static_cast<traits *>((ggml::cpu::tensor_traits *) tensor->extra);
    found->pack(data, tensor);
    if (ggml_backend_buffer_get_size(buffer) > LARGE_AT_ONCE) {
        take_large_pages(tensor->data, found->bytes(tensor));
    }
}

ggml_backend_buffer_t buffer_alloc(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (buffer) {
        if (size <= LARGE_AT_ONCE) {
            take_large_pages(ggml_backend_buffer_get_base(buffer), size);
        }
        buffer->buft              = type;
        buffer->iface.init_tensor = buffer_init_tensor;
        buffer->iface.set_tensor  = buffer_set_tensor;
        buffer->iface.get_tensor  = nullptr;
        buffer->iface.cpy_tensor  = nullptr;
    }
    return buffer;
}

class buffer_type : public ggml::cpu::extra_buffer_type {
    static bool holds(const ggml_tensor * op) {
        return (op->op == GGML_OP_MUL_MAT || op->op == GGML_OP_MUL_MAT_ID) && op->src[0]->buffer &&
               op->src[0]->buffer->buft == ggml_afterword_packed_buffer_type();
    }

    bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) override {
        const ggml_tensor * input = op->src[1];
        return holds(op) && traits_for(op->src[0]) && input->type == GGML_TYPE_F32 &&
               (!input->buffer || ggml_backend_buft_is_host(input->buffer->buft));
    }

    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        return holds(op) ? (ggml::cpu::tensor_traits *) op->src[0]->extra : nullptr;
    }
};

}  // namespace
}  // namespace afterword

ggml_backend_buffer_type_t ggml_afterword_packed_buffer_type(void) {
    using namespace afterword;
    static ggml_backend_buffer_type type = {
        /* .iface   = */ { buffer_name, buffer_alloc, buffer_alignment, nullptr, buffer_tensor_bytes, nullptr },
        /* .device  = */ ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0),
        /* .context = */ new buffer_type(),
    };
    return &type;
}

int afterword_packed_stages(const ggml_tensor * op) {
    using namespace afterword;
    const bool packed = op->src[0]->buffer && op->src[0]->buffer->buft == ggml_afterword_packed_buffer_type();
    return packed ? few_columns(op) ? 1 : 2 : 0;
}
