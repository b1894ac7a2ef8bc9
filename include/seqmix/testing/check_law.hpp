#pragma once

#include <algorithm>
#include <functional>
#include <iomanip>
#include <limits>
#include <numeric>
#include <optional>
#include <random>
#include <span>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "seqmix/layers/any_mixer.hpp"
#include "seqmix/testing/splits.hpp"
#include "seqmix/testing/state.hpp"
#include "seqmix/testing/thread_executor.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace testing {

struct LawOptions {
  Index rows = 4;
  Index tokens = 600;  // of a row; less where the layer has fewer positions
  int trials = 4;      // of what is drawn at random
  unsigned seed = 1;
  /// The relative error that outputs and states may have where another form computes them; 0: in
  /// double 1e-12, or 1e-10 where the layer's traits say indirect, in float 1e-5.
  double bound = 0;
};

/// The outputs [B, T, D] that a layer should have for x [B, T, D]. It shares no code with the
/// layer: the law cannot see what both forms of a layer get wrong.
template <class Scalar>
using LawTwin = std::function<Tensor<double, 3>(const Tensor<Scalar, 3>& x)>;

namespace detail {

/// Tokens [first, first + count) of a sequence that continue a row of a state.
struct LawPiece {
  Index sequence = 0, first = 0, count = 0, row = 0;
};

enum class LawVerb { forward, prefill, step, advance, documents };
inline const char* name_of(LawVerb verb) {
  constexpr const char* names[] = {"forward", "prefill", "step", "advance", "forward_documents"};
  return names[static_cast<std::size_t>(verb)];
}

/// The law of one layer, by random sequences.
template <class Scalar>
class LawCheck {
 public:
  LawCheck(AnyMixer<Scalar> mixer, LawOptions options)
      : mixer_(std::move(mixer)), options_(options), random_(options.seed) {
    context_.set_poison(true);
    options_.tokens = std::min(options_.tokens, mixer_.position_limit().tokens);
    if (options_.bound == 0) {
      const bool indirect = mixer_.traits().tolerance == Tolerance::indirect;
      options_.bound = std::same_as<Scalar, float> ? 1e-5 : indirect ? 1e-10 : 1e-12;
    }
    const Index B = options_.rows, T = options_.tokens;
    inputs_.x = random_numbers(B, T, mixer_.d_in());
    if (mixer_.d_source() > 0) source_ = random_numbers(B, 13, mixer_.d_source());
    sides_ = mixer_.sides();
    for (const SideDescription& side : sides_) {
      const bool given = side.role == SideRole::input, integral = side.kind == SideKind::indices;
      inputs_.sides.push_back(random_numbers(given && !integral ? B : 0, T, side.width));
      indices_.push_back(random_indices(integral ? B : 0, T, side));
    }
  }

  std::vector<std::string> run(const LawTwin<Scalar>& twin) {
    const Values forward = run_alike(LawVerb::forward, whole());
    if (!check_outputs(forward)) return std::move(failures_);
    if (twin) compare_with_twin(forward, twin);
    check_in_place(LawVerb::forward, forward);
    check_rows_alone(LawVerb::forward, forward);
    check_threads(LawVerb::forward, forward);
    check_documents();
    if (!mixer_.continues()) return std::move(failures_);

    std::optional<State> expected;  // after the last token
    for (const LawVerb verb : {LawVerb::step, LawVerb::prefill}) {
      State state = make_state(all_rows());
      const Values outputs = run_alike(verb, whole(), &state);
      compare(name_of(verb), outputs, forward);
      if (expected) compare_states(name_of(verb), state, *expected);
      if (!expected) expected = std::move(state);
      check_in_place(verb, outputs);
      check_rows_alone(verb, outputs);
      check_threads(verb, outputs);
    }
    for (int trial = 0; trial < options_.trials; ++trial) check_split(forward, *expected);
    for (int trial = 0; trial < options_.trials; ++trial) check_company(trial % 2 == 1);
    return std::move(failures_);
  }

 private:
  using State = AnyState;
  using Numbers = Tensor<Scalar, 3>;  // [B, T, width]
  /// What goes into a layer or comes out of it: x or y, and the side values of that role.
  struct Values {
    Numbers x;
    std::vector<Numbers> sides;
  };
  struct Settings {
    Context* context = nullptr;  // null: a serial one
    bool in_place = false;
  };

