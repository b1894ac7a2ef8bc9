#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdint>
#include <new>
#include <utility>

#include "seqmix/core/cache.hpp"
#include "seqmix/core/context.hpp"
#include "seqmix/core/parameter.hpp"
#include "support/allocations.hpp"

using namespace seqmix;
using support::allocations;

namespace {

bool aligned(const void* address) { return reinterpret_cast<std::uintptr_t>(address) % 64 == 0; }

}  // namespace

TEST_CASE("a tensor owns aligned zeros and copies by value") {
  Tensor<float, 2> a({3, 5});
  CHECK(aligned(a.data()));
  CHECK(a(2, 4) == 0);
  a(1, 1) = 3;
  Tensor<float, 2> b = a;
  b(1, 1) = 4;
  CHECK(a(1, 1) == 3);
  const float* numbers = a.data();
  const Tensor<float, 2> c = std::move(a);
  CHECK(c.data() == numbers);
  CHECK(c(1, 1) == 3);
  b = c;
  CHECK(b(1, 1) == 3);
  CHECK(Tensor<float, 1>({0}).empty());
  CHECK(Tensor<float, 1>().empty());
  CHECK(Tensor<float, 1>({5}).extent(0) == 5);
}

TEST_CASE("a tensor in an arena is copied to the heap") {
  Context context;
  Tensor<double, 1> kept;
  {
    auto scope = context.scratch<double>();
    const auto before = allocations();
    Tensor<double, 1> warm({1000}, Memory(context.arena()));
    CHECK(allocations() > before);  // the arena grew
    warm[5] = 2;
    kept = warm;
  }
  {
    auto scope = context.scratch<double>();
    const auto before = allocations();
    const Tensor<double, 1> again({1000}, Memory(context.arena()));
    CHECK(allocations() == before);
    CHECK(again[5] == 0);
  }
  CHECK(kept[5] == 2);
}

TEST_CASE("a tensor is assigned in place where shapes agree, and may have a shape alone") {
  Tensor<float, 2> from({3, 5}), to({3, 5});
  from(2, 4) = 7;
  const float* const numbers = to.data();
  const auto before = allocations();
  to = from;
  CHECK(allocations() == before);
  CHECK(to.data() == numbers);
  CHECK(to(2, 4) == 7);
  to = Tensor<float, 2>({2, 2});
  CHECK(to.shape() == Shape<2>{2, 2});

  const Index large = Index{1} << 40;
  const Tensor<float, 2> shape_alone({large, 5}, Memory::shapes_only());
  CHECK(shape_alone.shape() == Shape<2>{large, 5});
  CHECK(shape_alone.data() == nullptr);
  Tensor<float, 2> copied = shape_alone, assigned({2, 2});
  assigned = shape_alone;
  CHECK(copied.shape() == shape_alone.shape());
  CHECK(assigned.data() == nullptr);
  assigned = copied;
  CHECK(assigned.shape() == shape_alone.shape());
  CHECK_THROWS_AS((Tensor<float, 2>({large, large}, Memory::shapes_only())), ShapeError);
}

