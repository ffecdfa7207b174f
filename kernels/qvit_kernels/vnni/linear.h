// A Linear of some rows: int8 product, rescaling, bias, and then the residual, or GELU and quantization, or the heads.
#pragma once

#include <algorithm>
#include <numeric>

#include "products.h"
#include "rows.h"
#include "step.h"

namespace qvit {

// Columns of a Linear that are finished together: whole panels, and whole groups of what is quantized.
inline int64_t columns_at_once(const Step& s) {
    if (s.out) return s.n;
    return std::min(std::lcm(std::lcm(s.unit(), s.kind != QKV && s.block ? s.block : 1), PANEL), s.n);
}

// Rows that a thread takes at a time: their codes stay in an eighth of a cache of 512 KiB; so do, in a third of the first
// cache, the results that wait for quantization, or in three eighths of the second where those are whole rows.
inline int64_t rows_at_once(const Step& s) {
    int64_t count = 64 * 1024 / std::max<int64_t>(s.k, 1);
    const int64_t columns = columns_at_once(s), room = columns < s.n ? 16 * 1024 : 192 * 1024;
    if (!s.out) count = std::min(count, room / (4 * columns));
    return std::max<int64_t>(count / TILE_ROWS, 1) * TILE_ROWS;
}

// A tile of results: its first row and column, and how far it is to the next row.
struct Tile {
    const float* x_scale;  // of the row's groups
    const float *w_scale, *bias, *residual;
    float* y;
    int64_t x_pitch, residual_pitch, y_pitch;
};

// The products of a Linear by groups of x: fours of columns in all and in a group, and columns up to a whole panel.
struct Groups {
    int64_t count, steps, part, padded;

    explicit Groups(const Step& s)
        : count(s.groups), steps((s.k + 3) / 4), part(count == 1 ? steps : s.k / count / 4),
          padded((s.n + PANEL - 1) / PANEL * PANEL) {}
};

// total[ROWS][64] plus the product with one group of x, rescaled. Totals stay in the first cache, as registers are full.
template <int ROWS, bool FIRST>
inline void add_group(const Operands& operands, const float* x_scale, int64_t x_pitch, float* total) {
    float scale[ROWS];
    for (int m = 0; m < ROWS; ++m) scale[m] = x_scale[m * x_pitch];
    multiply<ROWS, 4>(operands, [&](auto m, auto v, Ints sums) INLINE {
        float* const place = total + m * PANEL + v * LANES;
        const Floats y = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), all(scale[m]));
        _mm512_storeu_ps(place, FIRST ? y : _mm512_add_ps(_mm512_loadu_ps(place), y));
    });
}

// The last group (or the only one, TOTAL being false), and what follows when a sum is complete.
template <int ROWS, bool RESIDUAL, bool TOTAL>
inline void finish(const Operands& operands, const Tile& given, int64_t group, const float* total) {
    const Tile tile = given;  // of its own: no store can change it
    multiply<ROWS, 4>(operands, [&](auto m, auto v, Ints sums) INLINE {
        Floats y = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), all(tile.x_scale[m * tile.x_pitch + group]));
        if (TOTAL) y = _mm512_add_ps(_mm512_loadu_ps(total + m * PANEL + v * LANES), y);
        y = _mm512_mul_ps(y, _mm512_loadu_ps(tile.w_scale + v * LANES));
        y = _mm512_add_ps(y, _mm512_loadu_ps(tile.bias + v * LANES));
        if (RESIDUAL) y = _mm512_add_ps(_mm512_loadu_ps(tile.residual + m * tile.residual_pitch + v * LANES), y);
        _mm512_storeu_ps(tile.y + m * tile.y_pitch + v * LANES, y);
    });
}

