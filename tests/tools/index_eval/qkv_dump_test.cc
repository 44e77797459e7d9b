#include "tools/index_eval/qkv_dump.h"

#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "index/kv_convert.h"
#include "tests/support/temp_dir.h"
#include "tools/index_eval/qkv_dump_writer.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr size_t kLayers = 2, kQueryHeads = 4, kKvHeads = 2, kHeadDim = 8;

ModelConfig SmallConfig() {
  ModelConfig config;
  config.layers = kLayers;
  config.query_heads = kQueryHeads;
  config.kv_heads = kKvHeads;
  config.head_dim = kHeadDim;
  return config;
}

// Numbers that tell what they belong to, exact in fp16.
float Number(size_t part, size_t layer, size_t head, size_t token, size_t i) {
  const auto number = static_cast<float>(part * 512 + layer * 256 + head * 64 + token);
  return i % 2 == 0 ? number : -number;
}

// One step of a layer, whose numbers are those of its tokens, plus `more`.
absl::Status AddStep(QkvDumpWriter& writer, size_t layer, int64_t position, size_t tokens,
                     float more = 0) {
  std::vector<float> parts[3];
  for (size_t part = 0; part < 3; ++part) {
    const size_t heads = part == 0 ? kQueryHeads : kKvHeads;
    for (size_t token = 0; token < tokens; ++token) {
      for (size_t head = 0; head < heads; ++head) {
        for (size_t i = 0; i < kHeadDim; ++i) {
          parts[part].push_back(
              more + Number(part, layer, head, static_cast<size_t>(position) + token, i));
        }
      }
    }
  }
  AttentionStep step;
  step.layer = layer;
  step.position = position;
  step.tokens = tokens;
  step.query = parts[0];
  step.key = parts[1];
  step.value = parts[2];
  return writer.Add(step);
}

class QkvDumpTest : public ::testing::Test {
 protected:
  std::unique_ptr<QkvDumpWriter> Writer(int64_t prompt_tokens, int64_t max_tokens) const {
    auto writer = QkvDumpWriter::Create(path_, SmallConfig(), {prompt_tokens, max_tokens});
    EXPECT_TRUE(writer.ok()) << writer.status();
    return *std::move(writer);
  }
  void ExpectContent(size_t tokens) const {
    const auto dump = QkvDump::Open(path_);
    ASSERT_TRUE(dump.ok()) << dump.status();
    EXPECT_EQ(dump->layers(), kLayers);
    EXPECT_EQ(dump->kv_heads(), kKvHeads);
    EXPECT_EQ(dump->group(), kQueryHeads / kKvHeads);
    EXPECT_EQ(dump->head_dim(), kHeadDim);
    ASSERT_EQ(dump->tokens(), tokens);
    for (size_t layer = 0; layer < kLayers; ++layer) {
      for (size_t head = 0; head < kKvHeads; ++head) {
        const auto read = dump->Read(layer, head);
        ASSERT_TRUE(read.ok()) << read.status();
        std::vector<float> rows(tokens * kHeadDim);
        for (size_t part = 0; part < 3; ++part) {
          const size_t members = part == 0 ? 2 : 1;
          if (part == 0) rows = read->queries;
          if (part > 0) {
            rows.resize(tokens * kHeadDim);
            DecodeKv((part == 1 ? read->keys : read->values).data(), KvDtype::kFloat16, rows.size(),
                     rows.data());
          }
          for (size_t at = 0; at < rows.size(); ++at) {
            const size_t member = at / kHeadDim % members;
            ASSERT_EQ(rows[at], Number(part, layer, head * members + member,
                                       at / kHeadDim / members, at % kHeadDim))
                << "part " << part << ", layer " << layer << ", head " << head << ", at " << at;
          }
        }
      }
    }
  }

  const TempDir dir_;
  const std::string path_ = dir_.Join("dump.safetensors");
};

TEST_F(QkvDumpTest, ReadsWhatWasWritten) {
  auto writer = Writer(20, 23);
  for (const auto& [position, tokens] : {std::pair(0, 13), std::pair(13, 7), std::pair(20, 1)}) {
    for (size_t layer = 0; layer < kLayers; ++layer) {
      ASSERT_TRUE(AddStep(*writer, layer, position, static_cast<size_t>(tokens)).ok());
    }
  }
  EXPECT_FALSE(std::filesystem::exists(path_)) << "before it is whole";
  ASSERT_TRUE(writer->Finish().ok());
  ExpectContent(21);
  EXPECT_EQ(QkvDump::Open(path_)->prompt_tokens(), 20u);
  writer.reset();
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir_.path()), {}), 1);
}

