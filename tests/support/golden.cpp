#include "support/golden.hpp"

#include <algorithm>
#include <set>

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

/// The largest error of the members that the file has a final state of.
double state_error(const Safetensors& file, AnyState& state) {
  std::set<std::string, std::less<>> known;
  double largest = 0;
  for (const auto& [member, numbers] : valid_numbers(state)) {
    const std::string name = "state." + member;
    known.insert(name);
    if (!file.contains(name)) continue;
    seqmix::StoredTensor flat = file.entry(name);
    const Index count = static_cast<Index>(flat.bytes.size()) / size_of(flat.dtype);
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
  return layer == "hyena" ? 1e-10 : 1e-12;
}

GoldenErrors check_golden(const Safetensors& file) {
  GoldenErrors errors;
  errors.layer = layer_metadata(file, "layer");
  errors.tolerance = golden_tolerance(errors.layer, layer_metadata(file, "precision"));
  layer_metadata(file, "source");

  const auto layer = registry<double>().load(file);
  const Shape<3> shape = shape_of(file, "x"), out_shape = shape_of(file, "y");
  const auto x = file.parameter<double, 3>("x", shape);
  const auto expected = file.parameter<double, 3>("y", out_shape);
  const Index B = shape[0], T = shape[1];
  Context context;
  const auto fresh = [&] {
    Tensor<double, 3> y(out_shape);
    fill(y.view(), std::numeric_limits<double>::quiet_NaN());
    return y;
  };

  auto y = fresh();
  layer.forward(x, y, context);
  errors.forward = relative_error(y.view(), expected.view());

  y = fresh();
  auto state = layer.make_state(B, T);
  for (Index first = 0, count = 1; first < T; first += count, count = 2 * count + 3) {
    const Index piece = std::min(count, T - first);
    layer.prefill(x.view().slice<1>(first, piece), state, y.view().slice<1>(first, piece), context);
  }
  errors.prefill = relative_error(y.view(), expected.view());
  errors.state = state_error(file, state);

  y = fresh();
  state = layer.make_state(B, T);
  for (Index t = 0; t < T; ++t) {
    layer.step(x.view().at<1>(t), state, y.view().at<1>(t), context);
  }
  errors.step = relative_error(y.view(), expected.view());
  errors.state = std::max(errors.state, state_error(file, state));
  return errors;
}

}  // namespace support
