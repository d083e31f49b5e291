// Compares the kernels with plain sums, without Python: for other compilers and other processors.
// Built and started by test_other_compilers.py; prints each mismatch and returns their number.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "layout.h"

using namespace vlpress;

extern "C" {
const void* vlpress_find_kernels(const char*);
const char* vlpress_kernels_name(const void*);
int64_t vlpress_gemm_scratch(const void*, const Shape*, int, int64_t, int, int);
void vlpress_gemm(const void*, const Shape*, const Weight*, int, int, const void*, int64_t, int64_t,
                  void* const*, void*, int, float);
int64_t vlpress_syrk_scratch(const void*, int64_t, int64_t, int);
void vlpress_syrk(const void*, const void*, int64_t, int64_t, int64_t, float*, float, float, void*,
                  int);
void vlpress_bf16_gemv(const void*, const void*, const float*, int64_t, int64_t, const void*,
                       int64_t, int64_t, void*, int);
}

namespace {

std::mt19937 source(0);

float normal() { return std::normal_distribution<float>()(source); }
int below(int bound) { return static_cast<int>(source() % static_cast<unsigned>(bound)); }

float widened(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

std::vector<uint16_t> random_bf16(int64_t count) {
  std::vector<uint16_t> values(count);
  for (auto& bf16 : values) {
    const float value = normal();
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bf16 = static_cast<uint16_t>(bits >> 16);
  }
  return values;
}

std::vector<float> random_floats(int64_t count, float factor) {
  std::vector<float> values(count);
  for (auto& value : values) value = normal() * factor;
  return values;
}

// Memory aligned to a cache line.
struct Memory {
  std::vector<uint8_t> bytes;
  explicit Memory(int64_t size) : bytes(size + 64) {}
  void* address() {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(bytes.data()) + 63) / 64 * 64);
  }
};

int report(const char* name, int64_t bits, int64_t m, double error, double bound) {
  const bool wrong = !(error <= bound);
  if (wrong)
    std::printf("%s, %d bits, %d rows: off by %g\n", name, static_cast<int>(bits),
                static_cast<int>(m), error);
  return wrong;
}

int check_quantized(const void* kernels, int64_t bits, bool each, int64_t m, bool integers) {
  const int64_t k = 256, n = 100, group = 64, tiles = 2, groups = k / group;
  const int inputs = step_inputs(bits);
  std::vector<int> weights(tiles * kTile * k);
  for (auto& weight : weights) weight = below(1 << bits);
  const std::vector<float> scales = random_floats(tiles * groups * kTile, 0.1f),
                           bias = random_floats(n, 1);
  std::vector<uint8_t> zeros(scales.size(), 1 << (bits - 1)), packed(tiles * tile_bytes(bits, k));
  if (each)
    for (auto& zero : zeros) zero = below(1 << bits);
  for (int64_t row = 0; row < tiles * kTile; ++row)
    for (int64_t i = 0; i < k; ++i) {
      const int64_t step = row / kTile * (k / inputs) + i / inputs, at = i % inputs;
      const int64_t shift = at % 2 * 16 + at / 2 * (bits == 4 ? 4 : 8);
      uint8_t* lane = packed.data() + step * kStepBytes + row % kTile * 4;
      uint32_t bits_of_lane;
      std::memcpy(&bits_of_lane, lane, sizeof bits_of_lane);
      bits_of_lane |= static_cast<uint32_t>(weights[row * k + i]) << shift;
      std::memcpy(lane, &bits_of_lane, sizeof bits_of_lane);
    }
  const std::vector<uint16_t> x = random_bf16(m * k);
  std::vector<uint16_t> y(m * n, 0x7fc0);
  const Weight weight = {
      packed.data(),  scales.data(), each ? zeros.data() : nullptr, bias.data(), n, 0,
      1 << (bits - 1), 0};
  const Shape shape = {k, group, bits, nullptr, 0};
  Memory scratch(vlpress_gemm_scratch(kernels, &shape, kBFloat16, m, 2, integers));
  void* const out = y.data();
  vlpress_gemm(kernels, &shape, &weight, 1, kBFloat16, x.data(), m, k, &out, scratch.address(), 2,
                   integers ? 0.0f : -1.0f);
  double error = 0, largest = 0;
  for (int64_t row = 0; row < m; ++row) {
    float absmax = 0;
    for (int64_t i = 0; i < k; ++i) absmax = std::fmax(absmax, std::fabs(widened(x[row * k + i])));
    const float step = absmax / 127.0f;
    for (int64_t c = 0; c < n; ++c) {
      double sum = bias[c];
      for (int64_t i = 0; i < k; ++i) {
        const float value = widened(x[row * k + i]);
        const double used = integers ? std::nearbyint(value / step) * step : value;
        const int64_t at = (c / kTile * groups + i / group) * kTile + c % kTile;
        sum += used * (weights[c * k + i] - zeros[at]) * scales[at];
      }
      error = std::fmax(error, std::fabs(sum - widened(y[row * n + c])));
      largest = std::fmax(largest, std::fabs(sum));
    }
  }
  return report(integers ? "int8 activations" : "weight-only", bits, m, error / largest, 8e-3);
}

