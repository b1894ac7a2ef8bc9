#include "seqmix/kernels/conv/short.hpp"
#include "seqmix/kernels/product/matmul.hpp"
#undef SEQMIX_EXTERN
#define SEQMIX_EXTERN
#include "seqmix/io/registry/linear.hpp"
