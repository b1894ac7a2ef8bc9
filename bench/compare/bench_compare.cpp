// seqmix's side of the comparison (see run.py), and the limits of the machine.

#include "compare/ours.hpp"
#include "seqmix/core/eigen_thread_pool.hpp"
#include "support/roofline.hpp"

namespace {

using compare::Context;
using compare::Request;
using compare::Work;

/// `ask compiler`. `ask fma`, `ask exp`: a second. `ask bandwidth <bytes>`: bytes a second.
std::string answer(std::istream& question) {
  std::string limit;
  question >> limit;
  if (limit == "compiler") return __VERSION__;
  if (limit == "fma") return std::to_string(bench::fma_peak());
  if (limit == "exp") return std::to_string(bench::exp_rate());
  double bytes = 0;
  question >> bytes;
  return std::to_string(bench::read_bandwidth(static_cast<seqmix::Index>(bytes)));
}

std::unique_ptr<Work> prepare(const Request& request, Context& context) {
  context.set_precision(compare::choice<seqmix::Precision>(request, "precision"));
  for (const auto make : {compare::make_product, compare::make_attention, compare::make_recurrence,
                          compare::make_convolution}) {
    if (auto work = make(request, context)) return work;
  }
  throw std::runtime_error("no such op");
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::stoi(argv[1]) : 1;
  Eigen::ThreadPool pool(threads - 1);
  seqmix::EigenThreadPoolExecutor executor(pool);
  Context context = threads > 1 ? Context(executor) : Context();
  compare::serve([&](const Request& request) { return prepare(request, context); }, answer);
  return 0;
}
