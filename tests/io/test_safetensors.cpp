#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "seqmix/io/safetensors.hpp"
#include "support/error_of.hpp"
#include "support/safetensors_builder.hpp"

namespace seqmix {
namespace {

using Catch::Matchers::ContainsSubstring;
using test::Bytes;
using test::error_of;
using test::safetensors_file;
using test::SafetensorsBuilder;
using test::TemporaryFolder;

Safetensors parse(Bytes bytes) { return Safetensors::parse(std::move(bytes), "test.safetensors"); }

std::string parse_error(Bytes bytes) {
  return error_of<CheckpointError>([&] { parse(std::move(bytes)); });
}

std::string description(std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return R"({"dtype":")" + std::string(dtype) + R"(","shape":)" + std::string(shape) +
         R"(,"data_offsets":)" + std::string(offsets) + "}";
}
/// A header with the one tensor "a.weight".
std::string one(std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return R"({"a.weight":)" + description(dtype, shape, offsets) + "}";
}

template <class Scalar, Index Rank>
std::vector<Scalar> numbers(const Parameter<Scalar, Rank>& parameter) {
  return {parameter.data(), parameter.data() + parameter.size()};
}

std::vector<std::uint16_t> all_patterns() {
  std::vector<std::uint16_t> bits(65536);
  std::iota(bits.begin(), bits.end(), std::uint16_t{0});
  return bits;
}

template <class Scalar>
bool same_bits(Scalar a, Scalar b) {
  return std::memcmp(&a, &b, sizeof(a)) == 0;
}

TEST_CASE("tensors, shapes, dtypes and metadata are read") {
  const Safetensors file = parse(SafetensorsBuilder()
                                     .add("b", "F32", "[2,3]", std::vector<float>{1, 2, 3, 4, 5, 6})
                                     .add_text(R"("__metadata__":{"format":"pt","empty":""})")
                                     .add("a", "F64", "[1]", std::vector<double>{0.1})
                                     .build());
  CHECK(file.names() == std::vector<std::string>{"a", "b"});
  CHECK(file.contains("a"));
  CHECK_FALSE(file.contains("__metadata__"));
  CHECK(file.metadata().at("format") == "pt");
  CHECK(file.metadata().at("empty").empty());
  CHECK(file.entry("b").dtype == DType::f32);
  CHECK(file.entry("b").shape == std::vector<Index>{2, 3});
  CHECK(file.entry("b").bytes.size() == 24);
  const auto b = file.parameter<float, 2>("b", {2, 3});
  CHECK(b(1, 0) == 4.0F);
  CHECK(numbers(file.parameter<double, 2>("b", {2, 3})) == std::vector<double>{1, 2, 3, 4, 5, 6});
  CHECK(numbers(file.parameter<float, 1>("a", {1})) == std::vector<float>{0.1F});
}

TEST_CASE("rank 0, empty tensors, empty files and spaces are legal") {
  const Safetensors file = parse(SafetensorsBuilder()
                                     .add("empty", "F32", "[0]", Bytes{})
                                     .add("wide", "F32", "[3,0,9000000000]", Bytes{})
                                     .add("number", "F32", "[]", std::vector<float>{2.5F})
                                     .add("last", "I64", "[0,2]", Bytes{})
                                     .build(24));
  CHECK(file.entry("number").shape.empty());
  CHECK(file.parameter<float, 1>("number", {1})[0] == 2.5F);
  CHECK(file.parameter<float, 1>("empty", {0}).size() == 0);
  CHECK(file.parameter<double, 3>("wide", {3, 0, 9000000000}).size() == 0);
  CHECK(file.integers("last").size() == 0);
  CHECK_THROWS_AS((file.parameter<float, 2>("number", {1, 1})), CheckpointError);
  CHECK_THROWS_AS((file.parameter<float, 1>("number", {0})), CheckpointError);

  CHECK(parse(safetensors_file("{}", 0)).names().empty());
  CHECK(parse(safetensors_file("{}      ", 0)).names().empty());
  CHECK(parse(safetensors_file(R"({"__metadata__":{}})", 0)).metadata().empty());
  CHECK(parse(safetensors_file(one("F8_E4M3", "[1,1,1,1,1,1,1,1,1,1,1,1,2]", "[0,2]"), 2))
            .entry("a.weight")
            .shape.size() == 13);
}

TEST_CASE("a bad frame is refused") {
  CHECK_THAT(parse_error({}),
             ContainsSubstring("test.safetensors: truncated") && ContainsSubstring("got 0 bytes"));
  CHECK_THAT(parse_error(Bytes(7)), ContainsSubstring("truncated"));
  CHECK_THAT(parse_error(safetensors_file("{}", Bytes{}, 3)),
             ContainsSubstring("header longer than the file; got 3 bytes, expected at most 2"));
  CHECK_THAT(parse_error(safetensors_file("{}", Bytes{}, 100'000'001)),
             ContainsSubstring("header too long; got 100000001"));
  CHECK_THAT(parse_error(safetensors_file("{}", Bytes{}, ~std::uint64_t{0} - 1)),
             ContainsSubstring("header too long"));
  CHECK_THAT(parse_error(safetensors_file("", 0)), ContainsSubstring("does not start with '{'"));
  CHECK_THAT(parse_error(safetensors_file(" {}", 0)), ContainsSubstring("does not start with '{'"));
  CHECK_THAT(parse_error(safetensors_file("[]", 0)), ContainsSubstring("does not start with '{'"));
  CHECK_THAT(parse_error(safetensors_file("{} x", 0)), ContainsSubstring("not valid JSON"));
  CHECK_THAT(parse_error(safetensors_file("{", 0)), ContainsSubstring("not valid JSON"));
  using namespace std::string_view_literals;
  CHECK_THAT(parse_error(safetensors_file("{}\0x"sv, 0)), ContainsSubstring("zero byte"));
  CHECK_THAT(parse_error(safetensors_file("{\"\xff\":1}", 0)), ContainsSubstring("not valid JSON"));
}

TEST_CASE("a header that lasts longer than the limit is refused even where the file is as long") {
  std::string header = "{}" + std::string(json_size_limit - 1, ' ');
  CHECK_THAT(parse_error(safetensors_file(header, 0)), ContainsSubstring("header too long"));
  header.pop_back();
  CHECK(parse(safetensors_file(header, 0)).names().empty());
}

TEST_CASE("a bad header is refused by its rule") {
  struct Case {
    std::string header;
    std::size_t data_size;
    std::string rule;
  };
  const std::string good = description("F32", "[1]", "[0,4]");
  const std::vector<Case> cases{
      {R"({"a":)" + good + R"(,"a":)" + good + "}", 4, "duplicate key \"a\""},
      {R"({"a":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}})", 4,
       "duplicate key \"dtype\""},
      {R"({"__metadata__":{"k":"1","k":"2"}})", 0, "duplicate key \"k\""},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "duplicate key"},
      {R"({"a":)" + std::string(100'000, '[') + std::string(100'000, ']') + "}", 0,
       "tensor \"a\": description; got an array"},
      {R"({"__metadata__":[]})", 0, "__metadata__ is no object"},
      {R"({"__metadata__":"text"})", 0, "__metadata__ is no object"},
      {R"({"__metadata__":{"k":1}})", 0, "__metadata__ \"k\" is no string; got 1"},
      {R"({"__metadata__":{"k":{"l":"m"}}})", 0, "is no string; got an object"},
      {R"({"a.weight":[]})", 0, "tensor \"a.weight\": description; got an array"},
      {R"({"a.weight":{"dtype":"F32","shape":[1]}})", 4, "no data_offsets"},
      {R"({"a.weight":{"dtype":"F32","data_offsets":[0,4]}})", 4, "no shape"},
      {R"({"a.weight":{"shape":[1],"data_offsets":[0,4]}})", 4, "no dtype"},
      {R"({"a.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"strides":[1]}})", 4,
       "unknown key; got \"strides\""},
      {one("F33", "[1]", "[0,4]"), 4, "unknown dtype; got \"F33\""},
      {one("f32", "[1]", "[0,4]"), 4, "unknown dtype; got \"f32\""},
      {R"({"a.weight":{"dtype":32,"shape":[1],"data_offsets":[0,4]}})", 4, "unknown dtype; got 32"},
      {one("F32", "1", "[0,4]"), 4, "shape; got 1"},
      {one("F32", "[-1]", "[0,4]"), 4, "shape; got -1"},
      {one("F32", "[1.0]", "[0,4]"), 4, "shape; got 1.0"},
      {one("F32", "[0.5]", "[0,2]"), 2, "shape; got 0.5"},
      {one("F32", "[\"1\"]", "[0,4]"), 4, "shape; got \"1\""},
      {one("F32", "[null]", "[0,4]"), 4, "shape; got null"},
      {one("F32", "[NaN]", "[0,4]"), 4, "not valid JSON"},
      {one("F32", "[9223372036854775808]", "[0,4]"), 4, "shape; got 9223372036854775808"},
      {one("F32", "[99999999999999999999]", "[0,4]"), 4, "shape; got"},
      {one("F32", "[1]", "[0]"), 4, "data_offsets; got [0]"},
      {one("F32", "[1]", "[0,4,4]"), 4, "data_offsets; got [0, 4, 4]"},
      {one("F32", "[1]", "4"), 4, "data_offsets; got 4"},
      {one("F32", "[1]", "[0,-4]"), 4, "data_offsets; got -4"},
      {one("F32", "[1]", "[0,4.0]"), 4, "data_offsets; got 4.0"},
      {one("F32", "[1]", "[4,0]"), 4, "data_offsets; got [4, 0]"},
      {one("F32", "[1]", "[0,4]"), 3, "data_offsets past the end of the file; got [0, 4]"},
      {one("F32", "[1]", "[9223372036854775803,9223372036854775807]"), 4, "past the end"},
      {one("F32", "[1]", "[18446744073709551612,18446744073709551616]"), 4, "data_offsets; got"},
      {one("F32", "[2]", "[0,4]"), 4, "size does not fit the shape; got 4 bytes, expected 8"},
      {one("F32", "[1]", "[0,8]"), 8, "size does not fit the shape; got 8 bytes, expected 4"},
      {one("F64", "[]", "[0,4]"), 4, "expected 8 for F64 []"},
      {one("BF16", "[0]", "[0,2]"), 2, "expected 0 for BF16 [0]"},
      {one("F32", "[4294967296,4294967296]", "[0,0]"), 0, "shape overflows"},
      {one("F32", "[4611686018427387904]", "[0,0]"), 0, "shape overflows"},
      {one("U8", "[9223372036854775807,2,0]", "[0,0]"), 0, "shape overflows"},
      {R"({"a":)" + good + R"(,"b":)" + description("F32", "[1]", "[2,6]") + "}", 6,
       "\"b\": overlaps the tensor before it; got begin 2, expected 4"},
      {R"({"a":)" + good + R"(,"b":)" + good + "}", 4, "overlaps the tensor before it"},
      {R"({"a":)" + good + R"(,"b":)" + description("F32", "[0]", "[2,2]") + "}", 4,
       "overlaps the tensor before it"},
      {R"({"a":)" + good + R"(,"b":)" + description("F32", "[1]", "[5,9]") + "}", 9,
       "\"b\": hole in the data before it; got begin 5, expected 4"},
      {one("F32", "[1]", "[4,8]"), 8, "hole in the data before it; got begin 4, expected 0"},
      {one("F32", "[0]", "[4,4]"), 4, "hole in the data before it"},
      {one("F32", "[1]", "[0,4]"), 5,
       "bytes after the last tensor; got 5 bytes of data, expected 4"},
      {"{}", 1, "bytes after the last tensor"},
  };
  for (const Case& bad : cases) {
    INFO(bad.header.substr(0, 200));
    const std::string error = parse_error(safetensors_file(bad.header, bad.data_size));
    CHECK_THAT(error, ContainsSubstring("test.safetensors") && ContainsSubstring(bad.rule));
    CHECK(error.size() < 500);
  }
  CHECK(parse(safetensors_file(R"({"a":)" + good + "}", 4)).contains("a"));
}

