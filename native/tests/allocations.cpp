#include "allocations.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<int64_t> left{ INT64_MAX };

}  // namespace

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// The libraries find this one. What it gives is freed by the operator of the standard library, with free().
void * operator new(std::size_t size) {
    void * const memory = left.fetch_sub(1) > 0 ? std::malloc(size ? size : 1) : nullptr;
    if (memory == nullptr) {
        throw std::bad_alloc();
    }
    return memory;
}
#endif

namespace tests {

allocations::allocations(int64_t most) : most(most) { left = most; }
allocations::~allocations() { left = INT64_MAX; }

int64_t allocations::made() const { return most - left; }

}  // namespace tests
