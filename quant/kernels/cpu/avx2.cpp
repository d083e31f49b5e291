// The kernels for AVX2 and FMA: the plain loops, but for products of bytes.
#include "layout.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#include "pointwise.h"

namespace vlpress {
namespace {

// Bytes go through 16-bit products: maddubs would saturate at 255 * 127 + 255 * 127.
template <int kRows>
inline void byte_rows(const uint8_t* panel, int64_t count, const int8_t* levels, int64_t stride,
                      bool add, int32_t* sums) {
  // Eight columns a pass: 32 weights are two vectors of 16 bits, each lane pair one column.
  for (int first = 0; first < kTile; first += 8) {
    __m256i acc[kRows][2];
    for (int m = 0; m < kRows; ++m) acc[m][0] = acc[m][1] = _mm256_setzero_si256();
    const uint8_t* weights = panel + 4 * first;
    for (int64_t k = 0; k < count; k += 4, weights += kStepBytes) {
      const __m256i low = _mm256_cvtepu8_epi16(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights)));
      const __m256i high = _mm256_cvtepu8_epi16(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights + 16)));
      for (int m = 0; m < kRows; ++m) {
        int32_t four;
        std::memcpy(&four, levels + m * stride + k, sizeof four);
        const __m256i x = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
        acc[m][0] = _mm256_add_epi32(acc[m][0], _mm256_madd_epi16(low, x));
        acc[m][1] = _mm256_add_epi32(acc[m][1], _mm256_madd_epi16(high, x));
      }
    }
    for (int m = 0; m < kRows; ++m) {
      // Neighbouring lanes belong to one column; hadd leaves the halves crossed.
      const __m256i crossed = _mm256_hadd_epi32(acc[m][0], acc[m][1]);
      __m256i columns = _mm256_permute4x64_epi64(crossed, 0xd8);
      __m256i* out = reinterpret_cast<__m256i*>(sums + m * kTile + first);
      if (add) columns = _mm256_add_epi32(columns, _mm256_loadu_si256(out));
      _mm256_storeu_si256(out, columns);
    }
  }
}

inline void multiply_bytes_avx2(const uint8_t* panel, int64_t count, const int8_t* levels,
                                int64_t stride, int64_t m, bool add, int32_t* sums) {
  for (; m >= 4; m -= 4, levels += 4 * stride, sums += 4 * kTile)
    byte_rows<4>(panel, count, levels, stride, add, sums);
  for (; m > 0; --m, levels += stride, sums += kTile)
    byte_rows<1>(panel, count, levels, stride, add, sums);
}

constexpr IntKernels kInts = {0, nullptr, unpack_bytes, multiply_bytes_avx2, fold_sums, quantize_row};
constexpr Kernels kAvx2 = {"avx2", kGenericFloats, {}, kInts, store_rows, widen_bf16, dot_rows,
                           transpose_floats, gather_floats, kPointwise};

}  // namespace

const Kernels* avx2_kernels() { return &kAvx2; }

}  // namespace vlpress
#else
namespace vlpress {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace vlpress
#endif
