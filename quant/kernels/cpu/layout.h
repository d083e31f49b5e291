// Layout of prepacked weights, argument structs, and the kernel table of an instruction set.
//
// Letters: M = rows of x (tokens), N = out_features, K = in_features, G = groups per row.
//
// Weights are stored in tiles of 64 output columns; the last tile is padded with zeros. A tile is a
// sequence of steps along K: 8 inputs per step with 4 bits, 4 with 8 bits. A step is four vectors
// of 64 bytes, each for 16 columns, with one 32-bit lane per column:
//
//     4 bits, lane from its lowest nibble:   k0 k2 k4 k6 | k1 k3 k5 k7
//     8 bits, lane from its lowest byte:     k0 k2 k1 k3
//
// The order serves two instructions with the same bytes. Nibble j of both halves of a lane is a
// pair of neighbouring inputs, the operand of VDPBF16PS (a product of bf16 pairs). `lane &
// 0x0f0f0f0f` is four inputs (k0 k4 k1 k5), the operand of VPDPBUSD (a product of bytes), provided
// that the int8 activations are stored in the same order.
//
// Weights are integers, or codes of levels: numbers of a small float format (sign, exponent and
// fraction, highest bit first), or positions in a table of at most 16 levels. All are stored alike.
//
// 64 columns are one cache line of bytes, and four vectors of float32 sums: wide enough to hide the
// latency of a multiply-add with one row of x, narrow enough that a tile is a small task for a
// thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vlpress {

constexpr int kBf16Bits = 16;  // `bits` of a weight that is not quantized: bf16 [N][K]
constexpr int kTile = 64;      // columns
constexpr int kLanes = 16;     // columns of a vector
constexpr int kVectors = 4;    // vectors of a step
constexpr int kStepBytes = 256;
// Rows of x for which weights are unpacked in registers. With eight rows and two vectors of columns
// the 16 accumulators, their weights and x still fit into 32 registers.
constexpr int kDecodeRows = 8;
// Inputs of a panel (the unpacked part of a tile): 512 x 64 weights are 64 KiB in bf16, which stay
// in the L2 cache while all rows of x are multiplied with them.
constexpr int kPanelInputs = 512;
// Rows of x that a register tile holds: 6 rows x 4 vectors = 24 accumulators, which with 4 vectors
// of weights and x fill the 32 registers of AVX-512.
constexpr int kRegisterRows = 6;

// Rounds up to whole cache lines, so that buffers of different threads never share one.
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
  const uint8_t* zero_points;  // [tiles][G][64]; null if all equal `zero`
  const float* bias;           // [N] or null
  int64_t n;
  int32_t half_scales;  // whether scales are fp16
  int32_t zero;         // the common zero point, or the middle of the integer range
  float divisor;        // of the scales; 0: none
};

// Properties shared by all weights of one call; mirrored by ctypes in ../cpu.py.
struct Shape {
  int64_t k, group;  // group: inputs per scale
  int64_t bits;      // 4 or 8, as stored, or kBf16Bits
  const float* levels;  // [2^bits] by code; null: integers
  int64_t mantissa;     // bits of the fraction, if levels are numbers of a float format; else 0
};

// Arguments of one matrix product, y[i] = x W[i]' + bias[i].
struct Gemm {
  Shape shape;
  const Weight* weights;
  int count;
  Type type;  // of x and of every y
  const void* x;
  int64_t m, x_stride;  // stride: elements between rows
  void* const* y;       // [M][N] for each weight
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
  int64_t columns;  // without padding
  const float* levels;
  int64_t mantissa;
  float divisor, reciprocal;  // 0: scales are not divided
};

// Products with float activations. `x` has the type that the table entry is for.
//
// Two paths compute the same product. `direct` unpacks weights in registers: each weight is read
// once from memory and unpacked once per block of kDecodeRows rows. `unpack` and `multiply` write a
// panel of unpacked weights first, which costs a pass over it but serves any number of rows.
struct FloatKernels {
  int panel_bytes;     // per weight, unpacked
  int direct_rows[2];  // largest M for `direct`, with 4 and with 8 bits; measured
  // total[m][64] = x . tile, m <= kDecodeRows
  void (*direct)(const Tile&, const void* x, int64_t stride, int m, float* total);
  // Inputs begin .. begin + count, dequantized; the float32 entry takes kBf16Bits too.
  void (*unpack)(const Tile&, int64_t begin, int64_t count, void* panel);
  // total[m][64] (+)= x[:, :count] . panel
  void (*multiply)(const void* panel, int64_t count, const void* x, int64_t stride, int64_t m,
                   bool add, float* total);
  // The product of one row with 4-bit weights in integers, if that is faster than `direct`; else
  // null. `split_bytes`: of the split row; groups have at most kPanelInputs inputs, and levels are
  // those of byte_levels.h.
  int64_t (*split_bytes)(int64_t k, int64_t group);
  void (*split)(const float* x, int64_t k, int64_t group, uint8_t* split);
  void (*multiply_split)(const Tile&, const uint8_t* split, float* total);
};

