// Attention against float64, and each row alone against the same row in a batch.

#include "afterword.h"
#include "backend.h"
#include "tests.h"

#include "ggml-cpu.h"

#include <algorithm>

namespace tests {
namespace {

constexpr int64_t BLOCK = AFTERWORD_BLOCK_CELLS;

struct options {
    ggml_type keys = GGML_TYPE_F16, values = GGML_TYPE_F16;
    int64_t   key_size = 64, value_size = 64;
    int64_t   heads = 4, cache_heads = 2;
    int64_t   rows = 5, cells = 100;
    int64_t   batches  = 1;      // each with a stream of its own
    bool      masked   = true;   // each row sees cells up to its own, a few rows see none
    bool      unequal  = false;  // rows of three streams in one batch
    bool      blocks   = false;  // these streams are in blocks anywhere in one memory
    float     max_bias = 0, softcap = 0;
    bool      sinks    = false;
    bool      infinite = false;  // cells that nobody sees hold infinities and what is no number
    float     spread   = 1.0f;   // of queries, and so of scores

    int64_t streams() const { return unequal ? 3 : batches; }
    int64_t blocks_of_stream() const { return (cells + BLOCK - 1) / BLOCK; }
    bool    by_tiles() const {
        return keys == values && (keys == GGML_TYPE_F16 || keys == GGML_TYPE_F32);
    }
};

// An operation with its data: everything is counted [batch][row][head][...] for rows, [stream][cell][head][...] for
// cells, as a cache has them.
class attention {
public:
    explicit attention(const options & of, uint64_t seed) : of(of), random(seed) {
        queries = random.uniform(of.batches * of.rows * of.heads * of.key_size, 3.0f * of.spread);
        mask.assign(of.batches * of.rows * of.cells, 0);
        if (of.masked) {
            make_mask();
        }
        keys   = cache(of.keys, of.key_size);
        values = cache(of.values, of.value_size);
        if (of.infinite) {
            spoil(keys, of.keys, of.key_size);
            spoil(values, of.values, of.value_size);
        }
        sinks = random.uniform(of.heads, 2.0f);
        for (int64_t row = 0; row < of.rows; row++) {
            stream_of_row.push_back(of.unequal ? std::min<int64_t>(2, row * 3 / std::max<int64_t>(1, of.rows - 1)) : 0);
        }
        if (of.blocks) {
            for (int64_t i = 0; i < of.streams() * of.blocks_of_stream(); i++) {
                tables.push_back((int32_t) i);
                std::swap(tables[random.below(i + 1)], tables.back());
            }
        }
    }

    // Rows [first, first + n) of each batch, as [batch][row][head][value].
    std::vector<float> compute(int64_t first, int64_t n, int threads) const {
        tensors            all;
        ggml_context *     context = all.context();
        std::vector<float> some;
        std::vector<ggml_fp16_t> some_mask;
        std::vector<int64_t>     cells;
        const int64_t            row_size = of.heads * of.key_size;
        for (int64_t b = 0; b < of.batches; b++) {
            const auto rows = queries.begin() + (b * of.rows + first) * row_size;
            some.insert(some.end(), rows, rows + n * row_size);
            const auto seen = mask.begin() + (b * of.rows + first) * of.cells;
            some_mask.insert(some_mask.end(), seen, seen + n * of.cells);
        }
        for (int64_t row = first; row < first + n; row++) {
            cells.push_back(stream_of_row[row] * of.cells + row % of.cells);
        }
        for (int64_t row = first; of.blocks && row < first + n; row++) {
            cells.push_back((int64_t) (intptr_t) &tables[stream_of_row[row] * of.blocks_of_stream()]);
        }
        const std::vector<uint8_t> held_keys   = held(keys, of.keys, of.key_size);
        const std::vector<uint8_t> held_values = held(values, of.values, of.value_size);
        const auto heads_outside = [&](ggml_tensor * tensor) { return ggml_permute(context, tensor, 0, 2, 1, 3); };

        ggml_tensor * q =
            heads_outside(all.make(GGML_TYPE_F32, { of.key_size, of.heads, n, of.batches }, some.data()));
        ggml_tensor * k =
            heads_outside(all.make(of.keys, { of.key_size, of.cache_heads, held_cells(), held_streams() }, held_keys.data()));
        ggml_tensor * v =
            heads_outside(
                all.make(of.values, { of.value_size, of.cache_heads, held_cells(), held_streams() }, held_values.data()));
        if (of.unequal) {
            k = ggml_view_3d(context, k, k->ne[0], of.cells, k->ne[2], k->nb[1], k->nb[2], 0);
            v = ggml_view_3d(context, v, v->ne[0], of.cells, v->ne[2], v->nb[1], v->nb[2], 0);
            k->nb[3] = of.cells * k->nb[1];
            v->nb[3] = of.cells * v->nb[1];
        }
        ggml_tensor * m =
            of.masked ? all.make(GGML_TYPE_F16, { of.cells, n, 1, of.batches }, some_mask.data()) : nullptr;
        ggml_tensor * result = ggml_flash_attn_ext(context, q, k, v, m, scale(), of.max_bias, of.softcap);
        ggml_prec_set_acc(result, GGML_PREC_F32);
        if (of.sinks) {
            ggml_flash_attn_ext_add_sinks(result, all.make(GGML_TYPE_F32, { of.heads }, sinks.data()));
        }
        if (of.unequal) {
            result->src[5] = all.make(GGML_TYPE_I64, { n, of.blocks ? 2 : 1 }, cells.data());
        }
        return all.compute(result, threads);
    }

