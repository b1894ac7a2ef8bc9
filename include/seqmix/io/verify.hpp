#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <exception>
#include <iomanip>
#include <limits>
#include <optional>
#include <ostream>
#include <set>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/io/registry.hpp"
#include "seqmix/io/state.hpp"
#include "seqmix/testing/compare.hpp"
#include "seqmix/testing/state.hpp"

// Layer files against the layers of a registry, and the program `verify` that checks them. Beside
// what `load_layer` reads, such a file holds
//
//   metadata  source               what made it
//             precision            "float64", or "float32" where that code computes in float
//   tensors   x, y                 [B, T, D] each
//             in.<name>            side values that the layer takes, [B, T, width], indices as
//                                  integers; in.source, what its rows read, [B, S, D']
//             out.<name>           side values that it gives
//             initial.<member>     the state before the first token, [B, ...] as `StateMember`
//                                  shapes it, of a cache the valid entries; a member without a
//                                  tensor is as the layer makes it
//             state.<member>       the state after the last token, in the same form
//             trace.<name>         intermediates, [B, T, ...], which `--trace` compares
//
// and nothing else.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// How far a layer, in double, is from the outputs that a layer file holds: relative errors, the
/// largest over y and side values. What there is not is empty: `forward` where the file has an
/// initial state, which that verb does not start from (one `prefill` of all tokens takes its
/// place); `prefill` and `step` where the layer has no state; `state` where the file has none.
struct Verification {
  std::string layer;
  double tolerance = 0;
  std::optional<double> forward;
  std::optional<double> prefill;  // the largest over the ways to cut the sequence
  std::optional<double> step;
  std::optional<double> state;   // the final state of both, the largest over members
  std::string first_difference;  // where `ok()` is false: where, got and expected, in words

  bool ok() const {
    const auto is_small = [&](const std::optional<double>& error) {
      return !error || *error <= tolerance;
    };
    return is_small(forward) && is_small(prefill) && is_small(step) && is_small(state);
  }
};

/// One intermediate of a layer beside `trace.<name>` of its file. It decides nothing: published
/// code may scale or round elsewhere than the layer and still give its outputs.
struct TracedIntermediate {
  std::string name;
  std::optional<double> error;  // empty where either side is missing
  std::string remark;           // what is missing, or where the first difference is
};

/// The relative error that a layer may have: 1e-12 where the file is float64 (1e-10 for indirect
/// layers), 2e-6 where the published code forces float32. A file chooses nothing else.
inline double layer_file_tolerance(const Traits& traits, std::string_view precision) {
  if (precision == "float32") return 2e-6;
  if (precision == "float64") return traits.tolerance == Tolerance::indirect ? 1e-10 : 1e-12;
  throw CheckpointError("metadata precision is " + detail::in_quotes(precision) +
                        ", expected \"float64\" or \"float32\"");
}

namespace detail {

inline Shape<3> shape_in_file(const Safetensors& file, std::string_view name) {
  const auto shape = file.entry(name).shape;
  if (shape.size() != 3) {
    throw CheckpointError(file.source() + ": tensor " + std::string(name) + " has " +
                          std::to_string(shape.size()) + " axes, expected [B, T, D]");
  }
  return {shape[0], shape[1], shape[2]};
}

/// The numbers of a tensor of integers or floating point, row-major.
inline std::vector<double> stored_numbers(StoredTensor tensor, bool integral) {
  const Index count = tensor.bytes.size() / size_of(tensor.dtype);
  tensor.shape = {count};
  if (integral) {
    const auto integers = tensor.integers();
    return {integers.data(), integers.data() + count};
  }
  const auto numbers = tensor.parameter<double, 1>({count});
  return {numbers.data(), numbers.data() + count};
}

/// The state that a file gives for the time before the first token.
class InitialState {
 public:
  /// `members`: those of a state that the layer makes for `batch` rows.
  InitialState(const Safetensors& file, const ConstStateMembers& members, Index batch)
      : tokens_(static_cast<std::size_t>(batch), 0) {
    const std::vector<NamedStateMember> list = members.list();
    const auto read_all = [&](bool positions) {
      for (const NamedStateMember& member : list) {
        const std::string name = prefix + member.name;
        const bool is_position = member.kind == StateMember::Kind::position;
        if (!may_give(member) || is_position != positions) continue;
        if (file.contains(name)) {
          given_.push_back({member.name, read(file.entry(name), member, batch)});
        } else if (member.is_cache() && tokens() > 0) {
          throw CheckpointError(file.source() + ": tensor " + name + " is missing: the rows have " +
                                "seen tokens, as initial.position says");
        }
      }
    };
    read_all(true);
    for (const Given& position : given_) {
      if (position.numbers != given_.front().numbers) {
        throw CheckpointError(file.source() + ": " + prefix + position.name + " and " + prefix +
                              given_.front().name + " disagree");
      }
      std::ranges::transform(position.numbers, tokens_.begin(),
                             [](double count) { return static_cast<Index>(count); });
    }
    const bool has_cache = std::ranges::any_of(
        list, [](const auto& member) { return may_give(member) && member.is_cache(); });
    if (has_cache && std::ranges::count(tokens_, tokens()) != batch) {
      throw CheckpointError(file.source() + ": rows of different positions have caches of " +
                            "different lengths, which no tensor initial.<member> holds");
    }
    read_all(false);
  }

