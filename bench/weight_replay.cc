// How long does a token take whose feed-forward weights are on flash? Replays made-up activations
// over a bundle file of made-up weights by one of several ways to read them, and prints JSON;
// `bench/weights` runs them all in turn.
//
//   weight_replay --file=FILE --arm=ours|naive|half|half_predicted|window|lru|mmap|mmap_ahead
//
// Makes the file when it is not there.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "bench/activation_trace.h"
#include "bench/measure.h"
#include "bench/memory_limit.h"
#include "index/kv_convert.h"
#include "io/unique_fd.h"
#include "nlohmann/json.hpp"
#include "runtime/bundle_writer.h"
#include "runtime/weight_pager.h"

ABSL_FLAG(std::string, file, "", "the bundle file");
ABSL_FLAG(std::string, arm, "ours", "how weights are read");
ABSL_FLAG(uint32_t, layers, 12, "of the file, when it is made");
ABSL_FLAG(uint32_t, neurons, 16384, "of a layer; the default is OPT-6.7B's");
ABSL_FLAG(uint32_t, width, 4096, "of the model; the default is OPT-6.7B's");
ABSL_FLAG(bool, gated, false, "three parts a neuron instead of two");
ABSL_FLAG(bool, unbundled, false, "each part in an area of its own");
ABSL_FLAG(double, dram_share, 0.5, "of the weights that memory has room for");
ABSL_FLAG(size_t, tokens, 20, "to measure");
ABSL_FLAG(size_t, warmup, 40, "tokens before those");
ABSL_FLAG(double, pinned_share, 0.5, "of memory; arms ours and unbundled");
ABSL_FLAG(double, predicted_ahead, 0.9,
          "share of a layer's neurons that a prefetch knows a layer earlier, as many as it lacks "
          "being wrong; 0: no prefetch. Arm ours");
ABSL_FLAG(size_t, depth, 64, "reads in the device");
ABSL_FLAG(std::string, profile, "", "device profile");
ABSL_FLAG(size_t, threads, 0, "that compute; 0: one for each processor");
ABSL_FLAG(uint64_t, seed, 1, "of the trace");

