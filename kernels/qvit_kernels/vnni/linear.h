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

// Where tiles of a Linear go: y, fp32 with a pitch, first as sums over groups of x, then finished.
struct Sums {
    const Step* s;
    const float* x_scale;  // of the first row and the group
    float* y;
    int64_t pitch;
    const float* residual;
    int64_t rows, columns;  // that exist from here on
};

inline Floats rescaled(const Sums& to, int m, Ints sums) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(sums), all(to.x_scale[m * to.s->x_pitch]));
}

// Only the last panel of a weight needs masks, without which a load is part of the instruction that takes the value.
template <bool WHOLE>
inline Floats load(__mmask16 mask, const float* place) {
    return WHOLE ? _mm512_loadu_ps(place) : _mm512_maskz_loadu_ps(mask, place);
}

inline void store(float* place, __mmask16 mask, Floats y) {
    if (mask == 0xFFFF)
        _mm512_storeu_ps(place, y);
    else
        _mm512_mask_storeu_ps(place, mask, y);
}

template <int ROWS>
inline void accumulate(const Sums& to, const uint8_t* a, int64_t pitch, const int8_t* b, int64_t steps,
                       const int32_t* start, bool begins) {
    multiply<ROWS, 4>(a, pitch, b, steps, start, [&](int m, int v, Ints sums) {
        const __mmask16 mask = m < to.rows ? first(to.columns - v * LANES) : 0;
        float* const place = to.y + m * to.pitch + v * LANES;
        Floats y = m < to.rows ? rescaled(to, m, sums) : _mm512_setzero_ps();
        if (!begins) y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, place), y);
        store(place, mask, y);
    });
}

template <int ROWS, int ACTIVATION, bool RESIDUAL, bool WHOLE>
inline void finish(const Sums& to, const uint8_t* a, int64_t pitch, const int8_t* b, int64_t steps,
                   const int32_t* start, const float* w_scale, const float* bias, bool begins) {
    multiply<ROWS, 4>(a, pitch, b, steps, start, [&](int m, int v, Ints sums) {
        if (m >= to.rows) return;
        const __mmask16 mask = WHOLE ? 0xFFFF : first(to.columns - v * LANES);
        float* const place = to.y + m * to.pitch + v * LANES;
        Floats y = rescaled(to, m, sums);
        if (!begins) y = _mm512_add_ps(load<WHOLE>(mask, place), y);
        y = _mm512_mul_ps(y, load<WHOLE>(mask, w_scale + v * LANES));
        if (bias) y = _mm512_add_ps(y, load<WHOLE>(mask, bias + v * LANES));
        if (RESIDUAL) y = _mm512_add_ps(load<WHOLE>(mask, to.residual + m * to.pitch + v * LANES), y);
        if (ACTIVATION == GELU_ERF) y = gelu_erf(y);
        if (ACTIVATION == GELU_TANH) y = gelu_tanh(y);
        store(place, mask, y);
    });
}

template <int ROWS, int ACTIVATION, bool RESIDUAL>
void multiply_tile(Sums to, const uint8_t* a, int64_t pitch, int64_t column) {
    const Step& s = *to.s;
    const int64_t steps = (s.k + 3) / 4, part = s.groups == 1 ? steps : s.k / s.groups / 4;
    const int64_t padded = (s.n + PANEL - 1) / PANEL * PANEL;
    const int8_t* b = s.panels + column * steps * 4;
    const int32_t* start = s.starts + column;
    for (int64_t g = 0; g + 1 < s.groups; ++g) {
        accumulate<ROWS>(to, a, pitch, b, part, start, g == 0);
        a += part * 4;
        b += part * PANEL * 4;
        start += padded;
        ++to.x_scale;
    }
    const float* const bias = s.bias ? s.bias + column : nullptr;
    const float* const scale = s.w_scale + column;
    if (to.columns >= PANEL)
        finish<ROWS, ACTIVATION, RESIDUAL, true>(to, a, pitch, b, part, start, scale, bias, s.groups == 1);
    else
        finish<ROWS, ACTIVATION, RESIDUAL, false>(to, a, pitch, b, part, start, scale, bias, s.groups == 1);
}

// y[rows][pitch] = the Linear of `rows` rows from row `begin` on. a: their codes + 128, padded to whole tiles.
template <int ACTIVATION, bool RESIDUAL>
void multiply_rows(const Step& s, int64_t begin, int64_t rows, const uint8_t* a, float* y, int64_t pitch) {
    const int64_t a_pitch = (s.k + 3) / 4 * 4;
    for (int64_t column = 0; column < s.n; column += PANEL)
        for (int64_t m = 0; m < rows; m += TILE_ROWS) {
            const int64_t row = begin + m;
            const float* const residual = RESIDUAL ? s.residual + row * s.n + column : nullptr;
            const Sums to{&s, s.x_scale + row * s.x_pitch, y + m * pitch + column, pitch, residual,
                          rows - m, s.n - column};
            const uint8_t* const tile = a + m * a_pitch;
            if (rows - m > TILE_ROWS / 2)
                multiply_tile<TILE_ROWS, ACTIVATION, RESIDUAL>(to, tile, a_pitch, column);
            else
                multiply_tile<TILE_ROWS / 2, ACTIVATION, RESIDUAL>(to, tile, a_pitch, column);
        }
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
            quantize_row(y, s.n, s.group, grid_of(s), s.given, s.codes + at * s.n, s.scales + at * (s.n / s.group));
        }
    }
}

}  // namespace qvit
