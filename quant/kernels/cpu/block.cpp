#include "block.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "drive.h"
#include "threads.h"

namespace vlpress {
namespace {

Problem problem(const Linear& linear, const Rows& rows, const uint16_t* x, void* const* y,
                uint8_t* scratch) {
  return {linear.shape, linear.weights, linear.count, kBFloat16, x, rows.count,
          linear.shape.k, y, scratch, rows.threads};
}

void multiply(const Kernels& kernels, const Linear& linear, const Rows& rows, const uint16_t* x,
              void* const* y, uint8_t* scratch) {
  const Problem p = problem(linear, rows, x, y, scratch);
  linear.scale < 0 ? float_products(kernels, p) : integer_products(kernels, p, linear.scale);
}

int64_t product_scratch(const Kernels& kernels, const Linear& linear, const Rows& rows) {
  const Problem p = problem(linear, rows, nullptr, nullptr, nullptr);
  return linear.scale < 0 ? float_scratch(kernels, p) : integer_scratch(kernels, p);
}

// Where things lie in the caller's memory.
struct Plan {
  uint16_t* normed;  // [rows][hidden], also what a product adds to x
  uint16_t* gate;    // [rows][inner]
  uint16_t* up;
  uint8_t* products;
  int64_t bytes;

  Plan(const Kernels& kernels, const Block& b, const Rows& rows) {
    int64_t used = 0;
    const auto take = [&](int64_t values) {
      uint8_t* at = rows.scratch + used;
      used += aligned(2 * values);
      return reinterpret_cast<uint16_t*>(at);
    };
    normed = take(rows.count * b.hidden);
    gate = take(rows.count * b.inner);
    up = take(rows.count * b.inner);
    products = rows.scratch + used;
    int64_t most = 0;
    for (const Linear* linear : {&b.qkv, &b.out, &b.gate_up, &b.down})
      most = std::max(most, product_scratch(kernels, *linear, rows));
    bytes = used + most;
  }
};

template <typename Work>
void each_row(const Rows& rows, const Work& work) {
  parallel(rows.count, rows.threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) work(row);
  });
}

// The columns of one prompt and head: those of a cache in bf16 as they are, of one in int8 in `wide`
// without their scales.
const uint16_t* columns(const Kernels& kernels, const Attention& a, int64_t head, void* stored,
                        float* scales, const uint16_t* fresh, uint16_t* wide) {
  const int64_t d = a.head_dim, first = head * a.capacity;
  if (!scales) {
    uint16_t* all = static_cast<uint16_t*>(stored) + first * d;
    std::copy_n(fresh + head * d, d, all + a.past * d);
    return all;
  }
  int8_t* all = static_cast<int8_t*>(stored) + first * d;
  scales[first + a.past] = kernels.pointwise.round(fresh + head * d, d, all + a.past * d);
  kernels.pointwise.widen(all, (a.past + 1) * d, wide);
  return wide;
}

void multiply_columns(float* scores, int64_t rows, int64_t count, const float* scales) {
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t s = 0; s < count; ++s) scores[m * count + s] *= scales[s];
}

