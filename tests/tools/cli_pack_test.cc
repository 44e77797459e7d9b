// `terrace pack` from outside, and paged weights in `terrace generate` and `terrace eval`.

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/temp_dir.h"
#include "tests/tools/engine/tiny_llama.h"
#include "tests/tools/terrace_program.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class CliPackTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasTinyLlama()) GTEST_SKIP() << "no model in " << model_;
  }
  RunResult Pack(const Arguments& more, const RunOptions& options = {}) const {
    Arguments arguments = {"pack", "--model", model_, "--out", file_, "--json", json_};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunTerrace(arguments, options);
  }
  RunResult Generate(const Arguments& more) const {
    Arguments arguments = {"generate", "--model", model_, "--prompt", "The weights of", "--tokens",
                           "24",       "--json",  json_,  "--policy", "plain"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunTerrace(arguments);
  }
  nlohmann::json Json() const {
    std::ifstream file(json_);
    return nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  }
  std::string CalibrationText() const {
    std::ifstream text(model_ + "/eval.txt", std::ios::binary);
    text.seekg(65536);
    std::string bytes(8192, '\0');
    text.read(bytes.data(), 8192);
    std::ofstream(dir_.Join("text"), std::ios::binary) << bytes;
    return dir_.Join("text");
  }
  void FlipByte(uint64_t offset) const {
    std::fstream file(file_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    const int byte = file.get();
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(static_cast<char>(byte ^ 4));
  }

  const TempDir dir_;
  const std::string model_ = TinyLlamaDirectory();
  const std::string file_ = dir_.Join("model.bundles");
  const std::string json_ = dir_.Join("json");
};

TEST_F(CliPackTest, PacksAndInspectsWithoutCalibration) {
  const RunResult run = Pack({});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, AllOf(HasSubstr("4 layers x 768 neurons x 256, relu, fp16, bundled"),
                             HasSubstr("25.00 % of what is read")));
  const nlohmann::json packed = Json();
  EXPECT_EQ(packed["weight_bytes"], 4 * 768 * 1536);
  EXPECT_EQ(packed["data_bytes"], 4 * 384 * 4096);
  EXPECT_EQ(packed["file_bytes"], std::filesystem::file_size(file_));
  const RunResult inspected = RunTerrace({"pack", "--inspect", file_, "--verify", "--json", json_});
  ASSERT_EQ(inspected.exit_code, 0) << inspected.err;
  EXPECT_EQ(Json()["verified_bytes"], 4 * 384 * 4096);
  EXPECT_EQ(Json()["shape"], packed["shape"]);
}

TEST_F(CliPackTest, ADamagedFileIsNamed) {
  ASSERT_EQ(Pack({}).exit_code, 0);
  FlipByte(4096 + 3 * 4096 + 9);
  EXPECT_EQ(RunTerrace({"pack", "--inspect", file_}).exit_code, 0);
  const RunResult verified = RunTerrace({"pack", "--inspect", file_, "--verify"});
  EXPECT_EQ(verified.exit_code, 1);
  EXPECT_THAT(verified.err, AllOf(HasSubstr(file_), HasSubstr("layer 0, expert 0, group 3")));
  FlipByte(40);
  const RunResult inspected = RunTerrace({"pack", "--inspect", file_});
  EXPECT_EQ(inspected.exit_code, 1);
  EXPECT_THAT(inspected.err, HasSubstr("checksum of the header"));
  std::filesystem::resize_file(file_, 5000);
  EXPECT_EQ(RunTerrace({"pack", "--inspect", file_}).exit_code, 1);
  EXPECT_EQ(RunTerrace({"pack", "--inspect", model_ + "/config.json"}).exit_code, 1);
}

TEST_F(CliPackTest, BadUsageIsNamed) {
  const auto refused = [](const Arguments& arguments, const std::string& what) {
    const RunResult run = RunTerrace(arguments);
    EXPECT_EQ(run.exit_code, 2);
    EXPECT_THAT(run.err, HasSubstr(what));
  };
  refused({"pack"}, "--model");
  refused({"pack", "--model", model_}, "--out");
  refused({"pack", "--inspect", file_, "--model", model_}, "--inspect");
  refused({"pack", "--model", model_, "--out", file_, "--verify"}, "--verify");
  refused({"pack", "--model", model_, "--out", file_, "--group-neurons", "none"},
          "--group-neurons");
  refused({"pack", "--model", model_, "--out", file_, "--rank", "8"}, "--calibrate");
  refused({"generate", "--model", model_, "--prompt", "x", "--weights", file_}, "--weights-dram");
  refused({"generate", "--model", model_, "--prompt", "x", "--weights", file_, "--weights-dram",
           "4MiB", "--predictor", "psychic"},
          "psychic");
  refused({"eval", "--model", model_, "--text", model_ + "/eval.txt", "--needles", "1", "--weights",
           file_, "--weights-dram", "4MiB"},
          "--perplexity");
}

