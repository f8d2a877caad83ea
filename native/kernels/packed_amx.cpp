// Products of packed weights with AMX: tiles multiply 16 columns and the 16 rows of a panel. CMake gives this file the
// instructions. docs/decisions/0090-tiles-for-many-columns.md has the reasons.
#if defined(__x86_64__)

#include "packed_avx512.h"

#if (defined(__AMX_INT8__) || defined(__AMXINT8__)) && defined(__linux__)  // the second is the name of clang 14

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace afterword {
namespace {

// Has values in memory now: compilers know nothing of what tiles read and write.
inline void settle() { __asm__ volatile("" ::: "memory"); }

// Few columns are multiplied as with AVX-512. The sums of a tile are whole numbers, and floats follow in the order of
// AVX-512. So a column has the same bits among few and among many.
struct amx : avx512 {
    static constexpr int MANY = 16;  // columns of a tile
    // Two scales would halve a tile, and leave as many floats to add.
    template <class F> static constexpr bool OPENS = F::SCALES == 1;

    // A block of a panel with a byte for each value, less its offset, and with floats.
    template <class F> struct open_block {
        alignas(64) int8_t groups[GROUPS][VECTOR];
        float scales[ROWS];
        float mins[ROWS];

        void open(const panel_parts<F, const uint8_t> & parts, int64_t b) {
            for (int g = 0; g < GROUPS; g++) {
                const ints quants = unpack<avx512, F>(parts.quants_of(b), 0, g);
                _mm512_store_si512(groups[g], _mm512_sub_epi8(quants, _mm512_set1_epi8((char) F::OFFSET)));
            }
            const factors<avx512, F> of_rows(parts, b, 0);
            avx512::store(scales, of_rows.scales[0]);
            if constexpr (F::MIN) {
                avx512::store(mins, of_rows.mins[0]);
            }
        }
    };

    // Tiles 0 and 1 have sums, 2 and 3 columns, 4 and 5 weights. The table is constant: GCC leaves out values that are
    // written just before, because it thinks that the instruction reads eight bytes.
    static void configure() {
        struct tile_table {
            uint8_t  palette       = 1;
            uint8_t  start_row     = 0;
            uint8_t  reserved[14]  = {};
            uint16_t row_bytes[16] = { VECTOR, VECTOR, VALUES, VALUES, VECTOR, VECTOR };
            uint8_t  rows[16]      = { MANY, MANY, MANY, MANY, GROUPS, GROUPS };
        };
        alignas(64) static constexpr tile_table TILES;
        _tile_loadconfig(&TILES);
    }

    using block_sums = int32_t[MANY][ROWS];

    // The sums of a block and 16 columns. Blocks that follow each other take turns with the tiles.
    template <int TURN>
    static inline __attribute__((always_inline)) void multiply_tiles(
        const int8_t (&groups)[GROUPS][VECTOR], int64_t blocks, const column_block * columns, block_sums & sums) {
        const size_t stride = blocks * sizeof(column_block);
        if constexpr (TURN == 0) {  // compilers want the numbers of tiles as they are
            _tile_zero(0);
            _tile_loadd(2, columns->quants, stride);
            _tile_loadd(4, groups, VECTOR);
            _tile_dpbssd(0, 2, 4);
            _tile_stored(0, sums, VECTOR);
        } else {
            _tile_zero(1);
            _tile_loadd(3, columns->quants, stride);
            _tile_loadd(5, groups, VECTOR);
            _tile_dpbssd(1, 3, 5);
            _tile_stored(1, sums, VECTOR);
        }
    }

    template <class F>
    static inline __attribute__((always_inline)) void add_block_sums(
        const open_block<F> & block, int64_t blocks, const column_block * columns, const block_sums & dots,
        floats (&sums)[MANY]) {
        const floats scales = load_floats(block.scales);
#pragma GCC unroll 16
        for (int c = 0; c < MANY; c++) {
            const column_block & column = columns[c * blocks];
            sums[c] = fma(to_float(load(dots[c])), mul(scales, avx512::set1(column.scale)), sums[c]);
            if constexpr (F::MIN) {
                sums[c] = fma(load_floats(block.mins), avx512::set1(column.sums[0]), sums[c]);
            }
        }
    }

    // Some open blocks of a panel and 16 columns, of which as many as `skips` stay as they are. Sums begin in `out`,
    // unless the blocks are the first ones.
    template <class F>
    static void multiply_open(
        const open_block<F> * open, int64_t n_open, int64_t blocks, const column_block * columns, float * out,
        size_t out_stride, bool first, int64_t skips) {
        floats sums[MANY];
#pragma GCC unroll 16
        for (int c = 0; c < MANY; c++) {
            sums[c] = first ? avx512::set1(0.0f) : load_floats(out + c * out_stride);
        }
        // The tiles of a block are multiplied while floats of the one before are added.
        alignas(64) block_sums dots[2];
        settle();
        multiply_tiles<0>(open[0].groups, blocks, columns, dots[0]);
        for (int64_t b = 0; b < n_open; b += 2) {
            if (b + 1 < n_open) {
                multiply_tiles<1>(open[b + 1].groups, blocks, columns + b + 1, dots[1]);
            }
            settle();
            add_block_sums<F>(open[b], blocks, columns + b, dots[0], sums);
            if (b + 1 == n_open) {
                break;
            }
            settle();
            if (b + 2 < n_open) {
                multiply_tiles<0>(open[b + 2].groups, blocks, columns + b + 2, dots[0]);
            }
            settle();
            add_block_sums<F>(open[b + 1], blocks, columns + b + 1, dots[1], sums);
        }
#pragma GCC unroll 16
        for (int c = 0; c < MANY; c++) {
            if (c >= skips) {
                avx512::store(out + c * out_stride, sums[c]);
            }
        }
    }

    // The same as multiply_quants for 16 columns and more. Where they are no multiple of 16, the last tile begins in the
    // one before, or a few columns are multiplied as with AVX-512. So many blocks of two panels are open that the first
    // cache holds them, with their part of 16 columns.
    template <class F>
    static void multiply_many(
        const uint8_t * panels, int64_t n_panels, int64_t blocks, const column_block * columns, int64_t n, float * out,
        size_t out_stride, bool asks) {
        constexpr int64_t BESIDE = 2;
        constexpr int64_t MOST   = 26000 / BESIDE / sizeof(open_block<F>);
        constexpr int64_t FEW    = 6;
        const int64_t     n_few  = n % MANY <= FEW ? n % MANY : 0;
        const int64_t     n_runs = (blocks + MOST - 1) / MOST;
        const size_t      bytes  = panel_bytes<F>(blocks * VALUES);
        open_block<F>     open[BESIDE][MOST];
        configure();
        for (int64_t first = 0; first < n_panels; first += BESIDE) {
            const int64_t end = first + BESIDE < n_panels ? first + BESIDE : n_panels;
            for (int64_t run = 0; run < n_runs; run++) {
                const int64_t begin  = run * blocks / n_runs;
                const int64_t n_open = (run + 1) * blocks / n_runs - begin;
                for (int64_t p = first; p < end; p++) {
                    for (int64_t b = 0; b < n_open; b++) {
                        open[p - first][b].open({ panels + p * bytes, blocks }, begin + b);
                        if (asks && p + BESIDE < n_panels) {
                            ask_for(panels + (p + BESIDE) * bytes + (begin + b) * QUANT_BYTES<F>, QUANT_BYTES<F>);
                        }
                    }
                }
                for (int64_t c = 0; c < n - n_few; c += MANY) {
                    const int64_t from = c < n - MANY ? c : n - MANY;
                    for (int64_t p = first; p < end; p++) {
                        multiply_open<F>(
                            open[p - first], n_open, blocks, columns + from * blocks + begin,
                            out + from * out_stride + p * ROWS, out_stride, run == 0, c - from);
                    }
                }
            }
            for (int64_t p = first; p < end; p++) {
                multiply_all<amx, F, FEW, 1>(
                    panels + p * bytes, blocks, columns + (n - n_few) * blocks, n_few,
                    out + (n - n_few) * out_stride + p * ROWS, out_stride, false);
            }
        }
        _tile_release();
    }
};

// Whether the processor has tiles of bytes, and the system saves them and lets this process have them.
bool has_tiles() {
    constexpr unsigned SAVES_STATE = 1 << 27, OF_TILES = 1 << 24, OF_BYTES = 1 << 25, STATES = 3 << 17;
    constexpr long     ASK_FOR_STATE = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA

    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & SAVES_STATE) || !__get_cpuid_count(7, 0, &a, &b, &c, &d) ||
        !(d & OF_TILES) || !(d & OF_BYTES)) {
        return false;
    }
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & STATES) == STATES && syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA) == 0;
}

bool runs_here() { return has_avx512() && has_tiles(); }

}  // namespace

const packed_kernels packed_amx = { "amx", runs_here, KERNELS<amx>, std::size(KERNELS<amx>) };

}  // namespace afterword

#else

// This compiler or this system has no tiles.
const afterword::packed_kernels afterword::packed_amx = { "amx", [] { return false; }, nullptr, 0 };

#endif
#endif