// Heads of one prompt that share keys and values.
void attend_group(const Kernels& kernels, const Attention& a, int64_t prompt, int64_t kv,
                  int thread) {
  const Pointwise& point = kernels.pointwise;
  const int64_t d = a.head_dim, count = a.past + 1, group = a.heads / a.kv_heads;
  const int64_t head = prompt * a.kv_heads + kv;
  float* scores = a.scores + thread * group * count;
  uint16_t* wide = a.widened + (a.key_scales ? thread * count * d : 0);
  const uint16_t* q = a.q + (prompt * a.heads + kv * group) * d;
  const uint16_t* keys = columns(kernels, a, head, a.keys, a.key_scales, a.k, wide);
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  alignas(64) float dots[kDecodeRows * kTile];
  for (int64_t first = 0; first < group; first += kDecodeRows) {
    const int some = static_cast<int>(std::min<int64_t>(kDecodeRows, group - first));
    for (int64_t s = 0; s < count; ++s) {
      kernels.dot(keys + s * d, d, q + first * d, d, some, dots);
      for (int m = 0; m < some; ++m) scores[(first + m) * count + s] = dots[m * kTile] * scale;
    }
  }
  if (a.key_scales) multiply_columns(scores, group, count, a.key_scales + head * a.capacity);
  for (int64_t m = 0; m < group; ++m) {
    float* row = scores + m * count;
    if (a.mask)
      for (int64_t s = 0; s < count; ++s)
        if (!a.mask[prompt * count + s]) row[s] = -std::numeric_limits<float>::infinity();
    point.softmax(row, count);
  }
  const uint16_t* values = columns(kernels, a, head, a.values, a.value_scales, a.v, wide);
  if (a.value_scales) multiply_columns(scores, group, count, a.value_scales + head * a.capacity);
  uint16_t* out = a.out + (prompt * a.heads + kv * group) * d;
  for (int64_t c = 0; c < d; c += kTile) {
    const int channels = static_cast<int>(std::min<int64_t>(kTile, d - c));
    int64_t m = 0;
    for (; m + 4 <= group; m += 4)
      point.mix4(scores + m * count, count, values + c, d, count, channels, out + m * d + c);
    for (; m < group; ++m)
      point.mix1(scores + m * count, count, values + c, d, count, channels, out + m * d + c);
  }
}

}  // namespace

int64_t block_scratch(const Kernels& kernels, const Block& block, int64_t rows, int threads) {
  return Plan(kernels, block, {rows, nullptr, threads}).bytes;
}

void enter_block(const Kernels& kernels, const Block& b, const Rows& rows, const uint16_t* x,
                 const uint16_t* cos, const uint16_t* sin, uint16_t* const* qkv) {
  const Plan plan(kernels, b, rows);
  const Pointwise& point = kernels.pointwise;
  each_row(rows, [&](int64_t row) {
    point.rms_norm(x + row * b.hidden, b.first_norm, b.hidden, b.eps,
                   plan.normed + row * b.hidden);
  });
  multiply(kernels, b.qkv, rows, plan.normed, reinterpret_cast<void* const*>(qkv), plan.products);
  const int64_t half = b.head_dim / 2;
  each_row(rows, [&](int64_t row) {
    const uint16_t *c = cos + row * half, *s = sin + row * half;
    point.rotate(qkv[0] + row * b.heads * b.head_dim, b.heads, half, c, s);
    point.rotate(qkv[1] + row * b.kv_heads * b.head_dim, b.kv_heads, half, c, s);
  });
}

void attend(const Kernels& kernels, const Attention& a, int threads) {
  parallel(a.prompts * a.kv_heads, threads, [&](int thread, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      attend_group(kernels, a, i / a.kv_heads, i % a.kv_heads, thread);
  });
}

void leave_block(const Kernels& kernels, const Block& b, const Rows& rows,
                 const uint16_t* attended, uint16_t* x) {
  const Plan plan(kernels, b, rows);
  const Pointwise& point = kernels.pointwise;
  void* const normed = plan.normed;
  multiply(kernels, b.out, rows, attended, &normed, plan.products);
  each_row(rows, [&](int64_t row) {
    uint16_t* here = x + row * b.hidden;
    uint16_t* other = plan.normed + row * b.hidden;
    point.add(here, other, b.hidden);
    point.rms_norm(here, b.second_norm, b.hidden, b.eps, other);
  });
  void* const both[] = {plan.gate, plan.up};
  multiply(kernels, b.gate_up, rows, plan.normed, both, plan.products);
  // One token alone is cut too: its inner channels are many.
  constexpr int64_t kPiece = 1024;
  const int64_t values = rows.count * b.inner;
  parallel((values + kPiece - 1) / kPiece, rows.threads, [&](int, int64_t begin, int64_t end) {
    const int64_t first = begin * kPiece, stop = std::min(end * kPiece, values);
    point.swiglu(plan.gate + first, plan.up + first, stop - first);
  });
  multiply(kernels, b.down, rows, plan.gate, &normed, plan.products);
  each_row(rows, [&](int64_t row) {
    point.add(x + row * b.hidden, plan.normed + row * b.hidden, b.hidden);
  });
}

}  // namespace vlpress
