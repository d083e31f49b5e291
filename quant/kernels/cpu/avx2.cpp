// The kernels for AVX2 and FMA: the plain loops, but for products of bytes.
#include "layout.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#include "floats.h"
#include "pointwise.h"

namespace vlpress {
namespace {

// Bytes go through 16-bit products: maddubs would saturate at 255 * 127 + 255 * 127.
inline void widen_levels(const int8_t* levels, int64_t count, int16_t* wide) {
  for (int64_t k = 0; k < count; ++k) wide[k] = levels[k];
}

inline __m256i weights16(const uint8_t* at) {
  return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}

// Eight columns of a panel times `kRows` rows: 32 weights are two vectors of 16 bits, each lane pair
// one column.
template <int kRows>
inline void eight_columns(const uint8_t* weights, int64_t count, const int16_t* levels, bool add,
                          int32_t* sums) {
  __m256i acc[kRows][2];
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m) acc[m][0] = acc[m][1] = _mm256_setzero_si256();
  for (int64_t k = 0; k < count; k += 4, weights += kStepBytes) {
    const __m256i low = weights16(weights), high = weights16(weights + 16);
    VLPRESS_UNROLL
    for (int m = 0; m < kRows; ++m) {
      int64_t four;
      std::memcpy(&four, levels + m * kPanelInputs + k, sizeof four);
      const __m256i x = _mm256_set1_epi64x(four);
      acc[m][0] = _mm256_add_epi32(acc[m][0], _mm256_madd_epi16(low, x));
      acc[m][1] = _mm256_add_epi32(acc[m][1], _mm256_madd_epi16(high, x));
    }
  }
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m) {
    // Neighbouring lanes belong to one column; hadd leaves the halves crossed.
    const __m256i crossed = _mm256_hadd_epi32(acc[m][0], acc[m][1]);
    __m256i columns = _mm256_permute4x64_epi64(crossed, 0xd8);
    __m256i* out = reinterpret_cast<__m256i*>(sums + m * kTile);
    if (add) columns = _mm256_add_epi32(columns, _mm256_loadu_si256(out));
    _mm256_storeu_si256(out, columns);
  }
}

template <int kRows>
inline void byte_rows(const uint8_t* panel, int64_t count, const int8_t* levels, int64_t stride,
                      bool add, int32_t* sums) {
  int16_t wide[kRows * kPanelInputs];
  for (int m = 0; m < kRows; ++m) widen_levels(levels + m * stride, count, wide + m * kPanelInputs);
  for (int first = 0; first < kTile; first += 8)
    eight_columns<kRows>(panel + 4 * first, count, wide, add, sums + first);
}

inline void multiply_bytes_avx2(const uint8_t* panel, int64_t count, const int8_t* levels,
                                int64_t stride, int64_t m, bool add, int32_t* sums) {
  for (; m >= kBlockOfRows; m -= kBlockOfRows) {
    byte_rows<kBlockOfRows>(panel, count, levels, stride, add, sums);
    levels += kBlockOfRows * stride;
    sums += kBlockOfRows * kTile;
  }
  for (; m > 0; --m, levels += stride, sums += kTile)
    byte_rows<1>(panel, count, levels, stride, add, sums);
}

constexpr IntKernels kInts = {0, nullptr, unpack_bytes, multiply_bytes_avx2, fold_sums, quantize_row};
constexpr Kernels kAvx2 = {"avx2", kFloats, {}, kInts, store_rows, widen_bf16, dot_rows,
                           transpose_floats, gather_floats, kPointwise};

}  // namespace

const Kernels* avx2_kernels() { return &kAvx2; }

}  // namespace vlpress
#else
namespace vlpress {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace vlpress
#endif