namespace terrace {
namespace {

constexpr size_t kCalibrationTokens = 500;
// What a process needs beside the weights, in the limit of the mapped file too.
constexpr uint64_t kOtherBytes = uint64_t{64} << 20;

ActivationTraceParameters TraceParameters(const BundleShape& shape) {
  return {.neurons = shape.neurons};
}

// ---- The file.

// Weights and inputs are positive, so that every neuron that the trace names fires.
void MakeFile(const std::string& path) {
  const BundleShape shape = {
      .layers = absl::GetFlag(FLAGS_layers),
      .experts = 1,
      .neurons = absl::GetFlag(FLAGS_neurons),
      .width = absl::GetFlag(FLAGS_width),
      .gated = absl::GetFlag(FLAGS_gated),
      .activation = Activation::kRelu,
      .dtype = KvDtype::kFloat16,
      .layout = absl::GetFlag(FLAGS_unbundled) ? BundleLayout::kUnbundled : BundleLayout::kBundled,
      .group_neurons = 1};
  BundleTables tables;
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    ActivationTrace text(TraceParameters(shape), layer, /*text_seed=*/999);
    std::vector<float> fired(shape.neurons);
    for (size_t token = 0; token < kCalibrationTokens; ++token) {
      for (const uint32_t neuron : text.Next()) fired[neuron] += 1.0f / kCalibrationTokens;
    }
    tables.frequency.insert(tables.frequency.end(), fired.begin(), fired.end());
  }
  for (float& share : tables.frequency) share = std::min(share, 1.0f);
  // One stretch of random weights, taken from another start for each neuron.
  std::vector<float> floats(2 * shape.bundle_bytes() / 2);
  std::mt19937_64 random(1);
  std::uniform_real_distribution<float> uniform(0.0f, 0.02f);
  for (float& value : floats) value = uniform(random);
  std::vector<std::byte> bytes(floats.size() * 2);
  EncodeKv(floats.data(), KvDtype::kFloat32, KvDtype::kFloat16, floats.size(), bytes.data());
  OrDie(WriteBundleFile(
      path, shape, std::move(tables), [&](const BundleRun& run, absl::Span<std::byte> bundles) {
        const size_t one = shape.bundle_bytes();
        for (uint32_t i = 0; i < run.places; ++i) {
          const size_t start = (run.unit * 7919 + run.first_place + i) % (one / 2);
          std::copy_n(bytes.data() + 2 * start, one, bundles.data() + i * one);
        }
        return absl::OkStatus();
      }));
}

// ---- The trace.

struct Trace {
  std::vector<std::vector<std::vector<uint32_t>>> firing;   // [tokens][layers]
  std::vector<std::vector<std::vector<uint32_t>>> guessed;  // a layer ahead
};

// Most of those that will fire, and as many wrong ones as are missing: `others`, which fired for a
// token of another text, so they are those that fire often.
std::vector<uint32_t> Guess(const std::vector<uint32_t>& firing,
                            const std::vector<uint32_t>& others, double known,
                            std::mt19937_64& random) {
  std::vector<uint32_t> guessed;
  std::bernoulli_distribution knows(known);
  for (const uint32_t neuron : firing) {
    if (knows(random)) guessed.push_back(neuron);
  }
  std::vector<uint32_t> wrong;
  std::set_difference(others.begin(), others.end(), firing.begin(), firing.end(),
                      std::back_inserter(wrong));
  std::shuffle(wrong.begin(), wrong.end(), random);
  wrong.resize(std::min(wrong.size(), firing.size() - guessed.size()));
  guessed.insert(guessed.end(), wrong.begin(), wrong.end());
  return guessed;
}

Trace MakeTrace(const BundleShape& shape, size_t tokens) {
  Trace trace;
  std::vector<ActivationTrace> layers;
  std::vector<ActivationTrace> other_texts;
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    layers.emplace_back(TraceParameters(shape), layer, absl::GetFlag(FLAGS_seed));
    other_texts.emplace_back(TraceParameters(shape), layer, absl::GetFlag(FLAGS_seed) + 1);
  }
  std::mt19937_64 random(absl::GetFlag(FLAGS_seed));
  for (size_t token = 0; token < tokens; ++token) {
    trace.firing.emplace_back();
    trace.guessed.emplace_back();
    for (uint32_t layer = 0; layer < shape.layers; ++layer) {
      trace.firing.back().push_back(layers[layer].Next());
      trace.guessed.back().push_back(Guess(trace.firing.back().back(), other_texts[layer].Next(),
                                           absl::GetFlag(FLAGS_predicted_ahead), random));
    }
  }
  return trace;
}

// ---- Arms.

WeightPagerOptions OptionsOf(const std::string& arm, uint64_t dram_bytes) {
  WeightPagerOptions options;
  options.dram_bytes = dram_bytes;
  options.depth = absl::GetFlag(FLAGS_depth);
  options.prefetch_depth = absl::GetFlag(FLAGS_depth);
  options.threads = absl::GetFlag(FLAGS_threads);
  options.pinned_share = 0;
  if (arm == "ours") options.pinned_share = absl::GetFlag(FLAGS_pinned_share);
  if (arm == "half" || arm == "half_predicted") {
    options.pinned_share = 1;
    options.pin_hottest = false;
  }
  if (arm == "window5") options.window_tokens = 5;
  if (arm == "lru" || arm == "window5") options.max_overread = 0;
  if (!absl::GetFlag(FLAGS_profile).empty()) {
    options.profile = OrDie(ReadDeviceProfile(absl::GetFlag(FLAGS_profile)));
  }
  return options;
}

