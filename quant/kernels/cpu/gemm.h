// Whole products, made of the kernels of one instruction set.
#pragma once

#include "layout.h"

namespace vlpress {

// y = x W' + bias for each weight, x multiplied as it is.
void float_products(const Kernels&, const Problem&);

// The same with x rounded to int8: by `scale`, or if that is 0 by a scale for each row.
void integer_products(const Kernels&, const Problem&, float scale);

// Bytes of working memory that they need; of the problem only shape, type, m and threads count.
int64_t float_scratch(const Kernels&, const Problem&);
int64_t integer_scratch(const Kernels&, const Problem&);

}  // namespace vlpress
