// Operations between matrix products, in plain loops over bf16 that compilers vectorize; included
// by each instruction set as generic.h is. Everything is computed in float32 and rounded to bf16
// once.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "generic.h"

namespace vlpress {
namespace {

// e^x for |x| < 87, relative error below 1e-7, without branches so that loops over it vectorize
// (libm's exp is a call per element). x = n ln 2 + r, |r| <= ln 2 / 2; e^r by a Taylor polynomial,
// 2^n by the exponent bits. Argument reduction as in Cody and Waite: ln 2 is split in two parts so
// that n ln 2 is subtracted without losing precision.
inline float fast_exp(float x) {
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float sum = 1.0f / 5040;
  sum = sum * r + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;  // the low bits of `shifted` are n
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return sum * power;
}

inline float clamp_abs(float x, float bound) { return x < -bound ? -bound : x > bound ? bound : x; }

// y = x / sqrt(mean(x^2) + eps) * weight; y may be x. Sixteen partial sums, which vectorize without the
// compiler reassociating additions.
inline void rms_norm(const uint16_t* x, const uint16_t* weight, int64_t n, float eps,
                     uint16_t* y) {
  float squares[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int c = 0; c < kLanes; ++c) {
      const float value = from_bf16(x[i + c]);
      squares[c] += value * value;
    }
  for (; i < n; ++i) squares[0] += from_bf16(x[i]) * from_bf16(x[i]);
  for (int c = 1; c < kLanes; ++c) squares[0] += squares[c];
  const float factor = 1.0f / std::sqrt(squares[0] / static_cast<float>(n) + eps);
  for (i = 0; i < n; ++i) y[i] = to_bf16(from_bf16(x[i]) * factor * from_bf16(weight[i]));
}

// Rotary embedding in place: rotates the pairs (i, i + half) of each of `heads` heads by the same
// angles.
inline void rotate(uint16_t* x, int64_t heads, int64_t half, const uint16_t* cos,
                   const uint16_t* sin) {
  for (int64_t h = 0; h < heads; ++h, x += 2 * half)
    for (int64_t i = 0; i < half; ++i) {
      const float a = from_bf16(x[i]), b = from_bf16(x[half + i]);
      const float c = from_bf16(cos[i]), s = from_bf16(sin[i]);
      x[i] = to_bf16(a * c - b * s);
      x[half + i] = to_bf16(b * c + a * s);
    }
}

// gate = gate / (1 + e^-gate) * up
inline void swiglu(uint16_t* gate, const uint16_t* up, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = from_bf16(gate[i]);
    gate[i] = to_bf16(g / (1.0f + fast_exp(clamp_abs(-g, 80.0f))) * from_bf16(up[i]));
  }
}

inline void add_rows(uint16_t* x, const uint16_t* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = to_bf16(from_bf16(x[i]) + from_bf16(y[i]));
}

// Quantizes one row of a KV cache to int8; returns its scale, absmax / 127.
inline float quantize_cache_row(const uint16_t* x, int64_t n, int8_t* levels) {
  uint16_t magnitude = 0;  // compared as bits: NaN is larger than any number
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t bits = x[i] & 0x7fff;
    magnitude = bits > magnitude ? bits : magnitude;
  }
  const float scale = magnitude ? from_bf16(magnitude) / 127.0f : 1.0f;
  for (int64_t i = 0; i < n; ++i) {
    float level = clamp_abs(from_bf16(x[i]) / scale, 127.0f);
    if (!(level == level)) level = 0.0f;  // NaN; the scale carries it
    levels[i] = static_cast<int8_t>((level + 12582912.0f) - 12582912.0f);  // ties to even
  }
  return scale;
}

inline void widen_bytes(const int8_t* levels, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = to_bf16(static_cast<float>(levels[i]));  // exact
}

// Softmax in place. At least one score is finite; -inf becomes 0.
inline void softmax(float* scores, int64_t n) {
  float largest = scores[0];
  for (int64_t i = 1; i < n; ++i) largest = scores[i] > largest ? scores[i] : largest;
  for (int64_t i = 0; i < n; ++i) {
    const float below = scores[i] - largest;
    scores[i] = below < -80.0f ? 0.0f : fast_exp(below < -80.0f ? -80.0f : below);
  }
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int c = 0; c < kLanes; ++c) sums[c] += scores[i + c];
  for (; i < n; ++i) sums[0] += scores[i];
  for (int c = 1; c < kLanes; ++c) sums[0] += sums[c];
  for (i = 0; i < n; ++i) scores[i] /= sums[0];
}

