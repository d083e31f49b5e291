// Products with int8 activations for AVX-512 with VNNI, and quantization of activations.
//
// VPDPBUSD multiplies 64 pairs of an unsigned and a signed byte and adds four of them into each
// int32 lane. Weights are the unsigned operand without their zero point, activations the signed
// one; the zero point is applied to the sums: sum(x (w - z)) = sum(x w) - z sum(x). All of it is
// exact in int32.
#pragma once

#include <type_traits>

#include "avx512.h"
#include "generic.h"

namespace vlpress {
namespace {

// Nibbles of a panel to bytes: the low ones of a step, then the high ones.
inline void unpack_nibbles(const Tile& tile, int64_t begin, int64_t count, uint8_t* panel) {
  const uint8_t* packed = tile.packed + begin / 8 * kStepBytes;
  const __m512i mask = _mm512_set1_epi8(15);
  for (int64_t k = 0; k < count; k += 8, packed += kStepBytes, panel += 2 * kStepBytes)
    VLPRESS_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const __m512i both = load(packed + 64 * v);
      _mm512_storeu_si512(panel + 64 * v, _mm512_and_si512(both, mask));
      _mm512_storeu_si512(panel + kStepBytes + 64 * v,
                          _mm512_and_si512(_mm512_srli_epi16(both, 4), mask));
    }
}

// One register tile: kRows rows x 64 columns over all inputs of a panel, see multiply_block.
template <int kRows>
inline void byte_block(const uint8_t* panel, int64_t count, const int8_t* levels, int64_t stride,
                       bool add, int32_t* sums) {
  __m512i acc[kRows][kVectors];
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m)
    VLPRESS_UNROLL
    for (int v = 0; v < kVectors; ++v)
      acc[m][v] = add ? load(sums + m * kTile + kLanes * v) : _mm512_setzero_si512();
  for (int64_t k = 0; k < count; k += 4, panel += kStepBytes) {
    __m512i weights[kVectors];
    VLPRESS_UNROLL
    for (int v = 0; v < kVectors; ++v) weights[v] = load(panel + 64 * v);
    VLPRESS_UNROLL
    for (int m = 0; m < kRows; ++m) {
      const __m512i inputs = broadcast4(levels + m * stride + k);
      VLPRESS_UNROLL
      for (int v = 0; v < kVectors; ++v)
        acc[m][v] = _mm512_dpbusd_epi32(acc[m][v], weights[v], inputs);
    }
  }
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m)
    VLPRESS_UNROLL
    for (int v = 0; v < kVectors; ++v)
      _mm512_storeu_si512(sums + m * kTile + kLanes * v, acc[m][v]);
}

inline void multiply_bytes_vnni(const uint8_t* panel, int64_t count, const int8_t* levels,
                                int64_t stride, int64_t m, bool add, int32_t* sums) {
  for (; m >= kRegisterRows; m -= kRegisterRows) {
    const int8_t* next = levels + kRegisterRows * stride;
    // Levels stored by panel: the next register tile's rows follow directly, but the six short
    // streams of this one do not lead the hardware prefetcher there. Prefetching them gains a
    // tenth.
    if (stride == count)
      for (int64_t b = 0; b < kRegisterRows * count; b += 64)
        _mm_prefetch(reinterpret_cast<const char*>(next + b), _MM_HINT_T0);
    byte_block<kRegisterRows>(panel, count, levels, stride, add, sums);
    levels = next;
    sums += kRegisterRows * kTile;
  }
  switch (m) {
    case 5: return byte_block<5>(panel, count, levels, stride, add, sums);
    case 4: return byte_block<4>(panel, count, levels, stride, add, sums);
    case 3: return byte_block<3>(panel, count, levels, stride, add, sums);
    case 2: return byte_block<2>(panel, count, levels, stride, add, sums);
    case 1: return byte_block<1>(panel, count, levels, stride, add, sums);
    default: return;
  }
}

