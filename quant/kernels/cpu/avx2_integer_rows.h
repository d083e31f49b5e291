// Products of few rows of int8 activations for AVX2: weights are unpacked in registers.
#pragma once

#include <algorithm>

#include "avx2_integers.h"
#include "avx2_streams.h"

namespace vlpress {
namespace {

// Most rows whose sums fit 16 registers together with unpacked weights.
constexpr int kLevelRows = 4;
// Most inputs of a turn with 8 bits.
constexpr int kTurnBytesInputs = 4 * kTurnSteps;
static_assert(8 * kTurnSteps <= kNarrowInputs, "nibble products of a turn fit 16 bits");

// sums (+)= one turn of nibbles, `kVecs` vectors of eight columns, times `kRows` rows of levels.
template <int kRows, int kVecs>
inline void nibble_columns(const uint8_t* packed, int64_t count, const int8_t* levels,
                           int64_t stride, bool add, const uint8_t* next, int32_t* sums) {
  const __m256i mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  __m256i narrow[kRows][kVecs] = {};
  for (int64_t k = 0; k < count; k += 8, packed += kStepBytes, next += 32 * kVecs) {
    __m256i low[kRows], high[kRows];  // four levels each
    VLPRESS_UNROLL
    for (int m = 0; m < kRows; ++m) {
      low[m] = broadcast_levels(levels + m * stride + k);
      high[m] = broadcast_levels(levels + m * stride + k + 4);
    }
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const __m256i lanes = stream_lanes<__m256i>(packed, v, next);
      const __m256i lows = _mm256_and_si256(lanes, mask),
                    highs = _mm256_and_si256(_mm256_srli_epi16(lanes, 4), mask);
      VLPRESS_UNROLL
      for (int m = 0; m < kRows; ++m) {
        __m256i& sum = narrow[m][v];
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(lows, low[m]));
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(highs, high[m]));
      }
    }
  }
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m)
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      int32_t* out = sums + m * kTile + 8 * v;
      store_lanes(out, accumulate(out, add, _mm256_madd_epi16(narrow[m][v], ones)));
    }
}

// The same with bytes, and levels in 16 bits. Even bytes of a lane are a pair of neighbouring
// inputs in 16 bits, and odd ones the next pair.
template <int kRows, int kVecs>
inline void byte_columns(const uint8_t* packed, int64_t count,
                         const int16_t (&levels)[kRows][kTurnBytesInputs], bool add,
                         const uint8_t* next, int32_t* sums) {
  const __m256i mask = _mm256_set1_epi16(255);
  __m256i acc[kRows][kVecs] = {};
  for (int64_t k = 0; k < count; k += 4, packed += kStepBytes, next += 32 * kVecs) {
    __m256i first[kRows], second[kRows];
    VLPRESS_UNROLL
    for (int m = 0; m < kRows; ++m) {
      first[m] = broadcast_levels(levels[m] + k);
      second[m] = broadcast_levels(levels[m] + k + 2);
    }
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const __m256i lanes = stream_lanes<__m256i>(packed, v, next);
      const __m256i even = _mm256_and_si256(lanes, mask), odd = _mm256_srli_epi16(lanes, 8);
      VLPRESS_UNROLL
      for (int m = 0; m < kRows; ++m) {
        __m256i& sum = acc[m][v];
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even, first[m]));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(odd, second[m]));
      }
    }
  }
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m)
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      int32_t* out = sums + m * kTile + 8 * v;
      store_lanes(out, accumulate(out, add, acc[m][v]));
    }
}

// total[kRows][64] = a tile times `kRows` rows of levels.
template <int kBits, int kRows>
inline void levels_of_tile(const Tile& tile, const int8_t* levels, int64_t stride,
                           const int32_t* level_sums, float* total) {
  constexpr int kVecs = kRows == 1 ? 4 : kRows == 2 ? 2 : 1, kInputs = kBits == 4 ? 8 : 4;
  int32_t sums[kStreams][kRows * kTile];
  std::fill_n(total, kRows * kTile, 0.0f);
  const auto turn = [&](const Turn& t) {
    const uint8_t* packed = tile.packed + t.k / kInputs * kStepBytes;
    int32_t* out = sums[t.slot];
    int16_t wide[kRows][kTurnBytesInputs];
    if (kBits == 8)
      for (int m = 0; m < kRows; ++m) widen_levels(levels + m * stride + t.k, t.count, wide[m]);
    for (int column = 0; column < kTile; column += 8 * kVecs)
      if (kBits == 4)
        nibble_columns<kRows, kVecs>(packed + 4 * column, t.count, levels + t.k, stride, !t.first,
                                     t.next_at<kInputs>(column), out + column);
      else
        byte_columns<kRows, kVecs>(packed + 4 * column, t.count, wide, !t.first,
                                   t.next_at<kInputs>(column), out + column);
  };
  const auto fold = [&](int slot, int64_t group) {
    int32_t row_sums[kRows];
    for (int m = 0; m < kRows; ++m) row_sums[m] = level_sums[m * (tile.k / tile.group) + group];
    fold_sums(tile, group, sums[slot], row_sums, kRows, true, total);
  };
  in_streams(tile, turn, fold);
}

template <int kBits>
inline void levels_by_bits(const Tile& tile, const int8_t* levels, int64_t stride,
                           const int32_t* sums, int m, float* total) {
  const int64_t groups = tile.k / tile.group;
  for (; m > kLevelRows; m -= kLevelRows) {
    levels_of_tile<kBits, kLevelRows>(tile, levels, stride, sums, total);
    levels += kLevelRows * stride;
    sums += kLevelRows * groups;
    total += kLevelRows * kTile;
  }
  switch (m) {
    case 1: return levels_of_tile<kBits, 1>(tile, levels, stride, sums, total);
    case 2: return levels_of_tile<kBits, 2>(tile, levels, stride, sums, total);
    case 3: return levels_of_tile<kBits, 3>(tile, levels, stride, sums, total);
    default: return levels_of_tile<kBits, 4>(tile, levels, stride, sums, total);
  }
}

inline void level_rows_avx2(const Tile& tile, const int8_t* levels, int64_t stride,
                            const int32_t* sums, int m, float* total) {
  const auto call = tile.bits == 4 ? levels_by_bits<4> : levels_by_bits<8>;
  call(tile, levels, stride, sums, m, total);
}

}  // namespace
}  // namespace vlpress
