// The kernels for AVX-512 with VNNI and BF16.
#include "layout.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__) && \
    defined(__AVX512BF16__)
#include <immintrin.h>

#include <type_traits>

#include "pointwise.h"

// Sums must stay in registers: arrays only do if every loop over them is gone early.
#define VLPRESS_UNROLL _Pragma("GCC unroll 8")

namespace vlpress {
namespace {

constexpr int kAhead = 32 * kStepBytes;  // two pages, into the second cache: measured

inline __m512bh pairs(__m512i bits) { return reinterpret_cast<__m512bh>(bits); }

inline __m512i broadcast4(const void* four) {
  int32_t bits;
  std::memcpy(&bits, four, sizeof bits);
  return _mm512_set1_epi32(bits);
}

inline __m512i load(const void* at) { return _mm512_loadu_si512(at); }

inline __m512 scales16(const Tile& tile, int64_t at) {
  if (!tile.half_scales) return _mm512_loadu_ps(static_cast<const float*>(tile.scales) + at);
  return _mm512_cvtph_ps(_mm256_loadu_si256(
      reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(tile.scales) + at)));
}

inline __m512i zeros16(const uint8_t* at) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}

// bf16 of integers of at most 8 bits: exact.
inline uint16_t exact_bf16(int value) {
  const float wide = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &wide, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

// What a nibble stands for, as bf16. VPERMW looks at five bits of a word; the fifth belongs to the
// next nibble, so the sixteen values stand there twice.
struct Tables {
  __m512i low, high;

  Tables(int64_t bits, int zero) {
    alignas(64) uint16_t lows[32], highs[32];
    for (int i = 0; i < 32; ++i) {
      const int nibble = i % 16;
      lows[i] = exact_bf16(bits == 4 ? nibble - zero : nibble);
      // zero is 128 - 16 * 8 + rest: the upper half takes the multiple of 16.
      highs[i] = exact_bf16(16 * nibble - zero);
    }
    low = load(lows);
    high = load(highs);
  }
};

// Weights are read once and in order, but hardware stops looking ahead at the end of a page.
inline void prefetch_step(const uint8_t* packed) {
  VLPRESS_UNROLL
  for (int v = 0; v < kVectors; ++v)
    _mm_prefetch(reinterpret_cast<const char*>(packed + kAhead + 64 * v), _MM_HINT_T1);
}

// One group of a tile times `kRows` rows, `kVecs` vectors of columns from `vector` on.
template <int kBits, int kRows, int kVecs>
inline void group_rows(const uint8_t* packed, int64_t steps, const uint16_t* x, int64_t stride,
                       const Tables& tables, __m512 (&sums)[kRows][kVecs]) {
  // With few rows a chain of four dependent products per vector would be waited for.
  constexpr int kChains = kRows * kVecs <= 8 ? 2 : 1;
  __m512 acc[kChains][kRows][kVecs];
  VLPRESS_UNROLL
  for (int h = 0; h < kChains; ++h)
    VLPRESS_UNROLL
    for (int m = 0; m < kRows; ++m)
      VLPRESS_UNROLL
      for (int v = 0; v < kVecs; ++v) acc[h][m][v] = _mm512_setzero_ps();
  constexpr int kInputs = kBits == 4 ? 8 : 4;
  for (int64_t s = 0; s < steps; ++s, packed += kStepBytes, x += kInputs) {
    prefetch_step(packed);
    __m512i words[kVecs];
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v) words[v] = load(packed + 64 * v);
    VLPRESS_UNROLL
    for (int j = 0; j < 4; ++j) {
      const __m512i& table = kBits == 4 || j % 2 == 0 ? tables.low : tables.high;
      const int pair = kBits == 4 ? j : j / 2;
      __m512i weights[kVecs];
      VLPRESS_UNROLL
      for (int v = 0; v < kVecs; ++v)
        weights[v] = _mm512_permutexvar_epi16(_mm512_srli_epi16(words[v], 4 * j), table);
      VLPRESS_UNROLL
      for (int m = 0; m < kRows; ++m) {
        const __m512bh two = pairs(broadcast4(x + m * stride + 2 * pair));
        VLPRESS_UNROLL
        for (int v = 0; v < kVecs; ++v) {
          __m512& sum = acc[j % kChains][m][v];
          sum = _mm512_dpbf16_ps(sum, pairs(weights[v]), two);
        }
      }
    }
  }
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m)
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v)
      sums[m][v] = kChains == 2 ? _mm512_add_ps(acc[0][m][v], acc[kChains - 1][m][v])
                                : acc[0][m][v];
}

