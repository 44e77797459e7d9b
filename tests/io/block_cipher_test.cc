#include "io/block_cipher.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/string_view.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using Bytes = std::vector<std::byte>;
using Nonce = decltype(BlockSeal::nonce);

constexpr size_t kBlockBytes = size_t{64} << 10;

Bytes FromHex(absl::string_view hex) {
  const std::string text = absl::HexStringToBytes(hex);
  const auto* const start = reinterpret_cast<const std::byte*>(text.data());
  return Bytes(start, start + text.size());
}

Bytes RandomBytes(uint64_t seed, size_t count) {
  std::mt19937_64 random(seed);
  Bytes bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

CipherKey KeyOf(const Bytes& bytes) { return *CipherKey::Create(bytes); }

std::unique_ptr<BlockCipher> CipherOf(uint64_t seed) {
  return *BlockCipher::Create(KeyOf(RandomBytes(seed, CipherKey::kBytes)));
}

bool AllZero(const Bytes& bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

template <size_t n>
void CopyTo(const Bytes& from, std::array<std::byte, n>& to) {
  ASSERT_EQ(from.size(), n);
  std::copy(from.begin(), from.end(), to.begin());
}

struct KnownAnswer {
  const char* name;
  const char* key;
  const char* nonce;
  const char* associated;
  const char* plain;
  const char* cipher;
  const char* tag;
};

// McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B; NIST takes them over.
constexpr KnownAnswer kKnownAnswers[] = {
    {"test case 13", "0000000000000000000000000000000000000000000000000000000000000000",
     "000000000000000000000000", "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"},
    {"test case 16", "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
     "cafebabefacedbaddecaf888", "feedfacedeadbeeffeedfacedeadbeefabaddad2",
     "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b"
     "5"
     "25b16aedf5aa0de657ba637b39",
     "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828"
     "8"
     "38c5f61e6393ba7a0abcc9f662",
     "76fc6ece0f4e1768cddf8853bb2d551b"},
};

// A text and tag that open under a nonce are the only ones that its plain text has, so this and the
// round trip show that Seal is AES-256-GCM too, without a way to seal with a chosen nonce.
TEST(BlockCipher, OpensWhatTheStandardSealed) {
  for (const KnownAnswer& answer : kKnownAnswers) {
    SCOPED_TRACE(answer.name);
    const auto cipher = *BlockCipher::Create(KeyOf(FromHex(answer.key)));
    BlockSeal seal;
    CopyTo(FromHex(answer.nonce), seal.nonce);
    CopyTo(FromHex(answer.tag), seal.tag);
    const Bytes text = FromHex(answer.cipher);
    Bytes plain(text.size());
    const absl::Status status =
        cipher->Open(FromHex(answer.associated), text, seal, absl::MakeSpan(plain));
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(plain, FromHex(answer.plain));
  }
}

TEST(BlockCipher, OpensWhatItSealed) {
  const auto cipher = CipherOf(1);
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{15}, size_t{4096}, kBlockBytes}) {
    for (const size_t associated_bytes : {size_t{0}, size_t{40}}) {
      SCOPED_TRACE(testing::Message() << bytes << " bytes, " << associated_bytes);
      const Bytes associated = RandomBytes(2, associated_bytes);
      const Bytes plain = RandomBytes(3, bytes);
      Bytes text(bytes);
      Bytes again(bytes);
      BlockSeal seal;
      ASSERT_TRUE(cipher->Seal(associated, plain, absl::MakeSpan(text), seal).ok());
      ASSERT_TRUE(cipher->Open(associated, text, seal, absl::MakeSpan(again)).ok());
      EXPECT_EQ(again, plain);
    }
  }
}

TEST(BlockCipher, WorksInPlace) {
  const auto cipher = CipherOf(4);
  const Bytes plain = RandomBytes(5, kBlockBytes);
  Bytes block = plain;
  BlockSeal seal;
  ASSERT_TRUE(cipher->Seal({}, block, absl::MakeSpan(block), seal).ok());
  EXPECT_NE(block, plain);
  ASSERT_TRUE(cipher->Open({}, block, seal, absl::MakeSpan(block)).ok());
  EXPECT_EQ(block, plain);
}

