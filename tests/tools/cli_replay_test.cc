// The replay command from outside, over more than one run: what a tier directory keeps, signals,
// and file size limits.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/temp_dir.h"
#include "tests/tools/terrace_program.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::Eq;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A signal is acted upon after one request, which is milliseconds of work; sanitizers and a busy
// machine stretch that.
constexpr absl::Duration kQuickly = absl::Seconds(20);

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

class CliReplayTest : public ::testing::Test {
 protected:
  CliReplayTest() { EXPECT_EQ(mkdir(tier_.c_str(), 0700), 0); }

  std::string MakeTrace(uint64_t requests, uint64_t seed = 1) const {
    const std::string path = dir_.Join(absl::StrCat("trace-", requests, "-", seed, ".jsonl"));
    const RunResult run = RunTerrace({"gentrace", "--out", path, "--requests",
                                      absl::StrCat(requests), "--seed", absl::StrCat(seed)});
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return path;
  }

  // Three tiers, of which NVMe has room for all that these tests store.
  RunResult Replay(const std::string& trace, const Arguments& more = {},
                   const RunOptions& options = {}) const {
    const Arguments flags = WithDefaults(more, {{"--block-bytes", "4KiB"},
                                                {"--hbm", "1MiB"},
                                                {"--dram", "2MiB"},
                                                {"--nvme", "64MiB"},
                                                {"--dir", tier_},
                                                {"--json", json_path_}});
    Arguments arguments = {"replay", "--trace", trace};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return RunTerrace(arguments, options);
  }

  nlohmann::json Json() const {
    return nlohmann::json::parse(ReadFile(json_path_), nullptr, false);
  }

  nlohmann::json MustReplay(const std::string& trace, const Arguments& more = {}) const {
    const RunResult run = Replay(trace, more);
    EXPECT_EQ(run.exit_code, 0) << run.err << "signal " << run.signal;
    const nlohmann::json json = Json();
    EXPECT_EQ(json["corrupt_blocks"], 0);
    EXPECT_EQ(json["block_refs"],
              json["reused_blocks"].get<uint64_t>() + json["computed_blocks"].get<uint64_t>());
    return json;
  }

  const TempDir dir_;
  const std::string tier_ = dir_.Join("tier");
  const std::string tier_file_ = absl::StrCat(tier_, "/terrace.kv");
  const std::string json_path_ = dir_.Join("result.json");
  const std::string log_path_ = dir_.Join("flushed");
};

// --- Where the HBM tier is ---

TEST_F(CliReplayTest, TheReportSaysThatHbmWasEmulated) {
  EXPECT_EQ(MustReplay(MakeTrace(20))["copy_engine"], "host (HBM emulated)");
}

TEST_F(CliReplayTest, ADeviceWithoutAnHbmTierIsBadUsage) {
  const RunResult run = Replay(MakeTrace(20), {"--device", "cuda", "--hbm", "0"});
  EXPECT_EQ(run.exit_code, 2);
  EXPECT_THAT(run.err, HasSubstr("--device: cuda with --hbm 0"));
  EXPECT_EQ(Replay(MakeTrace(20), {"--device", "tpu"}).exit_code, 2);
}

TEST_F(CliReplayTest, ADeviceThatIsNotThereIsNamed) {
  const RunResult run = Replay(MakeTrace(20), {"--device", "cuda"});
  if (run.exit_code == 0) GTEST_SKIP() << "a device answers";
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("CUDA copy engine: "));
}

// Needs a device that answers; is skipped, by name, where there is none.
class CliReplayOnDevice : public CliReplayTest {};

TEST_F(CliReplayOnDevice, ServesWhatTheEmulatedTierServes) {
  const std::string trace = MakeTrace(100);
  const RunResult run = Replay(trace, {"--device", "cuda"});
  if (run.exit_code != 0 && run.err.find("CUDA copy engine: ") != std::string::npos) {
    GTEST_SKIP() << run.err;
  }
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const nlohmann::json on_device = Json();
  EXPECT_NE(on_device["copy_engine"], "host (HBM emulated)");
  EXPECT_EQ(on_device["corrupt_blocks"], 0);
  EXPECT_GT(on_device["hits"]["hbm"], 0);
  EXPECT_GT(on_device["bytes"]["hbm_copied"], 0);
  EXPECT_EQ(on_device["hits"], MustReplay(trace)["hits"]);
}

