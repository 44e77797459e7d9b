#include "runtime/weight_pager.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/bundle_sample.h"
#include "tests/support/kv_samples.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

BundleShape Shape(bool gated, BundleLayout layout = BundleLayout::kBundled) {
  return {.layers = 3,
          .experts = 1,
          .neurons = 101,
          .width = 96,
          .gated = gated,
          .activation = Activation::kRelu,
          .dtype = KvDtype::kFloat16,
          .layout = layout,
          .group_neurons = 7};
}

std::unique_ptr<WeightPager> MustOpen(const BundleSample& sample,
                                      const WeightPagerOptions& options) {
  absl::StatusOr<std::unique_ptr<WeightPager>> pager =
      WeightPager::Open(sample.file(), options, sample.Device());
  if (!pager.ok()) std::fprintf(stderr, "%s\n", std::string(pager.status().message()).c_str());
  TERRACE_CHECK(pager.ok());
  return *std::move(pager);
}

// Memory for so many rows of each layer.
WeightPagerOptions RoomFor(const BundleShape& shape, uint64_t rows,
                           WeightPagerOptions options = {}) {
  const uint64_t least = WeightPager::MinDramBytes(shape, options);
  const size_t row = shape.group_bytes() * (options.row == WeightRow::kExpert ? shape.groups() : 1);
  // Some bytes more for the tables of a row and the staging, which grows with the memory.
  options.dram_bytes = least + shape.layers * (rows - 1) * (row + 128);
  options.dram_bytes += options.dram_bytes / 12;
  options.threads = 2;
  return options;
}

void ExpectNear(absl::Span<const float> out, const std::vector<double>& expected) {
  double norm = 1e-3;
  for (const double value : expected) norm = std::max(norm, std::abs(value));
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(out[i], expected[i], 1e-5 * norm) << "element " << i;
  }
}

std::vector<uint32_t> RandomPlaces(const BundleShape& shape, double share,
                                   std::mt19937_64& random) {
  std::vector<uint32_t> places;
  std::bernoulli_distribution take(share);
  for (const uint32_t place : AllPlaces(shape)) {
    if (take(random)) places.push_back(place);
  }
  return places;
}

// The places of the groups that have any of `places`: what is computed when these are required.
std::vector<uint32_t> WholeGroups(const BundleShape& shape, const std::vector<uint32_t>& places) {
  std::set<uint32_t> groups;
  for (const uint32_t place : places) {
    groups.insert(place / shape.neurons * shape.groups() + shape.group_of(place % shape.neurons));
  }
  std::vector<uint32_t> whole;
  for (const uint32_t place : AllPlaces(shape)) {
    const uint32_t group =
        place / shape.neurons * shape.groups() + shape.group_of(place % shape.neurons);
    if (groups.contains(group)) whole.push_back(place);
  }
  return whole;
}

TEST(WeightPagerTest, EqualsTheReferenceForEveryShapeDtypeAndLayout) {
  uint64_t seed = 1;
  for (const bool gated : {false, true}) {
    for (const Activation activation : {Activation::kRelu, Activation::kSilu}) {
      for (const KvDtype dtype : {KvDtype::kFloat16, KvDtype::kBfloat16, KvDtype::kFloat32}) {
        for (const BundleLayout layout :
             {BundleLayout::kBundled, BundleLayout::kGateFirst, BundleLayout::kUnbundled}) {
          BundleShape shape = Shape(gated, layout);
          shape.activation = activation;
          shape.dtype = dtype;
          SCOPED_TRACE(shape.ToString());
          const BundleSample sample(shape, ++seed);
          const std::unique_ptr<WeightPager> pager = MustOpen(sample, RoomFor(shape, 6));
          std::mt19937_64 random(seed);
          std::vector<float> out(2 * shape.width);
          for (int token = 0; token < 4; ++token) {
            pager->BeginToken();
            for (uint32_t layer = 0; layer < shape.layers; ++layer) {
              // From a few rows to more than memory holds.
              const std::vector<uint32_t> places = RandomPlaces(shape, 0.01 + 0.08 * token, random);
              const std::vector<float> x = NormalFloats(out.size(), random());
              ASSERT_TRUE(pager->Require(layer, places).ok());
              ASSERT_TRUE(pager->Ffn(layer, x, absl::MakeSpan(out)).ok());
              for (size_t t = 0; t < 2; ++t) {
                const auto token_x = absl::MakeConstSpan(x).subspan(t * shape.width, shape.width);
                ExpectNear(absl::MakeConstSpan(out).subspan(t * shape.width, shape.width),
                           sample.Reference(layer, token_x, WholeGroups(shape, places)));
              }
            }
          }
          EXPECT_GT(pager->Stats().missed_rows, 0u);
        }
      }
    }
  }
}

