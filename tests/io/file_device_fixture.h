#ifndef TERRACE_TESTS_IO_FILE_DEVICE_FIXTURE_H_
#define TERRACE_TESTS_IO_FILE_DEVICE_FIXTURE_H_

#include <unistd.h>

#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/aligned_buffer.h"
#include "io/block_device.h"
#include "tests/support/temp_dir.h"

namespace terrace {

inline void WriteFile(const std::string& path, const std::string& contents) {
  std::ofstream(path, std::ios::binary) << contents;
}

inline std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline bool Exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

class FileDeviceTest : public testing::Test {
 protected:
  FileDeviceOptions Options(uint64_t size_bytes = 0) const {
    FileDeviceOptions options;
    options.path = path_;
    options.size_bytes = size_bytes;
    return options;
  }
  FileDeviceOptions CreateOptions(uint64_t size_bytes) const {
    FileDeviceOptions options = Options(size_bytes);
    options.create = true;
    return options;
  }

  // Reads or writes the page at `offset`.
  absl::Status Transfer(BlockDevice& device, IoOp op, uint64_t offset, size_t bytes = kPageBytes) {
    const iovec buffer = {memory_.data(), bytes};
    request_ = IoRequest();
    request_.op = op;
    request_.offset = offset;
    request_.buffers = absl::MakeConstSpan(&buffer, 1);
    IoRequest* const batch[] = {&request_};
    return RunBatch(device, batch);
  }

  const TempDir dir_;
  const std::string path_ = dir_.Join("data");
  AlignedBuffer memory_ = *AlignedBuffer::Create(4 * kPageBytes);
  IoRequest request_;
};

// Opens in vain, with this code and text.
inline void ExpectError(const FileDeviceOptions& options, absl::StatusCode code,
                        const testing::Matcher<std::string>& text) {
  const absl::StatusOr<std::unique_ptr<BlockDevice>> device = OpenFileDevice(options);
  EXPECT_EQ(device.status().code(), code) << device.status();
  EXPECT_THAT(std::string(device.status().message()), text);
}

}  // namespace terrace

#endif  // TERRACE_TESTS_IO_FILE_DEVICE_FIXTURE_H_
