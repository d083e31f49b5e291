// Products of a few rows with bf16 weights in their stored form, bound by memory bandwidth.
#pragma once

#include "layout.h"

namespace vlpress {

// y = x weight' + bias
struct Bf16Gemv {
  const uint16_t* weight;  // bf16 [n][k]
  const float* bias;       // [n] or null
  int64_t n, k;
  const uint16_t* x;  // bf16 [m][x_stride]
  int64_t m, x_stride;
  void* y;  // bf16 [m][n]
  int threads;
};

void bf16_gemv(const Kernels&, const Bf16Gemv&);

}  // namespace vlpress
