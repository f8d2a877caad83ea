// Regular expressions of pre-tokenizers, against std::regex.

#include "afterword-regex.h"

#include "tests.h"

#include <regex>

namespace tests {
namespace {

// Those of pre-tokenizers, in the alphabet that llama.cpp gives to std::regex, and ones with each part of the dialect.
const char * const EXPRESSIONS[] = {
    "\\s+$",
    "[\\r\\n]",
    "'s|'t|'re|'ve|'m|'ll|'d| ?[a-zA-Z]+| ?[0-9]+| ?[^\\sa-zA-Z0-9]+|\\s+(?!\\S)|\\s+",
    "(?:'[sS]|'[tT]|'[rR][eE])|[^\\r\\na-zA-Z0-9]?[a-zA-Z]+|[0-9]{1,3}| ?[^\\sa-zA-Z0-9]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    "[0-9][0-9][0-9]|[0-9]",
    "(a|ab)(c|bcd)?",
    "a{2,3}b?|[^ab]+",
    "(?=aa)a|b+(?!c)",
    "\\S+|\\d",
    "(a*b)+",
};

std::vector<size_t> split_by_standard(const std::string & text, const std::string & expression) {
    const std::regex    regex(expression);
    std::vector<size_t> lengths;
    size_t              done = 0;
    for (std::sregex_iterator at(text.begin(), text.end(), regex), end; at != end; ++at) {
        if ((size_t) at->position() > done) {
            lengths.push_back(at->position() - done);
        }
        lengths.push_back(at->length());
        done = at->position() + at->length();
    }
    if (done < text.size()) {
        lengths.push_back(text.size() - done);
    }
    return lengths;
}

void agrees(const std::string & expression) {
    const std::string alphabet = "abcsS'tTre01 \n\r\t.!";
    random_numbers    random(5);
    for (int round = 0; round < 400; round++) {
        std::string text;
        for (int64_t n = 1 + random.below(24); n > 0; n--) {
            text += alphabet[random.below((int64_t) alphabet.size())];
        }
        const auto got = afterword_regex_split(text, expression, { text.size() });
        check(got == split_by_standard(text, expression), "\"", text, "\" is cut into ", got.size(), " parts");
        const std::wstring wide(text.begin(), text.end());
        const auto of_wide = afterword_regex_split(wide, std::wstring(expression.begin(), expression.end()), { text.size() });
        check(got == of_wide, "\"", text, "\" is cut otherwise as wide characters");
    }
}

void long_runs() {
    for (const char * expression : EXPRESSIONS) {
        for (const char c : { 'a', ' ', '0', '!' }) {
            const std::string text(200000, c);
            size_t            total = 0;
            for (const size_t length : afterword_regex_split(text, std::string(expression), { text.size() })) {
                total += length;
            }
            check(total == text.size(), expression, ": ", total, " of ", text.size());
        }
    }
}

void parts_stay_apart() {
    const std::string text = "aaabbb";
    const auto        got  = afterword_regex_split(text, std::string("a+b+|b+"), { 2, 2, 2 });
    check(got == std::vector<size_t>{ 2, 2, 2 }, "it gives ", got.size(), " parts");
    check(afterword_regex_split(std::string(), std::string("a+"), {}).empty(), "an empty text has parts");
}

void refused() {
    for (const char * expression : { "a*?", "(a", "a)", "[a", "(?<=a)b", "\\p{L}", "a\\1", "*" }) {
        bool thrown = false;
        try {
            afterword_regex_split(std::string("aab"), std::string(expression), { 3 });
        } catch (const std::runtime_error &) {
            thrown = true;
        }
        check(thrown, expression, " is not refused");
    }
}

}  // namespace

void add_regex(test_cases & cases) {
    for (const char * expression : EXPRESSIONS) {
        cases.push_back({ std::string("regex/") + expression, [expression] { agrees(expression); } });
    }
    cases.push_back({ "regex/long runs", long_runs });
    cases.push_back({ "regex/parts stay apart", parts_stay_apart });
    cases.push_back({ "regex/what is not in the dialect is refused", refused });
}

}  // namespace tests