TEST_CASE("every cut of a file is refused") {
  const Bytes valid = SafetensorsBuilder()
                          .add("a", "F32", "[2]", std::vector<float>{1, 2})
                          .add("b", "U8", "[3]", std::vector<std::uint8_t>{1, 2, 3})
                          .build();
  CHECK(parse_error(valid).empty());
  for (std::size_t size = 0; size < valid.size(); ++size) {
    INFO(size);
    CHECK_FALSE(
        parse_error(Bytes(valid.begin(), valid.begin() + static_cast<Index>(size))).empty());
  }
}

TEST_CASE("a missing, unexpected or unfit tensor is named") {
  const Safetensors file = parse(SafetensorsBuilder()
                                     .add("m.a", "F32", "[2]", std::vector<float>{1, 2})
                                     .add("m.b", "I32", "[1]", std::vector<std::int32_t>{1})
                                     .add("n.a", "F8_E5M2", "[1]", Bytes(1))
                                     .build());
  const auto error = [&](auto&& call) { return error_of<CheckpointError>(call); };
  CHECK_THAT(error([&] { file.parameter<float, 1>("m.c", {2}); }),
             ContainsSubstring("test.safetensors: tensor \"m.c\" is missing"));
  CHECK_THAT(
      error([&] { file.parameter<float, 1>("m.a", {3}); }),
      ContainsSubstring("test.safetensors: tensor \"m.a\": wrong shape; got [2], expected [3]"));
  CHECK_THAT(error([&] {
               file.parameter<float, 2>("m.a", {1, 2});
             }),
             ContainsSubstring("got [2], expected [1, 2]"));
  CHECK_THAT(error([&] { file.parameter<float, 1>("m.b", {1}); }),
             ContainsSubstring("\"m.b\": wrong dtype; got I32, expected F64, F32, F16 or BF16"));
  CHECK_THAT(error([&] { file.parameter<float, 1>("n.a", {1}); }),
             ContainsSubstring("got F8_E5M2"));
  CHECK_THAT(error([&] { file.integers("m.a"); }),
             ContainsSubstring("\"m.a\": wrong dtype; got F32, expected integers"));

  CHECK_NOTHROW(file.expect_no_others({"m.a", "m.b", "more"}, "m."));
  CHECK_THAT(error([&] { file.expect_no_others({"m.a"}, "m."); }),
             ContainsSubstring("test.safetensors: unexpected tensor \"m.b\" [1]"));
  CHECK_THAT(error([&] {
               file.expect_no_others({"m.a", "m.b"});
             }),
             ContainsSubstring("unexpected tensor \"n.a\""));
}