TEST_F(QkvDumpTest, ClosesAnyGap) {
  for (const int64_t max_tokens : {40, 41, 500, 200'000}) {
    auto writer = Writer(40, max_tokens);
    for (size_t layer = 0; layer < kLayers; ++layer) {
      ASSERT_TRUE(AddStep(*writer, layer, 0, 40).ok());
    }
    ASSERT_TRUE(writer->Finish().ok());
    ExpectContent(40);
  }
}

TEST_F(QkvDumpTest, TokensThatComeAgainReplaceTheFirst) {
  auto writer = Writer(8, 8);
  for (size_t layer = 0; layer < kLayers; ++layer) {
    ASSERT_TRUE(AddStep(*writer, layer, 0, 8, 1000).ok());
    ASSERT_TRUE(AddStep(*writer, layer, 0, 5).ok());
    ASSERT_TRUE(AddStep(*writer, layer, 5, 2).ok());
  }
  ASSERT_TRUE(writer->Finish().ok());
  ExpectContent(7);
}

TEST_F(QkvDumpTest, LeavesNothingWithoutFinish) {
  {
    auto writer = Writer(8, 8);
    ASSERT_TRUE(AddStep(*writer, 0, 0, 8).ok());
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir_.path()));
}

TEST_F(QkvDumpTest, RefusesWhatDoesNotFit) {
  auto writer = Writer(8, 8);
  const absl::Status gap = AddStep(*writer, 1, 1, 2);
  EXPECT_EQ(gap.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(gap.message()), HasSubstr("layer 1 has 0 tokens, so position 1"));
  const absl::Status large = AddStep(*writer, 1, 0, 9);
  EXPECT_EQ(large.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(large.message()), HasSubstr("9 tokens are more than the 8"));
  const absl::Status infinite = AddStep(*writer, 1, 0, 1, 70000);
  EXPECT_EQ(infinite.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(infinite.message()), HasSubstr("layers.1.kv_heads.0.key"));
  for (const QkvDumpWriter::Options options : {QkvDumpWriter::Options{1, 0}, {3, 2}, {-1, 2}}) {
    EXPECT_EQ(QkvDumpWriter::Create(path_, SmallConfig(), options).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_THAT(
      std::string(
          QkvDumpWriter::Create(dir_.Join("none/dump"), SmallConfig(), {1, 2}).status().message()),
      HasSubstr("none/dump"));
}

// A dump of one layer and one head of each kind, which a test then spoils.
struct Tensors {
  std::vector<float> prompt = {2};
  std::vector<float> rows = std::vector<float>(3 * kHeadDim, 1.0f);
  std::vector<TensorToWrite> list = {
      {"prompt_tokens", KvDtype::kFloat32, {1}, prompt},
      {"layers.0.query_heads.0.query", KvDtype::kFloat32, {3, kHeadDim}, rows},
      {"layers.0.kv_heads.0.key", KvDtype::kFloat32, {3, kHeadDim}, rows},
      {"layers.0.kv_heads.0.value", KvDtype::kFloat32, {3, kHeadDim}, rows}};
};

TEST_F(QkvDumpTest, BadFilesAreNamed) {
  const std::vector<float> few(kHeadDim, 1.0f);
  const std::vector<float> other = {9};
  const std::vector<std::pair<std::function<void(Tensors&)>, std::string>> cases = {
      {[](Tensors& t) { t.list.erase(t.list.begin() + 2); }, "no dump of Q, K and V?"},
      {[](Tensors& t) { t.list.erase(t.list.begin() + 3); },
       "has no tensor \"layers.0.kv_heads.0.value\""},
      {[](Tensors& t) { t.list.erase(t.list.begin() + 1); }, "has 0 query heads"},
      {[](Tensors& t) { t.list.erase(t.list.begin()); }, "has no tensor \"prompt_tokens\""},
      {[&](Tensors& t) { t.list[0].values = other; }, "\"prompt_tokens\" is 9, expected 0 to 3"},
      {[&](Tensors& t) {
         t.list[3].shape = {1, kHeadDim};
         t.list[3].values = few;
       },
       "value\": shape [1, 8] is not [3, 8]"},
      {[](Tensors& t) { t.list[2].shape = {3 * kHeadDim}; }, "is not tokens times head_dim"},
      {[&](Tensors& t) {
         t.list.push_back({"more", KvDtype::kFloat32, {1}, other});
       },
       "has 5 tensors"}};
  for (const auto& [spoil, message] : cases) {
    Tensors tensors;
    spoil(tensors);
    ASSERT_TRUE(WriteSafetensors(path_, tensors.list).ok());
    const auto dump = QkvDump::Open(path_);
    EXPECT_FALSE(dump.ok()) << message;
    EXPECT_THAT(std::string(dump.status().message()), HasSubstr(message));
    EXPECT_THAT(std::string(dump.status().message()), HasSubstr(path_));
  }
  std::ofstream(path_) << "no tensors";
  EXPECT_FALSE(QkvDump::Open(path_).ok());
  EXPECT_FALSE(QkvDump::Open(dir_.Join("none")).ok());
}

TEST_F(QkvDumpTest, NumbersTooLargeForHalvesAreNamed) {
  Tensors tensors;
  std::vector<float> large = tensors.rows;
  large[kHeadDim + 2] = 1e6f;
  tensors.list[2].values = large;
  ASSERT_TRUE(WriteSafetensors(path_, tensors.list).ok());
  const auto dump = QkvDump::Open(path_);
  ASSERT_TRUE(dump.ok()) << dump.status();
  EXPECT_THAT(std::string(dump->Read(0, 0).status().message()),
              HasSubstr("layers.0.kv_heads.0.key\": token 1 has 1e+06"));
}

}  // namespace
}  // namespace terrace
