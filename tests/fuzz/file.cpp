// A safetensors file, every tensor of it read as every kind of number.

#include "fuzz/fuzz.hpp"
#include "seqmix/io/safetensors.hpp"

namespace {

using seqmix::Index;

/// Calls `call`, which may throw an error of the library.
void attempt(auto&& call) {
  try {
    call();
  } catch (const seqmix::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  fuzz::write_seeds(*argc, *argv, [](const std::filesystem::path& folder) {
    std::vector<seqmix::StoredTensor> tensors;
    for (std::size_t dtype = 0; dtype <= static_cast<std::size_t>(seqmix::DType::c64); ++dtype) {
      seqmix::Tensor<std::uint8_t, 1> bytes({48});
      for (Index i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::uint8_t>(5 * i);
      seqmix::StoredTensor tensor = seqmix::stored_tensor(std::to_string(dtype), bytes.view());
      tensor.dtype = static_cast<seqmix::DType>(dtype);
      tensor.shape = {2, 24 / seqmix::size_of(tensor.dtype)};
      tensors.push_back(tensor);
    }
    seqmix::save_safetensors(folder / "types", tensors, {{"key", "text \" \n \u00e4"}});
    seqmix::save_safetensors(folder / "none", {});
  });
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t limit, unsigned seed) {
  return fuzz::mutate_safetensors(data, size, limit, seed, 0);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  attempt([&] {
    const auto file = seqmix::Safetensors::parse({bytes.begin(), bytes.end()}, "input");
    for (const std::string& name : file.names()) {
      seqmix::StoredTensor tensor = file.entry(name);
      tensor.shape = {tensor.bytes.size() / seqmix::size_of(tensor.dtype)};
      const seqmix::Shape<1> shape{tensor.shape[0]};
      attempt([&] { tensor.parameter<double, 1>(shape); });
      attempt([&] { tensor.parameter<float, 1>(shape); });
      attempt([&] { tensor.parameter<std::int8_t, 1>(shape); });
      attempt([&] { tensor.integers(); });
      attempt([&] { file.parameter<double, 2>(name, {2, 6}); });
    }
  });
  attempt([&] {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    seqmix::parse_json(text.substr(std::min<std::size_t>(size, sizeof(std::uint64_t))), "input");
  });
  return 0;
}
