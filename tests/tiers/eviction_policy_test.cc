#include "tiers/eviction_policy.h"

#include <algorithm>
#include <list>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

// --- Conformance: what every policy promises, whatever its ranking ---

class EvictionPolicyConformanceTest : public testing::TestWithParam<std::string> {
 protected:
  static constexpr size_t kSlots = 16;

  std::unique_ptr<EvictionPolicy> Make(size_t slots = kSlots) const {
    return *MakeEvictionPolicy(GetParam(), slots);
  }
  static BlockId Id(uint64_t number) { return {.high = number * 31, .low = number}; }
  static std::vector<SlotIndex> Order(const EvictionPolicy& policy) {
    std::vector<SlotIndex> order;
    policy.VisitColdest([&](SlotIndex slot) {
      order.push_back(slot);
      return true;
    });
    return order;
  }
};

INSTANTIATE_TEST_SUITE_P(Policies, EvictionPolicyConformanceTest, testing::Values("lru"),
                         [](const auto& info) { return info.param; });

TEST_P(EvictionPolicyConformanceTest, VisitsNothingWhenNothingIsTracked) {
  EXPECT_TRUE(Order(*Make()).empty());
  EXPECT_TRUE(Order(*Make(0)).empty());
}

TEST_P(EvictionPolicyConformanceTest, VisitsEveryTrackedSlotOnce) {
  const uint64_t seed = 11;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  const std::unique_ptr<EvictionPolicy> policy = Make();
  std::vector<bool> tracked(kSlots);
  for (int step = 0; step < 5000; ++step) {
    const size_t i = random() % kSlots;
    const SlotIndex slot{static_cast<uint32_t>(i)};
    if (!tracked[i]) {
      policy->Insert(slot, Id(random() % 100));
      tracked[i] = true;
    } else if (const uint64_t kind = random() % 3; kind == 0) {
      policy->Touch(slot);
    } else if (kind == 1) {
      policy->MakeColdest(slot);
    } else {
      policy->Remove(slot);
      tracked[i] = false;
    }
    std::vector<SlotIndex> visited = Order(*policy);
    std::sort(visited.begin(), visited.end());
    std::vector<SlotIndex> expected;
    for (uint32_t s = 0; s < kSlots; ++s) {
      if (tracked[s]) expected.push_back(SlotIndex{s});
    }
    ASSERT_EQ(visited, expected) << "step " << step;
  }
}

TEST_P(EvictionPolicyConformanceTest, StopsVisitingWhenTold) {
  const std::unique_ptr<EvictionPolicy> policy = Make();
  for (uint32_t i = 0; i < kSlots; ++i) policy->Insert(SlotIndex{i}, Id(i));
  int visits = 0;
  policy->VisitColdest([&](SlotIndex) { return ++visits < 5; });
  EXPECT_EQ(visits, 5);
}

TEST_P(EvictionPolicyConformanceTest, TheSlotMadeColdestGoesFirst) {
  const std::unique_ptr<EvictionPolicy> policy = Make();
  for (uint32_t i = 0; i < kSlots; ++i) policy->Insert(SlotIndex{i}, Id(i));
  for (uint32_t slot : {7u, 0u, 15u, 15u}) {
    policy->MakeColdest(SlotIndex{slot});
    EXPECT_EQ(Order(*policy).front(), SlotIndex{slot});
  }
}

TEST_P(EvictionPolicyConformanceTest, VisitingChangesNothing) {
  const std::unique_ptr<EvictionPolicy> policy = Make();
  for (uint32_t i = 0; i < kSlots; ++i) policy->Insert(SlotIndex{i}, Id(i));
  const std::vector<SlotIndex> once = Order(*policy);
  EXPECT_EQ(Order(*policy), once);
}

TEST_P(EvictionPolicyConformanceTest, EqualCallsGiveEqualAnswers) {
  const uint64_t seed = 12;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  const std::unique_ptr<EvictionPolicy> policies[] = {Make(), Make()};
  for (const auto& policy : policies) {
    std::mt19937_64 random(seed);
    for (uint32_t i = 0; i < kSlots; ++i) policy->Insert(SlotIndex{i}, Id(random() % 100));
    for (int i = 0; i < 200; ++i) {
      policy->Touch(SlotIndex{static_cast<uint32_t>(random() % kSlots)});
    }
  }
  EXPECT_EQ(Order(*policies[0]), Order(*policies[1]));
}

using EvictionPolicyDeathTest = EvictionPolicyConformanceTest;
INSTANTIATE_TEST_SUITE_P(Policies, EvictionPolicyDeathTest, testing::Values("lru"),
                         [](const auto& info) { return info.param; });

TEST_P(EvictionPolicyDeathTest, CallsOutOfOrderAbort) {
  const std::unique_ptr<EvictionPolicy> policy = Make();
  policy->Insert(SlotIndex{1}, Id(1));
  EXPECT_DEATH(policy->Insert(SlotIndex{1}, Id(1)), "Tracked");
  EXPECT_DEATH(policy->Touch(SlotIndex{2}), "Tracked");
  EXPECT_DEATH(policy->MakeColdest(SlotIndex{2}), "Tracked");
  EXPECT_DEATH(policy->Remove(SlotIndex{2}), "Tracked");
}

// --- LRU ---

// The obvious form of it: coldest at the front.
class ListLru {
 public:
  void Insert(SlotIndex slot) { order_.push_back(slot); }
  void Touch(SlotIndex slot) {
    order_.remove(slot);
    order_.push_back(slot);
  }
  void MakeColdest(SlotIndex slot) {
    order_.remove(slot);
    order_.push_front(slot);
  }
  void Remove(SlotIndex slot) { order_.remove(slot); }
  bool tracked(SlotIndex slot) const {
    return std::find(order_.begin(), order_.end(), slot) != order_.end();
  }
  std::vector<SlotIndex> order() const { return {order_.begin(), order_.end()}; }

 private:
  std::list<SlotIndex> order_;
};

TEST(LruPolicy, OrdersAsAListDoes) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const uint32_t slots = 1 + random() % 12;
    const std::unique_ptr<EvictionPolicy> policy = *MakeEvictionPolicy("lru", slots);
    ListLru reference;
    for (int step = 0; step < 2000; ++step) {
      const SlotIndex slot{static_cast<uint32_t>(random() % slots)};
      if (!reference.tracked(slot)) {
        policy->Insert(slot, {});
        reference.Insert(slot);
      } else if (const uint64_t kind = random() % 6; kind == 0) {
        policy->Remove(slot);
        reference.Remove(slot);
      } else if (kind == 1) {
        policy->MakeColdest(slot);
        reference.MakeColdest(slot);
      } else {
        policy->Touch(slot);
        reference.Touch(slot);
      }
      std::vector<SlotIndex> order;
      policy->VisitColdest([&](SlotIndex visited) {
        order.push_back(visited);
        return true;
      });
      ASSERT_EQ(order, reference.order()) << "step " << step;
    }
  }
}

TEST(MakeEvictionPolicy, RefusesAnUnknownNameAndListsTheKnownOnes) {
  const auto policy = MakeEvictionPolicy("mru", 4);
  EXPECT_EQ(policy.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(policy.status().message(), "\"mru\"")) << policy.status();
  EXPECT_TRUE(absl::StrContains(policy.status().message(), "lru")) << policy.status();
}

}  // namespace
}  // namespace terrace