TEST(WeightPagerTest, TheSameBitsWhateverMemoryThreadsAndNeuronsThatDoNotFire) {
  for (const BundleLayout layout : {BundleLayout::kBundled, BundleLayout::kGateFirst}) {
    const BundleShape shape = Shape(/*gated=*/true, layout);
    const BundleSample sample(shape, 5);
    std::vector<std::unique_ptr<WeightPager>> pagers;
    for (const uint64_t rows : {1, 3, 8, 40}) {
      WeightPagerOptions options = RoomFor(shape, rows);
      options.threads = 1 + rows % 3;
      pagers.push_back(MustOpen(sample, options));
    }
    std::vector<float> dense(shape.width), out(shape.width);
    for (int token = 0; token < 5; ++token) {
      for (const auto& pager : pagers) pager->BeginToken();
      for (uint32_t layer = 0; layer < shape.layers; ++layer) {
        const std::vector<float> x = NormalFloats(shape.width, token * 10 + layer);
        ASSERT_TRUE(pagers[0]->DenseFfn(layer, x, absl::MakeSpan(dense)).ok());
        for (const auto& pager : pagers) {
          ASSERT_TRUE(pager->Require(layer, sample.Firing(layer, x)).ok());
          ASSERT_TRUE(pager->Ffn(layer, x, absl::MakeSpan(out)).ok());
          ASSERT_EQ(std::memcmp(out.data(), dense.data(), out.size() * sizeof(float)), 0);
        }
      }
    }
  }
}

TEST(WeightPagerTest, ReadsOnlyWhatTheWindowLacks) {
  BundleShape shape = Shape(true);
  shape.group_neurons = 1;  // a row a neuron
  const BundleSample sample(shape, 6);
  WeightPagerOptions options = RoomFor(shape, 40);
  options.window_tokens = 2;
  options.max_overread = 0;
  const std::unique_ptr<WeightPager> pager = MustOpen(sample, options);
  const std::vector<float> x = NormalFloats(shape.width, 7);
  std::vector<float> out(shape.width);
  std::mt19937_64 random(8);
  std::vector<std::vector<uint32_t>> history;
  uint64_t misses = 0;
  for (int token = 0; token < 40; ++token) {
    history.push_back(RandomPlaces(shape, 0.08, random));
    std::set<uint32_t> window;
    for (size_t i = history.size() < 3 ? 0 : history.size() - 3; i + 1 < history.size(); ++i) {
      window.insert(history[i].begin(), history[i].end());
    }
    pager->BeginToken();
    for (const uint32_t place : AllPlaces(shape)) {
      ASSERT_EQ(pager->IsResident(1, place), window.contains(place)) << token << " " << place;
    }
    for (const uint32_t place : history.back()) misses += !window.contains(place);
    ASSERT_TRUE(pager->Require(1, history.back()).ok());
    ASSERT_TRUE(pager->Ffn(1, x, absl::MakeSpan(out)).ok());
    ASSERT_EQ(pager->Stats().missed_rows, misses);
    ASSERT_EQ(pager->Stats().read_bytes, misses * shape.group_bytes());
    ExpectNear(out, sample.Reference(1, x, history.back()));
  }
  EXPECT_GT(pager->Stats().moved_rows, 0u);
}

