#include "tools/gentrace.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/gentrace_command.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::vector<TraceLine> Generate(const GentraceOptions& options) {
  absl::StatusOr<TraceGenerator> generator = TraceGenerator::Create(options);
  EXPECT_TRUE(generator.ok()) << generator.status();
  std::vector<TraceLine> requests(options.requests);
  for (TraceLine& request : requests) generator->Next(request);
  return requests;
}

std::string Text(const std::vector<TraceLine>& requests) {
  std::string text;
  for (const TraceLine& request : requests) AppendTraceLine(request, text);
  return text;
}

TEST(TraceRandomTest, BelowCoversItsRange) {
  TraceRandom random(1);
  std::vector<int> counts(10);
  for (int i = 0; i < 10'000; ++i) ++counts.at(random.Below(10));
  for (int count : counts) EXPECT_NEAR(count, 1000, 150);
}

TEST(TraceRandomTest, ExponentialHasItsMeanAndTail) {
  TraceRandom random(1);
  constexpr int kDraws = 200'000;
  constexpr uint64_t kMean = 10'000;
  double sum = 0;
  int above_three_means = 0;
  for (int i = 0; i < kDraws; ++i) {
    const uint64_t value = random.Exponential(kMean);
    sum += static_cast<double>(value);
    above_three_means += value > 3 * kMean;
  }
  EXPECT_NEAR(sum / kDraws, kMean, 100);
  EXPECT_NEAR(above_three_means / double{kDraws}, 0.0498, 0.002);  // exp(-3)
  // The largest draw, 64 * ln 2 means, times the largest mean still fits.
  EXPECT_GT(random.Exponential((uint64_t{1} << 34) - 1), 0);
}

TEST(TraceGeneratorTest, SeedsDecideEverything) {
  GentraceOptions options;
  options.requests = 300;
  const std::string text = Text(Generate(options));
  EXPECT_EQ(text, Text(Generate(options)));
  options.seed = 2;
  EXPECT_NE(text, Text(Generate(options)));
}

// The trace of a seed is the same on every platform and in every version: results of different
// machines and months are compared by it.
TEST(TraceGeneratorTest, TheDefaultTraceNeverChanges) {
  uint64_t digest = 0xcbf29ce484222325;  // FNV-1a
  for (unsigned char c : Text(Generate(GentraceOptions()))) {
    digest = (digest ^ c) * 0x100000001b3;
  }
  EXPECT_EQ(digest, 11426637825871317591u);
}

TEST(TraceGeneratorTest, IdsNamePrefixes) {
  GentraceOptions options;
  options.requests = 3000;
  options.tokens_per_block = 128;
  std::map<uint64_t, std::pair<size_t, uint64_t>> place_of;  // id -> (index, id before it)
  uint64_t next_new_id = 0;
  int64_t last_ms = 0;
  for (const TraceLine& request : Generate(options)) {
    EXPECT_GE(request.timestamp_ms, last_ms);
    last_ms = request.timestamp_ms;
    EXPECT_GE(request.input_length, 1);
    EXPECT_LE(request.input_length, options.max_input_tokens);
    EXPECT_GE(request.output_length, 1);
    EXPECT_EQ(request.hash_ids.size(), (request.input_length + 127) / 128);
    uint64_t before = UINT64_MAX;
    bool new_block_seen = false;
    for (size_t i = 0; i < request.hash_ids.size(); ++i) {
      const uint64_t id = request.hash_ids[i];
      const auto [entry, is_new] = place_of.try_emplace(id, i, before);
      EXPECT_EQ(entry->second, std::make_pair(i, before)) << "block " << id;
      // New ids count up, and only leading blocks can be old.
      if (is_new) {
        EXPECT_EQ(id, next_new_id++);
      }
      EXPECT_TRUE(is_new || !new_block_seen);
      new_block_seen = new_block_seen || is_new;
      before = id;
    }
  }
}

TEST(TraceGeneratorTest, ResemblesAChatService) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    GentraceOptions options;
    options.requests = 5000;
    options.seed = seed;
    absl::StatusOr<TraceGenerator> generator = TraceGenerator::Create(options);
    ASSERT_TRUE(generator.ok());
    TraceLine request;
    size_t longest = 0;
    for (uint64_t i = 0; i < options.requests; ++i) {
      generator->Next(request);
      longest = std::max(longest, request.hash_ids.size());
    }
    const GentraceSummary& summary = generator->summary();
    EXPECT_EQ(summary.requests, options.requests);
    EXPECT_NEAR(static_cast<double>(summary.block_refs) / summary.requests, 24, 4) << seed;
    EXPECT_GE(longest, 180) << seed;
    EXPECT_LE(longest, 250) << seed;
    EXPECT_GT(summary.ideal_reuse(), 0.4) << seed;
    EXPECT_LT(summary.ideal_reuse(), 0.6) << seed;
    EXPECT_NEAR(static_cast<double>(request.timestamp_ms), 5000 / 3.0 * 1000, 150'000) << seed;
  }
}

TEST(TraceGeneratorTest, TheModelHasCorners) {
  GentraceOptions options;
  options.requests = 500;
  options.mean_system_tokens = 0;
  options.mean_turns = 1;
  options.concurrent_sessions = 1;
  absl::StatusOr<TraceGenerator> generator = TraceGenerator::Create(options);
  ASSERT_TRUE(generator.ok());
  EXPECT_EQ(generator->summary().ideal_reuse(), 0);
  TraceLine request;
  for (uint64_t i = 0; i < options.requests; ++i) generator->Next(request);
  EXPECT_EQ(generator->summary().ideal_reuse(), 0) << "nothing is shared";

  options.max_input_tokens = 1;
  options.mean_turn_tokens = 1;
  generator = TraceGenerator::Create(options);
  ASSERT_TRUE(generator.ok());
  generator->Next(request);
  EXPECT_EQ(request.input_length, 1);
  EXPECT_EQ(request.hash_ids.size(), 1);
}

