#pragma once

#include <cstddef>
#include <string>
#include <vector>

// Cuts each part of a text at the matches of a regular expression, in place of std::regex, which recurses at every
// character and ends the process on long runs. The dialect is what pre-tokenizers use of ECMAScript's: classes, groups,
// alternation, greedy quantifiers, lookahead, \s \S \d \D, $. Matches are those of std::regex_iterator in the C locale.
// Neither recursion nor time per character grows with the text.
//
// parts are lengths, and so is what is returned: of each match and of what stands between. Throws std::runtime_error for
// an expression outside the dialect. Instantiated for char and wchar_t.
template <typename CharT>
std::vector<size_t> afterword_regex_split(
    const std::basic_string<CharT> & text, const std::basic_string<CharT> & regex, const std::vector<size_t> & parts);
