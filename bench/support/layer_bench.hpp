#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "seqmix/core/numeric.hpp"

// One line a layer gives its benchmarks: `<layer>/<verb>/B:1/T:<tokens>/D:<width>`, float, one
// thread. forward and prefill: T tokens. step: one token after T others. Layers without a state
// have forward alone; a source, where one is read, has 1500 tokens.
//
//   taskset -c 0 bench_linear --benchmark_repetitions=9 --benchmark_report_aggregates_only
//
// Memory beside weights, x and y: state_bytes, what a state needs after those tokens (that of
// forward lies in scratch), and scratch_bytes, what the context holds.
//
// Counters: tokens_per_second, flops_per_second, bytes_per_second, and of_limit, the fraction of
// what this process measured for the machine: of the FMA peak for forward and prefill, of the read
// bandwidth at a working set of as many bytes for step.

namespace bench {

using seqmix::Index;

struct LayerLine {
  std::string layer;
  std::string config;  // JSON
  Index d_model = 1024;
  Index longest = 65536;  // the longest forward
  /// Tokens before each step that is measured: far apart where they should make no difference.
  std::vector<Index> positions{10, 100000};
  /// Floating-point operations of the forward of T tokens, a multiply-add counting two.
  std::function<double(double T)> flops;
  /// Numbers of weights and state that one step must read.
  std::function<double(double position)> step_numbers;
};

/// The pairs of a query and a key that a causal window of `width` keys has in T tokens.
inline double window_pairs(double T, double width) {
  const double first = std::min(T, width);
  return first * (first + 1) / 2 + (T - first) * width;
}

/// The floating-point operations that this machine does while it takes one exponential.
double exponential();

/// Registers the benchmarks of each line and runs what the command line asks for.
int run_layers(int argc, char** argv, const std::vector<LayerLine>& lines);

}  // namespace bench
