#include "tools/output_file.h"

#include <unistd.h>

#include <fstream>
#include <iterator>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/temp_dir.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class OutputFileTest : public ::testing::Test {
 protected:
  std::string Content() const {
    std::ifstream file(path_, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  bool Exists() const { return access(path_.c_str(), F_OK) == 0; }

  const TempDir dir_;
  const std::string path_ = dir_.Join("file");
};

TEST_F(OutputFileTest, ExistingContentStaysUntilItIsReplacedWhole) {
  std::ofstream(path_) << "something longer";
  { const OutputFile unused("--json", path_); }
  EXPECT_EQ(Content(), "something longer");
  OutputFile file("--json", path_);
  EXPECT_EQ(Content(), "something longer");
  EXPECT_TRUE(file.Write("short").ok());
  EXPECT_EQ(Content(), "short");
}

TEST_F(OutputFileTest, NewFileStaysOnlyWhenWritten) {
  {
    const OutputFile unused("--json", path_);
    EXPECT_TRUE(unused.status().ok());
    EXPECT_TRUE(Exists());
  }
  EXPECT_FALSE(Exists());
  {
    OutputFile file("--json", path_);
    EXPECT_TRUE(file.Write("text").ok());
  }
  EXPECT_EQ(Content(), "text");
}

TEST_F(OutputFileTest, PartsAreWrittenInTheirOrderAndTheirErrorComesBack) {
  {
    OutputFile file("--timeline", path_);
    ASSERT_TRUE(file.WriteParts([](OutputFile::Sink sink) {
                      for (const char* const part : {"one ", "two ", "three"}) {
                        if (absl::Status status = sink(part); !status.ok()) return status;
                      }
                      return absl::OkStatus();
                    })
                    .ok());
  }
  EXPECT_EQ(Content(), "one two three");
  OutputFile file("--timeline", path_);
  EXPECT_EQ(file.WriteParts([](OutputFile::Sink) { return absl::DataLossError("no more"); }),
            absl::DataLossError("no more"));
}

TEST_F(OutputFileTest, BadPathsAreKnownAtOnceAndNamedWithTheFlag) {
  for (const std::string& path : {dir_.Join("absent/file"), dir_.path()}) {
    const OutputFile file("--plot", path);
    EXPECT_FALSE(file.status().ok());
    EXPECT_THAT(file.status().message(), AllOf(HasSubstr("--plot"), HasSubstr(path)));
  }
}

TEST_F(OutputFileTest, AFileInUseIsRefusedByAnyNameAndKeepsItsContent) {
  const std::string link = dir_.Join("link");
  const std::string hard_link = dir_.Join("hard-link");
  std::ofstream(path_) << "a tier";
  ASSERT_EQ(symlink(path_.c_str(), link.c_str()), 0);
  ASSERT_EQ(::link(path_.c_str(), hard_link.c_str()), 0);
  for (const std::string& name : {path_, link, hard_link}) {
    OutputFile file("--json", name, {"", dir_.Join("absent"), path_});
    EXPECT_THAT(std::string(file.status().message()),
                AllOf(HasSubstr("--json " + name), HasSubstr(path_)));
    EXPECT_TRUE(file.Write("text").ok()) << "writes nothing";
    EXPECT_EQ(Content(), "a tier");
    EXPECT_FALSE(CheckNotUsed("--flush-log", name, {path_}).ok());
    EXPECT_TRUE(CheckNotUsed("--flush-log", name, {"", dir_.path()}).ok());
  }
}

TEST_F(OutputFileTest, ATierThatIsNotThereYetIsNotMadeByAResult) {
  { EXPECT_FALSE(OutputFile("--json", path_, {path_}).status().ok()); }
  EXPECT_FALSE(Exists());
}

TEST_F(OutputFileTest, DevicesAreWrittenInPlace) {
  EXPECT_TRUE(OutputFile("--json", "/dev/null", {"/dev/null"}).Write("text").ok());
  const absl::Status full = OutputFile("--json", "/dev/full").Write("text");
  EXPECT_THAT(full.message(), AllOf(HasSubstr("--json /dev/full"), HasSubstr("No space left")));
}

TEST_F(OutputFileTest, NoPathIsNoFile) {
  OutputFile file("--json", "");
  EXPECT_TRUE(file.status().ok());
  EXPECT_TRUE(file.Write("text").ok());
}

TEST(JsonTextTest, BytesThatAreNoUtf8AreReplaced) {
  EXPECT_EQ(JsonText({{"path", "a\xff"}}), "{\n  \"path\": \"a\xEF\xBF\xBD\"\n}\n");
}

}  // namespace
}  // namespace terrace
