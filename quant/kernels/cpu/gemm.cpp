// Blocking of the products. With few rows (`direct`), every thread takes tiles of weights and
// multiplies all rows with each while it is in the L2 cache: memory bandwidth for weights is the
// limit, and each is read once. With many rows the order is, outermost first:
//
//     row blocks of x that stay in the L3 cache  (row_block)
//       tiles of 64 columns, dealt to the threads  (each_tile)
//         panels of at most 512 inputs, unpacked once per row block  (kPanelInputs)
//           register tiles of 6 rows x 64 columns  (kRegisterRows)
//
// A panel (64 KiB in bf16) and the float sums of a row block (at most 256 KiB) stay in the L2
// cache, while x streams through. A thread owns all inputs of its tiles, so that every output is
// summed in the same order for any number of threads.
#include "gemm.h"

#include <algorithm>
#include <cstring>

#include "byte_levels.h"
#include "threads.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace vlpress {
namespace {

// Largest row block: 1024 rows x 64 columns of float32 sums are 256 KiB, an eighth of a 2 MiB L2.
constexpr int64_t kMaxBlockRows = 1024;
// Bytes of x in a row block. Every tile reads the block again, so it has to stay in the L3 cache:
// 1024 rows of K = 18944 in bf16 (39 MB) would come from memory for each of the tiles.
constexpr int64_t kBlockBytes = 16 << 20;
// Rows whose int32 sums of one group (48 x 64 x 4 = 12 KiB) stay in the L1 cache until they are
// folded into the float sums.
constexpr int64_t kSumRows = 48;

// Bump allocator over the caller's scratch memory. With a null pointer it only counts bytes, so
// that the size and the addresses come from the same code.
struct Scratch {
  uint8_t* at;
  int64_t used = 0;

  template <typename T>
  T* take(int64_t count) {
    uint8_t* begin = at + used;
    used += aligned(count * static_cast<int64_t>(sizeof(T)));
    return reinterpret_cast<T*>(begin);
  }
};

int64_t tiles_of(const Weight& weight) { return (weight.n + kTile - 1) / kTile; }

int64_t groups_of(const Gemm& p) { return p.shape.k / p.shape.group; }

Tile tile_of(const Gemm& p, const Weight& w, int64_t index) {
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
          std::min<int64_t>(kTile, w.n - index * kTile),
          shape.levels,
          shape.mantissa,
          w.divisor,
          w.divisor == 0.0f ? 0.0f : 1.0f / w.divisor};
}

// Whether bf16 holds all levels of a table.
bool fits_bf16(const Shape& shape) {
  for (int code = 0; shape.levels && !shape.mantissa && code < 1 << shape.bits; ++code) {
    uint32_t bits;
    std::memcpy(&bits, shape.levels + code, sizeof bits);
    if (bits & 0xffff) return false;
  }
  return true;
}

// Small float formats are decoded through subnormal float32 numbers (decoders.h), which the caller
// may have the processor treat as zeros (torch.set_flush_denormal).
class SubnormalNumbers {
 public:
#if defined(__SSE__)
  explicit SubnormalNumbers(bool needed) : before_(_mm_getcsr()) {
    if (needed) _mm_setcsr(before_ & ~kFlush);
  }
  ~SubnormalNumbers() { _mm_setcsr(before_); }

 private:
  static constexpr uint32_t kFlush = 0x8040;  // of results, and of operands
  const uint32_t before_;
#else
  explicit SubnormalNumbers(bool) {}
#endif
};

// Calls work(weight, tile, thread) for every tile of all weights, by index. All weights of a call
// share one parallel region: its start costs as much as a small layer's work.
template <typename Work>
void each_tile(const Gemm& p, const Work& work) {
  int64_t tiles = 0;
  for (int i = 0; i < p.count; ++i) tiles += tiles_of(p.weights[i]);
  const int threads = useful_threads(tiles * kTile * p.shape.k * p.m, p.threads);
  parallel(tiles, threads, [&](int thread, int64_t begin, int64_t end) {
    [[maybe_unused]] const SubnormalNumbers subnormal(p.shape.mantissa > 0);
    int weight = 0;
    int64_t tile = begin;
    for (int64_t i = begin; i < end; ++i, ++tile) {
      for (; tile >= tiles_of(p.weights[weight]); ++weight) tile -= tiles_of(p.weights[weight]);
      work(weight, tile, thread);
    }
  });
}

// Calls work(first, m) for blocks of at most kDecodeRows rows; the tile stays in the L2 cache for
// all of them.
template <typename Work>
void each_decode_block(int64_t rows, const Work& work) {
  for (int64_t first = 0; first < rows; first += kDecodeRows)
    work(first, static_cast<int>(std::min<int64_t>(kDecodeRows, rows - first)));
}