  Numbers random_numbers(Index B, Index T, Index width) {
    std::normal_distribution<float> normal;
    Numbers numbers({B, T, width});
    std::generate_n(numbers.data(), numbers.size(),
                    [&] { return static_cast<Scalar>(normal(random_)); });
    return numbers;
  }
  Tensor<Index, 3> random_indices(Index B, Index T, const SideDescription& side) {
    std::uniform_int_distribution<Index> any(0, std::min<Index>(side.bound, T) - 1);
    Tensor<Index, 3> indices({B, T, side.width});
    std::generate_n(indices.data(), indices.size(), [&] { return any(random_); });
    return indices;
  }
  Values unwritten() const {
    const auto like = [&](Index width) {
      Numbers numbers({options_.rows, options_.tokens, width});
      fill(numbers.view(), std::numeric_limits<Scalar>::quiet_NaN());
      return numbers;
    };
    Values values{like(mixer_.d_out()), {}};
    for (const SideDescription& side : sides_) {
      values.sides.push_back(side.role == SideRole::output ? like(side.width) : Numbers());
    }
    return values;
  }
  std::vector<Index> all_rows() const {
    std::vector<Index> rows(static_cast<std::size_t>(options_.rows));
    std::iota(rows.begin(), rows.end(), 0);
    return rows;
  }
  std::vector<LawPiece> whole() const {
    std::vector<LawPiece> pieces;
    for (const Index row : all_rows()) pieces.push_back({row, 0, options_.tokens, row});
    return pieces;
  }
  /// The state of these sequences before their first tokens.
  State make_state(const std::vector<Index>& sequences) {
    const Index B = std::ssize(sequences), S = source_.extent(1);
    State state = mixer_.make_state(B, std::max(options_.tokens, S));
    if (mixer_.d_source() == 0) return state;
    const Numbers source = source_of(sequences);
    std::vector<Segment> rows;
    for (Index row = 0; row < B; ++row) rows.push_back({row, row * S, S});
    mixer_.read(source.view().merge(axis::row), rows, state, context_);
    return state;
  }
  Numbers source_of(const std::vector<Index>& sequences) const {
    Numbers source({std::ssize(sequences), source_.extent(1), source_.extent(2)});
    for (Index i = 0; i < source.extent(0); ++i) {
      copy(source_.view()[sequences[static_cast<std::size_t>(i)]], source.view()[i]);
    }
    return source;
  }

  void run_verb(LawVerb verb, const std::vector<Index>& sequences, Segments segments,
                const Tensor<Index, 1>& cu_seqlens, View<const Scalar, 2> x, State* state,
                View<Scalar, 2> y, Context& context, std::span<const NamedView<Scalar>> sides) {
    const Index B = std::ssize(sequences), T = B == 0 ? 0 : segments.front().count;
    const auto dense = [&](auto flat) { return flat.split(axis::time, B, T); };
    switch (verb) {
      case LawVerb::forward:
        if (mixer_.d_source() == 0) return mixer_.forward(dense(x), dense(y), context, sides);
        return mixer_.forward(dense(x), source_of(sequences), dense(y), context, sides);
      case LawVerb::prefill:
        return mixer_.prefill(dense(x), *state, dense(y), context, sides);
      case LawVerb::step:
        return mixer_.step(x, *state, y, context, sides);
      case LawVerb::advance:
        return mixer_.advance(x, segments, *state, y, context, sides);
      case LawVerb::documents:
        return mixer_.forward_documents(x, cu_seqlens, y, context, sides);
    }
  }

