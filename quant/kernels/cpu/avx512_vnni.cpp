// Kernel table for AVX-512 with VNNI but no BF16 (Cascade Lake, Ice Lake): integer products as in
// avx512.cpp, float products in float32.
#include "layout.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#include "avx512_integers.h"
#include "pointwise.h"
#include "simd_gemm.h"

namespace vlpress {
namespace {

constexpr Kernels kAvx512Vnni = {"avx512_vnni", kFloats,    {},       kInts,
                                 store_rows,    widen_bf16, dot_rows, transpose_floats,
                                 gather_floats, kPointwise};

}  // namespace

const Kernels* avx512_vnni_kernels() { return &kAvx512Vnni; }

}  // namespace vlpress
#else
namespace vlpress {
const Kernels* avx512_vnni_kernels() { return nullptr; }
}  // namespace vlpress
#endif
