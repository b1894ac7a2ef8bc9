#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "seqmix/io/verify.hpp"
#include "support/error_of.hpp"
#include "support/layers/registry.hpp"
#include "support/random.hpp"
#include "support/safetensors_builder.hpp"

namespace seqmix {
namespace {

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::StartsWith;
using test::error_of;
using test::TemporaryFolder;

const std::filesystem::path golden = SEQMIX_SOURCE_DIR "/tests/golden";

/// A layer file that a test may change before it is read.
struct File {
  std::map<std::string, StoredTensor> tensors;
  std::map<std::string, std::string> metadata;

  explicit File(const std::string& name) {
    const Safetensors file = Safetensors::open(golden / name);
    for (const std::string& one : file.names()) tensors[one] = file.entry(one);
    metadata = file.metadata();
  }
  template <Index Rank>
  void set(const std::string& name, View<const double, Rank> numbers) {
    tensors[name] = stored_tensor(name, numbers);
  }
  Tensor<double, 3> numbers(const std::string& name) const {
    const StoredTensor& tensor = tensors.at(name);
    return tensor.parameter<double, 3>({tensor.shape[0], tensor.shape[1], tensor.shape[2]})
        .to_tensor();
  }
  void set_position(const std::vector<Index>& tokens) {
    Tensor<Index, 1> position({std::ssize(tokens)});
    std::ranges::copy(tokens, position.data());
    tensors["initial.position"] = stored_tensor("initial.position", position.view());
  }
  void save(const std::filesystem::path& path) const {
    std::vector<StoredTensor> list;
    for (const auto& [name, tensor] : tensors) list.push_back(tensor);
    save_safetensors(path, list, metadata);
  }
};

struct Printed {
  int status = 0;
  std::string out, errors;
};
Printed run(const std::vector<std::string>& arguments,
            const Registry<double>& registry = support::registry<double>()) {
  std::ostringstream out, errors;
  const int status = verify_main(arguments, registry, out, errors);
  return {status, out.str(), errors.str()};
}
Printed run_file(const File& file) {
  const TemporaryFolder folder;
  file.save(folder.path() / "layer.safetensors");
  return run({(folder.path() / "layer.safetensors").string()});
}

/// The file from token `cut` on, with the layer's state after the tokens before it as `initial.*`.
File continued(const std::string& name, Index cut) {
  File file(name);
  const AnyMixer<double> layer = support::registry<double>().load(Safetensors::open(golden / name));
  const Tensor<double, 3> x = file.numbers("x"), y = file.numbers("y");
  const Index T = x.extent(1);
  AnyState state = layer.make_state(x.extent(0), cut);
  Tensor<double, 3> first({x.extent(0), cut, x.extent(2)});
  Context context;
  layer.prefill(x.view().slice<1>(0, cut), state, first, context);
  file.set<3>("x", x.view().slice<1>(cut, T - cut));
  file.set<3>("y", y.view().slice<1>(cut, T - cut));
  const auto numbers = testing::valid_numbers(state.members());
  for (const NamedStateMember& member : state.members().list()) {
    if (member.kind == StateMember::Kind::mark) continue;
    std::vector<Index> shape = detail::row_shape(member, state.members().tokens(0));
    shape.insert(shape.begin(), member.batch());
    const std::string tensor = "initial." + member.name;
    const std::vector<double>& values = numbers.at(member.name);
    if (member.integral) {
      Tensor<Index, 1> counts({std::ssize(values)});
      std::ranges::transform(values, counts.data(), [](double v) { return static_cast<Index>(v); });
      file.tensors[tensor] = stored_tensor(tensor, counts.view());
    } else {
      Tensor<double, 1> flat({std::ssize(values)});
      std::ranges::copy(values, flat.data());
      file.tensors[tensor] = stored_tensor(tensor, flat.view());
    }
    file.tensors[tensor].shape = shape;
  }
  return file;
}

/// Keeps what is heard by name, with the token at which each piece begins.
struct Heard final : Trace {
  struct Piece {
    Index first;
    std::vector<Index> shape;
    std::vector<double> numbers;
  };
  std::map<std::string, std::vector<Piece>> pieces;

