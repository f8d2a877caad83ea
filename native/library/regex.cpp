#include "afterword-regex.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>

// Named, since several files are compiled as one.
namespace afterword_regex {

constexpr size_t UNBOUNDED = SIZE_MAX;
// Runs of at most so many characters are measured each time; longer ones are remembered.
constexpr size_t SHORT_RUN = 16;

// A set of code units. Those below 256 are in a table; others have to be in all of the parts.
struct unit_set {
    struct part {
        bool negated = false;
        std::vector<std::pair<uint32_t, uint32_t>> ranges; // sorted, ends included

        bool has(uint32_t unit) const {
            auto after = std::upper_bound(ranges.begin(), ranges.end(), std::make_pair(unit, UINT32_MAX));
            return (after != ranges.begin() && std::prev(after)->second >= unit) != negated;
        }
    };

    std::vector<part> parts;
    bool table[256] = {};

    void add(part more) {
        std::sort(more.ranges.begin(), more.ranges.end());
        // Joined, so that the last range that begins before a unit decides.
        std::vector<std::pair<uint32_t, uint32_t>> joined;
        for (const auto & range : more.ranges) {
            if (!joined.empty() && range.first <= joined.back().second) {
                joined.back().second = std::max(joined.back().second, range.second);
            } else {
                joined.push_back(range);
            }
        }
        more.ranges = std::move(joined);
        for (uint32_t unit = 0; unit < 256; ++unit) {
            table[unit] = (parts.empty() || table[unit]) && more.has(unit);
        }
        parts.push_back(std::move(more));
    }

