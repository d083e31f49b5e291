// Threads of the OpenMP runtime that torch has already loaded.
//
// A second runtime would keep a pool of its own, whose waiting threads spin against torch's. So
// nothing is linked: the entry points that GNU's and LLVM's runtimes share are looked up in the
// process. Where there are none (torch without OpenMP), work is done by the calling thread.
#pragma once

#include <cstdint>

namespace vlpress {

// Whether a runtime was found.
bool has_threads();

// Calls work(thread, begin, end) for parts of 0 .. count on up to `threads` threads, several times on
// each; a part goes to whoever is free.
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

// Starting a parallel region costs microseconds, more when its threads have to be woken: a thread
// must have about ten microseconds' work for that. Counted in multiply-adds on weights in a cache.
constexpr int64_t kLeastOperations = 1 << 18;
// What a value costs in such operations where it is not multiplied with a weight.
constexpr int64_t kRoundOperations = 8;    // rounding to int8
constexpr int64_t kNormOperations = 16;    // normalizing, adding
constexpr int64_t kSwigluOperations = 64;  // an exponential and a division

// How many of `threads` so many operations are worth.
inline int useful_threads(int64_t operations, int threads) {
  const int64_t most = operations / kLeastOperations;
  return most < threads ? static_cast<int>(most > 1 ? most : 1) : threads;
}

}  // namespace vlpress
