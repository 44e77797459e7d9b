#include "io/block_cipher.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <pthread.h>

#include <atomic>
#include <bit>
#include <climits>
#include <cstring>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "io/check.h"

namespace terrace {
namespace {

using Bytes = absl::Span<const std::byte>;
using Nonce = decltype(BlockSeal::nonce);

static_assert(std::endian::native == std::endian::little, "the key check is little-endian");

// What disks hold depends on it.
constexpr absl::string_view kKeyCheckLabel = "terrace block key check 1";

const unsigned char* Raw(const std::byte* bytes) {
  return reinterpret_cast<const unsigned char*>(bytes);
}
unsigned char* Raw(std::byte* bytes) { return reinterpret_cast<unsigned char*>(bytes); }

// The newest error of this thread, as an older one may be a leftover of somebody else's calls.
absl::Status OpensslError(absl::string_view what) {
  char text[256] = "no reason given";
  if (const unsigned long error = ERR_peek_last_error(); error != 0) {
    ERR_error_string_n(error, text, sizeof(text));
  }
  ERR_clear_error();
  return absl::InternalError(absl::StrCat("OpenSSL cannot ", what, ": ", text));
}

// How many forks lie between this process and the one that called CountForks first.
std::atomic<uint64_t> fork_count = 0;

// 0 or an errno value.
int CountForks() {
  static const int error = ::pthread_atfork(nullptr, nullptr, [] { ++fork_count; });
  return error;
}

// One call of the generator costs as much for 32 nonces as for one, about a twentieth of sealing a
// block of 64 KiB. What a child of a fork finds here its parent uses too, so it draws anew.
absl::Status DrawNonce(Nonce& nonce) {
  struct Drawn {
    std::array<Nonce, 32> nonces;
    size_t left = 0;
    uint64_t fork = 0;
  };
  thread_local Drawn drawn;
  const uint64_t fork = fork_count.load(std::memory_order_relaxed);
  if (drawn.left == 0 || drawn.fork != fork) {
    drawn.left = 0;
    if (RAND_bytes(Raw(drawn.nonces.data()->data()), sizeof(drawn.nonces)) != 1) {
      return OpensslError("draw nonces");
    }
    drawn.left = drawn.nonces.size();
    drawn.fork = fork;
  }
  nonce = drawn.nonces[--drawn.left];
  return absl::OkStatus();
}

struct FreeOpenssl {
  void operator()(EVP_CIPHER* algorithm) const { EVP_CIPHER_free(algorithm); }
  void operator()(EVP_CIPHER_CTX* context) const { EVP_CIPHER_CTX_free(context); }
};
using Algorithm = std::unique_ptr<EVP_CIPHER, FreeOpenssl>;
using Context = std::unique_ptr<EVP_CIPHER_CTX, FreeOpenssl>;

enum class Direction : int { kOpen = 0, kSeal = 1 };  // as EVP_CipherInit_ex has it

// Contexts that hold the expanded key, for as many threads as ever worked at once. Thread-safe.
class ContextPool {
 public:
  ContextPool(const EVP_CIPHER& algorithm, const CipherKey& key, Direction direction)
      : algorithm_(algorithm), key_(key), direction_(direction) {}

  absl::StatusOr<Context> Take() {
    {
      absl::MutexLock lock(&mu_);
      if (!idle_.empty()) {
        Context context = std::move(idle_.back());
        idle_.pop_back();
        return context;
      }
    }
    Context context(EVP_CIPHER_CTX_new());
    if (context == nullptr ||
        EVP_CipherInit_ex(context.get(), &algorithm_, nullptr, Raw(key_.bytes().data()), nullptr,
                          static_cast<int>(direction_)) != 1) {
      return OpensslError("set up AES-256-GCM");
    }
    return context;
  }

  // Only of a context whose last block went well; another is better freed.
  void Return(Context context) {
    absl::MutexLock lock(&mu_);
    idle_.push_back(std::move(context));
  }

 private:
  const EVP_CIPHER& algorithm_;
  const CipherKey& key_;
  const Direction direction_;
  absl::Mutex mu_;
  std::vector<Context> idle_ ABSL_GUARDED_BY(mu_);
};

// All of a block but its tag. False when OpenSSL fails.
bool Transform(EVP_CIPHER_CTX* context, const Nonce& nonce, Bytes associated, Bytes from,
               absl::Span<std::byte> to) {
  int count = 0;
  return EVP_CipherInit_ex(context, nullptr, nullptr, nullptr, Raw(nonce.data()), -1) == 1 &&
         (associated.empty() || EVP_CipherUpdate(context, nullptr, &count, Raw(associated.data()),
                                                 static_cast<int>(associated.size())) == 1) &&
         (from.empty() || EVP_CipherUpdate(context, Raw(to.data()), &count, Raw(from.data()),
                                           static_cast<int>(from.size())) == 1);
}

// Makes the tag of a block, or compares it. GCM has no last piece of text that this would write.
bool Finish(EVP_CIPHER_CTX* context) {
  unsigned char rest[16];
  int count = 0;
  return EVP_CipherFinal_ex(context, rest, &count) == 1;
}

// OpenSSL counts bytes in an int.
absl::Status CheckSizes(Bytes associated, Bytes from, absl::Span<std::byte> to) {
  TERRACE_CHECK_EQ(from.size(), to.size());
  if (from.size() <= INT_MAX && associated.size() <= INT_MAX) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a block of ", from.size(), " bytes with ", associated.size(),
                   " bytes of associated data: a cipher takes at most ", INT_MAX, " of each"));
}

}  // namespace

