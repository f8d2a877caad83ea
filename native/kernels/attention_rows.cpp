// Attention of one row at a time, for K and V of any type.
//
// The arithmetic is that of ggml_compute_forward_flash_attn_ext_f16_one_chunk in ggml/src/ggml-cpu/ops.cpp of llama.cpp
// (Copyright (c) 2023-2026 The ggml authors, MIT licence), for all cells at once and for batches of several streams.

#include "attention_lanes.h"
#include "attention_op.h"
#include "vec.h"

namespace afterword {
namespace {

// Sums of values, each with the weight exp(score - largest score so far). The sums are halves where V has halves.
class weighted_sums {
public:
    weighted_sums(const ggml_tensor * v, int64_t size, float * scratch)
        : type(v->type), to_float(ggml_get_type_traits(v->type)->to_float), size(size), sums(scratch),
          half_sums((ggml_fp16_t *) (scratch + size)), value_buffer(scratch + size) {
        GGML_ASSERT((type == GGML_TYPE_F32 || to_float) && "attention: unsupported type of V");
        if (type == GGML_TYPE_F16) {
            std::memset(half_sums, 0, size * sizeof(ggml_fp16_t));
        } else {
            std::memset(sums, 0, size * sizeof(float));
        }
    }

    void add(float score, const char * values) {
        float       shrink;
        const float weight = weigh(score, shrink);
        total              = multiply_add(total, shrink, weight);
        if (type == GGML_TYPE_F16) {
            ggml_vec_mad_f16(size, half_sums, (const ggml_fp16_t *) values, weight);
        } else if (to_float) {
            to_float(values, value_buffer, size);
            ggml_vec_mad_f32(size, sums, value_buffer, weight);
        } else {
            ggml_vec_mad_f32(size, sums, (const float *) values, weight);
        }
    }

    // A sink has a weight and no values. Called after the last cell.
    void add_sink(float score) {
        become_floats();
        float       shrink;
        const float weight = weigh(score, shrink);
        total              = multiply_then_add(total, shrink, weight);
    }

    const float * finish() {
        become_floats();
        ggml_vec_scale_f32(size, sums, total == 0.0f ? 0.0f : 1.0f / total);
        return sums;
    }

private:
    // Returns the weight of a score. Where it is the largest so far, the sums shrink, and the total is to.
    float weigh(float score, float & shrink) {
        shrink = 1.0f;
        if (!(score > largest)) {
            return expf(score - largest);
        }
        shrink  = expf(largest - score);
        largest = score;
        if (type == GGML_TYPE_F16 && !floats) {
            ggml_vec_scale_f16(size, half_sums, shrink);
        } else {
            ggml_vec_scale_f32(size, sums, shrink);
        }
        return 1.0f;
    }

    void become_floats() {
        if (type == GGML_TYPE_F16 && !floats) {
            for (int64_t i = 0; i < size; i++) {
                sums[i] = GGML_CPU_FP16_TO_FP32(half_sums[i]);
            }
        }
        floats = true;
    }

    const ggml_type       type;
    const ggml_to_float_t to_float;
    const int64_t         size;
    float *               sums;
    ggml_fp16_t *         half_sums;     // where type is F16
    float *               value_buffer;  // where it is not
    float                 total   = 0.0f;
    float                 largest = -INFINITY;
    bool                  floats  = false;
};

}  // namespace

void attention_by_rows(const attention_op & op, int64_t begin, int64_t end, float * scratch) {
    const ggml_vec_dot_t    dot        = ggml_get_type_traits_cpu(op.k->type)->vec_dot;
    const ggml_type         query_type = ggml_get_type_traits_cpu(op.k->type)->vec_dot_type;
    const ggml_from_float_t to_query   = ggml_get_type_traits_cpu(query_type)->from_float;
    GGML_ASSERT(to_query && "attention: unsupported type of K");

    void * query = scratch + 2 * op.value_size;

    for (int64_t i = begin; i < end; i++) {
        const int64_t batch = i / (op.n_heads * op.n_rows);
        const int64_t head  = i / op.n_rows % op.n_heads;
        const int64_t row   = i % op.n_rows;

        const float         slope  = op.slope(head);
        const ggml_fp16_t * mask   = op.mask_of(row, head, batch);
        const int32_t *     table  = op.table(row);
        const char *        keys   = op.keys(row, head, batch);
        const char *        values = op.values(row, head, batch);

        weighted_sums sums(op.v, op.value_size, scratch);
        to_query(op.query(row, head, batch), query, op.key_size);

        for (int64_t cell = 0; cell < op.n_cells; cell++) {
            const float bias = mask ? slope * GGML_CPU_FP16_TO_FP32(mask[cell]) : 0.0f;
            if (bias == -INFINITY) {
                continue;
            }
            float score;
            dot(op.key_size, &score, 0, keys + op.place(table, cell) * op.k->nb[1], 0, query, 0, 1);
            score = score * op.scale;
            if (op.softcap != 0.0f) {
                score = op.softcap * tanhf(score);
            }
            sums.add(score + bias, values + op.place(table, cell) * op.v->nb[1]);
        }
        if (op.sinks) {
            sums.add_sink(op.sink(head));
        }
        op.write(row, head, batch, sums.finish());
    }
}

}  // namespace afterword
