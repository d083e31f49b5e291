#include "drive.h"

#include <algorithm>
#include <cstring>

#include "threads.h"

namespace vlpress {
namespace {

constexpr int64_t kBlock = 1024;  // rows of x at a time: their sums stay in the second cache
constexpr int64_t kPart = 48;     // rows whose integer sums stay in the first cache

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Hands out parts of the caller's working memory; with no memory it only counts.
struct Scratch {
  uint8_t* at;
  int64_t used = 0;

  template <typename T>
  T* take(int64_t count) {
    uint8_t* part = at + used;
    used += aligned(count * static_cast<int64_t>(sizeof(T)));
    return reinterpret_cast<T*>(part);
  }
};

int64_t tiles_of(const Weight& weight) { return (weight.n + kTile - 1) / kTile; }

int64_t groups_of(const Problem& p) { return p.shape.k / p.shape.group; }

Tile tile_of(const Problem& p, const Weight& w, int64_t index) {
  const int64_t grid = index * groups_of(p) * kTile;
  const Shape& shape = p.shape;
  return {w.packed + index * (shape.k / step_inputs(shape.bits)) * kStepBytes,
          static_cast<const uint8_t*>(w.scales) + grid * (w.half_scales ? 2 : 4),
          w.zero_points ? w.zero_points + grid : nullptr,
          shape.k,
          shape.group,
          shape.bits,
          w.half_scales,
          w.zero};
}

// Calls work(weight, tile, thread) for every tile of all weights, by their numbers.
template <typename Work>
void each_tile(const Problem& p, const Work& work) {
  int64_t all = 0;
  for (int i = 0; i < p.count; ++i) all += tiles_of(p.weights[i]);
  parallel(all, p.threads, [&](int thread, int64_t begin, int64_t end) {
    int weight = 0;
    int64_t tile = begin;
    for (int64_t i = begin; i < end; ++i, ++tile) {
      for (; tile >= tiles_of(p.weights[weight]); ++weight) tile -= tiles_of(p.weights[weight]);
      work(weight, tile, thread);
    }
  });
}

int64_t bytes_of(Type type) { return type == kFloat32 ? 4 : 2; }

void store(const Kernels& kernels, const Problem& p, int weight, int64_t tile, int64_t first,
           int64_t m, const float* total, const float* row_scales) {
  const Weight& w = p.weights[weight];
  const int64_t column = tile * kTile;
  uint8_t* y = static_cast<uint8_t*>(p.y[weight]) + (first * w.n + column) * bytes_of(p.type);
  kernels.store(total, row_scales ? row_scales + first : nullptr,
                w.bias ? w.bias + column : nullptr,
                static_cast<int>(std::min<int64_t>(kTile, w.n - column)), m, p.type, y, w.n);
}

struct FloatPlan {
  const FloatKernels* kernels;
  float* widened;  // x in float32, where the kernels want that and x is not
  uint8_t* panels;
  float* totals;
  int64_t panel_bytes, rows;
  int64_t bytes;

  FloatPlan(const Kernels& all, const Problem& p) {
    const bool pairs = p.type == kBFloat16 && all.bf16.rows;
    kernels = pairs ? &all.bf16 : &all.f32;
    Scratch scratch{p.scratch};
    const bool widen = p.type == kBFloat16 && !pairs;
    widened = widen ? scratch.take<float>(p.m * p.shape.k) : nullptr;
    rows = std::min(p.m, kBlock);
    panel_bytes = p.m > kDecodeRows ? kTile * kPanelInputs * kernels->panel_bytes : 0;
    panels = scratch.take<uint8_t>(p.threads * panel_bytes);
    totals = scratch.take<float>(p.threads * rows * kTile);
    bytes = scratch.used;
  }
};

struct IntegerPlan {
  int8_t* levels;
  int32_t* level_sums;
  float* row_scales;
  uint8_t* panels;
  int32_t* sums;
  float* totals;
  int64_t panel_bytes, rows, sum_rows;
  int64_t bytes;

