// The configs of blocks as JSON: parts nested under their names, and the flat form.

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/io/block.hpp"
#include "seqmix/layers/attention/attention.hpp"
#include "seqmix/layers/channel/feed_forward.hpp"
#include "seqmix/layers/detail/describe_config.hpp"
#include "seqmix/layers/ssm/mamba.hpp"
#include "support/error_of.hpp"

namespace seqmix {
namespace {

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::EndsWith;
using test::error_of;

template <class Mixer, class... Channel>
AnyConfig block_config() {
  ResidualConfig config;
  config.parts = {{"mixer", AnyConfig(Mixer{})}, {"channel", AnyConfig(Channel{})}...};
  return AnyConfig(std::move(config));
}
const AnyConfig mamba_block = block_config<MambaConfig, FeedForwardConfig>();
const AnyConfig mamba_alone = block_config<MambaConfig>();
const AnyConfig pair = [] {
  HybridConfig config;
  for (const AnyConfig& layer : {mamba_block, block_config<AttentionConfig, FeedForwardConfig>()}) {
    config.layers.push_back(layer.get<ResidualConfig>());
  }
  return AnyConfig(std::move(config));
}();
/// A block of a sequence of blocks.
const AnyConfig nest = [] {
  ResidualConfig config;
  config.parts = {{"mixer", pair}, {"channel", AnyConfig(FeedForwardConfig{})}};
  return AnyConfig(std::move(config));
}();

/// A config that a text describes, as JSON with all its fields.
Json read(AnyConfig config, std::string_view text) {
  read_config(parse_json(text, "text"), config, "block");
  return write_config(config);
}
std::string refused(const AnyConfig& config, std::string_view text) {
  return error_of<ConfigError>([&] { read(config, text); });
}

constexpr std::string_view mamba = R"({"d_inner": 16, "dt_rank": 2, "norm": "weighted"})";
std::string block_of(std::string_view mixer, std::string_view width = R"("d_model": 8, )") {
  return "{" + std::string(width) + R"("mixer": )" + std::string(mixer) +
         R"(, "channel": {"d_ff": 12}})";
}

TEST_CASE("a block and its mixer may have different fields of one name") {
  const Json json = read(mamba_block, R"({
      "d_model": 8, "norm_eps": 1e-4, "channel": {"d_ff": 12},
      "mixer": {"d_inner": 16, "dt_rank": 2, "bias": true, "norm": "weighted",
                "norm_eps": 1e-3}})");
  CHECK(json["norm_eps"] == 1e-4);
  CHECK(json["mixer"]["norm_eps"] == 1e-3);
  CHECK(json["mixer"]["bias"] == true);
  CHECK(json["channel"]["bias"] == false);
  CHECK(read(mamba_block, json.dump()) == json);
}

TEST_CASE("a part has the outer width where it names none") {
  const Json block = read(mamba_block, block_of(mamba));
  CHECK(block["mixer"]["d_model"] == 8);
  CHECK(block["channel"]["d_model"] == 8);
  CHECK(block["norm_eps"] == 1e-6);
  const std::string two =
      R"({"d_model": 6, "layers.0": )" + block_of(mamba, "") + R"(, "layers.1": {
          "mixer": {"head_dim": 2}, "channel": {"d_ff": 3}}})";
  const Json both = read(nest, R"({"d_model": 6, "channel": {"d_ff": 5}, "mixer": )" + two + "}");
  CHECK(both["mixer"]["layers.0"]["mixer"]["d_model"] == 6);
  CHECK(both["mixer"]["layers.1"]["channel"]["d_model"] == 6);
  CHECK(read(nest, both.dump()) == both);
  CHECK(refused(mamba_block, block_of(R"({"d_model": 9, "d_inner": 16, "dt_rank": 2})")) ==
        "block: mixer.d_model must be d_model; d_model is 8, mixer.d_model is 9");
  CHECK(refused(pair, R"({"d_model": 6, "layers.1": {"d_model": 7,
                          "mixer": {"head_dim": 2}, "channel": {"d_ff": 3}},
                          "layers.0": {"mixer": {"d_inner": 4, "dt_rank": 1},
                                       "channel": {"d_ff": 2}}})") ==
        "block: layers.1.d_model must be d_model; d_model is 6, layers.1.d_model is 7");
}