  void hear(std::string_view name, Index first, std::span<const Index> shape,
            std::span<const double> numbers) override {
    pieces[std::string(name)].push_back(
        {first, {shape.begin(), shape.end()}, {numbers.begin(), numbers.end()}});
  }
};

/// The layer of a golden file on `tokens` random tokens: y and the intermediates are those of
/// steps.
File traced(const std::string& name, Index tokens) {
  File file(name);
  const AnyMixer<double> layer = support::registry<double>().load(Safetensors::open(golden / name));
  std::erase_if(file.tensors, [](const auto& one) { return !one.first.starts_with("weights."); });
  const Index B = 2, D = layer.d_model();
  Tensor<double, 3> x({B, tokens, D}), y(x.shape());
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  std::generate_n(x.data(), x.size(), [&] { return normal(random); });
  Heard heard;
  Context context;
  context.set_trace(&heard);
  AnyState state = layer.make_state(B, tokens);
  for (Index t = 0; t < tokens; ++t) {
    layer.step(x.view().at<1>(t), state, y.view().at<1>(t), context);
  }
  for (const auto& [intermediate, pieces] : heard.pieces) {
    CHECK(std::ssize(pieces) == tokens);  // a step is one call
    const Index width = std::ssize(pieces[0].numbers) / B;
    Tensor<double, 3> all({B, tokens, width});
    for (Index t = 0; t < tokens; ++t) {
      const auto& piece = pieces[static_cast<std::size_t>(t)];
      CHECK((piece.first == 0 && piece.shape[0] == B));
      copy(View<const double, 2>(piece.numbers.data(), {B, width}), all.view().at<1>(t));
    }
    file.set<3>("trace." + intermediate, all.view());
  }
  file.set<3>("x", x.view()), file.set<3>("y", y.view());
  return file;
}
Printed run_trace(const File& file) {
  const TemporaryFolder folder;
  file.save(folder.path() / "layer.safetensors");
  return run({"--trace", (folder.path() / "layer.safetensors").string()});
}

/// A user's own layer: y_t = y_{t-1} + w ⊙ x_t.
struct OwnConfig {
  Index d_model = 0;
  static void visit(auto& self, auto&& field) { field("d_model", self.d_model); }
};
template <class S>
struct OwnDefinition {
  using Scalar = S;
  using Config = OwnConfig;
  static constexpr Traits traits{.name = "own_sum", .title = "Own sum"};
  struct Weights {
    Parameter<Scalar, 1> scale;
    static void visit(auto& self, const Config& c, auto&& parameter) {
      parameter("scale", self.scale, {c.d_model}, init::ones);
    }
  };
  struct State {
    Tensor<Scalar, 2> sum;  // [B, D]
    static void visit(auto& self, auto&& tensor) { tensor("sum", self.sum); }
  };
  Config c;
  Weights w;
  State make_state(Index batch, Index, Memory memory) const {
    return {.sum = {{batch, c.d_model}, memory}};
  }
  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    for (const Segment& segment : call.segments()) {
      for (Index t = segment.first; t < segment.first + segment.count; ++t) {
        for (Index d = 0; d < c.d_model; ++d) {
          y(t, d) = state.sum(segment.row, d) += w.scale[d] * x(t, d);
        }
      }
    }
  }
};

}  // namespace

TEST_CASE("verify checks a user's own layer") {
  Registry<double> registry;
  registry.add<OwnDefinition<double>>();
  const TemporaryFolder folder;
  const std::string path = (folder.path() / "own.safetensors").string();
  Tensor<double, 3> x({1, 5, 2}), y(x.shape());
  Tensor<double, 2> sum({1, 2});
  Tensor<double, 1> scale({2});
  for (Index d = 0; d < 2; ++d) {
    scale[d] = 0.5, sum(0, d) = 3;
    for (Index t = 0; t < 5; ++t) x(0, t, d) = 2, y(0, t, d) = 4 + static_cast<double>(t);
  }
  save_safetensors(
      path,
      {stored_tensor("x", x.view()), stored_tensor("y", y.view()),
       stored_tensor("initial.sum", sum.view()), stored_tensor("weights.scale", scale.view())},
      {{"layer", "own_sum"},
       {"config", R"({"d_model": 2})"},
       {"precision", "float64"},
       {"source", "by hand"}});
  CHECK(run({path}, registry).out ==
        "ok " + path + " own_sum forward=none prefill=0.0e+00 step=0.0e+00\n");
  CHECK_THAT(run({"--describe", "own_sum"}, registry).out,
             StartsWith("own_sum: Own sum\n\nconfig\n") && ContainsSubstring("\n  sum  [B, 64]\n"));
  CHECK(run({path}).status == 2);  // the library has no such layer
}

