// A layer file: every layer of the registry, by the layer's name in the file.

#include <set>

#include "fuzz/fuzz.hpp"
#include "support/layers/registry.hpp"

namespace {

using seqmix::Index;

/// Runs six tokens at once, then one more.
void run(const seqmix::AnyMixer<float>& layer) {
  if (layer.d_model() > 64 || layer.d_source() > 64) return;
  std::vector<seqmix::Tensor<float, 2>> values;
  std::vector<seqmix::NamedView<float>> sides, side_of_token;
  const auto descriptions = layer.sides();
  for (const seqmix::SideDescription& side : descriptions) {
    values.emplace_back(seqmix::Shape<2>{2 * 6, side.width});
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    sides.push_back({descriptions[i].name, values[i].view()});
    side_of_token.push_back({descriptions[i].name, values[i].view().slice<0>(0, 2)});
  }
  seqmix::Tensor<float, 3> x({2, 6, layer.d_model()});
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<float>(i % 7) - 3;
  seqmix::Context context;
  if (layer.d_source() > 0) {
    const seqmix::Tensor<float, 2> source({5, layer.d_source()});
    const seqmix::Segment segments[] = {{0, 0, 2}, {1, 2, 3}};
    auto state = layer.make_state(2, 7);
    layer.read(source, segments, state, context);
    layer.prefill(x, state, x, context, sides);
    return;
  }
  if (!layer.continues()) return layer.forward(x, x, context, sides);
  auto state = layer.make_state(2, 7);
  layer.prefill(x, state, x, context, sides);
  const auto token = x.view().at<1>(0);
  layer.step(token, state, token, context, side_of_token);
}

/// The weights of a golden file as F16, without its inputs and outputs.
void shorten(const std::filesystem::path& from, const std::filesystem::path& to) {
  const auto file = seqmix::Safetensors::open(from);
  std::vector<seqmix::StoredTensor> tensors;
  for (const std::string& name : file.names()) {
    if (!name.starts_with(seqmix::weights_prefix)) continue;
    seqmix::StoredTensor tensor = file.entry(name);
    if (tensor.dtype == seqmix::DType::f64) {
      const std::vector<Index> shape = tensor.shape;
      tensor.shape = {tensor.bytes.size() / seqmix::size_of(tensor.dtype)};
      const auto numbers = tensor.parameter<float, 1>({tensor.shape[0]});
      tensor = seqmix::stored_tensor<seqmix::float16>(name, numbers.view());
      tensor.shape = shape;
    }
    tensors.push_back(tensor);
  }
  auto metadata = file.metadata();
  std::erase_if(metadata, [](const auto& entry) {
    return entry.first != "layer" && entry.first != "config";
  });
  seqmix::save_safetensors(to, tensors, metadata);
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  fuzz::write_seeds(*argc, *argv, [](const std::filesystem::path& folder) {
    const std::filesystem::path golden = SEQMIX_SOURCE_DIR "/tests/golden";
    for (const auto& entry : std::filesystem::directory_iterator(golden)) {
      if (entry.path().extension() != ".safetensors") continue;
      shorten(entry.path(), folder / entry.path().filename());
    }
  });
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t limit, unsigned seed) {
  return fuzz::mutate_safetensors(data, size, limit, seed, 0);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto bytes = std::as_bytes(std::span(data, size));
    const auto file = seqmix::Safetensors::parse({bytes.begin(), bytes.end()}, "input");
    const auto layer = support::registry<float>().load(file);
    if (fuzz::is_small(seqmix::layer_config(file))) run(layer);
  } catch (const seqmix::Error&) {
  }
  return 0;
}
