// One token per prompt. The work is bound by reading and writing the states; the unit of work is 64
// columns of a head's state, which are independent of the others.
#include "delta_rule.h"

#include <algorithm>

#include "threads.h"

namespace vlpress {

void delta_rule(const Kernels& kernels, const DeltaRule& r, int threads) {
  const int64_t tiles = (r.value_dim + kTile - 1) / kTile;
  const int64_t heads = r.prompts * r.value_heads, group = r.value_heads / r.key_heads;
  const int useful = useful_threads(4 * heads * r.key_dim * r.value_dim, threads);
  parallel(heads * tiles, useful, [&](int, int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      // Value heads of a prompt are a run of runs, so the key head follows from the overall number.
      const int64_t head = unit / tiles, first = unit % tiles * kTile;
      const float* k = r.k + head / group * r.key_dim;
      const float* q = r.q + head / group * r.key_dim;
      const int64_t column = head * r.value_dim + first;
      const int columns = static_cast<int>(std::min<int64_t>(kTile, r.value_dim - first));
      kernels.pointwise.delta_step(q, k, r.v + column, r.decay[head], r.beta[head], r.key_dim,
                                   r.value_dim, columns,
                                   r.state + head * r.key_dim * r.value_dim + first,
                                   r.out + column);
    }
  });
}

}  // namespace vlpress
