// One row of logits: what is drawn from it, its scores and its top entries. The arithmetic is that of
// src/afterword/engine/sampler.py, in the order in which numpy computes it, so the results are the same, bit for bit. The
// files are compiled without joining products and sums.
#pragma once

#include "afterword.h"
#include "draw_room.h"

namespace afterword {

// Answers one row.
void draw_row(afterword_row & row, const draw_room & room);

}  // namespace afterword
