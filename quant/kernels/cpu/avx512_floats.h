// Products of bf16 numbers for AVX-512 with BF16: quantized weights, and bf16 weights in stored
// form.
//
// VDPBF16PS multiplies 32 bf16 numbers by 32 others and adds each pair of products to a float32
// lane: twice as many products per instruction as a float32 multiply-add, and no conversion of x.
// It needs the inputs in neighbouring pairs, hence the order in layout.h.
#pragma once

#include <type_traits>

#include "avx512.h"
#include "decoders.h"

namespace vlpress {
namespace {

inline __m512bh pairs(__m512i bits) { return reinterpret_cast<__m512bh>(bits); }

// bf16 of a number that it holds, by truncation.
inline uint16_t exact_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

// Pairs of inputs in bf16, as operands of VDPBF16PS: `operand(words, j)` is the one of product j of
// a step, for the pair of inputs `pair(j)`.

// Nibbles by a lookup table: integers minus the zero point, or levels. One VPERMW replaces masking,
// conversion and subtraction. It indexes with five bits of a word, of which the fifth belongs to
// the next nibble, so the sixteen values are stored twice.
struct NibblePairs {
  static constexpr int kBits = 4, kProducts = 4;
  __m512i table;

  explicit NibblePairs(const Tile& tile) {
    alignas(64) uint16_t values[32];
    for (int i = 0; i < 32; ++i) {
      const int nibble = i % 16;
      values[i] = tile.levels ? exact_bf16(tile.levels[nibble])
                              : exact_bf16(static_cast<float>(nibble - tile.zero));
    }
    table = load(values);
  }

  __m512i operand(__m512i words, int j) const {
    return _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4 * j), table);
  }
  static constexpr int pair(int j) { return j; }
};

// A byte has too many values for a table. An 8-bit weight is 16 * high + low, each nibble with a
// table of its own (16 * high - zero and low, exact in bf16), and is multiplied in two
// instructions.
struct BytePairs {
  static constexpr int kBits = 8, kProducts = 4;
  __m512i low, high;

  explicit BytePairs(const Tile& tile) {
    alignas(64) uint16_t lows[32], highs[32];
    for (int i = 0; i < 32; ++i) {
      const int nibble = i % 16;
      lows[i] = exact_bf16(static_cast<float>(nibble));
      highs[i] = exact_bf16(static_cast<float>(16 * nibble - tile.zero));
    }
    low = load(lows);
    high = load(highs);
  }

  __m512i operand(__m512i words, int j) const {
    return _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4 * j), j % 2 ? high : low);
  }
  static constexpr int pair(int j) { return j / 2; }
};

// Bytes of a sign and 128 magnitudes, in four registers of which VPERMI2W looks up two.
struct SignedBytePairs {
  static constexpr int kBits = 8, kProducts = 2;
  __m512i tables[4];

  explicit SignedBytePairs(const Tile& tile) {
    alignas(64) uint16_t magnitudes[128];
    for (int i = 0; i < 128; ++i) magnitudes[i] = exact_bf16(tile.levels[i]);
    for (int i = 0; i < 4; ++i) tables[i] = load(magnitudes + 32 * i);
  }

  __m512i operand(__m512i words, int j) const {
    const __m512i index = j == 0 ? words : _mm512_srli_epi16(words, 8);
    const __m512i signs = j == 0 ? _mm512_slli_epi16(words, 8) : words;
    const __m512i magnitude =
        _mm512_mask_blend_epi16(_mm512_test_epi16_mask(index, _mm512_set1_epi16(64)),
                                _mm512_permutex2var_epi16(tables[0], index, tables[1]),
                                _mm512_permutex2var_epi16(tables[2], index, tables[3]));
    constexpr int kOrAnd = 0xf8;  // first | (second & third)
    return _mm512_ternarylogic_epi32(magnitude, signs,
                                     _mm512_set1_epi16(static_cast<short>(0x8000)), kOrAnd);
  }
  static constexpr int pair(int j) { return j; }
};

