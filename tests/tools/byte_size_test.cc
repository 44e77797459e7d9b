#include "tools/byte_size.h"

#include <cstdint>
#include <string>
#include <utility>

#include "CLI/CLI.hpp"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kGiB = uint64_t{1} << 30;

TEST(ParseByteSizeTest, ReadsUnits) {
  const std::pair<const char*, uint64_t> cases[] = {
      {"0", 0},
      {"4096", 4096},
      {"12B", 12},
      {"128k", 128 << 10},
      {"128K", 128 << 10},
      {"128Ki", 128 << 10},
      {"128KiB", 128 << 10},
      {"128kib", 128 << 10},
      {"128KB", 128'000},
      {"64MiB", 64 * kMiB},
      {"64 MiB", 64 * kMiB},
      {" 64m ", 64 * kMiB},
      {"5MB", 5'000'000},
      {"2GiB", 2 * kGiB},
      {"2gb", 2'000'000'000},
      {"1T", uint64_t{1} << 40},
      {"1TB", 1'000'000'000'000},
      {"1.5GiB", 3 * kGiB / 2},
      {"1.50 GiB", 3 * kGiB / 2},
      {"0.25k", 256},
      {"1.000", 1},
      {"007k", 7 << 10},
      {"0.0009765625k", 1},
      {"2.5KB", 2500},
      {"18446744073709551615", UINT64_MAX},
      {"16777215T", uint64_t{16777215} << 40},
  };
  for (const auto& [text, bytes] : cases) {
    const absl::StatusOr<uint64_t> parsed = ParseByteSize(text);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, bytes) << text;
  }
}

TEST(ParseByteSizeTest, RefusesWhatIsNoSize) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "is not a byte size"},
      {" ", "is not a byte size"},
      {"k", "is not a byte size"},
      {"abc", "is not a byte size"},
      {"+1", "is not a byte size"},
      {"1x", "is not a byte size"},
      {"1kk", "is not a byte size"},
      {"1bk", "is not a byte size"},
      {"1.k", "is not a byte size"},
      {".5k", "is not a byte size"},
      {"1 2", "is not a byte size"},
      {"1e3", "is not a byte size"},
      {"0x10", "is not a byte size"},
      {"1,5k", "is not a byte size"},
      {"1PiB", "is not a byte size"},
      {"-1", "is negative"},
      {"-1MiB", "is negative"},
      {"1.5", "is not a whole number of bytes"},
      {"0.3k", "is not a whole number of bytes"},
      {"0.0000000000000000001T", "is not a whole number of bytes"},
      {"18446744073709551616", "is too large; the limit is 18446744073709551615 bytes"},
      {"16777216T", "is too large"},
      {"99999999999999999999999999k", "is too large"},
  };
  for (const auto& [text, what] : cases) {
    const absl::Status status = ParseByteSize(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(std::string("\"") + text + "\""), HasSubstr(what)));
  }
}

TEST(FormatByteSizeTest, TakesTheLargestUnit) {
  EXPECT_EQ(FormatByteSize(0), "0 B");
  EXPECT_EQ(FormatByteSize(512), "512 B");
  EXPECT_EQ(FormatByteSize(1023), "1023 B");
  EXPECT_EQ(FormatByteSize(1024), "1 KiB");
  EXPECT_EQ(FormatByteSize(64 * kMiB), "64 MiB");
  EXPECT_EQ(FormatByteSize(3 * kGiB / 2), "1.50 GiB");
  EXPECT_EQ(FormatByteSize(kMiB - 1), "1.00 MiB");
  EXPECT_EQ(FormatByteSize(uint64_t{2048} << 40), "2048 TiB");
}

TEST(FormatByteSizeTest, WholeSizesSurviveParsing) {
  for (int shift = 0; shift < 64; ++shift) {
    const uint64_t bytes = uint64_t{1} << shift;
    EXPECT_EQ(ParseByteSize(FormatByteSize(bytes)).value_or(0), bytes);
  }
}

class ByteSizeOptionTest : public ::testing::Test {
 protected:
  ByteSizeOptionTest() { AddByteSizeOption(app_, "--dram", bytes_, "the DRAM tier"); }

  CLI::App app_;
  uint64_t bytes_ = 64 * kMiB;
};

TEST_F(ByteSizeOptionTest, SetsTheTarget) {
  app_.parse("--dram 1.5GiB");
  EXPECT_EQ(bytes_, 3 * kGiB / 2);
}

TEST_F(ByteSizeOptionTest, KeepsTheDefault) {
  app_.parse("");
  EXPECT_EQ(bytes_, 64 * kMiB);
  EXPECT_THAT(app_.help(), HasSubstr("--dram SIZE=64 MiB"));
}

TEST_F(ByteSizeOptionTest, NamesTheFlagOfABadSize) {
  try {
    app_.parse("--dram 12q");
    FAIL() << "12q was accepted";
  } catch (const CLI::ValidationError& error) {
    EXPECT_THAT(std::string(error.what()),
                AllOf(HasSubstr("--dram"), HasSubstr("\"12q\" is not a byte size")));
  }
  EXPECT_THROW(app_.parse("--dram=-1"), CLI::ParseError);
}

}  // namespace
}  // namespace terrace
