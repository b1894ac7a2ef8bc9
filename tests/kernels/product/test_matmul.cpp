#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <utility>
#include <vector>

#include "seqmix/kernels/product/matmul.hpp"
#include "support/allocations.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using support::random_tensor;
using support::same_bits;
using support::TestCall;

namespace {

/// Whether `simd::fma` rounds once: (1 + e)(1 - e) - 1 is -e² then, and 0 otherwise.
template <class S>
bool fused() {
  volatile S e = std::numeric_limits<S>::epsilon();
  const auto product = simd::fma<S>(simd::broadcast<S>(S(1) + e), simd::broadcast<S>(S(1) - e),
                                    simd::broadcast<S>(S(-1)));
  return simd::reduce_max<S>(product) != 0;
}

template <class S>
S multiply_add(bool fused, S a, S b, S c) {
  if (fused) return std::fma(a, b, c);
  const S product = a * b;
  return product + c;
}

/// start + x wᵀ with one chain an output, ascending in k: x [M, K], w [N, K], start [M, N].
template <class S>
Tensor<S, 2> chains(View<const S, 2> x, View<const S, 2> w, Tensor<S, 2> start) {
  const bool once = fused<S>();
  Tensor<S, 2> transposed({w.extent(1), w.extent(0)});  // [K, N]
  for (Index n = 0; n < w.extent(0); ++n) {
    for (Index k = 0; k < w.extent(1); ++k) transposed(k, n) = w(n, k);
  }
  for (Index m = 0; m < x.extent(0); ++m) {
    S* const y = start.data() + m * start.extent(1);
    for (Index k = 0; k < x.extent(1); ++k) {
      const S a = x(m, k);
      const S* const b = transposed.data() + k * start.extent(1);
      for (Index n = 0; n < start.extent(1); ++n) y[n] = multiply_add(once, a, b[n], y[n]);
    }
  }
  return start;
}

template <class S>
Tensor<S, 2> filled(Index rows, Index columns, S value) {
  Tensor<S, 2> result({rows, columns});
  fill(result.view(), value);
  return result;
}

/// A window [T, D] whose rows have gaps on all sides, filled with one value.
template <class S>
struct Padded {
  Tensor<S, 2> numbers;
  View<S, 2> window;

  Padded(Index T, Index D, S guard) : numbers({T + 2, D + 5}) {
    fill(numbers.view(), guard);
    window = inside(numbers);
  }
  static View<S, 2> inside(Tensor<S, 2>& all) {
    const Index T = all.extent(0) - 2, D = all.extent(1) - 5;
    return all.view().slice(axis::time, 1, T).slice(axis::channel, 3, D);
  }
  /// Whether all but the window is as it was.
  bool intact() const {
    const S guard = numbers.data()[0];
    Tensor<S, 2> copied = numbers;
    fill(inside(copied), guard);
    for (Index i = 0; i < copied.size(); ++i) {
      if (copied.data()[i] != guard) return false;
    }
    return true;
  }
};

/// Runs tasks on this thread, the last one first, and remembers how many there were at most.
class BackwardExecutor final : public Executor {
 public:
  Index workers() const override { return 1; }
  void run(Index count, FunctionRef<void(Index, Index)> body) override {
    largest = std::max(largest, count);
    for (Index task = count - 1; task >= 0; --task) body(task, 0);
  }
  Index largest = 0;
};

template <class S>
struct Problem {
  Tensor<S, 2> x, w, bias, y;  // [M, K], [N, K], [1, N], [M, N]
  Problem(Index M, Index K, Index N)
      : x(random_tensor<S, 2>({M, K}, 1)),
        w(random_tensor<S, 2>({N, K}, 2)),
        bias(random_tensor<S, 2>({1, N}, 3)),
        y(random_tensor<S, 2>({M, N}, 4)) {}

