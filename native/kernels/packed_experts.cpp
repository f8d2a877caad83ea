// The product of a mixture of experts.

#include "packed_products.h"

#include <algorithm>
#include <cstring>

namespace afterword {
namespace {

// Columns that are multiplied before their products are put where they belong: all kernels take some of them at once.
// Few columns have many panels in one product, which asks for its panels before it needs them.
constexpr int64_t COLUMNS = 192;

}  // namespace

size_t expert_product::work_bytes(int64_t parts) const {
    return bytes_of_columns() + bytes_of_uses() + (1 + parts) * bytes_of_begins();
}

template <class Byte> expert_product::parts<Byte> expert_product::parts_of(Byte * work) const {
    Byte * const uses   = work + bytes_of_columns();
    Byte * const begins = uses + bytes_of_uses();
    return { work, uses, begins, begins + bytes_of_begins() };
}

int32_t expert_product::expert_of(int64_t number, int64_t token) const {
    const ggml_tensor * ids    = op->src[2];
    const int32_t       expert = *(const int32_t *) ((char *) ids->data + number * ids->nb[0] + token * ids->nb[1]);
    GGML_ASSERT(expert >= 0 && expert < n_experts());
    return expert;
}

// Tokens are divided. To know where their columns belong, each part counts all of them, which is little work.
void expert_product::prepare(char * work, int64_t ith, int64_t nth) const {
    const ggml_tensor * input        = op->src[1];
    const int64_t       used         = op->src[2]->ne[0];
    const int64_t       tokens       = op->src[2]->ne[1];
    const int64_t       values       = input->ne[0];
    const size_t        column_bytes = kernel.column_bytes(values);
    const parts<char>   to           = parts_of(work);

    auto * const next = (int32_t *) (to.next + ith * bytes_of_begins());
    std::fill_n(next, n_experts() + 1, 0);
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t i = 0; i < used; i++) {
            next[expert_of(i, t) + 1]++;
        }
    }
    for (int64_t e = 0; e < n_experts(); e++) {
        next[e + 1] += next[e];
    }
    if (ith == 0) {
        std::copy_n(next, n_experts() + 1, (int32_t *) to.begins);
    }
    for (int64_t t = 0; t < tokens; t++) {
        const char * first = nullptr;  // prepared
        for (int64_t i = 0; i < used; i++) {
            const int32_t at = next[expert_of(i, t)]++;
            if (t % nth != ith) {
                continue;
            }
            char * column          = to.columns + at * column_bytes;
            ((use *) to.uses)[at] = { (int32_t) i, (int32_t) t };
            if (first && input->ne[1] == 1) {
                std::memcpy(column, first, column_bytes);
            } else {
                const char * from = (const char *) input->data + i % input->ne[1] * input->nb[1] + t * input->nb[2];
                kernel.prepare((const float *) from, column, values);
                first = column;
            }
        }
    }
}

// A portion is a share of the panels times columns that are left, within one expert.
void expert_product::multiply(const ggml_compute_params & params, const char * work) const {
    const int64_t           panels = op->src[0]->ne[1] / ROWS;
    const parts<const char> from   = parts_of(work);
    const auto *            begins = (const int32_t *) from.begins;
    const size_t            column_bytes = kernel.column_bytes(op->src[1]->ne[0]);

    int64_t at = params.ith, number = 0;  // of a portion
    int64_t left = n_uses() * panels;     // panels times columns
    for (int64_t e = 0; e < n_experts(); e++) {
        const int64_t count = begins[e + 1] - begins[e];
        if (count == 0) {
            continue;
        }
        int64_t portion = 0;
        for (int64_t first = 0; first < panels; first += portion, left -= portion * count, number++) {
            portion = std::min(panels - first, panels_of_portion(left / count, count, params.nth));
            if (number < at) {
                continue;
            }
            multiply_panels(
                e, first, portion, from.columns + begins[e] * column_bytes, (const use *) from.uses + begins[e],
                count);
            at = ggml_threadpool_chunk_add(params.threadpool, 1);
        }
    }
}

void expert_product::multiply_panels(
    int64_t expert, int64_t first, int64_t panels, const char * columns, const use * uses, int64_t count) const {
    const ggml_tensor * weights      = op->src[0];
    const int64_t       values       = weights->ne[0];
    const size_t        panel_bytes  = kernel.panel_bytes(values);
    const size_t        column_bytes = kernel.column_bytes(values);
    const auto *        packed = (const uint8_t *) weights->data + expert * (weights->ne[1] / ROWS) * panel_bytes;

    for (int64_t c = 0; c < count; c += COLUMNS) {
        const int64_t some = std::min(COLUMNS, count - c);
        const int64_t most = COLUMNS / some;  // panels for which there is room
        for (int64_t p = first; p < first + panels; p += most) {
            const int64_t together = std::min(most, first + panels - p);
            float         products[COLUMNS * ROWS];
            kernel.multiply(
                packed + p * panel_bytes, together, values, columns + c * column_bytes, some, products,
                together * ROWS);
            for (int64_t i = 0; i < some; i++) {
                const use & to  = uses[c + i];
                char *      out = (char *) op->data + to.number * op->nb[1] + to.token * op->nb[2];
                std::memcpy(
                    (float *) out + p * ROWS, products + i * together * ROWS, together * ROWS * sizeof(float));
            }
        }
    }
}

}  // namespace afterword