// Sum of `count` bf16 values of a row; count is a multiple of 4.
inline float sum_bf16(const uint16_t* x, int64_t count) {
  const __m512bh ones = pairs(_mm512_set1_epi16(0x3f80));
  __m512 sum = _mm512_setzero_ps();
  for (int64_t k = 0; k < count; k += 32) {
    const int64_t left = count - k;
    const __mmask32 wanted = left >= 32 ? ~0u : (1u << left) - 1;
    sum = _mm512_dpbf16_ps(sum, pairs(_mm512_maskz_loadu_epi16(wanted, x + k)), ones);
  }
  return _mm512_reduce_add_ps(sum);
}

template <int kBits, int kRows, int kVecs>
inline void tile_rows(const Tile& tile, int first, const uint16_t* x, int64_t stride,
                      float* total) {
  const Tables tables(kBits, tile.zero);
  constexpr int kInputs = kBits == 4 ? 8 : 4;
  __m512 sums[kRows][kVecs];
  const int64_t groups = tile.k / tile.group;
  __m512 totals[kRows][kVecs];
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m)
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v) totals[m][v] = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; ++g) {
    const uint8_t* packed = tile.packed + g * (tile.group / kInputs) * kStepBytes + 64 * first;
    const uint16_t* part = x + g * tile.group;
    group_rows<kBits, kRows, kVecs>(packed, tile.group / kInputs, part, stride, tables, sums);
    __m512 all[kRows];
    if (tile.zero_points)
      VLPRESS_UNROLL
      for (int m = 0; m < kRows; ++m)
        all[m] = _mm512_set1_ps(sum_bf16(part + m * stride, tile.group));
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const int64_t at = g * kTile + kLanes * (first + v);
      const __m512 scale = scales16(tile, at);
      __m512 behind = _mm512_setzero_ps();  // what the tables left of the zero points
      if (tile.zero_points)
        behind = _mm512_cvtepi32_ps(_mm512_sub_epi32(zeros16(tile.zero_points + at),
                                                     _mm512_set1_epi32(tile.zero)));
      VLPRESS_UNROLL
      for (int m = 0; m < kRows; ++m) {
        if (tile.zero_points) sums[m][v] = _mm512_fnmadd_ps(behind, all[m], sums[m][v]);
        totals[m][v] = _mm512_fmadd_ps(scale, sums[m][v], totals[m][v]);
      }
    }
  }
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m)
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v)
      _mm512_storeu_ps(total + m * kTile + kLanes * (first + v), totals[m][v]);
}

template <int kBits>
inline void rows_of(const Tile& tile, const uint16_t* x, int64_t stride, int m, float* total) {
  const auto halves = [&](auto rows) {
    for (int first = 0; first < kVectors; first += 2)
      tile_rows<kBits, decltype(rows)::value, 2>(tile, first, x, stride, total);
  };
  switch (m) {
    case 1: return tile_rows<kBits, 1, 4>(tile, 0, x, stride, total);
    case 2: return tile_rows<kBits, 2, 4>(tile, 0, x, stride, total);
    case 3: return halves(std::integral_constant<int, 3>());
    case 4: return halves(std::integral_constant<int, 4>());
    case 5: return halves(std::integral_constant<int, 5>());
    case 6: return halves(std::integral_constant<int, 6>());
    case 7: return halves(std::integral_constant<int, 7>());
    default: return halves(std::integral_constant<int, 8>());
  }
}

inline void bf16_rows(const Tile& tile, const void* x, int64_t stride, int m, float* total) {
  const uint16_t* rows = static_cast<const uint16_t*>(x);
  tile.bits == 4 ? rows_of<4>(tile, rows, stride, m, total)
                 : rows_of<8>(tile, rows, stride, m, total);
}

// Two vectors of floats to lanes with a pair of bf16 each, `even` in the lower halves.
inline __m512i interleave(__m512 even, __m512 odd) {
  // Words of `odd` follow those of `even` in the result of the conversion.
  const __m512i order = _mm512_set_epi16(
      31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19,
      3, 18, 2, 17, 1, 16, 0);
  const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
  return _mm512_permutexvar_epi16(order, both);
}

