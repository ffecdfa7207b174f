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

    // Of the columns from `first` on.
    Transform from(int64_t first) const { return {signs + first, block, norm}; }
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

// LayerNorm of a row, once its mean and deviation are known: `at(k)` are the values from k on.
struct Normed {
    const float *x, *weight, *bias;
    Floats mean, inverse;

    INLINE Floats at(int64_t k) const {
        const Floats d = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + k), mean), inverse);
        return _mm512_add_ps(_mm512_mul_ps(d, _mm512_loadu_ps(weight + k)), _mm512_loadu_ps(bias + k));
    }
};

// Of `rows` rows, which go through each stage together: none waits for another's sums and division.
inline void normed(int64_t rows, const float* x, int64_t width, const Norm& norm, Normed* found) {
    for (int64_t m = 0; m < rows; ++m) {
        const float* const row = x + m * width;
        const float sum = sum_of(width, [&](int64_t k) INLINE { return _mm512_loadu_ps(row + k); });
        const Floats mean = all(sum / static_cast<float>(width));
        found[m] = Normed{row, norm.weight, norm.bias, mean, mean};
    }
    for (int64_t m = 0; m < rows; ++m) {
        const float squares = sum_of(width, [&](int64_t k) INLINE {
            const Floats d = _mm512_sub_ps(_mm512_loadu_ps(found[m].x + k), found[m].mean);
            return _mm512_mul_ps(d, d);
        });
        found[m].inverse = all(1.0f / std::sqrt(squares / static_cast<float>(width) + norm.eps));
    }
}

// y may be what was normed.
inline void layer_norm(const Normed& values, int64_t width, float* y) {
    for (int64_t k = 0; k < width; k += LANES) _mm512_storeu_ps(y + k, values.at(k));
}

// One butterfly among the 16 lanes: lane i meets lane i ^ STEP. The upper of two is subtracted from the lower: the
// partner plus x with a sign, an exact product, so that one instruction makes sums and differences.
template <int STEP>
inline INLINE Floats butterfly(Floats x) {
    Floats partner;
    if constexpr (STEP == 1) partner = _mm512_permute_ps(x, 0xB1);
    if constexpr (STEP == 2) partner = _mm512_permute_ps(x, 0x4E);
    if constexpr (STEP == 4) partner = _mm512_shuffle_f32x4(x, x, 0xB1);
    if constexpr (STEP == 8) partner = _mm512_shuffle_f32x4(x, x, 0x4E);
    constexpr __mmask16 upper = STEP == 1 ? 0xAAAA : STEP == 2 ? 0xCCCC : STEP == 4 ? 0xF0F0 : 0xFF00;
    return _mm512_fmadd_ps(x, _mm512_mask_blend_ps(upper, all(1.0f), all(-1.0f)), partner);
}

// A transform of VECTORS * 16 values (a power of two) that stay in registers.
template <int VECTORS>
inline INLINE void transform_vectors(Floats* v, const float* signs, Floats norm) {
    each<VECTORS>([&](auto i) INLINE {
        v[i] = _mm512_mul_ps(v[i], _mm512_loadu_ps(signs + i * LANES));
        v[i] = butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(v[i]))));
    });
    each<VECTORS / 2>([&](auto i) INLINE {
        const Floats low = v[2 * i], high = v[2 * i + 1];
        v[2 * i] = _mm512_add_ps(low, high), v[2 * i + 1] = _mm512_sub_ps(low, high);
    });
    static_assert(VECTORS == 2 || VECTORS == 4);
    if constexpr (VECTORS == 4) each<2>([&](auto i) INLINE {
        const Floats low = v[i], high = v[i + 2];
        v[i] = _mm512_add_ps(low, high), v[i + 2] = _mm512_sub_ps(low, high);
    });
    each<VECTORS>([&](auto i) INLINE { v[i] = _mm512_mul_ps(v[i], norm); });
}

// y[width] = transformed value(k), .., in blocks that stay in registers.
template <int VECTORS, class Value>
inline void transform_row(int64_t width, const Transform& transform, Value&& value, float* y) {
    for (int64_t k = 0; k < width; k += VECTORS * LANES) {
        Floats v[VECTORS];
        each<VECTORS>([&](auto i) INLINE { v[i] = value(k + i * LANES); });
        transform_vectors<VECTORS>(v, transform.signs + k, all(transform.norm));
        each<VECTORS>([&](auto i) INLINE { _mm512_storeu_ps(y + k + i * LANES, v[i]); });
    }
}

