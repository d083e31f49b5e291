// Loads shared by the AVX-512 kernels.
#pragma once

#include <immintrin.h>

#include "simd.h"

namespace vlpress {
namespace {

// Four bytes of x (two bf16 numbers, or four levels) in every lane; from any address.
inline __m512i broadcast4(const void* bytes) {
  int32_t bits;
  std::memcpy(&bits, bytes, sizeof bits);
  return _mm512_set1_epi32(bits);
}

inline __m512i load(const void* at) { return _mm512_loadu_si512(at); }

inline __m512 scales16(const Tile& tile, int64_t at) {
  if (!tile.half_scales)
    return divided(_mm512_loadu_ps(static_cast<const float*>(tile.scales) + at), tile);
  const __m512 stored = _mm512_cvtph_ps(_mm256_loadu_si256(
      reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(tile.scales) + at)));
  return divided(stored, tile);
}

inline __m512i zeros16(const uint8_t* at) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}

// Prefetches the weights of a step, see kPrefetchBytes. Into L2 only: L1 holds x.
inline void prefetch_step(const uint8_t* packed) {
  VLPRESS_UNROLL
  for (int v = 0; v < kVectors; ++v)
    _mm_prefetch(reinterpret_cast<const char*>(packed + kPrefetchBytes + 64 * v), _MM_HINT_T1);
}

}  // namespace
}  // namespace vlpress
