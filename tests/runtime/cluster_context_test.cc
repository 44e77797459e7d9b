#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "io/memory_device.h"
#include "tests/support/faulty_device.h"
#include "tests/support/indexed_context.h"
#include "tiers/nvme_geometry.h"

// Contexts with clusters: what happens where those, or room for them, are not there.
namespace terrace {
namespace {

using ::testing::HasSubstr;

TEST(ClusterContextTest, ClustersThatComeTooLateAreEstimated) {
  RuntimeOptions options = OnNvme(Options(LookupKind::kCluster));
  options.lookup.patience = absl::Milliseconds(1);
  options.index_tail_tokens = 4096;
  MemoryDeviceOptions memory;
  memory.size_bytes = PlanNvmeGeometry(kNvmeBytes, options.BlockBytes())->total_bytes();
  auto device = std::make_unique<FaultyDevice>(*MemoryDevice::Create(memory), /*seed=*/1);
  FaultyDevice& disk = *device;
  TierManager::Parts parts;
  parts.device = std::move(device);
  ContextRig rig(options, /*seed=*/1, std::move(parts));
  const auto context = Filled(rig);
  const std::vector<BlockId> before = rig.runtime().tiers().OwnedBlocks();
  const absl::flat_hash_set<BlockId> tokens(before.begin(), before.end());
  for (size_t layer = 0; layer < 2; ++layer) ASSERT_TRUE(context->BuildIndex(layer).ok());
  ASSERT_TRUE(rig.runtime().tiers().Flush().ok());
  absl::flat_hash_set<uint64_t> places;
  for (const BlockId& id : rig.runtime().tiers().OwnedBlocks()) {
    if (!tokens.contains(id)) places.insert(*rig.runtime().tiers().NvmeOffset(id));
  }
  disk.HoldWhen([&](const IoRequest& request) {
    return request.op == IoOp::kRead && places.contains(request.offset);
  });
  const double error = ErrorOf(rig, *context);
  disk.ReleaseAll();
  const LookupStats stats = StatsOf(*context, LookupKind::kCluster);
  EXPECT_GT(stats.late_blocks, 0u);
  EXPECT_EQ(stats.lost_blocks, 0u);
  RuntimeOptions without = Options(LookupKind::kStreaming);
  ContextRig streaming(without);
  EXPECT_LT(error, ErrorOf(streaming, *Filled(streaming)));
}

TEST(ClusterContextTest, BlocksOfClustersThatTheTiersLostAreMadeAnew) {
  RuntimeOptions options = OnNvme(Options(LookupKind::kCluster));
  options.lookup.share = 1;
  ContextRig rig(options);
  const auto context = Filled(rig);
  TierManager& tiers = rig.runtime().tiers();
  const std::vector<BlockId> before = tiers.OwnedBlocks();
  const absl::flat_hash_set<BlockId> tokens(before.begin(), before.end());
  EXPECT_LT(ErrorOf(rig, *context), 1e-5);
  std::vector<BlockId> clusters = tiers.OwnedBlocks();
  std::erase_if(clusters, [&](const BlockId& id) { return tokens.contains(id); });
  ASSERT_EQ(clusters.size(), (kSealed - 1) * 2 * 2);  // layers and KV heads
  tiers.Drop(clusters);
  EXPECT_GT(ErrorOf(rig, *context), 1e-5) << "all are estimated";
  const uint64_t lost = StatsOf(*context, LookupKind::kCluster).lost_blocks;
  EXPECT_EQ(lost, clusters.size());
  EXPECT_TRUE(context->Lost().empty()) << "the tokens are still there";
  EXPECT_LT(ErrorOf(rig, *context), 1e-5);
  EXPECT_EQ(StatsOf(*context, LookupKind::kCluster).lost_blocks, lost);
}

// Nothing is stored for clusters whose tokens are read where they are.
TEST(ClusterContextTest, InDramTokensAreReadInPlace) {
  ContextRig rig(Options(LookupKind::kCluster));
  const auto context = Filled(rig);
  const size_t blocks = rig.runtime().tiers().OwnedBlocks().size();
  const LookupStats before = StatsOf(*context, LookupKind::kCluster);
  const auto expected = Decode(rig, *context);
  EXPECT_EQ(rig.runtime().tiers().OwnedBlocks().size(), blocks);
  const LookupStats stats = StatsOf(*context, LookupKind::kCluster);
  const size_t heads = rig.shape().layers * rig.shape().kv_heads;
  EXPECT_EQ(stats.blocks - before.blocks, heads) << "that of the sinks";
  EXPECT_EQ(stats.tokens - before.tokens, heads * (kSealed - 1) * 32 / 4) << "a quarter";
  ASSERT_TRUE(context->Park().ok());
  EXPECT_EQ(Decode(rig, *context), expected) << "held again";
}

// Segments of clusters are cut between blocks, whatever a block has.
TEST(ClusterContextTest, ARollbackBeyondASegmentLosesNoTokens) {
  for (const size_t block_tokens : {size_t{64}, size_t{96}}) {
    RuntimeOptions options = Options(LookupKind::kCluster);
    options.shape.layers = 1;
    options.tokens_per_block = block_tokens;
    options.window_tokens = block_tokens;
    options.max_append_tokens = 96;
    options.tiers.dram_bytes = 1000 * options.BlockBytes();
    options.lookup.share = 1;
    ContextRig rig(options);
    const auto context = *rig.runtime().NewContext();
    while (context->tokens(0) < 120 * 96) ASSERT_TRUE(rig.Append(*context, 0, 96).ok());
    ASSERT_TRUE(context->BuildIndex(0).ok());
    EXPECT_LT(ErrorOf(rig, *context), 1e-5) << block_tokens;
    const uint64_t whole = rig.runtime().Stats().index_bytes;
    ASSERT_TRUE(context->Truncate(90 * 96).ok());
    EXPECT_LT(rig.runtime().Stats().index_bytes, whole);
    EXPECT_GT(rig.runtime().Stats().index_bytes, 0u) << "the first segment stays";
    EXPECT_LT(ErrorOf(rig, *context), 1e-5) << block_tokens;
  }
}

TEST(ClusterContextTest, WithoutRoomToHoldTokensAttentionIsExactUntilThereIsSome) {
  RuntimeOptions options = Options(LookupKind::kCluster);
  // Of two contexts of 108 blocks, 104 of which are held; a sixteenth must not be.
  options.tiers.dram_bytes = 220 * options.BlockBytes();
  ContextRig rig(options);
  auto first = Filled(rig);
  const auto expected = Decode(rig, *first);
  const auto second = Filled(rig);
  const std::vector<float> exact = Decode(rig, *second)[1];  // its first layer found room
  const std::vector<double> all = rig.Expected(1, kTokens - 1, [](int64_t) { return true; });
  EXPECT_LT(ContextRig::Error(exact, all), 1e-5);
  EXPECT_GT(second->Stats().index_refusals, 0u);
  EXPECT_THAT(std::string(second->BuildIndex(1).message()), HasSubstr("dram_bytes"));
  first.reset();
  for (size_t layer = 0; layer < 2; ++layer) ASSERT_TRUE(second->BuildIndex(layer).ok());
  EXPECT_EQ(Decode(rig, *second), expected);
}

// What an idle context let go of is held again as it was, and is not worth a segment of its own.
TEST(ClusterContextTest, IdleTimesLeaveTheIndexAsItIs) {
  RuntimeOptions options = Options(LookupKind::kCluster);
  options.index_tail_tokens = 256;
  ContextRig rig(options);
  const auto context = Filled(rig);
  Decode(rig, *context);
  const uint64_t bytes = rig.runtime().Stats().index_bytes;
  const LookupStats before = StatsOf(*context, LookupKind::kCluster);
  for (int idle = 0; idle < 3; ++idle) {
    ASSERT_TRUE(rig.Step(*context, 10).ok());
    ASSERT_TRUE(context->Park().ok());
    Decode(rig, *context);
  }
  EXPECT_EQ(rig.runtime().Stats().index_bytes, bytes);
  EXPECT_GT(StatsOf(*context, LookupKind::kCluster).tokens, before.tokens);
}

}  // namespace
}  // namespace terrace
