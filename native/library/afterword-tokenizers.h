#pragma once

#include "llama.h"

#include <cstdint>
#include <cstring>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

// The tokens that may be the name of a role such as "<|im_end|>": most tokens of a vocabulary do not begin like one, and
// need not be compared with a hundred names.
inline std::vector<std::pair<std::string, llama_token>> afterword_named(
    const std::unordered_map<std::string, llama_token> & token_to_id) {
    std::vector<std::pair<std::string, llama_token>> named;
    for (const auto & token : token_to_id) {
        if (!token.first.empty() && memchr("<[_\xe2", token.first[0], 4)) {
            named.push_back(token);
        }
    }
    return named;
}

// The length of the longest prefix of a text that is a whole token. The beginning of a token may end inside a character.
template <typename Trie> size_t afterword_longest_token(const Trie * node, const char * text, size_t size) {
    size_t longest = 0;
    for (size_t offset = 0; offset < size && (node = node->traverse(text[offset])) != nullptr; ++offset) {
        if (node->has_value) {
            longest = offset + 1;
        }
    }
    return longest;
}

// The token of a byte where bytes are written <0x00>, else of the byte itself; or LLAMA_TOKEN_NULL.
llama_token afterword_byte(const llama_vocab & vocab, uint8_t byte);

// Tokens of bytes, for what has no token of its own.
struct afterword_speller {
    // If ids from begin on miss one, they become one unknown token for all of a text in a row that cannot be spelled, as
    // SentencePiece does. Throws afterword_unspellable if the vocabulary has no unknown token.
    void check(const llama_vocab & vocab, std::vector<llama_token> & ids, size_t begin);

    // Whether the last ids were found missing.
    bool is_unknown = false;
};

// Throws afterword_unspellable for ids that a vocabulary does not have: without an unknown token, it gives its id as -1.
void afterword_check_ids(const std::vector<llama_token> & ids, size_t n_tokens);

// Finds the special tokens of a text all together, in one pass. One pass for each of thousands of tokens takes minutes
// on a text that has many of them.
class afterword_specials {
  public:
    // A special token, or text between (LLAMA_TOKEN_NULL).
    struct fragment {
        llama_token token;
        size_t offset, length;
    };

    // ids in the order in which they are looked for: an earlier one takes its part of a text.
    void load(const llama_vocab & vocab, const std::vector<llama_token> & ids);

    // Leaves out control and unknown tokens if parse_special is false.
    std::vector<fragment> cut(const llama_vocab & vocab, const std::string & text, bool parse_special) const;

  private:
    struct special {
        std::string text;
        llama_token id;
        uint32_t order;
    };

    std::vector<std::pair<uint32_t, size_t>> find(const std::string & text) const;

    std::vector<special> by_text;
    std::vector<llama_token> by_order;
};
