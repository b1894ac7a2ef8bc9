#include <catch2/catch_test_macros.hpp>
#include <numeric>
#include <vector>

#include "seqmix/core/eigen.hpp"
#include "seqmix/core/mdspan.hpp"
#include "seqmix/core/tensor.hpp"

using namespace seqmix;

namespace {

Tensor<int, 3> counted(Shape<3> shape) {
  Tensor<int, 3> numbers(shape);
  std::iota(numbers.data(), numbers.data() + numbers.size(), 0);
  return numbers;
}

}  // namespace

TEST_CASE("a view addresses by extents and strides") {
  const auto numbers = counted({2, 3, 4});
  const View<const int, 3> view = numbers;
  CHECK(view.size() == 24);
  CHECK(view.contiguous());
  CHECK(view(1, 2, 3) == 23);
  CHECK(view[1][2][3] == 23);
  CHECK(view.at<1>(2)(1, 3) == 23);
  const auto part = view.slice<1>(1, 2);
  CHECK(part.shape() == Shape<3>{2, 2, 4});
  CHECK(part(1, 0, 0) == 16);
  CHECK_FALSE(part.contiguous());
  CHECK(view.slice<0>(1, 1).contiguous());
}

TEST_CASE("axes split, merge and appear without a copy") {
  auto numbers = counted({2, 3, 8});
  const View<int, 3> view = numbers;
  const auto heads = view.split<2>(4, 2);
  CHECK(heads.shape() == Shape<4>{2, 3, 4, 2});
  CHECK(&heads(1, 2, 3, 1) == &view(1, 2, 7));
  CHECK(heads.merge<2>() == view);
  CHECK(view.merge<0>().shape() == Shape<2>{6, 8});
  CHECK(view.insert<1>().shape() == Shape<4>{2, 1, 3, 8});
  CHECK(view.insert<3>().merge<2>() == view);
  CHECK(view.insert<1>().merge<0>() == view);
  CHECK(view.insert(axis::channel) == view.insert<2>());
  CHECK(view.insert(axis::row).shape() == Shape<4>{1, 2, 3, 8});
  CHECK(view.mergeable(axis::row));
  CHECK_FALSE(view.slice<1>(0, 2).mergeable(axis::row));
  CHECK(view.slice<2>(0, 4).mergeable<0>());
  CHECK_FALSE(view.slice<1>(0, 2).mergeable<0>());
  CHECK(view.slice<1>(0, 2).slice<0>(0, 1).mergeable<0>());
  CHECK_THROWS_AS(view.split<2>(3, 2), ShapeError);
  CHECK_THROWS_AS((view.slice<1>(0, 2).merge<0>()), ShapeError);
}

TEST_CASE("copies and fills follow the strides") {
  auto numbers = counted({2, 3, 4});
  Tensor<int, 3> target({2, 3, 9});
  copy(numbers.view(), target.view().slice<2>(5, 4));
  CHECK(target(1, 2, 8) == 23);
  CHECK(target(1, 2, 4) == 0);
  fill(target.view().slice<1>(1, 1), 7);
  CHECK(target(0, 1, 0) == 7);
  CHECK(target(0, 0, 5) == 0);
  CHECK_THROWS_AS(copy(numbers.view(), target.view()), ShapeError);
}

TEST_CASE("views come from spans and pointers, and know what they touch") {
  std::vector<float> numbers(10, 1);
  const View<float, 1> all{std::span<float>(numbers)};
  CHECK(all.extent(0) == 10);
  const View<float, 2> gaps(numbers.data(), {2, 2}, {6, 2});
  const auto [low, high] = footprint(View<const float, 2>(gaps));
  CHECK(low == numbers.data());
  CHECK(high == numbers.data() + 9);
  const auto [first, last] = footprint(View<const float, 2>(gaps.slice<0>(0, 0)));
  CHECK(first == last);
}

