#ifndef TERRACE_RUNTIME_GATE_ROWS_H_
#define TERRACE_RUNTIME_GATE_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "io/aligned_buffer.h"
#include "io/block_device.h"
#include "runtime/bundle_file.h"

namespace terrace {

// Reads the rows that decide whether neurons fire, gate rows or up rows without a gate, through a
// device of its own and some MiB of memory. Belongs to one thread, the first that reads.
class GateRows {
 public:
  // Errors are those of OpenFileDevice and of memory.
  static absl::StatusOr<std::unique_ptr<GateRows>> Open(std::shared_ptr<const BundleFile> file);

  // Calls `take` for each place of the unit, ascending, with its row: [width] in the file's dtype,
  // valid during the call. Errors are those of reading and of BundleFile::Verify.
  absl::Status ForEach(uint32_t unit,
                       absl::FunctionRef<void(uint32_t place, const std::byte* row)> take);

 private:
  GateRows(std::shared_ptr<const BundleFile> file, std::unique_ptr<BlockDevice> device,
           AlignedBuffer buffer);

  const std::shared_ptr<const BundleFile> file_;
  const std::unique_ptr<BlockDevice> device_;
  const AlignedBuffer buffer_;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_GATE_ROWS_H_