// --- What a directory keeps ---

TEST_F(CliReplayTest, ReuseServesWhatAnEarlierRunStored) {
  const std::string trace = MakeTrace(300);
  const nlohmann::json first = MustReplay(trace, {"--reuse"});
  EXPECT_EQ(first["evicted_blocks"], 0) << "the test wants all of it to fit";
  EXPECT_GT(first["computed_blocks"], 1000);

  const nlohmann::json second = MustReplay(trace, {"--reuse"});
  EXPECT_EQ(second["reused_blocks"], second["block_refs"]);
  EXPECT_GE(second["hits"]["nvme"], first["computed_blocks"]);
  EXPECT_EQ(second["lost_blocks"], 0);

  const nlohmann::json other_engine = MustReplay(trace, {"--reuse", "--engine", "threads"});
  EXPECT_EQ(other_engine["reused_blocks"], second["block_refs"]);
}

TEST_F(CliReplayTest, WithoutReuseARunStartsEmpty) {
  const std::string trace = MakeTrace(200);
  const nlohmann::json first = MustReplay(trace);
  EXPECT_EQ(MustReplay(trace)["hits"], first["hits"]);
  // Whatever the first runs stored must be gone after one that has none of their blocks.
  const std::string other = dir_.Join("other.jsonl");
  std::ofstream(other) << R"({"timestamp": 0, "input_length": 1, "output_length": 1, )"
                       << R"("hash_ids": [987654321]})";
  MustReplay(other);
  EXPECT_EQ(MustReplay(trace, {"--reuse"})["hits"], first["hits"]);
}

TEST_F(CliReplayTest, ATierOfAnotherKindIsRefusedAndLeftAlone) {
  const std::string trace = MakeTrace(50);
  MustReplay(trace);
  const std::string content = ReadFile(tier_file_);
  const std::vector<std::pair<Arguments, std::string>> cases = {
      {{"--block-bytes", "8KiB"}, "block size"},
      {{"--seed", "2"}, "model fingerprint"},
      {{"--nvme", "32MiB"}, "capacity"},
  };
  for (const auto& [flags, what] : cases) {
    Arguments more = {"--reuse"};
    more.insert(more.end(), flags.begin(), flags.end());
    const RunResult run = Replay(trace, more);
    EXPECT_EQ(run.exit_code, 1);
    EXPECT_THAT(run.out, IsEmpty());
    EXPECT_THAT(run.err, AllOf(HasSubstr(tier_file_), HasSubstr(what)));
    EXPECT_TRUE(ReadFile(tier_file_) == content) << what;
  }
}