  /// One call of a verb with tokens of some sequences; the outputs go to the same places of
  /// `outputs`. A step has one token of each.
  void call(LawVerb verb, const std::vector<LawPiece>& pieces, State* state, Values& outputs,
            Settings settings) {
    std::vector<Segment> segments;
    Tensor<Index, 1> cu_seqlens({std::ssize(pieces) + 1});
    std::vector<Index> sequences;
    Index tokens = 0;
    for (const LawPiece& piece : pieces) {
      segments.push_back({piece.row, tokens, piece.count});
      sequences.push_back(piece.sequence);
      cu_seqlens[std::ssize(segments)] = tokens += piece.count;
    }
    const auto for_each_piece = [&](const auto& all, const auto& flat, auto&& body) {
      Index first = 0;
      for (const LawPiece& piece : pieces) {
        body(all[piece.sequence].slice(axis::time, piece.first, piece.count),
             flat.slice(axis::time, first, piece.count));
        first += piece.count;
      }
    };
    const auto gather = [&]<class T>(const Tensor<T, 3>& all) {
      Tensor<T, 2> flat({tokens, all.extent(2)});
      for_each_piece(all.view(), flat.view(), [](auto from, auto to) { copy(from, to); });
      return flat;
    };
    const auto scatter = [&](Tensor<Scalar, 2>& flat, Numbers& all) {
      for_each_piece(all.view(), flat.view(), [](auto to, auto from) { copy(from, to); });
    };

    Tensor<Scalar, 2> x = gather(inputs_.x), room({tokens, mixer_.d_out()});
    fill(room.view(), std::numeric_limits<Scalar>::quiet_NaN());
    Tensor<Scalar, 2>& y = settings.in_place ? x : room;
    std::vector<Tensor<Scalar, 2>> values;
    std::vector<Tensor<Index, 2>> indices;
    std::vector<NamedView<Scalar>> views;
    values.reserve(sides_.size()), indices.reserve(sides_.size());
    for (std::size_t i = 0; i < sides_.size(); ++i) {
      if (sides_[i].kind == SideKind::indices) {
        values.emplace_back();
        views.push_back({sides_[i].name, indices.emplace_back(gather(indices_[i])).view()});
        continue;
      }
      if (sides_[i].role == SideRole::input) {
        values.push_back(gather(inputs_.sides[i]));
      } else {
        fill(values.emplace_back(Shape<2>{tokens, sides_[i].width}).view(),
             std::numeric_limits<Scalar>::quiet_NaN());
      }
      views.push_back({sides_[i].name, values.back().view()});
    }

    Context& context = settings.context != nullptr ? *settings.context : context_;
    run_verb(verb, sequences, segments, cu_seqlens, x, state, y, context, views);
    scatter(y, outputs.x);
    for (std::size_t i = 0; i < sides_.size(); ++i) {
      if (sides_[i].role == SideRole::output) scatter(values[i], outputs.sides[i]);
    }
  }

  /// The same tokens of some sequences by one verb: in one call, or by steps.
  void run_piece(LawVerb verb, std::vector<LawPiece> pieces, State* state, Values& outputs,
                 Settings settings = {}) {
    if (verb != LawVerb::step) return call(verb, pieces, state, outputs, settings);
    const Index count = pieces.front().count;
    for (LawPiece& piece : pieces) piece.count = 1;
    for (Index t = 0; t < count; ++t) {
      call(verb, pieces, state, outputs, settings);
      for (LawPiece& piece : pieces) ++piece.first;
    }
  }
  /// All outputs of whole sequences by one verb, from the state before their first tokens.
  Values run_alike(LawVerb verb, const std::vector<LawPiece>& pieces, State* state = nullptr,
                   Settings settings = {}) {
    Values outputs = unwritten();
    State own;
    if (state == nullptr && verb != LawVerb::forward) {
      std::vector<Index> sequences;
      for (const LawPiece& piece : pieces) sequences.push_back(piece.sequence);
      own = make_state(sequences), state = &own;
    }
    run_piece(verb, pieces, state, outputs, settings);
    return outputs;
  }

