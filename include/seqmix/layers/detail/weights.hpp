#pragma once

#include <algorithm>
#include <concepts>
#include <iterator>
#include <limits>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "seqmix/core/parameter.hpp"
#include "seqmix/layers/detail/check_config.hpp"
#include "seqmix/layers/detail/name.hpp"
#include "seqmix/layers/initializer.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// How a layer keeps its projections' weights, all but those that say `keep_float`, and its states
/// their caches of keys and values.
struct Options {
  Storage weights = Storage::native;
  Storage caches = Storage::native;

  Options() = default;
  /// Both, which is what `load(..., Storage::bf16)` asks for.
  Options(Storage both) : weights(both), caches(both) {}
  Options(Storage of_weights, Storage of_caches) : weights(of_weights), caches(of_caches) {}
};

/// Says where a projection's weight is declared that it stays in the compute type under any
/// storage: what picks a branch (a router), and what sets how long a state lasts (a decay, a time
/// step, the gates of a recurrence). An error there takes another branch, or adds up over time.
///
///   parameter("gate.weight", self.gate.weight, {c.n_experts, c.d_model}, keep_float);
struct KeepFloat {
  Index rows = std::numeric_limits<Index>::max();  // the last so many, or all

  /// The last rows alone, where one matrix gives other things, too.
  constexpr KeepFloat last(Index count) const { return {count}; }
};
inline constexpr KeepFloat keep_float;

namespace detail {

/// The last rows of a weight that a tag of its declaration keeps.
constexpr Index kept_rows(KeepFloat tag) { return tag.rows; }
constexpr Index kept_rows(const auto&) { return 0; }

}  // namespace detail

/// A parameter as weights list it, whatever its type: what reads or makes weights is compiled once.
template <class S>
class ListedParameter {
 public:
  template <class P>
  ListedParameter(const Name& name, P& parameter, const Shape<P::rank>& expected,
                  Initializer initializer, Index kept_rows)
      : name_(name),
        expected_(expected.extents),
        initializer_(initializer),
        kept_rows_(kept_rows),
        parameter_(&parameter),
        type_(&type_of<P>) {}

  std::string name() const { return name_.text(); }
  /// The shape that the config asks for, and that of the numbers.
  std::span<const Index> expected() const { return expected_; }
  std::vector<Index> shape() const { return type_->shape(parameter_); }
  Index expected_size() const {
    Index size = 1;
    for (const Index extent : expected_) size = checked_product(size, extent);
    return size;
  }
  const Initializer& initializer() const { return initializer_; }

  explicit operator bool() const { return type_->has_numbers(parameter_); }
  /// Sets it to row-major numbers of the expected shape: what `make(T{})` returns for the type T of
  /// its numbers, S or `Index`, a `Parameter<T, 1>`.
  void set(auto&& make) const {
    if (type_->is_integral) {
      const Parameter<Index, 1> numbers = make(Index{});
      type_->set(parameter_, &numbers, expected_);
    } else {
      const Parameter<S, 1> numbers = make(S{});
      type_->set(parameter_, &numbers, expected_);
    }
  }
  /// Packs the weight of a projection; any other stays as it is. Throws `ConfigError` where a
  /// number does not fit the storage.
  void pack(Storage storage) const {
    if (type_->pack != nullptr) type_->pack(parameter_, storage, kept_rows_);
  }

 private:
  struct Type {
    std::vector<Index> (*shape)(const void*);
    bool (*has_numbers)(const void*);
    void (*set)(void*, const void* numbers, std::span<const Index>);
    void (*pack)(void*, Storage, Index);  // null: of no projection
    bool is_integral;
  };
  template <class P>
  static constexpr bool is_packed = requires(P& parameter) {
    parameter.pack(Storage{}, Index{});
  };
  template <class P>
  static void pack_as(void* parameter, Storage storage, Index kept) {
    if constexpr (is_packed<P>) static_cast<P*>(parameter)->pack(storage, kept);
  }
  template <class P>
  static constexpr Type type_of = {
      [](const void* parameter) {
        const auto shape = static_cast<const P*>(parameter)->shape();
        return std::vector<Index>(shape.extents.begin(), shape.extents.end());
      },
      [](const void* parameter) { return bool{*static_cast<const P*>(parameter)}; },
      [](void* parameter, const void* numbers, std::span<const Index> extents) {
        Shape<P::rank> shape;
        std::ranges::copy(extents, shape.extents.begin());
        using Numbers = Parameter<typename P::value_type, 1>;
        *static_cast<P*>(parameter) = static_cast<const Numbers*>(numbers)->reshape(shape);
      },
      is_packed<P> ? &pack_as<P> : nullptr, std::integral<typename P::value_type>};

  const Name& name_;
  std::span<const Index> expected_;
  Initializer initializer_;
  Index kept_rows_;
  void* parameter_;
  const Type* type_;
};

