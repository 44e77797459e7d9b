// --timeline of `terrace generate` and `terrace replay`, from outside.

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/temp_dir.h"
#include "tests/support/trace_events.h"
#include "tests/tools/engine/random_model.h"
#include "tests/tools/terrace_program.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;
using ::testing::Key;

class CliTimelineTest : public ::testing::Test {
 protected:
  CliTimelineTest() {
    for (const std::string& directory : {model_, tier_}) {
      std::filesystem::create_directory(directory);
    }
    RandomModel(1).Write(model_);
  }

  RunResult Generate(const Arguments& more) const {
    Arguments arguments = {"generate"};
    const Arguments flags = WithDefaults(more, {{"--model", model_},
                                                {"--prompt", std::string(2000, 'a')},
                                                {"--tokens", "8"},
                                                {"--tokens-per-block", "128"},
                                                {"--window", "256"},
                                                {"--threads", "2"},
                                                {"--timeline", path_}});
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return RunTerrace(arguments);
  }
  RunResult Replay(const Arguments& more) const {
    const std::string trace = dir_.Join("trace.jsonl");
    EXPECT_EQ(RunTerrace({"gentrace", "--out", trace, "--requests", "60"}).exit_code, 0);
    Arguments arguments = {"replay", "--trace", trace};
    const Arguments flags = WithDefaults(more, {{"--block-bytes", "4KiB"},
                                                {"--hbm", "256KiB"},
                                                {"--dram", "512KiB"},
                                                {"--nvme", "64MiB"},
                                                {"--dir", tier_},
                                                {"--timeline", path_}});
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return RunTerrace(arguments);
  }

