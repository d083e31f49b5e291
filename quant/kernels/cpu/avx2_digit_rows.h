// One row of x, split into digits, times a tile of 4-bit weights. Sums of small groups are kept in
// registers, those of large ones in memory.
#pragma once

#include <algorithm>

#include "avx2_digits.h"

namespace vlpress {
namespace {

// Scales of eight columns by how they are stored, so that small_groups does not have to ask.
struct HalfScales {
  static Floats at(const Tile& tile, int64_t at) { return half_scales_at(tile, at); }
};
struct DividedScales {
  static Floats at(const Tile& tile, int64_t at) {
    return quotients(half_scales_at(tile, at), tile);
  }
};
struct AnyScales {
  static Floats at(const Tile& tile, int64_t at) { return scales_at(tile, at); }
};

// One turn of groups whose sums, of all digits together, fit 32 bits (modulo 2^32 in between) and
// stay in registers. kGroup: inputs of a group, as a constant so that loops are unrolled, or 0.
template <int kGroup, typename Scales, typename Nibbles>
inline void small_groups(const Nibbles& shared_nibbles, const Tile& shared_tile, const Turn& t,
                         const uint8_t* split, float* total) {
  constexpr int kChunk = kGroup ? std::min(kGroup, Nibbles::kInputs) : 8;
  // Copies: the compiler could not keep in registers what a store may change.
  const Nibbles nibbles = shared_nibbles;
  const Tile tile = shared_tile;
  const int64_t width = kGroup ? kGroup : tile.group, first = t.k / width;
  const int groups = static_cast<int>(t.count / width);
  split += first * DigitGroup::bytes(width);
  struct {
    float unit;
    uint32_t offset;
    int32_t has_low;
  } rows[kTurnSteps];
  for (int g = 0; g < groups; ++g) {
    const auto& row = *reinterpret_cast<const DigitGroup*>(split + g * DigitGroup::bytes(width));
    const uint32_t sum =
        static_cast<uint32_t>(row.low_sum) + (static_cast<uint32_t>(row.high_sum) << 16);
    rows[g] = {row.unit * nibbles.unit(), nibbles.offset(sum), row.has_low};
    prefetch_scales(tile, (first + g) * kTile);
  }
  const uint8_t* packed = tile.packed + t.k / 8 * kStepBytes;
  const uint8_t* next = t.next;
  for (int column = 0; column < kTile; column += kDigitVectors * kWide) {
    const int8_t* digits = reinterpret_cast<const DigitGroup*>(split)->digits();
    const uint8_t* weights = packed + 4 * column;
    int64_t at = first * kTile + column;
    Floats sums[kDigitVectors];
    VLPRESS_UNROLL
    for (int v = 0; v < kDigitVectors; ++v)
      sums[v] = load_lanes<Floats>(total + column + kWide * v);
    for (int g = 0; g < groups; ++g, at += kTile) {
      Words whole[kDigitVectors];
      VLPRESS_UNROLL
      for (int v = 0; v < kDigitVectors; ++v)
        whole[v] = nibbles.offsets(tile, at + kWide * v, rows[g].offset);
      const auto add = [&](int v, __m256i low, __m256i high) {
        whole[v] += reinterpret_cast<Words>(low) + (reinterpret_cast<Words>(high) << 16);
      };
      for (int64_t i = 0; i < width; i += kChunk) {
        if (rows[g].has_low)
          digit_columns<3, true>(nibbles, weights, kChunk, digits, next, add);
        else
          digit_columns<2, true>(nibbles, weights, kChunk, digits, next, add);
        weights += kChunk / 8 * kStepBytes;
        digits += 3 * kChunk;
        next += 8 * kChunk;
      }
      digits += sizeof(DigitGroup);
      VLPRESS_UNROLL
      for (int v = 0; v < kDigitVectors; ++v) {
        const Floats scales = Scales::at(tile, at + kWide * v) * rows[g].unit;
        sums[v] += to_floats(as_ints(whole[v])) * scales;
      }
    }
    VLPRESS_UNROLL
    for (int v = 0; v < kDigitVectors; ++v) store_lanes(total + column + kWide * v, sums[v]);
  }
}

template <int kGroup, typename Nibbles>
inline void small_group_turns(const Nibbles& nibbles, const Tile& tile, const uint8_t* split,
                              float* total) {
  // Several groups for each turn, so that totals are loaded and stored less often.
  Tile turns = tile;
  while (2 * turns.group <= 8 * kTurnSteps && tile.k % (2 * turns.group) == 0) turns.group *= 2;
  const auto groups = !tile.half_scales         ? small_groups<kGroup, AnyScales, Nibbles>
                      : tile.divisor == 0.0f ? small_groups<kGroup, HalfScales, Nibbles>
                                             : small_groups<kGroup, DividedScales, Nibbles>;
  in_streams(
      turns, [&](const Turn& t) { groups(nibbles, tile, t, split, total); }, [](int, int64_t) {});
}

// total[64] = a tile times a row that split_row has split, in groups that small_groups takes.
template <typename Nibbles>
inline void small_group_row(const Nibbles& nibbles, const Tile& tile, const uint8_t* split,
                            float* total) {
  switch (tile.group) {
    case 16: return small_group_turns<16>(nibbles, tile, split, total);
    case 32: return small_group_turns<32>(nibbles, tile, split, total);
    default: return small_group_turns<0>(nibbles, tile, split, total);
  }
}

// Sums of a group: of the two lower digits together, and of the highest.
struct DigitSums {
  int32_t low[kTile], high[kTile];
};

// The same for other groups.
template <typename Nibbles>
inline void large_group_row(const Nibbles& nibbles, const Tile& tile, const uint8_t* split,
                            float* total) {
  DigitSums sums[kStreams];
  const int64_t bytes = DigitGroup::bytes(tile.group);
  const auto group_at = [&](int64_t group) {
    return reinterpret_cast<const DigitGroup*>(split + group * bytes);
  };
  const auto turn = [&](const Turn& t) {
    const int64_t group = t.k / tile.group;
    const int8_t* digits = group_at(group)->digits() + (t.k - group * tile.group) * 3;
    const uint8_t* packed = tile.packed + t.k / 8 * kStepBytes;
    DigitSums& slot = sums[t.slot];
    for (int column = 0; column < kTile; column += kDigitVectors * kWide)
      for (int64_t k = 0; k < t.count; k += Nibbles::kInputs) {
        const bool add = !t.first || k > 0;
        digit_columns<3, false>(nibbles, packed + k / 8 * kStepBytes + 4 * column,
                      std::min<int64_t>(Nibbles::kInputs, t.count - k), digits + 3 * k,
                      t.next_at<8>(column) + 8 * k, [&](int v, __m256i low, __m256i high) {
                        const int at = column + kWide * v;
                        int32_t *lows = slot.low + at, *highs = slot.high + at;
                        store_lanes(lows, accumulate(lows, add, low));
                        store_lanes(highs, accumulate(highs, add, high));
                      });
      }
  };
  const auto fold = [&](int slot, int64_t group) {
    const DigitGroup& row = *group_at(group);
    const float unit = row.unit * nibbles.unit();
    for (int column = 0; column < kTile; column += kWide) {
      const int64_t at = group * kTile + column;
      const Ints zero = nibbles.zeros(tile, at);
      const Ints low = load_lanes<Ints>(sums[slot].low + column) - zero * row.low_sum;
      const Ints high = load_lanes<Ints>(sums[slot].high + column) - zero * row.high_sum;
      const Floats sum = to_floats(low) + to_floats(high) * 65536.0f;
      float* out = total + column;
      store_lanes(out, load_lanes<Floats>(out) + sum * (scales_at(tile, at) * unit));
    }
  };
  in_streams(tile, turn, fold);
}

template <typename Nibbles>
inline void digit_row_of(const Tile& tile, const uint8_t* split, float* total) {
  const Nibbles nibbles(tile);
  std::fill_n(total, kTile, 0.0f);
  tile.group <= nibbles.whole_inputs() ? small_group_row(nibbles, tile, split, total)
                                       : large_group_row(nibbles, tile, split, total);
}

inline void digit_row(const Tile& tile, const uint8_t* split, float* total) {
  tile.levels ? digit_row_of<LevelBytes>(tile, split, total)
              : digit_row_of<PlainNibbles>(tile, split, total);
}

}  // namespace
}  // namespace vlpress
