#include "tools/engine/paged_ffn.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/bundle_writer.h"
#include "tests/support/temp_dir.h"
#include "tests/tools/engine/random_model.h"
#include "tests/tools/engine/tiny_llama.h"
#include "tools/engine/byte_tokenizer.h"
#include "tools/engine/checkpoint_bundles.h"
#include "tools/engine/ffn_calibration.h"
#include "tools/engine/generate.h"
#include "tools/engine/input_file.h"
#include "tools/engine/perplexity.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Packs the model of a folder, with the tables of `calibration` where there is one.
absl::Status Pack(const std::string& model, BundleLayout layout, const Calibration* calibration,
                  const std::string& path) {
  const auto checkpoint = Checkpoint::Open(model);
  if (!checkpoint.ok()) return checkpoint.status();
  const auto tensors = FfnTensors::Find(*checkpoint);
  if (!tensors.ok()) return tensors.status();
  BundleShape shape;
  shape.layers = tensors->layers;
  shape.neurons = tensors->neurons;
  shape.width = tensors->width;
  shape.activation = tensors->activation;
  shape.layout = layout;
  shape.group_neurons = BundleShape::AutoGroupNeurons(shape.bundle_bytes());
  BundleTables tables;
  tables.model_fingerprint = *checkpoint->Fingerprint();
  for (size_t i = 0; calibration != nullptr && i < calibration->layers.size(); ++i) {
    const LayerCalibration& layer = calibration->layers[i];
    tables.predictors.push_back({layer.fit.rank, layer.fit.a, layer.fit.b, layer.thresholds});
    tables.frequency.insert(tables.frequency.end(), layer.frequency.begin(), layer.frequency.end());
  }
  CheckpointBundles bundles(*checkpoint, *tensors, shape, {});
  return WriteBundleFile(path, shape, tables,
                         [&bundles](const BundleRun& run, absl::Span<std::byte> bytes) {
                           return bundles.Fill(run, bytes);
                         });
}

class PagedFfnTest : public TinyLlamaTest {
 protected:
  void SetUp() override {
    TinyLlamaTest::SetUp();
    if (IsSkipped()) return;
    const auto text = ReadWholeFile(Join("eval.txt"), uint64_t{1} << 20);
    ASSERT_TRUE(text.ok()) << text.status();
    text_ = *text;
  }
  void PackIt(BundleLayout layout = BundleLayout::kBundled,
              const Calibration* calibration = nullptr) {
    const absl::Status status = Pack(directory_, layout, calibration, path_);
    ASSERT_TRUE(status.ok()) << status;
  }
  absl::StatusOr<std::unique_ptr<PagedFfn>> Open(PredictorKind predictor,
                                                 uint64_t dram_bytes = uint64_t{3} << 20) {
    PagedFfnOptions options;
    options.model = directory_;
    options.bundles = path_;
    options.dram_bytes = dram_bytes;
    options.predictor = predictor;
    options.measure = true;
    return PagedFfn::Open(options, engine_->config());
  }
  std::vector<int32_t> Continue(size_t prompt_bytes, int64_t count) {
    const std::vector<int32_t> prompt = EncodeText(text_.substr(0, prompt_bytes));
    const auto attention = Attention(Count(prompt) + count);
    auto sampler = Sampler::Create({});
    std::vector<int32_t> tokens;
    const auto result =
        Generate({prompt, 0, count}, *engine_, *attention, *sampler, [&tokens](int32_t token) {
          tokens.push_back(token);
          return true;
        });
    EXPECT_TRUE(result.ok()) << result.status();
    return tokens;
  }
  double NatsPerByte(size_t step_tokens, size_t prompt_tokens = 0) {
    PerplexityOptions options;
    options.window_tokens = 1024;
    options.max_windows = 1;
    options.step_tokens = step_tokens;
    options.prompt_tokens = prompt_tokens;
    const auto attention = Attention(1024);
    const auto perplexity = MeasurePerplexity(text_, options, *engine_, *attention);
    EXPECT_TRUE(perplexity.ok()) << perplexity.status();
    return perplexity.ok() ? perplexity->nats_per_byte : 0;
  }
  // From text that NatsPerByte does not measure.
  Calibration CalibrateIt() {
    const auto calibration =
        Calibrate(absl::string_view(text_).substr(8192), {.tokens = 16384}, *engine_);
    EXPECT_TRUE(calibration.ok()) << calibration.status();
    return *calibration;
  }

