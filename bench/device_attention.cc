// How near does attention over keys and values in HBM come to what HBM can move?
//
//   device_attention [--json FILE] [--passes N] [--pieces N,...]
//
// A decode step of one layer: 8 KV heads with 4 query rows each, head_dim 128, fp16 and bf16, over
// 2K, 16K and 128K tokens a head in blocks of 128 tokens (64 KiB, keys then values) that lie in
// random order in 1 GiB of HBM. Each pass takes other blocks, as far as there are others, so that
// little is in the cache. A pass of attention alternates with copies of 512 MiB of HBM to HBM by
// the driver, whose bytes count twice, read and written. Kernel time is the device's, wall time
// that of Start and Finish, with the plan, the queries up and the results down. Prints medians.
//
// --pieces: into how many pieces a step is cut; one table each. Exits with 3 where there is no
// device.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/types/span.h"
#include "bench/measure.h"
#include "index/kv_convert.h"
#include "io/cuda_copy_engine.h"
#include "nlohmann/json.hpp"
#include "runtime/cuda_probe.h"
#include "runtime/device_attention.h"

namespace terrace {
namespace {

constexpr int kNoDevice = 3;  // what the program exits with
constexpr size_t kHeadDim = 128;
constexpr size_t kHeads = 8;
constexpr size_t kGroup = 4;
constexpr size_t kBlockTokens = 128;
constexpr size_t kPanelBytes = kBlockTokens * kHeadDim * 2;  // keys, or values, of a block
constexpr size_t kBlockBytes = 2 * kPanelBytes;
constexpr size_t kPoolBytes = size_t{1} << 30;
constexpr size_t kBlocks = kPoolBytes / kBlockBytes;
constexpr size_t kCopyBytes = size_t{512} << 20;
constexpr size_t kTokensOfAHead[] = {size_t{2} << 10, size_t{16} << 10, size_t{128} << 10};

// A pass runs so many steps or copies, for the clock to be exact.
constexpr size_t kSteps = 5;

struct Arguments {
  std::string json;
  size_t passes = 7;
  std::vector<size_t> pieces = {0};
};

std::vector<float> NormalFloats(size_t count) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> floats(count);
  for (float& value : floats) value = normal(random);
  return floats;
}

// Fills device memory with random elements, which repeat.
void Fill(CopyEngine& engine, DeviceMemory& memory, KvDtype dtype) {
  constexpr size_t kPatternBytes = size_t{16} << 20;
  const std::vector<float> floats = NormalFloats(kPatternBytes / 2);
  std::vector<std::byte> pattern(kPatternBytes);
  EncodeKv(floats.data(), KvDtype::kFloat32, dtype, floats.size(), pattern.data());
  std::vector<Copy> copies;
  for (size_t at = 0; at < memory.size(); at += kPatternBytes) {
    copies.push_back({.source = pattern.data(),
                      .destination = memory.data() + at,
                      .bytes = std::min(kPatternBytes, memory.size() - at)});
  }
  OrDie(engine.Wait(OrDie(engine.Submit(copies))));
}

// The jobs of a step and what they borrow.
class Step {
 public:
  // Takes the blocks from `first` on of those in `order`, around the end.
  Step(const std::byte* pool, absl::Span<const uint32_t> order, size_t first, size_t tokens,
       KvDtype dtype)
      : queries_(NormalFloats(kHeads * kGroup * kHeadDim)),
        out_(queries_.size()),
        lse_(kHeads * kGroup),
        parts_(kHeads) {
    size_t next = first;
    for (size_t head = 0; head < kHeads; ++head) {
      for (size_t token = 0; token < tokens; token += kBlockTokens) {
        const std::byte* block = pool + order[next++ % order.size()] * kBlockBytes;
        parts_[head].push_back({.run = {.keys = block,
                                        .values = block + kPanelBytes,
                                        .tokens = kBlockTokens,
                                        .dtype = dtype}});
      }
      constexpr size_t kFloats = kGroup * kHeadDim;
      jobs_.push_back({.queries = absl::MakeConstSpan(queries_).subspan(head * kFloats, kFloats),
                       .parts = parts_[head],
                       .out = absl::MakeSpan(out_).subspan(head * kFloats, kFloats),
                       .lse = absl::MakeSpan(lse_).subspan(head * kGroup, kGroup)});
    }
  }

  absl::Span<const AttentionJob> jobs() const { return jobs_; }

