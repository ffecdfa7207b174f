// The steps of a program, one after the other: one call, one team of threads, which meet only where they must.
//
// Threads share the rows of a step evenly and always alike, so what a thread reads of the step before it wrote itself;
// only attention reads the rows of others, and what follows it reads all heads of a row.
#include <omp.h>

#include "attention.h"

namespace qvit {

inline void run_rows(const Step& s, int64_t begin, int64_t end, Arena& arena) {
    arena.reset(s.k * 4 + 64);
    float* const y = arena.take<float>(s.k);
    const Norm norm{s.norm_weight, s.norm_bias, static_cast<float>(s.eps)};
    for (int64_t row = begin; row < end; ++row) {
        const float* source = static_cast<const float*>(s.x) + row * s.k;
        if (norm.weight) layer_norm(source, s.k, norm, y), source = y;
        if (s.block) block_transform(source, s.k, transform_of(s), y), source = y;
        quantize_row(source, s.k, s.group, grid_of(s), s.given, s.codes + row * s.k, s.scales + row * (s.k / s.group));
    }
}

// Rows of patches: codes of the pixels, rint(x * gain + offset), in the order of a convolution weight.
inline void run_pixels(const Step& s, int64_t begin, int64_t end) {
    const int64_t down = s.image_height / s.patch_height, values = s.channels * s.patch_height * s.patch_width;
    const Grid grid{1.0f, -128.0f, 127.0f};
    for (int64_t row = begin; row < end; ++row) {
        const int64_t image = row / down, top = row % down * s.patch_height;
        for (int64_t c = 0; c < s.channels; ++c)
            for (int64_t y = 0; y < s.patch_height; ++y) {
                const float* line = static_cast<const float*>(s.x) +
                                    ((image * s.channels + c) * s.image_height + top + y) * s.image_width;
                int8_t* place = s.codes + row * s.patch_columns * values + (c * s.patch_height + y) * s.patch_width;
                for (int64_t p = 0; p < s.patch_columns; ++p, line += s.patch_width, place += values)
                    for (int64_t i = 0; i < s.patch_width; i += LANES) {
                        const __mmask16 mask = first(s.patch_width - i);
                        const Floats x = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, line + i), all(s.norm_weight[c]));
                        const Ints q = codes_of(_mm512_add_ps(x, all(s.norm_bias[c])), all(1.0f), grid);
                        _mm_mask_storeu_epi8(place + i, mask, _mm512_cvtsepi32_epi8(q));
                    }
            }
    }
}

inline void run_step(const Step& s, int64_t thread, int64_t threads, Arena& arena) {
    if (s.kind == ATTENTION) return run_attention(s, thread, threads, arena);
    const int64_t begin = s.rows * thread / threads, end = s.rows * (thread + 1) / threads;
    if (s.kind == PIXELS) return run_pixels(s, begin, end);
    if (s.kind == ROWS) return run_rows(s, begin, end, arena);
    run_linear(s, begin, end, arena);
}

}  // namespace qvit

extern "C" {

int64_t qvit_size_of_step() { return sizeof(qvit::Step); }

void qvit_pack_weight(const int8_t* w, int64_t n, int64_t k, int64_t groups, int8_t* panels, int32_t* starts) {
    qvit::pack_weight(w, n, k, groups, panels, starts);
}

// seconds: null, or room for one time a step, of the first thread, which then waits for the others after each.
void qvit_run(const qvit::Step* steps, int64_t count, int64_t threads, double* seconds) {
#pragma omp parallel num_threads(static_cast<int>(threads))
    {
        thread_local qvit::Arena arena;
        const int64_t thread = omp_get_thread_num(), all = omp_get_num_threads();
        for (int64_t i = 0; i < count; ++i) {
            if (steps[i].together || seconds) {
#pragma omp barrier
            }
            const double begin = seconds ? omp_get_wtime() : 0;
            qvit::run_step(steps[i], thread, all, arena);
            if (seconds) {
#pragma omp barrier
                if (thread == 0) seconds[i] = omp_get_wtime() - begin;
            }
        }
    }
}
}
