// What happens to rows between products: LayerNorm, block transforms, quantization. Widths are multiples of 16.
#pragma once

#include "arithmetic.h"

namespace qvit {

struct Norm {
    const float *weight, *bias;  // null: no LayerNorm
    float eps;
};

// A signed Hadamard transform of blocks of a power of two; block 0: none.
struct Transform {
    const float* signs;
    int64_t block;
    float norm;  // 1 / sqrt(block)
};

// The sum of width / 16 vectors, four at a time: one alone would wait for the addition before it.
template <class Value>
inline float sum_of(int64_t width, Value&& value) {
    Floats sums[4] = {};
    int64_t k = 0;
    for (; k + 4 * LANES <= width; k += 4 * LANES)
        each<4>([&](auto i) INLINE { sums[i] = _mm512_add_ps(sums[i], value(k + i * LANES)); });
    for (; k < width; k += LANES) sums[0] = _mm512_add_ps(sums[0], value(k));
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

// y may be x. Returns the largest magnitude of y. Of a row with a NaN, whose values then are all NaN, that is NaN, because
// max_ps returns its second operand where one is: the logits say that something is wrong.
inline float layer_norm(const float* x, int64_t width, const Norm& norm, float* y) {
    const float sum = sum_of(width, [&](int64_t k) INLINE { return _mm512_loadu_ps(x + k); });
    const float mean = sum / static_cast<float>(width);
    const float squares = sum_of(width, [&](int64_t k) INLINE {
        const Floats d = _mm512_sub_ps(_mm512_loadu_ps(x + k), all(mean));
        return _mm512_mul_ps(d, d);
    });
    const Floats inverse = all(1.0f / std::sqrt(squares / static_cast<float>(width) + norm.eps));
    Floats top = _mm512_setzero_ps();
    for (int64_t k = 0; k < width; k += LANES) {
        const Floats d = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + k), all(mean)), inverse);
        const Floats scaled = _mm512_mul_ps(d, _mm512_loadu_ps(norm.weight + k));
        const Floats shifted = _mm512_add_ps(scaled, _mm512_loadu_ps(norm.bias + k));
        top = _mm512_max_ps(top, magnitude(shifted));
        _mm512_storeu_ps(y + k, shifted);
    }
    return _mm512_reduce_max_ps(top);
}

// One butterfly among the 16 lanes: lane i meets lane i ^ STEP. The upper of two is subtracted from the lower, which
// is the lower plus the upper with its sign changed.
template <int STEP>
inline Floats butterfly(Floats x) {
    Floats partner;
    if constexpr (STEP == 1) partner = _mm512_permute_ps(x, 0xB1);
    if constexpr (STEP == 2) partner = _mm512_permute_ps(x, 0x4E);
    if constexpr (STEP == 4) partner = _mm512_shuffle_f32x4(x, x, 0xB1);
    if constexpr (STEP == 8) partner = _mm512_shuffle_f32x4(x, x, 0x4E);
    constexpr __mmask16 upper = STEP == 1 ? 0xAAAA : STEP == 2 ? 0xCCCC : STEP == 4 ? 0xF0F0 : 0xFF00;
    return _mm512_mask_sub_ps(_mm512_add_ps(x, partner), upper, partner, x);
}

inline void block_transform(const float* x, int64_t width, const Transform& transform, float* y) {
    const int64_t block = transform.block;
    const Floats norm = all(transform.norm), one = all(block > LANES ? 1.0f : transform.norm);
    for (int64_t k = 0; k < width; k += LANES) {
        Floats v = _mm512_mul_ps(_mm512_loadu_ps(x + k), _mm512_loadu_ps(transform.signs + k));
        if (block > 1) v = butterfly<1>(v);
        if (block > 2) v = butterfly<2>(v);
        if (block > 4) v = butterfly<4>(v);
        if (block > 8) v = butterfly<8>(v);
        _mm512_storeu_ps(y + k, _mm512_mul_ps(v, one));
    }
    for (int64_t step = LANES; step < block; step *= 2) {
        const Floats factor = step * 2 < block ? all(1.0f) : norm;
        for (int64_t start = 0; start < width; start += 2 * step)
            for (int64_t k = start; k < start + step; k += LANES) {
                const Floats low = _mm512_loadu_ps(y + k), high = _mm512_loadu_ps(y + k + step);
                _mm512_storeu_ps(y + k, _mm512_mul_ps(_mm512_add_ps(low, high), factor));
                _mm512_storeu_ps(y + k + step, _mm512_mul_ps(_mm512_sub_ps(low, high), factor));
            }
    }
}

inline float largest_magnitude(const float* x, int64_t width) {
    Floats top = _mm512_setzero_ps();
    for (int64_t k = 0; k < width; k += LANES) top = _mm512_max_ps(top, magnitude(_mm512_loadu_ps(x + k)));
    return _mm512_reduce_max_ps(top);
}

// `reference.signed_scale_of` of a row: below 8 bits its extreme gets the code that is alone at its end of the grid.
inline float signed_scale_of(const float* x, int64_t width, const Grid& grid) {
    if (!grid.clamps) return scale_of(largest_magnitude(x, width), grid.steps);
    Floats high = _mm512_loadu_ps(x), low = high;
    for (int64_t k = LANES; k < width; k += LANES) {
        const Floats v = _mm512_loadu_ps(x + k);
        high = _mm512_max_ps(high, v), low = _mm512_min_ps(low, v);
    }
    const float top = _mm512_reduce_max_ps(high), bottom = -_mm512_reduce_min_ps(low);
    const float scale = scale_of(top > bottom ? top : bottom, grid.steps);
    return top > bottom ? -scale : scale;
}

// Codes go out by 64 where there are as many: two steps that narrow and saturate quarter by quarter of a register, and one
// that puts fours in order, for 64 values; the instruction that narrows 16 is two and a store of its own.
inline void write_codes(const float* x, int64_t width, float scale, const Grid& grid, int8_t* codes) {
    const Floats inverse = all(1.0f / scale);
    const auto code = [&](int64_t k) INLINE { return codes_of(_mm512_loadu_ps(x + k), inverse, grid); };
    const Ints order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    int64_t k = 0;
    for (; k + 4 * LANES <= width; k += 4 * LANES) {
        const Ints low = _mm512_packs_epi32(code(k), code(k + LANES));
        const Ints high = _mm512_packs_epi32(code(k + 2 * LANES), code(k + 3 * LANES));
        _mm512_storeu_si512(codes + k, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high)));
    }
    for (; k < width; k += LANES)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + k), _mm512_cvtsepi32_epi8(code(k)));
}

// Codes and scales of a row in groups of `group` values; `given` scales are taken where there are any.
inline void quantize_row(
    const float* x, int64_t width, int64_t group, const Grid& grid, const float* given, int8_t* codes, float* scales) {
    for (int64_t g = 0; g * group < width; ++g) {
        const float* const part = x + g * group;
        const float scale = given ? given[g] : signed_scale_of(part, group, grid);
        if (!given) scales[g] = scale;
        write_codes(part, group, scale, grid, codes + g * group);
    }
}

}  // namespace qvit