// A sealed block and all that opening it takes.
class SealedBlockTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(cipher_->Seal(associated_, plain_, absl::MakeSpan(text_), seal_).ok());
  }
  // Opens to other memory and in place: both must be refused, and both leave zeros.
  void ExpectRefused(const BlockCipher& cipher) {
    Bytes opened(text_.size(), std::byte{0xaa});
    absl::Status status = cipher.Open(associated_, text_, seal_, absl::MakeSpan(opened));
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_TRUE(AllZero(opened));
    opened = text_;
    status = cipher.Open(associated_, opened, seal_, absl::MakeSpan(opened));
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_TRUE(AllZero(opened));
  }
  void ExpectEveryFlipRefused(absl::Span<std::byte> bytes, size_t step_bits) {
    for (size_t bit = 0; bit < bytes.size() * 8; bit += step_bits) {
      SCOPED_TRACE(testing::Message() << "bit " << bit);
      const std::byte mask = std::byte{1} << (bit % 8);
      bytes[bit / 8] ^= mask;
      ExpectRefused(*cipher_);
      bytes[bit / 8] ^= mask;
      if (HasFailure()) return;
    }
    Bytes opened(text_.size());
    EXPECT_TRUE(cipher_->Open(associated_, text_, seal_, absl::MakeSpan(opened)).ok());
    EXPECT_EQ(opened, plain_);
  }

  const std::unique_ptr<BlockCipher> cipher_ = CipherOf(6);
  const Bytes plain_ = RandomBytes(7, 4096);
  Bytes associated_ = RandomBytes(8, 32);
  Bytes text_ = Bytes(plain_.size());
  BlockSeal seal_;
};

TEST_F(SealedBlockTest, IsRefusedWhenABitOfItFlips) {
  ExpectEveryFlipRefused(absl::MakeSpan(text_), 13);
}
TEST_F(SealedBlockTest, IsRefusedWhenABitOfItsTagFlips) {
  ExpectEveryFlipRefused(absl::MakeSpan(seal_.tag), 1);
}
TEST_F(SealedBlockTest, IsRefusedWhenABitOfItsNonceFlips) {
  ExpectEveryFlipRefused(absl::MakeSpan(seal_.nonce), 1);
}
TEST_F(SealedBlockTest, IsRefusedWhenABitOfItsAssociatedDataFlips) {
  ExpectEveryFlipRefused(absl::MakeSpan(associated_), 1);
}

TEST_F(SealedBlockTest, IsRefusedWithAssociatedDataOfAnotherLength) {
  associated_.pop_back();
  ExpectRefused(*cipher_);
}

TEST_F(SealedBlockTest, IsRefusedWhenItIsCutOff) {
  text_.pop_back();
  ExpectRefused(*cipher_);
}

TEST_F(SealedBlockTest, IsRefusedUnderAnotherKey) { ExpectRefused(*CipherOf(9)); }

TEST(BlockCipher, NeverRepeatsANonce) {
  const auto cipher = CipherOf(10);
  const auto other_object = CipherOf(10);
  std::set<Nonce> nonces;
  for (int i = 0; i < 50'000; ++i) {
    for (const BlockCipher* each : {cipher.get(), other_object.get()}) {
      BlockSeal seal;
      ASSERT_TRUE(each->Seal({}, {}, {}, seal).ok());
      ASSERT_TRUE(nonces.insert(seal.nonce).second) << "after " << nonces.size();
    }
  }
}

