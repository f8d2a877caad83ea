// Tokens that are drawn from rows, and their scores. Python compares them with its own sampler, bit for bit.

#include "afterword.h"
#include "backend.h"
#include "tests.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <numeric>

namespace tests {
namespace {

constexpr int MOST_TOP = 8;

struct parameters {
    double temperature = 1, top_p = 1, min_p = 0, typical_p = 1, xtc_threshold = 0.1;
    int    top_k = 0;
    double xtc_probability = 0;
};

// A row with memory of exactly its size.
struct question {
    std::vector<float>   logits;
    parameters           sampling;
    double               uniform = 0.5;
    int                  token = -1, top = -1, ranked = 0;
    std::vector<float>   changed = {};
    std::vector<int64_t> top_ids = {};
    std::vector<double>  top_logprobs = {};

    afterword_row row() {
        const size_t top_size = top < 0 ? 0 : std::min<size_t>(top, logits.size());
        top_ids.resize(top_size);
        top_logprobs.resize(top_size);
        const parameters & p = sampling;
        return { logits.data(), changed.empty() ? nullptr : changed.data(), uniform, 0.25, p.temperature, p.top_p, p.min_p,
                 p.typical_p, p.xtc_probability, p.xtc_threshold, p.top_k, top, ranked, token, 0, -1, 0, 0,
                 top_ids.data(), top_logprobs.data() };
    }
};

// Answers rows of one vocabulary with so many threads.
std::vector<afterword_row> answer(std::vector<question> & questions, int threads, ggml_threadpool_t pool = nullptr) {
    const int    vocabulary = (int) questions.front().logits.size();
    const size_t size = (size_t) cpu_function<decltype(ggml_afterword_draw_room)>("ggml_afterword_draw_room")(vocabulary);
    void *       rooms = nullptr;
    check(posix_memalign(&rooms, 64, size * threads) == 0, "there is no memory");
    const std::unique_ptr<void, decltype(&std::free)> owner(rooms, &std::free);
    // Nothing may depend on what was there.
    std::memset(rooms, 0xff, size * threads);
    std::vector<afterword_row> rows;
    for (question & each : questions) {
        rows.push_back(each.row());
    }
    cpu_function<decltype(ggml_afterword_draw)>("ggml_afterword_draw")(
        pool, threads, vocabulary, rows.data(), (int) rows.size(), rooms);
    return rows;
}

afterword_row answer(question & one) {
    std::vector<question> alone{ one };
    const afterword_row   row = answer(alone, 1).front();
    one.top_ids               = alone.front().top_ids;
    one.top_logprobs          = alone.front().top_logprobs;
    return row;
}

// What survives, with its probability, by sorting in doubles. `slack` makes the filters a little wider, or narrower.
std::vector<double> survivors(const std::vector<float> & logits, const parameters & p, double slack) {
    const int           n = (int) logits.size();
    std::vector<double> weights(n);
    const double        largest = *std::max_element(logits.begin(), logits.end());
    for (int i = 0; i < n; i++) {
        weights[i] = std::exp((logits[i] - largest) / p.temperature);
    }
    std::vector<int> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    if (p.top_k > 0 && p.top_k < n) {
        order.resize(p.top_k);
    }
    double whole = 0, sum = 0;
    for (const int i : order) {
        whole += weights[i];
    }
    std::vector<double> kept(n, 0.0);
    const double goal = std::min(1.0, p.top_p * (1 + slack)) * whole;
    for (const int i : order) {
        if (weights[i] >= p.min_p * (1 - slack)) {
            kept[i] = weights[i];
        }
        sum += weights[i];
        if (sum >= goal) {
            break;
        }
    }
    const double all = std::accumulate(kept.begin(), kept.end(), 0.0);
    for (double & each : kept) {
        each /= all;
    }
    return kept;
}

std::vector<float> random_row(int n, int seed, float size) {
    random_numbers     random(seed);
    std::vector<float> row = random.uniform(n, size);
    // Ties are where a sort may go wrong.
    for (int i = 0; i < n / 5; i++) {
        row[random.below(n)] = row[0];
    }
    return row;
}

// The token is where the number falls among the probabilities of what survives, but for the rounding of floats.
void is_drawn_by_its_share(int n, const parameters & p) {
    random_numbers random(n);
    for (const float size : { 0.01f, 4.0f, 30.0f }) {
        for (int i = 0; i < 20; i++) {
            question one{ random_row(n, i, size), p, (random.uniform() + 1) / 2 };
            const afterword_row row = answer(one);
            check(row.state == AFTERWORD_ROW_DONE && row.token >= 0 && row.token < n, "no token is drawn");
            bool fits = false;
            for (const double slack : { -1e-3, 0.0, 1e-3 }) {
                const std::vector<double> share = survivors(one.logits, p, slack);
                const double below = std::accumulate(share.begin(), share.begin() + row.token, 0.0);
                fits = fits || (share[row.token] > 0 && below - 2e-3 <= one.uniform &&
                                one.uniform <= below + share[row.token] + 2e-3);
            }
            check(fits, "token ", row.token, " of ", n, " is not drawn by ", one.uniform);
        }
    }
}

std::vector<question> many_questions(int n) {
    std::vector<question> all;
    random_numbers        random(n);
    for (int i = 0; i < 24; i++) {
        question one{ random_row(n, i, i % 3 ? 5.0f : 0.1f), {}, (random.uniform() + 1) / 2 };
        one.sampling.temperature     = i % 4 ? 0.8 : 0;
        one.sampling.top_p           = i % 5 ? 0.9 : 1;
        one.sampling.min_p           = i % 7 ? 0 : 0.02;
        one.sampling.typical_p       = i % 6 ? 1 : 0.8;
        one.sampling.xtc_probability = i % 8 ? 0 : 1;
        one.top                      = i % 2 ? MOST_TOP : -1;
        if (i % 3 == 0) {
            one.changed       = one.logits;
            one.changed[i % n] = -INFINITY;
        }
        all.push_back(std::move(one));
    }
    return all;
}

bool same(const question & a, const afterword_row & x, const question & b, const afterword_row & y) {
    return x.state == y.state && x.token == y.token && x.normaliser == y.normaliser && x.logprob == y.logprob &&
           a.top_ids == b.top_ids && a.top_logprobs == b.top_logprobs;
}

void same_in_any_batch(int n, int threads) {
    const auto make = cpu_function<decltype(ggml_afterword_thread_pool)>("ggml_afterword_thread_pool");
    const ggml_threadpool_t pool = make(threads, 1);
    std::vector<question>   together = many_questions(n);
    for (int round = 0; round < 5; round++) {
        const std::vector<afterword_row> rows = answer(together, threads, pool);
        for (size_t i = 0; i < together.size(); i++) {
            question            alone = many_questions(n)[i];
            const afterword_row row   = answer(alone);
            check(same(alone, row, together[i], rows[i]), "row ", i, " of ", n, " differs in a batch");
        }
    }
    cpu_function<void(ggml_threadpool_t)>("ggml_threadpool_free")(pool);
}

void scores_are_exact(int n) {
    for (const float size : { 0.1f, 5.0f, 50.0f }) {
        question one{ random_row(n, n, size), {} };
        one.token  = n / 2;
        one.top    = MOST_TOP;
        one.ranked = 1;
        const afterword_row row = answer(one);
        double              sum = 0;
        for (const float logit : one.logits) {
            sum += std::exp((double) logit);
        }
        check(std::abs(row.normaliser - std::log(sum)) <= 1e-5, "the normaliser is ", row.normaliser);
        check(row.logprob == one.logits[n / 2] - row.normaliser, "the log-probability is ", row.logprob);
        std::vector<int64_t> order(n);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return one.logits[a] > one.logits[b]; });
        order.resize(std::min(n, MOST_TOP));
        check(order == one.top_ids, "the top entries differ");
        const float own = one.logits[n / 2];
        check(row.rank == std::count_if(one.logits.begin(), one.logits.end(), [&](float x) { return x >= own; }),
              "the rank is ", row.rank);
    }
}

