// Disks that fail or lie, under a pager of weights.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <random>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/weight_pager.h"
#include "tests/support/borrowed_device.h"
#include "tests/support/bundle_sample.h"
#include "tests/support/faulty_device.h"
#include "tests/support/kv_samples.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr BundleShape kShape = {.layers = 2,
                                .experts = 1,
                                .neurons = 64,
                                .width = 64,
                                .gated = true,
                                .activation = Activation::kRelu,
                                .dtype = KvDtype::kFloat32,
                                .layout = BundleLayout::kBundled,
                                .group_neurons = 4};

// A pager whose device can be made to fail.
class WeightPagerFaultsTest : public testing::Test {
 protected:
  explicit WeightPagerFaultsTest(const BundleShape& shape = kShape)
      : sample_(shape, 1), device_(sample_.Device(), /*seed=*/7) {
    WeightPagerOptions options;
    // Room for 8 of the 16 rows of each layer, and for what the staging takes of it.
    options.dram_bytes = WeightPager::MinDramBytes(shape, options) +
                         7 * shape.layers * (shape.group_bytes() + 128) * 16 / 15;
    options.max_overread = 0;
    options.threads = 1;
    absl::StatusOr<std::unique_ptr<WeightPager>> pager =
        WeightPager::Open(sample_.file(), options, std::make_unique<BorrowedDevice>(device_));
    TERRACE_CHECK(pager.ok());
    pager_ = *std::move(pager);
    pager_->BeginToken();
  }

  absl::Status Run(uint32_t layer, const std::vector<uint32_t>& places) {
    absl::Status status = pager_->Require(layer, places);
    if (status.ok()) status = pager_->Ffn(layer, x_, absl::MakeSpan(out_));
    return status;
  }

  // The places are whole groups.
  void ExpectRight(uint32_t layer, const std::vector<uint32_t>& places) {
    const std::vector<double> expected = sample_.Reference(layer, x_, places);
    for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(out_[i], expected[i], 1e-4);
  }

  static std::vector<uint32_t> Groups(const std::vector<uint32_t>& groups) {
    std::vector<uint32_t> places;
    for (const uint32_t group : groups) {
      for (uint32_t i = 0; i < 4; ++i) places.push_back(4 * group + i);
    }
    return places;
  }

  const BundleSample sample_;
  FaultyDevice device_;
  const std::vector<float> x_ = NormalFloats(kShape.width, 2);
  std::vector<float> out_ = std::vector<float>(kShape.width);
  std::unique_ptr<WeightPager> pager_;
};

TEST_F(WeightPagerFaultsTest, ARowThatFailsOnceIsReadAgain) {
  std::atomic<int> left = 2;
  device_.FailWhen(
      [&left](const IoRequest&) { return left-- > 0 ? std::optional<int>(EIO) : std::nullopt; });
  ASSERT_TRUE(Run(0, Groups({1, 5, 9})).ok());
  ExpectRight(0, Groups({1, 5, 9}));
  EXPECT_EQ(pager_->Stats().rereads, 2u);
  EXPECT_EQ(pager_->Stats().failed_rows, 0u);
}

TEST_F(WeightPagerFaultsTest, ABitThatFlipsOnceIsReadAgain) {
  std::atomic<int> left = 1;
  device_.FlipBitWhen([&left](const IoRequest&) { return left-- > 0; });
  ASSERT_TRUE(Run(1, Groups({2, 3})).ok());
  ExpectRight(1, Groups({2, 3}));
  EXPECT_EQ(device_.flipped_count(), 1u);
  EXPECT_GE(pager_->Stats().rereads, 1u);
}

TEST_F(WeightPagerFaultsTest, ARowThatStaysWrongFailsTheStepAndNoOther) {
  const uint64_t bad = kShape.GroupOffset(kShape.unit(0, 0), 5);
  const auto holds_bad = [bad](const IoRequest& request) {
    return request.offset <= bad && bad < request.offset + request.length();
  };
  ASSERT_TRUE(Run(0, Groups({1})).ok());
  for (const bool flips : {false, true}) {
    if (flips) {
      device_.FlipBitWhen(holds_bad);
    } else {
      device_.FailWhen([&](const IoRequest& request) {
        // Whatever the disk calls it, the row is lost.
        return holds_bad(request) ? std::optional<int>(ENXIO) : std::nullopt;
      });
    }
    const absl::Status status = Run(0, Groups({1, 5, 12}));
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(status.message(), HasSubstr(sample_.path()));
    EXPECT_THAT(status.message(), HasSubstr("layer 0"));
    EXPECT_THAT(status.message(), HasSubstr("group 5"));
    EXPECT_FALSE(pager_->IsResident(0, 4 * 5));
    EXPECT_TRUE(pager_->IsResident(0, 4 * 1));
    // Others work on, and so does this one once the disk does.
    ASSERT_TRUE(Run(0, Groups({1, 12, 13})).ok());
    ExpectRight(0, Groups({1, 12, 13}));
    ASSERT_TRUE(Run(1, Groups({5})).ok());
    ExpectRight(1, Groups({5}));
    device_.FailWhen({});
    device_.FlipBitWhen({});
    ASSERT_TRUE(Run(0, Groups({1, 5, 12})).ok());
    ExpectRight(0, Groups({1, 5, 12}));
    EXPECT_TRUE(pager_->IsResident(0, 4 * 5));
    // Out with it, for the next round.
    ASSERT_TRUE(Run(0, Groups({0, 2, 3, 6, 7, 8, 9})).ok());
    ASSERT_TRUE(Run(0, Groups({10, 11, 14, 15, 4, 3, 2})).ok());
  }
  EXPECT_EQ(pager_->Stats().failed_rows, 2u);
}

