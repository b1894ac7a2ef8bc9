#include "seqmix/kernels/matmul.hpp"
#include "seqmix/kernels/short_conv.hpp"
#undef SEQMIX_EXTERN
#define SEQMIX_EXTERN
#include "seqmix/io/registry/linear.hpp"
