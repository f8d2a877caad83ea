// Memory that `new` gives to the whole process, libraries included.
#pragma once

#include <cstdint>

namespace tests {

// While it lives, `new` is counted. It succeeds `most` times and then throws. Sanitizers have an operator of their own:
// with them, nothing is counted, and nothing fails.
class allocations {
public:
    explicit allocations(int64_t most = INT64_MAX);
    ~allocations();
    allocations(const allocations &) = delete;
    allocations & operator=(const allocations &) = delete;

    int64_t made() const;

private:
    const int64_t most;
};

}  // namespace tests
