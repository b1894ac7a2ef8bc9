#pragma once

#include <algorithm>
#include <string_view>
#include <type_traits>
#include <vector>

#include "seqmix/core/call.hpp"
#include "seqmix/core/tensor.hpp"

// How `prepare` finds out what the calls of a layer need.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// A context whose tasks all run on one worker, so that what a worker needs is seen apart.
class Trial {
 public:
  /// At the settings of another context.
  explicit Trial(const Context& like) : context_(executor_) {
    context_.set_precision(like.precision());
    context_.set_algorithm(like.algorithm());
    context_.set_form(like.form());
  }
  Context& context() { return context_; }

 private:
  struct OneWorker final : Executor {
    Index workers() const override { return 1; }
    bool takes_lone_tasks() const override { return true; }
    void run(Index count, FunctionRef<void(Index task, Index worker)> body) override {
      for (Index task = 0; task < count; ++task) body(task, 0);
    }
  };

  OneWorker executor_;
  Context context_;
};

/// What the verbs of a layer take: zeros for some tokens.
template <class Layer>
class TrialNumbers {
 public:
  using Scalar = typename Layer::Scalar;
  using Side = typename Layer::Side;

  TrialNumbers(const Layer& layer, Index tokens, Index source_tokens)
      : layer_(layer),
        x_({tokens, layer.d_in()}),
        y_({tokens, layer.d_out()}),
        source_({source_tokens, layer.d_source()}) {
    Side::visit(side_, layer.config(),
                [&]<class T>(std::string_view, View<T, 2>& view, Index width, auto&&...) {
                  if constexpr (std::is_const_v<T>) {
                    view = indices_.emplace_back(Shape<2>{tokens, width}).view();
                  } else {
                    view = values_.emplace_back(Shape<2>{tokens, width}).view();
                  }
                });
  }

  View<const Scalar, 2> x(Index count) const { return x_.view().slice(axis::time, 0, count); }
  View<Scalar, 2> y(Index count) { return y_.view().slice(axis::time, 0, count); }
  View<const Scalar, 2> source(Index count) const {
    return source_.view().slice(axis::time, 0, count);
  }
  Side side(Index count) const { return tokens_of(layer_.definition(), side_, 0, count); }

 private:
  const Layer& layer_;
  Tensor<Scalar, 2> x_, y_, source_;
  std::vector<Tensor<Scalar, 2>> values_;
  std::vector<Tensor<Index, 2>> indices_;
  Side side_;
};

/// Calls `body(segments)` for the splits of at most `tokens` tokens into at most `rows` segments of
/// at most `longest` that need the most scratch: one segment, equal ones, one that is long beside
/// one of few tokens, which has a small share of the work and so large pieces of it, or beside
/// single tokens, and single tokens alone.
SEQMIX_COLD inline void for_each_trial_split(Index rows, Index tokens, Index longest,
                                             FunctionRef<void(Segments)> body) {
  if (rows == 0) return;
  std::vector<Segment> segments;
  const auto add = [&](Index count) {
    const Index first = segments.empty() ? 0 : segments.back().first + segments.back().count;
    const auto row = static_cast<Index>(segments.size());
    segments.push_back({row, first, std::min(count, longest), Form::automatic});
  };
  const auto run = [&] {
    body(Segments(segments));
    segments.clear();
  };
  add(tokens), run();
  if (rows > 1) add(tokens / 2), add(tokens - tokens / 2), run();
  for (Index few = 16; rows > 1 && few < tokens && few <= 64; few *= 2) {
    add(few), add(tokens - few), run();
  }
  for (Index i = 0; i < rows; ++i) add((i + 1) * tokens / rows - i * tokens / rows);
  run();
  for (Index i = 0; i < rows; ++i) add(i == 0 ? tokens - (rows - 1) : 1);
  run();
  for (Index i = 0; i < rows; ++i) add(1);
  run();
}

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