TEST_CASE("windows are disjoint where they share no number") {
  Tensor<float, 3> wide({2, 5, 16});
  const View<float, 3> all = wide;
  CHECK(disjoint(all.slice<1>(0, 2), all.slice<1>(2, 3)) == false);  // rows of two batch rows
  CHECK(disjoint(all.slice<0>(0, 1), all.slice<0>(1, 1)));
  CHECK(disjoint(all.slice<2>(0, 8), all.slice<2>(8, 8)));
  CHECK(disjoint(all.slice<2>(9, 7), all.slice<2>(0, 8)));
  CHECK_FALSE(disjoint(all.slice<2>(0, 8), all.slice<2>(7, 8)));
  CHECK_FALSE(disjoint(all, all));
  CHECK(disjoint(all, all.slice<1>(0, 0)));
}

TEST_CASE("sizes are checked products") {
  CHECK((Shape<3>{2, 3, 4}.size()) == 24);
  CHECK((Shape<3>{0, 3, 4}.size()) == 0);
  CHECK_THROWS_AS((Shape<2>{-1, 3}.size()), ShapeError);
  constexpr Index large = Index{1} << 40;
  CHECK_THROWS_AS((Shape<2>{large, large}.size()), ShapeError);
  CHECK_THROWS_AS((Tensor<float, 2>({large, 1 << 22})), ShapeError);
  CHECK((Shape<2>{2, 3}.text()) == "[2, 3]");
}

TEST_CASE("Eigen matrices and views share numbers") {
  Eigen::MatrixXf columns(3, 4);
  const View<float, 2> view = to_view(columns);
  view(1, 2) = 5;
  CHECK(columns(1, 2) == 5);
  const Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rows =
      Eigen::MatrixXd::Ones(2, 5);
  CHECK(to_view(rows).strides() == Shape<2>{5, 1});
  Tensor<double, 2> tensor({3, 8});
  auto map = to_eigen(tensor.view().slice<1>(2, 4));
  map.setConstant(2);
  CHECK(tensor(2, 5) == 2);
  CHECK(tensor(2, 6) == 0);
  CHECK(to_view(map)(0, 3) == 2);
  CHECK(to_eigen(tensor.view()[1]).sum() == 8);
  CHECK_THROWS_AS(to_eigen(view), ShapeError);
}

#if defined(__cpp_lib_mdspan)
TEST_CASE("std::mdspan and views share numbers") {
  auto numbers = counted({2, 3, 4});
  const auto span = to_mdspan(numbers.view().slice<1>(1, 2));
  CHECK(span[1, 0, 2] == 18);
  CHECK(to_view(span) == numbers.view().slice<1>(1, 2));
}
#endif

TEST_CASE("a view whose indices share numbers overlaps itself") {
  const auto overlaps = [](Shape<3> shape, Shape<3> strides) {
    return overlaps_itself(shape, strides);
  };
  CHECK_FALSE(overlaps({2, 3, 4}, {12, 4, 1}));
  CHECK_FALSE(overlaps({2, 3, 4}, {4, 8, 1}));     // token first
  CHECK_FALSE(overlaps({2, 3, 4}, {-12, -4, 1}));  // backwards
  CHECK_FALSE(overlaps({2, 3, 4}, {1, 2, 6}));     // transposed
  CHECK_FALSE(overlaps({1, 3, 4}, {0, 4, 1}));     // an axis of one element goes nowhere
  CHECK_FALSE(overlaps({2, 0, 4}, {0, 0, 0}));     // nothing at all
  CHECK(overlaps({2, 3, 4}, {0, 4, 1}));
  CHECK(overlaps({2, 3, 4}, {12, 0, 1}));
  CHECK(overlaps({2, 3, 4}, {12, 3, 1}));
  CHECK(overlaps({2, 3, 4}, {11, 4, 1}));
  CHECK(overlaps({2, 3, 4}, {12, 4, 0}));
}
