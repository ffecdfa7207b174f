// A Linear of some rows: int8 product, rescaling, bias, and then the residual, or GELU and quantization, or the heads.
#pragma once

#include <algorithm>

#include "products.h"
#include "rows.h"
#include "step.h"

namespace qvit {

// Rows that a thread takes at a time: their codes and fp32 results stay in half of a cache of 512 KiB.
inline int64_t rows_at_once(const Step& s, bool keeps_results) {
    const int64_t by_codes = 64 * 1024 / std::max<int64_t>(s.k, 1);
    const int64_t by_results = keeps_results ? 192 * 1024 / (4 * s.n) : by_codes;
    return std::max<int64_t>(std::min(by_codes, by_results) / TILE_ROWS, 1) * TILE_ROWS;
}

// A tile of results: where its rows lie, and what its 64 columns have in common. Rows that do not exist read what the
// last one reads and write where nobody looks, so that no vector asks whether there is something for it to do: with
// conditions a group of x took 677 instructions a tile beside its product, and takes 202 without.
template <int ROWS>
struct Tile {
    const float* x_scale[ROWS];  // of the row's groups
    const float* residual[ROWS];
    float* y[ROWS];
    const float *w_scale, *bias;
};

// total[ROWS][64] plus the product with one group of x, rescaled. Totals stay in the first cache, as registers are full.
template <int ROWS, bool FIRST>
inline void add_group(const float* const* x_scale, int64_t group, const uint8_t* a, int64_t pitch, const int8_t* b,
                      int64_t steps, const int32_t* start, float* total) {
    float scale[ROWS];
    for (int m = 0; m < ROWS; ++m) scale[m] = x_scale[m][group];
    multiply<ROWS, 4>(a, pitch, b, steps, start, [&](auto m, auto v, Ints sums) INLINE {
        float* const place = total + m * PANEL + v * LANES;
        const Floats y = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), all(scale[m]));
        _mm512_storeu_ps(place, FIRST ? y : _mm512_add_ps(_mm512_loadu_ps(place), y));
    });
}

// The last group (or the only one, TOTAL being false), and what follows when a sum is complete.
template <int ROWS, int ACTIVATION, bool RESIDUAL, bool TOTAL>
inline void finish(const Tile<ROWS>& given, int64_t group, const uint8_t* a, int64_t pitch, const int8_t* b,
                   int64_t steps, const int32_t* start, const float* total) {
    const Tile<ROWS> tile = given;  // of its own: no store can change it
    multiply<ROWS, 4>(a, pitch, b, steps, start, [&](auto m, auto v, Ints sums) INLINE {
        Floats y = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), all(tile.x_scale[m][group]));
        if (TOTAL) y = _mm512_add_ps(_mm512_loadu_ps(total + m * PANEL + v * LANES), y);
        y = _mm512_mul_ps(y, _mm512_loadu_ps(tile.w_scale + v * LANES));
        y = _mm512_add_ps(y, _mm512_loadu_ps(tile.bias + v * LANES));
        if (RESIDUAL) y = _mm512_add_ps(_mm512_loadu_ps(tile.residual[m] + v * LANES), y);
        if (ACTIVATION == GELU_ERF) y = gelu_erf(y);
        if (ACTIVATION == GELU_TANH) y = gelu_tanh(y);
        _mm512_storeu_ps(tile.y[m] + v * LANES, y);
    });
}

template <int ROWS, int ACTIVATION, bool RESIDUAL>
void multiply_tile(const Step& s, const Tile<ROWS>& tile, const uint8_t* a, int64_t pitch, int64_t column) {
    const int64_t steps = (s.k + 3) / 4, part = s.groups == 1 ? steps : s.k / s.groups / 4;
    const int64_t padded = (s.n + PANEL - 1) / PANEL * PANEL;
    const int8_t* b = s.panels + column * steps * 4;
    const int32_t* start = s.starts + column;
    if (s.groups == 1)
        return finish<ROWS, ACTIVATION, RESIDUAL, false>(tile, 0, a, pitch, b, part, start, nullptr);
    alignas(64) float total[ROWS * PANEL];
    add_group<ROWS, true>(tile.x_scale, 0, a, pitch, b, part, start, total);
    for (int64_t g = 1; g < s.groups; ++g) {
        a += part * 4;
        b += part * PANEL * 4;
        start += padded;
        if (g + 1 < s.groups)
            add_group<ROWS, false>(tile.x_scale, g, a, pitch, b, part, start, total);
        else
            finish<ROWS, ACTIVATION, RESIDUAL, true>(tile, g, a, pitch, b, part, start, total);
    }
}

