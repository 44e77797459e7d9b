#include "tools/index_eval/index_comparison.h"

#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

struct Point {
  double recall;
  double scanned_share;
  double distances;
};

// An index of one head.
IndexResult Index(const std::string& name, const std::string& kind,
                  const std::vector<Point>& points) {
  IndexResult index;
  index.name = name;
  index.kind = kind;
  for (const Point& point : points) {
    EffortResult effort;
    effort.heads.emplace_back();
    effort.heads[0].recall = point.recall;
    effort.heads[0].scanned_share = point.scanned_share;
    effort.heads[0].distances = point.distances;
    index.efforts.push_back(std::move(effort));
  }
  return index;
}

HeadComparison Compare(std::vector<IndexResult> indexes) {
  SweepResult result;
  result.heads = {"one"};
  result.indexes = std::move(indexes);
  const std::vector<HeadComparison> heads = CompareOnHeads(result);
  EXPECT_EQ(heads.size(), 1u);
  return heads.at(0);
}

TEST(IndexComparisonTest, InterpolatesBetweenTheEffortsAroundTheRecall) {
  const HeadComparison head = Compare(
      {Index("a", "ivf", {{0.5, 0.1, 100}, {0.90, 0.2, 200}, {1.0, 0.4, 400}, {1.0, 1.0, 1000}})});
  ASSERT_TRUE(head.ivf.has_value());
  EXPECT_EQ(head.ivf->index, "a");
  EXPECT_DOUBLE_EQ(head.ivf->recall, 0.95);
  EXPECT_NEAR(head.ivf->scanned_share, 0.3, 1e-12);
  EXPECT_NEAR(head.ivf->distances, 300, 1e-9);
  EXPECT_FALSE(head.graph.has_value());
  EXPECT_FALSE(head.hnsw.has_value());
}

TEST(IndexComparisonTest, TakesTheVariantThatScansLeast) {
  const HeadComparison head =
      Compare({Index("a", "ivf", {{0.90, 0.2, 200}, {1.0, 0.4, 400}}),
               Index("b", "ivf", {{0.96, 0.25, 500}}), Index("c", "ivf", {{0.94, 0.01, 1}}),
               Index("d", "flat", {{1.0, 0.05, 50}})});
  ASSERT_TRUE(head.ivf.has_value());
  EXPECT_EQ(head.ivf->index, "b");
  EXPECT_DOUBLE_EQ(head.ivf->recall, 0.96) << "nothing before to interpolate from";
  EXPECT_DOUBLE_EQ(head.ivf->scanned_share, 0.25);
}

TEST(IndexComparisonTest, HnswIsMeasuredAtTheRecallOfTheGraph) {
  const std::vector<IndexResult> indexes = {
      Index("g", "graph", {{0.94, 0.005, 10}, {0.97, 0.01, 20}, {0.99, 0.02, 40}}),
      Index("m", "hnsw", {{0.95, 0.1, 100}, {0.99, 0.2, 200}}),
      Index("n", "hnsw", {{0.95, 0.1, 20}, {0.96, 0.2, 25}})};
  const HeadComparison head = Compare(indexes);
  ASSERT_TRUE(head.graph.has_value());
  EXPECT_DOUBLE_EQ(head.graph->recall, 0.97);
  EXPECT_DOUBLE_EQ(head.graph->distances, 20);
  ASSERT_TRUE(head.hnsw.has_value());
  EXPECT_EQ(head.hnsw->index, "m") << "the other never has as much recall";
  EXPECT_NEAR(head.hnsw->distances, 150, 1e-9);
}

TEST(IndexComparisonTest, WhatIsNotReachedHasNoCost) {
  const HeadComparison head =
      Compare({Index("a", "ivf", {{0.5, 0.9, 1}}), Index("g", "graph", {{0.96, 0.01, 20}}),
               Index("h", "hnsw", {{0.95, 0.3, 20}})});
  EXPECT_FALSE(head.ivf.has_value());
  EXPECT_TRUE(head.graph.has_value());
  EXPECT_FALSE(head.hnsw.has_value());
}

}  // namespace
}  // namespace terrace
