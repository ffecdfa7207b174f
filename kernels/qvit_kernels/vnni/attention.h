// Softmax attention of one head: six queries at a time, whose logits, numerators and sums stay in the first cache.
#pragma once

#include "linear.h"

namespace qvit {

// A head's K and V as the right operands of products, and memory for six queries.
struct Head {
    int8_t *keys, *values;
    int32_t* starts;
    float* logits;
    uint8_t *queries, *numerators;
    int64_t padded, steps;  // tokens up to a whole panel; fours of tokens

    Head(const Step& s, Arena& arena) {
        padded = (s.tokens + PANEL - 1) / PANEL * PANEL;
        steps = (s.tokens + 3) / 4;
        const int64_t value_bytes = (s.width + PANEL - 1) / PANEL * steps * PANEL * 4;
        arena.reset(padded * s.width + value_bytes + padded * 4 * (1 + TILE_ROWS) +
                    TILE_ROWS * (s.width + steps * 4) + 1024);
        keys = arena.take<int8_t>(padded * s.width);
        values = arena.take<int8_t>(value_bytes);
        starts = arena.take<int32_t>(padded);
        logits = arena.take<float>(TILE_ROWS * padded);
        queries = arena.take<uint8_t>(TILE_ROWS * s.width + 64);
        numerators = arena.take<uint8_t>(TILE_ROWS * steps * 4 + 64);
    }
};

// 16 rows of 16 numbers of four bytes become columns.
inline void transpose(Ints* x) {
    Ints y[LANES];
    each<8>([&](auto i) INLINE {
        y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
        y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
    });
    each<4>([&](auto i) INLINE {
        each<2>([&](auto j) INLINE {
            x[4 * i + 2 * j] = _mm512_unpacklo_epi64(y[4 * i + j], y[4 * i + j + 2]);
            x[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(y[4 * i + j], y[4 * i + j + 2]);
        });
    });
    each<2>([&](auto i) INLINE {
        each<4>([&](auto j) INLINE {
            y[8 * i + j] = _mm512_shuffle_i32x4(x[8 * i + j], x[8 * i + j + 4], 0x88);
            y[8 * i + j + 4] = _mm512_shuffle_i32x4(x[8 * i + j], x[8 * i + j + 4], 0xDD);
        });
    });
    each<8>([&](auto j) INLINE {
        x[j] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0x88);
        x[j + 8] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0xDD);
    });
}

// Sixteen tokens and 64 channels at a time; the sum of a token's codes is a product with ones.
inline void pack_keys(const Step& s, const int8_t* key, Head& head) {
    const int64_t fours = s.width / 4;
    for (int64_t t = 0; t < head.padded; t += LANES) {
        int32_t* const panel = reinterpret_cast<int32_t*>(head.keys) + t / PANEL * fours * PANEL + t % PANEL;
        Ints sum = _mm512_setzero_si512();
        for (int64_t c = 0; c < fours; c += LANES) {
            const __mmask16 there = first(fours - c);
            Ints x[LANES];
            each<LANES>([&](auto i) INLINE {
                x[i] = t + i < s.tokens ? _mm512_maskz_loadu_epi32(there, key + (t + i) * s.width + 4 * c)
                                        : _mm512_setzero_si512();
            });
            transpose(x);
            each<LANES>([&](auto i) INLINE {
                if (c + i >= fours) return;
                _mm512_storeu_si512(panel + (c + i) * PANEL, x[i]);
                add_products(sum, _mm512_set1_epi8(1), x[i]);
            });
        }
        _mm512_storeu_si512(head.starts + t, _mm512_mullo_epi32(sum, _mm512_set1_epi32(-128)));
    }
}