TEST_CASE("a long or odd name is shown short and escaped") {
  const std::string long_name(10'000, 'x');
  const Safetensors file =
      parse(SafetensorsBuilder().add(long_name + "\\u001b[31m", "U8", "[0]", Bytes{}).build());
  const std::string name = file.names().at(0);
  CHECK(name.size() == 10'005);
  CHECK(error_of<CheckpointError>([&] { file.parameter<float, 1>(name, {1}); }).size() < 300);
  const std::string error = error_of<CheckpointError>([&] { file.entry("\x1b[31m"); });
  CHECK_THAT(error, ContainsSubstring("\\u001b[31m"));
}

TEST_CASE("every 16-bit pattern becomes the same float and double, NaN included") {
  const std::vector<std::uint16_t> bits = all_patterns();
  const Safetensors file = parse(SafetensorsBuilder()
                                     .add("f16", "F16", "[256,256]", bits)
                                     .add("bf16", "BF16", "[256,256]", bits)
                                     .build());
  const auto half = file.parameter<float, 2>("f16", {256, 256});
  const auto wide_half = file.parameter<double, 2>("f16", {256, 256});
  const auto brain = file.parameter<float, 2>("bf16", {256, 256});
  const auto wide_brain = file.parameter<double, 2>("bf16", {256, 256});
  int wrong = 0, nan = 0, subnormal = 0;
  for (std::size_t i = 0; i < bits.size(); ++i) {
    float16 f16;
    f16.bits = bits[i];
    bfloat16 bf16;
    bf16.bits = bits[i];
    const auto check = [&](float expected, float got, double wide) {
      wrong += !same_bits(expected, got);
      wrong += std::isnan(expected) ? !std::isnan(wide) : wide != static_cast<double>(expected);
      nan += std::isnan(expected);
    };
    check(static_cast<float>(f16), half.data()[i], wide_half.data()[i]);
    check(static_cast<float>(bf16), brain.data()[i], wide_brain.data()[i]);
    subnormal += std::fpclassify(brain.data()[i]) == FP_SUBNORMAL;
  }
  CHECK(wrong == 0);
  CHECK(nan == 2 * 1023 + 2 * 127);
  CHECK(subnormal == 2 * 127);
}

TEST_CASE("float and double convert, and what does not fit is refused") {
  const double infinity = std::numeric_limits<double>::infinity();
  const std::vector<double> values{0.1,    -0.0,   infinity, -infinity, std::nan(""),
                                   1e-320, 3.4e38, 1e-46,    1.0 / 3,   5e-324};
  const Safetensors file =
      parse(SafetensorsBuilder()
                .add("d", "F64", "[10]", values)
                .add("large", "F64", "[2]", std::vector<double>{1, -1e39})
                .add("f", "F32", "[3]", std::vector<float>{0.1F, 1e-45F, std::nanf("")})
                .build());
  const auto narrow = file.parameter<float, 1>("d", {10});
  for (std::size_t i = 0; i < values.size(); ++i) {
    INFO(i);
    CHECK(same_bits(narrow.data()[i], static_cast<float>(values[i])));
  }
  CHECK_THAT(error_of<CheckpointError>([&] { file.parameter<float, 1>("large", {2}); }),
             ContainsSubstring("\"large\": number 1 does not fit; got -1e+39"));
  CHECK(file.parameter<double, 1>("large", {2})[1] == -1e39);
  const auto wide = file.parameter<double, 1>("f", {3});
  CHECK(wide[0] == static_cast<double>(0.1F));
  CHECK(wide[1] == static_cast<double>(1e-45F));
  CHECK(std::isnan(wide[2]));
}

template <class T>
void check_integers(const char* dtype) {
  INFO(dtype);
  const T low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
  const Safetensors file =
      parse(SafetensorsBuilder().add("i", dtype, "[2,2]", std::vector<T>{0, 7, low, high}).build());
  if constexpr (std::in_range<std::int64_t>(std::numeric_limits<T>::max())) {
    const auto integers = file.integers("i");
    CHECK(file.entry("i").shape == std::vector<Index>{2, 2});
    CHECK(integers.size() == 4);
    CHECK(integers[1] == 7);
    CHECK(integers[2] == static_cast<std::int64_t>(low));
    CHECK(integers[3] == static_cast<std::int64_t>(high));
    CHECK(file.parameter<std::int64_t, 2>("i", {2, 2})(1, 1) == static_cast<std::int64_t>(high));
  } else {
    CHECK_THAT(error_of<CheckpointError>([&] { file.integers("i"); }),
               ContainsSubstring("number 3 does not fit; got 18446744073709551615"));
  }
}

TEST_CASE("integers of every width are read, and refused where they do not fit") {
  check_integers<std::int8_t>("I8");
  check_integers<std::uint8_t>("U8");
  check_integers<std::int16_t>("I16");
  check_integers<std::uint16_t>("U16");
  check_integers<std::int32_t>("I32");
  check_integers<std::uint32_t>("U32");
  check_integers<std::int64_t>("I64");
  check_integers<std::uint64_t>("U64");
  const Safetensors file = parse(SafetensorsBuilder()
                                     .add("mask", "BOOL", "[2]", std::vector<std::uint8_t>{0, 1})
                                     .add("i", "I64", "[1]", std::vector<std::int64_t>{-129})
                                     .build());
  CHECK(file.integers("mask")[1] == 1);
  CHECK_THROWS_AS((file.parameter<std::int8_t, 1>("i", {1})), CheckpointError);
  CHECK(file.parameter<std::int16_t, 1>("i", {1})[0] == -129);
}

TEST_CASE("fitting bytes are borrowed and outlive the file object, unfit ones are copied") {
  const std::vector<float> values{1, 2, 3, 4};
  for (const std::size_t remainder : {0U, 4U, 1U, 3U}) {
    INFO(remainder);
    Parameter<float, 1> parameter;
    {
      const Safetensors file =
          parse(SafetensorsBuilder().add("a", "F32", "[4]", values).build(remainder));
      parameter = file.parameter<float, 1>("a", {4});
      const bool borrowed =
          reinterpret_cast<const std::byte*>(parameter.data()) == file.entry("a").bytes.data();
      CHECK(borrowed == (remainder % 4 == 0));
    }
    CHECK(numbers(parameter) == values);
  }
  // A number of one byte before it moves a tensor to an odd address in any file.
  const Safetensors file = parse(SafetensorsBuilder()
                                     .add("a", "U8", "[1]", std::vector<std::uint8_t>{9})
                                     .add("b", "F32", "[4]", values)
                                     .add("c", "BF16", "[1]", std::vector<std::uint16_t>{0x3f80})
                                     .add("d", "F64", "[1]", std::vector<double>{0.1})
                                     .build());
  CHECK(numbers(file.parameter<float, 1>("b", {4})) == values);
  CHECK(file.parameter<float, 1>("c", {1})[0] == 1.0F);
  CHECK(file.parameter<double, 1>("d", {1})[0] == 0.1);
}

TEST_CASE("mapped and read files give the same tensors") {
  const TemporaryFolder folder;
  const Bytes bytes =
      SafetensorsBuilder().add("a", "F32", "[4]", std::vector<float>{1, 2, 3, 4}).build();
  const auto path = folder.write("a.safetensors", bytes);
  for (const FileAccess access : {FileAccess::mapped, FileAccess::read}) {
    CHECK(Safetensors::open(path, access).source() == path.string());
    const auto kept = Safetensors::open(path, access).parameter<float, 1>("a", {4});
    CHECK(numbers(kept) == std::vector<float>{1, 2, 3, 4});

    const auto error = [&](const std::filesystem::path& name) {
      return error_of<CheckpointError>([&] { Safetensors::open(name, access); });
    };
    CHECK_THAT(error(folder.path() / "absent.safetensors"),
               ContainsSubstring("absent.safetensors"));
    CHECK_THAT(error(folder.path()), ContainsSubstring("regular"));
    CHECK_THAT(error(folder.write("empty.safetensors", Bytes{})),
               ContainsSubstring("empty.safetensors: truncated"));
    CHECK_THAT(error(folder.write("cut.safetensors", Bytes(bytes.begin(), bytes.end() - 1))),
               ContainsSubstring("cut.safetensors: tensor \"a\": data_offsets past the end"));
  }
}

TEST_CASE("what is saved is read back, bit for bit") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "saved.safetensors";
  Tensor<float, 2> a(Shape<2>{2, 3});
  for (Index i = 0; i < 6; ++i) a.data()[i] = 0.1F * static_cast<float>(i);
  a(1, 2) = std::numeric_limits<float>::quiet_NaN();
  a(0, 1) = std::numeric_limits<float>::denorm_min();
  Tensor<double, 1> d(Shape<1>{1});
  d[0] = 0.1;
  Tensor<std::int64_t, 1> i(Shape<1>{2});
  i[1] = -5;
  Tensor<float, 3> none(Shape<3>{2, 0, 3});
  Tensor<std::uint8_t, 1> odd(Shape<1>{3});
  odd[2] = 255;
  const std::map<std::string, std::string> metadata{{"config", R"({"d_model": 3})"}, {"ä", "\n"}};
  const auto transposed = View<const float, 2>(a.data(), {3, 2}, {1, 3});
  save_safetensors(
      path,
      {stored_tensor("odd", odd.view()), stored_tensor("a", a.view()),
       stored_tensor("t", transposed), stored_tensor("d", d.view()),
       stored_tensor<bfloat16>("bf16", a.view()), stored_tensor<float16>("f16", a.view()),
       stored_tensor<double>("wide", std::as_const(a).view()), stored_tensor("i", i.view()),
       stored_tensor("none", none.view())},
      metadata);
  const Safetensors file = Safetensors::open(path, FileAccess::mapped);
  CHECK(file.metadata() == metadata);
  CHECK(file.names().size() == 9);
  CHECK(file.entry("bf16").dtype == DType::bf16);
  CHECK(file.entry("f16").dtype == DType::f16);
  CHECK(file.entry("none").shape == std::vector<Index>{2, 0, 3});
  CHECK(file.integers("i")[1] == -5);
  CHECK(file.integers("odd")[2] == 255);
  CHECK(file.parameter<double, 1>("d", {1})[0] == 0.1);
  const auto read = file.parameter<float, 2>("a", {2, 3});
  const auto read_transposed = file.parameter<float, 2>("t", {3, 2});
  const auto bf16 = file.parameter<float, 2>("bf16", {2, 3});
  const auto f16 = file.parameter<float, 2>("f16", {2, 3});
  for (Index row = 0; row < 2; ++row) {
    for (Index column = 0; column < 3; ++column) {
      CHECK(same_bits(read(row, column), a(row, column)));
      CHECK(same_bits(read_transposed(column, row), a(row, column)));
      CHECK(same_bits(bf16(row, column), static_cast<float>(bfloat16(a(row, column)))));
      CHECK(same_bits(f16(row, column), static_cast<float>(float16(a(row, column)))));
    }
  }
  // Every tensor is at home at its address, and the data starts at a cache line.
  const std::byte* data = file.entry("d").bytes.data();
  for (const std::string& name : file.names()) {
    const StoredTensor tensor = file.entry(name);
    data = std::min(data, tensor.bytes.data());
    CHECK((tensor.bytes.size() == 0 || reinterpret_cast<std::uintptr_t>(tensor.bytes.data()) %
                                               static_cast<std::uintptr_t>(size_of(tensor.dtype)) ==
                                           0));
  }
  CHECK(reinterpret_cast<std::uintptr_t>(data) % 64 == 0);

  // Saved again from its own mapping it is the same file.
  std::vector<StoredTensor> again;
  for (const std::string& name : file.names()) again.push_back(file.entry(name));
  const auto read_bytes = [&] {
    std::ifstream stream(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(stream), {});
  };
  save_safetensors(path, again, metadata);
  const std::string first = read_bytes();
  save_safetensors(path, again, metadata);
  CHECK(read_bytes() == first);
  CHECK(Safetensors::open(path).parameter<double, 1>("d", {1})[0] == 0.1);
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

TEST_CASE("what cannot be saved is named, and an old file stays") {
  const TemporaryFolder folder;
  const auto path = folder.write("saved.safetensors", std::string_view("old"));
  Tensor<float, 1> a(Shape<1>{2});
  StoredTensor short_tensor = stored_tensor("short", a.view());
  short_tensor.shape = {3};
  const auto error = [&](const std::filesystem::path& to, std::vector<StoredTensor> tensors,
                         const std::map<std::string, std::string>& metadata = {}) {
    return error_of<CheckpointError>([&] { save_safetensors(to, std::move(tensors), metadata); });
  };
  CHECK_THAT(error(path, {short_tensor}),
             ContainsSubstring("saved.safetensors: tensor \"short\": size does not fit the shape"));
  CHECK_THAT(error(path, {stored_tensor("a", a.view()), stored_tensor("a", a.view())}),
             ContainsSubstring("\"a\": name is taken"));
  CHECK_THAT(error(path, {stored_tensor("__metadata__", a.view())}),
             ContainsSubstring("name is taken"));
  CHECK_THAT(error(path, {stored_tensor("\xff", a.view())}), ContainsSubstring("UTF-8"));
  CHECK_THAT(error(path, {}, {{"k", "\xff"}}), ContainsSubstring("UTF-8"));
  CHECK_THAT(error(folder.path() / "absent" / "a.safetensors", {}),
             ContainsSubstring("cannot be created"));
  std::filesystem::create_directories(folder.path() / "taken" / "inside");
  CHECK_THAT(error(folder.path() / "taken", {}), ContainsSubstring("cannot be replaced"));
  std::ifstream old(path);
  CHECK(std::string(std::istreambuf_iterator<char>(old), {}) == "old");
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 2);
}

Bytes shard(std::string_view name, float value) {
  return SafetensorsBuilder().add(name, "F32", "[1]", std::vector<float>{value}).build();
}

TEST_CASE("a checkpoint is a file, a folder or an index of shards") {
  const TemporaryFolder folder;
  folder.write("single/model.safetensors", shard("a", 1));
  folder.write("many/one.safetensors", shard("a", 2));
  folder.write("many/sub/two.safetensors", shard("b", 3));
  const auto index = folder.write("many/model.safetensors.index.json",
                                  std::string_view(R"({"metadata": {"total_size": 8},
                           "weight_map": {"a": "one.safetensors", "b": "sub/two.safetensors"}})"));
  const auto first = [](const Checkpoint& checkpoint, std::string_view name) {
    return checkpoint.parameter<float, 1>(name, {1})[0];
  };
  CHECK(first(Checkpoint::open(folder.path() / "single"), "a") == 1);
  CHECK(first(Checkpoint::open(folder.path() / "single" / "model.safetensors"), "a") == 1);
  for (const FileAccess access : {FileAccess::mapped, FileAccess::read}) {
    CHECK(first(Checkpoint::open(folder.path() / "many", access), "a") == 2);
    CHECK(first(Checkpoint::open(index, access), "b") == 3);
  }
  const Checkpoint many = Checkpoint::open(index);
  CHECK(many.names() == std::vector<std::string>{"a", "b"});
  CHECK_THAT(error_of<CheckpointError>([&] { many.parameter<float, 1>("b", {2}); }),
             ContainsSubstring("two.safetensors: tensor \"b\": wrong shape"));
  CHECK_THAT(error_of<CheckpointError>([&] { many.entry("c"); }),
             ContainsSubstring("model.safetensors.index.json: tensor \"c\" is missing"));
  CHECK_THAT(error_of<CheckpointError>([&] { Checkpoint::open(folder.path()); }),
             ContainsSubstring("holds neither model.safetensors nor"));
}

TEST_CASE("the parameters of a shard outlive the checkpoint") {
  const TemporaryFolder folder;
  folder.write("model.safetensors", shard("a", 1));
  const auto parameter = Checkpoint::open(folder.path()).parameter<float, 1>("a", {1});
  std::filesystem::remove(folder.path() / "model.safetensors");
  CHECK(parameter[0] == 1);
}

TEST_CASE("an index that does not fit its shards is refused") {
  const TemporaryFolder folder;
  folder.write("folder/one.safetensors", shard("a", 1));
  folder.write("folder/two.safetensors", shard("b", 2));
  folder.write("outside.safetensors", shard("c", 3));
  const auto error = [&](const std::string& weight_map) {
    folder.write("folder/model.safetensors.index.json", R"({"weight_map": )" + weight_map + "}");
    return error_of<CheckpointError>([&] { Checkpoint::open(folder.path() / "folder"); });
  };
  CHECK(error(R"({"a": "one.safetensors", "b": "two.safetensors"})").empty());
  CHECK_THAT(error(R"({"a": "three.safetensors"})"), ContainsSubstring("three.safetensors"));
  CHECK_THAT(error(R"({"a": "two.safetensors", "b": "one.safetensors"})"),
             ContainsSubstring("index.json: tensor \"a\" is in another shard; got "
                               "\"one.safetensors\", expected \"two.safetensors\""));
  CHECK_THAT(error(R"({"a": "one.safetensors", "z": "one.safetensors"})"),
             ContainsSubstring("tensor \"z\" is missing in shard \"one.safetensors\""));
  CHECK_THAT(error(R"({"b": "two.safetensors", "z": "one.safetensors"})"),
             ContainsSubstring("shard \"one.safetensors\" holds tensor \"a\", which weight_map"));
  const std::string outside = (folder.path() / "outside.safetensors").string();
  for (const std::string& file :
       {std::string("../outside.safetensors"), std::string("sub/../../outside.safetensors"),
        outside, std::string(), std::string("sub/"), std::string("one.safetensors\\u0000")}) {
    INFO(file);
    CHECK_THAT(error(R"({"c": ")" + file + "\"}"), ContainsSubstring("leaves the folder"));
  }
  CHECK_THAT(error(R"({"a": 1})"), ContainsSubstring("expected the name of a file"));
  CHECK_THAT(error("[]"), ContainsSubstring("no object \"weight_map\""));
  CHECK_THAT(error(R"({"a": "one.safetensors", "a": "one.safetensors"})"),
             ContainsSubstring("duplicate key \"a\""));
  folder.write("folder/model.safetensors.index.json", std::string_view("[]"));
  CHECK_THROWS_AS(Checkpoint::open(folder.path() / "folder"), CheckpointError);
}

