#include "tiers/flight.h"

#include <algorithm>
#include <utility>

namespace terrace {

absl::StatusOr<std::unique_ptr<ReadCoalescer>> ReadCoalescer::Create(size_t flights,
                                                                     uint64_t gap_bytes,
                                                                     uint64_t request_bytes) {
  // Ranges start and end on pages, and so do gaps.
  gap_bytes = std::min(gap_bytes, request_bytes) / kPageBytes * kPageBytes;
  absl::StatusOr<AlignedBuffer> gaps = AlignedBuffer::Create(flights * gap_bytes);
  if (!gaps.ok()) return gaps.status();
  return std::unique_ptr<ReadCoalescer>(
      new ReadCoalescer(gap_bytes, request_bytes, *std::move(gaps)));
}

void ReadCoalescer::Coalesce(FlightBatch& flights) const {
  if (request_bytes_ == 0) {
    for (Flight* flight : flights) PrepareAlone(*flight);
    return;
  }
  std::sort(flights.begin(), flights.end(),
            [](const Flight* a, const Flight* b) { return a->offset < b->offset; });
  size_t kept = 0;
  Flight* last = nullptr;
  for (Flight* flight : flights) {
    Flight* const first = kept > 0 ? flights[kept - 1] : nullptr;
    if (first == nullptr || !MayShare(*first, *last, *flight)) {
      PrepareAlone(*flight);
      flights[kept++] = flight;
    } else {
      const uint64_t gap = flight->offset - (last->offset + last->bytes.iov_len);
      if (gap > 0) first->vectors.push_back({gaps_.data() + first->index * gap_bytes_, gap});
      first->vectors.push_back(flight->bytes);
      first->request.buffers = first->vectors;
      flight->first = first;
      flight->next = nullptr;
      last->next = flight;
    }
    last = flight;
  }
  flights.resize(kept);
}

void ReadCoalescer::PrepareAlone(Flight& flight) const {
  flight.next = nullptr;
  flight.first = &flight;
  flight.vectors.assign(1, flight.bytes);
  flight.request.op = IoOp::kRead;
  flight.request.offset = flight.offset;
  flight.request.buffers = flight.vectors;
  Reset(flight.request);
}

bool ReadCoalescer::MayShare(const Flight& first, const Flight& last, const Flight& flight) const {
  const uint64_t end = last.offset + last.bytes.iov_len;
  return flight.offset >= end && flight.offset - end <= gap_bytes_ &&
         flight.offset + flight.bytes.iov_len - first.offset <= request_bytes_ &&
         first.vectors.size() + 2 <= kMaxVectors;
}

}  // namespace terrace
