// The product of one row of x with 4-bit weights for AVX2, in integers.
//
// Memory is read faster than nibbles can be converted to float32. Hence each group of inputs
// becomes whole numbers of 23 bits, in units of a power of two that follows from the largest of the
// group, and these become three digits of 8 bits, which VPMADDUBSW multiplies with nibbles. All
// sums of a group are exact. A bf16 number is exact in these units if it is larger than 2^-14 of
// the largest; others are rounded to 2^-22 of it, as much as a sum in float32 loses.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "avx2_integers.h"
#include "avx2_streams.h"
#include "byte_levels.h"

namespace vlpress {
namespace {

// Vectors of eight columns that are multiplied at once: six sums of digits, four vectors of
// weights, the mask and the table fit 16 registers.
constexpr int kDigitVectors = 2;

// One group of inputs, followed by the digits of its steps: the lowest of eight inputs in the order
// of layout.h, then the middle ones, then the highest.
struct alignas(8) DigitGroup {
  float unit;
  int32_t low_sum;   // of the two lower digits together
  int32_t high_sum;  // of the highest digit
  int32_t has_low;   // whether any lowest digit is not 0

  static constexpr int64_t kStep = 3 * 8;
  static int64_t bytes(int64_t group) {
    return static_cast<int64_t>(sizeof(DigitGroup)) + group / 8 * kStep;
  }
  const int8_t* digits() const { return reinterpret_cast<const int8_t*>(this + 1); }
  int8_t* digits() { return reinterpret_cast<int8_t*>(this + 1); }
};

inline int64_t digit_bytes(int64_t k, int64_t group) {
  return k / group * DigitGroup::bytes(group);
}

inline int32_t sum_of(__m256i lanes) {
  __m128i sums =
      _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
  sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, _MM_SHUFFLE(1, 0, 3, 2)));
  sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, _MM_SHUFFLE(2, 3, 0, 1)));
  return _mm_cvtsi128_si32(sums);
}

inline int32_t largest_of(__m256i lanes) {
  __m128i largest =
      _mm_max_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
  largest = _mm_max_epi32(largest, _mm_shuffle_epi32(largest, _MM_SHUFFLE(1, 0, 3, 2)));
  largest = _mm_max_epi32(largest, _mm_shuffle_epi32(largest, _MM_SHUFFLE(2, 3, 0, 1)));
  return _mm_cvtsi128_si32(largest);
}

// Eight numbers of at most 8 bits as bytes in the order of kOrder4.
inline int64_t digit_of_step(__m256i lanes) {
  const __m128i order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
  return _mm_cvtsi128_si64(_mm_shuffle_epi8(_mm_packs_epi16(words, words), order));
}

// The sign-extended lowest byte of each lane.
inline __m256i lowest_digit(__m256i whole) {
  return _mm256_srai_epi32(_mm256_slli_epi32(whole, 24), 24);
}

inline void split_group(const float* x, int64_t count, DigitGroup& group) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i largest = _mm256_setzero_si256();
  for (int64_t k = 0; k < count; k += 8)
    largest = _mm256_max_epi32(largest,
                               _mm256_and_si256(load_lanes<__m256i>(x + k), magnitude));
  const int32_t bits = largest_of(largest);
  // The largest is below 2^22 units. Smaller exponents than 22 would have no normal unit.
  const int32_t exponent = std::max(bits >> 23, 22);
  const int32_t unit = (exponent - 21) << 23, per_unit = (275 - exponent) << 23;
  const __m256 factor = _mm256_castsi256_ps(_mm256_set1_epi32(per_unit));
  __m256i low_sum = _mm256_setzero_si256(), high_sum = low_sum, lows = low_sum;
  int8_t* digits = group.digits();
  for (int64_t k = 0; k < count; k += 8, digits += DigitGroup::kStep) {
    const __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + k), factor));
    const __m256i low = lowest_digit(whole);
    const __m256i upper = _mm256_srai_epi32(_mm256_sub_epi32(whole, low), 8);
    const __m256i middle = lowest_digit(upper);
    const __m256i high = _mm256_srai_epi32(_mm256_sub_epi32(upper, middle), 8);
    low_sum = _mm256_add_epi32(low_sum, _mm256_sub_epi32(whole, _mm256_slli_epi32(high, 16)));
    high_sum = _mm256_add_epi32(high_sum, high);
    lows = _mm256_or_si256(lows, low);
    const int64_t step[3] = {digit_of_step(low), digit_of_step(middle), digit_of_step(high)};
    std::memcpy(digits, step, sizeof step);
  }
  // Infinity and NaN have the exponent 255; they make the whole group NaN.
  const int32_t nan = 0x7fc00000;
  std::memcpy(&group.unit, exponent == 255 ? &nan : &unit, sizeof group.unit);
  group.low_sum = sum_of(low_sum);
  group.high_sum = sum_of(high_sum);
  group.has_low = !_mm256_testz_si256(lows, lows);
}

