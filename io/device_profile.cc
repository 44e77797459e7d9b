#include "io/device_profile.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>

#include "absl/strings/str_cat.h"
#include "io/aligned_buffer.h"
#include "io/unique_fd.h"
#include "nlohmann/json.hpp"

namespace terrace {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kVersion = 1;

bool IsRandomRead(const DeviceProfile::Row& row) {
  return row.op == "randread" && row.bytes_per_second > 0;
}

// The best bandwidth of random reads by block size.
std::map<uint64_t, double> BestReads(const DeviceProfile& profile) {
  std::map<uint64_t, double> best;
  for (const DeviceProfile::Row& row : profile.rows) {
    if (!IsRandomRead(row)) continue;
    double& value = best[row.block_bytes];
    value = std::max(value, row.bytes_per_second);
  }
  return best;
}

absl::Status BadField(const std::string& path, const std::string& field, const char* expected) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", field, ": missing or not ", expected));
}

// Fetches members of one JSON object and remembers the first that is wrong.
class FieldReader {
 public:
  FieldReader(const Json& object, std::string path, std::string prefix)
      : object_(object), path_(std::move(path)), prefix_(std::move(prefix)) {}

  std::string Text(const char* name) {
    const auto found = object_.find(name);
    if (found != object_.end() && found->is_string()) return found->get<std::string>();
    Fail(name, "text");
    return "";
  }
  uint64_t PositiveInteger(const char* name) {
    const auto found = object_.find(name);
    if (found != object_.end() && found->is_number_unsigned() && *found != 0) {
      return found->get<uint64_t>();
    }
    Fail(name, "a positive integer");
    return 0;
  }
  double Number(const char* name) {
    const auto found = object_.find(name);
    if (found != object_.end() && found->is_number()) {
      const double value = found->get<double>();
      if (std::isfinite(value) && value >= 0) return value;
    }
    Fail(name, "a number of at least 0");
    return 0;
  }
  const absl::Status& status() const { return status_; }

 private:
  void Fail(const char* name, const char* expected) {
    if (status_.ok()) status_ = BadField(path_, absl::StrCat(prefix_, name), expected);
  }

  const Json& object_;
  const std::string path_;
  const std::string prefix_;
  absl::Status status_;
};

absl::Status WriteAll(int fd, const std::string& text) {
  size_t written = 0;
  while (written < text.size()) {
    const ssize_t result = ::write(fd, text.data() + written, text.size() - written);
    if (result < 0 && errno == EINTR) continue;
    if (result < 0) return absl::ErrnoToStatus(errno, "cannot write");
    written += static_cast<size_t>(result);
  }
  if (::fsync(fd) != 0) return absl::ErrnoToStatus(errno, "cannot sync");
  return absl::OkStatus();
}

}  // namespace

uint64_t DeviceProfile::CoalescingGapBytes() const {
  const std::map<uint64_t, double> best = BestReads(*this);
  if (best.size() < 2) return kDefaultGapBytes;
  const auto count = static_cast<double>(best.size());
  double mean_bytes = 0;
  double mean_seconds = 0;
  for (const auto& [bytes, rate] : best) {
    mean_bytes += static_cast<double>(bytes) / count;
    mean_seconds += static_cast<double>(bytes) / rate / count;
  }
  double covariance = 0;
  double variance = 0;
  for (const auto& [bytes, rate] : best) {
    const double distance = static_cast<double>(bytes) - mean_bytes;
    covariance += distance * (static_cast<double>(bytes) / rate - mean_seconds);
    variance += distance * distance;
  }
  const double seconds_per_byte = covariance / variance;
  // Larger requests that take no longer: reading along costs nothing.
  if (seconds_per_byte <= 0) return kMaxGapBytes;
  const double request_seconds = mean_seconds - seconds_per_byte * mean_bytes;
  const double gap =
      std::clamp(request_seconds / seconds_per_byte, 0.0, static_cast<double>(kMaxGapBytes));
  // A gap that is whole pages but for rounding errors keeps its last page.
  return static_cast<uint64_t>(gap + 0.5) / kPageBytes * kPageBytes;
}

