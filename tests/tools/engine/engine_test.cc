#include "tools/engine/engine.h"

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"
#include "tests/tools/engine/random_model.h"
#include "tools/engine/plain_attention.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

// --- The formulas, one token after the other, in double ---

using Vector = std::vector<double>;

class NaiveModel {
 public:
  NaiveModel(const RandomModel& model, bool silu) : model_(model), silu_(silu) {}

  // The logits after the next token.
  Vector Next(int32_t token) {
    const std::vector<float>& embedding = Tensor("model.embed_tokens.weight");
    Vector x(embedding.begin() + token * 24, embedding.begin() + (token + 1) * 24);
    for (int layer = 0; layer < 2; ++layer) {
      const std::string prefix = absl::StrCat("model.layers.", layer, ".");
      Add(Attend(layer, Norm(prefix + "input_layernorm.weight", x)), x);
      const Vector normed = Norm(prefix + "post_attention_layernorm.weight", x);
      Vector gate = Apply(prefix + "mlp.gate_proj.weight", normed);
      const Vector up = Apply(prefix + "mlp.up_proj.weight", normed);
      for (size_t i = 0; i < gate.size(); ++i) {
        gate[i] = (silu_ ? gate[i] / (1 + std::exp(-gate[i])) : std::max(gate[i], 0.0)) * up[i];
      }
      Add(Apply(prefix + "mlp.down_proj.weight", gate), x);
    }
    ++position_;
    return Apply("lm_head.weight", Norm("model.norm.weight", x));
  }

 private:
  const std::vector<float>& Tensor(const std::string& name) const {
    return model_.tensors.at(name).values;
  }
  Vector Apply(const std::string& name, const Vector& x) const {
    const std::vector<float>& weight = Tensor(name);
    Vector out(weight.size() / x.size());
    for (size_t row = 0; row < out.size(); ++row) {
      for (size_t i = 0; i < x.size(); ++i) out[row] += weight[row * x.size() + i] * x[i];
    }
    return out;
  }
  Vector Norm(const std::string& name, Vector x) const {
    double squares = 0;
    for (const double value : x) squares += value * value;
    const double rms = std::sqrt(squares / static_cast<double>(x.size()) + 1e-5);
    for (size_t i = 0; i < x.size(); ++i) x[i] = x[i] / rms * Tensor(name)[i];
    return x;
  }
  static void Add(const Vector& from, Vector& to) {
    for (size_t i = 0; i < to.size(); ++i) to[i] += from[i];
  }
  void Rotate(Vector& heads) const {
    for (size_t at = 0; at < heads.size(); at += 8) {
      for (size_t i = 0; i < 4; ++i) {
        const double angle = position_ * std::pow(10000.0, -2.0 * static_cast<double>(i) / 8);
        const double low = heads[at + i];
        const double high = heads[at + 4 + i];
        heads[at + i] = low * std::cos(angle) - high * std::sin(angle);
        heads[at + 4 + i] = high * std::cos(angle) + low * std::sin(angle);
      }
    }
  }
  Vector Attend(int layer, const Vector& x) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".self_attn.");
    Vector query = Apply(prefix + "q_proj.weight", x);
    Vector key = Apply(prefix + "k_proj.weight", x);
    Rotate(query);
    Rotate(key);
    keys_[layer].push_back(key);
    values_[layer].push_back(Apply(prefix + "v_proj.weight", x));
    Vector out(query.size());
    for (size_t head = 0; head < 6; ++head) {
      const size_t kv = head / 3 * 8;
      double sum = 0;
      for (size_t token = 0; token < keys_[layer].size(); ++token) {
        double score = 0;
        for (size_t i = 0; i < 8; ++i) score += query[head * 8 + i] * keys_[layer][token][kv + i];
        const double weight = std::exp(score / std::sqrt(8.0));
        sum += weight;
        for (size_t i = 0; i < 8; ++i) out[head * 8 + i] += weight * values_[layer][token][kv + i];
      }
      for (size_t i = 0; i < 8; ++i) out[head * 8 + i] /= sum;
    }
    return Apply(prefix + "o_proj.weight", out);
  }

  const RandomModel& model_;
  const bool silu_;
  double position_ = 0;
  std::vector<Vector> keys_[2];
  std::vector<Vector> values_[2];
};

// --- The engine on a random model ---