TEST(WeightPagerTest, WithoutALimitTheWindowIsWhatMemoryHolds) {
  BundleShape shape = Shape(true);
  shape.group_neurons = 1;
  const BundleSample sample(shape, 9);
  const std::unique_ptr<WeightPager> pager = MustOpen(sample, RoomFor(shape, 50));
  const uint64_t capacity = pager->Stats().capacity_rows / shape.layers;
  const std::vector<float> x = NormalFloats(shape.width, 10);
  std::vector<float> out(shape.width);
  for (uint32_t token = 0; token < 20; ++token) {
    pager->BeginToken();
    std::vector<uint32_t> places;
    for (uint32_t i = 0; i < 10; ++i) places.push_back((token * 10 + i) % shape.neurons);
    ASSERT_TRUE(pager->Require(0, places).ok());
    ASSERT_TRUE(pager->Ffn(0, x, absl::MakeSpan(out)).ok());
  }
  uint64_t resident = 0;
  for (const uint32_t place : AllPlaces(shape)) resident += pager->IsResident(0, place);
  EXPECT_EQ(resident, capacity);
  EXPECT_EQ(pager->Stats().moved_rows, 0u);
  EXPECT_LE(pager->memory_bytes(), RoomFor(shape, 50).dram_bytes);
}

TEST(WeightPagerTest, TheHottestRowsStay) {
  BundleShape shape = Shape(true);
  shape.group_neurons = 1;
  std::vector<float> frequency(shape.all_neurons(), 0.01f);
  for (const uint32_t place : {3, 50, 99}) frequency[shape.neurons + place] = 0.9f;
  const BundleSample sample(shape, 11, frequency);
  WeightPagerOptions options = RoomFor(shape, 12);
  options.pinned_share = 0.25;
  const std::unique_ptr<WeightPager> pager = MustOpen(sample, options);
  ASSERT_GE(pager->Stats().pinned_rows, 3 * shape.layers);
  const std::vector<float> x = NormalFloats(shape.width, 12);
  std::vector<float> out(shape.width);
  for (uint32_t token = 0; token < 30; ++token) {
    pager->BeginToken();
    std::vector<uint32_t> places;
    for (uint32_t i = 0; i < 5; ++i) places.push_back((token * 5 + i) % shape.neurons);
    ASSERT_TRUE(pager->Require(1, places).ok());
    ASSERT_TRUE(pager->Ffn(1, x, absl::MakeSpan(out)).ok());
    ExpectNear(out, sample.Reference(1, x, places));
    for (const uint32_t place : {3, 50, 99}) EXPECT_TRUE(pager->IsResident(1, place));
  }
}

TEST(WeightPagerTest, APrefetchIsJoinedAndNotReadTwice) {
  const BundleShape shape = Shape(true);
  const BundleSample sample(shape, 13);
  const std::unique_ptr<WeightPager> pager = MustOpen(sample, RoomFor(shape, 10));
  const std::vector<float> x = NormalFloats(shape.width, 14);
  std::vector<float> out(shape.width);
  pager->BeginToken();
  ASSERT_TRUE(pager->Require(0, {0, 20}).ok());
  pager->Prefetch(1, {7, 30, 31});
  ASSERT_TRUE(pager->Ffn(0, x, absl::MakeSpan(out)).ok());
  ExpectNear(out, sample.Reference(0, x, WholeGroups(shape, {0, 20})));
  ASSERT_TRUE(pager->Require(1, {7, 60}).ok());
  ASSERT_TRUE(pager->Ffn(1, x, absl::MakeSpan(out)).ok());
  ExpectNear(out, sample.Reference(1, x, WholeGroups(shape, {7, 60})));
  const WeightPagerStats stats = pager->Stats();
  EXPECT_EQ(stats.prefetched_rows, 2u);
  EXPECT_EQ(stats.used_prefetches, 1u);
  EXPECT_EQ(stats.missed_rows, 3u);
  EXPECT_EQ(stats.hit_rows + stats.joined_rows, 1u);
  EXPECT_EQ(stats.wanted_bytes, 5 * shape.group_bytes());
}

