// What Python calls: plain C, no exceptions. Chooses the instruction set once.
#include <cstdlib>
#include <cstring>

#include "attention.h"
#include "decoder_layer.h"
#include "bf16_gemv.h"
#include "gemm.h"
#include "syrk.h"
#include "threads.h"

#if defined(_WIN32)
#define VLPRESS_EXPORT extern "C" __declspec(dllexport)
#else
#define VLPRESS_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

using namespace vlpress;

// The compiler's check includes the operating system's: registers that it does not save are not
// reported. Processors with AVX-512 have F16C, which Clang has no name for here.
bool processor_has(const char* name) {
#if defined(__x86_64__) || defined(__i386__)
  if (!std::strcmp(name, "avx2"))
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool vnni = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
  if (!std::strcmp(name, "avx512_vnni")) return vnni;
  if (!std::strcmp(name, "avx512")) return vnni && __builtin_cpu_supports("avx512bf16");
#endif
  return !std::strcmp(name, "portable");
}

// Best first.
const Kernels* const kKnown[] = {avx512_kernels(), avx512_vnni_kernels(), avx2_kernels(), &kPortable};

}  // namespace

// Handle of an instruction set by name, of the best one if `name` is empty; null if this build or
// this processor does not have it.
VLPRESS_EXPORT const void* vlpress_kernels(const char* name) {
  for (const Kernels* kernels : kKnown)
    if (kernels && (!*name || !std::strcmp(name, kernels->name)) && processor_has(kernels->name))
      return kernels;
  return nullptr;
}

VLPRESS_EXPORT const char* vlpress_name(const void* kernels) {
  return static_cast<const Kernels*>(kernels)->name;
}

VLPRESS_EXPORT int vlpress_has_threads() { return has_threads(); }

VLPRESS_EXPORT int64_t vlpress_scratch(const void* kernels, const Shape* shape, int type,
                                       int64_t m, int threads, int integers) {
  Problem p = {};
  p.shape = *shape;
  p.type = static_cast<Type>(type);
  p.m = m;
  p.threads = threads;
  const Kernels& known = *static_cast<const Kernels*>(kernels);
  return integers ? integer_scratch(known, p) : float_scratch(known, p);
}

// `scale` below 0: x is multiplied as it is; else it is rounded to int8, see gemm.h.
VLPRESS_EXPORT void vlpress_products(const void* kernels, const Shape* shape, const Weight* weights,
                                     int count, int type, const void* x, int64_t m,
                                     int64_t x_stride, void* const* y, void* scratch, int threads,
                                     float scale) {
  const Kernels& known = *static_cast<const Kernels*>(kernels);
  const Problem p = {*shape, weights, count, static_cast<Type>(type), x, m,
                     x_stride, y, static_cast<uint8_t*>(scratch), threads};
  scale < 0 ? float_products(known, p) : integer_products(known, p, scale);
}

VLPRESS_EXPORT int64_t vlpress_gram_scratch(const void* kernels, int64_t tokens, int64_t k,
                                            int threads) {
  const Gram g = {nullptr, tokens, k, k, nullptr, 0, 0, nullptr, threads};
  return gram_scratch(*static_cast<const Kernels*>(kernels), g);
}

VLPRESS_EXPORT void vlpress_gram(const void* kernels, const void* x, int64_t tokens, int64_t k,
                                 int64_t x_stride, float* h, float alpha, float beta,
                                 void* scratch, int threads) {
  gram(*static_cast<const Kernels*>(kernels),
       {static_cast<const uint16_t*>(x), tokens, k, x_stride, h, alpha, beta,
        static_cast<uint8_t*>(scratch), threads});
}

VLPRESS_EXPORT void vlpress_dense(const void* kernels, const void* weight, const float* bias,
                                  int64_t n, int64_t k, const void* x, int64_t m, int64_t x_stride, void* y,
                                  int threads) {
  dense(*static_cast<const Kernels*>(kernels),
        {static_cast<const uint16_t*>(weight), bias, n, k, static_cast<const uint16_t*>(x), m, x_stride, y,
         threads});
}

VLPRESS_EXPORT int64_t vlpress_block_scratch(const void* kernels, const Block* block, int64_t rows,
                                             int threads) {
  return block_scratch(*static_cast<const Kernels*>(kernels), *block, rows, threads);
}

VLPRESS_EXPORT void vlpress_enter(const void* kernels, const Block* block, int64_t rows,
                                  const uint16_t* x, const uint16_t* cos, const uint16_t* sin,
                                  uint16_t* const* qkv, uint8_t* scratch, int threads) {
  enter_block(*static_cast<const Kernels*>(kernels), *block, {rows, scratch, threads}, x, cos, sin,
              qkv);
}

VLPRESS_EXPORT void vlpress_attend_newest(const void* kernels, const Newest* attention,
                                          int threads) {
  attend_newest(*static_cast<const Kernels*>(kernels), *attention, threads);
}

VLPRESS_EXPORT int vlpress_attends_prompts(const void* kernels) {
  return attends_prompts(*static_cast<const Kernels*>(kernels));
}

VLPRESS_EXPORT int64_t vlpress_prompts_scratch(const Prompts* attention, int threads) {
  return prompts_scratch(*attention, threads);
}

VLPRESS_EXPORT void vlpress_attend_prompts(const void* kernels, const Prompts* attention,
                                           int threads) {
  attend_prompts(*static_cast<const Kernels*>(kernels), *attention, threads);
}

VLPRESS_EXPORT void vlpress_leave(const void* kernels, const Block* block, int64_t rows,
                                  const uint16_t* attended, uint16_t* x, uint8_t* scratch,
                                  int threads) {
  leave_block(*static_cast<const Kernels*>(kernels), *block, {rows, scratch, threads}, attended, x);
}

// Reads memory once and does nothing with it: what weights can be read at. Returns a sum over it, so
// that no compiler leaves the reading out. `bytes` is a multiple of 64.
VLPRESS_EXPORT uint64_t vlpress_read(const uint64_t* memory, int64_t bytes, int threads) {
  uint64_t sums[256] = {};
  parallel(bytes / 64, threads < 256 ? threads : 256, [&](int thread, int64_t begin, int64_t end) {
    uint64_t sum[8] = {};
    for (const uint64_t* line = memory + 8 * begin; line < memory + 8 * end; line += 8)
      for (int i = 0; i < 8; ++i) sum[i] += line[i];
    for (int i = 0; i < 8; ++i) sums[thread] += sum[i];
  });
  uint64_t all = 0;
  for (const uint64_t sum : sums) all += sum;
  return all;
}
