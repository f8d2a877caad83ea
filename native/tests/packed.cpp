// Products of packed weights, with the kernels in use.

#include "packed.h"

#include "allocations.h"
#include "backend.h"
#include "tests.h"

#include "ggml-cpu.h"

#include <algorithm>

#if defined(__x86_64__) && defined(__linux__)
#    include <sys/syscall.h>
#    include <unistd.h>
#endif

namespace tests {
namespace {

// A half that is neither infinite nor tiny, with any sign.
uint16_t some_half(random_numbers & random) {
    const uint64_t bits = random.bits();
    return (uint16_t) ((bits & 0x83ff) | (8 + (bits >> 16) % 8) << 10);
}

// A scale, and a min after it.
bool has_min(ggml_type type) {
    return type == GGML_TYPE_Q4_1 || type == GGML_TYPE_Q5_1 || type == GGML_TYPE_Q2_K || type == GGML_TYPE_Q4_K ||
           type == GGML_TYPE_Q5_K;
}

// Of a block, in bytes.
size_t place_of_halves(ggml_type type) {
    const bool behind_quants = type == GGML_TYPE_Q2_K || type == GGML_TYPE_Q3_K || type == GGML_TYPE_Q6_K;
    return behind_quants ? ggml_type_size(type) - 2 * (1 + has_min(type)) : 0;
}

}  // namespace

std::vector<uint8_t> some_rows(const format & of, int64_t values, int64_t rows, random_numbers & random) {
    if (of.is_floats()) {
        return from_floats(of.type, random.uniform(values * rows), values);
    }
    std::vector<uint8_t> bytes(ggml_row_size(of.type, values) * rows);
    for (uint8_t & byte : bytes) {
        byte = (uint8_t) random.bits();
    }
    const size_t block = ggml_type_size(of.type);
    for (size_t at = 0; at < bytes.size(); at += block) {
        if (of.type == GGML_TYPE_MXFP4) {  // a power of two in place of a half
            bytes[at] = (uint8_t) (120 + bytes[at] % 16);
            continue;
        }
        for (size_t i = 0; i <= has_min(of.type); i++) {
            const uint16_t half = some_half(random);
            std::memcpy(&bytes[at + place_of_halves(of.type) + 2 * i], &half, 2);
        }
    }
    return bytes;
}

std::vector<float> some_columns(int64_t values, int64_t n, random_numbers & random) {
    std::vector<float> columns = random.uniform(values * n);
    for (int64_t c = 0; c < n; c++) {
        const float size = std::ldexp(1.0f, (int) random.below(20) - 10);
        for (int64_t i = 0; i < values; i++) {
            columns[c * values + i] *= random.below(100) == 0 ? 50 * size : size;
        }
        const int64_t zeros = random.below(values);
        std::fill_n(columns.begin() + c * values + zeros, std::min<int64_t>(values - zeros, random.below(80)), 0.0f);
    }
    return columns;
}

namespace {

// What the kernels multiply: columns as they are, or in eight bits with a scale for each 32 values.
std::vector<double> prepared(const format & of, const std::vector<float> & columns) {
    std::vector<double> out(columns.begin(), columns.end());
    for (size_t at = 0; !of.is_floats() && at < columns.size(); at += BLOCK) {
        float largest = 0;
        for (int64_t i = 0; i < BLOCK; i++) {
            largest = std::max(largest, std::fabs(columns[at + i]));
        }
        const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
        for (int64_t i = 0; i < BLOCK; i++) {
            out[at + i] = std::nearbyint(columns[at + i] * inverse) * (double) (largest / 127.0f);
        }
    }
    return out;
}

// One matrix of weights, packed.
class matrix {
public:
    matrix(const format & of, int64_t values, int64_t rows, uint64_t seed)
        : of(of), values(values), rows(rows), random(seed), bytes(some_rows(of, values, rows, random)) {}

