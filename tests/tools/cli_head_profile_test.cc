// `terrace eval --profile-heads`, and what `eval` and `generate` do with the profile.

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/head_profile.h"
#include "tests/support/temp_dir.h"
#include "tests/tools/engine/tiny_llama.h"
#include "tests/tools/terrace_program.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

// Questions: sanitizers make the engine tens of times slower.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
constexpr int kQuestions = 4;
#else
constexpr int kQuestions = 10;
#endif

class CliHeadProfileTest : public ::testing::Test {
 protected:
  CliHeadProfileTest() { std::filesystem::create_directory(work_); }

  RunResult Eval(const Arguments& more) const {
    Arguments arguments = {"eval"};
    const Arguments flags = WithDefaults(more, {{"--model", model_},
                                                {"--text", model_ + "/eval.txt"},
                                                {"--lengths", "1024"},
                                                {"--window", "128"},
                                                {"--threads", "2"}});
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return RunTerrace(arguments);
  }
  RunResult Generate(const Arguments& more) const {
    Arguments arguments = {"generate",           "--model", model_, "--tokens", "2", "--prompt",
                           std::string(600, 'a')};
    const Arguments flags =
        WithDefaults(more, {{"--threads", "2"}, {"--window", "128"}, {"--json", json_path_}});
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return RunTerrace(arguments);
  }
  // Of the small model, as flags for the profile say.
  RunResult ProfileHeads(const Arguments& more = {}) const {
    Arguments flags = {"--profile-heads", profile_, "--profile-texts", "3"};
    flags.insert(flags.end(), more.begin(), more.end());
    return Eval(flags);
  }
  static nlohmann::json ReadJson(const std::string& path) {
    std::ifstream file(path);
    return nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  }
  // A profile of the shape of the small model, of no weights.
  static HeadProfile MadeUp() {
    HeadProfile profile;
    profile.layers = 4;
    profile.query_heads = 4;
    profile.kv_heads = 2;
    profile.head_dim = 64;
    profile.sink_tokens = 4;
    profile.window_tokens = 128;
    profile.texts = profile.tokens = profile.queries = 1;
    profile.heads.resize(8);
    return profile;
  }
  std::string Write(const std::string& name, const HeadProfile& profile) const {
    std::ofstream(dir_.Join(name)) << HeadProfileText(profile);
    return dir_.Join(name);
  }

  const TempDir dir_;
  const std::string model_ = TinyLlamaDirectory();
  const std::string json_path_ = dir_.Join("result.json");
  const std::string profile_ = dir_.Join("heads.json");
  const std::string work_ = dir_.Join("work");
};

#define SKIP_WITHOUT_MODEL() \
  if (!HasTinyLlama()) GTEST_SKIP() << "no model in " << model_

TEST_F(CliHeadProfileTest, BadUsageNamesTheFlag) {
  const std::string made_up = Write("made_up", MadeUp());
  const std::vector<std::pair<Arguments, std::string>> cases = {
      {{"--needles", "1", "--streaming-heads", "0.5"}, "--head-profile: needed"},
      {{"--needles", "1", "--head-profile", made_up}, "--streaming-heads: needed"},
      {{"--needles", "1", "--head-profile", made_up, "--streaming-heads", "1.5"},
       "--streaming-heads"},
      {{"--needles", "1", "--head-profile", made_up, "--streaming-heads", "0,nan"},
       "--streaming-heads"},
      {{"--needles", "1", "--head-profile", made_up, "--streaming-heads", "0.5", "--policy",
        "infllm-published"},
       "--streaming-heads: with --policy infllm-published"},
      {{"--needles", "1", "--head-profile", made_up, "--streaming-heads", "0.5", "--window", "64"},
       "--window: 64 is less than the 128"},
      {{"--needles", "1", "--head-profile", made_up, "--streaming-heads", "0.5", "--sinks", "2"},
       "--sinks: 2 is less than the 4"},
      {{"--profile-heads", profile_, "--needles", "1"}, "--needles excludes --profile-heads"},
      {{"--profile-heads", profile_, "--json", json_path_}, "--json excludes --profile-heads"},
      {{"--profile-heads", profile_, "--profile-texts", "0"}, "--profile-texts"},
  };
  for (const auto& [flags, message] : cases) {
    const RunResult run = Eval(flags);
    EXPECT_EQ(run.exit_code, 2) << message << ": " << run.err;
    EXPECT_THAT(run.err, HasSubstr(message));
  }
  for (const char* policy : {"plain", "streaming", "infllm-published"}) {
    const RunResult run =
        Generate({"--head-profile", made_up, "--streaming-heads", "0.5", "--policy", policy});
    EXPECT_EQ(run.exit_code, 2) << run.err;
    EXPECT_THAT(run.err, HasSubstr(std::string("--policy ") + policy));
  }
  const RunResult two = Generate({"--head-profile", made_up, "--streaming-heads", "0.25", "0.5"});
  EXPECT_EQ(two.exit_code, 2) << two.err;
}

