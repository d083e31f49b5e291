// One token of the gated delta rule (../../../model/gated_delta.py) for every prompt and head.
#pragma once

#include "layout.h"

namespace vlpress {

// Mirrored by ctypes in ../delta_rule.py. All numbers are float32.
struct DeltaRule {
  int64_t prompts, key_heads, value_heads;  // key head i serves a run of value heads
  int64_t key_dim, value_dim;
  const float *q, *k;          // [prompts][key_heads][key_dim]
  const float* v;              // [prompts][value_heads][value_dim]
  const float *decay, *beta;   // [prompts][value_heads]
  float* state;                // [prompts][value_heads][key_dim][value_dim]; it is updated
  float* out;                  // [prompts][value_heads][value_dim]
};

void delta_rule(const Kernels&, const DeltaRule&, int threads);

}  // namespace vlpress
