// `terrace eval` from outside: what it measures, prints and leaves behind.

#include <filesystem>
#include <fstream>
#include <iterator>
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

// Questions of the needle test: sanitizers make the engine tens of times slower.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
constexpr int kQuestions = 4;
#else
constexpr int kQuestions = 20;
#endif

class CliEvalTest : public ::testing::Test {
 protected:
  CliEvalTest() { std::filesystem::create_directory(work_); }

  RunResult Eval(const Arguments& more) const {
    Arguments arguments = {"eval"};
    const Arguments flags = WithDefaults(more, {{"--model", model_},
                                                {"--text", model_ + "/eval.txt"},
                                                {"--threads", "2"},
                                                {"--json", json_path_}});
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return RunTerrace(arguments);
  }
  nlohmann::json Json() const {
    std::ifstream file(json_path_);
    return nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  }
  static std::string ReadFile(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }

  const TempDir dir_;
  const std::string model_ = TinyLlamaDirectory();
  const std::string json_path_ = dir_.Join("result.json");
  const std::string work_ = dir_.Join("work");
};

#define SKIP_WITHOUT_MODEL() \
  if (!HasTinyLlama()) GTEST_SKIP() << "no model in " << model_

// Every tag that is opened is closed, in order.
void ExpectWellFormed(const std::string& xml) {
  std::vector<std::string> open;
  for (size_t at = xml.find('<'); at != xml.npos; at = xml.find('<', at)) {
    const size_t end = xml.find('>', at);
    ASSERT_NE(end, xml.npos);
    const std::string tag = xml.substr(at + 1, end - at - 1);
    ASSERT_EQ(tag.find('<'), tag.npos) << tag;
    at = end;
    if (tag.back() == '/') continue;
    const std::string name = tag.substr(0, tag.find(' '));
    if (name[0] != '/') {
      open.push_back(name);
      continue;
    }
    ASSERT_FALSE(open.empty()) << tag;
    ASSERT_EQ(name.substr(1), open.back());
    open.pop_back();
  }
  EXPECT_TRUE(open.empty());
}

TEST_F(CliEvalTest, BadUsageNamesTheFlag) {
  const std::vector<std::pair<Arguments, std::string>> cases = {
      {{}, "--perplexity and --needles"},
      {{"--policy", "full,best", "--needles", "1"}, "--policy: \"best\" is not one of"},
      {{"--policy", "full,", "--needles", "1"}, "--policy: \"\" is not one of"},
      {{"--needles", "4", "--share", "0.05"}, "--dir: needed with --share"},
      {{"--needles", "4", "--share", "0"}, "--share"},
      {{"--needles", "4", "--share", "1.5", "--dir", work_}, "--share"},
      {{"--needles", "4", "--share", "0.1", "--dir", work_, "--hbm", "1MiB"}, "--hbm"},
      {{"--needles", "4", "--nvme", "64MiB"}, "--dir: needed"},
      {{"--needles", "-1"}, "--needles"},
      {{"--needles", "4", "--lengths", "1"}, "--lengths"},
      {{"--needles", "4", "--lengths", "long"}, "--lengths"},
      {{"--needles", "4", "--depths", "0"}, "--depths"},
      {{"--needles", "6", "--keys", "6"}, "--keys"},
      {{"--needles", "5", "--keys", "2"}, "--needles: 5 is not a multiple"},
      {{"--needles", "4", "--keys", "4", "--depths", "2"}, "--keys: 4 in one text"},
      {{"--perplexity", "--plot", "x.svg"}, "--plot"},
      {{"--perplexity", "--perplexity-window", "1"}, "--perplexity-window"},
  };
  for (const auto& [flags, message] : cases) {
    const RunResult run = Eval(flags);
    EXPECT_EQ(run.exit_code, 2) << message << ": " << run.err;
    EXPECT_THAT(run.err, HasSubstr(message));
  }
}