// operands: the tile's, of the first group.
template <int ROWS, bool RESIDUAL>
void multiply_tile(Operands operands, const Tile& tile, const Groups& groups) {
    if (groups.count == 1) return finish<ROWS, RESIDUAL, false>(operands, tile, 0, nullptr);
    alignas(64) float total[ROWS * PANEL];
    add_group<ROWS, true>(operands, tile.x_scale, tile.x_pitch, total);
    for (int64_t g = 1; g < groups.count; ++g) {
        operands.a += groups.part * 4;
        operands.b += groups.part * PANEL * 4;
        operands.start += groups.padded;
        if (g + 1 < groups.count)
            add_group<ROWS, false>(operands, tile.x_scale + g, tile.x_pitch, total);
        else
            finish<ROWS, RESIDUAL, true>(operands, tile, g, total);
    }
}

// What leaves every value as it is, -0 too.
alignas(64) constexpr float NO_BIAS[PANEL] = {
#define EIGHT -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f
    EIGHT, EIGHT, EIGHT, EIGHT, EIGHT, EIGHT, EIGHT, EIGHT};
#undef EIGHT

// What tiles of the last panel read and write where a weight's rows do not fill it.
struct Edge {
    float w_scale[PANEL] = {}, bias[PANEL] = {}, residual[TILE_ROWS * PANEL] = {}, y[TILE_ROWS * PANEL];

    Tile in_place_of(const Tile& tile, int64_t rows, int64_t columns) {
        std::copy_n(tile.w_scale, columns, w_scale);
        std::copy_n(tile.bias, columns, bias);
        for (int64_t m = 0; tile.residual && m < rows; ++m)
            std::copy_n(tile.residual + m * tile.residual_pitch, columns, residual + m * PANEL);
        return {tile.x_scale, w_scale, bias, residual, y, tile.x_pitch, PANEL, PANEL};
    }

    void write_to(const Tile& tile, int64_t rows, int64_t columns) const {
        for (int64_t m = 0; m < rows; ++m) std::copy_n(y + m * PANEL, columns, tile.y + m * tile.y_pitch);
    }
};

// A range of rows and columns of a Linear, and where its results go.
struct Range {
    int64_t row, rows, first, last;
    const uint8_t* a;  // codes + 128 of the rows, [rows][a_pitch]
    int64_t a_pitch;
    float* y;  // [rows][y_pitch]
    int64_t y_pitch;
};

// Rows m.. of a range at one of its panels.
template <int ROWS, bool RESIDUAL>
void place_tile(const Step& s, const Groups& groups, const Range& r, int64_t m, int64_t column) {
    const int64_t row = r.row + m, columns = std::min(PANEL, s.n - column);
    const Tile tile{
        s.x_scale + row * s.x_pitch,
        s.w_scale + column,
        s.bias ? s.bias + column : NO_BIAS,
        RESIDUAL ? s.residual + row * s.n + column : nullptr,
        r.y + m * r.y_pitch + column - r.first,
        s.x_pitch,
        s.n,
        r.y_pitch,
    };
    const Operands operands{
        r.a + m * r.a_pitch, r.a_pitch, s.panels + column * groups.steps * 4, groups.part, s.starts + column};
    if (columns == PANEL) return multiply_tile<ROWS, RESIDUAL>(operands, tile, groups);
    Edge edge;
    multiply_tile<ROWS, RESIDUAL>(operands, edge.in_place_of(tile, ROWS, columns), groups);
    edge.write_to(tile, ROWS, columns);
}

// Tiles do not divide the rows: the last one begins so early that it ends with them, and computes some for the second time
// (so a residual must not be where the result goes).
template <bool RESIDUAL>
void multiply_range(const Step& s, const Range& r) {
    const Groups groups(s);
    constexpr int WHOLE = TILE_ROWS, HALF = TILE_ROWS / 2;
    for (int64_t column = r.first; column < r.last; column += PANEL) {
        int64_t m = 0;
        for (; m + WHOLE <= r.rows; m += WHOLE) place_tile<WHOLE, RESIDUAL>(s, groups, r, m, column);
        if (r.rows - m > HALF && r.rows >= WHOLE) {
            place_tile<WHOLE, RESIDUAL>(s, groups, r, r.rows - WHOLE, column);
            continue;
        }
        for (; m < r.rows && r.rows >= HALF; m += HALF)
            place_tile<HALF, RESIDUAL>(s, groups, r, std::min(m, r.rows - HALF), column);
        for (; m < r.rows; ++m) place_tile<1, RESIDUAL>(s, groups, r, m, column);
    }
}

