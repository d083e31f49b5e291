// The C interface that Python calls through ctypes: plain types, no exceptions. Arguments were
// checked on the Python side (../cpu.py, ../bf16_linear.py, ../attention.py, ../decoder_layer.py).
#include <cstdlib>
#include <cstring>
#include <utility>

#include "attention.h"
#include "bf16_gemv.h"
#include "decoder_layer.h"
#include "delta_rule.h"
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

// Features are asked for by name rather than by processor model. __builtin_cpu_supports includes
// the operating system's support: without saved registers a feature is not reported. F16C is not
// checked: every processor with AVX2 has it, and Clang's builtin does not know the name.
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

// See avx2_streams.h. AMD's processors without AVX-512 are Zen 3 and older.
int best_streams() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  if (__builtin_cpu_is("amd") && !__builtin_cpu_supports("avx512f")) return 4;
#endif
  return 1;
}

// In order of preference.
const Kernels* const kAllKernels[] = {avx512_kernels(), avx512_vnni_kernels(), avx2_kernels(),
                                      &kPortable};

}  // namespace

namespace vlpress {
int memory_streams = best_streams();
}

// The digest of the sources that this was compiled from; CMakeLists.txt defines it.
#ifndef VLPRESS_SOURCES
#define VLPRESS_SOURCES ""
#endif
VLPRESS_EXPORT const char* vlpress_sources() { return VLPRESS_SOURCES; }

// Lets tests read in the order of another processor, in 1 or 4 streams; returns the earlier number.
VLPRESS_EXPORT int vlpress_set_memory_streams(int count) {
  return std::exchange(memory_streams, count);
}

// Returns the handle of an instruction set's kernels, or of the best ones if `name` is empty; null
// if this build or this processor does not support it.
VLPRESS_EXPORT const void* vlpress_find_kernels(const char* name) {
  for (const Kernels* kernels : kAllKernels)
    if (kernels && (!*name || !std::strcmp(name, kernels->name)) && processor_has(kernels->name))
      return kernels;
  return nullptr;
}

VLPRESS_EXPORT const char* vlpress_kernels_name(const void* kernels) {
  return static_cast<const Kernels*>(kernels)->name;
}

VLPRESS_EXPORT int vlpress_has_threads() { return has_threads(); }

// Bytes of scratch memory for vlpress_gemm; `integers`: with int8 activations.
VLPRESS_EXPORT int64_t vlpress_gemm_scratch(const void* kernels, const Shape* shape, int type,
                                            int64_t m, int threads, int integers) {
  Gemm p = {};
  p.shape = *shape;
  p.type = static_cast<Type>(type);
  p.m = m;
  p.threads = threads;
  const Kernels& table = *static_cast<const Kernels*>(kernels);
  return integers ? integer_gemm_scratch(table, p) : float_gemm_scratch(table, p);
}

// `scale` below 0: float activations; else x is quantized to int8, see integer_gemm.
VLPRESS_EXPORT void vlpress_gemm(const void* kernels, const Shape* shape, const Weight* weights,
                                 int count, int type, const void* x, int64_t m, int64_t x_stride,
                                 void* const* y, void* scratch, int threads, float scale) {
  const Kernels& table = *static_cast<const Kernels*>(kernels);
  const Gemm p = {*shape, weights, count, static_cast<Type>(type), x, m,
                  x_stride, y, static_cast<uint8_t*>(scratch), threads};
  scale < 0 ? float_gemm(table, p) : integer_gemm(table, p, scale);
}

VLPRESS_EXPORT int64_t vlpress_syrk_scratch(const void* kernels, int64_t tokens, int64_t k,
                                            int threads) {
  const Syrk g = {nullptr, tokens, k, k, nullptr, 0, 0, nullptr, threads};
  return syrk_scratch(*static_cast<const Kernels*>(kernels), g);
}

