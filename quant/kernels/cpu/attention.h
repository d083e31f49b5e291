// Attention over keys and values in bf16 or, when decoding, int8.
#pragma once

#include "layout.h"

namespace vlpress {

// One new token per prompt against the KV cache; mirrored by ctypes in ../attention.py.
struct DecodeAttention {
  int64_t prompts, heads, kv_heads, head_dim;
  int64_t past, capacity;           // filled columns of the cache, and all of them
  const uint16_t *q, *k, *v;        // bf16 [prompts][heads or kv_heads][head_dim]
  void *keys, *values;              // bf16 or int8 [prompts][kv_heads][capacity][head_dim];
                                    // column `past` is written
  float *key_scales, *value_scales; // [prompts][kv_heads][capacity]; null: the cache is bf16
  const uint8_t* mask;              // [prompts][past + 1]: 0 hides a column; null: all are visible
  uint16_t* out;                    // bf16 [prompts][heads][head_dim]
  float* scores;                    // for each thread [heads / kv_heads][past + 1]
  uint16_t* widened;                // for each thread [past + 1][head_dim]; null: bf16
};

void decode_attention(const Kernels&, const DecodeAttention&, int threads);

// Elements between neighbouring prompts, heads and columns.
struct Strides {
  int64_t prompt, head, column;
};

// All tokens of the prompts; mirrored by ctypes in ../attention.py. head_dim is even.
struct PrefillAttention {
  int64_t prompts, heads, kv_heads, head_dim;
  int64_t tokens, columns;             // of q, and of k and v; the last `tokens` are q's own
  const uint16_t *q, *k, *v;           // bf16; q: [prompts][tokens][heads][head_dim]
  Strides key_strides, value_strides;  // the last dimension is contiguous; strides are even
  const uint8_t* mask;                 // [tokens][columns] for each prompt; null: causal
  int64_t mask_stride;                 // elements between prompts; 0: one mask for all
  uint16_t* out;                       // bf16 [prompts][tokens][heads][head_dim]
  uint8_t* scratch;
};

// Whether `prefill_attention` is available: it needs products of bf16 pairs.
bool has_prefill_attention(const Kernels&);

// Bytes of `scratch`.
int64_t prefill_attention_scratch(const PrefillAttention&, int threads);

void prefill_attention(const Kernels&, const PrefillAttention&, int threads);

}  // namespace vlpress
