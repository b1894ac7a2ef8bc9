#pragma once

/// Every layer and block. Not included: `io/` (files, registry; needs nlohmann-json) and the opt-in
/// adapters `core/eigen.hpp`, `core/mdspan.hpp`, `core/eigen_thread_pool.hpp`, `core/openmp.hpp`.

#include "seqmix/blocks/decoder.hpp"
#include "seqmix/blocks/language_model.hpp"
#include "seqmix/fwd.hpp"
#include "seqmix/layers/any_mixer.hpp"
#include "seqmix/layers/attention/attention.hpp"
#include "seqmix/layers/channel/feed_forward.hpp"
#include "seqmix/layers/channel/mixture_of_experts.hpp"
#include "seqmix/layers/conv/hyena.hpp"
#include "seqmix/layers/linear/gated_linear_attention.hpp"
#include "seqmix/layers/ssm/mamba2.hpp"
#include "seqmix/version.hpp"
