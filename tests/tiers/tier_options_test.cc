#include "tiers/tier_options.h"

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr size_t kBlock = size_t{64} << 10;

TierManagerOptions Good() {
  TierManagerOptions options;
  options.block_bytes = kBlock;
  options.hbm_bytes = 4 * kBlock;
  options.dram_bytes = 8 * kBlock;
  options.nvme_bytes = 256 * kBlock;
  options.nvme_dir = "unused";
  return options;
}

TEST(TierManagerOptions, AcceptsEveryCombinationOfTiersButNone) {
  for (int tiers = 0; tiers < 8; ++tiers) {
    TierManagerOptions options = Good();
    if ((tiers & 1) == 0) options.hbm_bytes = 0;
    if ((tiers & 2) == 0) options.dram_bytes = 0;
    if ((tiers & 4) == 0) options.nvme_bytes = 0;
    EXPECT_EQ(options.Validate().ok(), tiers != 0) << tiers << ": " << options.Validate();
  }
}

TEST(TierManagerOptions, AcceptsTheSmallestOfEverything) {
  TierManagerOptions options;
  options.block_bytes = 4096;
  options.hbm_bytes = 4096;
  EXPECT_TRUE(options.Validate().ok()) << options.Validate();
  options.hbm_bytes = 0;
  options.dram_bytes = 4097;
  EXPECT_TRUE(options.Validate().ok()) << options.Validate();
}

struct BadField {
  std::string field;
  std::string value;  // as the message shows it
  std::function<void(TierManagerOptions&)> spoil;
};

TEST(TierManagerOptions, NamesTheOffendingFieldAndItsValue) {
  const std::vector<BadField> fields = {
      {"block_bytes", "0", [](auto& o) { o.block_bytes = 0; }},
      {"block_bytes", "4095", [](auto& o) { o.block_bytes = 4095; }},
      {"block_bytes", "6144", [](auto& o) { o.block_bytes = 6144; }},
      {"block_bytes", "2147483648", [](auto& o) { o.block_bytes = size_t{2} << 30; }},
      {"hbm_bytes", "65535", [](auto& o) { o.hbm_bytes = kBlock - 1; }},
      {"dram_bytes", "1", [](auto& o) { o.dram_bytes = 1; }},
      {"hbm_bytes", "18446744073709551615", [](auto& o) { o.hbm_bytes = UINT64_MAX; }},
      {"dram_bytes", "18446744073709551615", [](auto& o) { o.dram_bytes = UINT64_MAX; }},
      {"nvme_bytes", "65536", [](auto& o) { o.nvme_bytes = kBlock; }},
      {"nvme_bytes", "18446744073709551615", [](auto& o) { o.nvme_bytes = UINT64_MAX; }},
      {"io_depth", "0", [](auto& o) { o.io_depth = 0; }},
      {"io_depth", "4097", [](auto& o) { o.io_depth = 4097; }},
  };
  for (const BadField& bad : fields) {
    TierManagerOptions options = Good();
    bad.spoil(options);
    const absl::Status status = options.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.field << " " << bad.value;
    EXPECT_TRUE(absl::StartsWith(status.message(), bad.field)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), bad.value)) << status;
  }
}

TEST(TierManagerOptions, NamesAllTiersWhenEveryOneIsAbsent) {
  TierManagerOptions options;
  const absl::Status status = options.Validate();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  for (const char* field : {"hbm_bytes", "dram_bytes", "nvme_bytes"}) {
    EXPECT_TRUE(absl::StrContains(status.message(), field)) << status;
  }
}

TEST(TierManagerOptions, NamesAReadThatWouldBeJoinedTooFar) {
  TierManagerOptions options = Good();
  options.nvme_bytes = uint64_t{1} << 30;
  options.coalesce_gap_bytes = DeviceProfile::kMaxGapBytes;
  options.coalesce_read_bytes = uint64_t{64} << 20;
  EXPECT_TRUE(options.Validate().ok()) << options.Validate();
  ++options.coalesce_gap_bytes;
  EXPECT_THAT(options.Validate().ToString(), testing::HasSubstr("coalesce_gap_bytes is 131073"));
  options.coalesce_gap_bytes = 0;
  options.coalesce_read_bytes = uint64_t{1} << 56;
  EXPECT_THAT(options.Validate().ToString(), testing::HasSubstr("coalesce_read_bytes is 72057594"));
}

DeviceProfile::Row RandomRead(uint64_t block_bytes, size_t depth, double bytes_per_second) {
  DeviceProfile::Row row;
  row.op = "randread";
  row.block_bytes = block_bytes;
  row.depth = depth;
  row.bytes_per_second = bytes_per_second;
  return row;
}

TEST(TierManagerOptions, WithoutMeasurementsAProfileChangesNothing) {
  TierManagerOptions options = Good();
  options.FollowProfile(DeviceProfile());
  EXPECT_EQ(options.io_depth, TierManagerOptions().io_depth);
  EXPECT_EQ(options.coalesce_gap_bytes, TierManagerOptions().coalesce_gap_bytes);
  EXPECT_EQ(options.coalesce_read_bytes, TierManagerOptions().coalesce_read_bytes);
}

TEST(TierManagerOptions, FollowsWhatWasMeasuredOfTheDisk) {
  // A request costs 20 us and then 1 ns a byte.
  DeviceProfile profile;
  profile.rows = {RandomRead(4096, 128, 4096 / 24.096e-6), RandomRead(kBlock, 8, kBlock / 100e-6),
                  RandomRead(kBlock, 32, kBlock / 85.536e-6),
                  RandomRead(2 * kBlock, 32, 2 * kBlock / 151.072e-6)};
  TierManagerOptions options = Good();
  options.FollowProfile(profile);
  EXPECT_EQ(options.io_depth, 32);
  EXPECT_EQ(options.coalesce_gap_bytes, 16384);
  EXPECT_EQ(options.coalesce_read_bytes, 2 * kBlock);

  options.block_bytes = 4096;
  options.FollowProfile(profile);
  EXPECT_EQ(options.io_depth, 128) << "the depth depends on the size of a block";
}

TEST(TierManagerOptions, StaysValidWhateverAProfileSays) {
  for (size_t depth : {size_t{1}, size_t{100'000}}) {
    for (uint64_t bytes : {uint64_t{1}, UINT64_MAX}) {
      DeviceProfile profile;
      profile.rows = {RandomRead(4096, depth, 1), RandomRead(bytes, depth, 1e12)};
      TierManagerOptions options = Good();
      options.FollowProfile(profile);
      EXPECT_TRUE(options.Validate().ok()) << options.Validate();
      EXPECT_GE(options.io_depth, 16);
      EXPECT_LE(options.io_depth, 256);
    }
  }
}

}  // namespace
}  // namespace terrace
