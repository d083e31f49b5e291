// Products with few rows of x in float32 for AVX2.
//
// Unpacking takes the time: a mask, a conversion and a multiply-add per vector of weights. A weight
// is not shifted to the lowest bits of its lane. Masked in place it is a multiple of a power of
// two, which x is divided by beforehand (exact, as is the conversion of so few bits). Zero points
// are applied to the sums: sum(x (w - z)) = sum(x w) - z sum(x).
#pragma once

#include <algorithm>

#include "avx2_streams.h"

namespace vlpress {
namespace {

// Most rows for which the sums of a pass and the inputs of one column of x fit 16 registers.
constexpr int kFloatRows = 4;
// Most inputs of a turn.
constexpr int kTurnInputs = 8 * kTurnSteps;

// Position of the topmost weight of a lane.
template <int kBits>
constexpr int kTop = 32 - kBits;

// Weight of input `i` of a step, times two to the power of its position. The topmost one is shifted
// instead, because masked it would be negative.
template <int kBits>
inline Floats masked_weight(Words lanes, int i) {
  const int position = shift_of(kBits, i);
  return to_floats(as_ints(position == kTop<kBits> ? lanes >> position
                                                   : lanes & ((1 << kBits) - 1) << position));
}

// The divisors of x: one over two to the power of each position.
template <int kBits>
inline Floats position_factors() {
  constexpr int kInputs = kBits == 4 ? 8 : 4;
  Floats factors;
  for (int c = 0; c < kWide; ++c) {
    const int position = shift_of(kBits, c % kInputs);
    factors[c] = position == kTop<kBits> ? 1.0f : 1.0f / static_cast<float>(1 << position);
  }
  return factors;
}

// Scaled inputs of a turn, and their sum before scaling. `count` is a multiple of 4.
inline Floats scale_inputs(const float* x, int64_t count, Floats factors, float* scaled) {
  Floats sum = {};
  for (int64_t k = 0; k < count; k += kWide) {
    Floats inputs = {};
    std::memcpy(&inputs, x + k, count - k < kWide ? kWide / 2 * sizeof(float) : sizeof inputs);
    sum += inputs;
    store_lanes(scaled + k, inputs * factors);
  }
  return sum;
}

// sums (+)= `count` inputs of `kVecs` vectors of columns times `kRows` rows.
template <int kBits, int kRows, int kVecs>
inline void float_columns(const uint8_t* packed, int64_t count,
                          const float (&x)[kRows][kTurnInputs], bool add,
                          const uint8_t* next, float* sums) {
  // With few accumulators the latency of the additions is the limit, so two chains alternate.
  constexpr int kInputs = kBits == 4 ? 8 : 4, kChains = kRows * kVecs < 8 ? 2 : 1;
  Floats acc[kChains][kRows][kVecs] = {};
  for (int64_t k = 0; k < count; k += kInputs, packed += kStepBytes, next += 32 * kVecs) {
    Words lanes[kVecs];
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v) lanes[v] = stream_lanes<Words>(packed, v, next);
    VLPRESS_UNROLL
    for (int i = 0; i < kInputs; ++i) {
      Floats inputs[kRows];
      VLPRESS_UNROLL
      for (int m = 0; m < kRows; ++m) inputs[m] = all_lanes(x[m][k + i]);
      VLPRESS_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        const Floats weight = masked_weight<kBits>(lanes[v], i);
        VLPRESS_UNROLL
        for (int m = 0; m < kRows; ++m) acc[i % kChains][m][v] += weight * inputs[m];
      }
    }
  }
  VLPRESS_UNROLL
  for (int m = 0; m < kRows; ++m)
    VLPRESS_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      float* out = sums + m * kTile + kWide * v;
      const Floats sum =
          kChains == 2 ? acc[0][m][v] + acc[kChains - 1][m][v] : acc[0][m][v];
      store_lanes(out, add ? load_lanes<Floats>(out) + sum : sum);
    }
}

// total[kRows][64] = a tile times `kRows` rows.
template <int kBits, int kRows>
inline void rows_of_tile(const Tile& tile, const float* x, int64_t stride, float* total) {
  constexpr int kInputs = kBits == 4 ? 8 : 4, kVecs = kRows == 4 ? 2 : 4;
  const Floats factors = position_factors<kBits>();
  float sums[kStreams][kRows * kTile];
  Floats input_sums[kStreams][kRows];
  std::fill_n(total, kRows * kTile, 0.0f);
  const auto turn = [&](const Turn& t) {
    float scaled[kRows][kTurnInputs];
    for (int m = 0; m < kRows; ++m) {
      const Floats sum = scale_inputs(x + m * stride + t.k, t.count, factors, scaled[m]);
      Floats& all = input_sums[t.slot][m];
      all = t.first ? sum : all + sum;
    }
    const uint8_t* packed = tile.packed + t.k / kInputs * kStepBytes;
    for (int column = 0; column < kTile; column += kVecs * kWide)
      float_columns<kBits, kRows, kVecs>(packed + 4 * column, t.count, scaled, !t.first,
                                         t.next + prefetch_offset(column), sums[t.slot] + column);
  };
  const auto fold = [&](int slot, int64_t group) {
    for (int m = 0; m < kRows; ++m) {
      float input_sum = 0.0f;
      for (int c = 0; c < kWide; ++c) input_sum += input_sums[slot][m][c];
      for (int column = 0; column < kTile; column += kWide) {
        const int64_t at = group * kTile + column;
        float* out = total + m * kTile + column;
        const Floats sum = load_lanes<Floats>(sums[slot] + m * kTile + column) -
                           to_floats(zeros_at(tile, at)) * input_sum;
        store_lanes(out, load_lanes<Floats>(out) + scales_at(tile, at) * sum);
      }
    }
  };
  in_streams(tile, turn, fold);
}

template <int kBits>
inline void rows_by_bits(const Tile& tile, const float* x, int64_t stride, int m, float* total) {
  for (; m > kFloatRows; m -= kFloatRows, x += kFloatRows * stride, total += kFloatRows * kTile)
    rows_of_tile<kBits, kFloatRows>(tile, x, stride, total);
  switch (m) {
    case 1: return rows_of_tile<kBits, 1>(tile, x, stride, total);
    case 2: return rows_of_tile<kBits, 2>(tile, x, stride, total);
    case 3: return rows_of_tile<kBits, 3>(tile, x, stride, total);
    default: return rows_of_tile<kBits, 4>(tile, x, stride, total);
  }
}

inline void float_rows_avx2(const Tile& tile, const void* x, int64_t stride, int m, float* total) {
  const auto call = tile.bits == 4 ? rows_by_bits<4> : rows_by_bits<8>;
  call(tile, static_cast<const float*>(x), stride, m, total);
}

}  // namespace
}  // namespace vlpress
