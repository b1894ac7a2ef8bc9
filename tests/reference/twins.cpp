#include "reference/attention.hpp"
#include "reference/feed_forward.hpp"
#include "reference/gated_linear_attention.hpp"
#include "reference/hyena.hpp"
#include "reference/mamba2.hpp"
#include "reference/mixture_of_experts.hpp"
#include "reference/twin.hpp"

namespace reference {

const std::vector<Twin>& twins() {
  static const std::vector<Twin> all{
      {"attention", attention_configs, attention<double>, attention<float>},
      {"feed_forward", feed_forward_configs, feed_forward<double>, feed_forward<float>},
      {"gated_linear_attention", gated_linear_attention_configs, gated_linear_attention<double>,
       gated_linear_attention<float>},
      {"hyena", hyena_configs, hyena<double>, hyena<float>},
      {"mamba2", mamba2_configs, mamba2<double>, mamba2<float>},
      {"mixture_of_experts", mixture_of_experts_configs, mixture_of_experts<double>,
       mixture_of_experts<float>}};
  return all;
}

}  // namespace reference