TEST_F(CliReplayTest, AFileThatWasCutShortIsReported) {
  const std::string trace = MakeTrace(20);
  MustReplay(trace);
  const uint64_t whole = ReadFile(tier_file_).size();
  constexpr uint64_t kKept = 5000;
  ASSERT_EQ(truncate(tier_file_.c_str(), off_t{kKept}), 0);
  const RunResult run = Replay(trace, {"--reuse"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, AllOf(HasSubstr("CUT SHORT"), HasSubstr("degraded")));
  EXPECT_EQ(Json()["recovery"]["missing_bytes"], whole - kKept);
  EXPECT_EQ(Json()["nvme_health"], "degraded");
}

TEST_F(CliReplayTest, OutputsDoNotOverwriteWhatTheRunLivesOn) {
  const std::string trace = MakeTrace(5);
  const std::string trace_bytes = ReadFile(trace);
  for (const char* flag : {"--json", "--flush-log", "--export-ops"}) {
    for (const std::string& path : {tier_file_, trace}) {
      SCOPED_TRACE(absl::StrCat(flag, " ", path));
      const RunResult run = Replay(trace, {flag, path});
      EXPECT_EQ(run.exit_code, 1);
      EXPECT_THAT(run.err, AllOf(HasSubstr(flag), HasSubstr(path), HasSubstr("same file")));
      EXPECT_EQ(ReadFile(trace), trace_bytes);
    }
  }
  MustReplay(trace, {"--reuse"});
}

TEST_F(CliReplayTest, ABadKeyFileIsNamedAndTheTierStays) {
  const std::string trace = MakeTrace(20);
  MustReplay(trace);
  const std::string before = ReadFile(tier_file_);
  for (const std::string& path : {tier_, std::string("/dev/zero"), dir_.Join("absent"), trace}) {
    const RunResult run = Replay(trace, {"--key-file", path});
    EXPECT_EQ(run.exit_code, 1) << "signal " << run.signal;
    EXPECT_THAT(run.err, AllOf(HasSubstr("--key-file"), HasSubstr(path)));
    EXPECT_TRUE(ReadFile(tier_file_) == before);
  }
}

TEST_F(CliReplayTest, AFileThatIsNoTierIsRefusedAndLeftAlone) {
  const std::string content(10'000, 'x');
  std::ofstream(tier_file_) << content;
  const std::string trace = MakeTrace(5);
  for (const Arguments& more : {Arguments{"--reuse"}, Arguments{}}) {
    const RunResult run = Replay(trace, more);
    EXPECT_EQ(run.exit_code, 1);
    EXPECT_THAT(run.out, IsEmpty());
    EXPECT_THAT(run.err, AllOf(HasSubstr(tier_file_), HasSubstr("not a tier file")));
    EXPECT_TRUE(ReadFile(tier_file_) == content);
  }
}

// --- What a device profile changes ---

TEST_F(CliReplayTest, ADeviceProfileChangesTheRequestsAndNoHit) {
  const std::string trace = MakeTrace(300);
  const nlohmann::json before = MustReplay(trace, {"--hbm", "0", "--dram", "128KiB"});
  const std::string profile = dir_.Join("disk.json");
  std::ofstream(profile) << R"({"version": 1, "device": "made up", "rows": [
    {"op": "randread", "block_bytes": 4096, "depth": 48, "bytes_per_second": 1e8, "iops": 24414,
     "p50_us": 1, "p99_us": 2, "p999_us": 3},
    {"op": "randread", "block_bytes": 32768, "depth": 8, "bytes_per_second": 8e8, "iops": 24414,
     "p50_us": 1, "p99_us": 2, "p999_us": 3}]})";
  const nlohmann::json after =
      MustReplay(trace, {"--hbm", "0", "--dram", "128KiB", "--profile", profile});
  EXPECT_EQ(after["io_depth"], 48);
  EXPECT_EQ(after["coalesce_gap_bytes"], 128u << 10) << "a request takes as long whatever its size";
  EXPECT_EQ(after["coalesce_read_bytes"], 128u << 10) << "never less than without a profile";
  EXPECT_GT(after["hits"]["nvme"], 0);
  EXPECT_EQ(after["hits"], before["hits"]);
  EXPECT_NE(before["io_depth"], 48);
}

TEST_F(CliReplayTest, ABadDeviceProfileIsNamed) {
  const std::string trace = MakeTrace(5);
  const std::string profile = dir_.Join("disk.json");
  EXPECT_THAT(Replay(trace, {"--profile", profile}).err,
              AllOf(HasSubstr("--profile"), HasSubstr(profile), HasSubstr("No such file")));
  for (const char* text : {"", "{}", "[1]", R"({"version": 1, "device": "x"})"}) {
    std::ofstream(profile, std::ios::trunc) << text;
    const RunResult run = Replay(trace, {"--profile", profile});
    EXPECT_EQ(run.exit_code, 1) << text;
    EXPECT_THAT(run.out, IsEmpty());
    EXPECT_THAT(run.err, AllOf(HasSubstr("--profile"), HasSubstr(profile))) << text;
  }
}

