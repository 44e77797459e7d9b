// What is made of text for models of bytes: tokens, needles and windows of perplexity.

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/algorithm/container.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"
#include "tests/tools/engine/random_model.h"
#include "tools/engine/byte_tokenizer.h"
#include "tools/engine/generate.h"
#include "tools/engine/needle.h"
#include "tools/engine/perplexity.h"
#include "tools/engine/plain_attention.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

TEST(ByteTokenizerTest, BytesSurviveAndOtherTokensAreLeftOut) {
  std::string text;
  for (int byte = 0; byte < 256; ++byte) text.push_back(static_cast<char>(byte));
  const std::vector<int32_t> tokens = EncodeText(text);
  ASSERT_EQ(tokens.size(), 257u);
  EXPECT_EQ(tokens.front(), 256);
  EXPECT_EQ(tokens[200], 199);
  EXPECT_EQ(DecodeTokens(tokens), text);
  EXPECT_EQ(DecodeTokens({97, 511, -1, 98}), "ab");
}

TEST(ByteTokenizerTest, ModelsOfOtherTokensAreRefused) {
  ModelConfig config;
  config.vocab = 512;
  config.start_token = 256;
  EXPECT_TRUE(CheckByteModel(config).ok());
  config.start_token = 1;
  EXPECT_THAT(std::string(CheckByteModel(config).message()), HasSubstr("bos_token_id: 1 "));
  config.start_token = std::nullopt;
  EXPECT_THAT(std::string(CheckByteModel(config).message()), HasSubstr("bos_token_id: null "));
  config.vocab = 256;
  EXPECT_THAT(std::string(CheckByteModel(config).message()), HasSubstr("vocab_size: 256"));
}

// --- Needles ---

const std::string kFiller(1000, '.');

NeedleText SomeNeedle(size_t length_tokens, double depth) {
  NeedleText text;
  text.length_tokens = length_tokens;
  text.keys = {{.depth = depth, .colour = "blue", .digits = "01234"}};
  return text;
}

TEST(NeedleTest, KeyAndQuestionStandWhereTheyShould) {
  const std::string key = "\nThe blue pass key is 01234. Remember it.\n";
  const std::string question = "\nWhat is the blue pass key? The blue pass key is ";
  EXPECT_EQ(DecodeTokens(NeedleQuestion("blue")), question);
  for (const double depth : {0.0, 0.05, 0.5, 0.95, 1.0}) {
    const auto tokens = NeedleTokens(SomeNeedle(5001, depth), kFiller);
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    ASSERT_EQ(tokens->size(), 5001u - question.size());
    EXPECT_EQ(tokens->front(), kStartToken);
    const std::string text = DecodeTokens(*tokens);
    EXPECT_EQ(text.find(key), std::min<size_t>(5000 * depth, 5000 - question.size() - key.size()));
  }
}

TEST(NeedleTest, SeveralKeysStandInOneText) {
  const std::vector<double> depths = {0.05, 0.5, 0.95};
  const NeedleText text = DrawNeedleText({2048, depths, 1}, kFiller.size());
  const auto tokens = NeedleTokens(text, kFiller);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  size_t longest = 0;
  for (const PassKey& key : text.keys) {
    EXPECT_THAT(DecodeTokens(*tokens),
                HasSubstr("The " + key.colour + " pass key is " + key.digits + "."));
    longest = std::max(longest, NeedleQuestion(key.colour).size());
  }
  EXPECT_EQ(tokens->size() + longest, 2048u) << "room for the longest question";
}

TEST(NeedleTest, DrawsDependOnTheSeedAlone) {
  std::vector<std::string> digits;
  std::vector<std::string> colours;
  const std::vector<double> depths = {0.5, 0.7, 0.1, 0.2, 0.3};
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const NeedleText text = DrawNeedleText({2048, depths, seed}, 1000);
    EXPECT_EQ(text.length_tokens, 2048u);
    EXPECT_LT(text.first_byte, 1000u);
    ASSERT_EQ(text.keys.size(), depths.size());
    std::vector<std::string> of_text;
    for (size_t i = 0; i < depths.size(); ++i) {
      EXPECT_EQ(text.keys[i].depth, depths[i]);
      EXPECT_EQ(text.keys[i].digits.size(), 5u);
      of_text.push_back(text.keys[i].colour);
    }
    EXPECT_EQ(DrawNeedleText({4096, depths, seed}, 1000).keys[0].digits, text.keys[0].digits);
    digits.push_back(text.keys[0].digits);
    colours.push_back(of_text[0]);
    std::sort(of_text.begin(), of_text.end());
    EXPECT_EQ(std::unique(of_text.begin(), of_text.end()), of_text.end());
  }
  for (const absl::string_view colour : NeedleColours()) {
    EXPECT_THAT(colours, ::testing::Contains(colour));
  }
  std::sort(digits.begin(), digits.end());
  EXPECT_EQ(std::unique(digits.begin(), digits.end()), digits.end());
}

