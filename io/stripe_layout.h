#ifndef TERRACE_IO_STRIPE_LAYOUT_H_
#define TERRACE_IO_STRIPE_LAYOUT_H_

#include <cstddef>
#include <cstdint>
#include <limits>

namespace terrace {

// How the bytes of a device lie in its files: the first `stripe_bytes` in file 0, the next in file
// 1, and so on in turn. Files of equal size, each of whole stripes, have no hole and no rest.
struct StripeLayout {
  size_t file_count = 1;
  uint64_t stripe_bytes = 0;  // whole pages; of no meaning for one file

  // Where a byte of the device is, and how many from there on lie in the same file.
  struct Extent {
    size_t file = 0;
    uint64_t offset = 0;  // in that file
    uint64_t bytes = std::numeric_limits<uint64_t>::max();
  };
  Extent Locate(uint64_t offset) const {
    if (file_count == 1) return {.file = 0, .offset = offset};
    const uint64_t stripe = offset / stripe_bytes;
    const uint64_t inside = offset % stripe_bytes;
    return {.file = static_cast<size_t>(stripe % file_count),
            .offset = stripe / file_count * stripe_bytes + inside,
            .bytes = stripe_bytes - inside};
  }
};

}  // namespace terrace

#endif  // TERRACE_IO_STRIPE_LAYOUT_H_
