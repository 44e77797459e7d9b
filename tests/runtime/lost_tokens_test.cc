#include "runtime/lost_tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr LostTokens kFirst = {.layer = 1, .kv_head = 0, .first = 64, .count = 32};
constexpr LostTokens kSecond = {.layer = 0, .kv_head = 1, .first = 0, .count = 32};

TEST(LostTokenListTest, NamesEachRangeOnceOldestFirst) {
  LostTokenList lost;
  for (int i = 0; i < 3; ++i) {
    lost.Add(kFirst);
    lost.Add(kSecond);
  }
  EXPECT_THAT(lost.list(), ElementsAre(kFirst, kSecond));
}

TEST(LostTokenListTest, WhatWasForgottenCanBeLostAgain) {
  LostTokenList lost;
  lost.Add(kFirst);
  lost.Add(kSecond);
  lost.RemoveIf([](const LostTokens& one) { return one.first >= 64; });
  EXPECT_THAT(lost.list(), ElementsAre(kSecond));
  lost.Add(kFirst);
  EXPECT_THAT(lost.list(), ElementsAre(kSecond, kFirst));
  lost.RemoveIf([](const LostTokens&) { return true; });
  EXPECT_THAT(lost.list(), IsEmpty());
}

TEST(LostTokenListTest, AWholeDiskIsListedInNoTime) {
  LostTokenList lost;
  // A search through the list for each would take hours.
  for (int64_t i = 0; i < 500000; ++i) lost.Add({.layer = 2, .kv_head = 3, .first = i, .count = 1});
  EXPECT_EQ(lost.list().size(), 500000u);
}

}  // namespace
}  // namespace terrace