size_t DeviceProfile::AdvisedDepth(uint64_t block_bytes) const {
  const std::map<uint64_t, double> best = BestReads(*this);
  if (best.empty()) return kDefaultDepth;
  const auto distance = [block_bytes](uint64_t bytes) {
    return std::abs(std::log2(static_cast<double>(bytes)) -
                    std::log2(static_cast<double>(std::max<uint64_t>(block_bytes, 1))));
  };
  const auto nearest = std::min_element(
      best.begin(), best.end(),
      [&](const auto& a, const auto& b) { return distance(a.first) < distance(b.first); });
  size_t depth = std::numeric_limits<size_t>::max();
  for (const Row& row : rows) {
    if (!IsRandomRead(row) || row.block_bytes != nearest->first) continue;
    if (row.bytes_per_second >= 0.95 * nearest->second) depth = std::min(depth, row.depth);
  }
  return depth;
}

uint64_t DeviceProfile::AdvisedRequestBytes() const {
  const double limit = 0.9 * BestReadBytesPerSecond();
  for (const auto& [bytes, rate] : BestReads(*this)) {
    if (rate >= limit) return bytes;
  }
  return kDefaultRequestBytes;
}

double DeviceProfile::BestReadBytesPerSecond() const {
  double best = 0;
  for (const auto& [bytes, rate] : BestReads(*this)) best = std::max(best, rate);
  return best;
}

absl::StatusOr<DeviceProfile> ReadDeviceProfile(const std::string& path) {
  errno = 0;
  std::ifstream file(path);
  if (!file) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot open"));
  const Json json = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": is not JSON"));
  FieldReader header(json, path, "");
  const uint64_t version = header.PositiveInteger("version");
  DeviceProfile profile;
  profile.device = header.Text("device");
  if (!header.status().ok()) return header.status();
  if (version != kVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": version: is ", version, ", this program reads ", kVersion));
  }
  const auto rows = json.find("rows");
  if (rows == json.end() || !rows->is_array()) return BadField(path, "rows", "a list");
  for (const Json& item : *rows) {
    const std::string name = absl::StrCat("rows[", profile.rows.size(), "]");
    if (!item.is_object()) return BadField(path, name, "an object");
    FieldReader fields(item, path, absl::StrCat(name, "."));
    DeviceProfile::Row row;
    row.op = fields.Text("op");
    row.block_bytes = fields.PositiveInteger("block_bytes");
    row.depth = fields.PositiveInteger("depth");
    row.bytes_per_second = fields.Number("bytes_per_second");
    row.iops = fields.Number("iops");
    row.p50_us = fields.Number("p50_us");
    row.p99_us = fields.Number("p99_us");
    row.p999_us = fields.Number("p999_us");
    if (!fields.status().ok()) return fields.status();
    profile.rows.push_back(std::move(row));
  }
  return profile;
}

absl::Status WriteDeviceProfile(const DeviceProfile& profile, const std::string& path) {
  Json rows = Json::array();
  for (const DeviceProfile::Row& row : profile.rows) {
    rows.push_back({{"op", row.op},
                    {"block_bytes", row.block_bytes},
                    {"depth", row.depth},
                    {"bytes_per_second", row.bytes_per_second},
                    {"iops", row.iops},
                    {"p50_us", row.p50_us},
                    {"p99_us", row.p99_us},
                    {"p999_us", row.p999_us}});
  }
  const Json json = {{"version", kVersion}, {"device", profile.device}, {"rows", rows}};
  const std::string text =
      json.dump(2, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace) + "\n";

  // The process id keeps two writers apart.
  const std::string temporary = absl::StrCat(path, ".new.", ::getpid());
  const UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (!fd.valid()) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot create"));
  absl::Status status = WriteAll(fd.get(), text);
  if (status.ok() && ::rename(temporary.c_str(), path.c_str()) != 0) {
    status = absl::ErrnoToStatus(errno, "cannot rename");
  }
  if (status.ok()) return status;
  ::unlink(temporary.c_str());
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

}  // namespace terrace
