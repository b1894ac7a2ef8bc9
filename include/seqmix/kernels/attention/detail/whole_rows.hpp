#pragma once

#include <algorithm>

#include "seqmix/kernels/attention/detail/recurrent.hpp"

// Attention whose weights ask for all scores of a query.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Queries, of all heads of a group, whose rows of scores stand in scratch together.
inline constexpr Index row_queries = 16;

/// The tokens `tokens` of the heads of some groups, one unless scores mix all heads: all of their
/// scores, then weights, then sums of values. Lanes are keys, then value channels; a row sees no
/// other. Rows begin at tiles, and what stands around the keys of a query adds nothing: no bit
/// depends on the queries beside it.
template <class S>
class QueryRows {
 public:
  QueryRows(const AttentionOperands<S>& operands, const SegmentQueries& of, Span groups,
            Span tokens, const Call& worker)
      : operands_(operands),
        of_(of),
        worker_(worker),
        groups_(groups),
        tokens_(tokens),
        heads_(operands.heads_per_group()),
        group_rows_(tokens.size() * heads_),
        rows_(groups.size() * group_rows_),
        reach_(operands.reach(of, {groups.begin * heads_, groups.end * heads_}, tokens)),
        first_(reach_.begin / attention_tile * attention_tile),
        width_(round_up(reach_.end - first_, attention_tile)),
        scratch_(worker.scratch<S>()),
        q_(scratch_(rows_, operands.head_k())),
        scores_(scratch_(rows_, most_keys())),
        spare_(scratch_(most_keys())),
        visible_(scratch_(rows_, attention_tile)),
        o_(scratch_(rows_, operands.head_v())),
        collected_(scratch_(attention_tile, std::max(operands.head_k(), operands.head_v()))) {}
  QueryRows(const QueryRows&) = delete;
  QueryRows& operator=(const QueryRows&) = delete;

  void run() {
    for (Index row = 0; row < rows_; ++row) {
      const S scale = static_cast<S>(operands_.policies.scores.scale(head(row)));
      simd::map<S>(
          q_.extent(1), &q_(row, 0), [scale](const auto& v) { return v * scale; },
          &of_row(operands_.q, row)[0]);
      fill(o_[row], S(0));
    }
    for_each_tile_of_groups([&](Index group, Span rows, Span tile) {
      score(rows, tile, operands_.keys_of(of_, group));
    });
    if (operands_.policies.scores.mixes_heads() && width_ > 0) mix();
    for (Index row = 0; row < rows_ && width_ > 0; ++row) {
      operands_.policies.scores.weigh(
          head(row), {&scores_(row, 0), width_, position(row) - first_, spare_.data(), first_});
    }
    for_each_tile_of_groups([&](Index group, Span rows, Span tile) {
      add(rows, tile, operands_.values_of(of_, group));
    });
    for (Index row = 0; row < rows_; ++row) copy(o_[row], of_row(operands_.o, row));
  }

 private:
  /// What `width_` may come to with this cache, so that steps take no more memory from one to the
  /// next.
  Index most_keys() const {
    if (!operands_.has_caches()) return width_;
    const Index slots = operands_.keys.extent(axis::slot);
    return std::max(width_, round_up(slots + tokens_.size(), attention_tile) + attention_tile);
  }
  /// Rows are those of the tokens of a group, each of its heads, then of the next group.
  Index head_number(Index row) const {
    return (groups_.begin + row / group_rows_) * heads_ + row % heads_;
  }
  Index token(Index row) const { return tokens_.begin + row % group_rows_ / heads_; }
  HeadOfRow head(Index row) const { return of_.of_head(head_number(row)); }
  Index position(Index row) const { return of_.past + token(row); }
  auto of_row(const auto& view, Index row) const {
    return view[of_.first + token(row)][head_number(row)];
  }
  Visibility visibility(Index row, Span tile) const {
    return operands_.policies.mask.visibility(head(row), {position(row), position(row) + 1}, tile);
  }

