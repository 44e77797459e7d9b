#include "tools/key_file.h"

#include <sys/stat.h>

#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

class KeyFileTest : public ::testing::Test {
 protected:
  void Write(size_t bytes) const {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << std::string(bytes, 'k');
  }
  static void ExpectError(const std::string& path, const std::string& why) {
    const absl::Status status = ReadKeyFile(path).status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr("--key-file: " + path + ": "));
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  }

  const TempDir dir_;
  const std::string path_ = dir_.Join("key");
};

TEST_F(KeyFileTest, AFileOfTheRightLengthIsAKey) {
  Write(CipherKey::kBytes);
  EXPECT_TRUE(ReadKeyFile(path_).ok());
}

TEST_F(KeyFileTest, AnotherLengthIsNamed) {
  Write(0);
  ExpectError(path_, "a key of 0 bytes");
  Write(CipherKey::kBytes - 1);
  ExpectError(path_, "a key of 31 bytes");
  Write(CipherKey::kBytes + 1);
  ExpectError(path_, "more than the 32 bytes");
  Write(size_t{1} << 20);
  ExpectError(path_, "more than the 32 bytes");
}

TEST_F(KeyFileTest, WhatIsNoRegularFileIsRefusedAtOnce) {
  ExpectError(dir_.path(), "a directory");
  ExpectError("/dev/zero", "not a regular file");
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  ExpectError(path_, "not a regular file");
  ExpectError(dir_.Join("absent"), "No such file");
}

}  // namespace
}  // namespace terrace
