// Sums over tokens of products of activations with themselves, for calibration.
#pragma once

#include "layout.h"

namespace vlpress {

// h = beta * h + alpha * x' x, in float32; only rows at or below their column's tile of 64 count,
// and of `h` only the lower half is right afterwards.
struct Gram {
  const uint16_t* x;  // bf16 [tokens][x_stride]
  int64_t tokens, k, x_stride;
  float* h;  // [k][k]
  float alpha, beta;
  uint8_t* scratch;
  int threads;
};

void gram(const Kernels&, const Gram&);
int64_t gram_scratch(const Kernels&, const Gram&);

}  // namespace vlpress