// Each logged id, asked for by itself, is served.
TEST_F(CliReplayTest, EveryBlockInTheFlushLogIsServedAfterwards) {
  MustReplay(MakeTrace(150), {"--flush-every", "16", "--flush-log", log_path_});
  std::ifstream log(log_path_);
  std::set<uint64_t> ids;
  for (uint64_t id = 0; log >> id;) ids.insert(id);
  EXPECT_TRUE(log.eof());
  EXPECT_EQ(ids.size(), Json()["computed_blocks"]) << "nothing was evicted, so all is flushed";

  const std::string trace = dir_.Join("logged.jsonl");
  std::ofstream file(trace);
  for (uint64_t id : ids) {
    file << R"({"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [)" << id
         << "]}\n";
  }
  file.close();
  const nlohmann::json json = MustReplay(trace, {"--reuse"});
  EXPECT_EQ(json["reused_blocks"], ids.size());
  EXPECT_EQ(json["hits"]["nvme"], ids.size());
}

TEST_F(CliReplayTest, ARunningReplayKeepsOthersOut) {
  const std::string trace = MakeTrace(500);
  RunOptions options;
  RunResult second;
  options.signals = {SIGINT};
  options.signal_when = [&](const std::string&) {
    if (ReadFile(log_path_).empty()) return false;
    second = Replay(trace, {"--json", "/dev/null"});
    return true;
  };
  const RunResult first =
      Replay(trace, {"--pace", "trace", "--flush-every", "1", "--flush-log", log_path_}, options);
  EXPECT_EQ(first.exit_code, 1);
  EXPECT_EQ(second.exit_code, 1);
  EXPECT_THAT(second.err, AllOf(HasSubstr(tier_file_), HasSubstr("locked by another process")));
}

// --- Limits of the disk ---

TEST_F(CliReplayTest, AFileSizeLimitIsAClearError) {
  const std::string trace = MakeTrace(50);
  RunOptions options;
  options.max_file_bytes = 1 << 20;
  const RunResult run = Replay(trace, {}, options);
  EXPECT_EQ(run.exit_code, 1) << "signal " << run.signal;
  EXPECT_THAT(run.out, IsEmpty());
  EXPECT_THAT(run.err, AllOf(HasSubstr(tier_file_), HasSubstr("File too large")));
  EXPECT_NE(access(tier_file_.c_str(), F_OK), 0) << "a file that could not be made is not left";
}

// The file is there already, so that only writing finds out. Its path is no UTF-8, which JSON is.
TEST_F(CliReplayTest, ATierThatFailsWhileRunningDegradesTheRun) {
  const std::string trace = MakeTrace(300);
  RunOptions options;
  options.max_file_bytes = 2 << 20;
  for (const char* engine : {"auto", "threads"}) {
    // Each its own tier: the write that fails leaves a torn group behind.
    const std::string odd_dir = dir_.Join(absl::StrCat("tier\xff", engine));
    ASSERT_EQ(mkdir(odd_dir.c_str(), 0700), 0);
    MustReplay(trace, {"--dir", odd_dir, "--requests", "5"});
    const RunResult run = Replay(
        trace, {"--dir", odd_dir, "--reuse", "--engine", engine, "--json", json_path_}, options);
    EXPECT_EQ(run.exit_code, 0) << run.err << "signal " << run.signal;
    EXPECT_THAT(run.out, AllOf(HasSubstr("The NVMe tier stopped taking blocks: "),
                               HasSubstr("File too large")));
    const nlohmann::json json = Json();
    EXPECT_EQ(json["requests"], 300);
    EXPECT_EQ(json["corrupt_blocks"], 0);
    EXPECT_EQ(json["lost_blocks"], 0);
    EXPECT_GT(json["failed_flushes"], 0);
    EXPECT_THAT(json["nvme_error"].get<std::string>(), HasSubstr("File too large"));
    EXPECT_EQ(json["block_refs"],
              json["reused_blocks"].get<uint64_t>() + json["computed_blocks"].get<uint64_t>());
  }
}