// sums[kRows][kVecs] = one group of a tile, `kVecs` vectors of columns, times `kRows` rows of x.
template <typename Pairs, int kRows, int kVecs>
inline void group_rows(const uint8_t* packed, int64_t steps, const uint16_t* x, int64_t stride,
                       const Pairs& decoder, __m512 (&sums)[kRows][kVecs]) {
  // A step adds two or four dependent products to each accumulator. With few accumulators their
  // latency is the limit, so two alternate; with many, the registers are needed for rows.
  constexpr int kChains = kRows * kVecs <= 8 ? 2 : 1;
  __m512 acc[kChains][kRows][kVecs];
  VLPRESS_UNROLL
  for (int h = 0; h < kChains; ++h)
    VLPRESS_UNROLL
    for (int m = 0; m < kRows; ++m)
      VLPRESS_UNROLL
      for (int v = 0; v < kVecs; ++v) acc[h][m][v] = _mm512_setzero_ps();
  constexpr int kInputs = Pairs::kBits == 4 ? 8 : 4;
  for (int64_t s = 0; s < steps; ++s, packed += kStepBytes, x += kInputs) {
    prefetch_step(packed);
    __m512i words[kVecs];
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v) words[v] = load(packed + 64 * v);
    VLPRESS_UNROLL
    for (int j = 0; j < Pairs::kProducts; ++j) {
      __m512i weights[kVecs];
      VLPRESS_UNROLL
      for (int v = 0; v < kVecs; ++v) weights[v] = decoder.operand(words[v], j);
      VLPRESS_UNROLL
      for (int m = 0; m < kRows; ++m) {
        const __m512bh inputs = pairs(broadcast4(x + m * stride + 2 * Pairs::pair(j)));
        VLPRESS_UNROLL
        for (int v = 0; v < kVecs; ++v) {
          __m512& sum = acc[j % kChains][m][v];
          sum = _mm512_dpbf16_ps(sum, pairs(weights[v]), inputs);
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

// Sum of `count` bf16 values of a row, as a product with ones; count is a multiple of 4.
inline float sum_bf16(const uint16_t* x, int64_t count) {
  const __m512bh ones = pairs(_mm512_set1_epi16(0x3f80));
  __m512 sum = _mm512_setzero_ps();
  for (int64_t k = 0; k < count; k += 32) {
    const int64_t remaining = count - k;
    const __mmask32 valid = remaining >= 32 ? ~0u : (1u << remaining) - 1;
    sum = _mm512_dpbf16_ps(sum, pairs(_mm512_maskz_loadu_epi16(valid, x + k)), ones);
  }
  return _mm512_reduce_add_ps(sum);
}

// total[kRows][...] = all groups of a tile, `kVecs` vectors of columns from vector `first` on. The
// tables subtract `zero` for all columns; columns with their own zero points are corrected once per
// group by (zero point - zero) * sum(x), instead of once per weight.
template <typename Pairs, int kRows, int kVecs>
inline void tile_rows(const Tile& tile, int first, const uint16_t* x, int64_t stride,
                      float* total) {
  const Pairs decoder(tile);
  constexpr int kInputs = Pairs::kBits == 4 ? 8 : 4;
  __m512 sums[kRows][kVecs];
  const int64_t groups = tile.k / tile.group;
  __m512 totals[kRows][kVecs];
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m)
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v) totals[m][v] = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; ++g) {
    const uint8_t* packed = tile.packed + g * (tile.group / kInputs) * kStepBytes + 64 * first;
    const uint16_t* inputs = x + g * tile.group;
    group_rows<Pairs, kRows, kVecs>(packed, tile.group / kInputs, inputs, stride, decoder, sums);
    __m512 input_sums[kRows];
    if (tile.zero_points)
      VLPRESS_UNROLL
      for (int m = 0; m < kRows; ++m)
        input_sums[m] = _mm512_set1_ps(sum_bf16(inputs + m * stride, tile.group));
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const int64_t at = g * kTile + kLanes * (first + v);
      const __m512 scale = scales16(tile, at);
      __m512 correction = _mm512_setzero_ps();  // the part of the zero points not in the tables
      if (tile.zero_points)
        correction = _mm512_cvtepi32_ps(_mm512_sub_epi32(zeros16(tile.zero_points + at),
                                                         _mm512_set1_epi32(tile.zero)));
      VLPRESS_UNROLL
      for (int m = 0; m < kRows; ++m) {
        if (tile.zero_points)
          sums[m][v] = _mm512_fnmadd_ps(correction, input_sums[m], sums[m][v]);
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

// A tile times m <= kDecodeRows rows. Up to two rows take all four vectors of columns in one pass;
// more rows take two vectors at a time, so that at most 16 accumulators and 16 totals are live.
template <typename Pairs>
inline void rows_of(const Tile& tile, const uint16_t* x, int64_t stride, int m, float* total) {
  const auto halves = [&](auto rows) {
    for (int first = 0; first < kVectors; first += 2)
      tile_rows<Pairs, decltype(rows)::value, 2>(tile, first, x, stride, total);
  };
  switch (m) {
    case 1: return tile_rows<Pairs, 1, 4>(tile, 0, x, stride, total);
    case 2: return tile_rows<Pairs, 2, 4>(tile, 0, x, stride, total);
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
  const auto call = tile.bits == 4 ? rows_of<NibblePairs>
                    : tile.levels  ? rows_of<SignedBytePairs>
                                   : rows_of<BytePairs>;
  call(tile, rows, stride, m, total);
}

// Rounds two vectors of floats to bf16 pairs, one per lane, with `even` in the lower half.
inline __m512i interleave(__m512 even, __m512 odd) {
  // VCVTNE2PS2BF16 writes the 16 words of `even`, then those of `odd`.
  const __m512i order = _mm512_set_epi16(
      31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19,
      3, 18, 2, 17, 1, 16, 0);
  const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
  return _mm512_permutexvar_epi16(order, both);
}

// Dequantizes a panel to bf16: for each pair of inputs four vectors of 16 columns, one pair per
// lane. Weights are computed in float32 and rounded once, as the reference does.
template <typename Decoder>
inline void unpack_pairs(const Tile& tile, int64_t begin, int64_t count, uint16_t* panel) {
  constexpr int kInputs = Decoder::kBits == 4 ? 8 : 4;
  __m512 scales[kVectors];
  Decoder decoders[kVectors];
  int64_t remaining = 0;  // remaining inputs of the group
  for (int64_t k = begin; k < begin + count; k += kInputs, remaining -= kInputs) {
    if (remaining == 0) {
      const int64_t at = k / tile.group * kTile;
      remaining = tile.group - k % tile.group;
      VLPRESS_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        scales[v] = scales16(tile, at + kLanes * v);
        decoders[v] = Decoder(tile, at + kLanes * v);
      }
    }
    const uint8_t* packed = tile.packed + k / kInputs * kStepBytes;
    VLPRESS_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const Words lanes = load_lanes<Words>(packed + 64 * v);
      VLPRESS_UNROLL
      for (int i = 0; i < kInputs; i += 2) {
        const auto value = [&](int input) {
          return static_cast<__m512>(decoders[v].value(lanes, input) * scales[v]);
        };
        const __m512i pair = interleave(value(i), value(i + 1));
        _mm512_storeu_si512(panel + i * kTile + 32 * v, pair);
      }
    }
    panel += kInputs * kTile;
  }
}

inline void unpack_bf16(const Tile& tile, int64_t begin, int64_t count, void* out) {
  uint16_t* panel = static_cast<uint16_t*>(out);
  if (tile.levels)
    return with_decoder(tile, [&](auto decoder) {
      unpack_pairs<decltype(decoder)>(tile, begin, count, panel);
    });
  const bool each = tile.zero_points;
  const auto call = tile.bits == 4 ? (each ? unpack_pairs<Integers<4, true>>
                                           : unpack_pairs<Integers<4, false>>)
                                   : unpack_pairs<Integers<8, true>>;
  call(tile, begin, count, panel);
}

// One register tile: kRows rows x 64 columns over all inputs of a panel. With six rows the 24
// accumulators, 4 vectors of weights and a broadcast of x take 29 of the 32 registers.
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
      const __m512bh inputs = pairs(broadcast4(x + m * stride + k));
      VLPRESS_UNROLL
      for (int v = 0; v < kVectors; ++v)
        acc[m][v] = _mm512_dpbf16_ps(acc[m][v], weights[v], inputs);
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
  for (; m >= kRegisterRows; m -= kRegisterRows) {
    multiply_block<kRegisterRows>(weights, count, rows, stride, add, total);
    rows += kRegisterRows * stride;
    total += kRegisterRows * kTile;
  }
  switch (m) {
    case 5: return multiply_block<5>(weights, count, rows, stride, add, total);
    case 4: return multiply_block<4>(weights, count, rows, stride, add, total);
    case 3: return multiply_block<3>(weights, count, rows, stride, add, total);
    case 2: return multiply_block<2>(weights, count, rows, stride, add, total);
    case 1: return multiply_block<1>(weights, count, rows, stride, add, total);
    default: return;
  }
}

// Dot products of one bf16 weight row with `kRows` rows of x. Several independent sums per row, as
// many as registers allow: a single chain would be bound by the latency of VDPBF16PS, not by
// memory.
template <int kRows>
inline void dot_pairs_of(const uint16_t* weight, int64_t k, const uint16_t* x, int64_t stride,
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
      _mm_prefetch(reinterpret_cast<const char*>(at) + kPrefetchBytes, _MM_HINT_T1);
      const __m512bh weights = pairs(load(at));
      VLPRESS_UNROLL
      for (int m = 0; m < kRows; ++m)
        sums[h][m] =
            _mm512_dpbf16_ps(sums[h][m], weights, pairs(load(x + m * stride + i + 32 * h)));
    }
  for (; i < k; i += 32) {
    const __mmask32 valid = k - i >= 32 ? ~0u : (1u << (k - i)) - 1;
    const __m512bh weights = pairs(_mm512_maskz_loadu_epi16(valid, weight + i));
    VLPRESS_UNROLL
    for (int m = 0; m < kRows; ++m)
      sums[0][m] = _mm512_dpbf16_ps(
          sums[0][m], weights, pairs(_mm512_maskz_loadu_epi16(valid, x + m * stride + i)));
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
    case 1: return dot_pairs_of<1>(weight, k, x, stride, out);
    case 2: return dot_pairs_of<2>(weight, k, x, stride, out);
    case 3: return dot_pairs_of<3>(weight, k, x, stride, out);
    case 4: return dot_pairs_of<4>(weight, k, x, stride, out);
    case 5: return dot_pairs_of<5>(weight, k, x, stride, out);
    case 6: return dot_pairs_of<6>(weight, k, x, stride, out);
    case 7: return dot_pairs_of<7>(weight, k, x, stride, out);
    default: return dot_pairs_of<8>(weight, k, x, stride, out);
  }
}

// As transpose_floats, in bf16: a row of the result holds pairs of tokens.
inline void transpose_pairs(const uint16_t* x, int64_t stride, int64_t tokens, int64_t columns,
                            void* out, int64_t out_stride) {
  uint16_t* narrow = static_cast<uint16_t*>(out);
  // 32 columns are a cache line of x, and 32 lines of the result fit the L1 cache.
  for (int64_t c0 = 0; c0 < columns; c0 += 32)
    for (int64_t t = 0; t < out_stride; ++t)
      for (int64_t c = c0; c < columns && c < c0 + 32; ++c)
        narrow[c * out_stride + t] = t < tokens ? x[t * stride + c] : 0;
}

// As gather_floats, with pairs of tokens in the lanes of a panel.
inline void gather_pairs(const uint16_t* x, int64_t stride, int64_t tokens, int columns,
                         void* out) {
  uint16_t* panel = static_cast<uint16_t*>(out);
  for (int64_t t = 0; t < tokens; t += 2, panel += 2 * kTile)
    for (int c = 0; c < kTile; ++c) {
      panel[2 * c] = c < columns ? x[t * stride + c] : 0;
      panel[2 * c + 1] = c < columns && t + 1 < tokens ? x[(t + 1) * stride + c] : 0;
    }
}

// With 8 bits `direct` takes two instructions per weight, so panels pay off from fewer rows
// (measured).
constexpr FloatKernels kPairs = {2,       {32, 16}, bf16_rows, unpack_bf16, multiply_bf16,
                                 nullptr, nullptr,  nullptr};

}  // namespace
}  // namespace vlpress