// Unnormalized softmax of one row whose scores are in tiles of 64, as the panel kernels write them.
// Scores past `count` and those with a 0 in `mask` (may be null) get weight 0; at least one is
// left. The largest weight is 1. Returns 1 / sum.
inline float softmax_tiles(float* scores, int64_t tile_stride, int64_t tiles, int64_t count,
                       const uint8_t* mask, float scale, uint16_t* weights) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  float maxima[kTile], sums[kTile] = {};
  for (int c = 0; c < kTile; ++c) maxima[c] = kNever;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    float* row = scores + tile * tile_stride;
    const int64_t first = tile * kTile, remaining = count - first;
    for (int64_t c = remaining < 0 ? 0 : remaining; c < kTile; ++c) row[c] = kNever;
    if (mask)
      for (int64_t c = 0; c < kTile && c < remaining; ++c)
        row[c] = mask[first + c] ? row[c] : kNever;
    for (int c = 0; c < kTile; ++c) maxima[c] = row[c] > maxima[c] ? row[c] : maxima[c];
  }
  for (int c = 1; c < kTile; ++c) maxima[0] = maxima[c] > maxima[0] ? maxima[c] : maxima[0];
  const float largest = maxima[0];
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const float* row = scores + tile * tile_stride;
    uint16_t* out = weights + tile * kTile;
    for (int c = 0; c < kTile; ++c) {
      const float below = (row[c] - largest) * scale;
      const float weight = below < -80.0f ? 0.0f : fast_exp(below < -80.0f ? -80.0f : below);
      sums[c] += weight;
      out[c] = to_bf16(weight);
    }
  }
  for (int c = 1; c < kTile; ++c) sums[0] += sums[c];
  return 1.0f / sums[0];
}

// out[m][width] = sum over s of weights[m][s] * values[s], for `channels` <= 64 channels and kRows
// rows. Four rows share each value: query heads of one KV head.
template <int kRows>
inline void weighted_sum(const float* weights, int64_t stride, const uint16_t* values,
                         int64_t width, int64_t count, int channels, uint16_t* out) {
  float sums[kRows][kTile] = {};
  for (int64_t s = 0; s < count; ++s, values += width) {
    float wide[kTile];
    for (int c = 0; c < channels; ++c) wide[c] = from_bf16(values[c]);
    for (int m = 0; m < kRows; ++m)
      for (int c = 0; c < kTile; ++c) sums[m][c] += weights[m * stride + s] * wide[c];
  }
  for (int m = 0; m < kRows; ++m)
    for (int c = 0; c < channels; ++c) out[m * width + c] = to_bf16(sums[m][c]);
}

// The state decays, takes up the part of the value that it does not predict from the key, and is read
// with the query. The first pass reads the state from memory, the second one from the cache.
template <int kColumns>
inline void delta_columns(const float* q, const float* k, const float* v, float decay, float beta,
                          int64_t d, int64_t width, int columns, float* state, float* out) {
  const int count = kColumns ? kColumns : columns;  // known to the compiler for whole tiles
  float update[kTile] = {}, read[kTile] = {};
  for (int64_t i = 0; i < d; ++i)
    for (int c = 0; c < count; ++c) update[c] += k[i] * state[i * width + c];
  for (int c = 0; c < count; ++c) update[c] = beta * (v[c] - decay * update[c]);
  for (int64_t i = 0; i < d; ++i)
    for (int c = 0; c < count; ++c) {
      const float value = decay * state[i * width + c] + k[i] * update[c];
      state[i * width + c] = value;
      read[c] += q[i] * value;
    }
  for (int c = 0; c < count; ++c) out[c] = read[c];
}

inline void delta_step(const float* q, const float* k, const float* v, float decay, float beta,
                       int64_t d, int64_t width, int columns, float* state, float* out) {
  const auto step = columns == kTile ? delta_columns<kTile> : delta_columns<0>;
  step(q, k, v, decay, beta, d, width, columns, state, out);
}

constexpr Pointwise kPointwise = {rms_norm,           rotate,          swiglu,  add_rows,
                                  quantize_cache_row, widen_bytes,     softmax, softmax_tiles,
                                  weighted_sum<4>,    weighted_sum<1>, delta_step};

}  // namespace
}  // namespace vlpress