// What leaves every value as it is, -0 too.
alignas(64) constexpr float NO_BIAS[PANEL] = {
#define EIGHT -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f
    EIGHT, EIGHT, EIGHT, EIGHT, EIGHT, EIGHT, EIGHT, EIGHT};
#undef EIGHT

// What tiles of the last panel read and write where a weight's rows do not fill it.
struct Edge {
    float w_scale[PANEL] = {}, bias[PANEL] = {};
    float residual[TILE_ROWS][PANEL] = {}, y[TILE_ROWS][PANEL];
};

// Rows m.. of `rows` from row `begin` on, at one panel. y, edge: as in `multiply_rows`.
template <int ROWS, int ACTIVATION, bool RESIDUAL>
void place_tile(const Step& s, int64_t begin, int64_t m, int64_t rows, const uint8_t* a, float* y, int64_t pitch,
                int64_t column, Edge& edge) {
    const int64_t columns = std::min(PANEL, s.n - column), a_pitch = (s.k + 3) / 4 * 4;
    const bool whole = columns == PANEL;
    const float* const bias = s.bias ? s.bias + column : NO_BIAS;
    Tile<ROWS> tile{{}, {}, {}, whole ? s.w_scale + column : edge.w_scale, whole ? bias : edge.bias};
    for (int i = 0; i < ROWS; ++i) {
        const int64_t row = std::min(m + i, rows - 1);
        tile.x_scale[i] = s.x_scale + (begin + row) * s.x_pitch;
        tile.y[i] = whole && row == m + i ? y + row * pitch + column : edge.y[i];
        if (!RESIDUAL) continue;
        tile.residual[i] = s.residual + (begin + row) * s.n + column;
        if (!whole) tile.residual[i] = std::copy_n(tile.residual[i], columns, edge.residual[i]) - columns;
    }
    multiply_tile<ROWS, ACTIVATION, RESIDUAL>(s, tile, a + m * a_pitch, a_pitch, column);
    if (!whole)
        for (int64_t i = 0; i < std::min<int64_t>(ROWS, rows - m); ++i)
            std::copy_n(edge.y[i], columns, y + (m + i) * pitch + column);
}

// y[rows][pitch] = the Linear of `rows` rows from row `begin` on. a: their codes + 128, padded to whole tiles.
template <int ACTIVATION, bool RESIDUAL>
void multiply_rows(const Step& s, int64_t begin, int64_t rows, const uint8_t* a, float* y, int64_t pitch) {
    Edge edge;
    if (const int64_t columns = s.n % PANEL) {
        std::copy_n(s.w_scale + s.n - columns, columns, edge.w_scale);
        std::copy_n(s.bias ? s.bias + s.n - columns : NO_BIAS, columns, edge.bias);
    }
    for (int64_t column = 0; column < s.n; column += PANEL)
        for (int64_t m = 0; m < rows; m += TILE_ROWS)
            if (rows - m > TILE_ROWS / 2)
                place_tile<TILE_ROWS, ACTIVATION, RESIDUAL>(s, begin, m, rows, a, y, pitch, column, edge);
            else
                place_tile<TILE_ROWS / 2, ACTIVATION, RESIDUAL>(s, begin, m, rows, a, y, pitch, column, edge);
}

inline void multiply_rows(const Step& s, int64_t begin, int64_t rows, const uint8_t* a, float* y, int64_t pitch) {
    if (s.activation == GELU_ERF) return multiply_rows<GELU_ERF, false>(s, begin, rows, a, y, pitch);
    if (s.activation == GELU_TANH) return multiply_rows<GELU_TANH, false>(s, begin, rows, a, y, pitch);
    if (s.residual) return multiply_rows<NONE, true>(s, begin, rows, a, y, pitch);
    multiply_rows<NONE, false>(s, begin, rows, a, y, pitch);
}

inline Grid grid_of(const Step& s) {
    const bool clamps = s.given || s.low > -127;
    return {static_cast<float>(s.steps), static_cast<float>(s.low), static_cast<float>(s.high), clamps};
}

