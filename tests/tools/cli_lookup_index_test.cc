// Policies graph and cluster from outside: flags, needles that they find again, and what reports
// say of their indexes.

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/temp_dir.h"
#include "tests/tools/engine/tiny_llama.h"
#include "tests/tools/terrace_program.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

// Sanitizers make the engine tens of times slower.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
constexpr int kQuestions = 2;
#else
constexpr int kQuestions = 10;
#endif

class CliLookupIndexTest : public ::testing::Test {
 protected:
  CliLookupIndexTest() { std::filesystem::create_directory(work_); }

  RunResult Run(const std::string& command, const Arguments& more, Defaults defaults) const {
    Arguments arguments = {command};
    defaults.insert(defaults.end(), {{"--model", model_},
                                     {"--tokens-per-block", "16"},
                                     {"--index-tail", "128"},
                                     {"--threads", "2"},
                                     {"--json", json_path_}});
    const Arguments flags = WithDefaults(more, defaults);
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return RunTerrace(arguments);
  }
  // Needles in texts of 2,048 tokens, whose questions are looked up for too.
  RunResult Eval(const Arguments& more) const {
    return Run("eval", more,
               {{"--text", model_ + "/eval.txt"},
                {"--needles", std::to_string(kQuestions)},
                {"--lengths", "2048"},
                {"--question-step", "16"}});
  }
  RunResult Generate(const Arguments& more) const {
    return Run("generate", more, {{"--prompt", prompt_}, {"--tokens", "16"}, {"--window", "128"}});
  }
  nlohmann::json Json() const {
    std::ifstream file(json_path_);
    return nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  }
  static std::string PromptOf(const std::string& path) {
    std::ifstream text(path, std::ios::binary);
    std::string prompt(1000, 'a');
    text.read(prompt.data(), static_cast<std::streamsize>(prompt.size()));
    return prompt;
  }

  const TempDir dir_;
  const std::string model_ = TinyLlamaDirectory();
  const std::string prompt_ = PromptOf(model_ + "/eval.txt");
  const std::string json_path_ = dir_.Join("result.json");
  const std::string work_ = dir_.Join("work");
};

#define SKIP_WITHOUT_MODEL() \
  if (!HasTinyLlama()) GTEST_SKIP() << "no model in " << model_

TEST_F(CliLookupIndexTest, BadUsageNamesTheFlag) {
  const std::vector<Arguments> cases = {
      {"--lookup-keys", "0"},        {"--lookup-keys", "-1"},      {"--graph-effort", "-1"},
      {"--graph-effort", "wide"},    {"--cluster-share", "0"},     {"--cluster-share", "1.5"},
      {"--cluster-share", "nan"},    {"--cluster-patience", "-1"}, {"--cluster-patience", "nan"},
      {"--cluster-min-share", "-1"}, {"--cluster-min-share", "2"}, {"--cluster-min-share", "nan"},
      {"--cluster-patience", "now"}, {"--index-tail", "0"},        {"--index-tail", "-1"},
      {"--index-memory", "some"},    {"--index-memory", "-1"},
  };
  for (const Arguments& flags : cases) {
    for (const RunResult& run : {Eval(flags), Generate(flags)}) {
      EXPECT_EQ(run.exit_code, 2) << flags[0] << " " << flags[1] << ": " << run.err;
      EXPECT_THAT(run.err, HasSubstr(flags[0]));
    }
  }
  for (const char* const step : {"0", "513", "-1"}) {
    const RunResult run = Eval({"--question-step", step});
    EXPECT_EQ(run.exit_code, 2) << step << ": " << run.err;
    EXPECT_THAT(run.err, HasSubstr("--question-step"));
  }
}

