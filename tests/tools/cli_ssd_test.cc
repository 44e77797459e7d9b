// `terrace ssd` from outside: exit codes, messages, and what it leaves behind.

#include <sys/stat.h>
#include <sys/syscall.h>

#include <csignal>
#include <filesystem>
#include <fstream>
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

using ::testing::HasSubstr;

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
  std::ifstream file(path, std::ios::binary);
  const std::string content((std::istreambuf_iterator<char>(file)), {});
  EXPECT_EQ(content, std::string(1 << 20, 'x')) << "untouched";
}

TEST_F(CliSsdTest, ForceWritesWithinTheSizeAndKeepsTheFile) {
  const std::string path = MakeFile(1 << 20);
  const RunResult run = Ssd({"--file", path, "--size", "512k", "--op", "seqwrite", "--force"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  std::ifstream file(path, std::ios::binary);
  const std::string content((std::istreambuf_iterator<char>(file)), {});
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
  EXPECT_THAT(Ssd({"--file", dir_.Join("none")}).err, HasSubstr("No such file"));
}

TEST_F(CliSsdTest, SignalEndsItAndNothingIsLeft) {
  for (const int signal : {SIGINT, SIGTERM, SIGKILL}) {
    RunOptions options;
    options.signals = {signal};
    const absl::Time begin = absl::Now();
    options.signal_when = [&](const std::string&) {
      return absl::Now() - begin > absl::Milliseconds(500);
    };
    const RunResult run = SsdInDir({"--seconds", "60"}, options);
    if (signal != SIGKILL) {
      EXPECT_EQ(run.exit_code, 1) << run.signal;
      EXPECT_THAT(run.err, HasSubstr("interrupted"));
    }
    EXPECT_LT(run.after_signal, absl::Seconds(20));
    EXPECT_TRUE(NothingLeft()) << signal;
  }
}

TEST_F(CliSsdTest, KernelWithoutIoUringGetsThreads) {
  if (!CanForbidSyscalls()) GTEST_SKIP() << "no seccomp filters here";
  EXPECT_EXIT(
      {
        ForbidSyscall(SYS_io_uring_setup, EPERM);
        const RunResult run = SsdInDir({});
        exit(run.exit_code == 0 && run.out.find("Engine threads (") != std::string::npos ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace terrace
