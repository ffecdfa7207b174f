// A program is what happens to one image; a batch is run by one call and one team of threads.
//
// While there are as many images as threads, each thread takes one through the whole program, on memory of its own: no
// thread waits for another, and the activations stay in a cache (DeiT-S at batch 8, two threads: layer by layer over
// the batch took 1.2 times as long in fc2, 1.8 times in proj). The images left over are shared: threads take the rows of
// a step evenly and always alike, so what a thread reads of the step before it wrote itself; only where a step says
// `together` they wait for each other.
#include <omp.h>

#include <atomic>

#include "attention.h"

namespace qvit {

constexpr int64_t ROWS_TOGETHER = 8;  // with four, groups of 128 took a sixth longer

inline void run_rows(const Step& s, int64_t begin, int64_t end, Arena& arena) {
    const int64_t scales = ROWS_TOGETHER * (s.k / s.group) + LANES;
    arena.reset((ROWS_TOGETHER * s.k + scales) * 4 + 128);
    float* const y = arena.take<float>(ROWS_TOGETHER * s.k);
    Waiting w{0, 0, 0, s.k, y, s.k, arena.take<float>(scales)};
    const Norm norm{s.norm_weight, s.norm_bias, static_cast<float>(s.eps)};
    for (int64_t row = begin; row < end; row += ROWS_TOGETHER) {
        const int64_t rows = std::min(ROWS_TOGETHER, end - row);
        const float* const source = static_cast<const float*>(s.x) + row * s.k;
        Normed values[ROWS_TOGETHER];
        if (norm.weight) normed(rows, source, s.k, norm, values);
        for (int64_t m = 0; m < rows; ++m) {
            const auto value = [&](int64_t k) INLINE { return values[m].at(k); };
            if (norm.weight && s.block)
                transform_row(s.k, transform_of(s), value, y + m * s.k);
            else if (norm.weight)
                layer_norm(values[m], s.k, y + m * s.k);
            else if (s.block)
                block_transform(source + m * s.k, s.k, transform_of(s), y + m * s.k);
        }
        w.row = row, w.rows = rows;
        quantize_rows(s, w, norm.weight || s.block ? y : source, s.k);
    }
}

// Rows of patches: codes of the pixels, rint(x * gain + offset), in the order of a convolution weight.
inline void run_pixels(const Step& s, int64_t begin, int64_t end) {
    const int64_t down = s.image_height / s.patch_height, values = s.channels * s.patch_height * s.patch_width;
    const Grid grid{1.0f, -128.0f, 127.0f, true};
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
                        const Ints q = clamped_codes_of(_mm512_add_ps(x, all(s.norm_bias[c])), all(1.0f), grid);
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

// A thread's part of a program for one image. seconds: null, or what the steps took so far.
inline void run_image(const Step* steps, int64_t count, int64_t image, int64_t thread, int64_t threads, Arena& arena,
                      double* seconds) {
    for (int64_t i = 0; i < count; ++i) {
        if (threads > 1 && (steps[i].together || seconds)) {
#pragma omp barrier
        }
        const double begin = seconds ? omp_get_wtime() : 0;
        if (image && (steps[i].x_image || steps[i].out_image)) {
            Step s = steps[i];
            s.x = static_cast<const char*>(s.x) + image * s.x_image;
            s.out = reinterpret_cast<float*>(reinterpret_cast<char*>(s.out) + image * s.out_image);
            run_step(s, thread, threads, arena);
        } else {
            run_step(steps[i], thread, threads, arena);
        }
        if (threads > 1 && seconds) {
#pragma omp barrier
        }
        if (seconds && thread == 0) seconds[i] += omp_get_wtime() - begin;
    }
}

}  // namespace qvit

extern "C" {

int64_t qvit_size_of_step() { return sizeof(qvit::Step); }

void qvit_pack_weight(const int8_t* w, int64_t n, int64_t k, int64_t groups, int8_t* panels, int32_t* starts) {
    qvit::pack_weight(w, n, k, groups, panels, starts);
}

// programs: the same for every thread, [threads][count], each with memory of its own. seconds: null, or [count + 1]: what
// each step took the first thread, and how many images that had a part in.
void qvit_run(const qvit::Step* const* programs, int64_t count, int64_t threads, int64_t batch, double* seconds) {
    std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(static_cast<int>(threads))
    {
        thread_local qvit::Arena arena;
        const int64_t thread = omp_get_thread_num(), all = omp_get_num_threads();
        const int64_t alone = batch / all * all;
        double* const mine = thread == 0 ? seconds : nullptr;
        for (int64_t image = next++; image < alone; image = next++) {
            qvit::run_image(programs[thread], count, image, 0, 1, arena, mine);
            if (mine) ++mine[count];
        }
        for (int64_t image = alone; image < batch; ++image) {
#pragma omp barrier
            qvit::run_image(programs[0], count, image, thread, all, arena, seconds);
            if (mine) ++mine[count];
        }
    }
}
}
