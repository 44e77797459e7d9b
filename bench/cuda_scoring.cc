// What does a CUDA device need to tell which keys a query wants, and how near is that to merely
// reading what tells it?
//
// usage: cuda_scoring [--tokens N[,N...]] [--pairs N] [--json FILE]
//
// Scores one layer of an 8B model: 8 KV heads with 4 query rows each, head_dim 128, at 131072 and
// 1048576 tokens unless told otherwise. InfLLM has 8 representatives of every 128 tokens, Quest the
// bounds of every 16, clusters the means of every 16; one cluster table stands for all heads. Rows
// are 256 bytes, of one token in 8 of each head. Beside each call is its host twin on all threads,
// in alternating order; figures are medians of 7 pairs unless told otherwise. `kernels` is the time
// on the device, and `of copy` its bytes per second beside those of a copy within the device's
// memory; `call` adds queries and results on the bus. Arrays that fit the device's cache may be
// read faster than memory.
//
// Exits 3, with the reason, where no device answers.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "bench/made_up_kv.h"
#include "bench/measure.h"
#include "io/cuda_copy_engine.h"
#include "nlohmann/json.hpp"
#include "runtime/device_rows.h"
#include "runtime/device_scoring.h"

namespace terrace {
namespace {

constexpr size_t kHeads = kBenchKvHeads;
constexpr size_t kRows = kBenchQueryHeads / kBenchKvHeads;
constexpr size_t kBlockTokens = 128;
constexpr size_t kBlocksChosen = 16;
constexpr size_t kClusterKeys = 16;
constexpr size_t kClustersChosenOneOf = 64;
constexpr size_t kDistinctSummaries = 512;
constexpr size_t kRowBytes = kBenchHeadDim * 2;
constexpr size_t kRowsOneOf = 8;
constexpr size_t kCopyBytes = size_t{512} << 20;
constexpr size_t kCopyRowBytes = 4096;

struct Arguments {
  std::vector<size_t> tokens = {131072, 1048576};
  size_t pairs = 7;
  std::string json;
};

double SecondsNow() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<float> NormalFloats(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> floats(count);
  for (float& element : floats) element = normal(random);
  return floats;
}

// Scaled by 1 / sqrt(head_dim).
std::vector<float> Queries() {
  std::vector<float> queries = NormalFloats(kHeads * kRows * kBenchHeadDim, 2);
  for (float& element : queries) element /= 11.3137085f;
  return queries;
}

class Report {
 public:
  Report(size_t pairs, double copy_rate) : pairs_(pairs), copy_rate_(copy_rate) {
    std::printf("%-24s %9s %9s %11s %8s %8s %9s %10s %7s\n", "", "tokens", "MB", "kernels us",
                "GB/s", "of copy", "call us", "host us", "faster");
  }

  // `device` does the work and returns the seconds of its kernels, `host` does the same; `bytes`
  // are those that it reads and writes at least.
  void Measure(const char* what, size_t tokens, size_t bytes, absl::FunctionRef<double()> device,
               absl::FunctionRef<void()> host) {
    device();
    host();
    std::vector<double> kernel_seconds, call_seconds, host_seconds;
    RunPairs(
        pairs_,
        [&] {
          const double start = SecondsNow();
          kernel_seconds.push_back(device());
          call_seconds.push_back(SecondsNow() - start);
        },
        [&] {
          const double start = SecondsNow();
          host();
          host_seconds.push_back(SecondsNow() - start);
        });
    const double kernels = Quantile(kernel_seconds, 0.5);
    const double call = Quantile(call_seconds, 0.5);
    const double twin = Quantile(host_seconds, 0.5);
    const double rate = static_cast<double>(bytes) / kernels;
    std::printf("%-24s %9zu %9.2f %11.1f %8.1f %8.3f %9.1f %10.1f %6.1fx\n", what, tokens,
                static_cast<double>(bytes) / 1e6, kernels * 1e6, rate / 1e9, rate / copy_rate_,
                call * 1e6, twin * 1e6, twin / call);
    std::fflush(stdout);
    rows_.push_back({{"what", what},
                     {"tokens", tokens},
                     {"bytes", bytes},
                     {"kernel_seconds", kernel_seconds},
                     {"call_seconds", call_seconds},
                     {"host_seconds", host_seconds},
                     {"bytes_per_second", rate},
                     {"of_copy", rate / copy_rate_},
                     {"faster_than_host", twin / call}});
  }

  const nlohmann::json& rows() const { return rows_; }

