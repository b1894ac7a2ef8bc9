#pragma once

#include "seqmix/layers/mixer.hpp"

// A definition with everything that one has, for files that take something away.

struct Config {
  seqmix::Index d_model = 0;
  static void visit(auto& self, auto&& field) { field("d_model", self.d_model); }
};
struct Whole {
  using Scalar = float;
  using Config = ::Config;
  using State = seqmix::NoState;
  static constexpr seqmix::Traits traits{.name = "whole"};
  struct Weights {
    static void visit(auto&, const Config&, auto&&) {}
  };
  Config c;
  Weights w;
  State make_state(seqmix::Index, seqmix::Index, seqmix::Memory) const { return {}; }
  void run(seqmix::View<const float, 2>, State&, seqmix::View<float, 2>,
           const seqmix::Call&) const {}
};
