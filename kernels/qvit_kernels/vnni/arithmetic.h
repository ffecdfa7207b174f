// The arithmetic of `reference.py` on 16 fp32 values at a time: twins of its functions.
//
// Compiled with -ffp-contract=off: a product and a sum stay two rounded operations unless fmadd is written out, as by
// functions whose last bit is a backend's own (exp2, GELU), and where the product is exact (butterflies).
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <utility>

#ifndef __AVX512VNNI__
#error "the compiled path is written for AVX512-VNNI"
#endif

#define INLINE __attribute__((always_inline))

namespace qvit {

using Floats = __m512;
using Ints = __m512i;
constexpr int64_t LANES = 16;

// body(0), .., body(N - 1), each a constant: arrays that only constants index become registers. A loop that a compiler
// unrolls comes too late for that now and then, and a step of a product then loads and stores all its sums.
template <int... I, class Body>
inline INLINE void each(std::integer_sequence<int, I...>, Body&& body) {
    (body(std::integral_constant<int, I>{}), ...);
}

template <int N, class Body>
inline INLINE void each(Body&& body) {
    each(std::make_integer_sequence<int, N>{}, body);
}

inline Floats all(float x) { return _mm512_set1_ps(x); }

// The first `count` lanes, none below zero, all from 16 on.
inline __mmask16 first(int64_t count) {
    return count >= LANES ? 0xFFFF : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

inline Floats magnitude(Floats x) { return _mm512_abs_ps(x); }

// 2^x by a polynomial of degree 5 on [-0.5, 0.5], relative error 9.2e-8, whose result is scaled by the whole part of x.
inline Floats exp2(Floats x) {
    const Floats whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Floats f = _mm512_sub_ps(x, whole);
    Floats p = _mm512_fmadd_ps(all(1.326472614891827e-3f), f, all(9.671512991189957e-3f));
    p = _mm512_fmadd_ps(p, f, all(5.550733581185341e-2f));
    p = _mm512_fmadd_ps(p, f, all(2.402224242687225e-1f));
    p = _mm512_fmadd_ps(p, f, all(6.931470036506653e-1f));
    p = _mm512_fmadd_ps(p, f, all(1.0f));
    return _mm512_scalef_ps(p, whole);
}

// P(Z > a) of the normal distribution for a from 0 to LAST, where it is 1.9e-8: a cubic about each of 32 points, through
// its values at Chebyshev's nodes, to 1.6e-7.
struct NormalTail {
    static constexpr int COUNT = 2 * LANES;
    static constexpr float LAST = 5.5f, PER_UNIT = (COUNT - 1) / LAST;
    alignas(64) float coefficients[4][COUNT];  // of the powers of the distance from the point, in points

    NormalTail() {
        constexpr double node[4] = {0.46193976625564337, 0.19134171618254489, -0.19134171618254489, -0.46193976625564337};
        for (int i = 0; i < COUNT; ++i) {
            double slope[4], power[4] = {};  // Newton's divided differences, and the same polynomial in powers
            for (int j = 0; j < 4; ++j) slope[j] = 0.5 * std::erfc((i + node[j]) / PER_UNIT * 0.70710678118654752);
            for (int order = 1; order < 4; ++order)
                for (int j = 3; j >= order; --j) slope[j] = (slope[j] - slope[j - 1]) / (node[j] - node[j - order]);
            for (int j = 3; j >= 0; --j) {
                for (int p = 3; p > 0; --p) power[p] = power[p - 1] - power[p] * node[j];
                power[0] = slope[j] - power[0] * node[j];
            }
            for (int p = 0; p < 4; ++p) coefficients[p][i] = static_cast<float>(power[p]);
        }
        coefficients[0][COUNT - 1] = 0;  // all beyond is at the last point: GELU of -10 is 0
    }

    INLINE Floats of(int power, Ints points) const {
        const float* const row = coefficients[power];
        return _mm512_permutex2var_ps(_mm512_load_ps(row), points, _mm512_load_ps(row + LANES));
    }
};

inline const NormalTail NORMAL_TAIL;

// GELU by erf, max(x, 0) - |x| P(Z > |x|), to 2.5e-7 before its result is rounded. The polynomial with a reciprocal and a
// power that `arithmetic.py` has takes 9.9 cycles for 16 values, this 5.5.
inline INLINE Floats gelu_erf(Floats x) {
    const Floats a = _mm512_min_ps(all(NormalTail::LAST), magnitude(x));  // NaN if x is
    const Floats shift = all(12582912.0f);  // 1.5 * 2^23: the sum's last bits are the nearest whole number
    const Floats shifted = _mm512_fmadd_ps(a, all(NormalTail::PER_UNIT), shift);
    const Floats distance = _mm512_fmsub_ps(a, all(NormalTail::PER_UNIT), _mm512_sub_ps(shifted, shift));
    const Ints points = _mm512_castps_si512(shifted);
    Floats tail = _mm512_fmadd_ps(NORMAL_TAIL.of(3, points), distance, NORMAL_TAIL.of(2, points));
    tail = _mm512_fmadd_ps(tail, distance, NORMAL_TAIL.of(1, points));
    tail = _mm512_fmadd_ps(tail, distance, NORMAL_TAIL.of(0, points));
    return _mm512_fnmadd_ps(a, tail, _mm512_max_ps(x, _mm512_setzero_ps()));
}

// GELU by tanh, as x / (1 + 2^(-2 log2(e) sqrt(2 / pi) (x + 0.044715 x^3))); the power is held below overflow.
inline Floats gelu_tanh(Floats x) {
    const Floats square = _mm512_mul_ps(x, x);
    const Floats inner = _mm512_fmadd_ps(square, all(0.1029432397f), all(2.302208198144325f));
    const Floats power = _mm512_min_ps(_mm512_mul_ps(_mm512_sub_ps(_mm512_setzero_ps(), x), inner), all(100.0f));
    return _mm512_div_ps(x, _mm512_add_ps(exp2(power), all(1.0f)));
}

constexpr float TINY = 7.888609052210118e-31f;  // 2^-100

inline float scale_of(float amax, float steps) {
    const float scale = amax / steps;
    return scale < TINY ? TINY : scale;
}

// How rows are quantized: `steps` to the largest magnitude, codes from low to high.
struct Grid {
    float steps, low, high;
    bool given;  // the scale is not made of the values, which may lie anywhere

    bool has_sign() const { return !given && low > -127; }  // of the scale
};

// Codes of 16 values that lie within a grid, or nearly: rounded half to even.
inline INLINE Ints codes_of(Floats x, Floats inverse) { return _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)); }

// Of values that may lie anywhere: clamped before they are whole numbers, which not all could be.
inline INLINE Ints clamped_codes_of(Floats x, Floats inverse, const Grid& grid) {
    const Floats y = _mm512_max_ps(_mm512_mul_ps(x, inverse), all(grid.low));
    return _mm512_cvtps_epi32(_mm512_min_ps(y, all(grid.high)));
}

// Memory of a thread that lasts from step to step, aligned to a cache line.
class Arena {
  public:
    ~Arena() { std::free(memory_); }

    template <class T>
    T* take(int64_t count) {  // valid until reset()
        T* const place = reinterpret_cast<T*>(memory_ + used_);
        used_ += (count * sizeof(T) + 63) / 64 * 64;
        return place;
    }

    // Room for `bytes`, all that was taken being forgotten.
    void reset(int64_t bytes) {
        used_ = 0;
        if (bytes <= size_) return;
        std::free(memory_);
        size_ = (bytes + 4095) / 4096 * 4096;
        memory_ = static_cast<char*>(std::aligned_alloc(64, size_));
        if (!memory_) std::abort();
    }

  private:
    char* memory_ = nullptr;
    int64_t size_ = 0, used_ = 0;
};

}  // namespace qvit