  std::string Content() const {
    std::ifstream file(path_, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  // What was written, checked for what every such file has.
  Json ReadTimeline() const {
    const std::string text = Content();
    const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (json.is_discarded()) {
      ADD_FAILURE() << "no JSON: " << text.substr(0, 200);
      return json;
    }
    EXPECT_THAT(json["otherData"]["program"].get<std::string>(), HasSubstr("terrace "));
    EXPECT_EQ(json["otherData"]["dropped_events"], 0);
    ExpectNested(json);
    return json;
  }

  const TempDir dir_;
  const std::string model_ = dir_.Join("model");
  const std::string tier_ = dir_.Join("tier");
  const std::string path_ = dir_.Join("timeline.json");
};

// The share of the time from the first to the last event of the main thread that its outermost
// spans cover.
double Covered(const Json& json) {
  const std::map<Row, std::string> names = RowNames(json);
  int64_t first = INT64_MAX;
  int64_t last = 0;
  int64_t covered = 0;
  for (const Json& span : Events(json, "X")) {
    if (names.at(RowOf(span)) != "main") continue;
    const int64_t begin = Nanoseconds(span["ts"]);
    const int64_t end = begin + Nanoseconds(span["dur"]);
    // They come in the order of their beginnings.
    covered += std::max<int64_t>(0, end - std::max(begin, last));
    first = std::min(first, begin);
    last = std::max(last, end);
  }
  return static_cast<double>(covered) / static_cast<double>(last - first);
}

TEST_F(CliTimelineTest, GenerateShowsTheEngineTheLookupsAndTheTiers) {
  const RunResult run = Generate({"--policy", "quest", "--page-tokens", "16", "--lookup-blocks",
                                  "2", "--dram", "64KiB", "--nvme", "64MiB", "--dir", tier_});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const Json json = ReadTimeline();
  const auto rows = SpansByRow(json);
  ASSERT_THAT(rows, Contains(Key("main")));
  EXPECT_THAT(
      rows.at("main"),
      IsSupersetOf({"load model", "open tiers", "prefill", "token", "forward", "attention", "ffn",
                    "output head", "append", "seal", "put", "attend", "lookup", "request rounds",
                    "attend locally", "wait for blocks", "attend blocks", "finish", "flush"}));
  EXPECT_EQ(std::count(rows.at("main").begin(), rows.at("main").end(), "token"), 8);
  EXPECT_THAT(rows, AllOf(Contains(Key("NVMe offload")), Contains(Key(HasSubstr("NVMe")))));
  EXPECT_GT(Covered(json), 0.8);
}

TEST_F(CliTimelineTest, GenerateWithoutTiersShowsTheEngine) {
  const RunResult run = Generate({"--policy", "plain"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const Json json = ReadTimeline();
  const auto rows = SpansByRow(json);
  ASSERT_THAT(rows, Contains(Key("main")));
  EXPECT_THAT(rows.at("main"), IsSupersetOf({"prefill", "token", "forward", "attention", "ffn"}));
  EXPECT_GT(Covered(json), 0.8);
}

TEST_F(CliTimelineTest, ATimelineDoesNotChangeTheText) {
  const auto text = [&](const Arguments& more) {
    Arguments flags = {"--json", dir_.Join("result.json")};
    flags.insert(flags.end(), more.begin(), more.end());
    EXPECT_EQ(Generate(flags).exit_code, 0);
    std::ifstream file(dir_.Join("result.json"));
    return Json::parse(file, nullptr, false)["tokens"];
  };
  EXPECT_EQ(text({}), text({"--timeline", ""}));
}

TEST_F(CliTimelineTest, ReplayShowsItsRequestsAndTheTiers) {
  const RunResult run = Replay({});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const Json json = ReadTimeline();
  const auto rows = SpansByRow(json);
  ASSERT_THAT(rows, Contains(Key("main")));
  EXPECT_THAT(rows.at("main"), IsSupersetOf({"read trace", "open tiers", "request", "make block",
                                             "put", "fetch", "compare bytes", "flush"}));
  EXPECT_EQ(std::count(rows.at("main").begin(), rows.at("main").end(), "request"), 60);
  EXPECT_THAT(rows, AllOf(Contains(Key("NVMe demand")), Contains(Key("NVMe offload")),
                          Contains(Key("HBM up (emulated)"))));
  EXPECT_GT(Covered(json), 0.8);
}

TEST_F(CliTimelineTest, BadPathsAreKnownBeforeTheRunAndNamed) {
  for (const std::string& path : {dir_.Join("absent/file"), dir_.path()}) {
    for (const RunResult& run : {Generate({"--timeline", path}), Replay({"--timeline", path})}) {
      EXPECT_EQ(run.exit_code, 1);
      EXPECT_THAT(run.err, AllOf(HasSubstr("--timeline"), HasSubstr(path)));
      EXPECT_EQ(run.out, "");
    }
  }
}

TEST_F(CliTimelineTest, AFullDiskIsAnError) {
  for (const RunResult& run :
       {Generate({"--timeline", "/dev/full"}), Replay({"--timeline", "/dev/full"})}) {
    EXPECT_EQ(run.exit_code, 1);
    EXPECT_THAT(run.err, HasSubstr("--timeline /dev/full: cannot write"));
  }
}

TEST_F(CliTimelineTest, WhatTheRunLivesOnIsNotOverwritten) {
  ASSERT_EQ(Replay({}).exit_code, 0);
  for (const std::string& path : {dir_.Join("trace.jsonl"), tier_ + "/terrace.kv"}) {
    const RunResult run = Replay({"--timeline", path, "--reuse"});
    EXPECT_EQ(run.exit_code, 1);
    EXPECT_THAT(run.err, AllOf(HasSubstr("--timeline"), HasSubstr("same file")));
  }
  const RunResult run = Generate({"--json", path_});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, AllOf(HasSubstr("--timeline"), HasSubstr("same file")));
}

TEST_F(CliTimelineTest, AFailedRunLeavesTheFileAsItWas) {
  std::ofstream(path_) << "earlier";
  EXPECT_EQ(Generate({"--model", dir_.Join("absent")}).exit_code, 1);
  EXPECT_EQ(Content(), "earlier");
}

}  // namespace
}  // namespace terrace
