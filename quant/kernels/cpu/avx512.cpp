// Kernel table for AVX-512 with VNNI and BF16 (Cooper Lake, Sapphire Rapids, Zen 4 and later).
#include "layout.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__) && \
    defined(__AVX512BF16__)
#include "avx512_floats.h"
#include "avx512_integers.h"
#include "pointwise.h"
#include "simd_gemm.h"

namespace vlpress {
namespace {

// As store_rows. Masked, so that no padding column is written; VCVTNEPS2BF16 rounds to nearest,
// ties to even.
inline void store_vectors(const float* total, const float* row_scales, const float* bias, int width,
                          int64_t m, Type type, void* y, int64_t stride) {
  for (int v = 0; v * kLanes < width; ++v) {
    const int remaining = width - v * kLanes;
    const __mmask16 valid = remaining >= kLanes ? 0xffff : (1 << remaining) - 1;
    const __m512 shift =
        bias ? _mm512_maskz_loadu_ps(valid, bias + v * kLanes) : _mm512_setzero_ps();
    for (int64_t row = 0; row < m; ++row) {
      __m512 value = _mm512_loadu_ps(total + row * kTile + v * kLanes);
      if (row_scales) value = _mm512_mul_ps(value, _mm512_set1_ps(row_scales[row]));
      value = _mm512_add_ps(value, shift);
      const int64_t at = row * stride + v * kLanes;
      if (type == kFloat32) {
        _mm512_mask_storeu_ps(static_cast<float*>(y) + at, valid, value);
      } else {
        _mm256_mask_storeu_epi16(static_cast<uint16_t*>(y) + at, valid,
                                 reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)));
      }
    }
  }
}

constexpr Kernels kAvx512 = {"avx512", kFloats, kPairs, kInts, store_vectors,
                             widen_bf16, dot_pairs, transpose_pairs, gather_pairs, kPointwise};

}  // namespace

const Kernels* avx512_kernels() { return &kAvx512; }

}  // namespace vlpress
#else
namespace vlpress {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace vlpress
#endif