TEST_F(CliLookupIndexTest, GraphAndClusterFindAsManyNeedlesAsFull) {
  SKIP_WITHOUT_MODEL();
  const RunResult run =
      Eval({"--policy", "full,graph,cluster", "--cluster-share", "0.2", "--question-step", "1"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("\nIndexes\n"));
  const nlohmann::json json = Json();
  const int full = json["policies"][0]["needles"]["answered"];
  EXPECT_GE(full, kQuestions * 3 / 4);
  for (const size_t policy : {1, 2}) {
    const nlohmann::json& needles = json["policies"][policy]["needles"];
    EXPECT_GE(needles["answered"], full - 1) << json["policies"][policy]["policy"];
    const nlohmann::json& cost = needles["lengths"][0]["cost"];
    EXPECT_GT(cost["index_bytes"], 0);
    EXPECT_GT(cost["index_seconds"], 0);
    EXPECT_EQ(cost["index_refusals"], 0);
    EXPECT_EQ(cost["lookups"]["late_blocks"], 0);
    EXPECT_EQ(cost["lookups"]["lost_blocks"], 0);
  }
  const nlohmann::json& full_cost = json["policies"][0]["needles"]["lengths"][0]["cost"];
  const nlohmann::json& graph = json["policies"][1]["needles"]["lengths"][0]["cost"];
  const nlohmann::json& cluster = json["policies"][2]["needles"]["lengths"][0]["cost"];
  EXPECT_EQ(full_cost["index_bytes"], 0);
  EXPECT_EQ(full_cost["lookups"]["tokens"], 0);
  EXPECT_EQ(graph["lookup_keys"], 100);
  EXPECT_GT(graph["lookups"]["tokens"], 0) << "looked up in the graph";
  EXPECT_LT(graph["lookups"]["blocks"], full_cost["lookups"]["blocks"]) << "not all was read";
  EXPECT_EQ(cluster["lookup_share"], 0.2);
  EXPECT_GT(cluster["lookups"]["missed_mass"], 0) << "some was estimated";
  EXPECT_LT(cluster["lookups"]["blocks"], full_cost["lookups"]["blocks"]) << "not all was read";
}

TEST_F(CliLookupIndexTest, AGraphWithoutRoomIsExactAndSaysSo) {
  SKIP_WITHOUT_MODEL();
  const RunResult run =
      Eval({"--policy", "full,graph", "--share", "0.05", "--dir", work_, "--needles", "2"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const nlohmann::json json = Json();
  const nlohmann::json& full = json["policies"][0]["needles"];
  const nlohmann::json& graph = json["policies"][1]["needles"];
  EXPECT_EQ(graph["answered"], full["answered"]);
  const nlohmann::json& cost = graph["lengths"][0]["cost"];
  EXPECT_GT(cost["index_refusals"], 0);
  EXPECT_EQ(cost["lookups"]["tokens"], 0);
  EXPECT_EQ(cost["lookups"]["blocks"], full["lengths"][0]["cost"]["lookups"]["blocks"]);
  EXPECT_EQ(cost["lookup_keys"], 102) << "a twentieth of the tokens";
}

TEST_F(CliLookupIndexTest, ClustersOnNvmeThatComeLateAreCounted) {
  SKIP_WITHOUT_MODEL();
  const Arguments flags = {"--policy", "cluster", "--share",   "0.2",
                           "--dir",    work_,     "--needles", "2"};
  ASSERT_EQ(Eval(flags).exit_code, 0);
  nlohmann::json cost = Json()["policies"][0]["needles"]["lengths"][0]["cost"];
  EXPECT_EQ(cost["lookup_share"], 0.2);
  EXPECT_EQ(cost["index_refusals"], 0);
  EXPECT_GT(cost["index_bytes"], 0);
  EXPECT_GT(cost["lookups"]["hits"]["nvme"], 0);
  EXPECT_EQ(cost["lookups"]["late_blocks"], 0) << "it waits";
  Arguments impatient = flags;
  impatient.insert(impatient.end(), {"--cluster-patience", "0"});
  ASSERT_EQ(Eval(impatient).exit_code, 0);
  cost = Json()["policies"][0]["needles"]["lengths"][0]["cost"];
  EXPECT_GT(cost["lookups"]["late_blocks"], 0) << "it does not wait";
  EXPECT_EQ(cost["lookups"]["lost_blocks"], 0);
}

TEST_F(CliLookupIndexTest, AllClustersGiveTheTextOfFull) {
  SKIP_WITHOUT_MODEL();
  ASSERT_EQ(Generate({"--policy", "full", "--kv-dtype", "fp32"}).exit_code, 0);
  const nlohmann::json full = Json();
  const RunResult run =
      Generate({"--policy", "cluster", "--cluster-share", "1", "--kv-dtype", "fp32"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("for indexes"));
  EXPECT_THAT(run.out, HasSubstr("built in"));
  const nlohmann::json json = Json();
  EXPECT_EQ(json["tokens"], full["tokens"]);
  EXPECT_GT(json["tiers"]["index_bytes"], 0);
  EXPECT_GT(json["tiers"]["index_seconds"], 0);
  EXPECT_EQ(json["tiers"]["index_refusals"], 0);
  EXPECT_EQ(full["tiers"]["index_bytes"], 0);
}

TEST_F(CliLookupIndexTest, AnIndexWithoutMemoryIsRefused) {
  SKIP_WITHOUT_MODEL();
  for (const char* const policy : {"graph", "cluster"}) {
    const RunResult run = Generate({"--policy", policy, "--index-memory", "1"});
    ASSERT_EQ(run.exit_code, 0) << run.err;
    EXPECT_THAT(run.out, HasSubstr("for want of room"));
    EXPECT_GT(Json()["tiers"]["index_refusals"], 0) << policy;
    EXPECT_EQ(Json()["tiers"]["index_bytes"], 0) << policy;
  }
}

}  // namespace
}  // namespace terrace
