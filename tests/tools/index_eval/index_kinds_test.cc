#include "tools/index_eval/index_kinds.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/index_eval/eval_heads.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

std::string ErrorOf(const std::string& list) {
  const auto kinds = ParseIndexKinds(list);
  EXPECT_EQ(kinds.status().code(), absl::StatusCode::kInvalidArgument) << list;
  return std::string(kinds.status().message());
}

TEST(IndexKindsTest, NamesWhatItDoesNotKnow) {
  EXPECT_THAT(ErrorOf("flat,tree"), HasSubstr("--index: \"tree\" is not one of flat"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("--index: \"\" is not one of"));
  EXPECT_THAT(ErrorOf("flat:lists=3"),
              HasSubstr("--index: flat:lists=3: \"lists\" is no option of flat, which has none"));
  EXPECT_THAT(ErrorOf("ivf:m=3"), HasSubstr("\"m\" is no option of ivf, which has lists"));
  EXPECT_THAT(ErrorOf("ivf:"), HasSubstr("\"\" is no option of ivf"));
}

TEST(IndexKindsTest, NamesValuesThatAreOutOfRange) {
  EXPECT_THAT(ErrorOf("ivf:lists=0"), HasSubstr("ivf:lists=0: lists is \"0\", expected 1 to"));
  EXPECT_THAT(ErrorOf("hnsw:m=257"), HasSubstr("m is \"257\", expected 2 to 256"));
  EXPECT_THAT(ErrorOf("hnsw:m=16:ef_construction=-1"), HasSubstr("ef_construction is \"-1\""));
  EXPECT_THAT(ErrorOf("ivf:lists"), HasSubstr("lists is \"\""));
  EXPECT_THAT(ErrorOf("ivf:lists=4=5"), HasSubstr("lists is \"4=5\""));
}

TEST(IndexKindsTest, TakesAVariantOnce) {
  EXPECT_THAT(ErrorOf("flat,flat"), HasSubstr("flat stands there twice"));
  EXPECT_THAT(ErrorOf("ivf:lists=4,ivf:lists=4"), HasSubstr("ivf:lists=4 stands there twice"));
  const auto kinds = ParseIndexKinds("ivf,ivf:lists=4,ivf:lists=8:iterations=3");
  ASSERT_TRUE(kinds.ok()) << kinds.status();
  ASSERT_EQ(kinds->size(), 3u);
  EXPECT_EQ((*kinds)[2].name, "ivf:lists=8:iterations=3");
  EXPECT_EQ((*kinds)[2].kind, "ivf");
}

TEST(IndexKindsTest, ClustersHaveAttentionMeasured) {
  const auto kinds = ParseIndexKinds("graph,cluster,cluster:cluster_keys=32");
  ASSERT_TRUE(kinds.ok()) << kinds.status();
  EXPECT_FALSE((*kinds)[0].clustering.has_value());
  ASSERT_TRUE((*kinds)[1].clustering.has_value());
  EXPECT_EQ((*kinds)[1].clustering->cluster_keys, 16u);
  EXPECT_EQ((*kinds)[2].clustering->cluster_keys, 32u);
}

// The smallest and the largest value of each option that is in the list; all of them are good.
TEST(IndexKindsTest, EveryKindTakesItsLimits) {
  for (const char* const list :
       {"ivf:lists=1:training_keys_per_list=1:iterations=1", "ivf:iterations=1000",
        "hnsw:m=2:ef_construction=1", "hnsw:m=256:ef_construction=65536",
        "graph:degree=4:samples=1:build_width=1", "graph:degree=36:samples=16777216",
        "cluster:cluster_keys=1:iterations=1", "cluster:cluster_keys=4096:iterations=1000"}) {
    const auto kinds = ParseIndexKinds(list);
    ASSERT_TRUE(kinds.ok()) << kinds.status();
    EXPECT_TRUE((*kinds)[0].make().ok()) << list;
  }
}

TEST(IndexKindsTest, OptionsReachTheIndex) {
  SyntheticHeadOptions options;
  options.keys = 2000;
  options.samples = 64;
  options.steps = 1;
  const auto heads = MakeSyntheticHeads(options, 1);
  ASSERT_TRUE(heads.ok()) << heads.status();
  const EvalHead& head = heads->front();
  ComputePool pool(1);
  const auto built = [&](const std::string& text) {
    auto kinds = ParseIndexKinds(text);
    EXPECT_TRUE(kinds.ok()) << kinds.status();
    auto index = *(*kinds)[0].make();
    EXPECT_TRUE(index->Build(head.panels(), head.samples, pool).ok());
    return index;
  };
  EXPECT_EQ(built("ivf:lists=37")->Efforts(10).back(), 37u);
  EXPECT_GT(built("hnsw:m=32")->memory_bytes(), 2 * built("hnsw:m=8")->memory_bytes());
  EXPECT_GT(built("graph:degree=32")->memory_bytes(), built("graph:degree=8")->memory_bytes());
  EXPECT_GT(built("cluster:cluster_keys=4")->Efforts(10).back(),
            2 * built("cluster:cluster_keys=32")->Efforts(10).back());
}

}  // namespace
}  // namespace terrace