TEST_F(WeightPagerFaultsTest, AFailedPrefetchCostsNothingButAnotherRead) {
  device_.FailWhen([](const IoRequest&) { return std::optional<int>(EIO); });
  pager_->Prefetch(1, Groups({3, 8}));
  const uint64_t begun = pager_->Stats().reads;
  while (device_.failed_count() < begun) std::this_thread::yield();
  device_.FailWhen({});
  ASSERT_TRUE(Run(0, Groups({0})).ok());
  ASSERT_TRUE(Run(1, Groups({3, 8})).ok());
  ExpectRight(1, Groups({3, 8}));
}

TEST_F(WeightPagerFaultsTest, WhatPassesThroughStagingIsReadAgainToo) {
  std::vector<uint32_t> all = AllPlaces(kShape);
  std::atomic<int> left = 2;
  device_.FailWhen(
      [&left](const IoRequest&) { return left-- > 0 ? std::optional<int>(EIO) : std::nullopt; });
  ASSERT_TRUE(pager_->DenseFfn(0, x_, absl::MakeSpan(out_)).ok());
  ExpectRight(0, all);
  left = 2;
  device_.FlipBitWhen([&left](const IoRequest&) { return left-- > 0; });
  ASSERT_TRUE(Run(0, all).ok());
  ExpectRight(0, all);
  device_.FlipBitWhen([](const IoRequest&) { return true; });
  EXPECT_EQ(pager_->DenseFfn(1, x_, absl::MakeSpan(out_)).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Run(1, all).code(), absl::StatusCode::kDataLoss);
  device_.FlipBitWhen({});
  ASSERT_TRUE(Run(1, all).ok());
  ExpectRight(1, all);
}

// Faults of all kinds at random, in every layout and with rows that are kept for good: a step is
// right, or says that it is not.
class WeightPagerRandomFaultsTest : public testing::TestWithParam<BundleLayout> {};

TEST_P(WeightPagerRandomFaultsTest, NeverGiveWrongSums) {
  BundleShape shape = kShape;
  shape.layout = GetParam();
  std::vector<float> frequency(shape.layers * shape.neurons);
  for (size_t i = 0; i < frequency.size(); ++i) {
    frequency[i] = 0.5f - 0.005f * static_cast<float>(i % shape.neurons);
  }
  const BundleSample sample(shape, 1, frequency);
  FaultyDevice device(sample.Device(), /*seed=*/7);
  WeightPagerOptions options;
  options.dram_bytes = WeightPager::MinDramBytes(shape, options) +
                       7 * shape.layers * (shape.group_bytes() + 128) * 16 / 15;
  options.threads = 1;
  std::mt19937_64 faults(5);  // the pager's I/O thread alone asks
  device.FailWhen([&faults](const IoRequest&) {
    return faults() % 3 == 0 ? std::optional<int>(EIO) : std::nullopt;
  });
  device.FlipBitWhen([](const IoRequest& request) { return request.offset / kPageBytes % 5 == 0; });
  // Pages that always flip fail in Open too, where hot rows are read: only what stays wrong when
  // it is needed is an error.
  auto pager = WeightPager::Open(sample.file(), options, std::make_unique<BorrowedDevice>(device));
  ASSERT_TRUE(pager.ok()) << pager.status();
  const std::vector<float> x = NormalFloats(shape.width, 2);
  std::vector<float> out(shape.width);
  std::mt19937_64 random(3);
  const auto neurons_of = [](const std::vector<uint32_t>& groups) {
    std::vector<uint32_t> places;
    for (const uint32_t group : groups) {
      for (uint32_t i = 0; i < 4; ++i) places.push_back(4 * group + i);
    }
    return places;
  };
  int failed = 0, right = 0;
  for (int step = 0; step < 400; ++step) {
    if (step == 200) device.FlipBitWhen({});
    if (step % 2 == 0) (*pager)->BeginToken();
    const uint32_t layer = step % 2;
    std::vector<uint32_t> groups;
    for (uint32_t group = 0; group < 16; ++group) {
      if (random() % 5 == 0) groups.push_back(group);
    }
    ASSERT_TRUE((*pager)->Require(layer, neurons_of(groups)).ok());
    if (random() % 2 == 0) {
      (*pager)->Prefetch(1 - layer, neurons_of({static_cast<uint32_t>(random() % 16)}));
    }
    const absl::Status status = (*pager)->Ffn(layer, x, absl::MakeSpan(out));
    if (!status.ok()) {
      ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
      ++failed;
      continue;
    }
    ++right;
    const std::vector<double> expected = sample.Reference(layer, x, neurons_of(groups));
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(out[i], expected[i], 1e-4) << "step " << step;
    }
  }
  EXPECT_GT(failed, 0);
  EXPECT_GT(right, 100);
  EXPECT_GT((*pager)->Stats().pinned_rows, 0u);
  EXPECT_GT((*pager)->Stats().rereads, 20u);
}