TEST(WeightPagerTest, GatesThatDoNotFireSpareTheRest) {
  const BundleShape shape = Shape(true, BundleLayout::kGateFirst);
  const BundleSample sample(shape, 15);
  const std::unique_ptr<WeightPager> pager = MustOpen(sample, RoomFor(shape, 15));
  // Against every gate of the layer's first group, so that it does not fire.
  std::vector<float> x(shape.width);
  for (uint32_t place = 0; place < shape.group_neurons; ++place) {
    for (uint32_t i = 0; i < shape.width; ++i) x[i] -= sample.Part(0, place, 0)[i];
  }
  std::vector<float> out(shape.width);
  pager->BeginToken();
  ASSERT_TRUE(pager->Require(0, {0, 10}).ok());
  ASSERT_TRUE(pager->Ffn(0, x, absl::MakeSpan(out)).ok());
  ExpectNear(out, sample.Reference(0, x, WholeGroups(shape, {0, 10})));
  EXPECT_EQ(pager->Stats().wanted_bytes, 2 * shape.piece_bytes(0) + shape.piece_bytes(1));
  EXPECT_FALSE(pager->IsResident(0, 0));
  EXPECT_TRUE(pager->IsResident(0, 10));
  // Once it fires, only the rest is read.
  for (float& value : x) value = -value;
  pager->BeginToken();
  ASSERT_TRUE(pager->Require(0, {0}).ok());
  ASSERT_TRUE(pager->Ffn(0, x, absl::MakeSpan(out)).ok());
  ExpectNear(out, sample.Reference(0, x, WholeGroups(shape, {0})));
  EXPECT_EQ(pager->Stats().wanted_bytes, 2 * shape.group_bytes());
}

TEST(WeightPagerTest, WhatElseIsInMemoryIsComputedOnRequest) {
  const BundleShape shape = Shape(true);
  const BundleSample sample(shape, 16);
  WeightPagerOptions options = RoomFor(shape, 10);
  options.compute_resident = true;
  const std::unique_ptr<WeightPager> pager = MustOpen(sample, options);
  const std::vector<float> x = NormalFloats(shape.width, 17);
  std::vector<float> out(shape.width);
  pager->BeginToken();
  ASSERT_TRUE(pager->Require(2, {0, 40}).ok());
  ASSERT_TRUE(pager->Ffn(2, x, absl::MakeSpan(out)).ok());
  pager->BeginToken();
  ASSERT_TRUE(pager->Require(2, {80}).ok());
  ASSERT_TRUE(pager->Ffn(2, x, absl::MakeSpan(out)).ok());
  ExpectNear(out, sample.Reference(2, x, WholeGroups(shape, {0, 40, 80})));
  EXPECT_EQ(pager->Stats().missed_rows, 3u);
}

TEST(WeightPagerTest, ABudgetBelowOneLayersNeedSaysNeededAndGiven) {
  const BundleShape shape = Shape(true);
  const BundleSample sample(shape, 18);
  WeightPagerOptions options;
  options.dram_bytes = WeightPager::MinDramBytes(shape, options) - 1;
  const absl::Status status = WeightPager::Open(sample.file(), options, sample.Device()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr(absl::StrCat(options.dram_bytes + 1)));
  EXPECT_THAT(status.message(), HasSubstr(absl::StrCat(options.dram_bytes)));
  ++options.dram_bytes;
  const std::unique_ptr<WeightPager> pager = MustOpen(sample, options);
  const std::vector<float> x = NormalFloats(shape.width, 19);
  std::vector<float> out(shape.width);
  pager->BeginToken();
  ASSERT_TRUE(pager->Require(0, AllPlaces(shape)).ok());
  ASSERT_TRUE(pager->Ffn(0, x, absl::MakeSpan(out)).ok());
  ExpectNear(out, sample.Reference(0, x, AllPlaces(shape)));
}

TEST(WeightPagerTest, ReadsTheFileOnTheDisk) {
  const BundleShape shape = Shape(true);
  const BundleSample sample(shape, 30);
  for (const IoEngine engine : {IoEngine::kAuto, IoEngine::kThreads}) {
    WeightPagerOptions options = RoomFor(shape, 5);
    options.engine = engine;
    const auto pager = WeightPager::Open(sample.file(), options);
    ASSERT_TRUE(pager.ok()) << pager.status();
    EXPECT_EQ((*pager)->device_info().path, sample.path());
    const std::vector<float> x = NormalFloats(shape.width, 31);
    std::vector<float> out(shape.width);
    for (uint32_t layer = 0; layer < shape.layers; ++layer) {
      (*pager)->BeginToken();
      ASSERT_TRUE((*pager)->Require(layer, AllPlaces(shape)).ok());
      ASSERT_TRUE((*pager)->Ffn(layer, x, absl::MakeSpan(out)).ok());
      ExpectNear(out, sample.Reference(layer, x, AllPlaces(shape)));
    }
  }
}