  /// Whether all is written and something: a law about numbers that are nearly zero says nothing.
  bool check_outputs(const Values& outputs) {
    for_each_output(outputs, outputs, [&](const std::string& name, View<const Scalar, 3> y, auto) {
      const auto numbers = numbers_of(y);
      long double squares = 0;
      for (const Scalar number : numbers) squares += number * number;
      const auto count = static_cast<double>(std::max<std::size_t>(numbers.size(), 1));
      const double rms = std::sqrt(static_cast<double>(squares) / count);
      const std::size_t before = failures_.size();
      by_token(y.shape())([&](std::size_t i, auto&& place) {
        if (std::isfinite(numbers[i])) return false;
        failures_.push_back("forward: " + name + " is not finite, or not written, at " + place());
        return true;
      });
      if (failures_.size() > before || numbers.empty() || rms > 1e-3) return;
      failures_.push_back("forward: " + name +
                          " is nearly zero, of which a law says nothing: its " +
                          "root mean square is " + text_of(rms));
    });
    return failures_.empty();
  }
  void compare_with_twin(const Values& forward, const LawTwin<Scalar>& twin) {
    const Tensor<double, 3> expected = twin(inputs_.x);
    compare_numbers("forward", "y against the twin's", forward.x.view(), expected.view());
  }
  void check_in_place(LawVerb verb, const Values& expected) {
    if (mixer_.d_in() != mixer_.d_out()) return;
    compare_bits(std::string(name_of(verb)) + " with y = x",
                 run_alike(verb, whole(), nullptr, {.in_place = true}), expected);
  }
  void check_rows_alone(LawVerb verb, const Values& expected) {
    Values alone = unwritten();
    for (const Index row : all_rows()) {
      State state;
      if (verb != LawVerb::forward) state = make_state({row});
      run_piece(verb, {{row, 0, options_.tokens, 0}}, &state, alone);
    }
    compare_bits(std::string(name_of(verb)) + " of a batch against each row alone", expected,
                 alone);
  }
  void check_threads(LawVerb verb, const Values& expected) {
    for (const Index threads : {1, 2, 3}) {
      ThreadExecutor executor(threads);
      Context context(executor);
      context.set_poison(true);
      const Values outputs = run_alike(verb, whole(), nullptr, {.context = &context});
      compare_bits(std::string(name_of(verb)) + " on " + std::to_string(threads) + " threads",
                   outputs, expected);
    }
  }
  /// Documents of different lengths behind each other against each alone.
  void check_documents() {
    if (mixer_.d_source() > 0) return;
    Values packed = unwritten(), alone = unwritten();
    std::vector<LawPiece> pieces;
    for (const Segment& segment : company()) {
      const LawPiece piece{segment.row, 0, segment.count, 0};
      pieces.push_back(piece);
      if (piece.count > 0) call(LawVerb::forward, {piece}, nullptr, alone, {});
    }
    call(LawVerb::documents, pieces, nullptr, packed, {});
    compare_bits("forward_documents against each document alone", packed, alone);
  }
  /// Prefills and steps in random pieces, all rows alike.
  void check_split(const Values& forward, const State& expected) {
    Values outputs = unwritten();
    State state = make_state(all_rows());
    for (const Piece& cut : random_split(options_.tokens, random_)) {
      std::vector<LawPiece> pieces;
      for (const Index row : all_rows()) pieces.push_back({row, cut.first, cut.count, row});
      run_piece(cut.by_steps ? LawVerb::step : LawVerb::prefill, pieces, &state, outputs);
    }
    compare("prefills and steps in random pieces", outputs, forward);
    compare_states("prefills and steps in random pieces", state, expected);
  }
  /// Random segments in two calls, the second from states of different ages, against each alone.
  void check_company(bool on_threads) {
    ThreadExecutor executor(3);
    Context threads(executor);
    threads.set_poison(true);
    State company_state = make_state(all_rows()), alone_state = company_state;
    std::vector<Index> seen(static_cast<std::size_t>(options_.rows), 0);
    Values together = unwritten(), alone = unwritten();
    for (int round = 0; round < 2; ++round) {
      std::vector<LawPiece> pieces;
      for (const Segment& segment : company()) {
        Index& first = seen[static_cast<std::size_t>(segment.row)];
        pieces.push_back({segment.row, first, segment.count, segment.row});
        call(LawVerb::advance, {pieces.back()}, &alone_state, alone, {});
        first += segment.count;
      }
      call(LawVerb::advance, pieces, &company_state, together,
           {.context = on_threads ? &threads : nullptr});
    }
    const std::string what = std::string("advance in random company") +
                             (on_threads ? " on 3 threads" : "") + " against each segment alone";
    compare_bits(what, together, alone);
    const auto got = valid_numbers(company_state.members()),
               expected = valid_numbers(alone_state.members());
    for (const auto& [member, numbers] : expected) {
      if (got.at(member) == numbers) continue;
      failures_.push_back(what + ": state member " + member + " has other bits");
    }
  }
  std::vector<Segment> company() {
    return random_company(options_.rows, options_.tokens / 2, random_);
  }

