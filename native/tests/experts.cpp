// Products with several planes of packed weights: mixtures of experts, and matrices of heads. A plane alone is tested by
// packed.cpp; here each product has the bits that it has alone.

#include "backend.h"
#include "packed.h"
#include "tests.h"

#include <algorithm>
#include <numeric>

namespace tests {
namespace {

constexpr int64_t ROWS = 80;

// Planes of weights.
class planes {
public:
    planes(const format & of, int64_t n, uint64_t seed)
        : of(of), values(of.is_floats() ? 72 : 512), n(n), random(seed),
          bytes(some_rows(of, values, ROWS * n, random)) {}

    ggml_tensor * pack(tensors & all, std::initializer_list<int64_t> shape) const {
        return all.make(packed_buffer_type(), of.type, shape, bytes.data());
    }

    // The product of one plane and one column, by a graph of its own.
    std::vector<float> alone(int64_t plane, const float * column) const {
        tensors        all;
        const size_t   size    = ggml_row_size(of.type, values) * ROWS;
        ggml_tensor *  weights = all.make(packed_buffer_type(), of.type, { values, ROWS }, &bytes[plane * size]);
        ggml_tensor *  input   = all.make(GGML_TYPE_F32, { values, 1 }, column);
        return all.compute(ggml_mul_mat(all.context(), weights, input), 1);
    }

    void agrees(const float * got, int64_t plane, const float * column) const {
        const auto expected = alone(plane, column);
        for (int64_t row = 0; row < ROWS; row++) {
            check(same_bits(got[row], expected[row]), "row ", row, " of plane ", plane, " is ", got[row], ", not ",
                  expected[row]);
        }
    }

    const format         of;
    const int64_t        values, n;
    random_numbers       random;
    std::vector<uint8_t> bytes;
};

// Different experts for each token, some of them rarely. The rest of a row is no expert: only the first `used` count.
std::vector<int32_t> some_experts(int64_t experts, int64_t tokens, random_numbers & random) {
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < tokens; t++) {
        std::vector<int32_t> order(experts);
        std::iota(order.begin(), order.end(), 0);
        for (int64_t i = 0; i + 1 < experts; i++) {
            std::swap(order[i], order[i + random.below(random.below(experts - i) + 1)]);
        }
        ids.insert(ids.end(), order.begin(), order.end());
    }
    return ids;
}

// Tokens with their experts. All experts of a token have the same column, or each has one of its own.
void mixtures(const format & of) {
    constexpr int64_t EXPERTS = 6;
    planes            m(of, EXPERTS, 17);
    // Of so many tokens, some experts have more columns than are multiplied at once.
    for (const int64_t tokens : { 1, 2, 5, 33, 260 }) {
        for (const int64_t used : { 1, 4 }) {
            for (const bool own : { false, true }) {
                const int64_t inputs  = own ? used : 1;
                const auto    columns = some_columns(m.values, inputs * tokens, m.random);
                const auto    ids     = some_experts(EXPERTS, tokens, m.random);
                tensors       all;
                ggml_tensor * weights = m.pack(all, { m.values, ROWS, EXPERTS });
                ggml_tensor * input   = all.make(GGML_TYPE_F32, { m.values, inputs, tokens }, columns.data());
                ggml_tensor * order   = all.make(GGML_TYPE_I32, { EXPERTS, tokens }, ids.data());
                ggml_tensor * first   = ggml_view_2d(all.context(), order, used, tokens, order->nb[1], 0);
                const auto    got     = all.compute(
                    ggml_mul_mat_id(all.context(), weights, input, first), 1 + (int) (tokens + used) % 3);
                for (int64_t t = 0; t < tokens; t += 1 + tokens / 40) {
                    for (int64_t i = 0; i < used; i++) {
                        m.agrees(&got[(t * used + i) * ROWS], ids[t * EXPERTS + i],
                                 &columns[(t * inputs + (own ? i : 0)) * m.values]);
                    }
                }
            }
        }
    }
}

// A matrix for each head, or for some heads together.
void heads(const format & of) {
    planes m(of, 6, 19);
    for (const int64_t columns_of_plane : { 1, 3, 20 }) {
        for (const int64_t together : { 1, 2 }) {
            const int64_t n       = columns_of_plane * 3 * together * 2;
            const auto    columns = some_columns(m.values, n, m.random);
            tensors       all;
            ggml_tensor * weights = m.pack(all, { m.values, ROWS, 3, 2 });
            ggml_tensor * input =
                all.make(GGML_TYPE_F32, { m.values, columns_of_plane, 3 * together, 2 }, columns.data());
            const auto got = all.compute(ggml_mul_mat(all.context(), weights, input), 1 + (int) columns_of_plane % 3);
            for (int64_t c = 0; c < n; c++) {
                m.agrees(&got[c * ROWS], c / columns_of_plane / together, &columns[c * m.values]);
            }
        }
    }
}

}  // namespace

void add_experts(test_cases & cases) {
    for (const format & of : FORMATS) {
        const std::string name = std::string("experts/") + of.name();
        cases.push_back({ name + " mixtures", [&of] { mixtures(of); } });
        cases.push_back({ name + " heads", [&of] { heads(of); } });
    }
}

}  // namespace tests