INSTANTIATE_TEST_SUITE_P(Layouts, WeightPagerRandomFaultsTest,
                         testing::Values(BundleLayout::kBundled, BundleLayout::kGateFirst,
                                         BundleLayout::kUnbundled),
                         [](const auto& info) {
                           std::string name = BundleLayoutName(info.param);
                           std::erase(name, '-');
                           return name;
                         });

// All reads of a row that was guessed and is required go before those that come later.
TEST(WeightPagerJoinTest, EveryReadOfAGuessedRowBecomesDemand) {
  BundleShape shape = kShape;
  shape.layout = BundleLayout::kUnbundled;
  const BundleSample sample(shape, 1);
  FaultyDevice device(sample.Device(/*depth=*/1), /*seed=*/7);
  WeightPagerOptions options;
  options.dram_bytes = 4 << 20;
  options.max_overread = 0;
  const auto pager =
      WeightPager::Open(sample.file(), options, std::make_unique<BorrowedDevice>(device));
  ASSERT_TRUE(pager.ok()) << pager.status();
  std::vector<uint64_t> offsets;  // in the order that the disk gets them
  device.FailWhen([&offsets](const IoRequest& request) {
    offsets.push_back(request.offset);
    return std::nullopt;
  });
  const std::vector<float> x = NormalFloats(shape.width, 2);
  std::vector<float> out(shape.width);
  device.HoldAll();
  (*pager)->BeginToken();
  ASSERT_TRUE((*pager)->Require(0, {0}).ok());
  device.AwaitHeld(1);  // all the others wait for it
  (*pager)->Prefetch(1, {40});
  ASSERT_TRUE((*pager)->Require(1, {8, 16, 24, 32, 40}).ok());
  device.ReleaseAll();
  ASSERT_TRUE((*pager)->Ffn(1, x, absl::MakeSpan(out)).ok());
  EXPECT_EQ((*pager)->Stats().joined_rows, 1u);
  device.FailWhen({});
  ASSERT_GE(offsets.size(), 9u);
  const uint64_t group = 40 / shape.group_neurons;
  std::vector<size_t> turns;
  for (uint32_t part = 0; part < 3; ++part) {
    // The parts of the layer's groups lie in a matrix each.
    const WeightLayout layout(shape, {});
    const auto at = std::find(offsets.begin(), offsets.end(),
                              layout.FileOffset(1, static_cast<uint32_t>(group), part));
    ASSERT_NE(at, offsets.end()) << "part " << part;
    turns.push_back(static_cast<size_t>(at - offsets.begin()));
  }
  EXPECT_LT(*std::max_element(turns.begin(), turns.end()), offsets.size() - 1);
}

TEST(WeightPagerShortReadsTest, AreContinued) {
  const BundleSample sample(kShape, 4);
  absl::StatusOr<std::unique_ptr<MemoryDevice>> device = MemoryDevice::Create(
      {.size_bytes = PageAlignUp(sample.file()->file_bytes()),
       .depth = 4,
       .transfer_hook = [](const IoRequest&, uint64_t bytes) -> int64_t {
         return static_cast<int64_t>(std::min<uint64_t>(bytes, kPageBytes + 17));
       }});
  ASSERT_TRUE(device.ok());
  const std::unique_ptr<MemoryDevice> whole = sample.Device();
  std::copy(whole->bytes().begin(), whole->bytes().end(), (*device)->bytes().begin());
  WeightPagerOptions options;
  options.dram_bytes = 4 << 20;
  const auto pager = WeightPager::Open(sample.file(), options, *std::move(device));
  ASSERT_TRUE(pager.ok());
  const std::vector<float> x = NormalFloats(kShape.width, 5);
  std::vector<float> out(kShape.width);
  (*pager)->BeginToken();
  ASSERT_TRUE((*pager)->Require(0, AllPlaces(kShape)).ok());
  ASSERT_TRUE((*pager)->Ffn(0, x, absl::MakeSpan(out)).ok());
  const std::vector<double> expected = sample.Reference(0, x, AllPlaces(kShape));
  for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(out[i], expected[i], 1e-4);
  EXPECT_EQ((*pager)->Stats().rereads, 0u);
}

}  // namespace
}  // namespace terrace
