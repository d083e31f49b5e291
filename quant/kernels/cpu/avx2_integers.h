// Products of int8 numbers with AVX2.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "simd_gemm.h"
#include "generic.h"

namespace vlpress {
namespace {

inline void widen_levels(const int8_t* levels, int64_t count, int16_t* wide) {
  for (int64_t k = 0; k < count; ++k) wide[k] = levels[k];
}

inline __m256i weights16(const uint8_t* at) {
  return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}

inline __m256i plus(const int32_t* sums, bool add, __m256i columns) {
  return add ? _mm256_add_epi32(columns, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums)))
             : columns;
}

// Eight columns of a panel times `kRows` rows. Bytes go through products of 16 bits: maddubs would
// saturate at 255 * 127 + 255 * 127. 32 weights are two vectors, each lane pair one column.
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
    int32_t* out = sums + m * kTile;
    store_lanes(out, plus(out, add, _mm256_permute4x64_epi64(crossed, 0xd8)));
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

// The same with nibbles: two products are at most 2 * 15 * 128 away from 0, so that eight steps of
// them fit 16 bits.
constexpr int64_t kNibbles = 32;

template <int kRows>
inline void eight_columns_of_nibbles(const uint8_t* weights, int64_t count, const int8_t* levels,
                                     int64_t stride, bool add, int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i acc[kRows];
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m) acc[m] = _mm256_setzero_si256();
  for (int64_t begin = 0; begin < count; begin += kNibbles) {
    const int64_t stop = std::min(begin + kNibbles, count);
    __m256i narrow[kRows];
    VLPRESS_UNROLL
    for (int m = 0; m < kRows; ++m) narrow[m] = _mm256_setzero_si256();
    for (int64_t k = begin; k < stop; k += 4, weights += kStepBytes) {
      const __m256i here = load_lanes<__m256i>(weights);
      VLPRESS_UNROLL
      for (int m = 0; m < kRows; ++m) {
        int32_t four;
        std::memcpy(&four, levels + m * stride + k, sizeof four);
        const __m256i products = _mm256_maddubs_epi16(here, _mm256_set1_epi32(four));
        narrow[m] = _mm256_add_epi16(narrow[m], products);
      }
    }
    VLPRESS_UNROLL
    for (int m = 0; m < kRows; ++m)
      acc[m] = _mm256_add_epi32(acc[m], _mm256_madd_epi16(narrow[m], ones));
  }
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m) {
    int32_t* out = sums + m * kTile;
    store_lanes(out, plus(out, add, acc[m]));
  }
}

template <int kRows>
inline void nibble_rows(const uint8_t* panel, int64_t count, const int8_t* levels, int64_t stride,
                        bool add, int32_t* sums) {
  for (int first = 0; first < kTile; first += 8)
    eight_columns_of_nibbles<kRows>(panel + 4 * first, count, levels, stride, add, sums + first);
}

// Calls `many` for as many rows at a time as registers hold, `one` for each that is left.
template <typename Rows>
inline void in_blocks(Rows many, Rows one, const uint8_t* panel, int64_t count,
                      const int8_t* levels, int64_t stride, int64_t m, bool add, int32_t* sums) {
  for (; m >= kBlockRows; m -= kBlockRows) {
    many(panel, count, levels, stride, add, sums);
    levels += kBlockRows * stride;
    sums += kBlockRows * kTile;
  }
  for (; m > 0; --m, levels += stride, sums += kTile) one(panel, count, levels, stride, add, sums);
}

inline void multiply_bytes_avx2(const uint8_t* panel, int64_t count, const int8_t* levels,
                                int64_t stride, int64_t m, bool add, int32_t* sums) {
  in_blocks(byte_rows<kBlockRows>, byte_rows<1>, panel, count, levels, stride, m, add, sums);
}

inline void multiply_nibbles_avx2(const uint8_t* panel, int64_t count, const int8_t* levels,
                                  int64_t stride, int64_t m, bool add, int32_t* sums) {
  in_blocks(nibble_rows<kBlockRows>, nibble_rows<1>, panel, count, levels, stride, m, add, sums);
}

constexpr IntKernels kInts = {
    0, nullptr, unpack_bytes, multiply_bytes_avx2, multiply_nibbles_avx2, fold_sums, quantize_row};

}  // namespace
}  // namespace vlpress
