// How long does a tier take to open, a GiB? Fills one, flushes and closes it, and opens it again
// with its footers and without: those are then overwritten, so that every segment has to be walked
// and what is not known to be durable verified. The caches of the kernel do not count: I/O is
// direct where the filesystem allows.
//
//   reopen DIR [PAIRS [MIB]]    9 pairs and 8192 MiB unless given

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/measure.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr size_t kBlockBytes = size_t{64} << 10;

TierManagerOptions Options(const std::string& dir, uint64_t bytes, bool reuse) {
  TierManagerOptions options;
  options.block_bytes = kBlockBytes;
  options.dram_bytes = uint64_t{64} << 20;
  options.nvme_bytes = bytes;
  options.nvme_dir = dir;
  options.reuse = reuse;
  return options;
}

void Fill(const std::string& dir, uint64_t bytes) {
  auto tiers = OrDie(TierManager::Open(Options(dir, bytes, false)));
  std::vector<std::byte> block(kBlockBytes);
  // All but the reserve and a little more.
  const uint64_t blocks = tiers->Stats().tiers[2].slots * 49 / 50;
  for (uint64_t number = 0; number < blocks; ++number) {
    for (size_t at = 0; at < block.size(); at += kPageBytes) {
      std::memcpy(block.data() + at, &number, sizeof(number));
    }
    const BlockWrite write = {.id = {1, number}, .bytes = block};
    OrDie(tiers->Put({&write, 1}));
  }
  OrDie(tiers->Flush());
}

RecoveryReport Reopen(const std::string& dir, uint64_t bytes) {
  auto tiers = OrDie(TierManager::Open(Options(dir, bytes, true)));
  return tiers->Stats().recovery;
}

// Overwrites the footers with what they hold, or with zeros.
void ReplaceFooters(const std::string& path, const NvmeGeometry& geometry,
                    std::vector<std::string>& footers, bool blank) {
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) OrDie(absl::ErrnoToStatus(errno, path));
  const size_t size = size_t{geometry.footer_pages} * kPageBytes;
  footers.resize(geometry.segment_count);
  for (uint32_t i = 0; i < geometry.segment_count; ++i) {
    const off_t at = static_cast<off_t>(geometry.FooterPage(SegmentIndex{i}) * kPageBytes);
    if (footers[i].empty()) {
      footers[i].resize(size);
      if (pread(file, footers[i].data(), size, at) != static_cast<ssize_t>(size)) std::abort();
    }
    const std::string zeros(size, '\0');
    const std::string& bytes = blank ? zeros : footers[i];
    if (pwrite(file, bytes.data(), size, at) != static_cast<ssize_t>(size)) std::abort();
  }
  if (fsync(file) != 0) std::abort();
  close(file);
}

int Run(const std::string& dir, int pairs, uint64_t bytes) {
  const std::string path = absl::StrCat(dir, "/terrace.kv");
  const NvmeGeometry geometry = OrDie(PlanNvmeGeometry(bytes, kBlockBytes));
  Fill(dir, bytes);
  std::vector<std::string> footers;
  std::vector<double> with;
  std::vector<double> without;
  const double gib = static_cast<double>(bytes) / (uint64_t{1} << 30);
  RecoveryReport walked;
  for (int pair = 0; pair < pairs; ++pair) {
    for (const bool blank : {pair % 2 == 0, pair % 2 != 0}) {
      ReplaceFooters(path, geometry, footers, blank);
      const RecoveryReport report = Reopen(dir, bytes);
      (blank ? without : with).push_back(report.seconds);
      if (blank) walked = report;
      std::printf("%s footers: %.3f s, %llu blocks, %llu sealed and %llu walked segments\n",
                  blank ? "without" : "with   ", report.seconds,
                  static_cast<unsigned long long>(report.blocks),
                  static_cast<unsigned long long>(report.sealed_segments),
                  static_cast<unsigned long long>(report.unsealed_segments));
    }
  }
  std::printf("%s\n", SystemText().c_str());
  std::printf(
      "%.2f GiB: with footers %.3f s (%.4f s/GiB), without %.3f s (%.4f s/GiB, "
      "%.2f GiB verified)\n",
      gib, Quantile(with, 0.5), Quantile(with, 0.5) / gib, Quantile(without, 0.5),
      Quantile(without, 0.5) / gib,
      static_cast<double>(walked.verified_bytes) / (uint64_t{1} << 30));
  std::remove(path.c_str());
  return 0;
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4) {
    std::fprintf(stderr, "usage: reopen DIR [PAIRS [MIB]]\n");
    return 2;
  }
  const int pairs = argc > 2 ? std::atoi(argv[2]) : 9;
  const uint64_t mib = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 8192;
  if (pairs < 1 || mib < 4) {
    std::fprintf(stderr, "reopen: PAIRS must be positive and MIB at least 4\n");
    return 2;
  }
  return terrace::Run(argv[1], pairs, mib << 20);
}