inline void split_row(const float* x, int64_t k, int64_t group, uint8_t* digits) {
  for (int64_t i = 0; i < k; i += group, digits += DigitGroup::bytes(group))
    split_group(x + i, group, *reinterpret_cast<DigitGroup*>(digits));
}

// Nibbles as they are. 32 of their products, in pairs, fit 16 bits.
struct PlainNibbles {
  static constexpr int kInputs = 32;
  explicit PlainNibbles(const Tile&) {}
  __m256i bytes(__m256i nibbles) const { return nibbles; }
  float unit() const { return 1.0f; }
  Ints zeros(const Tile& tile, int64_t at) const { return zeros_at(tile, at); }
  // Minus the zero points times the sum of a group's inputs.
  uint32_t offset(uint32_t sum) const { return -sum; }
  Words offsets(const Tile& tile, int64_t at, uint32_t offset) const {
    return reinterpret_cast<Words>(zeros_at(tile, at)) * offset;
  }
  // Inputs of a group whose sums fit 32 bits: 15 * 2^22 * 32.
  int64_t whole_inputs() const { return 32; }
};

// Levels as bytes of at most 24, of which 16 products, in pairs, fit 16 bits.
struct LevelBytes {
  static constexpr int kInputs = 16;
  const ByteLevels levels;
  const __m256i table;
  explicit LevelBytes(const Tile& tile)
      : levels(tile.levels),
        table(_mm256_broadcastsi128_si256(load_lanes<__m128i>(levels.bytes))) {}
  __m256i bytes(__m256i nibbles) const { return _mm256_shuffle_epi8(table, nibbles); }
  float unit() const { return levels.unit; }
  Ints zeros(const Tile&, int64_t) const { return Ints{} + levels.zero; }
  uint32_t offset(uint32_t sum) const { return -static_cast<uint32_t>(levels.zero) * sum; }
  Words offsets(const Tile&, int64_t, uint32_t offset) const { return Words{} + offset; }
  // As above, and 24 * 2^22 * 16. E2M1 is within 12 of its zero.
  int64_t whole_inputs() const { return levels.magnitude <= 15 ? 32 : 16; }
};

// At most Nibbles::kInputs inputs times two vectors of eight columns. Calls finish(v, low, high)
// for each vector: the sums of the two lower digits together, and of the highest. With two kDigits,
// the lowest digits are zero.
template <int kDigits, bool kUnrolled, typename Nibbles, typename Finish>
VLPRESS_INLINE void digit_columns(const Nibbles& nibbles, const uint8_t* packed, int64_t count,
                                  const int8_t* digits, const uint8_t* next,
                                  const Finish& finish) {
  const __m256i mask = _mm256_set1_epi8(15);
  __m256i narrow[3][kDigitVectors] = {};
  for (int64_t k = 0; k < count; k += 8, packed += kStepBytes, next += 32 * kDigitVectors) {
    __m256i lows[kDigitVectors], highs[kDigitVectors];
    VLPRESS_UNROLL
    for (int v = 0; v < kDigitVectors; ++v) {
      const __m256i lanes = stream_lanes<__m256i>(packed, v, next);
      lows[v] = nibbles.bytes(_mm256_and_si256(lanes, mask));
      highs[v] = nibbles.bytes(_mm256_and_si256(_mm256_srli_epi16(lanes, 4), mask));
    }
    VLPRESS_UNROLL
    for (int d = 3 - kDigits; d < 3; ++d) {
      const __m256i first = broadcast_levels(digits + 8 * d),
                    second = broadcast_levels(digits + 8 * d + 4);
      VLPRESS_UNROLL
      for (int v = 0; v < kDigitVectors; ++v) {
        __m256i& sum = narrow[d][v];
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(lows[v], first));
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(highs[v], second));
        // GCC would otherwise add the products of all steps as a tree, with most of them in memory.
        if (kUnrolled) __asm__("" : "+x"(sum));
      }
    }
    digits += DigitGroup::kStep;
  }
  const __m256i ones = _mm256_set1_epi16(1), places = _mm256_set1_epi16(256);
  VLPRESS_UNROLL
  for (int v = 0; v < kDigitVectors; ++v) {
    __m256i low = _mm256_madd_epi16(narrow[1][v], places);
    if (kDigits == 3) low = _mm256_add_epi32(low, _mm256_madd_epi16(narrow[0][v], ones));
    finish(v, low, _mm256_madd_epi16(narrow[2][v], ones));
  }
}

}  // namespace
}  // namespace vlpress
