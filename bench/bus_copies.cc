// How near do batches of scattered blocks come to what the bus carries, between pinned host memory
// and a CUDA device? By the copy engines, by a kernel and as the library chooses, up, down and both
// at once, alternating with one copy of as many bytes.
//
//   bus_copies [--json FILE] [--passes N] [--mib N]

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "bench/measure.h"
#include "io/aligned_buffer.h"
#include "io/check.h"
#include "io/cuda_copy_engine.h"
#include "nlohmann/json.hpp"

namespace terrace {
namespace {

constexpr int kNoDevice = 3;  // what the program exits with
constexpr size_t kKiB = size_t{1} << 10;
constexpr size_t kBlockSizes[] = {4 * kKiB,   16 * kKiB,   64 * kKiB,
                                  256 * kKiB, 1024 * kKiB, 4096 * kKiB};

struct Arguments {
  std::string json;
  size_t passes = 7;
  size_t bytes = size_t{256} << 20;  // of a batch, each way
};

enum class Way : uint8_t { kUp, kDown, kBoth };
constexpr Way kWays[] = {Way::kUp, Way::kDown, Way::kBoth};
const char* WayName(Way way) {
  switch (way) {
    case Way::kUp:
      return "up";
    case Way::kDown:
      return "down";
    case Way::kBoth:
      return "both";
  }
  return "?";
}

constexpr size_t kSpareBytes = 1024 * kKiB;

// An engine with pinned memory of its own. Both arenas are [2, 2 * bytes], what goes up and what
// comes down, of which batches and large copies take every other block or a half; and kSpareBytes
// behind, for a copy that has to do with none of the others.
class Rig {
 public:
  Rig(CudaCopyMethod method, size_t bytes) : bytes_(bytes) {
    auto engine =
        MakeCudaCopyEngine({.device = 0, .pool_bytes = 4 * bytes + kSpareBytes, .method = method});
    if (absl::IsUnavailable(engine.status())) {
      std::fprintf(stderr, "%s\n", std::string(engine.status().message()).c_str());
      std::exit(kNoDevice);
    }
    engine_ = OrDie(std::move(engine));
    host_ = OrDie(AlignedBuffer::Create(4 * bytes + kSpareBytes));
    std::mt19937_64 random(1);
    for (size_t at = 0; at < host_.size(); at += sizeof(uint64_t)) {
      const uint64_t word = random();
      std::memcpy(host_.data() + at, &word, sizeof(word));
    }
    pinned_ = OrDie(engine_->Pin(host_.span()));
    device_ = OrDie(engine_->Allocate(4 * bytes + kSpareBytes));
    OrDie(Run({Up(0, 0, 4 * bytes)}));  // so that what comes down was written once
  }

  CopyEngine& engine() { return *engine_; }
  Copy Up(size_t host, size_t device, size_t bytes) const {
    return {.source = host_.data() + host,
            .destination = device_->data() + device,
            .bytes = bytes,
            .direction = CopyDirection::kHostToDevice};
  }
  Copy Down(size_t device, size_t host, size_t bytes) const {
    return {.source = device_->data() + device,
            .destination = host_.data() + host,
            .bytes = bytes,
            .direction = CopyDirection::kDeviceToHost};
  }
  absl::Status Run(const std::vector<Copy>& batch) {
    const absl::StatusOr<CopyTicket> ticket = engine_->Submit(batch);
    return ticket.ok() ? engine_->Wait(*ticket) : ticket.status();
  }

  Copy SpareUp(size_t block_bytes) const { return Up(4 * bytes_, 4 * bytes_, block_bytes); }
  std::vector<Copy> OneLargeCopy(Way way) const {
    std::vector<Copy> batch;
    if (way != Way::kDown) batch.push_back(Up(0, 0, bytes_));
    if (way != Way::kUp) batch.push_back(Down(2 * bytes_, 2 * bytes_, bytes_));
    return batch;
  }
  // Every other block on both sides, so that no two adjoin, in random order.
  std::vector<Copy> Blocks(Way way, size_t block_bytes) const {
    std::vector<size_t> slots(bytes_ / block_bytes);
    std::iota(slots.begin(), slots.end(), 0);
    std::vector<size_t> others = slots;
    std::mt19937_64 random(2);
    std::shuffle(slots.begin(), slots.end(), random);
    std::shuffle(others.begin(), others.end(), random);
    std::vector<Copy> batch;
    for (size_t i = 0; i < slots.size(); ++i) {
      const size_t host = 2 * slots[i] * block_bytes;
      const size_t device = 2 * others[i] * block_bytes;
      if (way != Way::kDown) batch.push_back(Up(host, device, block_bytes));
      if (way != Way::kUp) {
        batch.push_back(Down(2 * bytes_ + device, 2 * bytes_ + host, block_bytes));
      }
    }
    return batch;
  }

