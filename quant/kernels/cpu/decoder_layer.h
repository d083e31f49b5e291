// A decoder block around its attention: what stands between two products takes longer than they do
// when each is a call of its own with one token in it.
#pragma once

#include "layout.h"

namespace vlpress {

// Weights that multiply the same input; mirrored by ctypes in ../block.py.
struct Linear {
  Shape shape;
  const Weight* weights;
  int32_t count;
  float scale;  // of the input as in vlpress_products; below 0: not rounded
};

// Mirrored by ctypes in ../block.py.
struct Block {
  int64_t hidden, inner, heads, kv_heads, head_dim;
  const uint16_t* first_norm;   // bf16 [hidden]
  const uint16_t* second_norm;
  float eps;
  Linear qkv, out, gate_up, down;
};

// What a call brings along.
struct Rows {
  int64_t count;  // tokens
  uint8_t* scratch;
  int threads;
};

int64_t block_scratch(const Kernels&, const Block&, int64_t rows, int threads);

// q, k, v = rotated products of the normalized x. cos and sin: bf16 [rows][head_dim / 2].
void enter_block(const Kernels&, const Block&, const Rows&, const uint16_t* x, const uint16_t* cos,
                 const uint16_t* sin, uint16_t* const* qkv);

// x += output product of `attended`; x += feed-forward of the normalized x.
void leave_block(const Kernels&, const Block&, const Rows&, const uint16_t* attended, uint16_t* x);

}  // namespace vlpress