TEST_F(CliPackTest, AFullDiskLeavesNoHalfFile) {
  RunOptions options;
  options.max_file_bytes = 100 << 10;
  const RunResult run = Pack({}, options);
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr(file_));
  EXPECT_FALSE(std::filesystem::exists(file_));
  EXPECT_FALSE(std::filesystem::exists(file_ + ".new"));
}

TEST_F(CliPackTest, PagedWeightsGenerateTheSameText) {
  ASSERT_EQ(Pack({"--calibrate", CalibrationText()}).exit_code, 0);
  EXPECT_EQ(Json()["layers"].size(), 4u);
  ASSERT_EQ(Generate({}).exit_code, 0);
  const auto expected = Json()["tokens"].get<std::vector<int32_t>>();
  for (const std::string predictor : {"oracle", "low-rank", "all"}) {
    const RunResult run =
        Generate({"--weights", file_, "--weights-dram", "2MiB", "--predictor", predictor});
    ASSERT_EQ(run.exit_code, 0) << run.err;
    EXPECT_THAT(run.out, AllOf(HasSubstr("I/O, waiting for weights"),
                               HasSubstr("memory management"), HasSubstr(predictor)));
    EXPECT_EQ(Json()["tokens"].get<std::vector<int32_t>>(), expected) << predictor;
    const nlohmann::json weights = Json()["weights"];
    EXPECT_GT(weights["predicted_share"], 0.1);
    EXPECT_LE(weights["pager_bytes"].get<int64_t>() + weights["directory_bytes"].get<int64_t>(),
              2 << 20);
  }
  const RunResult poor = Generate({"--weights", file_, "--weights-dram", "64k"});
  EXPECT_EQ(poor.exit_code, 1);
  EXPECT_THAT(poor.err, AllOf(HasSubstr("needs "), HasSubstr("given 65536")));
}

TEST_F(CliPackTest, EvalComparesPredictors) {
  ASSERT_EQ(Pack({"--calibrate", CalibrationText()}).exit_code, 0);
  const RunResult run = RunTerrace({"eval",
                                    "--model",
                                    model_,
                                    "--text",
                                    model_ + "/eval.txt",
                                    "--policy",
                                    "plain",
                                    "--perplexity",
                                    "--perplexity-window",
                                    "256",
                                    "--perplexity-windows",
                                    "1",
                                    "--weights",
                                    file_,
                                    "--weights-dram",
                                    "8MiB",
                                    "--predictor",
                                    "oracle,low-rank,core",
                                    "--json",
                                    json_});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const nlohmann::json weights = Json()["weights"];
  ASSERT_EQ(weights.size(), 3u);
  EXPECT_NEAR(weights[0]["ratio"], 1, 1e-3);
  EXPECT_EQ(weights[0]["false_negative_share"], 0);
  EXPECT_NEAR(weights[1]["ratio"], 1, 0.02);
  EXPECT_LE(weights[1]["predicted_per_active"], 2);
  EXPECT_EQ(weights[2]["prompt_tokens"], 64);
}

// What was computed with approximate weights must not pass for exact.
TEST_F(CliPackTest, ASavedContextGoesOnWithThePredictorThatMadeItOnly) {
  ASSERT_EQ(Pack({"--calibrate", CalibrationText(), "--calibrate-tokens", "4096"}).exit_code, 0);
  const std::string tiers = dir_.Join("tiers");
  std::filesystem::create_directory(tiers);
  const auto run = [&](const std::string& predictor, const Arguments& more) {
    Arguments arguments = {"generate",       "--model",     model_,    "--prompt",
                           "The weights of", "--tokens",    "24",      "--policy",
                           "full",           "--weights",   file_,     "--weights-dram",
                           "2MiB",           "--predictor", predictor, "--nvme",
                           "64MiB",          "--dir",       tiers};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunTerrace(arguments);
  };
  const RunResult saved = run("core", {"--save", "a"});
  ASSERT_EQ(saved.exit_code, 0) << saved.err;
  for (const std::string predictor : {"oracle", "low-rank"}) {
    const RunResult other = run(predictor, {"--load", "a"});
    EXPECT_EQ(other.exit_code, 1) << predictor;
    EXPECT_THAT(other.err, HasSubstr("model"));
  }
  EXPECT_EQ(run("core", {"--load", "a"}).exit_code, 0);
}

}  // namespace
}  // namespace terrace
