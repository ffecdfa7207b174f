// The arithmetic of `reference.py` on 16 fp32 values at a time: twins of its functions.
//
// Compiled with -ffp-contract=off: a product and a sum stay two rounded operations unless fmadd is written out, which
// only the functions do whose last bit is a backend's own (exp2, GELU).
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

// 1 / x, x normal: the estimate of 14 bits and one Newton step.
inline Floats near_reciprocal(Floats x) {
    const Floats r = _mm512_rcp14_ps(x);
    return _mm512_mul_ps(r, _mm512_fnmadd_ps(x, r, all(2.0f)));
}

// GELU by erf: x * 0.5 * erfc(-x / sqrt 2), whose tail is t * P(t) * exp(-x^2 / 2) with t = 1 / (1 + 0.34 |x|); the
// coefficients, and the error of 2.5e-7 at most, are those of `arithmetic.py`.
inline Floats gelu_erf(Floats x) {
    const Floats a = magnitude(x);
    const Floats t = near_reciprocal(_mm512_fmadd_ps(a, all(0.34f), all(1.0f)));
    Floats p = _mm512_fmadd_ps(t, all(-0.10588456f), all(0.32940476f));
    p = _mm512_fmadd_ps(p, t, all(-0.03838251f));
    p = _mm512_fmadd_ps(p, t, all(0.18536529f));
    p = _mm512_fmadd_ps(p, t, all(0.12949561f));
    const Floats power = exp2(_mm512_mul_ps(_mm512_mul_ps(x, x), all(-0.72134752044448170f)));
    const Floats tail = _mm512_mul_ps(_mm512_mul_ps(p, t), power);
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

// How rows are quantized: `steps` to the largest magnitude, codes from low to high. A dynamic scale of 8 bits needs no
// clamp: |x| <= 127 * s * (1 + 2^-22) rounds to 127 at most.
struct Grid {
    float steps, low, high;
    bool clamps;
};

// Codes of 16 values; saturating where the grid says so.
inline Ints codes_of(Floats x, Floats inverse, const Grid& grid) {
    Floats y = _mm512_mul_ps(x, inverse);
    if (grid.clamps) y = _mm512_min_ps(_mm512_max_ps(y, all(grid.low)), all(grid.high));
    return _mm512_cvtps_epi32(y);  // rounds half to even
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
