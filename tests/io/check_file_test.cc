#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/aligned_buffer.h"
#include "io/block_device.h"
#include "io/memory_device.h"
#include "tests/support/temp_dir.h"

// What a device tells of its files: what became of them while it is open, and who may read them.

namespace terrace {
namespace {

constexpr uint64_t kFileBytes = 8 * kPageBytes;

class CheckFileTest : public testing::TestWithParam<IoEngine> {
 protected:
  FileDeviceOptions Options() const {
    FileDeviceOptions options;
    options.path = path_;
    options.size_bytes = kFileBytes;
    options.create = true;
    options.engine = GetParam();
    return options;
  }

  // nullptr where the engine is not to be had.
  static std::unique_ptr<BlockDevice> Open(const FileDeviceOptions& options) {
    absl::StatusOr<std::unique_ptr<BlockDevice>> device = OpenFileDevice(options);
    if (device.ok()) return *std::move(device);
    EXPECT_EQ(device.status().code(), absl::StatusCode::kUnavailable) << device.status();
    return nullptr;
  }

  void SetUp() override {
    device_ = Open(Options());
    if (device_ == nullptr) GTEST_SKIP() << "the engine is not available";
    ASSERT_TRUE(device_->CheckFile().ok()) << device_->CheckFile();
  }

  // The device and, where there is one, a clone of it say the same.
  void ExpectLost(const std::string& message) const {
    EXPECT_EQ(device_->CheckFile(), absl::DataLossError(message));
    const absl::StatusOr<std::unique_ptr<BlockDevice>> clone = device_->Clone();
    if (absl::IsUnimplemented(clone.status())) return;
    ASSERT_TRUE(clone.ok()) << clone.status();
    EXPECT_EQ((*clone)->CheckFile(), absl::DataLossError(message));
  }

  mode_t ModeOf(const std::string& path) const {
    struct stat found = {};
    EXPECT_EQ(::stat(path.c_str(), &found), 0);
    return found.st_mode & 07777;
  }