 private:
  std::vector<float> queries_;
  std::vector<float> out_;
  std::vector<float> lse_;
  std::vector<std::vector<AttentionPart>> parts_;
  std::vector<AttentionJob> jobs_;
};

// Seconds of a step or a copy, of each pass.
struct Times {
  std::vector<double> kernel;
  std::vector<double> wall;
  std::vector<double> copy;
};

Times Measure(const Arguments& arguments, DeviceAttention& attention, DeviceCopyProbe& probe,
              const std::vector<std::unique_ptr<Step>>& steps) {
  Times times;
  size_t next = 0;
  const auto attend = [&] {
    double kernel = 0;
    const absl::Time begin = absl::Now();
    for (size_t i = 0; i < kSteps; ++i) {
      OrDie(attention.Start(steps[next++ % steps.size()]->jobs()));
      OrDie(attention.Finish());
      kernel += attention.device_seconds();
    }
    times.wall.push_back(absl::ToDoubleSeconds(absl::Now() - begin) / kSteps);
    times.kernel.push_back(kernel / kSteps);
  };
  const auto copy = [&] { times.copy.push_back(OrDie(probe.Seconds(kSteps))); };
  attend();
  copy();
  times = {};
  RunPairs(arguments.passes, attend, copy);
  return times;
}

// Prints a line and returns it as JSON.
nlohmann::ordered_json Report(KvDtype dtype, size_t tokens, const Times& times) {
  const double bytes = static_cast<double>(kHeads * tokens * kHeadDim * 2 * 2);
  const double copied = 2.0 * static_cast<double>(kCopyBytes);
  // Ratios of speeds, pass by pass.
  std::vector<double> copy_seconds_of_bytes;
  for (const double seconds : times.copy) copy_seconds_of_bytes.push_back(seconds * bytes / copied);
  std::vector<double> ratios;
  for (size_t i = 0; i < times.kernel.size(); ++i) {
    ratios.push_back(copy_seconds_of_bytes[i] / times.kernel[i]);
  }
  const double kernel = Quantile(times.kernel, 0.5);
  const double wall = Quantile(times.wall, 0.5);
  const double copy = Quantile(times.copy, 0.5);
  std::printf("%-5s %9zu %8.0f %10.1f %10.1f %9.0f %9.0f %9.0f  %s\n", KvDtypeName(dtype), tokens,
              bytes / (1 << 20), kernel * 1e6, wall * 1e6, bytes / kernel / 1e9, bytes / wall / 1e9,
              copied / copy / 1e9, RatioText(copy_seconds_of_bytes, times.kernel).c_str());
  return {{"dtype", KvDtypeName(dtype)},
          {"tokens_of_a_head", tokens},
          {"bytes", bytes},
          {"kernel_us", kernel * 1e6},
          {"wall_us", wall * 1e6},
          {"kernel_gb_per_s", bytes / kernel / 1e9},
          {"wall_gb_per_s", bytes / wall / 1e9},
          {"copy_gb_per_s", copied / copy / 1e9},
          {"kernel_of_copy_median", Quantile(ratios, 0.5)},
          {"kernel_of_copy_q1", Quantile(ratios, 0.25)},
          {"kernel_of_copy_q3", Quantile(ratios, 0.75)},
          {"wall_of_copy_median", bytes / wall / (copied / copy)},
          {"passes", times.kernel.size()}};
}

bool Parse(int argc, char** argv, Arguments& arguments) {
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc) return false;
    const std::string value = argv[i + 1];
    if (std::strcmp(argv[i], "--json") == 0) {
      arguments.json = value;
    } else if (std::strcmp(argv[i], "--passes") == 0) {
      if (!absl::SimpleAtoi(value, &arguments.passes) || arguments.passes == 0) return false;
    } else if (std::strcmp(argv[i], "--pieces") == 0) {
      arguments.pieces.clear();
      for (const absl::string_view one : absl::StrSplit(value, ',')) {
        if (!absl::SimpleAtoi(one, &arguments.pieces.emplace_back())) return false;
      }
    } else {
      return false;
    }
  }
  return true;
}

int Main(int argc, char** argv) {
  Arguments arguments;
  if (!Parse(argc, argv, arguments)) {
    std::fprintf(stderr, "usage: device_attention [--json FILE] [--passes N] [--pieces N,...]\n");
    return 2;
  }
  auto probe = MakeDeviceCopyProbe(0, kCopyBytes);
  if (!probe.ok()) {
    std::printf("device_attention: %s\n", std::string(probe.status().message()).c_str());
    return kNoDevice;
  }
  std::printf("%s\n%s\n", SystemText().c_str(), (*probe)->DeviceText().c_str());
  const auto engine = OrDie(MakeCudaCopyEngine({.pool_bytes = kPoolBytes + (16 << 20)}));
  const auto pool = OrDie(engine->Allocate(kPoolBytes));
  std::vector<uint32_t> order(kBlocks);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(3));

  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const KvDtype dtype : {KvDtype::kFloat16, KvDtype::kBfloat16}) {
    Fill(*engine, *pool, dtype);
    for (const size_t pieces : arguments.pieces) {
      const auto attention = OrDie(MakeCudaAttention({.head_dim = kHeadDim, .pieces = pieces}, 0));
      if (pieces > 0) std::printf("\n%zu pieces", pieces);
      std::printf("\n%-5s %9s %8s %10s %10s %9s %9s %9s  %s\n", "dtype", "tokens/hd", "MiB",
                  "kernel us", "wall us", "kern GB/s", "wall GB/s", "copy GB/s", "kernel / copy");
      for (const size_t tokens : kTokensOfAHead) {
        const size_t blocks = kHeads * tokens / kBlockTokens;
        std::vector<std::unique_ptr<Step>> steps;
        for (size_t i = 0; i < std::min<size_t>(16, kBlocks / blocks); ++i) {
          steps.push_back(std::make_unique<Step>(pool->data(), order, i * blocks, tokens, dtype));
        }
        nlohmann::ordered_json row =
            Report(dtype, tokens, Measure(arguments, *attention, **probe, steps));
        row["pieces"] = pieces;
        rows.push_back(row);
      }
    }
  }
  if (!arguments.json.empty()) {
    const nlohmann::ordered_json json = {
        {"system", SystemText()}, {"device", (*probe)->DeviceText()}, {"rows", rows}};
    std::ofstream(arguments.json) << json.dump(2) << "\n";
  }
  return 0;
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) { return terrace::Main(argc, argv); }
