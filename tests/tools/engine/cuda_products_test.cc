// Products of weights on a CUDA device, against those of the CPU.

#include "tools/engine/cuda_products.h"

#include <memory>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"
#include "tests/tools/engine/random_model.h"
#include "tests/tools/engine/tiny_llama.h"
#include "tools/engine/byte_tokenizer.h"
#include "tools/engine/generate.h"
#include "tools/engine/input_file.h"
#include "tools/engine/sampler.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

// One layer, whose matrices differ in their shapes, and a head.
ModelWeights SomeWeights(size_t hidden, size_t ffn, size_t vocab) {
  std::mt19937_64 random(3);
  const auto matrix = [&](size_t rows, size_t columns) {
    return Matrix{
        .rows = rows, .columns = columns, .values = RandomFloats(rows * columns, 1, random)};
  };
  ModelWeights weights;
  weights.embedding = matrix(vocab, hidden);
  LayerWeights& layer = weights.layers.emplace_back();
  layer.query = matrix(2 * hidden, hidden);
  layer.key = matrix(hidden / 2, hidden);
  layer.value = matrix(hidden / 2, hidden);
  layer.output = matrix(hidden, 2 * hidden);
  layer.gate = matrix(ffn, hidden);
  layer.up = matrix(ffn, hidden);
  layer.down = matrix(hidden, ffn);
  return weights;
}

// Multiplies on the CPU and remembers with what; a product past `allowed` fails.
class CountedProducts final : public WeightProducts {
 public:
  absl::Status Apply(absl::Span<const float> x, absl::Span<const WeightProduct> products) override {
    if (applied_.size() + products.size() > allowed) return absl::UnavailableError("lost");
    for (const WeightProduct& product : products) applied_.push_back(product.weights);
    return cpu_.Apply(x, products);
  }
  std::string name() const override { return "counted"; }
  uint64_t device_bytes() const override { return 0; }

  const std::vector<const Matrix*>& applied() const { return applied_; }
  size_t allowed = 1000;

 private:
  CpuProducts cpu_;
  std::vector<const Matrix*> applied_;
};

// --- The seam, without a device ---

class EngineProductsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    RandomModel(7).Write(dir_.path());
    auto engine = Engine::Load(dir_.path());
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    auto attention = PlainAttention::Create(engine_->config(), {16});
    ASSERT_TRUE(attention.ok()) << attention.status();
    attention_ = *std::move(attention);
    logits_.resize(engine_->config().vocab);
  }
  absl::Status Forward() {
    const std::vector<int32_t> tokens = {256, 1, 2};
    return engine_->Forward({tokens, 0, LogitsOf::kLastToken}, *attention_,
                            absl::MakeSpan(logits_));
  }

  const TempDir dir_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<PlainAttention> attention_;
  std::vector<float> logits_;
};

TEST_F(EngineProductsTest, EveryMatrixGoesThroughThem) {
  CountedProducts products;
  engine_->UseProducts(&products);
  ASSERT_TRUE(Forward().ok());
  std::vector<const Matrix*> expected;
  for (const LayerWeights& layer : engine_->weights().layers) {
    for (const Matrix* matrix : {&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate,
                                 &layer.up, &layer.down}) {
      expected.push_back(matrix);
    }
  }
  expected.push_back(&engine_->weights().output_head());
  EXPECT_EQ(products.applied(), expected);
  const std::vector<float> logits = logits_;
  engine_->UseProducts(nullptr);
  ASSERT_TRUE(attention_->Truncate(0).ok());
  ASSERT_TRUE(Forward().ok());
  EXPECT_EQ(logits_, logits);
  EXPECT_EQ(products.applied(), expected) << "the engine still uses what it was told not to";
}

TEST_F(EngineProductsTest, ErrorsOfAnyProductEndTheForward) {
  for (size_t allowed = 0; allowed < 2 * 7 + 1; ++allowed) {
    CountedProducts products;
    products.allowed = allowed;
    engine_->UseProducts(&products);
    EXPECT_EQ(Forward().code(), absl::StatusCode::kUnavailable) << allowed;
    EXPECT_LE(products.applied().size(), allowed);
    ASSERT_TRUE(attention_->Truncate(0).ok());
  }
  engine_->UseProducts(nullptr);
}

TEST(CudaProductsTest, WithoutADeviceSayWhatIsMissing) {
  const ModelWeights weights = SomeWeights(8, 16, 24);
  const auto products = MakeCudaProducts(weights);
  if (products.ok()) GTEST_SKIP() << "there is a device: " << (*products)->name();
  EXPECT_EQ(products.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(products.status().message()),
              ::testing::AnyOf(HasSubstr("CUDA products: "), HasSubstr("cuBLAS")));
}

// --- On a device ---

class CudaProductsOnDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto products = MakeCudaProducts(weights_);
    if (!products.ok()) GTEST_SKIP() << products.status();
    products_ = *std::move(products);
  }
  // Errors of a sum grow with its terms, and these are of about 1.
  static void ExpectNear(const std::vector<float>& found, const std::vector<float>& expected,
                         size_t terms) {
    ASSERT_EQ(found.size(), expected.size());
    const float most = 1e-6f * static_cast<float>(terms);
    for (size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], expected[i], most) << i;
  }

  const ModelWeights weights_ = SomeWeights(96, 328, 264);
  std::unique_ptr<WeightProducts> products_;
};

TEST_F(CudaProductsOnDeviceTest, AreThoseOfTheCpu) {
  EXPECT_GE(products_->device_bytes(), weights_.layers[0].query.values.size() * sizeof(float));
  const LayerWeights& layer = weights_.layers[0];
  const std::vector<std::vector<const Matrix*>> batches = {{&layer.query, &layer.key, &layer.value},
                                                           {&layer.output},
                                                           {&layer.gate, &layer.up},
                                                           {&layer.down},
                                                           {&weights_.output_head()}};
  std::mt19937_64 random(9);
  // One token, as in decoding; few; and more than go through the buffers at once.
  for (const size_t tokens : {1, 3, 700}) {
    for (const std::vector<const Matrix*>& batch : batches) {
      const size_t columns = batch[0]->columns;
      const std::vector<float> x = RandomFloats(tokens * columns, 1, random);
      std::vector<std::vector<float>> found, expected;
      for (const Matrix* matrix : batch) {
        found.emplace_back(tokens * matrix->rows, -1.0f);
        expected.emplace_back(tokens * matrix->rows, 0.0f);
        ApplyWeights(*matrix, x, absl::MakeSpan(expected.back()));
      }
      std::vector<WeightProduct> products;
      for (size_t i = 0; i < batch.size(); ++i) {
        products.push_back({.weights = batch[i], .out = absl::MakeSpan(found[i])});
      }
      const absl::Status status = products_->Apply(x, products);
      ASSERT_TRUE(status.ok()) << status;
      for (size_t i = 0; i < batch.size(); ++i) {
        SCOPED_TRACE(::testing::Message()
                     << tokens << " tokens, " << batch[i]->rows << " rows of " << columns);
        ExpectNear(found[i], expected[i], columns);
      }
    }
  }
}

TEST_F(CudaProductsOnDeviceTest, AreRepeatable) {
  std::mt19937_64 random(9);
  const Matrix& matrix = weights_.layers[0].down;
  const std::vector<float> x = RandomFloats(5 * matrix.columns, 1, random);
  std::vector<float> first(5 * matrix.rows), second(first.size());
  ASSERT_TRUE(products_->Apply(x, {{.weights = &matrix, .out = absl::MakeSpan(first)}}).ok());
  ASSERT_TRUE(products_->Apply(x, {{.weights = &matrix, .out = absl::MakeSpan(second)}}).ok());
  EXPECT_EQ(first, second);
}

class EngineOnDeviceTest : public TinyLlamaTest {
 protected:
  void SetUp() override {
    TinyLlamaTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    auto products = MakeCudaProducts(engine_->weights());
    if (!products.ok()) GTEST_SKIP() << products.status();
    products_ = *std::move(products);
  }
  // The likeliest tokens after the first of the evaluation text.
  std::vector<int32_t> Generated(size_t prompt_bytes, int64_t count) {
    const absl::StatusOr<std::string> text = ReadWholeFile(Join("eval.txt"), 1 << 20);
    EXPECT_TRUE(text.ok()) << text.status();
    const std::vector<int32_t> prompt = EncodeText(text->substr(0, prompt_bytes));
    const auto attention = Attention(Count(prompt) + count);
    absl::StatusOr<Sampler> sampler = Sampler::Create({});
    EXPECT_TRUE(sampler.ok()) << sampler.status();
    std::vector<int32_t> tokens;
    const auto take = [&](int32_t token) {
      tokens.push_back(token);
      return true;
    };
    const auto result = Generate({prompt, 0, count}, *engine_, *attention, *sampler, take);
    EXPECT_TRUE(result.ok()) << result.status();
    return tokens;
  }

  std::unique_ptr<WeightProducts> products_;
};

TEST_F(EngineOnDeviceTest, TokensAreThoseOfTheCpu) {
  const std::vector<int32_t> expected = Generated(300, 24);
  ASSERT_EQ(expected.size(), 24u);
  engine_->UseProducts(products_.get());
  EXPECT_EQ(Generated(300, 24), expected);
  engine_->UseProducts(nullptr);
}

}  // namespace
}  // namespace terrace
