#include "attention_parts.h"

#include "attention_lanes.h"
#include "vec.h"

namespace afterword {

void merge(float * part, const float * next, int64_t size) {
    float &     total   = part[size];
    float &     largest = part[size + 1];
    const float more    = next[size];
    const float most    = next[size + 1];
    if (more == 0.0f) {
        return;
    }
    if (total == 0.0f) {
        std::memcpy(part, next, (size + 2) * sizeof(float));
        return;
    }
    const float now    = fmaxf(largest, most);
    const float shrink = expf(largest - now);
    const float weight = expf(most - now);
    ggml_vec_scale_f32(size, part, shrink);
    ggml_vec_mad_f32(size, part, next, weight);
    total   = multiply_add(more, weight, total * shrink);
    largest = now;
}

void add_sink(const attention_op & op, int head, float * part) {
    float &     total   = part[op.value_size];
    const float largest = part[op.value_size + 1];
    const float score   = op.sink(head);
    float       shrink  = 1.0f;
    float       weight  = 1.0f;
    if (score > largest) {
        shrink = expf(largest - score);
        ggml_vec_scale_f32(op.value_size, part, shrink);
    } else {
        weight = expf(score - largest);
    }
    total = multiply_add(total, shrink, weight);
}

}  // namespace afterword
