// The filters of a row that look at sums: typical_p, top_p and XTC.

#include "draw_survivors.h"

#include <limits>

namespace afterword {
namespace {

// More ids than these are not listed: summing them one by one would take longer than summing all weights side by side.
constexpr int MOST_LISTED = 2048;

constexpr int TYPICAL_BINS = draw_room::TYPICAL_BINS, BINS_A_NAT = draw_room::TYPICAL_BINS_A_NAT;

}  // namespace

void survivors::keep_nucleus() {
    if (count != NONE) {
        gather();
        keep_fewest(row.top_p);
        return;
    }
    fewest few = find_fewest(room.weights, all.n, whole, row.top_p * whole, room);
    if (few.count <= MOST_LISTED) {
        list(std::max(few.threshold, std::numeric_limits<float>::denorm_min()));
        if (few.surplus > 0) {
            drop_ties(few);
        }
        return;
    }
    keep_likely(few.threshold);
    for (int i = all.n - 1; few.surplus > 0; i--) {
        if (room.weights[i] == few.threshold) {
            room.weights[i] = 0;
            few.surplus--;
        }
    }
}

void survivors::keep_fewest(double share) {
    const double total = sum_in_double(room.held, count);
    const fewest few   = find_fewest(room.held, count, total, share * total, room);
    int          kept  = 0;
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
    float *       logits    = room.some;
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
