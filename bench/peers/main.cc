// How does Terrace compare with what a KV cache is otherwise kept in, under one memory budget? Puts
// and gets the blocks of a replay on Terrace, RocksDB with BlobDB, LMDB, a file a block and a
// mapped file, each in a process of its own, and verifies every block.
//
//   terrace replay ... --export-ops OPS
//   peers --ops=OPS --dir=DIR

#include <sys/utsname.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "bench/peers/report.h"
#include "bench/peers/runner.h"
#include "bench/peers/store_list.h"
#include "bench/peers/workload.h"
#include "io/aligned_buffer.h"

ABSL_FLAG(std::string, ops, "",
          "operations of `terrace replay --export-ops`; without, a made-up mix");
ABSL_FLAG(std::string, dir, "", "where the stores put their files; $TMPDIR or /tmp without");
ABSL_FLAG(std::string, stores, "", "names of stores, comma-separated; all that were built without");
ABSL_FLAG(size_t, blocks, 32000, "distinct blocks at most");
ABSL_FLAG(size_t, block_kib, 64, "KiB of a block, a multiple of 4");
ABSL_FLAG(size_t, memory_mib, 256, "MiB of memory of each store, page cache included");
ABSL_FLAG(bool, limit_memory, true, "hold each store to that by a cgroup");
ABSL_FLAG(size_t, max_batch, 32, "blocks of one call at most; longer gets are split");
ABSL_FLAG(size_t, uniform_batches, 1000, "batches of 16 blocks in each uniform phase");
ABSL_FLAG(size_t, rounds, 3, "runs of each store, in rotating order; medians are shown");
ABSL_FLAG(std::string, json, "", "file that gets the medians as JSON");