TEST_F(CliEvalTest, FailuresSayWhatAndWhere) {
  SKIP_WITHOUT_MODEL();
  const std::string empty = dir_.Join("empty");
  std::ofstream(empty) << "";
  const std::vector<std::pair<Arguments, std::string>> cases = {
      {{"--text", dir_.Join("absent")}, "absent"},
      {{"--text", empty}, "is empty"},
      {{"--lengths", "60"}, "no room"},
  };
  for (const auto& [flags, message] : cases) {
    Arguments arguments = flags;
    arguments.insert(arguments.end(), {"--needles", "1"});
    const RunResult run = Eval(arguments);
    EXPECT_EQ(run.exit_code, 1) << message << ": " << run.err;
    EXPECT_THAT(run.err, HasSubstr(message));
  }
}

TEST_F(CliEvalTest, FullOverTiersPredictsLikePlainAttention) {
  SKIP_WITHOUT_MODEL();
  const RunResult run = Eval({"--perplexity", "--perplexity-window", "1024", "--perplexity-windows",
                              "2", "--policy", "plain,full,streaming", "--window", "128", "--share",
                              "0.1", "--dir", work_, "--kv-dtype", "fp32"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("nats per byte"));
  const nlohmann::json json = Json();
  ASSERT_EQ(json["policies"].size(), 3u);
  EXPECT_EQ(json["share"], 0.1);
  EXPECT_NEAR(json["policies"][1]["perplexity"]["ratio"], 1, 1e-4);
  EXPECT_GT(json["policies"][1]["lookups"]["fetched_bytes"], 0);
  EXPECT_GT(json["policies"][2]["perplexity"]["ratio"], 1.001) << "does not see all";
  EXPECT_EQ(json["policies"][0]["perplexity"]["windows"], 2);
  EXPECT_EQ(json["policies"][0]["perplexity"]["bytes"], 2 * 1023);
  EXPECT_TRUE(json["policies"][0]["needles"].is_null());
  EXPECT_TRUE(std::filesystem::is_empty(work_)) << "nothing is left behind";
}

TEST_F(CliEvalTest, InfllmWithATwentiethFindsAsManyNeedlesAsFull) {
  SKIP_WITHOUT_MODEL();
  const RunResult run = Eval({"--needles", std::to_string(kQuestions), "--lengths", "2048",
                              "--policy", "full,infllm", "--share", "0.05", "--dir", work_});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const nlohmann::json json = Json();
  const int full = json["policies"][0]["needles"]["answered"];
  EXPECT_GE(full, kQuestions * 3 / 4);
  EXPECT_GE(json["policies"][1]["needles"]["answered"], full - 1);
  const nlohmann::json& cost = json["policies"][1]["needles"]["lengths"][0]["cost"];
  EXPECT_LE(cost["dram_bytes"].get<double>(), 0.05 * cost["kv_bytes"].get<double>());
  EXPECT_EQ(cost["lookup_blocks"], 1);
  EXPECT_GT(cost["summary_bytes"], 0);
  EXPECT_EQ(cost["lookups"]["lost_blocks"], 0);
  EXPECT_GT(cost["lookups"]["fetched_bytes"], 0);
}

TEST_F(CliEvalTest, EveryKeyIsAskedAndEveryCellReported) {
  SKIP_WITHOUT_MODEL();
  const std::string plot = dir_.Join("plot.svg");
  const RunResult run = Eval({"--needles", "8", "--keys", "2", "--depths", "4", "--lengths",
                              "600,900", "--policy", "plain,full", "--plot", plot});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("Needles answered, plain"));
  EXPECT_THAT(run.out, HasSubstr("Needles answered, full"));
  const nlohmann::json json = Json();
  EXPECT_EQ(json["keys_per_text"], 2);
  for (const nlohmann::json& policy : json["policies"]) {
    EXPECT_EQ(policy["needles"]["asked"], 16);
    ASSERT_EQ(policy["needles"]["lengths"].size(), 2u);
    for (const nlohmann::json& row : policy["needles"]["lengths"]) {
      ASSERT_EQ(row["depths"].size(), 4u);
      for (const nlohmann::json& cell : row["depths"]) EXPECT_EQ(cell["asked"], 2);
    }
  }
  EXPECT_EQ(json["policies"][0]["needles"]["answered"], json["policies"][1]["needles"]["answered"]);
  const std::string svg = ReadFile(plot);
  ExpectWellFormed(svg);
  EXPECT_THAT(svg, HasSubstr("plain: "));
  EXPECT_THAT(svg, HasSubstr("full: "));
}

}  // namespace
}  // namespace terrace
