// Rows of a step are drawn and scored by all threads.

#include "draw_row.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <algorithm>
#include <atomic>

namespace {

struct rows_at_hand {
    afterword_row *  rows;
    int32_t          count;
    int32_t          vocabulary;
    char *           rooms;
    std::atomic<int> next{ 0 };

    // Each thread takes the next row, so one that does not run holds up the row that it has.
    void take(int seat) {
        const afterword::draw_room room(vocabulary, rooms + seat * afterword::draw_room::size(vocabulary));
        for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
            afterword::draw_row(rows[i], room);
        }
    }
};

}  // namespace

extern "C" int64_t ggml_afterword_draw_room(int32_t vocabulary) {
    return (int64_t) afterword::draw_room::size(vocabulary);
}

extern "C" void ggml_afterword_draw(
    ggml_threadpool_t pool, int32_t threads, int32_t vocabulary, struct afterword_row * rows, int32_t count, void * rooms) {
    rows_at_hand work{ rows, count, vocabulary, (char *) rooms };
    threads = std::min(threads, count);
    if (pool == nullptr || threads <= 1) {
        work.take(0);
        return;
    }
    // A graph of one operation, whose parts take rows until there are none.
    alignas(GGML_MEM_ALIGN) char memory[8192];
    ggml_context * context = ggml_init({ sizeof(memory), memory, true });
    ggml_tensor *  all     = ggml_custom_4d(
        context, GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0,
        [](ggml_tensor *, int seat, int, void * data) { ((rows_at_hand *) data)->take(seat); }, threads, &work);
    ggml_cgraph * graph = ggml_new_graph_custom(context, 1, false);
    ggml_build_forward_expand(graph, all);
    ggml_cplan plan = ggml_graph_plan(graph, threads, pool);
    ggml_graph_compute(graph, &plan);
    ggml_free(context);
}
