// Attention of many tokens: scores and weighted values are products of panels, as those with weights
// are. All scores of a few tokens stand at a time, so that their softmax is computed once.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention.h"
#include "threads.h"

namespace vlpress {
namespace {

constexpr int64_t kQueries = 48;  // tokens whose scores stand in the second cache

int64_t tiles_of(int64_t columns) { return (columns + kTile - 1) / kTile; }

// Where things lie in the caller's memory.
struct Plan {
  int64_t key_tiles, value_tiles;   // of columns, and of channels
  int64_t key_panel, value_panel;   // values in one
  int64_t head_values;              // of all panels of one head
  uint16_t* panels;                 // [prompts * kv_heads]: keys, values
  float* scores;                    // for each thread [key_tiles][kQueries][64]
  uint16_t* weights;                // for each thread [kQueries][key_tiles * 64]
  int64_t bytes;

  Plan(const Prompts& p, int threads) {
    key_tiles = tiles_of(p.columns);
    value_tiles = tiles_of(p.head_dim);
    key_panel = p.head_dim * kTile;
    value_panel = (p.columns + 1) / 2 * 2 * kTile;
    head_values = key_tiles * key_panel + value_tiles * value_panel;
    const int64_t all = aligned(2 * p.prompts * p.kv_heads * head_values);
    const int64_t scored = kQueries * key_tiles * kTile;
    panels = reinterpret_cast<uint16_t*>(p.scratch);
    scores = reinterpret_cast<float*>(p.scratch + all);
    weights = reinterpret_cast<uint16_t*>(scores + threads * scored);
    bytes = all + threads * scored * 6;
  }

  uint16_t* keys(int64_t head) const { return panels + head * head_values; }
  uint16_t* values(int64_t head) const { return keys(head) + key_tiles * key_panel; }
};

// Keys first .. first + 64 as a panel: columns are keys, inputs are channels.
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

void make_panels(const Kernels& kernels, const Prompts& p, const Plan& plan, int64_t head,
                 int64_t part) {
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

// Tokens first .. first + m of one head.
void attend_queries(const Kernels& kernels, const Prompts& p, const Plan& plan, int64_t prompt,
                    int64_t head, int64_t first, int thread) {
  const int64_t m = std::min(kQueries, p.tokens - first);
  const int64_t width = p.heads * p.head_dim, past = p.columns - p.tokens;
  const int64_t at = (prompt * p.tokens + first) * width + head * p.head_dim;
  const int64_t kv = prompt * p.kv_heads + head / (p.heads / p.kv_heads);
  const int64_t seen = p.mask ? p.columns : past + first + m;  // of the last of these tokens
  const int64_t stride = plan.key_tiles * kTile, tile_size = kQueries * kTile;
  float* scores = plan.scores + thread * kQueries * stride;
  uint16_t* weights = plan.weights + thread * kQueries * stride;
  for (int64_t tile = 0; tile < tiles_of(seen); ++tile)
    kernels.bf16.multiply(plan.keys(kv) + tile * plan.key_panel, p.head_dim, p.q + at, width, m,
                          false, scores + tile * tile_size);
  float factors[kQueries];
  const float scale = 1.0f / std::sqrt(static_cast<float>(p.head_dim));
  for (int64_t i = 0; i < m; ++i) {
    const uint8_t* mask =
        p.mask ? p.mask + prompt * p.mask_stride + (first + i) * p.columns : nullptr;
    const int64_t count = p.mask ? p.columns : past + first + i + 1;
    factors[i] = kernels.pointwise.weigh(scores + i * kTile, tile_size, tiles_of(seen), count, mask,
                                         scale, weights + i * stride);
  }
  // Scores have been read: their room takes the sums.
  for (int64_t tile = 0; tile < plan.value_tiles; ++tile) {
    const int64_t channel = tile * kTile, inputs = (seen + 1) / 2 * 2;
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

bool attends_prompts(const Kernels& kernels) { return kernels.bf16.multiply != nullptr; }

int64_t prompts_scratch(const Prompts& p, int threads) { return Plan(p, threads).bytes; }

void attend_prompts(const Kernels& kernels, const Prompts& p, int threads) {
  const Plan plan(p, threads);
  const int64_t parts = plan.key_tiles + plan.value_tiles;
  parallel(p.prompts * p.kv_heads * parts, threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) make_panels(kernels, p, plan, i / parts, i % parts);
  });
  const int64_t blocks = (p.tokens + kQueries - 1) / kQueries;
  parallel(p.prompts * p.heads * blocks, threads, [&](int thread, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / blocks;
      attend_queries(kernels, p, plan, head / p.heads, head % p.heads, i % blocks * kQueries,
                     thread);
    }
  });
}

}  // namespace vlpress