  static constexpr const char* prefix = "initial.";
  /// Not what only going back sets, nor what `in.source` gives.
  static bool may_give(const StateMember& member) {
    using Kind = StateMember::Kind;
    return member.kind != Kind::mark && member.kind != Kind::source && member.kind != Kind::length;
  }
  bool given() const { return !given_.empty(); }
  /// The most tokens that a row has seen.
  Index tokens() const { return tokens_.empty() ? 0 : std::ranges::max(tokens_); }

  /// Writes what is given into a state that has room for `tokens()` tokens.
  void fill(const StateMembers& state) const {
    for (Index row = 0; row < state.batch() && tokens() > 0; ++row) {
      state.set_tokens(row, tokens_[static_cast<std::size_t>(row)]);
    }
    for (const NamedStateMember& member : state.list()) {
      const auto found = std::ranges::find(given_, member.name, &Given::name);
      if (found == given_.end() || member.kind == StateMember::Kind::position) continue;
      if (member.integral) {
        fill_member<Index>(state, member, found->numbers);
      } else {
        fill_member<double>(state, member, found->numbers);
      }
    }
  }

 private:
  struct Given {
    std::string name;
    std::vector<double> numbers;
  };

  std::vector<double> read(const StoredTensor& tensor, const StateMember& member,
                           Index batch) const {
    std::vector<Index> shape = row_shape(member, tokens());
    shape.insert(shape.begin(), batch);
    if (tensor.shape != shape) {
      tensor.fail("wrong shape", shape_text(tensor.shape), shape_text(shape));
    }
    std::vector<double> numbers = stored_numbers(tensor, member.integral);
    for (const double number : numbers) {
      if (!member.integral || (number >= 0 && number <= static_cast<double>(max_tokens))) continue;
      tensor.fail("not a count of tokens", text_of_field(number),
                  "0 to " + std::to_string(max_tokens));
    }
    return numbers;
  }

  template <class T>
  void fill_member(const StateMembers& state, const StateMember& member,
                   const std::vector<double>& numbers) const {
    std::vector<T> typed(numbers.size());
    std::ranges::transform(numbers, typed.begin(),
                           [](double number) { return static_cast<T>(number); });
    const std::size_t stride = typed.size() / std::max<std::size_t>(tokens_.size(), 1);
    for (std::size_t row = 0; row < tokens_.size(); ++row) {
      state.fill_row(member, static_cast<Index>(row), tokens_[row],
                     reinterpret_cast<const std::byte*>(typed.data() + row * stride));
    }
  }

  std::vector<Given> given_;
  std::vector<Index> tokens_;  // that each row has seen
};

/// Puts the intermediates of one call of `batch` rows of `tokens` tokens together.
class TraceCollector final : public Trace {
 public:
  struct Intermediate {
    std::string name;
    std::vector<Index> shape;  // [B, T, ...]
    std::vector<double> numbers;
    Index heard = 0;  // tokens
    bool is_ambiguous = false;
  };

