#ifndef TERRACE_IO_BLOCK_CIPHER_H_
#define TERRACE_IO_BLOCK_CIPHER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace terrace {

// The key of a BlockCipher: 32 bytes drawn at random, never a password. They are wiped when the
// object goes or is moved from; copies are made by name only.
//
// Thread-compatible.
class CipherKey {
 public:
  static constexpr size_t kBytes = 32;

  // Copies `bytes`; wiping those is up to the caller. kInvalidArgument, with the size, unless they
  // are kBytes.
  static absl::StatusOr<CipherKey> Create(absl::Span<const std::byte> bytes);

  ~CipherKey();
  CipherKey(CipherKey&& other) noexcept;
  CipherKey& operator=(CipherKey&& other) noexcept;
  CipherKey(const CipherKey&) = delete;
  CipherKey& operator=(const CipherKey&) = delete;

  CipherKey Clone() const;

  // REQUIRES: not moved from, as the zeros that this leaves are a key that everybody knows.
  absl::Span<const std::byte> bytes() const;  // [kBytes]

 private:
  CipherKey() = default;

  std::array<std::byte, kBytes> bytes_ = {};
  bool held_ = false;  // not moved from
};

// What opening a sealed block takes beside the key. None of it is secret.
struct BlockSeal {
  std::array<std::byte, 12> nonce = {};
  std::array<std::byte, 16> tag = {};
};
static_assert(std::is_trivially_copyable_v<BlockSeal> && sizeof(BlockSeal) == 28);

// Encrypts blocks and notices every change to one: AES-256-GCM (NIST SP 800-38D).
//
// The associated data of a block says which block it is and where it belongs, such as its id,
// namespace and epoch. It is not stored; a block opens with the same associated data only, so that
// a valid block in the place of another is refused like a changed one.
//
// Nonces are random. A counter would have to be stored, and files that are copied or rolled back
// would bring back an older one, while two blocks of one nonce reveal their difference and how to
// forge others. At 96 random bits two of 2^32 blocks share a nonce with a chance below 2^-32, which
// is the limit for one key (section 8.3): 2^32 blocks of 64 KiB are 256 TiB written, three days at
// 1 GB/s, and of 1 MiB they are 4 PiB. Whoever owns the key replaces it before that.
//
// Thread-safe: calls run side by side, and none allocates once as many have as ever do. Errors of
// OpenSSL are kInternal with its text.
class BlockCipher {
 public:
  static absl::StatusOr<std::unique_ptr<BlockCipher>> Create(CipherKey key);
  ~BlockCipher();

  // Encrypts `plain` ([n]) to `cipher` ([n]), which is the same memory or none of it, with a fresh
  // nonce. `cipher` must not be used after an error. kInvalidArgument from 2 GiB on.
  absl::Status Seal(absl::Span<const std::byte> associated, absl::Span<const std::byte> plain,
                    absl::Span<std::byte> cipher, BlockSeal& seal) const;

  // Decrypts `cipher` ([n]) to `plain` ([n]), which is the same memory or none of it. kDataLoss
  // unless key, associated data, seal and every bit of `cipher` are those of one Seal. After an
  // error `plain` is all zeros, and in place the block is gone.
  absl::Status Open(absl::Span<const std::byte> associated, absl::Span<const std::byte> cipher,
                    const BlockSeal& seal, absl::Span<std::byte> plain) const;

  // Tells whether blocks were sealed with this key, when stored beside them: the first 8 bytes of
  // HMAC-SHA256 of a fixed label. HMAC, rather than a hash of label and key, as it is made to be
  // published: what it shows of a random key is only whether two of them are the same.
  uint64_t key_check() const;

 private:
  struct Parts;  // keeps the types of OpenSSL out of this header

  explicit BlockCipher(std::unique_ptr<Parts> parts);

  const std::unique_ptr<Parts> parts_;
};

}  // namespace terrace

#endif  // TERRACE_IO_BLOCK_CIPHER_H_
