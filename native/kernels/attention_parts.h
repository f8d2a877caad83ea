// A part: the soft-max of a row over some of its cells. It is the sums of values [value_size], then the total of weights,
// then the largest score.
#pragma once

#include "attention_op.h"

namespace afterword {

inline int64_t part_floats(const attention_op & op) { return op.value_size + 2; }

// Adds what the row sees of the next cells. Cells of which it sees nothing change no bit.
void merge(float * part, const float * next, int64_t value_size);

// Adds the sink of a head, which has a weight and no values.
void add_sink(const attention_op & op, int head, float * part);

}  // namespace afterword
