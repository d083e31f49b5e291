// Vectors of the register width of the instruction set that a source file is compiled for, as GCC's
// and Clang's vector extensions: the compiler picks the instructions, also for ARM. Plain loops
// over arrays are not enough, because GCC leaves their sums in memory.
#pragma once

#include <cstring>

#include "layout.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// For loops over arrays of accumulators. GCC keeps such an array in registers only if all loops
// over it are unrolled before its scalar replacement pass; otherwise each sum is stored after each
// instruction, at half the speed. Eight is the largest trip count.
#define VLPRESS_UNROLL _Pragma("GCC unroll 8")

// For functions whose arguments have to stay in registers.
#define VLPRESS_INLINE inline __attribute__((always_inline))

namespace vlpress {
namespace {

#if defined(__AVX512F__)
constexpr int kWide = 16;
#elif defined(__AVX2__)
constexpr int kWide = 8;
#else
constexpr int kWide = 4;
#endif

// Prefetch distance for weights, into the L2 cache: two pages. Weights are read once, in order, but
// the hardware prefetcher stops at each 4 KiB page; measured, this distance raises one-token
// products from 0.72 to 0.94 of the read bandwidth.
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

// Broadcast. `value - 0` is an identity for every value, so the compiler emits a broadcast load.
// `value + 0` is not (-0 + 0 = 0): GCC would add first, then broadcast a register on the port that
// multiplies.
inline Floats all_lanes(float value) { return value - Floats{}; }
inline Floats to_floats(Ints whole) { return __builtin_convertvector(whole, Floats); }
inline Ints as_ints(Words bits) { return reinterpret_cast<Ints>(bits); }
inline Floats as_floats(Words bits) { return reinterpret_cast<Floats>(bits); }

// fp16 to float32, including subnormals and infinities. In integer operations where the instruction
// set has no F16C.
inline Floats from_fp16(Halves half) {
#if defined(__AVX2__) && defined(__F16C__) && !defined(__AVX512F__)
  return _mm256_cvtph_ps(reinterpret_cast<__m128i>(half));
#else
  const Words bits = __builtin_convertvector(half, Words), rest = bits & 0x7fff;
  const Words normal = (rest << 13) + ((127 - 15) << 23);
  const Words subnormal = reinterpret_cast<Words>(to_floats(as_ints(rest)) * 0x1p-24f);
  const Words infinite = 0x7f800000 | (rest << 13);
  const Words small = reinterpret_cast<Words>(rest < 0x400),
              large = reinterpret_cast<Words>(rest >= 0x7c00);
  const Words magnitude = (small & subnormal) | (large & infinite) | (~(small | large) & normal);
  return as_floats(magnitude | (bits & 0x8000) << 16);
#endif
}

inline Floats from_bf16(Halves bf16) {
  return as_floats(__builtin_convertvector(bf16, Words) << 16);
}

// Position (in bits) of input `i` of a step in its lane, see layout.h.
inline int shift_of(int bits, int i) { return i % 2 * 16 + i / 2 * (bits == 4 ? 4 : 8); }

// Scales over the tile's divisor, which is not 0, correctly rounded. With fused multiply-adds the
// remainder of the quotient by the rounded reciprocal is exact (Markstein, "Computation of
// elementary functions on the IBM RISC System/6000 processor", 1990, theorem 8.2).
inline Floats quotients(Floats scales, const Tile& tile) {
#if defined(__AVX512F__)
  const Floats quotient = scales * tile.reciprocal, divisor = all_lanes(tile.divisor);
  const Floats rest = _mm512_fnmadd_ps(quotient, divisor, scales);
  return _mm512_fmadd_ps(rest, all_lanes(tile.reciprocal), quotient);
#elif defined(__FMA__)
  const Floats quotient = scales * tile.reciprocal, divisor = all_lanes(tile.divisor);
  const Floats rest = _mm256_fnmadd_ps(quotient, divisor, scales);
  return _mm256_fmadd_ps(rest, all_lanes(tile.reciprocal), quotient);
#else
  return scales / tile.divisor;
#endif
}

inline Floats divided(Floats scales, const Tile& tile) {
  return tile.divisor == 0.0f ? scales : quotients(scales, tile);
}

// Scales and zero points of kWide columns of a tile, from index `at` = group * kTile + column.
inline Floats half_scales_at(const Tile& tile, int64_t at) {
  return from_fp16(load_lanes<Halves>(static_cast<const uint16_t*>(tile.scales) + at));
}

inline Floats scales_at(const Tile& tile, int64_t at) {
  return divided(tile.half_scales
                     ? half_scales_at(tile, at)
                     : load_lanes<Floats>(static_cast<const float*>(tile.scales) + at),
                 tile);
}

inline Ints zeros_at(const Tile& tile, int64_t at) {
  return tile.zero_points ? __builtin_convertvector(load_lanes<Bytes>(tile.zero_points + at), Ints)
                          : Ints{} + tile.zero;
}

}  // namespace
}  // namespace vlpress