// Four tokens of 16 channels each, as 16 groups of four bytes.
inline Ints interleave(__m128i a, __m128i b, __m128i c, __m128i d) {
    const __m128i ab = _mm_unpacklo_epi8(a, b), cd = _mm_unpacklo_epi8(c, d);
    const __m128i AB = _mm_unpackhi_epi8(a, b), CD = _mm_unpackhi_epi8(c, d);
    const __m256i low = _mm256_set_m128i(_mm_unpackhi_epi16(ab, cd), _mm_unpacklo_epi16(ab, cd));
    const __m256i high = _mm256_set_m128i(_mm_unpackhi_epi16(AB, CD), _mm_unpacklo_epi16(AB, CD));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

inline void pack_values(const Step& s, const int8_t* v, Head& head) {
    const int64_t panel = head.steps * PANEL * 4;
    for (int64_t i = 0; i < head.steps; ++i)
        for (int64_t c = 0; c < s.width; c += LANES) {
            int8_t* const place = head.values + c / PANEL * panel + i * PANEL * 4 + c % PANEL * 4;
            if (s.v_channel == 1) {
                __m128i rows[4];
                for (int64_t j = 0; j < 4; ++j)
                    rows[j] = 4 * i + j < s.tokens ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(
                                                         v + (4 * i + j) * s.v_token + c))
                                                   : _mm_setzero_si128();
                _mm512_storeu_si512(place, interleave(rows[0], rows[1], rows[2], rows[3]));
                continue;
            }
            for (int64_t m = 0; m < LANES; ++m)
                for (int64_t j = 0; j < 4; ++j)
                    place[4 * m + j] =
                        4 * i + j < s.tokens ? v[(4 * i + j) * s.v_token + (c + m) * s.v_channel] : 0;
        }
}

template <class Out>
inline void multiply_panel(int64_t vectors, const Operands& operands, Out&& out) {
    if (vectors >= 4) return multiply<TILE_ROWS, 4>(operands, out);
    if (vectors == 3) return multiply<TILE_ROWS, 3>(operands, out);
    if (vectors == 2) return multiply<TILE_ROWS, 2>(operands, out);
    multiply<TILE_ROWS, 1>(operands, out);
}

// Calls step(t, lanes there are) for each 16 of `tokens`; the mask of all but the last call is a constant.
template <class Body>
inline __attribute__((always_inline)) void by_lanes(int64_t tokens, Body&& body) {
    int64_t t = 0;
    for (; t + LANES <= tokens; t += LANES) body(t, static_cast<__mmask16>(0xFFFF));
    if (t < tokens) body(t, first(tokens - t));
}

// Turn rows of logits, the largest of which are in `top`, into the codes of their numerators, [rows][pitch]; returns row
// scale / divisor in `ratio`. Up to 12 bytes behind the codes are written to: a masked store could not be forwarded to the
// loads of the product that follows. The rows go through each stage together, so that none waits for another's division.
inline void softmax(const Step& s, int64_t rows, float* logits, int64_t l_pitch, const Floats* top,
                    const float* v_scale, uint8_t* codes, int64_t pitch, Floats* ratio) {
    Floats sum[TILE_ROWS], inverse[TILE_ROWS];
    float peak[TILE_ROWS];
    for (int64_t m = 0; m < rows; ++m) {
        const Floats most = all(_mm512_reduce_max_ps(top[m]));
        float* const row = logits + m * l_pitch;
        Floats total = _mm512_setzero_ps();
        Ints high = _mm512_setzero_si512();  // of values from 0 on, as whole numbers, of which a NaN is the largest
        by_lanes(s.tokens, [&](int64_t t, __mmask16 there) {
            const Floats e = exp2(_mm512_sub_ps(_mm512_loadu_ps(row + t), most));
            total = _mm512_mask_add_ps(total, there, total, e);
            const Floats weighted = _mm512_mul_ps(e, _mm512_maskz_loadu_ps(there, v_scale + t));
            high = _mm512_max_epu32(high, _mm512_castps_si512(weighted));
            _mm512_storeu_ps(row + t, weighted);
        });
        sum[m] = total;
        const uint32_t bits = _mm512_reduce_max_epu32(high);
        __builtin_memcpy(&peak[m], &bits, 4);
    }
    const float most = static_cast<float>(s.softmax_max);
    for (int64_t m = 0; m < rows; ++m) {
        const float scale = scale_of(peak[m], most);
        inverse[m] = all(1.0f / scale);
        ratio[m] = all(scale / _mm512_reduce_add_ps(sum[m]));
    }
    for (int64_t m = 0; m < rows; ++m)
        by_lanes(s.tokens, [&](int64_t t, __mmask16 there) {
            const Floats weighted = _mm512_maskz_loadu_ps(there, logits + m * l_pitch + t);
            const __m128i q = _mm512_cvtepi32_epi8(codes_of(weighted, inverse[m]));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + m * pitch + t), q);
        });
}

