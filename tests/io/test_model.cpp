// The shipped models give the bits per byte that PyTorch reports for the same file.

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "seqmix/io/model.hpp"

using namespace seqmix;

namespace {

const std::filesystem::path folder = SEQMIX_SOURCE_DIR "/examples/models";

double bits(View<const float, 1> logits, Index token) {
  double sum = 0;
  for (Index i = 0; i < logits.extent(0); ++i) sum += std::exp(static_cast<double>(logits[i]));
  return (std::log(sum) - static_cast<double>(logits[token])) / std::log(2.0);
}

}  // namespace

TEST_CASE("the shipped models score an excerpt as PyTorch does") {
  std::ifstream file(folder / "heldout.txt", std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  for (const char* name : {"llama", "mamba2", "mixtral", "qwen3_next", "recurrent_gemma"}) {
    INFO(name);
    const Json score = read_json(folder / name / "score.json");
    const Json& excerpt = score.at("excerpt");
    const auto window = score.at("window").get<Index>(), bytes = excerpt.at("bytes").get<Index>();
    REQUIRE(static_cast<Index>(text.size()) >= bytes);
    const auto model = load_language_model<float>(folder / name);
    Context context;
    double parallel = 0, recurrent = 0;
    Index scored = 0;
    for (Index first = 0; first < bytes; first += window) {
      const Index count = std::min(window, bytes - first);
      Tensor<Index, 2> tokens({1, count});
      for (Index t = 0; t < count; ++t) {
        tokens(0, t) = static_cast<unsigned char>(text[static_cast<std::size_t>(first + t)]);
      }
      Tensor<float, 3> logits({1, count, model.vocabulary()});
      model.forward(tokens, logits, context);
      auto state = model.make_state(1, count);
      Tensor<float, 2> logit({1, model.vocabulary()});
      for (Index t = 0; t + 1 < count; ++t) {
        parallel += bits(logits.view()[0][t], tokens(0, t + 1));
        model.step(tokens.view().at<1>(t), state, logit, context);
        recurrent += bits(logit.view()[0], tokens(0, t + 1));
        ++scored;
      }
    }
    const auto expected = excerpt.at("bits_per_byte").get<double>();
    CHECK(std::abs(parallel / static_cast<double>(scored) - expected) <= 5e-5);
    CHECK(std::abs(recurrent / static_cast<double>(scored) - expected) <= 5e-5);
    CHECK(score.at("bits_per_byte").get<double>() <= 2.5);
  }
}