    bool has(uint32_t unit) const {
        if (unit < 256) {
            return table[unit];
        }
        return std::all_of(parts.begin(), parts.end(), [unit](const part & p) { return p.has(unit); });
    }
};

struct node {
    enum kind_t { UNIT, SEQUENCE, EITHER, REPEAT, LOOK, END } kind;
    unit_set set{};               // UNIT
    std::vector<node> children{}; // SEQUENCE, EITHER; one for REPEAT and LOOK
    size_t least = 0, most = 0;   // REPEAT
    bool negative = false;        // LOOK
};

struct instruction {
    enum op_t {
        RUN,   // least to most units of a set, the longest first
        SPLIT, // go on at first, then at second
        LOOP,  // the same; second leaves the loop
        JUMP,  // to first
        LOOK,  // what stands from here to an ACCEPT matches or, negative, does not; go on at first
        END,   // nothing is left of the part
        ACCEPT,
    } op;
    unit_set set{};
    size_t least = 0, most = 0;
    size_t first = 0, second = 0;
    bool negative = false;
    bool sure = false; // from here on a match cannot fail
};

using program = std::vector<instruction>;

template <typename CharT> class compiler {
  public:
    explicit compiler(const std::basic_string<CharT> & regex) : regex(regex) {}

    program compile() {
        const node whole = either();
        if (at != regex.size()) {
            unsupported("a bracket that nothing opens");
        }
        if (nullable(whole) && !asserts(whole)) {
            unsupported("matches that may be empty or not");
        }
        emit(whole);
        code.push_back({ instruction::ACCEPT });
        find_sure();
        return std::move(code);
    }

  private:
    [[noreturn]] static void unsupported(const char * what) {
        throw std::runtime_error(std::string("a pre-tokenizer's regular expression has ") + what);
    }

    bool more() const { return at < regex.size(); }

    bool is(char c) const { return more() && regex[at] == (CharT) c; }

    bool take(const char * literal) {
        const size_t size = std::char_traits<char>::length(literal);
        for (size_t i = 0; i < size; ++i) {
            if (at + i >= regex.size() || regex[at + i] != (CharT) literal[i]) {
                return false;
            }
        }
        at += size;
        return true;
    }

    uint32_t next() {
        if (!more()) {
            unsupported("no end");
        }
        return (uint32_t) std::make_unsigned_t<CharT>(regex[at++]);
    }

    node either() {
        std::vector<node> branches{ sequence() };
        while (take("|")) {
            branches.push_back(sequence());
        }
        if (branches.size() == 1) {
            return std::move(branches[0]);
        }
        return { node::EITHER, {}, std::move(branches) };
    }

    node sequence() {
        std::vector<node> items;
        while (more() && !is('|') && !is(')')) {
            items.push_back(quantified());
        }
        // A lookahead at one unit, and that unit: both sets.
        if (items.size() == 2 && items[0].kind == node::LOOK && !items[0].negative &&
            items[0].children[0].kind == node::UNIT && items[1].kind == node::UNIT) {
            for (auto & part : items[0].children[0].set.parts) {
                items[1].set.add(part);
            }
            items.erase(items.begin());
        }
        if (items.size() == 1) {
            return std::move(items[0]);
        }
        return { node::SEQUENCE, {}, std::move(items) };
    }

    node quantified() {
        node item = atom();
        size_t least = 1, most = 1;
        if (take("*")) {
            least = 0, most = UNBOUNDED;
        } else if (take("+")) {
            most = UNBOUNDED;
        } else if (take("?")) {
            least = 0;
        } else if (take("{")) {
            least = most = number();
            if (take(",")) {
                most = is('}') ? UNBOUNDED : number();
            }
            if (!take("}") || most < least) {
                unsupported("a quantifier that is none");
            }
        } else {
            return item;
        }
        if (is('*') || is('+') || is('?') || is('{')) {
            unsupported("a quantifier that is not greedy");
        }
        if (nullable(item)) {
            unsupported("a quantifier of what may be empty");
        }
        return { node::REPEAT, {}, { std::move(item) }, least, most };
    }

    size_t number() {
        size_t value = 0, digits = 0;
        for (; more() && regex[at] >= (CharT) '0' && regex[at] <= (CharT) '9' && digits < 6; ++digits) {
            value = 10 * value + (size_t) (regex[at++] - (CharT) '0');
        }
        if (digits == 0) {
            unsupported("a quantifier without a number");
        }
        return value;
    }

    node atom() {
        if (take("$")) {
            return { node::END };
        }
        if (is('.') || is('^') || is('*') || is('+') || is('?') || is('{')) {
            unsupported("a character that means something else here");
        }
        if (take("[")) {
            return bracket();
        }
        if (take("(")) {
            node group{ node::LOOK };
            if (take("?!")) {
                group.negative = true;
            } else if (!take("?=")) {
                take("?:");
                group.kind = node::SEQUENCE;
            }
            node inside = either();
            if (!take(")")) {
                unsupported("a group without an end");
            }
            if (group.kind == node::SEQUENCE) {
                return inside;
            }
            group.children.push_back(std::move(inside));
            return group;
        }
        unit_set::part one;
        uint32_t unit = next();
        if (unit != '\\' || escape(one, unit)) {
            one.ranges.push_back({ unit, unit });
        }
        node item{ node::UNIT };
        item.set.add(std::move(one));
        return item;
    }

    node bracket() {
        unit_set::part all;
        all.negated = take("^");
        while (!is(']')) {
            uint32_t first = next();
            if (first == '\\' && !escape(all, first)) {
                continue;
            }
            uint32_t last = first;
            if (is('-') && at + 1 < regex.size() && regex[at + 1] != (CharT) ']') {
                ++at;
                last = next();
                if ((last == '\\' && !escape(all, last)) || last < first) {
                    unsupported("a range that is none");
                }
            }
            all.ranges.push_back({ first, last });
        }
        ++at;
        node item{ node::UNIT };
        item.set.add(std::move(all));
        return item;
    }

    // What follows a backslash: a class, whose ranges are added, or (true) a unit.
    bool escape(unit_set::part & to, uint32_t & unit) {
        using ranges = std::vector<std::pair<uint32_t, uint32_t>>;
        static const ranges space{ { '\t', '\r' }, { ' ', ' ' } };
        static const ranges no_space{ { 0, '\t' - 1 }, { '\r' + 1, ' ' - 1 }, { ' ' + 1, UINT32_MAX } };
        static const ranges digit{ { '0', '9' } };
        static const ranges no_digit{ { 0, '0' - 1 }, { '9' + 1, UINT32_MAX } };
        const uint32_t letter = next();
        const ranges * chosen = nullptr;
        switch (letter) {
            case 's': chosen = &space; break;
            case 'S': chosen = &no_space; break;
            case 'd': chosen = &digit; break;
            case 'D': chosen = &no_digit; break;
            case 'r': unit = '\r'; return true;
            case 'n': unit = '\n'; return true;
            case 't': unit = '\t'; return true;
            default:
                if (((letter | 0x20) >= 'a' && (letter | 0x20) <= 'z') || (letter >= '0' && letter <= '9')) {
                    unsupported("an escape that is not known here");
                }
                unit = letter;
                return true;
        }
        to.ranges.insert(to.ranges.end(), chosen->begin(), chosen->end());
        return false;
    }

    static bool nullable(const node & n) {
        const auto empty = [](const node & child) { return nullable(child); };
        switch (n.kind) {
            case node::UNIT:     return false;
            case node::SEQUENCE: return std::all_of(n.children.begin(), n.children.end(), empty);
            case node::EITHER:   return std::any_of(n.children.begin(), n.children.end(), empty);
            case node::REPEAT:   return n.least == 0 || nullable(n.children[0]);
            default:             return true;
        }
    }

    // Whether a match is empty, always.
    static bool asserts(const node & n) {
        if (n.kind == node::SEQUENCE || n.kind == node::EITHER) {
            return std::all_of(n.children.begin(), n.children.end(), asserts);
        }
        return n.kind == node::LOOK || n.kind == node::END;
    }

    void emit(const node & n) {
        switch (n.kind) {
            case node::UNIT:
                code.push_back({ instruction::RUN, n.set, 1, 1 });
                break;
            case node::SEQUENCE:
                for (const auto & child : n.children) {
                    emit(child);
                }
                break;
            case node::EITHER: {
                std::vector<size_t> ends;
                for (size_t i = 0; i + 1 < n.children.size(); ++i) {
                    const size_t split = open(instruction::SPLIT);
                    emit(n.children[i]);
                    ends.push_back(open(instruction::JUMP));
                    code[split].second = code.size();
                }
                emit(n.children.back());
                for (size_t end : ends) {
                    code[end].first = code.size();
                }
                break;
            }
            case node::REPEAT:
                emit_repeat(n);
                break;
            case node::LOOK: {
                const size_t look = open(instruction::LOOK);
                emit(n.children[0]);
                code.push_back({ instruction::ACCEPT });
                code[look].first    = code.size();
                code[look].negative = n.negative;
                break;
            }
            case node::END:
                code.push_back({ instruction::END });
                break;
        }
    }

    void emit_repeat(const node & n) {
        const node & body = n.children[0];
        if (body.kind == node::UNIT) {
            code.push_back({ instruction::RUN, body.set, n.least, n.most });
            return;
        }
        for (size_t i = 0; i < n.least; ++i) {
            emit(body);
        }
        if (n.most == UNBOUNDED) {
            const size_t loop = open(instruction::LOOP);
            emit(body);
            code[open(instruction::JUMP)].first = loop;
            code[loop].second = code.size();
            return;
        }
        std::vector<size_t> splits;
        for (size_t i = n.least; i < n.most; ++i) {
            splits.push_back(open(instruction::SPLIT));
            emit(body);
        }
        for (size_t split : splits) {
            code[split].second = code.size();
        }
    }

    // An instruction that goes on at the next one; where else is filled in later.
    size_t open(instruction::op_t op) {
        code.push_back({ op });
        code.back().first = code.size();
        return code.size() - 1;
    }

    // All jumps but those back to a loop lead forward, and a loop's exit stands behind it: one pass from the end.
    void find_sure() {
        for (size_t pc = code.size(); pc-- > 0;) {
            auto & step = code[pc];
            switch (step.op) {
                case instruction::ACCEPT: step.sure = true; break;
                case instruction::RUN:    step.sure = step.least == 0 && code[pc + 1].sure; break;
                case instruction::LOOP:   step.sure = code[step.second].sure; break;
                case instruction::SPLIT:  step.sure = code[step.first].sure || code[step.second].sure; break;
                case instruction::JUMP:   step.sure = code[step.first > pc ? step.first : code[step.first].second].sure; break;
                default: break;
            }
        }
    }

    const std::basic_string<CharT> & regex;
    size_t at = 0;
    program code;
};

// Backtracks over one part of a text after the other. What is known to fail is not tried again, which keeps the time
// linear: whether the rest of an expression matches depends on the instruction and the position alone.
template <typename CharT> class matcher {
  public:
    matcher(const program & code, const CharT * text) : code(code), text(text), runs(code.size()), loops(code.size()) {}

    void begin(size_t from, size_t to) {
        first = from;
        last  = to;
        ++part;
    }

    // The next match from a position on: where it starts and ends.
    bool find(size_t from, size_t & start, size_t & end) {
        for (start = from; start <= last; ++start) {
            if (match(0, start, false, end)) {
                return true;
            }
        }
        return false;
    }

  private:
    enum kind_t : uint8_t { SHORTER, INSTEAD, FAILED };

    // What to try if all that came after fails: a shorter run, another branch; or that a loop is then known to fail.
    struct choice {
        size_t pos;
        size_t low; // SHORTER: the least position to try, and where the run ends
        size_t end;
        uint32_t pc;
        kind_t kind;
    };

    struct run {
        size_t part = 0;
        size_t begin = 0, end = 0; // a run of the set
        size_t failed = 0;         // from here to its end the rest does not match; 0 if nothing is known
    };

    struct loop {
        size_t part = 0;
        std::vector<uint8_t> outcome; // by position
    };

    // ALWAYS is known in lookaheads alone, where it does not matter how far a match goes.
    static constexpr uint8_t UNKNOWN = 0, NEVER = 1, ALWAYS = 2;

    size_t extent(size_t pc, size_t pos) {
        const auto & step = code[pc];
        if (step.most <= SHORT_RUN) {
            size_t to = pos;
            while (to < last && to - pos < step.most && step.set.has(unit(to))) {
                ++to;
            }
            return to;
        }
        run & known = runs[pc];
        if (known.part != part || pos < known.begin || pos > known.end) {
            size_t to = pos;
            while (to < last && step.set.has(unit(to))) {
                ++to;
            }
            known = { part, pos, to, 0 };
        }
        return step.most == UNBOUNDED ? known.end : std::min(known.end, pos + step.most);
    }

    uint32_t unit(size_t at) const { return (uint32_t) std::make_unsigned_t<CharT>(text[at]); }

    uint8_t & outcome(size_t pc, size_t pos) {
        loop & known = loops[pc];
        if (known.part != part) {
            known.part = part;
            known.outcome.assign(last - first + 1, 0);
        }
        return known.outcome[pos - first];
    }

    // Calls itself only for lookaheads, as deep as the expression nests them.
    bool match(size_t pc, size_t pos, bool ahead, size_t & end) {
        const size_t base = choices.size();
        for (;;) {
            const auto & step = code[pc];
            bool fails = false;
            if (step.sure) {
                if (ahead) {
                    return matched(base);
                }
                choices.resize(base);
            }
            switch (step.op) {
                case instruction::RUN: {
                    const size_t to = extent(pc, pos), low = pos + step.least;
                    size_t longest = to;
                    if (step.most == UNBOUNDED && runs[pc].failed != 0) {
                        longest = runs[pc].failed - 1;
                    }
                    fails = to < low || longest < low;
                    if (!fails) {
                        if (to > low) {
                            choices.push_back({ longest, low, to, (uint32_t) pc, SHORTER });
                        }
                        pos = longest;
                        ++pc;
                    }
                    break;
                }
                case instruction::SPLIT:
                    choices.push_back({ pos, 0, 0, (uint32_t) step.second, INSTEAD });
                    pc = step.first;
                    break;
                case instruction::LOOP: {
                    const uint8_t known = step.sure ? UNKNOWN : outcome(pc, pos);
                    if (known == ALWAYS) {
                        return matched(base);
                    }
                    fails = known == NEVER;
                    if (!fails) {
                        if (!step.sure) {
                            choices.push_back({ pos, 0, 0, (uint32_t) pc, FAILED });
                        }
                        choices.push_back({ pos, 0, 0, (uint32_t) step.second, INSTEAD });
                        pc = step.first;
                    }
                    break;
                }
                case instruction::JUMP:
                    pc = step.first;
                    break;
                case instruction::LOOK: {
                    size_t ignored = 0;
                    fails = match(pc + 1, pos, true, ignored) == step.negative;
                    pc = step.first;
                    break;
                }
                case instruction::END:
                    fails = pos != last;
                    ++pc;
                    break;
                case instruction::ACCEPT:
                    end = pos;
                    return true;
            }
            if (fails && !retreat(base, pc, pos)) {
                return false;
            }
        }
    }

    // A lookahead matched: so do all loops that it is in.
    bool matched(size_t base) {
        for (size_t i = base; i < choices.size(); ++i) {
            if (choices[i].kind == FAILED) {
                outcome(choices[i].pc, choices[i].pos) = ALWAYS;
            }
        }
        choices.resize(base);
        return true;
    }

    // To the last choice that is left; false if there is none.
    bool retreat(size_t base, size_t & pc, size_t & pos) {
        while (choices.size() > base) {
            choice & last_one = choices.back();
            switch (last_one.kind) {
                case INSTEAD:
                    pc  = last_one.pc;
                    pos = last_one.pos;
                    choices.pop_back();
                    return true;
                case FAILED:
                    outcome(last_one.pc, last_one.pos) = NEVER;
                    choices.pop_back();
                    break;
                case SHORTER: {
                    run & known = runs[last_one.pc];
                    if (code[last_one.pc].most == UNBOUNDED && known.part == part && known.end == last_one.end) {
                        known.failed = last_one.pos;
                    }
                    if (last_one.pos > last_one.low) {
                        pos = --last_one.pos;
                        pc  = last_one.pc + 1;
                        return true;
                    }
                    choices.pop_back();
                    break;
                }
            }
        }
        return false;
    }

    const program & code;
    const CharT * text;
    size_t first = 0, last = 0, part = 0;
    std::vector<choice> choices;
    std::vector<run> runs;
    std::vector<loop> loops;
};

template <typename CharT> std::shared_ptr<const program> compiled(const std::basic_string<CharT> & regex) {
    static std::mutex mutex;
    static std::map<std::basic_string<CharT>, std::shared_ptr<const program>> known;
    const std::lock_guard<std::mutex> lock(mutex);
    auto & found = known[regex];
    if (!found) {
        found = std::make_shared<const program>(compiler<CharT>(regex).compile());
    }
    return found;
}

} // namespace afterword_regex

template <typename CharT>
std::vector<size_t> afterword_regex_split(
    const std::basic_string<CharT> & text, const std::basic_string<CharT> & regex, const std::vector<size_t> & parts) {
    const auto code = afterword_regex::compiled(regex);
    afterword_regex::matcher<CharT> expression(*code, text.data());
    std::vector<size_t> lengths;
    lengths.reserve(parts.size());
    size_t begin = 0;
    for (const size_t length : parts) {
        const size_t end = begin + length;
        expression.begin(begin, end);
        size_t done = begin, from = begin, start = 0, stop = 0;
        while (expression.find(from, start, stop)) {
            if (start > done) {
                lengths.push_back(start - done);
            }
            lengths.push_back(stop - start);
            done = stop;
            // All matches of an expression are empty, or none is.
            from = start == stop ? stop + 1 : stop;
        }
        if (done < end) {
            lengths.push_back(end - done);
        }
        begin = end;
    }
    return lengths;
}

template std::vector<size_t> afterword_regex_split(
    const std::string & text, const std::string & regex, const std::vector<size_t> & parts);
template std::vector<size_t> afterword_regex_split(
    const std::wstring & text, const std::wstring & regex, const std::vector<size_t> & parts);
