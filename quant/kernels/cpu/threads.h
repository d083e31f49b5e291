// Parallel loops on the OpenMP runtime that torch has already loaded.
//
// A second runtime would have its own thread pool, whose idle threads spin and compete with torch's
// for the cores. Hence the library does not link OpenMP: it looks up, in the running process, the
// entry points that GNU's and LLVM's runtimes have in common. Without them (torch built without
// OpenMP), the calling thread does all the work.
#pragma once

#include <cstdint>

namespace vlpress {

// Whether the process has an OpenMP runtime.
bool has_threads();

// Calls work(thread, begin, end) for chunks of 0 .. count on up to `threads` threads, several
// chunks per thread, scheduled dynamically. `thread` is below `threads` and indexes per-thread
// scratch memory.
void run_parts(int64_t count, int threads, void (*work)(void*, int, int64_t, int64_t), void* data);

template <typename Work>
void parallel(int64_t count, int threads, const Work& work) {
  run_parts(
      count, threads,
      [](void* data, int thread, int64_t begin, int64_t end) {
        (*static_cast<const Work*>(data))(thread, begin, end);
      },
      const_cast<Work*>(&work));
}

// Starting a parallel region takes microseconds, more if its threads sleep, so each thread should
// have about ten microseconds of work. In multiply-adds with cached weights.
constexpr int64_t kLeastOperations = 1 << 18;
// Cost per element of the other operations, in the same unit.
constexpr int64_t kRoundOperations = 8;    // rounding to int8, or conversion to float32
constexpr int64_t kNormOperations = 16;    // RMS norm and addition
constexpr int64_t kSwigluOperations = 64;  // an exponential and a division

// Number of threads, at most `threads`, that this much work justifies.
inline int useful_threads(int64_t operations, int threads) {
  const int64_t most = operations / kLeastOperations;
  return most < threads ? static_cast<int>(most > 1 ? most : 1) : threads;
}

}  // namespace vlpress
