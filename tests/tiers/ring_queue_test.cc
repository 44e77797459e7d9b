#include "tiers/ring_queue.h"

#include <deque>
#include <random>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(RingQueue, KeepsTheOrderOfADequeWhateverIsPushedAndPopped) {
  RingQueue<int> queue;
  std::deque<int> expected;
  std::mt19937 random(1);
  for (int i = 0; i < 100000; ++i) {
    // Grows and shrinks in waves, past several capacities.
    if (random() % 100 < (i / 5000 % 2 == 0 ? 60u : 40u)) {
      queue.push_back(i);
      expected.push_back(i);
    } else if (!expected.empty()) {
      ASSERT_EQ(queue.front(), expected.front());
      queue.pop_front();
      expected.pop_front();
    }
    ASSERT_EQ(queue.size(), expected.size());
    ASSERT_EQ(queue.empty(), expected.empty());
  }
}

}  // namespace
}  // namespace terrace
