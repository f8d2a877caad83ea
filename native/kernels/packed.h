// See packed.cpp.
#pragma once

#include "ggml-backend.h"

#ifdef __cplusplus
extern "C" {
#endif

// The kind of memory for weights in panels of 16 rows; NULL on a processor that has no kernel for it.
GGML_BACKEND_API ggml_backend_buffer_type_t ggml_afterword_packed_buffer_type(void);

// Names the changes made to the library: a digest of the files that make them.
GGML_BACKEND_API const char * ggml_afterword_changes(void);

#ifdef __cplusplus
}
#endif
