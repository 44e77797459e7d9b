#include "index/block_summary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "hwy/targets.h"
#include "index/kv_convert.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

struct Block {
  std::vector<float> keys;        // [tokens, head_dim], as stored
  std::vector<std::byte> stored;  // the same in the dtype
};

Block RandomBlock(size_t tokens, size_t head_dim, KvDtype dtype, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  Block block;
  block.keys.resize(tokens * head_dim);
  for (float& element : block.keys) element = normal(random);
  block.stored.resize(block.keys.size() * KvDtypeBytes(dtype));
  EncodeKv(block.keys.data(), KvDtype::kFloat32, dtype, block.keys.size(), block.stored.data());
  DecodeKv(block.stored.data(), dtype, block.keys.size(), block.keys.data());
  return block;
}

std::vector<float> RandomQueries(size_t rows, size_t head_dim, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> queries(rows * head_dim);
  for (float& element : queries) element = normal(random);
  return queries;
}

double Logit(const Block& block, const std::vector<float>& queries, size_t row, size_t token,
             size_t head_dim) {
  double sum = 0;
  for (size_t i = 0; i < head_dim; ++i) {
    sum += double{queries[row * head_dim + i]} * double{block.keys[token * head_dim + i]};
  }
  return sum;
}

// What rounding keys to 8 bits may make of a logit: five standard deviations of the sum of rounding
// errors, each spread evenly over one step of at most `largest` / 127.
double RoundingError(const std::vector<float>& queries, size_t row, size_t head_dim,
                     double largest) {
  const float* const query = queries.data() + row * head_dim;
  const double norm = std::sqrt(std::inner_product(query, query + head_dim, query, 0.0));
  return 5 * norm * largest / 127 / std::sqrt(12.0);
}

double LargestElement(const Block& block) {
  double largest = 0;
  for (const float key : block.keys) largest = std::max(largest, std::abs(double{key}));
  return largest;
}

// Scores of some blocks as a summary sees them: [rows, blocks].
std::vector<float> Scores(const BlockSummary& summary, const std::vector<Block>& blocks,
                          KvDtype dtype, const std::vector<float>& queries, size_t head_dim,
                          const std::vector<float>& masses = {}) {
  std::vector<std::vector<std::byte>> bytes(blocks.size());
  std::vector<const std::byte*> pointers;
  for (size_t i = 0; i < blocks.size(); ++i) {
    bytes[i].resize(summary.bytes());
    summary.Summarise(blocks[i].stored.data(), dtype, masses, absl::MakeSpan(bytes[i]));
    pointers.push_back(bytes[i].data());
  }
  std::vector<float> scores(queries.size() / head_dim * blocks.size());
  summary.Score(queries, pointers, absl::MakeSpan(scores));
  return scores;
}

class BlockSummaryTest : public ::testing::TestWithParam<std::tuple<size_t, KvDtype, size_t>> {
 protected:
  size_t head_dim() const { return std::get<0>(GetParam()); }
  KvDtype dtype() const { return std::get<1>(GetParam()); }
  size_t rows() const { return std::get<2>(GetParam()); }

  std::vector<Block> Blocks(size_t count, size_t tokens) const {
    std::vector<Block> blocks;
    for (size_t i = 0; i < count; ++i) {
      blocks.push_back(RandomBlock(tokens, head_dim(), dtype(), 100 + i));
    }
    return blocks;
  }
};

TEST_P(BlockSummaryTest, BoundsAreNeverBelowAnyLogit) {
  for (const size_t page_tokens : {1u, 4u, 16u, 48u}) {
    const auto summary =
        *MakeKeyBounds({.head_dim = head_dim(), .tokens = 48, .page_tokens = page_tokens});
    const std::vector<Block> blocks = Blocks(5, 48);
    const std::vector<float> queries = RandomQueries(rows(), head_dim(), 3);
    const std::vector<float> scores = Scores(*summary, blocks, dtype(), queries, head_dim());
    for (size_t row = 0; row < rows(); ++row) {
      for (size_t block = 0; block < blocks.size(); ++block) {
        double largest = -std::numeric_limits<double>::infinity();
        for (size_t token = 0; token < 48; ++token) {
          largest = std::max(largest, Logit(blocks[block], queries, row, token, head_dim()));
        }
        const double score = scores[row * blocks.size() + block];
        // The sum itself is rounded.
        EXPECT_GE(score, largest - 1e-4 * (1 + std::abs(largest)));
        // Pages of one token bound it exactly, up to the rounding to 8 bits.
        if (page_tokens == 1) {
          EXPECT_LE(score, largest + 0.05 * static_cast<double>(head_dim()));
        }
      }
    }
  }
}