nlohmann::json Difference(const WeightPagerStats& a, const WeightPagerStats& b, double tokens) {
  const auto per_token = [tokens](auto before, auto after) {
    return (static_cast<double>(after) - static_cast<double>(before)) / tokens;
  };
  return {{"io_seconds", per_token(a.io_seconds, b.io_seconds)},
          {"wait_seconds", per_token(a.wait_seconds, b.wait_seconds)},
          {"management_seconds", per_token(a.management_seconds, b.management_seconds)},
          {"compute_seconds", per_token(a.compute_seconds, b.compute_seconds)},
          {"verify_thread_seconds", per_token(a.verify_seconds, b.verify_seconds)},
          {"read_bytes", per_token(a.read_bytes, b.read_bytes)},
          {"wanted_bytes", per_token(a.wanted_bytes, b.wanted_bytes)},
          {"reads", per_token(a.reads, b.reads)},
          {"required_rows", per_token(a.required_rows, b.required_rows)},
          {"missed_rows", per_token(a.missed_rows, b.missed_rows)},
          {"joined_rows", per_token(a.joined_rows, b.joined_rows)},
          {"prefetched_rows", per_token(a.prefetched_rows, b.prefetched_rows)},
          {"used_prefetches", per_token(a.used_prefetches, b.used_prefetches)},
          {"dropped_prefetches", per_token(a.dropped_prefetches, b.dropped_prefetches)},
          {"moved_rows", per_token(a.moved_rows, b.moved_rows)}};
}

nlohmann::json RunPager(std::shared_ptr<const BundleFile> file, const std::string& arm,
                        const Trace& trace, uint64_t dram_bytes) {
  const BundleShape& shape = file->shape();
  const auto pager = OrDie(WeightPager::Open(file, OptionsOf(arm, dram_bytes)));
  const bool dense = arm == "naive" || arm == "half";
  const bool prefetch = arm == "ours" && absl::GetFlag(FLAGS_predicted_ahead) > 0;
  const std::vector<float> x(shape.width, 0.01f);
  std::vector<float> out(shape.width);
  const size_t warmup = std::min(absl::GetFlag(FLAGS_warmup), trace.firing.size() - 1);
  WeightPagerStats before;
  absl::Time start = absl::Now();
  for (size_t token = 0; token < trace.firing.size(); ++token) {
    if (token == warmup) {
      before = pager->Stats();
      start = absl::Now();
    }
    pager->BeginToken();
    for (uint32_t layer = 0; layer < shape.layers; ++layer) {
      if (dense) {
        OrDie(pager->DenseFfn(layer, x, absl::MakeSpan(out)));
        continue;
      }
      OrDie(pager->Require(layer, trace.firing[token][layer]));
      if (prefetch && layer + 1 < shape.layers) {
        pager->Prefetch(layer + 1, trace.guessed[token][layer + 1]);
      }
      OrDie(pager->Ffn(layer, x, absl::MakeSpan(out)));
    }
  }
  const auto tokens = static_cast<double>(trace.firing.size() - warmup);
  const WeightPagerStats after = pager->Stats();
  nlohmann::json result = Difference(before, after, tokens);
  result["token_seconds"] = absl::ToDoubleSeconds(absl::Now() - start) / tokens;
  result["window_tokens"] = after.window_tokens;
  result["memory_bytes"] = pager->memory_bytes();
  result["pinned_rows"] = after.pinned_rows;
  result["capacity_rows"] = after.capacity_rows;
  result["device"] = pager->device_info().engine_setup;
  return result;
}

