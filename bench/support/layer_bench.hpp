#pragma once

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
// Counters: tokens_per_second, flops_per_second, bytes_per_second, and of_limit, the fraction of
// what this process measured for the machine: of the FMA peak for forward and prefill, of the read
// bandwidth at a working set of as many bytes for step.

namespace bench {

using seqmix::Index;

struct LayerLine {
  std::string layer;
  std::string config;  // JSON
  Index d_model = 1024;
  Index longest = 32768;  // the longest forward
  Index position = 0;     // tokens before the step that is measured
  /// Floating-point operations of the forward of T tokens, a multiply-add counting two.
  std::function<double(double T)> flops;
  /// Numbers of weights and state that one step must read.
  std::function<double(double position)> step_numbers;
};

/// Registers the benchmarks of each line and runs what the command line asks for.
int run_layers(int argc, char** argv, const std::vector<LayerLine>& lines);

}  // namespace bench