// Panel: for each pair of inputs four vectors of 16 columns, a lane holding the pair.
inline void unpack_bf16(const Tile& tile, int64_t begin, int64_t count, void* out) {
  uint16_t* panel = static_cast<uint16_t*>(out);
  const int inputs = step_inputs(tile.bits), width = static_cast<int>(tile.bits);
  const __m512i mask = _mm512_set1_epi32((1 << width) - 1);
  __m512 scales[kVectors], zeros[kVectors];
  int64_t left = 0;  // inputs of the group that are still to come
  for (int64_t k = begin; k < begin + count; k += inputs, left -= inputs) {
    if (left == 0) {
      const int64_t at = k / tile.group * kTile;
      left = tile.group - k % tile.group;
      VLPRESS_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        scales[v] = scales16(tile, at + kLanes * v);
        const __m512i zero = tile.zero_points ? zeros16(tile.zero_points + at + kLanes * v)
                                              : _mm512_set1_epi32(tile.zero);
        zeros[v] = _mm512_cvtepi32_ps(zero);
      }
    }
    const uint8_t* packed = tile.packed + k / inputs * kStepBytes;
    VLPRESS_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const __m512i lanes = load(packed + 64 * v);
      for (int i = 0; i < inputs; i += 2) {
        const auto value = [&](int shift) {
          const __m512i q = _mm512_and_epi32(_mm512_srli_epi32(lanes, shift), mask);
          return _mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(q), zeros[v]), scales[v]);
        };
        const __m512i two = interleave(value(i / 2 * width), value(16 + i / 2 * width));
        _mm512_storeu_si512(panel + i * kTile + 32 * v, two);
      }
    }
    panel += inputs * kTile;
  }
}

// Six rows times four vectors are 24 sums: with four weights and x they fill the registers.
constexpr int kBlockRows = 6;

template <int kRows>
inline void multiply_block(const uint16_t* panel, int64_t count, const uint16_t* x, int64_t stride,
                           bool add, float* total) {
  __m512 acc[kRows][kVectors];
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m)
    VLPRESS_UNROLL
    for (int v = 0; v < kVectors; ++v)
      acc[m][v] = add ? _mm512_loadu_ps(total + m * kTile + kLanes * v) : _mm512_setzero_ps();
  for (int64_t k = 0; k < count; k += 2, panel += 2 * kTile) {
    __m512bh weights[kVectors];
    VLPRESS_UNROLL
    for (int v = 0; v < kVectors; ++v) weights[v] = pairs(load(panel + 32 * v));
    VLPRESS_UNROLL
    for (int m = 0; m < kRows; ++m) {
      const __m512bh two = pairs(broadcast4(x + m * stride + k));
      VLPRESS_UNROLL
      for (int v = 0; v < kVectors; ++v)
        acc[m][v] = _mm512_dpbf16_ps(acc[m][v], weights[v], two);
    }
  }
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m)
    VLPRESS_UNROLL
    for (int v = 0; v < kVectors; ++v)
      _mm512_storeu_ps(total + m * kTile + kLanes * v, acc[m][v]);
}

