// Levels of a 4-bit table as small whole numbers, for products in integers.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>

namespace vlpress {
namespace {

// level = unit * (byte - zero), as for E2M1 (0.5 * (byte - 12)) and ternary levels.
struct ByteLevels {
  // Largest byte: 8 products with int8 numbers, in pairs that VPMADDUBSW adds, fit 16 bits.
  static constexpr float kLargest = 24;

  uint8_t bytes[16] = {};  // by code; 0 for codes without a level (NaN)
  float unit = 0;          // the smallest magnitude, a power of two so that nothing is rounded
  int32_t zero = 0;
  int32_t magnitude = 0;   // the largest, in units
  bool valid = true;

  explicit ByteLevels(const float* levels) {
    float least = 0;
    for (int code = 0; code < 16; ++code) {
      const float size = std::fabs(levels[code]);
      if (size > 0 && (unit == 0 || size < unit)) unit = size;
      if (levels[code] < least) least = levels[code];
    }
    int exponent;
    valid = std::frexp(unit, &exponent) == 0.5f;
    const float per_unit = 1 / unit;
    zero = valid ? static_cast<int32_t>(-least * per_unit) : 0;
    for (int code = 0; valid && code < 16; ++code) {
      if (std::isnan(levels[code])) continue;
      const float byte = levels[code] * per_unit + static_cast<float>(zero);
      bytes[code] = static_cast<uint8_t>(byte <= kLargest ? byte : 0);
      valid = byte == static_cast<float>(bytes[code]);
      const int32_t centred = static_cast<int32_t>(bytes[code]) - zero;
      if (std::abs(centred) > magnitude) magnitude = std::abs(centred);
    }
  }
};

}  // namespace
}  // namespace vlpress
