#include "gemm.h"

#include <algorithm>
#include <cstring>

#include "threads.h"

namespace vlpress {
namespace {

constexpr int64_t kBlock = 1024;  // rows of x at a time: their sums stay in the second cache
constexpr int64_t kCached = 16 << 20;  // bytes of x at a time: they stay in the third cache
constexpr int64_t kRegisterRows = 6;       // rows that products take at once
constexpr int64_t kPart = 48;     // rows whose integer sums stay in the first cache

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
  return {w.packed + index * tile_bytes(shape.bits, shape.k),
          static_cast<const uint8_t*>(w.scales) + grid * (w.half_scales ? 2 : 4),
          w.zero_points ? w.zero_points + grid : nullptr,
          shape.k,
          shape.group,
          shape.bits,
          w.half_scales,
          w.zero,
          std::min<int64_t>(kTile, w.n - index * kTile)};
}

// Calls work(weight, tile, thread) for every tile of all weights, by their numbers.
template <typename Work>
void each_tile(const Problem& p, const Work& work) {
  int64_t all = 0;
  for (int i = 0; i < p.count; ++i) all += tiles_of(p.weights[i]);
  const int threads = useful_threads(all * kTile * p.shape.k * p.m, p.threads);
  parallel(all, threads, [&](int thread, int64_t begin, int64_t end) {
    int weight = 0;
    int64_t tile = begin;
    for (int64_t i = begin; i < end; ++i, ++tile) {
      for (; tile >= tiles_of(p.weights[weight]); ++weight) tile -= tiles_of(p.weights[weight]);
      work(weight, tile, thread);
    }
  });
}

// Calls work(first, m) for parts of few rows; a tile stays in the second cache for all of them.
template <typename Work>
void each_few(int64_t rows, const Work& work) {
  for (int64_t first = 0; first < rows; first += kDecodeRows)
    work(first, static_cast<int>(std::min<int64_t>(kDecodeRows, rows - first)));
}

// Rows of x that meet all tiles before the next ones do, in even parts.
int64_t rows_at_once(const Problem& p, int64_t width) {
  const int64_t most = std::clamp(kCached / (p.shape.k * width), kPart, kBlock);
  const int64_t parts = std::max<int64_t>(1, (p.m + most - 1) / most);
  const int64_t even = (p.m + parts - 1) / parts;
  return std::min(p.m, (even + kRegisterRows - 1) / kRegisterRows * kRegisterRows);
}

// Calls work(first, m) for these parts of x.
template <typename Work>
void each_block(const Problem& p, int64_t rows, const Work& work) {
  for (int64_t first = 0; first < p.m; first += rows) work(first, std::min(rows, p.m - first));
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
  bool few;        // whether x has so few rows that panels do not pay
  float* widened;  // x in float32, where the kernels want that and x is not
  uint8_t* panels;
  float* totals;
  int64_t panel_bytes, rows;
  int64_t bytes;

  FloatPlan(const Kernels& all, const Problem& p) {
    const bool stored = p.shape.bits == kBf16Bits;
    const bool pairs = p.type == kBFloat16 && all.bf16.rows && !stored;
    kernels = pairs ? &all.bf16 : &all.f32;
    Scratch scratch{p.scratch};
    const bool widen = p.type == kBFloat16 && !pairs;
    widened = widen ? scratch.take<float>(p.m * p.shape.k) : nullptr;
    few = !stored && p.m <= kernels->few_rows[p.shape.bits == 8];
    rows = rows_at_once(p, pairs ? 2 : 4);
    panel_bytes = few ? 0 : kTile * kPanelInputs * kernels->panel_bytes;
    panels = scratch.take<uint8_t>(p.threads * panel_bytes);
    totals = scratch.take<float>(p.threads * rows * kTile);
    bytes = scratch.used;
  }
};

struct IntegerPlan {
  bool few;        // whether x has so few rows that panels do not pay
  bool spread;     // whether levels lie panel by panel, see level_at
  int8_t* levels;
  int32_t* level_sums;  // [M][G] if few, else [G][M]
  int8_t* rows_of_levels;  // for each thread, before they are spread
  int32_t* rows_of_sums;
  float* row_scales;
  uint8_t* panels;
  int32_t* sums;
  float* totals;
  int64_t panel_bytes, rows, sum_rows;
  int64_t bytes;