inline Grid grid_of(const Step& s) {
    return {static_cast<float>(s.steps), static_cast<float>(s.low), static_cast<float>(s.high), s.given != nullptr};
}

inline Transform transform_of(const Step& s) {
    return {s.signs, s.block, static_cast<float>(s.block_norm)};
}

// Finished results that wait for quantization: columns, `width` from `first` on, of `rows` rows from row `row` on.
struct Waiting {
    int64_t row, rows, first, width;
    float* x;  // [rows][pitch]
    int64_t pitch;
    float* scale;  // memory for those of all, in the order of x, and 15 more
};

// Calls part(first row, rows, grid) for the waiting rows that have the same grid: the first of an image may have 8 bits,
// which are `reference`'s as everywhere.
template <class Part>
inline void by_grid(const Step& s, const Waiting& w, Part&& part) {
    if (!s.prefix) return part(0, w.rows, grid_of(s));
    const Grid finer{127.0f, -127.0f, 127.0f, false};
    for (int64_t m = 0; m < w.rows;) {
        const int64_t token = (w.row + m) % s.tokens;
        const bool early = token < s.prefix;
        const int64_t count = std::min((early ? s.prefix : s.tokens) - token, w.rows - m);
        part(m, count, early ? finer : grid_of(s));
        m += count;
    }
}

// Codes and scales of waiting rows that have `all_columns` columns. values: as w.x, from where they are read.
inline void quantize_rows(const Step& s, const Waiting& w, const float* values, int64_t all_columns) {
    const int64_t count = w.width / s.group, groups = all_columns / s.group, group = w.first / s.group;
    by_grid(s, w, [&](int64_t begin, int64_t rows, const Grid& grid) {
        const float* const x = values + begin * w.pitch;
        for (int64_t m = 0; m < rows; ++m)
            for (int64_t g = 0; g < count; ++g)
                w.scale[m * count + g] =
                    s.given ? s.given[group + g] : extreme_of(x + m * w.pitch + g * s.group, s.group, grid);
        if (!s.given) {
            turn_into_scales(w.scale, rows * count, grid.steps);
            for (int64_t m = 0; m < rows; ++m)
                std::copy_n(w.scale + m * count, count, s.scales + (w.row + begin + m) * groups + group);
        }
        turn_into_inverses(w.scale, rows * count);
        for (int64_t m = 0; m < rows; ++m)
            for (int64_t g = 0; g < count; ++g)
                write_codes(x + m * w.pitch + g * s.group, s.group, w.scale[m * count + g], grid,
                            s.codes + (w.row + begin + m) * all_columns + w.first + g * s.group);
    });
}

// A finished head of Q or K, fp32 [width]: LayerNorm and rotation.
inline void normalize_head(const Step& s, bool query, float* y) {
    const Norm norm{query ? s.norm_weight : s.k_weight, query ? s.norm_bias : s.k_bias, static_cast<float>(s.eps)};
    Normed values;
    normed(1, y, s.width, norm, &values);
    layer_norm(values, s.width, y);
    if (s.block) block_transform(y, s.width, transform_of(s), y);
}

// Codes of a token of V, to wherever its memory has them.
inline void write_value(const Step& s, const float* y, float inverse, const Grid& grid, int8_t* codes) {
    if (s.v_channel == 1) return write_codes(y, s.width, inverse, grid, codes);
    int8_t line[256];
    write_codes(y, s.width, inverse, grid, line);
    for (int64_t c = 0; c < s.width; ++c) codes[c * s.v_channel] = line[c];
}

// Calls each(m, image, token) for the waiting rows.
template <class Each>
inline void by_image(const Step& s, const Waiting& w, Each&& each) {
    int64_t image = w.row / s.tokens, token = w.row % s.tokens;
    for (int64_t m = 0; m < w.rows; ++m, ++token) {
        if (token == s.tokens) ++image, token = 0;
        each(m, image, token);
    }
}