TEST_CASE("an object that names no part gives each field to all that know it") {
  const std::string flat = R"({"d_model": 6, "norm_eps": 1e-3, "d_inner": 4, "dt_rank": 1,
                               "head_dim": 2, "d_ff": 3, "bias": true})";
  const Json both = read(pair, flat);
  const Json &first = both["layers.0"], &second = both["layers.1"];
  CHECK(first["norm_eps"] == 1e-3);
  CHECK(second["norm_eps"] == 1e-3);
  CHECK(first["mixer"]["bias"] == true);
  CHECK(first["channel"]["bias"] == true);
  CHECK(second["channel"]["d_ff"] == 3);
  CHECK(second["mixer"]["d_model"] == 6);
  // What a part would not read is not set there, as long as another part reads it.
  CHECK(first["mixer"]["norm_eps"] == 1e-6);
  CHECK(read(pair, both.dump()) == both);
  CHECK(read(nest, flat)["mixer"]["d_model"] == 6);
  const Json alone = read(mamba_alone, R"({"d_model": 6, "d_inner": 4, "dt_rank": 1})");
  CHECK(alone["mixer"]["d_model"] == 6);
  CHECK(alone.size() == 3);
}

TEST_CASE("what a block does not take is refused with its full name") {
  CHECK(
      refused(mamba_block, R"({"d_model": 8, "d_iner": 4})") ==
      "block: unknown key \"d_iner\", expected one of: d_model, norm_eps, mixer, channel, "
      "d_inner, state_size, dt_rank, conv_kernel, conv_bias, bias, norm, d_ff, activation, gated");
  CHECK(refused(mamba_block, R"({"d_model": 8, "mixer": {}, "d_inner": 4})") ==
        "block: unknown key \"d_inner\", expected one of: d_model, norm_eps, mixer, channel");
  CHECK(refused(mamba_alone, R"({"d_model": 8, "mixer": {}, "channel": {}})") ==
        "block: unknown key \"channel\", expected one of: d_model, norm_eps, mixer");
  CHECK_THAT(
      refused(mamba_block, block_of(R"({"d_iner": 4})")),
      ContainsSubstring("block: mixer: unknown key \"d_iner\", expected one of: d_model, ") &&
          EndsWith(", norm_eps"));
  CHECK(refused(mamba_block, block_of("[]")) == "block: mixer: got an array, expected an object");
  CHECK(refused(mamba_block, block_of(R"({"d_inner": 1.5})")) ==
        "block: mixer.d_inner: got 1.5, expected an integer");
  CHECK(refused(mamba_block, R"({"d_model": 8, "d_inner": 1.5})") ==
        "block: d_inner: got 1.5, expected an integer");
  CHECK(refused(mamba_block, block_of(R"({"d_inner": 4})")) ==
        "block: mixer.dt_rank is 0, expected at least 1");
  CHECK(refused(mamba_block, block_of(R"({"d_inner": 4, "dt_rank": 1, "norm_eps": 1e-3})")) ==
        "block: mixer.norm_eps is 0.001, which counts only where norm is not none");
  const std::string uneven = R"({"d_model": 6, "channel": {"d_ff": 5}, "mixer": {
      "layers.0": {"mixer": {"d_inner": 4, "dt_rank": 1}, "channel": {"d_ff": 2}},
      "layers.1": {"mixer": {"head_dim": 2, "n_heads": 3, "n_kv_heads": 2},
                   "channel": {"d_ff": 3}}}})";
  CHECK(
      refused(nest, uneven) ==
      "block: mixer.layers.1.mixer.heads: n_heads must be a multiple of n_kv_heads; n_heads is 3, "
      "n_kv_heads is 2");
  AnyConfig kept = mamba_block;
  CHECK_THROWS_AS(read_config(parse_json(block_of("[]"), "text"), kept, "block"), ConfigError);
  CHECK(write_config(kept) == write_config(mamba_block));
}

TEST_CASE("a block's fields are described with their parts") {
  std::vector<std::string> names;
  for (const FieldDescription& field : describe_members(nest.members())) {
    names.push_back(field.name);
    CHECK(field.inherited == (field.name.ends_with(".d_model")));
    CHECK_FALSE((field.inherited && field.required));
    if (field.name == "mixer.layers.1.mixer.head_dim") {
      CHECK(field.keys == std::vector<std::string>{"mixer", "layers.1", "mixer", "head_dim"});
      CHECK(field.required);
    }
  }
  CHECK(std::set<std::string>(names.begin(), names.end()).size() == names.size());
  CHECK(std::ranges::count(names, "mixer.layers.0.mixer.norm_eps") == 1);
}

