// The kernels for AVX-512. CMake gives this file the instructions.
#if defined(__x86_64__)

#include "packed_avx512.h"

namespace afterword {

const packed_kernels packed_avx512 = { "avx512", has_avx512, KERNELS<avx512>, std::size(KERNELS<avx512>) };

}  // namespace afterword

#endif
