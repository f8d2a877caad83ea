// Large pages for packed weights. Weights are read from end to end in every step: 512 pages as one spare the processor
// their translation.

#include "packed_memory.h"

#include <cstdint>

#ifdef __linux__
#    include <sys/mman.h>
#endif

namespace afterword {

void take_large_pages([[maybe_unused]] void * memory, [[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t PAGE = 2 * 1024 * 1024;
    const uintptr_t     first = ((uintptr_t) memory + PAGE - 1) & ~(PAGE - 1);
    const uintptr_t     end   = ((uintptr_t) memory + bytes) & ~(PAGE - 1);
    if (first < end) {
        madvise((void *) first, end - first, MADV_HUGEPAGE);
    }
#endif
}

}  // namespace afterword
