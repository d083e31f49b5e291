// Layout of prepacked weights, and what a kernel has to offer.
//
// Letters: M = rows of x (tokens), N = out_features, K = in_features, G = groups per row.
//
// Weights lie in tiles of 64 output columns; the last tile is filled up with zeros. A tile is a
// sequence of steps along K: 8 inputs per step with 4 bits, 4 with 8 bits. A step is four vectors
// of 64 bytes, each for 16 columns, a 32-bit lane per column:
//
//     4 bits, lane from its lowest nibble:   k0 k2 k4 k6 | k1 k3 k5 k7
//     8 bits, lane from its lowest byte:     k0 k2 k1 k3
//
// Nibble j of both halves of a lane is thus a pair of neighbours, which is what a product of bf16
// pairs takes (VDPBF16PS); and `lane & 0x0f0f0f0f` is four inputs (k0 k4 k1 k5), which is what a
// product of bytes takes (VPDPBUSD), once the activations stand in the same order.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vlpress {

constexpr int kBf16Bits = 16;     // bits of a weight that is not quantized: bf16 [N][K]
constexpr int kTile = 64;       // columns
constexpr int kLanes = 16;      // columns of a vector
constexpr int kVectors = 4;     // vectors of a step
constexpr int kStepBytes = 256;
constexpr int kDecodeRows = 8;  // rows of x for which weights are unpacked in registers
constexpr int kPanelInputs = 512;  // at most so many of K are unpacked at a time

// Up to whole cache lines.
inline int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

inline int step_inputs(int64_t bits) { return bits == 4 ? 8 : 4; }

inline int64_t tile_bytes(int64_t bits, int64_t k) {
  return bits == kBf16Bits ? kTile * k * 2 : k / step_inputs(bits) * kStepBytes;
}

enum Type : int32_t { kFloat32 = 0, kBFloat16 = 1 };

// One weight; mirrored by ctypes in ../cpu.py.
struct Weight {
  const uint8_t* packed;       // [tiles][K / step][256]
  const void* scales;          // [tiles][G][64], fp16 or fp32
  const uint8_t* zero_points;  // [tiles][G][64]; null if all are `zero`
  const float* bias;           // [N] or null
  int64_t n;
  int32_t half_scales;  // whether scales are fp16
  int32_t zero;         // the zero point of all, or the middle of the grid
};

// What weights that are multiplied in one call share; mirrored by ctypes in ../cpu.py.
struct Shape {
  int64_t k, group;  // group: inputs per scale
  int64_t bits;      // 4 or 8, as stored, or kBf16Bits
};

// One call.
struct Problem {
  Shape shape;
  const Weight* weights;
  int count;
  Type type;     // of x and of every y
  const void* x;
  int64_t m, x_stride;  // stride: elements between rows
  void* const* y;       // for each weight [M][N]
  uint8_t* scratch;
  int threads;
};

// One tile of a weight.
struct Tile {
  const uint8_t* packed;
  const void* scales;
  const uint8_t* zero_points;
  int64_t k, group;
  int64_t bits;
  int32_t half_scales, zero;
  int64_t columns;  // that are not filled up
};

// Products with floats. `x` has the type that the set is for.
struct FloatKernels {
  int panel_bytes;   // per weight, unpacked
  int few_rows[2];   // so many rows of x at most go through `rows`, with 4 and 8 bits: measured
  // total[m][64] = x . tile, m <= kDecodeRows
  void (*rows)(const Tile&, const void* x, int64_t stride, int m, float* total);
  // Weights of inputs begin .. begin + count, times their scale; those for float32 take kBf16Bits too.
  void (*unpack)(const Tile&, int64_t begin, int64_t count, void* panel);
  // total[m][64] (+)= x[:, :count] . panel
  void (*multiply)(const void* panel, int64_t count, const void* x, int64_t stride, int64_t m,
                   bool add, float* total);
};