    std::vector<float> times(const float * columns, int64_t n, int threads) const {
        tensors       all;
        ggml_tensor * weights = pack(all);
        ggml_tensor * input   = all.make(GGML_TYPE_F32, { values, n }, columns);
        return all.compute(ggml_mul_mat(all.context(), weights, input), threads);
    }

    ggml_tensor * pack(tensors & all) const {
        return all.make(packed_buffer_type(), of.type, { values, rows }, bytes.data());
    }

    void agrees(const std::vector<float> & got, const std::vector<float> & columns) const {
        const std::vector<float>  weights = to_floats(of.type, bytes.data(), values * rows);
        const std::vector<double> inputs  = prepared(of, columns);
        check(got.size() == columns.size() / values * rows, "it has ", got.size(), " products");
        for (size_t i = 0; i < got.size(); i++) {
            const float *  row    = weights.data() + i % rows * values;
            const double * column = inputs.data() + i / rows * values;
            double         exact = 0, size = 0;
            for (int64_t v = 0; v < values; v++) {
                exact += row[v] * column[v];
                size += std::abs(row[v] * column[v]);
            }
            // A sum of floats loses some of the last bits of its largest part.
            check(std::abs(got[i] - exact) <= 2e-6 * size_of_parts(size, row, column), "row ", i % rows, ", column ",
                  i / rows, " is ", got[i], ", not ", exact);
        }
    }

