// Does a context far beyond memory fit its budgets?
//
// usage: long_context DIR TOKENS LAYERS
//
// Appends TOKENS made-up tokens to LAYERS layers of 8 KV heads x 128 (fp16), 256 MiB of DRAM and 6
// GiB of NVMe in DIR, decodes 16 tokens with infllm, saves the context, loads it and compares a
// step of the two. Prints seconds and the peak memory beside the budgets. Exit status 1 when the
// peak is more than 256 MiB above them.

#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "bench/made_up_kv.h"
#include "bench/measure.h"
#include "runtime/runtime.h"

namespace terrace {
namespace {

constexpr uint64_t kAllowedBytes = uint64_t{256} << 20;

double SecondsNow() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

RuntimeOptions Options(const char* directory, size_t layers) {
  RuntimeOptions options;
  options.shape = {.layers = static_cast<uint32_t>(layers),
                   .query_heads = kBenchQueryHeads,
                   .kv_heads = kBenchKvHeads,
                   .head_dim = kBenchHeadDim,
                   .key_state = KeyState::kBeforeRope,
                   .rope = {.theta = 500000}};
  options.lookup = {.kind = LookupKind::kInfllm, .blocks = 16};
  options.active_contexts = 2;  // the one that is saved and the one that is loaded
  options.tiers.dram_bytes = uint64_t{256} << 20;
  options.tiers.nvme_bytes = uint64_t{6} << 30;
  options.tiers.nvme_dir = directory;
  return options;
}

// One token through every layer; the attention of the last.
std::vector<float> Step(Context& context, size_t layers, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> row(kBenchKvHeads * kBenchHeadDim);
  std::vector<float> queries(kBenchQueryHeads * kBenchHeadDim);
  std::vector<float> out(queries.size());
  for (size_t layer = 0; layer < layers; ++layer) {
    for (float& element : row) element = normal(random);
    for (float& query : queries) query = normal(random);
    const int64_t position = context.tokens(layer);
    OrDie(context.Append(layer, {.keys = row.data(), .values = row.data(), .tokens = 1}));
    OrDie(context.Attend(layer, {.queries = queries.data(), .positions = {&position, 1}},
                         {.out = absl::MakeSpan(out)}));
  }
  return out;
}

int Main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: long_context DIR TOKENS LAYERS\n");
    return 2;
  }
  const uint64_t tokens = std::strtoull(argv[2], nullptr, 10);
  const size_t layers = std::strtoull(argv[3], nullptr, 10);
  const auto runtime = OrDie(Runtime::Open(Options(argv[1], layers)));
  const double start = SecondsNow();
  auto context = OrDie(runtime->NewContext());
  MadeUpKv().Fill(*context, layers, tokens);
  const double filled = SecondsNow();
  for (uint64_t step = 0; step < 16; ++step) Step(*context, layers, step);
  const double decoded = SecondsNow();
  OrDie(context->Save("long"));
  const double saved = SecondsNow();
  const auto loaded = OrDie(runtime->Load("long"));
  const double done = SecondsNow();
  const bool same = Step(*context, layers, 99) == Step(*loaded, layers, 99);

  const RuntimeStats stats = runtime->Stats();
  const uint64_t budget = runtime->options().tiers.dram_bytes + stats.window_bytes;
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const uint64_t peak = static_cast<uint64_t>(usage.ru_maxrss) << 10;
  constexpr double kMib = 1 << 20;
  std::printf("%s: %lld tokens x %zu layers, %.2f GiB of KV on NVMe\n", SystemText().c_str(),
              static_cast<long long>(context->tokens()), layers,
              static_cast<double>(stats.tiers.nvme_peak_bytes) / (1 << 30));
  std::printf("append %.1f s, 16 decode steps %.3f s, save %.2f s, load %.2f s\n", filled - start,
              decoded - filled, saved - decoded, done - saved);
  std::printf("peak memory %.0f MiB; DRAM and windows %.0f MiB; lost blocks %llu; loaded %s\n",
              static_cast<double>(peak) / kMib, static_cast<double>(budget) / kMib,
              static_cast<unsigned long long>(context->Stats().Total().AllLookups().lost_blocks),
              same ? "equal" : "DIFFERENT");
  return same && peak <= budget + kAllowedBytes ? 0 : 1;
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) { return terrace::Main(argc, argv); }