/// Touches every number, as loading would.
std::size_t read_all(const Safetensors& file) {
  std::size_t read = 0;
  for (const std::string& name : file.names()) {
    const StoredTensor tensor = file.entry(name);
    for (const std::byte byte : tensor.bytes.span()) read += byte == std::byte{0};
    const Index size = tensor.bytes.size() / size_of(tensor.dtype);
    StoredTensor flat = tensor;
    flat.shape = {size};
    try {
      read += static_cast<std::size_t>(flat.parameter<double, 1>({size}).size());
      read += static_cast<std::size_t>(flat.parameter<float, 1>({size}).size());
    } catch (const CheckpointError&) {
      ++read;
    }
    try {
      read += static_cast<std::size_t>(file.integers(name).size());
    } catch (const CheckpointError&) {
      ++read;
    }
  }
  return read;
}

TEST_CASE("a damaged file is parsed or refused") {
  const Bytes valid = SafetensorsBuilder()
                          .add("d", "F64", "[2]", std::vector<double>{1, 2})
                          .add("f", "F32", "[1,2]", std::vector<float>{3, 4})
                          .add_text(R"("__metadata__":{"k":"v"})")
                          .add("h", "F16", "[2]", std::vector<std::uint16_t>{5, 6})
                          .add("i", "I64", "[]", std::vector<std::int64_t>{7})
                          .add("z", "BF16", "[0,8]", Bytes{})
                          .build(41);
  constexpr std::string_view telling = "0123456789-.[]{},:\"F ";
  std::mt19937 random(3);
  int parsed = 0, refused = 0;
  for (int round = 0; round < 20'000; ++round) {
    Bytes bytes = valid;
    for (auto edits = 1 + random() % 2; edits > 0 && !bytes.empty(); --edits) {
      const std::size_t at = random() % bytes.size();
      const auto place = bytes.begin() + static_cast<Index>(at);
      switch (random() % 8) {
        case 0:
          bytes.resize(at);
          break;
        case 1:
          bytes.insert(place, static_cast<std::byte>(random()));
          break;
        case 2:
          bytes.erase(place);
          break;
        case 3:
          bytes[random() % std::min<std::size_t>(8, bytes.size())] =
              static_cast<std::byte>(random());
          break;
        case 4:
          *place ^= static_cast<std::byte>(1U << (random() % 8));
          break;
        default:
          *place = static_cast<std::byte>(telling[random() % telling.size()]);
      }
    }
    try {
      read_all(parse(bytes));
      ++parsed;
    } catch (const Error&) {
      ++refused;
    }
  }
  CHECK(parsed > 500);
  CHECK(refused > 5000);
}

}  // namespace
}  // namespace seqmix
