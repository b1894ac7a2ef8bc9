#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "reference/twin.hpp"

namespace reference {

template <class S>
std::string content_kind(const Input<S>& in) {
  if (!in.config.contains("content")) return "none";
  return in.config.at("content").at("kind").template get<std::string>();
}

/// Terms of scores that are products of heads.
template <class S>
Index terms_of_products(const Input<S>& in) {
  if (content_kind(in) != "deberta") return 1;
  const Json& of = in.config.at("content");
  return 1 + Index{of.at("query_term").template get<bool>()} +
         Index{of.at("key_term").template get<bool>()};
}

/// The logarithms of the forget gates of a token, [H]. Lin et al. 2025, arXiv:2503.02130.
template <class S>
std::vector<S> log_forget(const Input<S>& in, const std::vector<S>& x) {
  std::vector<S> gates =
      linear<S>(in.weight("content.f_proj.weight"), &in.weight("content.f_proj.bias"), x);
  for (S& gate : gates) gate = std::min(gate, S(0)) - std::log1p(std::exp(-std::abs(gate)));
  return gates;
}

/// What the content of the tokens of row b adds to the score of a query at t and a key at j.
template <class S>
class ContentBias {
 public:
  ContentBias(const Input<S>& in, Index b, double scale)
      : in_(in), kind_(content_kind(in)), K_(in.size("head_dim")), scale_(static_cast<S>(scale)) {
    if (kind_ == "forget_gate") {
      for (Index t = 0; t < in.T(); ++t) logs_.push_back(log_forget(in, token(in.x, b, t)));
    }
  }

  S operator()(const S* query, const S* key, Index h, Index t, Index j) const {
    S sum = 0;
    if (kind_ == "forget_gate") {
      for (Index i = j + 1; i <= t; ++i) {
        sum += logs_[static_cast<std::size_t>(i)][static_cast<std::size_t>(h)];
      }
      return sum;
    }
    if (kind_ == "transformer_xl") {  // Dai et al. 2019, arXiv:1901.02860, section 3.3
      const S* const r = row("r", sinusoids(t - j), "content.r_net", false) + h * K_;
      const Array<S>&u = in_.weight("content.r_w_bias"), &v = in_.weight("content.r_r_bias");
      for (Index k = 0; k < K_; ++k) sum += u(h, k) * key[k] + (query[k] + v(h, k)) * r[k];
    }
    if (kind_ == "deberta") {  // He et al. 2020, arXiv:2006.03654, eq. 4
      const Index e = embedding(t - j);
      const bool shared = flag("shared_projections");
      if (flag("query_term")) {
        const bool biased = shared ? in_.flag("k_bias") : flag("query_bias");
        const S* const p =
            row("k", embedded(e), shared ? "k_proj" : "content.pos_key_proj", biased) + h * K_;
        for (Index k = 0; k < K_; ++k) sum += query[k] * p[k];
      }
      if (flag("key_term")) {
        const bool biased = !shared || in_.flag("q_bias");
        const S* const p =
            row("q", embedded(e), shared ? "q_proj" : "content.pos_query_proj", biased) + h * K_;
        for (Index k = 0; k < K_; ++k) sum += key[k] * p[k];
      }
    }
    return scale_ * sum;
  }

  bool adapts() const { return kind_ == "cape"; }
  /// What is added to the score of head h of a pair with these products, then biases, of all heads.
  /// Zheng et al. 2024, arXiv:2405.14722, eq. 3.
  S adapted(Index h, const std::vector<S>& numbers) const {
    std::vector<S> hidden =
        linear<S>(in_.weight("content.mlp2.0.weight"), &in_.weight("content.mlp2.0.bias"), numbers);
    for (S& x : hidden) x = x < 0 ? x * S(0.01) : x;
    return linear<S>(in_.weight("content.mlp2.2.weight"), &in_.weight("content.mlp2.2.bias"),
                     hidden)[static_cast<std::size_t>(h)];
  }

  /// Adds what a query makes of the positions of the keys that it sees, whose scores stand by
  /// rising position. Golovneva et al. 2024, arXiv:2405.18719, eq. 4-6.
  void add_to_row(const S* query, std::vector<S>& score) const {
    if (kind_ != "cope") return;
    const Array<S>& table = in_.weight("content.pos_emb");
    const auto logit = [&](Index row) {
      S sum = 0;
      for (Index k = 0; k < K_; ++k) sum += query[k] * table(row, k);
      return sum;
    };
    const std::vector<S> seen = score;
    S gates = 0;
    for (std::size_t j = score.size(); j-- > 0;) {
      gates += sigmoid(seen[j]);
      const S position = std::min(gates, static_cast<S>(table.shape[0] - 1));
      const S below = std::floor(position), above = std::ceil(position), share = position - below;
      score[j] +=
          share * logit(static_cast<Index>(above)) + (1 - share) * logit(static_cast<Index>(below));
    }
  }

 private:
  Index size(const char* field) const {
    return in_.config.at("content").at(field).template get<Index>();
  }
  bool flag(const char* field) const {
    return in_.config.at("content").at(field).template get<bool>();
  }

  std::vector<S> sinusoids(Index distance) const {
    const Index D = in_.size("d_model"), most = size("max_distance");
    const auto far = static_cast<double>(std::min(std::max(distance, -most), most));
    std::vector<S> result;
    for (const bool sine : {true, false}) {
      for (Index i = 0; i < D; i += 2) {
        const double angle =
            far / std::pow(10000.0, static_cast<double>(i) / static_cast<double>(D));
        result.push_back(static_cast<S>(sine ? std::sin(angle) : std::cos(angle)));
      }
    }
    return result;
  }
  Index embedding(Index distance) const {
    const Index buckets = size("position_buckets"), most = size("max_distance"), mid = buckets / 2;
    const Index span = buckets > 0 ? buckets : most;
    Index bucket = distance;
    if (buckets > 0 && std::abs(distance) > mid) {
      const float ratio = static_cast<float>(std::abs(distance)) / static_cast<float>(mid);
      const float whole = static_cast<float>(most - 1) / static_cast<float>(mid);
      const float log = std::log(ratio) / std::log(whole) * static_cast<float>(mid - 1);
      bucket = (static_cast<Index>(std::ceil(log)) + mid) * (distance < 0 ? -1 : 1);
    }
    return std::min(std::max(bucket + span, Index{0}), 2 * span - 1);
  }
  std::vector<S> embedded(Index e) const {
    const Array<S>& table = in_.weight("content.rel_embeddings");
    const auto first = table.numbers.begin() + e * table.shape[1];
    return {first, first + table.shape[1]};
  }
  /// The projection of a row, once it was asked for.
  const S* row(const std::string& name, const std::vector<S>& x, const std::string& by,
               bool biased) const {
    std::vector<S>& result = rows_[{name, x}];
    if (result.empty()) {
      result =
          linear<S>(in_.weight(by + ".weight"), biased ? &in_.weight(by + ".bias") : nullptr, x);
    }
    return result.data();
  }

  const Input<S>& in_;
  std::string kind_;
  Index K_;
  S scale_;
  std::vector<std::vector<S>> logs_;  // [T, H]
  mutable std::map<std::pair<std::string, std::vector<S>>, std::vector<S>> rows_;
};

}  // namespace reference
