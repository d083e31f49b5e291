#include "threads.h"

#include <algorithm>
#include <atomic>
#include <type_traits>

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

namespace vlpress {
namespace {

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

// Parts are small and taken as threads come: one that is held up does not keep the others waiting.
constexpr int64_t kParts = 16;  // for each thread

struct Share {
  int64_t count, chunk;
  std::atomic<int64_t> next;
  void (*work)(void*, int, int64_t, int64_t);
  void* data;
};

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
  if (wanted <= 1 || !runtime().found() || runtime().inside()) {
    if (count > 0) work(data, 0, 0, count);
    return;
  }
  Share share = {count, std::max<int64_t>(1, count / (wanted * kParts)), {0}, work, data};
  runtime().parallel(run_share, &share, static_cast<unsigned>(wanted), 0);
}

}  // namespace vlpress
