// Exact int8 products: tiles of 6 rows and 64 columns that stay in registers, 24 accumulators of 16 int32 sums.
//
// The instruction (vpdpbusd) multiplies unsigned by signed bytes: rows are given as code + 128, and every column's sum
// starts at -128 times the sum of its weights. Sums wrap, so what they pass through does not matter.
//
// A panel is 64 columns of the right operand, as [k / 4][64][4] bytes: what one instruction reads lies side by side.
#pragma once

#include "arithmetic.h"

namespace qvit {

constexpr int64_t PANEL = 64;
constexpr int TILE_ROWS = 6;

// sums += x * w, fours of bytes. Written out, because GCC 12 copies accumulators of the intrinsic until they no longer fit
// in registers: attention took 1.6 times as long.
inline INLINE void add_products(Ints& sums, Ints x, Ints w) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(w));
}

// Rows and a panel to be multiplied.
struct Operands {
    const uint8_t* a;  // bytes [rows][pitch]
    int64_t pitch;
    const int8_t* b;  // the panel, from its first step of four on
    int64_t steps;
    const int32_t* start;  // what each column's sum starts at, or null for zero
};

// out(row, vector, sums) for ROWS rows and VECTORS * 16 columns.
template <int ROWS, int VECTORS, class Out>
inline INLINE void multiply(const Operands& given, Out&& out) {
    auto [a, pitch, b, steps, start] = given;
    Ints sums[ROWS][VECTORS], w[VECTORS];
    each<VECTORS>([&](auto v) INLINE {
        const Ints first = start ? _mm512_loadu_si512(start + v * LANES) : _mm512_setzero_si512();
        each<ROWS>([&](auto m) INLINE { sums[m][v] = first; });
    });
    for (int64_t k = 0; k < steps; ++k) {
        each<VECTORS>([&](auto v) INLINE { w[v] = _mm512_loadu_si512(b + v * 64); });
        each<ROWS>([&](auto m) INLINE {
            int32_t four;
            __builtin_memcpy(&four, a + m * pitch + 4 * k, 4);
            const Ints x = _mm512_set1_epi32(four);
            each<VECTORS>([&](auto v) INLINE { add_products(sums[m][v], x, w[v]); });
        });
        b += PANEL * 4;
    }
    each<ROWS>([&](auto m) INLINE { each<VECTORS>([&](auto v) INLINE { out(m, v, sums[m][v]); }); });
}

// Rows of codes as code + 128, [rows][pitch], pitch a multiple of 4; what is beyond `width` meets weights of zero. Up to
// 63 bytes behind the last row are written to.
inline void offset_rows(const int8_t* x, int64_t rows, int64_t width, uint8_t* out, int64_t pitch) {
    const Ints flip = _mm512_set1_epi8(static_cast<char>(0x80));
    for (int64_t m = 0; m < rows; ++m, x += width, out += pitch)
        for (int64_t k = 0; k < width; k += 64) {
            const __mmask64 there = width - k >= 64 ? ~uint64_t(0) : (uint64_t(1) << (width - k)) - 1;
            _mm512_storeu_si512(out + k, _mm512_xor_si512(_mm512_maskz_loadu_epi8(there, x + k), flip));
        }
}

// Weights int8 [n, k] into panels [ceil(n / 64)][ceil(k / 4)][64][4], and the starts of their sums for each group of
// k / groups columns, int32 [groups][ceil(n / 64) * 64].
inline void pack_weight(const int8_t* w, int64_t n, int64_t k, int64_t groups, int8_t* panels, int32_t* starts) {
    const int64_t steps = (k + 3) / 4, padded = (n + PANEL - 1) / PANEL * PANEL, size = k / groups;
    for (int64_t row = 0; row < padded; ++row) {
        int8_t* const panel = panels + row / PANEL * steps * PANEL * 4 + row % PANEL * 4;
        for (int64_t g = 0; g < groups; ++g) starts[g * padded + row] = 0;
        for (int64_t c = 0; c < steps * 4; ++c) {
            const int8_t code = row < n && c < k ? w[row * k + c] : 0;
            panel[c / 4 * PANEL * 4 + c % 4] = code;
            if (code) starts[c / size * padded + row] -= 128 * code;
        }
    }
}

}  // namespace qvit
