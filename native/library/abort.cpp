// What becomes of a call in which the library gives up or crashes: some calls fail, others end the process.

#include "afterword-guard.h"
#include "afterword.h"

#include <csetjmp>
#include <csignal>

#include <algorithm>
#include <atomic>
#include <iterator>
#include <mutex>
#include <string>

namespace {

std::atomic<ggml_abort_callback_t> listener{ nullptr };

// Where a call of this thread goes on if it crashes; null unless it is a load.
thread_local sigjmp_buf * way_out = nullptr;

constexpr int SIGNALS[] = { SIGSEGV, SIGBUS, SIGFPE };
struct sigaction before[std::size(SIGNALS)];
std::mutex       loads_lock;
int              loads = 0;

// A message begins with a file, and its path is that of the machine that compiled the library.
const char * without_folder(const char * message) {
    const std::string text = message, file = text.substr(0, text.find(':'));
    const size_t      slash = file.find_last_of("/\\");
    return message + (slash == std::string::npos ? 0 : slash + 1);
}

void leave_or_tell(const char * message) {
    const char * reason = without_folder(message);
    if (way_out) {
        throw afterword_gave_up{ reason };
    }
    listener.load()(reason);
}

void leave_or_crash(int number, siginfo_t *, void *) {
    if (way_out) {
        siglongjmp(*way_out, number);
    }
    // Another thread crashed: with the handler from before, it does so again.
    const size_t place = std::find(std::begin(SIGNALS), std::end(SIGNALS), number) - SIGNALS;
    sigaction(number, &before[place], nullptr);
}

void count_loads(int change) {
    const std::lock_guard<std::mutex> one_at_a_time(loads_lock);
    if (loads == 0) {
        struct sigaction ours = {};
        ours.sa_sigaction     = leave_or_crash;
        ours.sa_flags         = SA_SIGINFO | SA_ONSTACK;
        for (size_t i = 0; i < std::size(SIGNALS); i++) {
            sigaction(SIGNALS[i], &ours, &before[i]);
        }
    }
    loads += change;
    if (loads == 0) {
        for (size_t i = 0; i < std::size(SIGNALS); i++) {
            sigaction(SIGNALS[i], &before[i], nullptr);
        }
    }
}

}  // namespace

int32_t afterword_guarded_load(const std::function<void()> & call) {
    sigjmp_buf here;
    count_loads(1);
    // The signal is unblocked again, because a crash ends its handler without a return.
    const int number = sigsetjmp(here, 1);
    int32_t   code   = AFTERWORD_FAILED;
    if (number == 0) {
        way_out = &here;
        code    = afterword_guarded(call);
    } else {
        afterword_failed(code, number == SIGFPE ? "it divides by zero" : "it reads memory that is not there");
    }
    way_out = nullptr;
    count_loads(-1);
    return code;
}

extern "C" void llama_afterword_on_abort(ggml_abort_callback_t told) {
    listener = told;
    ggml_set_abort_callback(told ? leave_or_tell : nullptr);
}