// total[kRows][...] = a tile, `kVecs` vectors of columns from vector `first` on, times `kRows` rows
// of levels. Nibbles are unpacked in registers, and the sums of a group stay there too.
template <int kBits, int kRows, int kVecs>
inline void tile_levels(const Tile& tile, int first, const int8_t* levels, int64_t stride,
                        const int32_t* level_sums, float* total) {
  constexpr int kInputs = kBits == 4 ? 8 : 4;
  const __m512i mask = _mm512_set1_epi8(15);
  const int64_t groups = tile.k / tile.group, steps = tile.group / kInputs;
  const uint8_t* packed = tile.packed + 64 * first;
  __m512 totals[kRows][kVecs];
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m)
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v) totals[m][v] = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; ++g) {
    __m512i sums[kRows][kVecs];
    VLPRESS_UNROLL
    for (int m = 0; m < kRows; ++m)
      VLPRESS_UNROLL
      for (int v = 0; v < kVecs; ++v) sums[m][v] = _mm512_setzero_si512();
    for (int64_t s = 0; s < steps; ++s, packed += kStepBytes, levels += kInputs) {
      prefetch_step(packed);
      __m512i words[kVecs];
      VLPRESS_UNROLL
      for (int v = 0; v < kVecs; ++v) words[v] = load(packed + 64 * v);
      VLPRESS_UNROLL
      for (int h = 0; h < kInputs / 4; ++h) {
        __m512i weights[kVecs];
        VLPRESS_UNROLL
        for (int v = 0; v < kVecs; ++v)
          weights[v] = kBits == 8 ? words[v]
                                  : _mm512_and_si512(_mm512_srli_epi16(words[v], 4 * h), mask);
        VLPRESS_UNROLL
        for (int m = 0; m < kRows; ++m) {
          const __m512i inputs = broadcast4(levels + m * stride + 4 * h);
          VLPRESS_UNROLL
          for (int v = 0; v < kVecs; ++v)
            sums[m][v] = _mm512_dpbusd_epi32(sums[m][v], weights[v], inputs);
        }
      }
    }
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const int64_t at = g * kTile + kLanes * (first + v);
      const __m512 scale = scales16(tile, at);
      const __m512i zero =
          tile.zero_points ? zeros16(tile.zero_points + at) : _mm512_set1_epi32(tile.zero);
      VLPRESS_UNROLL
      for (int m = 0; m < kRows; ++m) {
        const __m512i level_sum = _mm512_set1_epi32(level_sums[m * groups + g]);
        const __m512i exact = _mm512_sub_epi32(sums[m][v], _mm512_mullo_epi32(zero, level_sum));
        totals[m][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), scale, totals[m][v]);
      }
    }
  }
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m)
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v)
      _mm512_storeu_ps(total + m * kTile + kLanes * (first + v), totals[m][v]);
}

// A tile times m <= kDecodeRows rows of levels; passes as in rows_of.
template <int kBits>
inline void levels_of(const Tile& tile, const int8_t* levels, int64_t stride, const int32_t* sums,
                      int m, float* total) {
  const auto halves = [&](auto rows) {
    for (int first = 0; first < kVectors; first += 2)
      tile_levels<kBits, decltype(rows)::value, 2>(tile, first, levels, stride, sums, total);
  };
  switch (m) {
    case 1: return tile_levels<kBits, 1, 4>(tile, 0, levels, stride, sums, total);
    case 2: return tile_levels<kBits, 2, 4>(tile, 0, levels, stride, sums, total);
    case 3: return halves(std::integral_constant<int, 3>());
    case 4: return halves(std::integral_constant<int, 4>());
    case 5: return halves(std::integral_constant<int, 5>());
    case 6: return halves(std::integral_constant<int, 6>());
    case 7: return halves(std::integral_constant<int, 7>());
    default: return halves(std::integral_constant<int, 8>());
  }
}

inline void level_rows(const Tile& tile, const int8_t* levels, int64_t stride, const int32_t* sums,
                       int m, float* total) {
  tile.bits == 4 ? levels_of<4>(tile, levels, stride, sums, m, total)
                 : levels_of<8>(tile, levels, stride, sums, m, total);
}

