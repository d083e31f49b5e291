// Kernel table for AVX2 and FMA. Empty if the compiler lacks these flags, see CMakeLists.txt.
#include "layout.h"

#if defined(__AVX2__) && defined(__FMA__)
#include "avx2_integers.h"
#include "pointwise.h"
#include "simd_gemm.h"

namespace vlpress {
namespace {

constexpr Kernels kAvx2 = {"avx2",        kFloats,    {},       kInts,
                           store_rows,    widen_bf16, dot_rows, transpose_floats,
                           gather_floats, kPointwise};

}  // namespace

const Kernels* avx2_kernels() { return &kAvx2; }

}  // namespace vlpress
#else
namespace vlpress {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace vlpress
#endif
