// Every kernel in plain loops that compilers turn into vectors.
//
// Each instruction set's source includes this and is compiled with flags of its own, so all of it
// lies in an anonymous namespace: one copy must never stand in for another at link time.
#pragma once

#include <cmath>
#include <cstring>

#include "layout.h"

namespace vlpress {
namespace {

inline float from_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

inline float from_fp16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t rest = half & 0x7fff;
  uint32_t bits;
  if (rest >= 0x7c00) {
    bits = 0x7f800000 | (rest & 0x3ff) << 13;
  } else if (rest >= 0x400) {
    bits = (rest << 13) + ((127 - 15) << 23);
  } else {
    const float small = std::ldexp(static_cast<float>(rest), -24);  // subnormal
    std::memcpy(&bits, &small, sizeof bits);
  }
  bits |= sign;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Scales and zero points of a tile's columns in one group.
struct Grid {
  float scales[kTile];
  float zeros[kTile];
};

inline void read_grid(const Tile& tile, int64_t group, Grid& grid) {
  const int64_t at = group * kTile;
  for (int c = 0; c < kTile; ++c) {
    grid.scales[c] = tile.half_scales ? from_fp16(static_cast<const uint16_t*>(tile.scales)[at + c])
                                      : static_cast<const float*>(tile.scales)[at + c];
    grid.zeros[c] = static_cast<float>(tile.zero_points ? tile.zero_points[at + c] : tile.zero);
  }
}

// Bits by which the value of input `i` of a step is shifted in its lane.
inline int shift_of(int64_t bits, int i) {
  return bits == 4 ? (i % 2) * 16 + (i / 2) * 4 : (i % 2) * 16 + (i / 2) * 8;
}

inline void unpack_floats(const Tile& tile, int64_t begin, int64_t count, void* out) {
  float* panel = static_cast<float*>(out);
  const int inputs = step_inputs(tile.bits);
  const uint32_t mask = (1u << tile.bits) - 1;
  Grid grid;
  int64_t known = -1;
  for (int64_t k = begin; k < begin + count; k += inputs) {
    if (k / tile.group != known) read_grid(tile, known = k / tile.group, grid);
    uint32_t lanes[kTile];
    std::memcpy(lanes, tile.packed + k / inputs * kStepBytes, kStepBytes);
    for (int i = 0; i < inputs; ++i, panel += kTile) {
      const int shift = shift_of(tile.bits, i);
      for (int c = 0; c < kTile; ++c) {
        const int value = static_cast<int>(lanes[c] >> shift & mask);
        panel[c] = (static_cast<float>(value) - grid.zeros[c]) * grid.scales[c];
      }
    }
  }
}

template <int kRows>
inline void multiply_rows(const float* panel, int64_t count, const float* x, int64_t stride,
                          bool add, float* total) {
  // Sixteen columns at a time: more sums than that do not stay in registers.
  for (int first = 0; first < kTile; first += kLanes) {
    float sums[kRows][kLanes];
    for (int m = 0; m < kRows; ++m)
      for (int c = 0; c < kLanes; ++c) sums[m][c] = add ? total[m * kTile + first + c] : 0.0f;
    const float* weights = panel + first;
    for (int64_t k = 0; k < count; ++k, weights += kTile)
      for (int m = 0; m < kRows; ++m) {
        const float value = x[m * stride + k];
        for (int c = 0; c < kLanes; ++c) sums[m][c] += value * weights[c];
      }
    for (int m = 0; m < kRows; ++m)
      for (int c = 0; c < kLanes; ++c) total[m * kTile + first + c] = sums[m][c];
  }
}

inline void multiply_floats(const void* panel, int64_t count, const void* x, int64_t stride,
                            int64_t m, bool add, float* total) {
  const float* weights = static_cast<const float*>(panel);
  const float* rows = static_cast<const float*>(x);
  for (; m >= 4; m -= 4, rows += 4 * stride, total += 4 * kTile)
    multiply_rows<4>(weights, count, rows, stride, add, total);
  for (; m > 0; --m, rows += stride, total += kTile)
    multiply_rows<1>(weights, count, rows, stride, add, total);
}

// Few rows: unpack little enough to stay in the first cache, and use it at once.
inline void float_rows(const Tile& tile, const void* x, int64_t stride, int m, float* total) {
  constexpr int64_t kInputs = 32;
  alignas(64) float panel[kInputs * kTile];
  const float* rows = static_cast<const float*>(x);
  for (int64_t k = 0; k < tile.k; k += kInputs) {
    const int64_t count = tile.k - k < kInputs ? tile.k - k : kInputs;
    unpack_floats(tile, k, count, panel);
    multiply_floats(panel, count, rows + k, stride, m, k > 0, total);
  }
}

inline void unpack_bytes(const Tile& tile, int64_t begin, int64_t count, uint8_t* panel) {
  const uint8_t* packed = tile.packed + begin / 8 * kStepBytes;
  for (int64_t k = 0; k < count; k += 8, packed += kStepBytes, panel += 2 * kStepBytes)
    for (int b = 0; b < kStepBytes; ++b) {
      panel[b] = packed[b] & 15;
      panel[kStepBytes + b] = packed[b] >> 4;
    }
}

inline void multiply_bytes(const uint8_t* panel, int64_t count, const int8_t* levels,
                           int64_t stride, int64_t m, bool add, int32_t* sums) {
  for (int64_t row = 0; row < m; ++row, levels += stride, sums += kTile) {
    int32_t acc[kTile];
    for (int c = 0; c < kTile; ++c) acc[c] = add ? sums[c] : 0;
    const uint8_t* weights = panel;
    for (int64_t k = 0; k < count; k += 4, weights += kStepBytes)
      for (int c = 0; c < kTile; ++c)
        for (int i = 0; i < 4; ++i)
          acc[c] += static_cast<int32_t>(weights[4 * c + i]) * levels[k + i];
    for (int c = 0; c < kTile; ++c) sums[c] = acc[c];
  }
}

inline void fold_sums(const Tile& tile, int64_t group, const int32_t* sums,
                      const int32_t* level_sums, int64_t m, bool add, float* total) {
  Grid grid;
  read_grid(tile, group, grid);
  int32_t zeros[kTile];
  for (int c = 0; c < kTile; ++c) zeros[c] = static_cast<int32_t>(grid.zeros[c]);
  for (int64_t row = 0; row < m; ++row, sums += kTile, total += kTile) {
    const int32_t all = level_sums[row];
    for (int c = 0; c < kTile; ++c) {
      const float sum = static_cast<float>(sums[c] - zeros[c] * all) * grid.scales[c];
      total[c] = add ? total[c] + sum : sum;
    }
  }
}

// Where input `i` of a step goes, so that four bytes in a row meet the weights of one lane.
constexpr int kOrder4[8] = {0, 2, 4, 6, 1, 3, 5, 7};
constexpr int kOrder8[4] = {0, 2, 1, 3};

inline float quantize_row(const void* x, Type type, int64_t k, int64_t group, int64_t bits,
                          float given, int8_t* levels, int32_t* sums) {
  const auto value = [&](int64_t i) {
    return type == kFloat32 ? static_cast<const float*>(x)[i]
                            : from_bf16(static_cast<const uint16_t*>(x)[i]);
  };
  float scale = given;
  if (scale == 0.0f) {
    uint32_t largest = 0;  // as bits, so that NaN is larger than any number
    for (int64_t i = 0; i < k; ++i) {
      const float v = value(i);
      uint32_t magnitude;
      std::memcpy(&magnitude, &v, sizeof magnitude);
      magnitude &= 0x7fffffff;
      largest = magnitude > largest ? magnitude : largest;
    }
    std::memcpy(&scale, &largest, sizeof scale);
    scale /= 127.0f;
    if (scale == 0.0f) scale = 1.0f;
  }
  const int step = step_inputs(bits);
  const int* order = bits == 4 ? kOrder4 : kOrder8;
  for (int64_t g = 0; g * group < k; ++g) sums[g] = 0;
  for (int64_t i = 0; i < k; ++i) {
    float level = value(i) / scale;
    if (!(level == level)) level = 0.0f;
    level = level < -128.0f ? -128.0f : level > 127.0f ? 127.0f : level;
    // Adding 1.5 * 2^23 leaves no room for a fraction: rounds to nearest, ties to even.
    const float rounded = (level + 12582912.0f) - 12582912.0f;
    const int whole = static_cast<int>(rounded);
    levels[i / step * step + order[i % step]] = static_cast<int8_t>(whole);
    sums[i / group] += whole;
  }
  return scale;
}

inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);  // NaN
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // ties to even
}

