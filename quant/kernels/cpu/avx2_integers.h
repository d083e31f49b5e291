// Products with int8 activations for AVX2, with panels of weights.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "generic.h"

namespace vlpress {
namespace {

// A register tile: rows, and vectors of eight columns. Their sums take half of the 16 registers. A
// product and its addition are two instructions, so that more rows save few loads, and GCC keeps
// some of 12 sums in memory.
constexpr int kIntegerRows = 4, kPairVectors = 2;

// Levels to 16 bits, in the order of their inputs (see kOrder8). `wide` is padded to 16 levels.
inline void widen_levels(const int8_t* levels, int64_t count, int16_t* wide) {
  const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
  int64_t k = 0;
  for (; k + 16 <= count; k += 16) {
    const __m128i bytes = load_lanes<__m128i>(levels + k);
    store_lanes(wide + k, _mm256_cvtepi8_epi16(_mm_shuffle_epi8(bytes, order)));
  }
  for (; k < count; k += 4)
    for (int i = 0; i < 4; ++i) wide[k + i] = levels[k + kOrder8[i]];
}

// Four levels of 8 bits, or two of 16, in all lanes.
inline __m256i broadcast_levels(const void* at) {
  int32_t levels;
  std::memcpy(&levels, at, sizeof levels);
  return _mm256_set1_epi32(levels);
}

// `columns`, plus the earlier sums if `add`.
inline __m256i accumulate(const int32_t* sums, bool add, __m256i columns) {
  return add ? _mm256_add_epi32(columns, load_lanes<__m256i>(sums)) : columns;
}

// Widens 16 columns of a panel of bytes to 16 bits: a vector of eight columns by two neighbouring
// inputs, then the other columns, then the next two inputs.
inline void widen_strip(const uint8_t* panel, int64_t count, __m256i* strip) {
  const __m256i mask = _mm256_set1_epi16(255);
  for (int64_t k = 0; k < count; k += 4, panel += kStepBytes, strip += 2 * kPairVectors)
    VLPRESS_UNROLL
    for (int v = 0; v < kPairVectors; ++v) {
      const __m256i lanes = load_lanes<__m256i>(panel + 32 * v);
      strip[v] = _mm256_and_si256(lanes, mask);
      strip[kPairVectors + v] = _mm256_srli_epi16(lanes, 8);
    }
}

// sums (+)= a widened strip times `kRows` rows. Bytes are widened for VPMADDWD: VPMADDUBSW on bytes
// adds pairs with saturation to 16 bits, and 2 * 255 * 127 does not fit.
template <int kRows>
inline void byte_block(const __m256i* strip, int64_t count, const int16_t* levels, bool add,
                       int32_t* sums) {
  __m256i acc[kRows][kPairVectors] = {};
#pragma GCC unroll 2
  for (int64_t k = 0; k < count; k += 2, strip += kPairVectors) {
    __m256i weights[kPairVectors];
    VLPRESS_UNROLL
    for (int v = 0; v < kPairVectors; ++v) weights[v] = strip[v];
    VLPRESS_UNROLL
    for (int m = 0; m < kRows; ++m) {
      const __m256i pair = broadcast_levels(levels + m * kPanelInputs + k);
      VLPRESS_UNROLL
      for (int v = 0; v < kPairVectors; ++v)
        acc[m][v] = _mm256_add_epi32(acc[m][v], _mm256_madd_epi16(weights[v], pair));
    }
  }
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m)
    VLPRESS_UNROLL
    for (int v = 0; v < kPairVectors; ++v) {
      int32_t* out = sums + m * kTile + 8 * v;
      store_lanes(out, accumulate(out, add, acc[m][v]));
    }
}

// Inputs that nibble products sum in 16 bits. VPMADDUBSW is safe here: a pair of products is at
// most 2 * 15 * 128 = 3840 in magnitude, and eight of them fit 16 bits.
constexpr int64_t kNarrowInputs = 32;

// sums (+)= 16 columns of a panel of nibbles times `kRows` rows.
template <int kRows>
inline void nibble_block(const uint8_t* panel, int64_t count, const int8_t* levels, int64_t stride,
                         bool add, int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t begin = 0; begin < count; begin += kNarrowInputs) {
    const int64_t stop = std::min(begin + kNarrowInputs, count);
    __m256i narrow[kRows][kPairVectors] = {};
#pragma GCC unroll 2
    for (int64_t k = begin; k < stop; k += 4, panel += kStepBytes) {
      __m256i weights[kPairVectors];
      VLPRESS_UNROLL
      for (int v = 0; v < kPairVectors; ++v) weights[v] = load_lanes<__m256i>(panel + 32 * v);
      VLPRESS_UNROLL
      for (int m = 0; m < kRows; ++m) {
        const __m256i four = broadcast_levels(levels + m * stride + k);
        VLPRESS_UNROLL
        for (int v = 0; v < kPairVectors; ++v)
          narrow[m][v] = _mm256_add_epi16(narrow[m][v], _mm256_maddubs_epi16(weights[v], four));
      }
    }
    VLPRESS_UNROLL
    for (int m = 0; m < kRows; ++m)
      VLPRESS_UNROLL
      for (int v = 0; v < kPairVectors; ++v) {
        int32_t* out = sums + m * kTile + 8 * v;
        const __m256i wide = _mm256_madd_epi16(narrow[m][v], ones);
        store_lanes(out, accumulate(out, add || begin > 0, wide));
      }
  }
}

