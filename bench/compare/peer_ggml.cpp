// ggml's CPU backend as a contestant (see worker.hpp and run.py). Dimensions are ggml's: the
// contiguous one comes first.

#include <ggml-backend.h>
#include <ggml.h>

#include <cmath>
#include <limits>

#include "compare/worker.hpp"

namespace {

using compare::Request;
using compare::Work;
using Node = ggml_tensor*;

struct Release {
  void operator()(ggml_context* context) const { ggml_free(context); }
  void operator()(ggml_backend_buffer* buffer) const { ggml_backend_buffer_free(buffer); }
};

/// The CPU backend with its threads.
class Backend {
 public:
  explicit Backend(int threads) {
    ggml_backend_load_all();
    const auto device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (device == nullptr) throw std::runtime_error("no CPU backend");
    backend_ = ggml_backend_dev_init(device, nullptr);
    const auto set_threads =
        reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads"));
    if (set_threads != nullptr) set_threads(backend_, threads);
  }
  ggml_backend_t get() const { return backend_; }

 private:
  ggml_backend_t backend_;
};

/// One case as a graph. Inputs are declared, then filled when the graph has its memory.
class Graph final : public Work {
 public:
  Graph(const Request& request, const Backend& backend) : request_(request), backend_(backend) {
    const ggml_init_params parameters{ggml_tensor_overhead() * 64 + ggml_graph_overhead(), nullptr,
                                      true};
    context_.reset(ggml_init(parameters));
    result_ = build();
    graph_ = ggml_new_graph(context_.get());
    ggml_build_forward_expand(graph_, result_);
    buffer_.reset(ggml_backend_alloc_ctx_tensors(context_.get(), backend_.get()));
    if (buffer_ == nullptr) throw std::runtime_error("no memory for the graph");
    for (const auto& fill : fills_) fill();
  }
  void run() override { ggml_backend_graph_compute(backend_.get(), graph_); }
  std::span<const float> output() override {
    output_.resize(
        static_cast<std::size_t>(output_size_ > 0 ? output_size_ : ggml_nelements(result_)));
    ggml_backend_tensor_get(result_, output_.data(), 0, output_.size() * 4);
    return output_;
  }

 private:
  using Values = std::vector<float>;

  long size(const char* name) const { return request_[name]; }

  /// An input of the case, or what `values` makes of the numbers in its file.
  Node input(const char* name, std::vector<long> extents, ggml_type type = GGML_TYPE_F32,
             const std::function<float(float)>& change = {}) {
    return made(extents, type, [this, name, change](Values& values) {
      request_.read(name, values.data(), static_cast<long>(values.size()));
      if (change) std::transform(values.begin(), values.end(), values.begin(), change);
    });
  }
  Node zeros(std::vector<long> extents) {
    return made(extents, GGML_TYPE_F32, [](Values&) {});
  }
  Node made(std::vector<long> extents, ggml_type type, std::function<void(Values&)> values_of) {
    const Node node =
        ggml_new_tensor(context_.get(), type, static_cast<int>(extents.size()),
                        std::vector<std::int64_t>(extents.begin(), extents.end()).data());
    fills_.push_back([node, type, values_of = std::move(values_of)] {
      Values values(static_cast<std::size_t>(ggml_nelements(node)));
      values_of(values);
      std::vector<char> stored(ggml_nbytes(node));
      const auto count = static_cast<std::int64_t>(values.size());
      if (type == GGML_TYPE_F32) {
        std::copy_n(reinterpret_cast<const char*>(values.data()), stored.size(), stored.data());
      } else if (type == GGML_TYPE_F16) {
        ggml_fp32_to_fp16_row(values.data(), reinterpret_cast<ggml_fp16_t*>(stored.data()), count);
      } else if (type == GGML_TYPE_BF16) {
        ggml_fp32_to_bf16_row(values.data(), reinterpret_cast<ggml_bf16_t*>(stored.data()), count);
      } else if (type == GGML_TYPE_I32) {
        const std::vector<std::int32_t> numbers(values.begin(), values.end());
        std::copy_n(reinterpret_cast<const char*>(numbers.data()), stored.size(), stored.data());
      } else {
        ggml_quantize_chunk(type, values.data(), stored.data(), 0, ggml_nrows(node), node->ne[0],
                            nullptr);
      }
      ggml_backend_tensor_set(node, stored.data(), 0, stored.size());
    });
    return node;
  }
  /// Heads [K, G, tokens] of the file as attention reads them, [K, tokens, G].
  Node heads(const char* name, long tokens, long count, ggml_type type = GGML_TYPE_F32) {
    const long K = size("K");
    return made({K, tokens, count}, type, [=, this](Values& values) {
      Values file(values.size());
      request_.read(name, file.data(), static_cast<long>(file.size()));
      for (long t = 0; t < tokens; ++t) {
        for (long h = 0; h < count; ++h) {
          std::copy_n(&file[static_cast<std::size_t>((t * count + h) * K)], K,
                      &values[static_cast<std::size_t>((h * tokens + t) * K)]);
        }
      }
    });
  }
  ggml_type type_of(const char* name) const {
    const std::string type = request_.text(name, "fp32");
    return type == "bf16"   ? GGML_TYPE_BF16
           : type == "f16"  ? GGML_TYPE_F16
           : type == "int8" ? GGML_TYPE_Q8_0
                            : GGML_TYPE_F32;
  }
  /// The first numbers of the result; a state lies behind them.
  Node first(Node node, long count) {
    output_size_ = count;
    return node;
  }