TEST(NeedleTest, TextsThatCannotBeMadeAreRefused) {
  const auto message = [](const NeedleText& text, absl::string_view filler) {
    return std::string(NeedleTokens(text, filler).status().message());
  };
  EXPECT_THAT(message(SomeNeedle(40, 0.5), kFiller), HasSubstr("length_tokens: 40 leaves no room"));
  EXPECT_THAT(message(SomeNeedle(80, 0.5), kFiller), HasSubstr("no room for a key of"));
  EXPECT_THAT(message(SomeNeedle(500, -0.1), kFiller), HasSubstr("depth: -0.1"));
  EXPECT_THAT(message(SomeNeedle(500, 1.1), kFiller), HasSubstr("depth: 1.1"));
  EXPECT_THAT(message(SomeNeedle(500, 0.5), ""), HasSubstr("filler text is empty"));
  NeedleText two = SomeNeedle(500, 0.5);
  two.keys.push_back({.depth = 0.52, .colour = "red", .digits = "56789"});
  EXPECT_THAT(message(two, kFiller), HasSubstr("the key at 0.52 overlaps"));
}

// --- Perplexity and generation, on a random model ---

class ByteModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    RandomModel(3).Write(dir_.path());
    auto engine = Engine::Load(dir_.path());
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    auto attention = PlainAttention::Create(engine_->config(), {64});
    ASSERT_TRUE(attention.ok()) << attention.status();
    attention_ = *std::move(attention);
  }

  const TempDir dir_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<PlainAttention> attention_;
};

TEST_F(ByteModelTest, PerplexityDoesNotDependOnTheSteps) {
  PerplexityOptions options;
  options.window_tokens = 33;
  options.stride_bytes = 10;
  const auto whole = MeasurePerplexity(kFiller.substr(0, 65), options, *engine_, *attention_);
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(whole->windows, 4u);  // at 0, 10, 20 and 30
  EXPECT_EQ(whole->bytes, 4 * 32u);
  options.step_tokens = 5;
  const auto steps = MeasurePerplexity(kFiller.substr(0, 65), options, *engine_, *attention_);
  ASSERT_TRUE(steps.ok()) << steps.status();
  EXPECT_NEAR(steps->nats_per_byte, whole->nats_per_byte, 1e-5);
  options.max_windows = 1;
  const auto one = MeasurePerplexity(kFiller.substr(0, 65), options, *engine_, *attention_);
  EXPECT_NEAR(one->nats_per_byte, whole->nats_per_byte, 1e-5) << "all windows are alike here";
}

TEST_F(ByteModelTest, PerplexityThatCannotBeMeasuredSaysWhy) {
  PerplexityOptions options;
  options.window_tokens = 33;
  const auto message = [&](absl::string_view text) {
    return std::string(MeasurePerplexity(text, options, *engine_, *attention_).status().message());
  };
  EXPECT_THAT(message("short"), HasSubstr("a text of 5 bytes has no window of 32"));
  options.window_tokens = 1;
  EXPECT_THAT(message(kFiller), HasSubstr("window_tokens: 1 is less than 2"));
  options.window_tokens = 100;
  EXPECT_THAT(message(kFiller), HasSubstr("no room"));
}

TEST_F(ByteModelTest, GenerationFeedsEachTokenBackAndStopsWhenTold) {
  absl::StatusOr<Sampler> sampler = Sampler::Create({});
  ASSERT_TRUE(sampler.ok());
  const std::vector<int32_t> prompt = EncodeText("abc");
  const GenerateRequest request = {prompt, 0, 10};
  std::vector<int32_t> generated;
  const auto take = [&](int32_t token) {
    generated.push_back(token);
    return true;
  };
  const auto all = Generate(request, *engine_, *attention_, *sampler, take);
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->generated_tokens, 10);
  EXPECT_EQ(attention_->token_count(0), 13) << "all but the last";

  // The same by whole prompts.
  std::vector<int32_t> tokens = prompt;
  std::vector<float> logits(264);
  for (const int32_t token : generated) {
    ASSERT_TRUE(attention_->Truncate(0).ok());
    ASSERT_TRUE(engine_->Forward({tokens, 0}, *attention_, absl::MakeSpan(logits)).ok());
    EXPECT_EQ(LikeliestToken(logits), token);
    tokens.push_back(token);
  }

  ASSERT_TRUE(attention_->Truncate(0).ok());
  int taken = 0;
  const auto stopped =
      Generate(request, *engine_, *attention_, *sampler, [&](int32_t) { return ++taken < 3; });
  ASSERT_TRUE(stopped.ok()) << stopped.status();
  EXPECT_EQ(stopped->generated_tokens, 3);
  EXPECT_EQ(Generate({{}, 0, 5}, *engine_, *attention_, *sampler, take).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace terrace
