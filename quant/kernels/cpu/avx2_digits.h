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

// One group of inputs, followed by the digits of its steps: the lowest of eight inputs in the order
// of layout.h, then the middle ones, then the highest.
struct alignas(8) DigitGroup {
  float unit;
  int32_t low_sum;   // of the two lower digits together
  int32_t high_sum;  // of the highest digit
  int32_t unused;

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
  int32_t sum = 0;
  for (int c = 0; c < kWide; ++c) sum += reinterpret_cast<Ints>(lanes)[c];
  return sum;
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
  Ints largest = {};
  for (int64_t k = 0; k < count; k += 8)
    largest = reinterpret_cast<Ints>(
        _mm256_max_epi32(reinterpret_cast<__m256i>(largest),
                         _mm256_and_si256(load_lanes<__m256i>(x + k), magnitude)));
  int32_t bits = 0;
  for (int c = 0; c < kWide; ++c) bits = std::max(bits, largest[c]);
  // The largest is below 2^22 units. Smaller exponents than 22 would have no normal unit.
  const int32_t exponent = std::max(bits >> 23, 22);
  const int32_t unit = (exponent - 21) << 23, per_unit = (275 - exponent) << 23;
  const __m256 factor = _mm256_castsi256_ps(_mm256_set1_epi32(per_unit));
  __m256i low_sum = _mm256_setzero_si256(), high_sum = low_sum;
  int8_t* digits = group.digits();
  for (int64_t k = 0; k < count; k += 8, digits += DigitGroup::kStep) {
    const __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + k), factor));
    const __m256i low = lowest_digit(whole);
    const __m256i upper = _mm256_srai_epi32(_mm256_sub_epi32(whole, low), 8);
    const __m256i middle = lowest_digit(upper);
    const __m256i high = _mm256_srai_epi32(_mm256_sub_epi32(upper, middle), 8);
    low_sum = _mm256_add_epi32(low_sum, _mm256_sub_epi32(whole, _mm256_slli_epi32(high, 16)));
    high_sum = _mm256_add_epi32(high_sum, high);
    const int64_t step[3] = {digit_of_step(low), digit_of_step(middle), digit_of_step(high)};
    std::memcpy(digits, step, sizeof step);
  }
  // Infinity and NaN have the exponent 255; they make the whole group NaN.
  const int32_t nan = 0x7fc00000;
  std::memcpy(&group.unit, exponent == 255 ? &nan : &unit, sizeof group.unit);
  group.low_sum = sum_of(low_sum);
  group.high_sum = sum_of(high_sum);
}

inline void split_row(const float* x, int64_t k, int64_t group, uint8_t* digits) {
  for (int64_t i = 0; i < k; i += group, digits += DigitGroup::bytes(group))
    split_group(x + i, group, *reinterpret_cast<DigitGroup*>(digits));
}

// Sums of a group: of the two lower digits together, and of the highest.
struct DigitSums {
  int32_t low[kTile], high[kTile];
};

// Nibbles as they are. 32 of their products, in pairs, fit 16 bits.
struct PlainNibbles {
  static constexpr bool kFitsInt32 = false;
  static constexpr int64_t kInputs = 32;
  explicit PlainNibbles(const Tile&) {}
  __m256i bytes(__m256i nibbles) const { return nibbles; }
  float unit() const { return 1.0f; }
  Ints zeros(const Tile& tile, int64_t at) const { return zeros_at(tile, at); }
};

// Levels as bytes. kInputs of them times whole numbers of 23 bits fit 32 bits: 24 * 2^22 * 16.
struct LevelBytes {
  static constexpr bool kFitsInt32 = true;
  static constexpr int64_t kInputs = 16;
  const ByteLevels levels;
  const __m256i table;
  explicit LevelBytes(const Tile& tile)
      : levels(tile.levels),
        table(_mm256_broadcastsi128_si256(load_lanes<__m128i>(levels.bytes))) {}
  __m256i bytes(__m256i nibbles) const { return _mm256_shuffle_epi8(table, nibbles); }
  float unit() const { return levels.unit; }
  Ints zeros(const Tile&, int64_t) const { return Ints{} + levels.zero; }
};

// At most Nibbles::kInputs inputs times two vectors of eight columns, from `column` on. Calls
// finish(column, low, high) for each vector, with sums as in DigitSums.
template <typename Nibbles, typename Finish>
VLPRESS_INLINE void digit_columns(const Nibbles& nibbles, const uint8_t* packed, int64_t count,
                                  const int8_t* digits, const uint8_t* next, int column,
                                  const Finish& finish) {
  constexpr int kVecs = 2;
  const __m256i mask = _mm256_set1_epi8(15);
  __m256i narrow[3][kVecs] = {};
  packed += 4 * column;
  for (int64_t k = 0; k < count; k += 8, packed += kStepBytes, next += 32 * kVecs) {
    __m256i lows[kVecs], highs[kVecs];
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const __m256i lanes = stream_lanes<__m256i>(packed, v, next);
      lows[v] = nibbles.bytes(_mm256_and_si256(lanes, mask));
      highs[v] = nibbles.bytes(_mm256_and_si256(_mm256_srli_epi16(lanes, 4), mask));
    }
    VLPRESS_UNROLL
    for (int d = 0; d < 3; ++d) {
      const __m256i first = broadcast_levels(digits + 8 * d),
                    second = broadcast_levels(digits + 8 * d + 4);
      VLPRESS_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        __m256i& sum = narrow[d][v];
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(lows[v], first));
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(highs[v], second));
      }
    }
    digits += DigitGroup::kStep;
  }
  const __m256i ones = _mm256_set1_epi16(1), places = _mm256_set1_epi16(256);
  VLPRESS_UNROLL
  for (int v = 0; v < kVecs; ++v)
    finish(column + 8 * v,
           _mm256_add_epi32(_mm256_madd_epi16(narrow[0][v], ones),
                            _mm256_madd_epi16(narrow[1][v], places)),
           _mm256_madd_epi16(narrow[2][v], ones));
}

