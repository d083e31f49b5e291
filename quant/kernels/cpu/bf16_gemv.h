// Products of a few rows with bf16 weights as they are stored, read once at the speed of memory.
#pragma once

#include "layout.h"

namespace vlpress {

// y = x weight' + bias
struct Dense {
  const uint16_t* weight;  // bf16 [n][k]
  const float* bias;       // [n] or null
  int64_t n, k;
  const uint16_t* x;  // bf16 [m][x_stride]
  int64_t m, x_stride;
  void* y;  // bf16 [m][n]
  int threads;
};

void dense(const Kernels&, const Dense&);

}  // namespace vlpress