TEST_CASE("verify starts prefill and step from a file's initial state") {
  for (const char* const name : {
           "attention--llama-grouped-odd.safetensors",             // caches
           "sliding_window_attention--mistral-odd.safetensors",    // rings, not full
           "sliding_window_attention--streaming-llm.safetensors",  // and full, behind first tokens
           "gated_delta_net--odd.safetensors",                     // memory and taps
           "retention--fla-odd.safetensors",                       // a position alone
           "recurrent_gemma_block--odd.safetensors",               // the parts' states
           "hyena--odd.safetensors",                               // sums beside the history
       }) {
    INFO(name);
    File file = continued(name, 30);
    const Printed right = run_file(file);
    INFO(right.out << right.errors);
    CHECK(right.status == 0);
    CHECK_THAT(right.out, StartsWith("ok "));
    CHECK_THAT(right.out, ContainsSubstring(" forward=none prefill="));

    // Without it the same outputs are wrong.
    std::erase_if(file.tensors, [](const auto& one) { return one.first.starts_with("initial."); });
    CHECK(run_file(file).status == 1);
  }
}

TEST_CASE("members without an initial tensor are as the layer makes them") {
  File file = continued("gated_delta_net--odd.safetensors", 30);
  file.tensors.erase("initial.memory");
  const Printed printed = run_file(file);
  CHECK(printed.status == 1);
  CHECK_THAT(printed.out, StartsWith("FAIL "));
}

TEST_CASE("an initial state that no layer can have is refused") {
  File attention = continued("attention--llama-grouped-odd.safetensors", 30);
  const auto error = [&](const std::function<void(File&)>& change) {
    File file = attention;
    change(file);
    const Printed printed = run_file(file);
    CHECK(printed.status == 2);
    CHECK(printed.out.empty());
    return printed.errors;
  };
  CHECK_THAT(error([](File& file) { file.tensors.erase("initial.position"); }),
             ContainsSubstring("\"initial.keys\": wrong shape; got [2, ") &&
                 ContainsSubstring(", 30, ") && ContainsSubstring("expected [2, ") &&
                 ContainsSubstring(", 0, "));
  CHECK_THAT(error([](File& file) { file.tensors.erase("initial.values"); }),
             ContainsSubstring("tensor initial.values is missing"));
  CHECK_THAT(error([](File& file) {
               file.set_position({30, 29});
             }),
             ContainsSubstring("rows of different positions"));
  CHECK_THAT(error([](File& file) {
               file.set_position({-1, -1});
             }),
             ContainsSubstring("\"initial.position\": not a count of tokens; got -1"));
  CHECK_THAT(error([](File& file) { file.set_position({30}); }),
             ContainsSubstring("\"initial.position\": wrong shape; got [1], expected [2]"));
  // More tokens than there are entries take no memory before that is noticed.
  CHECK_THAT(error([](File& file) {
               file.set_position({max_tokens, max_tokens});
             }),
             ContainsSubstring("\"initial.keys\": wrong shape"));
}

TEST_CASE("verify refuses what it does not use") {
  const auto error = [](const char* name, const std::string& tensor) {
    File file(name);
    file.set<1>(tensor, Tensor<double, 1>({2}).view());
    const Printed printed = run_file(file);
    CHECK(printed.status == 2);
    CHECK(printed.out.empty());
    return printed.errors;
  };
  const char* const gla = "gated_linear_attention--odd.safetensors";
  CHECK_THAT(
      error(gla, "z"),
      ContainsSubstring("layer.safetensors: unexpected tensor \"z\" [2], expected weights.*, "
                        "x, y, in.*, out.*, initial.*, state.* or trace.*"));
  CHECK_THAT(error(gla, "weights.z"), ContainsSubstring("unexpected tensor \"weights.z\""));
  CHECK_THAT(error(gla, "state.z"),
             ContainsSubstring("unexpected tensor \"state.z\" [2], expected state.memory\n"));
  CHECK_THAT(error(gla, "initial.z"), ContainsSubstring("expected initial.memory\n"));
  CHECK_THAT(error(gla, "in.z"), ContainsSubstring("expected none: this layer has no in.*\n"));
  CHECK_THAT(error("bidirectional_attention--bert-odd.safetensors", "state.keys"),
             ContainsSubstring("expected none: this layer has no state.*"));
  CHECK_THAT(error("cross_attention--whisper-odd.safetensors", "initial.keys"),
             ContainsSubstring("expected none: this layer has no initial.*"));
  CHECK_THAT(error("sliding_window_attention--mistral-odd.safetensors", "state.keys.reached"),
             ContainsSubstring("expected state.keys, state.position, state.values\n"));

  File file(gla);
  file.set<1>("trace.anything", Tensor<double, 1>({2}).view());
  CHECK(run_file(file).status == 0);
  file.metadata["tolerance"] = "1";
  CHECK_THAT(run_file(file).errors,
             ContainsSubstring("unexpected metadata \"tolerance\", expected layer, "
                               "config, source and precision alone"));
}

