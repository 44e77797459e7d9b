#include "tools/engine/safetensors.h"

#include <sys/stat.h>

#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"
#include "tests/tools/engine/random_model.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

void ExpectError(const absl::Status& status, absl::StatusCode code,
                 const std::vector<std::string>& parts) {
  EXPECT_EQ(status.code(), code) << status;
  for (const std::string& part : parts) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }
  EXPECT_LT(status.message().size(), 1000u) << "a sentence, not a flood";
}

// --- Headers ---

struct BadHeader {
  std::string name;
  std::string header;
  std::vector<std::string> parts;  // of the message
};

// The data behind every header here.
constexpr uint64_t kDataBytes = 24;

class BadHeaderTest : public ::testing::TestWithParam<BadHeader> {};

TEST_P(BadHeaderTest, IsRefusedWithTheReason) {
  const auto tensors = ParseSafetensorsHeader(GetParam().header, kDataBytes);
  ExpectError(tensors.status(), absl::StatusCode::kInvalidArgument, GetParam().parts);
}

// A header of one good tensor, "a", and another, "b", as given.
std::string WithB(const std::string& b) {
  return absl::StrCat(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":)", b, "}");
}

const BadHeader kBadHeaders[] = {
    {"Empty", "", {"does not begin with {"}},
    {"NoJson", "{hello", {"not valid JSON at its byte 2"}},
    {"List", "[1]", {"does not begin with {"}},
    {"Truncated", R"({"a":{"dtype":"F32")", {"not valid JSON"}},
    {"TextBehind", WithB("{}") + "}", {"\"b\"", "dtype: is missing"}},
    {"NotUtf8", "{\"\xff\":1}", {"not valid JSON"}},
    {"TensorIsNumber", WithB("1"), {"\"b\"", "is 1, expected an object"}},
    {"TensorIsNull", WithB("null"), {"\"b\"", "is null"}},
    {"TensorIsList", WithB("[]"), {"\"b\"", "is a list"}},
    {"NoShape", WithB(R"({"dtype":"F32","data_offsets":[8,24]})"), {"\"b\"", "shape: is missing"}},
    {"NoOffsets", WithB(R"({"dtype":"F32","shape":[4]})"), {"\"b\"", "data_offsets: is missing"}},
    {"UnknownField",
     WithB(R"({"dtype":"F32","shape":[4],"data_offsets":[8,24],"stride":1})"),
     {"\"b\"", "unknown field \"stride\""}},
    {"FieldTwice",
     WithB(R"({"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[8,24]})"),
     {"\"b\"", "dtype: appears twice"}},
    {"DtypeIsNumber",
     WithB(R"({"dtype":3,"shape":[4],"data_offsets":[8,24]})"),
     {"\"b\"", "dtype"}},
    {"ShapeIsText",
     WithB(R"({"dtype":"F32","shape":"4","data_offsets":[8,24]})"),
     {"\"b\"", "shape"}},
    {"ShapeIsNested",
     WithB(R"({"dtype":"F32","shape":[[4]],"data_offsets":[8,24]})"),
     {"\"b\"", "shape"}},
    {"NegativeSize",
     WithB(R"({"dtype":"F32","shape":[-4],"data_offsets":[8,24]})"),
     {"\"b\"", "shape: -4 is not an unsigned integer"}},
    {"FractionalSize",
     WithB(R"({"dtype":"F32","shape":[4.0],"data_offsets":[8,24]})"),
     {"\"b\"", "4.0"}},
    {"HugeNumber",
     WithB(R"({"dtype":"F32","shape":[99999999999999999999],"data_offsets":[8,24]})"),
     {"\"b\"", "shape"}},
    {"NegativeOffset",
     WithB(R"({"dtype":"F32","shape":[4],"data_offsets":[-8,24]})"),
     {"\"b\"", "-8"}},
    {"OneOffset",
     WithB(R"({"dtype":"F32","shape":[4],"data_offsets":[8]})"),
     {"\"b\"", "1 numbers"}},
    {"ThreeOffsets",
     WithB(R"({"dtype":"F32","shape":[4],"data_offsets":[8,24,9]})"),
     {"\"b\"", "3 numbers"}},
    {"BeginAfterEnd",
     WithB(R"({"dtype":"F32","shape":[4],"data_offsets":[24,8]})"),
     {"\"b\"", "begin 24 is after end 8"}},
    {"EndOutsideOfFile",
     WithB(R"({"dtype":"F32","shape":[5],"data_offsets":[8,28]})"),
     {"\"b\"", "ends at byte 28", "only 24"}},
    {"FarOutsideOfFile",
     WithB(
         R"({"dtype":"U8","shape":[],"data_offsets":[18446744073709551614,18446744073709551615]})"),
     {"\"b\"", "18446744073709551615"}},
    {"SizeIsNotThatOfShape",
     WithB(R"({"dtype":"F32","shape":[3],"data_offsets":[8,24]})"),
     {"\"b\"", "16 bytes", "3 elements of F32", "[3]"}},
    {"SizeIsNotThatOfDtype",
     WithB(R"({"dtype":"F16","shape":[4],"data_offsets":[8,24]})"),
     {"\"b\"", "16 bytes", "F16"}},
    {"ProductOverflows",
     WithB(R"({"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[8,24]})"),
     {"\"b\"", "more elements than 64 bits count"}},
    {"BytesOverflow",
     WithB(R"({"dtype":"F32","shape":[4611686018427387908],"data_offsets":[8,24]})"),
     {"\"b\"", "4611686018427387908"}},
    {"Overlap",
     R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},)"
     R"("b":{"dtype":"F32","shape":[3],"data_offsets":[12,24]}})",
     {"\"b\"", "begins at byte 12", "overlapping"}},
    {"SamePlace",
     R"({"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},)"
     R"("b":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}})",
     {"\"b\"", "overlapping"}},
    {"Hole",
     WithB(R"({"dtype":"F32","shape":[3],"data_offsets":[12,24]})"),
     {"\"b\"", "begins at byte 12", "hole"}},
    {"HoleAtTheEnd",
     WithB(R"({"dtype":"F32","shape":[3],"data_offsets":[8,20]})"),
     {"end at byte 20", "24"}},
    {"NoTensors", "{}", {"end at byte 0", "24"}},
    {"DuplicateName",
     R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
     R"("a":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}})",
     {"\"a\"", "appears twice"}},
    {"MetadataIsText", R"({"__metadata__":"pt"})", {"__metadata__", "text"}},
    {"MetadataHasNumber", R"({"__metadata__":{"a":1}})", {"__metadata__", "1"}},
    {"MetadataHasObject", R"({"__metadata__":{"a":{}}})", {"__metadata__", "object"}},
    {"LongName", "{\"" + std::string(5000, 'x') + "\":1}", {"xxx..."}},
    {"Deep", "{\"a\":" + std::string(100'000, '['), {"\"a\"", "list"}},
};

INSTANTIATE_TEST_SUITE_P(Headers, BadHeaderTest, ::testing::ValuesIn(kBadHeaders),
                         [](const auto& info) { return info.param.name; });

TEST(SafetensorsHeaderTest, ListsTensorsInTheOrderOfTheirBytes) {
  const auto tensors = ParseSafetensorsHeader(
      R"({"__metadata__":{"format":"pt"},)"
      R"("late":{"dtype":"BF16","shape":[2,3],"data_offsets":[12,24]},)"
      R"("empty":{"dtype":"F32","shape":[0,18446744073709551615,2],"data_offsets":[12,12]},)"
      R"("scalar":{"dtype":"F32","shape":[],"data_offsets":[8,12]},)"
      R"("early":{"data_offsets":[0,8],"dtype":"I64","shape":[1]}}   )",
      kDataBytes);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 4u);
  EXPECT_EQ((*tensors)[0].name, "early");
  EXPECT_EQ((*tensors)[1].name, "scalar");
  EXPECT_EQ((*tensors)[1].elements, 1u);
  EXPECT_EQ((*tensors)[2].name, "empty");
  EXPECT_EQ((*tensors)[2].elements, 0u);
  EXPECT_EQ((*tensors)[3].name, "late");
  EXPECT_EQ((*tensors)[3].shape, (std::vector<uint64_t>{2, 3}));
  EXPECT_EQ((*tensors)[3].offset, 12u);
  EXPECT_EQ((*tensors)[3].bytes, 12u);
}

// --- Files ---

class SafetensorsFileTest : public ::testing::Test {
 protected:
  // A file with this length field, header and number of bytes of data.
  std::string Write(uint64_t length, const std::string& header, size_t data_bytes) const {
    std::string bytes(sizeof(length), '\0');
    std::memcpy(bytes.data(), &length, sizeof(length));
    return WriteBytes(bytes + header + std::string(data_bytes, 'x'));
  }
  std::string WriteBytes(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary) << bytes;
    return path_;
  }
  void ExpectOpenFails(const std::string& path, absl::StatusCode code, const std::string& part) {
    ExpectError(SafetensorsFile::Open(path).status(), code, {path, part});
  }

  const TempDir dir_;
  const std::string path_ = dir_.Join("model.safetensors");
  const std::string header_ = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
};