TEST_P(BlockSummaryTest, RepresentativesScoreTheBestOfTheKeysThatTheyAre) {
  for (const size_t count : {1u, 4u, 8u, 11u, 16u, 40u}) {
    const auto summary =
        *MakeRepresentatives({.head_dim = head_dim(), .tokens = 40, .count = count});
    const std::vector<Block> blocks = Blocks(4, 40);
    const std::vector<float> queries = RandomQueries(rows(), head_dim(), 4);
    const std::vector<float> scores = Scores(*summary, blocks, dtype(), queries, head_dim());
    for (size_t block = 0; block < blocks.size(); ++block) {
      // The tokens with the largest norms, found independently.
      std::vector<size_t> tokens(40);
      std::iota(tokens.begin(), tokens.end(), size_t{0});
      const auto norm = [&](size_t token) {
        const auto* const row = blocks[block].keys.data() + token * head_dim();
        return std::inner_product(row, row + head_dim(), row, 0.0f);
      };
      std::sort(tokens.begin(), tokens.end(),
                [&](size_t a, size_t b) { return norm(a) > norm(b); });
      for (size_t row = 0; row < rows(); ++row) {
        double best = -std::numeric_limits<double>::infinity();
        for (size_t i = 0; i < count; ++i) {
          best = std::max(best, Logit(blocks[block], queries, row, tokens[i], head_dim()));
        }
        EXPECT_NEAR(scores[row * blocks.size() + block], best,
                    RoundingError(queries, row, head_dim(), LargestElement(blocks[block])))
            << count << " representatives";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, BlockSummaryTest,
                         ::testing::Combine(::testing::Values(8, 24, 64, 128),
                                            ::testing::Values(KvDtype::kFloat16, KvDtype::kBfloat16,
                                                              KvDtype::kFloat32),
                                            ::testing::Values(1, 3, 4, 9)));

// Sums are integers, so no instruction set rounds them otherwise.
TEST_P(BlockSummaryTest, EveryInstructionSetGivesTheSameScores) {
  const std::vector<Block> blocks = Blocks(3, 48);
  const std::vector<float> queries = RandomQueries(rows(), head_dim(), 7);
  const auto bounds = *MakeKeyBounds({.head_dim = head_dim(), .tokens = 48, .page_tokens = 4});
  const auto keys = *MakeRepresentatives({.head_dim = head_dim(), .tokens = 48, .count = 7});
  for (const BlockSummary* summary : {bounds.get(), keys.get()}) {
    const std::vector<float> expected = Scores(*summary, blocks, dtype(), queries, head_dim());
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      hwy::SetSupportedTargetsForTest(target);
      EXPECT_EQ(Scores(*summary, blocks, dtype(), queries, head_dim()), expected)
          << hwy::TargetName(target);
    }
    hwy::SetSupportedTargetsForTest(0);
  }
}

TEST(Representatives, ByMassAreTheTokensWithMostMass) {
  const auto summary = *MakeRepresentatives(
      {.head_dim = 8, .tokens = 16, .count = 2, .choice = RepresentativeChoice::kMostMass});
  EXPECT_TRUE(summary->wants_masses());
  const Block block = RandomBlock(16, 8, KvDtype::kFloat32, 5);
  std::vector<float> masses(16, 0.1f);
  masses[3] = 2;
  masses[12] = 1;
  const std::vector<float> queries = RandomQueries(1, 8, 6);
  const std::vector<float> scores =
      Scores(*summary, {block}, KvDtype::kFloat32, queries, 8, masses);
  EXPECT_NEAR(scores[0], std::max(Logit(block, queries, 0, 3, 8), Logit(block, queries, 0, 12, 8)),
              RoundingError(queries, 0, 8, LargestElement(block)));
}

TEST(Representatives, AveragedScoreTheMeanOfTheirLogits) {
  const auto summary =
      *MakeRepresentatives({.head_dim = 8, .tokens = 16, .count = 16, .averaged = true});
  const Block block = RandomBlock(16, 8, KvDtype::kFloat32, 5);
  const std::vector<float> queries = RandomQueries(2, 8, 6);
  const std::vector<float> scores = Scores(*summary, {block}, KvDtype::kFloat32, queries, 8);
  for (size_t row = 0; row < 2; ++row) {
    double mean = 0;
    for (size_t token = 0; token < 16; ++token) mean += Logit(block, queries, row, token, 8) / 16;
    EXPECT_NEAR(scores[row], mean, RoundingError(queries, row, 8, LargestElement(block)));
  }
}

TEST(BlockSummary, KeysBeyondTheRangeOfFp16StayFinite) {
  Block block = RandomBlock(16, 8, KvDtype::kFloat32, 5);
  auto* const keys = reinterpret_cast<float*>(block.stored.data());
  for (size_t i = 0; i < 8; ++i) keys[i] = i % 2 == 0 ? 1e30f : -1e30f;
  const std::vector<float> queries(8, 0.5f);
  const auto representatives = *MakeRepresentatives({.head_dim = 8, .tokens = 16, .count = 4});
  const auto bounds = *MakeKeyBounds({.head_dim = 8, .tokens = 16, .page_tokens = 4});
  for (const BlockSummary* summary : {representatives.get(), bounds.get()}) {
    EXPECT_TRUE(std::isfinite(Scores(*summary, {block}, KvDtype::kFloat32, queries, 8)[0]));
  }
}

TEST(BlockSummary, BadOptionsAreNamed) {
  EXPECT_THAT(MakeRepresentatives({.head_dim = 12, .tokens = 16}).status().message(),
              HasSubstr("head_dim: 12"));
  EXPECT_THAT(MakeRepresentatives({.head_dim = 8, .tokens = 16, .count = 17}).status().message(),
              HasSubstr("representatives: 17"));
  EXPECT_THAT(MakeRepresentatives({.head_dim = 8, .tokens = 0}).status().message(),
              HasSubstr("tokens: 0"));
  EXPECT_THAT(MakeKeyBounds({.head_dim = 8, .tokens = 16, .page_tokens = 5}).status().message(),
              HasSubstr("page_tokens: 5"));
}

}  // namespace
}  // namespace terrace