inline void multiply_bf16(const void* panel, int64_t count, const void* x, int64_t stride,
                          int64_t m, bool add, float* total) {
  const uint16_t* weights = static_cast<const uint16_t*>(panel);
  const uint16_t* rows = static_cast<const uint16_t*>(x);
  for (; m >= kBlockRows; m -= kBlockRows, rows += kBlockRows * stride, total += kBlockRows * kTile)
    multiply_block<kBlockRows>(weights, count, rows, stride, add, total);
  switch (m) {
    case 5: return multiply_block<5>(weights, count, rows, stride, add, total);
    case 4: return multiply_block<4>(weights, count, rows, stride, add, total);
    case 3: return multiply_block<3>(weights, count, rows, stride, add, total);
    case 2: return multiply_block<2>(weights, count, rows, stride, add, total);
    case 1: return multiply_block<1>(weights, count, rows, stride, add, total);
    default: return;
  }
}

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
      const __m512i four = broadcast4(levels + m * stride + k);
      VLPRESS_UNROLL
      for (int v = 0; v < kVectors; ++v)
        acc[m][v] = _mm512_dpbusd_epi32(acc[m][v], weights[v], four);
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
  for (; m >= kBlockRows; m -= kBlockRows, levels += kBlockRows * stride, sums += kBlockRows * kTile) {
    // Where the next rows follow at once, hardware does not see that they will be wanted.
    if (stride == count)
      for (int64_t b = 0; b < kBlockRows * count; b += 64)
        _mm_prefetch(reinterpret_cast<const char*>(levels + kBlockRows * stride + b), _MM_HINT_T0);
    byte_block<kBlockRows>(panel, count, levels, stride, add, sums);
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

// One tile times few rows of levels: nibbles are unpacked in registers, sums stay there.
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
          const __m512i four = broadcast4(levels + m * stride + 4 * h);
          VLPRESS_UNROLL
          for (int v = 0; v < kVecs; ++v)
            sums[m][v] = _mm512_dpbusd_epi32(sums[m][v], weights[v], four);
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
        const __m512i all = _mm512_set1_epi32(level_sums[m * groups + g]);
        const __m512i exact = _mm512_sub_epi32(sums[m][v], _mm512_mullo_epi32(zero, all));
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
    const __m512i all = _mm512_set1_epi32(kZeros ? level_sums[row] : level_sums[row] * tile.zero);
    VLPRESS_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const __m512i behind = kZeros ? _mm512_mullo_epi32(zeros[v], all) : all;
      const __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(load(sums + kLanes * v), behind));
      float* here = total + kLanes * v;
      _mm512_storeu_ps(here, kAdd ? _mm512_fmadd_ps(exact, scales[v], _mm512_loadu_ps(here))
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

inline __m512 read16(const void* x, Type type, int64_t i) {
  if (type == kFloat32) return _mm512_loadu_ps(static_cast<const float*>(x) + i);
  const uint16_t* at = static_cast<const uint16_t*>(x) + i;
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// As quantize_row, 16 inputs at a time; rows or groups of other widths take the plain loop.
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
    const int32_t bits_of = _mm512_reduce_max_epi32(largest);
    std::memcpy(&scale, &bits_of, sizeof scale);
    scale /= 127.0f;
    if (scale == 0.0f) scale = 1.0f;
  }
  const __m128i order = bits == 4 ? _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15)
                                  : _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
  const __m512 divisor = _mm512_set1_ps(scale);
  const __m512 most = _mm512_set1_ps(127.0f), least = _mm512_set1_ps(-128.0f);
  for (int64_t g = 0; g * group < k; ++g) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = g * group; i < (g + 1) * group; i += kLanes) {
      const __m512 level = _mm512_div_ps(read16(x, type, i), divisor);
      const __mmask16 known = _mm512_cmp_ps_mask(level, level, _CMP_ORD_Q);
      const __m512 inside = _mm512_maskz_max_ps(known, _mm512_min_ps(level, most), least);
      const __m512i whole = _mm512_cvtps_epi32(inside);  // to nearest, ties to even
      sum = _mm512_add_epi32(sum, whole);
      const __m128i bytes = _mm_shuffle_epi8(_mm512_cvtepi32_epi8(whole), order);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(levels + i), bytes);
    }
    sums[g] = _mm512_reduce_add_epi32(sum);
  }
  return scale;
}

inline void store_vectors(const float* total, const float* row_scales, const float* bias, int width,
                          int64_t m, Type type, void* y, int64_t stride) {
  for (int v = 0; v * kLanes < width; ++v) {
    const int left = width - v * kLanes;
    const __mmask16 wanted = left >= kLanes ? 0xffff : (1 << left) - 1;
    const __m512 shift =
        bias ? _mm512_maskz_loadu_ps(wanted, bias + v * kLanes) : _mm512_setzero_ps();
    for (int64_t row = 0; row < m; ++row) {
      __m512 value = _mm512_loadu_ps(total + row * kTile + v * kLanes);
      if (row_scales) value = _mm512_mul_ps(value, _mm512_set1_ps(row_scales[row]));
      value = _mm512_add_ps(value, shift);
      const int64_t at = row * stride + v * kLanes;
      if (type == kFloat32) {
        _mm512_mask_storeu_ps(static_cast<float*>(y) + at, wanted, value);
      } else {
        _mm256_mask_storeu_epi16(static_cast<uint16_t*>(y) + at, wanted,
                                 reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)));
      }
    }
  }
}