 private:
  const size_t pairs_;
  const double copy_rate_;
  nlohmann::json rows_ = nlohmann::json::array();
};

// Bytes read and written per second by a copy in the device's memory, of whole pages in order.
double CopyRate(CopyEngine& engine, size_t pairs) {
  const auto from = OrDie(engine.Allocate(kCopyBytes));
  const auto to = OrDie(engine.Allocate(kCopyBytes));
  const auto rows = OrDie(MakeCudaRows(kCopyRowBytes, 0));
  std::vector<uint32_t> all(kCopyBytes / kCopyRowBytes);
  std::iota(all.begin(), all.end(), uint32_t{0});
  std::byte* const panel = from->data();
  std::vector<double> rates;
  for (size_t i = 0; i <= pairs; ++i) {
    OrDie(rows->Gather({.panels = {&panel, 1}, .panel_rows = all.size()}, all, to->data()));
    if (i > 0) rates.push_back(2 * static_cast<double>(kCopyBytes) / rows->device_seconds());
  }
  return Quantile(rates, 0.5);
}

void MeasureSummaries(Report& report, const char* name, const BlockSummary& summary, size_t tokens,
                      size_t threads) {
  const size_t blocks = tokens / kBlockTokens;
  const DeviceSummaryOptions options = {
      .kv_heads = kHeads, .head_dim = kBenchHeadDim, .blocks = blocks, .threads = threads};
  const auto device = OrDie(MakeCudaSummaries(summary, options, 0));
  const auto host = OrDie(MakeHostSummaries(summary, options));
  std::vector<std::byte> bytes(kDistinctSummaries * summary.bytes());
  const std::vector<float> keys =
      NormalFloats((kDistinctSummaries + kBlockTokens) * kBenchHeadDim, 1);
  for (size_t i = 0; i < kDistinctSummaries; ++i) {
    summary.Summarise(keys.data() + i * kBenchHeadDim, KvDtype::kFloat32, {},
                      absl::MakeSpan(bytes).subspan(i * summary.bytes(), summary.bytes()));
  }
  std::vector<const std::byte*> pointers(blocks * kHeads);
  for (size_t i = 0; i < pointers.size(); ++i) {
    pointers[i] = bytes.data() + i % kDistinctSummaries * summary.bytes();
  }
  OrDie(device->Append(pointers));
  OrDie(host->Append(pointers));
  const std::vector<float> queries = Queries();
  const size_t read = pointers.size() * summary.bytes();
  std::vector<float> scores(kHeads * kRows * blocks);
  std::vector<float> twins(scores.size());
  report.Measure((std::string(name) + " score").c_str(), tokens,
                 read + scores.size() * sizeof(float),
                 [&] {
                   OrDie(device->Score(queries, absl::MakeSpan(scores)));
                   return device->device_seconds();
                 },
                 [&] { OrDie(host->Score(queries, absl::MakeSpan(twins))); });
  if (scores != twins) OrDie(absl::InternalError("scores differ from those of the host"));
  const size_t k = std::min(kBlocksChosen, blocks);
  std::vector<uint32_t> best(kHeads * kRows * k);
  std::vector<uint32_t> best_twins(best.size());
  report.Measure((std::string(name) + " best").c_str(), tokens, read,
                 [&] {
                   OrDie(device->Best(queries, k, absl::MakeSpan(best)));
                   return device->device_seconds();
                 },
                 [&] { OrDie(host->Best(queries, k, absl::MakeSpan(best_twins))); });
  if (best != best_twins) OrDie(absl::InternalError("choices differ from those of the host"));
}

void MeasureClusters(Report& report, size_t tokens, size_t threads) {
  ClusterTable table =
      OrDie(ClusterTable::Create({.head_dim = kBenchHeadDim,
                                  .has_values = false,
                                  .residual_codes = false,
                                  .clustering = {.cluster_keys = kClusterKeys, .iterations = 1}},
                                 QuerySpace(kBenchHeadDim)));
  {
    ComputePool pool(threads);
    const std::vector<float> keys = NormalFloats(tokens * kBenchHeadDim, 5);
    OrDie(table.Add(KeyPanels::Contiguous(keys.data(), tokens, kBenchHeadDim, KvDtype::kFloat32),
                    nullptr, tokens, pool));
  }
  const std::vector<const ClusterTable*> tables(kHeads, &table);
  const size_t count = table.clusters();
  const DeviceClusterOptions options = {
      .kv_heads = kHeads, .head_dim = kBenchHeadDim, .clusters = count, .threads = threads};
  const auto device = OrDie(MakeCudaClusters(options, 0));
  const auto host = OrDie(MakeHostClusters(options));
  OrDie(device->Extend(tables));
  OrDie(host->Extend(tables));
  const std::vector<float> queries = Queries();
  // A mean, its scale and the spread.
  const size_t read = kHeads * count * (kBenchHeadDim + 2 * sizeof(float));
  std::vector<float> logits(kHeads * kRows * count);
  std::vector<float> twins(logits.size());
  report.Measure(
      "clusters score", tokens, read + logits.size() * sizeof(float),
      [&] {
        OrDie(device->Score(tables, queries, absl::MakeSpan(logits)));
        return device->device_seconds();
      },
      [&] { OrDie(host->Score(tables, queries, absl::MakeSpan(twins))); });
  if (logits != twins) OrDie(absl::InternalError("logits differ from those of the host"));
  const size_t k = std::max<size_t>(count / kClustersChosenOneOf, 1);
  std::vector<uint32_t> best(kHeads * k);
  std::vector<uint32_t> best_twins(best.size());
  report.Measure(
      "clusters best", tokens, read,
      [&] {
        OrDie(device->Best(tables, queries, k, absl::MakeSpan(best), {}));
        return device->device_seconds();
      },
      [&] { OrDie(host->Best(tables, queries, k, absl::MakeSpan(best_twins), {})); });
}

void MeasureRows(Report& report, CopyEngine& engine, size_t tokens, size_t threads) {
  const size_t bytes = kHeads * tokens * kRowBytes;
  const size_t count = kHeads * tokens / kRowsOneOf;
  const auto memory = OrDie(engine.Allocate(bytes));
  const auto packed = OrDie(engine.Allocate(count * kRowBytes));
  std::vector<std::byte> host_memory(bytes, std::byte{1});
  std::vector<std::byte> host_packed(count * kRowBytes);
  RowPanels panels = {.panels = {}, .panel_rows = kBlockTokens};
  RowPanels host_panels = panels;
  std::vector<std::byte*> addresses, host_addresses;
  for (size_t at = 0; at < bytes; at += kBlockTokens * kRowBytes) {
    addresses.push_back(memory->data() + at);
    host_addresses.push_back(host_memory.data() + at);
  }
  panels.panels = addresses;
  host_panels.panels = host_addresses;
  std::mt19937_64 random(3);
  std::vector<uint32_t> rows(count);
  for (size_t i = 0; i < count; ++i) {
    rows[i] = static_cast<uint32_t>(i * kRowsOneOf + random() % kRowsOneOf);
  }
  const auto device = OrDie(MakeCudaRows(kRowBytes, 0));
  const auto host = OrDie(MakeHostRows(kRowBytes, threads));
  report.Measure(
      "gather rows", tokens, 2 * count * kRowBytes,
      [&] {
        OrDie(device->Gather(panels, rows, packed->data()));
        return device->device_seconds();
      },
      [&] { OrDie(host->Gather(host_panels, rows, host_packed.data())); });
  report.Measure(
      "scatter rows", tokens, 2 * count * kRowBytes,
      [&] {
        OrDie(device->Scatter(packed->data(), rows, panels));
        return device->device_seconds();
      },
      [&] { OrDie(host->Scatter(host_packed.data(), rows, host_panels)); });
}

bool Parse(int argc, char** argv, Arguments& arguments) {
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc) return false;
    if (std::strcmp(argv[i], "--json") == 0) {
      arguments.json = argv[i + 1];
    } else if (std::strcmp(argv[i], "--pairs") == 0) {
      if (!absl::SimpleAtoi(argv[i + 1], &arguments.pairs) || arguments.pairs == 0) return false;
    } else if (std::strcmp(argv[i], "--tokens") == 0) {
      arguments.tokens.clear();
      for (const auto text : absl::StrSplit(argv[i + 1], ',')) {
        size_t tokens = 0;
        if (!absl::SimpleAtoi(text, &tokens) || tokens / kBlockTokens == 0) return false;
        arguments.tokens.push_back(tokens / kBlockTokens * kBlockTokens);
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
    std::fprintf(stderr, "usage: cuda_scoring [--tokens N[,N...]] [--pairs N] [--json FILE]\n");
    return 2;
  }
  const size_t most = *std::max_element(arguments.tokens.begin(), arguments.tokens.end());
  const size_t pool = std::max(2 * kCopyBytes, 2 * kHeads * most * kRowBytes) + (64 << 20);
  const auto engine = MakeCudaCopyEngine({.device = 0, .pool_bytes = pool});
  if (!engine.ok()) {
    std::fprintf(stderr, "cuda_scoring: %s\n", std::string(engine.status().message()).c_str());
    return 3;
  }
  const size_t threads = std::max(1u, std::thread::hardware_concurrency());
  const double copy_rate = CopyRate(**engine, arguments.pairs);
  std::printf(
      "%s; %s; host twins on %zu threads; a copy on the device reads and writes %.1f GB/s\n",
      (*engine)->name(), SystemText().c_str(), threads, copy_rate / 1e9);
  Report report(arguments.pairs, copy_rate);
  const auto representatives =
      OrDie(MakeRepresentatives({.head_dim = kBenchHeadDim, .tokens = kBlockTokens, .count = 8}));
  const auto bounds =
      OrDie(MakeKeyBounds({.head_dim = kBenchHeadDim, .tokens = kBlockTokens, .page_tokens = 16}));
  for (const size_t tokens : arguments.tokens) {
    MeasureSummaries(report, "infllm", *representatives, tokens, threads);
    MeasureSummaries(report, "quest", *bounds, tokens, threads);
    MeasureClusters(report, tokens, threads);
    MeasureRows(report, **engine, tokens, threads);
  }
  if (!arguments.json.empty()) {
    std::ofstream file(arguments.json);
    file << nlohmann::json{{"device", (*engine)->name()},
                           {"system", SystemText()},
                           {"threads", threads},
                           {"copy_bytes_per_second", copy_rate},
                           {"rows", report.rows()}}
                .dump(2)
         << "\n";
    if (!file.flush()) {
      std::fprintf(stderr, "cuda_scoring: %s could not be written\n", arguments.json.c_str());
      return 1;
    }
  }
  return 0;
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) { return terrace::Main(argc, argv); }
