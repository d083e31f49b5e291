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

// Sums of a group: of the two lower digits together, and of the highest.
struct DigitSums {
  int32_t low[kTile], high[kTile];
};

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
// for each vector, with sums as in DigitSums. With two kDigits, the lowest are zero.
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

// Scales of eight columns by how they are stored, so that small_groups does not have to ask.
struct HalfScales {
  static Floats at(const Tile& tile, int64_t at) { return half_scales_at(tile, at); }
};
struct DividedScales {
  static Floats at(const Tile& tile, int64_t at) {
    return quotients(half_scales_at(tile, at), tile);
  }
};
struct AnyScales {
  static Floats at(const Tile& tile, int64_t at) { return scales_at(tile, at); }
};

// Sums over one turn of groups that, of all digits together, fit 32 bits (modulo 2^32 in between);
// they stay in registers. kGroup: inputs of a group, as a constant so that loops are unrolled, or 0.
template <int kGroup, typename Scales, typename Nibbles>
inline void small_groups(const Nibbles& shared_nibbles, const Tile& shared_tile, const Turn& t,
                         const uint8_t* split, float* total) {
  constexpr int kChunk = kGroup ? std::min(kGroup, Nibbles::kInputs) : 8;
  // Copies: the compiler could not keep in registers what a store may change.
  const Nibbles nibbles = shared_nibbles;
  const Tile tile = shared_tile;
  const int64_t width = kGroup ? kGroup : tile.group, first = t.k / width;
  const int groups = static_cast<int>(t.count / width);
  split += first * DigitGroup::bytes(width);
  struct {
    float unit;
    uint32_t offset;
    int32_t has_low;
  } rows[kTurnSteps];
  for (int g = 0; g < groups; ++g) {
    const auto& row = *reinterpret_cast<const DigitGroup*>(split + g * DigitGroup::bytes(width));
    const uint32_t sum =
        static_cast<uint32_t>(row.low_sum) + (static_cast<uint32_t>(row.high_sum) << 16);
    rows[g] = {row.unit * nibbles.unit(), nibbles.offset(sum), row.has_low};
    prefetch_scales(tile, (first + g) * kTile);
  }
  const uint8_t* packed = tile.packed + t.k / 8 * kStepBytes;
  const uint8_t* next = t.next;
  for (int column = 0; column < kTile; column += kDigitVectors * kWide) {
    const int8_t* digits = reinterpret_cast<const DigitGroup*>(split)->digits();
    const uint8_t* weights = packed + 4 * column;
    int64_t at = first * kTile + column;
    Floats sums[kDigitVectors];
    VLPRESS_UNROLL
    for (int v = 0; v < kDigitVectors; ++v) sums[v] = load_lanes<Floats>(total + column + kWide * v);
    for (int g = 0; g < groups; ++g, at += kTile) {
      Words whole[kDigitVectors];
      VLPRESS_UNROLL
      for (int v = 0; v < kDigitVectors; ++v)
        whole[v] = nibbles.offsets(tile, at + kWide * v, rows[g].offset);
      const auto add = [&](int v, __m256i low, __m256i high) {
        whole[v] += reinterpret_cast<Words>(low) + (reinterpret_cast<Words>(high) << 16);
      };
      for (int64_t i = 0; i < width; i += kChunk) {
        if (rows[g].has_low)
          digit_columns<3, true>(nibbles, weights, kChunk, digits, next, add);
        else
          digit_columns<2, true>(nibbles, weights, kChunk, digits, next, add);
        weights += kChunk / 8 * kStepBytes;
        digits += 3 * kChunk;
        next += 8 * kChunk;
      }
      digits += sizeof(DigitGroup);
      VLPRESS_UNROLL
      for (int v = 0; v < kDigitVectors; ++v) {
        const Floats scales = Scales::at(tile, at + kWide * v) * rows[g].unit;
        sums[v] += to_floats(as_ints(whole[v])) * scales;
      }
    }
    VLPRESS_UNROLL
    for (int v = 0; v < kDigitVectors; ++v) store_lanes(total + column + kWide * v, sums[v]);
  }
}