// Products with int8 activations ("levels").
struct IntKernels {
  int direct_rows;  // as above; 0 if `direct` is null
  // total[m][64] = scaled sums of level * (weight - zero point), m <= kDecodeRows
  void (*direct)(const Tile&, const int8_t* levels, int64_t stride, const int32_t* level_sums,
                 int m, float* total);
  // Nibbles of inputs begin .. begin + count to bytes; the low nibbles of a step precede the high
  // ones.
  void (*unpack)(const Tile&, int64_t begin, int64_t count, uint8_t* panel);
  // sums[m][64] (+)= levels . panel; the second one for a panel of unpacked nibbles, whose smaller
  // values allow narrower sums
  void (*multiply)(const uint8_t* panel, int64_t count, const int8_t* levels, int64_t stride,
                   int64_t m, bool add, int32_t* sums);
  void (*multiply_nibbles)(const uint8_t* panel, int64_t count, const int8_t* levels,
                           int64_t stride, int64_t m, bool add, int32_t* sums);
  // total[m][64] (+)= scale * (sums - zero_point * level_sums[m]), for one group
  void (*fold)(const Tile&, int64_t group, const int32_t* sums, const int32_t* level_sums,
               int64_t m, bool add, float* total);
  // Quantizes one row; `given` is its scale, or 0 for absmax / 127. Returns the scale.
  float (*quantize)(const void* x, Type type, int64_t k, int64_t group, int64_t bits, float given,
                    int8_t* levels, int32_t* sums);
};

// Operations between matrix products; see pointwise.h.
struct Pointwise {
  void (*rms_norm)(const uint16_t* x, const uint16_t* weight, int64_t n, float eps, uint16_t* y);
  void (*rotate)(uint16_t* x, int64_t heads, int64_t half, const uint16_t* cos,
                 const uint16_t* sin);
  void (*swiglu)(uint16_t* gate, const uint16_t* up, int64_t n);
  void (*add)(uint16_t* x, const uint16_t* y, int64_t n);
  float (*quantize)(const uint16_t* x, int64_t n, int8_t* levels);
  void (*widen)(const int8_t* levels, int64_t n, uint16_t* out);
  void (*softmax)(float* scores, int64_t n);
  // Scores of one row to bf16 weights, not yet divided by their sum; returns 1 / sum
  float (*softmax_tiles)(float* scores, int64_t tile_stride, int64_t tiles, int64_t count,
                         const uint8_t* mask, float scale, uint16_t* weights);
  // Weighted sums of values for four rows of weights, and for one; at most 64 of `width` channels
  void (*weighted_sum4)(const float* weights, int64_t stride, const uint16_t* values,
                        int64_t width, int64_t count, int channels, uint16_t* out);
  void (*weighted_sum1)(const float* weights, int64_t stride, const uint16_t* values,
                        int64_t width, int64_t count, int channels, uint16_t* out);
  // One token of the gated delta rule for at most 64 columns of the state of a head, which has d rows
  // `width` apart; `out` and `v` have a value per column
  void (*delta_step)(const float* q, const float* k, const float* v, float decay, float beta,
                     int64_t d, int64_t width, int columns, float* state, float* out);
};

// The kernel table of one instruction set.
struct Kernels {
  const char* name;
  FloatKernels f32;
  FloatKernels bf16;  // null functions: x is converted to float32 first
  IntKernels ints;
  // y[m][:width] = total[m] * row_scales[m] + bias; row_scales and bias may be null
  void (*store)(const float* total, const float* row_scales, const float* bias, int width,
                int64_t m, Type type, void* y, int64_t stride);
  void (*widen)(const uint16_t* bf16, int64_t count, float* out);
  // out[m * kTile] = weight . x[m] in bf16, m <= kDecodeRows
  void (*dot)(const uint16_t* weight, int64_t k, const uint16_t* x, int64_t stride, int m,
              float* out);
  // For syrk.cpp, into the type of the bf16 kernels' x, or float32 without them. Missing tokens and
  // columns become zeros.
  // out[column][token], `tokens` rounded up to even
  void (*transpose)(const uint16_t* x, int64_t stride, int64_t tokens, int64_t columns, void* out,
                    int64_t out_stride);
  // A panel of 64 columns in the form that `multiply` takes, with tokens in the role of inputs
  void (*gather)(const uint16_t* x, int64_t stride, int64_t tokens, int columns, void* panel);
  Pointwise pointwise;
};

extern const Kernels kPortable;
const Kernels* avx2_kernels();  // null if not compiled in
const Kernels* avx512_vnni_kernels();
const Kernels* avx512_kernels();

}  // namespace vlpress
