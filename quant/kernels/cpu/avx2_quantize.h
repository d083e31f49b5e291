// Quantization of activations to int8 for AVX2.
#pragma once

#include <immintrin.h>

#include "generic.h"

namespace vlpress {
namespace {

// Inputs that are quantized at once: 16 bytes.
constexpr int kQuantized = 16;

// As scale_of, for a multiple of eight inputs.
inline float scale_of_row(const void* x, Type type, int64_t k) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i largest = _mm256_setzero_si256();
  for (int64_t i = 0; i < k; i += kWide) {
    const __m256i bits = _mm256_castps_si256(read_lanes(x, type, i));
    largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, magnitude));
  }
  __m128i four = _mm256_castsi256_si128(largest);
  four = _mm_max_epi32(four, _mm256_extracti128_si256(largest, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
  const float scale = _mm_cvtss_f32(_mm_castsi128_ps(four)) / 127.0f;
  return scale == 0.0f ? 1.0f : scale;
}

// Eight levels. NaN becomes 0; the scale carries it.
inline __m256i levels8(const void* x, Type type, int64_t i, __m256 scale) {
  const __m256 level = _mm256_div_ps(read_lanes(x, type, i), scale);
  const __m256 number = _mm256_and_ps(level, _mm256_cmp_ps(level, level, _CMP_ORD_Q));
  const __m256 upper = _mm256_set1_ps(127.0f), lower = _mm256_set1_ps(-128.0f);
  // To nearest, ties to even.
  return _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(number, upper), lower));
}

// As quantize_row, 16 inputs at a time; groups that 16 does not divide take the generic loop.
inline float quantize_avx2(const void* x, Type type, int64_t k, int64_t group, int64_t bits,
                           float given, int8_t* levels, int32_t* sums) {
  if (group % kQuantized) return quantize_row(x, type, k, group, bits, given, levels, sums);
  const float scale = given == 0.0f ? scale_of_row(x, type, k) : given;
  // The input at each position of 16, see kOrder4 and kOrder8.
  const __m128i order =
      bits == 4 ? _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15)
                : _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
  const __m256 divisor = _mm256_set1_ps(scale);
  for (int64_t g = 0; g * group < k; ++g) {
    __m256i sum = _mm256_setzero_si256();
    for (int64_t i = g * group; i < (g + 1) * group; i += kQuantized) {
      const __m256i first = levels8(x, type, i, divisor),
                    second = levels8(x, type, i + kWide, divisor);
      sum = _mm256_add_epi32(sum, _mm256_add_epi32(first, second));
      // Packing works within 128-bit halves; the permutation restores the order.
      const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xd8);
      const __m128i bytes =
          _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
      store_lanes(levels + i, _mm_shuffle_epi8(bytes, order));
    }
    sums[g] = 0;
    for (int c = 0; c < kWide; ++c) sums[g] += reinterpret_cast<Ints>(sum)[c];
  }
  return scale;
}

}  // namespace
}  // namespace vlpress
