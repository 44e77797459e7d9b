#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/aligned_buffer.h"
#include "io/block_device.h"
#include "tests/support/temp_dir.h"
#include "tests/support/transfer.h"

// What is special about a device of several files; the conformance suite has the rest.

namespace terrace {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

constexpr uint64_t kStripeBytes = 2 * kPageBytes;
constexpr size_t kFiles = 3;
constexpr uint64_t kFileBytes = 4 * kStripeBytes;

TEST(StripeLayout, EveryByteHasOnePlaceAndStripesTakeTurns) {
  const StripeLayout layout = {.file_count = kFiles, .stripe_bytes = kStripeBytes};
  for (uint64_t page = 0; page < kFiles * kFileBytes / kPageBytes; ++page) {
    const uint64_t stripe = page / 2;
    const StripeLayout::Extent extent = layout.Locate(page * kPageBytes);
    EXPECT_EQ(extent.file, stripe % kFiles);
    EXPECT_EQ(extent.offset, stripe / kFiles * kStripeBytes + page % 2 * kPageBytes);
    EXPECT_EQ(extent.bytes, kStripeBytes - page % 2 * kPageBytes);
  }
}

std::string TextOf(const absl::Status& status) { return std::string(status.message()); }

class StripedDeviceTest : public testing::TestWithParam<IoEngine> {
 protected:
  std::string PathOf(size_t file) const { return dir_.Join("part" + std::to_string(file)); }

  FileDeviceOptions Options(uint64_t size_bytes) const {
    FileDeviceOptions options;
    options.path = PathOf(0);
    options.more_paths = {PathOf(1), PathOf(2)};
    options.stripe_bytes = kStripeBytes;
    options.size_bytes = size_bytes;
    options.create = true;
    options.engine = GetParam();
    return options;
  }

  // Skips the test where the engine is not to be had.
  std::unique_ptr<BlockDevice> Make() {
    absl::StatusOr<std::unique_ptr<BlockDevice>> device =
        OpenFileDevice(Options(kFiles * kFileBytes));
    if (device.ok()) return *std::move(device);
    EXPECT_EQ(device.status().code(), absl::StatusCode::kUnavailable) << device.status();
    return nullptr;
  }

