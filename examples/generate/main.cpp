// Runs a byte-level language model that was trained in PyTorch: streams text token by token, scores
// a file in parallel and in recurrent form, and says what it cost.
//
//   generate MODEL [--prompt TEXT] [--tokens N] [--temperature X] [--seed N] [--score FILE]
//   generate --tour FOLDER      every model of a folder of models, and one table
//   generate --check FOLDER     whether every model scores as PyTorch recorded in its score.json

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "seqmix/io/model.hpp"

namespace {

using seqmix::Context;
using seqmix::Index;
using seqmix::Tensor;
using seqmix::View;
using Model = seqmix::LanguageModel<float>;

constexpr Index score_window = 1024;  // bytes scored from one empty state

struct Options {
  std::string model, tour, check, score;
  std::string prompt = "In the beginning God ";
  Index tokens = 400;
  double temperature = 0.7;
  unsigned seed = 1;
};

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(file), {}};
}

Tensor<Index, 2> bytes_of(std::string_view text) {
  Tensor<Index, 2> tokens({1, static_cast<Index>(text.size())});
  std::transform(text.begin(), text.end(), tokens.data(),
                 [](char c) { return static_cast<Index>(static_cast<unsigned char>(c)); });
  return tokens;
}

/// -log2 of the probability that the logits give to `token`.
double bits(View<const float, 1> logits, Index token) {
  double largest = -HUGE_VAL, sum = 0;
  for (Index i = 0; i < logits.extent(0); ++i) largest = std::max<double>(largest, logits[i]);
  for (Index i = 0; i < logits.extent(0); ++i) sum += std::exp(logits[i] - largest);
  return (largest + std::log(sum) - logits[token]) / std::log(2.0);
}

struct Score {
  double parallel = 0, recurrent = 0;  // bits per byte
  double step_tokens_per_second = 0;
};

/// Scores a text by `forward` and by `step`, in windows from the empty state; the first byte of a
/// window is read, not scored.
Score score(const Model& model, std::string_view text, Context& context) {
  Score result;
  Index scored = 0, stepped = 0;
  double step_seconds = 0;
  Tensor<float, 3> logits({1, score_window, model.vocabulary()});  // [1, T, V]
  Tensor<float, 2> logit({1, model.vocabulary()});                 // [1, V]
  for (std::size_t first = 0; first < text.size(); first += score_window) {
    const Tensor<Index, 2> tokens = bytes_of(text.substr(first, score_window));
    const Index count = tokens.extent(1);
    const auto window = logits.view().slice<1>(0, count);
    model.forward(tokens, window, context);
    for (Index t = 1; t < count; ++t) result.parallel += bits(window[0][t - 1], tokens(0, t));

    auto state = model.make_state(1, count);
    const Stopwatch watch;
    for (Index t = 1; t < count; ++t) {
      model.step(tokens.view().at<1>(t - 1), state, logit, context);
      result.recurrent += bits(logit.view()[0], tokens(0, t));
    }
    step_seconds += watch.seconds();
    scored += std::max<Index>(count - 1, 0), stepped += std::max<Index>(count - 1, 0);
  }
  if (scored == 0) throw std::runtime_error("nothing to score: the text has no second byte");
  result.parallel /= static_cast<double>(scored);
  result.recurrent /= static_cast<double>(scored);
  result.step_tokens_per_second = static_cast<double>(stepped) / step_seconds;
  return result;
}

Index sample(View<const float, 1> logits, double temperature, std::mt19937& random) {
  const Index vocabulary = logits.extent(0);
  Index best = 0;
  for (Index i = 1; i < vocabulary; ++i) best = logits[i] > logits[best] ? i : best;
  if (temperature <= 0) return best;
  std::vector<double> weights;
  for (Index i = 0; i < vocabulary; ++i) {
    weights.push_back(std::exp((logits[i] - logits[best]) / temperature));
  }
  return std::discrete_distribution<Index>(weights.begin(), weights.end())(random);
}

