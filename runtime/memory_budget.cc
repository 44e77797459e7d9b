#include "runtime/memory_budget.h"

#include <algorithm>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {

MemoryReservation& MemoryReservation::operator=(MemoryReservation&& other) noexcept {
  if (this == &other) return *this;
  Release();
  budget_ = std::move(other.budget_);
  client_ = other.client_;
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

void MemoryReservation::Release() {
  if (budget_ != nullptr) budget_->Return(client_, bytes_);
  budget_.reset();
  bytes_ = 0;
}

absl::StatusOr<std::shared_ptr<MemoryBudget>> MemoryBudget::Create(uint64_t total_bytes,
                                                                   std::vector<Client> clients) {
  uint64_t left = total_bytes;
  for (size_t i = 0; i < clients.size(); ++i) {
    const Client& client = clients[i];
    for (size_t j = 0; j < i; ++j) {
      if (clients[j].name != client.name) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("memory: two clients are called \"", client.name, "\""));
    }
    if (client.minimum_bytes > left) {
      return absl::InvalidArgumentError(
          absl::StrCat("memory: ", total_bytes, " bytes are less than the minima of all; \"",
                       client.name, "\" is to have ", client.minimum_bytes, " of the last ", left));
    }
    left -= client.minimum_bytes;
  }
  return absl::WrapUnique(new MemoryBudget(total_bytes, std::move(clients)));
}

MemoryBudget::MemoryBudget(uint64_t total_bytes, std::vector<Client> clients)
    : total_bytes_(total_bytes), clients_(std::move(clients)), reserved_(clients_.size()) {}

absl::StatusOr<size_t> MemoryBudget::Find(absl::string_view client) const {
  for (size_t i = 0; i < clients_.size(); ++i) {
    if (clients_[i].name == client) return i;
  }
  return absl::NotFoundError(absl::StrCat("memory: no client is called \"", client, "\""));
}

uint64_t MemoryBudget::AvailableTo(size_t client) const {
  // What the others have or are guaranteed, whichever is more.
  uint64_t others = 0;
  for (size_t i = 0; i < clients_.size(); ++i) {
    if (i != client) others += std::max(reserved_[i], clients_[i].minimum_bytes);
  }
  return total_bytes_ - others - reserved_[client];
}

absl::StatusOr<MemoryReservation> MemoryBudget::Reserve(absl::string_view client, uint64_t bytes) {
  const absl::StatusOr<size_t> index = Find(client);
  if (!index.ok()) return index.status();
  MemoryReservation reservation;
  {
    absl::MutexLock lock(&mu_);
    const uint64_t available = AvailableTo(*index);
    if (bytes > available) {
      return absl::ResourceExhaustedError(absl::StrCat("memory: \"", client, "\" needs ", bytes,
                                                       " bytes, and ", available, " of ",
                                                       total_bytes_, " are available to it"));
    }
    reserved_[*index] += bytes;
  }
  reservation.budget_ = shared_from_this();
  reservation.client_ = *index;
  reservation.bytes_ = bytes;
  return reservation;
}

absl::StatusOr<uint64_t> MemoryBudget::Available(absl::string_view client) const {
  const absl::StatusOr<size_t> index = Find(client);
  if (!index.ok()) return index.status();
  absl::MutexLock lock(&mu_);
  return AvailableTo(*index);
}

void MemoryBudget::Return(size_t client, uint64_t bytes) {
  absl::MutexLock lock(&mu_);
  TERRACE_CHECK(reserved_[client] >= bytes);
  reserved_[client] -= bytes;
}

}  // namespace terrace