TEST_F(CliReplayTest, AFileSizeLimitOnResultsIsAClearError) {
  const std::string trace = MakeTrace(50);
  RunOptions options;
  options.max_file_bytes = 10;
  const RunResult run = Replay(trace, {"--dram", "0", "--nvme", "0"}, options);
  EXPECT_EQ(run.exit_code, 1) << "signal " << run.signal;
  EXPECT_THAT(run.err, AllOf(HasSubstr(json_path_), HasSubstr("File too large")));
}

TEST_F(CliReplayTest, ATierThatTheDiskCannotHoldIsAClearError) {
  const RunResult run = Replay(MakeTrace(5), {"--nvme", "15TiB"});
  if (run.exit_code == 0) GTEST_SKIP() << "this disk has room for 15 TiB";
  EXPECT_EQ(run.exit_code, 1) << "signal " << run.signal;
  EXPECT_THAT(run.out, IsEmpty());
  EXPECT_THAT(run.err, AllOf(HasSubstr(tier_file_), AnyOf(HasSubstr("not enough disk space"),
                                                          HasSubstr("File too large"))));
}

// --- Signals ---

class SignalTest : public CliReplayTest {
 protected:
  // Runs a replay that has hours of work and sends it signals once it is under way.
  RunResult Interrupt(const Arguments& more, std::vector<int> signals) {
    Arguments arguments = {"--flush-every", "1", "--flush-log", log_path_};
    arguments.insert(arguments.end(), more.begin(), more.end());
    RunOptions options;
    options.signals = std::move(signals);
    options.signal_when = [this](const std::string&) { return !ReadFile(log_path_).empty(); };
    RunResult run = Replay(MakeTrace(20'000), arguments, options);
    EXPECT_FALSE(run.timed_out);
    EXPECT_LT(run.after_signal, kQuickly);
    return run;
  }
};

TEST_F(SignalTest, EndsTheReplayWithThePartialTable) {
  for (int signal : {SIGINT, SIGTERM}) {
    for (const char* pace : {"trace", "asap"}) {
      std::ofstream truncated(log_path_);
      truncated.close();
      const RunResult run = Interrupt({"--pace", pace}, {signal});
      EXPECT_EQ(run.exit_code, 1) << "signal " << run.signal;
      EXPECT_THAT(run.out, AllOf(HasSubstr("blocks reused"),
                                 HasSubstr("Interrupted: the figures are partial.")));
      EXPECT_THAT(run.err, HasSubstr("interrupted"));
      const nlohmann::json json = Json();
      EXPECT_EQ(json["interrupted"], true);
      EXPECT_GE(json["requests"], 1);
      EXPECT_LT(json["requests"], 20'000);
      EXPECT_EQ(json["corrupt_blocks"], 0);
      EXPECT_EQ(json["block_refs"],
                json["reused_blocks"].get<uint64_t>() + json["computed_blocks"].get<uint64_t>());
    }
  }
}

TEST_F(SignalTest, ASecondOneEndsItAtOnceAndTheTierStaysGood) {
  const RunResult run = Interrupt({"--pace", "trace"}, {SIGINT, SIGINT});
  // The replay may have been over before the second signal came.
  EXPECT_TRUE(run.signal == SIGINT || run.exit_code == 1) << run.exit_code;

  // The kernel may hold on to the file of a killed process for a moment.
  const std::string trace = MakeTrace(1);
  const absl::Time deadline = absl::Now() + kQuickly;
  RunResult next = Replay(trace, {"--reuse"});
  while (next.exit_code != 0 && absl::Now() < deadline) next = Replay(trace, {"--reuse"});
  EXPECT_EQ(next.exit_code, 0) << next.err;
  EXPECT_EQ(Json()["reused_blocks"], Json()["block_refs"]) << "the first request was flushed";
}

}  // namespace
}  // namespace terrace
