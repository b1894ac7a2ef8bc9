#include <seqmix/io/registry/all.hpp>

#ifndef SEQMIX_COMPILED_FLOAT
#error "seqmix::compiled says what it has compiled"
#endif

bool has_layers();

bool has_layers() {
  using namespace seqmix;
  const auto registry = registry_of_all_layers<float>();
  const Json config = {{"d_model", 8}, {"n_heads", 2}, {"head_k", 4}, {"head_v", 4}};
  const auto layer = registry.make_blank("gated_linear_attention", config);
  Context context;
  Tensor<float, 3> x({1, 5, 8}), y(x.shape());
  layer.forward(x, y, context);
  return layer.d_model() == 8 && y(0, 4, 7) == 0;
}