TEST(WeightPagerTest, AFileThatIsGoneIsAnError) {
  const BundleSample sample(Shape(true), 32);
  std::remove(sample.path().c_str());
  EXPECT_EQ(WeightPager::Open(sample.file(), RoomFor(sample.shape(), 5)).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(WeightPagerTest, BadCallsAreRefusedAndHarmless) {
  const BundleShape shape = Shape(true);
  const BundleSample sample(shape, 20);
  const std::unique_ptr<WeightPager> pager = MustOpen(sample, RoomFor(shape, 10));
  const std::vector<float> x = NormalFloats(shape.width, 21);
  std::vector<float> out(shape.width);
  pager->BeginToken();
  EXPECT_EQ(pager->Ffn(0, x, absl::MakeSpan(out)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(pager->Require(3, {0}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(pager->Require(0, {101}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(pager->RequireExperts(0, {1}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(pager->DenseFfn(3, x, absl::MakeSpan(out)).code(), absl::StatusCode::kInvalidArgument);
  pager->Prefetch(3, {0});
  pager->Prefetch(0, {101});
  EXPECT_EQ(pager->Stats().prefetched_rows, 0u);
  pager->Prefetch(1, {101, 5});
  EXPECT_EQ(pager->Stats().prefetched_rows, 1u) << "what is in range counts";
  ASSERT_TRUE(pager->Require(0, {5}).ok());
  EXPECT_EQ(pager->Ffn(1, x, absl::MakeSpan(out)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(pager->Ffn(0, x, absl::MakeSpan(out).first(5)).code(),
            absl::StatusCode::kInvalidArgument);
  pager->Prefetch(0, {100});  // of the step's own layer: dropped
  ASSERT_TRUE(pager->Ffn(0, x, absl::MakeSpan(out)).ok());
  ExpectNear(out, sample.Reference(0, x, WholeGroups(shape, {5})));
  // What was required is replaced, whatever of it is under way.
  ASSERT_TRUE(pager->Require(1, AllPlaces(shape)).ok());
  ASSERT_TRUE(pager->Require(0, {5, 50}).ok());
  ASSERT_TRUE(pager->Ffn(0, x, absl::MakeSpan(out)).ok());
  ExpectNear(out, sample.Reference(0, x, WholeGroups(shape, {5, 50})));
}

// Random steps with prefetches of all kinds, against the reference.
TEST(WeightPagerTest, RandomStepsEqualTheReference) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    BundleShape shape = Shape(random() % 2 == 0, static_cast<BundleLayout>(random() % 3));
    shape.group_neurons = 1 + static_cast<uint32_t>(random() % 9);
    std::vector<float> frequency(shape.all_neurons());
    for (float& share : frequency) share = static_cast<float>(random() % 100) / 100;
    const BundleSample sample(shape, seed, random() % 2 == 0 ? frequency : std::vector<float>());
    WeightPagerOptions options = RoomFor(shape, 1 + random() % 20);
    options.window_tokens = random() % 4;
    options.pinned_share = static_cast<double>(random() % 5) / 4;
    options.max_overread = static_cast<double>(random() % 3);
    options.depth = 1 + random() % 8;
    options.prefetch_depth = 1 + random() % 4;
    const std::unique_ptr<WeightPager> pager = MustOpen(sample, options);
    std::vector<float> out(shape.width);
    for (int token = 0; token < 25; ++token) {
      pager->BeginToken();
      for (uint32_t layer = 0; layer < shape.layers; ++layer) {
        const std::vector<uint32_t> places =
            RandomPlaces(shape, static_cast<double>(random() % 30) / 100, random);
        const std::vector<float> x = NormalFloats(shape.width, random());
        ASSERT_TRUE(pager->Require(layer, places).ok());
        if (random() % 2 == 0) {
          pager->Prefetch((layer + 1) % shape.layers, RandomPlaces(shape, 0.1, random));
        }
        if (random() % 10 == 0) continue;  // never computed
        ASSERT_TRUE(pager->Ffn(layer, x, absl::MakeSpan(out)).ok());
        ExpectNear(out, sample.Reference(layer, x, WholeGroups(shape, places)));
        if (random() % 10 == 0) {
          ASSERT_TRUE(pager->DenseFfn(layer, x, absl::MakeSpan(out)).ok());
          ExpectNear(out, sample.Reference(layer, x, AllPlaces(shape)));
        }
      }
    }
  }
}

}  // namespace
}  // namespace terrace
