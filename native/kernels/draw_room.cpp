#include "draw_room.h"

#include <algorithm>

namespace afterword {

// Gives out parts of memory, each at a multiple of 64.
class draw_room::parts {
public:
    explicit parts(char * bytes) : base((uintptr_t) bytes) {}

    template <class T> T * take(size_t count) {
        T * const begin = (T *) (base + used);
        used += (count * sizeof(T) + 63) / 64 * 64;
        return begin;
    }

    size_t used = 0;

private:
    uintptr_t base;
};

draw_room::draw_room(int vocabulary, parts && from)
    : vocabulary(vocabulary), blocks((vocabulary + BLOCK - 1) / BLOCK) {
    // A vector may be written behind the last entry.
    const size_t padded = (size_t) blocks * BLOCK + LANES;
    weights    = from.take<float>(padded);
    scaled     = from.take<float>(padded);
    held       = from.take<float>(padded);
    sorted     = from.take<float>(padded);
    some       = from.take<float>(padded);
    ids        = from.take<int32_t>(padded);
    others     = from.take<int32_t>(padded);
    distances  = from.take<double>(padded);
    keys       = from.take<uint64_t>(padded);
    maxima     = from.take<float>(blocks);
    own_maxima = from.take<float>(blocks);
    sums       = from.take<float>(blocks);
    masses     = from.take<double>(TYPICAL_BINS);
    used       = from.used;
}

draw_room::draw_room(int vocabulary, char * bytes) : draw_room(vocabulary, parts(bytes)) {}

size_t draw_room::size(int vocabulary) { return draw_room(vocabulary, nullptr).used; }

}  // namespace afterword
