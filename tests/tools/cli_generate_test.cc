// `terrace generate` from outside: policies and tiers that must not change the text, contexts that
// outlive the process, exit codes and messages.

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/temp_dir.h"
#include "tests/tools/engine/tiny_llama.h"
#include "tests/tools/terrace_program.h"
#include "tools/index_eval/qkv_dump.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr size_t kPromptBytes = 1500;

class CliGenerateTest : public ::testing::Test {
 protected:
  CliGenerateTest() { std::filesystem::create_directory(tier_); }

  // Generates 16 tokens after the first bytes of the evaluation text, unless `more` says otherwise.
  RunResult Generate(const Arguments& more) const {
    Arguments arguments = {"generate"};
    Defaults defaults = {{"--model", model_}, {"--tokens", "16"}, {"--kv-dtype", "fp32"},
                         {"--window", "128"}, {"--threads", "2"}, {"--json", json_path_}};
    if (std::find(more.begin(), more.end(), "--prompt") == more.end()) {
      defaults.push_back({"--prompt-file", prompt_});
    }
    const Arguments flags = WithDefaults(more, defaults);
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return RunTerrace(arguments);
  }
  nlohmann::json Json() const {
    std::ifstream file(json_path_);
    return nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  }
  std::vector<int32_t> Tokens(const Arguments& more) const {
    const RunResult run = Generate(more);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return Json()["tokens"].get<std::vector<int32_t>>();
  }
  std::string WritePrompt() const {
    std::ifstream text(model_ + "/eval.txt", std::ios::binary);
    std::string prompt(kPromptBytes, '\0');
    text.read(prompt.data(), kPromptBytes);
    std::ofstream(dir_.Join("prompt"), std::ios::binary) << prompt;
    return dir_.Join("prompt");
  }

  const TempDir dir_;
  const std::string model_ = TinyLlamaDirectory();
  const std::string json_path_ = dir_.Join("result.json");
  const std::string tier_ = dir_.Join("tier");
  const std::string prompt_ = WritePrompt();
};

#define SKIP_WITHOUT_MODEL() \
  if (!HasTinyLlama()) GTEST_SKIP() << "no model in " << model_

TEST_F(CliGenerateTest, BadUsageNamesTheFlag) {
  const std::vector<std::pair<Arguments, std::string>> cases = {
      {{"--policy", "best"}, "--policy: \"best\" is not one of plain, full"},
      {{"--tokens-per-block", "0"}, "--tokens-per-block"},
      {{"--sinks", "65"}, "--sinks: 65 is more than the --tokens-per-block of 64"},
      {{"--window", "-1"}, "--window"},
      {{"--lookup-blocks", "0"}, "--lookup-blocks"},
      {{"--representatives", "0"}, "--representatives"},
      {{"--page-tokens", "x"}, "--page-tokens"},
      {{"--kv-dtype", "fp8"}, "--kv-dtype"},
      {{"--device", "tpu"}, "--device"},
      {{"--dram", "some"}, "--dram"},
      {{"--nvme", "64MiB"}, "--dir: needed"},
      {{"--engine", "memory"}, "--engine"},
      {{"--threads", "2000"}, "--threads"},
      {{"--save", "a"}, "--save: needs --nvme and --dir"},
      {{"--load", "a"}, "--load: needs --nvme and --dir"},
      {{"--policy", "plain", "--save", "a"}, "--save: --policy plain keeps nothing"},
      {{"--dump-qkv", "d", "--load", "a", "--nvme", "64MiB", "--dir", tier_}, "--dump-qkv: --load"},
      {{"--prompt", "a", "--prompt-file", "b"}, "--prompt"},
  };
  for (const auto& [flags, message] : cases) {
    const RunResult run = Generate(flags);
    EXPECT_EQ(run.exit_code, 2) << flags[0] << " " << flags[1] << ": " << run.err;
    EXPECT_THAT(run.err, HasSubstr(message));
  }
}

TEST_F(CliGenerateTest, FailuresSayWhatAndWhere) {
  SKIP_WITHOUT_MODEL();
  const std::vector<std::pair<Arguments, std::string>> cases = {
      {{"--model", dir_.Join("absent")}, "absent/config.json"},
      {{"--dram", "4KiB"}, "--dram: 4096 is less than one block"},
      {{"--hbm", "64KiB"}, "--hbm: 65536 is less than "},
      {{"--tokens-per-block", "3", "--sinks", "2"}, "--tokens-per-block: 3 tokens of"},
      {{"--page-tokens", "7", "--policy", "quest"}, "quest"},
      {{"--dram", "512KiB"}, "all 3 columns of 64 tokens that the tiers can hold"},
      {{"--nvme", "64MiB", "--dir", tier_, "--load", "nobody"}, "no saved context 'nobody'"},
      {{"--nvme", "64MiB", "--dir", tier_, "--save", "../x"}, "name of a saved context"},
  };
  for (const auto& [flags, message] : cases) {
    const RunResult run = Generate(flags);
    EXPECT_EQ(run.exit_code, 1) << flags[0] << " " << flags[1] << ": " << run.err;
    EXPECT_THAT(run.err, HasSubstr(message));
  }
}

