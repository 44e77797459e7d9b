#include "tiers/key_ring.h"

#include <array>
#include <memory>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

std::shared_ptr<const BlockCipher> Cipher(uint8_t fill) {
  std::array<std::byte, CipherKey::kBytes> bytes;
  bytes.fill(std::byte{fill});
  return *BlockCipher::Create(*CipherKey::Create(bytes));
}

std::vector<KeyNumber> DropAll(KeyRing& ring, uint64_t space) {
  std::vector<KeyNumber> dropped;
  ring.Drop(space, [&](KeyNumber key) { dropped.push_back(key); });
  return dropped;
}

TEST(KeyRing, AnEmptyRingHasNoKeyForAnyNamespace) {
  KeyRing ring;
  EXPECT_EQ(ring.Current(0), kNoKey);
  EXPECT_TRUE(DropAll(ring, 0).empty());
}

TEST(KeyRing, AKeyThatWasAddedIsTheOneOfItsNamespaceAlone) {
  KeyRing ring;
  const std::shared_ptr<const BlockCipher> cipher = Cipher(1);
  const absl::StatusOr<KeyNumber> key = ring.Add(7, cipher);
  ASSERT_TRUE(key.ok()) << key.status();
  EXPECT_NE(*key, kNoKey);
  EXPECT_EQ(ring.Current(7), *key);
  EXPECT_EQ(ring.Current(8), kNoKey);
  EXPECT_EQ(ring.cipher(*key), cipher);
  EXPECT_EQ(ring.name(*key), (KeyName{.space = 7, .check = cipher->key_check()}));
}

TEST(KeyRing, OneKeyInTwoNamespacesIsTwoKeys) {
  KeyRing ring;
  const KeyNumber first = *ring.Add(7, Cipher(1));
  const KeyNumber second = *ring.Add(8, Cipher(1));
  EXPECT_NE(first, second);
  EXPECT_EQ(ring.name(first).check, ring.name(second).check);
  EXPECT_EQ(DropAll(ring, 8), std::vector<KeyNumber>{second});
  EXPECT_NE(ring.cipher(first), nullptr);
}

TEST(KeyRing, TheSameKeyMayBeAddedAgainAndAnotherMayNot) {
  KeyRing ring;
  const KeyNumber key = *ring.Add(7, Cipher(1));
  EXPECT_EQ(*ring.Add(7, Cipher(1)), key);
  EXPECT_EQ(ring.Add(7, Cipher(2)).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ring.Current(7), key);
}

TEST(KeyRing, ANameIsKnownByOneIndexWhetherItsKeyIsHereOrNot) {
  KeyRing ring;
  const KeyName name = {.space = 7, .check = Cipher(1)->key_check()};
  const KeyNumber absent = ring.IndexOf(name);
  EXPECT_EQ(ring.IndexOf(name), absent);
  EXPECT_EQ(ring.cipher(absent), nullptr);
  EXPECT_EQ(ring.Current(7), kNoKey);
  EXPECT_NE(ring.IndexOf({.space = 8, .check = name.check}), absent);
  EXPECT_NE(ring.IndexOf({.space = 7, .check = name.check + 1}), absent);
  EXPECT_EQ(*ring.Add(7, Cipher(1)), absent);
  EXPECT_NE(ring.cipher(absent), nullptr);
}

TEST(KeyRing, DroppingANamespaceTellsEveryKeyOfItHereOrNot) {
  KeyRing ring;
  const KeyNumber absent = ring.IndexOf({.space = 7, .check = 1});
  const KeyNumber other = *ring.Add(8, Cipher(2));
  const KeyNumber here = *ring.Add(7, Cipher(1));
  EXPECT_EQ(DropAll(ring, 7), (std::vector<KeyNumber>{absent, here}));
  EXPECT_EQ(ring.Current(7), kNoKey);
  EXPECT_EQ(ring.cipher(here), nullptr);
  EXPECT_EQ(ring.Current(8), other);
  // Then another key may be the namespace's, or the same one again.
  EXPECT_NE(*ring.Add(7, Cipher(3)), here);
  DropAll(ring, 7);
  EXPECT_EQ(*ring.Add(7, Cipher(1)), here);
}

TEST(KeyRing, RefusesMoreKeysThanAnIndexCanTell) {
  KeyRing ring;
  for (uint64_t i = 0; i < KeyRing::kMaxKeys; ++i) {
    ASSERT_NE(ring.IndexOf({.space = i, .check = i}), kNoKey);
  }
  EXPECT_EQ(ring.IndexOf({.space = 1, .check = 0}), kNoKey);
  EXPECT_EQ(ring.Add(1, Cipher(1)).status().code(), absl::StatusCode::kResourceExhausted);
  const KeyNumber last =
      ring.IndexOf({.space = KeyRing::kMaxKeys - 1, .check = KeyRing::kMaxKeys - 1});
  EXPECT_EQ(static_cast<size_t>(last), KeyRing::kMaxKeys);
}

}  // namespace
}  // namespace terrace
