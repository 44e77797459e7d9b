// The real program on real files, killed at a random moment: what it said to be flushed is there.
// TERRACE_CRASH_ROUNDS sets how many rounds there are, TERRACE_CRASH_SEED which one is the first.

#include <sys/stat.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/environment.h"
#include "tests/support/temp_dir.h"
#include "tests/tools/terrace_program.h"
#include "tiers/tier_manager.h"
#include "tools/block_generator.h"
#include "tools/trace.h"

namespace terrace {
namespace {

constexpr uint64_t kDefaultRounds = 4;
constexpr uint64_t kRequests = 300;
constexpr uint64_t kBlockSeed = 5;
constexpr size_t kBlock = 4 << 10;
// One NVMe tier has room for the whole trace, the other for a part of it.
constexpr uint64_t kLargeNvme = 64 << 20;
constexpr uint64_t kSmallNvme = 2 << 20;
// Ids of the flush log that a run comes to write, about.
constexpr uint64_t kMostLogged = 1000;
constexpr absl::Duration kLongEnough = absl::Seconds(60);

struct Totals {
  uint64_t killed = 0;
  uint64_t finished = 0;  // before the signal came
  uint64_t logged = 0;
  uint64_t promised = 0;  // of these, in a tier that has room for all
};

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

class KilledReplay {
 public:
  KilledReplay(uint64_t seed, Totals& totals) : random_(seed), totals_(totals) {}

  void Run() {
    Prepare();
    for (uint64_t kill = 0, kills = 1 + random_() % 2; kill < kills; ++kill) {
      Kill(/*reuse=*/kill > 0);
      Verify();
      if (testing::Test::HasFailure()) return;
    }
    Finish();
  }

 private:
  void Prepare() {
    ASSERT_EQ(mkdir(tier_.c_str(), 0700), 0);
    const RunResult made =
        RunTerrace({"gentrace", "--out", trace_, "--requests", absl::StrCat(kRequests), "--seed",
                    absl::StrCat(random_() % 1000)});
    ASSERT_EQ(made.exit_code, 0) << made.err;
    evicts_ = random_() % 2 == 0;
    threads_ = random_() % 3 == 0;
  }

  Arguments Replay() const {
    return {"replay",
            "--trace",
            trace_,
            "--dir",
            tier_,
            "--block-bytes",
            absl::StrCat(kBlock),
            "--hbm",
            "128KiB",
            "--dram",
            "256KiB",
            "--nvme",
            absl::StrCat(evicts_ ? kSmallNvme : kLargeNvme),
            "--seed",
            absl::StrCat(kBlockSeed),
            "--engine",
            threads_ ? "threads" : "auto"};
  }

  // Runs the program and kills it once the flush log has some number of ids, or at the start.
  void Kill(bool reuse) {
    Arguments arguments = Replay();
    const uint64_t flush_every = 1 + random_() % 8;
    arguments.insert(arguments.end(),
                     {"--flush-every", absl::StrCat(flush_every), "--flush-log", log_});
    if (reuse) arguments.push_back("--reuse");
    const size_t before = Logged().size();
    const uint64_t more = random_() % 8 == 0 ? 0 : random_() % kMostLogged;
    // And a few milliseconds later, which is how often the condition is looked at.
    RunOptions options;
    options.signals = {SIGKILL};
    options.signal_when = [&](const std::string&) { return Logged().size() >= before + more; };
    const RunResult run = RunTerrace(arguments, options);
    ASSERT_TRUE(run.signal == SIGKILL || run.exit_code == 0) << run.err;
    ++(run.signal == SIGKILL ? totals_.killed : totals_.finished);
  }

  // The ids of whole lines.
  std::vector<uint64_t> Logged() const {
    std::vector<std::string> lines = absl::StrSplit(ReadFile(log_), '\n');
    lines.pop_back();
    std::vector<uint64_t> ids(lines.size());
    for (size_t i = 0; i < lines.size(); ++i) EXPECT_TRUE(absl::SimpleAtoi(lines[i], &ids[i]));
    return ids;
  }

