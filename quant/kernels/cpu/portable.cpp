// The kernels for any processor.
#include "simd_gemm.h"
#include "pointwise.h"

namespace vlpress {
const Kernels kPortable = {"portable", kFloats, {}, kGenericInts, store_rows, widen_bf16, dot_rows,
                           transpose_floats, gather_floats, kPointwise};
}
