// Which kernels this processor uses.

#include "packed_kernels.h"

#include "afterword.h"

#include "ggml-impl.h"

#include <cstdlib>
#include <cstring>

namespace afterword {

namespace {

const packed_kernels * const BEST_FIRST[] = {
#if defined(__x86_64__)
    &packed_amx,
    &packed_avx512,
    &packed_avx2,
#endif
    &packed_portable,
};

// Returns the best set of a name that this processor runs, or the best of all without a name; null if there is none. Others
// are not asked: Linux gives a process tiles for good.
const packed_kernels * best_of(const char * name) {
    for (const packed_kernels * set : BEST_FIRST) {
        if ((!name || !std::strcmp(name, set->name)) && set->runs_here()) {
            return set;
        }
    }
    return nullptr;
}

// AFTERWORD_KERNELS lets tests compare kernels on one processor.
const packed_kernels & choose() {
    const char * wanted = std::getenv("AFTERWORD_KERNELS");
    if (wanted) {
        if (const packed_kernels * set = best_of(wanted)) {
            return *set;
        }
    }
    const packed_kernels & best = *best_of(nullptr);
    if (wanted) {
        GGML_LOG_WARN("AFTERWORD_KERNELS=%s: this processor has no such kernels; it uses %s\n", wanted, best.name);
    }
    return best;
}

}  // namespace

const packed_kernels & packed_kernels_in_use() {
    static const packed_kernels & chosen = choose();
    return chosen;
}

}  // namespace afterword

const char * ggml_afterword_packed_kernels(void) { return afterword::packed_kernels_in_use().name; }
