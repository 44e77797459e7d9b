#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "index/block_summary.h"
#include "io/cuda_copy_engine.h"
#include "runtime/device_scoring.h"
#include "runtime/top_k.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr size_t kTokens = 16;  // a block
constexpr size_t kHeads = 3;

absl::StatusOr<std::unique_ptr<DeviceSummaries>> Make(bool on_host, const BlockSummary& summary,
                                                      const DeviceSummaryOptions& options) {
  return on_host ? MakeHostSummaries(summary, options) : MakeCudaSummaries(summary, options, 0);
}

std::vector<float> NormalFloats(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> floats(count);
  for (float& element : floats) element = normal(random);
  return floats;
}

// Summaries of random blocks, [blocks, kHeads]; after `distinct` of them they repeat.
struct Summaries {
  Summaries(const BlockSummary& summary, size_t head_dim, size_t blocks, size_t distinct) {
    bytes.resize(distinct * summary.bytes());
    for (size_t i = 0; i < distinct; ++i) {
      const std::vector<float> keys = NormalFloats(kTokens * head_dim, 100 + i);
      summary.Summarise(keys.data(), KvDtype::kFloat32, {},
                        absl::MakeSpan(bytes).subspan(i * summary.bytes(), summary.bytes()));
    }
    for (size_t i = 0; i < blocks * kHeads; ++i) {
      pointers.push_back(bytes.data() + i % distinct * summary.bytes());
    }
  }
  // Of the blocks of one head.
  std::vector<const std::byte*> OfHead(size_t head, size_t blocks) const {
    std::vector<const std::byte*> of_head;
    for (size_t i = 0; i < blocks; ++i) of_head.push_back(pointers[i * kHeads + head]);
    return of_head;
  }

  std::vector<std::byte> bytes;
  std::vector<const std::byte*> pointers;
};

// What BlockSummary::Score says of the first blocks of each head: [kHeads, rows, blocks].
std::vector<float> Expected(const BlockSummary& summary, const Summaries& summaries, size_t blocks,
                            absl::Span<const float> queries, size_t head_dim) {
  const size_t head_floats = queries.size() / kHeads;
  const size_t head_scores = head_floats / head_dim * blocks;
  std::vector<float> scores(kHeads * head_scores);
  for (size_t head = 0; head < kHeads; ++head) {
    summary.Score(queries.subspan(head * head_floats, head_floats), summaries.OfHead(head, blocks),
                  absl::MakeSpan(scores).subspan(head * head_scores, head_scores));
  }
  return scores;
}

std::vector<std::unique_ptr<BlockSummary>> Kinds(size_t head_dim) {
  std::vector<std::unique_ptr<BlockSummary>> kinds;
  kinds.push_back(*MakeRepresentatives({.head_dim = head_dim, .tokens = kTokens, .count = 3}));
  kinds.push_back(*MakeRepresentatives({.head_dim = head_dim, .tokens = kTokens, .count = 8}));
  kinds.push_back(*MakeRepresentatives(
      {.head_dim = head_dim, .tokens = kTokens, .count = 4, .averaged = true}));
  kinds.push_back(*MakeKeyBounds({.head_dim = head_dim, .tokens = kTokens, .page_tokens = 4}));
  return kinds;
}

void ExpectScoresOfBlockSummary(bool on_host) {
  for (const size_t head_dim : {8u, 72u, 128u}) {
    for (const auto& summary : Kinds(head_dim)) {
      for (const size_t blocks : {1u, 130u}) {
        const Summaries summaries(*summary, head_dim, blocks, 40);
        const auto device =
            Make(on_host, *summary,
                 {.kv_heads = kHeads, .head_dim = head_dim, .blocks = blocks + 7, .threads = 2});
        ASSERT_TRUE(device.ok()) << device.status();
        ASSERT_TRUE((*device)->Append(summaries.pointers).ok());
        // One group of rows, one that is whole, and three with a part.
        for (const size_t rows : {1u, 4u, 8u, 21u}) {
          const std::vector<float> queries = NormalFloats(kHeads * rows * head_dim, rows);
          std::vector<float> scores(kHeads * rows * blocks);
          const absl::Status status = (*device)->Score(queries, absl::MakeSpan(scores));
          ASSERT_TRUE(status.ok()) << status;
          EXPECT_EQ(scores, Expected(*summary, summaries, blocks, queries, head_dim))
              << "head_dim " << head_dim << ", " << summary->layout().count << " vectors of "
              << summary->layout().dimensions << ", " << blocks << " blocks, " << rows << " rows";
        }
      }
    }
  }
}