  IntegerPlan(const Kernels& kernels, const Problem& p) {
    Scratch scratch{p.scratch};
    few = p.m <= kernels.ints.few_rows;
    spread = !few && p.shape.group <= kPanelInputs;
    levels = scratch.take<int8_t>(p.m * p.shape.k);
    rows_of_levels = scratch.take<int8_t>(spread ? p.threads * p.shape.k : 0);
    rows_of_sums = scratch.take<int32_t>(!few ? p.threads * groups_of(p) : 0);
    level_sums = scratch.take<int32_t>(p.m * groups_of(p));
    row_scales = scratch.take<float>(p.m);
    rows = rows_at_once(p, 1);
    panel_bytes = p.shape.bits == 4 ? kTile * kPanelInputs : 0;
    sum_rows = p.shape.group > kPanelInputs ? rows : std::min(rows, kPart);
    panels = scratch.take<uint8_t>(p.threads * panel_bytes);
    sums = scratch.take<int32_t>(p.threads * sum_rows * kTile);
    totals = scratch.take<float>(p.threads * rows * kTile);
    bytes = scratch.used;
  }
};

// Calls work(begin, count, group) for every panel: at most kPanelInputs of one group.
template <typename Work>
void each_panel(const Shape& shape, const Work& work) {
  for (int64_t k = 0; k < shape.k;) {
    const int64_t group = k / shape.group, stop = (group + 1) * shape.group;
    const int64_t count = std::min<int64_t>(kPanelInputs, stop - k);
    work(k, count, group);
    k += count;
  }
}

// Levels of a row in a panel. If they are spread, those of the next row follow: parts of small
// groups in rows as long as K would each lie on a page of their own.
int8_t* level_at(const Problem& p, const IntegerPlan& plan, int64_t row, int64_t k,
                 int64_t count) {
  return plan.levels + (plan.spread ? k * p.m + row * count : row * p.shape.k + k);
}

// Brings a row's levels and their sums where integer_tile looks for them.
void place_row(const Problem& p, const IntegerPlan& plan, int64_t row, const int8_t* levels,
               const int32_t* sums) {
  if (plan.spread)
    each_panel(p.shape, [&](int64_t k, int64_t count, int64_t) {
      std::memcpy(level_at(p, plan, row, k, count), levels + k, count);
    });
  for (int64_t g = 0; g < groups_of(p); ++g) plan.level_sums[g * p.m + row] = sums[g];
}

// All sums of rows first .. first + m with one tile.
void integer_tile(const Kernels& kernels, const Problem& p, const IntegerPlan& plan,
                  const Tile& tile, int thread, int64_t first, int64_t m) {
  const IntKernels& ints = kernels.ints;
  const int64_t width = p.shape.group;
  float* total = plan.totals + thread * plan.rows * kTile;
  int32_t* sums = plan.sums + thread * plan.sum_rows * kTile;
  uint8_t* unpacked = plan.panels + thread * plan.panel_bytes;
  const auto multiply = p.shape.bits == 4 ? ints.multiply_nibbles : ints.multiply;
  each_panel(p.shape, [&](int64_t k, int64_t count, int64_t group) {
    const uint8_t* panel = tile.packed + k / 4 * kStepBytes;
    if (p.shape.bits == 4) {
      ints.unpack(tile, k, count, unpacked);
      panel = unpacked;
    }
    const bool begins = k == group * width, ends = k + count == (group + 1) * width;
    for (int64_t part = 0; part < m; part += kPart) {
      const int64_t some = std::min(kPart, m - part);
      int32_t* here = width > kPanelInputs ? sums + part * kTile : sums;
      multiply(panel, count, level_at(p, plan, first + part, k, count),
               plan.spread ? count : p.shape.k, some, !begins, here);
      if (ends)
        ints.fold(tile, group, here, plan.level_sums + group * p.m + first + part, some, group > 0,
                  total + part * kTile);
    }
  });
}

}  // namespace