  const TempDir dir_;
  const std::string path_ = dir_.Join("model.bundles");
  std::string text_;
};

TEST_F(PagedFfnTest, TokensAreExactWithTheOracleAtAnyBudget) {
  const std::vector<int32_t> expected = Continue(600, 48);
  for (const BundleLayout layout : {BundleLayout::kBundled, BundleLayout::kGateFirst}) {
    ASSERT_NO_FATAL_FAILURE(PackIt(layout));
    for (const uint64_t megabytes : {1, 2, 8}) {
      const auto weights = Open(PredictorKind::kOracle, megabytes << 20);
      ASSERT_TRUE(weights.ok()) << weights.status();
      engine_->UseFfn(weights->get());
      EXPECT_EQ(Continue(600, 48), expected) << megabytes;
      const PagedFfnStats stats = (*weights)->Stats();
      EXPECT_EQ(stats.missed, 0u);
      EXPECT_EQ(stats.predicted, stats.firing);
      EXPECT_LE(stats.pager_bytes + stats.directory_bytes, megabytes << 20);
      // The prompt streams what memory does not hold, a token less than the padded whole.
      const uint64_t all_weights = (*weights)->file().shape().weight_bytes();
      if (megabytes < 4) {
        EXPECT_GT(stats.prompt_read_bytes, all_weights / 2);
      }
      EXPECT_LT(stats.read_bytes_per_token(), (*weights)->file().file_bytes());
    }
    const auto all = Open(PredictorKind::kAll);
    ASSERT_TRUE(all.ok()) << all.status();
    engine_->UseFfn(all->get());
    EXPECT_EQ(Continue(600, 48), expected);
  }
  const auto gate_first = Open(PredictorKind::kGateFirst);
  ASSERT_TRUE(gate_first.ok()) << gate_first.status();
  engine_->UseFfn(gate_first->get());
  EXPECT_EQ(Continue(600, 48), expected);
  engine_->UseFfn(nullptr);
}

TEST_F(PagedFfnTest, LowRankKeepsPerplexityWithTwiceTheActiveNeurons) {
  const double in_memory = NatsPerByte(256);
  const Calibration calibration = CalibrateIt();
  ASSERT_NO_FATAL_FAILURE(PackIt(BundleLayout::kBundled, &calibration));
  const auto weights = Open(PredictorKind::kLowRank, uint64_t{8} << 20);
  ASSERT_TRUE(weights.ok()) << weights.status();
  engine_->UseFfn(weights->get());
  const double paged = NatsPerByte(1);
  engine_->UseFfn(nullptr);
  const PagedFfnStats stats = (*weights)->Stats();
  EXPECT_LE(std::exp(paged - in_memory), 1.01);
  EXPECT_LE(stats.predicted_share(), 2 * stats.firing_share());
  EXPECT_GT(stats.firing_share(), 0.2);
  EXPECT_GT(stats.missed, 0u) << "or it predicts everything";
  EXPECT_LT(stats.missed_share(), 0.05);
  EXPECT_LE(stats.lost, stats.missed);
  for (const LayerCalibration& layer : calibration.layers) {
    EXPECT_LE(layer.false_negatives, 0.01);
  }
}

TEST_F(PagedFfnTest, CoreComputesTheNeuronsOfThePromptOnly) {
  ASSERT_NO_FATAL_FAILURE(PackIt());
  const auto weights = Open(PredictorKind::kCore);
  ASSERT_TRUE(weights.ok()) << weights.status();
  engine_->UseFfn(weights->get());
  const double paged = NatsPerByte(1, /*prompt_tokens=*/256);
  engine_->UseFfn(nullptr);
  const PagedFfnStats stats = (*weights)->Stats();
  EXPECT_NEAR(stats.predicted_share(), 0.4, 0.01);
  EXPECT_EQ(stats.prompt_tokens, 256u);
  EXPECT_GT(stats.missed_share(), 0.1);
  EXPECT_LT(std::exp(paged - NatsPerByte(256)), 2);
}

