#ifndef TERRACE_TIERS_KEY_RING_H_
#define TERRACE_TIERS_KEY_RING_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "io/block_cipher.h"
#include "tiers/block_directory.h"
#include "tiers/nvme_format.h"

namespace terrace {

// The keys that blocks are sealed with, and the names of those that are not here: a tier may hold
// blocks of a namespace whose key nobody has brought yet.
//
// Thread-compatible.
class KeyRing {
 public:
  static constexpr size_t kMaxKeys = 65535;

  // The index of a key, new or known; kNoKey when there are too many.
  KeyNumber IndexOf(const KeyName& name);
  // Makes a key the one of its namespace. kAlreadyExists while the namespace has another one,
  // kResourceExhausted when there are too many.
  absl::StatusOr<KeyNumber> Add(uint64_t space, std::shared_ptr<const BlockCipher> cipher);
  // Forgets the keys of a namespace; tells the index of each, here or not.
  void Drop(uint64_t space, absl::FunctionRef<void(KeyNumber)> dropped);

  // The key that blocks of a namespace are sealed with now; kNoKey when it is not here.
  KeyNumber Current(uint64_t space) const;
  const KeyName& name(KeyNumber key) const { return keys_[Slot(key)].name; }
  // Null when the key is not here.
  const std::shared_ptr<const BlockCipher>& cipher(KeyNumber key) const {
    return keys_[Slot(key)].cipher;
  }

 private:
  struct Key {
    KeyName name;
    std::shared_ptr<const BlockCipher> cipher;
  };
  static size_t Slot(KeyNumber key) { return static_cast<size_t>(key) - 1; }

  std::vector<Key> keys_;
  absl::flat_hash_map<std::pair<uint64_t, uint64_t>, KeyNumber> known_;  // by name
  absl::flat_hash_map<uint64_t, KeyNumber> current_;                     // by namespace
};

}  // namespace terrace

#endif  // TERRACE_TIERS_KEY_RING_H_