inline void store_rows(const float* total, const float* row_scales, const float* bias, int width,
                       int64_t m, Type type, void* y, int64_t stride) {
  for (int64_t row = 0; row < m; ++row, total += kTile) {
    float values[kTile];
    const float scale = row_scales ? row_scales[row] : 1.0f;
    for (int c = 0; c < kTile; ++c) values[c] = total[c] * scale;
    if (bias)
      for (int c = 0; c < width; ++c) values[c] += bias[c];
    if (type == kFloat32) {
      std::memcpy(static_cast<float*>(y) + row * stride, values, width * sizeof(float));
    } else {
      uint16_t halves[kTile];
      for (int c = 0; c < kTile; ++c) halves[c] = to_bf16(values[c]);
      std::memcpy(static_cast<uint16_t*>(y) + row * stride, halves, width * sizeof(uint16_t));
    }
  }
}

inline void widen_bf16(const uint16_t* bf16, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = from_bf16(bf16[i]);
}

inline void dot_rows(const uint16_t* weight, int64_t k, const uint16_t* x, int64_t stride, int m,
                     float* out) {
  for (; m > 0; --m, x += stride, out += kTile) {
    float sums[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= k; i += kLanes)
      for (int c = 0; c < kLanes; ++c) sums[c] += from_bf16(weight[i + c]) * from_bf16(x[i + c]);
    for (; i < k; ++i) sums[0] += from_bf16(weight[i]) * from_bf16(x[i]);
    for (int c = 1; c < kLanes; ++c) sums[0] += sums[c];
    *out = sums[0];
  }
}

inline void transpose_floats(const uint16_t* x, int64_t stride, int64_t tokens, int64_t columns,
                             void* out, int64_t out_stride) {
  float* wide = static_cast<float*>(out);
  for (int64_t t = 0; t < out_stride; ++t)
    for (int64_t c = 0; c < columns; ++c)
      wide[c * out_stride + t] = t < tokens ? from_bf16(x[t * stride + c]) : 0.0f;
}

inline void gather_floats(const uint16_t* x, int64_t stride, int64_t tokens, int columns,
                          void* out) {
  float* panel = static_cast<float*>(out);
  for (int64_t t = 0; t < (tokens + 1) / 2 * 2; ++t, panel += kTile)
    for (int c = 0; c < kTile; ++c)
      panel[c] = t < tokens && c < columns ? from_bf16(x[t * stride + c]) : 0.0f;
}

constexpr FloatKernels kGenericFloats = {4, {kDecodeRows, kDecodeRows}, float_rows, unpack_floats, multiply_floats};
constexpr IntKernels kGenericInts = {0, nullptr, unpack_bytes, multiply_bytes, fold_sums, quantize_row};

}  // namespace
}  // namespace vlpress
