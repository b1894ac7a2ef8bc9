// Convolutions, and the impulse responses of state-space models.

#include <cmath>
#include <optional>

#include "compare/ours.hpp"
#include "seqmix/kernels/conv/long.hpp"
#include "seqmix/kernels/conv/online.hpp"
#include "seqmix/kernels/conv/short.hpp"
#include "seqmix/kernels/scan/cauchy.hpp"

namespace compare {
namespace {

class ShortConv final : public KernelTo<2> {
 public:
  ShortConv(const Request& r, Context& context)
      : KernelTo(context, {r["T"], r["D"]}),
        x_(read<2>(r, "x", y.shape())),
        taps_(read<2>(r, "taps", {r["W"], r["D"]})),
        history_({1, r["W"] - 1, r["D"]}) {}

 private:
  void run(const Call& call) override {
    seqmix::fill(history_.view(), 0.F);
    seqmix::short_conv<float>(x_, taps_, {}, seqmix::ShortConvActivation::none, history_, y.view(),
                              call);
  }

  Tensor<float, 2> x_;        // [T, D]
  Tensor<float, 2> taps_;     // [W, D]
  Tensor<float, 3> history_;  // [1, W - 1, D]
};

seqmix::LongFilter<float> read_filter(const Request& r) {
  return seqmix::LongFilter<float>(read<2>(r, "h", {r["D"], r["T"]}));
}

class LongConv final : public KernelTo<2> {
 public:
  LongConv(const Request& r, Context& context)
      : KernelTo(context, {r["T"], r["D"]}),
        u_(read<2>(r, "u", y.shape())),
        filter_(read_filter(r)) {}

 private:
  void run(const Call& call) override { seqmix::long_conv<float>(u_, filter_, y.view(), call); }

  Tensor<float, 2> u_;  // [T, D]
  seqmix::LongFilter<float> filter_;
};

/// T steps of a long convolution. Of what is timed, `worst` is the longest step of all, each taken
/// at its fastest so that what interrupts the process does not count.
class LongConvSteps final : public KernelTo<2> {
 public:
  LongConvSteps(const Request& r, Context& context)
      : KernelTo(context, {r["T"], r["D"]}),
        u_(read<2>(r, "u", y.shape())),
        filter_(read_filter(r)),
        worst_(r.text("worst", "0") == "1") {
    if (r.text("form") == "spread") spread_.emplace(filter_);
    sums_ = Tensor<float, 3>({1, spread_ ? spread_->rows() : r["T"], r["D"]});
  }

  double measure(double budget) override {
    if (!worst_) return Work::measure(budget);
    std::vector<double> best(static_cast<std::size_t>(u_.extent(0)), 1);
    for (int repeat = 0; repeat < 3; ++repeat) {
      for (Index t = 0; t < u_.extent(0); ++t) {
        const auto start = Clock::now();
        step(t, call());
        auto& least = best[static_cast<std::size_t>(t)];
        least = std::min(least, seconds_since(start));
      }
    }
    return *std::max_element(best.begin(), best.end());
  }

 private:
  void run(const Call& call) override {
    for (Index t = 0; t < u_.extent(0); ++t) step(t, call);
  }
  void step(Index t, const Call& call) {
    const View<const Index, 1> past(&t, {1});
    const seqmix::Segment token{0, 0, 1, Form::recurrent};
    const Call step = call.with(seqmix::Segments(&token, 1));
    const auto u = std::as_const(u_).view().slice(seqmix::axis::time, t, 1);
    const auto history = std::as_const(u_).view().insert<0>();
    const auto to = y.view().slice(seqmix::axis::time, t, 1);
    if (spread_) {
      seqmix::spread_conv<float>(u, history, past, *spread_, sums_, to, step);
    } else {
      seqmix::online_conv<float>(u, history, past, filter_, sums_, to, step);
    }
  }

  Tensor<float, 2> u_;  // [T, D], the history too
  seqmix::LongFilter<float> filter_;
  std::optional<seqmix::SpreadFilter<float>> spread_;
  bool worst_;
  Tensor<float, 3> sums_;  // [1, rows, D]
};

/// h_l = Re Σ_n C_n exp(λ_n)^l of D channels, λ = decay + i angle.
class S4dKernel final : public KernelTo<3> {
  using Terms = seqmix::StateSpaceTerms;
  static constexpr Index lanes = seqmix::simd::lanes<float>;

 public:
  S4dKernel(const Request& r, Context& context)
      : KernelTo(context, {r["D"] / lanes, r["T"], lanes}),
        response_({r["T"], r["D"]}),
        terms_({r["D"] / lanes, r["N"], Terms::diagonal_count, lanes}) {
    const Shape<2> shape{r["D"], r["N"]};
    const auto decay = read<2>(r, "decay", shape), angle = read<2>(r, "angle", shape);
    const auto C = read<3>(r, "C", {r["D"], r["N"], 2});
    for (Index d = 0; d < shape[0]; ++d) {
      for (Index n = 0; n < shape[1]; ++n) {
        const auto put = [&](Index term, float value) {
          terms_(d / lanes, n, term, d % lanes) = value;
        };
        put(Terms::F, std::exp(decay(d, n)) * std::cos(angle(d, n)));
        put(Terms::F + 1, std::exp(decay(d, n)) * std::sin(angle(d, n)));
        put(Terms::B, 1), put(Terms::B + 1, 0);
        put(Terms::C, C(d, n, 0)), put(Terms::C + 1, C(d, n, 1));
      }
    }
  }
  std::span<const float> output() override {
    for (Index block = 0; block < y.extent(0); ++block) {
      seqmix::copy(y.view()[block], response_.view().slice<1>(block * lanes, lanes));
    }
    return {response_.data(), static_cast<std::size_t>(response_.size())};
  }

 private:
  void run(const Call& call) override {
    call.parallel_for(y.extent(0), [&](Index block, const Call& worker) {
      seqmix::vandermonde_taps<float>(std::as_const(terms_).view()[block], y.view()[block], worker);
    });
  }

  Tensor<float, 2> response_;  // [T, D]
  Tensor<float, 4> terms_;     // [D / lanes, N, terms, lanes]
};

}  // namespace

std::unique_ptr<Work> make_convolution(const Request& request, Context& context) {
  const std::string& op = request.text("op");
  if (op == "short_conv") return std::make_unique<ShortConv>(request, context);
  if (op == "long_conv") return std::make_unique<LongConv>(request, context);
  if (op == "long_conv_step") return std::make_unique<LongConvSteps>(request, context);
  if (op == "s4d_kernel") return std::make_unique<S4dKernel>(request, context);
  return nullptr;
}

}  // namespace compare
