// What does a timeline cost? A span by itself, by number of threads: BM_Span, beside BM_SpanOff,
// the same code without a timeline. And a step of decoding with one and without, from DRAM, on two
// runtimes in turn: `with_per_without` is the median of the ratios of their times, with its
// quartiles.

#include <benchmark/benchmark.h>

#include <memory>
#include <random>
#include <vector>

#include "bench/made_up_kv.h"
#include "bench/measure.h"
#include "io/timeline.h"
#include "runtime/runtime.h"

namespace terrace {
namespace {

constexpr int64_t kSpans = int64_t{1} << 18;  // of a thread
std::shared_ptr<Timeline> shared_timeline;    // of the threads of a benchmark

void BM_Span(benchmark::State& state) {
  if (state.thread_index() == 0) {
    shared_timeline = OrDie(Timeline::Create(static_cast<size_t>(kSpans * state.threads())));
  }
  int64_t number = 0;
  for (auto _ : state) {
    const TimelineSpan span(shared_timeline.get(), "span", {"number", number++});
  }
  if (state.thread_index() == 0 && shared_timeline->dropped() > 0) {
    state.SkipWithError("spans were dropped");
  }
}
BENCHMARK(BM_Span)->Iterations(kSpans)->Threads(1)->Threads(2)->Threads(4);

void BM_SpanOff(benchmark::State& state) {
  Timeline* none = nullptr;
  int64_t number = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(none);
    const TimelineSpan span(none, "span", {"number", number++});
  }
}
BENCHMARK(BM_SpanOff);

// A context in DRAM, and the next step of its only layer.
class Decoder {
 public:
  Decoder(LookupKind kind, uint64_t tokens, std::shared_ptr<Timeline> timeline) {
    RuntimeOptions options;
    options.shape = {.layers = 1,
                     .query_heads = kBenchQueryHeads,
                     .kv_heads = kBenchKvHeads,
                     .head_dim = kBenchHeadDim,
                     .key_state = KeyState::kAfterRope,
                     .rope = {.theta = 500000}};
    options.lookup = {.kind = kind, .blocks = 16};
    options.active_contexts = 1;
    options.tiers.dram_bytes =
        options.shape.BlockBytes(tokens) * kBenchKvHeads + (uint64_t{64} << 20);
    options.timeline = std::move(timeline);
    runtime_ = OrDie(Runtime::Open(options));
    context_ = OrDie(runtime_->NewContext());
    MadeUpKv().Fill(*context_, 1, tokens);
    std::mt19937_64 random(11);
    std::normal_distribution<float> normal;
    for (float& query : queries_) query = normal(random);
  }

  // Nanoseconds.
  double Step() {
    const int64_t position = context_->tokens();
    const int64_t begin = Timeline::Now();
    OrDie(context_->Append(0, {.keys = queries_.data(), .values = queries_.data(), .tokens = 1}));
    OrDie(context_->Attend(0, {.queries = queries_.data(), .positions = {&position, 1}},
                           {.out = absl::MakeSpan(out_)}));
    return static_cast<double>(Timeline::Now() - begin);
  }

 private:
  std::unique_ptr<Runtime> runtime_;
  std::unique_ptr<Context> context_;
  std::vector<float> queries_ = std::vector<float>(kBenchQueryHeads * kBenchHeadDim);
  std::vector<float> out_ = std::vector<float>(queries_.size());
};

void BM_DecodeStep(benchmark::State& state, LookupKind kind) {
  constexpr uint64_t kTokens = 32768;
  const std::shared_ptr<Timeline> timeline = OrDie(Timeline::Create());
  Decoder with(kind, kTokens, timeline);
  Decoder without(kind, kTokens, nullptr);
  const size_t events_before = timeline->recorded();
  std::vector<double> ratios;
  std::vector<double> steps;
  for (auto _ : state) {
    const bool first = ratios.size() % 2 == 0;
    const double before = first ? with.Step() : without.Step();
    const double after = first ? without.Step() : with.Step();
    ratios.push_back(first ? before / after : after / before);
    steps.push_back(first ? after : before);
  }
  if (timeline->dropped() > 0) state.SkipWithError("events were dropped");
  state.counters["with_per_without"] = Quantile(ratios, 0.5);
  state.counters["q1"] = Quantile(ratios, 0.25);
  state.counters["q3"] = Quantile(ratios, 0.75);
  state.counters["step_us"] = Quantile(steps, 0.5) / 1e3;
  state.counters["events_per_step"] = static_cast<double>(timeline->recorded() - events_before) /
                                      static_cast<double>(ratios.size());
}
BENCHMARK_CAPTURE(BM_DecodeStep, full, LookupKind::kFull)->UseRealTime();
BENCHMARK_CAPTURE(BM_DecodeStep, quest, LookupKind::kQuest)->UseRealTime();
BENCHMARK_CAPTURE(BM_DecodeStep, streaming, LookupKind::kStreaming)->UseRealTime();

}  // namespace
}  // namespace terrace

BENCHMARK_MAIN();