  explicit IntegerPlan(const Problem& p) {
    Scratch scratch{p.scratch};
    levels = scratch.take<int8_t>(p.m * p.shape.k);
    level_sums = scratch.take<int32_t>(p.m * groups_of(p));
    row_scales = scratch.take<float>(p.m);
    rows = std::min(p.m, kBlock);
    panel_bytes = p.shape.bits == 4 ? kTile * kPanelInputs : 0;
    sum_rows = p.shape.group > kPanelInputs ? rows : std::min(rows, kPart);
    panels = scratch.take<uint8_t>(p.threads * panel_bytes);
    sums = scratch.take<int32_t>(p.threads * sum_rows * kTile);
    totals = scratch.take<float>(p.threads * rows * kTile);
    bytes = scratch.used;
  }
};

// All sums of rows first .. first + m with one tile.
void integer_tile(const Kernels& kernels, const Problem& p, const IntegerPlan& plan,
                  const Tile& tile, int thread, int64_t first, int64_t m) {
  const IntKernels& ints = kernels.ints;
  const int64_t groups = groups_of(p);
  float* total = plan.totals + thread * plan.rows * kTile;
  int32_t* sums = plan.sums + thread * plan.sum_rows * kTile;
  uint8_t* unpacked = plan.panels + thread * plan.panel_bytes;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t start = g * p.shape.group, stop = start + p.shape.group;
    for (int64_t k = start; k < stop; k += kPanelInputs) {
      const int64_t count = std::min<int64_t>(kPanelInputs, stop - k);
      const uint8_t* panel = tile.packed + k / 4 * kStepBytes;
      if (p.shape.bits == 4) {
        ints.unpack(tile, k, count, unpacked);
        panel = unpacked;
      }
      for (int64_t part = 0; part < m; part += kPart) {
        const int64_t row = first + part, some = std::min(kPart, m - part);
        int32_t* here = p.shape.group > kPanelInputs ? sums + part * kTile : sums;
        ints.multiply(panel, count, plan.levels + row * p.shape.k + k, p.shape.k, some, k > start,
                      here);
        if (k + count == stop)
          ints.fold(tile, g, here, plan.level_sums + row * groups, groups, some, g > 0,
                    total + part * kTile);
      }
    }
  }
}

}  // namespace

int64_t float_scratch(const Kernels& kernels, const Problem& p) {
  return FloatPlan(kernels, p).bytes;
}

int64_t integer_scratch(const Problem& p) { return IntegerPlan(p).bytes; }

void float_products(const Kernels& kernels, const Problem& p) {
  const FloatPlan plan(kernels, p);
  const FloatKernels& floats = *plan.kernels;
  const int64_t inputs = p.shape.k;
  const uint8_t* x = static_cast<const uint8_t*>(p.x);
  int64_t stride = p.x_stride;
  if (plan.widened) {
    parallel(p.m, p.threads, [&](int, int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        kernels.widen(static_cast<const uint16_t*>(p.x) + row * p.x_stride, inputs,
                      plan.widened + row * inputs);
    });
    x = reinterpret_cast<const uint8_t*>(plan.widened);
    stride = inputs;
  }
  const int64_t width = plan.widened ? 4 : bytes_of(p.type);
  each_tile(p, [&](int weight, int64_t index, int thread) {
    const Tile tile = tile_of(p, p.weights[weight], index);
    float* total = plan.totals + thread * plan.rows * kTile;
    if (p.m <= kDecodeRows) {
      floats.rows(tile, x, stride, static_cast<int>(p.m), total);
      return store(kernels, p, weight, index, 0, p.m, total, nullptr);
    }
    uint8_t* panel = plan.panels + thread * plan.panel_bytes;
    for (int64_t first = 0; first < p.m; first += kBlock) {
      const int64_t m = std::min(kBlock, p.m - first);
      for (int64_t k = 0; k < inputs; k += kPanelInputs) {
        const int64_t some = std::min<int64_t>(kPanelInputs, inputs - k);
        floats.unpack(tile, k, some, panel);
        floats.multiply(panel, some, x + (first * stride + k) * width, stride, m, k > 0, total);
      }
      store(kernels, p, weight, index, first, m, total, nullptr);
    }
  });
}

void integer_products(const Kernels& kernels, const Problem& p, float scale) {
  const IntegerPlan plan(p);
  const Shape& shape = p.shape;
  parallel(p.m, p.threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      plan.row_scales[row] = kernels.ints.quantize(
          static_cast<const uint8_t*>(p.x) + row * p.x_stride * bytes_of(p.type), p.type, shape.k,
          shape.group, shape.bits, scale, plan.levels + row * shape.k,
          plan.level_sums + row * groups_of(p));
  });
  each_tile(p, [&](int weight, int64_t index, int thread) {
    const Tile tile = tile_of(p, p.weights[weight], index);
    float* total = plan.totals + thread * plan.rows * kTile;
    if (p.m <= kDecodeRows && kernels.ints.rows) {
      kernels.ints.rows(tile, plan.levels, shape.k, plan.level_sums, static_cast<int>(p.m), total);
      return store(kernels, p, weight, index, 0, p.m, total, plan.row_scales);
    }
    for (int64_t first = 0; first < p.m; first += kBlock) {
      const int64_t m = std::min(kBlock, p.m - first);
      integer_tile(kernels, p, plan, tile, thread, first, m);
      store(kernels, p, weight, index, first, m, total, plan.row_scales);
    }
  });
}

}  // namespace vlpress