TEST_CASE("a failure says where") {
  const char* const name = "gated_linear_attention--odd.safetensors";
  const auto with = [&](const std::string& tensor, auto&& change) {
    File file(name);
    Tensor<double, 3> numbers = file.numbers(tensor);
    change(numbers);
    file.set<3>(tensor, numbers.view());
    const Printed printed = run_file(file);
    CHECK(printed.status == 1);
    CHECK_THAT(printed.out, StartsWith("FAIL "));
    CHECK(std::ranges::count(printed.out, '\n') == 2);
    return printed.out.substr(printed.out.find('\n') + 1);
  };
  // The first token of all rows comes first, then the row.
  const std::string here = with(
      "y", [](auto& y) { y(0, 20, 1) += 1, y(0, 7, 5) += 1, y(1, 7, 3) += 1, y(1, 6, 4) = 12.5; });
  CHECK_THAT(here, StartsWith("  forward: y first differs at token 6, channel 4, row 1: got "));
  CHECK_THAT(here, ContainsSubstring(", expected 12.5, apart by ") &&
                       ContainsSubstring("; tolerance 1e-12 of "));
  CHECK_THAT(
      with("y", [](auto& y) { y(1, 3, 2) = std::nan(""); }),
      ContainsSubstring("token 3, channel 2, row 1: got ") && ContainsSubstring("expected nan"));
  CHECK_THAT(with("y", [](auto& y) { fill(y.view(), 0.0); }),
             ContainsSubstring("token 0, channel 0, row 0: got "));

  // A final state names the verb that ended in another one, and the indices of its tensor.
  File file(name);
  const StoredTensor memory = file.tensors.at("state.memory");
  std::vector<double> numbers = detail::stored_numbers(memory, false);
  const std::vector<Index>& shape = memory.shape;
  numbers[static_cast<std::size_t>(((1 * shape[1] + 0) * shape[2] + 2) * shape[3] + 1)] += 1;
  Tensor<double, 1> flat({std::ssize(numbers)});
  std::ranges::copy(numbers, flat.data());
  file.set<1>("state.memory", flat.view());
  file.tensors["state.memory"].shape = shape;
  const Printed printed = run_file(file);
  CHECK(printed.status == 1);
  CHECK_THAT(printed.out,
             ContainsSubstring("\n  prefill: state.memory first differs at [1, 0, 2, 1]: got "));

  file.set<1>("state.memory", Tensor<double, 1>({3}).view());
  CHECK_THAT(run_file(file).out, ContainsSubstring("prefill: state.memory has ") &&
                                     ContainsSubstring(" numbers, expected 3\n"));
}

TEST_CASE("verify --trace compares intermediates") {
  struct Traced {
    const char* file;
    std::vector<std::string> names;
  };
  // Longer than a block of time; steps, which made the file, are blocks of their own.
  for (const Traced& one :
       {Traced{"gated_linear_attention--odd.safetensors", {"q", "k", "v", "g", "o"}},
        Traced{"attention--llama-grouped-odd.safetensors", {"q", "k", "v", "o"}},
        Traced{"mamba2--odd.safetensors", {"dt", "x", "B", "C", "o"}}}) {
    INFO(one.file);
    const Printed printed = run_trace(traced(one.file, 300));
    INFO(printed.out << printed.errors);
    CHECK(printed.status == 0);
    CHECK_THAT(printed.out, StartsWith("ok "));
    std::istringstream lines(printed.out);
    std::string line;
    std::getline(lines, line);
    for (const std::string& name : one.names) {
      std::getline(lines, line);
      const std::string begin = "  trace " + name + "=";
      REQUIRE_THAT(line, StartsWith(begin));
      std::size_t length = 0;
      CHECK(std::stod(line.substr(begin.size()), &length) < 1e-12);
      CHECK(begin.size() + length == line.size());  // no remark
    }
    CHECK(!std::getline(lines, line));
  }
}