constexpr Traits block_of_layers{.name = "block"};

/// Its parts are feed-forward layers or blocks.
const BlockEntry<double>& block_entry() {
  static const BlockEntry<double> entry = [] {
    Registry<double> layers;
    layers.add<FeedForwardDefinition<double>>();
    return BlockEntry<double>(block_of_layers, layers);
  }();
  return entry;
}
Json completed(const std::string& text) {
  return block_entry().write(block_entry().read(parse_json(text, "text")));
}
std::string with_parts(const std::string& parts, const std::string& more = "") {
  return R"({"d_model": 4, "branches": [{"parts": [)" + parts + "]" + more + "}]}";
}
const std::string channel = R"({"name": "channel", "layer": "feed_forward",
                                "config": {"d_ff": 3}})";

TEST_CASE("a block's config is the list of its branches and their parts") {
  const Json json = completed(with_parts(channel, R"(, "before": {"kind": "rms", "eps": 1e-3})"));
  const Json& branch = json["branches"][0];
  CHECK(branch["before"] ==
        Json({{"kind", "rms"}, {"eps", 1e-3}, {"weight", true}, {"bias", false}}));
  CHECK(branch["last"]["kind"] == "none");
  CHECK(branch["residual"] == 1.0);
  CHECK(branch["parts"][0]["config"]["d_model"] == 4);
  CHECK(branch["parts"][0]["config"]["d_ff"] == 3);
  CHECK(completed(json.dump()) == json);

  const Json nested = completed(
      with_parts(channel + R"(, {"name": "inner", "layer": "block", "config": {"branches": [
                      {"parts": [)" +
                 channel + R"(], "last": {"kind": "layer"}}]}})"));
  const Json& inner = nested["branches"][0]["parts"][1]["config"];
  CHECK(inner["branches"][0]["parts"][0]["config"]["d_model"] == 4);
  CHECK(completed(nested.dump()) == nested);

  std::vector<std::string> names;
  block_entry().visit(block_entry().read(nested),
                      [&](const std::string& name, const std::vector<Index>&, const Initializer&) {
                        names.push_back(name);
                      });
  CHECK(names ==
        std::vector<std::string>{"channel.gate_proj.weight", "channel.up_proj.weight",
                                 "channel.down_proj.weight", "inner.channel.gate_proj.weight",
                                 "inner.channel.up_proj.weight", "inner.channel.down_proj.weight",
                                 "inner.branches.0.last.weight"});
}

TEST_CASE("a block's config says where it is wrong") {
  const auto error = [](const std::string& text) {
    return error_of<ConfigError>([&] { completed(text); });
  };
  CHECK(error(R"({"d_model": 4})") == "block: branches must have parts");
  CHECK(error(R"({"d_model": 4, "branches": {}})") ==
        "block: branches: got an object, expected a list");
  CHECK(error(R"({"d_model": 4, "branches": []})") == "block: branches must have parts");
  CHECK(error(with_parts("")) == "block: a branch must have parts");
  CHECK(error(R"({"d_model": 4, "branches": [{}]})") == "block: a branch must have parts");
  CHECK_THAT(error(with_parts(channel + ", " + channel)),
             ContainsSubstring("block: parts must have names, and different ones"));
  CHECK_THAT(error(with_parts(R"({"name": "a", "layer": "attenshun"})")),
             ContainsSubstring("no layer is called \"attenshun\"; there are feed_forward"));
  CHECK(error(with_parts(R"({"name": "a"})")) == "block: layer is missing");
  CHECK(error(with_parts(R"({"name": "a", "layer": "feed_forward"})")) ==
        "block: branches.0.parts.0.config.d_ff is 0, expected at least 1");
  CHECK_THAT(
      error(with_parts(channel, R"(, "befor": {})")),
      ContainsSubstring("block: branches.0: unknown key \"befor\", expected one of: before"));
  CHECK(error(with_parts(channel, R"(, "before": {"bias": true})")) ==
        "block: branches.0.before.bias is true, which counts only where kind is layer");
  CHECK_THAT(error(with_parts(R"({"name": "a", "layer": "feed_forward",
                                  "config": {"d_model": 5, "d_ff": 3}})")),
             ContainsSubstring("block: the d_model of a must be d_model"));
}

}  // namespace
}  // namespace seqmix
