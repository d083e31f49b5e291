// The update is a matrix product of x' with x, done by the same panel kernels as products with
// weights: 64 columns of x are gathered into a panel (tokens in the role of inputs), and columns of
// x, transposed to rows, are multiplied with it. Products of bf16 numbers are exact in float32, so
// only the sums round.
#include "syrk.h"

#include <algorithm>

#include "threads.h"

namespace vlpress {
namespace {

// Rows of the result at a time: 1024 x 64 float32 sums (256 KiB) stay in the L2 cache.
constexpr int64_t kBlockRows = 1024;

// Division of the caller's scratch memory.
struct SyrkPlan {
  const FloatKernels* floats;
  int64_t width;     // bytes of an activation in the type that the kernels multiply
  int64_t tokens;    // rounded up to even: bf16 kernels multiply pairs
  uint8_t* columns;  // [k][tokens]: x transposed, so that a row of the product is contiguous
  uint8_t* panels;   // for each thread [tokens][64]
  float* totals;     // for each thread [kBlockRows][64]
  int64_t panel_bytes, total_size, bytes;

  SyrkPlan(const Kernels& kernels, const Syrk& g) {
    const bool pairs = kernels.bf16.direct != nullptr;
    floats = pairs ? &kernels.bf16 : &kernels.f32;
    width = pairs ? 2 : 4;
    tokens = (g.tokens + 1) / 2 * 2;
    panel_bytes = aligned(tokens * kTile * width);
    total_size = std::min(kBlockRows, g.k) * kTile;
    const int64_t column_bytes = aligned(g.k * tokens * width);
    columns = g.scratch;
    panels = columns + column_bytes;
    totals = reinterpret_cast<float*>(panels + g.threads * panel_bytes);
    bytes = column_bytes + g.threads * (panel_bytes + total_size * 4);
  }
};

// Updates the 64 columns of a tile, in the rows from its diagonal block down.
void update_tile(const Kernels& kernels, const Syrk& g, const SyrkPlan& plan, int64_t tile,
                 int thread) {
  const int64_t first = tile * kTile;
  const int columns = static_cast<int>(std::min<int64_t>(kTile, g.k - first));
  uint8_t* panel = plan.panels + thread * plan.panel_bytes;
  float* total = plan.totals + thread * plan.total_size;
  kernels.gather(g.x + first, g.x_stride, g.tokens, columns, panel);
  for (int64_t row = first; row < g.k; row += kBlockRows) {
    const int64_t m = std::min(kBlockRows, g.k - row);
    for (int64_t t = 0; t < plan.tokens; t += kPanelInputs) {
      const int64_t count = std::min<int64_t>(kPanelInputs, plan.tokens - t);
      plan.floats->multiply(panel + t * kTile * plan.width, count,
                            plan.columns + (row * plan.tokens + t) * plan.width, plan.tokens, m,
                            t > 0, total);
    }
    for (int64_t i = 0; i < m; ++i) {
      float* out = g.h + (row + i) * g.k + first;
      for (int c = 0; c < columns; ++c) out[c] = g.beta * out[c] + g.alpha * total[i * kTile + c];
    }
  }
}

}  // namespace

int64_t syrk_scratch(const Kernels& kernels, const Syrk& g) { return SyrkPlan(kernels, g).bytes; }

void syrk(const Kernels& kernels, const Syrk& g) {
  const SyrkPlan plan(kernels, g);
  const int64_t tiles = (g.k + kTile - 1) / kTile;
  parallel(tiles, g.threads, [&](int, int64_t begin, int64_t end) {
    const int64_t first = begin * kTile, stop = std::min(end * kTile, g.k);
    kernels.transpose(g.x + first, g.x_stride, g.tokens, stop - first,
                      plan.columns + first * plan.tokens * plan.width, plan.tokens);
  });
  // Triangular work, tile i has k - 64 i rows: pairing the first tile with the last, the second
  // with the one before it, and so on gives tasks of equal size.
  parallel((tiles + 1) / 2, g.threads, [&](int thread, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      update_tile(kernels, g, plan, i, thread);
      if (tiles - 1 - i != i) update_tile(kernels, g, plan, tiles - 1 - i, thread);
    }
  });
}

}  // namespace vlpress
