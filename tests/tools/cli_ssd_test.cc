// `terrace ssd` from outside: exit codes, messages, and what it leaves behind.

#include <sys/stat.h>
#include <sys/syscall.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/device_profile.h"
#include "nlohmann/json.hpp"
#include "tests/support/forbid_syscall.h"
#include "tests/support/temp_dir.h"
#include "tests/tools/terrace_program.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class CliSsdTest : public ::testing::Test {
 protected:
  CliSsdTest() { std::filesystem::create_directory(work_); }

  RunResult Ssd(const Arguments& more, const RunOptions& options = {}) const {
    Arguments arguments = {"ssd"};
    const Arguments flags = WithDefaults(more, {{"--size", "4MiB"},
                                                {"--block-bytes", "4k"},
                                                {"--depth", "4"},
                                                {"--op", "randread"},
                                                {"--seconds", "0.05"},
                                                {"--warmup", "0.01"},
                                                {"--json", json_path_}});
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return RunTerrace(arguments, options);
  }
  RunResult SsdInDir(Arguments more, const RunOptions& options = {}) const {
    more.insert(more.end(), {"--dir", work_});
    return Ssd(more, options);
  }
  nlohmann::json Json() const {
    std::ifstream file(json_path_);
    return nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  }
  std::string MakeFile(size_t bytes) const {
    const std::string path = dir_.Join("existing");
    std::ofstream(path, std::ios::binary) << std::string(bytes, 'x');
    return path;
  }
  static std::string ReadFile(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  static RunOptions SignalAfter(absl::Duration delay, int signal) {
    RunOptions options;
    options.signals = {signal};
    options.signal_when = [due = absl::Now() + delay](const std::string&) {
      return absl::Now() >= due;
    };
    return options;
  }
  bool NothingLeft() const { return std::filesystem::is_empty(work_); }

  const TempDir dir_;
  const std::string work_ = dir_.Join("work");
  const std::string json_path_ = dir_.Join("result.json");
};

TEST_F(CliSsdTest, BadUsageNamesTheFlag) {
  const std::vector<std::pair<Arguments, std::string>> cases = {
      {{"--block-bytes", "4097"}, "--block-bytes"},
      {{"--block-bytes", "0"}, "--block-bytes"},
      {{"--block-bytes", "4k,"}, "--block-bytes"},
      {{"--block-bytes", "8MiB"}, "--block-bytes"},
      {{"--depth", "0"}, "--depth"},
      {{"--depth", "4097"}, "--depth"},
      {{"--depth", "-1"}, "--depth"},
      {{"--op", "read"}, "--op"},
      {{"--op", "mixed:101"}, "--op"},
      {{"--seconds", "0"}, "--seconds"},
      {{"--seconds", "nan"}, "--seconds"},
      {{"--warmup", "-1"}, "--warmup"},
      {{"--size", "4097"}, "--size"},
      {{"--engine", "memory"}, "--engine"},
      {{"--file", "x"}, "--dir"},
  };
  for (const auto& [flags, name] : cases) {
    const RunResult run = SsdInDir(flags);
    EXPECT_EQ(run.exit_code, 2) << flags[0] << " " << flags[1] << ": " << run.err;
    EXPECT_THAT(run.err, HasSubstr(name));
    EXPECT_TRUE(NothingLeft());
  }
  EXPECT_EQ(Ssd({}).exit_code, 2) << "neither --dir nor --file";
}

TEST_F(CliSsdTest, EveryOpIsMeasuredAndNothingIsLeft) {
  const std::string profile = dir_.Join("profile.json");
  const std::string plot = dir_.Join("plot.svg");
  const RunResult run = SsdInDir({"--op", "randread,seqread,randwrite,seqwrite,mixed:70", "--depth",
                                  "1,4", "--profile", profile, "--plot", plot});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("For KV blocks here"));
  EXPECT_TRUE(NothingLeft());
  const nlohmann::json json = Json();
  ASSERT_EQ(json["results"].size(), 10);
  for (const nlohmann::json& row : json["results"]) {
    EXPECT_GT(row["bytes_per_second"], 0);
    EXPECT_GT(row["latency_us"]["p999"], 0);
    EXPECT_EQ(row["errors"], 0);
  }
  const auto read = ReadDeviceProfile(profile);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->rows.size(), 10);
  EXPECT_GT(std::filesystem::file_size(plot), 1000);
}

