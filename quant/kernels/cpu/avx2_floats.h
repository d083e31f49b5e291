// Products with few rows of x in float32 for AVX2.
//
// Unpacking takes the time: a mask, a conversion and a multiply-add per vector of weights. A weight
// is not shifted to the lowest bits of its lane. Masked in place it is a multiple of a power of
// two, which x is divided by beforehand (exact, as is the conversion of so few bits). Zero points
// are applied to the sums: sum(x (w - z)) = sum(x w) - z sum(x). Numbers of small float formats are
// multiplied without their common factor of about 2^120: half of it is in x, half in the sums.
#pragma once

#include <algorithm>

#include "avx2_streams.h"
#include "decoders.h"

namespace vlpress {
namespace {

// Most rows for which the sums of a pass and the inputs of one column of x fit 16 registers.
constexpr int kFloatRows = 4;
// Most inputs of a turn.
constexpr int kTurnInputs = 8 * kTurnSteps;

// Integers times two to the power of their position.
template <int kStoredBits>
struct MaskedIntegers {
  static constexpr int kBits = kStoredBits;
  static constexpr int kTop = 32 - kBits;  // position of the topmost weight of a lane
  static constexpr bool kHasZeros = true;
  static constexpr float kUnit = 1.0f;

  explicit MaskedIntegers(const Tile&) {}

  // The topmost one is shifted instead, because masked it would be negative.
  static Floats value(Words lanes, int i) {
    const int position = shift_of(kBits, i);
    return to_floats(as_ints(position == kTop ? lanes >> position
                                              : lanes & ((1 << kBits) - 1) << position));
  }

  // The divisors of x: one over two to the power of each position.
  static Floats factors() {
    constexpr int kInputs = kBits == 4 ? 8 : 4;
    Floats factors;
    for (int c = 0; c < kWide; ++c) {
      const int position = shift_of(kBits, c % kInputs);
      factors[c] = position == kTop ? 1.0f : 1.0f / static_cast<float>(1 << position);
    }
    return factors;
  }
};

// See FloatNumbers.
template <int kStoredBits, int kMantissa>
struct MovedNumbers {
  using Numbers = FloatNumbers<kStoredBits, kMantissa>;
  static constexpr int kBits = kStoredBits;
  static constexpr bool kHasZeros = false;
  // Of x, which overflows from 2^68 on, while sums are precise down to 2^-66 of a weight.
  static constexpr float kFactor = power_of_two(60);
  static constexpr float kUnit = Numbers::kUnit / kFactor;

  explicit MovedNumbers(const Tile&) {}
  static Floats value(Words lanes, int i) { return Numbers::moved(lanes, i); }
  static Floats factors() { return all_lanes(kFactor); }
};

struct LookedUp {
  static constexpr int kBits = 4;
  static constexpr bool kHasZeros = false;
  static constexpr float kUnit = 1.0f;
  Lookup levels;

  explicit LookedUp(const Tile& tile) : levels(tile, 0) {}
  Floats value(Words lanes, int i) const { return levels.value(lanes, i); }
  static Floats factors() { return all_lanes(1.0f); }
};

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
template <typename Decoder, int kRows, int kVecs>
inline void float_columns(const Decoder& decoder, const uint8_t* packed, int64_t count,
                          const float (&x)[kRows][kTurnInputs], bool add,
                          const uint8_t* next, float* sums) {
  // With few accumulators the latency of the additions is the limit, so two chains alternate.
  constexpr int kInputs = Decoder::kBits == 4 ? 8 : 4, kChains = kRows * kVecs < 8 ? 2 : 1;
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
        const Floats weight = decoder.value(lanes[v], i);
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
template <typename Decoder, int kRows>
inline void rows_of_tile(const Tile& tile, const float* x, int64_t stride, float* total) {
  constexpr int kInputs = Decoder::kBits == 4 ? 8 : 4, kVecs = kRows == 4 ? 2 : 4;
  const Decoder decoder(tile);
  const Floats factors = Decoder::factors();
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
      float_columns<Decoder, kRows, kVecs>(decoder, packed + 4 * column, t.count, scaled, !t.first,
                                           t.next_at<kInputs>(column), sums[t.slot] + column);
  };
  const auto fold = [&](int slot, int64_t group) {
    for (int m = 0; m < kRows; ++m) {
      float input_sum = 0.0f;
      for (int c = 0; c < kWide; ++c) input_sum += input_sums[slot][m][c];
      for (int column = 0; column < kTile; column += kWide) {
        const int64_t at = group * kTile + column;
        float* out = total + m * kTile + column;
        Floats sum = load_lanes<Floats>(sums[slot] + m * kTile + column);
        if (Decoder::kHasZeros) sum -= to_floats(zeros_at(tile, at)) * input_sum;
        sum *= Decoder::kUnit;
        store_lanes(out, load_lanes<Floats>(out) + scales_at(tile, at) * sum);
      }
    }
  };
  in_streams(tile, turn, fold);
}

template <typename Decoder>
inline void rows_by_decoder(const Tile& tile, const float* x, int64_t stride, int m, float* total) {
  for (; m > kFloatRows; m -= kFloatRows, x += kFloatRows * stride, total += kFloatRows * kTile)
    rows_of_tile<Decoder, kFloatRows>(tile, x, stride, total);
  switch (m) {
    case 1: return rows_of_tile<Decoder, 1>(tile, x, stride, total);
    case 2: return rows_of_tile<Decoder, 2>(tile, x, stride, total);
    case 3: return rows_of_tile<Decoder, 3>(tile, x, stride, total);
    default: return rows_of_tile<Decoder, 4>(tile, x, stride, total);
  }
}

inline void float_rows_avx2(const Tile& tile, const void* x, int64_t stride, int m, float* total) {
  const auto integers =
      tile.bits == 4 ? rows_by_decoder<MaskedIntegers<4>> : rows_by_decoder<MaskedIntegers<8>>;
  const auto levels = tile.bits == 8 ? (tile.mantissa == 3 ? rows_by_decoder<MovedNumbers<8, 3>>
                                                           : rows_by_decoder<MovedNumbers<8, 2>>)
                                     : (tile.mantissa == 1 ? rows_by_decoder<MovedNumbers<4, 1>>
                                                           : rows_by_decoder<LookedUp>);
  (tile.levels ? levels : integers)(tile, static_cast<const float*>(x), stride, m, total);
}

}  // namespace
}  // namespace vlpress
