// Threads take the parts of an operation in turns, whichever of them run. ggml gives each thread a part of its own, and
// lets all wait for all behind each operation. A thread that does not run, because something else does, then holds up
// the others for milliseconds, hundreds of times a step. Here a thread that runs takes the parts of one that does not.
//
//   seat    a part of an operation, `ith` of `nth`; a thread that takes it computes it to the end
//   turn    an operation, or a stage of one; open until all of its seats are done
//
// Who does the last seat of a turn opens the next. Small operations have one seat: that thread computes them at once,
// and nobody else learns of them.

#include "turns.h"

#include "ggml.h"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include <pthread.h>

#if defined(__x86_64__) || defined(_M_X64)
#    include <immintrin.h>
#endif

namespace {

// So many pauses are 20 to 100 microseconds: longer than a thread that runs needs for the rest of its part, shorter than
// a thread that does not run needs to come back.
constexpr int SPINS = 2000;

// Rows of so few values are one thread's work: the others would take as long to learn of it.
constexpr int64_t SMALL = 4096;

// What the threads read and change together: the number of a turn, its seats, and the next seat.
class state {
    static constexpr int BITS = 16, MASK = (1 << BITS) - 1;

public:
    static constexpr int DONE = MASK;  // for seats: the graph is done

    explicit state(uint64_t bits) : bits_(bits) {}
    state(uint64_t turn, int seats, int next) : bits_(turn << 2 * BITS | (uint64_t) seats << BITS | (uint64_t) next) {}

    uint64_t bits() const { return bits_; }
    uint64_t turn() const { return bits_ >> 2 * BITS; }
    int      seats() const { return (int) (bits_ >> BITS & MASK); }
    int      next() const { return (int) (bits_ & MASK); }
    bool     done() const { return seats() == DONE; }
    bool     has_seat() const { return !done() && next() < seats(); }

private:
    uint64_t bits_;
};

bool is_small(const ggml_tensor * op) {
    // The result of this one is all of the memory that it writes some rows of.
    const ggml_tensor * rows = op->op == GGML_OP_SET_ROWS ? op->src[0] : op;
    return ggml_nelements(rows) <= SMALL;
}

// What is known of an operation before it is computed.
struct division {
    int  seats;
    int  stages;
    bool apart;       // no seat waits for another
    bool last_alone;  // the last stage has one seat

    int seats_of(int stage) const { return last_alone && stages > 1 && stage == stages - 1 ? 1 : seats; }
};

division division_of(const ggml_tensor * op, int threads, bool reference) {
    switch (op->op) {
        case GGML_OP_MUL_MAT:
        case GGML_OP_MUL_MAT_ID: {
            const int stages = afterword_packed_stages(op);
            return { threads, stages ? stages : 1, stages > 0, false };
        }
        case GGML_OP_FLASH_ATTN_EXT:
            // The attention of ours waits only until its chunks are counted anew, which is done here.
            return { threads, reference ? 1 : afterword_attention_stages(op, threads), !reference, true };
        // These divide rows or values among threads, and wait for nothing.
        case GGML_OP_ADD:
        case GGML_OP_ADD_ID:
        case GGML_OP_ARGSORT:
        case GGML_OP_CLAMP:
        case GGML_OP_CONCAT:
        case GGML_OP_CONT:
        case GGML_OP_CPY:
        case GGML_OP_DIV:
        case GGML_OP_GET_ROWS:
        case GGML_OP_GLU:
        case GGML_OP_L2_NORM:
        case GGML_OP_MUL:
        case GGML_OP_NORM:
        case GGML_OP_REPEAT:
        case GGML_OP_RMS_NORM:
        case GGML_OP_ROPE:
        case GGML_OP_SCALE:
        case GGML_OP_SET_ROWS:
        case GGML_OP_SOFT_MAX:
        case GGML_OP_SQR:
        case GGML_OP_SQRT:
        case GGML_OP_SUB:
        case GGML_OP_SUM_ROWS:
        case GGML_OP_UNARY:
            return { is_small(op) ? 1 : threads, 1, true, false };
        default:
            return { threads, 1, false, false };
    }
}

}  // namespace