    // One value of each head of a row's query is no number.
    void spoil_query(int64_t row) {
        for (int64_t head = 0; head < of.heads; head++) {
            queries[(row * of.heads + head) * of.key_size + head % of.key_size] = NAN;
        }
    }

    // The same of the key of a cell, with which no score is a number.
    void spoil_key(int64_t cell) {
        const size_t cell_bytes = of.cache_heads * ggml_row_size(of.keys, of.key_size);
        std::fill_n(keys.begin() + cell * cell_bytes, cell_bytes, (uint8_t) 0xff);
    }

    bool sees(int64_t row, int64_t cell) const { return std::isfinite(ggml_fp16_to_fp32(mask[row * of.cells + cell])); }

    bool sees_any(int64_t row) const {
        for (int64_t cell = 0; cell < of.cells; cell++) {
            if (sees(row, cell)) {
                return true;
            }
        }
        return false;
    }

    // The largest difference to float64, relative to the largest value that a row sees.
    double difference(const std::vector<float> & got) const {
        const auto k = to_floats(of.keys, keys.data(), of.streams() * of.cells * of.cache_heads * of.key_size);
        const auto v = to_floats(of.values, values.data(), of.streams() * of.cells * of.cache_heads * of.value_size);
        const auto q = rounded_queries();
        double     worst = 0;
        for (int64_t i = 0; i < of.batches * of.rows * of.heads; i++) {
            worst = std::max(worst, difference_of_row(i, got.data() + i * of.value_size, q, k, v));
        }
        return worst;
    }

private:
    int64_t held_cells() const { return of.blocks ? of.streams() * of.blocks_of_stream() * BLOCK : of.cells; }
    int64_t held_streams() const { return of.blocks ? 1 : of.streams(); }

    // The cells as they are in memory.
    std::vector<uint8_t> held(const std::vector<uint8_t> & cache, ggml_type type, int64_t size) const {
        if (!of.blocks) {
            return cache;
        }
        const size_t         cell_bytes = of.cache_heads * ggml_row_size(type, size);
        std::vector<uint8_t> memory(held_cells() * cell_bytes);
        for (int64_t cell = 0; cell < of.streams() * of.cells; cell++) {
            const int64_t stream = cell / of.cells, at = cell % of.cells;
            const int64_t place  = tables[stream * of.blocks_of_stream() + at / BLOCK] * BLOCK + at % BLOCK;
            std::copy_n(cache.begin() + cell * cell_bytes, cell_bytes, memory.begin() + place * cell_bytes);
        }
        return memory;
    }

    float scale() const { return 1.0f / std::sqrt((float) of.key_size); }

    void make_mask() {
        const ggml_fp16_t hidden = ggml_fp32_to_fp16(-INFINITY);
        for (int64_t i = 0; i < of.batches * of.rows; i++) {
            ggml_fp16_t * row  = &mask[i * of.cells];
            const int64_t seen = i % 7 == 5 ? 0 : 1 + random.below(of.cells);
            const int64_t from = random.below(3) ? 0 : random.below(seen + 1);
            for (int64_t cell = 0; cell < of.cells; cell++) {
                const bool sees = cell < seen && cell >= from && random.below(20) != 0 && !never_seen(cell);
                row[cell]       = !sees                    ? hidden
                                  : of.max_bias > 0.0f     ? ggml_fp32_to_fp16((float) (cell - seen))
                                  : random.below(3) == 0 ? ggml_fp32_to_fp16(random.uniform())
                                                           : ggml_fp16_t(0);
            }
        }
    }