// The child has a copy of all nonces that its parent drew ahead.
TEST(BlockCipher, NeverSharesANonceWithAForkedProcess) {
  const auto cipher = CipherOf(11);
  BlockSeal seal;
  ASSERT_TRUE(cipher->Seal({}, {}, {}, seal).ok());
  std::array<Nonce, 40> childs;
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    for (Nonce& nonce : childs) {
      if (!cipher->Seal({}, {}, {}, seal).ok()) ::_exit(1);
      nonce = seal.nonce;
    }
    const bool written = ::write(ends[1], &childs, sizeof(childs)) == sizeof(childs);
    ::_exit(written ? 0 : 1);
  }
  ::close(ends[1]);
  EXPECT_EQ(::read(ends[0], &childs, sizeof(childs)), static_cast<ssize_t>(sizeof(childs)));
  ::close(ends[0]);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  for (size_t i = 0; i < childs.size(); ++i) {
    ASSERT_TRUE(cipher->Seal({}, {}, {}, seal).ok());
    EXPECT_THAT(childs, testing::Not(testing::Contains(seal.nonce)));
  }
}

TEST(BlockCipher, ServesThreadsSideBySide) {
  constexpr size_t kThreads = 4;
  const auto cipher = CipherOf(12);
  std::array<std::vector<Nonce>, kThreads> nonces;
  std::array<int, kThreads> failures = {};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const Bytes plain = RandomBytes(100 + t, 4096);
      const Bytes associated = RandomBytes(200 + t, 16);
      Bytes block(plain.size());
      for (int i = 0; i < 500; ++i) {
        BlockSeal seal;
        const bool same = cipher->Seal(associated, plain, absl::MakeSpan(block), seal).ok() &&
                          cipher->Open(associated, block, seal, absl::MakeSpan(block)).ok() &&
                          block == plain;
        if (!same) ++failures[t];
        nonces[t].push_back(seal.nonce);
        block[0] ^= std::byte{1};
        if (cipher->Open(associated, block, seal, absl::MakeSpan(block)).ok()) ++failures[t];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(failures, testing::Each(0));
  std::set<Nonce> all;
  for (const auto& of_thread : nonces) all.insert(of_thread.begin(), of_thread.end());
  EXPECT_EQ(all.size(), kThreads * 500);
}

// What disks hold depends on it, so the value is pinned.
TEST(BlockCipher, TellsItsKeyByTheKeyCheck) {
  const auto of_key = [](const CipherKey& key) {
    return (*BlockCipher::Create(key.Clone()))->key_check();
  };
  Bytes bytes = FromHex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308");
  EXPECT_EQ(of_key(KeyOf(bytes)), 0x5ad2e9a2872a04efu);
  bytes[31] ^= std::byte{1};
  EXPECT_NE(of_key(KeyOf(bytes)), 0x5ad2e9a2872a04efu);
}

TEST(CipherKey, TakesExactly32Bytes) {
  for (const size_t bytes : {0, 16, 31, 33, 64}) {
    const absl::Status status = CipherKey::Create(RandomBytes(13, bytes)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(std::to_string(bytes)));
  }
}

TEST(CipherKey, IsWipedWhenMovedFrom) {
  const Bytes bytes = RandomBytes(14, CipherKey::kBytes);
  CipherKey key = KeyOf(bytes);
  const std::byte* const at = key.bytes().data();
  CipherKey moved = std::move(key);
  EXPECT_TRUE(AllZero(Bytes(at, at + CipherKey::kBytes)));
  const std::byte* const moved_at = moved.bytes().data();
  CipherKey assigned = KeyOf(RandomBytes(15, CipherKey::kBytes));
  assigned = std::move(moved);
  EXPECT_TRUE(AllZero(Bytes(moved_at, moved_at + CipherKey::kBytes)));
  EXPECT_EQ(Bytes(assigned.bytes().begin(), assigned.bytes().end()), bytes);
  const CipherKey clone = assigned.Clone();
  EXPECT_EQ(Bytes(clone.bytes().begin(), clone.bytes().end()), bytes);
}

TEST(CipherKey, IsNotUsedAfterItWasMovedFrom) {
  CipherKey key = KeyOf(RandomBytes(16, CipherKey::kBytes));
  const CipherKey moved = std::move(key);
  EXPECT_DEATH(key.bytes(), "check failed");
}

}  // namespace
}  // namespace terrace
