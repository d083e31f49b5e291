// Products with int8 activations for AVX2.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "generic.h"
#include "simd_gemm.h"

namespace vlpress {
namespace {

inline void widen_levels(const int8_t* levels, int64_t count, int16_t* wide) {
  for (int64_t k = 0; k < count; ++k) wide[k] = levels[k];
}

inline __m256i weights16(const uint8_t* at) {
  return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}

// `columns`, plus the earlier sums if `add`.
inline __m256i accumulate(const int32_t* sums, bool add, __m256i columns) {
  return add ? _mm256_add_epi32(columns, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums)))
             : columns;
}

// Eight columns of a panel times `kRows` rows. Bytes are widened to 16 bits and multiplied by
// VPMADDWD: VPMADDUBSW on bytes adds pairs with saturation to 16 bits, and 2 * 255 * 127 does not
// fit. The 32 weights of a step are two vectors; two neighbouring lanes belong to one column.
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
      int64_t step;  // four levels of 16 bits
      std::memcpy(&step, levels + m * kPanelInputs + k, sizeof step);
      const __m256i x = _mm256_set1_epi64x(step);
      acc[m][0] = _mm256_add_epi32(acc[m][0], _mm256_madd_epi16(low, x));
      acc[m][1] = _mm256_add_epi32(acc[m][1], _mm256_madd_epi16(high, x));
    }
  }
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m) {
    // VPHADDD adds neighbouring lanes within each 128-bit half; the permutation restores the order.
    const __m256i crossed = _mm256_hadd_epi32(acc[m][0], acc[m][1]);
    int32_t* out = sums + m * kTile;
    store_lanes(out, accumulate(out, add, _mm256_permute4x64_epi64(crossed, 0xd8)));
  }
}

// Levels are widened once for the 64 columns of the panel, not at each use.
template <int kRows>
inline void byte_rows(const uint8_t* panel, int64_t count, const int8_t* levels, int64_t stride,
                      bool add, int32_t* sums) {
  int16_t wide[kRows * kPanelInputs];
  for (int m = 0; m < kRows; ++m) widen_levels(levels + m * stride, count, wide + m * kPanelInputs);
  for (int first = 0; first < kTile; first += 8)
    eight_columns<kRows>(panel + 4 * first, count, wide, add, sums + first);
}

// Inputs that nibble products sum in 16 bits. VPMADDUBSW is safe here: a pair of products is at
// most 2 * 15 * 128 = 3840 in magnitude, and eight steps of them fit 16 bits.
constexpr int64_t kNarrowInputs = 32;

template <int kRows>
inline void eight_columns_of_nibbles(const uint8_t* weights, int64_t count, const int8_t* levels,
                                     int64_t stride, bool add, int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i acc[kRows];
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m) acc[m] = _mm256_setzero_si256();
  for (int64_t begin = 0; begin < count; begin += kNarrowInputs) {
    const int64_t stop = std::min(begin + kNarrowInputs, count);
    __m256i narrow[kRows];
    VLPRESS_UNROLL
    for (int m = 0; m < kRows; ++m) narrow[m] = _mm256_setzero_si256();
    for (int64_t k = begin; k < stop; k += 4, weights += kStepBytes) {
      const __m256i nibbles = load_lanes<__m256i>(weights);
      VLPRESS_UNROLL
      for (int m = 0; m < kRows; ++m) {
        int32_t step;  // four levels
        std::memcpy(&step, levels + m * stride + k, sizeof step);
        const __m256i products = _mm256_maddubs_epi16(nibbles, _mm256_set1_epi32(step));
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
    store_lanes(out, accumulate(out, add, acc[m]));
  }
}

template <int kRows>
inline void nibble_rows(const uint8_t* panel, int64_t count, const int8_t* levels, int64_t stride,
                        bool add, int32_t* sums) {
  for (int first = 0; first < kTile; first += 8)
    eight_columns_of_nibbles<kRows>(panel + 4 * first, count, levels, stride, add, sums + first);
}

// Calls `block` for register tiles of kRegisterRows rows, `single` for each remaining row.
template <typename Function>
inline void in_blocks(Function block, Function single, const uint8_t* panel, int64_t count,
                      const int8_t* levels, int64_t stride, int64_t m, bool add, int32_t* sums) {
  for (; m >= kRegisterRows; m -= kRegisterRows) {
    block(panel, count, levels, stride, add, sums);
    levels += kRegisterRows * stride;
    sums += kRegisterRows * kTile;
  }
  for (; m > 0; --m, levels += stride, sums += kTile)
    single(panel, count, levels, stride, add, sums);
}

inline void multiply_bytes_avx2(const uint8_t* panel, int64_t count, const int8_t* levels,
                                int64_t stride, int64_t m, bool add, int32_t* sums) {
  in_blocks(byte_rows<kRegisterRows>, byte_rows<1>, panel, count, levels, stride, m, add, sums);
}

inline void multiply_nibbles_avx2(const uint8_t* panel, int64_t count, const int8_t* levels,
                                  int64_t stride, int64_t m, bool add, int32_t* sums) {
  in_blocks(nibble_rows<kRegisterRows>, nibble_rows<1>, panel, count, levels, stride, m, add, sums);
}

constexpr IntKernels kInts = {
    0, nullptr, unpack_bytes, multiply_bytes_avx2, multiply_nibbles_avx2, fold_sums, quantize_row};

}  // namespace
}  // namespace vlpress