TEST_F(CliHeadProfileTest, AProfileOfAnotherShapeIsBadUsage) {
  SKIP_WITHOUT_MODEL();
  HeadProfile layers = MadeUp();
  layers.layers = 3;
  layers.heads.resize(6);
  HeadProfile heads = MadeUp();
  heads.kv_heads = 4;
  heads.heads.resize(16);
  const std::pair<std::string, std::string> cases[] = {
      {Write("layers", layers), "--head-profile: head profile: measured on a model whose layers"},
      {Write("heads", heads), "--head-profile: head profile: measured on a model whose KV heads"}};
  for (const auto& [path, message] : cases) {
    const Arguments flags = {"--head-profile", path, "--streaming-heads", "0.5"};
    Arguments with_needles = flags;
    with_needles.insert(with_needles.end(), {"--needles", "1"});
    for (const RunResult& run : {Eval(with_needles), Generate(flags)}) {
      EXPECT_EQ(run.exit_code, 2) << run.err;
      EXPECT_THAT(run.err, HasSubstr(message));
    }
  }
}

TEST_F(CliHeadProfileTest, FailuresSayWhatAndWhere) {
  SKIP_WITHOUT_MODEL();
  HeadProfile other = MadeUp();
  other.model_id = 1;
  std::ofstream(dir_.Join("bad")) << R"({"format": "terrace head profile", "version": 7})";
  const std::pair<std::string, std::string> cases[] = {
      {dir_.Join("absent"), "absent: cannot open"},
      {dir_.Join("bad"), "bad: version: is 7"},
      {Write("other", other), "with other weights"}};
  for (const auto& [path, message] : cases) {
    const RunResult run = Generate({"--head-profile", path, "--streaming-heads", "0.5"});
    EXPECT_EQ(run.exit_code, 1) << run.err;
    EXPECT_THAT(run.err, HasSubstr("--head-profile: "));
    EXPECT_THAT(run.err, HasSubstr(message));
  }
  const RunResult short_text = ProfileHeads({"--lengths", "1024,200"});
  EXPECT_EQ(short_text.exit_code, 1);
  EXPECT_THAT(short_text.err, HasSubstr("--lengths: texts of 200 tokens leave no room"));
  EXPECT_FALSE(std::filesystem::exists(profile_)) << "nothing is left behind";
  const RunResult nowhere = Eval({"--profile-heads", dir_.Join("no/where.json")});
  EXPECT_EQ(nowhere.exit_code, 1);
  EXPECT_THAT(nowhere.err, HasSubstr("--profile-heads"));
}