TEST_F(SafetensorsFileTest, FilesThatAreNoneAreRefused) {
  constexpr auto kBad = absl::StatusCode::kInvalidArgument;
  ExpectOpenFails(dir_.Join("absent"), absl::StatusCode::kNotFound, "cannot open");
  ExpectOpenFails(dir_.path(), kBad, "is a directory");
  ExpectOpenFails("/dev/null", kBad, "not a regular file");
  ASSERT_EQ(mkfifo(dir_.Join("pipe").c_str(), 0600), 0);
  ExpectOpenFails(dir_.Join("pipe"), kBad, "not a regular file");
  ExpectOpenFails(WriteBytes(""), kBad, "has 0 bytes");
  ExpectOpenFails(WriteBytes("1234567"), kBad, "has 7 bytes");
  ExpectOpenFails(Write(0, "", 0), kBad, "does not begin with {");
}

TEST_F(SafetensorsFileTest, HeadersThatClaimTooMuchAreRefusedBeforeTheyAreRead) {
  constexpr auto kBad = absl::StatusCode::kInvalidArgument;
  ExpectOpenFails(Write(header_.size() + 9, header_, 8), kBad, "truncated?");
  ExpectOpenFails(Write(UINT64_MAX, header_, 8), kBad, "claims a header of 18446744073709551615");
  ExpectOpenFails(Write(UINT64_MAX - 7, header_, 8), kBad, "more than the limit");
  ExpectOpenFails(Write((100u << 20) + 1, header_, 8), kBad, "more than the limit of 104857600");
}

