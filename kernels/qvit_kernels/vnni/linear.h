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

// Masked stores are slow on some processors, and only the last panel needs them.
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

template <int ROWS, int ACTIVATION, bool RESIDUAL>
inline void finish(const Sums& to, const uint8_t* a, int64_t pitch, const int8_t* b, int64_t steps,
                   const int32_t* start, const float* w_scale, const float* bias, bool begins) {
    multiply<ROWS, 4>(a, pitch, b, steps, start, [&](int m, int v, Ints sums) {
        if (m >= to.rows) return;
        const __mmask16 mask = first(to.columns - v * LANES);
        float* const place = to.y + m * to.pitch + v * LANES;
        Floats y = rescaled(to, m, sums);
        if (!begins) y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, place), y);
        y = _mm512_mul_ps(y, _mm512_maskz_loadu_ps(mask, w_scale + v * LANES));
        if (bias) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, bias + v * LANES));
        if (RESIDUAL) y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to.residual + m * to.pitch + v * LANES), y);
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
    finish<ROWS, ACTIVATION, RESIDUAL>(to, a, pitch, b, part, start, s.w_scale + column, bias, s.groups == 1);
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
    return {static_cast<float>(s.steps), static_cast<float>(s.low), static_cast<float>(s.high)};
}

inline Transform transform_of(const Step& s) {
    return {s.signs, s.block, static_cast<float>(s.block_norm)};
}

// A finished row of Q, K and V, fp32 [3][heads][width], into codes by head.
inline void write_heads(const Step& s, int64_t row, float* y) {
    const int64_t image = row / s.tokens, token = row % s.tokens;
    const Grid grid = grid_of(s);
    for (int64_t part = 0; part < 3; ++part) {
        float* const scales = part == 0 ? s.q_scale : part == 1 ? s.k_scale : s.v_scale;
        for (int64_t h = 0; h < s.heads; ++h, y += s.width) {
            if (part < 2 && s.norm_weight) {
                const Norm norm = part == 0 ? Norm{s.norm_weight, s.norm_bias, static_cast<float>(s.eps)}
                                            : Norm{s.k_weight, s.k_bias, static_cast<float>(s.eps)};
                layer_norm(y, s.width, norm, y);
                if (s.block) block_transform(y, s.width, transform_of(s), y);
            }
            const int64_t at = (image * s.heads + h) * s.tokens + token;
            const float scale = scale_of(largest_magnitude(y, s.width), grid.steps);
            scales[at] = scale;
            int8_t* codes = (part == 0 ? s.q : s.key) + at * s.width;
            if (part < 2) {
                write_codes(y, s.width, scale, grid, codes);
                continue;
            }
            codes = s.v + image * s.v_image + h * s.v_head + token * s.v_token;
            if (s.v_channel == 1) {
                write_codes(y, s.width, scale, grid, codes);
                continue;
            }
            int8_t line[256];
            write_codes(y, s.width, scale, grid, line);
            for (int64_t c = 0; c < s.width; ++c) codes[c * s.v_channel] = line[c];
        }
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
                write_heads(s, row + m, y);
                continue;
            }
            if (s.block) block_transform(y, s.n, transform_of(s), y);
            const int64_t at = row + m;
            quantize_row(y, s.n, s.group, grid_of(s), s.given, s.codes + at * s.n, s.scales + at * (s.n / s.group));
        }
    }
}

}  // namespace qvit