  void for_each_tile_of_groups(auto&& body) const {
    for (Index group = groups_.begin; group < groups_.end; ++group) {
      const Index first_row = (group - groups_.begin) * group_rows_;
      for (Index at = first_; at < reach_.end; at += attention_tile) {
        body(group, Span{first_row, first_row + group_rows_},
             Span{at, std::min(reach_.end, at + attention_tile)});
      }
    }
  }
  /// Lets scores of a token see those of its other heads.
  void mix() {
    const Index R = heads_, stride = scores_.stride(0);
    for (Index t = 0; t < tokens_.size(); ++t) {
      const View<S, 3> scores(&scores_(t * R, 0), {groups_.size(), R, width_},
                              {group_rows_ * stride, stride, 1});
      operands_.policies.scores.mix(head(t * R), {scores, width_, first_, position(t * R)},
                                    worker_);
    }
  }
  void score(Span of_rows, Span tile, const Entries<S>& keys) {
    const Policies<S>& policies = operands_.policies;
    const auto columns = scores_.slice(axis::row, of_rows.begin, of_rows.size())
                             .slice(axis::channel, tile.begin - first_, attention_tile);
    dot_rows<S>(q_.slice(axis::row, of_rows.begin, of_rows.size()),
                keys.of(tile, collected_.slice(axis::channel, 0, operands_.head_k())), Ahead(),
                columns);
    const bool plain = policies.scores.is_plain();
    for (Index row = of_rows.begin; row < of_rows.end; ++row) {
      S* const scores = &columns(row - of_rows.begin, 0);
      const Visibility seen = visibility(row, tile);
      const bool partial = seen == Visibility::partial;
      if (seen != Visibility::none && (partial || !plain)) {
        policies.score(head(row), pairs_of_query(position(row), tile, scores), plain, partial);
      }
      const Index count = seen == Visibility::none ? 0 : tile.size();
      std::fill(scores + count, scores + attention_tile, minus_infinity<S>);
    }
  }
  void add(Span of_rows, Span tile, const Entries<S>& values) {
    const View<const S, 2> numbers =
        values.of(tile, collected_.slice(axis::channel, 0, operands_.head_v()));
    const auto look = [&](Index i) {
      const Index row = of_rows.begin + i;
      const Visibility seen = visibility(row, tile);
      if (seen == Visibility::partial) {
        operands_.policies.mask.show(head(row),
                                     pairs_of_query(position(row), tile, &visible_(i, 0)));
      }
      return seen;
    };
    const auto add = [&](Span rows, Span keys, bool /*last*/) {
      if (rows.size() == 0 || keys.size() == 0) return;
      const auto p = scores_.slice(axis::row, of_rows.begin + rows.begin, rows.size());
      add_rows<S>(p.slice(axis::channel, tile.begin - first_ + keys.begin, keys.size()),
                  numbers.slice(axis::row, keys.begin, keys.size()), Ahead(),
                  o_.slice(axis::row, of_rows.begin + rows.begin, rows.size()));
    };
    for_each_seen<S>(of_rows.size(), tile.size(), visible_, look, add);
  }

  const AttentionOperands<S>& operands_;
  const SegmentQueries& of_;
  const Call& worker_;
  Span groups_, tokens_;
  Index heads_, group_rows_, rows_;  // heads of a group; tokens times these; of all groups
  Span reach_;
  Index first_, width_;  // of the rows of scores
  Context::Scratch<S> scratch_;
  View<S, 2> q_;          // [rows, K], scaled
  View<S, 2> scores_;     // [rows, most_keys], then weights
  View<S, 1> spare_;      // [most_keys]
  View<S, 2> visible_;    // [rows, attention_tile], 1 or 0
  View<S, 2> o_;          // [rows, V]
  View<S, 2> collected_;  // [attention_tile, K or V]
};

/// All segments, whatever their form.
template <class S>
void attend_by_rows(const AttentionOperands<S>& operands, const Call& call) {
  const bool mixes_heads = operands.policies.scores.mixes_heads();
  const Index R = operands.heads_per_group(), groups = mixes_heads ? operands.groups() : 1;
  const Index tokens = ceil_div(row_queries, R * groups);
  const auto work_of = [&](const Segment& segment) {
    const SegmentQueries of = operands.queries_of(segment);
    if (of.count == 0) return SegmentWork{};
    const Index keys = operands.reach(of, {0, operands.heads()}, {of.count - 1, of.count}).size();
    const Index products =
        std::min(tokens, of.count) * groups * R * keys * (operands.head_k() + operands.head_v());
    return SegmentWork{ceil_div(of.count, tokens) * (operands.groups() / groups),
                       std::clamp<Index>(products, 1, attention_task_products)};
  };
  for_each_unit(call, attention_task_products, work_of, [&](const Unit& unit, const Call& worker) {
    const SegmentQueries of = operands.queries_of(unit.segment);
    const Index blocks = ceil_div(of.count, tokens), begin = unit.item % blocks * tokens;
    const Index first = unit.item / blocks * groups;
    QueryRows<S>(operands, of, {first, first + groups}, {begin, std::min(of.count, begin + tokens)},
                 worker)
        .run();
  });
}

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