TEST_CASE("a cache is assigned in place, or not at all where memory ends") {
  Cache<float, 2> cache({2, 5}), other({2, 5}), larger({1000, 5}, {}, Storage::int8);
  const std::byte* const numbers = cache.bytes().data();
  const auto before = allocations();
  cache = other;
  CHECK(allocations() == before);
  CHECK(cache.bytes().data() == numbers);
  for (const int count : {0, 1}) {
    support::fail_allocations_after(count);
    bool failed = false;
    try {
      cache = larger;
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    support::fail_allocations_after(-1);
    CHECK(failed);
    CHECK(cache.shape() == Shape<2>{2, 5});
    CHECK(cache.storage() == Storage::native);
    CHECK(cache.bytes().data() == numbers);
  }
  const Cache<float, 2> moved = std::move(cache);
  CHECK(moved.bytes().data() == numbers);
  CHECK(cache.shape() == Shape<2>{});
}

TEST_CASE("a parameter that was moved from is empty, and one without a handle is not") {
  Parameter<float, 1> parameter = Tensor<float, 1>({3});
  const Parameter<float, 1> moved = std::move(parameter);
  CHECK(moved);
  CHECK(!parameter);
  CHECK(parameter.data() == nullptr);
  CHECK(parameter.shape() == Shape<1>{0});
  parameter = moved;
  CHECK(parameter.identity() == moved.identity());

  const Tensor<float, 1> mine({3});
  CHECK(Parameter<float, 1>(mine.view(), nullptr));
}

TEST_CASE("scratch never moves while it is in use") {
  Context context;
  auto outer = context.scratch<float>();
  auto first = outer(100);
  fill(first, 1.0F);
  const float* address = first.data();
  {
    auto inner = context.scratch<float>();
    for (Index size = 1; size < (1 << 20); size *= 4) {
      auto more = inner(size);
      CHECK(aligned(more.data()));
      fill(more, 2.0F);
    }
  }
  CHECK(first.data() == address);
  for (Index i = 0; i < 100; ++i) REQUIRE(first[i] == 1);
}

TEST_CASE("the same work done again allocates nothing") {
  Context context;
  const auto work = [&] {
    auto scratch = context.scratch<float>();
    for (Index size = 1000; size < 100000; size += 7777) fill(scratch(size), 1.0F);
    auto inner = context.scratch<double>();
    fill(inner(3, 4, 5), 2.0);
  };
  work();
  const auto before = allocations();
  for (int i = 0; i < 5; ++i) work();
  CHECK(allocations() == before);
  CHECK(context.reserved() > 0);
}

TEST_CASE("poison fills scratch with NaN when asked to, and by default in debug builds alone") {
  Context context;
#ifdef NDEBUG
  constexpr bool debug = false;
#else
  constexpr bool debug = true;
#endif
  {
    auto scratch = context.scratch<float>();
    fill(scratch(64), 1.0F);
  }
  {
    auto scratch = context.scratch<float>();
    CHECK(std::isnan(scratch(64)[3]) == debug);
  }
  for (const bool poison : {true, false}) {
    context.set_poison(poison);
    {
      auto scratch = context.scratch<float>();
      fill(scratch(64), 1.0F);
    }
    auto scratch = context.scratch<float>();
    CHECK(std::isnan(scratch(64)[3]) == poison);
  }
}

TEST_CASE("a parameter shares its numbers or borrows them") {
  Tensor<float, 2> numbers({2, 3});
  numbers(1, 2) = 7;
  const float* address = numbers.data();
  const Parameter<float, 2> owned = std::move(numbers);
  const Parameter<float, 2> copy = owned;  // NOLINT: the copy is what is tested
  CHECK(copy.data() == address);
  CHECK(copy(1, 2) == 7);
  CHECK(copy.to_tensor()(1, 2) == 7);
  CHECK_FALSE(Parameter<float, 2>());
  const Parameter<float, 3> deeper = owned.reshape(Shape<3>{1, owned.extent(0), owned.extent(1)});
  CHECK(deeper.identity() == owned.identity());
  CHECK(deeper(0, 1, 2) == 7);
  CHECK_THROWS_AS(owned.reshape(Shape<1>{owned.size() + 1}), ShapeError);
  auto owner = std::make_shared<Tensor<float, 2>>(Shape<2>{2, 3});
  const std::weak_ptr<const void> watch = owner;
  {
    const Parameter<float, 2> borrowed(std::as_const(*owner).view(), owner);
    owner.reset();
    CHECK_FALSE(watch.expired());
    CHECK(borrowed(0, 0) == 0);
  }
  CHECK(watch.expired());
  auto wide = std::make_shared<Tensor<float, 2>>(Shape<2>{2, 6});
  CHECK_THROWS_AS((Parameter<float, 2>(std::as_const(*wide).view().slice<1>(0, 3), wide)),
                  ShapeError);
}

TEST_CASE("errors tell their kind") {
  CHECK_THROWS_AS(require(false, "n must be positive"), ConfigError);
  CHECK_NOTHROW(require(true, ""));
  try {
    require(false, "n must be positive");
  } catch (const Error& error) {
    CHECK(std::string(error.what()) == "n must be positive");
  }
}
