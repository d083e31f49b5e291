// Kernel table for AVX2, FMA and F16C. Empty if the compiler lacks these flags, see CMakeLists.txt.
#include "layout.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "avx2_digit_rows.h"
#include "avx2_floats.h"
#include "avx2_integer_rows.h"
#include "avx2_quantize.h"
#include "avx2_integers.h"
#include "pointwise.h"
#include "simd_gemm.h"

namespace vlpress {
namespace {

// Rows up to which unpacking in registers is faster than writing panels (measured).
constexpr FloatKernels kAvx2Floats = {4,           {32, 32},  float_rows_avx2, unpack_floats,
                                      multiply_floats, digit_bytes, split_row,   digit_row};
constexpr IntKernels kAvx2Ints = {32,
                                  level_rows_avx2,
                                  unpack_bytes,
                                  multiply_bytes_avx2,
                                  multiply_nibbles_avx2,
                                  fold_sums,
                                  quantize_avx2};

constexpr Kernels kAvx2 = {"avx2",        kAvx2Floats, {},       kAvx2Ints,
                           store_rows,    widen_bf16,  dot_rows, transpose_floats,
                           gather_floats, kPointwise};

}  // namespace

const Kernels* avx2_kernels() { return &kAvx2; }

}  // namespace vlpress
#else
namespace vlpress {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace vlpress
#endif
