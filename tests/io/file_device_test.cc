#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/block_device.h"
#include "tests/io/file_device_fixture.h"
#include "tests/support/open_count.h"

namespace terrace {
namespace {

using testing::AllOf;
using testing::ExitedWithCode;
using testing::HasSubstr;
using testing::StartsWith;

TEST_F(FileDeviceTest, BadOptionsNameTheField) {
  const auto bad = [this](auto change) {
    FileDeviceOptions options = CreateOptions(kPageBytes);
    change(options);
    return options;
  };
  const std::vector<std::pair<FileDeviceOptions, std::string>> cases = {
      {bad([](auto& o) { o.path = ""; }), "path: "},
      {bad([](auto& o) { o.path.push_back('\0'); }), "path: "},
      {bad([](auto& o) { o.size_bytes = 4097; }), "size_bytes: "},
      {bad([](auto& o) { o.size_bytes = uint64_t{1} << 63; }), "size_bytes: "},
      {bad([](auto& o) { o.size_bytes = 0, o.truncate = true; }), "size_bytes: "},
      {bad([](auto& o) { o.size_bytes = 0, o.cut_tail = true; }), "size_bytes: "},
      {bad([](auto& o) { o.read_only = true; }), "read_only: "},
      {bad([](auto& o) { o.create = false, o.read_only = o.cut_tail = true; }), "read_only: "},
      {bad([](auto& o) { o.size_bytes = 8 << 20, o.more_paths = {"x"}, o.cut_tail = true; }),
       "more_paths: "},
      {bad([](auto& o) { o.create = false, o.read_only = o.truncate = true; }), "read_only: "},
      {bad([](auto& o) { o.engine = IoEngine::kMemory; }), "engine: "},
      {bad([](auto& o) { o.depth = 0; }), "depth: "},
      {bad([](auto& o) { o.depth = 4097; }), "depth: "},
  };
  for (const auto& [options, field] : cases) {
    ExpectError(options, absl::StatusCode::kInvalidArgument, StartsWith(field));
  }
  EXPECT_FALSE(Exists(path_));
}

TEST_F(FileDeviceTest, PathsThatCannotBeOpenedSayWhy) {
  ExpectError(Options(), absl::StatusCode::kNotFound,
              AllOf(HasSubstr(path_), HasSubstr("No such file or directory")));
  FileDeviceOptions options = CreateOptions(kPageBytes);
  options.path = dir_.Join("missing/data");
  ExpectError(options, absl::StatusCode::kNotFound,
              AllOf(HasSubstr(options.path), HasSubstr("No such file or directory")));
  options.path = dir_.path();
  ExpectError(options, absl::StatusCode::kInvalidArgument,
              AllOf(HasSubstr(options.path), HasSubstr("Is a directory")));
  options = Options();
  options.path = dir_.path();
  options.read_only = true;
  ExpectError(options, absl::StatusCode::kInvalidArgument, HasSubstr("is a directory"));
  WriteFile(path_, "x");
  options = CreateOptions(kPageBytes);
  options.path = path_ + "/data";
  ExpectError(options, absl::StatusCode::kInvalidArgument, HasSubstr("Not a directory"));
  options.path = dir_.Join("fifo");
  ASSERT_EQ(::mkfifo(options.path.c_str(), 0600), 0);
  options.create = false;
  ExpectError(options, absl::StatusCode::kInvalidArgument, HasSubstr("not a regular file"));
}

TEST_F(FileDeviceTest, AMissingPermissionIsPermissionDenied) {
  ASSERT_EQ(::chmod(dir_.path().c_str(), 0500), 0);
  EXPECT_EXIT(
      {
        // Root may do anything; another user may not even enter the directory.
        if (::geteuid() == 0 && ::setuid(65534) != 0) ::_exit(1);
        ExpectError(CreateOptions(kPageBytes), absl::StatusCode::kPermissionDenied,
                    AllOf(HasSubstr(path_), HasSubstr("Permission denied")));
        ::_exit(HasFailure() ? 1 : 0);
      },
      ExitedWithCode(0), "");
}

TEST_F(FileDeviceTest, ANewFileIsPrivateAndItsSpaceIsReserved) {
  constexpr uint64_t kBytes = 256 * kPageBytes;
  const auto device = OpenFileDevice(CreateOptions(kBytes));
  ASSERT_TRUE(device.ok()) << device.status();
  struct stat found = {};
  ASSERT_EQ(::stat(path_.c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 07777, 0600u);
  EXPECT_EQ(static_cast<uint64_t>(found.st_size), kBytes);
  EXPECT_GE(static_cast<uint64_t>(found.st_blocks) * 512, kBytes);
  EXPECT_EQ((*device)->info().path, path_);
}

TEST_F(FileDeviceTest, ALockedFileIsUnavailableAndUnharmed) {
  WriteFile(path_, std::string(2 * kPageBytes, 'x'));
  const auto holder = OpenFileDevice(Options());
  ASSERT_TRUE(holder.ok()) << holder.status();
  FileDeviceOptions options = CreateOptions(kPageBytes);
  options.truncate = true;
  ExpectError(options, absl::StatusCode::kUnavailable, path_ + ": locked by another process");
  options = Options();
  options.read_only = true;
  ExpectError(options, absl::StatusCode::kUnavailable, HasSubstr("locked by another process"));
  EXPECT_EXIT(
      {
        const int fd = ::open(path_.c_str(), O_RDWR | O_CLOEXEC);
        ::_exit(fd >= 0 && ::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK ? 0 : 1);
      },
      ExitedWithCode(0), "");
  EXPECT_EQ(ReadFile(path_), std::string(2 * kPageBytes, 'x'));
}

TEST_F(FileDeviceTest, WhatIsReplacedOrRemovedBeforeItIsLockedIsOpenedAnew) {
  for (const bool replace : {true, false}) {
    SCOPED_TRACE(replace);
    WriteFile(path_, std::string(kPageBytes, 'o'));
    auto holder = OpenFileDevice(Options());
    ASSERT_TRUE(holder.ok()) << holder.status();
    absl::StatusOr<std::unique_ptr<BlockDevice>> device;
    const int before = OpenCount(path_);
    std::thread opener([&] { device = OpenFileDevice(CreateOptions(kPageBytes)); });
    while (OpenCount(path_) <= before) std::this_thread::yield();
    if (replace) {
      WriteFile(dir_.Join("new"), std::string(kPageBytes, 'n'));
      ASSERT_EQ(::rename(dir_.Join("new").c_str(), path_.c_str()), 0);
    } else {
      ASSERT_EQ(::unlink(path_.c_str()), 0);
    }
    holder->reset();
    opener.join();
    ASSERT_TRUE(device.ok()) << device.status();
    EXPECT_TRUE((*device)->CheckFile().ok());
    ASSERT_TRUE(Transfer(**device, IoOp::kRead, 0).ok());
    EXPECT_EQ(memory_.span()[0], std::byte(replace ? 'n' : 0));
  }
}

TEST_F(FileDeviceTest, WhatAFileHoldsDecidesWhetherItIsTruncated) {
  const std::string contents = std::string(5000, 'x');
  FileDeviceOptions options = CreateOptions(kPageBytes);
  for (const bool truncate : {false, true}) {
    WriteFile(path_, contents);
    int asked = 0;
    options.size_bytes = 2 * kPageBytes;
    options.decide_truncate = [&](BlockDevice& found, uint64_t found_bytes) {
      ++asked;
      EXPECT_EQ(found_bytes, contents.size());
      EXPECT_EQ(found.info().size_bytes, 2 * kPageBytes);
      EXPECT_TRUE(Transfer(found, IoOp::kRead, 0).ok());
      EXPECT_EQ(memory_.span()[kPageBytes - 1], std::byte{'x'});
      ExpectError(Options(), absl::StatusCode::kUnavailable, HasSubstr("locked"));
      return absl::StatusOr<bool>(truncate);
    };
    {
      const auto device = OpenFileDevice(options);
      ASSERT_TRUE(device.ok()) << device.status();
      ExpectError(Options(), absl::StatusCode::kUnavailable, HasSubstr("locked"));
    }
    EXPECT_EQ(asked, 1);
    const std::string rest(2 * kPageBytes - 5000, '\0');
    EXPECT_EQ(ReadFile(path_), (truncate ? std::string(5000, '\0') : contents) + rest);
  }
  options.decide_truncate = [](BlockDevice&, uint64_t) -> absl::StatusOr<bool> {
    return absl::InvalidArgumentError("no");
  };
  WriteFile(path_, contents);
  ExpectError(options, absl::StatusCode::kInvalidArgument, "no");
  EXPECT_EQ(ReadFile(path_), contents);
  WriteFile(path_, "");
  EXPECT_TRUE(OpenFileDevice(options).ok()) << "an empty file holds nothing to decide about";
}

TEST_F(FileDeviceTest, ATailIsCutOnRequest) {
  WriteFile(path_, std::string(4 * kPageBytes + 3, 'x'));
  FileDeviceOptions options = Options(2 * kPageBytes);
  options.cut_tail = true;
  {
    const auto device = OpenFileDevice(options);
    ASSERT_TRUE(device.ok()) << device.status();
    EXPECT_EQ((*device)->info().size_bytes, 2 * kPageBytes);
    EXPECT_TRUE((*device)->CheckFile().ok());
  }
  EXPECT_EQ(ReadFile(path_), std::string(2 * kPageBytes, 'x'));
}

TEST_F(FileDeviceTest, ReadersShareAndKeepWritersOut) {
  WriteFile(path_, std::string(kPageBytes, 'x'));
  FileDeviceOptions options = Options();
  options.read_only = true;
  const auto first = OpenFileDevice(options);
  const auto second = OpenFileDevice(options);
  ASSERT_TRUE(first.ok() && second.ok()) << first.status() << second.status();
  ExpectError(Options(), absl::StatusCode::kUnavailable, HasSubstr("locked by another process"));
  EXPECT_TRUE(Transfer(**first, IoOp::kRead, 0).ok());
  const absl::Status written = Transfer(**second, IoOp::kWrite, 0);
  EXPECT_EQ(written.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(written.message(), HasSubstr("Bad file descriptor"));
}

TEST_F(FileDeviceTest, ALargerFileIsRefusedUnlessTruncated) {
  const std::string contents(4 * kPageBytes, 'x');
  WriteFile(path_, contents);
  FileDeviceOptions options = Options(2 * kPageBytes);
  ExpectError(options, absl::StatusCode::kInvalidArgument,
              AllOf(HasSubstr(path_), HasSubstr("16384 bytes, more than 8192")));
  EXPECT_EQ(ReadFile(path_), contents);
  options.truncate = true;
  ASSERT_TRUE(OpenFileDevice(options).ok());
  EXPECT_EQ(ReadFile(path_), std::string(2 * kPageBytes, '\0'));
}

TEST_F(FileDeviceTest, ASmallerFileIsExtendedAndKeepsItsBytes) {
  WriteFile(path_, std::string(5000, 'x'));
  ASSERT_TRUE(OpenFileDevice(Options(3 * kPageBytes)).ok());
  EXPECT_EQ(ReadFile(path_), std::string(5000, 'x') + std::string(3 * kPageBytes - 5000, '\0'));
}

TEST_F(FileDeviceTest, ASmallerFileCannotBeExtendedReadOnly) {
  WriteFile(path_, std::string(kPageBytes, 'x'));
  FileDeviceOptions options = Options(2 * kPageBytes);
  options.read_only = true;
  ExpectError(options, absl::StatusCode::kInvalidArgument,
              HasSubstr("4096 bytes, fewer than 8192"));
}

TEST_F(FileDeviceTest, AnEmptyFileNeedsASize) {
  ExpectError(CreateOptions(0), absl::StatusCode::kInvalidArgument,
              HasSubstr("size_bytes: an empty file needs a size"));
  EXPECT_FALSE(Exists(path_));
  WriteFile(path_, "");
  ExpectError(CreateOptions(0), absl::StatusCode::kInvalidArgument, HasSubstr("size_bytes"));
  EXPECT_TRUE(Exists(path_));
}

TEST_F(FileDeviceTest, ADiskThatIsTooSmallIsResourceExhausted) {
  constexpr uint64_t kHuge = uint64_t{1} << 50;
  const auto text =
      AllOf(HasSubstr(path_), HasSubstr("1125899906842624 bytes needed"), HasSubstr(" available"));
  ExpectError(CreateOptions(kHuge), absl::StatusCode::kResourceExhausted, text);
  EXPECT_FALSE(Exists(path_)) << "what the call made, it removes";
  const std::string contents(5000, 'x');
  WriteFile(path_, contents);
  FileDeviceOptions options = CreateOptions(kHuge);
  options.truncate = true;
  ExpectError(options, absl::StatusCode::kResourceExhausted, text);
  options.truncate = false;
  ExpectError(options, absl::StatusCode::kResourceExhausted, HasSubstr("not enough disk space"));
  EXPECT_EQ(ReadFile(path_), contents);
}

TEST_F(FileDeviceTest, APrematureEndIsDataLoss) {
  WriteFile(path_, std::string(kPageBytes + 900, 'x'));
  for (const IoEngine engine : {IoEngine::kAuto, IoEngine::kThreads}) {
    for (const bool direct_io : {true, false}) {
      FileDeviceOptions options = Options();
      options.engine = engine;
      options.direct_io = direct_io;
      const auto device = OpenFileDevice(options);
      ASSERT_TRUE(device.ok()) << device.status();
      EXPECT_EQ((*device)->info().size_bytes, 2 * kPageBytes);
      EXPECT_TRUE(Transfer(**device, IoOp::kRead, 0).ok());
      const absl::Status status = Transfer(**device, IoOp::kRead, 0, 2 * kPageBytes);
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
      EXPECT_EQ(status.message(),
                path_ +
                    ": read of 8192 bytes at offset 0: premature end of the device after 4096 "
                    "bytes");
      EXPECT_EQ(request_.transferred, kPageBytes);
    }
  }
}

TEST_F(FileDeviceTest, AFileCutShortMeanwhileIsDataLoss) {
  const auto device = OpenFileDevice(CreateOptions(4 * kPageBytes));
  ASSERT_TRUE(device.ok()) << device.status();
  ASSERT_EQ(::truncate(path_.c_str(), kPageBytes), 0);
  EXPECT_EQ(Transfer(**device, IoOp::kRead, 0, 3 * kPageBytes).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(request_.error, ENODATA);
  EXPECT_EQ(request_.transferred, kPageBytes);
}

}  // namespace
}  // namespace terrace
