// What of the tokenizers needs no vocabulary.

#include "afterword-tokenizers.h"

#include "tests.h"

#include <algorithm>
#include <map>
#include <set>

namespace tests {
namespace {

struct trie {
    std::map<char, trie> children;
    bool                 has_value = false;

    void insert(const std::string & key) {
        trie * node = this;
        for (const char c : key) {
            node = &node->children[c];
        }
        node->has_value = true;
    }

    const trie * traverse(char c) const {
        const auto found = children.find(c);
        return found == children.end() ? nullptr : &found->second;
    }
};

void longest_token() {
    random_numbers random(3);
    for (int round = 0; round < 300; round++) {
        trie                  root;
        std::set<std::string> keys;
        for (int64_t n = random.below(12); n > 0; n--) {
            std::string key;
            for (int64_t length = 1 + random.below(6); length > 0; length--) {
                key += "ab\xc3"[random.below(3)];
            }
            root.insert(key);
            keys.insert(key);
        }
        std::string text;
        for (int64_t length = random.below(12); length > 0; length--) {
            text += "ab\xc3"[random.below(3)];
        }
        size_t expected = 0;
        for (size_t size = 1; size <= text.size(); size++) {
            expected = keys.count(text.substr(0, size)) ? size : expected;
        }
        const size_t got = afterword_longest_token(&root, text.data(), text.size());
        check(got == expected, "round ", round, ": the longest token has ", got, " bytes, not ", expected);
    }
}

void named() {
    const std::unordered_map<std::string, llama_token> ids = {
        { "<|im_end|>", 1 }, { "[EOS]", 2 }, { "_eot", 3 }, { "\xe2\x96\x81", 4 }, { "hello", 5 }, { "", 6 }, { " <", 7 },
    };
    std::set<llama_token> found;
    for (const auto & [text, id] : afterword_named(ids)) {
        check(ids.at(text) == id, text, " is ", id);
        found.insert(id);
    }
    check(found == std::set<llama_token>{ 1, 2, 3, 4 }, "it finds ", found.size(), " names");
}

}  // namespace

void add_tokenizers(test_cases & cases) {
    cases.push_back({ "tokenizers/the longest prefix that is a token", longest_token });
    cases.push_back({ "tokenizers/tokens that may be names of roles", named });
}

}  // namespace tests