VLPRESS_EXPORT void vlpress_syrk(const void* kernels, const void* x, int64_t tokens, int64_t k,
                                 int64_t x_stride, float* h, float alpha, float beta,
                                 void* scratch, int threads) {
  syrk(*static_cast<const Kernels*>(kernels),
       {static_cast<const uint16_t*>(x), tokens, k, x_stride, h, alpha, beta,
        static_cast<uint8_t*>(scratch), threads});
}

VLPRESS_EXPORT void vlpress_bf16_gemv(const void* kernels, const void* weight, const float* bias,
                                      int64_t n, int64_t k, const void* x, int64_t m,
                                      int64_t x_stride, void* y, int threads) {
  bf16_gemv(*static_cast<const Kernels*>(kernels),
            {static_cast<const uint16_t*>(weight), bias, n, k, static_cast<const uint16_t*>(x), m,
             x_stride, y, threads});
}

VLPRESS_EXPORT int64_t vlpress_decoder_layer_scratch(const void* kernels,
                                                     const DecoderLayer* layer, int64_t rows,
                                                     int threads) {
  return decoder_layer_scratch(*static_cast<const Kernels*>(kernels), *layer, rows, threads);
}

VLPRESS_EXPORT void vlpress_pre_attention(const void* kernels, const DecoderLayer* layer,
                                          int64_t rows, const uint16_t* x, const uint16_t* cos,
                                          const uint16_t* sin, uint16_t* const* qkv,
                                          uint8_t* scratch, int threads) {
  pre_attention(*static_cast<const Kernels*>(kernels), *layer, {rows, scratch, threads}, x, cos,
                sin, qkv);
}

VLPRESS_EXPORT void vlpress_post_attention(const void* kernels, const DecoderLayer* layer,
                                           int64_t rows, const uint16_t* attended, uint16_t* x,
                                           uint8_t* scratch, int threads) {
  post_attention(*static_cast<const Kernels*>(kernels), *layer, {rows, scratch, threads}, attended,
                 x);
}

VLPRESS_EXPORT void vlpress_decode_attention(const void* kernels, const DecodeAttention* attention,
                                             int threads) {
  decode_attention(*static_cast<const Kernels*>(kernels), *attention, threads);
}

VLPRESS_EXPORT void vlpress_delta_rule(const void* kernels, const DeltaRule* rule, int threads) {
  delta_rule(*static_cast<const Kernels*>(kernels), *rule, threads);
}

VLPRESS_EXPORT int vlpress_has_prefill_attention(const void* kernels) {
  return has_prefill_attention(*static_cast<const Kernels*>(kernels));
}

VLPRESS_EXPORT int64_t vlpress_prefill_attention_scratch(const PrefillAttention* attention,
                                                         int threads) {
  return prefill_attention_scratch(*attention, threads);
}

VLPRESS_EXPORT void vlpress_prefill_attention(const void* kernels,
                                              const PrefillAttention* attention, int threads) {
  prefill_attention(*static_cast<const Kernels*>(kernels), *attention, threads);
}

// Reads memory once, to measure the bandwidth that bounds the decode kernels. Returns the sum of
// its words, so that the compiler cannot remove the loads. `bytes` is a multiple of 64.
VLPRESS_EXPORT uint64_t vlpress_read_memory(const uint64_t* memory, int64_t bytes, int threads) {
  uint64_t sums[256] = {};
  parallel(bytes / 64, threads < 256 ? threads : 256, [&](int thread, int64_t begin, int64_t end) {
    uint64_t sum[8] = {};  // independent sums, one vector wide
    for (const uint64_t* line = memory + 8 * begin; line < memory + 8 * end; line += 8)
      for (int i = 0; i < 8; ++i) sum[i] += line[i];
    for (int i = 0; i < 8; ++i) sums[thread] += sum[i];
  });
  uint64_t total = 0;
  for (const uint64_t sum : sums) total += sum;
  return total;
}
