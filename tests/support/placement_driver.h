#ifndef TERRACE_TESTS_SUPPORT_PLACEMENT_DRIVER_H_
#define TERRACE_TESTS_SUPPORT_PLACEMENT_DRIVER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "tiers/placement.h"

namespace terrace {

// Does for a Placement what the manager does, with imagined bytes: one word a page, that follows
// from the block alone. Transfers end when the test says so, and move their words only then, so a
// slot or a page that was given away too early shows as wrong words. Thread-compatible.
class PlacementDriver {
 public:
  // When transfers end of which nobody asked the end.
  enum class Pace : uint8_t {
    kAtOnce,  // with the call that started them
    kLate,    // when a call cannot go on, and then one of them, any one
  };
  struct Transfer {
    enum class Kind : uint8_t { kPut, kRead, kCopy, kGroup, kUpkeep } kind = Kind::kPut;
    Place place = {};
    std::optional<Place> bounce = {};
    size_t group = 0;
    std::vector<std::optional<BlockId>> written =
        {};  // kGroup: by place in the group, as submitted
    UpkeepTask task = {};
  };

  PlacementDriver(const PlacementOptions& options, Pace pace, uint64_t seed);

  Placement& placement() { return *placement_; }
  static BlockId Id(uint64_t number) { return {.high = number * 77, .low = number}; }
  FetchItem WholeBlock(const BlockId& id) const;
  Pool fast_pool() const;

  // --- As a caller that waits does ---
  Placement::PutOutcome Put(const BlockId& id, Retention retention = Retention::kCached);
  // Fetches, waits, checks the words of what was served, and releases. Items keep `hit_tier`, and
  // `place` says whether they were served. kOk, or kFull.
  Room Fetch(std::vector<FetchItem>& items, Pool target);
  // False when the NVMe tier has no room for all dirty blocks.
  bool Flush();
  void Settle();  // ends all transfers

  // --- Step by step ---
  // Imagines the bytes of a block in a slot that ReservePut gave; the put ends with its transfer.
  void BeginPut(const BlockId& id, Place place);
  void Start();  // takes everything that can be started
  size_t in_flight() const { return in_flight_.size(); }
  const Transfer& transfer(size_t index) const { return in_flight_[index]; }
  void Finish(size_t index);
  void FinishAny() { Finish(random_() % in_flight_.size()); }
  // The transfer ends badly. A read loses its source.
  void Fail(size_t index);
  bool Landed(const FetchItem& item) const;
  void CheckWords(const FetchItem& item);  // REQUIRES: resident

  // The first thing that went wrong; empty while nothing has.
  const std::string& problem() const { return problem_; }

 private:
  // Waits, as a caller that was told kWait. False when it has waited in vain too often.
  bool AwaitRoom(int& idle_rounds);
  bool AwaitLanding(const FetchItem& item);
  void MoveWords(const Transfer& transfer);
  void WriteWords(const Transfer& transfer);
  absl::Span<uint64_t> Words(Place place);
  void Report(const std::string& problem);
  Transfer TakeOut(size_t index);

  std::unique_ptr<Placement> placement_;
  const Pace pace_;
  std::mt19937_64 random_;
  const size_t pages_;  // per block
  std::vector<uint64_t> slot_words_[kPoolCount];
  std::vector<uint64_t> device_words_;  // [pages of the device]
  std::vector<Transfer> in_flight_;
  std::string problem_;
};

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_PLACEMENT_DRIVER_H_
