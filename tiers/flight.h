#ifndef TERRACE_TIERS_FLIGHT_H_
#define TERRACE_TIERS_FLIGHT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "io/aligned_buffer.h"
#include "io/block_cipher.h"
#include "io/checksum.h"
#include "io/io_request.h"
#include "tiers/nvme_format.h"
#include "tiers/tier.h"

namespace terrace {

// A read of one fill: NVMe to host memory. Flights whose bytes lie close together on the device
// share one request, that of the first of them.
struct Flight {
  size_t index = 0;  // among all flights
  Place target;
  std::optional<Place> bounce;  // where the bytes arrive, if not in the target
  uint64_t offset = 0;          // on the device
  iovec bytes = {nullptr, 0};   // where they arrive
  absl::Span<const PageChecksum> checksums;
  bool prefetch = false;

  IoRequest request;              // of the first flight, for all
  std::vector<iovec> vectors;     // of that request: the flights' bytes and the gaps between them
  Flight* next = nullptr;         // in the same request
  const Flight* first = nullptr;  // of the same request; may be this one

  bool sealed = false;  // encrypted, and to be opened once it is verified
  // What opens it; null when its key has gone since the read was asked for.
  std::shared_ptr<const BlockCipher> cipher;
  BlockSeal seal;
  BlockAssociation association;

  bool retried = false;    // the read failed once, or brought wrong bytes
  int error = 0;           // of the read
  bool unopened = false;   // they are what was written, but not what was sealed
  bool verified = false;   // the bytes are right
  bool in_target = false;  // and arrived in HBM where that is the target
};
using FlightBatch = absl::InlinedVector<Flight*, 64>;

// Decides which flights share a request. One read of two ranges and of the gap between them is
// cheaper than two reads while the gap costs the device less time than a request does.
// Immutable after Create, so thread-safe.
class ReadCoalescer {
 public:
  static constexpr size_t kMaxVectors = 64;  // of one request

  // For flights with indices below `flights`. Ranges at most `gap_bytes` apart share a request of
  // at most `request_bytes`; 0 of these: none ever do. kResourceExhausted when there is no memory
  // for the bytes of the gaps.
  static absl::StatusOr<std::unique_ptr<ReadCoalescer>> Create(size_t flights, uint64_t gap_bytes,
                                                               uint64_t request_bytes);

  uint64_t memory_bytes() const { return gaps_.size(); }

  // Sorts flights by where they lie on the device, links those that share a request, prepares the
  // requests, and keeps only the first flight of each.
  void Coalesce(FlightBatch& flights) const;
  // Prepares the request of a flight that travels alone.
  void PrepareAlone(Flight& flight) const;

 private:
  ReadCoalescer(uint64_t gap_bytes, uint64_t request_bytes, AlignedBuffer gaps)
      : gap_bytes_(gap_bytes), request_bytes_(request_bytes), gaps_(std::move(gaps)) {}
  bool MayShare(const Flight& first, const Flight& last, const Flight& flight) const;

  const uint64_t gap_bytes_;
  const uint64_t request_bytes_;
  // [flights, gap_bytes]: where the gaps of a request arrive, by its first flight. Nobody looks at
  // them, but requests that threads carry out at once must not write to the same memory.
  const AlignedBuffer gaps_;
};

}  // namespace terrace

#endif  // TERRACE_TIERS_FLIGHT_H_
