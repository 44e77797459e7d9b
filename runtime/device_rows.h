#ifndef TERRACE_RUNTIME_DEVICE_ROWS_H_
#define TERRACE_RUNTIME_DEVICE_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace terrace {

// Rows of one size in the memory of a device, such as the keys or values of tokens: row i is row
// i % panel_rows of panel i / panel_rows. Panels of several KV heads may follow one another, so
// that one call serves them all.
struct RowPanels {
  absl::Span<std::byte* const> panels;  // device addresses, aligned to 16
  size_t panel_rows = 0;
};

// Copies single rows between panels and a packed buffer, [rows, row_bytes], which are both on the
// device. Calls return when the copies are done. Thread-compatible. Errors: kInvalidArgument for a
// row that the panels do not have, a size of rows that is not a multiple of 16 and addresses that
// are not; and those of CopyEngine. Private to runtime/.
class DeviceRows {
 public:
  virtual ~DeviceRows() = default;

  // packed[i] = the row rows[i].
  virtual absl::Status Gather(const RowPanels& from, absl::Span<const uint32_t> rows,
                              std::byte* packed) = 0;
  // The row rows[i] = packed[i]. Where a row is named twice, one of them wins.
  virtual absl::Status Scatter(const std::byte* packed, absl::Span<const uint32_t> rows,
                               const RowPanels& to) = 0;
  // What the last call took on the device, without copies of numbers and addresses to it.
  virtual double device_seconds() const = 0;
};

// kUnavailable where the library was built without CUDA or no device answers.
absl::StatusOr<std::unique_ptr<DeviceRows>> MakeCudaRows(size_t row_bytes, int device);
// The host twin, where device addresses are those of the host.
absl::StatusOr<std::unique_ptr<DeviceRows>> MakeHostRows(size_t row_bytes, size_t threads);

// What both check: of `rows` in `panels`, and of the packed buffer.
absl::Status CheckRowCopy(const RowPanels& panels, absl::Span<const uint32_t> rows,
                          const std::byte* packed, size_t row_bytes);
absl::Status CheckRowBytes(size_t row_bytes);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_DEVICE_ROWS_H_
