// What the tokenizers do about special tokens and about text that a vocabulary cannot spell; and calls for Python.

#include "afterword-tokenizers.h"

#include "afterword-guard.h"
#include "afterword.h"
#include "llama-vocab.h"

#include <algorithm>
#include <cctype>
#include <cstdio>

llama_token afterword_byte(const llama_vocab & vocab, uint8_t byte) {
    char name[8];
    snprintf(name, sizeof(name), "<0x%02X>", byte);
    const llama_token id = vocab.text_to_token(name);
    return id == LLAMA_TOKEN_NULL ? vocab.text_to_token(std::string(1, (char) byte)) : id;
}

[[noreturn]] static void unspellable() {
    throw afterword_unspellable("the vocabulary has no token for some of the characters");
}

static llama_token unknown_token(const llama_vocab & vocab) {
    const llama_token id = vocab.token_unk();
    if (id < 0 || id >= (llama_token) vocab.n_tokens() ||
        !(vocab.is_unknown(id) || vocab.get_token_data(id).text == "<unk>")) {
        unspellable();
    }
    return id;
}

void afterword_speller::check(const llama_vocab & vocab, std::vector<llama_token> & ids, size_t begin) {
    const bool missing = std::find(ids.begin() + begin, ids.end(), LLAMA_TOKEN_NULL) != ids.end();
    if (missing) {
        ids.resize(begin);
        if (!is_unknown) {
            ids.push_back(unknown_token(vocab));
        }
    }
    is_unknown = missing;
}

void afterword_check_ids(const std::vector<llama_token> & ids, size_t n_tokens) {
    for (const llama_token id : ids) {
        if (id < 0 || (size_t) id >= n_tokens) {
            unspellable();
        }
    }
}

void afterword_specials::load(const llama_vocab & vocab, const std::vector<llama_token> & ids) {
    by_order = ids;
    by_text.clear();
    for (uint32_t order = 0; order < ids.size(); ++order) {
        by_text.push_back({ vocab.get_token_data(ids[order]).text, ids[order], order });
    }
    std::sort(by_text.begin(), by_text.end(), [](const special & a, const special & b) { return a.text < b.text; });
}

// Where each of them stands, in the order in which they are looked for.
std::vector<std::pair<uint32_t, size_t>> afterword_specials::find(const std::string & text) const {
    // The byte of a special token at some depth, less than any where it has ended.
    const auto byte_at = [](const special & token, size_t depth) {
        return depth < token.text.size() ? (int) (uint8_t) token.text[depth] : -1;
    };

    std::vector<std::pair<uint32_t, size_t>> found;
    for (size_t at = 0; at < text.size(); ++at) {
        auto low  = by_text.begin();
        auto high = by_text.end();
        for (size_t depth = 0; low != high; ++depth) {
            if (byte_at(*low, depth) < 0) {
                found.emplace_back((low++)->order, at);
            }
            if (at + depth == text.size()) {
                break;
            }
            const int byte = (uint8_t) text[at + depth];
            low = std::lower_bound(low, high, byte, [&](const special & s, int b) { return byte_at(s, depth) < b; });
            high = std::upper_bound(low, high, byte, [&](int b, const special & s) { return b < byte_at(s, depth); });
        }
    }
    std::sort(found.begin(), found.end());
    return found;
}

std::vector<afterword_specials::fragment> afterword_specials::cut(
    const llama_vocab & vocab, const std::string & text, bool parse_special) const {
    const size_t size = text.size();
    const auto is_space = [&](size_t at) { return isspace((uint8_t) text[at]) != 0; };

    // Those that are left when earlier ones have taken their part of the text.
    std::vector<uint8_t> taken(size);
    std::vector<std::pair<size_t, llama_token>> places;
    for (const auto & [order, at] : find(text)) {
        const llama_token id = by_order[order];
        const auto & data = vocab.get_token_data(id);
        if (!parse_special && (data.attr & (LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN))) {
            continue;
        }
        size_t begin = at;
        size_t end   = at + data.text.size();
        if (std::find(taken.begin() + begin, taken.begin() + end, 1) != taken.begin() + end) {
            continue;
        }
        places.emplace_back(at, id);
        while ((data.attr & LLAMA_TOKEN_ATTR_LSTRIP) && begin > 0 && !taken[begin - 1] && is_space(begin - 1)) {
            begin--;
        }
        while ((data.attr & LLAMA_TOKEN_ATTR_RSTRIP) && end < size && !taken[end] && is_space(end)) {
            end++;
        }
        std::fill(taken.begin() + begin, taken.begin() + end, 1);
    }
    std::sort(places.begin(), places.end());

    std::vector<fragment> fragments;
    auto place = places.begin();
    for (size_t at = 0; at < size;) {
        if (!taken[at]) {
            const size_t end = std::find(taken.begin() + at, taken.end(), 1) - taken.begin();
            fragments.push_back({ LLAMA_TOKEN_NULL, at, end - at });
            at = end;
        } else if (place != places.end() && place->first == at) {
            const size_t length = vocab.get_token_data(place->second).text.size();
            fragments.push_back({ place->second, at, length });
            at += length;
            place++;
        } else {
            at++;
        }
    }
    return fragments;
}

extern "C" {

int32_t llama_afterword_guarded_tokenize(
    const llama_vocab * vocab, const char * text, int32_t size, llama_token * ids, int32_t room, bool continues,
    bool parse_special, int32_t * result) {
    return afterword_guarded(result, [&] {
        const auto found = vocab->tokenize(std::string(text, size), false, parse_special, continues);
        if (found.size() > (size_t) room) {
            return -(int32_t) found.size();
        }
        std::copy(found.begin(), found.end(), ids);
        return (int32_t) found.size();
    });
}

int64_t llama_afterword_pieces(
    const llama_vocab * vocab, char * bytes, int64_t room, int32_t * lengths, uint8_t * kinds) {
    int64_t size = 0;
    for (llama_token id = 0; id < (llama_token) vocab->n_tokens(); ++id) {
        const std::string & piece = vocab->token_to_piece(id);
        if (size + (int64_t) piece.size() <= room) {
            memcpy(bytes + size, piece.data(), piece.size());
        }
        size += piece.size();
        lengths[id] = (int32_t) piece.size();
        kinds[id]   = (vocab->is_control(id) ? AFTERWORD_CONTROL : 0) | (vocab->is_eog(id) ? AFTERWORD_END : 0) |
            (vocab->is_user_defined(id) ? AFTERWORD_USER_DEFINED : 0);
    }
    return size;
}
}