  TraceCollector(Index batch, Index tokens) : batch_(batch), tokens_(tokens) {}

  void hear(std::string_view name, Index first, std::span<const Index> shape,
            std::span<const double> numbers) override {
    auto found = std::ranges::find(list_, name, &Intermediate::name);
    if (found == list_.end()) {
      std::vector<Index> whole{batch_, tokens_};
      whole.insert(whole.end(), shape.begin() + 1, shape.end());
      const std::size_t size = numbers.size() / static_cast<std::size_t>(shape[0]) *
                               static_cast<std::size_t>(batch_ * tokens_);
      list_.push_back({std::string(name), std::move(whole),
                       std::vector<double>(size, std::numeric_limits<double>::quiet_NaN())});
      found = std::prev(list_.end());
    }
    const std::size_t at =
        numbers.size() / static_cast<std::size_t>(shape[0]) * static_cast<std::size_t>(first);
    found->heard += shape[0];
    // More than the tokens there are, or others: it is several parts that call something so.
    if (found->heard > batch_ * tokens_ || at + numbers.size() > found->numbers.size() ||
        !std::ranges::equal(shape.subspan(1), std::span(found->shape).subspan(2))) {
      found->is_ambiguous = true;
      return;
    }
    std::ranges::copy(numbers, found->numbers.begin() + static_cast<std::ptrdiff_t>(at));
  }
  /// In the order in which the layer names them.
  const std::vector<Intermediate>& list() const { return list_; }

 private:
  Index batch_, tokens_;
  std::vector<Intermediate> list_;
};

/// A layer beside the file that it was loaded from.
class LayerFile {
 public:
  LayerFile(const Safetensors& file, const Registry<double>& registry)
      : file_(file), layer_(registry.load(file)) {
    result_.layer = layer_metadata(file, "layer");
    result_.tolerance = layer_file_tolerance(layer_.traits(), layer_metadata(file, "precision"));
    layer_metadata(file, "source");
    const Shape<3> shape = shape_in_file(file, "x");
    x_ = file.parameter<double, 3>("x", shape).to_tensor();
    known_.insert("x");
    batch_ = shape[0], tokens_ = shape[1];
    add_side("y", shape_in_file(file, "y"), SideRole::output);
    for (const SideDescription& side : layer_.sides()) {
      const bool input = side.role == SideRole::input;
      if (side.kind == SideKind::indices) {
        add_indices("in." + side.name, {batch_, tokens_, side.width});
        continue;
      }
      add_side((input ? "in." : "out.") + side.name, {batch_, tokens_, side.width}, side.role);
    }
    if (reads_source()) {
      known_.insert("in.source");
      source_ =
          file.parameter<double, 3>("in.source", shape_in_file(file, "in.source")).to_tensor();
    }
    if (layer_.continues()) add_state();
    refuse_others();
  }

  Verification verify() {
    run_whole();
    if (layer_.continues()) {
      prefill(1);
      step();
    }
    return std::move(result_);
  }

  /// Compares the intermediates that the layer names in `forward`, or in the `prefill` that takes
  /// its place, with those of the file.
  std::vector<TracedIntermediate> trace() {
    TraceCollector collector(batch_, tokens_);
    context_.set_trace(&collector);
    run_whole();
    context_.set_trace(nullptr);
    std::vector<TracedIntermediate> result;
    for (const auto& one : collector.list()) {
      const std::string name = trace_prefix + one.name;
      if (one.is_ambiguous) {
        result.push_back({one.name, {}, "several parts of the layer call an intermediate so"});
      } else if (!file_.contains(name)) {
        result.push_back({one.name, {}, "the file has no tensor " + name});
      } else {
        result.push_back(compare(one, file_.entry(name)));
      }
    }
    for (const std::string& name : file_.names()) {
      if (!name.starts_with(trace_prefix)) continue;
      const std::string own = name.substr(std::string_view(trace_prefix).size());
      if (std::ranges::find(collector.list(), own, &TraceCollector::Intermediate::name) ==
          collector.list().end()) {
        result.push_back({own, {}, "the layer names no such intermediate"});
      }
    }
    return result;
  }

 private:
  static constexpr const char* trace_prefix = "trace.";

