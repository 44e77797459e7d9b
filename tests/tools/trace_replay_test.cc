// The conversation trace of a production service through real tiers with real I/O.

#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/run_program.h"
#include "tests/support/temp_dir.h"
#include "tests/support/textbook_lru.h"
#include "tests/tools/terrace_program.h"
#include "tools/replay.h"
#include "tools/trace.h"

namespace terrace {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool kSanitized = false;
#endif

#ifdef __OPTIMIZE__
constexpr bool kOptimized = true;
#else
constexpr bool kOptimized = false;
#endif

// Slow builds replay the beginning of the trace through smaller tiers.
constexpr bool kWhole = kOptimized && !kSanitized;
constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kRequests = kWhole ? 12'031 : 1'500;
constexpr uint64_t kHbmBytes = (kWhole ? 64 : 8) * kMiB;
constexpr uint64_t kDramBytes = (kWhole ? 256 : 32) * kMiB;
constexpr uint64_t kNvmeBytes = (kWhole ? 2048 : 256) * kMiB;

bool HasRoom(const std::string& path, uint64_t bytes) {
  struct statvfs disk = {};
  return statvfs(path.c_str(), &disk) == 0 && disk.f_bavail * disk.f_frsize >= bytes;
}

bool IsTmpfs(const std::string& path) {
  struct statfs found = {};
  return statfs(path.c_str(), &found) == 0 && found.f_type == TMPFS_MAGIC;
}

class ConversationTraceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* data = std::getenv("TERRACE_TEST_DATA");
    const std::string packed =
        absl::StrCat(data != nullptr ? data : TERRACE_SOURCE_DIR "/../shared/data",
                     "/mooncake/conversation_trace.jsonl.gz");
    if (access(packed.c_str(), R_OK) != 0) {
      GTEST_SKIP() << "no trace at " << packed << "; TERRACE_TEST_DATA says where the data is";
    }
    RunOptions options;
    options.stdout_path = path_;
    const RunResult unpacked = RunProgram({"/usr/bin/env", "gzip", "-dc", packed}, options);
    if (unpacked.exit_code == 127) GTEST_SKIP() << "no gzip: " << unpacked.err;
    ASSERT_EQ(unpacked.exit_code, 0) << unpacked.err;
  }

  Trace Read(uint64_t max_requests) const {
    TraceReadOptions options;
    options.max_requests = max_requests;
    absl::StatusOr<Trace> trace = ReadTrace(path_, options);
    EXPECT_TRUE(trace.ok()) << trace.status();
    return trace.ok() ? *std::move(trace) : Trace();
  }

  const TempDir dir_;
  const std::string path_ = dir_.Join("conversation.jsonl");
};

