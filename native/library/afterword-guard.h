#pragma once

#include <cstdint>
#include <exception>
#include <new>
#include <stdexcept>
#include <type_traits>

constexpr int32_t AFTERWORD_FAILED      = 1;
constexpr int32_t AFTERWORD_UNSPELLABLE = 2;

// A text that has characters for which a vocabulary has no tokens, and no token for what is unknown.
struct afterword_unspellable : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Keeps what was wrong for llama_afterword_message(), and gives the code.
int32_t afterword_failed(int32_t code, const char * what);

// 0, with the result of a call; or the code of what it threw.
template <typename Call> int32_t afterword_guarded(std::invoke_result_t<Call> * result, Call call) {
    try {
        *result = call();
        return 0;
    } catch (const afterword_unspellable & error) {
        return afterword_failed(AFTERWORD_UNSPELLABLE, error.what());
    } catch (const std::bad_alloc &) {
        return afterword_failed(AFTERWORD_FAILED, "there is no memory left");
    } catch (const std::exception & error) {
        return afterword_failed(AFTERWORD_FAILED, error.what());
    } catch (...) {
        return afterword_failed(AFTERWORD_FAILED, "it gives no reason");
    }
}