// Rows where the file is mapped, and the kernel decides which pages stay in memory.
nlohmann::json RunMapped(std::shared_ptr<const BundleFile> file, bool ahead, const Trace& trace) {
  const BundleShape& shape = file->shape();
  const UniqueFd fd(::open(file->path().c_str(), O_RDONLY | O_CLOEXEC));
  void* const map = ::mmap(nullptr, file->file_bytes(), PROT_READ, MAP_SHARED, fd.get(), 0);
  if (map == MAP_FAILED) OrDie(absl::ErrnoToStatus(errno, "mmap"));
  ::madvise(map, file->file_bytes(), MADV_RANDOM);
  auto* const bytes = static_cast<std::byte*>(map);
  const WeightLayout layout(shape, {});
  ComputePool pool(absl::GetFlag(FLAGS_threads));
  SparseFfn ffn(*file, layout, pool);
  const std::vector<float> x(shape.width, 0.01f);
  std::vector<float> out(shape.width);
  std::vector<float> scales(shape.neurons * shape.group_neurons);
  std::vector<FfnGroup> groups;
  const size_t warmup = std::min(absl::GetFlag(FLAGS_warmup), trace.firing.size() - 1);
  absl::Time start = absl::Now();
  for (size_t token = 0; token < trace.firing.size(); ++token) {
    if (token == warmup) start = absl::Now();
    for (uint32_t layer = 0; layer < shape.layers; ++layer) {
      groups.clear();
      for (const uint32_t place : trace.firing[token][layer]) {
        std::byte* const row = bytes + shape.GroupOffset(layer, shape.group_of(place));
        if (ahead) ::madvise(row, shape.group_bytes(), MADV_WILLNEED);
        groups.push_back({.bytes = row,
                          .group = shape.group_of(place),
                          .scales = scales.data() + groups.size() * shape.group_neurons});
      }
      std::fill(out.begin(), out.end(), 0.0f);
      ffn.Activate(layer, {.x = x, .expert_weights = {}, .tokens = 1}, absl::MakeSpan(groups));
      ffn.AddDown(groups, 1, absl::MakeSpan(out));
    }
  }
  const auto tokens = static_cast<double>(trace.firing.size() - warmup);
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start) / tokens;
  ::munmap(map, file->file_bytes());
  return {{"token_seconds", seconds}};
}

// ---- One run, in a process of its own, so that its memory can be limited and measured.

void Run(const std::string& path, const std::string& arm, bool limited) {
  const std::shared_ptr<const BundleFile> file = OrDie(BundleFile::Open(path));
  const BundleShape& shape = file->shape();
  const Trace trace = MakeTrace(
      shape, absl::GetFlag(FLAGS_warmup) + std::max<size_t>(1, absl::GetFlag(FLAGS_tokens)));
  const auto dram_bytes = static_cast<uint64_t>(static_cast<double>(shape.data_bytes()) *
                                                absl::GetFlag(FLAGS_dram_share));
  rusage before = {};
  ::getrusage(RUSAGE_SELF, &before);
  const bool mapped = arm == "mmap" || arm == "mmap_ahead";
  nlohmann::json result =
      mapped ? RunMapped(file, arm == "mmap_ahead", trace) : RunPager(file, arm, trace, dram_bytes);
  rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  result["arm"] = arm;
  result["file"] = shape.ToString();
  result["trace"] = TraceParameters(shape).ToString();
  result["group_bytes"] = shape.group_bytes();
  result["dram_bytes"] = dram_bytes;
  result["peak_resident_bytes"] = static_cast<uint64_t>(usage.ru_maxrss) << 10;
  result["resident_before_bytes"] = static_cast<uint64_t>(before.ru_maxrss) << 10;
  result["limited_by_cgroup"] = limited;
  std::printf("%s\n", result.dump().c_str());
}

int Main() {
  const std::string path = absl::GetFlag(FLAGS_file);
  const std::string arm = absl::GetFlag(FLAGS_arm);
  const std::vector<std::string> arms = {"ours", "naive",   "half", "half_predicted", "window",
                                         "lru",  "window5", "mmap", "mmap_ahead"};
  if (path.empty() || std::find(arms.begin(), arms.end(), arm) == arms.end()) {
    std::fprintf(stderr, "weight_replay: --file and an --arm of %s\n",
                 absl::StrJoin(arms, ", ").c_str());
    return 2;
  }
  if (::access(path.c_str(), F_OK) != 0) MakeFile(path);
  std::unique_ptr<MemoryLimit> limit;
  if (arm == "mmap" || arm == "mmap_ahead") {
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED);
    const uint64_t data = OrDie(BundleFile::Open(path))->shape().data_bytes();
    const auto share =
        static_cast<uint64_t>(static_cast<double>(data) * absl::GetFlag(FLAGS_dram_share));
    limit = MemoryLimit::Create(share + kOtherBytes);
  }
  std::fflush(stdout);
  const pid_t child = ::fork();
  if (child == 0) {
    const bool limited = limit != nullptr && limit->Join();
    Run(path, arm, limited);
    std::fflush(stdout);
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  return terrace::Main();
}
