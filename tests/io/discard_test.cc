#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/aligned_buffer.h"
#include "io/block_device.h"
#include "io/memory_device.h"
#include "tests/support/forbid_syscall.h"
#include "tests/support/temp_dir.h"
#include "tests/support/transfer.h"

namespace terrace {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

constexpr size_t kPages = 48;
constexpr size_t kStripePages = 4;

struct Case {
  const char* name;
  IoEngine engine;
  size_t files = 1;
};

void PrintTo(const Case& which, std::ostream* out) { *out << which.name; }

class DiscardTest : public testing::TestWithParam<Case> {
 protected:
  std::string PathOf(size_t file) const { return dir_.Join(absl::StrCat("part", file)); }

  FileDeviceOptions Options() const {
    FileDeviceOptions options;
    options.path = PathOf(0);
    for (size_t i = 1; i < GetParam().files; ++i) options.more_paths.push_back(PathOf(i));
    options.stripe_bytes = kStripePages * kPageBytes;
    options.size_bytes = kPages * kPageBytes;
    options.create = true;
    options.engine = GetParam().engine;
    return options;
  }

  void SetUp() override {
    if (GetParam().engine == IoEngine::kMemory) {
      device_ = *MemoryDevice::Create({kPages * kPageBytes, 4, nullptr});
    } else {
      absl::StatusOr<std::unique_ptr<BlockDevice>> device = OpenFileDevice(Options());
      if (absl::IsUnavailable(device.status())) GTEST_SKIP() << device.status();
      ASSERT_TRUE(device.ok()) << device.status();
      device_ = *std::move(device);
    }
    const absl::Status status = device_->Discard(0, kPageBytes);
    if (absl::IsUnimplemented(status)) GTEST_SKIP() << status;
    ASSERT_TRUE(status.ok()) << status;
  }

  absl::Status Run(Transfer& transfer) {
    IoRequest* const batch[] = {transfer.request()};
    return RunBatch(*device_, batch);
  }
  // Fills the device; page i holds bytes of i + 1.
  void FillPages() {
    Transfer write(IoOp::kWrite, 0, kPages * kPageBytes);
    for (size_t page = 0; page < kPages; ++page) {
      std::memset(write.memory().data() + page * kPageBytes, static_cast<int>(page + 1),
                  kPageBytes);
    }
    ASSERT_TRUE(Run(write).ok());
    IoRequest sync;
    sync.op = IoOp::kSync;
    IoRequest* const batch[] = {&sync};
    ASSERT_TRUE(RunBatch(*device_, batch).ok());
  }
  // Whether those from `first` on, `count` of them, are zeros and the others as they were.
  void ExpectZeros(size_t first, size_t count) {
    Transfer read(IoOp::kRead, 0, kPages * kPageBytes);
    ASSERT_TRUE(Run(read).ok());
    for (size_t page = 0; page < kPages; ++page) {
      const bool zero = page >= first && page < first + count;
      const auto wanted = static_cast<std::byte>(zero ? 0 : page + 1);
      const std::vector<std::byte> bytes(kPageBytes, wanted);
      const std::byte* const found = read.memory().data() + page * kPageBytes;
      EXPECT_EQ(std::memcmp(found, bytes.data(), kPageBytes), 0) << "page " << page;
    }
  }

  uint64_t AllocatedBytes() const {
    uint64_t bytes = 0;
    for (size_t i = 0; i < GetParam().files; ++i) {
      struct stat found = {};
      EXPECT_EQ(::stat(PathOf(i).c_str(), &found), 0);
      EXPECT_EQ(static_cast<size_t>(found.st_size), kPages * kPageBytes / GetParam().files);
      bytes += static_cast<uint64_t>(found.st_blocks) * 512;
    }
    return bytes;
  }