// Products with int8 activations.
struct IntKernels {
  int few_rows;  // as above; 0 if `rows` is null
  // total[m][64] = sums of levels and weights times their scales, m <= kDecodeRows
  void (*rows)(const Tile&, const int8_t* levels, int64_t stride, const int32_t* level_sums, int m,
               float* total);
  // Nibbles of inputs begin .. begin + count to bytes, each step's two halves after another.
  void (*unpack)(const Tile&, int64_t begin, int64_t count, uint8_t* panel);
  // sums[m][64] (+)= levels . panel; the second one for a panel of unpacked nibbles
  void (*multiply)(const uint8_t* panel, int64_t count, const int8_t* levels, int64_t stride,
                   int64_t m, bool add, int32_t* sums);
  void (*multiply_nibbles)(const uint8_t* panel, int64_t count, const int8_t* levels,
                           int64_t stride, int64_t m, bool add, int32_t* sums);
  // total[m][64] (+)= scale * (sums - zero_point * level_sums[m]), for one group
  void (*fold)(const Tile&, int64_t group, const int32_t* sums, const int32_t* level_sums,
               int64_t m, bool add, float* total);
  // One row to levels; `given` is its scale, or 0: absmax / 127. Returns the scale.
  float (*quantize)(const void* x, Type type, int64_t k, int64_t group, int64_t bits, float given,
                    int8_t* levels, int32_t* sums);
};

// What stands between products; see pointwise.h.
struct Pointwise {
  void (*rms_norm)(const uint16_t* x, const uint16_t* weight, int64_t n, float eps, uint16_t* y);
  void (*rotate)(uint16_t* x, int64_t heads, int64_t half, const uint16_t* cos,
                 const uint16_t* sin);
  void (*swiglu)(uint16_t* gate, const uint16_t* up, int64_t n);
  void (*add)(uint16_t* x, const uint16_t* y, int64_t n);
  float (*round)(const uint16_t* x, int64_t n, int8_t* levels);
  void (*widen)(const int8_t* levels, int64_t n, uint16_t* out);
  void (*softmax)(float* scores, int64_t n);
  // Scores of one row to weights in bf16, before they are divided by their sum; returns 1 / sum
  float (*weigh)(float* scores, int64_t tile_stride, int64_t tiles, int64_t count,
                 const uint8_t* mask, float scale, uint16_t* weights);
  // Of four rows of weights, and of one; at most 64 channels of `width`
  void (*mix4)(const float* weights, int64_t stride, const uint16_t* values, int64_t width,
               int64_t count, int channels, uint16_t* out);
  void (*mix1)(const float* weights, int64_t stride, const uint16_t* values, int64_t width,
               int64_t count, int channels, uint16_t* out);
};

struct Kernels {
  const char* name;
  FloatKernels f32;
  FloatKernels bf16;  // null functions: x becomes float32 first
  IntKernels ints;
  // y[m][:width] = total[m] * row_scales[m] + bias, row_scales and bias perhaps null
  void (*store)(const float* total, const float* row_scales, const float* bias, int width,
                int64_t m, Type type, void* y, int64_t stride);
  void (*widen)(const uint16_t* bf16, int64_t count, float* out);
  // out[m * kTile] = weight . x[m] of bf16, m <= kDecodeRows
  void (*dot)(const uint16_t* weight, int64_t k, const uint16_t* x, int64_t stride, int m,
              float* out);
  // For calibration, into the type of the bf16 kernels' x, or float32 without them: tokens and
  // columns that are missing become zeros.
  // out[column][token], `tokens` rounded up to even
  void (*transpose)(const uint16_t* x, int64_t stride, int64_t tokens, int64_t columns, void* out,
                    int64_t out_stride);
  // A panel of 64 columns as `multiply` takes it, with tokens for inputs
  void (*gather)(const uint16_t* x, int64_t stride, int64_t tokens, int columns, void* panel);
  Pointwise pointwise;
};

extern const Kernels kPortable;
const Kernels* avx2_kernels();    // null if not compiled in
const Kernels* avx512_vnni_kernels();
const Kernels* avx512_kernels();

}  // namespace vlpress
