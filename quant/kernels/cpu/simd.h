// Vectors as wide as the registers of the instruction set that a source is compiled for, with the
// operators that GCC and Clang give them.
#pragma once

#include <cstring>

#include "layout.h"

// Sums must stay in registers: arrays only do if every loop over them is gone early.
#define VLPRESS_UNROLL _Pragma("GCC unroll 8")

namespace vlpress {
namespace {

#if defined(__AVX512F__)
constexpr int kWide = 16;
#elif defined(__AVX2__)
constexpr int kWide = 8;
#else
constexpr int kWide = 4;
#endif

// Rows of x that products take at once: times four vectors they are 24 sums, which with four weights
// and x fill the registers of AVX-512.
constexpr int kBlockRows = 6;

// Bytes that weights are fetched ahead, into the second cache: two pages, measured.
constexpr int kPrefetchBytes = 32 * kStepBytes;

template <typename T>
struct Vector {
  typedef T type __attribute__((vector_size(kWide * sizeof(T))));
};
using Floats = Vector<float>::type;
using Ints = Vector<int32_t>::type;
using Words = Vector<uint32_t>::type;
using Halves = Vector<uint16_t>::type;
using Bytes = Vector<uint8_t>::type;

template <typename V>
inline V load_lanes(const void* at) {
  V lanes;
  std::memcpy(&lanes, at, sizeof lanes);
  return lanes;
}

template <typename V>
inline void store_lanes(void* at, const V& lanes) {
  std::memcpy(at, &lanes, sizeof lanes);
}

// Less 0, not plus: that changes no value, not even -0, and costs nothing.
inline Floats all_lanes(float value) { return value - Floats{}; }
inline Floats to_floats(Ints whole) { return __builtin_convertvector(whole, Floats); }
inline Ints as_ints(Words bits) { return reinterpret_cast<Ints>(bits); }
inline Floats as_floats(Words bits) { return reinterpret_cast<Floats>(bits); }

// fp16 to float32, subnormal numbers and infinities too.
inline Floats from_fp16(Halves half) {
  const Words bits = __builtin_convertvector(half, Words), rest = bits & 0x7fff;
  const Words usual = (rest << 13) + ((127 - 15) << 23);
  const Words subnormal = reinterpret_cast<Words>(to_floats(as_ints(rest)) * 0x1p-24f);
  const Words infinite = 0x7f800000 | (rest << 13);
  const Words small = reinterpret_cast<Words>(rest < 0x400),
              large = reinterpret_cast<Words>(rest >= 0x7c00);
  const Words magnitude = (small & subnormal) | (large & infinite) | (~(small | large) & usual);
  return as_floats(magnitude | (bits & 0x8000) << 16);
}

inline Floats from_bf16(Halves bf16) {
  return as_floats(__builtin_convertvector(bf16, Words) << 16);
}

// Bits by which the value of input `i` of a step is shifted in its lane.
inline int shift_of(int bits, int i) { return i % 2 * 16 + i / 2 * (bits == 4 ? 4 : 8); }

// Scales and zero points of a tile, from place `at` = group * kTile + column on.
inline Floats scales_at(const Tile& tile, int64_t at) {
  return tile.half_scales
             ? from_fp16(load_lanes<Halves>(static_cast<const uint16_t*>(tile.scales) + at))
             : load_lanes<Floats>(static_cast<const float*>(tile.scales) + at);
}

inline Ints zeros_at(const Tile& tile, int64_t at) {
  return tile.zero_points ? __builtin_convertvector(load_lanes<Bytes>(tile.zero_points + at), Ints)
                          : Ints{} + tile.zero;
}

}  // namespace
}  // namespace vlpress