// total[column ..] += the sums of a group, with its scales. kWhole: the sums of all digits together
// fit 32 bits, modulo 2^32 in between.
template <bool kWhole>
VLPRESS_INLINE void add_group(const Tile& tile, int64_t at, Ints zero, float unit, int32_t low_sum,
                              int32_t high_sum, Ints low, Ints high, float* out) {
  Floats sum;
  if (kWhole) {
    const Words whole = reinterpret_cast<Words>(low) + (reinterpret_cast<Words>(high) << 16);
    const uint32_t inputs =
        static_cast<uint32_t>(low_sum) + (static_cast<uint32_t>(high_sum) << 16);
    sum = to_floats(as_ints(whole - reinterpret_cast<Words>(zero) * inputs));
  } else {
    sum = to_floats(low - zero * low_sum) + to_floats(high - zero * high_sum) * 65536.0f;
  }
  store_lanes(out, load_lanes<Floats>(out) + sum * (scales_at(tile, at) * unit));
}

// A group of at most Nibbles::kInputs inputs, whose sums stay in registers. The arguments are
// copies: the compiler could not keep in registers what a store may change.
template <typename Nibbles>
inline void small_group(const Nibbles nibbles, const Tile tile, const Turn t,
                        const DigitGroup& group, float* const total) {
  const int64_t first = t.k / tile.group * kTile;
  const float unit = group.unit * nibbles.unit();
  const int32_t low_sum = group.low_sum, high_sum = group.high_sum;
  const uint8_t* const packed = tile.packed + t.k / 8 * kStepBytes;
  for (int column = 0; column < kTile; column += 2 * kWide) {
    const auto finish = [&](int c, __m256i low, __m256i high) {
      add_group<Nibbles::kFitsInt32>(tile, first + c, nibbles.zeros(tile, first + c), unit, low_sum,
                                     high_sum, reinterpret_cast<Ints>(low),
                                     reinterpret_cast<Ints>(high), total + c);
    };
    const uint8_t* const next = t.next_at<8>(column);
    // A constant for the most frequent width, so that the loop is unrolled.
    if (t.count == 16)
      digit_columns(nibbles, packed, 16, group.digits(), next, column, finish);
    else
      digit_columns(nibbles, packed, t.count, group.digits(), next, column, finish);
  }
}

// total[64] = a tile times a row that split_row has split.
template <typename Nibbles>
inline void digit_row_of(const Tile& tile, const uint8_t* split, float* total) {
  const Nibbles nibbles(tile);
  DigitSums sums[kStreams];
  std::fill_n(total, kTile, 0.0f);
  const int64_t bytes = DigitGroup::bytes(tile.group);
  const auto group_at = [&](int64_t group) {
    return reinterpret_cast<const DigitGroup*>(split + group * bytes);
  };
  const bool is_small = tile.group <= Nibbles::kInputs;
  const auto turn = [&](const Turn& t) {
    const int64_t group = t.k / tile.group;
    const DigitGroup& row = *group_at(group);
    if (is_small) return small_group(nibbles, tile, t, row, total);
    const int8_t* digits = row.digits() + (t.k - group * tile.group) * 3;
    const uint8_t* packed = tile.packed + t.k / 8 * kStepBytes;
    DigitSums& slot = sums[t.slot];
    for (int column = 0; column < kTile; column += 2 * kWide)
      for (int64_t k = 0; k < t.count; k += Nibbles::kInputs) {
        const bool add = !t.first || k > 0;
        digit_columns(nibbles, packed + k / 8 * kStepBytes,
                      std::min(Nibbles::kInputs, t.count - k), digits + 3 * k,
                      t.next_at<8>(column) + 8 * k, column,
                      [&](int at, __m256i low, __m256i high) {
                        int32_t *lows = slot.low + at, *highs = slot.high + at;
                        store_lanes(lows, accumulate(lows, add, low));
                        store_lanes(highs, accumulate(highs, add, high));
                      });
      }
  };
  const auto fold = [&](int slot, int64_t group) {
    if (is_small) return;
    const DigitGroup& row = *group_at(group);
    const float unit = row.unit * nibbles.unit();
    for (int column = 0; column < kTile; column += kWide) {
      const int64_t at = group * kTile + column;
      add_group<false>(tile, at, nibbles.zeros(tile, at), unit, row.low_sum, row.high_sum,
                       load_lanes<Ints>(sums[slot].low + column),
                       load_lanes<Ints>(sums[slot].high + column), total + column);
    }
  };
  in_streams(tile, turn, fold);
}

inline void digit_row(const Tile& tile, const uint8_t* split, float* total) {
  tile.levels ? digit_row_of<LevelBytes>(tile, split, total)
              : digit_row_of<PlainNibbles>(tile, split, total);
}

}  // namespace
}  // namespace vlpress
