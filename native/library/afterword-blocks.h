#pragma once

#include "afterword.h"
#include "llama-batch.h"
#include "llama-hparams.h"

#include <cstdint>
#include <memory>
#include <vector>

struct llama_model;

// KV memory that is a pool of blocks of cells, for the sequences of one cache.
//
// The caller owns the tables: which block has which cells of a sequence. Before a batch it binds the tables of the
// sequences in it. The cell of a position is the one of that number, so nothing else has to be remembered of a cell.
struct afterword_blocks {
    static constexpr int64_t CELLS = AFTERWORD_BLOCK_CELLS;

    struct sequence {
        const int32_t * table  = nullptr;
        llama_pos       length = 0;
    };

    uint32_t n_cells;  // of the pool
    uint32_t size;     // cells that a sequence has at most

    std::vector<sequence> sequences;  // by llama_seq_id

    int64_t cell(llama_seq_id seq_id, llama_pos pos) const {
        return sequences[seq_id].table[pos / CELLS] * CELLS + pos % CELLS;
    }

    bool remove(llama_seq_id seq_id, llama_pos p0, llama_pos p1);

    // Whether each token of a batch has one sequence, which is bound, and a position that a sequence may have.
    bool fit(const llama_ubatch & ubatch) const;

    void add(const llama_ubatch & ubatch);

    uint32_t longest(const std::vector<llama_seq_id> & seq_ids) const;

    // The cell of each token in the pool and, behind these, the table of its sequence.
    void write_cells(int64_t * cells, const llama_ubatch & ubatch, bool tables) const;

    // What a row adds to the scores of the cells of its sequence.
    void write_mask(ggml_tensor * mask, const llama_ubatch & ubatch, const llama_hparams & hparams, uint32_t n_swa,
        llama_swa_type swa_type) const;
};

// Caches that are made by this thread while an object of this class exists share keys and values by blocks.
class afterword_blocks_wanted {
public:
    explicit afterword_blocks_wanted(uint32_t n_cells);
    ~afterword_blocks_wanted();
};

// The blocks of a cache that is being made; nullptr if none are wanted, or if the model's cells are not plain.
std::unique_ptr<afterword_blocks> afterword_make_blocks(
    const llama_model & model, const llama_hparams & hparams, bool plain, uint32_t size, uint32_t n_seq_max);

// The cells that llama_afterword_want_blocks asked for, once.
uint32_t afterword_take_wanted_cells();

// The cells of the tokens alone, of an input that may have the tables of their sequences, too.
ggml_tensor * afterword_cells_of_tokens(ggml_context * ctx, ggml_tensor * cells);
