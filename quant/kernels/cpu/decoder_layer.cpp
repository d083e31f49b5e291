#include "decoder_layer.h"

#include <algorithm>

#include "gemm.h"
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

// Calls work(row) for all rows, of `width` values each.
template <typename Work>
void each_row(const Rows& rows, int64_t width, const Work& work) {
  const int threads = useful_threads(rows.count * width * kNormOperations, rows.threads);
  parallel(rows.count, threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) work(row);
  });
}

// Long prompts go through in even parts: what stands between the feed-forward's products is then
// small enough to be kept from call to call.
constexpr int64_t kPart = 512;

int64_t part_of(int64_t rows) {
  const int64_t parts = std::max<int64_t>(1, (rows + kPart - 1) / kPart);
  return (rows + parts - 1) / parts;
}

// Calls work(first, part) for the parts of all rows.
template <typename Work>
void each_part(const Rows& rows, const Work& work) {
  const int64_t size = part_of(rows.count);
  for (int64_t first = 0; first < rows.count; first += size)
    work(first, Rows{std::min(size, rows.count - first), rows.scratch, rows.threads});
}

void enter_part(const Kernels& kernels, const Block& b, const Rows& rows, const uint16_t* x,
                const uint16_t* cos, const uint16_t* sin, uint16_t* const* qkv) {
  const Plan plan(kernels, b, rows);
  const Pointwise& point = kernels.pointwise;
  each_row(rows, b.hidden, [&](int64_t row) {
    point.rms_norm(x + row * b.hidden, b.first_norm, b.hidden, b.eps,
                   plan.normed + row * b.hidden);
  });
  multiply(kernels, b.qkv, rows, plan.normed, reinterpret_cast<void* const*>(qkv), plan.products);
  const int64_t half = b.head_dim / 2;
  each_row(rows, (b.heads + b.kv_heads) * b.head_dim, [&](int64_t row) {
    const uint16_t *c = cos + row * half, *s = sin + row * half;
    point.rotate(qkv[0] + row * b.heads * b.head_dim, b.heads, half, c, s);
    point.rotate(qkv[1] + row * b.kv_heads * b.head_dim, b.kv_heads, half, c, s);
  });
}

void leave_part(const Kernels& kernels, const Block& b, const Rows& rows, const uint16_t* attended,
                uint16_t* x) {
  const Plan plan(kernels, b, rows);
  const Pointwise& point = kernels.pointwise;
  void* const normed = plan.normed;
  multiply(kernels, b.out, rows, attended, &normed, plan.products);
  each_row(rows, b.hidden, [&](int64_t row) {
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
  const int threads = useful_threads(values * kSwigluOperations, rows.threads);
  parallel((values + kPiece - 1) / kPiece, threads, [&](int, int64_t begin, int64_t end) {
    const int64_t first = begin * kPiece, stop = std::min(end * kPiece, values);
    point.swiglu(plan.gate + first, plan.up + first, stop - first);
  });
  multiply(kernels, b.down, rows, plan.gate, &normed, plan.products);
  each_row(rows, b.hidden, [&](int64_t row) {
    point.add(x + row * b.hidden, plan.normed + row * b.hidden, b.hidden);
  });
}

}  // namespace

int64_t block_scratch(const Kernels& kernels, const Block& block, int64_t rows, int threads) {
  return Plan(kernels, block, {part_of(rows), nullptr, threads}).bytes;
}

void enter_block(const Kernels& kernels, const Block& b, const Rows& rows, const uint16_t* x,
                 const uint16_t* cos, const uint16_t* sin, uint16_t* const* qkv) {
  const int64_t width = b.heads * b.head_dim, kv_width = b.kv_heads * b.head_dim;
  each_part(rows, [&](int64_t first, const Rows& part) {
    const int64_t angle = first * (b.head_dim / 2);
    uint16_t* const here[] = {qkv[0] + first * width, qkv[1] + first * kv_width,
                              qkv[2] + first * kv_width};
    enter_part(kernels, b, part, x + first * b.hidden, cos + angle, sin + angle, here);
  });
}

void leave_block(const Kernels& kernels, const Block& b, const Rows& rows,
                 const uint16_t* attended, uint16_t* x) {
  const int64_t width = b.heads * b.head_dim;
  each_part(rows, [&](int64_t first, const Rows& part) {
    leave_part(kernels, b, part, attended + first * width, x + first * b.hidden);
  });
}

}  // namespace vlpress