  Tensor<S, 2> start(bool with_bias, bool accumulate) const {
    auto result = filled<S>(y.extent(0), y.extent(1), 0);
    for (Index m = 0; m < y.extent(0); ++m) {
      for (Index n = 0; n < y.extent(1); ++n) {
        if (accumulate) result(m, n) = y(m, n);
        if (with_bias) result(m, n) = accumulate ? y(m, n) + bias(0, n) : bias(0, n);
      }
    }
    return result;
  }
};

constexpr Storage narrow_storages[] = {Storage::bf16, Storage::f16, Storage::int8};

template <class S>
void check_shape(Index M, Index K, Index N, Storage storage = Storage::native) {
  INFO("M " << M << ", K " << K << ", N " << N << ", " << names_of(storage)[std::size_t(storage)]);
  Context context;
  Problem<S> problem(M, K, N);
  const PackedMatrix<S> packed(problem.w.view(), storage);
  problem.w = packed.unpack();
  for (const bool with_bias : {false, true}) {
    for (const bool accumulate : {false, true}) {
      const auto expected =
          chains<S>(problem.x.view(), problem.w.view(), problem.start(with_bias, accumulate));
      auto y = problem.y;
      if (!accumulate) fill(y.view(), std::numeric_limits<S>::quiet_NaN());
      matmul<S>(problem.x, packed, y.view(), TestCall(context),
                with_bias ? problem.bias.data() : nullptr, accumulate);
      CHECK(same_bits(y.view(), expected.view()));
    }
  }
}

}  // namespace

TEST_CASE("the reference chain tells orders apart", "[matmul]") {
  const Problem<float> problem(5, 64, 33);
  Tensor<float, 2> x({5, 64}), w({33, 64});
  for (Index k = 0; k < 64; ++k) {
    for (Index m = 0; m < 5; ++m) x(m, k) = problem.x(m, 63 - k);
    for (Index n = 0; n < 33; ++n) w(n, k) = problem.w(n, 63 - k);
  }
  const auto zero = filled<float>(5, 33, 0);
  const auto ascending = chains<float>(problem.x.view(), problem.w.view(), zero);
  const auto descending = chains<float>(x.view(), w.view(), zero);
  CHECK_FALSE(same_bits(ascending.view(), descending.view()));
  CHECK(support::relative_error(ascending.view(), descending.view()) < 1e-6);
}

#if (defined(__FMA__) || defined(__aarch64__)) && !defined(SEQMIX_SIMD_WIDTH)
TEMPLATE_LIST_TEST_CASE("products are fused where the target can", "[matmul]",
                        support::TestScalars) {
  CHECK(fused<TestType>());
}
#endif