TEST_CASE("verify --trace says where an intermediate differs and which has no counterpart") {
  File file = traced("gated_linear_attention--odd.safetensors", 300);
  Tensor<double, 3> keys = file.numbers("trace.k");
  keys(1, 290, 3) += 1, keys(0, 291, 2) += 1;
  file.set<3>("trace.k", keys.view());
  file.set<3>("trace.z", keys.view());
  file.set<3>("trace.q", keys.view().slice<1>(0, 299));
  file.tensors.erase("trace.v");
  const Printed printed = run_trace(file);
  INFO(printed.out);
  CHECK(printed.status == 0);  // the outputs are right
  CHECK_THAT(printed.out,
             ContainsSubstring(": first differs at token 290, channel 3, row 1: got ") &&
                 ContainsSubstring("\n  trace q=inf: the layer's is [2, 300, ") &&
                 ContainsSubstring(", the file's [2, 299, ") &&
                 ContainsSubstring("\n  trace v=none: the file has no tensor trace.v\n") &&
                 ContainsSubstring("\n  trace z=none: the layer names no such intermediate\n"));

  // Parts of one layer that use one name cannot be told apart.
  detail::TraceCollector collector(1, 2);
  const std::vector<double> numbers(6, 1.0);
  const Index shape[] = {2, 3}, other[] = {1, 2, 3};
  collector.hear("q", 0, shape, numbers), collector.hear("k", 0, shape, numbers);
  collector.hear("o", 0, other, numbers), collector.hear("o", 1, other, numbers);
  collector.hear("k", 0, shape, numbers);
  REQUIRE(collector.list().size() == 3);
  CHECK((!collector.list()[0].is_ambiguous && collector.list()[1].is_ambiguous));
  CHECK((!collector.list()[2].is_ambiguous &&
         collector.list()[2].shape == std::vector<Index>{1, 2, 2, 3}));
}

TEST_CASE("a listener hears each token once, wherever it lies in a call") {
  const char* const name = "gated_linear_attention--odd.safetensors";
  const AnyMixer<double> layer = support::registry<double>().load(Safetensors::open(golden / name));
  const Index B = 3, T = 150, D = layer.d_model();
  Tensor<double, 3> x({B, T + 1, D}), y(x.shape());
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  std::generate_n(x.data(), x.size(), [&] { return normal(random); });
  const auto tokens = [&](Tensor<double, 3>& all) { return all.view().slice<1>(0, T); };
  Tensor<double, 3> dense({B, T, D}), out(dense.shape());
  copy(tokens(x), dense.view());

  Heard of_dense, of_strided, of_segments;
  Context context;
  context.set_trace(&of_dense);
  layer.forward(dense, out, context);
  context.set_trace(&of_strided);  // rows with gaps between them are gathered
  layer.forward(tokens(x), tokens(y), context);
  context.set_trace(&of_segments);
  AnyState state = layer.make_state(B);
  const Segment segments[] = {{0, 0, T}, {1, T, T}, {2, 2 * T, T}};
  layer.advance(dense.view().merge(axis::row), segments, state, out.view().merge(axis::row),
                context);
  const auto together = [&](const Heard& heard) {
    std::vector<double> all;
    Index next = 0;
    for (const Heard::Piece& piece : heard.pieces.at("k")) {
      CHECK(piece.first == next);
      next += piece.shape[0];
      all.insert(all.end(), piece.numbers.begin(), piece.numbers.end());
    }
    CHECK(next == B * T);
    return all;
  };
  CHECK(of_dense.pieces.at("k").size() > 1);
  CHECK(together(of_dense) == together(of_segments));
  CHECK(together(of_dense) == together(of_strided));
}

