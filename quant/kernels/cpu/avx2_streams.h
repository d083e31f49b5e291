// The order in which AVX2 kernels for few rows read a tile.
//
// Zen 3 reads memory fastest as several streams at once: the hardware prefetcher runs ahead in each
// of them, but stops at the end of a page, and explicit prefetches are limited by the line buffers
// of the L1 cache. Four streams in turns of 1 KiB are read at 1.6 times the speed of one, with one
// thread, and 1.25 times with two (measured). Zen 4 reads one stream, prefetched two pages ahead,
// 1.2 to 1.8 times as fast as four (measured), and so probably do Intel's processors, whose AVX-512
// kernels read in that order.
#pragma once

#include <algorithm>

#include "simd.h"

namespace vlpress {

// 1 or kStreams; defined in c_api.cpp, which knows the processor.
extern int memory_streams;

namespace {

// Most streams, each with sums of its own.
constexpr int kStreams = 4;
// Steps of a turn.
constexpr int kTurnSteps = 4;

// One turn: `count` inputs from k on.
struct Turn {
  int slot;  // of the sums
  int64_t k, count;
  bool first;           // whether the sums begin here
  const uint8_t* next;  // bytes to prefetch: a later turn of the stream, or of the next tile's

  // The part of `next` for the columns from `column` on. A turn of few inputs prefetches as many
  // bytes as it reads.
  template <int kStepInputs>
  const uint8_t* next_at(int column) const {
    return next + column * (count / kStepInputs) * (kStepBytes / kTile);
  }
};

// A vector of weights. One half of a line of the next turn is prefetched for each; `next` is in the
// order of the lines, which the hardware prefetcher then follows, not in that of the vectors.
template <typename V>
inline V stream_lanes(const uint8_t* packed, int v, const uint8_t* next) {
  if (v % 2 == 0) __builtin_prefetch(next + 32 * v, 0, 2);
  return load_lanes<V>(packed + 32 * v);
}

// Prefetches the scales of a later group of the tile, or of the next one. Where groups are small,
// scales are a fifth of the bytes read.
inline void prefetch_scales(const Tile& tile, int64_t at) {
  const int64_t width = tile.half_scales ? 2 : 4;
  __builtin_prefetch(static_cast<const uint8_t*>(tile.scales) + at * width + kPrefetchBytes, 0, 2);
}

// Calls turn(Turn) for all inputs of a tile in their order, and fold(0, group) after each group.
template <typename Work, typename Fold>
inline void in_one_stream(const Tile& tile, const Work& turn, const Fold& fold) {
  const int64_t inputs = kTurnSteps * step_inputs(tile.bits);
  for (int64_t group = 0; group < tile.k / tile.group; ++group) {
    for (int64_t offset = 0; offset < tile.group; offset += inputs) {
      const int64_t k = group * tile.group + offset;
      turn(Turn{0, k, std::min(inputs, tile.group - offset), offset == 0,
                tile.packed + tile_bytes(tile.bits, k) + kPrefetchBytes});
    }
    fold(0, group);
  }
}

// The same in four streams, with fold(slot, group) when the sums of a group are complete. Streams
// are quarters of the groups, with a slot each, or, with fewer than four groups, quarters of one
// group with one slot.
template <typename Work, typename Fold>
inline void in_four_streams(const Tile& tile, const Work& turn, const Fold& fold) {
  const int64_t inputs = kTurnSteps * step_inputs(tile.bits);
  const auto bytes_at = [&](int64_t k) { return tile_bytes(tile.bits, k); };
  const int64_t groups = tile.k / tile.group, group = tile.group;
  if (groups < kStreams) {
    const int64_t quarter = (group + kStreams * inputs - 1) / (kStreams * inputs) * inputs;
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t offset = 0; offset < quarter; offset += inputs)
        for (int64_t begin = offset; begin < group; begin += quarter) {
          const int64_t k = g * group + begin;
          turn(Turn{0, k, std::min(inputs, group - begin), begin == 0,
                    tile.packed + bytes_at(k + inputs)});
        }
      fold(0, g);
    }
    return;
  }
  const int64_t rounds = (groups + kStreams - 1) / kStreams;
  for (int64_t round = 0; round < rounds; ++round) {
    const auto each_slot = [&](const auto& work) {
      for (int slot = 0; slot < kStreams; ++slot) {
        const int64_t g = groups * slot / kStreams + round;
        if (g < groups * (slot + 1) / kStreams) work(slot, g);
      }
    };
    for (int64_t offset = 0; offset < group; offset += inputs)
      each_slot([&](int slot, int64_t g) {
        const int64_t k = g * group + offset, begin = groups * slot / kStreams * group;
        const int64_t end = groups * (slot + 1) / kStreams * group;
        const int64_t next = k + inputs;
        // The stream of the next tile follows that of this one.
        turn(Turn{slot, k, std::min(inputs, group - offset), offset == 0,
                  tile.packed + bytes_at(next < end ? next : tile.k + begin + next - end)});
      });
    each_slot(fold);
  }
}

template <typename Work, typename Fold>
inline void in_streams(const Tile& tile, const Work& turn, const Fold& fold) {
  memory_streams == 1 ? in_one_stream(tile, turn, fold) : in_four_streams(tile, turn, fold);
}

}  // namespace
}  // namespace vlpress
