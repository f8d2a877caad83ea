#include "draw_survivors.h"

#include "draw_pack.h"

namespace afterword {
namespace {

// Above it two tokens cannot both reach the threshold of XTC.
constexpr double MOST_XTC_THRESHOLD = 0.5;

// The first place whose number is greater than the goal; n if there is none.
int pass(const double * ascending, int n, double goal) {
    return (int) (std::upper_bound(ascending, ascending + n, goal) - ascending);
}

}  // namespace

// Appends a block's ids and weights behind those that were found. Returns how many there are then.
int survivors::append(int first, const float * weights, float least, int found) const {
    for (int i = 0; i < BLOCK; i += PACK) {
        const uint32_t those = those_between(weights + i, least, INFINITY);
        pack_places(those, first + i, room.ids + found);
        pack(those, weights + i, room.held + found);
        found += count_of(those);
    }
    return found;
}

int survivors::draw() {
    weigh();
    if (row.top_k > 0 && row.top_k < all.n) {
        count = find_top(all, row.top_k, room);
        for (int i = 0; i < count; i++) {
            room.ids[i] = id_of(room.keys[i]);
        }
        std::sort(room.ids, room.ids + count);
    }
    float largest = 1.0f;
    if (row.typical_p < 1) {
        keep_typical();
        largest = 0.0f;
        for (int i = 0; i < count; i++) {
            largest = std::max(largest, room.weights[room.ids[i]]);
        }
    }
    if (row.top_p < 1) {
        keep_nucleus();
    }
    if (row.min_p > 0) {
        keep_likely((float) (row.min_p * (double) largest));
    }
    if (count != NONE) {
        keep([&](float weight) { return weight > 0; });
    }
    if (row.second < row.xtc_probability && row.xtc_threshold <= MOST_XTC_THRESHOLD) {
        exclude_top();
    }
    return count == NONE ? drawn_from_all() : drawn_from_some();
}

void survivors::weigh() {
    if (row.temperature == 1) {
        whole = total = ggml_afterword_exponentials(all.n, room.weights, all.row, all.largest);
    } else {
        scale(room.weights);
        whole = ggml_afterword_exponentials(all.n, room.weights, room.weights, 0.0f);
    }
    std::fill(room.weights + all.n, room.weights + all.blocks * BLOCK, 0.0f);
}

void survivors::scale(float * to) const {
    const float temperature = (float) std::max(row.temperature, 1e-30);
    for (int i = 0; i < all.n; i++) {
        to[i] = (all.row[i] - all.largest) / temperature;
    }
}

void survivors::gather() const {
    for (int i = 0; i < count; i++) {
        room.held[i] = room.weights[room.ids[i]];
    }
}

void survivors::list(float least) {
    int found = 0;
    for (int block = 0; block < all.blocks; block++) {
        const float * weights = room.weights + block * BLOCK;
        int           any     = 0;
        for (int i = 0; i < BLOCK; i++) {
            any += weights[i] >= least;
        }
        if (any) {
            found = append(block * BLOCK, weights, least, found);
        }
    }
    count = found;
}

void survivors::sum_blocks() const {
    for (int block = 0; block < all.blocks; block++) {
        room.sums[block] = sum_of<float>(room.weights + block * BLOCK, BLOCK);
    }
}

void survivors::keep_likely(float least) {
    if (count != NONE) {
        keep([&](float weight) { return weight >= least; });
        return;
    }
    for (int i = 0; i < all.n; i++) {
        room.weights[i] = room.weights[i] >= least ? room.weights[i] : 0.0f;
    }
}

int survivors::drawn_from_some() const {
    double * cumulative = room.distances;
    double   sum        = 0;
    for (int i = 0; i < count; i++) {
        sum += (double) room.weights[room.ids[i]];
        cumulative[i] = sum;
    }
    const int at = pass(cumulative, count, row.uniform * sum);
    return room.ids[std::min(at, count - 1)];
}

// First the block, then the token in it.
int survivors::drawn_from_all() const {
    sum_blocks();
    double * cumulative = room.distances;
    double   sum        = 0;
    for (int block = 0; block < all.blocks; block++) {
        sum += (double) room.sums[block];
        cumulative[block] = sum;
    }
    const double  target  = row.uniform * sum;
    const int     block   = std::min(pass(cumulative, all.blocks, target), all.blocks - 1);
    const double  before  = block ? cumulative[block - 1] : 0.0;
    const float * weights = room.weights + block * BLOCK;
    double        inside[BLOCK];
    double        of_block = 0;
    for (int i = 0; i < BLOCK; i++) {
        of_block += (double) weights[i];
        inside[i] = of_block;
    }
    int at = pass(inside, BLOCK, target - before);
    if (at == BLOCK || weights[at] == 0) {
        // Rounding of the block's sum put the target past the last token with a weight.
        at = BLOCK - 1;
        while (at > 0 && weights[at] == 0) {
            at--;
        }
    }
    return block * BLOCK + at;
}

}  // namespace afterword
