// The tokens that survive the filters of a row, and the one that is drawn.
#pragma once

#include "afterword.h"
#include "draw_numbers.h"

namespace afterword {

// What is left of the tokens: `count` ids in room.ids, ascending; or NONE for all, and the weights of others are 0.
class survivors {
public:
    survivors(const afterword_row & row, const blocks_of & all, const draw_room & room) : row(row), all(all), room(room) {}

    int draw();

    // The sum of exp(logits - largest), if that is what the weights are.
    double total = 0;

private:
    static constexpr int NONE = -1;

    void weigh();
    void scale(float * to) const;
    void sum_blocks() const;

    // Makes ids of all tokens that have at least this weight, which is not 0. The weights are held.
    void list(float least);

    int append(int first, const float * weights, float least, int found) const;

    // Copies the weights of the ids to room.held.
    void gather() const;

    void keep_typical();
    void keep_nucleus();
    void keep_likely(float least);

    // Of the ids, whose weights are held.
    void keep_fewest(double share);
    void drop_ties(fewest few);

    // Excludes all tokens of at least a probability but the least likely of them; of equal ones the highest id stays.
    void exclude_top();

    int drawn_from_some() const;
    int drawn_from_all() const;

    // Keeps the ids whose weights hold.
    template <class Holds> void keep(Holds && holds) {
        int kept = 0;
        for (int i = 0, n = count; i < n; i++) {
            const int id   = room.ids[i];
            room.ids[kept] = id;
            kept += holds(room.weights[id]);
        }
        count = kept;
    }

    const afterword_row & row;
    const blocks_of &     all;
    const draw_room &     room;
    double                whole = 0;  // the sum of all weights
    int                   count = NONE;
};

}  // namespace afterword