  struct Side {
    std::string name;  // in the file
    SideRole role = SideRole::output;
    Parameter<double, 3> published;
    Tensor<double, 3> values = {};
  };

  void add_side(std::string name, Shape<3> shape, SideRole role) {
    Parameter<double, 3> published = file_.parameter<double, 3>(name, shape);
    Tensor<double, 3> values = published.to_tensor();
    known_.insert(name);
    sides_.push_back({std::move(name), role, std::move(published), std::move(values)});
  }
  void add_indices(const std::string& name, Shape<3> shape) {
    const StoredTensor tensor = file_.entry(name);
    const std::vector<Index> expected(shape.extents.begin(), shape.extents.end());
    if (tensor.shape != expected) {
      tensor.fail("wrong shape", shape_text(tensor.shape), shape_text(expected));
    }
    const auto numbers = tensor.integers();
    Tensor<Index, 3> values(shape);
    std::copy_n(numbers.data(), numbers.size(), values.data());
    known_.insert(name);
    indices_.push_back({name, std::move(values)});
  }
  void add_state() {
    const AnyState state = layer_.make_state(batch_, 0);
    for (const NamedStateMember& member : state.members().list()) {
      if (member.kind == StateMember::Kind::mark) continue;
      known_.insert("state." + member.name);
      if (InitialState::may_give(member)) known_.insert(InitialState::prefix + member.name);
    }
    initial_.emplace(file_, state.members(), batch_);
  }
  void refuse_others() const {
    for (const auto& [key, text] : file_.metadata()) {
      if (key == "layer" || key == "config" || key == "source" || key == "precision") continue;
      throw CheckpointError(file_.source() + ": unexpected metadata " + in_quotes(key) +
                            ", expected layer, config, source and precision alone");
    }
    for (const std::string& name : file_.names()) {
      if (known_.contains(name) || name.starts_with(weights_prefix) || name.starts_with("trace.")) {
        continue;
      }
      const std::string kind = name.substr(0, name.find('.') + 1);
      std::string expected;
      for (const std::string& one : known_) {
        if (!kind.empty() && one.starts_with(kind))
          expected += (expected.empty() ? "" : ", ") + one;
      }
      const bool is_kind =
          kind == "in." || kind == "out." || kind == "initial." || kind == "state.";
      if (is_kind && expected.empty()) expected = "none: this layer has no " + kind + "*";
      if (!is_kind) expected = "weights.*, x, y, in.*, out.*, initial.*, state.* or trace.*";
      throw CheckpointError(file_.source() + ": unexpected tensor " + in_quotes(name) + " " +
                            shape_text(file_.entry(name).shape) + ", expected " + expected);
    }
  }

  bool reads_source() const { return layer_.d_source() > 0; }
  View<const double, 3> source() const { return source_; }  // [B, S, D'], or nothing
  View<double, 3> y() { return sides_.front().values.view(); }
  /// Runs a verb on the tokens [first, first + count) of all rows, with their side values in a
  /// piece of memory of their own.
  void with_sides(Index first, Index count, auto&& verb) {
    std::vector<Tensor<double, 3>> pieces;
    std::vector<NamedView<double>> views;
    pieces.reserve(sides_.size());
    for (std::size_t i = 1; i < sides_.size(); ++i) {  // y is the first
      const std::string_view name = sides_[i].name;
      const auto values = sides_[i].values.view().template slice<1>(first, count);
      copy(values, pieces.emplace_back(values.shape()).view());
      views.push_back({name.substr(name.find('.') + 1), pieces.back().view().merge(axis::row)});
    }
    std::vector<Tensor<Index, 3>> index_pieces;
    index_pieces.reserve(indices_.size());
    for (const auto& [name, all] : indices_) {
      const auto values = all.view().template slice<1>(first, count);
      copy(values, index_pieces.emplace_back(values.shape()).view());
      views.push_back({std::string_view(name).substr(3),
                       View<const Index, 2>(index_pieces.back().view().merge(axis::row))});
    }
    verb(std::span<const NamedView<double>>(views));
    for (std::size_t i = 1; i < sides_.size(); ++i) {
      const auto values = sides_[i].values.view().template slice<1>(first, count);
      if (sides_[i].role == SideRole::output) copy(pieces[i - 1].view(), values);
    }
  }
  AnyState make_initial_state() {
    const Index length = source().extent(1);
    AnyState state = layer_.make_state(batch_, std::max(tokens_ + initial_->tokens(), length));
    initial_->fill(state.members());
    if (reads_source()) {
      std::vector<Segment> rows;
      for (Index row = 0; row < batch_; ++row) rows.push_back({row, row * length, length});
      layer_.read(source().merge(axis::row), rows, state, context_);
    }
    return state;
  }
  void forget_outputs() {
    for (Side& side : sides_) {
      if (side.role == SideRole::output) {
        seqmix::fill(side.values.view(), std::numeric_limits<double>::quiet_NaN());
      }
    }
  }

