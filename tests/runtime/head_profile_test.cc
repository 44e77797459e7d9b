#include "runtime/head_profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/context_rig.h"
#include "tests/support/temp_dir.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Of a model with 2 layers x 2 KV heads, as SmallRuntime has it. From least to most need: layer 1
// head 0, layer 0 head 1, layer 0 head 0, layer 1 head 1.
HeadProfile Profile() {
  HeadProfile profile;
  profile.layers = 2;
  profile.query_heads = 4;
  profile.kv_heads = 2;
  profile.head_dim = 32;
  profile.model_id = 0xfedcba9876543210;  // more than a double holds
  profile.sink_tokens = 4;
  profile.window_tokens = 64;
  profile.method = "made \"up\"";
  profile.texts = 3;
  profile.tokens = 1000;
  profile.queries = 15;
  profile.heads = {{0.5, 0.75}, {0.25, 0.5}, {0.25, 0.375}, {1, 1}};
  return profile;
}

// The text of Profile() with one passage instead of another.
std::string Changed(const std::string& from, const std::string& to) {
  std::string text = HeadProfileText(Profile());
  const size_t at = text.find(from);
  EXPECT_NE(at, text.npos) << from;
  return at == text.npos ? text : text.replace(at, from.size(), to);
}

std::vector<HeadIndex> Streaming(double share) {
  std::vector<HeadIndex> heads;
  for (const LookupOverride& change : StreamingOverrides(Profile(), share)) {
    EXPECT_EQ(change.lookup.kind, LookupKind::kStreaming);
    heads.push_back({change.layer.value(), change.kv_head.value()});
  }
  return heads;
}

TEST(HeadProfileTest, TextKeepsEveryField) {
  const HeadProfile written = Profile();
  const auto read = ParseHeadProfile(HeadProfileText(written));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->layers, written.layers);
  EXPECT_EQ(read->query_heads, written.query_heads);
  EXPECT_EQ(read->kv_heads, written.kv_heads);
  EXPECT_EQ(read->head_dim, written.head_dim);
  EXPECT_EQ(read->model_id, written.model_id);
  EXPECT_EQ(read->sink_tokens, written.sink_tokens);
  EXPECT_EQ(read->window_tokens, written.window_tokens);
  EXPECT_EQ(read->method, written.method);
  EXPECT_EQ(read->texts, written.texts);
  EXPECT_EQ(read->tokens, written.tokens);
  EXPECT_EQ(read->queries, written.queries);
  ASSERT_EQ(read->heads.size(), written.heads.size());
  for (size_t i = 0; i < written.heads.size(); ++i) {
    EXPECT_EQ(read->heads[i].mean_outside, written.heads[i].mean_outside);
    EXPECT_EQ(read->heads[i].max_outside, written.heads[i].max_outside);
  }
}

