#include "bf16_gemv.h"

#include <algorithm>

#include "threads.h"

namespace vlpress {

// Weights are not repacked: an output head is as large as several layers, and with few rows each
// weight is used too rarely to repay a second copy. Rows of the weight are contiguous, so each
// output is a dot product over contiguous memory, which the hardware prefetches.
void bf16_gemv(const Kernels& kernels, const Bf16Gemv& g) {
  const int64_t tiles = (g.n + kTile - 1) / kTile;
  parallel(tiles, useful_threads(g.m * g.n * g.k, g.threads), [&](int, int64_t begin, int64_t end) {
    alignas(64) float total[kDecodeRows * kTile];
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kTile;
      const int columns = static_cast<int>(std::min<int64_t>(kTile, g.n - first));
      for (int64_t row = 0; row < g.m; row += kDecodeRows) {
        const int rows = static_cast<int>(std::min<int64_t>(kDecodeRows, g.m - row));
        const uint16_t* x = g.x + row * g.x_stride;
        for (int c = 0; c < columns; ++c)
          kernels.dot(g.weight + (first + c) * g.k, g.k, x, g.x_stride, rows, total + c);
        uint16_t* y = static_cast<uint16_t*>(g.y) + row * g.n + first;
        kernels.store(total, nullptr, g.bias ? g.bias + first : nullptr, columns, rows, kBFloat16,
                      y, g.n);
      }
    }
  });
}

}  // namespace vlpress
