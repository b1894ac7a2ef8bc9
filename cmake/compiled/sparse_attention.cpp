#include "seqmix/kernels/attention.hpp"
#include "seqmix/kernels/matmul.hpp"
#undef SEQMIX_EXTERN
#define SEQMIX_EXTERN
#include "seqmix/io/registry/sparse_attention.hpp"