// Of a row of rows [..., tokens, K]; 8 bits are `reference`'s, as everywhere.
inline Grid grid_of(const Step& s, int64_t row) {
    return s.prefix && row % s.tokens < s.prefix ? Grid{127.0f, -127.0f, 127.0f, false} : grid_of(s);
}

inline Transform transform_of(const Step& s) {
    return {s.signs, s.block, static_cast<float>(s.block_norm)};
}

constexpr int64_t MOST_PARTS = 256;  // heads of Q, K and V that are scaled together

// A finished row of Q, K and V, fp32 [3][heads][width]: LayerNorm and rotation of the heads of Q and K.
inline void normalize_heads(const Step& s, float* y) {
    for (int64_t i = 0; i < 2 * s.heads; ++i, y += s.width) {
        const bool query = i < s.heads;
        const Norm norm{query ? s.norm_weight : s.k_weight, query ? s.norm_bias : s.k_bias, static_cast<float>(s.eps)};
        layer_norm(y, s.width, norm, y);
        if (s.block) block_transform(y, s.width, transform_of(s), y);
    }
}

// Codes of a head of V, to wherever its memory has them.
inline void write_value(const Step& s, int64_t image, int64_t token, int64_t head, const float* y, float scale) {
    int8_t* const codes = s.v + image * s.v_image + head * s.v_head + token * s.v_token;
    if (s.v_channel == 1) return write_codes(y, s.width, scale, grid_of(s), codes);
    int8_t line[256];
    write_codes(y, s.width, scale, grid_of(s), line);
    for (int64_t c = 0; c < s.width; ++c) codes[c * s.v_channel] = line[c];
}

// A finished row of Q, K and V into codes by head. All scales come first: none waits for another's division.
inline void write_heads(const Step& s, int64_t image, int64_t token, float* y) {
    const Grid grid = grid_of(s);
    float scale[MOST_PARTS];
    if (s.norm_weight) normalize_heads(s, y);
    for (int64_t i = 0; i < 3 * s.heads; ++i)
        scale[i] = scale_of(largest_magnitude(y + i * s.width, s.width), grid.steps);
    for (int64_t i = 0; i < 3 * s.heads; ++i, y += s.width) {
        const int64_t part = i / s.heads, head = i % s.heads;
        const int64_t at = (image * s.heads + head) * s.tokens + token;
        (part == 0 ? s.q_scale : part == 1 ? s.k_scale : s.v_scale)[at] = scale[i];
        if (part == 2)
            write_value(s, image, token, head, y, scale[i]);
        else
            write_codes(y, s.width, scale[i], grid, (part == 0 ? s.q : s.key) + at * s.width);
    }
}

// Rows begin..end of a LINEAR or QKV.
inline void run_linear(const Step& s, int64_t begin, int64_t end, Arena& arena) {
    const bool keeps = s.out == nullptr;
    const int64_t count = rows_at_once(s, keeps), a_pitch = (s.k + 3) / 4 * 4;
    const int64_t y_pitch = keeps ? (s.n + LANES - 1) / LANES * LANES : s.n;
    arena.reset(count * a_pitch + 64 + (keeps ? (count * y_pitch + 32) * 4 : 0) + 128);
    uint8_t* const a = arena.take<uint8_t>(count * a_pitch + 64);
    float* const kept = keeps ? arena.take<float>(count * y_pitch) : nullptr;
    for (int64_t row = begin; row < end; row += count) {
        const int64_t rows = std::min(count, end - row);
        offset_rows(static_cast<const int8_t*>(s.x) + row * s.k, rows, s.k, a, a_pitch);
        if (!keeps) {
            multiply_rows(s, row, rows, a, s.out + row * s.n, s.n);
            continue;
        }
        multiply_rows(s, row, rows, a, kept, y_pitch);
        for (int64_t m = 0; m < rows; ++m) {
            float* const y = kept + m * y_pitch;
            if (s.kind == QKV) {
                write_heads(s, (row + m) / s.tokens, (row + m) % s.tokens, y);
                continue;
            }
            if (s.block) block_transform(y, s.n, transform_of(s), y);
            const int64_t at = row + m;
            const Grid grid = grid_of(s, at);
            quantize_row(y, s.n, s.group, grid, s.given, s.codes + at * s.n, s.scales + at * (s.n / s.group));
        }
    }
}

}  // namespace qvit
