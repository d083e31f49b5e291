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

}  // namespace vlpress