    bool never_seen(int64_t cell) const { return of.infinite && cell % 9 == 4; }

    std::vector<uint8_t> cache(ggml_type type, int64_t size) {
        return from_floats(type, random.uniform(of.streams() * of.cells * of.cache_heads * size, 1.5f), size);
    }

    void spoil(std::vector<uint8_t> & bytes, ggml_type type, int64_t size) const {
        const size_t cell_bytes = of.cache_heads * ggml_row_size(type, size);
        for (int64_t cell = 0; cell < of.streams() * of.cells; cell++) {
            if (never_seen(cell % of.cells)) {
                // All bits set are no number in halves, in floats and in the scales of quants.
                std::fill_n(bytes.begin() + cell * cell_bytes, cell_bytes, (uint8_t) (cell % 2 ? 0xff : 0x7c));
            }
        }
    }

    // As the kernel by rows has them: in the format that is multiplied with the keys'.
    std::vector<float> rounded_queries() const {
        if (of.by_tiles()) {
            return queries;
        }
        const auto traits = cpu_function<decltype(ggml_get_type_traits_cpu)>("ggml_get_type_traits_cpu");
        ggml_type  type   = traits(of.keys)->vec_dot_type;
        // The two have the same quants and scales.
        type = type == GGML_TYPE_Q8_1 ? GGML_TYPE_Q8_0 : type;
        std::vector<uint8_t> bytes(ggml_row_size(type, (int64_t) queries.size()));
        traits(type)->from_float(queries.data(), bytes.data(), (int64_t) queries.size());
        return to_floats(type, bytes.data(), (int64_t) queries.size());
    }

    double slope(int64_t head) const {
        if (of.max_bias <= 0.0f) {
            return 1.0;
        }
        const double power = std::exp2(std::floor(std::log2((double) of.heads)));
        return head < power ? std::pow(std::exp2(-of.max_bias / power), head + 1)
                            : std::pow(std::exp2(-of.max_bias / 2 / power), 2 * (head - power) + 1);
    }

    double difference_of_row(
        int64_t i, const float * got, const std::vector<float> & q, const std::vector<float> & k,
        const std::vector<float> & v) const {
        const int64_t head = i % of.heads, row = i / of.heads % of.rows, batch = i / of.heads / of.rows;
        const int64_t stream = of.unequal ? stream_of_row[row] : batch;
        const int64_t cache_head = head / (of.heads / of.cache_heads);

        std::vector<double> scores(of.cells), sums(of.value_size);
        double              most = of.sinks ? sinks[head] : -INFINITY;
        for (int64_t cell = 0; cell < of.cells; cell++) {
            const float  bias = ggml_fp16_to_fp32(mask[(batch * of.rows + row) * of.cells + cell]);
            const size_t at   = (stream * of.cells + cell) * of.cache_heads + cache_head;
            double       dot  = 0;
            for (int64_t d = 0; d < of.key_size; d++) {
                dot += (double) q[i * of.key_size + d] * k[at * of.key_size + d];
            }
            dot *= scale();
            dot          = of.softcap != 0 ? of.softcap * std::tanh(dot / of.softcap) : dot;
            scores[cell] = std::isinf(bias) ? -INFINITY : dot + slope(head) * bias;
            most         = std::max(most, scores[cell]);
        }
        double total = of.sinks ? std::exp(sinks[head] - most) : 0, size = 1e-30;
        for (int64_t cell = 0; cell < of.cells; cell++) {
            if (scores[cell] == -INFINITY) {
                continue;
            }
            const double weight = std::exp(scores[cell] - most);
            const size_t at     = (stream * of.cells + cell) * of.cache_heads + cache_head;
            total += weight;
            for (int64_t d = 0; d < of.value_size; d++) {
                sums[d] += weight * v[at * of.value_size + d];
                size = std::max(size, std::abs((double) v[at * of.value_size + d]));
            }
        }
        double worst = 0;
        for (int64_t d = 0; d < of.value_size; d++) {
            const double exact = total > 0 ? sums[d] / total : 0;
            // A comparison with what is no number is false.
            worst = std::abs(got[d] - exact) <= worst * size ? worst : std::abs(got[d] - exact) / size;
            check(std::isfinite(got[d]), "value ", d, " of row ", row, " and head ", head, " is ", got[d]);
        }
        return worst;
    }

