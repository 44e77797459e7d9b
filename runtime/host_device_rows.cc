#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "index/compute_pool.h"
#include "runtime/device_rows.h"
#include "runtime/scoped_seconds.h"

namespace terrace {
namespace {

constexpr size_t kAlignment = 16;
constexpr size_t kMaxRowBytes = size_t{1} << 20;
constexpr size_t kMaxCopyBytes = size_t{1} << 34;  // of one call; pieces of 16 bytes are numbered
constexpr size_t kMaxPanelRows = size_t{1} << 31;
constexpr size_t kJobRows = 256;

bool IsAligned(const std::byte* address) {
  return reinterpret_cast<uintptr_t>(address) % kAlignment == 0;
}

class HostRows final : public DeviceRows {
 public:
  HostRows(size_t row_bytes, size_t threads) : row_bytes_(row_bytes), pool_(threads) {}

  absl::Status Gather(const RowPanels& from, absl::Span<const uint32_t> rows,
                      std::byte* packed) override {
    absl::Status status = CheckRowCopy(from, rows, packed, row_bytes_);
    if (!status.ok()) return status;
    ForEachRow(from, rows, [&](size_t i, const std::byte* row) {
      std::memcpy(packed + i * row_bytes_, row, row_bytes_);
    });
    return absl::OkStatus();
  }

  absl::Status Scatter(const std::byte* packed, absl::Span<const uint32_t> rows,
                       const RowPanels& to) override {
    absl::Status status = CheckRowCopy(to, rows, packed, row_bytes_);
    if (!status.ok()) return status;
    ForEachRow(to, rows, [&](size_t i, std::byte* row) {
      std::memcpy(row, packed + i * row_bytes_, row_bytes_);
    });
    return absl::OkStatus();
  }

  double device_seconds() const override { return seconds_; }

 private:
  // Calls copy(i, address of row rows[i]).
  template <typename Copy>
  void ForEachRow(const RowPanels& panels, absl::Span<const uint32_t> rows, Copy copy) {
    seconds_ = 0;
    const ScopedSeconds timer(seconds_);
    pool_.ForEach((rows.size() + kJobRows - 1) / kJobRows, [&](size_t job, size_t) {
      const size_t end = std::min(rows.size(), (job + 1) * kJobRows);
      for (size_t i = job * kJobRows; i < end; ++i) {
        copy(i,
             panels.panels[rows[i] / panels.panel_rows] + rows[i] % panels.panel_rows * row_bytes_);
      }
    });
  }

  const size_t row_bytes_;
  ComputePool pool_;
  double seconds_ = 0;
};

}  // namespace

absl::Status CheckRowBytes(size_t row_bytes) {
  if (row_bytes != 0 && row_bytes % kAlignment == 0 && row_bytes <= kMaxRowBytes) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("row_bytes: ", row_bytes, " is not a multiple of ",
                                                 kAlignment, " up to ", kMaxRowBytes));
}

absl::Status CheckRowCopy(const RowPanels& panels, absl::Span<const uint32_t> rows,
                          const std::byte* packed, size_t row_bytes) {
  if (panels.panel_rows == 0 || panels.panel_rows > kMaxPanelRows) {
    return absl::InvalidArgumentError(
        absl::StrCat("panel_rows: ", panels.panel_rows, " is not from 1 to ", kMaxPanelRows));
  }
  const size_t have = panels.panels.size() * panels.panel_rows;
  for (const uint32_t row : rows) {
    if (row >= have) {
      return absl::InvalidArgumentError(absl::StrCat("row ", row, " of ", have));
    }
  }
  if (!IsAligned(packed) || !std::all_of(panels.panels.begin(), panels.panels.end(), IsAligned)) {
    return absl::InvalidArgumentError(
        absl::StrCat("rows begin at addresses that are not multiples of ", kAlignment));
  }
  if (rows.size() > kMaxCopyBytes / row_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(rows.size(), " rows of ", row_bytes, " bytes in one call"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<DeviceRows>> MakeHostRows(size_t row_bytes, size_t threads) {
  if (absl::Status status = CheckRowBytes(row_bytes); !status.ok()) return status;
  return std::make_unique<HostRows>(row_bytes, threads);
}

}  // namespace terrace
