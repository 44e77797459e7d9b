#include "runtime/weight_rows.h"

#include <algorithm>
#include <list>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

// What the slots should hold, told by lists and maps.
class Model {
 public:
  explicit Model(uint32_t capacity) : capacity_(capacity) {}

  std::map<uint32_t, uint32_t> slot_of;  // by row
  std::list<uint32_t> window;            // rows, the oldest first
  std::map<uint32_t, uint64_t> use;      // by row

  void Touch(uint32_t row, uint64_t step) {
    use[row] = step;
    const auto at = std::find(window.begin(), window.end(), row);
    if (at == window.end()) return;
    window.erase(at);
    window.push_back(row);
  }
  WeightRows::Inserted Insert(uint32_t row, uint64_t step) {
    WeightRows::Inserted inserted;
    if (slot_of.size() < capacity_) {
      inserted.slot = static_cast<uint32_t>(slot_of.size());
    } else {
      if (window.empty() || use[window.front()] == step) return inserted;
      inserted.evicted_row = window.front();
      inserted.slot = slot_of[window.front()];
      slot_of.erase(window.front());
      window.pop_front();
    }
    slot_of[row] = inserted.slot;
    use[row] = step;
    return inserted;
  }

 private:
  const uint32_t capacity_;
};

// Checks that both agree, and that the slots in use are the first ones.
void ExpectSame(const WeightRows& rows, const Model& model) {
  ASSERT_EQ(rows.used(), model.slot_of.size());
  std::set<uint32_t> slots;
  for (uint32_t row = 0; row < rows.rows(); ++row) {
    const auto at = model.slot_of.find(row);
    ASSERT_EQ(rows.Find(row), at == model.slot_of.end() ? WeightRows::kNone : at->second);
    if (at == model.slot_of.end()) continue;
    ASSERT_LT(at->second, rows.used());
    ASSERT_TRUE(slots.insert(at->second).second);
    ASSERT_EQ(rows.RowIn(at->second), row);
    const bool in_window =
        std::find(model.window.begin(), model.window.end(), row) != model.window.end();
    ASSERT_EQ(rows.held(at->second), !in_window);
  }
  if (model.window.empty()) {
    ASSERT_FALSE(rows.Oldest().has_value());
  } else {
    ASSERT_EQ(rows.Oldest(), model.slot_of.at(model.window.front()));
  }
}

TEST(WeightRowsTest, AgreesWithAModelOverRandomOperations) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const auto below = [&random](uint64_t count) {
      return static_cast<uint32_t>(random() % count);
    };
    const uint32_t row_count = 1 + below(60);
    const uint32_t capacity = below(row_count + 1);
    WeightRows rows(row_count, capacity);
    Model model(capacity);
    uint64_t step = 1;
    for (int i = 0; i < 600; ++i) {
      if (below(4) == 0) ++step;
      const uint32_t row = below(row_count);
      const uint32_t slot = rows.Find(row);
      if (slot == WeightRows::kNone) {
        const WeightRows::Inserted inserted = rows.Insert(row, step, step);
        const WeightRows::Inserted expected = model.Insert(row, step);
        ASSERT_EQ(inserted.slot, expected.slot);
        ASSERT_EQ(inserted.evicted_row, expected.evicted_row);
        ASSERT_TRUE(inserted.slot == WeightRows::kNone || rows.held(inserted.slot));
      } else if (rows.held(slot)) {
        const bool as_oldest = below(4) == 0;
        as_oldest ? rows.ReleaseAsOldest(slot) : rows.Release(slot);
        model.window.insert(as_oldest ? model.window.begin() : model.window.end(), row);
      } else if (below(3) > 0) {
        rows.Touch(slot, step, step);
        model.Touch(row, step);
      } else if (below(3) == 0) {
        rows.Hold(slot);
        model.window.remove(row);
      } else if (!rows.last_is_held()) {
        const uint32_t last = rows.used() - 1;
        const uint32_t last_row = rows.RowIn(last);
        const WeightRows::Move move = rows.Erase(slot);
        model.window.remove(row);
        model.slot_of.erase(row);
        if (slot != last) {
          ASSERT_EQ(move.from, last);
          ASSERT_EQ(move.to, slot);
          model.slot_of[last_row] = slot;
        } else {
          ASSERT_EQ(move.from, WeightRows::kNone);
        }
      }
      ASSERT_NO_FATAL_FAILURE(ExpectSame(rows, model));
    }
  }
}

TEST(WeightRowsTest, ARowThatComesTakesTheSlotOfTheOldestSoThatNothingMoves) {
  WeightRows rows(10, 3);
  for (uint32_t row = 0; row < 3; ++row) rows.Release(rows.Insert(row, 1, 1).slot);
  rows.Touch(rows.Find(0), 2, 2);
  const WeightRows::Inserted inserted = rows.Insert(7, 2, 2);
  EXPECT_EQ(inserted.evicted_row, 1u);
  EXPECT_EQ(inserted.slot, 1u);
  EXPECT_EQ(rows.Find(0), 0u);
  EXPECT_EQ(rows.Find(2), 2u);
}

TEST(WeightRowsTest, RowsOfTheStepItselfAreNotEvicted) {
  WeightRows rows(10, 2);
  rows.Release(rows.Insert(0, 5, 1).slot);
  rows.Release(rows.Insert(1, 5, 1).slot);
  EXPECT_EQ(rows.Insert(2, 5, 1).slot, WeightRows::kNone);
  EXPECT_EQ(rows.Insert(2, 6, 1).evicted_row, 0u);
}

}  // namespace
}  // namespace terrace
