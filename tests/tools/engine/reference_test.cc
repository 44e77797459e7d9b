// The engine against what another implementation computed with the small trained model.

#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/tools/engine/tiny_llama.h"
#include "tools/engine/byte_tokenizer.h"
#include "tools/engine/generate.h"
#include "tools/engine/input_file.h"
#include "tools/engine/json_file.h"
#include "tools/engine/needle.h"
#include "tools/engine/perplexity.h"

namespace terrace {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
constexpr bool kSlow = true;
#else
constexpr bool kSlow = false;
#endif

class ReferenceTest : public TinyLlamaTest {
 protected:
  void SetUp() override {
    TinyLlamaTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    absl::StatusOr<nlohmann::json> reference = ReadJsonObject(Join("reference.json"));
    ASSERT_TRUE(reference.ok()) << reference.status();
    reference_ = *std::move(reference);
    absl::StatusOr<std::string> text = ReadWholeFile(Join("eval.txt"), 1 << 20);
    ASSERT_TRUE(text.ok()) << text.status();
    text_ = *std::move(text);
  }

  nlohmann::json reference_;
  std::string text_;
};

TEST_F(ReferenceTest, EveryPositionHasTheReferencesLikeliestToken) {
  const auto tokens = reference_["input_ids"].get<std::vector<int32_t>>();
  const auto likeliest = reference_["argmax"].get<std::vector<int32_t>>();
  const auto last = reference_["last_logits"].get<std::vector<float>>();
  const size_t vocab = engine_->config().vocab;
  ASSERT_EQ(tokens.size(), likeliest.size());
  ASSERT_EQ(last.size(), vocab);

  const auto attention = Attention(Count(tokens));
  const std::vector<float> logits = Forward({tokens, 0, LogitsOf::kEveryToken}, *attention);
  for (size_t i = 0; i < tokens.size(); ++i) {
    EXPECT_EQ(LikeliestToken(absl::MakeConstSpan(logits).subspan(i * vocab, vocab)), likeliest[i])
        << "at position " << i;
  }
  for (size_t id = 0; id < vocab; ++id) {
    EXPECT_NEAR(logits[logits.size() - vocab + id], last[id], 1e-3) << "token " << id;
  }
}

TEST_F(ReferenceTest, TheNeedleIsBuiltAndAnsweredAsInTheReference) {
  NeedleText text;
  text.length_tokens = 2001;
  text.first_byte = 1000;
  text.keys = {{.depth = 0.3, .colour = "red", .digits = "48213"}};
  absl::StatusOr<std::vector<int32_t>> prompt = NeedleTokens(text, text_);
  ASSERT_TRUE(prompt.ok()) << prompt.status();
  const std::vector<int32_t> question = NeedleQuestion("red");
  prompt->insert(prompt->end(), question.begin(), question.end());
  ASSERT_EQ(*prompt, reference_["needle"]["input_ids"].get<std::vector<int32_t>>());

  const auto expected = reference_["needle"]["greedy"].get<std::vector<int32_t>>();
  const auto attention = Attention(Count(*prompt) + Count(expected));
  absl::StatusOr<Sampler> sampler = Sampler::Create({});
  ASSERT_TRUE(sampler.ok()) << sampler.status();
  std::vector<int32_t> answer;
  const absl::StatusOr<GenerateResult> result =
      Generate({*prompt, 0, Count(expected)}, *engine_, *attention, *sampler, [&](int32_t token) {
        answer.push_back(token);
        return true;
      });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(answer, expected) << DecodeTokens(answer);
  EXPECT_EQ(DecodeTokens(answer).substr(0, 5), "48213");
}

TEST_F(ReferenceTest, PredictsTheEvaluationTextAsWellAsTheModelsPageSays) {
  PerplexityOptions options;
  if (kSlow) options.max_windows = 1;
  const auto attention = Attention(2048);
  const absl::StatusOr<Perplexity> result = MeasurePerplexity(text_, options, *engine_, *attention);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->windows, options.max_windows);
  // One window is farther from the mean of all.
  EXPECT_NEAR(result->nats_per_byte, 1.171, kSlow ? 0.5 : 0.005);
}

}  // namespace
}  // namespace terrace
