// How near does attention over keys and values in DRAM come to merely reading them?
//
// A decode step of one layer at 128K tokens: 8 KV heads with 4 query rows each, head_dim 128, 512
// MiB of fp16 or bf16, as one run a head or in blocks of 128 tokens. Each iteration runs attention
// and a read of the same bytes by as many threads, in alternating order; `of_stream` is the median
// of the ratios of their speeds, with its quartiles.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/types/span.h"
#include "bench/measure.h"
#include "index/kv_convert.h"
#include "io/aligned_buffer.h"
#include "runtime/attention_parallel.h"

namespace terrace {
namespace {

constexpr size_t kHeadDim = 128;
constexpr size_t kHeads = 8;
constexpr size_t kTokens = size_t{128} << 10;
constexpr size_t kGroup = 4;
constexpr size_t kRowBytes = kHeadDim * 2;
constexpr size_t kHeadBytes = 2 * kTokens * kRowBytes;

double SecondsNow() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<float> NormalFloats(size_t count) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> floats(count);
  for (float& value : floats) value = normal(random);
  return floats;
}

// Keys and values of all heads: random numbers that repeat every MiB.
AlignedBuffer MakeKv(KvDtype dtype) {
  constexpr size_t kPattern = size_t{1} << 20;
  AlignedBuffer memory = OrDie(AlignedBuffer::Create(kHeads * kHeadBytes));
  const std::vector<float> floats = NormalFloats(kPattern / 2);
  EncodeKv(floats.data(), KvDtype::kFloat32, dtype, floats.size(), memory.data());
  for (size_t at = kPattern; at < memory.size(); at += kPattern) {
    std::memcpy(memory.data() + at, memory.data(), kPattern);
  }
  return memory;
}

// The runs of one head: panels of keys and values of run_tokens tokens each.
std::vector<AttentionPart> MakeParts(const std::byte* head, KvDtype dtype, size_t run_tokens) {
  std::vector<AttentionPart> parts;
  for (size_t token = 0; token < kTokens; token += run_tokens) {
    const std::byte* keys = head + 2 * token * kRowBytes;
    parts.push_back({.run = {.keys = keys,
                             .values = keys + run_tokens * kRowBytes,
                             .tokens = run_tokens,
                             .dtype = dtype}});
  }
  return parts;
}

uint64_t SumOf(absl::Span<const std::byte> bytes) {
  constexpr size_t kSums = 8;
  typedef uint64_t Vector __attribute__((vector_size(32)));
  Vector sums[kSums] = {};
  for (size_t at = 0; at < bytes.size(); at += sizeof(sums)) {
    const auto* from = reinterpret_cast<const Vector*>(bytes.data() + at);
    for (size_t i = 0; i < kSums; ++i) sums[i] += from[i];
  }
  uint64_t total = 0;
  for (const Vector& sum : sums) total += sum[0] + sum[1] + sum[2] + sum[3];
  return total;
}

// Reads all bytes by `threads` threads, each its own stretch.
void Stream(absl::Span<const std::byte> bytes, size_t threads) {
  const size_t stretch = bytes.size() / threads;
  const auto read = [&](size_t i) {
    benchmark::DoNotOptimize(SumOf(bytes.subspan(i * stretch, stretch)));
  };
  std::vector<std::thread> others;
  for (size_t i = 1; i < threads; ++i) others.emplace_back(read, i);
  read(0);
  for (std::thread& other : others) other.join();
}

// Attention of all heads and what it needs.
class DecodeStep {
 public:
  DecodeStep(const AlignedBuffer& memory, KvDtype dtype, size_t run_tokens, size_t threads)
      : attention_(OrDie(ParallelAttention::Create({.head_dim = kHeadDim, .threads = threads}))),
        queries_(NormalFloats(kHeads * kGroup * kHeadDim)),
        out_(kHeads * kGroup * kHeadDim),
        lse_(kHeads * kGroup) {
    constexpr size_t kJobFloats = kGroup * kHeadDim;
    for (size_t head = 0; head < kHeads; ++head) {
      parts_.push_back(MakeParts(memory.data() + head * kHeadBytes, dtype, run_tokens));
      jobs_.push_back(
          {.queries = absl::MakeConstSpan(queries_).subspan(head * kJobFloats, kJobFloats),
           .parts = parts_.back(),
           .out = absl::MakeSpan(out_).subspan(head * kJobFloats, kJobFloats),
           .lse = absl::MakeSpan(lse_).subspan(head * kGroup, kGroup)});
    }
  }

  void Run() { attention_->Run(jobs_); }

 private:
  std::unique_ptr<ParallelAttention> attention_;
  std::vector<float> queries_;
  std::vector<float> out_;
  std::vector<float> lse_;
  std::vector<std::vector<AttentionPart>> parts_;
  std::vector<AttentionJob> jobs_;
};

void BM_Attention(benchmark::State& state, KvDtype dtype, size_t run_tokens) {
  const size_t threads = static_cast<size_t>(state.range(0));
  const AlignedBuffer memory = MakeKv(dtype);
  DecodeStep step(memory, dtype, run_tokens, threads);
  step.Run();
  Stream(memory.span(), threads);
  std::vector<double> attention_seconds;
  std::vector<double> stream_seconds;
  for (auto _ : state) {
    const auto attend = [&] {
      const double start = SecondsNow();
      step.Run();
      attention_seconds.push_back(SecondsNow() - start);
    };
    const auto stream = [&] {
      const double start = SecondsNow();
      Stream(memory.span(), threads);
      stream_seconds.push_back(SecondsNow() - start);
    };
    const bool attention_first = attention_seconds.size() % 2 == 0;
    if (attention_first) attend();
    stream();
    if (!attention_first) attend();
    state.SetIterationTime(attention_seconds.back());
  }
  std::vector<double> ratios;
  for (size_t i = 0; i < stream_seconds.size(); ++i) {
    ratios.push_back(stream_seconds[i] / attention_seconds[i]);
  }
  const double gigabytes = static_cast<double>(memory.size()) / 1e9;
  state.counters["GB/s"] = gigabytes / Quantile(attention_seconds, 0.5);
  state.counters["stream_GB/s"] = gigabytes / Quantile(stream_seconds, 0.5);
  state.counters["of_stream"] = Quantile(ratios, 0.5);
  state.counters["q1"] = Quantile(ratios, 0.25);
  state.counters["q3"] = Quantile(ratios, 0.75);
  state.counters["pairs"] = static_cast<double>(ratios.size());
}

void ByThreads(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgName("threads")->Arg(1)->Arg(2)->UseManualTime()->Unit(benchmark::kMillisecond);
}

BENCHMARK_CAPTURE(BM_Attention, fp16_one_run, KvDtype::kFloat16, kTokens)->Apply(ByThreads);
BENCHMARK_CAPTURE(BM_Attention, fp16_blocks, KvDtype::kFloat16, size_t{128})->Apply(ByThreads);
BENCHMARK_CAPTURE(BM_Attention, bf16_one_run, KvDtype::kBfloat16, kTokens)->Apply(ByThreads);
BENCHMARK_CAPTURE(BM_Attention, bf16_blocks, KvDtype::kBfloat16, size_t{128})->Apply(ByThreads);

}  // namespace
}  // namespace terrace

BENCHMARK_MAIN();
