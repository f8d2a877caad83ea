// What the tests share: cases by name, checks, and random numbers that are the same everywhere.
//
// A case is "kernel/what". Each file adds the cases of one kernel; main.cpp runs them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace tests {

struct test_case {
    std::string           name;
    std::function<void()> run;  // throws if the test fails
};

using test_cases = std::vector<test_case>;

void add_attention(test_cases & cases);
void add_draw(test_cases & cases);
void add_experts(test_cases & cases);
void add_exponentials(test_cases & cases);
void add_guard(test_cases & cases);
void add_memory(test_cases & cases);
void add_packed(test_cases & cases);
void add_regex(test_cases & cases);
void add_threads(test_cases & cases);
void add_tokenizers(test_cases & cases);

// Throws the parts of the reason, joined, unless the condition holds.
template <class... Parts> void check(bool holds, const Parts &... reason) {
    if (!holds) {
        std::ostringstream text;
        (text << ... << reason);
        throw std::runtime_error(text.str());
    }
}

// Whether two numbers have the same bits.
inline bool same_bits(float a, float b) {
    return std::memcmp(&a, &b, sizeof(a)) == 0;
}

// SplitMix64. Distributions of the standard library differ between libraries.
class random_numbers {
public:
    explicit random_numbers(uint64_t seed) : state(seed) {}

    uint64_t bits() {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z          = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z          = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }

    // Below n.
    int64_t below(int64_t n) { return (int64_t) (bits() % (uint64_t) n); }

    // From -1 to 1.
    float uniform() { return (float) (bits() >> 40) * 0x1p-23f - 1.0f; }

    std::vector<float> uniform(size_t n, float size = 1.0f) {
        std::vector<float> values(n);
        for (float & value : values) {
            value = size * uniform();
        }
        return values;
    }

private:
    uint64_t state;
};

}  // namespace tests