TEST_F(CliSsdTest, RunsOnThreadsWhenToldTo) {
  const RunResult run = SsdInDir({"--engine", "threads"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(Json()["engine"], "threads");
  EXPECT_THAT(run.out, HasSubstr("Engine threads"));
}

TEST_F(CliSsdTest, SizeAboveFreeSpaceIsRefusedWithBoth) {
  const RunResult run = SsdInDir({"--size", "4096TiB"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("needed"));
  EXPECT_THAT(run.err, HasSubstr("available"));
  EXPECT_TRUE(NothingLeft());
}

TEST_F(CliSsdTest, ExistingFileIsReadWithoutForceOnly) {
  const std::string path = MakeFile(1 << 20);
  EXPECT_EQ(Ssd({"--file", path, "--size", "0"}).exit_code, 0);
  const RunResult refused = Ssd({"--file", path, "--size", "0", "--op", "randread,randwrite"});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr("--force"));
  EXPECT_EQ(ReadFile(path), std::string(1 << 20, 'x')) << "untouched";
}

TEST_F(CliSsdTest, ForceWritesWithinTheSizeAndKeepsTheFile) {
  const std::string path = MakeFile(1 << 20);
  const RunResult run = Ssd({"--file", path, "--size", "512k", "--op", "seqwrite", "--force"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  const std::string content = ReadFile(path);
  ASSERT_EQ(content.size(), 1 << 20);
  EXPECT_EQ(content.substr(512 << 10), std::string(512 << 10, 'x'));
  EXPECT_NE(content.substr(0, 4096), std::string(4096, 'x'));
}

TEST_F(CliSsdTest, FilesThatDoNotFitAreRefused) {
  const std::string path = MakeFile(1 << 20);
  EXPECT_THAT(Ssd({"--file", path, "--size", "2MiB"}).err, HasSubstr("--size"));
  const RunResult large = Ssd({"--file", path, "--size", "0", "--block-bytes", "2MiB"});
  EXPECT_EQ(large.exit_code, 1);
  EXPECT_THAT(large.err, HasSubstr("--block-bytes"));
}

TEST_F(CliSsdTest, FilesThatAreNoneAreRefused) {
  const std::string empty = dir_.Join("empty");
  std::ofstream(empty).close();
  const std::vector<std::pair<std::string, std::string>> cases = {
      {dir_.Join("none"), "No such file"},
      {work_, "is a directory"},
      {empty, "has 0 bytes, less than one page"},
      {"/dev/null", "neither a regular file nor a block device"},
  };
  for (const auto& [path, what] : cases) {
    for (const char* op : {"randread", "randwrite"}) {
      const RunResult run = Ssd({"--file", path, "--size", "0", "--op", op});
      EXPECT_EQ(run.exit_code, 1) << path;
      EXPECT_THAT(run.err, AllOf(HasSubstr("--file " + path), HasSubstr(what)));
      EXPECT_THAT(run.out, IsEmpty());
      EXPECT_FALSE(std::filesystem::exists(json_path_)) << "made for nothing";
    }
  }
  EXPECT_EQ(std::filesystem::file_size(empty), 0);
}

TEST_F(CliSsdTest, DirectoriesThatAreNoneAreRefused) {
  for (const std::string& path : {dir_.Join("none"), MakeFile(4096)}) {
    const RunResult run = Ssd({"--dir", path});
    EXPECT_EQ(run.exit_code, 1);
    EXPECT_THAT(run.err, HasSubstr("--dir " + path));
  }
}

TEST_F(CliSsdTest, FileThatCannotGrowIsAClearErrorAndRemoved) {
  RunOptions options;
  options.max_file_bytes = 1 << 20;
  const RunResult run = SsdInDir({}, options);
  EXPECT_EQ(run.exit_code, 1) << run.signal;
  EXPECT_THAT(run.err, HasSubstr("File too large"));
  EXPECT_TRUE(NothingLeft());
}

TEST_F(CliSsdTest, BadOutputPathsAreKnownBeforeTheRun) {
  const std::string absent = dir_.Join("absent/file");
  for (const char* flag : {"--json", "--profile", "--plot"}) {
    for (const std::string& path : {absent, dir_.path()}) {
      const RunResult run = SsdInDir({flag, path, "--seconds", "3600"});
      EXPECT_EQ(run.exit_code, 1) << flag << " " << path;
      EXPECT_THAT(run.err, AllOf(HasSubstr(flag), HasSubstr(path)));
      EXPECT_THAT(run.out, IsEmpty());
    }
  }
  // A profile is renamed into its place, so nothing but a file may be there.
  const std::string link = dir_.Join("link");
  std::filesystem::create_symlink("/dev/null", link);
  const RunResult run = SsdInDir({"--profile", link, "--seconds", "3600"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("no regular file"));
  EXPECT_TRUE(std::filesystem::is_symlink(link));
}

TEST_F(CliSsdTest, FailedRunLeavesOldResultsAsTheyAre) {
  const Arguments outputs = {"--json", json_path_,       "--profile", dir_.Join("profile"),
                             "--plot", dir_.Join("plot")};
  for (const size_t i : {1, 3, 5}) std::ofstream(outputs[i]) << "old";
  Arguments arguments = outputs;
  arguments.insert(arguments.end(), {"--size", "4096TiB"});
  EXPECT_EQ(SsdInDir(arguments).exit_code, 1);
  for (const size_t i : {1, 3, 5}) EXPECT_EQ(ReadFile(outputs[i]), "old") << outputs[i];
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir_.path()), {}), 4)
      << "three results and the working directory";
}

TEST_F(CliSsdTest, SignalEndsItAndNothingIsLeft) {
  for (const int signal : {SIGINT, SIGTERM, SIGKILL}) {
    const RunResult run =
        SsdInDir({"--seconds", "3600"}, SignalAfter(absl::Milliseconds(500), signal));
    EXPECT_LT(run.after_signal, absl::Seconds(20));
    EXPECT_TRUE(NothingLeft()) << signal;
    if (signal == SIGKILL) continue;
    EXPECT_EQ(run.exit_code, 1) << run.signal;
    EXPECT_THAT(run.err, HasSubstr("interrupted"));
    EXPECT_THAT(run.out, HasSubstr("Interrupted before the first row was complete"));
    EXPECT_EQ(Json()["interrupted"], true);
    EXPECT_EQ(Json()["results"].size(), 0);
  }
}

TEST_F(CliSsdTest, SignalKeepsTheRowsThatAreComplete) {
  const std::string profile = dir_.Join("profile");
  const std::string plot = dir_.Join("plot");
  std::ofstream(profile) << "old";
  // Hundreds of rows, of which a slow machine completes the first one later.
  std::string depths = "1";
  for (int depth = 2; depth <= 500; ++depth) depths += "," + std::to_string(depth);
  RunResult run;
  size_t rows = 0;
  for (absl::Duration delay = absl::Milliseconds(500); rows == 0 && delay < absl::Seconds(20);
       delay *= 2) {
    run = SsdInDir({"--depth", depths, "--seconds", "0.1", "--profile", profile, "--plot", plot},
                   SignalAfter(delay, SIGINT));
    rows = Json()["results"].size();
  }
  EXPECT_EQ(run.exit_code, 1) << run.signal;
  EXPECT_GT(rows, 0);
  EXPECT_LT(rows, 500);
  EXPECT_EQ(Json()["interrupted"], true);
  EXPECT_EQ(Json()["results"][0]["depth"], 1);
  EXPECT_GE(Json()["results"][rows - 1]["seconds"], 0.09) << "rows are whole";
  EXPECT_THAT(run.out, HasSubstr("Interrupted: only " + std::to_string(rows) + " of 500 rows"));
  EXPECT_THAT(run.err, AllOf(HasSubstr("interrupted by a signal"), HasSubstr("not written")));
  EXPECT_EQ(ReadFile(profile), "old") << "a part does not replace it";
  EXPECT_FALSE(std::filesystem::exists(plot));
  EXPECT_TRUE(NothingLeft());
}

TEST_F(CliSsdTest, KernelWithoutIoUringGetsThreads) {
  if (!CanForbidSyscalls()) GTEST_SKIP() << "no seccomp filters here";
  const auto check = [this] {
    ForbidSyscall(SYS_io_uring_setup, EPERM);
    const RunResult run = SsdInDir({});
    const size_t engine = run.out.find("Engine threads (io_uring is not available: ");
    if (run.exit_code != 0 || engine == std::string::npos) return 1;
    if (engine > run.out.find("bandwidth") || Json()["engine"] != "threads") return 2;
    const RunResult forced = SsdInDir({"--engine", "io_uring"});
    if (forced.exit_code != 1) return 3;
    return forced.err.find("io_uring is not available") != std::string::npos ? 0 : 4;
  };
  EXPECT_EXIT(exit(check()), ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace terrace
