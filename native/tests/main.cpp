// Runs the tests: all of them, or those whose names begin as an argument does. --list prints the names.
//
// A line for each test, "ok NAME" or "FAILED NAME: reason". Returns 1 if a test failed, or if there is none to run.

#include "backend.h"
#include "tests.h"

#include "ggml-backend.h"

#include <cstdio>

namespace {

// Of the library: its debug messages are for those who debug it.
void log_grave(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) {
        std::fputs(text, stderr);
    }
}

bool is_wanted(const std::string & name, int argc, char ** argv) {
    for (int i = 1; i < argc; i++) {
        if (name.rfind(argv[i], 0) == 0) {
            return true;
        }
    }
    return argc == 1;
}

bool passes(const tests::test_case & test) {
    try {
        test.run();
        std::printf("ok %s\n", test.name.c_str());
        return true;
    } catch (const std::exception & error) {
        std::printf("FAILED %s: %s\n", test.name.c_str(), error.what());
        return false;
    }
}

}  // namespace

int main(int argc, char ** argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
    ggml_log_set(log_grave, nullptr);

    tests::test_cases all;
    for (const auto add : {
             tests::add_attention, tests::add_draw, tests::add_experts, tests::add_exponentials, tests::add_guard,
             tests::add_memory, tests::add_packed, tests::add_regex, tests::add_threads, tests::add_tokenizers,
         }) {
        add(all);
    }
    if (argc == 2 && std::string(argv[1]) == "--list") {
        for (const auto & test : all) {
            std::printf("%s\n", test.name.c_str());
        }
        return 0;
    }
    std::printf("kernels %s\n", tests::packed_kernels_in_use());
    int run = 0, failed = 0;
    for (const auto & test : all) {
        if (is_wanted(test.name, argc, argv)) {
            run++;
            failed += !passes(test);
        }
    }
    std::printf("%d of %d tests pass\n", run - failed, run);
    return failed > 0 || run == 0;
}