struct afterword_turns {
    // Returns when the state is another.
    void wait(state old) {
        for (int i = 0; i < SPINS; i++) {
            if (now_.load(std::memory_order_relaxed) != old.bits()) {
                return;
            }
            afterword_turns_pause(0);
        }
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        while (now_.load() == old.bits()) {
            // The wait() of the standard library needs a libstdc++ of 2022.
            pthread_cond_wait(changed_.native_handle(), mutex_.native_handle());
        }
        sleepers_.fetch_sub(1);
    }

    void show(int seats, int next) {
        now_.store(state(++turn_, seats, next).bits());
        // In one order with what wait() does: either it sees the state, or this sees the sleeper.
        if (sleepers_.load() > 0) {
            const std::lock_guard<std::mutex> lock(mutex_);
            changed_.notify_all();
        }
    }

    void take(ggml_threadpool * pool, bool leads) {
        int node = 0;
        for (;;) {
            int seat = 0;
            if (leads) {
                if (!open(pool, node)) {
                    return;
                }
            } else {
                const state seen(now_.load(std::memory_order_acquire));
                if (seen.done()) {
                    return;
                }
                uint64_t expected = seen.bits();
                if (!seen.has_seat()) {
                    wait(seen);
                    continue;
                }
                if (!now_.compare_exchange_strong(expected, expected + 1, std::memory_order_acq_rel)) {
                    continue;
                }
                seat = seen.next();
            }
            const int with = afterword_pool_compute(pool, node_, seat, division_.seats_of(stage_));
            // Nobody holds a seat when the last one is done, and nobody else writes what belongs to the turn.
            leads = left_.fetch_sub(1, std::memory_order_acq_rel) == 1;
            if (leads) {
                node = ++stage_ < division_.stages ? node_ : node_ + 1 + with;
            }
        }
    }

    // Computes what has one seat, and opens the turn behind it, with its first seat taken. Returns false in the end.
    bool open(ggml_threadpool * pool, int node) {
        for (const ggml_tensor * op; (op = afterword_pool_node(pool, &node)) != nullptr;) {
            if (node != node_) {
                node_     = node;
                stage_    = 0;
                division_ = division_of(op, threads_, reference_);
            }
            int with = 0;
            for (; stage_ < division_.stages; stage_++) {
                const int seats = division_.seats_of(stage_);
                afterword_pool_chunk(pool, seats);
                if (seats > 1) {
                    left_.store(seats, std::memory_order_relaxed);
                    show(seats, 1);
                    return true;
                }
                with = afterword_pool_compute(pool, node, 0, 1);
            }
            node += 1 + with;
        }
        show(state::DONE, 0);
        return false;
    }

    // Nobody may take a seat before the leader opens a turn.
    void begin(int threads, bool reference) {
        node_      = -1;
        threads_   = threads;
        reference_ = reference;
        show(0, 0);
    }

    bool apart() const { return division_.apart; }
    int  stage() const { return stage_; }

private:
    alignas(64) std::atomic<uint64_t> now_{ state(0, state::DONE, 0).bits() };
    alignas(64) std::atomic<int> left_{ 0 };  // seats of the turn that are not done

    // Of the turn at hand. Written while no seat is taken; read by those who have one.
    int      node_     = -1;
    int      stage_    = 0;
    division division_ = { 1, 1, false, false };
    uint64_t turn_     = 0;
    int      threads_   = 1;
    bool     reference_ = false;

    std::atomic<int>        sleepers_{ 0 };
    std::mutex              mutex_;
    std::condition_variable changed_;
};

afterword_turns * afterword_turns_new(void) { return new afterword_turns; }
void              afterword_turns_free(afterword_turns * turns) { delete turns; }

bool              afterword_turns_apart(const afterword_turns * turns) { return turns->apart(); }
int afterword_turns_stage(const ggml_threadpool * pool) { return afterword_pool_turns(pool)->stage(); }

void afterword_turns_begin(afterword_turns * turns, int threads, bool reference) { turns->begin(threads, reference); }

void afterword_turns_take(afterword_turns * turns, ggml_threadpool * pool, bool leads) {
    turns->take(pool, leads);
}

void afterword_turns_pause(int times) {
    if (times >= SPINS) {
        std::this_thread::yield();
        return;
    }
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && !defined(_MSC_VER)
    __asm__ volatile("yield" ::: "memory");
#endif
}
