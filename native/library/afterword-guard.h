#pragma once

#include "afterword.h"

#include <cstdint>
#include <exception>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>

// A text that has characters for which a vocabulary has no tokens, and no token for what is unknown.
struct afterword_unspellable : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The library gave up, and left the call instead of ending the process. Only a guard catches it: it is no std::exception.
struct afterword_gave_up {
    std::string reason;
};

// Keeps what was wrong for llama_afterword_message(), and gives the code.
int32_t afterword_failed(int32_t code, const char * what);

// 0; or the code of what a call threw, because an exception must not leave a function of C.
template <typename Call> int32_t afterword_guarded(Call call) {
    try {
        call();
        return AFTERWORD_OK;
    } catch (const afterword_unspellable & error) {
        return afterword_failed(AFTERWORD_UNSPELLABLE, error.what());
    } catch (const afterword_gave_up & error) {
        return afterword_failed(AFTERWORD_FAILED, error.reason.c_str());
    } catch (const std::bad_alloc &) {
        return afterword_failed(AFTERWORD_FAILED, "there is no memory left");
    } catch (const std::exception & error) {
        return afterword_failed(AFTERWORD_FAILED, error.what());
    } catch (...) {
        return afterword_failed(AFTERWORD_FAILED, "it gives no reason");
    }
}

// The same, with the result of the call.
template <typename Call> int32_t afterword_guarded(std::invoke_result_t<Call> * result, Call call) {
    return afterword_guarded([&] { *result = call(); });
}

// The same for a call that reads what a file says. If the library gives up or crashes in it, the call fails, and leaves its
// memory behind. The call computes nothing, because other threads would wait for this one in the middle of a graph.
int32_t afterword_guarded_load(const std::function<void()> & call);
