// Matrix products with quantized weights, composed from the kernels of one instruction set.
#pragma once

#include "layout.h"

namespace vlpress {

// y = x W' + bias for each weight, with float activations.
void float_gemm(const Kernels&, const Gemm&);

// The same with x quantized to int8: by `scale`, or with one scale per row if `scale` is 0.
void integer_gemm(const Kernels&, const Gemm&, float scale);

// Bytes of scratch memory; only shape, type, m and threads of the arguments are used.
int64_t float_gemm_scratch(const Kernels&, const Gemm&);
int64_t integer_gemm_scratch(const Kernels&, const Gemm&);

}  // namespace vlpress