// Queries begin..end of head h of image b.
inline void attend(const Step& s, int64_t b, int64_t h, int64_t begin, int64_t end, Head& head) {
    const int64_t at = (b * s.heads + h) * s.tokens, pitch = head.steps * 4;
    const float *k_scale = s.k_scale + at, *v_scale = s.v_scale + at;
    const float factor = static_cast<float>(s.softmax_scale);
    for (int64_t t = begin; t < end; t += TILE_ROWS) {
        const int64_t rows = std::min<int64_t>(TILE_ROWS, end - t);
        offset_rows(s.q + (at + t) * s.width, rows, s.width, head.queries, s.width);
        Floats of_query[TILE_ROWS], top[TILE_ROWS];
        for (int64_t m = 0; m < TILE_ROWS; ++m) {
            of_query[m] = all(m < rows ? s.q_scale[at + t + m] * factor : 0);
            top[m] = all(-INFINITY);
        }
        const auto write = [&](int64_t c, int m, int v, Ints sums, __mmask16 there) {
            const Floats scale = _mm512_maskz_loadu_ps(there, k_scale + c + v * LANES);
            const Floats y = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums), of_query[m]), scale);
            top[m] = _mm512_mask_max_ps(top[m], there, top[m], y);
            _mm512_storeu_ps(head.logits + m * head.padded + c + v * LANES, y);
        };
        for (int64_t c = 0; c < s.tokens; c += PANEL) {
            const int64_t left = s.tokens - c;
            const Operands operands{head.queries, s.width, head.keys + c * s.width, s.width / 4, head.starts + c};
            if (left >= PANEL)
                multiply<TILE_ROWS, 4>(operands, [&](int m, int v, Ints sums) { write(c, m, v, sums, 0xFFFF); });
            else
                multiply_panel((left + LANES - 1) / LANES, operands, [&](int m, int v, Ints sums) {
                    write(c, m, v, sums, first(left - v * LANES));
                });
        }
        Floats ratio[TILE_ROWS];
        softmax(s, rows, head.logits, head.padded, top, v_scale, head.numerators, pitch, ratio);
        float* const out = s.out + ((b * s.tokens + t) * s.heads + h) * s.width;
        for (int64_t c = 0; c < s.width; c += PANEL) {
            const Operands operands{head.numerators, pitch, head.values + c * head.steps * 4, head.steps, nullptr};
            multiply_panel((s.width - c) / LANES, operands, [&](int m, int v, Ints sums) {
                if (m >= rows) return;
                const Floats y = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), ratio[m]);
                _mm512_storeu_ps(out + m * s.heads * s.width + c + v * LANES, y);
            });
        }
    }
}

// A thread's share of an ATTENTION: heads, or ranges of queries where threads do not divide the heads.
inline void run_attention(const Step& s, int64_t thread, int64_t threads, Arena& arena) {
    const int64_t heads = s.rows * s.heads;
    int64_t parts = heads % threads == 0 || heads >= 8 * threads ? 1 : threads;
    parts = std::min(parts, (s.tokens + TILE_ROWS - 1) / TILE_ROWS);
    const int64_t tiles = (s.tokens + TILE_ROWS - 1) / TILE_ROWS, units = heads * parts;
    Head head(s, arena);
    int64_t packed = -1;
    for (int64_t unit = units * thread / threads; unit < units * (thread + 1) / threads; ++unit) {
        const int64_t i = unit / parts, part = unit % parts, b = i / s.heads, h = i % s.heads;
        if (packed != i) {
            pack_keys(s, s.key + i * s.tokens * s.width, head);
            pack_values(s, s.v + b * s.v_image + h * s.v_head, head);
            packed = i;
        }
        const int64_t begin = tiles * part / parts * TILE_ROWS, end = tiles * (part + 1) / parts * TILE_ROWS;
        attend(s, b, h, begin, std::min(end, s.tokens), head);
    }
}

}  // namespace qvit
