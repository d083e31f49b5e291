#include "syrk.h"

#include <algorithm>

#include "threads.h"

namespace vlpress {
namespace {

constexpr int64_t kBlock = 1024;  // rows of the result at a time

// Where things lie in the caller's memory.
struct Plan {
  const FloatKernels* floats;
  int64_t width;     // bytes of an activation, as the kernels want it
  int64_t tokens;    // even: bf16 kernels take pairs
  uint8_t* columns;  // [k][tokens]: x, transposed
  uint8_t* panels;   // for each thread [tokens][64]
  float* totals;     // for each thread [kBlock][64]
  int64_t panel_bytes, total_size, bytes;

  Plan(const Kernels& kernels, const Gram& g) {
    const bool pairs = kernels.bf16.rows != nullptr;
    floats = pairs ? &kernels.bf16 : &kernels.f32;
    width = pairs ? 2 : 4;
    tokens = (g.tokens + 1) / 2 * 2;
    panel_bytes = aligned(tokens * kTile * width);
    total_size = std::min(kBlock, g.k) * kTile;
    const int64_t column_bytes = aligned(g.k * tokens * width);
    columns = g.scratch;
    panels = columns + column_bytes;
    totals = reinterpret_cast<float*>(panels + g.threads * panel_bytes);
    bytes = column_bytes + g.threads * (panel_bytes + total_size * 4);
  }
};

void add_tile(const Kernels& kernels, const Gram& g, const Plan& plan, int64_t tile, int thread) {
  const int64_t first = tile * kTile;
  const int columns = static_cast<int>(std::min<int64_t>(kTile, g.k - first));
  uint8_t* panel = plan.panels + thread * plan.panel_bytes;
  float* total = plan.totals + thread * plan.total_size;
  kernels.gather(g.x + first, g.x_stride, g.tokens, columns, panel);
  for (int64_t row = first; row < g.k; row += kBlock) {
    const int64_t m = std::min(kBlock, g.k - row);
    for (int64_t t = 0; t < plan.tokens; t += kPanelInputs) {
      const int64_t some = std::min<int64_t>(kPanelInputs, plan.tokens - t);
      plan.floats->multiply(panel + t * kTile * plan.width, some,
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

int64_t gram_scratch(const Kernels& kernels, const Gram& g) { return Plan(kernels, g).bytes; }

void gram(const Kernels& kernels, const Gram& g) {
  const Plan plan(kernels, g);
  const int64_t tiles = (g.k + kTile - 1) / kTile;
  parallel(tiles, g.threads, [&](int, int64_t begin, int64_t end) {
    const int64_t first = begin * kTile, stop = std::min(end * kTile, g.k);
    kernels.transpose(g.x + first, g.x_stride, g.tokens, stop - first,
                      plan.columns + first * plan.tokens * plan.width, plan.tokens);
  });
  // A tile near the end has few rows below it: each goes together with one near the beginning.
  parallel((tiles + 1) / 2, g.threads, [&](int thread, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      add_tile(kernels, g, plan, i, thread);
      if (tiles - 1 - i != i) add_tile(kernels, g, plan, tiles - 1 - i, thread);
    }
  });
}

}  // namespace vlpress
