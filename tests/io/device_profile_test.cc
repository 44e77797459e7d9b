#include "io/device_profile.h"

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kKiB = 1024;

DeviceProfile::Row Read(uint64_t block_bytes, size_t depth, double bytes_per_second) {
  DeviceProfile::Row row;
  row.op = "randread";
  row.block_bytes = block_bytes;
  row.depth = depth;
  row.bytes_per_second = bytes_per_second;
  row.iops = bytes_per_second / static_cast<double>(block_bytes);
  row.p50_us = 10.5;
  row.p99_us = 20.25;
  row.p999_us = 40;
  return row;
}

// A device on which a request costs `seconds` and then `rate` bytes a second.
DeviceProfile Linear(double seconds, double rate) {
  DeviceProfile profile;
  for (uint64_t block : {4 * kKiB, 32 * kKiB, 128 * kKiB, 1024 * kKiB}) {
    const auto bytes = static_cast<double>(block);
    profile.rows.push_back(Read(block, 1, bytes / (seconds + bytes / rate) / 4));
    profile.rows.push_back(Read(block, 8, bytes / (seconds + bytes / rate)));
    profile.rows.push_back(Read(block, 32, bytes / (seconds + bytes / rate) * 1.01));
  }
  return profile;
}

TEST(DeviceProfileTest, UnmeasuredDeviceGetsDefaults) {
  const DeviceProfile profile;
  EXPECT_EQ(profile.CoalescingGapBytes(), DeviceProfile::kDefaultGapBytes);
  EXPECT_EQ(profile.AdvisedDepth(4096), DeviceProfile::kDefaultDepth);
  EXPECT_EQ(profile.AdvisedRequestBytes(), DeviceProfile::kDefaultRequestBytes);
  EXPECT_EQ(profile.BestReadBytesPerSecond(), 0);
}

TEST(DeviceProfileTest, GapIsWhatARequestCostsInBytes) {
  // 20 us at 2 GB/s are 40,000 bytes: nine pages and a bit.
  EXPECT_EQ(Linear(20e-6, 2e9).CoalescingGapBytes(), 9 * 4096);
  EXPECT_EQ(Linear(0, 2e9).CoalescingGapBytes(), 0);
  EXPECT_EQ(Linear(10e-3, 2e9).CoalescingGapBytes(), DeviceProfile::kMaxGapBytes);
}

TEST(DeviceProfileTest, OneBlockSizeFitsNoLine) {
  DeviceProfile profile;
  profile.rows = {Read(4096, 1, 1e8), Read(4096, 8, 4e8)};
  EXPECT_EQ(profile.CoalescingGapBytes(), DeviceProfile::kDefaultGapBytes);
}

TEST(DeviceProfileTest, DepthIsTheSmallestThatIsGoodEnough) {
  const DeviceProfile profile = Linear(20e-6, 2e9);
  EXPECT_EQ(profile.AdvisedDepth(4096), 8);
  EXPECT_EQ(profile.AdvisedDepth(64 << 20), 8) << "the nearest size measured";
}

TEST(DeviceProfileTest, WritesSayNothingAboutReads) {
  DeviceProfile profile;
  profile.rows = {Read(4096, 4, 1e9), Read(65536, 2, 9e9)};
  for (DeviceProfile::Row& row : profile.rows) row.op = "randwrite";
  EXPECT_EQ(profile.AdvisedDepth(4096), DeviceProfile::kDefaultDepth);
  EXPECT_EQ(profile.CoalescingGapBytes(), DeviceProfile::kDefaultGapBytes);
}

TEST(DeviceProfileTest, RequestSizeIsTheSmallestThatIsGoodEnough) {
  DeviceProfile profile;
  profile.rows = {Read(4096, 64, 1e9), Read(32768, 64, 1.85e9), Read(1 << 20, 8, 2e9)};
  EXPECT_EQ(profile.AdvisedRequestBytes(), 32768);
}

TEST(DeviceProfileTest, FileKeepsEveryField) {
  const TempDir dir;
  DeviceProfile written = Linear(20e-6, 2e9);
  written.device = "disk \"one\"";
  ASSERT_TRUE(WriteDeviceProfile(written, dir.Join("profile.json")).ok());
  ASSERT_TRUE(WriteDeviceProfile(written, dir.Join("profile.json")).ok()) << "replaces";
  const auto read = ReadDeviceProfile(dir.Join("profile.json"));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->device, written.device);
  ASSERT_EQ(read->rows.size(), written.rows.size());
  for (size_t i = 0; i < read->rows.size(); ++i) {
    EXPECT_EQ(read->rows[i].op, written.rows[i].op);
    EXPECT_EQ(read->rows[i].block_bytes, written.rows[i].block_bytes);
    EXPECT_EQ(read->rows[i].depth, written.rows[i].depth);
    EXPECT_EQ(read->rows[i].bytes_per_second, written.rows[i].bytes_per_second);
    EXPECT_EQ(read->rows[i].iops, written.rows[i].iops);
    EXPECT_EQ(read->rows[i].p50_us, written.rows[i].p50_us);
    EXPECT_EQ(read->rows[i].p99_us, written.rows[i].p99_us);
    EXPECT_EQ(read->rows[i].p999_us, written.rows[i].p999_us);
  }
  const auto files = std::filesystem::directory_iterator(dir.path());
  EXPECT_EQ(std::distance(begin(files), end(files)), 1) << "no temporary file is left";
}

TEST(DeviceProfileTest, BadFileIsNamedWithItsField) {
  const TempDir dir;
  const std::string path = dir.Join("bad.json");
  const std::string row =
      R"({"op": "randread", "block_bytes": 4096, "depth": 0, "bytes_per_second": 1, "iops": 1})";
  const std::pair<std::string, std::string> cases[] = {
      {"", "is not JSON"},
      {"[]", "is not JSON"},
      {"{}", "version"},
      {R"({"version": 2, "device": "d", "rows": []})", "version"},
      {R"({"version": 1, "rows": []})", "device"},
      {R"({"version": 1, "device": "d"})", "rows"},
      {R"({"version": 1, "device": "d", "rows": [7]})", "rows[0]"},
      {R"({"version": 1, "device": "d", "rows": [)" + row + "]}", "rows[0].depth"},
  };
  for (const auto& [content, field] : cases) {
    std::ofstream(path, std::ios::trunc) << content;
    const auto read = ReadDeviceProfile(path);
    EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument) << content;
    EXPECT_THAT(read.status().message(), HasSubstr(path));
    EXPECT_THAT(read.status().message(), HasSubstr(field));
  }
}

TEST(DeviceProfileTest, PathsThatCannotBeUsedAreNamed) {
  const TempDir dir;
  const std::string path = dir.Join("no/profile.json");
  EXPECT_EQ(ReadDeviceProfile(path).status().code(), absl::StatusCode::kNotFound);
  const absl::Status status = WriteDeviceProfile({}, path);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr(path));
}

}  // namespace
}  // namespace terrace
