// All kernels except those of simd_gemm.h, in plain loops or with the vectors of simd.h.
//
// Each instruction set's source file includes this header and is compiled with its own flags, so
// everything is in an anonymous namespace: were the functions `inline` with external linkage, the
// linker would keep one copy for all, and an AVX-512 copy would crash older processors.
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

// Nibbles of a panel to bytes.
inline void unpack_bytes(const Tile& tile, int64_t begin, int64_t count, uint8_t* panel) {
  const uint8_t* packed = tile.packed + begin / 8 * kStepBytes;
  for (int64_t k = 0; k < count; k += 8, packed += kStepBytes, panel += 2 * kStepBytes)
    for (int b = 0; b < kStepBytes; ++b) {
      panel[b] = packed[b] & 15;
      panel[kStepBytes + b] = packed[b] >> 4;
    }
}

// Products of a panel of bytes, in plain loops.
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

// Dequantizes one group's integer sums and adds them to the totals: scale * (sum(q * x) - zero *
// sum(x)).
inline void fold_sums(const Tile& tile, int64_t group, const int32_t* sums,
                      const int32_t* level_sums, int64_t m, bool add, float* total) {
  for (int column = 0; column < kTile; column += kWide) {
    const Floats scale = scales_at(tile, group * kTile + column);
    const Ints zero = zeros_at(tile, group * kTile + column);
    for (int64_t row = 0; row < m; ++row) {
      float* out = total + row * kTile + column;
      const Ints exact = load_lanes<Ints>(sums + row * kTile + column) - zero * level_sums[row];
      const Floats sum = to_floats(exact) * scale;
      store_lanes(out, add ? load_lanes<Floats>(out) + sum : sum);
    }
  }
}

// Position of input `i` of a step: the order of layout.h, so that four consecutive levels match the
// four weight bytes of a lane.
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

// absmax / 127, or 1 if all are 0. Magnitudes are compared as integers, in which NaN is larger than
// any number: a NaN makes the scale NaN instead of being dropped by a float maximum.
inline float scale_of(const void* x, Type type, int64_t k) {
  constexpr int32_t kMagnitude = 0x7fffffff;
  Ints largest_lanes = {};
  int64_t i = 0;
  for (; i + kWide <= k; i += kWide) {
    const Ints bits = reinterpret_cast<Ints>(read_lanes(x, type, i)) & kMagnitude;
    largest_lanes = bits > largest_lanes ? bits : largest_lanes;
  }
  int32_t largest = 0;
  for (int c = 0; c < kWide; ++c) largest = largest_lanes[c] > largest ? largest_lanes[c] : largest;
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

// Quantizes a row to int8 in the order of layout.h; sums[g] is the sum of each group's levels.
inline float quantize_row(const void* x, Type type, int64_t k, int64_t group, int64_t bits,
                          float given, int8_t* levels, int32_t* sums) {
  const float scale = given == 0.0f ? scale_of(x, type, k) : given;
  const int step = step_inputs(bits);
  const int* order = bits == 4 ? kOrder4 : kOrder8;
  const Floats upper = all_lanes(127.0f), lower = all_lanes(-128.0f);
  for (int64_t g = 0; g * group < k; ++g) {
    int32_t sum = 0;
    for (int64_t first = g * group; first < (g + 1) * group; first += kWide) {
      const int64_t count = std::min<int64_t>(kWide, (g + 1) * group - first);
      Floats value = {};
      if (count == kWide) {
        value = read_lanes(x, type, first);
      } else {
        for (int c = 0; c < count; ++c) value[c] = read_one(x, type, first + c);
      }
      Floats level = value / scale;
      level = level == level ? level : Floats{};  // NaN to 0; the scale carries it
      level = level < lower ? lower : level > upper ? upper : level;
      // In floats of about 1.5 * 2^23 the last bit is worth 1: adding and subtracting that number
      // rounds to nearest, ties to even.
      const Ints whole = __builtin_convertvector((level + 12582912.0f) - 12582912.0f, Ints);
      for (int c = 0; c < count; ++c) {
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

// Scales the totals of m rows, adds the bias, and stores `width` columns of each.
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

// Dot products of one bf16 weight row with `kRows` rows of x. A 32-bit word holds two bf16 numbers:
// the lower one becomes float32 by a shift, the upper one by clearing the lower half. Even and odd
// inputs have separate sums, so no shuffle is needed.
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

// x to float32, transposed: out[column][token], padded with zeros to out_stride tokens. In blocks
// of a cache line by 64 tokens: the strided reads of a block hit the L1 cache.
inline void transpose_floats(const uint16_t* x, int64_t stride, int64_t tokens, int64_t columns,
                             void* out, int64_t out_stride) {
  float* wide = static_cast<float*>(out);
  constexpr int64_t kLine = 32;  // bf16 columns of a cache line, which is then loaded once
  for (int64_t c0 = 0; c0 < columns; c0 += kLine)
    for (int64_t t0 = 0; t0 < out_stride; t0 += kTile)
      for (int64_t c = c0; c < std::min(c0 + kLine, columns); ++c)
        for (int64_t t = t0; t < std::min(t0 + kTile, out_stride); ++t)
          wide[c * out_stride + t] = t < tokens ? from_bf16(x[t * stride + c]) : 0.0f;
}

// A panel of kTile columns of x: float32 [token][column], padded with zeros to an even number of
// tokens.
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
