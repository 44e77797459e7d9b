#include "tools/ssd_file.h"

#include <atomic>
#include <cerrno>
#include <fstream>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/aligned_buffer.h"
#include "io/memory_device.h"
#include "tests/support/faulty_device.h"
#include "tests/support/temp_dir.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

// No multiple of the bytes that are written at once.
constexpr uint64_t kFileBytes = (uint64_t{3} << 20) + 5 * kPageBytes;

class FillSsdFileTest : public ::testing::Test {
 protected:
  FillSsdFileTest() {
    MemoryDeviceOptions options;
    options.size_bytes = kFileBytes;
    device_ = *MemoryDevice::Create(std::move(options));
    buffer_ = *AlignedBuffer::Create(uint64_t{1} << 20);
  }

  absl::Status Fill(std::unique_ptr<BlockDevice> device) {
    file_.device = std::move(device);
    file_.size_bytes = kFileBytes;
    file_.owned = true;
    return FillSsdFile(file_, buffer_.span(), /*seed=*/1, stop_,
                       [this](uint64_t bytes) { progress_.push_back(bytes); });
  }

  std::unique_ptr<MemoryDevice> device_;
  AlignedBuffer buffer_;
  SsdFile file_;
  std::atomic<bool> stop_ = false;
  std::vector<uint64_t> progress_;
};

TEST_F(FillSsdFileTest, EveryPageGetsBytesOfItsOwn) {
  const MemoryDevice& device = *device_;
  ASSERT_TRUE(Fill(std::move(device_)).ok());
  std::set<std::string> pages;
  for (size_t at = 0; at < kFileBytes; at += kPageBytes) {
    const auto page = device.bytes().subspan(at, kPageBytes);
    pages.emplace(reinterpret_cast<const char*>(page.data()), page.size());
  }
  EXPECT_EQ(pages.size(), kFileBytes / kPageBytes);
  EXPECT_EQ(progress_.back(), kFileBytes);
}

TEST_F(FillSsdFileTest, StopEndsItBeforeTheNextWrite) {
  stop_ = true;
  EXPECT_TRUE(absl::IsCancelled(Fill(std::move(device_))));
  EXPECT_TRUE(progress_.empty());
}

TEST_F(FillSsdFileTest, FailedWriteIsAnErrorWithItsPlace) {
  auto faulty = std::make_unique<FaultyDevice>(std::move(device_), 1);
  faulty->FailWhen([](const IoRequest& request) {
    return request.offset >= (uint64_t{2} << 20) ? std::optional<int>(ENOSPC) : std::nullopt;
  });
  const absl::Status status = Fill(std::move(faulty));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(status.message(), HasSubstr("offset 2097152"));
}

constexpr char kMounts[] =
    "22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw\n"
    "23 22 0:5 / /dev rw - devtmpfs udev rw\n";

TEST(FindDeviceUserTest, FindsMountsPartitionsAndHolders) {
  const TempDir dir;
  const auto make = [&](const std::string& name) {
    ASSERT_EQ(system(("mkdir -p '" + dir.Join(name) + "'").c_str()), 0);
  };
  make("dev/block/259:0/nvme0n1p2");
  make("dev/block/259:0/holders");
  make("dev/block/8:0/holders/dm-0");
  make("dev/block/8:16/holders");
  std::ofstream(dir.Join("dev/block/259:0/nvme0n1p2/partition")) << "2\n";
  std::ofstream(dir.Join("dev/block/259:0/nvme0n1p2/dev")) << "259:2\n";
  EXPECT_EQ(FindDeviceUser("259:2", kMounts, dir.path()), "mounted at /");
  EXPECT_EQ(FindDeviceUser("259:0", kMounts, dir.path()), "partition nvme0n1p2 is mounted at /");
  EXPECT_EQ(FindDeviceUser("8:0", kMounts, dir.path()), "held by dm-0");
  EXPECT_EQ(FindDeviceUser("8:16", kMounts, dir.path()), std::nullopt);
}

}  // namespace
}  // namespace terrace