  const TempDir dir_{};
  std::unique_ptr<BlockDevice> device_;
};

TEST_P(DiscardTest, ARangeReadsAsZerosAndTheRestIsIntact) {
  // Within a stripe, at the edges of some, across several, and all of the device.
  const std::pair<size_t, size_t> ranges[] = {{5, 1},  {4, 4},  {3, 2},  {7, 30},
                                              {0, 17}, {40, 8}, {0, 48}, {9, 0}};
  for (const auto& [first, count] : ranges) {
    SCOPED_TRACE(absl::StrCat(count, " pages from ", first));
    FillPages();
    const absl::Status status = device_->Discard(first * kPageBytes, count * kPageBytes);
    ASSERT_TRUE(status.ok()) << status;
    ExpectZeros(first, count);
  }
  FillPages();
  ExpectZeros(0, 0);
}

TEST_P(DiscardTest, TheFileKeepsItsSizeAndGivesItsSpaceBack) {
  if (GetParam().engine == IoEngine::kMemory) GTEST_SKIP() << "memory is no file";
  FillPages();
  const uint64_t before = AllocatedBytes();
  ASSERT_TRUE(device_->Discard(2 * kPageBytes, 40 * kPageBytes).ok());
  EXPECT_LE(AllocatedBytes() + 40 * kPageBytes, before);
}

TEST_P(DiscardTest, ACloneGivesBackTheSameSpace) {
  const absl::StatusOr<std::unique_ptr<BlockDevice>> clone = device_->Clone();
  if (absl::IsUnimplemented(clone.status())) GTEST_SKIP() << clone.status();
  ASSERT_TRUE(clone.ok()) << clone.status();
  FillPages();
  ASSERT_TRUE((*clone)->Discard(kPageBytes, 6 * kPageBytes).ok());
  ExpectZeros(1, 6);
}

TEST_P(DiscardTest, RangesOutsideOrNotOnWholePagesAreRefusedUntouched) {
  FillPages();
  const std::pair<uint64_t, uint64_t> ranges[] = {
      {0, 100},
      {512, kPageBytes},
      {kPages * kPageBytes, kPageBytes},
      {(kPages - 1) * kPageBytes, 2 * kPageBytes},
      {(kPages + 1) * kPageBytes, 0},
      {kPageBytes, uint64_t{0} - kPageBytes},
  };
  for (const auto& [offset, bytes] : ranges) {
    const absl::Status status = device_->Discard(offset, bytes);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(StartsWith(device_->info().path),
                      HasSubstr(absl::StrCat("discard of ", bytes, " bytes at offset ", offset))));
  }
  ExpectZeros(0, 0);
}

TEST_P(DiscardTest, ErrorsNamePathOffsetLengthAndErrno) {
  if (GetParam().engine == IoEngine::kMemory) GTEST_SKIP() << "memory has no errors";
  device_.reset();
  FileDeviceOptions options = Options();
  options.create = false;
  options.read_only = true;
  device_ = *OpenFileDevice(options);
  const std::string path = PathOf(GetParam().files - 1);
  const uint64_t offset = (GetParam().files - 1) * kStripePages * kPageBytes;
  const absl::Status status = device_->Discard(offset, kPageBytes);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(status.message(),
            path + ": discard of 4096 bytes at offset 0 in this file: Bad file descriptor");
}

TEST_P(DiscardTest, AFilesystemThatCannotIsUnimplemented) {
  if (GetParam().engine == IoEngine::kMemory) GTEST_SKIP() << "memory has no filesystem";
  if (!CanForbidSyscalls()) GTEST_SKIP() << "this kernel does not allow seccomp filters";
  EXPECT_EXIT(
      {
        ASSERT_TRUE(ForbidSyscall(SYS_fallocate, EOPNOTSUPP));
        const absl::Status status = device_->Discard(0, kPageBytes);
        EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
        EXPECT_THAT(std::string(status.message()),
                    AllOf(StartsWith(PathOf(0)), HasSubstr("4096 bytes at offset 0")));
        std::cerr.flush();
        ::_exit(HasFailure() ? 1 : 0);
      },
      testing::ExitedWithCode(0), "");
}

INSTANTIATE_TEST_SUITE_P(Engines, DiscardTest,
                         testing::Values(Case{"Memory", IoEngine::kMemory},
                                         Case{"IoUring", IoEngine::kIoUring},
                                         Case{"Threads", IoEngine::kThreads},
                                         Case{"IoUringStriped", IoEngine::kIoUring, 3},
                                         Case{"ThreadsStriped", IoEngine::kThreads, 3}),
                         [](const testing::TestParamInfo<Case>& info) {
                           return std::string(info.param.name);
                         });

}  // namespace
}  // namespace terrace