// Elements at both ends of 16 bits, whose high and low bytes are unlike others'.
void ExpectScoresOfExtremeQueries(bool on_host) {
  constexpr size_t kHeadDim = 64;
  const auto summary =
      *MakeKeyBounds({.head_dim = kHeadDim, .tokens = kTokens, .page_tokens = kTokens});
  const Summaries summaries(*summary, kHeadDim, 20, 20);
  const auto device = *Make(on_host, *summary,
                            {.kv_heads = kHeads, .head_dim = kHeadDim, .blocks = 20, .threads = 1});
  ASSERT_TRUE(device->Append(summaries.pointers).ok());
  std::vector<float> queries(kHeads * 5 * kHeadDim);
  for (size_t i = 0; i < queries.size(); ++i) {
    // Row 0 of each head is all zeros; others are nearly all at one end.
    if (i / kHeadDim % 5 == 0) continue;
    queries[i] = (i / kHeadDim % 2 == 0 ? 1.0f : -1.0f) * (i % 17 == 0 ? 1e-5f : 3.0f);
  }
  std::vector<float> scores(kHeads * 5 * 20);
  ASSERT_TRUE(device->Score(queries, absl::MakeSpan(scores)).ok());
  EXPECT_EQ(scores, Expected(*summary, summaries, 20, queries, kHeadDim));
}

void ExpectBest(bool on_host, size_t blocks, size_t distinct, size_t k) {
  constexpr size_t kHeadDim = 8;
  constexpr size_t kRows = 2;
  const auto summary = *MakeRepresentatives({.head_dim = kHeadDim, .tokens = kTokens, .count = 1});
  const Summaries summaries(*summary, kHeadDim, blocks, distinct);
  const auto device =
      Make(on_host, *summary,
           {.kv_heads = kHeads, .head_dim = kHeadDim, .blocks = blocks, .threads = 2});
  ASSERT_TRUE(device.ok()) << device.status();
  ASSERT_TRUE((*device)->Append(summaries.pointers).ok());
  const std::vector<float> queries = NormalFloats(kHeads * kRows * kHeadDim, 3);
  std::vector<uint32_t> best(kHeads * kRows * k);
  const absl::Status status = (*device)->Best(queries, k, absl::MakeSpan(best));
  ASSERT_TRUE(status.ok()) << status;
  const std::vector<float> scores = Expected(*summary, summaries, blocks, queries, kHeadDim);
  std::vector<uint32_t> expected(best.size());
  for (size_t i = 0; i < kHeads * kRows; ++i) {
    LargestScores(scores.data() + i * blocks, blocks, k, expected.data() + i * k);
  }
  EXPECT_EQ(best, expected) << k << " of " << blocks << ", " << distinct << " of them distinct";
}

void ExpectBestOfAllSizes(bool on_host) {
  ExpectBest(on_host, 1, 1, 1);
  ExpectBest(on_host, 50, 50, 50);
  ExpectBest(on_host, 700, 700, 100);
  // Ties are cut, at the front and after some thousands.
  ExpectBest(on_host, 20000, 1, 1000);
  ExpectBest(on_host, 20000, 41, kMaxTopK);
  ExpectBest(on_host, 20000, 1000, 1);
}

void ExpectGrowth(bool on_host) {
  constexpr size_t kHeadDim = 32;
  const auto summary = *MakeRepresentatives({.head_dim = kHeadDim, .tokens = kTokens, .count = 5});
  const Summaries summaries(*summary, kHeadDim, 30, 90);
  const Summaries others(*summary, kHeadDim, 60, 7);
  const auto device = *Make(on_host, *summary,
                            {.kv_heads = kHeads, .head_dim = kHeadDim, .blocks = 30, .threads = 1});
  const absl::Span<const std::byte* const> all = summaries.pointers;
  ASSERT_TRUE(device->Append(all.first(11 * kHeads)).ok());
  ASSERT_TRUE(device->Append(absl::MakeConstSpan(others.pointers).first(9 * kHeads)).ok());
  const absl::Status full = device->Append(absl::MakeConstSpan(others.pointers).first(11 * kHeads));
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(full.message(), HasSubstr("11 blocks beside 20"));
  EXPECT_EQ(device->blocks(), 20);
  device->Truncate(11);
  ASSERT_TRUE(device->Append(all.subspan(11 * kHeads)).ok());
  const std::vector<float> queries = NormalFloats(kHeads * 4 * kHeadDim, 8);
  std::vector<float> scores(kHeads * 4 * 30);
  ASSERT_TRUE(device->Score(queries, absl::MakeSpan(scores)).ok());
  EXPECT_EQ(scores, Expected(*summary, summaries, 30, queries, kHeadDim));
}