class EngineTest : public ::testing::Test {
 protected:
  std::unique_ptr<Engine> Load(size_t chunk_tokens = 512) const {
    model_.Write(dir_.path());
    EngineOptions options;
    options.chunk_tokens = chunk_tokens;
    absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Load(dir_.path(), options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }
  static std::unique_ptr<PlainAttention> Attention(const Engine& engine, int64_t max_tokens = 100) {
    auto attention = PlainAttention::Create(engine.config(), {max_tokens});
    EXPECT_TRUE(attention.ok()) << attention.status();
    return *std::move(attention);
  }
  static std::vector<float> Forward(const ForwardStep& step, Engine& engine,
                                    AttentionSource& attention) {
    std::vector<float> logits(engine.LogitCount(step));
    const absl::Status status = engine.Forward(step, attention, absl::MakeSpan(logits));
    EXPECT_TRUE(status.ok()) << status;
    return logits;
  }
  absl::Span<const int32_t> Tokens(size_t from, size_t count) const {
    return absl::MakeConstSpan(tokens_).subspan(from, count);
  }
  template <typename T>
  static void ExpectNear(absl::Span<const float> logits, const std::vector<T>& expected) {
    ASSERT_EQ(logits.size(), expected.size());
    for (size_t i = 0; i < logits.size(); ++i) ASSERT_NEAR(logits[i], expected[i], 1e-4) << i;
  }

  const TempDir dir_;
  RandomModel model_ = RandomModel(11);
  const std::vector<int32_t> tokens_ = [] {
    std::mt19937_64 random(5);
    std::vector<int32_t> tokens(90);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 264);
    return tokens;
  }();
};

TEST_F(EngineTest, ComputesTheFormulasWithEitherActivation) {
  for (const char* const activation : {"silu", "relu"}) {
    model_.config["hidden_act"] = activation;
    const auto engine = Load();
    const auto attention = Attention(*engine);
    const std::vector<float> logits =
        Forward({Tokens(0, 20), 0, LogitsOf::kEveryToken}, *engine, *attention);
    NaiveModel naive(model_, activation == std::string("silu"));
    for (size_t i = 0; i < 20; ++i) {
      ExpectNear(absl::MakeConstSpan(logits).subspan(i * 264, 264), naive.Next(tokens_[i]));
    }
  }
}

TEST_F(EngineTest, LogitsOfTheLastTokenAreTheLastOfAll) {
  const auto engine = Load();
  const auto attention = Attention(*engine);
  const std::vector<float> all =
      Forward({Tokens(0, 30), 0, LogitsOf::kEveryToken}, *engine, *attention);
  ASSERT_TRUE(attention->Truncate(0).ok());
  const std::vector<float> last =
      Forward({Tokens(0, 30), 0, LogitsOf::kLastToken}, *engine, *attention);
  ExpectNear(last, std::vector<float>(all.end() - 264, all.end()));
  ASSERT_TRUE(attention->Truncate(29).ok());
  EXPECT_TRUE(Forward({Tokens(29, 1), 29, LogitsOf::kNone}, *engine, *attention).empty());
}

TEST_F(EngineTest, PrefillInChunksEqualsPrefillInOne) {
  const auto whole = Load();
  const auto whole_attention = Attention(*whole);
  const ForwardStep step = {tokens_, 0, LogitsOf::kEveryToken};
  const std::vector<float> expected = Forward(step, *whole, *whole_attention);
  for (const size_t chunk : {1, 7, 64, 89, 90}) {
    const auto engine = Load(chunk);
    const auto attention = Attention(*engine);
    ExpectNear(Forward(step, *engine, *attention), expected);
  }
}

TEST_F(EngineTest, DecodingEqualsPrefill) {
  const auto engine = Load();
  const auto attention = Attention(*engine);
  const std::vector<float> expected =
      Forward({tokens_, 0, LogitsOf::kEveryToken}, *engine, *attention);
  ASSERT_TRUE(attention->Truncate(0).ok());
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const ForwardStep step = {Tokens(i, 1), static_cast<int64_t>(i)};
    ExpectNear(Forward(step, *engine, *attention),
               std::vector<float>(expected.begin() + static_cast<ptrdiff_t>(i * 264),
                                  expected.begin() + static_cast<ptrdiff_t>((i + 1) * 264)));
  }
}

TEST_F(EngineTest, GoingBackEqualsNeverHavingGone) {
  const auto engine = Load();
  const auto straight = Attention(*engine);
  Forward({Tokens(0, 40), 0}, *engine, *straight);
  const std::vector<float> expected =
      Forward({Tokens(40, 20), 40, LogitsOf::kEveryToken}, *engine, *straight);
  const auto attention = Attention(*engine);
  Forward({Tokens(0, 40), 0}, *engine, *attention);
  Forward({Tokens(60, 30), 40}, *engine, *attention);
  ASSERT_TRUE(attention->Truncate(40).ok());
  EXPECT_EQ(Forward({Tokens(40, 20), 40, LogitsOf::kEveryToken}, *engine, *attention), expected)
      << "to the last bit";
}