void broken_rows_are_found(int n) {
    for (const float wrong : { NAN, INFINITY }) {
        for (const int at : { 0, n / 2, n - 1 }) {
            for (const double temperature : { 0.0, 0.7, 1.0 }) {
                question one{ random_row(n, at, 3.0f), {} };
                one.sampling.temperature = temperature;
                one.changed              = one.logits;
                one.logits[at]           = wrong;
                check(answer(one).state == AFTERWORD_ROW_BROKEN, wrong, " at ", at, " is not found");
                std::swap(one.logits, one.changed);
                one.changed.assign(n, -INFINITY);
                check(answer(one).state == AFTERWORD_ROW_NOTHING, "a token is drawn of none");
            }
        }
    }
    question none{ std::vector<float>(n, -INFINITY), {} };
    check(answer(none).state == AFTERWORD_ROW_BROKEN, "a row of minus infinity is not found");
}

void highest_is_taken(int n) {
    question one{ std::vector<float>(n, -1.0f), {} };
    one.logits[n / 3] = one.logits[n - 1] = 2.0f;
    for (int way = 0; way < 3; way++) {
        one.sampling             = {};
        one.sampling.temperature = way == 0 ? 0 : 1;
        one.sampling.top_p       = way == 1 ? 0 : 1;
        one.sampling.top_k       = way == 2 ? 1 : 0;
        check(answer(one).token == n / 3, "not the highest logit, or not the first of two");
    }
}

}  // namespace

void add_draw(test_cases & cases) {
    const std::vector<std::pair<const char *, parameters>> kinds = {
        { "temperature 0.5", { 0.5 } },      { "top_p", { 1, 0.9 } },     { "top_p 0.3", { 2, 0.3 } },
        { "min_p", { 1, 1, 0.05 } },         { "top_k", { 1, 1, 0, 1, 0.1, 5 } },
        { "top_k, top_p", { 1, 0.8, 0, 1, 0.1, 300 } },
    };
    // Behind the last whole register exponentials round otherwise, so that equal logits weigh differently.
    for (const int n : { 1, 16, 240, 256, 272, 3008, 50000 }) {
        for (const auto & kind : kinds) {
            const parameters p = kind.second;
            cases.push_back({ std::string("draw/") + kind.first + " of " + std::to_string(n),
                              [=] { is_drawn_by_its_share(n, p); } });
        }
    }
    for (const int n : { 1, 7, 255, 256, 257, 3000, 50000 }) {
        const std::string size = " of " + std::to_string(n);
        cases.push_back({ "draw/scores" + size, [=] { scores_are_exact(n); } });
        cases.push_back({ "draw/broken rows" + size, [=] { broken_rows_are_found(n); } });
        cases.push_back({ "draw/the highest" + size, [=] { highest_is_taken(n); } });
        for (const int threads : { 1, 2, 5 }) {
            cases.push_back({ "draw/" + std::to_string(threads) + " threads, any batch" + size,
                              [=] { same_in_any_batch(n, threads); } });
        }
    }
}

}  // namespace tests
