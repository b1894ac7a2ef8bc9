// Attention: whole sequences, block masks, and one token after many.

#include "compare/ours.hpp"
#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/attention/composed_score.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/kernels/attention/scores.hpp"
#include "seqmix/kernels/attention/selection.hpp"
#include "seqmix/kernels/positions/distance_biases.hpp"

namespace compare {
namespace {

using Cache = seqmix::Cache<float, 4>;

/// Keys or values [tokens, G, K] as caches hold them, [1, G, tokens, K].
Cache read_cache(const Request& r, const std::string& name, Index tokens) {
  const auto entries = read<3>(r, name, {tokens, r["G"], r["K"]});
  Cache cache({1, r["G"], tokens, r["K"]}, {}, choice<seqmix::Storage>(r, "cache"));
  const Index none = 0;
  Context context;
  const seqmix::Segment all{0, 0, tokens, Form::parallel};
  seqmix::append<float>(entries, View<const Index, 1>(&none, {1}), cache.view(),
                        Call(context, {&all, 1}));
  return cache;
}

/// Which blocks see each other, [1, n, n].
struct Layout {
  seqmix::SparsePatterns patterns;

  explicit Layout(const Request& r) {
    const Index n = r["T"] / r["block"];
    const auto seen = read<3>(r, "layout", {1, n, n});
    Tensor<Index, 3> table({1, n, n});
    std::transform(seen.data(), seen.data() + seen.size(), table.data(),
                   [](float x) { return static_cast<Index>(x); });
    patterns.of_heads = {seqmix::SparsePattern::layout};
    patterns.block = r["block"], patterns.layout = std::move(table);
  }
  seqmix::SparseMask mask() const { return {patterns}; }
};

/// A window as a program writes its own.
struct OwnMask {
  Index width = 1;

  OwnMask of(Index /*row*/, Index /*head*/) const { return *this; }
  seqmix::Span reach(seqmix::Span queries) const {
    return {std::max<Index>(queries.begin - width + 1, 0), queries.end};
  }
  seqmix::Visibility visibility(seqmix::Span queries, seqmix::Span keys) const {
    const seqmix::Span near = reach(queries);
    if (keys.begin >= near.end || keys.end <= near.begin) return seqmix::Visibility::none;
    const bool all = keys.end <= queries.begin + 1 && keys.begin > queries.end - 1 - width;
    return all ? seqmix::Visibility::all : seqmix::Visibility::partial;
  }
  template <class S>
  seqmix::simd::Mask<S> allows(const seqmix::Pairs<S>& pairs) const {
    const auto distance = pairs.query - pairs.key;
    return distance >= S(0) && distance < static_cast<S>(width);
  }
};

/// What the case calls its score.
seqmix::ComposedScore<float> score_of(const Request& r) {
  using Score = seqmix::ComposedScore<float>;
  const std::string kind = r.text("score", "plain");
  const double scale = seqmix::inverse_sqrt(r["K"]);
  if (kind == "soft_cap") {
    const seqmix::SoftCap cap(scale, 30);
    return {cap.scale, {Score::map(cap)}};
  }
  if (kind == "alibi") {
    const seqmix::LinearBiases biases(seqmix::alibi_slopes(r["H"]));
    return {scale, {Score::map(seqmix::OwnedBiases<seqmix::LinearBiases>{biases})}};
  }
  std::vector<double> sinks;
  for (Index h = 0; kind == "sink_logits" && h < r["H"]; ++h) {
    sinks.push_back(static_cast<double>(h) / 2);
  }
  return {scale, {}, std::move(sinks)};
}

/// Queries [T, H, K] that come at the end of a cache of `tokens` entries.
template <class Mask>
class Attention final : public KernelTo<3> {
 public:
  Attention(const Request& r, Context& context, Form form, Index T, Index tokens, Mask mask)
      : KernelTo(context, {T, r["H"], r["K"]}, form),
        mask_(std::move(mask)),
        q_(read<3>(r, "q", y.shape())),
        keys_(read_cache(r, "k", tokens)),
        values_(read_cache(r, "v", tokens)),
        past_(tokens - T),
        score_(score_of(r)) {}

 private:
  void run(const Call& call) override {
    const auto attend = [&](const auto& mask) {
      const View<const Index, 1> past(&past_, {1});
      seqmix::attention<float>(q_, std::as_const(keys_).view(), std::as_const(values_).view(), past,
                               mask, seqmix::AnyScore<float>(score_), y.view(), call);
    };
    if constexpr (std::same_as<Mask, Layout>) {
      attend(mask_.mask());
    } else {
      attend(mask_);
    }
  }

  Mask mask_;
  Tensor<float, 3> q_;  // [T, H, K]
  Cache keys_, values_;
  Index past_;
  seqmix::ComposedScore<float> score_;
};

}  // namespace

std::unique_ptr<Work> make_attention(const Request& request, Context& context) {
  const std::string& op = request.text("op");
  const auto make = [&](Form form, Index T, Index tokens, auto mask) -> std::unique_ptr<Work> {
    return std::make_unique<Attention<decltype(mask)>>(request, context, form, T, tokens, mask);
  };
  if (op == "attention") {
    const Index T = request["T"], window = std::stol(request.text("window", "0"));
    if (window == 0) return make(Form::parallel, T, T, seqmix::Causal{});
    if (request.text("mask", "") == "own_mask") return make(Form::parallel, T, T, OwnMask{window});
    return make(Form::parallel, T, T, seqmix::Band::window(window));
  }
  if (op == "block_attention")
    return make(Form::parallel, request["T"], request["T"], Layout(request));
  if (op == "decode") return make(Form::recurrent, 1, request["L"], seqmix::Causal{});
  return nullptr;
}

}  // namespace compare