  Node build() {
    const std::string& op = request_.text("op");
    ggml_context* const c = context_.get();
    if (op == "matmul") {
      return ggml_mul_mat(c, input("w", {size("K"), size("N")}, type_of("precision")),
                          input("x", {size("K"), size("M")}));
    }
    if (op == "attention") return attention(size("T"), size("T"), type_of("precision"));
    if (op == "decode") return attention(1, size("L"), type_of("cache"));
    if (op == "linear_attention" || op == "retention" || op == "gla" || op == "rwkv6" ||
        op == "rwkv7" || op == "gated_delta_rule")
      return memory(op);
    if (op == "mamba") return mamba();
    if (op == "mamba2") return mamba2();
    if (op == "short_conv") return short_conv();
    if (op == "moe") return experts();
    throw std::runtime_error("ggml has no " + op);
  }
  Node attention(long T, long tokens, ggml_type type) {
    const long window = std::stol(request_.text("window", "0"));
    const std::string score = request_.text("score", "");
    if (score == "sink_logits") throw std::runtime_error("ggml has no " + score);
    const bool biased = score == "alibi";
    const Node q = heads("q", T, size("H")), k = heads("k", tokens, size("G"), type),
               v = heads("v", tokens, size("G"), type);
    Node mask = nullptr;
    if (T > 1) {
      mask = made({tokens, T}, GGML_TYPE_F16, [=](Values& values) {
        for (long i = 0; i < T; ++i) {
          for (long j = 0; j < tokens; ++j) {
            const bool seen = j <= i && (window == 0 || i - j < window);
            const float shown = biased ? static_cast<float>(j - i) : 0;  // times the slope
            values[static_cast<std::size_t>(i * tokens + j)] =
                seen ? shown : -std::numeric_limits<float>::infinity();
          }
        }
      });
    }
    const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(size("K"))));
    return ggml_flash_attn_ext(context_.get(), q, k, v, mask, scale, biased ? 8 : 0,
                               score == "soft_cap" ? 30 : 0);
  }
  Node memory(const std::string& op) {
    ggml_context* const c = context_.get();
    const long K = size("K"), H = size("H"), T = size("T"), count = K * H * T;
    const auto of_channels = [&](const char* name) { return input(name, {K, H, T}); };
    const auto factors = [&] {
      return input("g", {K, H, T}, GGML_TYPE_F32, [](float g) { return std::exp(g); });
    };
    const Node k = of_channels("k"), v = of_channels("v");
    if (op == "gated_delta_rule") {  // whose scale is 1 / sqrt(K)
      const auto scale = static_cast<float>(std::sqrt(static_cast<double>(K)));
      const Node q = input("q", {K, H, T}, GGML_TYPE_F32, [scale](float x) { return x * scale; });
      return first(ggml_gated_delta_net(c, q, k, v, input("g", {1, H, T, 1}),
                                        input("beta", {1, H, T, 1}), zeros({K, K, H, 1}), 1),
                   count);
    }
    const Node state = zeros({K * K * H, 1});
    if (!op.starts_with("rwkv")) {
      const Node decay = op == "gla" ? factors() : constant_factors(op);
      return first(ggml_gated_linear_attn(c, k, v, of_channels("q"), decay, state, 1), count);
    }
    const Node r = of_channels("r");
    if (op == "rwkv6") {
      return first(ggml_rwkv_wkv6(c, k, v, r, input("u", {K, H}), factors(), state), count);
    }
    return first(ggml_rwkv_wkv7(c, r, factors(), k, v, of_channels("a"), of_channels("b"), state),
                 count);
  }
  /// What a memory without a decay of its own keeps, for each channel: all, or its head's factor.
  Node constant_factors(const std::string& op) {
    const long K = size("K"), H = size("H"), T = size("T");
    return made({K, H, T}, GGML_TYPE_F32, [=, this](Values& values) {
      Values factor(static_cast<std::size_t>(H), 1.F);
      if (op == "retention") request_.read("factor", factor.data(), H);
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = factor[i / static_cast<std::size_t>(K) % factor.size()];
      }
    });
  }
  /// The scan, then the skip and the gate, which are other operations in ggml.
  Node mamba() {
    ggml_context* const c = context_.get();
    const long D = size("D"), N = size("N"), T = size("T");
    const Node x = input("x", {1, D, T, 1}), dt = input("dt", {D, T, 1});
    const Node A = made({N, D}, GGML_TYPE_F32, [=, this](Values& values) {
      Values file(values.size());
      request_.read("A", file.data(), N * D);
      for (long d = 0; d < D; ++d) {
        for (long n = 0; n < N; ++n) {
          values[static_cast<std::size_t>(d * N + n)] = file[static_cast<std::size_t>(n * D + d)];
        }
      }
    });
    const Node ids = made({1}, GGML_TYPE_I32, [](Values&) {});
    const Node scan = ggml_ssm_scan(c, zeros({N, 1, D, 1}), x, dt, A, input("B", {N, 1, T, 1}),
                                    input("C", {N, 1, T, 1}), ids, 1);
    const Node sums = ggml_view_2d(c, scan, D, T, static_cast<std::size_t>(D) * 4, 0);
    const Node skipped = ggml_mul(c, ggml_reshape_2d(c, x, D, T), input("skip", {D}));
    return ggml_swiglu_split(c, input("z", {D, T}), ggml_add(c, sums, skipped));
  }
  /// v = dt x and g = dt A are given: A is -1 here.
  Node mamba2() {
    const long V = size("V"), H = size("H"), T = size("T"), K = size("K");
    const Node x = made({V, H, T, 1}, GGML_TYPE_F32, [=, this](Values& values) {
      Values g(static_cast<std::size_t>(H * T));
      request_.read("v", values.data(), V * H * T), request_.read("g", g.data(), H * T);
      for (std::size_t i = 0; i < values.size(); ++i)
        values[i] /= -g[i / static_cast<std::size_t>(V)];
    });
    const Node dt =
        input("g", {H, T, 1}, GGML_TYPE_F32, [](float g) { return std::log(std::expm1(-g)); });
    const Node A = made({1, H}, GGML_TYPE_F32,
                        [](Values& values) { std::fill(values.begin(), values.end(), -1.F); });
    const Node ids = made({1}, GGML_TYPE_I32, [](Values&) {});
    return first(ggml_ssm_scan(context_.get(), zeros({K, V, H, 1}), x, dt, A,
                               input("B", {K, 1, T, 1}), input("C", {K, 1, T, 1}), ids, 1),
                 V * H * T);
  }
  /// Of inputs with the time contiguous and the history before them.
  Node short_conv() {
    const long T = size("T"), D = size("D"), W = size("W");
    const auto turned = [=, this](const char* name, long tokens, long before) {
      return made({before + tokens, D, 1}, GGML_TYPE_F32, [=, this](Values& values) {
        Values file(static_cast<std::size_t>(tokens * D));
        request_.read(name, file.data(), tokens * D);
        for (long t = 0; t < tokens; ++t) {
          for (long d = 0; d < D; ++d) {
            values[static_cast<std::size_t>(d * (before + tokens) + before + t)] =
                file[static_cast<std::size_t>(t * D + d)];
          }
        }
      });
    };
    const Node taps = turned("taps", W, 0);
    return ggml_ssm_conv(context_.get(), turned("x", T, W - 1),
                         ggml_reshape_2d(context_.get(), taps, W, D));
  }
  Node experts() {
    ggml_context* const c = context_.get();
    const long T = size("T"), D = size("D"), F = size("F"), E = size("E"), top = size("top");
    const Node x = input("x", {D, T});
    const Node scores = ggml_soft_max(c, ggml_mul_mat(c, input("gate", {D, E}), x));
    const Node chosen = ggml_argsort_top_k(c, scores, static_cast<int>(top));      // [top, T]
    Node weights = ggml_get_rows(c, ggml_reshape_3d(c, scores, 1, E, T), chosen);  // [1, top, T]
    weights = ggml_reshape_2d(c, weights, top, T);
    weights = ggml_div(c, weights, ggml_sum_rows(c, weights));
    const Node rows = ggml_reshape_3d(c, x, D, 1, T);
    const Node gate = ggml_mul_mat_id(c, input("w1", {D, F, E}), rows, chosen);
    const Node up = ggml_mul_mat_id(c, input("w3", {D, F, E}), rows, chosen);
    Node down = ggml_mul_mat_id(c, input("w2", {F, D, E}), ggml_swiglu_split(c, gate, up), chosen);
    down = ggml_mul(c, down, ggml_reshape_3d(c, weights, 1, top, T));  // [D, top, T]
    Node sum = nullptr;
    for (long i = 0; i < top; ++i) {
      const Node part =
          ggml_view_2d(c, down, D, T, down->nb[2], static_cast<std::size_t>(i) * down->nb[1]);
      sum = sum == nullptr ? part : ggml_add(c, sum, part);
    }
    return sum;
  }

  Request request_;
  const Backend& backend_;
  std::unique_ptr<ggml_context, Release> context_;
  std::unique_ptr<ggml_backend_buffer, Release> buffer_;
  std::vector<std::function<void()>> fills_;
  ggml_cgraph* graph_ = nullptr;
  Node result_ = nullptr;
  long output_size_ = 0;
  Values output_;
};

}  // namespace

int main(int argc, char** argv) {
  ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  const Backend backend(argc > 1 ? std::stoi(argv[1]) : 1);
  compare::serve([&](const Request& request) { return std::make_unique<Graph>(request, backend); },
                 [](std::istream&) { return std::string("ggml ") + ggml_version(); });
  return 0;
}
