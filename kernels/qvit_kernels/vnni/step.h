// One operation of a program. `compiled_program.py` has the same structure: every member takes 8 bytes.
#pragma once

#include <cstdint>

namespace qvit {

enum Kind : int64_t { PIXELS = 0, ROWS = 1, LINEAR = 2, QKV = 3, ATTENTION = 4 };
enum Activation : int64_t { NONE = 0, GELU_ERF = 1, GELU_TANH = 2 };

struct Step {
    int64_t kind;
    int64_t together;  // threads wait for each other before it: it reads what others wrote
    int64_t rows;      // of the result; ATTENTION: images, PIXELS: rows of patches
    int64_t x_image, out_image;  // bytes by which x and out advance from image to image of a batch

    // operand: fp32 rows (ROWS, PIXELS) or codes with scales (the others)
    const void* x;
    const float* x_scale;
    int64_t x_pitch;  // scales from row to row: 0 for a static one
    int64_t groups;   // of x, along K
    int64_t k, n;

    // LayerNorm of the operand (ROWS), or of Q and K (QKV, with that of K)
    const float *norm_weight, *norm_bias, *k_weight, *k_bias;
    double eps;

    // product
    const int8_t* panels;
    const int32_t* starts;
    const float *w_scale, *bias, *residual;  // residual: other memory than out
    int64_t activation;

    // quantization of the result; codes null: the result is fp32
    const float* signs;
    int64_t block;
    double block_norm;
    int64_t group;
    const float* given;
    double steps, low, high;
    int8_t* codes;
    float* scales;
    float* out;

    int64_t prefix;  // rows of every `tokens`, the first, that have 8 bits whatever the grid

    // heads
    int64_t heads, tokens, width;
    int8_t *q, *key, *v;
    float *q_scale, *k_scale, *v_scale;
    int64_t v_image, v_head, v_token, v_channel;  // strides
    double softmax_scale, softmax_max;

    // PIXELS
    int64_t channels, image_height, image_width, patch_height, patch_width, patch_columns;

    int64_t unit() const { return kind == QKV ? width : group; }  // columns of the result that have a scale; 0: it is fp32
};

}  // namespace qvit
