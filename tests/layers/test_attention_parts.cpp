#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <map>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "seqmix/core/error.hpp"
#include "support/attention_parts.hpp"
#include "support/compare.hpp"
#include "support/layer_case.hpp"
#include "support/verbs.hpp"

// Members of the slots of attention, two and three together: each combination is its twin's, in one
// piece and in any pieces, or is refused with a sentence.

namespace {

using seqmix::Index;
using support::AttentionMember;
using support::LayerCase;
using Members = std::vector<const AttentionMember*>;

std::string text_of(const Members& members) {
  std::string text;
  for (const AttentionMember* member : members) text += (text.empty() ? "" : " + ") + member->name;
  return text;
}

/// Whether the combination works; one that does not says why.
bool works(const reference::Twin& twin, const Members& members, unsigned seed) {
  INFO(twin.layer << ": " << text_of(members));
  const seqmix::Json config = support::attention_config(twin.layer, members);
  try {
    support::registry<double>().complete_config(twin.layer, config);
  } catch (const seqmix::ConfigError& error) {
    const std::string text = error.what();
    CHECK(text.starts_with(twin.layer + ": "));
    CHECK((text.find(" need") != text.npos || text.find(" exclude") != text.npos));
    return false;
  }
  const LayerCase<double> layer(twin, config.dump(), seed);
  std::mt19937 random(seed);
  const Index T = 25 + static_cast<Index>(random() % 16);
  const auto x = layer.random_input(1, T, seed + 1);
  const reference::Output<double> truth = layer.truth(x);
  seqmix::Context context;
  const auto error = [&](const seqmix::Tensor<double, 3>& y) {
    const std::span<const double> numbers(y.data(), static_cast<std::size_t>(y.size()));
    return support::relative_error<double, double>(numbers, truth.y.numbers);
  };
  CHECK(error(support::forward<double>(layer, x, context)) < 1e-12);
  if (!layer.continues()) return true;
  auto state = layer.make_state(1, T);
  auto y = support::unwritten<double>(x.shape());
  support::advance_randomly<double>(layer, x, state, y, context, random);
  CHECK(error(y) < 1e-12);
  CHECK(support::state_error(state, truth) < 1e-12);
  return true;
}

const reference::Twin& twin_of(const std::string& layer) {
  return *std::ranges::find(reference::twins(), layer, &reference::Twin::layer);
}

}  // namespace

TEST_CASE("every pair of members of attention works or says why not") {
  // Of each layer; what a new member cannot be together with changes them.
  const std::map<std::string, std::pair<int, int>> working_and_refused{
      {"attention", {2207, 431}},
      {"bidirectional_attention", {2105, 149}},
      {"block_sparse_attention", {1540, 271}},
      {"bidirectional_block_sparse_attention", {1343, 104}},
      {"cross_attention", {180, 144}},
      {"multi_head_latent_attention", {180, 72}}};
  for (const std::string& layer : support::layers_of_parts) {
    int working = 0, refused = 0;
    for (const AttentionMember& one : support::attention_members()) {
      for (const AttentionMember& other : support::attention_members()) {
        if (&other <= &one || !support::fit(layer, {&one, &other})) continue;
        (works(twin_of(layer), {&one, &other}, 1) ? working : refused)++;
      }
    }
    CAPTURE(layer);
    CHECK(std::pair(working, refused) == working_and_refused.at(layer));
  }
}

TEST_CASE("random triples of members of attention work or say why not") {
  const auto& members = support::attention_members();
  std::mt19937 random(5);
  int working = 0;
  for (unsigned trial = 0; trial < 500;) {
    const std::string layer = random() % 3 > 0 ? "attention" : "bidirectional_attention";
    Members three;
    for (int i = 0; i < 3; ++i) three.push_back(&members[random() % members.size()]);
    if (!support::fit(layer, three)) continue;
    std::ranges::sort(three);  // as they are listed
    working += works(twin_of(layer), three, trial++) ? 1 : 0;
  }
  CHECK(working == 334);
}
