// What the kernels for AVX-512 share.
#pragma once

#include <immintrin.h>

#include "simd.h"

namespace vlpress {
namespace {


inline __m512i broadcast4(const void* four) {
  int32_t bits;
  std::memcpy(&bits, four, sizeof bits);
  return _mm512_set1_epi32(bits);
}

inline __m512i load(const void* at) { return _mm512_loadu_si512(at); }

inline __m512 scales16(const Tile& tile, int64_t at) {
  if (!tile.half_scales) return _mm512_loadu_ps(static_cast<const float*>(tile.scales) + at);
  return _mm512_cvtph_ps(_mm256_loadu_si256(
      reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(tile.scales) + at)));
}

inline __m512i zeros16(const uint8_t* at) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}

// Weights are read once and in order, but hardware stops looking ahead at the end of a page.
inline void prefetch_step(const uint8_t* packed) {
  VLPRESS_UNROLL
  for (int v = 0; v < kVectors; ++v)
    _mm_prefetch(reinterpret_cast<const char*>(packed + kPrefetchBytes + 64 * v), _MM_HINT_T1);
}

}  // namespace
}  // namespace vlpress