// Calls block(rows, first) for register tiles of kIntegerRows rows, then for the remaining ones;
// `rows` is an integral constant.
template <typename Block>
inline void each_register_tile(int64_t m, const Block& block) {
  int64_t first = 0;
  for (; first + kIntegerRows <= m; first += kIntegerRows)
    block(std::integral_constant<int, kIntegerRows>(), first);
  switch (m - first) {
    case 3: return block(std::integral_constant<int, 3>(), first);
    case 2: return block(std::integral_constant<int, 2>(), first);
    case 1: return block(std::integral_constant<int, 1>(), first);
    default: return;
  }
}

// Rows whose widened levels of a panel (48 KiB) stay in the L2 cache.
constexpr int64_t kWideRows = 48;

inline void multiply_bytes_avx2(const uint8_t* panel, int64_t count, const int8_t* levels,
                                int64_t stride, int64_t m, bool add, int32_t* sums) {
  int16_t wide[kWideRows * kPanelInputs];
  __m256i strip[kPanelInputs / 2 * kPairVectors];  // 16 KiB, in the L1 cache for all rows
  for (; m > 0; m -= kWideRows, levels += kWideRows * stride, sums += kWideRows * kTile) {
    const int64_t rows = std::min(m, kWideRows);
    for (int64_t row = 0; row < rows; ++row)
      widen_levels(levels + row * stride, count, wide + row * kPanelInputs);
    for (int column = 0; column < kTile; column += 8 * kPairVectors) {
      widen_strip(panel + 4 * column, count, strip);
      each_register_tile(rows, [&](auto tile_rows, int64_t first) {
        byte_block<decltype(tile_rows)::value>(strip, count, wide + first * kPanelInputs, add,
                                               sums + first * kTile + column);
      });
    }
  }
}

inline void multiply_nibbles_avx2(const uint8_t* panel, int64_t count, const int8_t* levels,
                                  int64_t stride, int64_t m, bool add, int32_t* sums) {
  for (int column = 0; column < kTile; column += 8 * kPairVectors)
    each_register_tile(m, [&](auto tile_rows, int64_t first) {
      nibble_block<decltype(tile_rows)::value>(panel + 4 * column, count, levels + first * stride,
                                               stride, add, sums + first * kTile + column);
    });
}

}  // namespace
}  // namespace vlpress