TEST_F(ConversationTraceTest, HasTheSizeThatItsSourceSays) {
  const Trace trace = Read(0);
  EXPECT_EQ(trace.requests().size(), 12'031);
  EXPECT_EQ(trace.block_refs(), 288'500);
  std::unordered_set<uint64_t> distinct;
  for (const TraceRequest& request : trace.requests()) {
    for (uint64_t id : trace.hash_ids(request)) distinct.insert(id);
  }
  EXPECT_EQ(distinct.size(), 182'790);
}

// --- One tier ---

class ConversationTraceLruTest
    : public ConversationTraceTest,
      public ::testing::WithParamInterface<std::tuple<Tier, size_t, double>> {};

TEST_P(ConversationTraceLruTest, ReusesWhatTheTextbookLruDoes) {
  const auto [tier, capacity, expected_share] = GetParam();
  const Trace trace = Read(kRequests);
  TextbookLru lru(capacity);
  uint64_t expected = 0;
  for (const TraceRequest& request : trace.requests()) {
    for (uint64_t id : trace.hash_ids(request)) expected += lru.Touch(id) ? 1 : 0;
  }
  // Published for this trace by others.
  if (kWhole) {
    EXPECT_NEAR(static_cast<double>(expected) / static_cast<double>(trace.block_refs()),
                expected_share, 0.00005);
  }

  TierManagerOptions options;
  options.block_bytes = 4096;
  (tier == Tier::kHbm ? options.hbm_bytes : options.dram_bytes) = capacity * options.block_bytes;
  absl::StatusOr<std::unique_ptr<TierManager>> tiers = TierManager::Open(options);
  ASSERT_TRUE(tiers.ok()) << tiers.status();
  const std::atomic<bool> stop = false;
  Replay replay(**tiers, trace, stop, ReplayOptions());
  ASSERT_TRUE(replay.Run({}).ok());
  EXPECT_EQ(replay.result().reused_blocks, expected);
  EXPECT_EQ(replay.result().hits[static_cast<size_t>(tier)], expected);
  EXPECT_EQ(replay.result().computed_blocks, trace.block_refs() - expected);
  EXPECT_EQ(replay.result().corrupt_blocks, 0);
}

std::string LruName(const ::testing::TestParamInfo<ConversationTraceLruTest::ParamType>& info) {
  return absl::StrCat(TierName(std::get<0>(info.param)), "_", std::get<1>(info.param), "_blocks");
}

INSTANTIATE_TEST_SUITE_P(Capacities, ConversationTraceLruTest,
                         ::testing::Values(std::tuple(Tier::kHbm, 1'000, 0.0445),
                                           std::tuple(Tier::kDram, 1'000, 0.0445),
                                           std::tuple(Tier::kHbm, 10'000, 0.2112),
                                           std::tuple(Tier::kDram, 10'000, 0.2112),
                                           std::tuple(Tier::kHbm, 50'000, 0.3546),
                                           std::tuple(Tier::kDram, 50'000, 0.3546)),
                         LruName);

// --- Three tiers ---

class ConversationTraceTiersTest : public ConversationTraceTest {
 protected:
  // Replays through three tiers whose files are in `dir`, and expects all that must hold.
  nlohmann::json Replay(const std::string& dir, const std::string& engine,
                        const Arguments& more = {}) const {
    const std::string json_path = dir_.Join("result.json");
    Arguments arguments = {"replay",
                           "--trace",
                           path_,
                           "--block-bytes",
                           "64KiB",
                           "--hbm",
                           absl::StrCat(kHbmBytes),
                           "--dram",
                           absl::StrCat(kDramBytes),
                           "--nvme",
                           absl::StrCat(kNvmeBytes),
                           "--dir",
                           dir,
                           "--engine",
                           engine,
                           "--json",
                           json_path};
    arguments.insert(arguments.end(), more.begin(), more.end());
    RunOptions options;
    options.deadline = absl::Minutes(10);
    uint64_t most_on_disk = 0;
    options.watch = [&] {
      struct stat info = {};
      if (stat(absl::StrCat(dir, "/terrace.kv").c_str(), &info) != 0) return;
      most_on_disk = std::max<uint64_t>(most_on_disk, info.st_size);
      most_on_disk = std::max<uint64_t>(most_on_disk, info.st_blocks * uint64_t{512});
    };
    const RunResult run = RunTerrace(arguments, options);
    EXPECT_EQ(run.exit_code, 0) << run.err << "signal " << run.signal;
    std::ifstream file(json_path);
    nlohmann::json json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) {
      ADD_FAILURE() << "no result";
      return nlohmann::json::object();
    }
    EXPECT_GT(most_on_disk, 0);
    EXPECT_LE(most_on_disk, kNvmeBytes);
    ExpectSound(json);
    ExpectWhatTheKernelSaw(run, json, IsTmpfs(dir));
    return json;
  }

  static void ExpectSound(const nlohmann::json& json) {
    const auto number = [&json](const char* pointer) {
      return json.at(nlohmann::json::json_pointer(pointer)).get<uint64_t>();
    };
    EXPECT_EQ(number("/corrupt_blocks"), 0);
    EXPECT_EQ(number("/lost_blocks"), 0);
    EXPECT_EQ(number("/unstored_blocks"), 0);
    EXPECT_EQ(number("/failed_flushes"), 0);
    EXPECT_EQ(number("/block_refs"), number("/reused_blocks") + number("/computed_blocks"));
    EXPECT_EQ(number("/reused_blocks"),
              number("/hits/hbm") + number("/hits/dram") + number("/hits/nvme"));
    EXPECT_EQ(number("/nvme_capacity_bytes"), kNvmeBytes);
    EXPECT_LE(number("/nvme_peak_bytes"), kNvmeBytes);
    // NVMe hits in plenty: it is far larger than the tiers above it.
    EXPECT_GT(number("/hits/nvme"), number("/hits/hbm"));
    EXPECT_GT(number("/hits/nvme"), number("/hits/dram"));
    // Each of them was read once, as a whole.
    EXPECT_GE(number("/bytes/nvme_read"), number("/hits/nvme") * 65'536);
  }

  static void ExpectWhatTheKernelSaw(const RunResult& run, const nlohmann::json& json,
                                     bool on_tmpfs) {
    if (!kSanitized) {
      const uint64_t limit = kHbmBytes + kDramBytes + 128 * kMiB;
      EXPECT_LE(json["peak_memory_bytes"], limit);
      EXPECT_LE(run.peak_memory_bytes, limit);
    }
    // The kernel counts bytes that pass through the page cache when it pleases, and those of tmpfs
    // never.
    if (!json["direct_io"].get<bool>() || on_tmpfs) return;
    const auto expect_near = [](uint64_t reported, uint64_t counted) {
      const double slack = 0.05 * static_cast<double>(counted) + 1.0 * kMiB;
      EXPECT_NEAR(static_cast<double>(reported), static_cast<double>(counted), slack);
    };
    expect_near(json["bytes"]["nvme_read"], run.read_bytes);
    expect_near(json["bytes"]["nvme_written"], run.written_bytes);
    expect_near(json["kernel_io"]["read_bytes"], run.read_bytes);
    expect_near(json["kernel_io"]["write_bytes"], run.written_bytes);
  }
};

TEST_F(ConversationTraceTiersTest, AgreeOnEveryEngineAndFilesystem) {
  constexpr uint64_t kRoom = kNvmeBytes + 64 * kMiB;
  if (!HasRoom(dir_.path(), kRoom)) {
    GTEST_SKIP() << dir_.path() << ": less than " << kRoom << " bytes free";
  }
  const Arguments requests = {"--requests", absl::StrCat(kRequests)};
  const nlohmann::json first = Replay(dir_.path(), "auto", requests);
  EXPECT_EQ(first["requests"], kRequests);
  if (kWhole) {
    EXPECT_EQ(first["block_refs"], 288'500);
  }

  {
    SCOPED_TRACE("threads, starting empty in the directory of the first run");
    const nlohmann::json threads = Replay(dir_.path(), "threads", requests);
    EXPECT_EQ(threads["engine"], "threads");
    EXPECT_EQ(threads["reused_blocks"], first["reused_blocks"]);
    EXPECT_EQ(threads["hits"], first["hits"]);
    EXPECT_EQ(threads["evicted_blocks"], first["evicted_blocks"]);
  }
  if (!IsTmpfs("/dev/shm") || !HasRoom("/dev/shm", kRoom)) {
    GTEST_SKIP() << "/dev/shm is no tmpfs with " << kRoom << " bytes free; the rest was tested";
  }
  {
    SCOPED_TRACE("tmpfs");
    const TempDir memory("/dev/shm");
    const nlohmann::json cached = Replay(memory.path(), "auto", requests);
    EXPECT_EQ(cached["reused_blocks"], first["reused_blocks"]);
    EXPECT_EQ(cached["hits"], first["hits"]);
    EXPECT_EQ(cached["evicted_blocks"], first["evicted_blocks"]);
  }
}

}  // namespace
}  // namespace terrace