TEST_CASE("verify describes every layer") {
  const auto& registry = support::registry<double>();
  for (const std::string& name : registry.names()) {
    const Printed printed = run({"--describe", name});
    INFO(name << "\n" << printed.out << printed.errors);
    CHECK(printed.status == 0);
    CHECK_THAT(printed.out, StartsWith(name + ": " + std::string(registry.traits(name).title)));
    for (const auto& field : registry.fields(name)) {
      CHECK_THAT(printed.out, ContainsSubstring("\n  " + field.keys.back() + " "));
    }
  }

  const Printed gla =
      run({"--describe", "gated_linear_attention", R"({"d_model": 24, "head_v": 5})"});
  for (const char* const line :
       {"\n  paper    Yang 2023, arXiv:2312.06635\n", "\n  step     O(D² + D K)\n",
        "\n  d_model          required  integer, at least 1\n",
        "\n  gate_normalizer  16.0      number, positive and finite in float\n",
        "\nwith {\"d_model\":24,\"head_k\":16,\"head_v\":5}:\n",
        "\n  weights.o_proj.weight             [24, 20]\n", "\n  memory  [B, 4, 16, 5]\n"}) {
    CHECK_THAT(gla.out, ContainsSubstring(line));
  }
  CHECK_THAT(
      run({"--describe", "attention"}).out,
      ContainsSubstring("one of none, linear, ntk, yarn, llama3, dynamic, longrope, table\n") &&
          ContainsSubstring("; counts only where rotary_dim is positive\n") &&
          ContainsSubstring("keys      [B, 1, t, 16]"));
  CHECK_THAT(run({"--describe", "cross_attention"}).out,
             ContainsSubstring("in.source  [B, S, 16]") &&
                 ContainsSubstring("keys           [B, 1, S, 16]"));
  CHECK_THAT(run({"--describe", "bidirectional_attention"}).out,
             ContainsSubstring("no state: forward is the only verb"));
}

TEST_CASE("verify describes parts that are alike once") {
  const Printed printed = run({"--describe", "jamba_block", R"({"d_model": 24})"});
  for (const char* const text :
       {"\nconfig\n  field    default   values\n  d_model  required  integer, at least 1\n\n",
        "\nconfig of layers.0, layers.1, layers.2, layers.3, layers.4, layers.5, layers.6, "
        "layers.7\n"
        "  field     default  values\n  d_model   outer    integer, at least 1\n  norm_eps  1e-06 ",
        "\nconfig of layers.4.mixer\n", "\nwith {\"d_ff\":16,\"d_inner\":16,\"d_model\":24,",
        "\n  layers.4.mixer.keys   "}) {
    CHECK_THAT(printed.out, ContainsSubstring(text));
  }
  // The block, Mamba, attention and its eight parts, the feed-forward layer and experts.
  int tables = 0;
  for (auto at = printed.out.find("\nconfig of "); at != printed.out.npos;
       at = printed.out.find("\nconfig of ", at + 1)) {
    ++tables;
  }
  CHECK(tables == 13);
  // A nested config is filled in where it says nothing, too.
  CHECK_THAT(run({"--describe", "jamba_block", R"({"layers.0": {"mixer": {"d_inner": 24}}})"}).out,
             ContainsSubstring("\n  weights.layers.0.mixer.D ") && ContainsSubstring("[24]") &&
                 ContainsSubstring("[16]"));
}

TEST_CASE("a command that is none ends with 2 and says why") {
  CHECK_THAT(run({"--describe", "atention"}).errors,
             StartsWith("verify: atention: no layer is called \"atention\"; there are aaren, "));
  CHECK_THAT(run({"--describe", "s4", R"({"d_model": 8, "n_ssm": 3})"}).errors,
             ContainsSubstring("d_model must be a multiple of n_ssm"));
  CHECK_THAT(run({"--describe", "s4", "{"}).errors, ContainsSubstring("CONFIG: not valid JSON"));
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{}, {"--describe"}, {"--list", "s4"}, {"--lst"}}) {
    const Printed printed = run(arguments);
    CHECK(printed.status == 2);
    CHECK(printed.out.empty());
    CHECK_THAT(printed.errors, StartsWith("usage: verify FILE..."));
  }
  // The worst of several files counts, and all are looked at.
  const std::string good = (golden / "lru--odd.safetensors").string();
  const Printed mixed = run({good, "no such file", good});
  CHECK(mixed.status == 2);
  CHECK(std::ranges::count(mixed.out, '\n') == 2);
  CHECK_THAT(mixed.errors, StartsWith("verify: no such file: "));
}

}  // namespace seqmix
