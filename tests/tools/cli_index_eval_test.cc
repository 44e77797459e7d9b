// `terrace index-eval` from outside: synthetic heads and dumps, its JSON and drawing, exit codes
// and messages.

#include <cmath>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/temp_dir.h"
#include "tests/tools/terrace_program.h"
#include "tools/index_eval/qkv_dump_writer.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class CliIndexEvalTest : public ::testing::Test {
 protected:
  RunResult Run(const Arguments& more, const Defaults& defaults = {}) const {
    Arguments arguments = {"index-eval"};
    const Arguments flags = WithDefaults(more, defaults);
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return RunTerrace(arguments);
  }
  // Two small heads, unless `more` says otherwise.
  RunResult Synthetic(const Arguments& more) const {
    return Run(more, {{"--synthetic", "2"},
                      {"--keys", "3000"},
                      {"--samples", "512"},
                      {"--steps", "6"},
                      {"--k", "50"},
                      {"--threads", "2"},
                      {"--index", "flat,ivf"}});
  }
  nlohmann::json Json() const {
    std::ifstream file(json_);
    return nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  }
  std::string Plot() const {
    std::ostringstream text;
    text << std::ifstream(plot_).rdbuf();
    return text.str();
  }
  // A dump of 2 layers with 2 KV heads and 4 query heads, of a prompt and 3 tokens more.
  std::string Dump(size_t prompt_tokens, size_t generated_tokens = 3) const {
    ModelConfig config;
    config.layers = 2;
    config.query_heads = 4;
    config.kv_heads = 2;
    config.head_dim = 16;
    const size_t tokens = prompt_tokens + generated_tokens;
    const std::string path = dir_.Join("dump.safetensors");
    auto writer = QkvDumpWriter::Create(
        path, config, {static_cast<int64_t>(prompt_tokens), static_cast<int64_t>(tokens)});
    EXPECT_TRUE(writer.ok()) << writer.status();
    for (size_t layer = 0; layer < 2; ++layer) {
      std::vector<float> query(tokens * 4 * 16), key(tokens * 2 * 16);
      for (size_t i = 0; i < query.size(); ++i) query[i] = std::sin(static_cast<float>(i * i));
      for (size_t i = 0; i < key.size(); ++i) key[i] = std::cos(static_cast<float>(i * i + layer));
      AttentionStep step;
      step.layer = layer;
      step.tokens = tokens;
      step.query = query;
      step.key = step.value = key;
      EXPECT_TRUE((*writer)->Add(step).ok());
    }
    EXPECT_TRUE((*writer)->Finish().ok());
    return path;
  }

  const TempDir dir_;
  const std::string json_ = dir_.Join("result.json");
  const std::string plot_ = dir_.Join("plot.svg");
};

TEST_F(CliIndexEvalTest, BadUsageNamesTheFlag) {
  const std::vector<std::pair<Arguments, std::string>> cases = {
      {{"--index", "flat"}, "needs either --dump or --synthetic"},
      {{"--synthetic", "0"}, "--synthetic"},
      {{"--synthetic", "2", "--dump", "d"}, "--dump"},
      {{"--synthetic", "1", "--index", "tree"}, "--index: \"tree\" is not one of flat, ivf, hnsw"},
      {{"--synthetic", "1", "--index", "ivf:m=2"}, "--index: ivf:m=2: \"m\" is no option of ivf"},
      {{"--synthetic", "1", "--index", "hnsw:m=1"}, "m is \"1\", expected 2 to 256"},
      {{"--synthetic", "1", "--enough-recall", "1.5"}, "--enough-recall"},
      {{"--synthetic", "1", "--enough-recall", "nan"}, "--enough-recall"},
      {{"--synthetic", "1", "--k", "0"}, "--k"},
      {{"--synthetic", "1", "--k", "-1"}, "--k"},
      {{"--synthetic", "1", "--keys", "0"}, "--keys"},
      {{"--synthetic", "1", "--head-dim", "60"}, "head_dim is 60, expected a multiple of 8"},
      {{"--synthetic", "1", "--steps", "0"}, "--steps"},
      {{"--synthetic", "1", "--sinks", "4"}, "--sinks"},
      {{"--dump", "d", "--keys", "100"}, "--keys"},
      {{"--synthetic", "1", "--efforts", "x"}, "--efforts"},
      {{"--synthetic", "1", "--threads", "2000"}, "--threads"},
  };
  for (const auto& [flags, message] : cases) {
    const RunResult run = Run(flags);
    EXPECT_EQ(run.exit_code, 2) << flags[0] << " " << flags[1] << ": " << run.err;
    EXPECT_THAT(run.err, HasSubstr(message));
  }
}