// One head of Q, K or V of the waiting rows, part h of 3 * heads, whose first column is x.
inline void write_head(const Step& s, const Waiting& w, int64_t h, float* x) {
    const Grid grid = grid_of(s);
    const int64_t part = h / s.heads, head = h % s.heads;
    for (int64_t m = 0; m < w.rows; ++m) {
        if (s.norm_weight && part < 2) normalize_head(s, part == 0, x + m * w.pitch);
        w.scale[m] = std::fabs(largest(x + m * w.pitch, s.width));
    }
    turn_into_scales(w.scale, w.rows, grid.steps);
    by_image(s, w, [&](int64_t m, int64_t image, int64_t token) {
        (part == 0 ? s.q_scale : part == 1 ? s.k_scale : s.v_scale)[(image * s.heads + head) * s.tokens + token] =
            w.scale[m];
    });
    turn_into_inverses(w.scale, w.rows);
    by_image(s, w, [&](int64_t m, int64_t image, int64_t token) {
        const float* const y = x + m * w.pitch;
        if (part == 2) {
            int8_t* const codes = s.v + image * s.v_image + head * s.v_head + token * s.v_token;
            return write_value(s, y, w.scale[m], grid, codes);
        }
        int8_t* const codes = (part == 0 ? s.q : s.key) + ((image * s.heads + head) * s.tokens + token) * s.width;
        write_codes(y, s.width, w.scale[m], grid, codes);
    });
}

// What follows the product: the heads, or activation, transform and quantization.
inline void finish_columns(const Step& s, const Waiting& w) {
    if (s.kind == QKV) {
        for (int64_t c = 0; c < w.width; c += s.width) write_head(s, w, (w.first + c) / s.width, w.x + c);
        return;
    }
    for (int64_t m = 0; m < w.rows; ++m) {
        float* const x = w.x + m * w.pitch;
        // a pass each: with the transform's, GELU's registers are too many, and fc1 takes 3 % longer
        if (s.activation == GELU_ERF) activate(x, w.width, [](Floats v) INLINE { return gelu_erf(v); });
        if (s.activation == GELU_TANH) activate(x, w.width, [](Floats v) INLINE { return gelu_tanh(v); });
        if (s.block) block_transform(x, w.width, transform_of(s).from(w.first), x);
    }
    quantize_rows(s, w, w.x, s.n);
}

// Rows begin..end of a LINEAR or QKV.
inline void run_linear(const Step& s, int64_t begin, int64_t end, Arena& arena) {
    const int64_t count = rows_at_once(s), columns = columns_at_once(s), a_pitch = (s.k + 3) / 4 * 4;
    const int64_t y_pitch = (columns + LANES - 1) / LANES * LANES;
    const int64_t values = s.out ? 0 : count * y_pitch, scales = s.out ? 0 : count * (columns / s.unit()) + LANES;
    arena.reset(count * a_pitch + (values + scales) * 4 + 256);
    uint8_t* const a = arena.take<uint8_t>(count * a_pitch + 64);
    Waiting w{0, 0, 0, 0, arena.take<float>(values), y_pitch, arena.take<float>(scales)};
    for (int64_t row = begin; row < end; row += count) {
        const int64_t rows = std::min(count, end - row);
        offset_rows(static_cast<const int8_t*>(s.x) + row * s.k, rows, s.k, a, a_pitch);
        if (s.out) {
            const Range all_columns{row, rows, 0, s.n, a, a_pitch, s.out + row * s.n, s.n};
            s.residual ? multiply_range<true>(s, all_columns) : multiply_range<false>(s, all_columns);
            continue;
        }
        w.row = row, w.rows = rows;
        for (w.first = 0; w.first < s.n; w.first += columns) {
            w.width = std::min(columns, s.n - w.first);
            multiply_range<false>(s, {row, rows, w.first, w.first + w.width, a, a_pitch, w.x, w.pitch});
            finish_columns(s, w);
        }
    }
}

}  // namespace qvit
