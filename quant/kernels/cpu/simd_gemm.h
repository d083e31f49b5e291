// Products with x in float32, for float32 activations and for instruction sets without bf16
// products.
#pragma once

#include <type_traits>

#include "decoders.h"
#include "generic.h"

namespace vlpress {
namespace {

// Registers for accumulators: 24 of 32, or 12 of 16. The rest holds weights and x.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kAccumulators = 24;
#else
constexpr int kAccumulators = 12;
#endif

// `kVecs` vectors of columns of a tile, from `column` on, times `kRows` rows of x. The decoded
// weights are multiplied unscaled, and the sums of each group are scaled once: one multiplication
// per group instead of one per weight.
template <typename Decoder, int kRows, int kVecs>
inline void columns_of(const Tile& tile, int column, const float* x, int64_t stride, float* total) {
  constexpr int kInputs = Decoder::kBits == 4 ? 8 : 4;
  const uint8_t* packed = tile.packed + 4 * column;
  Floats totals[kRows][kVecs] = {};
  for (int64_t k = 0, group = 0; k < tile.k; ++group) {
    const int64_t at = group * kTile + column, stop = k + tile.group;
    Decoder decoders[kVecs];
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v) decoders[v] = Decoder(tile, at + kWide * v);
    Floats sums[kRows][kVecs] = {};
    for (; k < stop; k += kInputs, packed += kStepBytes) {
      // See kPrefetchBytes.
      VLPRESS_UNROLL
      for (int v = 0; v < kVecs * kWide / kLanes; ++v)
        __builtin_prefetch(packed + kPrefetchBytes + 64 * v, 0, 2);
      Words lanes[kVecs];
      VLPRESS_UNROLL
      for (int v = 0; v < kVecs; ++v) lanes[v] = load_lanes<Words>(packed + 4 * kWide * v);
      VLPRESS_UNROLL
      for (int i = 0; i < kInputs; ++i) {
        Floats weights[kVecs];
        VLPRESS_UNROLL
        for (int v = 0; v < kVecs; ++v) weights[v] = decoders[v].value(lanes[v], i);
        VLPRESS_UNROLL
        for (int m = 0; m < kRows; ++m) {
          const Floats one = all_lanes(x[m * stride + k + i]);
          VLPRESS_UNROLL
          for (int v = 0; v < kVecs; ++v) sums[m][v] += weights[v] * one;
        }
      }
    }
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const Floats scale = scales_at(tile, at + kWide * v);
      VLPRESS_UNROLL
      for (int m = 0; m < kRows; ++m) totals[m][v] += sums[m][v] * scale;
    }
  }
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m)
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v)
      store_lanes(total + m * kTile + column + kWide * v, totals[m][v]);
}

// All columns of a tile. The number of vectors per pass follows from the register budget: rows x
// vectors sums and, for short chains of dependent additions, as many vectors as fit.
template <typename Decoder>
inline void tile_of_floats(const Tile& tile, const float* x, int64_t stride, int m, float* total) {
  const auto passes = [&](auto rows, auto vectors) {
    constexpr int kVecs = decltype(vectors)::value;
    for (int column = 0; column < kTile; column += kVecs * kWide)
      columns_of<Decoder, decltype(rows)::value, kVecs>(tile, column, x, stride, total);
  };
  constexpr std::integral_constant<int, 4> four;
  constexpr std::integral_constant<int, 1> one;
  constexpr std::integral_constant<int, 2> two;
  constexpr std::integral_constant<int, kAccumulators == 24 ? 2 : 1> few;
  switch (m) {
    case 1:
      return passes(one, four);
    case 2:
      return passes(two, std::integral_constant<int, (kAccumulators == 24 ? 4 : 2)>());
    case 3:
      return passes(std::integral_constant<int, 3>(), two);
    case 4:
      return passes(four, two);
    case 5:
      return passes(std::integral_constant<int, 5>(), few);
    case 6:
      return passes(std::integral_constant<int, 6>(), few);
    case 7:
      return passes(std::integral_constant<int, 7>(), few);
    default:
      return passes(std::integral_constant<int, 8>(), few);
  }
}

inline void float_rows(const Tile& tile, const void* x, int64_t stride, int m, float* total) {
  const float* rows = static_cast<const float*>(x);
  if (tile.levels)
    return with_decoder(tile, [&](auto decoder) {
      tile_of_floats<decltype(decoder)>(tile, rows, stride, m, total);
    });
  const bool each = tile.zero_points;
  const auto call = tile.bits == 4 ? (each ? tile_of_floats<Integers<4, true>>
                                           : tile_of_floats<Integers<4, false>>)
                                   : (each ? tile_of_floats<Integers<8, true>>
                                           : tile_of_floats<Integers<8, false>>);
  call(tile, rows, stride, m, total);
}

