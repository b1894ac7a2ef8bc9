#include "seqmix/core/compiled.hpp"
#undef SEQMIX_EXTERN
#define SEQMIX_EXTERN
#include "seqmix/kernels/product/matmul.hpp"