namespace terrace::peers {
namespace {

int Fail(absl::string_view message) {
  std::fprintf(stderr, "peers: %s\n", std::string(message).c_str());
  return 1;
}

std::string Directory() {
  if (std::string dir = absl::GetFlag(FLAGS_dir); !dir.empty()) return dir;
  const char* const dir = std::getenv("TMPDIR");
  return dir != nullptr ? dir : "/tmp";
}

// The stores that were asked for; those that were not built are named and left out.
absl::StatusOr<std::vector<StoreKind>> ChooseStores() {
  const std::vector<std::string> names =
      absl::StrSplit(absl::GetFlag(FLAGS_stores), ',', absl::SkipEmpty());
  std::vector<StoreKind> chosen;
  for (const StoreKind& kind : AllStores()) {
    if (!names.empty() && std::find(names.begin(), names.end(), kind.name) == names.end()) continue;
    std::printf("  %-12s %s\n", kind.name.c_str(), kind.note.c_str());
    if (kind.open != nullptr) chosen.push_back(kind);
  }
  if (chosen.empty() || (!names.empty() && chosen.size() < names.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("--stores=", absl::GetFlag(FLAGS_stores), ": unknown or not built"));
  }
  return chosen;
}

std::vector<Phase> MakePhases(const Workload& workload) {
  std::vector<Phase> phases = {{Phase::Kind::kMix, 1}};
  for (const Phase::Kind kind : {Phase::Kind::kTraceGets, Phase::Kind::kUniformGets}) {
    const bool traced = kind == Phase::Kind::kTraceGets;
    if ((traced ? workload.trace_gets() : workload.uniform_gets()).empty()) continue;
    for (const int threads : {1, 2, 8}) phases.push_back({kind, threads});
  }
  return phases;
}

std::vector<StoreRounds> RunRounds(absl::Span<const StoreKind> kinds, const Workload& workload,
                                   absl::Span<const Phase> phases, const RunOptions& options) {
  std::vector<StoreRounds> stores;
  for (const StoreKind& kind : kinds) stores.push_back({kind.name, {}, {}});
  const size_t rounds = absl::GetFlag(FLAGS_rounds);
  for (size_t round = 0; round < rounds; ++round) {
    // A disk that speeds up or slows down favours none of them for ever.
    for (size_t turn = 0; turn < kinds.size(); ++turn) {
      const size_t store = (round + turn) % kinds.size();
      if (!stores[store].error.empty()) continue;
      std::fprintf(stderr, "round %zu of %zu: %s\n", round + 1, rounds, kinds[store].name.c_str());
      absl::StatusOr<StoreResult> result = RunStore(kinds[store], workload, phases, options);
      if (result.ok()) {
        stores[store].rounds.push_back(*std::move(result));
      } else {
        stores[store].error = std::string(result.status().message());
      }
    }
  }
  return stores;
}

void PrintSetting(const Workload& workload, absl::Span<const StoreRounds> stores) {
  utsname system = {};
  ::uname(&system);
  std::printf("%s %s, %u CPUs; %zu blocks of %zu KiB, %zu MiB of memory a store\n", system.sysname,
              system.release, std::thread::hardware_concurrency(), workload.block_count(),
              workload.block_bytes() >> 10, absl::GetFlag(FLAGS_memory_mib));
  size_t gets = 0;
  for (const Batch& batch : workload.trace_gets()) gets += batch.size();
  std::printf("%zu gets as traced, of %zu blocks together\n", workload.trace_gets().size(), gets);
  bool limited = true;
  for (const StoreRounds& store : stores) {
    for (const StoreResult& round : store.rounds) limited = limited && round.limited;
  }
  std::printf("memory: %s\n\n",
              limited ? "limited by a cgroup, page cache included"
                      : "NOT LIMITED (no cgroup that this user may make, or not asked for): page "
                        "cache comes on top "
                        "of the budget, and peaks are without it, so the stores that use it "
                        "(lmdb, files-ahead, mmap) read from memory what they should not have");
}

int Run() {
  const size_t block_bytes = absl::GetFlag(FLAGS_block_kib) << 10;
  const size_t max_batch = absl::GetFlag(FLAGS_max_batch);
  if (block_bytes == 0 || !IsPageAligned(block_bytes)) return Fail("--block_kib: not 4, 8, ...");
  if (max_batch == 0 || absl::GetFlag(FLAGS_rounds) == 0) {
    return Fail("--max_batch and --rounds: at least 1");
  }
  const RunOptions options = {.dir = Directory(),
                              .memory_bytes = uint64_t{absl::GetFlag(FLAGS_memory_mib)} << 20,
                              .limit_memory = absl::GetFlag(FLAGS_limit_memory)};
  const absl::StatusOr<Workload> workload =
      Workload::Make({.ops_path = absl::GetFlag(FLAGS_ops),
                      .max_blocks = absl::GetFlag(FLAGS_blocks),
                      .block_bytes = block_bytes,
                      .max_batch = max_batch,
                      .uniform_batches = absl::GetFlag(FLAGS_uniform_batches)});
  if (!workload.ok()) return Fail(workload.status().message());
  const absl::StatusOr<std::vector<StoreKind>> kinds = ChooseStores();
  if (!kinds.ok()) return Fail(kinds.status().message());

  const std::vector<Phase> phases = MakePhases(*workload);
  const std::vector<StoreRounds> stores = RunRounds(*kinds, *workload, phases, options);
  PrintSetting(*workload, stores);
  const ReportInput report = {.phases = phases, .stores = stores, .block_bytes = block_bytes};
  std::fputs(FormatTable(report).c_str(), stdout);
  if (const std::string json = absl::GetFlag(FLAGS_json); !json.empty()) {
    std::ofstream file(json);
    file << FormatJson(report) << std::flush;
    if (!file) return Fail(absl::StrCat(json, ": cannot write"));
  }
  if (!AllVerified(stores)) return Fail("a store failed or served wrong blocks");
  std::printf("verified: every block of every store\n");
  return 0;
}

}  // namespace
}  // namespace terrace::peers

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "compares Terrace with other block stores: peers --ops=OPS --dir=DIR");
  absl::ParseCommandLine(argc, argv);
  return terrace::peers::Run();
}
