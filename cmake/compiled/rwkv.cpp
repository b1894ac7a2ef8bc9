#include "seqmix/kernels/memory/linear_state.hpp"
#include "seqmix/kernels/product/matmul.hpp"
#undef SEQMIX_EXTERN
#define SEQMIX_EXTERN
#include "seqmix/io/registry/rwkv.hpp"