    const options            of;
    random_numbers           random;
    std::vector<float>       queries;
    std::vector<ggml_fp16_t> mask;
    std::vector<uint8_t>     keys, values;
    std::vector<float>       sinks;
    std::vector<int64_t>     stream_of_row;
    std::vector<int32_t>     tables;  // blocks of the first stream, of the second, and so on
};

// How exact the kernel is for these formats. A score is as exact as it is large.
double room(const options & of) {
    if (of.by_tiles()) {
        return 1e-5 * of.spread;
    }
    // By rows, sums of halves are halves; q4_1 and q5_1 multiply the sum of a query's block as a half.
    const bool has_min = of.keys == GGML_TYPE_Q4_1 || of.keys == GGML_TYPE_Q5_1;
    return of.spread * (of.values == GGML_TYPE_F16 ? 2e-2 : has_min ? 5e-3 : 1e-5);
}

void agrees(const options & of, uint64_t seed = 1) {
    const attention made(of, seed);
    const auto      whole = made.compute(0, of.rows, 1);
    const double    worst = made.difference(whole);
    check(worst <= room(of), "keys of ", of.key_size, ", ", of.rows, " rows, ", of.cells, " cells: it differs by ", worst);

    // The same bits with other threads, and for each row alone or with a neighbour.
    const auto same = [&](int64_t first, int64_t n, int threads) {
        const auto    part = made.compute(first, n, threads);
        const int64_t size = of.heads * of.value_size;
        for (int64_t b = 0; b < of.batches; b++) {
            for (int64_t i = 0; i < n * size; i++) {
                check(same_bits(part[b * n * size + i], whole[(b * of.rows + first) * size + i]), "keys of ",
                      of.key_size, ", ", of.rows, " rows, ", of.cells, " cells: row ", first + i / size, " of ", n,
                      " differs with ", threads, " threads");
            }
        }
    };
    same(0, of.rows, 3);
    same(of.rows / 3, of.rows - of.rows / 3, 1);
    for (int64_t row = 0; row < of.rows; row += 1 + of.rows / 5) {
        same(row, 1, 1);
    }
    same(0, std::min<int64_t>(2, of.rows), 1);
}

// Rows whose scores are no numbers have no finite result, and the others have the bits that they have without.
void breaks(const options & of, const attention & whole, const attention & broken, const std::function<bool(int64_t)> & is_broken) {
    const auto    expected = whole.compute(0, of.rows, 1);
    const auto    got      = broken.compute(0, of.rows, 2);
    const int64_t size     = of.heads * of.value_size;
    for (int64_t i = 0; i < of.rows * size; i++) {
        const int64_t row = i / size;
        if (is_broken(row)) {
            check(!std::isfinite(got[i]), of.rows, " rows, ", of.cells, " cells: row ", row, " has ", got[i]);
        } else {
            check(same_bits(got[i], expected[i]), of.rows, " rows, ", of.cells, " cells: row ", row, " differs");
        }
    }
}

void broken_rows(options of) {
    for (const int64_t cells : { 1, 5, 64, 70, 600 }) {
        for (const int64_t rows : { 1, 5, 70 }) {
            of.cells = cells, of.rows = rows;
            const attention whole(of, cells + rows);
            const int64_t   row = rows / 2, cell = cells / 2;
            attention       query = whole, key = whole;
            query.spoil_query(row);
            breaks(of, whole, query, [&](int64_t at) { return at == row && whole.sees_any(at); });
            key.spoil_key(cell);
            breaks(of, whole, key, [&](int64_t at) { return whole.sees(at, cell); });
        }
    }
}

options with(ggml_type type) {
    options of;
    of.keys = of.values = type;
    return of;
}

// One case for each way in which rows, cells and heads are divided.
void shapes(options of) {
    for (const int64_t cells : { 1, 63, 64, 65, 300 }) {
        of.cells = cells;
        agrees(of, cells);
    }
    of.rows = 3;
    for (const int64_t cells : { 511, 512, 513, 1024, 1500, 2049 }) {
        of.cells = cells;
        agrees(of, cells);
    }
    of.cells = 700;
    for (const int64_t rows : { 1, 70 }) {
        of.rows = rows;
        agrees(of, rows);
    }
    of.cells = 300;
    for (const int64_t rows : { 1, 2, 3, 4, 6, 7, 63, 64, 65, 70 }) {
        of.rows = rows;
        agrees(of, rows);
    }
    of.rows = 9;
    for (const int64_t heads : { 1, 3, 4, 8 }) {
        of.heads = heads, of.cache_heads = 1;
        agrees(of, heads);
        of.cache_heads = heads;
        agrees(of, heads);
    }
}

void add_format(test_cases & cases, const std::string & name, const options & of) {
    const auto add = [&](const char * what, auto change) {
        options changed = of;
        change(changed);
        cases.push_back({ "attention/" + name + " " + what, [changed] { agrees(changed); } });
    };
    add("without a mask", [](options & o) { o.masked = false; });
    add("a soft cap", [](options & o) { o.softcap = 5; });
    add("sinks", [](options & o) { o.sinks = true; });
    add("slopes of ALiBi", [](options & o) { o.max_bias = 8, o.heads = 6, o.cache_heads = 3; });
    add("streams of equal length", [](options & o) { o.batches = 3; });
    add("streams of unequal lengths", [](options & o) { o.unequal = true, o.rows = 11; });
    add("unequal lengths and many rows", [](options & o) { o.unequal = true, o.rows = 150, o.heads = 2; });
    add("blocks", [](options & o) { o.unequal = o.blocks = true, o.rows = 11, o.cells = 200; });
    add("blocks and many rows", [](options & o) { o.unequal = o.blocks = true, o.rows = 150, o.heads = 2; });
    add("blocks and long contexts", [](options & o) { o.unequal = o.blocks = true, o.rows = 7, o.cells = 1100; });
    add("infinities that nobody sees", [](options & o) { o.infinite = true, o.rows = 9; });
    add("infinities behind a long context", [](options & o) { o.infinite = true, o.cells = 1300, o.sinks = true; });
    add("scores far apart", [](options & o) { o.spread = 100, o.rows = 70, o.cells = 300; });
    add("infinities, many rows", [](options & o) { o.infinite = true, o.rows = 70, o.sinks = true; });
}

void sizes(options of, std::initializer_list<int64_t> all) {
    for (const int64_t size : all) {
        of.key_size = of.value_size = size;
        agrees(of, size);
        of.rows = 3;
        of.cells = 64;
        agrees(of, size);
        of.rows = 5;
        of.cells = 100;
    }
    of.key_size = all.begin()[all.size() - 1];
    of.value_size = all.begin()[0];
    agrees(of);
}

}  // namespace

void add_attention(test_cases & cases) {
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_F32, GGML_TYPE_BF16 }) {
        const std::string name = ggml_type_name(type);
        add_format(cases, name, with(type));
        cases.push_back({ "attention/" + name + " rows, cells and heads", [type] { shapes(with(type)); } });
        cases.push_back({ "attention/" + name + " scores that are no numbers", [type] { broken_rows(with(type)); } });
        cases.push_back({ "attention/" + name + " sizes of heads", [type] {
            sizes(with(type), { 1, 2, 3, 5, 7, 8, 15, 16, 17, 24, 33, 40, 72, 80, 96, 100, 128, 192, 256 });
        } });
    }
    for (const ggml_type type :
         { GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_IQ4_NL }) {
        const std::string name = ggml_type_name(type);
        add_format(cases, name, with(type));
        cases.push_back({ "attention/" + name + " rows, cells and heads", [type] { shapes(with(type)); } });
        cases.push_back(
            { "attention/" + name + " sizes of heads", [type] { sizes(with(type), { 32, 64, 96, 128, 256 }); } });
    }
    for (const auto & [keys, values] : {
             std::pair(GGML_TYPE_Q8_0, GGML_TYPE_F16), std::pair(GGML_TYPE_F16, GGML_TYPE_Q8_0),
             std::pair(GGML_TYPE_F16, GGML_TYPE_F32), std::pair(GGML_TYPE_F32, GGML_TYPE_F16),
             std::pair(GGML_TYPE_BF16, GGML_TYPE_Q4_0),
         }) {
        options of;
        of.keys = keys, of.values = values;
        add_format(cases, std::string(ggml_type_name(keys)) + " with " + ggml_type_name(values), of);
    }
}

}  // namespace tests
