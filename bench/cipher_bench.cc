// What does sealing and opening a KV block of 64 KiB cost, compared with checksumming its pages?
//
// The argument is how many blocks take turns: 64 (4 MiB) mostly stay in the processor's caches,
// 4096 (256 MiB) come from memory.

#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "io/aligned_buffer.h"
#include "io/block_cipher.h"
#include "io/checksum.h"

namespace terrace {
namespace {

constexpr size_t kBlockBytes = size_t{64} << 10;

// As long as what says which block it is: an id, a namespace and an epoch.
constexpr std::byte kAssociated[32] = {};

// `state.range(0)` blocks that take turns.
class Blocks {
 public:
  explicit Blocks(const benchmark::State& state)
      : memory_(*AlignedBuffer::Create(static_cast<size_t>(state.range(0)) * kBlockBytes)) {
    std::memset(memory_.data(), 0x5a, memory_.size());
  }
  size_t count() const { return memory_.size() / kBlockBytes; }
  absl::Span<std::byte> at(size_t index) const {
    return memory_.span().subspan(index * kBlockBytes, kBlockBytes);
  }
  size_t After(size_t index) const { return index + 1 < count() ? index + 1 : 0; }

 private:
  AlignedBuffer memory_;
};

std::unique_ptr<BlockCipher> MakeCipher() {
  constexpr std::byte kKey[CipherKey::kBytes] = {std::byte{1}};
  return *BlockCipher::Create(*CipherKey::Create(kKey));
}

void CountBytes(benchmark::State& state) {
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(kBlockBytes));
}

void Checksum(benchmark::State& state) {
  const Blocks blocks(state);
  PageChecksum checksums[kBlockBytes / kPageBytes];
  size_t index = 0;
  for (auto _ : state) {
    ChecksumPages(blocks.at(index), absl::MakeSpan(checksums));
    benchmark::DoNotOptimize(checksums);
    index = blocks.After(index);
  }
  CountBytes(state);
}

void Seal(benchmark::State& state) {
  const Blocks blocks(state);
  const auto cipher = MakeCipher();
  std::vector<std::byte> sealed(kBlockBytes);
  BlockSeal seal;
  size_t index = 0;
  for (auto _ : state) {
    const absl::Status status =
        cipher->Seal(kAssociated, blocks.at(index), absl::MakeSpan(sealed), seal);
    if (!status.ok()) return state.SkipWithError(status.ToString().c_str());
    index = blocks.After(index);
  }
  CountBytes(state);
}

// Opening in place consumes the sealed block, so blocks are sealed again outside the measured time
// whenever all of them are open.
void OpenInPlace(benchmark::State& state) {
  const Blocks blocks(state);
  const auto cipher = MakeCipher();
  std::vector<BlockSeal> seals(blocks.count());
  size_t index = 0;
  for (auto _ : state) {
    if (index == 0) {
      state.PauseTiming();
      for (size_t i = 0; i < blocks.count(); ++i) {
        const absl::Status status = cipher->Seal(kAssociated, blocks.at(i), blocks.at(i), seals[i]);
        if (!status.ok()) return state.SkipWithError(status.ToString().c_str());
      }
      state.ResumeTiming();
    }
    const absl::Status status =
        cipher->Open(kAssociated, blocks.at(index), seals[index], blocks.at(index));
    if (!status.ok()) return state.SkipWithError(status.ToString().c_str());
    index = blocks.After(index);
  }
  CountBytes(state);
}

BENCHMARK(Checksum)->Arg(64)->Arg(4096);
BENCHMARK(Seal)->Arg(64)->Arg(4096);
BENCHMARK(OpenInPlace)->Arg(64)->Arg(4096);

}  // namespace
}  // namespace terrace

BENCHMARK_MAIN();
