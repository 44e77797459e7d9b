#include "runtime/top_k.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace terrace {
namespace {

using ::testing::ElementsAre;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<uint32_t> Best(const std::vector<float>& scores, size_t k) {
  std::vector<uint32_t> best(k);
  LargestScores(scores.data(), scores.size(), k, best.data());
  return best;
}

TEST(LargestScoresTest, AreInOrderOfScoreAndThenOfPlace) {
  EXPECT_THAT(Best({1, 5, -2, 5, 3}, 4), ElementsAre(1, 3, 4, 0));
  EXPECT_THAT(Best({7, 7, 7, 7}, 2), ElementsAre(0, 1));
  EXPECT_THAT(Best({-3, -1, -2}, 3), ElementsAre(1, 2, 0));
}

TEST(LargestScoresTest, PutInfinitiesAtTheEndsAndNansBehindThem) {
  EXPECT_THAT(Best({kNan, -kInfinity, 0, kInfinity, kNan}, 5), ElementsAre(3, 2, 1, 0, 4));
}

TEST(LargestScoresTest, TakeZerosOfBothSignsForEqual) {
  EXPECT_THAT(Best({-0.0f, 0.0f, -1, 0.0f}, 3), ElementsAre(0, 1, 3));
}

}  // namespace
}  // namespace terrace
