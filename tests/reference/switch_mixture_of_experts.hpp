#pragma once

#include <algorithm>
#include <cmath>

#include "reference/feed_forward.hpp"
#include "reference/twin.hpp"

namespace reference {

/// Fedus et al. 2021, arXiv:2101.03961, section 2.1, with a capacity that does not depend on T.
template <class S>
Output<S> switch_mixture_of_experts(const Input<S>& in) {
  const Index experts = in.size("n_experts"), capacity = in.size("capacity");
  Output<S> out{in.x, {}};
  Array<S> counts({in.B(), experts});
  for (Index b = 0; b < in.B(); ++b) {
    for (Index t = 0; t < in.T(); ++t) {
      const auto x = token(in.x, b, t);
      const auto logits = linear<S>(in.weight("router.classifier.weight"), nullptr, x);
      const auto best = std::max_element(logits.begin(), logits.end());
      const auto e = static_cast<Index>(best - logits.begin());
      S total = 0;
      for (const S l : logits) total += std::exp(l - *best);
      std::vector<S> y(x.size());
      counts(b, e) += 1;
      if (capacity == 0 || counts(b, e) <= static_cast<S>(capacity)) {
        const std::string prefix = "experts." + std::to_string(e) + ".";
        auto hidden = linear<S>(in.weight(prefix + "wi.weight"), nullptr, x);
        for (S& value : hidden) value = activation<S>(in.config.at("activation"), value);
        y = linear<S>(in.weight(prefix + "wo.weight"), nullptr, hidden);
        for (S& value : y) value /= total;
      }
      set_token(out.y, b, t, y);
    }
  }
  out.state = {{"counts", counts}};
  return out;
}

inline const std::vector<std::string> switch_mixture_of_experts_configs{
    R"({"d_model": 16, "d_ff": 24, "n_experts": 4, "capacity": 60, "activation": "relu"})",
    R"({"d_model": 9, "d_ff": 13, "n_experts": 5, "capacity": 0, "activation": "gelu_tanh"})",
    R"({"d_model": 7, "d_ff": 5, "n_experts": 3, "capacity": 45, "activation": "relu"})"};

}  // namespace reference