  // Up in one order and down in another: every byte comes back, or the program ends.
  void Check(size_t block_bytes) {
    std::memset(host_.data() + 2 * bytes_, 0, 2 * bytes_);
    const std::vector<Copy> up = Blocks(Way::kUp, block_bytes);
    std::vector<Copy> down;
    for (const Copy& copy : up) {
      const size_t host = static_cast<size_t>(copy.source - host_.data());
      const size_t device = static_cast<size_t>(copy.destination - device_->data());
      down.push_back(Down(device, 2 * bytes_ + host, block_bytes));
    }
    std::shuffle(down.begin(), down.end(), std::mt19937_64(3));
    OrDie(engine_->Submit(up).status());
    OrDie(Run(down));
    for (const Copy& copy : up) {
      TERRACE_CHECK(std::memcmp(copy.source, copy.source + 2 * bytes_, block_bytes) == 0);
    }
  }

 private:
  const size_t bytes_;
  std::unique_ptr<CopyEngine> engine_;
  AlignedBuffer host_;
  std::unique_ptr<DeviceMemory> device_;
  std::unique_ptr<PinnedMemory> pinned_;
};

size_t BytesOf(const std::vector<Copy>& batch) {
  size_t bytes = 0;
  for (const Copy& copy : batch) bytes += copy.bytes;
  return bytes;
}

double RunForRate(Rig& rig, const std::vector<Copy>& batch) {
  const absl::Time start = absl::Now();
  OrDie(rig.Run(batch));
  return static_cast<double>(BytesOf(batch)) / absl::ToDoubleSeconds(absl::Now() - start);
}

struct Methods {
  explicit Methods(size_t bytes)
      : engines(CudaCopyMethod::kCopyEngine, bytes),
        kernel(CudaCopyMethod::kKernel, bytes),
        chosen(CudaCopyMethod::kAuto, bytes) {}
  Rig engines;
  Rig kernel;
  Rig chosen;
};

// One row: rates of the three and of one large copy, which take turns.
nlohmann::ordered_json Measure(Methods& methods, Way way, size_t block_bytes, size_t passes) {
  struct Arm {
    const char* name;
    Rig& rig;
    std::vector<Copy> batch;
    std::vector<double> rates;
  };
  std::vector<Arm> arms = {
      {"one_copy", methods.engines, methods.engines.OneLargeCopy(way), {}},
      {"copy_engine", methods.engines, methods.engines.Blocks(way, block_bytes), {}},
      {"kernel", methods.kernel, methods.kernel.Blocks(way, block_bytes), {}},
      {"auto", methods.chosen, methods.chosen.Blocks(way, block_bytes), {}}};
  for (Arm& arm : arms) OrDie(arm.rig.Run(arm.batch));
  for (size_t pass = 0; pass < passes; ++pass) {
    for (size_t i = 0; i < arms.size(); ++i) {
      Arm& arm = arms[(i + pass) % arms.size()];
      arm.rates.push_back(RunForRate(arm.rig, arm.batch));
    }
  }
  nlohmann::ordered_json row;
  row["block_bytes"] = block_bytes;
  row["way"] = WayName(way);
  const double peak = Quantile(arms[0].rates, 0.5);
  std::string text = absl::StrFormat("%8d  %-5s", block_bytes, WayName(way));
  for (const Arm& arm : arms) {
    const double median = Quantile(arm.rates, 0.5);
    row[arm.name] = {{"bytes_per_second", median},
                     {"share_of_one_copy", median / peak},
                     {"slowest", Quantile(arm.rates, 0)},
                     {"fastest", Quantile(arm.rates, 1)}};
    absl::StrAppendFormat(&text, "  %6.2f (%.3f)", median / 1e9, median / peak);
  }
  std::printf("%s\n", text.c_str());
  std::fflush(stdout);
  return row;
}

// From Submit to the return of Wait, of one block up on demand: alone, and while two large batches
// of offloads are under way, one in each direction.
nlohmann::ordered_json MeasureLatency(Rig& rig, size_t block_bytes) {
  constexpr size_t kTries = 200;
  constexpr size_t kTriesPerOffload = 8;
  const std::vector<Copy> block = {rig.SpareUp(block_bytes)};
  const std::vector<Copy> offload = rig.Blocks(Way::kBoth, 64 * kKiB);
  const auto time_one = [&](std::vector<double>& times) {
    const absl::Time start = absl::Now();
    OrDie(rig.Run(block));
    times.push_back(absl::ToDoubleMicroseconds(absl::Now() - start));
  };
  std::vector<double> alone;
  std::vector<double> beside;
  for (size_t i = 0; i < kTries; ++i) time_one(alone);
  while (beside.size() < kTries / 4) {
    const CopyTicket ticket = OrDie(rig.engine().Submit(offload, CopyPriority::kOffload));
    for (size_t i = 0; i < kTriesPerOffload; ++i) time_one(beside);
    OrDie(rig.engine().Wait(ticket));
  }
  std::printf("%8d  alone p50 %.1f us, p99 %.1f us; beside offloads p50 %.1f us, p99 %.1f us\n",
              static_cast<int>(block_bytes), Quantile(alone, 0.5), Quantile(alone, 0.99),
              Quantile(beside, 0.5), Quantile(beside, 0.99));
  return {{"block_bytes", block_bytes},
          {"alone_p50_us", Quantile(alone, 0.5)},
          {"alone_p99_us", Quantile(alone, 0.99)},
          {"beside_offloads_p50_us", Quantile(beside, 0.5)},
          {"beside_offloads_p99_us", Quantile(beside, 0.99)}};
}

int Run(const Arguments& arguments) {
  Methods methods(arguments.bytes);
  nlohmann::ordered_json json;
  json["device"] = methods.chosen.engine().name();
  json["system"] = SystemText();
  json["batch_bytes"] = arguments.bytes;
  json["passes"] = arguments.passes;
  std::printf("%s, %s: %zu MiB each way, in blocks and in one copy, medians of %zu\n",
              methods.chosen.engine().name(), SystemText().c_str(), arguments.bytes >> 20,
              arguments.passes);
  std::printf("   block  way    one copy        copy engines    kernel          auto   GB/s\n");
  for (const size_t block_bytes : kBlockSizes) {
    for (const Way way : kWays) {
      json["rates"].push_back(Measure(methods, way, block_bytes, arguments.passes));
    }
    for (Rig* rig : {&methods.engines, &methods.kernel, &methods.chosen}) rig->Check(block_bytes);
  }
  std::printf("every block came back as it went\n\none block up, until its caller goes on:\n");
  for (const size_t block_bytes : {4 * kKiB, 64 * kKiB, kSpareBytes}) {
    json["latency"].push_back(MeasureLatency(methods.chosen, block_bytes));
  }
  if (arguments.json.empty()) return 0;
  std::ofstream file(arguments.json);
  file << json.dump(2) << "\n";
  file.close();
  if (file) return 0;
  std::fprintf(stderr, "cannot write %s\n", arguments.json.c_str());
  return 1;
}

bool Parse(int argc, char** argv, Arguments& arguments) {
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    if (i + 1 == argc) return false;
    size_t number = 0;
    const bool is_number = absl::SimpleAtoi(argv[i + 1], &number) && number > 0;
    if (flag == "--json") {
      arguments.json = argv[i + 1];
    } else if (flag == "--passes" && is_number) {
      arguments.passes = number;
    } else if (flag == "--mib" && is_number && number >= 8) {
      arguments.bytes = number << 20;
    } else {
      return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  terrace::Arguments arguments;
  if (!terrace::Parse(argc, argv, arguments)) {
    std::fprintf(stderr, "usage: bus_copies [--json FILE] [--passes N] [--mib N, 8 or more]\n");
    return 2;
  }
  return terrace::Run(arguments);
}