TEST_F(CliGenerateTest, WithoutADeviceCudaSaysWhatIsMissing) {
  SKIP_WITHOUT_MODEL();
  for (const char* const policy : {"plain", "full"}) {
    const RunResult run = Generate({"--device", "cuda", "--policy", policy});
    if (run.exit_code == 0) GTEST_SKIP() << "there is a device";
    EXPECT_EQ(run.exit_code, 1) << run.err;
    EXPECT_THAT(run.err, HasSubstr("terrace generate: --device cuda: "));
    EXPECT_TRUE(Json().is_discarded()) << "a result of a run that was none";
  }
}

TEST_F(CliGenerateTest, TheResultNamesTheDevice) {
  SKIP_WITHOUT_MODEL();
  Tokens({"--policy", "plain", "--device", "cpu"});
  EXPECT_EQ(Json()["device"], "cpu");
  EXPECT_EQ(Json()["device_bytes"], 0);
}

class CliGenerateOnDeviceTest : public CliGenerateTest {
 protected:
  void SetUp() override {
    SKIP_WITHOUT_MODEL();
    const RunResult run = Generate({"--device", "cuda", "--policy", "plain", "--tokens", "1"});
    if (run.exit_code != 0) GTEST_SKIP() << run.err;
  }
};

TEST_F(CliGenerateOnDeviceTest, TokensAreThoseOfTheCpu) {
  const std::vector<int32_t> expected = Tokens({"--policy", "plain"});
  EXPECT_EQ(Tokens({"--device", "cuda", "--policy", "plain"}), expected);
  EXPECT_NE(Json()["device"], "cpu");
  EXPECT_GT(Json()["device_bytes"], 0);
}

TEST_F(CliGenerateOnDeviceTest, TiersDoNotChangeTheText) {
  const std::vector<int32_t> expected = Tokens({"--policy", "plain"});
  EXPECT_EQ(Tokens({"--device", "cuda", "--policy", "full"}), expected);
  EXPECT_GT(Json()["tiers"]["capacity_bytes"]["hbm"], 0) << "unless told otherwise";
  EXPECT_EQ(Tokens({"--device", "cuda", "--policy", "full", "--hbm", "5MiB"}), expected);
  EXPECT_EQ(Tokens({"--device", "cuda", "--policy", "full", "--hbm", "0"}), expected);
  EXPECT_EQ(Json()["tiers"]["capacity_bytes"]["hbm"], 0);
}

TEST_F(CliGenerateOnDeviceTest, GraphsAreBuiltThere) {
  for (const char* const device : {"cpu", "cuda"}) {
    Tokens({"--device", device, "--policy", "graph", "--index-tail", "256"});
    const nlohmann::json tiers = Json()["tiers"];
    EXPECT_GT(tiers["index_seconds"], 0) << device;
    if (device == absl::string_view("cuda")) {
      EXPECT_GT(tiers["device_neighbours"]["searches"], 0);
    } else {
      EXPECT_EQ(tiers["device_neighbours"]["searches"], 0);
    }
    EXPECT_EQ(tiers["device_neighbours"]["failures"], 0) << device;
  }
}

TEST_F(CliGenerateTest, TiersDoNotChangeTheText) {
  SKIP_WITHOUT_MODEL();
  const std::vector<int32_t> plain = Tokens({"--policy", "plain"});
  EXPECT_EQ(plain.size(), 16u);
  EXPECT_EQ(Tokens({"--policy", "full"}), plain);
  EXPECT_EQ(Json()["tiers"]["fetched_bytes"], 0);
  EXPECT_EQ(Tokens({"--policy", "full", "--kv-dtype", "fp16"}), plain);
  // Windows take 3 MiB of the HBM.
  EXPECT_EQ(Tokens({"--policy", "full", "--hbm", "5MiB"}), plain);
  EXPECT_GT(Json()["tiers"]["hits"]["hbm"], 0);
  // A tenth of 6 MiB, the rest on NVMe.
  EXPECT_EQ(Tokens({"--policy", "full", "--dram", "640KiB", "--nvme", "64MiB", "--dir", tier_}),
            plain);
  const nlohmann::json tiers = Json()["tiers"];
  EXPECT_GT(tiers["fetched_bytes"], 0);
  EXPECT_GT(tiers["hits"]["nvme"], 0);
  EXPECT_EQ(tiers["lost_blocks"], 0);
}