// Rows of x in a block. Blocks are of equal size, rounded up to whole register tiles: a short last
// one would unpack every panel for little work. `width`: bytes of an activation.
int64_t row_block(const Gemm& p, int64_t width) {
  const int64_t limit = std::clamp(kBlockBytes / (p.shape.k * width), kSumRows, kMaxBlockRows);
  const int64_t blocks = std::max<int64_t>(1, (p.m + limit - 1) / limit);
  const int64_t even = (p.m + blocks - 1) / blocks;
  return std::min(p.m, (even + kRegisterRows - 1) / kRegisterRows * kRegisterRows);
}

// Calls work(first, m) for the row blocks of x.
template <typename Work>
void each_block(const Gemm& p, int64_t rows, const Work& work) {
  for (int64_t first = 0; first < p.m; first += rows) work(first, std::min(rows, p.m - first));
}

int64_t bytes_of(Type type) { return type == kFloat32 ? 4 : 2; }

// Writes totals[m][64] of one tile to y, with the bias and, for int8 activations, the scales of
// rows.
void store(const Kernels& kernels, const Gemm& p, int weight, int64_t tile, int64_t first,
           int64_t m, const float* total, const float* row_scales) {
  const Weight& w = p.weights[weight];
  const int64_t column = tile * kTile;
  uint8_t* y = static_cast<uint8_t*>(p.y[weight]) + (first * w.n + column) * bytes_of(p.type);
  kernels.store(total, row_scales ? row_scales + first : nullptr,
                w.bias ? w.bias + column : nullptr,
                static_cast<int>(std::min<int64_t>(kTile, w.n - column)), m, p.type, y, w.n);
}

// Path and scratch memory of a float product.
struct FloatPlan {
  const FloatKernels* kernels;
  bool direct;      // too few rows of x for panels to pay off
  float* widened;   // [M][K]: x in float32, for kernels without bf16 products; else null
  uint8_t* split;   // one row in the form that `multiply_split` takes; else null
  uint8_t* panels;  // for each thread
  float* totals;    // for each thread [rows][64]
  int64_t panel_bytes, rows;
  int64_t bytes;

  FloatPlan(const Kernels& table, const Gemm& p) {
    // bf16 weights in their stored form have no packed tiles to unpack in registers, and are used
    // on processors without bf16 products only.
    const bool stored = p.shape.bits == kBf16Bits;
    const bool pairs =
        p.type == kBFloat16 && table.bf16.direct && !stored && fits_bf16(p.shape);
    kernels = pairs ? &table.bf16 : &table.f32;
    Scratch scratch{p.scratch};
    // Converted once per call: each of the N / 64 tiles reads all of x.
    const bool widen = p.type == kBFloat16 && !pairs;
    widened = widen ? scratch.take<float>(p.m * p.shape.k) : nullptr;
    // float32 has more bits than a split row keeps of the smaller inputs.
    const bool splits = widen && p.m == 1 && p.shape.bits == 4 && kernels->split &&
                        p.shape.group <= kPanelInputs &&
                        (!p.shape.levels || ByteLevels(p.shape.levels).valid);
    split = splits ? scratch.take<uint8_t>(kernels->split_bytes(p.shape.k, p.shape.group))
                   : nullptr;
    direct = !stored && p.m <= kernels->direct_rows[p.shape.bits == 8];
    rows = row_block(p, pairs ? 2 : 4);
    panel_bytes = direct ? 0 : kTile * kPanelInputs * kernels->panel_bytes;
    panels = scratch.take<uint8_t>(p.threads * panel_bytes);
    totals = scratch.take<float>(p.threads * rows * kTile);
    bytes = scratch.used;
  }
};

// Path and scratch memory of a product with int8 activations.
struct IntegerPlan {
  bool direct;    // too few rows of x for panels to pay off
  bool by_panel;  // levels are stored panel by panel, see level_at
  int8_t* levels;
  int32_t* level_sums;  // [M][G] if direct, else [G][M]: `fold` reads one group of all rows
  int8_t* row_levels;   // for each thread [K]: one row, before it is copied to its panels
  int32_t* row_sums;    // for each thread [G]
  float* row_scales;    // [M]
  uint8_t* panels;      // for each thread
  int32_t* sums;        // for each thread [sum_rows][64]
  float* totals;        // for each thread [rows][64]
  int64_t panel_bytes, rows, sum_rows;
  int64_t bytes;

