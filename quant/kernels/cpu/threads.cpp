#include "threads.h"

#include <algorithm>
#include <atomic>
#include <type_traits>

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

namespace vlpress {
namespace {

// Entry points of the OpenMP runtime; null if the process has none.
struct Runtime {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*thread)() = nullptr;
  int (*inside)() = nullptr;

  Runtime() {
#if !defined(_WIN32)
    const auto find = [](auto& entry, const char* name) {
      entry = reinterpret_cast<std::remove_reference_t<decltype(entry)>>(
          dlsym(RTLD_DEFAULT, name));
    };
    find(parallel, "GOMP_parallel");
    find(thread, "omp_get_thread_num");
    find(inside, "omp_in_parallel");
#endif
  }

  bool found() const { return parallel && thread && inside; }
};

const Runtime& runtime() {
  static const Runtime known;
  return known;
}

// Chunks per thread. Work is split into many small chunks, scheduled dynamically: on a shared
// machine a thread is often preempted, and with one chunk each all the others would wait for it at
// the end of the region. Results do not depend on the schedule, as no output is computed by two
// chunks.
constexpr int64_t kParts = 16;

// One parallel loop.
struct Share {
  int64_t count, chunk;
  std::atomic<int64_t> next;  // first index that no thread has taken
  void (*work)(void*, int, int64_t, int64_t);
  void* data;
};

// Body of the parallel region: takes chunks until none is left. The counter needs no ordering: the
// end of the region synchronizes the results.
void run_share(void* data) {
  Share& share = *static_cast<Share*>(data);
  const int thread = runtime().thread();
  for (;;) {
    const int64_t begin = share.next.fetch_add(share.chunk, std::memory_order_relaxed);
    if (begin >= share.count) return;
    share.work(share.data, thread, begin, std::min(begin + share.chunk, share.count));
  }
}

}  // namespace

bool has_threads() { return runtime().found(); }

void run_parts(int64_t count, int threads, void (*work)(void*, int, int64_t, int64_t),
               void* data) {
  const int64_t wanted = std::min<int64_t>(threads, count);
  // A nested region would start threads beyond the pool.
  if (wanted <= 1 || !runtime().found() || runtime().inside()) {
    if (count > 0) work(data, 0, 0, count);
    return;
  }
  Share share = {count, std::max<int64_t>(1, count / (wanted * kParts)), {0}, work, data};
  runtime().parallel(run_share, &share, static_cast<unsigned>(wanted), 0);
}

}  // namespace vlpress