absl::StatusOr<CipherKey> CipherKey::Create(Bytes bytes) {
  if (bytes.size() != kBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a key of ", bytes.size(), " bytes; AES-256 takes ", kBytes));
  }
  CipherKey key;
  std::memcpy(key.bytes_.data(), bytes.data(), kBytes);
  key.held_ = true;
  return key;
}

CipherKey::~CipherKey() { OPENSSL_cleanse(bytes_.data(), kBytes); }

CipherKey::CipherKey(CipherKey&& other) noexcept { *this = std::move(other); }

CipherKey& CipherKey::operator=(CipherKey&& other) noexcept {
  if (this == &other) return *this;
  bytes_ = other.bytes_;
  held_ = std::exchange(other.held_, false);
  OPENSSL_cleanse(other.bytes_.data(), kBytes);
  return *this;
}

CipherKey CipherKey::Clone() const {
  CipherKey key;
  key.bytes_ = bytes_;
  key.held_ = held_;
  return key;
}

Bytes CipherKey::bytes() const {
  TERRACE_CHECK(held_);
  return bytes_;
}

struct BlockCipher::Parts {
  Parts(CipherKey key_in, Algorithm algorithm_in, uint64_t key_check_in)
      : key(std::move(key_in)), algorithm(std::move(algorithm_in)), key_check(key_check_in) {}

  const CipherKey key;
  const Algorithm algorithm;
  const uint64_t key_check;
  ContextPool seals{*algorithm, key, Direction::kSeal};
  ContextPool opens{*algorithm, key, Direction::kOpen};
};

absl::StatusOr<std::unique_ptr<BlockCipher>> BlockCipher::Create(CipherKey key) {
  if (const int error = CountForks(); error != 0) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "cannot watch for forks, to draw other nonces: ", std::generic_category().message(error)));
  }
  Algorithm algorithm(EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr));
  if (algorithm == nullptr) return OpensslError("find AES-256-GCM");
  unsigned char code[EVP_MAX_MD_SIZE];
  if (HMAC(EVP_sha256(), key.bytes().data(), CipherKey::kBytes,
           reinterpret_cast<const unsigned char*>(kKeyCheckLabel.data()), kKeyCheckLabel.size(),
           code, nullptr) == nullptr) {
    return OpensslError("compute HMAC-SHA256");
  }
  uint64_t key_check = 0;
  std::memcpy(&key_check, code, sizeof(key_check));
  return std::unique_ptr<BlockCipher>(
      new BlockCipher(std::make_unique<Parts>(std::move(key), std::move(algorithm), key_check)));
}

BlockCipher::BlockCipher(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
BlockCipher::~BlockCipher() = default;

absl::Status BlockCipher::Seal(Bytes associated, Bytes plain, absl::Span<std::byte> cipher,
                               BlockSeal& seal) const {
  if (absl::Status status = CheckSizes(associated, plain, cipher); !status.ok()) return status;
  if (absl::Status status = DrawNonce(seal.nonce); !status.ok()) return status;
  absl::StatusOr<Context> context = parts_->seals.Take();
  if (!context.ok()) return context.status();
  if (!Transform(context->get(), seal.nonce, associated, plain, cipher) ||
      !Finish(context->get()) ||
      EVP_CIPHER_CTX_ctrl(context->get(), EVP_CTRL_AEAD_GET_TAG, sizeof(seal.tag),
                          seal.tag.data()) != 1) {
    return OpensslError("seal a block");
  }
  parts_->seals.Return(*std::move(context));
  return absl::OkStatus();
}

absl::Status BlockCipher::Open(Bytes associated, Bytes cipher, const BlockSeal& seal,
                               absl::Span<std::byte> plain) const {
  const auto refuse = [plain](absl::Status status) {
    if (!plain.empty()) OPENSSL_cleanse(plain.data(), plain.size());
    return status;
  };
  if (absl::Status status = CheckSizes(associated, cipher, plain); !status.ok())
    return refuse(status);
  absl::StatusOr<Context> context = parts_->opens.Take();
  if (!context.ok()) return refuse(context.status());
  auto tag = seal.tag;  // OpenSSL takes a pointer to what is not constant
  if (!Transform(context->get(), seal.nonce, associated, cipher, plain) ||
      EVP_CIPHER_CTX_ctrl(context->get(), EVP_CTRL_AEAD_SET_TAG, sizeof(tag), tag.data()) != 1) {
    return refuse(OpensslError("open a block"));
  }
  if (!Finish(context->get())) {
    ERR_clear_error();
    return refuse(absl::DataLossError(
        absl::StrCat("a block of ", cipher.size(), " bytes is not what was sealed")));
  }
  parts_->opens.Return(*std::move(context));
  return absl::OkStatus();
}

uint64_t BlockCipher::key_check() const { return parts_->key_check; }

}  // namespace terrace