// The level of a code: a number of a small float format, or of a table without a pattern.
float level_of(int code, int64_t bits, int64_t mantissa) {
  if (!mantissa) return std::sin(static_cast<float>(code));
  const int64_t exponents = bits - 1 - mantissa, bias = (1 << (exponents - 1)) - 1;
  const int64_t exponent = code >> mantissa & ((1 << exponents) - 1);
  const double fraction = (code & ((1 << mantissa) - 1)) / std::ldexp(1.0, mantissa);
  const double size = exponent ? std::ldexp(1 + fraction, exponent - bias)
                               : std::ldexp(fraction, 1 - bias);
  return static_cast<float>(code >> (bits - 1) ? -size : size);
}

int check_levels(const void* kernels, int64_t bits, int64_t mantissa, int64_t m) {
  const int64_t k = 256, n = 64, group = 16, groups = k / group;
  const int inputs = step_inputs(bits);
  std::vector<float> levels(1 << bits);
  for (int code = 0; code < 1 << bits; ++code) levels[code] = level_of(code, bits, mantissa);
  std::vector<int> codes(n * k);
  std::vector<uint8_t> packed(tile_bytes(bits, k));
  for (int64_t row = 0; row < n; ++row)
    for (int64_t i = 0; i < k; ++i) {
      int& code = codes[row * k + i] = below(1 << bits);
      if (bits == 8) code &= 0xb7;  // neither NaN nor infinity
      const int64_t at = i % inputs, shift = at % 2 * 16 + at / 2 * (bits == 4 ? 4 : 8);
      uint8_t* lane = packed.data() + i / inputs * kStepBytes + row * 4;
      uint32_t bits_of_lane;
      std::memcpy(&bits_of_lane, lane, sizeof bits_of_lane);
      bits_of_lane |= static_cast<uint32_t>(code) << shift;
      std::memcpy(lane, &bits_of_lane, sizeof bits_of_lane);
    }
  const std::vector<float> scales = random_floats(groups * kTile, 1);
  const float divisor = 3;
  const std::vector<uint16_t> x = random_bf16(m * k);
  std::vector<float> wide(m * k), y(m * n, NAN);
  for (int64_t i = 0; i < m * k; ++i) wide[i] = widened(x[i]);
  const Weight weight = {packed.data(), scales.data(), nullptr, nullptr, n, 0, 0, divisor};
  const Shape shape = {k, group, bits, levels.data(), mantissa};
  Memory scratch(vlpress_gemm_scratch(kernels, &shape, kFloat32, m, 2, 0));
  void* const out = y.data();
  vlpress_gemm(kernels, &shape, &weight, 1, kFloat32, wide.data(), m, k, &out, scratch.address(), 2,
               -1.0f);
  double error = 0, largest = 0;
  for (int64_t row = 0; row < m; ++row)
    for (int64_t c = 0; c < n; ++c) {
      double sum = 0;
      for (int64_t i = 0; i < k; ++i)
        sum += static_cast<double>(wide[row * k + i]) * levels[codes[c * k + i]] *
               scales[i / group * kTile + c] / divisor;
      error = std::fmax(error, std::fabs(sum - y[row * n + c]));
      largest = std::fmax(largest, std::fabs(sum));
    }
  return report(mantissa ? "float format" : "table", bits, m, error / largest, 1e-5);
}