// A row of weights as it is stored times `kRows` rows of x, in four chains: one alone would wait for
// the product before it.
template <int kRows>
inline void dot_of(const uint16_t* weight, int64_t k, const uint16_t* x, int64_t stride,
                   float* out) {
  constexpr int kChains = kRows <= 4 ? 4 : 2;
  __m512 sums[kChains][kRows];
  VLPRESS_UNROLL
  for (int h = 0; h < kChains; ++h)
    VLPRESS_UNROLL
    for (int m = 0; m < kRows; ++m) sums[h][m] = _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + 32 * kChains <= k; i += 32 * kChains)
    VLPRESS_UNROLL
    for (int h = 0; h < kChains; ++h) {
      const uint16_t* at = weight + i + 32 * h;
      _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead, _MM_HINT_T1);
      const __m512bh weights = pairs(load(at));
      VLPRESS_UNROLL
      for (int m = 0; m < kRows; ++m)
        sums[h][m] = _mm512_dpbf16_ps(sums[h][m], weights, pairs(load(x + m * stride + i + 32 * h)));
    }
  for (; i < k; i += 32) {
    const __mmask32 wanted = k - i >= 32 ? ~0u : (1u << (k - i)) - 1;
    const __m512bh weights = pairs(_mm512_maskz_loadu_epi16(wanted, weight + i));
    VLPRESS_UNROLL
    for (int m = 0; m < kRows; ++m)
      sums[0][m] = _mm512_dpbf16_ps(
          sums[0][m], weights, pairs(_mm512_maskz_loadu_epi16(wanted, x + m * stride + i)));
  }
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m) {
    VLPRESS_UNROLL
    for (int h = 1; h < kChains; ++h) sums[0][m] = _mm512_add_ps(sums[0][m], sums[h][m]);
    out[m * kTile] = _mm512_reduce_add_ps(sums[0][m]);
  }
}

inline void dot_pairs(const uint16_t* weight, int64_t k, const uint16_t* x, int64_t stride, int m,
                      float* out) {
  switch (m) {
    case 1: return dot_of<1>(weight, k, x, stride, out);
    case 2: return dot_of<2>(weight, k, x, stride, out);
    case 3: return dot_of<3>(weight, k, x, stride, out);
    case 4: return dot_of<4>(weight, k, x, stride, out);
    case 5: return dot_of<5>(weight, k, x, stride, out);
    case 6: return dot_of<6>(weight, k, x, stride, out);
    case 7: return dot_of<7>(weight, k, x, stride, out);
    default: return dot_of<8>(weight, k, x, stride, out);
  }
}

inline void transpose_pairs(const uint16_t* x, int64_t stride, int64_t tokens, int64_t columns,
                            void* out, int64_t out_stride) {
  uint16_t* narrow = static_cast<uint16_t*>(out);
  // Blocks that fit the first cache in both directions.
  for (int64_t c0 = 0; c0 < columns; c0 += 32)
    for (int64_t t = 0; t < out_stride; ++t)
      for (int64_t c = c0; c < columns && c < c0 + 32; ++c)
        narrow[c * out_stride + t] = t < tokens ? x[t * stride + c] : 0;
}

inline void gather_pairs(const uint16_t* x, int64_t stride, int64_t tokens, int columns,
                         void* out) {
  uint16_t* panel = static_cast<uint16_t*>(out);
  for (int64_t t = 0; t < tokens; t += 2, panel += 2 * kTile)
    for (int c = 0; c < kTile; ++c) {
      panel[2 * c] = c < columns ? x[t * stride + c] : 0;
      panel[2 * c + 1] = c < columns && t + 1 < tokens ? x[(t + 1) * stride + c] : 0;
    }
}

constexpr FloatKernels kPairs = {2, {32, 16}, bf16_rows, unpack_bf16, multiply_bf16};
constexpr IntKernels kInts = {32, level_rows, unpack_nibbles, multiply_bytes_vnni, fold_vectors,
                              quantize_vectors};
constexpr Kernels kAvx512 = {"avx512", kGenericFloats, kPairs, kInts, store_vectors,
                             widen_bf16, dot_pairs, transpose_pairs, gather_pairs, kPointwise};

}  // namespace

const Kernels* avx512_kernels() { return &kAvx512; }

}  // namespace vlpress
#else
namespace vlpress {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace vlpress
#endif