TEST(GentraceOptionsTest, NamesTheFlagAndItsLimits) {
  const auto error_of = [](const std::function<void(GentraceOptions&)>& change) {
    GentraceOptions options;
    change(options);
    const absl::Status status = options.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(TraceGenerator::Create(options).status(), status);
    return std::string(status.message());
  };
  EXPECT_EQ(error_of([](GentraceOptions& o) { o.requests = 0; }),
            "--requests is 0, expected 1 to 100000000");
  EXPECT_EQ(error_of([](GentraceOptions& o) { o.mean_turn_tokens = 200'000; }),
            "--mean-turn-tokens is 200000, expected 1 to 128000");
  EXPECT_THAT(error_of([](GentraceOptions& o) { o.tokens_per_block = 1; }),
              HasSubstr("--tokens-per-block is 1, expected 16 to"));
  EXPECT_THAT(error_of([](GentraceOptions& o) { o.mean_turns = 0.5; }),
              HasSubstr("--mean-turns is 0.5, expected 1 to"));
  EXPECT_THAT(error_of([](GentraceOptions& o) {
                o.requests_per_second = std::numeric_limits<double>::quiet_NaN();
              }),
              HasSubstr("--requests-per-second is nan, expected"));
}

class GentraceCommandTest : public ::testing::Test {
 protected:
  GentraceCommandTest() {
    std::string name = absl::StrCat(::testing::TempDir(), "/terrace_gentrace_XXXXXX");
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
    path_ = absl::StrCat(dir_, "/trace.jsonl");
  }
  ~GentraceCommandTest() override {
    ::unlink(path_.c_str());
    ::rmdir(dir_.c_str());
  }

  // Runs `terrace gentrace` with these arguments as main does, and keeps what it says.
  ExitCode Run(const std::string& arguments) {
    CLI::App app;
    std::function<ExitCode()> run;
    AddGentraceCommand(app, run);
    try {
      app.parse("gentrace " + arguments);
    } catch (const CLI::ParseError& error) {
      errors_ = error.what();
      return ExitCode::kBadUsage;
    }
    ::testing::internal::CaptureStderr();
    const ExitCode code = run();
    errors_ = ::testing::internal::GetCapturedStderr();
    return code;
  }

  std::string dir_;
  std::string path_;
  std::string errors_;
};

TEST_F(GentraceCommandTest, WritesATraceThatReads) {
  ASSERT_EQ(Run(absl::StrCat("--requests 50 --seed 3 --out ", path_)), ExitCode::kSuccess);
  const absl::StatusOr<Trace> trace = ReadTrace(path_);
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->requests().size(), 50);
  EXPECT_THAT(errors_, AllOf(HasSubstr("50 requests"), HasSubstr("ideal reuse")));
}

TEST_F(GentraceCommandTest, WritesToStandardOutput) {
  ::testing::internal::CaptureStdout();
  EXPECT_EQ(Run("--requests 2 --out -"), ExitCode::kSuccess);
  GentraceOptions options;
  options.requests = 2;
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), Text(Generate(options)));
}

TEST_F(GentraceCommandTest, BadUsageNamesTheFlag) {
  EXPECT_EQ(Run(""), ExitCode::kBadUsage);
  EXPECT_THAT(errors_, HasSubstr("--out"));
  EXPECT_EQ(Run("--out x --requests 0"), ExitCode::kBadUsage);
  EXPECT_THAT(errors_, HasSubstr("--requests is 0, expected 1 to"));
  EXPECT_EQ(Run("--out x --requests=-5"), ExitCode::kBadUsage);
  EXPECT_THAT(errors_, AllOf(HasSubstr("--requests"), HasSubstr("-5")));
  EXPECT_EQ(Run("--out x --seed -1"), ExitCode::kBadUsage);
  EXPECT_THAT(errors_, HasSubstr("--seed"));
  EXPECT_EQ(Run("--out x --mean-turns 0"), ExitCode::kBadUsage);
  EXPECT_THAT(errors_, HasSubstr("--mean-turns is 0, expected 1 to"));
  EXPECT_NE(::access("x", F_OK), 0) << "nothing is written before the usage is known good";
}

TEST_F(GentraceCommandTest, SaysWhyItCannotOpen) {
  EXPECT_EQ(Run(absl::StrCat("--out ", dir_, "/none/trace.jsonl")), ExitCode::kFailure);
  EXPECT_THAT(errors_,
              AllOf(HasSubstr("/none/trace.jsonl: cannot open"), HasSubstr("No such file")));
}

TEST_F(GentraceCommandTest, AFullDeviceIsAFailureAndStaysThere) {
  if (::access("/dev/full", W_OK) != 0) GTEST_SKIP() << "no /dev/full";
  EXPECT_EQ(Run("--out /dev/full"), ExitCode::kFailure);
  EXPECT_THAT(errors_, HasSubstr("/dev/full: cannot write: No space left on device"));
  EXPECT_EQ(::access("/dev/full", W_OK), 0);
}

TEST_F(GentraceCommandTest, RemovesHalfATrace) {
  // A limit on file sizes stands for a full disk.
  rlimit old_limit = {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  rlimit limit = old_limit;
  limit.rlim_cur = 10'000;
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  const ExitCode code = Run(absl::StrCat("--out ", path_));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old_limit), 0);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(code, ExitCode::kFailure);
  EXPECT_THAT(errors_, HasSubstr(absl::StrCat(path_, ": cannot write: File too large")));
  EXPECT_NE(::access(path_.c_str(), F_OK), 0);
}

}  // namespace
}  // namespace terrace
