// Decoders: the weights of a step in float32, one vector of columns at a time, before their scale.
//
// A decoder is made for a group of a tile, and `value(lanes, i)` is the weight of input `i` of a
// step.
#pragma once

#include "simd.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace vlpress {
namespace {

// Integers minus their zero point. `kEach`: each column has its own.
template <int kStoredBits, bool kEach>
struct Integers {
  static constexpr int kBits = kStoredBits;
  Ints zeros;
#if defined(__AVX512F__)
  Floats table;  // nibble -> nibble - zero, where all columns share the zero point
#endif

  Integers() = default;

  Integers(const Tile& tile, int64_t at) : zeros(zeros_at(tile, at)) {
#if defined(__AVX512F__)
    const Ints nibbles = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    table = to_floats(nibbles - tile.zero);
#endif
  }

  Floats value(Words lanes, int i) const {
    const Words low = lanes >> shift_of(kBits, i);
#if defined(__AVX512F__)
    // VPERMPS reads the lowest four bits of a lane only: one instruction for masking, conversion to
    // float and subtraction.
    if (kBits == 4 && !kEach)
      return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(low), table);
#endif
    return to_floats(as_ints(low & ((1 << kBits) - 1)) - zeros);
  }
};

constexpr float power_of_two(int exponent) {
  float power = 1;
  for (; exponent > 0; --exponent) power *= 2;
  return power;
}

// Numbers of a float format with a sign, subnormal numbers and a bias of 2^(exponent bits - 1) - 1.
//
// Moved to the fields of a float32 number, exponent and fraction say the same number times a
// constant, also where the exponent is 0: subnormal numbers are equally spaced in both formats.
template <int kStoredBits, int kMantissa>
struct FloatNumbers {
  static constexpr int kBits = kStoredBits;
  static constexpr int kExponent = kBits - 1 - kMantissa;
  static constexpr int kBias = (1 << (kExponent - 1)) - 1;
  // Times this, a moved number is the number itself.
  static constexpr float kUnit = power_of_two(127 - kBias);

  FloatNumbers() = default;
  FloatNumbers(const Tile&, int64_t) {}

  static Floats moved(Words lanes, int i) {
    constexpr uint32_t kFields = ((1u << (kExponent + kMantissa)) - 1) << (23 - kMantissa);
    const Ints top = as_ints(lanes << (32 - kBits - shift_of(kBits, i)));
    return as_floats(reinterpret_cast<Words>(top >> (8 - kExponent)) & (0x80000000u | kFields));
  }

  Floats value(Words lanes, int i) const { return moved(lanes, i) * kUnit; }
};

// One of at most 16 levels by their position.
struct Lookup {
  static constexpr int kBits = 4;
#if defined(__AVX512F__)
  Floats table;
  Lookup() = default;
  Lookup(const Tile& tile, int64_t) : table(load_lanes<Floats>(tile.levels)) {}
#elif defined(__AVX2__)
  Floats low, high;
  Lookup() = default;
  Lookup(const Tile& tile, int64_t)
      : low(load_lanes<Floats>(tile.levels)), high(load_lanes<Floats>(tile.levels + kWide)) {}
#else
  const float* levels;
  Lookup() = default;
  Lookup(const Tile& tile, int64_t) : levels(tile.levels) {}
#endif

  Floats value(Words lanes, int i) const {
    const Words code = lanes >> shift_of(4, i);
#if defined(__AVX512F__)
    return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(code), table);
#elif defined(__AVX2__)
    // VPERMPS reads three bits of a lane; the fourth selects the half of the table by the sign.
    const __m256i index = reinterpret_cast<__m256i>(code);
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index),
                            _mm256_permutevar8x32_ps(high, index),
                            reinterpret_cast<__m256>(code << 28));
#else
    Floats values;
    for (int c = 0; c < kWide; ++c) values[c] = levels[code[c] & 15];
    return values;
#endif
  }
};

// Calls work(decoder) with a decoder of the type that a tile of levels needs.
template <typename Work>
inline void with_decoder(const Tile& tile, const Work& work) {
  if (tile.bits == 8) return tile.mantissa == 3 ? work(FloatNumbers<8, 3>())
                                                : work(FloatNumbers<8, 2>());
#if !defined(__AVX512F__)
  // Cheaper than two halves of a table.
  if (tile.mantissa == 1) return work(FloatNumbers<4, 1>());
#endif
  work(Lookup());
}

}  // namespace
}  // namespace vlpress
