// Attention of many tokens. Scores (q k') and weighted values (softmax v) are matrix products of
// bf16 pairs, computed by the panel kernels of the linear layers with keys and values in the role
// of weights.
//
// All scores of a block of queries are materialized before the softmax, rather than rescaled online
// as in flash attention: a block of 48 queries over 4096 columns takes 768 KiB, which the L2 cache
// holds, and each row is exponentiated once.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention.h"
#include "threads.h"

namespace vlpress {
namespace {

// Tokens whose scores are computed together: a multiple of the register tile (6 rows), small enough
// for the L2 cache.
constexpr int64_t kQueryBlock = 48;

int64_t tiles_of(int64_t columns) { return (columns + kTile - 1) / kTile; }

// Division of the caller's scratch memory.
struct PrefillPlan {
  int64_t key_tiles, value_tiles;   // 64 columns, and 64 channels each
  int64_t key_panel, value_panel;   // elements of one panel
  int64_t head_values;              // elements of all panels of one KV head
  uint16_t* panels;                 // [prompts * kv_heads]: keys, values
  float* scores;                    // for each thread [key_tiles][kQueryBlock][64]
  uint16_t* weights;                // for each thread [kQueryBlock][key_tiles * 64]
  int64_t bytes;

  PrefillPlan(const PrefillAttention& p, int threads) {
    key_tiles = tiles_of(p.columns);
    value_tiles = tiles_of(p.head_dim);
    key_panel = p.head_dim * kTile;
    value_panel = (p.columns + 1) / 2 * 2 * kTile;
    head_values = key_tiles * key_panel + value_tiles * value_panel;
    const int64_t panel_bytes = aligned(2 * p.prompts * p.kv_heads * head_values);
    const int64_t score_count = kQueryBlock * key_tiles * kTile;
    panels = reinterpret_cast<uint16_t*>(p.scratch);
    scores = reinterpret_cast<float*>(p.scratch + panel_bytes);
    weights = reinterpret_cast<uint16_t*>(scores + threads * score_count);
    bytes = panel_bytes + threads * score_count * 6;  // 4 bytes of score, 2 of weight
  }

  uint16_t* keys(int64_t head) const { return panels + head * head_values; }
  uint16_t* values(int64_t head) const { return keys(head) + key_tiles * key_panel; }
};

// Packs 64 keys as a panel whose columns are keys and whose inputs are channels. A key is
// contiguous, so pairs of channels are copied as they are; the gather of values transposes pairs of
// tokens.
void gather_keys(const uint16_t* k, int64_t stride, int64_t count, int64_t width, uint16_t* panel) {
  for (int64_t c = 0; c < kTile; ++c)
    for (int64_t i = 0; i < width; i += 2) {
      uint16_t* at = panel + i * kTile + 2 * c;
      if (c < count)
        std::memcpy(at, k + c * stride + i, 4);
      else
        std::memset(at, 0, 4);
    }
}

// Packs panel `part` of a KV head: keys first, then values. Done once, before the queries: every
// query head of the group and every block of queries reads the panels again.
void make_panel(const Kernels& kernels, const PrefillAttention& p, const PrefillPlan& plan,
                int64_t head, int64_t part) {
  const int64_t prompt = head / p.kv_heads, kv = head % p.kv_heads;
  if (part < plan.key_tiles) {
    const Strides& s = p.key_strides;
    const int64_t first = part * kTile;
    gather_keys(p.k + prompt * s.prompt + kv * s.head + first * s.column, s.column,
                std::min<int64_t>(kTile, p.columns - first), p.head_dim,
                plan.keys(head) + part * plan.key_panel);
    return;
  }
  const Strides& s = p.value_strides;
  const int64_t tile = part - plan.key_tiles, channel = tile * kTile;
  kernels.gather(p.v + prompt * s.prompt + kv * s.head + channel, s.column, p.columns,
                 static_cast<int>(std::min<int64_t>(kTile, p.head_dim - channel)),
                 plan.values(head) + tile * plan.value_panel);
}

// Tokens first .. first + m of one query head.
void attend_queries(const Kernels& kernels, const PrefillAttention& p, const PrefillPlan& plan,
                    int64_t prompt, int64_t head, int64_t first, int thread) {
  const int64_t m = std::min(kQueryBlock, p.tokens - first);
  const int64_t width = p.heads * p.head_dim, past = p.columns - p.tokens;
  const int64_t at = (prompt * p.tokens + first) * width + head * p.head_dim;
  const int64_t kv = prompt * p.kv_heads + head / (p.heads / p.kv_heads);
  // Columns that the last of these tokens attends to; causal blocks skip the tiles after them.
  const int64_t visible = p.mask ? p.columns : past + first + m;
  const int64_t stride = plan.key_tiles * kTile, tile_size = kQueryBlock * kTile;
  float* scores = plan.scores + thread * kQueryBlock * stride;
  uint16_t* weights = plan.weights + thread * kQueryBlock * stride;
  for (int64_t tile = 0; tile < tiles_of(visible); ++tile)
    kernels.bf16.multiply(plan.keys(kv) + tile * plan.key_panel, p.head_dim, p.q + at, width, m,
                          false, scores + tile * tile_size);
  float factors[kQueryBlock];
  const float scale = 1.0f / std::sqrt(static_cast<float>(p.head_dim));
  for (int64_t i = 0; i < m; ++i) {
    const uint8_t* mask =
        p.mask ? p.mask + prompt * p.mask_stride + (first + i) * p.columns : nullptr;
    const int64_t count = p.mask ? p.columns : past + first + i + 1;
    factors[i] =
        kernels.pointwise.softmax_tiles(scores + i * kTile, tile_size, tiles_of(visible), count,
                                        mask, scale, weights + i * stride);
  }
  // The scores are no longer needed; their memory holds the sums. Weights are unnormalized: `store`
  // multiplies each row by the reciprocal of its sum, in float32.
  for (int64_t tile = 0; tile < plan.value_tiles; ++tile) {
    const int64_t channel = tile * kTile, inputs = (visible + 1) / 2 * 2;
    const uint16_t* panel = plan.values(kv) + tile * plan.value_panel;
    for (int64_t s = 0; s < inputs; s += kPanelInputs)
      kernels.bf16.multiply(panel + s * kTile, std::min<int64_t>(kPanelInputs, inputs - s),
                            weights + s, stride, m, s > 0, scores);
    kernels.store(scores, factors, nullptr,
                  static_cast<int>(std::min<int64_t>(kTile, p.head_dim - channel)), m, kBFloat16,
                  p.out + at + channel, width);
  }
}

}  // namespace

bool has_prefill_attention(const Kernels& kernels) { return kernels.bf16.multiply != nullptr; }

int64_t prefill_attention_scratch(const PrefillAttention& p, int threads) {
  return PrefillPlan(p, threads).bytes;
}

void prefill_attention(const Kernels& kernels, const PrefillAttention& p, int threads) {
  const PrefillPlan plan(p, threads);
  const int64_t parts = plan.key_tiles + plan.value_tiles;
  parallel(p.prompts * p.kv_heads * parts, threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) make_panel(kernels, p, plan, i / parts, i % parts);
  });
  const int64_t blocks = (p.tokens + kQueryBlock - 1) / kQueryBlock;
  parallel(p.prompts * p.heads * blocks, threads, [&](int thread, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / blocks;
      attend_queries(kernels, p, plan, head / p.heads, head % p.heads, i % blocks * kQueryBlock,
                     thread);
    }
  });
}

}  // namespace vlpress