  const TempDir dir_{};
  const std::string path_ = dir_.Join("data");
  const std::string other_ = dir_.Join("other");
  std::unique_ptr<BlockDevice> device_;
};

TEST_P(CheckFileTest, ADeletedFileIsNamed) {
  ASSERT_EQ(::unlink(path_.c_str()), 0);
  ExpectLost(path_ + ": was deleted while in use");
}

TEST_P(CheckFileTest, ARenamedFileIsNamedUntilItIsBack) {
  ASSERT_EQ(::rename(path_.c_str(), other_.c_str()), 0);
  ExpectLost(path_ + ": was renamed while in use (no file has that name)");
  ASSERT_EQ(::rename(other_.c_str(), path_.c_str()), 0);
  EXPECT_TRUE(device_->CheckFile().ok()) << device_->CheckFile();
}

TEST_P(CheckFileTest, AReplacedFileIsNamedThoughTheOtherLooksTheSame) {
  std::filesystem::copy_file(path_, other_);
  ASSERT_EQ(::rename(other_.c_str(), path_.c_str()), 0);
  ExpectLost(path_ + ": was replaced while in use (another file has that name)");
}

TEST_P(CheckFileTest, ATruncatedFileIsNamedWithBothSizes) {
  ASSERT_EQ(::truncate(path_.c_str(), kFileBytes - 1), 0);
  ExpectLost(path_ + ": was truncated to 32767 bytes while in use, 32768 are needed");
  ASSERT_EQ(::truncate(path_.c_str(), kFileBytes + 1), 0);
  EXPECT_TRUE(device_->CheckFile().ok()) << "a file may grow";
}

TEST_P(CheckFileTest, AFileWithARaggedEndNeedsTheBytesItHad) {
  std::ofstream(other_) << std::string(kPageBytes + 100, 'x');
  FileDeviceOptions options = Options();
  options.path = other_;
  options.size_bytes = 0;
  const std::unique_ptr<BlockDevice> device = Open(options);
  ASSERT_NE(device, nullptr);
  EXPECT_TRUE(device->CheckFile().ok()) << device->CheckFile();
  ASSERT_EQ(::truncate(other_.c_str(), kPageBytes + 99), 0);
  EXPECT_EQ(device->CheckFile(),
            absl::DataLossError(other_ + ": was truncated to 4195 bytes while in use, 4196 are "
                                         "needed"));
}

TEST_P(CheckFileTest, AFileThatGrewOnOpeningNeedsItsNewSize) {
  std::ofstream(other_) << "x";
  FileDeviceOptions options = Options();
  options.path = other_;
  const std::unique_ptr<BlockDevice> device = Open(options);
  ASSERT_NE(device, nullptr);
  EXPECT_TRUE(device->CheckFile().ok()) << device->CheckFile();
  ASSERT_EQ(::truncate(other_.c_str(), 0), 0);
  EXPECT_EQ(device->CheckFile().code(), absl::StatusCode::kDataLoss);
}

TEST_P(CheckFileTest, EveryFileOfAStripedDeviceCounts) {
  FileDeviceOptions options = Options();
  options.path = dir_.Join("part0");
  options.more_paths = {dir_.Join("part1")};
  options.stripe_bytes = kPageBytes;
  const std::unique_ptr<BlockDevice> device = Open(options);
  ASSERT_NE(device, nullptr);
  EXPECT_TRUE(device->CheckFile().ok()) << device->CheckFile();
  ASSERT_EQ(::truncate(options.more_paths[0].c_str(), 0), 0);
  EXPECT_EQ(device->CheckFile(),
            absl::DataLossError(options.more_paths[0] +
                                ": was truncated to 0 bytes while in use, 16384 are needed"));
  ASSERT_EQ(::unlink(options.path.c_str()), 0);
  EXPECT_EQ(device->CheckFile(), absl::DataLossError(options.path + ": was deleted while in use"));
}

TEST_P(CheckFileTest, ALinkToTheFileIsTheFile) {
  ASSERT_EQ(::symlink(path_.c_str(), other_.c_str()), 0);
  device_.reset();
  FileDeviceOptions options = Options();
  options.path = other_;
  const std::unique_ptr<BlockDevice> device = Open(options);
  ASSERT_NE(device, nullptr);
  EXPECT_TRUE(device->CheckFile().ok()) << device->CheckFile();
  ASSERT_EQ(::unlink(path_.c_str()), 0);
  EXPECT_EQ(device->CheckFile(), absl::DataLossError(other_ + ": was deleted while in use"));
}

TEST_P(CheckFileTest, AnyThreadMayAsk) {
  std::thread([this] { EXPECT_TRUE(device_->CheckFile().ok()); }).join();
  AlignedBuffer page = *AlignedBuffer::Create(kPageBytes);
  const iovec buffer = {page.data(), kPageBytes};
  IoRequest request;
  request.buffers = absl::MakeConstSpan(&buffer, 1);
  IoRequest* const batch[] = {&request};
  EXPECT_TRUE(RunBatch(*device_, batch).ok());
}

TEST_P(CheckFileTest, AFileThatExistsBecomesPrivate) {
  EXPECT_EQ(ModeOf(path_), 0600u);
  for (const mode_t mode : {0640u, 0602u, 0777u, 0644u}) {
    device_.reset();
    ASSERT_EQ(::chmod(path_.c_str(), mode), 0);
    device_ = Open(Options());
    ASSERT_NE(device_, nullptr);
    EXPECT_EQ(ModeOf(path_), 0600u) << mode;
  }
}

TEST_P(CheckFileTest, AFileKeepsItsModeWhereNobodyAskedToCreateIt) {
  device_.reset();
  for (const bool read_only : {false, true}) {
    ASSERT_EQ(::chmod(path_.c_str(), 0644), 0);
    FileDeviceOptions options = Options();
    options.create = false;
    options.read_only = read_only;
    EXPECT_NE(Open(options), nullptr);
    EXPECT_EQ(ModeOf(path_), 0644u);
  }
  ASSERT_EQ(::chmod(path_.c_str(), 0700), 0);
  EXPECT_NE(Open(Options()), nullptr);
  EXPECT_EQ(ModeOf(path_), 0700u) << "private already";
}

TEST_P(CheckFileTest, AFileOfSomebodyElseKeepsItsMode) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can give a file away";
  device_.reset();
  ASSERT_EQ(::chown(path_.c_str(), 65534, 65534), 0);
  ASSERT_EQ(::chmod(path_.c_str(), 0664), 0);
  EXPECT_NE(Open(Options()), nullptr);
  EXPECT_EQ(ModeOf(path_), 0664u);
}

INSTANTIATE_TEST_SUITE_P(Engines, CheckFileTest,
                         testing::Values(IoEngine::kIoUring, IoEngine::kThreads),
                         [](const testing::TestParamInfo<IoEngine>& info) {
                           return std::string(info.param == IoEngine::kThreads ? "Threads"
                                                                               : "IoUring");
                         });

TEST(MemoryDevice, HasNoFileToLose) {
  EXPECT_TRUE((*MemoryDevice::Create({kPageBytes, 4, nullptr}))->CheckFile().ok());
}

}  // namespace
}  // namespace terrace