int64_t float_scratch(const Kernels& kernels, const Problem& p) {
  return FloatPlan(kernels, p).bytes;
}

int64_t integer_scratch(const Kernels& kernels, const Problem& p) {
  return IntegerPlan(kernels, p).bytes;
}

void float_products(const Kernels& kernels, const Problem& p) {
  const FloatPlan plan(kernels, p);
  const FloatKernels& floats = *plan.kernels;
  const int64_t inputs = p.shape.k;
  const uint8_t* x = static_cast<const uint8_t*>(p.x);
  int64_t stride = p.x_stride;
  if (plan.widened) {
    const int threads = useful_threads(p.m * inputs * kRoundOperations, p.threads);
    parallel(p.m, threads, [&](int, int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        kernels.widen(static_cast<const uint16_t*>(p.x) + row * p.x_stride, inputs,
                      plan.widened + row * inputs);
    });
    x = reinterpret_cast<const uint8_t*>(plan.widened);
    stride = inputs;
  }
  const int64_t width = plan.widened ? 4 : bytes_of(p.type);
  if (plan.few) {
    each_tile(p, [&](int weight, int64_t index, int thread) {
      const Tile tile = tile_of(p, p.weights[weight], index);
      float* total = plan.totals + thread * plan.rows * kTile;
      each_few(p.m, [&](int64_t first, int m) {
        floats.rows(tile, x + first * stride * width, stride, m, total);
        store(kernels, p, weight, index, first, m, total, nullptr);
      });
    });
    return;
  }
  each_block(p, plan.rows, [&](int64_t first, int64_t m) {
    each_tile(p, [&](int weight, int64_t index, int thread) {
      const Tile tile = tile_of(p, p.weights[weight], index);
      float* total = plan.totals + thread * plan.rows * kTile;
      uint8_t* panel = plan.panels + thread * plan.panel_bytes;
      for (int64_t k = 0; k < inputs; k += kPanelInputs) {
        const int64_t some = std::min<int64_t>(kPanelInputs, inputs - k);
        floats.unpack(tile, k, some, panel);
        floats.multiply(panel, some, x + (first * stride + k) * width, stride, m, k > 0, total);
      }
      store(kernels, p, weight, index, first, m, total, nullptr);
    });
  });
}

void integer_products(const Kernels& kernels, const Problem& p, float scale) {
  const IntegerPlan plan(kernels, p);
  const Shape& shape = p.shape;
  const int64_t groups = groups_of(p);
  const int threads = useful_threads(p.m * shape.k * kRoundOperations, p.threads);
  parallel(p.m, threads, [&](int thread, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int8_t* levels = plan.spread ? plan.rows_of_levels + thread * shape.k
                                   : plan.levels + row * shape.k;
      int32_t* sums = plan.few ? plan.level_sums + row * groups
                               : plan.rows_of_sums + thread * groups;
      plan.row_scales[row] = kernels.ints.quantize(
          static_cast<const uint8_t*>(p.x) + row * p.x_stride * bytes_of(p.type), p.type, shape.k,
          shape.group, shape.bits, scale, levels, sums);
      if (!plan.few) place_row(p, plan, row, levels, sums);
    }
  });
  if (plan.few) {
    each_tile(p, [&](int weight, int64_t index, int thread) {
      const Tile tile = tile_of(p, p.weights[weight], index);
      float* total = plan.totals + thread * plan.rows * kTile;
      each_few(p.m, [&](int64_t first, int m) {
        kernels.ints.rows(tile, plan.levels + first * shape.k, shape.k,
                          plan.level_sums + first * groups, m, total);
        store(kernels, p, weight, index, first, m, total, plan.row_scales);
      });
    });
    return;
  }
  each_block(p, plan.rows, [&](int64_t first, int64_t m) {
    each_tile(p, [&](int weight, int64_t index, int thread) {
      const Tile tile = tile_of(p, p.weights[weight], index);
      integer_tile(kernels, p, plan, tile, thread, first, m);
      store(kernels, p, weight, index, first, m, plan.totals + thread * plan.rows * kTile,
            plan.row_scales);
    });
  });
}

}  // namespace vlpress