TEST(HeadProfileTest, BadTextIsNamedWithItsMember) {
  const std::pair<std::string, std::string> cases[] = {
      {"", "not valid JSON at byte"},
      {"[]", "format: missing"},
      {"7", "format: missing"},
      {"{}", "format: missing"},
      {Changed("terrace head profile", "other"), "format: is \"other\""},
      {Changed("\"version\": 1", "\"version\": 2"), "version: is 2, this program reads 1"},
      {Changed("\"version\": 1", "\"version\": \"1\""), "version: missing or not an integer"},
      {Changed("\"queries\": 15", "\"queries\": 0"), "queries: missing or not an integer from 1"},
      {Changed("\"texts\": 3", "\"texts\": 3.5"), "texts: missing"},
      {Changed("\"tokens\": 1000", "\"tokens\": -1"), "tokens: missing"},
      {Changed("\"window_tokens\": 64,", ""), "window_tokens: missing"},
      {Changed("\"texts\": 3", "\"texts\": 3, \"text\": 3"), "text: is no member"},
      {Changed("\"layers\": 2", "\"layers\": 3"), "heads: there are 4, expected one for each of 3"},
      {Changed("\"layers\": 2", "\"layers\": 0"), "model.layers: missing or not an integer from 1"},
      {Changed("\"layers\": 2", "\"layers\": 4294967298"), "model.layers"},
      {Changed("\"kv_heads\": 2", "\"kv_heads\": 3"), "model.kv_heads: missing or not a divisor"},
      {Changed("fedcba9876543210", "fedcba987654321"), "model.fingerprint"},
      {Changed("fedcba9876543210", "fedcba987654321g"), "model.fingerprint"},
      {Changed("\"head_dim\": 32", "\"head_dim\": 32, \"ffn\": 1"), "model.ffn: is no member"},
      {Changed("0.375", "NaN"), "not valid JSON at byte"},
      {Changed("0.375", "null"), "heads[2].max_outside: missing or not a number from 0 to 1"},
      {Changed("0.375", "-0.1"), "heads[2].max_outside"},
      {Changed("0.375", "1.01"), "heads[2].max_outside"},
      {Changed("0.375", "1e999"), "not valid JSON"},
      {Changed("0.375", "\"0.375\""), "heads[2].max_outside"},
      {Changed("\"kv_head\": 1", "\"kv_head\": 0"), "heads[1]: layer 0, KV head 0 is there twice"},
      {Changed("\"kv_head\": 1", "\"kv_head\": 2"), "heads[1].kv_head"},
      {Changed("\"heads\": [", "\"heads\": [ 5,"), "heads: there are 5"},
      {Changed("\"model\"", "\"models\""), "model: missing"},
  };
  for (const auto& [text, message] : cases) {
    const absl::Status status = ParseHeadProfile(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(status.message(), HasSubstr(message)) << text;
  }
}

TEST(HeadProfileTest, ATextThatWasCutShortIsRefusedWhereverThatWas) {
  const std::string text = HeadProfileText(Profile());
  const size_t end = text.rfind('}');
  for (size_t size = 0; size <= end; ++size) {
    const absl::Status status = ParseHeadProfile(text.substr(0, size)).status();
    ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << size << " bytes";
    ASSERT_THAT(status.message(), HasSubstr("not valid JSON at byte")) << size << " bytes";
  }
}

TEST(HeadProfileTest, FileErrorsNameThePath) {
  const TempDir dir;
  EXPECT_TRUE(absl::IsNotFound(ReadHeadProfile(dir.Join("absent")).status()));
  EXPECT_THAT(ReadHeadProfile(dir.Join("absent")).status().message(), HasSubstr("absent"));
  EXPECT_FALSE(ReadHeadProfile(dir.path()).ok()) << "a directory";
  std::ofstream(dir.Join("bad")) << Changed("\"version\": 1", "\"version\": 9");
  EXPECT_THAT(ReadHeadProfile(dir.Join("bad")).status().message(), HasSubstr("bad: version: is 9"));
  std::ofstream(dir.Join("good")) << HeadProfileText(Profile());
  EXPECT_TRUE(ReadHeadProfile(dir.Join("good")).ok());
  std::ofstream(dir.Join("large")) << "{";
  std::filesystem::resize_file(dir.Join("large"), (size_t{64} << 20) + 1);
  EXPECT_THAT(ReadHeadProfile(dir.Join("large")).status().message(), HasSubstr("more than"));
}

TEST(HeadProfileTest, HeadsThatNeedLeastStreamFirst) {
  EXPECT_THAT(HeadsByNeed(Profile()),
              ElementsAre(HeadIndex{1, 0}, HeadIndex{0, 1}, HeadIndex{0, 0}, HeadIndex{1, 1}));
  EXPECT_THAT(Streaming(0), ElementsAre());
  EXPECT_THAT(Streaming(0.2), ElementsAre()) << "rounds down";
  EXPECT_THAT(Streaming(0.25), ElementsAre(HeadIndex{1, 0}));
  EXPECT_THAT(Streaming(0.75), ElementsAre(HeadIndex{1, 0}, HeadIndex{0, 1}, HeadIndex{0, 0}));
  EXPECT_EQ(Streaming(1).size(), 4u);
  HeadProfile ten = Profile();
  ten.layers = 5;
  ten.heads.assign(10, {0.5, 0.5});
  EXPECT_EQ(StreamingOverrides(ten, 0.3).size(), 3u) << "though 0.3 is less than 3 tenths";
  EXPECT_EQ(HeadsByNeed(ten)[3], (HeadIndex{1, 1})) << "in their order where they are equal";
}

TEST(HeadProfileTest, FitsOnlyTheModelThatWasMeasured) {
  ModelShape shape = SmallRuntime().shape;
  EXPECT_TRUE(Profile().CheckFits(shape).ok()) << "a model that nobody named";
  shape.model_id = Profile().model_id;
  EXPECT_TRUE(Profile().CheckFits(shape).ok());
  const auto message = [](const ModelShape& other) {
    return std::string(Profile().CheckFits(other).message());
  };
  ModelShape other = shape;
  other.layers = 3;
  EXPECT_THAT(message(other), HasSubstr("layers come to 2, this one has 3"));
  other = shape;
  other.kv_heads = 4;
  EXPECT_THAT(message(other), HasSubstr("KV heads come to 2, this one has 4"));
  other = shape;
  other.query_heads = 8;
  EXPECT_THAT(message(other), HasSubstr("query heads"));
  other = shape;
  other.head_dim = 64;
  EXPECT_THAT(message(other), HasSubstr("head_dim"));
  other = shape;
  other.model_id = 0x1f;
  EXPECT_THAT(message(other), HasSubstr("fedcba9876543210, this one has 000000000000001f"));
}

// What a runtime of SmallRuntime() with `share` of its heads streaming keeps and does.
struct Work {
  uint64_t summary_bytes = 0;
  uint64_t blocks = 0;  // attended to by one decode step after 400 tokens
};

Work WorkWith(LookupKind kind, double share) {
  RuntimeOptions options = SmallRuntime();
  options.lookup.kind = kind;
  options.lookup.blocks = 4;
  options.overrides = StreamingOverrides(Profile(), share);
  ContextRig rig(options);
  const auto context = *rig.runtime().NewContext();
  EXPECT_TRUE(rig.Prefill(*context, 400, 80).ok());
  const uint64_t before = context->Stats().Total().AllLookups().blocks;
  EXPECT_TRUE(rig.Step(*context, 1).ok());
  return {.summary_bytes = rig.runtime().Stats().summary_bytes,
          .blocks = context->Stats().Total().AllLookups().blocks - before};
}

TEST(HeadProfileTest, StreamingHeadsKeepNoSummariesAndFetchNoBlocks) {
  const Work none = WorkWith(LookupKind::kQuest, 0);
  const Work half = WorkWith(LookupKind::kQuest, 0.5);
  const Work all = WorkWith(LookupKind::kQuest, 1);
  EXPECT_EQ(none.blocks, 4 * 4u);  // 4 blocks for each of 4 heads
  EXPECT_EQ(half.blocks, 2 * 4u);
  EXPECT_EQ(all.blocks, 0u);
  // What is left beside summaries is the same for all: the ids of tokens.
  EXPECT_EQ(all.summary_bytes, WorkWith(LookupKind::kFull, 0).summary_bytes);
  EXPECT_GT(half.summary_bytes, all.summary_bytes);
  EXPECT_NEAR(static_cast<double>(half.summary_bytes - all.summary_bytes),
              static_cast<double>(none.summary_bytes - all.summary_bytes) / 2, 4096)
      << "but for whole pages";
}

}  // namespace
}  // namespace terrace