TEST(DeviceSummariesTest, HostScoresAreThoseOfBlockSummary) { ExpectScoresOfBlockSummary(true); }
TEST(DeviceSummariesTest, HostScoresOfExtremeQueriesToo) { ExpectScoresOfExtremeQueries(true); }
TEST(DeviceSummariesTest, HostBestAreTheLargestScores) { ExpectBestOfAllSizes(true); }
TEST(DeviceSummariesTest, HostBlocksComeAndGoAtTheEnd) { ExpectGrowth(true); }

TEST(DeviceSummariesTest, RefuseWhatDoesNotFit) {
  const auto summary = *MakeRepresentatives({.head_dim = 64, .tokens = kTokens, .count = 2});
  const auto large = *MakeRepresentatives({.head_dim = 64, .tokens = 1024, .count = 257});
  const DeviceSummaryOptions fits = {.kv_heads = 2, .head_dim = 64, .blocks = 10, .threads = 1};
  const auto code = [&](bool on_host, const BlockSummary& of, DeviceSummaryOptions options) {
    return Make(on_host, of, options).status().code();
  };
  for (const bool on_host : {true, false}) {
    if (!on_host && !BuiltWithCuda()) continue;
    EXPECT_EQ(code(on_host, *large, fits), absl::StatusCode::kInvalidArgument);
    DeviceSummaryOptions options = fits;
    options.kv_heads = 0;
    EXPECT_EQ(code(on_host, *summary, options), absl::StatusCode::kInvalidArgument);
    options = fits;
    options.head_dim = 128;
    EXPECT_EQ(code(on_host, *summary, options), absl::StatusCode::kInvalidArgument);
    options = fits;
    options.blocks = size_t{1} << 31;
    EXPECT_EQ(code(on_host, *summary, options), absl::StatusCode::kInvalidArgument);
  }
  const auto host = *MakeHostSummaries(*summary, fits);
  std::vector<float> scores;
  std::vector<uint32_t> best(2);
  const std::vector<float> queries(2 * 64);
  // Nothing is there to choose from.
  EXPECT_EQ(host->Best(queries, 1, absl::MakeSpan(best)).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(host->Score(queries, absl::MakeSpan(scores)).ok());
  EXPECT_EQ(host->Score(absl::MakeConstSpan(queries).first(64), absl::MakeSpan(scores)).code(),
            absl::StatusCode::kInvalidArgument);
  scores.resize(1);
  EXPECT_EQ(host->Score(queries, absl::MakeSpan(scores)).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(DeviceSummariesTest, WithoutADeviceSayWhy) {
  const auto summary = *MakeRepresentatives({.head_dim = 64, .tokens = kTokens, .count = 2});
  const auto made =
      MakeCudaSummaries(*summary, {.kv_heads = 1, .head_dim = 64, .blocks = 1, .threads = 1}, 0);
  if (made.ok()) GTEST_SKIP() << "a device answers";
  EXPECT_EQ(made.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(made.status().message(), HasSubstr("CUDA scoring: "));
}

class DeviceSummariesOnDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto summary = *MakeRepresentatives({.head_dim = 8, .tokens = kTokens, .count = 1});
    const auto made =
        MakeCudaSummaries(*summary, {.kv_heads = 1, .head_dim = 8, .blocks = 1, .threads = 1}, 0);
    if (!made.ok()) GTEST_SKIP() << made.status();
  }
};

TEST_F(DeviceSummariesOnDeviceTest, ScoresAreThoseOfBlockSummary) {
  ExpectScoresOfBlockSummary(false);
}
TEST_F(DeviceSummariesOnDeviceTest, ScoresOfExtremeQueriesToo) {
  ExpectScoresOfExtremeQueries(false);
}
TEST_F(DeviceSummariesOnDeviceTest, BestAreTheLargestScores) { ExpectBestOfAllSizes(false); }
TEST_F(DeviceSummariesOnDeviceTest, BlocksComeAndGoAtTheEnd) { ExpectGrowth(false); }

}  // namespace
}  // namespace terrace
