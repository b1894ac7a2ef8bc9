#include "support/golden.hpp"

#include <algorithm>
#include <limits>
#include <set>
#include <span>

#include "support/compare.hpp"
#include "support/layer_case.hpp"

namespace support {

using seqmix::Safetensors;
using seqmix::Shape;

namespace {

Shape<3> shape_of(const Safetensors& file, const char* name) {
  const auto& shape = file.entry(name).shape;
  if (shape.size() != 3) {
    throw seqmix::CheckpointError(file.source() + ": tensor " + name + " has " +
                                  std::to_string(shape.size()) + " axes, expected [B, T, D]");
  }
  return {shape[0], shape[1], shape[2]};
}

/// The side values of a layer file: inputs `in.<name>` and outputs `out.<name>`, [B, T, width], and
/// what a layer reads, `in.source`.
class Sides {
 public:
  Sides(const Safetensors& file, const AnyMixer<double>& layer, Index B, Index T) {
    std::set<std::string, std::less<>> inputs, outputs;
    for (const auto& side : layer.sides()) {
      const bool input = side.role == seqmix::SideRole::input;
      const std::string name = (input ? "in." : "out.") + side.name;
      (input ? inputs : outputs).insert(name);
      sides_.push_back({side.name, input, file.parameter<double, 3>(name, {B, T, side.width})});
      sides_.back().values = sides_.back().published.to_tensor();
    }
    if (layer.d_source() > 0) {
      source_ = file.parameter<double, 3>("in.source", shape_of(file, "in.source")).to_tensor();
      inputs.insert("in.source");
    }
    file.expect_no_others(inputs, "in.");
    file.expect_no_others(outputs, "out.");
    views_.resize(sides_.size());
  }

  const Tensor<double, 3>& source() const { return source_; }
  std::span<const seqmix::NamedView<double>> slice(Index first, Index count) {
    for (std::size_t i = 0; i < sides_.size(); ++i) {
      views_[i] = {sides_[i].name, sides_[i].values.view().slice<1>(first, count)};
    }
    return views_;
  }
  void forget_outputs() {
    for (Side& side : sides_) {
      if (!side.input) fill(side.values.view(), std::numeric_limits<double>::quiet_NaN());
    }
  }
  double error() const {
    double largest = 0;
    for (const Side& side : sides_) {
      largest = std::max(largest, relative_error(side.values.view(), side.published.view()));
    }
    return largest;
  }

 private:
  struct Side {
    std::string name;
    bool input = true;
    seqmix::Parameter<double, 3> published;
    Tensor<double, 3> values = {};
  };
  std::vector<Side> sides_;
  std::vector<seqmix::NamedView<double>> views_;
  Tensor<double, 3> source_;
};

/// The largest error of the members that the file has a final state of.
double state_error(const Safetensors& file, AnyState& state) {
  std::set<std::string, std::less<>> known;
  double largest = 0;
  for (const auto& [member, numbers] : valid_numbers(state)) {
    const std::string name = "state." + member;
    known.insert(name);
    if (!file.contains(name)) continue;
    seqmix::StoredTensor flat = file.entry(name);
    const Index count = flat.bytes.size() / size_of(flat.dtype);
    flat.shape = {count};
    std::vector<double> expected;
    if (member == "position") {
      const auto integers = flat.integers();
      expected.assign(integers.data(), integers.data() + count);
    } else {
      const auto stored = flat.parameter<double, 1>({count});
      expected.assign(stored.data(), stored.data() + count);
    }
    largest = std::max(largest, relative_error<double, double>(numbers, expected));
  }
  file.expect_no_others(known, "state.");
  return largest;
}

}  // namespace

double golden_tolerance(const std::string& layer, const std::string& precision) {
  if (precision == "float32") return 2e-6;
  if (precision != "float64") {
    throw seqmix::CheckpointError("metadata precision is \"" + precision +
                                  "\", expected \"float64\" or \"float32\"");
  }
  return is_indirect(layer) ? 1e-10 : 1e-12;
}

GoldenErrors check_golden(const Safetensors& file) {
  GoldenErrors errors;
  errors.layer = layer_metadata(file, "layer");
  errors.tolerance = golden_tolerance(errors.layer, layer_metadata(file, "precision"));
  layer_metadata(file, "source");

  const auto layer = registry<double>().load(file);
  errors.continues = layer.continues();
  const Shape<3> shape = shape_of(file, "x"), out_shape = shape_of(file, "y");
  const auto x = file.parameter<double, 3>("x", shape);
  const auto expected = file.parameter<double, 3>("y", out_shape);
  const Index B = shape[0], T = shape[1];
  Context context;
  Sides sides(file, layer, B, T);
  const auto source = [&]() -> View<const double, 3> { return sides.source(); };
  const auto make_state = [&] {
    return layer.d_source() > 0 ? layer.make_state(source(), context) : layer.make_state(B, T);
  };
  Tensor<double, 3> y(out_shape);
  const auto fresh = [&] {
    fill(y.view(), std::numeric_limits<double>::quiet_NaN());
    sides.forget_outputs();
  };
  const auto error = [&] {
    return std::max(relative_error(y.view(), expected.view()), sides.error());
  };

  fresh();
  if (layer.d_source() > 0) {
    layer.forward(x, source(), y, context, sides.slice(0, T));
  } else {
    layer.forward(x, y, context, sides.slice(0, T));
  }
  errors.forward = error();
  if (!errors.continues) return errors;

  fresh();
  auto state = make_state();
  for (Index first = 0, count = 1; first < T; first += count, count = 2 * count + 3) {
    const Index piece = std::min(count, T - first);
    layer.prefill(x.view().slice<1>(first, piece), state, y.view().slice<1>(first, piece), context,
                  sides.slice(first, piece));
  }
  errors.prefill = error();
  errors.state = state_error(file, state);

  fresh();
  state = make_state();
  for (Index t = 0; t < T; ++t) {
    layer.step(x.view().at<1>(t), state, y.view().at<1>(t), context, sides.slice(t, 1));
  }
  errors.step = error();
  errors.state = std::max(errors.state, state_error(file, state));
  return errors;
}

}  // namespace support
