// Exponentials of a row, for the sampler.

#include "afterword.h"
#include "vec.h"

extern "C" double ggml_afterword_exponentials(int32_t size, float * out, const float * row, float largest) {
    return ggml_vec_soft_max_f32(size, out, row, largest);
}