TEST_F(SafetensorsFileTest, TruncatedDataIsNamedWithItsTensor) {
  ExpectError(SafetensorsFile::Open(Write(header_.size(), header_, 7)).status(),
              absl::StatusCode::kInvalidArgument, {path_, "\"a\"", "only 7"});
}

TEST_F(SafetensorsFileTest, AFileThatShrinksWhileOpenIsDataLoss) {
  const auto file = SafetensorsFile::Open(Write(header_.size(), header_, 8));
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(truncate(path_.c_str(), static_cast<off_t>(8 + header_.size() + 4)), 0);
  std::vector<float> values(2);
  ExpectError(file->Read(*file->Find("a"), absl::MakeSpan(values)), absl::StatusCode::kDataLoss,
              {path_, "\"a\""});
}

TEST_F(SafetensorsFileTest, OtherDtypesAreListedButNotLoaded) {
  const std::string header = R"({"i":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},)"
                             R"("new":{"dtype":"F4","shape":[7],"data_offsets":[8,12]}})";
  const auto file = SafetensorsFile::Open(Write(header.size(), header, 12));
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<float> values(1);
  ExpectError(file->Read(*file->Find("i"), absl::MakeSpan(values)),
              absl::StatusCode::kInvalidArgument, {path_, "\"i\"", "I64"});
  ASSERT_NE(file->Find("new"), nullptr);
  EXPECT_EQ(file->Find("new")->bytes, 4u);
  EXPECT_EQ(file->Find("absent"), nullptr);
}

TEST_F(SafetensorsFileTest, WhatIsWrittenIsRead) {
  std::mt19937_64 random(1);
  // More elements than are converted at a time.
  const std::vector<float> large = RandomFloats(600'000, 1, random);
  const std::vector<float> small = {1, -2.5, 65504, 0};
  const std::vector<TensorToWrite> tensors = {{"z.large", KvDtype::kFloat32, {600, 1000}, large},
                                              {"half", KvDtype::kFloat16, {2, 2}, small},
                                              {"brain", KvDtype::kBfloat16, {4}, small},
                                              {"empty", KvDtype::kFloat32, {0}, {}}};
  ASSERT_TRUE(WriteSafetensors(path_, tensors).ok());
  const auto file = SafetensorsFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->tensors().size(), 4u);
  const auto read = [&](const char* name) {
    const TensorInfo& tensor = *file->Find(name);
    std::vector<float> values(tensor.elements);
    EXPECT_TRUE(file->Read(tensor, absl::MakeSpan(values)).ok());
    return values;
  };
  EXPECT_EQ(read("z.large"), large);
  EXPECT_EQ(read("half"), small);
  EXPECT_EQ(read("brain"), (std::vector<float>{1, -2.5, 65536, 0}));
  EXPECT_EQ(read("empty"), std::vector<float>());
  EXPECT_EQ(file->Find("half")->dtype, "F16");
  EXPECT_EQ(file->Find("half")->shape, (std::vector<uint64_t>{2, 2}));
}

TEST_F(SafetensorsFileTest, WritingSaysWhatFailed) {
  ExpectError(WriteSafetensors(dir_.Join("no/such/folder"), {}), absl::StatusCode::kNotFound,
              {"no/such/folder", "cannot open to write"});
  const std::vector<float> values(4096);
  ExpectError(WriteSafetensors("/dev/full", {{"a", KvDtype::kFloat32, {4096}, values}}),
              absl::StatusCode::kResourceExhausted, {"/dev/full", "cannot write"});
}

}  // namespace
}  // namespace terrace