  IntegerPlan(const Kernels& kernels, const Gemm& p) {
    Scratch scratch{p.scratch};
    direct = p.m <= kernels.ints.direct_rows;
    by_panel = !direct && p.shape.group <= kPanelInputs;
    levels = scratch.take<int8_t>(p.m * p.shape.k);
    row_levels = scratch.take<int8_t>(by_panel ? p.threads * p.shape.k : 0);
    row_sums = scratch.take<int32_t>(!direct ? p.threads * groups_of(p) : 0);
    level_sums = scratch.take<int32_t>(p.m * groups_of(p));
    row_scales = scratch.take<float>(p.m);
    rows = row_block(p, 1);
    panel_bytes = p.shape.bits == 4 ? kTile * kPanelInputs : 0;
    sum_rows = p.shape.group > kPanelInputs ? rows : std::min(rows, kSumRows);
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

// Levels of a row in a panel. By panel, the same inputs of the next row follow directly. Row by
// row, a panel of a small group would touch one page per row (groups of 128 in 1024 rows: 1024
// pages, more than the first-level TLB holds). Groups wider than a panel are faster row by row
// (measured).
int8_t* level_at(const Gemm& p, const IntegerPlan& plan, int64_t row, int64_t k,
                 int64_t count) {
  return plan.levels + (plan.by_panel ? k * p.m + row * count : row * p.shape.k + k);
}

// Copies a row's levels and sums to the layout that integer_tile reads.
void scatter_row(const Gemm& p, const IntegerPlan& plan, int64_t row, const int8_t* levels,
                 const int32_t* sums) {
  if (plan.by_panel)
    each_panel(p.shape, [&](int64_t k, int64_t count, int64_t) {
      std::memcpy(level_at(p, plan, row, k, count), levels + k, count);
    });
  for (int64_t g = 0; g < groups_of(p); ++g) plan.level_sums[g * p.m + row] = sums[g];
}

// totals[m][64] of rows first .. first + m with one tile. Each group's int32 sums are exact, and
// are folded into the float totals with the group's scale and zero point.
void integer_tile(const Kernels& kernels, const Gemm& p, const IntegerPlan& plan,
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
    for (int64_t row = 0; row < m; row += kSumRows) {
      const int64_t rows = std::min(kSumRows, m - row);
      // A group of several panels needs the sums of all rows until its last panel.
      int32_t* row_sums = width > kPanelInputs ? sums + row * kTile : sums;
      multiply(panel, count, level_at(p, plan, first + row, k, count),
               plan.by_panel ? count : p.shape.k, rows, !begins, row_sums);
      if (ends)
        ints.fold(tile, group, row_sums, plan.level_sums + group * p.m + first + row, rows,
                  group > 0, total + row * kTile);
    }
  });
}

}  // namespace

int64_t float_gemm_scratch(const Kernels& kernels, const Gemm& p) {
  return FloatPlan(kernels, p).bytes;
}

int64_t integer_gemm_scratch(const Kernels& kernels, const Gemm& p) {
  return IntegerPlan(kernels, p).bytes;
}

void float_gemm(const Kernels& kernels, const Gemm& p) {
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
  if (plan.split) {
    floats.split(plan.widened, inputs, p.shape.group, plan.split);
    each_tile(p, [&](int weight, int64_t index, int thread) {
      float* total = plan.totals + thread * plan.rows * kTile;
      floats.multiply_split(tile_of(p, p.weights[weight], index), plan.split, total);
      store(kernels, p, weight, index, 0, 1, total, nullptr);
    });
    return;
  }
  if (plan.direct) {
    each_tile(p, [&](int weight, int64_t index, int thread) {
      const Tile tile = tile_of(p, p.weights[weight], index);
      float* total = plan.totals + thread * plan.rows * kTile;
      each_decode_block(p.m, [&](int64_t first, int m) {
        floats.direct(tile, x + first * stride * width, stride, m, total);
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
        const int64_t count = std::min<int64_t>(kPanelInputs, inputs - k);
        floats.unpack(tile, k, count, panel);
        floats.multiply(panel, count, x + (first * stride + k) * width, stride, m, k > 0, total);
      }
      store(kernels, p, weight, index, first, m, total, nullptr);
    });
  });
}

void integer_gemm(const Kernels& kernels, const Gemm& p, float scale) {
  const IntegerPlan plan(kernels, p);
  const Shape& shape = p.shape;
  const int64_t groups = groups_of(p);
  const int threads = useful_threads(p.m * shape.k * kRoundOperations, p.threads);
  parallel(p.m, threads, [&](int thread, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int8_t* levels = plan.by_panel ? plan.row_levels + thread * shape.k
                                     : plan.levels + row * shape.k;
      int32_t* sums = plan.direct ? plan.level_sums + row * groups
                                  : plan.row_sums + thread * groups;
      plan.row_scales[row] = kernels.ints.quantize(
          static_cast<const uint8_t*>(p.x) + row * p.x_stride * bytes_of(p.type), p.type, shape.k,
          shape.group, shape.bits, scale, levels, sums);
      if (!plan.direct) scatter_row(p, plan, row, levels, sums);
    }
  });
  if (plan.direct) {
    each_tile(p, [&](int weight, int64_t index, int thread) {
      const Tile tile = tile_of(p, p.weights[weight], index);
      float* total = plan.totals + thread * plan.rows * kTile;
      each_decode_block(p.m, [&](int64_t first, int m) {
        kernels.ints.direct(tile, plan.levels + first * shape.k, shape.k,
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