  /// All tokens at once, by `forward` where nothing goes before them.
  void run_whole() {
    if (initial_ && initial_->given()) return prefill(tokens_);
    forget_outputs();
    with_sides(0, tokens_, [&](auto sides) {
      if (reads_source()) {
        layer_.forward(x_, source(), y(), context_, sides);
      } else {
        layer_.forward(x_, y(), context_, sides);
      }
    });
    compare("forward", result_.forward);
  }
  /// In pieces that grow from `first_piece` tokens on.
  void prefill(Index first_piece) {
    forget_outputs();
    AnyState state = make_initial_state();
    for (Index first = 0, count = first_piece; first < tokens_;
         first += count, count = 2 * count + 3) {
      const Index piece = std::min(count, tokens_ - first);
      with_sides(first, piece, [&](auto sides) {
        layer_.prefill(x_.view().template slice<1>(first, piece), state,
                       y().template slice<1>(first, piece), context_, sides);
      });
    }
    compare("prefill", result_.prefill);
    compare_state("prefill", state);
  }
  void step() {
    forget_outputs();
    AnyState state = make_initial_state();
    for (Index t = 0; t < tokens_; ++t) {
      with_sides(t, 1, [&](auto sides) {
        layer_.step(x_.view().template at<1>(t), state, y().template at<1>(t), context_, sides);
      });
    }
    compare("step", result_.step);
    compare_state("step", state);
  }

  /// Raises `largest` to the error of the outputs.
  void compare(std::string_view verb, std::optional<double>& largest) {
    for (const Side& side : sides_) {
      if (side.role == SideRole::input) continue;
      const View<const double, 3> got = side.values.view();
      raise(largest, testing::relative_error(got, side.published.view()), [&] {
        return std::string(verb) + ": " + side.name + " " +
               testing::first_beyond<double, double>(
                   testing::numbers_of(got), testing::numbers_of(side.published.view()),
                   result_.tolerance, testing::by_token(got.shape()));
      });
    }
  }
  /// An intermediate; how the numbers of a token are shaped does not count.
  TracedIntermediate compare(const TraceCollector::Intermediate& one,
                             const StoredTensor& stored) const {
    const bool same_tokens =
        stored.shape.size() >= 2 && stored.shape[0] == batch_ && stored.shape[1] == tokens_;
    const std::vector<double> expected = stored_numbers(stored, !is_floating(stored.dtype));
    if (!same_tokens || expected.size() != one.numbers.size()) {
      return {
          one.name, testing::failed,
          "the layer's is " + shape_text(one.shape) + ", the file's " + shape_text(stored.shape)};
    }
    TracedIntermediate result{
        one.name, testing::relative_error<double, double>(one.numbers, expected), {}};
    if (*result.error > result_.tolerance) {
      const Index width = std::ssize(expected) / std::max<Index>(batch_ * tokens_, 1);
      result.remark = testing::first_beyond<double, double>(
          one.numbers, expected, result_.tolerance, testing::by_token({batch_, tokens_, width}));
    }
    return result;
  }
  /// Raises `state` to the error of the members that the file has a final state of.
  void compare_state(std::string_view verb, const AnyState& state) {
    for (const auto& member : testing::valid_numbers(state.members())) {
      const std::string name = "state." + member.first;
      const std::vector<double>& numbers = member.second;
      if (!file_.contains(name)) continue;
      const StoredTensor stored = file_.entry(name);
      const bool integral = !is_floating(stored.dtype);
      const std::vector<double> expected = stored_numbers(stored, integral);
      const double error = testing::relative_error<double, double>(numbers, expected);
      raise(result_.state, error, [&] {
        const auto in_order = [&](auto&& body) {
          for (std::size_t i = 0; i < numbers.size(); ++i) {
            if (body(i, [&] { return place_in(stored.shape, static_cast<Index>(i)); })) return;
          }
        };
        return std::string(verb) + ": " + name + " " +
               testing::first_beyond<double, double>(numbers, expected, result_.tolerance,
                                                     in_order);
      });
    }
  }
  static bool is_floating(DType dtype) {
    return dtype == DType::f64 || dtype == DType::f32 || dtype == DType::f16 ||
           dtype == DType::bf16;
  }
  /// "[0, 3, 1]": the indices of number `i` of a tensor.
  static std::string place_in(std::vector<Index> shape, Index i) {
    for (auto extent = shape.rbegin(); extent != shape.rend(); ++extent) {
      i /= std::exchange(*extent, i % *extent);
    }
    return shape_text(shape);
  }
  void raise(std::optional<double>& largest, double error, auto&& describe) {
    largest = std::max(largest.value_or(0), error);
    if (error > result_.tolerance && result_.first_difference.empty()) {
      result_.first_difference = describe();
    }
  }

