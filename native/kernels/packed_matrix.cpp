// The product of matrices.

#include "packed_products.h"

#include <algorithm>

namespace afterword {
namespace {

// Of a row, counted through all dimensions, in bytes.
size_t offset_of_row(const ggml_tensor * t, int64_t row) {
    const int64_t plane = row / t->ne[1];
    return row % t->ne[1] * t->nb[1] + plane % t->ne[2] * t->nb[2] + plane / t->ne[2] * t->nb[3];
}

// The plane of weights for a plane of columns.
int64_t plane_of_weights(const ggml_tensor * op, int64_t plane) {
    const ggml_tensor *weights = op->src[0], *input = op->src[1];
    const int64_t      second = plane % input->ne[2] / (input->ne[2] / weights->ne[2]);
    const int64_t      third  = plane / input->ne[2] / (input->ne[3] / weights->ne[3]);
    return third * weights->ne[2] + second;
}

}  // namespace

size_t matrix_product::work_bytes(int64_t) const {
    return whole_lines(ggml_nrows(op->src[1]) * kernel.column_bytes(op->src[1]->ne[0]));
}

void matrix_product::prepare(char * work, int64_t ith, int64_t nth) const {
    const ggml_tensor * input        = op->src[1];
    const int64_t       values       = input->ne[0];
    const size_t        column_bytes = kernel.column_bytes(values);
    for (int64_t c = ith; c < ggml_nrows(input); c += nth) {
        const char * column = (const char *) input->data + offset_of_row(input, c);
        kernel.prepare((const float *) column, work + c * column_bytes, values);
    }
}

void matrix_product::multiply(const ggml_compute_params & params, const char * work) const {
    const ggml_tensor * weights      = op->src[0];
    const int64_t       values       = weights->ne[0];
    const int64_t       panels       = weights->ne[1] / ROWS;
    const int64_t       columns      = ggml_nrows(op->src[1]);
    const size_t        panel_bytes  = kernel.panel_bytes(values);
    const size_t        column_bytes = kernel.column_bytes(values);
    int64_t             at           = params.ith;
    int64_t             portion      = 0;
    for (int64_t first = 0, number = 0; first < panels; first += portion, number++) {
        portion = std::min(panels - first, panels_of_portion(panels - first, columns, params.nth));
        if (number < at) {
            continue;
        }
        for (int64_t c = 0; c < columns; c += op->ne[1]) {
            const int64_t   plane  = plane_of_weights(op, c / op->ne[1]);
            const uint8_t * packed = (const uint8_t *) weights->data + (plane * panels + first) * panel_bytes;
            float *         out    = (float *) ((char *) op->data + offset_of_row(op, c)) + first * ROWS;
            kernel.multiply(
                packed, portion, values, work + c * column_bytes, op->ne[1], out, op->nb[1] / sizeof(float));
        }
        at = ggml_threadpool_chunk_add(params.threadpool, 1);
    }
}

}  // namespace afterword
