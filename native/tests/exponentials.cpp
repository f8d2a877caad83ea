// Exponentials of a row, and their sum.

#include "afterword.h"
#include "backend.h"
#include "tests.h"

#include <algorithm>

namespace tests {
namespace {

using exponentials_of = decltype(ggml_afterword_exponentials);

// How far exp(x) may be off: by a few of the last bits of a float, and by those that x loses where it is a float.
double room(double x) {
    return 1e-6 - 1e-7 * x;
}

void agree(const std::vector<float> & row) {
    const auto  exponentials = cpu_function<exponentials_of>("ggml_afterword_exponentials");
    const int   n            = (int) row.size();
    const float largest      = row.empty() ? 0.0f : *std::max_element(row.begin(), row.end());
    std::vector<float> out(n);
    const double       sum      = exponentials(n, out.data(), row.data(), largest);
    double             expected = 0;
    for (int i = 0; i < n; i++) {
        const double x     = (double) row[i] - largest;
        const double exact = std::exp(x);
        // Those that are not normal floats may be 0.
        check(std::abs(out[i] - exact) <= (exact > 0 ? room(x) * exact : 0) + 1e-37, "exp(", x, ") is ", out[i]);
        expected += exact;
    }
    check(std::abs(sum - expected) <= 1e-6 * expected, "the sum is ", sum, ", not ", expected);

    std::vector<float> same = row;
    const double       again = exponentials(n, same.data(), same.data(), largest);
    check(again == sum && same == out, "the result differs where it replaces the row");
}

}  // namespace

void add_exponentials(test_cases & cases) {
    for (const int n : { 0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1000, 49152 }) {
        cases.push_back({ "exponentials/" + std::to_string(n) + " numbers", [n] {
            random_numbers random(n);
            for (const float size : { 1e-3f, 1.0f, 20.0f, 80.0f, 1e4f }) {
                agree(random.uniform(n, size));
            }
        } });
    }
    cases.push_back({ "exponentials/minus infinity is 0", [] {
        for (int at = 0; at < 35; at++) {
            std::vector<float> row = random_numbers(at).uniform(36);
            row[at]                = -INFINITY;
            agree(row);
        }
    } });
    cases.push_back({ "exponentials/a number does not depend on the others", [] {
        const auto         exponentials = cpu_function<exponentials_of>("ggml_afterword_exponentials");
        std::vector<float> row          = random_numbers(1).uniform(64, 10.0f);
        std::vector<float> out(64);
        exponentials(64, out.data(), row.data(), 10.0f);
        for (int begin = 0; begin < 64; begin += 16) {
            std::vector<float> part(16);
            exponentials(16, part.data(), row.data() + begin, 10.0f);
            check(std::equal(part.begin(), part.end(), out.begin() + begin), "numbers from ", begin, " on differ");
        }
    } });
}

}  // namespace tests
