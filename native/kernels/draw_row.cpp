#include "draw_row.h"

#include "draw_numbers.h"
#include "draw_survivors.h"

namespace afterword {
namespace {

bool takes_highest(const afterword_row & row) {
    return row.temperature == 0 || (row.top_p == 0 && row.typical_p >= 1) || row.top_k == 1;
}

void score(afterword_row & row, const blocks_of & own, double total, const draw_room & room) {
    row.normaliser = (double) own.largest + std::log(total);
    row.logprob    = (double) own.row[row.token] - row.normaliser;
    const int found = find_top(own, row.top, room);
    for (int i = 0; i < found; i++) {
        const int id        = id_of(room.keys[i]);
        row.top_ids[i]      = id;
        row.top_logprobs[i] = (double) own.row[id] - row.normaliser;
    }
    if (row.ranked) {
        row.rank = 0;
        for (int i = 0; i < own.n; i++) {
            row.rank += own.row[i] >= own.row[row.token];
        }
    }
}

}  // namespace

void draw_row(afterword_row & row, const draw_room & room) {
    const int n = room.vocabulary;
    // Bias and bans would hide a broken row, so it is checked in any case.
    const blocks_of own{ row.logits, room.own_maxima, n, room.blocks, find_maxima(row.logits, n, room.own_maxima) };
    if (!std::isfinite(own.largest)) {
        row.state = AFTERWORD_ROW_BROKEN;
        return;
    }
    double total = 0;
    if (row.token < 0) {
        blocks_of all = own;
        if (row.changed) {
            all = { row.changed, room.maxima, n, room.blocks, find_maxima(row.changed, n, room.maxima) };
            if (!std::isfinite(all.largest)) {
                row.state = AFTERWORD_ROW_NOTHING;
                return;
            }
        }
        if (takes_highest(row)) {
            row.token = all.first_of_largest();
        } else {
            survivors left(row, all, room);
            row.token = left.draw();
            total     = row.changed ? 0 : left.total;
        }
    }
    if (row.top >= 0) {
        if (total == 0) {
            total = ggml_afterword_exponentials(n, room.weights, row.logits, own.largest);
        }
        score(row, own, total, room);
    }
    row.state = AFTERWORD_ROW_DONE;
}

}  // namespace afterword
