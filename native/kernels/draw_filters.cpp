// The filters of a row that look at sums: typical_p, top_p and XTC.

#include "draw_survivors.h"

#include <limits>

namespace afterword {
namespace {

// Smallest weights, relative to the likeliest token, that the search for the nucleus tries in turn.
constexpr float FLOORS[] = { 0x1p-10f, 0x1p-15f, 0x1p-20f };

// Sums of a few thousand floats in float are nearer than this.
constexpr double ROUGHLY = 1e-3;

constexpr int TYPICAL_BINS = draw_room::TYPICAL_BINS, BINS_A_NAT = draw_room::TYPICAL_BINS_A_NAT;

}  // namespace

double survivors::mass() const {
    sum_blocks();
    return sum_in_double(room.sums, all.blocks);
}

survivors::likely survivors::at_least(float least) const {
    likely       found = { 0, 0 };
    const floats zero  = {}, bound = zero + least;
    for (int block = 0; block < all.blocks; block++) {
        const float * weights = room.weights + block * BLOCK;
        floats        masses  = {};
        ints          counts  = {};
        for (int i = 0; i < BLOCK; i += LANES) {
            floats values;
            load(values, weights + i);
            const ints holds = values >= bound;
            masses += holds ? values : zero;
            counts -= holds;
        }
        for (int j = 0; j < LANES; j++) {
            found.mass += (double) masses[j];
            found.count += counts[j];
        }
    }
    return found;
}

void survivors::keep_nucleus() {
    if (count != NONE) {
        gather();
        keep_fewest(row.top_p * sum_in_double(room.held, count));
        return;
    }
    const double goal = row.top_p * mass();
    for (const float floor : FLOORS) {
        const likely near = at_least(floor);
        if (near.count > all.n / 2) {
            break;
        }
        // Far from the goal the rounding of the mass does not matter.
        if (near.mass < (1 - ROUGHLY) * goal) {
            continue;
        }
        list(floor);
        if (sum_in_double(room.held, count) >= goal) {
            keep_fewest(goal);
            return;
        }
    }
    count = NONE;
    fewest few = find_fewest(room.weights, all.n, goal, room);
    keep_likely(few.threshold);
    for (int i = all.n - 1; few.surplus > 0; i--) {
        if (room.weights[i] == few.threshold) {
            room.weights[i] = 0;
            few.surplus--;
        }
    }
}

void survivors::keep_fewest(double goal) {
    fewest few  = find_fewest(room.held, count, goal, room);
    int    kept = 0;
    for (int i = 0, n = count; i < n; i++) {
        room.ids[kept]  = room.ids[i];
        room.held[kept] = room.held[i];
        kept += room.held[i] >= few.threshold;
    }
    count = kept;
    if (few.surplus > 0) {
        drop_ties(few);
    }
}

void survivors::drop_ties(fewest few) {
    int ties = -few.surplus;
    for (int i = 0; i < count; i++) {
        ties += room.held[i] == few.threshold;
    }
    int kept = 0;
    for (int i = 0; i < count; i++) {
        room.ids[kept] = room.ids[i];
        kept += room.held[i] > few.threshold || (room.held[i] == few.threshold && ties-- > 0);
    }
    count = kept;
}

// A token's distance is that of its information from the entropy, which is that of its logit from the mean logit.
void survivors::keep_typical() {
    if (count == NONE) {
        list(std::numeric_limits<float>::denorm_min());
    } else {
        keep([](float weight) { return weight > 0; });
        gather();
    }
    scale(room.scaled);
    const int     n         = count;
    const float * weights   = room.held;
    float *       logits    = room.sorting;
    double *      distances = room.distances;
    int *         bins      = room.others;
    for (int i = 0; i < n; i++) {
        logits[i] = room.scaled[room.ids[i]];
    }
    for (int i = 0; i < n; i++) {
        distances[i] = (double) weights[i] * (double) logits[i];
    }
    const double whole = sum_of<double>(weights, n), mean = sum_of<double>(distances, n) / whole;
    const double goal  = row.typical_p * whole;
    for (int i = 0; i < n; i++) {
        distances[i] = std::abs((double) logits[i] - mean);
        bins[i]      = (int) std::min(distances[i] * BINS_A_NAT, (double) (TYPICAL_BINS - 1));
    }
    double * masses = room.masses;
    std::fill(masses, masses + TYPICAL_BINS, 0.0);
    for (int i = 0; i < n; i++) {
        masses[bins[i]] += (double) weights[i];
    }
    // Only the bin in which the sum passes the goal is sorted.
    int    at     = 0;
    double before = 0;
    for (double sum = masses[0]; sum <= goal && at < TYPICAL_BINS - 1; sum += masses[at]) {
        before = sum;
        at++;
    }
    uint64_t * edge  = room.keys;
    int        edges = 0;
    for (int i = 0; i < n; i++) {
        edge[edges] = (uint64_t) i;
        edges += bins[i] == at;
    }
    std::sort(edge, edge + edges, [&](uint64_t a, uint64_t b) {
        return distances[a] != distances[b] ? distances[a] < distances[b] : a < b;
    });
    double sum = 0;
    for (int i = 0; i < edges; i++) {
        sum += (double) weights[edge[i]];
        bins[edge[i]] = -1;
        if (before + sum > goal) {
            break;
        }
    }
    int kept = 0;
    for (int i = 0; i < n; i++) {
        room.ids[kept] = room.ids[i];
        kept += bins[i] < at;
    }
    count = kept;
}

void survivors::exclude_top() {
    const float * held = room.weights;
    int           n    = all.n;
    if (count != NONE) {
        gather();
        held = room.held;
        n    = count;
    }
    const float least  = (float) (row.xtc_threshold * sum_in_double(held, n));
    int         top    = 0;
    int         stays  = 0;
    for (int i = 0; i < n; i++) {
        if (held[i] >= least && held[i] > 0) {
            stays = top == 0 || held[i] <= held[stays] ? i : stays;
            room.others[top++] = i;
        }
    }
    if (top < 2) {
        return;
    }
    if (count == NONE) {
        for (int i = 0; i < top; i++) {
            room.weights[room.others[i]] = room.others[i] == stays ? room.weights[room.others[i]] : 0.0f;
        }
        return;
    }
    int kept = 0, next = 0;
    for (int i = 0; i < count; i++) {
        const bool is_top = next < top && room.others[next] == i;
        next += is_top;
        room.ids[kept] = room.ids[i];
        kept += !is_top || i == stays;
    }
    count = kept;
}

}  // namespace afterword
