// Symmetric rank-k update of bf16 activations (BLAS: syrk), the Hessian of calibration.
#pragma once

#include "layout.h"

namespace vlpress {

// h = beta * h + alpha * x' x in float32. Only the tiles on and below the diagonal are computed: in
// rows above a column's tile, `h` is left as it was, and above the diagonal of a tile it is
// undefined.
struct Syrk {
  const uint16_t* x;  // bf16 [tokens][x_stride]
  int64_t tokens, k, x_stride;
  float* h;  // [k][k]
  float alpha, beta;
  uint8_t* scratch;
  int threads;
};

void syrk(const Kernels&, const Syrk&);

// Bytes of scratch memory; only tokens, k and threads of the arguments are used.
int64_t syrk_scratch(const Kernels&, const Syrk&);

}  // namespace vlpress