TEMPLATE_LIST_TEST_CASE("matmul is one ascending chain an output", "[matmul]",
                        support::TestScalars) {
  for (const Index M : {1, 2, 3, 5, 6, 9, 12, 13, 14, 15, 16, 19, 27, 28, 29, 64, 225}) {
    for (const Index K : {0, 1, 3, 64, 255, 256, 257, 600}) {
      for (const Index N : {1, 7, 31, 32, 33, 64, 100}) {
        // The largest rows and depths together add time and no path.
        if (M * K > 64 * 257 && N > 33) continue;
        check_shape<TestType>(M, K, N);
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("matmul packs many rows without changing a bit", "[matmul]",
                        support::TestScalars) {
  // More rows than a block, more k than a block, more panels than are multiplied unpacked.
  const Index wide = (detail::panels_to_pack + 1) * detail::panel_width<TestType> + 1;
  const Index deep = detail::depth_block + detail::depth_slice + 3;
  for (const Index M : {detail::rows_to_pack, detail::rows_to_pack + 1, Index{57}}) {
    for (const Index K : {0, 1, 15, 17, 257}) check_shape<TestType>(M, K, wide);
  }
  // The largest block, and two that are smaller.
  for (const Index M : {detail::row_block + 5, detail::row_block + detail::row_block / 4,
                        detail::row_block + detail::row_block / 4 + 1}) {
    check_shape<TestType>(M, detail::depth_slice + 3, wide);
  }
  check_shape<TestType>(detail::rows_to_pack + 3, deep, wide);
}

TEMPLATE_LIST_TEST_CASE("matmul of narrow weights has the bits of their unpacked numbers",
                        "[matmul]", support::TestScalars) {
  using S = TestType;
  const Index wide = (detail::panels_to_pack + 1) * detail::panel_width<S> + 1;
  for (const Storage storage : narrow_storages) {
    for (const Index M : {1, 2, 3, 4, 5, 8, 9, 13, 14, 15, 16, 28, 29, 64, 257}) {
      for (const Index K : {0, 1, 70}) check_shape<S>(M, K, 45, storage);
      if (M < 64) check_shape<S>(M, 2 * detail::depth_slice + 3, 45, storage);
      if (M > 16) check_shape<S>(M, detail::depth_slice + 3, wide, storage);
    }
    check_shape<S>(1, 5, wide, storage);
    check_shape<S>(2, 5, wide, storage);
    check_shape<S>(detail::rows_to_pack + 3, detail::depth_block + 5, wide, storage);
  }
}

TEMPLATE_LIST_TEST_CASE("matmul reads and writes strided rows and nothing else", "[matmul]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  const S nan = std::numeric_limits<S>::quiet_NaN();
  const Index wide = (detail::panels_to_pack + 1) * detail::panel_width<S> + 1;
  for (const Index T : {1, 2, 3, 6, 15, 30, 90}) {
    for (const Index N : {Index{7}, Index{33}, wide}) {
      INFO("T " << T << ", N " << N);
      const Index K = 37;
      const Problem<S> problem(T, K, N);
      const auto expected =
          chains<S>(problem.x.view(), problem.w.view(), problem.start(true, false));
      Padded<S> x(T, K, nan), y(T, N, S(12345));
      copy(problem.x.view(), x.window);
      matmul<S>(x.window, PackedMatrix<S>(problem.w.view()), y.window, TestCall(context),
                problem.bias.data());
      CHECK(same_bits(y.window, expected.view()));
      CHECK(y.intact());
    }
  }
}

TEMPLATE_LIST_TEST_CASE("a row has the same bits alone and at every place", "[matmul]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  const Index wide = (detail::panels_to_pack + 1) * detail::panel_width<S> + 1;
  for (const Index N : {Index{45}, wide}) {
    const Problem<S> problem(61, 70, N);
    const PackedMatrix<S> packed(problem.w.view());
    Tensor<S, 2> alone({61, N});
    for (Index m = 0; m < 61; ++m) {
      matmul<S>(problem.x.view().slice(axis::time, m, 1), packed,
                alone.view().slice(axis::time, m, 1), TestCall(context));
    }
    for (Index M = 1; M <= 61; ++M) {
      for (const Index first : {Index{0}, 61 - M}) {
        Tensor<S, 2> y({M, N});
        matmul<S>(problem.x.view().slice(axis::time, first, M), packed, y.view(),
                  TestCall(context));
        CHECK(same_bits(y.view(), alone.view().slice(axis::time, first, M)));
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("matmul has the same bits on any number of threads", "[matmul]",
                        support::TestScalars) {
  using S = TestType;
  struct Size {
    Index M, K, N;
  };
  const Index wide = 24 * detail::panel_width<S>;
  // Tasks of panels (few rows), tasks of rows (few panels), tasks of both phases (packed).
  const Size sizes[] = {{1, 700, 601},
                        {detail::rows_to_pack - 1, 700, 601},
                        {600, 30, 33},
                        {detail::row_block + 40, 300, wide}};
  const Storage storages[] = {Storage::native, Storage::bf16, Storage::f16, Storage::int8};
  for (std::size_t i = 0; i < 16; ++i) {
    const auto& [M, K, N] = sizes[i / 4];
    INFO("M " << M << ", K " << K << ", N " << N << ", storage " << i % 4);
    const Problem<S> problem(M, K, N);
    const PackedMatrix<S> packed(problem.w.view(), storages[i % 4]);
    const auto run = [&](Context context) {
      auto y = problem.y;
      matmul<S>(problem.x, packed, y.view(), TestCall(context), problem.bias.data(), true);
      return y;
    };
    const auto serial = run(Context());
    BackwardExecutor backward;
    CHECK(same_bits(run(Context(backward)).view(), serial.view()));
    CHECK(backward.largest > 1);
    for (const Index threads : {1, 2, 3}) {
      support::ThreadExecutor executor(threads);
      CHECK(same_bits(run(Context(executor)).view(), serial.view()));
    }
  }
}

TEST_CASE("matmul of nothing is legal", "[matmul]") {
  Context context;
  const auto w = random_tensor<float, 2>({5, 3}, 1);
  const PackedMatrix<float> packed(w.view());
  Tensor<float, 2> no_tokens({0, 3}), y_tokens({0, 5});
  CHECK_NOTHROW(matmul(no_tokens, packed, y_tokens.view(), TestCall(context)));
  const PackedMatrix<float> no_outputs(Tensor<float, 2>({0, 3}).view());
  Tensor<float, 2> x({8, 3}), y({8, 0});
  CHECK_NOTHROW(matmul(x, no_outputs, y.view(), TestCall(context)));
}

TEST_CASE("matmul names what does not fit", "[matmul]") {
  using Catch::Matchers::ContainsSubstring;
  Context context;
  const auto w = random_tensor<float, 2>({5, 3}, 1);
  const PackedMatrix<float> packed(w.view());
  Tensor<float, 2> x({8, 3}), y({8, 5}), narrow({8, 2}), late({6, 5});
  const TestCall call(context);
  CHECK_THROWS_AS(matmul(narrow, packed, y.view(), call), ShapeError);
  CHECK_THROWS_WITH(matmul(narrow, packed, y.view(), call),
                    ContainsSubstring("x has shape [8, 2], expected [T, 3]"));
  CHECK_THROWS_WITH(matmul(x, packed, late.view(), call),
                    ContainsSubstring("y has shape [6, 5], expected [8, 5]"));
  CHECK_THROWS_WITH(matmul<float>({x.data(), {8, 3}, {1, 8}}, packed, y.view(), call),
                    ContainsSubstring("strides 8 and 1, expected 1"));
  CHECK_THROWS_AS(matmul<float>({}, packed, y.view(), call), ShapeError);
  CHECK_THROWS_AS(matmul(x, PackedMatrix<float>(), y.view(), call), ShapeError);
}

TEST_CASE("matmul refuses an output that overlaps its input", "[matmul]") {
  Context context;
  const auto w = random_tensor<float, 2>({5, 3}, 1);
  const PackedMatrix<float> packed(w.view());
  auto buffer = random_tensor<float, 2>({8, 8}, 2);
  const TestCall call(context);
  const auto columns = [&](Index first, Index count) {
    return buffer.view().slice(axis::channel, first, count);
  };
  const auto x = columns(0, 3), y = columns(3, 5);
  CHECK_THROWS_AS(matmul<float>(columns(1, 3), packed, y, call), ShapeError);
  CHECK_THROWS_AS(matmul<float>(columns(5, 3), packed, columns(1, 5), call), ShapeError);
  // Columns of one buffer that lie beside each other are disjoint, on either side.
  Tensor<float, 2> rows({8, 3});
  copy(x, rows.view());
  const auto expected = chains<float>(rows.view(), w.view(), filled<float>(8, 5, 0));
  matmul<float>(x, packed, y, call);
  CHECK(same_bits(y, expected.view()));
  CHECK_NOTHROW(matmul<float>(columns(5, 3), packed, columns(0, 5), call));
}

TEMPLATE_LIST_TEST_CASE("a packed matrix gives its numbers back", "[matmul]",
                        support::TestScalars) {
  using S = TestType;
  for (const Index N : {0, 1, 7, 31, 32, 33, 100}) {
    for (const Index K : {0, 1, 5, 64}) {
      const auto w = random_tensor<S, 2>({N, K}, 1);
      const PackedMatrix<S> packed(w.view());
      CHECK(packed);
      CHECK(packed.rows() == N);
      CHECK(packed.cols() == K);
      CHECK(same_bits(packed.unpack().view(), w.view()));
      const View<const S, 2> transposed(w.data(), {K, N}, {1, K});
      CHECK(same_bits(PackedMatrix<S>(transposed).unpack().view(), transposed));
    }
  }
  const PackedMatrix<S> packed(random_tensor<S, 2>({9, 4}, 1).view());
  const PackedMatrix<S> shared = packed;
  const void* addresses[2] = {};
  packed.visit([&](auto panels) { addresses[0] = panels.data(); });
  shared.visit([&](auto panels) { addresses[1] = panels.data(); });
  CHECK(addresses[0] == addresses[1]);
  CHECK_FALSE(PackedMatrix<S>());
}

TEMPLATE_LIST_TEST_CASE("narrow weights are the nearest numbers of their type", "[matmul]",
                        support::TestScalars) {
  using S = TestType;
  const Index N = 37, K = 19;
  auto w = random_tensor<S, 2>({N, K}, 1);
  fill(w.view()[5], S(0));
  w(6, 3) = 100;
  const auto unpacked = [&](Storage storage) {
    return PackedMatrix<S>(w.view(), storage).unpack();
  };
  const auto bf16 = unpacked(Storage::bf16), f16 = unpacked(Storage::f16),
             int8 = unpacked(Storage::int8);
  for (Index n = 0; n < N; ++n) {
    S largest = 0;
    for (Index k = 0; k < K; ++k) largest = std::max(largest, std::abs(w(n, k)));
    const S scale = largest / 127;
    for (Index k = 0; k < K; ++k) {
      const auto number = static_cast<float>(w(n, k));
      CHECK(bf16(n, k) == static_cast<S>(static_cast<float>(bfloat16(number))));
      CHECK(f16(n, k) == static_cast<S>(static_cast<float>(float16(number))));
      CHECK(std::abs(int8(n, k) - w(n, k)) <= scale * S(0.5001));
      if (std::abs(w(n, k)) == largest) CHECK(int8(n, k) == std::copysign(127 * scale, w(n, k)));
    }
  }
  for (const auto& [storage, bytes] :
       {std::pair{Storage::native, sizeof(S)}, std::pair{Storage::bf16, std::size_t{2}},
        std::pair{Storage::f16, std::size_t{2}}, std::pair{Storage::int8, std::size_t{1}}}) {
    const PackedMatrix<S> packed(w.view(), storage);
    packed.visit([size = bytes](auto panels) { CHECK(sizeof(*panels.data()) == size); });
    CHECK((packed.scales() != nullptr) == (storage == Storage::int8));
  }
}

TEMPLATE_LIST_TEST_CASE("a finite weight that a storage would make infinite is refused", "[matmul]",
                        support::TestScalars) {
  using S = TestType;
  constexpr S infinity = std::numeric_limits<S>::infinity();
  const auto first = [](S number, Storage storage) {
    Tensor<S, 2> w({3, 2});
    w(2, 1) = number;
    return PackedMatrix<S>(w.view(), storage).unpack()(2, 1);
  };
  for (const S sign : {S(1), S(-1)}) {
    CHECK(first(sign * 65504, Storage::f16) == sign * 65504);
    CHECK_THROWS_AS(first(sign * 65520, Storage::f16), ConfigError);
    CHECK(first(sign * 65520, Storage::bf16) == sign * 65536);
    CHECK(first(sign * S(0x1.FEp127), Storage::bf16) == sign * S(0x1.FEp127));
    CHECK_THROWS_AS(first(sign * S(0x1.FFp127), Storage::bf16), ConfigError);
    CHECK(std::isfinite(first(sign * std::numeric_limits<S>::max(), Storage::int8)));
    for (const Storage storage : {Storage::bf16, Storage::f16}) {
      CHECK(first(sign * infinity, storage) == sign * infinity);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("a weight that is no number spoils its own output", "[matmul]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  for (const Storage storage : narrow_storages) {
    Problem<S> problem(3, 10, 40);
    problem.w(7, 4) = std::numeric_limits<S>::quiet_NaN();
    matmul<S>(problem.x, PackedMatrix<S>(problem.w.view(), storage), problem.y.view(),
              TestCall(context));
    for (Index m = 0; m < 3; ++m) {
      for (Index n = 0; n < 40; ++n) CHECK(std::isnan(problem.y(m, n)) == (n == 7));
    }
  }
}

TEST_CASE("few rows allocate nothing, many rows nothing the second time", "[matmul]") {
  const Index wide = (detail::panels_to_pack + 1) * detail::panel_width<float>;
  const PackedMatrix<float> packed(random_tensor<float, 2>({wide, 50}, 1).view());
  for (const Index M : {Index{1}, Index{2}, detail::rows_to_pack - 1, detail::rows_to_pack}) {
    INFO("M " << M);
    Context context;
    const auto x = random_tensor<float, 2>({M, 50}, 2);
    Tensor<float, 2> y({M, wide});
    const TestCall call(context);
    const auto first = support::allocations();
    matmul<float>(x, packed, y, call);
    const auto second = support::allocations();
    matmul<float>(x, packed, y, call);
    const auto third = support::allocations();
    CHECK((second == first) == (M < detail::rows_to_pack));  // many rows are packed in scratch
    CHECK(third == second);
  }
}