// Dequantizes a panel, one vector of columns at a time.
template <typename Decoder>
inline void unpack_steps(const Tile& tile, int64_t begin, int64_t count, float* panel) {
  constexpr int kInputs = Decoder::kBits == 4 ? 8 : 4;
  for (int column = 0; column < kTile; column += kWide) {
    const uint8_t* packed = tile.packed + begin / kInputs * kStepBytes + 4 * column;
    float* out = panel + column;
    Floats scale = {};
    Decoder decoder;
    int64_t remaining = 0;  // remaining inputs of the group
    for (int64_t k = begin; k < begin + count; k += kInputs, remaining -= kInputs) {
      if (remaining == 0) {
        const int64_t at = k / tile.group * kTile + column;
        remaining = tile.group - k % tile.group;
        scale = scales_at(tile, at);
        decoder = Decoder(tile, at);
      }
      const Words lanes = load_lanes<Words>(packed);
      VLPRESS_UNROLL
      for (int i = 0; i < kInputs; ++i)
        store_lanes(out + i * kTile, decoder.value(lanes, i) * scale);
      packed += kStepBytes;
      out += kInputs * kTile;
    }
  }
}

inline void unpack_floats(const Tile& tile, int64_t begin, int64_t count, void* panel) {
  float* out = static_cast<float*>(panel);
  if (tile.bits == kBf16Bits) {
    const uint16_t* weights = reinterpret_cast<const uint16_t*>(tile.packed) + begin;
    return transpose_floats(weights, tile.k, tile.columns, count, out, kTile);
  }
  if (tile.levels)
    return with_decoder(tile, [&](auto decoder) {
      unpack_steps<decltype(decoder)>(tile, begin, count, out);
    });
  tile.bits == 4 ? unpack_steps<Integers<4, true>>(tile, begin, count, out)
                 : unpack_steps<Integers<8, true>>(tile, begin, count, out);
}

// Vectors of columns in a register tile: 4 with 32 registers, 2 with 16.
constexpr int kStripVectors = kAccumulators / kRegisterRows;

// One register tile: `kRows` rows times kStripVectors vectors of columns, over all inputs of a
// panel. x is broadcast, weights are loaded once per input for all rows.

template <int kRows>
inline void strip_rows(const float* panel, int64_t count, const float* x, int64_t stride, bool add,
                       float* total) {
  Floats sums[kRows][kStripVectors];
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m)
    VLPRESS_UNROLL
    for (int v = 0; v < kStripVectors; ++v)
      sums[m][v] = add ? load_lanes<Floats>(total + m * kTile + kWide * v) : Floats{};
  for (int64_t k = 0; k < count; ++k, panel += kTile) {
    Floats weights[kStripVectors];
    VLPRESS_UNROLL
    for (int v = 0; v < kStripVectors; ++v) weights[v] = load_lanes<Floats>(panel + kWide * v);
    VLPRESS_UNROLL
    for (int m = 0; m < kRows; ++m) {
      const Floats one = all_lanes(x[m * stride + k]);
      VLPRESS_UNROLL
      for (int v = 0; v < kStripVectors; ++v) sums[m][v] += weights[v] * one;
    }
  }
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m)
    VLPRESS_UNROLL
    for (int v = 0; v < kStripVectors; ++v) store_lanes(total + m * kTile + kWide * v, sums[m][v]);
}

inline void multiply_floats(const void* panel, int64_t count, const void* x, int64_t stride,
                            int64_t m, bool add, float* total) {
  for (int column = 0; column < kTile; column += kStripVectors * kWide) {
    const float* weights = static_cast<const float*>(panel) + column;
    const float* rows = static_cast<const float*>(x);
    float* sums = total + column;
    int64_t remaining = m;
    for (; remaining >= kRegisterRows; remaining -= kRegisterRows) {
      strip_rows<kRegisterRows>(weights, count, rows, stride, add, sums);
      rows += kRegisterRows * stride;
      sums += kRegisterRows * kTile;
    }
    for (; remaining > 0; --remaining, rows += stride, sums += kTile)
      strip_rows<1>(weights, count, rows, stride, add, sums);
  }
}

// Up to 32 rows, unpacking in registers is faster than writing panels (measured).
constexpr FloatKernels kFloats = {4,       {32, 32}, float_rows, unpack_floats, multiply_floats,
                                  nullptr, nullptr,  nullptr};

}  // namespace
}  // namespace vlpress