template <int kGroup, typename Nibbles>
inline void small_group_turns(const Nibbles& nibbles, const Tile& tile, const uint8_t* split,
                              float* total) {
  // Several groups for each turn, so that totals are loaded and stored less often.
  Tile turns = tile;
  while (2 * turns.group <= 8 * kTurnSteps && tile.k % (2 * turns.group) == 0) turns.group *= 2;
  const auto groups = !tile.half_scales         ? small_groups<kGroup, AnyScales, Nibbles>
                      : tile.divisor == 0.0f ? small_groups<kGroup, HalfScales, Nibbles>
                                             : small_groups<kGroup, DividedScales, Nibbles>;
  in_streams(
      turns, [&](const Turn& t) { groups(nibbles, tile, t, split, total); }, [](int, int64_t) {});
}

// total[64] = a tile times a row that split_row has split, in groups that small_groups takes.
template <typename Nibbles>
inline void small_group_row(const Nibbles& nibbles, const Tile& tile, const uint8_t* split,
                            float* total) {
  switch (tile.group) {
    case 16: return small_group_turns<16>(nibbles, tile, split, total);
    case 32: return small_group_turns<32>(nibbles, tile, split, total);
    default: return small_group_turns<0>(nibbles, tile, split, total);
  }
}

// The same for other groups.
template <typename Nibbles>
inline void large_group_row(const Nibbles& nibbles, const Tile& tile, const uint8_t* split,
                            float* total) {
  DigitSums sums[kStreams];
  const int64_t bytes = DigitGroup::bytes(tile.group);
  const auto group_at = [&](int64_t group) {
    return reinterpret_cast<const DigitGroup*>(split + group * bytes);
  };
  const auto turn = [&](const Turn& t) {
    const int64_t group = t.k / tile.group;
    const int8_t* digits = group_at(group)->digits() + (t.k - group * tile.group) * 3;
    const uint8_t* packed = tile.packed + t.k / 8 * kStepBytes;
    DigitSums& slot = sums[t.slot];
    for (int column = 0; column < kTile; column += kDigitVectors * kWide)
      for (int64_t k = 0; k < t.count; k += Nibbles::kInputs) {
        const bool add = !t.first || k > 0;
        digit_columns<3, false>(nibbles, packed + k / 8 * kStepBytes + 4 * column,
                      std::min<int64_t>(Nibbles::kInputs, t.count - k), digits + 3 * k,
                      t.next_at<8>(column) + 8 * k, [&](int v, __m256i low, __m256i high) {
                        const int at = column + kWide * v;
                        int32_t *lows = slot.low + at, *highs = slot.high + at;
                        store_lanes(lows, accumulate(lows, add, low));
                        store_lanes(highs, accumulate(highs, add, high));
                      });
      }
  };
  const auto fold = [&](int slot, int64_t group) {
    const DigitGroup& row = *group_at(group);
    const float unit = row.unit * nibbles.unit();
    for (int column = 0; column < kTile; column += kWide) {
      const int64_t at = group * kTile + column;
      const Ints zero = nibbles.zeros(tile, at);
      const Ints low = load_lanes<Ints>(sums[slot].low + column) - zero * row.low_sum;
      const Ints high = load_lanes<Ints>(sums[slot].high + column) - zero * row.high_sum;
      const Floats sum = to_floats(low) + to_floats(high) * 65536.0f;
      float* out = total + column;
      store_lanes(out, load_lanes<Floats>(out) + sum * (scales_at(tile, at) * unit));
    }
  };
  in_streams(tile, turn, fold);
}

template <typename Nibbles>
inline void digit_row_of(const Tile& tile, const uint8_t* split, float* total) {
  const Nibbles nibbles(tile);
  std::fill_n(total, kTile, 0.0f);
  tile.group <= nibbles.whole_inputs() ? small_group_row(nibbles, tile, split, total)
                                       : large_group_row(nibbles, tile, split, total);
}

inline void digit_row(const Tile& tile, const uint8_t* split, float* total) {
  tile.levels ? digit_row_of<LevelBytes>(tile, split, total)
              : digit_row_of<PlainNibbles>(tile, split, total);
}

}  // namespace
}  // namespace vlpress