  const Safetensors& file_;
  AnyMixer<double> layer_;
  Verification result_;
  Context context_;
  Index batch_ = 0, tokens_ = 0;
  Tensor<double, 3> x_, source_;
  std::vector<Side> sides_;  // y first
  struct Indices {
    std::string name;  // in the file
    Tensor<Index, 3> values;
  };
  std::vector<Indices> indices_;
  std::optional<InitialState> initial_;
  std::set<std::string, std::less<>> known_;
};

/// What `verify --describe` prints of a layer with one config.
class Description {
 public:
  Description(const Registry<double>& registry, std::string name, std::ostream& out)
      : registry_(registry), name_(std::move(name)), out_(out) {}

  /// `given`: fields of the config whose shapes are shown; sizes without a default that it leaves
  /// out are small ones.
  void print(const Json& given) {
    const Traits& traits = registry_.traits(name_);
    out_ << name_ << (traits.title.empty() ? "" : ": ") << traits.title << "\n";
    const auto line = [&](const char* label, std::string_view text) {
      if (!text.empty()) out_ << "  " << std::left << std::setw(9) << label << text << "\n";
    };
    line("paper", traits.paper);
    line("header", traits.header().empty() ? "" : "seqmix/" + std::string(traits.header()));
    line("forward", traits.forward), line("step", traits.step), line("state", traits.state);
    print_config();
    const Json config = sample(given);
    out_ << "\nwith " << config.dump() << ":\n";
    print_weights(config);
    const AnyMixer<double> layer = registry_.make_blank(name_, config);
    print_sides(layer);
    print_state(layer);
  }

 private:
  using Rows = std::vector<std::vector<std::string>>;

  void print_table(const std::string& title, const Rows& rows) {
    out_ << "\n" << title << "\n";
    std::vector<std::size_t> widths;
    for (const auto& row : rows) {
      widths.resize(std::max(widths.size(), row.size()));
      for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
    }
    for (const auto& row : rows) {
      std::string line = " ";
      for (std::size_t i = 0; i < row.size(); ++i) {
        line.append(" ").append(row[i]).append(widths[i] - row[i].size() + 1, ' ');
      }
      out_ << line.substr(0, line.find_last_not_of(' ') + 1) << "\n";
    }
  }

