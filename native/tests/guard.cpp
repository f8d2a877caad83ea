// The guard: an exception of C++ becomes a code and a message.

#include "afterword-guard.h"
#include "tests.h"

#include <atomic>
#include <csignal>
#include <thread>

namespace tests {
namespace {

void gives(int32_t got, int32_t code, const std::string & message) {
    check(got == code, "the code is ", got, ", not ", code);
    check(llama_afterword_message() == message, "the message is \"", llama_afterword_message(), "\"");
}

}  // namespace

void add_guard(test_cases & cases) {
    cases.push_back({ "guard/a call that works leaves its result", [] {
        int result = 0;
        check(afterword_guarded(&result, [] { return 7; }) == AFTERWORD_OK && result == 7, "the result is ", result);
    } });
    cases.push_back({ "guard/an exception becomes a code and a message", [] {
        int result = 5;
        gives(afterword_guarded(&result, []() -> int { throw std::runtime_error("no such tensor"); }),
              AFTERWORD_FAILED, "no such tensor");
        gives(afterword_guarded(&result, []() -> int { throw std::out_of_range("map::at"); }), AFTERWORD_FAILED,
              "map::at");
        gives(afterword_guarded(&result, []() -> int { throw afterword_unspellable("no token for \xc3\xa9"); }),
              AFTERWORD_UNSPELLABLE, "no token for \xc3\xa9");
        gives(afterword_guarded(&result, []() -> int { throw std::bad_alloc(); }), AFTERWORD_FAILED,
              "there is no memory left");
        gives(afterword_guarded(&result, []() -> int { throw 3; }), AFTERWORD_FAILED, "it gives no reason");
        check(result == 5, "a call that failed wrote ", result);
    } });
    cases.push_back({ "guard/a load fails if the library gives up", [] {
        llama_afterword_on_abort([](const char *) {});
        const int32_t code = afterword_guarded_load([] { ggml_abort("/a folder/ggml.c", 7, "no such %s", "thing"); });
        llama_afterword_on_abort(nullptr);
        gives(code, AFTERWORD_FAILED, "ggml.c:7: no such thing");
    } });
    cases.push_back({ "guard/a load fails if it crashes, and the next does not", [] {
        for (int i = 0; i < 2; i++) {
            gives(afterword_guarded_load([] { raise(SIGFPE); }), AFTERWORD_FAILED, "it divides by zero");
            gives(afterword_guarded_load([] { raise(SIGSEGV); }), AFTERWORD_FAILED,
                  "it reads memory that is not there");
            check(afterword_guarded_load([] {}) == AFTERWORD_OK, "a load that works fails");
        }
    } });
    cases.push_back({ "guard/loads of several threads crash side by side", [] {
        std::vector<std::thread> threads;
        std::atomic<int> failed{ 0 };
        for (int i = 0; i < 4; i++) {
            threads.emplace_back([&] {
                for (int j = 0; j < 50; j++) {
                    failed += afterword_guarded_load([] { raise(SIGSEGV); }) == AFTERWORD_FAILED;
                }
            });
        }
        for (std::thread & thread : threads) {
            thread.join();
        }
        check(failed == 200, failed.load(), " of 200 failed");
    } });
    cases.push_back({ "guard/a long message is cut", [] {
        gives(afterword_guarded([] { throw std::runtime_error(std::string(5000, 'x')); }), AFTERWORD_FAILED,
              std::string(255, 'x'));
    } });
    cases.push_back({ "guard/each thread has a message of its own", [] {
        afterword_guarded([] { throw std::runtime_error("mine"); });
        std::string other;
        std::thread([&] {
            afterword_guarded([] { throw std::runtime_error("theirs"); });
            other = llama_afterword_message();
        }).join();
        check(other == "theirs" && llama_afterword_message() == std::string("mine"), "the messages are mixed");
    } });
}

}  // namespace tests
