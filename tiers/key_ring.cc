#include "tiers/key_ring.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace terrace {

KeyNumber KeyRing::IndexOf(const KeyName& name) {
  const auto known = known_.find({name.space, name.check});
  if (known != known_.end()) return known->second;
  if (keys_.size() == kMaxKeys) return kNoKey;
  keys_.push_back({name, nullptr});
  const KeyNumber key{static_cast<uint16_t>(keys_.size())};
  known_[{name.space, name.check}] = key;
  return key;
}

absl::StatusOr<KeyNumber> KeyRing::Add(uint64_t space, std::shared_ptr<const BlockCipher> cipher) {
  const uint64_t check = cipher->key_check();
  if (const KeyNumber known = Current(space); known != kNoKey) {
    if (name(known).check == check) return known;
    return absl::AlreadyExistsError(
        absl::StrCat("namespace ", space, " has another key; drop that one first"));
  }
  const KeyNumber key = IndexOf({space, check});
  if (key == kNoKey) {
    return absl::ResourceExhaustedError(absl::StrCat("more than ", kMaxKeys, " keys"));
  }
  keys_[Slot(key)].cipher = std::move(cipher);
  current_[space] = key;
  return key;
}

void KeyRing::Drop(uint64_t space, absl::FunctionRef<void(KeyNumber)> dropped) {
  current_.erase(space);
  for (size_t i = 0; i < keys_.size(); ++i) {
    if (keys_[i].name.space != space) continue;
    keys_[i].cipher.reset();
    dropped(KeyNumber{static_cast<uint16_t>(i + 1)});
  }
}

KeyNumber KeyRing::Current(uint64_t space) const {
  const auto at = current_.find(space);
  return at == current_.end() ? kNoKey : at->second;
}

}  // namespace terrace
