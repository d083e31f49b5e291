#include "decoder_layer.h"

#include <algorithm>

#include "gemm.h"
#include "threads.h"

namespace vlpress {
namespace {

// A product of bf16 rows with one linear layer, or with several that share the input.
Gemm gemm_of(const Linear& linear, const RowBatch& rows, const uint16_t* x, void* const* y,
             uint8_t* scratch) {
  return {linear.shape, linear.weights, linear.count, kBFloat16, x, rows.count,
          linear.shape.k, y, scratch, rows.threads};
}

void multiply(const Kernels& kernels, const Linear& linear, const RowBatch& rows, const uint16_t* x,
              void* const* y, uint8_t* scratch) {
  const Gemm p = gemm_of(linear, rows, x, y, scratch);
  linear.scale < 0 ? float_gemm(kernels, p) : integer_gemm(kernels, p, linear.scale);
}

int64_t multiply_scratch(const Kernels& kernels, const Linear& linear, const RowBatch& rows) {
  const Gemm p = gemm_of(linear, rows, nullptr, nullptr, nullptr);
  return linear.scale < 0 ? float_gemm_scratch(kernels, p) : integer_gemm_scratch(kernels, p);
}

// Division of the caller's scratch memory. The matrix products run one after another and share the
// last part.
struct DecoderLayerPlan {
  uint16_t* normed;  // [rows][hidden]; also the outputs of products that are added to x
  uint16_t* gate;    // [rows][inner]
  uint16_t* up;      // [rows][inner]
  uint8_t* products;
  int64_t bytes;

  DecoderLayerPlan(const Kernels& kernels, const DecoderLayer& layer, const RowBatch& rows) {
    int64_t used = 0;
    const auto take = [&](int64_t values) {
      uint8_t* begin = rows.scratch + used;
      used += aligned(2 * values);
      return reinterpret_cast<uint16_t*>(begin);
    };
    normed = take(rows.count * layer.hidden);
    gate = take(rows.count * layer.inner);
    up = take(rows.count * layer.inner);
    products = rows.scratch + used;
    int64_t largest = 0;
    for (const Linear* linear : {&layer.qkv, &layer.out, &layer.gate_up, &layer.down})
      largest = std::max(largest, multiply_scratch(kernels, *linear, rows));
    bytes = used + largest;
  }
};

// Calls work(row) for all rows, of `width` values each.
template <typename Work>
void each_row(const RowBatch& rows, int64_t width, const Work& work) {
  const int threads = useful_threads(rows.count * width * kNormOperations, rows.threads);
  parallel(rows.count, threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) work(row);
  });
}

// Long prompts are processed in chunks of equal size, so that the scratch memory (mostly gate and
// up) is small enough for the caller to reuse it between calls. A new allocation of this size comes
// as pages that the operating system has to clear first, a tenth of the time of a layer.
constexpr int64_t kMaxChunkRows = 512;

int64_t chunk_size(int64_t rows) {
  const int64_t chunks = std::max<int64_t>(1, (rows + kMaxChunkRows - 1) / kMaxChunkRows);
  return (rows + chunks - 1) / chunks;
}

// Calls work(first, chunk) for the chunks of all rows.
template <typename Work>
void each_chunk(const RowBatch& rows, const Work& work) {
  const int64_t size = chunk_size(rows.count);
  for (int64_t first = 0; first < rows.count; first += size)
    work(first, RowBatch{std::min(size, rows.count - first), rows.scratch, rows.threads});
}

// Normalizes each head, if there is a norm, and rotates it, in place.
void prepare_heads(const Pointwise& point, const DecoderLayer& layer, uint16_t* x, int64_t heads,
                   const uint16_t* norm, const uint16_t* cos, const uint16_t* sin) {
  for (int64_t h = 0; norm && h < heads; ++h) {
    uint16_t* const head = x + h * layer.head_dim;
    point.rms_norm(head, norm, layer.head_dim, layer.eps, head);
  }
  point.rotate(x, heads, layer.head_dim / 2, cos, sin);
}

