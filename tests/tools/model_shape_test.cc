#include "tools/model_shape.h"

#include <cstdint>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

KvShape Shape(absl::string_view name) { return FindKvShape(name).value(); }

TEST(KvShapeTest, BlockBytesOfKnownModels) {
  EXPECT_EQ(BytesPerBlock(Shape("llama-3.1-8b"), 512), uint64_t{64} << 20);
  EXPECT_EQ(BytesPerBlock(Shape("llama-3.1-70b"), 512), uint64_t{160} << 20);
  EXPECT_EQ(BytesPerBlock(Shape("mistral-7b"), 128), uint64_t{16} << 20);
  EXPECT_EQ(BytesPerBlock(Shape("qwen2.5-7b"), 512), uint64_t{28} << 20);
}

TEST(KvShapeTest, BlockBytesOfHugeBlocksDoNotWrap) {
  EXPECT_EQ(BytesPerBlock(Shape("llama-3.1-70b"), UINT32_MAX), uint64_t{327680} * UINT32_MAX);
}

TEST(KvShapeTest, AnUnknownNameListsTheKnown) {
  const absl::Status status = FindKvShape("gpt-9").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("\"gpt-9\""), HasSubstr("llama-3.1-8b, llama-3.1-70b")));
}

TEST(ScaleTest, ReadsFractions) {
  EXPECT_EQ(ParseScale("1")->denominator, 1);
  EXPECT_EQ(ParseScale("1/1024")->numerator, 1);
  EXPECT_EQ(ParseScale("1/1024")->denominator, 1024);
  EXPECT_EQ(ParseScale("3/4")->numerator, 3);
  EXPECT_EQ(FormatScale(*ParseScale("3/4")), "3/4");
  EXPECT_EQ(FormatScale(*ParseScale("1")), "1");
}

TEST(ScaleTest, RefusesTheRest) {
  for (absl::string_view text :
       {"", "/", "1/", "/2", "1/2/3", "0", "0/5", "1/0", "2", "3/2", "-1/2", "1/-2", "0.5", "1 /2",
        "+1/2", "a", "1/99999999999999999999999"}) {
    const absl::Status status = ParseScale(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("not a scale")) << text;
  }
}

TEST(ScaleTest, ScaledBlocksAreWholePages) {
  const KvShape shape = Shape("llama-3.1-8b");
  EXPECT_EQ(ScaledBytesPerBlock(shape, 512, {1, 1024}).value(), 64 << 10);
  EXPECT_EQ(ScaledBytesPerBlock(shape, 512, {1, 1}).value(), 64 << 20);
  EXPECT_EQ(ScaledBytesPerBlock(shape, 512, {3, 16384}).value(), 12 << 10);
  EXPECT_EQ(ScaledBytesPerBlock(Shape("qwen2.5-7b"), 512, {1, 7}).value(), 4 << 20);
}

TEST(ScaleTest, NamesTheProductThatIsNoWholePages) {
  const KvShape shape = Shape("llama-3.1-8b");
  for (const Scale& scale : {Scale{1, 3}, Scale{1, 32768}, Scale{1, UINT64_MAX}, Scale{3, 32768}}) {
    const absl::Status status = ScaledBytesPerBlock(shape, 512, scale).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("67108864 bytes (llama-3.1-8b, 512 tokens a block)"),
                      HasSubstr("not a positive multiple of 4096")));
  }
  EXPECT_FALSE(ScaledBytesPerBlock(shape, 0, {1, 1}).ok());
  EXPECT_FALSE(ScaledBytesPerBlock(shape, 512, {UINT64_MAX, UINT64_MAX}).ok());
}

}  // namespace
}  // namespace terrace
