// Attention of one new token per prompt. The work is bound by reading the KV cache, so the unit of
// work is a KV head: its keys and values are read once for all query heads that share it
// (grouped-query attention).
#include <algorithm>
#include <cmath>
#include <limits>

#include "attention.h"
#include "threads.h"

namespace vlpress {
namespace {

// Appends the new token to the cache of one head and returns its columns in bf16. A bf16 cache is
// returned in place; an int8 cache is widened to `wide`, without its scales, which the caller
// applies to the scores: one multiplication per column instead of one per channel.
const uint16_t* append_column(const Kernels& kernels, const DecodeAttention& a, int64_t head,
                              void* stored, float* scales, const uint16_t* fresh, uint16_t* wide) {
  const int64_t d = a.head_dim, first = head * a.capacity;
  if (!scales) {
    uint16_t* columns = static_cast<uint16_t*>(stored) + first * d;
    std::copy_n(fresh + head * d, d, columns + a.past * d);
    return columns;
  }
  int8_t* columns = static_cast<int8_t*>(stored) + first * d;
  scales[first + a.past] = kernels.pointwise.quantize(fresh + head * d, d, columns + a.past * d);
  kernels.pointwise.widen(columns, (a.past + 1) * d, wide);
  return wide;
}

// Multiplies each row of scores by the scales of the columns.
void scale_columns(float* scores, int64_t rows, int64_t count, const float* scales) {
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t s = 0; s < count; ++s) scores[m * count + s] *= scales[s];
}

// The query heads of one prompt that share a KV head.
void attend_group(const Kernels& kernels, const DecodeAttention& a, int64_t prompt, int64_t kv,
                  int thread) {
  const Pointwise& point = kernels.pointwise;
  const int64_t d = a.head_dim, count = a.past + 1, group = a.heads / a.kv_heads;
  const int64_t head = prompt * a.kv_heads + kv;
  float* scores = a.scores + thread * group * count;
  uint16_t* wide = a.widened + (a.key_scales ? thread * count * d : 0);
  const uint16_t* q = a.q + (prompt * a.heads + kv * group) * d;
  const uint16_t* keys = append_column(kernels, a, head, a.keys, a.key_scales, a.k, wide);
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  alignas(64) float dots[kDecodeRows * kTile];
  for (int64_t first = 0; first < group; first += kDecodeRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kDecodeRows, group - first));
    for (int64_t s = 0; s < count; ++s) {
      kernels.dot(keys + s * d, d, q + first * d, d, rows, dots);
      for (int m = 0; m < rows; ++m) scores[(first + m) * count + s] = dots[m * kTile] * scale;
    }
  }
  if (a.key_scales) scale_columns(scores, group, count, a.key_scales + head * a.capacity);
  for (int64_t m = 0; m < group; ++m) {
    float* row = scores + m * count;
    if (a.mask)
      for (int64_t s = 0; s < count; ++s)
        if (!a.mask[prompt * count + s]) row[s] = -std::numeric_limits<float>::infinity();
    point.softmax(row, count);
  }
  const uint16_t* values = append_column(kernels, a, head, a.values, a.value_scales, a.v, wide);
  // The softmax weights take the values' scales before the weighted sum.
  if (a.value_scales) scale_columns(scores, group, count, a.value_scales + head * a.capacity);
  uint16_t* out = a.out + (prompt * a.heads + kv * group) * d;
  for (int64_t c = 0; c < d; c += kTile) {
    const int channels = static_cast<int>(std::min<int64_t>(kTile, d - c));
    int64_t m = 0;
    for (; m + 4 <= group; m += 4)
      point.weighted_sum4(scores + m * count, count, values + c, d, count, channels,
                          out + m * d + c);
    for (; m < group; ++m)
      point.weighted_sum1(scores + m * count, count, values + c, d, count, channels,
                          out + m * d + c);
  }
}

}  // namespace

void decode_attention(const Kernels& kernels, const DecodeAttention& a, int threads) {
  const int64_t products = 2 * a.prompts * a.heads * (a.past + 1) * a.head_dim;
  const int useful = useful_threads(products, threads);
  parallel(a.prompts * a.kv_heads, useful, [&](int thread, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      attend_group(kernels, a, i / a.kv_heads, i % a.kv_heads, thread);
  });
}

}  // namespace vlpress