/// Reads the prompt with `prefill`, then streams text with `step`.
void stream(const Model& model, const Options& options, Context& context) {
  if (options.prompt.empty()) throw std::runtime_error("the prompt is empty");
  const Tensor<Index, 2> prompt = bytes_of(options.prompt);
  const Index read = prompt.extent(1);
  auto state = model.make_state(1, read + options.tokens);
  Tensor<float, 3> logits({1, read, model.vocabulary()});  // [1, T, V]
  Tensor<float, 2> logit({1, model.vocabulary()});         // [1, V]
  std::mt19937 random(options.seed);

  const Stopwatch prefill_watch;
  model.prefill(prompt, state, logits, context);
  const double prefill_seconds = prefill_watch.seconds();
  copy(logits.view()[0].slice<0>(read - 1, 1), logit.view());

  std::cout << options.prompt;
  const Stopwatch step_watch;
  Tensor<Index, 1> token({1});
  for (Index i = 0; i < options.tokens; ++i) {
    token[0] = sample(logit.view()[0], options.temperature, random);
    std::cout << static_cast<char>(token[0]) << std::flush;
    model.step(token, state, logit, context);
  }
  const double step_seconds = step_watch.seconds();
  std::cout << "\n\n  prefill " << read
            << " tokens: " << static_cast<Index>(static_cast<double>(read) / prefill_seconds)
            << " tokens/s; step " << options.tokens
            << " tokens: " << static_cast<Index>(static_cast<double>(options.tokens) / step_seconds)
            << " tokens/s; state " << state.used_bytes() << " bytes used, "
            << state.reserved_bytes() << " reserved\n";
}

/// Bits per byte of a code that knows only how often each byte occurs.
double order_0_entropy(std::string_view text) {
  std::array<double, 256> count{};
  for (const char c : text) count[static_cast<unsigned char>(c)] += 1;
  double entropy = 0;
  for (const double n : count) {
    const double p = n / static_cast<double>(text.size());
    if (p > 0) entropy -= p * std::log2(p);
  }
  return entropy;
}

std::string number(double value, int digits) {
  std::ostringstream text;
  text.setf(std::ios::fixed);
  text.precision(digits);
  text << value;
  return text.str();
}

/// Prefills `text` again and again up to 16k tokens; returns one row of the tour's table.
std::vector<std::string> measure(const std::string& name, const Model& model, std::string_view text,
                                 Context& context) {
  constexpr Index capacity = 16384, piece = 256;
  const Score scores = score(model, text, context);
  auto state = model.make_state(1, capacity);
  Tensor<float, 3> logits({1, piece, model.vocabulary()});  // [1, T, V]
  const Tensor<Index, 2> tokens = bytes_of(text.substr(0, capacity));
  if (tokens.extent(1) < capacity) throw std::runtime_error("the tour's text is too short");

  std::vector<Index> used;
  double seconds_of_1k = 0;
  const Stopwatch watch;
  for (Index first = 0; first < capacity;) {
    const Index count = first == 0 ? 1 : std::min(piece, (first < 1024 ? 1024 : capacity) - first);
    model.prefill(tokens.view().slice<1>(first, count), state, logits.view().slice<1>(0, count),
                  context);
    first += count;
    if (first == 1024) seconds_of_1k = watch.seconds();
    if (first == 1 || first == 1024 || first == capacity) used.push_back(state.used_bytes());
  }
  return {name,
          std::to_string(model.parameters()),
          number(scores.parallel, 5),
          number(scores.recurrent, 5),
          number(1024 / seconds_of_1k, 0),
          number(scores.step_tokens_per_second, 0),
          std::to_string(used[0]),
          std::to_string(used[1]),
          std::to_string(used[2]),
          std::to_string(state.reserved_bytes())};
}

void print_table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths(rows.front().size());
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string space(widths[i] - row[i].size(), ' ');
      std::cout << (i == 0 ? row[i] + space : "  " + space + row[i]);
    }
    std::cout << "\n";
  }
}

/// The models of a folder, by name.
std::vector<std::filesystem::path> list_models(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> models;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (std::filesystem::exists(entry.path() / "config.json")) models.push_back(entry.path());
  }
  if (models.empty()) throw std::runtime_error("no model in " + folder.string());
  std::sort(models.begin(), models.end());
  return models;
}

