// Attention over keys and values in bf16 or, of one new token, int8.
#pragma once

#include "layout.h"

namespace vlpress {

// One new token of each prompt against what the cache holds; mirrored by ctypes in ../attention.py.
struct Newest {
  int64_t prompts, heads, kv_heads, head_dim;
  int64_t past, capacity;           // columns that are filled, and that there are
  const uint16_t *q, *k, *v;        // bf16 [prompts][heads or kv_heads][head_dim]
  void *keys, *values;              // bf16 or int8 [prompts][kv_heads][capacity][head_dim]; column
                                    // `past` is written
  float *key_scales, *value_scales; // [prompts][kv_heads][capacity]; null: keys and values are bf16
  const uint8_t* mask;              // [prompts][past + 1]: whether a column is seen; null: all are
  uint16_t* out;                    // bf16 [prompts][heads][head_dim]
  float* scores;                    // for each thread [heads / kv_heads][past + 1]
  uint16_t* widened;                // for each thread [past + 1][head_dim]; null: bf16
};

void attend_newest(const Kernels&, const Newest&, int threads);

// Elements from one prompt, head and column to the next.
struct Strides {
  int64_t prompt, head, column;
};

// All tokens of prompts; mirrored by ctypes in ../attention.py. head_dim is even.
struct Prompts {
  int64_t prompts, heads, kv_heads, head_dim;
  int64_t tokens, columns;     // of q, and of k and v: the last `tokens` columns are q's own
  const uint16_t *q, *k, *v;   // bf16; q: [prompts][tokens][heads][head_dim]
  Strides key_strides, value_strides;  // the last dimension is dense, and strides are even
  const uint8_t* mask;         // [tokens][columns] for each prompt; null: causal
  int64_t mask_stride;         // from one prompt's to the next, 0 if it is the same
  uint16_t* out;               // bf16 [prompts][tokens][heads][head_dim]
  uint8_t* scratch;
};

// Whether `attend_prompts` works: it needs products of bf16 pairs.
bool attends_prompts(const Kernels&);

int64_t prompts_scratch(const Prompts&, int threads);

void attend_prompts(const Kernels&, const Prompts&, int threads);

}  // namespace vlpress
