// The published implementations' outputs: every golden file, by the code that `verify` runs.

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "seqmix/io/verify.hpp"
#include "support/compare.hpp"
#include "support/layers/registry.hpp"

namespace {

using support::relative_error;

seqmix::Verification check_golden(const seqmix::Safetensors& file) {
  return seqmix::verify_layer_file(file, support::registry<double>());
}

const std::filesystem::path folder = SEQMIX_SOURCE_DIR "/tests/golden";

}  // namespace

TEST_CASE("every layer gives what its published implementation gives") {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    ++files;
    const auto errors = check_golden(seqmix::Safetensors::open(entry.path()));
    INFO(entry.path().filename() << " " << errors.first_difference);
    CHECK(errors.ok());
  }
  CHECK(files >= 12);
}

TEST_CASE("a golden file that is slightly wrong fails") {
  const auto path = folder / "gated_linear_attention--odd.safetensors";
  const seqmix::Safetensors file = seqmix::Safetensors::open(path);
  for (const char* tensor : {"x", "y", "state.memory", "weights.o_proj.weight"}) {
    INFO(tensor);
    std::ifstream stream(path, std::ios::binary);
    std::vector<char> bytes{std::istreambuf_iterator<char>(stream), {}};
    const auto loaded = file.entry(tensor).bytes.load();
    const std::string wanted(reinterpret_cast<const char*>(loaded.data()), 64);
    const auto at = std::search(bytes.begin(), bytes.end(), wanted.begin(), wanted.end());
    REQUIRE(at != bytes.end());
    at[6] = static_cast<char>(at[6] ^ 1);  // a late bit of the first number's exponent or fraction
    std::vector<std::byte> changed(bytes.size());
    std::transform(bytes.begin(), bytes.end(), changed.begin(),
                   [](char c) { return static_cast<std::byte>(c); });
    CHECK_FALSE(check_golden(seqmix::Safetensors::parse(changed, "changed")).ok());
  }
}

TEST_CASE("tolerances come from the layer and the precision alone") {
  const auto tolerance = [](const char* layer, const char* precision) {
    return seqmix::layer_file_tolerance(support::registry<double>().traits(layer), precision);
  };
  CHECK(tolerance("attention", "float64") == 1e-12);
  CHECK(tolerance("hyena", "float64") == 1e-10);
  CHECK(tolerance("s4", "float64") == 1e-10);
  CHECK(tolerance("attention", "float32") == 2e-6);
  CHECK_THROWS_AS(tolerance("attention", "0.5"), seqmix::CheckpointError);
}

TEST_CASE("the comparator fails what it must") {
  using Numbers = std::vector<double>;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto error = [](const Numbers& got, const Numbers& expected) {
    return relative_error<double, double>(got, expected);
  };
  CHECK(error({1, 2}, {1, 2}) == 0);
  CHECK(error({1, 2.5}, {1, 2}) > 0.2);
  CHECK(error({1, nan}, {1, 2}) == support::failed);
  CHECK(error({1, 2}, {1, nan}) == support::failed);
  CHECK(error({1, HUGE_VAL}, {1, HUGE_VAL}) == support::failed);
  CHECK(error({0, 0}, {0, 0}) == support::failed);
  CHECK(error({1}, {1, 2}) == support::failed);
  CHECK_FALSE(support::failed <= 1e300);
}