namespace detail {

/// Hands what `visit` of weights lists to one function.
template <class S>
class ParameterList {
 public:
  explicit ParameterList(FunctionRef<void(const ListedParameter<S>&)> body) : body_(body) {}

  template <class P>
  void operator()(const Name& name, P& parameter, Shape<P::rank> expected, auto... tags) const {
    static_assert(P::rank > 1 || has_initializer<decltype(tags)...>,
                  "a parameter of one axis says where a fresh one comes from: ones, zeros, "
                  "uniform(a, b) ...");
    body_(ListedParameter<S>(name, parameter, expected, initializer_of(tags...),
                             (Index{0} + ... + kept_rows(tags))));
  }

 private:
  FunctionRef<void(const ListedParameter<S>&)> body_;
};

}  // namespace detail

/// Calls `body` for each parameter of the weights of a layer that computes in S.
template <class S, class Weights, class Config>
void list_parameters(Weights& weights, const Config& config,
                     FunctionRef<void(const ListedParameter<S>&)> body) {
  Weights::visit(weights, config, detail::ParameterList<S>(body));
}

/// Calls `body(part, number)` for the `count` parts of a list that weights call `name`.
///
/// A list that is being filled grows by the part that is asked for, so that a config's word makes
/// no memory before the tensors are there that it implies. What a const list lacks is an empty
/// part.
template <class Parts>
void for_each_part(std::string_view name, Parts& parts, Index count, auto&& body) {
  const typename Parts::value_type none{};
  for (Index i = 0; i < count; ++i) {
    const auto at = static_cast<std::size_t>(i);
    if constexpr (std::is_const_v<Parts>) {
      body(at < parts.size() ? parts[at] : none, i);
    } else {
      body(at < parts.size() ? parts[at] : parts.emplace_back(), i);
    }
  }
  if (std::ssize(parts) > count) {
    throw ShapeError(std::string(name) + ": the weights have " + std::to_string(parts.size()) +
                     " parts, expected " + std::to_string(count));
  }
}

/// The number of numbers in parameters, of which copies of one handle are one.
class WeightCount {
 public:
  void operator()(const void* identity, Index size) {
    // An empty tensor may lie where the next one starts.
    if (size > 0 && counted_.insert(identity).second) total_ += size;
  }
  Index total() const { return total_; }

 private:
  std::set<const void*> counted_;
  Index total_ = 0;
};

/// Calls `body(identity, size)` for each parameter of the weights of a layer.
template <class Weights, class Config>
void visit_identities(const Weights& weights, const Config& config, auto&& body) {
  Weights::visit(weights, config,
                 [&]<class P>(const Name&, const P& parameter, Shape<P::rank> shape, auto...) {
                   body(parameter.identity(), shape.size());
                 });
}

/// The number of numbers in all parameters of the weights of a layer.
template <class Weights, class Config>
Index count_parameters(const Weights& weights, const Config& config) {
  WeightCount count;
  visit_identities(weights, config, count);
  return count.total();
}

/// Packs a projection's weight. Throws `ConfigError` with its name where a number of it does not
/// fit.
template <class Weight>
SEQMIX_COLD void pack_weight(std::string_view owner, std::string_view name, Weight&& weight,
                             Storage storage) {
  try {
    weight.pack(storage);
  } catch (const ConfigError& error) {
    throw ConfigError(std::string(owner) + ": weight " + std::string(name) + ": " + error.what());
  }
}

/// Throws unless a weight has the shape that the config asks for, and packs it.
template <class S>
SEQMIX_COLD void take_weight(std::string_view owner, const ListedParameter<S>& weight,
                             Storage storage) {
  const std::vector<Index> shape = weight.shape();
  if (!std::ranges::equal(shape, weight.expected())) {
    throw ShapeError(std::string(owner) + ": weight " + weight.name() +
                     (weight ? " has shape " + text_of_extents(shape) : " is missing") +
                     ", expected " + text_of_extents(weight.expected()));
  }
  pack_weight(owner, weight.name(), weight, storage);
}

/// The taps [W, D] of a depthwise convolution from a checkpoint's [D, 1, W].
template <class Scalar>
Parameter<Scalar, 2> transposed_taps(const Parameter<Scalar, 3>& weight) {
  Tensor<Scalar, 2> taps({weight.extent(2), weight.extent(0)});
  for (Index d = 0; d < weight.extent(0); ++d) {
    for (Index tap = 0; tap < weight.extent(2); ++tap) taps(tap, d) = weight(d, 0, tap);
  }
  return taps;
}

/// Weights whose every parameter is what `make(name, shape)` returns, a `Tensor` of that shape.
template <class Weights, class Config>
Weights make_weights(const Config& config, auto&& make) {
  Weights weights;
  Weights::visit(weights, config,
                 [&]<class P>(const Name& name, P& parameter, Shape<P::rank> shape, auto...) {
                   parameter = Parameter<typename P::value_type, P::rank>(make(name, shape));
                 });
  return weights;
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