  std::string Content(size_t file) const {
    std::ifstream stream(PathOf(file), std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  }

  const TempDir dir_{};
};

TEST_P(StripedDeviceTest, BytesLieInTheFilesWhereTheLayoutSays) {
  std::unique_ptr<BlockDevice> device = Make();
  if (device == nullptr) GTEST_SKIP() << "the engine is not available";
  EXPECT_EQ(device->info().size_bytes, kFiles * kFileBytes);
  Transfer write(IoOp::kWrite, 0, kFiles * kFileBytes);
  for (size_t page = 0; page < write.memory().size() / kPageBytes; ++page) {
    std::memset(write.memory().data() + page * kPageBytes, static_cast<int>('a' + page),
                kPageBytes);
  }
  IoRequest sync;
  sync.op = IoOp::kSync;
  IoRequest* const batch[] = {write.request()};
  IoRequest* const sync_batch[] = {&sync};
  ASSERT_TRUE(RunBatch(*device, batch).ok());
  ASSERT_TRUE(RunBatch(*device, sync_batch).ok());
  EXPECT_EQ(sync.synced_files, kFiles);
  const StripeLayout layout = device->info().layout;
  device.reset();
  for (size_t file = 0; file < kFiles; ++file) ASSERT_EQ(Content(file).size(), kFileBytes);
  for (size_t page = 0; page < kFiles * kFileBytes / kPageBytes; ++page) {
    const StripeLayout::Extent place = layout.Locate(page * kPageBytes);
    EXPECT_EQ(Content(place.file)[place.offset], static_cast<char>('a' + page));
  }
}

TEST_P(StripedDeviceTest, ClonesReadTheSameFiles) {
  const std::unique_ptr<BlockDevice> device = Make();
  if (device == nullptr) GTEST_SKIP() << "the engine is not available";
  const absl::StatusOr<std::unique_ptr<BlockDevice>> clone = device->Clone();
  if (absl::IsUnimplemented(clone.status())) GTEST_SKIP() << clone.status();
  ASSERT_TRUE(clone.ok()) << clone.status();
  Transfer write(IoOp::kWrite, kPageBytes, 5 * kStripeBytes);
  std::mt19937_64 random(1);
  write.Fill(random);
  IoRequest* const write_batch[] = {write.request()};
  ASSERT_TRUE(RunBatch(*device, write_batch).ok());
  Transfer read(IoOp::kRead, kPageBytes, 5 * kStripeBytes);
  IoRequest* const read_batch[] = {read.request()};
  ASSERT_TRUE(RunBatch(**clone, read_batch).ok());
  EXPECT_EQ(std::memcmp(read.memory().data(), write.memory().data(), read.memory().size()), 0);
}

TEST_P(StripedDeviceTest, ErrorsNameTheFileThatFailedAndThePlaceInIt) {
  const std::unique_ptr<BlockDevice> device = Make();
  if (device == nullptr) GTEST_SKIP() << "the engine is not available";
  std::filesystem::resize_file(PathOf(1), 0);
  Transfer read(IoOp::kRead, 0, 2 * kStripeBytes);
  IoRequest* const batch[] = {read.request()};
  const absl::Status status = RunBatch(*device, batch);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(TextOf(status),
              AllOf(StartsWith(PathOf(1) + ": read of 16384 bytes at offset 0 of the device"),
                    HasSubstr("at 0 in this file"), HasSubstr("after 8192 bytes")));
  Transfer good(IoOp::kRead, 2 * kStripeBytes, kStripeBytes);
  IoRequest* const good_batch[] = {good.request()};
  EXPECT_TRUE(RunBatch(*device, good_batch).ok()) << "the other files go on";
}

TEST_P(StripedDeviceTest, FilesThatDoNotBelongTogetherAreRefusedUntouched) {
  if (Make() == nullptr) GTEST_SKIP() << "the engine is not available";
  std::filesystem::resize_file(PathOf(2), kStripeBytes);
  FileDeviceOptions options = Options(0);
  EXPECT_THAT(TextOf(OpenFileDevice(options).status()),
              AllOf(StartsWith(PathOf(0)), HasSubstr("has 32768 bytes"),
                    HasSubstr("8192 of the smallest file")));
  for (size_t file = 0; file < kFiles; ++file) {
    std::filesystem::resize_file(PathOf(file), 5 * kPageBytes);
  }
  EXPECT_THAT(TextOf(OpenFileDevice(options).status()), HasSubstr("whole stripes of 8192"));
  EXPECT_EQ(Content(0).size(), 5 * kPageBytes);
}

TEST_P(StripedDeviceTest, BadOptionsAreNamed) {
  FileDeviceOptions options = Options(kFiles * kFileBytes);
  options.more_paths[1] = dir_.path() + "/./part0";
  EXPECT_THAT(TextOf(OpenFileDevice(options).status()),
              AllOf(StartsWith(options.more_paths[1]), HasSubstr("same file as " + PathOf(0))));
  options = Options(kFiles * kFileBytes + kStripeBytes);
  EXPECT_THAT(TextOf(OpenFileDevice(options).status()), HasSubstr("each of 3 files"));
  options = Options(kFiles * kFileBytes);
  options.stripe_bytes = 100;
  EXPECT_THAT(TextOf(OpenFileDevice(options).status()), HasSubstr("stripe_bytes: 100"));
  options = Options(kFiles * kFileBytes);
  options.more_paths[0] = "";
  EXPECT_THAT(TextOf(OpenFileDevice(options).status()), HasSubstr("path: is empty"));
  EXPECT_TRUE(std::filesystem::is_empty(dir_.path()));
}

TEST_P(StripedDeviceTest, FailureLeavesNoNewFileAndOldOnesAsTheyWere) {
  FileDeviceOptions options = Options(kFiles * kFileBytes);
  options.more_paths[1] = dir_.Join("absent/part2");
  EXPECT_EQ(OpenFileDevice(options).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(std::filesystem::is_empty(dir_.path()));

  // No disk is that large.
  options = Options(uint64_t{kFiles} << 60);
  options.stripe_bytes = uint64_t{1} << 60;
  std::ofstream(PathOf(0)) << "old";
  EXPECT_EQ(OpenFileDevice(options).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Content(0), "old");
  EXPECT_FALSE(std::filesystem::exists(PathOf(1)));
}

INSTANTIATE_TEST_SUITE_P(Engines, StripedDeviceTest,
                         testing::Values(IoEngine::kIoUring, IoEngine::kThreads),
                         [](const testing::TestParamInfo<IoEngine>& info) {
                           return std::string(info.param == IoEngine::kThreads ? "Threads"
                                                                               : "IoUring");
                         });

}  // namespace
}  // namespace terrace
