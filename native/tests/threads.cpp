// Pools of threads.

#include "afterword.h"
#include "allocations.h"
#include "backend.h"
#include "tests.h"

#include <atomic>
#include <thread>

namespace tests {
namespace {

// A pool of threads, and a backend that computes with it.
class pool {
public:
    pool(int threads, uint32_t poll)
        : threads(cpu_function<decltype(ggml_afterword_thread_pool)>("ggml_afterword_thread_pool")(threads, poll)),
          backend(cpu_function<ggml_backend_t()>("ggml_backend_cpu_init")()) {
        check(this->threads && backend, "there is no pool");
        cpu_function<void(ggml_backend_t, int)>("ggml_backend_cpu_set_n_threads")(backend, threads);
        cpu_function<void(ggml_backend_t, ggml_threadpool_t)>("ggml_backend_cpu_set_threadpool")(backend, this->threads);
    }
    ~pool() {
        ggml_backend_free(backend);
        cpu_function<void(ggml_threadpool_t)>("ggml_threadpool_free")(threads);
    }
    pool(const pool &) = delete;
    pool & operator=(const pool &) = delete;

    const ggml_threadpool_t threads;
    const ggml_backend_t    backend;
};

// Operations of every kind that threads share: products of packed weights, with one stage or two; products whose parts
// wait for each other; large ones and small ones between them; rows that are written into a larger tensor.
struct chain {
    static constexpr int64_t SIZE = 64, LAYERS = 6;

    explicit chain(int64_t columns) {
        random_numbers random(columns);
        const auto packed = random.uniform(SIZE * SIZE), plain = random.uniform(SIZE * SIZE);
        const auto input  = random.uniform(SIZE * columns);
        std::vector<int64_t> backwards(columns);
        for (int64_t i = 0; i < columns; i++) {
            backwards[i] = columns - 1 - i;
        }
        ggml_context * context = all.context();
        ggml_tensor *  a       = all.make(packed_buffer_type(), GGML_TYPE_F32, { SIZE, SIZE }, packed.data());
        ggml_tensor *  b       = all.make(GGML_TYPE_F32, { SIZE, SIZE }, plain.data());
        ggml_tensor *  cache   = all.make(GGML_TYPE_F32, { SIZE, columns + SIZE });
        ggml_tensor *  places  = all.make(GGML_TYPE_I64, { columns }, backwards.data());
        result                 = all.make(GGML_TYPE_F32, { SIZE, columns }, input.data());
        for (int64_t i = 0; i < LAYERS; i++) {
            result = ggml_mul_mat(context, a, ggml_rms_norm(context, result, 1e-5f));
            result = ggml_mul_mat(context, b, ggml_silu(context, result));
            result = ggml_add(context, result, ggml_soft_max(context, result));
            result = ggml_set_rows(context, cache, result, places);
            result = ggml_view_2d(context, result, SIZE, columns, result->nb[1], 0);
        }
    }

    std::vector<float> by(ggml_backend_t backend) { return all.compute(result, backend); }