int check_bf16(const void* kernels) {
  const int64_t m = 70, k = 300, n = 130;
  const std::vector<uint16_t> x = random_bf16(m * k), weights = random_bf16(n * k);
  const std::vector<float> bias = random_floats(n, 1);
  int wrong = 0;
  for (const bool many : {false, true}) {
    std::vector<uint16_t> y(m * n, 0x7fc0);
    const Shape shape = {k, k, kBf16Bits, nullptr, 0};
    const Weight weight = {
        reinterpret_cast<const uint8_t*>(weights.data()), nullptr, nullptr, bias.data(), n, 0, 0, 0};
    Memory scratch(vlpress_gemm_scratch(kernels, &shape, kBFloat16, m, 1, 0));
    void* const out = y.data();
    if (many)
      vlpress_gemm(kernels, &shape, &weight, 1, kBFloat16, x.data(), m, k, &out, scratch.address(),
                       1, -1.0f);
    else
      vlpress_bf16_gemv(kernels, weights.data(), bias.data(), n, k, x.data(), m, k, out, 1);
    double error = 0;
    for (int64_t row = 0; row < m; ++row)
      for (int64_t c = 0; c < n; ++c) {
        double sum = bias[c];
        for (int64_t i = 0; i < k; ++i)
          sum += widened(x[row * k + i]) * widened(weights[c * k + i]);
        // Half a unit in the last place, plus the rounding of float32 sums.
        error = std::fmax(error,
                          std::fabs(sum - widened(y[row * n + c])) / (std::fabs(sum) / 256 + 1e-3));
      }
    wrong += report(many ? "bf16 weights, gemm" : "bf16 weights, gemv", kBf16Bits, m, error, 1);
  }
  std::vector<float> h(k * k);
  Memory scratch(vlpress_syrk_scratch(kernels, m, k, 1));
  vlpress_syrk(kernels, x.data(), m, k, k, h.data(), 1, 0, scratch.address(), 1);
  double error = 0;
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (int64_t row = 0; row < m; ++row)
        sum += widened(x[row * k + i]) * widened(x[row * k + j]);
      error = std::fmax(error, std::fabs(sum - h[i * k + j]));
    }
  return wrong + report("syrk", kBf16Bits, m, error, 1e-3);
}

}  // namespace

int main(int, char** arguments) {
  const void* kernels = vlpress_find_kernels(arguments[1]);
  if (!kernels) return std::printf("no such kernels: %s\n", arguments[1]), 1;
  int wrong = check_bf16(kernels);
  for (const int bits : {4, 8})
    for (const bool each : {false, true})
      for (const int64_t m : {1, 3, 8, 17, 60})
        for (const bool integers : {false, true})
          wrong += check_quantized(kernels, bits, each, m, integers);
  for (const int64_t m : {1, 3, 8, 60}) {
    wrong += check_levels(kernels, 4, 0, m) + check_levels(kernels, 4, 1, m);
    wrong += check_levels(kernels, 8, 2, m) + check_levels(kernels, 8, 3, m);
  }
  std::printf("%s: %d wrong\n", vlpress_kernels_name(kernels), wrong);
  return wrong;
}