TEST_F(CliIndexEvalTest, HelpNamesTheIndexes) {
  const RunResult run = Run({"--help"});
  EXPECT_EQ(run.exit_code, 0);
  EXPECT_THAT(run.out, HasSubstr("flat, ivf, hnsw"));
  EXPECT_THAT(run.out, HasSubstr("--dump"));
  EXPECT_THAT(run.out, HasSubstr("hnsw: m, ef_construction"));
}

TEST_F(CliIndexEvalTest, WritesTablesAndJson) {
  const RunResult run = Synthetic({"--json", json_, "--per-head"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("2 heads of 3,000 keys x 128 fp16, group of 4"));
  EXPECT_THAT(run.out, HasSubstr("seed 2"));
  const nlohmann::json json = Json();
  ASSERT_TRUE(json.is_object());
  EXPECT_EQ(json["k"], 50);
  EXPECT_EQ(json["steps"], 6);
  ASSERT_EQ(json["heads"].size(), 2u);
  EXPECT_EQ(json["heads"][1]["keys"], 3000);
  EXPECT_GT(json["scan_rows_us"]["p50"], 0);
  ASSERT_EQ(json["indexes"].size(), 2u);
  const nlohmann::json& flat = json["indexes"][0];
  EXPECT_EQ(flat["name"], "flat");
  EXPECT_EQ(flat["efforts"][0]["recall"]["min"], 1.0);
  EXPECT_EQ(flat["efforts"][0]["scanned_share"]["median"], 1.0);
  const nlohmann::json& ivf = json["indexes"][1];
  ASSERT_GT(ivf["efforts"].size(), 2u);
  EXPECT_EQ(ivf["build_seconds"].size(), 2u);
  double last_recall = 0;
  for (const nlohmann::json& effort : ivf["efforts"]) {
    ASSERT_EQ(effort["heads"].size(), 2u);
    for (const char* const figure :
         {"recall", "scanned_share", "distances", "mass", "mass_of_best", "output_error"}) {
      EXPECT_LE(effort[figure]["min"], effort[figure]["median"]) << figure;
      EXPECT_LE(effort[figure]["median"], effort[figure]["max"]) << figure;
      EXPECT_GE(effort["heads"][0][figure], effort[figure]["min"]) << figure;
    }
    EXPECT_GE(effort["search_us"]["p99"], effort["search_us"]["p50"]);
    EXPECT_GE(effort["recall"]["median"], last_recall) << "with more effort";
    last_recall = effort["recall"]["median"];
  }
  EXPECT_GT(last_recall, ivf["efforts"][0]["recall"]["median"]);
}

TEST_F(CliIndexEvalTest, ComparesVariantsHeadByHead) {
  const RunResult run =
      Synthetic({"--json", json_, "--threads", "1", "--enough-recall", "0.99", "--index",
                 "ivf:lists=8,ivf:lists=100,graph,hnsw:m=16:ef_construction=100"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("For a recall of 0.95, by the cheapest variants"));
  const nlohmann::json json = Json();
  EXPECT_EQ(json["target_recall"], 0.95);
  ASSERT_EQ(json["indexes"].size(), 4u);
  EXPECT_EQ(json["indexes"][1]["name"], "ivf:lists=100");
  EXPECT_EQ(json["indexes"][1]["kind"], "ivf");
  ASSERT_EQ(json["heads"].size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    const nlohmann::json& head = json["heads"][i]["at_target_recall"];
    EXPECT_NEAR(head["ivf"]["recall"], 0.95, 1e-9);
    EXPECT_GT(head["ivf"]["scanned_share"], 0);
    EXPECT_GE(head["graph"]["recall"], 0.95);
    EXPECT_EQ(head["hnsw"]["recall"], head["graph"]["recall"]);
    EXPECT_GE(head["hnsw"]["distances"], 50) << "at least k";
    EXPECT_EQ(head["hnsw"]["index"], "hnsw:m=16:ef_construction=100");
    // The first effort with the recall, on this head or later on the other, was the last.
    const nlohmann::json& efforts = json["indexes"][1]["efforts"];
    for (size_t effort = 0; effort + 1 < efforts.size(); ++effort) {
      EXPECT_LT(efforts[effort]["recall"]["min"], 0.99);
    }
    EXPECT_GE(efforts.back()["recall"]["min"], 0.99);
  }
}

TEST_F(CliIndexEvalTest, MeasuresAttentionAtABudget) {
  const RunResult run = Synthetic({"--json", json_, "--index", "flat,cluster"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("Attention at a budget"));
  const nlohmann::json json = Json();
  EXPECT_FALSE(json["indexes"][0].contains("attention"));
  const nlohmann::json& attention = json["indexes"][1]["attention"];
  EXPECT_EQ(attention["build_seconds"].size(), 2u);
  EXPECT_EQ(attention["kv_share"].size(), 2u);
  ASSERT_EQ(attention["budgets"].size(), 4u);
  for (const char* const choice : {"whole_clusters", "single_keys"}) {
    double last_mass = 0;
    for (const nlohmann::json& budget : attention["budgets"]) {
      const nlohmann::json& read = budget[choice];
      ASSERT_EQ(read["heads"].size(), 2u) << choice;
      EXPECT_EQ(read["heads"][1]["name"], "seed 2");
      for (const char* const figure :
           {"read_share", "mass", "mass_of_oracle", "error", "error_without_estimate"}) {
        EXPECT_LE(read[figure]["min"], read[figure]["median"]) << figure;
        EXPECT_GE(read["heads"][0][figure], read[figure]["min"]) << figure;
      }
      EXPECT_LT(read["error"]["median"], read["error_without_estimate"]["median"]) << choice;
      EXPECT_GT(read["mass"]["median"], last_mass) << choice << ", with more keys read";
      last_mass = read["mass"]["median"];
    }
  }
  for (const nlohmann::json& budget : attention["budgets"]) {
    EXPECT_GT(budget["single_keys"]["mass_of_oracle"]["median"],
              budget["whole_clusters"]["mass_of_oracle"]["median"]);
  }
  EXPECT_EQ(attention["budgets"][2]["share"], 0.03);
}

TEST_F(CliIndexEvalTest, TakesTheEffortsThatAreGiven) {
  const RunResult run =
      Synthetic({"--json", json_, "--index", "ivf", "--efforts", "1,3", "--seed", "9"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const nlohmann::json json = Json();
  ASSERT_EQ(json["indexes"][0]["efforts"].size(), 2u);
  EXPECT_EQ(json["indexes"][0]["efforts"][1]["effort"], 3);
  EXPECT_EQ(json["heads"][0]["name"], "seed 9");
  EXPECT_THAT(run.out, Not(HasSubstr("Head by head")));
}

// Every element is closed in the order in which it was opened.
TEST_F(CliIndexEvalTest, DrawsAWellFormedDocument) {
  const RunResult run = Synthetic({"--plot", plot_});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const std::string svg = Plot();
  ASSERT_THAT(svg, testing::StartsWith("<svg xmlns="));
  std::vector<std::string> open;
  for (size_t at = svg.find('<'); at != std::string::npos; at = svg.find('<', at + 1)) {
    const size_t end = svg.find('>', at);
    ASSERT_NE(end, std::string::npos);
    const std::string tag = svg.substr(at + 1, end - at - 1);
    const std::string name = tag.substr(0, tag.find_first_of(" /", 1));
    if (tag[0] == '/') {
      ASSERT_FALSE(open.empty());
      EXPECT_EQ("/" + open.back(), tag);
      open.pop_back();
    } else if (tag.back() != '/') {
      open.push_back(name);
    }
  }
  EXPECT_TRUE(open.empty());
  EXPECT_THAT(svg, HasSubstr("ivf, effort 1: recall"));
  EXPECT_THAT(svg, HasSubstr("share of keys scanned"));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
}

TEST_F(CliIndexEvalTest, ReadsADump) {
  const Arguments flags = {"--dump",  Dump(300), "--index",  "flat", "--k",    "10",
                           "--sinks", "4",       "--window", "96",   "--json", json_};
  RunResult run = Run(flags);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  nlohmann::json json = Json();
  ASSERT_EQ(json["heads"].size(), 4u);
  EXPECT_EQ(json["heads"][3]["name"], "layer 1 head 1");
  EXPECT_EQ(json["heads"][0]["keys"], 200);
  EXPECT_EQ(json["group"], 2);
  EXPECT_EQ(json["steps"], 3);
  EXPECT_EQ(json["samples"], 2 * 296);
  EXPECT_EQ(json["indexes"][0]["efforts"][0]["recall"]["min"], 1.0);

  Arguments one = flags;
  one.insert(one.end(), {"--layers", "1", "--kv-heads", "0", "--samples", "20", "--steps", "2"});
  run = Run(one);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  json = Json();
  ASSERT_EQ(json["heads"].size(), 1u);
  EXPECT_EQ(json["heads"][0]["name"], "layer 1 head 0");
  EXPECT_EQ(json["samples"], 20);
  EXPECT_EQ(json["steps"], 2);
}

TEST_F(CliIndexEvalTest, BadDumpsAreNamed) {
  const std::string none = dir_.Join("none");
  RunResult run = Run({"--dump", none});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr(none));

  const std::string text = dir_.Join("text");
  std::ofstream(text) << "this is no dump at all";
  run = Run({"--dump", text});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr(text));

  const std::string dump = Dump(300);
  run = Run({"--dump", dump, "--window", "296"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("none beyond 4 sinks and a window of 296"));
  run = Run({"--dump", dump, "--window", "9", "--layers", "2"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("has 2 layers, so no layer 2"));
  run = Run({"--dump", dump, "--window", "9", "--json", dump});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("--json"));
  run = Run({"--dump", Dump(300, 0), "--window", "9"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("no tokens after those of the prompt"));
}

}  // namespace
}  // namespace terrace
