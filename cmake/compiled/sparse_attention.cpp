#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/product/matmul.hpp"
#undef SEQMIX_EXTERN
#define SEQMIX_EXTERN
#include "seqmix/io/registry/sparse_attention.hpp"