/// Scores the start of the held-out text by each model; false where one differs from PyTorch.
bool check(const std::filesystem::path& folder, Context& context) {
  constexpr double tolerance = 5e-5;  // bits per byte, of float arithmetic
  bool all = true;
  for (const auto& path : list_models(folder)) {
    const seqmix::Json recorded = seqmix::read_json(path / "score.json").at("excerpt");
    const auto bytes = recorded.at("bytes").get<std::size_t>();
    const auto expected = recorded.at("bits_per_byte").get<double>();
    const Score got = score(seqmix::load_language_model<float>(path),
                            read_file(folder / "heldout.txt").substr(0, bytes), context);
    const bool ok = std::abs(got.parallel - expected) <= tolerance &&
                    std::abs(got.recurrent - expected) <= tolerance;
    std::cout << (ok ? "ok " : "FAIL ") << path.filename().string() << ": PyTorch "
              << number(expected, 7) << ", forward " << number(got.parallel, 7) << ", step "
              << number(got.recurrent, 7) << "\n";
    all = all && ok;
  }
  return all;
}

void tour(const Options& options, Context& context) {
  const std::filesystem::path folder = options.tour;
  const std::string text = read_file(folder / "heldout.txt");
  const auto models = list_models(folder);

  std::vector<std::vector<std::string>> rows{
      {"", "", "bits/byte", "", "tokens/s", "", "state bytes", "used at", "", "reserved"},
      {"model", "parameters", "parallel", "recurrent", "prefill", "step", "1", "1024", "16384",
       "16384"}};
  for (const auto& path : models) {
    const Model model = seqmix::load_language_model<float>(path);
    const std::string name = path.filename().string();
    std::cout << "--- " << name << " ---\n";
    stream(model, options, context);
    std::cout << "\n";
    rows.push_back(measure(name, model, text, context));
  }
  print_table(rows);
  std::cout << "\nHeld-out text: " << text.size() << " bytes, order-0 entropy "
            << number(order_0_entropy(text), 3) << " bits/byte; scored in windows of "
            << score_window << " bytes.\n";
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto value = [&]() -> std::string {
      if (i + 1 == argc) throw std::runtime_error(argument + " needs a value");
      return argv[++i];
    };
    if (argument == "--prompt") {
      options.prompt = value();
    } else if (argument == "--tokens") {
      options.tokens = std::stol(value());
    } else if (argument == "--temperature") {
      options.temperature = std::stod(value());
    } else if (argument == "--seed") {
      options.seed = static_cast<unsigned>(std::stoul(value()));
    } else if (argument == "--score") {
      options.score = value();
    } else if (argument == "--tour") {
      options.tour = value();
    } else if (argument == "--check") {
      options.check = value();
    } else if (options.model.empty() && !argument.starts_with("--")) {
      options.model = argument;
    } else {
      throw std::runtime_error("unknown argument " + argument);
    }
  }
  if (options.tokens < 0) throw std::runtime_error("--tokens must be at least 0");
  if (!options.model.empty() + !options.tour.empty() + !options.check.empty() != 1) {
    throw std::runtime_error(
        "usage: generate MODEL [--prompt TEXT] [--tokens N] [--temperature X] [--seed N] "
        "[--score FILE], generate --tour FOLDER, or generate --check FOLDER");
  }
  return options;
}

/// Returns the exit status.
int run(const Options& options) {
  Context context;
  if (!options.check.empty()) return check(options.check, context) ? 0 : 1;
  if (!options.tour.empty()) {
    tour(options, context);
    return 0;
  }
  const Model model = seqmix::load_language_model<float>(options.model);
  if (options.score.empty()) {
    stream(model, options, context);
    return 0;
  }
  const Score result = score(model, read_file(options.score), context);
  std::cout << "bits per byte: forward " << number(result.parallel, 7) << ", step "
            << number(result.recurrent, 7) << ", difference "
            << number(std::abs(result.parallel - result.recurrent), 9) << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse(argc, argv));
  } catch (const std::exception& error) {
    std::cerr << "generate: " << error.what() << "\n";
    return 2;
  }
}
