// Kernel table for any processor, compiled with the baseline instruction set (SSE2, NEON).
#include "pointwise.h"
#include "simd_gemm.h"

namespace vlpress {
const Kernels kPortable = {"portable", kFloats, {}, kGenericInts, store_rows, widen_bf16, dot_rows,
                           transpose_floats, gather_floats, kPointwise};
}  // namespace vlpress
