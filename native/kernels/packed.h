// Symbols of the kernels for packed weights; packed_buffer.cpp has what they are.
#pragma once

#include "ggml-backend.h"

#ifdef __cplusplus
extern "C" {
#endif

// The kind of memory for weights in panels of 16 rows.
GGML_BACKEND_API ggml_backend_buffer_type_t ggml_afterword_packed_buffer_type(void);

// Names the kernels that multiply them: "avx512", "avx2" or "portable".
GGML_BACKEND_API const char * ggml_afterword_packed_kernels(void);

#ifdef __cplusplus
}
#endif