    const format         of;
    const int64_t        values, rows;
    random_numbers       random;
    std::vector<uint8_t> bytes;

private:
    // A min is added apart from its quants, which may cancel it.
    double size_of_parts(double size, const float * row, const double * column) const {
        const float largest = std::abs(*std::max_element(
            row, row + values, [](float a, float b) { return std::abs(a) < std::abs(b); }));
        double      sum     = 0;
        for (int64_t v = 0; v < values; v++) {
            sum += std::abs(column[v]);
        }
        return std::max(size, of.is_floats() ? size : largest * sum);
    }
};

void products(const format & of) {
    const std::vector<int64_t> blocks = of.is_floats() ? std::vector<int64_t>{ 1, 7, 8, 9, 77, 256 }
                                      : of.width == BLOCK ? std::vector<int64_t>{ 1, 2, 3, 9, 20 }
                                                          : std::vector<int64_t>{ 1, 2, 3 };
    for (const int64_t n_blocks : blocks) {
        for (const int64_t rows : { 16, 32, 80, 272 }) {
            matrix     m(of, n_blocks * of.width, rows, 100 * n_blocks + rows);
            const auto columns = some_columns(m.values, 19, m.random);
            m.agrees(m.times(columns.data(), 19, rows == 80 ? 2 : 1), columns);
        }
    }
}

// A column has the same bits alone and among any number of others, with any number of threads. Rows are so long that
// many columns take them in several runs of blocks.
void batch_invariance(const format & of) {
    constexpr int64_t MOST = 40;
    matrix            m(of, of.is_floats() ? 100 : 1792, 144, 7);
    const auto        columns = some_columns(m.values, MOST, m.random);
    std::vector<float> alone;
    for (int64_t c = 0; c < MOST; c++) {
        const auto one = m.times(columns.data() + c * m.values, 1, 1);
        alone.insert(alone.end(), one.begin(), one.end());
    }
    for (int64_t n = 1; n <= MOST; n++) {
        const int64_t first = (7 * n) % (MOST - n + 1);
        const auto    got   = m.times(columns.data() + first * m.values, n, n % 8 == 0 ? 3 : 1);
        for (size_t i = 0; i < got.size(); i++) {
            check(same_bits(got[i], alone[first * m.rows + i]), n, " columns: row ", i % m.rows, " of column ",
                  i / m.rows, " differs");
        }
    }
}

// So many columns are multiplied in several parts.
void parts_of_columns(const format & of) {
    constexpr int64_t N = 500;
    matrix            m(of, 2048, 48, 19);
    const auto        columns = some_columns(m.values, N, m.random);
    const auto        all     = m.times(columns.data(), N, 2);
    m.agrees(all, columns);
    for (const int64_t c : { 0, 143, 144, 159, 287, 288, 383, 384, 480, 499 }) {
        const auto alone = m.times(columns.data() + c * m.values, 1, 1);
        for (int64_t row = 0; row < m.rows; row++) {
            check(same_bits(all[c * m.rows + row], alone[row]), "row ", row, " of column ", c, " differs");
        }
    }
}

// Threads take portions of a long matrix, each of its rows once: few columns in panels side by side, and more.
void portions() {
    const matrix m(FORMATS[0], FORMATS[0].width, 2064, 11);
    for (const int64_t n : { 1, 4, 5, 40 }) {
        random_numbers random(n);
        const auto     columns = some_columns(m.values, n, random);
        const auto     alone   = m.times(columns.data(), n, 1);
        m.agrees(alone, columns);
        for (const int threads : { 2, 3, 8 }) {
            const auto got = m.times(columns.data(), n, threads);
            for (size_t i = 0; i < got.size(); i++) {
                check(same_bits(got[i], alone[i]), n, " columns, ", threads, " threads: row ", i % m.rows, " differs");
            }
        }
    }
}

// Columns in several planes, with room between them.
void planes(const format & of) {
    matrix     m(of, of.is_floats() ? 40 : 256, 32, 9);
    const auto columns = some_columns(m.values, 5 * 3 * 2, m.random);
    const auto flat    = m.times(columns.data(), 5 * 3 * 2, 2);

    tensors            all;
    constexpr int64_t  ROOM = 3;
    std::vector<float> apart;
    for (int64_t c = 0; c < 5 * 3 * 2; c++) {
        apart.insert(apart.end(), columns.begin() + c * m.values, columns.begin() + (c + 1) * m.values);
        apart.insert(apart.end(), ROOM, NAN);
    }
    ggml_tensor * weights = m.pack(all);
    ggml_tensor * whole   = all.make(GGML_TYPE_F32, { m.values + ROOM, 5, 3, 2 }, apart.data());
    ggml_tensor * view =
        ggml_view_4d(all.context(), whole, m.values, 5, 3, 2, whole->nb[1], whole->nb[2], whole->nb[3], 0);
    check(all.compute(ggml_mul_mat(all.context(), weights, view), 3) == flat, "planes have other products");
}

// A column that is infinite or NaN somewhere has no finite product, the same ones as alone, and its neighbours are as they
// were.
void broken_columns(const format & of, int64_t n) {
    matrix     m(of, of.is_floats() ? 64 : 256, 32, 11);
    const auto whole    = some_columns(m.values, n, m.random);
    const auto expected = m.times(whole.data(), n, 1);
    for (const float wrong : { INFINITY, -INFINITY, NAN, -NAN }) {
        for (const int64_t at : { 0, 33, 42, 55, 63 }) {
            auto columns = whole;
            columns[5 * m.values + at] = wrong;
            const auto got   = m.times(columns.data(), n, 1);
            const auto alone = m.times(columns.data() + 5 * m.values, 1, 1);
            for (size_t i = 0; i < got.size(); i++) {
                if (i / m.rows == 5) {
                    const int64_t row = i % m.rows;
                    check(!std::isfinite(got[i]), wrong, " at ", at, ": row ", row, " is ", got[i]);
                    check(same_bits(got[i], alone[row]), wrong, " at ", at, ": row ", row, " is ", got[i], ", alone ",
                          alone[row]);
                } else {
                    check(same_bits(got[i], expected[i]), "column ", i / m.rows, " differs");
                }
            }
        }
    }
}

// Products of the portable kernels are the same bits on every processor and with every compiler.
void same_everywhere() {
    uint64_t digest = 0xcbf29ce484222325;  // FNV-1a
    for (const format & of : FORMATS) {
        matrix     m(of, of.is_floats() ? 77 : 512, 48, 13);
        const auto columns = some_columns(m.values, 18, m.random);
        const auto got     = m.times(columns.data(), 18, 2);
        for (const float value : got) {
            uint32_t bits;
            std::memcpy(&bits, &value, sizeof(bits));
            digest = (digest ^ bits) * 0x100000001b3;
        }
    }
    check(digest == 0x9f4582b6f39534f8, "the digest is ", std::hex, digest);
}

// Weights are packed by several threads if there is memory for these, else by fewer.
void packed_without_memory_for_threads() {
    const matrix  m(FORMATS[0], 1024, 1024, 17);
    const size_t  size     = ggml_row_size(m.of.type, m.values) * m.rows;
    tensors       all;
    ggml_tensor * expected = m.pack(all);
    ggml_tensor * packed   = m.pack(all);
    for (int64_t most = 1; most < 3; most++) {
        std::memset(packed->data, 0xff, size);
        {
            const allocations few(most);
            ggml_backend_tensor_set(packed, m.bytes.data(), 0, m.bytes.size());
        }
        check(std::memcmp(packed->data, expected->data, size) == 0, "it is packed otherwise");
    }
}

// Linux gives tiles to a process for good, and saves them with each signal from then on. Only kernels that use them ask.
void only_amx_asks_for_tiles() {
#if defined(__x86_64__) && defined(__linux__)
    constexpr long GIVEN_STATES = 0x1022, TILE_DATA = 18;  // ARCH_GET_XCOMP_PERM, XFEATURE_XTILEDATA
    const bool     is_amx = std::string(packed_kernels_in_use()) == "amx";
    uint64_t       given  = 0;
    if (syscall(SYS_arch_prctl, GIVEN_STATES, &given) == 0) {
        check((given >> TILE_DATA & 1) == is_amx, "tiles are ", is_amx ? "not given" : "asked for");
    }
#endif
}

void only_panels_are_packed() {
    for (const int64_t rows : { 1, 15, 17, 31 }) {
        tensors           all;
        std::vector<float> zeros(32 * rows);
        // Memory of this kind cannot hold them: ggml asks before.
        ggml_tensor * weights = ggml_new_tensor_2d(all.context(), GGML_TYPE_F32, 32, rows);
        ggml_tensor * input   = all.make(GGML_TYPE_F32, { 32, 2 }, nullptr);
        ggml_tensor * product = ggml_mul_mat(all.context(), weights, input);
        const std::unique_ptr<ggml_backend_buffer, free_buffer> buffer(
            ggml_backend_buft_alloc_buffer(packed_buffer_type(), 1 << 16));
        weights->buffer = buffer.get();
        check(!ggml_backend_supports_op(cpu_backend(1), product), rows, " rows are taken");
    }
}

}  // namespace

void add_packed(test_cases & cases) {
    for (const format & of : FORMATS) {
        const std::string name = std::string("packed/") + of.name();
        cases.push_back({ name + " products", [&of] { products(of); } });
        cases.push_back({ name + " batch invariance", [&of] { batch_invariance(of); } });
        cases.push_back({ name + " parts of columns", [&of] { parts_of_columns(of); } });
        cases.push_back({ name + " planes", [&of] { planes(of); } });
        cases.push_back({ name + " broken columns", [&of] { broken_columns(of, 14); } });
        cases.push_back({ name + " broken columns among many", [&of] { broken_columns(of, 38); } });
    }
    cases.push_back({ "packed/portions", portions });
    cases.push_back({ "packed/only whole panels", only_panels_are_packed });
    cases.push_back({ "packed/tiles are asked for if they are used", only_amx_asks_for_tiles });
    cases.push_back({ "packed/no memory for threads", packed_without_memory_for_threads });
    if (std::string(packed_kernels_in_use()) == "portable") {
        cases.push_back({ "packed/the same bits everywhere", same_everywhere });
    }
}

}  // namespace tests
