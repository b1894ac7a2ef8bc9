// A model folder: config.json, a zero byte, model.safetensors.

#include "seqmix/io/model.hpp"

#include "fuzz/fuzz.hpp"

namespace {

using seqmix::Index;

void run(const seqmix::LanguageModel<float>& model) {
  if (model.vocabulary() == 0 || model.vocabulary() > 1000) return;
  const seqmix::Tensor<Index, 2> tokens({1, 6});
  seqmix::Tensor<float, 3> logits({1, 6, model.vocabulary()});
  seqmix::Context context;
  auto state = model.make_state(1, 7);
  model.prefill(tokens, state, logits, context);
  model.step(tokens.view().at<1>(0), state, logits.view().at<1>(0), context);
}

const std::filesystem::path& folder() {
  static const std::filesystem::path path = fuzz::scratch_folder();
  return path;
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  fuzz::write_seeds(*argc, *argv, [](const std::filesystem::path& to) {
    const std::filesystem::path from = SEQMIX_SOURCE_DIR "/tests/fuzz/seeds/model";
    using std::filesystem::copy_options;
    std::filesystem::copy(from, to, copy_options::recursive | copy_options::overwrite_existing);
  });
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t limit, unsigned seed) {
  fuzz::Mutation mutation(data, size, limit, seed);
  const std::size_t end = mutation.text().find('\0');
  if (end == std::string::npos) {
    mutation.anything(0);
  } else if (mutation.one_of(2) == 0) {
    mutation.json(0, end);
  } else {
    mutation.safetensors(end + 1);
  }
  return mutation.write(data);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::Bytes bytes(data, size);
  const auto end = std::ranges::find(bytes, std::uint8_t{0});
  const auto config = static_cast<std::size_t>(end - bytes.begin());
  fuzz::write_file(folder() / "config.json", bytes.first(config));
  fuzz::write_file(folder() / "model.safetensors", bytes.subspan(std::min(config + 1, size)));
  try {
    const auto model = seqmix::load_language_model<float>(folder());
    if (fuzz::is_small(seqmix::read_json(folder() / "config.json"))) run(model);
  } catch (const seqmix::Error&) {
  }
  return 0;
}