void pre_attention_chunk(const Kernels& kernels, const DecoderLayer& layer, const RowBatch& rows,
                         const uint16_t* x, const uint16_t* cos, const uint16_t* sin,
                         uint16_t* const* qkv) {
  const DecoderLayerPlan plan(kernels, layer, rows);
  const Pointwise& point = kernels.pointwise;
  each_row(rows, layer.hidden, [&](int64_t row) {
    point.rms_norm(x + row * layer.hidden, layer.first_norm, layer.hidden, layer.eps,
                   plan.normed + row * layer.hidden);
  });
  multiply(kernels, layer.qkv, rows, plan.normed, reinterpret_cast<void* const*>(qkv),
           plan.products);
  const int64_t half = layer.head_dim / 2;
  each_row(rows, (layer.heads + layer.kv_heads) * layer.head_dim, [&](int64_t row) {
    const uint16_t *c = cos + row * half, *s = sin + row * half;
    prepare_heads(point, layer, qkv[0] + row * layer.heads * layer.head_dim, layer.heads,
                  layer.q_norm, c, s);
    prepare_heads(point, layer, qkv[1] + row * layer.kv_heads * layer.head_dim, layer.kv_heads,
                  layer.k_norm, c, s);
  });
}

void post_attention_chunk(const Kernels& kernels, const DecoderLayer& layer, const RowBatch& rows,
                          const uint16_t* attended, uint16_t* x) {
  const DecoderLayerPlan plan(kernels, layer, rows);
  const Pointwise& point = kernels.pointwise;
  void* const normed = plan.normed;
  multiply(kernels, layer.out, rows, attended, &normed, plan.products);
  each_row(rows, layer.hidden, [&](int64_t row) {
    uint16_t* residual = x + row * layer.hidden;
    uint16_t* normed_row = plan.normed + row * layer.hidden;  // here still the output projection
    point.add(residual, normed_row, layer.hidden);
    point.rms_norm(residual, layer.second_norm, layer.hidden, layer.eps, normed_row);
  });
  void* const gate_up[] = {plan.gate, plan.up};
  multiply(kernels, layer.gate_up, rows, plan.normed, gate_up, plan.products);
  // Divided by elements, not rows: a single token has enough inner channels for several threads.
  constexpr int64_t kElements = 1024;
  const int64_t values = rows.count * layer.inner;
  const int threads = useful_threads(values * kSwigluOperations, rows.threads);
  parallel((values + kElements - 1) / kElements, threads, [&](int, int64_t begin, int64_t end) {
    const int64_t first = begin * kElements, stop = std::min(end * kElements, values);
    point.swiglu(plan.gate + first, plan.up + first, stop - first);
  });
  multiply(kernels, layer.down, rows, plan.gate, &normed, plan.products);
  each_row(rows, layer.hidden, [&](int64_t row) {
    point.add(x + row * layer.hidden, plan.normed + row * layer.hidden, layer.hidden);
  });
}

}  // namespace

int64_t decoder_layer_scratch(const Kernels& kernels, const DecoderLayer& layer, int64_t rows,
                              int threads) {
  return DecoderLayerPlan(kernels, layer, {chunk_size(rows), nullptr, threads}).bytes;
}

void pre_attention(const Kernels& kernels, const DecoderLayer& layer, const RowBatch& rows,
                   const uint16_t* x, const uint16_t* cos, const uint16_t* sin,
                   uint16_t* const* qkv) {
  const int64_t width = layer.heads * layer.head_dim, kv_width = layer.kv_heads * layer.head_dim;
  each_chunk(rows, [&](int64_t first, const RowBatch& chunk) {
    const int64_t angle = first * (layer.head_dim / 2);
    uint16_t* const outputs[] = {qkv[0] + first * width, qkv[1] + first * kv_width,
                                 qkv[2] + first * kv_width};
    pre_attention_chunk(kernels, layer, chunk, x + first * layer.hidden, cos + angle, sin + angle,
                        outputs);
  });
}

void post_attention(const Kernels& kernels, const DecoderLayer& layer, const RowBatch& rows,
                    const uint16_t* attended, uint16_t* x) {
  const int64_t width = layer.heads * layer.head_dim;
  each_chunk(rows, [&](int64_t first, const RowBatch& chunk) {
    post_attention_chunk(kernels, layer, chunk, attended + first * width, x + first * layer.hidden);
  });
}

}  // namespace vlpress