// y[width] = transformed value(k), ..; whatever `value` reads may be y, from k on.
template <class Value>
inline void transform_row(int64_t width, const Transform& transform, Value&& value, float* y) {
    const int64_t block = transform.block;
    if (block == 2 * LANES) return transform_row<2>(width, transform, value, y);
    if (block == 4 * LANES) return transform_row<4>(width, transform, value, y);
    const Floats norm = all(transform.norm), one = all(block > LANES ? 1.0f : transform.norm);
    for (int64_t k = 0; k < width; k += LANES) {
        Floats v = _mm512_mul_ps(value(k), _mm512_loadu_ps(transform.signs + k));
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

inline void block_transform(const float* x, int64_t width, const Transform& transform, float* y) {
    transform_row(width, transform, [&](int64_t k) INLINE { return _mm512_loadu_ps(x + k); }, y);
}

template <class Activation>
inline void activate(float* x, int64_t width, Activation&& of) {
    for (int64_t k = 0; k < width; k += LANES) _mm512_storeu_ps(x + k, of(_mm512_loadu_ps(x + k)));
}

// The value of largest magnitude; of x and -x it is -x, and a NaN is larger than all. Values are compared as whole numbers,
// the sign in the last bit: max_ps would lose a NaN to the next value.
inline float largest(const float* x, int64_t width) {
    Ints top = _mm512_setzero_si512();
    for (int64_t k = 0; k < width; k += LANES)
        top = _mm512_max_epu32(top, _mm512_rol_epi32(_mm512_loadu_si512(x + k), 1));
    const uint32_t key = _mm512_reduce_max_epu32(top), bits = key >> 1 | key << 31;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

// What a row's scale is made of: its largest magnitude, below zero where the scale is. Below 8 bits (`reference.
// signed_scale_of`) the row's extreme gets the code that is alone at its end of the grid, the lowest.
inline float extreme_of(const float* x, int64_t width, const Grid& grid) {
    const float value = largest(x, width);
    return grid.has_sign() ? -value : std::fabs(value);
}

// Extremes become scales, up to 15 more than `count`; one by one each would wait for its division.
inline void turn_into_scales(float* extreme, int64_t count, float steps) {
    const Floats tiny = all(TINY), zero = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += LANES) {
        const Floats e = _mm512_loadu_ps(extreme + i);
        const Floats size = _mm512_max_ps(tiny, _mm512_div_ps(magnitude(e), all(steps)));  // NaN if e is
        _mm512_storeu_ps(extreme + i, _mm512_mask_sub_ps(size, _mm512_cmplt_ps_mask(e, zero), zero, size));
    }
}

// What values are multiplied with, in place of scales, up to 15 more than `count`.
inline void turn_into_inverses(float* scale, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES)
        _mm512_storeu_ps(scale + i, _mm512_div_ps(all(1.0f), _mm512_loadu_ps(scale + i)));
}

// Codes go out by 64 where there are as many: two steps that narrow and saturate quarter by quarter of a register, and one
// that puts fours in order, for 64 values; the instruction that narrows 16 is two and a store of its own. They are clamped
// last, as bytes: with a dynamic scale that is for the one code that rounding may reach beyond the grid, and for NaN.
template <bool CLAMPS>
inline void write_codes(const float* x, int64_t width, float inverse, const Grid grid, int8_t* codes) {
    const auto code = [&](int64_t k) INLINE {
        const Floats v = _mm512_loadu_ps(x + k);
        return CLAMPS ? clamped_codes_of(v, all(inverse), grid) : codes_of(v, all(inverse));
    };
    const Ints order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const Ints low = _mm512_set1_epi8(static_cast<char>(grid.low)), high = _mm512_set1_epi8(static_cast<char>(grid.high));
    int64_t k = 0;
    for (; k + 4 * LANES <= width; k += 4 * LANES) {
        const Ints lower = _mm512_packs_epi32(code(k), code(k + LANES));
        const Ints upper = _mm512_packs_epi32(code(k + 2 * LANES), code(k + 3 * LANES));
        const Ints fours = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(lower, upper));
        _mm512_storeu_si512(codes + k, _mm512_min_epi8(_mm512_max_epi8(fours, low), high));
    }
    for (; k < width; k += LANES) {
        const __m128i four = _mm_max_epi8(_mm512_cvtsepi32_epi8(code(k)), _mm512_castsi512_si128(low));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + k), _mm_min_epi8(four, _mm512_castsi512_si128(high)));
    }
}

inline void write_codes(const float* x, int64_t width, float inverse, const Grid& grid, int8_t* codes) {
    grid.given ? write_codes<true>(x, width, inverse, grid, codes) : write_codes<false>(x, width, inverse, grid, codes);
}

}  // namespace qvit