    tensors       all;
    ggml_tensor * result;
};

// Each graph has the bits of one thread, though there are more threads than processors, and other loads beside them.
void many_graphs(int threads, uint32_t poll, int64_t columns) {
    const auto expected = chain(columns).by(cpu_backend(1));
    pool       ours(threads, poll);
    for (int i = 0; i < 40; i++) {
        check(chain(columns).by(ours.backend) == expected, "graph ", i, " differs");
    }
}

void beside_loops() {
    std::atomic<bool>        stop{ false };
    std::vector<std::thread> loops;
    for (unsigned i = 0; i < 2 * std::max(1u, std::thread::hardware_concurrency()); i++) {
        loops.emplace_back([&] {
            while (!stop) {
            }
        });
    }
    bool same = true;
    {
        const auto expected = chain(40).by(cpu_backend(1));
        pool       ours(3, 1);
        for (int i = 0; i < 10; i++) {
            same = same && chain(40).by(ours.backend) == expected;
        }
    }
    stop = true;
    for (std::thread & loop : loops) {
        loop.join();
    }
    check(same, "a graph differs");
}

// Two pools compute at the same time; each graph may use fewer threads than its pool has.
void two_pools() {
    const auto        expected = chain(7).by(cpu_backend(1));
    std::atomic<bool> same{ true };
    const auto        many = [&] {
        pool ours(3, 0);
        for (int i = 0; i < 30; i++) {
            cpu_function<void(ggml_backend_t, int)>("ggml_backend_cpu_set_n_threads")(ours.backend, 1 + i % 3);
            if (chain(7).by(ours.backend) != expected) {
                same = false;
            }
        }
    };
    std::thread other(many);
    many();
    other.join();
    check(same, "a graph differs");
}

// A graph that is told to stop does, whichever thread asks, and the next one is computed.
void stops() {
    const auto expected = chain(5).by(cpu_backend(1));
    pool       ours(3, 1);
    const auto listen = cpu_function<void(ggml_backend_t, ggml_abort_callback, void *)>("ggml_backend_cpu_set_abort_callback");
    for (int after : { 0, 1, 7 }) {
        std::atomic<int> left{ after };
        listen(ours.backend, [](void * count) { return --*(std::atomic<int> *) count < 0; }, &left);
        chain one(5);
        check(ggml_backend_graph_compute(ours.backend, one.all.graph_of(one.result)) == GGML_STATUS_ABORTED,
              "it did not stop after ", after);
        listen(ours.backend, nullptr, nullptr);
        check(chain(5).by(ours.backend) == expected, "the next graph differs");
    }
}

// Memory that a thread of the pool asks for in vain would end the process. What the graph needs is there before it begins.
void allocates_nothing(int64_t tokens) {
    constexpr int64_t SIZE = 64, EXPERTS = 6, USED = 2;
    random_numbers       random(3);
    const auto           weights = random.uniform(SIZE * SIZE * EXPERTS), input = random.uniform(SIZE * tokens);
    std::vector<int32_t> chosen(USED * tokens);
    for (int64_t i = 0; i < USED * tokens; i++) {
        chosen[i] = (int32_t) (i % EXPERTS);
    }
    chain          one(tokens);
    ggml_context * context = one.all.context();
    ggml_tensor *  experts = one.all.make(packed_buffer_type(), GGML_TYPE_F32, { SIZE, SIZE, EXPERTS }, weights.data());
    ggml_tensor *  ids     = one.all.make(GGML_TYPE_I32, { USED, tokens }, chosen.data());
    const size_t   stride  = one.result->nb[1];
    ggml_tensor *  columns = ggml_view_3d(context, one.result, SIZE, 1, tokens, stride, stride, 0);
    ggml_cgraph *  graph   = one.all.graph_of(ggml_mul_mat_id(context, experts, columns, ids));
    pool           ours(3, 1);
    for (const bool first : { true, false }) {
        const allocations counted;
        check(ggml_backend_graph_compute(ours.backend, graph) == GGML_STATUS_SUCCESS, "the graph was not computed");
        check(first || counted.made() == 0, "it allocates memory ", counted.made(), " times");
    }
}

std::vector<float> product(ggml_backend_t backend) {
    random_numbers           random(1);
    tensors                  all;
    const std::vector<float> weights = random.uniform(64 * 48), columns = random.uniform(64 * 5);
    ggml_tensor * a = all.make(packed_buffer_type(), GGML_TYPE_F32, { 64, 48 }, weights.data());
    ggml_tensor * b = all.make(GGML_TYPE_F32, { 64, 5 }, columns.data());
    return all.compute(ggml_mul_mat(all.context(), a, b), backend);
}

}  // namespace

void add_threads(test_cases & cases) {
    for (const int threads : { 1, 2, 3, 8 }) {
        for (const int64_t columns : { 1, 4, 5, 80 }) {
            cases.push_back({ "threads/" + std::to_string(threads) + " compute graphs of " + std::to_string(columns) +
                              " columns", [=] { many_graphs(threads, columns % 2, columns); } });
        }
    }
    cases.push_back({ "threads/beside endless loops", beside_loops });
    cases.push_back({ "threads/two pools at once", two_pools });
    cases.push_back({ "threads/a graph that stops", stops });
    for (const int64_t tokens : { 1, 40 }) {
        cases.push_back({ "threads/a graph of " + std::to_string(tokens) + " columns allocates nothing",
                          [=] { allocates_nothing(tokens); } });
    }
    for (const int threads : { 1, 2, 5 }) {
        for (const uint32_t poll : { 0u, 50u, 100u }) {
            const std::string name =
                "threads/a pool of " + std::to_string(threads) + " that polls " + std::to_string(poll);
            cases.push_back({ name, [=] {
                using set_pool      = void(ggml_backend_t, ggml_threadpool_t);
                using free_pool     = void(ggml_threadpool_t);
                const auto use      = cpu_function<set_pool>("ggml_backend_cpu_set_threadpool");
                const auto expected = product(cpu_backend(1));
                const auto pool =
                    cpu_function<decltype(ggml_afterword_thread_pool)>("ggml_afterword_thread_pool")(threads, poll);
                check(pool != nullptr, "there is no pool");
                ggml_backend_t backend = cpu_backend(threads);
                use(backend, pool);
                const auto first = product(backend), second = product(backend);
                use(backend, nullptr);
                cpu_function<free_pool>("ggml_threadpool_free")(pool);
                check(first == expected && second == expected, "the product differs");
            } });
        }
    }
}

}  // namespace tests
