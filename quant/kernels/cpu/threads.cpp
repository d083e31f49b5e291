#include "threads.h"

#include <algorithm>
#include <type_traits>

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

namespace vlpress {
namespace {

struct Runtime {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*thread)() = nullptr;
  int (*threads)() = nullptr;
  int (*inside)() = nullptr;

  Runtime() {
#if !defined(_WIN32)
    const auto find = [](auto& entry, const char* name) {
      entry = reinterpret_cast<std::remove_reference_t<decltype(entry)>>(
          dlsym(RTLD_DEFAULT, name));
    };
    find(parallel, "GOMP_parallel");
    find(thread, "omp_get_thread_num");
    find(threads, "omp_get_num_threads");
    find(inside, "omp_in_parallel");
#endif
  }

  bool found() const { return parallel && thread && threads && inside; }
};

const Runtime& runtime() {
  static const Runtime known;
  return known;
}

struct Share {
  int64_t count;
  void (*work)(void*, int, int64_t, int64_t);
  void* data;
};

void run_share(void* data) {
  const Share& share = *static_cast<const Share*>(data);
  // As many as there are, not as were asked for: the runtime may grant fewer.
  const int thread = runtime().thread(), threads = runtime().threads();
  const int64_t begin = share.count * thread / threads;
  const int64_t end = share.count * (thread + 1) / threads;
  if (begin < end) share.work(share.data, thread, begin, end);
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
  Share share = {count, work, data};
  runtime().parallel(run_share, &share, static_cast<unsigned>(wanted), 0);
}

}  // namespace vlpress