TEST_F(PagedFfnTest, ABudgetBelowTheLeastIsRefusedWithBothFigures) {
  ASSERT_NO_FATAL_FAILURE(PackIt());
  const absl::Status status = Open(PredictorKind::kOracle, 4096).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(path_), HasSubstr("needs "), HasSubstr("given 4096")));
}

TEST_F(PagedFfnTest, AFileOfAnotherModelOrLayoutIsRefused) {
  ASSERT_NO_FATAL_FAILURE(PackIt());
  EXPECT_THAT(std::string(Open(PredictorKind::kGateFirst).status().message()),
              HasSubstr("not gate-first"));
  EXPECT_THAT(std::string(Open(PredictorKind::kLowRank).status().message()),
              HasSubstr("no low-rank predictors"));
  // The same shape with one other weight.
  const std::string other = dir_.Join("other");
  std::filesystem::create_directory(other);
  for (const char* const name : {"/config.json", "/model.safetensors"}) {
    std::filesystem::copy_file(directory_ + name, other + name);
  }
  std::filesystem::permissions(other + "/model.safetensors", std::filesystem::perms::owner_all);
  std::fstream file(other + "/model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-1000, std::ios::end);
  file.write("\1\1", 2);
  file.close();
  PagedFfnOptions options;
  options.model = other;
  options.bundles = path_;
  options.dram_bytes = uint64_t{3} << 20;
  EXPECT_THAT(std::string(PagedFfn::Open(options, engine_->config()).status().message()),
              HasSubstr("packed from another model"));
  ModelConfig config = engine_->config();
  config.ffn += 1;
  EXPECT_THAT(std::string(PagedFfn::Open(options, config).status().message()),
              HasSubstr("neurons: has 768, the model 769"));
}

TEST_F(PagedFfnTest, AWrongPageFailsTheStepAndTheRestGoesOn) {
  ASSERT_NO_FATAL_FAILURE(PackIt());
  const auto weights = Open(PredictorKind::kAll, uint64_t{1} << 20);
  ASSERT_TRUE(weights.ok()) << weights.status();
  const uint64_t offset = (*weights)->file().shape().GroupOffset(2, 100) + 7;
  std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(offset));
  const int byte = file.get();
  const auto put = [&](int value) {
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(static_cast<char>(value));
    file.flush();
  };
  put(byte ^ 1);
  engine_->UseFfn(weights->get());
  const auto attention = Attention(64);
  const std::vector<int32_t> tokens = EncodeText("a text");
  std::vector<float> logits(engine_->config().vocab);
  const ForwardStep step = {tokens, 0, LogitsOf::kLastToken};
  const absl::Status status = engine_->Forward(step, *attention, absl::MakeSpan(logits));
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
  put(byte);
  ASSERT_TRUE(attention->Truncate(0).ok());
  const absl::Status again = engine_->Forward(step, *attention, absl::MakeSpan(logits));
  EXPECT_TRUE(again.ok()) << again;
  engine_->UseFfn(nullptr);
}

TEST(CalibrationTest, ModelsAndTextsThatDoNotQualifyAreNamed) {
  const TempDir dir;
  RandomModel(3).Write(dir.path());
  const auto engine = Engine::Load(dir.path());
  ASSERT_TRUE(engine.ok()) << engine.status();
  const std::string text(4096, 'x');
  const auto message = [&](const std::string& of, const CalibrationOptions& options) {
    return std::string(Calibrate(of, options, **engine).status().message());
  };
  EXPECT_THAT(message(text, {}), HasSubstr("silu"));
  EXPECT_THAT(message(text, {.false_negative_bound = 1}), HasSubstr("false_negative_bound: 1"));
}

}  // namespace
}  // namespace terrace
