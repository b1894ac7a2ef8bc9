#include "support/layer_bench.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <random>

#include "support/layers/registry.hpp"
#include "support/random_weights.hpp"
#include "support/roofline.hpp"

namespace bench {
namespace {

using benchmark::Counter;
using seqmix::AnyMixer;
using seqmix::AnyState;
using seqmix::Context;
using seqmix::Tensor;

/// Tokens of the source of a layer that reads one.
constexpr Index source_length = 1500;

Tensor<float, 3> random_input(Index T, Index d_model) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  Tensor<float, 3> x({1, T, d_model});
  constexpr Index period = 1 << 20;
  for (Index i = 0; i < x.size(); ++i) {
    x.data()[i] = i < period ? normal(random) : x.data()[i - period];
  }
  return x;
}

/// What a layer takes or gives beside x and y at each of T tokens.
struct SideValues {
  std::vector<seqmix::SideDescription> list;
  std::vector<Tensor<float, 3>> values;  // [1, T, W]
  std::vector<seqmix::NamedView<float>> views;

  SideValues(const AnyMixer<float>& layer, Index T) : list(layer.sides()) {
    for (const auto& side : list) values.push_back(random_input(T, side.width));
    for (std::size_t i = 0; i < list.size(); ++i)
      views.push_back({list[i].name, values[i].view()[0]});
  }
};

/// What the call that was measured holds beside weights, x and y.
void count_memory(benchmark::State& run, AnyState& state, const Context& context) {
  run.counters["state_bytes"] = static_cast<double>(state.members().used_bytes());
  run.counters["scratch_bytes"] = static_cast<double>(context.reserved());
}

void count(benchmark::State& run, double tokens, double flops, double bytes, double limit) {
  const auto per_second = [&](double amount) {
    return Counter(amount, Counter::kIsIterationInvariantRate);
  };
  run.counters["tokens_per_second"] = per_second(tokens);
  run.counters["flops_per_second"] = per_second(flops);
  run.counters["bytes_per_second"] = per_second(bytes);
  run.counters["of_limit"] = per_second((bytes > 0 ? bytes : flops) / limit);
}

void add(const std::string& name, std::function<void(benchmark::State&)> body) {
  benchmark::RegisterBenchmark(name.c_str(), std::move(body))
      ->Unit(benchmark::kMillisecond)
      ->MinTime(0.2)
      ->UseRealTime();
}

void add_line(const LayerLine& line, const AnyMixer<float>& layer) {
  const auto name = [&](const char* verb, Index T) {
    return line.layer + "/" + verb + "/B:1/T:" + std::to_string(T) +
           "/D:" + std::to_string(line.d_model);
  };
  const auto make_state = [layer](Index capacity, Context& context) {
    if (layer.d_source() == 0) return layer.make_state(1, capacity);
    auto state = layer.make_state(1, source_length);
    const seqmix::Segment whole{0, 0, source_length};
    layer.read(random_input(source_length, layer.d_source()).view()[0], {&whole, 1}, state,
               context);
    return state;
  };
  const auto add_forward = [&](const char* verb, Index T, seqmix::Algorithm algorithm) {
    add(name(verb, T), [line, layer, make_state, T, algorithm](benchmark::State& run) {
      const auto x = random_input(T, line.d_model);
      const auto source = random_input(source_length, layer.d_source());
      const SideValues side(layer, T);
      Tensor<float, 3> y(x.shape());
      Context context;
      context.set_algorithm(algorithm);
      const auto forward = [&] {
        if (layer.d_source() > 0) return layer.forward(x, source, y, context);
        layer.forward(x, y, context, side.views);
      };
      forward();
      for (auto _ : run) forward();
      auto state = layer.continues() ? make_state(T, context) : AnyState();
      if (state.members().batch() > 0) state.members().set_tokens(0, T);
      count_memory(run, state, context);
      count(run, static_cast<double>(T), line.flops(static_cast<double>(T)), 0, fma_peak());
    });
  };
  for (Index T = 512; T <= line.longest; T *= 2) {
    add_forward("forward", T, seqmix::Algorithm::automatic);
  }
  if (!layer.continues()) return;
  // What `automatic` must not be slower than; equal where a layer has one algorithm.
  add_forward("forward_chunked", 2048, seqmix::Algorithm::chunked);
  add_forward("forward_recurrent", 2048, seqmix::Algorithm::recurrent);
  add(name("prefill", 2048), [line, layer, make_state](benchmark::State& run) {
    const Index T = 2048, piece = 256;
    const auto x = random_input(T, line.d_model);
    const SideValues side(layer, piece);
    Tensor<float, 3> y(x.shape());
    Context context;
    auto state = make_state(T, context);
    const auto members = state.members();
    for (auto _ : run) {
      if (members.batch() > 0) members.set_tokens(0, 0);
      for (Index t = 0; t < T; t += piece) {
        layer.prefill(x.view().slice<1>(t, piece), state, y.view().slice<1>(t, piece), context,
                      side.views);
      }
    }
    count_memory(run, state, context);
    count(run, static_cast<double>(T), line.flops(static_cast<double>(T)), 0, fma_peak());
  });
  const auto add_step = [&](Index position) {
    // Reached once, however often the benchmark is called to find its number of iterations.
    const auto reached = std::make_shared<std::optional<AnyState>>();
    add(name("step", position),
        [line, layer, make_state, position, reached](benchmark::State& run) {
          const Index piece = std::min<Index>(position, 2000);
          const auto x = random_input(std::max<Index>(piece, 1), line.d_model);
          const SideValues side(layer, 1);
          Tensor<float, 3> y(x.shape());
          Context context;
          if (!*reached) {
            Context scratch;
            *reached = make_state(position + 1, scratch);
            for (Index t = 0; t < position; t += piece) {
              const Index tokens = std::min(piece, position - t);
              layer.prefill(x.view().slice<1>(0, tokens), **reached, y.view().slice<1>(0, tokens),
                            scratch, SideValues(layer, tokens).views);
            }
          }
          auto state = **reached;
          const auto members = state.members();
          const auto token = x.view().at<1>(0);
          const auto out = y.view().at<1>(0);
          for (auto _ : run) {
            if (members.batch() > 0) members.set_tokens(0, position);
            layer.step(token, state, out, context, side.views);
          }
          const double bytes = 4 * line.step_numbers(static_cast<double>(position));
          count_memory(run, state, context);
          count(run, 1, bytes / 2, bytes, read_bandwidth(static_cast<Index>(bytes)));
        });
  };
  for (const Index position : line.positions) add_step(position);
}

}  // namespace

double exponential() { return fma_peak() / exp_rate(); }

int run_layers(int argc, char** argv, const std::vector<LayerLine>& lines) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  const auto& registry = support::registry<float>();
  for (const LayerLine& line : lines) {
    const auto config = seqmix::parse_json(line.config, line.layer);
    const auto weights = support::random_layer_weights(registry, line.layer, config);
    add_line(line, registry.make(line.layer, config, weights, ""));
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace bench
