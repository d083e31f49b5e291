// A fused decoder layer, in two halves: everything before its attention and everything after it.
// With one token at a time, separate framework calls for norms, rotation, additions and activations
// take longer than the matrix products between them.
#pragma once

#include "layout.h"

namespace vlpress {

// Weights that share an input; mirrored by ctypes in ../decoder_layer.py.
struct Linear {
  Shape shape;
  const Weight* weights;
  int32_t count;
  float scale;  // of the int8 input as in vlpress_gemm; below 0: float input
};

// Mirrored by ctypes in ../decoder_layer.py.
struct DecoderLayer {
  int64_t hidden, inner, heads, kv_heads, head_dim;
  const uint16_t* first_norm;   // bf16 [hidden]
  const uint16_t* second_norm;
  const uint16_t* q_norm;       // bf16 [head_dim], of each head of q; null: none
  const uint16_t* k_norm;
  float eps;                    // of all norms
  Linear qkv, out, gate_up, down;
};

// Rows of one call and its resources.
struct RowBatch {
  int64_t count;  // tokens
  uint8_t* scratch;
  int threads;
};

// Bytes of scratch memory for either half.
int64_t decoder_layer_scratch(const Kernels&, const DecoderLayer&, int64_t rows, int threads);

// RMS norm, q, k and v projections, norms and rotary embedding of q and k. cos and sin: bf16
// [rows][head_dim / 2].
void pre_attention(const Kernels&, const DecoderLayer&, const RowBatch&, const uint16_t* x,
                   const uint16_t* cos, const uint16_t* sin, uint16_t* const* qkv);

// x += output projection of `attended`; x += feed-forward of the normalized x.
void post_attention(const Kernels&, const DecoderLayer&, const RowBatch&, const uint16_t* attended,
                    uint16_t* x);

}  // namespace vlpress