  /// A table a part; parts whose tables are alike share one.
  void print_config() {
    std::vector<std::pair<std::string, Rows>> tables;  // a part's name and its fields
    for (const auto& field : registry_.fields(name_)) {
      const std::string& key = field.keys.back();
      const bool in_part = field.keys.size() > 1;
      const std::string part =
          in_part ? field.name.substr(0, field.name.size() - key.size() - 1) : std::string();
      auto table = std::ranges::find(tables, part, [](const auto& one) { return one.first; });
      if (table == tables.end()) {
        table = tables.insert(table, {part, {{"field", "default", "values"}}});
      }
      const bool listed = field.type == "one of", any = field.legal.empty();
      std::string values = field.type + (any ? "" : listed ? " " : ", ") + field.legal;
      if (!field.condition.empty()) values += "; counts only where " + field.condition;
      const std::string otherwise = field.inherited  ? "outer"
                                    : field.required ? "required"
                                                     : field.otherwise.dump();
      table->second.push_back({key, otherwise, values});
    }
    while (!tables.empty()) {
      const Rows rows = tables.front().second;
      std::string parts;
      std::erase_if(tables, [&](const auto& table) {
        if (table.second != rows) return false;
        parts.append(parts.empty() ? "" : ", ").append(table.first);
        return true;
      });
      print_table(parts.empty() ? "config" : "config of " + parts, rows);
    }
  }
  /// Sizes are filled in nested where `given` names a part, else flat.
  Json sample(const Json& given) const {
    const Json example = registry_.example(name_);
    Json config = example;
    const auto fields = registry_.fields(name_);
    const bool nested = std::ranges::any_of(fields, [&](const auto& field) {
      return field.keys.size() > 1 && given.contains(field.keys.front());
    });
    for (const auto& field : fields) {
      if (!field.required || example.contains(field.keys.front())) continue;
      Json* value = &config;
      for (const std::string& key : field.keys) {
        if (nested || key == field.keys.back()) value = &(*value)[key];
      }
      *value = field.keys.back() == "d_model" ? 64 : 16;
    }
    config.merge_patch(given);
    registry_.complete_config(name_, config);  // refuses one that is not legal
    return config;
  }

  void print_weights(const Json& config) {
    Rows rows;
    registry_.visit_parameters(
        name_, config,
        [&](const std::string& name, const std::vector<Index>& shape, const Initializer&) {
          rows.push_back({weights_prefix.data() + name, shape_text(shape)});
        });
    print_table("weights", rows);
  }
  void print_sides(const AnyMixer<double>& layer) {
    Rows rows;
    if (layer.d_source() > 0) {
      rows.push_back({"in.source", "[B, S, " + std::to_string(layer.d_source()) + "]"});
    }
    for (const SideDescription& side : layer.sides()) {
      rows.push_back({(side.role == SideRole::input ? "in." : "out.") + side.name,
                      "[B, T, " + std::to_string(side.width) + "]",
                      side.kind == SideKind::indices ? "integers" : ""});
    }
    if (!rows.empty()) print_table("side values", rows);
  }
  void print_state(const AnyMixer<double>& layer) {
    if (!layer.continues()) {
      out_ << "\nno state: forward is the only verb\n";
      return;
    }
    // What grows with the tokens, or the source, is what differs between rooms for one and two.
    const AnyState one = layer.make_state(1, 1), two = layer.make_state(1, 2);
    const auto members = one.members().list(), longer = two.members().list();
    Rows rows;
    for (std::size_t m = 0; m < members.size(); ++m) {
      if (members[m].kind == StateMember::Kind::mark) continue;
      std::string shape = "[B";
      for (Index i = 1; i < members[m].rank; ++i) {
        const bool grows = members[m].extent(i) != longer[m].extent(i);
        const char* const length = members[m].kind == StateMember::Kind::source ? "S" : "t";
        shape += ", " + (grows ? length : std::to_string(members[m].extent(i)));
      }
      rows.push_back({members[m].name, shape + "]", text_of(members[m].kind)});
    }
    if (rows.empty()) rows.push_back({"none"});
    print_table("state", rows);
  }
  static std::string text_of(StateMember::Kind kind) {
    switch (kind) {
      case StateMember::Kind::appended:
        return "an entry a token";
      case StateMember::Kind::ring:
        return "ring of entries";
      case StateMember::Kind::source:
        return "an entry a token of the source";
      case StateMember::Kind::position:
        return "tokens so far";
      case StateMember::Kind::length:
        return "tokens of the source";
      default:
        return "";
    }
  }