  /// Calls `body(name, got, expected)` for y and each side value that the layer gives.
  void for_each_output(const Values& got, const Values& expected, auto&& body) {
    body("y", got.x.view(), expected.x.view());
    for (std::size_t i = 0; i < sides_.size(); ++i) {
      if (sides_[i].role != SideRole::output) continue;
      body(sides_[i].name, got.sides[i].view(), expected.sides[i].view());
    }
  }
  void compare(const std::string& what, const Values& got, const Values& expected) {
    for_each_output(got, expected, [&](const std::string& name, const auto& a, const auto& b) {
      compare_numbers(what, name, a, b);
    });
  }
  template <class T>
  void compare_numbers(const std::string& what, const std::string& name, View<const Scalar, 3> got,
                       View<const T, 3> expected) {
    const double error = relative_error(got, expected);
    if (error <= options_.bound) return;
    const std::string where =
        got.shape() == expected.shape()
            ? first_beyond<Scalar, T>(numbers_of(got), numbers_of(expected), options_.bound,
                                      by_token(got.shape()))
            : "has shape " + got.shape().text() + ", expected " + expected.shape().text();
    failures_.push_back(what + ": " + name + " " + where + "; " + error_text(error));
  }
  void compare_bits(const std::string& what, const Values& got, const Values& expected) {
    for_each_output(got, expected,
                    [&](const std::string& name, View<const Scalar, 3> a, View<const Scalar, 3> b) {
                      if (same_bits(a, b)) return;
                      failures_.push_back(what + ": other bits: " + name + " " +
                                          first_difference<Scalar, Scalar>(
                                              numbers_of(a), numbers_of(b), by_token(a.shape()),
                                              [](Scalar x, Scalar y) { return !same_bits(x, y); }));
                    });
  }
  void compare_states(const std::string& what, const State& got, const State& expected) {
    const auto numbers = valid_numbers(got.members());
    for (const auto& [member, values] : valid_numbers(expected.members())) {
      const double error = member_error(numbers.at(member), values);
      if (error <= options_.bound) continue;
      failures_.push_back(what + ": state member " + member +
                          " is after the last token not what steps leave; " + error_text(error));
    }
  }
  std::string error_text(double error) const {
    return "relative error " + text_of(error) + ", bound " + text_of(options_.bound);
  }
  static std::string text_of(double value) {
    std::ostringstream text;
    text << std::setprecision(2) << value;
    return text.str();
  }

  AnyMixer<Scalar> mixer_;
  LawOptions options_;
  std::mt19937 random_;
  Context context_;
  std::vector<SideDescription> sides_;
  Values inputs_;
  Numbers source_;
  std::vector<Tensor<Index, 3>> indices_;  // of each side value, [B, T, width]
  std::vector<std::string> failures_;
};

}  // namespace detail

/// Runs the law on a layer. `forward` writes every output, however its scratch begins, and equals
/// the twin's where there is one (of a layer without side values and source). Steps, prefills and
/// any split into both have the outputs of `forward` and leave one state. A batch row, a document
/// and a segment have the same bits alone and in any company, in any order, on 1, 2 and 3 threads,
/// and a row that is in no segment keeps its state. y may be x.
///
/// Returns a sentence for each failure: the verb, the first token and channel that differ, the
/// error and its bound; nothing where all holds. Double is the number type to ask it in: the errors
/// of float hide small faults.
template <class Scalar>
std::vector<std::string> check_law(const AnyMixer<Scalar>& mixer, const LawOptions& options = {},
                                   const std::type_identity_t<LawTwin<Scalar>>& twin = {}) {
  return detail::LawCheck<Scalar>(mixer, options).run(twin);
}
template <class Definition>
std::vector<std::string> check_law(
    const Mixer<Definition>& mixer, const LawOptions& options = {},
    const std::type_identity_t<LawTwin<typename Definition::Scalar>>& twin = {}) {
  return check_law(AnyMixer<typename Definition::Scalar>(mixer), options, twin);
}

}  // namespace testing
SEQMIX_END_NAMESPACE
}  // namespace seqmix