TEST_F(CliHeadProfileTest, AProfileSaysWhatWasMeasuredAndIsTheSameAgain) {
  SKIP_WITHOUT_MODEL();
  const RunResult run = ProfileHeads({"--lengths", "600,900"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("Attention outside of 4 sinks and a window of 128"));
  EXPECT_EQ(std::count(run.out.begin(), run.out.end(), '\n'), 2 + 8);
  const auto profile = ReadHeadProfile(profile_);
  ASSERT_TRUE(profile.ok()) << profile.status();
  EXPECT_EQ(profile->layers, 4u);
  EXPECT_EQ(profile->kv_heads, 2u);
  EXPECT_NE(profile->model_id, 0u);
  EXPECT_EQ(profile->texts, 6u);
  EXPECT_EQ(profile->queries, 6 * 5u);  // five digits
  EXPECT_GT(profile->tokens, 3 * 1500u - 100);
  EXPECT_LT(profile->tokens, 3 * 1500u + 100);
  for (const HeadProfile::Head& head : profile->heads) {
    EXPECT_LE(head.mean_outside, head.max_outside);
  }
  const std::string text = HeadProfileText(*profile);
  ASSERT_EQ(ProfileHeads({"--lengths", "600,900"}).exit_code, 0);
  EXPECT_EQ(HeadProfileText(*ReadHeadProfile(profile_)), text);
}

// The heads that the profile names may stream, the others may not, and what streams reads nothing.
TEST_F(CliHeadProfileTest, NeedlesAreFoundWithTheHalfThatNeedsLeastStreaming) {
  SKIP_WITHOUT_MODEL();
  ASSERT_EQ(ProfileHeads().exit_code, 0);
  HeadProfile other = *ReadHeadProfile(profile_);
  for (HeadProfile::Head& head : other.heads) head.mean_outside = 1 - head.mean_outside;
  const auto needles = [&](const std::string& profile, const std::string& shares) {
    const RunResult run =
        Eval({"--needles", std::to_string(kQuestions), "--head-profile", profile,
              "--streaming-heads", shares, "--share", "0.1", "--dir", work_, "--json", json_path_});
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return ReadJson(json_path_);
  };
  const nlohmann::json chosen = needles(profile_, "0,0.5");
  const nlohmann::json rest = needles(Write("other", other), "0.5");
  EXPECT_EQ(chosen["heads"], 8);
  ASSERT_EQ(chosen["policies"].size(), 2u);
  const nlohmann::json& full = chosen["policies"][0];
  const nlohmann::json& half = chosen["policies"][1];
  EXPECT_EQ(full["streaming_heads"], 0);
  EXPECT_EQ(half["streaming_heads"], 4);
  EXPECT_EQ(half["policy"], "full");
  const auto answered = [](const nlohmann::json& policy) {
    return policy["needles"]["answered"].get<int>();
  };
  EXPECT_GE(answered(full), kQuestions * 3 / 4);
  EXPECT_GE(answered(half), answered(full) - 1);
  EXPECT_LT(answered(rest["policies"][0]), answered(half));
  // Every head has as many blocks, so half of the heads want half of them.
  EXPECT_EQ(half["lookups"]["blocks"].get<uint64_t>() * 2,
            full["lookups"]["blocks"].get<uint64_t>());
  EXPECT_LT(half["lookups"]["fetched_bytes"].get<double>(),
            0.6 * full["lookups"]["fetched_bytes"].get<double>());
  EXPECT_GT(half["lookups"]["fetched_bytes"], 0);
}

TEST_F(CliHeadProfileTest, EveryPolicyIsMeasuredWithEveryShareThatItTakes) {
  SKIP_WITHOUT_MODEL();
  const RunResult run =
      Eval({"--perplexity", "--perplexity-window", "400", "--perplexity-windows", "1", "--policy",
            "plain,full,quest,infllm,streaming", "--head-profile", Write("made_up", MadeUp()),
            "--streaming-heads", "0,0.5,1", "--json", json_path_});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  std::vector<std::pair<std::string, int>> measured;
  const nlohmann::json json = ReadJson(json_path_);
  for (const nlohmann::json& policy : json["policies"]) {
    measured.emplace_back(policy["policy"], policy["streaming_heads"]);
  }
  EXPECT_THAT(measured, testing::ElementsAreArray(
                            std::vector<std::pair<std::string, int>>{{"plain", 0},
                                                                     {"full", 0},
                                                                     {"full", 4},
                                                                     {"full", 8},
                                                                     {"quest", 0},
                                                                     {"quest", 4},
                                                                     {"quest", 8},
                                                                     {"infllm", 0},
                                                                     {"infllm", 4},
                                                                     {"infllm", 8},
                                                                     {"streaming", 8}}));
  EXPECT_THAT(run.out, HasSubstr("quest, 4 of 8 heads streaming"));
  const auto nats = [&](size_t i) -> double {
    return json["policies"][i]["perplexity"]["nats_per_byte"];
  };
  EXPECT_EQ(nats(3), nats(10)) << "all heads streaming is the streaming policy";
  EXPECT_EQ(nats(6), nats(10));
  const auto summaries = [&](size_t i) -> double {
    return json["policies"][i]["perplexity"]["cost"]["summary_bytes"];
  };
  EXPECT_LT(summaries(5), summaries(4)) << "quest";
  EXPECT_LT(summaries(8), summaries(7)) << "infllm";
}

TEST_F(CliHeadProfileTest, GenerateSaysHowManyHeadsStreamAndReadsLess) {
  SKIP_WITHOUT_MODEL();
  const std::string made_up = Write("made_up", MadeUp());
  ASSERT_EQ(Generate({}).exit_code, 0);
  const nlohmann::json full = ReadJson(json_path_);
  const RunResult run = Generate({"--head-profile", made_up, "--streaming-heads", "0.75"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("6 of 8 KV heads"));
  const nlohmann::json most = ReadJson(json_path_);
  EXPECT_EQ(full["streaming_heads"], 0);
  EXPECT_EQ(most["streaming_heads"], 6);
  EXPECT_EQ(most["heads"], 8);
  EXPECT_EQ(most["tiers"]["blocks"].get<uint64_t>() * 4, full["tiers"]["blocks"].get<uint64_t>());
}

}  // namespace
}  // namespace terrace
