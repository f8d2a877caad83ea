// See attention.cpp.
#pragma once

#include "ggml.h"

struct ggml_compute_params;

// Computes GGML_OP_FLASH_ATTN_EXT: every thread of params calls it. Returns false, with nothing done, where ggml's own
// reference is asked for.
bool afterword_attention(const ggml_compute_params * params, ggml_tensor * dst);
