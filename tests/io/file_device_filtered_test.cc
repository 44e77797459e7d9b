// Kernels and containers that forbid things, played by a filter in a child process.

#include <fcntl.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <iostream>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/block_device.h"
#include "tests/io/file_device_fixture.h"
#include "tests/support/forbid_syscall.h"

namespace terrace {
namespace {

using testing::AllOf;
using testing::ExitedWithCode;
using testing::HasSubstr;

class FilteredFileDeviceTest : public FileDeviceTest {
 protected:
  void SetUp() override {
    if (!CanForbidSyscalls()) GTEST_SKIP() << "this kernel does not allow seccomp filters";
  }
  // Ends the child: what it expected must have happened.
  [[noreturn]] static void Exit() {
    std::cerr.flush();
    ::_exit(HasFailure() ? 1 : 0);
  }
};

TEST_F(FilteredFileDeviceTest, AutoFallsBackToThreadsAndSaysWhy) {
  const auto plain = OpenFileDevice(CreateOptions(kPageBytes));
  ASSERT_TRUE(plain.ok()) << plain.status();
  const bool has_io_uring = (*plain)->info().engine == IoEngine::kIoUring;
  const std::pair<long, std::string> calls[] = {{SYS_io_uring_setup, "io_uring_setup"},
                                                {SYS_io_uring_enter, "io_uring_enter"},
                                                {SYS_io_uring_register, "io_uring_register"}};
  for (const auto& [number, name] : calls) {
    // Without io_uring, the first call fails and the others are never made.
    if (!has_io_uring && number != SYS_io_uring_setup) continue;
    SCOPED_TRACE(name);
    EXPECT_EXIT(
        {
          ASSERT_TRUE(ForbidSyscall(number, EPERM));
          FileDeviceOptions options = CreateOptions(kPageBytes);
          options.path = dir_.Join(name);
          const auto device = OpenFileDevice(options);
          EXPECT_TRUE(device.ok()) << device.status();
          EXPECT_EQ((*device)->info().engine, IoEngine::kThreads);
          EXPECT_EQ((*device)->info().engine_reason,
                    absl::StrCat("io_uring is not available: ", name, ": Operation not permitted"));
          EXPECT_TRUE(Transfer(**device, IoOp::kWrite, 0).ok());
          EXPECT_TRUE(Transfer(**device, IoOp::kRead, 0).ok());
          Exit();
        },
        ExitedWithCode(0), "");
  }
}

TEST_F(FilteredFileDeviceTest, IoUringByNameIsUnavailableInstead) {
  WriteFile(path_, std::string(2 * kPageBytes, 'x'));
  EXPECT_EXIT(
      {
        ASSERT_TRUE(ForbidSyscall(SYS_io_uring_setup, ENOSYS));
        FileDeviceOptions options = CreateOptions(kPageBytes);
        options.engine = IoEngine::kIoUring;
        options.truncate = true;
        const auto text = AllOf(HasSubstr("io_uring"), HasSubstr("Function not implemented"));
        ExpectError(options, absl::StatusCode::kUnavailable, text);
        options.path = dir_.Join("new");
        ExpectError(options, absl::StatusCode::kUnavailable, text);
        Exit();
      },
      ExitedWithCode(0), "");
  EXPECT_EQ(ReadFile(path_), std::string(2 * kPageBytes, 'x')) << "not harmed";
  EXPECT_FALSE(Exists(dir_.Join("new")));
}

TEST_F(FilteredFileDeviceTest, AFilesystemWithoutDirectIoUsesThePageCache) {
  EXPECT_EXIT(
      {
        ASSERT_TRUE(ForbidSyscall(SYS_fcntl, EINVAL, O_DIRECT));
        const auto device = OpenFileDevice(CreateOptions(kPageBytes));
        EXPECT_TRUE(device.ok()) << device.status();
        EXPECT_FALSE((*device)->info().direct_io);
        EXPECT_EQ((*device)->info().direct_reason,
                  "the filesystem refuses O_DIRECT: Invalid argument");
        EXPECT_TRUE(Transfer(**device, IoOp::kWrite, 0).ok());
        Exit();
      },
      ExitedWithCode(0), "");
}

TEST_F(FilteredFileDeviceTest, AFilesystemWithoutReservationsGetsASparseFile) {
  EXPECT_EXIT(
      {
        ASSERT_TRUE(ForbidSyscall(SYS_fallocate, EOPNOTSUPP));
        const auto device = OpenFileDevice(CreateOptions(4 * kPageBytes));
        EXPECT_TRUE(device.ok()) << device.status();
        EXPECT_TRUE(Transfer(**device, IoOp::kRead, 3 * kPageBytes).ok());
        Exit();
      },
      ExitedWithCode(0), "");
}

TEST_F(FilteredFileDeviceTest, ADiskThatFillsUpWhileReservingIsResourceExhausted) {
  WriteFile(path_, std::string(5000, 'x'));
  EXPECT_EXIT(
      {
        ASSERT_TRUE(ForbidSyscall(SYS_fallocate, ENOSPC));
        FileDeviceOptions options = CreateOptions(8 * kPageBytes);
        const auto text = HasSubstr("not enough disk space");
        ExpectError(options, absl::StatusCode::kResourceExhausted, text);
        options.path = dir_.Join("new");
        ExpectError(options, absl::StatusCode::kResourceExhausted, text);
        Exit();
      },
      ExitedWithCode(0), "");
  EXPECT_EQ(ReadFile(path_), std::string(5000, 'x'));
  EXPECT_FALSE(Exists(dir_.Join("new")));
}

TEST_F(FilteredFileDeviceTest, AFileThatCannotBeLockedIsNotTouched) {
  EXPECT_EXIT(
      {
        ASSERT_TRUE(ForbidSyscall(SYS_flock, ENOLCK));
        ExpectError(CreateOptions(kPageBytes), absl::StatusCode::kInternal,
                    AllOf(HasSubstr(path_), HasSubstr("cannot lock: No locks available")));
        Exit();
      },
      ExitedWithCode(0), "");
}

TEST_F(FilteredFileDeviceTest, ADeviceWithoutThreadsIsUnavailable) {
  EXPECT_EXIT(
      {
        ASSERT_TRUE(ForbidSyscall(SYS_clone3, EAGAIN));
        ASSERT_TRUE(ForbidSyscall(SYS_clone, EAGAIN));
        FileDeviceOptions options = CreateOptions(kPageBytes);
        options.engine = IoEngine::kThreads;
        ExpectError(options, absl::StatusCode::kUnavailable,
                    HasSubstr("cannot start a thread: Resource temporarily unavailable"));
        Exit();
      },
      ExitedWithCode(0), "");
}

}  // namespace
}  // namespace terrace