  // The kernel may hold on to the file of a killed process for a moment.
  std::unique_ptr<TierManager> Open() const {
    TierManagerOptions options;
    options.block_bytes = kBlock;
    options.nvme_bytes = evicts_ ? kSmallNvme : kLargeNvme;
    options.nvme_dir = tier_;
    options.reuse = true;
    options.model_fingerprint = kBlockSeed;
    const absl::Time deadline = absl::Now() + kLongEnough;
    absl::StatusOr<std::unique_ptr<TierManager>> opened = TierManager::Open(options);
    while (absl::IsUnavailable(opened.status()) && absl::Now() < deadline) {
      opened = TierManager::Open(options);
    }
    EXPECT_TRUE(opened.ok()) << opened.status();
    return opened.ok() ? *std::move(opened) : nullptr;
  }

  // Every block of the trace is whole or a miss, and those in the flush log are there.
  void Verify() {
    const std::unique_ptr<TierManager> manager = Open();
    if (manager == nullptr) return;
    const std::vector<uint64_t> logged = Logged();
    const std::set<uint64_t> flushed(logged.begin(), logged.end());
    const absl::StatusOr<Trace> trace = ReadTrace(trace_, {});
    ASSERT_TRUE(trace.ok()) << trace.status();
    std::set<uint64_t> ids;
    for (const TraceRequest& request : trace->requests()) {
      for (uint64_t id : trace->hash_ids(request)) ids.insert(id);
    }
    for (uint64_t id : ids) {
      const BlockRead read = {.id = {kBlockSeed, id}};
      const absl::StatusOr<Lease> lease = manager->Fetch({&read, 1});
      ASSERT_TRUE(lease.ok()) << lease.status();
      const LeasedBlock& block = (*lease)[0];
      if (block.outcome == BlockOutcome::kServed) {
        EXPECT_FALSE(FirstWrongByte(kBlockSeed, id, {block.data, block.bytes}).has_value()) << id;
      } else {
        EXPECT_EQ(block.outcome, BlockOutcome::kMiss) << id;
        if (!evicts_) {
          EXPECT_FALSE(flushed.contains(id)) << id << " was flushed and is missing";
        }
      }
    }
    totals_.logged += flushed.size();
    if (!evicts_) totals_.promised += flushed.size();
  }

  void Finish() {
    const bool served = !evicts_ && !Logged().empty();
    Arguments arguments = Replay();
    arguments.insert(arguments.end(), {"--reuse", "--json", json_});
    const RunResult run = RunTerrace(arguments);
    ASSERT_EQ(run.exit_code, 0) << run.err;
    const nlohmann::json json = nlohmann::json::parse(ReadFile(json_), nullptr, false);
    EXPECT_EQ(json["requests"], kRequests);
    EXPECT_EQ(json["corrupt_blocks"], 0);
    EXPECT_EQ(json["lost_blocks"], 0);
    EXPECT_EQ(json["failed_flushes"], 0);
    if (served) {
      EXPECT_GT(json["hits"]["nvme"], 0);
    }
  }

  std::mt19937_64 random_;
  Totals& totals_;
  const TempDir dir_;
  const std::string tier_ = dir_.Join("tier");
  const std::string trace_ = dir_.Join("trace.jsonl");
  const std::string log_ = dir_.Join("flushed");
  const std::string json_ = dir_.Join("result.json");
  bool evicts_ = false;
  bool threads_ = false;
};

TEST(KillAndRecover, WhatTheFlushLogNamesIsThere) {
  const uint64_t rounds = EnvironmentNumber("TERRACE_CRASH_ROUNDS", kDefaultRounds);
  const uint64_t first = EnvironmentNumber("TERRACE_CRASH_SEED", 1);
  Totals totals;
  for (uint64_t seed = first; seed < first + rounds && !HasFailure(); ++seed) {
    SCOPED_TRACE(absl::StrCat("TERRACE_CRASH_SEED=", seed));
    KilledReplay(seed, totals).Run();
  }
  const std::string text = absl::StrCat(rounds, " rounds: ", totals.killed, " runs killed, ",
                                        totals.finished, " ended before; ", totals.logged,
                                        " ids logged, ", totals.promised, " of them promised");
  std::printf("%s\n", text.c_str());
}

}  // namespace
}  // namespace terrace
