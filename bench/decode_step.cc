// What does a decode step of one layer cost with each lookup, over the same tiers?
//
// usage: decode_step POLICY DIR TOKENS DRAM_SHARE STEPS [THREADS [HBM_SHARE [cpu|cuda]]]
//
// Fills a context of TOKENS tokens, 8 KV heads with 4 query heads each, head_dim 128, fp16, with
// made-up keys and values; DRAM holds DRAM_SHARE of them (1: all, and DIR is not used), NVMe the
// rest. Then runs STEPS decode steps, whose queries drift (each is 0.95 of the one before, plus
// noise). With HBM_SHARE, HBM holds so much of the keys and values, beside the window, and
// attention runs there: on a CUDA device, or emulated. Prints one line of JSON: seconds of a step
// (median), bytes that it attended to and fetched.
//
// POLICY is full, streaming, infllm or quest; lookups attend to 16 blocks of 128 tokens a KV head,
// with 64 sinks and a window of 512 tokens.

#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "bench/made_up_kv.h"
#include "bench/measure.h"
#include "runtime/runtime.h"

namespace terrace {
namespace {

double SecondsNow() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

RuntimeOptions Options(LookupKind kind, const std::string& directory, uint64_t tokens,
                       double dram_share, size_t threads, double hbm_share, bool cuda) {
  RuntimeOptions options;
  options.shape = {
      .layers = 1,
      .query_heads = kBenchQueryHeads,
      .kv_heads = kBenchKvHeads,
      .head_dim = kBenchHeadDim,
      .key_state = kind == LookupKind::kInfllm ? KeyState::kBeforeRope : KeyState::kAfterRope,
      .rope = {.theta = 500000}};
  options.lookup = {.kind = kind, .blocks = 16};
  options.threads = threads;
  options.active_contexts = 1;
  const uint64_t kv_bytes = options.shape.BlockBytes(tokens) * kBenchKvHeads;
  if (dram_share >= 1) {
    options.tiers.dram_bytes = kv_bytes + (64 << 20);
  } else {
    options.tiers.dram_bytes = static_cast<uint64_t>(static_cast<double>(kv_bytes) * dram_share);
    options.tiers.nvme_bytes = kv_bytes + kv_bytes / 4 + (256 << 20);
    options.tiers.nvme_dir = directory;
    // What a profile of a disk that streams fastest in large requests advises; fio's are as large.
    options.tiers.coalesce_read_bytes = 1 << 20;
  }
  if (hbm_share > 0) {
    options.tiers.hbm_device = cuda ? HbmDevice::kCuda : HbmDevice::kEmulated;
    options.tiers.hbm_bytes = static_cast<uint64_t>(static_cast<double>(kv_bytes) * hbm_share);
    options.tiers.hbm_bytes += options.HbmWindowBytes();
  }
  return options;
}

int Main(int argc, char** argv) {
  if (argc < 6) {
    std::fprintf(
        stderr,
        "usage: decode_step POLICY DIR TOKENS DRAM_SHARE STEPS [THREADS [HBM_SHARE [cpu|cuda]]]\n");
    return 2;
  }
  const LookupKind kind = OrDie(ParseLookupKind(argv[1]));
  const uint64_t tokens = std::strtoull(argv[3], nullptr, 10) / kBenchChunk * kBenchChunk;
  const double dram_share = std::strtod(argv[4], nullptr);
  const size_t steps = std::strtoull(argv[5], nullptr, 10);
  const size_t threads = argc > 6 ? std::strtoull(argv[6], nullptr, 10) : 0;
  const double hbm_share = argc > 7 ? std::strtod(argv[7], nullptr) : 0;
  const bool cuda = argc > 8 && std::string(argv[8]) == "cuda";
  if (tokens == 0 || steps == 0) {
    std::fprintf(stderr, "decode_step: TOKENS and STEPS must be positive\n");
    return 2;
  }
  const auto runtime =
      OrDie(Runtime::Open(Options(kind, argv[2], tokens, dram_share, threads, hbm_share, cuda)));
  const auto context = OrDie(runtime->NewContext());
  const double start = SecondsNow();
  MadeUpKv().Fill(*context, 1, tokens);
  if (dram_share < 1) OrDie(runtime->tiers().Flush());
  const double fill_seconds = SecondsNow() - start;

  std::mt19937_64 random(11);
  std::normal_distribution<float> normal;
  std::vector<float> queries(kBenchQueryHeads * kBenchHeadDim);
  for (float& query : queries) query = normal(random);
  std::vector<float> row(kBenchKvHeads * kBenchHeadDim);
  std::vector<float> out(queries.size());
  std::vector<double> seconds;
  ContextStats before;
  for (size_t step = 0; step < 2 * steps; ++step) {
    if (step == steps) before = context->Stats();
    for (float& query : queries)
      query = 0.95f * query + std::sqrt(1 - 0.95f * 0.95f) * normal(random);
    for (float& element : row) element = normal(random);
    const int64_t position = context->tokens();
    const double begin = SecondsNow();
    OrDie(context->Append(0, {.keys = row.data(), .values = row.data(), .tokens = 1}));
    OrDie(context->Attend(0, {.queries = queries.data(), .positions = {&position, 1}},
                          {.out = absl::MakeSpan(out)}));
    if (step >= steps) seconds.push_back(SecondsNow() - begin);
  }
  const LayerStats now = context->Stats().Total();
  const LayerStats then = before.Total();
  const LookupStats lookups = now.AllLookups();
  const LookupStats earlier = then.AllLookups();
  const double calls = static_cast<double>(steps);
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const double block = static_cast<double>(runtime->options().BlockBytes());
  std::printf(
      "{\"policy\": \"%s\", \"step_seconds\": %.6f, \"attended_bytes\": %.0f, \"fetched_bytes\": "
      "%.0f, \"lookup_seconds\": %.6f, \"wait_seconds\": %.6f, \"attend_seconds\": %.6f, "
      "\"missed_mass\": %.4f, \"lost_blocks\": %.0f, \"fill_seconds\": %.2f, \"peak_kib\": %ld}\n",
      argv[1], Quantile(seconds, 0.5),
      (static_cast<double>(lookups.blocks - earlier.blocks) * block +
       static_cast<double>(now.local_tokens - then.local_tokens) * 4 * kBenchHeadDim) /
          calls,
      static_cast<double>(lookups.fetched_bytes - earlier.fetched_bytes) / calls,
      (now.lookup_seconds - then.lookup_seconds) / calls,
      (now.wait_seconds - then.wait_seconds) / calls,
      (now.attend_seconds - then.attend_seconds) / calls,
      (lookups.missed_mass - earlier.missed_mass) /
          std::max<double>(
              1, static_cast<double>(lookups.missed_mass_queries - earlier.missed_mass_queries)),
      static_cast<double>(lookups.lost_blocks), fill_seconds, usage.ru_maxrss);
  return 0;
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) { return terrace::Main(argc, argv); }
