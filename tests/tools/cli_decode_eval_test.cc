// `terrace index-eval --decode` from outside.

#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/temp_dir.h"
#include "tests/tools/terrace_program.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

class CliDecodeEvalTest : public ::testing::Test {
 protected:
  RunResult Run(const Arguments& more) const {
    Arguments arguments = {"index-eval"};
    const Arguments flags = WithDefaults(more, {{"--synthetic", "2"},
                                                {"--keys", "6000"},
                                                {"--head-dim", "64"},
                                                {"--samples", "1024"},
                                                {"--steps", "6"},
                                                {"--threads", "2"},
                                                {"--decode", "graph,cluster,streaming"}});
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return RunTerrace(arguments);
  }
  nlohmann::json Json() const {
    std::ifstream file(json_);
    return nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  }

  const TempDir dir_;
  const std::string json_ = dir_.Join("result.json");
};

TEST_F(CliDecodeEvalTest, IndexesAttendToLittleAndComeCloserThanWithoutOne) {
  const RunResult run = Run({"--json", json_, "--lookup-keys", "300", "--cluster-share", "0.05"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const nlohmann::json json = Json();
  ASSERT_EQ(json["policies"].size(), 4u) << json;
  const auto& full = json["policies"][0];
  const auto& streaming = json["policies"][3];
  EXPECT_EQ(full["name"], "full");
  EXPECT_EQ(full["output_error"]["max"], 0);
  for (const size_t i : {1, 2}) {
    const auto& policy = json["policies"][i];
    EXPECT_THAT(run.out, HasSubstr(policy["name"].get<std::string>()));
    EXPECT_LT(policy["output_error"]["mean"], 0.7 * streaming["output_error"]["mean"].get<double>())
        << policy;
    EXPECT_GT(policy["attended_share"], 0.01) << policy;
    EXPECT_LT(policy["attended_share"], 0.5) << policy;
    EXPECT_GT(policy["step_seconds"], 0) << policy;
    EXPECT_GT(policy["index_bytes_per_key"], 0) << policy;
    EXPECT_EQ(policy["index_refusals"], 0) << policy;
    EXPECT_TRUE(policy["cold_seconds"].is_null());
  }
  EXPECT_LT(json["policies"][2]["output_error"]["mean"], 0.2);
}

TEST_F(CliDecodeEvalTest, FromNvmeItReadsWhatDramLacksAndLeavesNothingBehind) {
  const RunResult run = Run({"--json", json_, "--decode", "cluster", "--dram-share", "0.2", "--dir",
                             std::string(dir_.path())});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const nlohmann::json json = Json();
  for (const auto& policy : json["policies"]) {
    EXPECT_GT(policy["cold_seconds"], 0) << policy;
    EXPECT_EQ(policy["degraded_share"], 0) << policy;
  }
  EXPECT_GT(json["policies"][0]["fetched_bytes"], 0);
  EXPECT_FALSE(std::filesystem::exists(dir_.Join("decode-full")));
  EXPECT_FALSE(std::filesystem::exists(dir_.Join("decode-cluster")));
}

TEST_F(CliDecodeEvalTest, InHbmItGivesWhatItGivesInDram) {
  std::vector<double> errors;
  for (const char* const share : {"0", "0.2"}) {
    const RunResult run = Run({"--json", json_, "--decode", "quest", "--hbm-share", share});
    ASSERT_EQ(run.exit_code, 0) << run.err;
    const nlohmann::json json = Json();
    EXPECT_EQ(json["hbm_device"], share == std::string("0") ? "" : "host (HBM emulated)");
    errors.push_back(json["policies"][1]["output_error"]["mean"]);
  }
  EXPECT_NEAR(errors[0], errors[1], 1e-3 * errors[0]);
}

TEST_F(CliDecodeEvalTest, WhatIsWrongIsNamed) {
  const auto fails = [&](const Arguments& flags, int exit_code, const std::string& text) {
    const RunResult run = Run(flags);
    EXPECT_EQ(run.exit_code, exit_code) << text;
    EXPECT_THAT(run.err, HasSubstr(text));
  };
  fails({"--decode", "fast"}, 2, "--decode: lookup policy 'fast' is not one of");
  fails({"--decode", "infllm"}, 2, "before RoPE");
  fails({"--dram-share", "0.5"}, 2, "--dir: needed");
  fails({"--steps", "1"}, 2, "--steps");
  fails({"--dram-share", "0.5", "--dir", std::string(dir_.path()), "--hbm-share", "0.1"}, 2,
        "--hbm-share: takes all keys and values in DRAM");
  fails({"--hbm-share", "0", "--device", "cuda"}, 2, "--device: cuda with --hbm-share 0");
  std::filesystem::create_directory(dir_.Join("decode-full"));
  fails({"--dram-share", "0.5", "--dir", std::string(dir_.path())}, 1, "is there already");
  EXPECT_TRUE(std::filesystem::exists(dir_.Join("decode-full")));
}

}  // namespace
}  // namespace terrace