  const Registry<double>& registry_;
  std::string name_;
  std::ostream& out_;
};

/// Prints the line of one file, on a failure a second one that says where, and with `trace` one for
/// each intermediate.
inline bool verify_file(const std::string& path, const Registry<double>& registry,
                        std::ostream& out, bool trace) {
  const Safetensors file = Safetensors::open(path);
  const Verification result = LayerFile(file, registry).verify();
  const auto text = [](const std::optional<double>& error) {
    std::ostringstream number;
    number << std::scientific << std::setprecision(1);
    return error ? (number << *error, number.str()) : "none";
  };
  out << (result.ok() ? "ok" : "FAIL") << " " << path << " " << result.layer
      << " forward=" << text(result.forward) << " prefill=" << text(result.prefill)
      << " step=" << text(result.step);
  if (result.state) out << " state=" << text(result.state);
  out << "\n";
  if (!result.ok()) out << "  " << result.first_difference << "\n";
  if (trace) {
    const auto intermediates = LayerFile(file, registry).trace();
    for (const TracedIntermediate& one : intermediates) {
      out << "  trace " << one.name << "=" << text(one.error)
          << (one.remark.empty() ? "" : ": " + one.remark) << "\n";
    }
    if (intermediates.empty()) out << "  trace: neither the layer nor the file has any\n";
  }
  return result.ok();
}

}  // namespace detail

/// Runs the layer of a file by each of its verbs. Throws an `Error` where the file is no layer file
/// or holds what no layer of this name and config uses.
inline Verification verify_layer_file(const Safetensors& file, const Registry<double>& registry) {
  return detail::LayerFile(file, registry).verify();
}
/// Compares the intermediates that the layer of a file names with its tensors trace.<name>.
inline std::vector<TracedIntermediate> trace_layer_file(const Safetensors& file,
                                                        const Registry<double>& registry) {
  return detail::LayerFile(file, registry).trace();
}

/// Prints a layer's facts: config, and with `config` completed by small sizes weights, side values
/// and state.
inline void describe_layer(const std::string& layer, const Json& config,
                           const Registry<double>& registry, std::ostream& out) {
  detail::Description(registry, layer, out).print(config);
}

/// The program `verify` for the layers of a registry:
///
///   verify FILE...                    checks layer files, a line each
///   verify --trace FILE...            and a line for each intermediate of layer or file
///   verify --list                     the layers' names
///   verify --describe LAYER [CONFIG]  a layer's facts; CONFIG is JSON
///
/// It writes to `out`, about a bad file or command to `errors`. Returns its exit status: 0 all ok,
/// 1 a layer disagrees with its file, 2 a bad file or command.
inline int verify_main(std::span<const std::string> arguments, const Registry<double>& registry,
                       std::ostream& out, std::ostream& errors) {
  const auto is = [&](std::string_view option, std::size_t least, std::size_t most) {
    return arguments.size() >= least && arguments.size() <= most && arguments[0] == option;
  };
  const auto status_of = [&](const std::string& subject, auto&& run) {
    try {
      return run();
    } catch (const std::exception& error) {
      // What is wrong with a file begins with its path already.
      const std::string text = error.what();
      errors << "verify: " << (text.starts_with(subject) ? text : subject + ": " + text) << "\n";
      return 2;
    }
  };
  if (is("--list", 1, 1)) {
    for (const std::string& name : registry.names()) out << name << "\n";
    return 0;
  }
  if (is("--describe", 2, 3)) {
    return status_of(arguments[1], [&] {
      const Json config =
          arguments.size() == 3 ? parse_json(arguments[2], "CONFIG") : Json::object();
      describe_layer(arguments[1], config, registry, out);
      return 0;
    });
  }
  const bool trace = !arguments.empty() && arguments[0] == "--trace";
  const auto files = arguments.subspan(trace ? 1 : 0);
  if (files.empty() || files[0].starts_with("--")) {
    errors << "usage: verify FILE..., verify --trace FILE..., verify --list, or verify --describe "
              "LAYER [CONFIG]\n";
    return 2;
  }
  int status = 0;
  for (const std::string& path : files) {
    status = std::max(status, status_of(path, [&] {
                        return detail::verify_file(path, registry, out, trace) ? 0 : 1;
                      }));
  }
  return status;
}
inline int verify_main(int argc, char** argv, const Registry<double>& registry, std::ostream& out,
                       std::ostream& errors) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  return verify_main(arguments, registry, out, errors);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