// As fold_sums. kZeros: columns have their own zero points; else the correction is one number per
// row.
template <bool kAdd, bool kZeros>
inline void fold_rows(const Tile& tile, int64_t group, const int32_t* sums,
                      const int32_t* level_sums, int64_t m, float* total) {
  __m512 scales[kVectors];
  __m512i zeros[kVectors];
  VLPRESS_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = group * kTile + kLanes * v;
    scales[v] = scales16(tile, at);
    zeros[v] = kZeros ? zeros16(tile.zero_points + at) : _mm512_setzero_si512();
  }
  for (int64_t row = 0; row < m; ++row, sums += kTile, total += kTile) {
    const __m512i factor =
        _mm512_set1_epi32(kZeros ? level_sums[row] : level_sums[row] * tile.zero);
    VLPRESS_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const __m512i correction = kZeros ? _mm512_mullo_epi32(zeros[v], factor) : factor;
      const __m512 exact =
          _mm512_cvtepi32_ps(_mm512_sub_epi32(load(sums + kLanes * v), correction));
      float* out = total + kLanes * v;
      _mm512_storeu_ps(out, kAdd ? _mm512_fmadd_ps(exact, scales[v], _mm512_loadu_ps(out))
                                 : _mm512_mul_ps(exact, scales[v]));
    }
  }
}

inline void fold_vectors(const Tile& tile, int64_t group, const int32_t* sums,
                         const int32_t* level_sums, int64_t m, bool add, float* total) {
  if (tile.zero_points)
    add ? fold_rows<true, true>(tile, group, sums, level_sums, m, total)
        : fold_rows<false, true>(tile, group, sums, level_sums, m, total);
  else
    add ? fold_rows<true, false>(tile, group, sums, level_sums, m, total)
        : fold_rows<false, false>(tile, group, sums, level_sums, m, total);
}

// 16 values of x in float32.
inline __m512 read16(const void* x, Type type, int64_t i) {
  if (type == kFloat32) return _mm512_loadu_ps(static_cast<const float*>(x) + i);
  const uint16_t* at = static_cast<const uint16_t*>(x) + i;
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// As quantize_row, 16 inputs at a time; groups that 16 does not divide take the generic loop.
inline float quantize_vectors(const void* x, Type type, int64_t k, int64_t group, int64_t bits,
                              float given, int8_t* levels, int32_t* sums) {
  if (group % kLanes) return quantize_row(x, type, k, group, bits, given, levels, sums);
  float scale = given;
  if (scale == 0.0f) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i largest = _mm512_setzero_si512();
    for (int64_t i = 0; i < k; i += kLanes)
      largest = _mm512_max_epi32(
          largest, _mm512_and_si512(_mm512_castps_si512(read16(x, type, i)), magnitude));
    const int32_t largest_bits = _mm512_reduce_max_epi32(largest);
    std::memcpy(&scale, &largest_bits, sizeof scale);
    scale /= 127.0f;
    if (scale == 0.0f) scale = 1.0f;
  }
  // The input at each position of 16, see kOrder4 and kOrder8.
  const __m128i order =
      bits == 4 ? _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15)
                : _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
  const __m512 divisor = _mm512_set1_ps(scale);
  const __m512 upper = _mm512_set1_ps(127.0f), lower = _mm512_set1_ps(-128.0f);
  for (int64_t g = 0; g * group < k; ++g) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = g * group; i < (g + 1) * group; i += kLanes) {
      const __m512 level = _mm512_div_ps(read16(x, type, i), divisor);
      const __mmask16 number = _mm512_cmp_ps_mask(level, level, _CMP_ORD_Q);  // not NaN
      const __m512 clamped = _mm512_maskz_max_ps(number, _mm512_min_ps(level, upper), lower);
      const __m512i whole = _mm512_cvtps_epi32(clamped);  // to nearest, ties to even
      sum = _mm512_add_epi32(sum, whole);
      const __m128i bytes = _mm_shuffle_epi8(_mm512_cvtepi32_epi8(whole), order);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(levels + i), bytes);
    }
    sums[g] = _mm512_reduce_add_epi32(sum);
  }
  return scale;
}

// Up to 32 rows, unpacking in registers is faster than panels (measured).
constexpr IntKernels kInts = {32,
                              level_rows,
                              unpack_nibbles,
                              multiply_bytes_vnni,
                              multiply_bytes_vnni,
                              fold_vectors,
                              quantize_vectors};

}  // namespace
}  // namespace vlpress
