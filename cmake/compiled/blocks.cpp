#include "seqmix/layers/attention/attention.hpp"
#include "seqmix/layers/channel/feed_forward.hpp"
#include "seqmix/layers/channel/mixture_of_experts.hpp"
#include "seqmix/layers/ssm/mamba.hpp"
#include "seqmix/layers/ssm/rg_lru.hpp"
#undef SEQMIX_EXTERN
#define SEQMIX_EXTERN
#include "seqmix/io/registry/blocks.hpp"