TEST_F(EngineTest, StepsThatCannotBeRunSayWhyAndChangeNothing) {
  const auto engine = Load();
  const auto attention = Attention(*engine);
  std::vector<float> logits(264);
  const auto expect_bad = [&](const std::vector<int32_t>& tokens, int64_t position,
                              const std::string& part) {
    const absl::Status status =
        engine->Forward({tokens, position}, *attention, absl::MakeSpan(logits));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
    EXPECT_EQ(attention->token_count(0), 0);
  };
  expect_bad({}, 0, "no tokens");
  expect_bad({1, 2, 264}, 0, "token 2 has the id 264, outside of the vocabulary of 264");
  expect_bad({-1}, 0, "token 0 has the id -1");
  expect_bad({1}, -1, "position -1 is negative");
  expect_bad({1}, 3, "layer 0 has 0 tokens, so position 3 is not the next");
}

// Fails in one layer, once.
class FailingAttention : public AttentionSource {
 public:
  FailingAttention(PlainAttention& attention, size_t layer)
      : attention_(attention), failing_layer_(layer) {}
  bool rotated() const override { return attention_.rotated(); }
  absl::Status Attend(const AttentionStep& step) override {
    if (step.layer == failing_layer_ && !std::exchange(failed_, true)) {
      return absl::UnavailableError("no attention today");
    }
    return attention_.Attend(step);
  }
  absl::Status Truncate(int64_t tokens) override { return attention_.Truncate(tokens); }

 private:
  PlainAttention& attention_;
  const size_t failing_layer_;
  bool failed_ = false;
};

TEST_F(EngineTest, AfterAFailedStepTruncatingMakesItRepeatable) {
  const auto engine = Load(/*chunk_tokens=*/16);
  const auto straight = Attention(*engine);
  Forward({Tokens(0, 10), 0}, *engine, *straight);
  const std::vector<float> expected = Forward({Tokens(10, 40), 10}, *engine, *straight);

  const auto plain = Attention(*engine);
  Forward({Tokens(0, 10), 0}, *engine, *plain);
  FailingAttention attention(*plain, 1);
  std::vector<float> logits(264);
  const ForwardStep step = {Tokens(10, 40), 10};
  const absl::Status status = engine->Forward(step, attention, absl::MakeSpan(logits));
  EXPECT_EQ(status, absl::UnavailableError("no attention today"));
  EXPECT_NE(plain->token_count(0), plain->token_count(1));
  ASSERT_TRUE(attention.Truncate(10).ok());
  EXPECT_EQ(Forward(step, *engine, attention), expected);
}

// Takes queries and keys before RoPE and rotates them itself.
class UnrotatedAttention : public AttentionSource {
 public:
  UnrotatedAttention(PlainAttention& attention, const ModelConfig& config)
      : attention_(attention),
        config_(config),
        rope_(*Rope::Create(config.head_dim, config.rope)) {}
  bool rotated() const override { return false; }
  absl::Status Attend(const AttentionStep& step) override {
    std::vector<float> query(step.query.begin(), step.query.end());
    std::vector<float> key(step.key.begin(), step.key.end());
    rope_.RotateTokens(step.position, config_.query_heads, absl::MakeSpan(query));
    rope_.RotateTokens(step.position, config_.kv_heads, absl::MakeSpan(key));
    AttentionStep rotated = step;
    rotated.query = query;
    rotated.key = key;
    return attention_.Attend(rotated);
  }
  absl::Status Truncate(int64_t tokens) override { return attention_.Truncate(tokens); }

 private:
  PlainAttention& attention_;
  const ModelConfig& config_;
  const Rope rope_;
};

TEST_F(EngineTest, ASourceMayRotateByItself) {
  const auto engine = Load(/*chunk_tokens=*/16);
  const auto plain = Attention(*engine);
  const ForwardStep step = {tokens_, 0, LogitsOf::kEveryToken};
  const std::vector<float> expected = Forward(step, *engine, *plain);
  ASSERT_TRUE(plain->Truncate(0).ok());
  UnrotatedAttention unrotated(*plain, engine->config());
  EXPECT_EQ(Forward(step, *engine, unrotated), expected);
}

TEST_F(EngineTest, TimesAreCountedAndReset) {
  const auto engine = Load();
  const auto attention = Attention(*engine);
  Forward({tokens_, 0}, *engine, *attention);
  EXPECT_EQ(engine->times().tokens, 90);
  EXPECT_GT(engine->times().attention, absl::ZeroDuration());
  EXPECT_GT(engine->times().rest, absl::ZeroDuration());
  engine->ResetTimes();
  EXPECT_EQ(engine->times().tokens, 0);
}

TEST_F(EngineTest, LoadingSaysWhatIsMissing) {
  EXPECT_EQ(Engine::Load(dir_.Join("absent")).status().code(), absl::StatusCode::kNotFound);
  EngineOptions options;
  options.chunk_tokens = 0;
  model_.Write(dir_.path());
  const absl::Status status = Engine::Load(dir_.path(), options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("chunk_tokens: 0"));
}

}  // namespace
}  // namespace terrace
