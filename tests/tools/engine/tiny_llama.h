#ifndef TERRACE_TESTS_TOOLS_ENGINE_TINY_LLAMA_H_
#define TERRACE_TESTS_TOOLS_ENGINE_TINY_LLAMA_H_

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tools/engine/engine.h"
#include "tools/engine/plain_attention.h"

namespace terrace {

inline int64_t Count(absl::Span<const int32_t> tokens) {
  return static_cast<int64_t>(tokens.size());
}

// The folder of the small trained model, and whether it is there.
inline std::string TinyLlamaDirectory() {
  const char* const models = std::getenv("TERRACE_MODEL_DIR");
  return absl::StrCat(models != nullptr ? models : TERRACE_SOURCE_DIR "/../shared/models",
                      "/tiny-llama");
}
inline bool HasTinyLlama() {
  return access(absl::StrCat(TinyLlamaDirectory(), "/model.safetensors").c_str(), R_OK) == 0;
}

// The small trained model, or a visible skip where it is not.
class TinyLlamaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasTinyLlama()) {
      GTEST_SKIP() << "no model in " << directory_
                   << "; TERRACE_MODEL_DIR says where the models are";
    }
    absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Load(directory_);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }

  std::string Join(const std::string& name) const { return absl::StrCat(directory_, "/", name); }

  std::unique_ptr<PlainAttention> Attention(int64_t max_tokens,
                                            KvDtype rounding = KvDtype::kFloat32) const {
    absl::StatusOr<std::unique_ptr<PlainAttention>> attention =
        PlainAttention::Create(engine_->config(), {max_tokens, rounding});
    EXPECT_TRUE(attention.ok()) << attention.status();
    return *std::move(attention);
  }

  // The logits that a step asks for.
  std::vector<float> Forward(const ForwardStep& step, AttentionSource& attention) {
    std::vector<float> logits(engine_->LogitCount(step));
    const absl::Status status = engine_->Forward(step, attention, absl::MakeSpan(logits));
    EXPECT_TRUE(status.ok()) << status;
    return logits;
  }

  const std::string directory_ = TinyLlamaDirectory();
  std::unique_ptr<Engine> engine_;
};

}  // namespace terrace

#endif  // TERRACE_TESTS_TOOLS_ENGINE_TINY_LLAMA_H_
