// Every kernel but those of simd_gemm.h, in plain loops or vectors of simd.h.
//
// Each instruction set's source includes this and is compiled with flags of its own, so all of it
// lies in an anonymous namespace: one copy must never stand in for another at link time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "simd.h"

namespace vlpress {
namespace {

inline float from_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
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

// One group's sums to floats.
inline void fold_sums(const Tile& tile, int64_t group, const int32_t* sums,
                      const int32_t* level_sums, int64_t m, bool add, float* total) {
  for (int column = 0; column < kTile; column += kWide) {
    const Floats scale = scales_at(tile, group * kTile + column);
    const Ints zero = zeros_at(tile, group * kTile + column);
    for (int64_t row = 0; row < m; ++row) {
      float* here = total + row * kTile + column;
      const Ints exact = load_lanes<Ints>(sums + row * kTile + column) - zero * level_sums[row];
      const Floats sum = to_floats(exact) * scale;
      store_lanes(here, add ? load_lanes<Floats>(here) + sum : sum);
    }
  }
}

// Where input `i` of a step goes, so that four bytes in a row meet the weights of one lane.
constexpr int kOrder4[8] = {0, 2, 4, 6, 1, 3, 5, 7};
constexpr int kOrder8[4] = {0, 2, 1, 3};

inline Floats read_lanes(const void* x, Type type, int64_t i) {
  return type == kFloat32 ? load_lanes<Floats>(static_cast<const float*>(x) + i)
                          : from_bf16(load_lanes<Halves>(static_cast<const uint16_t*>(x) + i));
}

inline float read_one(const void* x, Type type, int64_t i) {
  return type == kFloat32 ? static_cast<const float*>(x)[i]
                          : from_bf16(static_cast<const uint16_t*>(x)[i]);
}

// The largest magnitude / 127, or 1 if all are 0; compared as bits, so that NaN is larger than any
// number.
inline float scale_of(const void* x, Type type, int64_t k) {
  constexpr int32_t kMagnitude = 0x7fffffff;
  Ints most = {};
  int64_t i = 0;
  for (; i + kWide <= k; i += kWide) {
    const Ints bits = reinterpret_cast<Ints>(read_lanes(x, type, i)) & kMagnitude;
    most = bits > most ? bits : most;
  }
  int32_t largest = 0;
  for (int c = 0; c < kWide; ++c) largest = most[c] > largest ? most[c] : largest;
  for (; i < k; ++i) {
    const float value = read_one(x, type, i);
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits &= kMagnitude;
    largest = bits > largest ? bits : largest;
  }
  float scale;
  std::memcpy(&scale, &largest, sizeof scale);
  scale /= 127.0f;
  return scale == 0.0f ? 1.0f : scale;
}

inline float quantize_row(const void* x, Type type, int64_t k, int64_t group, int64_t bits,
                          float given, int8_t* levels, int32_t* sums) {
  const float scale = given == 0.0f ? scale_of(x, type, k) : given;
  const int step = step_inputs(bits);
  const int* order = bits == 4 ? kOrder4 : kOrder8;
  const Floats most = all_lanes(127.0f), least = all_lanes(-128.0f);
  for (int64_t g = 0; g * group < k; ++g) {
    int32_t sum = 0;
    for (int64_t first = g * group; first < (g + 1) * group; first += kWide) {
      const int64_t some = std::min<int64_t>(kWide, (g + 1) * group - first);
      Floats value = {};
      if (some == kWide) {
        value = read_lanes(x, type, first);
      } else {
        for (int c = 0; c < some; ++c) value[c] = read_one(x, type, first + c);
      }
      Floats level = value / scale;
      level = level == level ? level : Floats{};
      level = level < least ? least : level > most ? most : level;
      // Adding 1.5 * 2^23 leaves no room for a fraction: rounds to nearest, ties to even.
      const Ints whole = __builtin_convertvector((level + 12582912.0f) - 12582912.0f, Ints);
      for (int c = 0; c < some; ++c) {
        const int64_t i = first + c;
        levels[i / step * step + order[i % step]] = static_cast<int8_t>(whole[c]);
        sum += whole[c];
      }
    }
    sums[g] = sum;
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

// A row of weights as it is stored times `kRows` rows of x. A word holds two bf16: the lower one is
// shifted up, the upper one is a float32 once the lower is gone.
template <int kRows>
inline void dot_of(const uint16_t* weight, int64_t k, const uint16_t* x, int64_t stride,
                   float* out) {
  Floats even[kRows] = {}, odd[kRows] = {};
  int64_t i = 0;
  for (; i + 2 * kWide <= k; i += 2 * kWide) {
    const Words w = load_lanes<Words>(weight + i);
    VLPRESS_UNROLL
    for (int m = 0; m < kRows; ++m) {
      const Words v = load_lanes<Words>(x + m * stride + i);
      even[m] += as_floats(w << 16) * as_floats(v << 16);
      odd[m] += as_floats(w & 0xffff0000) * as_floats(v & 0xffff0000);
    }
  }
  for (int m = 0; m < kRows; ++m) {
    const Floats both = even[m] + odd[m];
    float sum = 0.0f;
    for (int c = 0; c < kWide; ++c) sum += both[c];
    for (int64_t j = i; j < k; ++j) sum += from_bf16(weight[j]) * from_bf16(x[m * stride + j]);
    out[m * kTile] = sum;
  }
}

inline void dot_rows(const uint16_t* weight, int64_t k, const uint16_t* x, int64_t stride, int m,
                     float* out) {
  for (; m >= 4; m -= 4, x += 4 * stride, out += 4 * kTile) dot_of<4>(weight, k, x, stride, out);
  for (; m > 0; --m, x += stride, out += kTile) dot_of<1>(weight, k, x, stride, out);
}

inline void transpose_floats(const uint16_t* x, int64_t stride, int64_t tokens, int64_t columns,
                             void* out, int64_t out_stride) {
  float* wide = static_cast<float*>(out);
  constexpr int64_t kLine = 32;  // columns in a cache line, which stays near for all of them
  for (int64_t c0 = 0; c0 < columns; c0 += kLine)
    for (int64_t t0 = 0; t0 < out_stride; t0 += kTile)
      for (int64_t c = c0; c < std::min(c0 + kLine, columns); ++c)
        for (int64_t t = t0; t < std::min(t0 + kTile, out_stride); ++t)
          wide[c * out_stride + t] = t < tokens ? from_bf16(x[t * stride + c]) : 0.0f;
}

inline void gather_floats(const uint16_t* x, int64_t stride, int64_t tokens, int columns,
                          void* out) {
  float* panel = static_cast<float*>(out);
  for (int64_t t = 0; t < (tokens + 1) / 2 * 2; ++t, panel += kTile)
    for (int c = 0; c < kTile; ++c)
      panel[c] = t < tokens && c < columns ? from_bf16(x[t * stride + c]) : 0.0f;
}

constexpr IntKernels kGenericInts = {
    0, nullptr, unpack_bytes, multiply_bytes, multiply_bytes, fold_sums, quantize_row};

}  // namespace
}  // namespace vlpress