TEST_F(CliGenerateTest, ASavedContextGoesOnInAnotherProcess) {
  SKIP_WITHOUT_MODEL();
  const std::vector<int32_t> plain = Tokens({"--policy", "plain", "--tokens", "24"});
  const auto in_tier = [&](const Arguments& more) {
    Arguments flags = {"--dram", "640KiB", "--nvme", "64MiB", "--dir", tier_};
    flags.insert(flags.end(), more.begin(), more.end());
    return Tokens(flags);
  };
  std::vector<int32_t> tokens = in_tier({"--tokens", "10", "--save", "chat"});
  const std::vector<int32_t> rest =
      in_tier({"--tokens", "14", "--load", "chat", "--prompt", "", "--save", "longer"});
  EXPECT_EQ(Json()["loaded_tokens"], 1 + kPromptBytes + 10);
  EXPECT_EQ(Json()["prompt_tokens"], 1);
  tokens.insert(tokens.end(), rest.begin(), rest.end());
  EXPECT_EQ(tokens, plain);
  // A prompt follows what was saved.
  in_tier({"--tokens", "1", "--load", "longer", "--prompt", "And then?"});
  EXPECT_EQ(Json()["loaded_tokens"], 1 + kPromptBytes + 24);
  EXPECT_EQ(Json()["prompt_tokens"], 9);
}

TEST_F(CliGenerateTest, ReuseRunsOnlyWhatIsNotCached) {
  SKIP_WITHOUT_MODEL();
  const Arguments flags = {"--policy", "infllm", "--nvme", "64MiB", "--dir", tier_, "--reuse"};
  const std::vector<int32_t> first = Tokens(flags);
  EXPECT_EQ(Json()["prefix_tokens"], 0);
  const std::vector<int32_t> second = Tokens(flags);
  EXPECT_GT(Json()["prefix_tokens"], 1000);
  EXPECT_EQ(Json()["prefix_tokens"].get<size_t>() + Json()["prompt_tokens"].get<size_t>(),
            1 + kPromptBytes);
  EXPECT_EQ(second.size(), first.size());
}

TEST_F(CliGenerateTest, AnEmptyPromptIsOneAndTheReportIsComplete) {
  SKIP_WITHOUT_MODEL();
  for (const char* const policy :
       {"plain", "full", "streaming", "infllm", "infllm-published", "quest", "graph", "cluster"}) {
    const RunResult run = Generate({"--policy", policy, "--prompt", ""});
    ASSERT_EQ(run.exit_code, 0) << run.err;
    for (const char* const part : {"prefill", "decode", "tokens/s", "peak memory"}) {
      EXPECT_THAT(run.out, HasSubstr(part));
    }
    const nlohmann::json json = Json();
    EXPECT_EQ(json["policy"], policy);
    EXPECT_EQ(json["prompt_tokens"], 1) << "the token that begins every text";
    EXPECT_EQ(json["generated_tokens"], 16);
    EXPECT_TRUE(json["peak_memory_bytes"].is_number_unsigned());
    if (policy == std::string("plain")) {
      EXPECT_TRUE(json["tiers"].is_null());
      continue;
    }
    EXPECT_THAT(run.out, HasSubstr("lost blocks"));
    for (const char* const field :
         {"blocks", "late_blocks", "tokens", "fetched_bytes", "lost_blocks", "lost_tokens",
          "window_bytes", "summary_bytes", "index_bytes", "index_refusals"}) {
      EXPECT_TRUE(json["tiers"][field].is_number_integer()) << field;
    }
    EXPECT_EQ(json["tiers"]["capacity_bytes"]["dram"], 256 << 20);
  }
}

TEST_F(CliGenerateTest, DumpsAllTokensThatWereRun) {
  SKIP_WITHOUT_MODEL();
  const std::string path = dir_.Join("dump.safetensors");
  // Another way to attend gives the same queries, keys and values.
  for (const char* const policy : {"plain", "full"}) {
    const RunResult run = Generate({"--policy", policy, "--dump-qkv", path});
    ASSERT_EQ(run.exit_code, 0) << run.err;
    const auto dump = QkvDump::Open(path);
    ASSERT_TRUE(dump.ok()) << dump.status();
    EXPECT_EQ(dump->prompt_tokens(), kPromptBytes + 1) << "with its start token";
    EXPECT_EQ(dump->tokens(), kPromptBytes + 16) << "but for the last one generated";
    EXPECT_TRUE(dump->Read(dump->layers() - 1, dump->kv_heads() - 1).ok());
  }
}

TEST_F(CliGenerateTest, RefusesToDumpKeysBeforeRope) {
  SKIP_WITHOUT_MODEL();
  const std::string path = dir_.Join("dump.safetensors");
  const RunResult run = Generate({"--policy", "infllm", "--dump-qkv", path});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("--dump-qkv: --policy infllm takes keys before RoPE"));
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace terrace
