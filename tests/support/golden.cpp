#include "support/golden.hpp"

#include <algorithm>
#include <set>

#include "seqmix/io/registry/all.hpp"
#include "support/compare.hpp"

namespace support {

using seqmix::AnyState;
using seqmix::Context;
using seqmix::Safetensors;
using seqmix::Shape;
using seqmix::StateMember;
using seqmix::StateMembers;
using seqmix::Tensor;

namespace {

Shape<3> shape_of(const Safetensors& file, const char* name) {
  const auto& shape = file.entry(name).shape;
  if (shape.size() != 3) {
    throw seqmix::CheckpointError(file.source() + ": tensor " + name + " has " +
                                  std::to_string(shape.size()) + " axes, expected [B, T, D]");
  }
  return {shape[0], shape[1], shape[2]};
}

/// The valid numbers of a member of a state in double, row after row.
std::vector<double> valid_numbers(const StateMembers& state, const StateMember& member) {
  std::vector<double> result;
  for (Index row = 0; row < state.batch(); ++row) {
    member.for_each_run(row, state.tokens(row), [&](const std::byte* run, Index bytes) {
      const auto count = static_cast<std::size_t>(bytes) / sizeof(double), old = result.size();
      result.resize(old + count);
      if (member.integral) {
        std::vector<std::int64_t> integers(count);
        std::memcpy(integers.data(), run, static_cast<std::size_t>(bytes));
        std::copy(integers.begin(), integers.end(), result.begin() + static_cast<Index>(old));
      } else {
        std::memcpy(result.data() + old, run, static_cast<std::size_t>(bytes));
      }
    });
  }
  return result;
}

/// The largest error of the members that the file has a final state of.
double state_error(const Safetensors& file, AnyState& state) {
  const StateMembers members = state.members();
  std::set<std::string, std::less<>> known;
  double largest = 0;
  for (const StateMember& member : members.list()) {
    const std::string name = "state." + member.name;
    known.insert(name);
    if (!file.contains(name)) continue;
    seqmix::StoredTensor flat = file.entry(name);
    const Index count = static_cast<Index>(flat.bytes.size()) / size_of(flat.dtype);
    flat.shape = {count};
    std::vector<double> expected;
    if (member.integral) {
      const auto integers = flat.integers();
      expected.assign(integers.data(), integers.data() + count);
    } else {
      const auto numbers = flat.parameter<double, 1>({count});
      expected.assign(numbers.data(), numbers.data() + count);
    }
    largest =
        std::max(largest, relative_error<double, double>(valid_numbers(members, member), expected));
  }
  file.expect_no_others(known, "state.");
  return largest;
}

}  // namespace

const seqmix::Registry<double>& golden_registry() {
  static const seqmix::Registry<double> registry = seqmix::registry_of_all_layers<double>();
  return registry;
}

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

  const auto layer = golden_registry().load(file);
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
