// Pools of threads.

#include "afterword.h"
#include "backend.h"
#include "tests.h"

namespace tests {
namespace {

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
