#include "bf16_gemv.h"

#include <algorithm>

#include "threads.h"

namespace vlpress {

void dense(const Kernels& kernels, const Dense& d) {
  const int64_t tiles = (d.n + kTile - 1) / kTile;
  parallel(tiles, useful_threads(d.m * d.n * d.k, d.threads), [&](int, int64_t begin, int64_t end) {
    alignas(64) float total[kDecodeRows * kTile];
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kTile;
      const int columns = static_cast<int>(std::min<int64_t>(kTile, d.n - first));
      for (int64_t row = 0; row < d.m; row += kDecodeRows) {
        const int some = static_cast<int>(std::min<int64_t>(kDecodeRows, d.m - row));
        const uint16_t* x = d.x + row * d.x_stride;
        for (int c = 0; c < columns; ++c)
          kernels.dot(d.weight + (first + c) * d.k, d.k, x, d.x_stride, some, total + c);
        uint16_t* y = static_cast<uint16_t*>(d.y) + row * d.n + first;
        kernels.store(total, nullptr, d.bias ? d.bias + first : nullptr, columns, some, kBFloat16,
                      y, d.n);
      }
    }
  });
}

}  // namespace vlpress
