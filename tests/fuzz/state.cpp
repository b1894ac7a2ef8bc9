// A state file, for layers whose states have a member of every kind. The first byte chooses the
// layer.

#include "seqmix/io/state.hpp"

#include "fuzz/fuzz.hpp"
#include "support/layers/registry.hpp"
#include "support/random_weights.hpp"

namespace {

using seqmix::Index;

struct Case {
  seqmix::AnyMixer<float> layer;
  seqmix::AnyState state;  // before the first token
};

const std::vector<Case>& cases() {
  static const std::vector<Case> list = [] {
    struct Description {
      const char *layer, *config;
      seqmix::Storage caches = seqmix::Storage::native;
    };
    constexpr const char *heads = R"({"d_model": 8, "n_heads": 2, "n_kv_heads": 1, "head_dim": 4})",
                         *ring = R"({"d_model": 8, "n_heads": 2, "n_kv_heads": 1, "head_dim": 4,
                                     "window": 4})";
    const Description descriptions[] = {
        {"attention", heads},
        {"attention", heads, seqmix::Storage::int8},
        {"attention", heads, seqmix::Storage::bf16},
        {"sliding_window_attention", ring},
        {"sliding_window_attention", ring, seqmix::Storage::int8},
        {"gated_linear_attention", R"({"d_model": 8, "n_heads": 2, "head_k": 4, "head_v": 4})"},
        {"mamba2", R"({"d_model": 8, "n_heads": 2, "head_dim": 4, "state_size": 4})"},
        {"s4d", R"({"d_model": 4, "state_size": 4})"},
        {"rwkv6", R"({"d_model": 8, "head_dim": 4, "d_ff": 8, "mix_rank": 2, "decay_rank": 2})"},
        {"switch_mixture_of_experts", R"({"d_model": 4, "d_ff": 4, "n_experts": 2})"},
        {"cross_attention", R"({"d_model": 8, "d_source": 4, "n_heads": 2, "head_dim": 4})"},
    };
    std::vector<Case> result;
    const auto& registry = support::registry<float>();
    for (const auto& [name, config_text, caches] : descriptions) {
      const seqmix::Json config =
          registry.complete_config(name, seqmix::parse_json(config_text, name));
      const auto weights = support::random_layer_weights(registry, name, config);
      auto layer = registry.make(name, config, weights, "", {seqmix::Storage::native, caches});
      auto state = layer.make_state(1, 16);
      if (layer.d_source() > 0) {
        seqmix::Context context;
        const seqmix::Segment segment{0, 0, 5};
        layer.read(seqmix::Tensor<float, 2>({5, layer.d_source()}), {&segment, 1}, state, context);
      }
      result.push_back({std::move(layer), std::move(state)});
    }
    return result;
  }();
  return list;
}

void run(const Case& of, seqmix::AnyState& state, Index tokens) {
  seqmix::Tensor<float, 3> x({1, tokens, of.layer.d_model()});
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<float>(i % 7) - 3;
  seqmix::Context context;
  of.layer.prefill(x, state, x, context);
  const auto token = x.view().at<1>(0);
  of.layer.step(token, state, token, context);
}

const std::filesystem::path& scratch_file() {
  static const std::filesystem::path path = fuzz::scratch_folder() / "state.safetensors";
  return path;
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  fuzz::write_seeds(*argc, *argv, [](const std::filesystem::path& folder) {
    for (std::size_t i = 0; i < cases().size(); ++i) {
      for (const Index tokens : {1, 6}) {  // fewer and more than a ring holds
        seqmix::AnyState state = cases()[i].state;
        run(cases()[i], state, tokens);
        seqmix::save_state(scratch_file(), state.members());
        const std::string bytes = static_cast<char>(i) + fuzz::read_file(scratch_file());
        fuzz::write_file(folder / (std::to_string(i) + "-" + std::to_string(tokens)),
                         {reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()});
      }
    }
  });
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t limit, unsigned seed) {
  return fuzz::mutate_safetensors(data, size, limit, seed, 1);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const Case& chosen = cases()[data[0] % cases().size()];
  fuzz::write_file(scratch_file(), {data + 1, size - 1});
  seqmix::AnyState state = chosen.state;
  try {
    seqmix::load_state(scratch_file(), state.members());
    run(chosen, state, 6);
  } catch (const seqmix::Error&) {
  }
  return 0;
}
