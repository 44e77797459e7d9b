#include "runtime/attention_parallel.h"

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/kv_samples.h"
#include "tests/support/reference_attention.h"

namespace {
std::atomic<size_t> allocations = 0;
}  // namespace

// Count what the whole test program allocates. Not inlined, or else GCC sees that what new returned
// is given to free.
[[gnu::noinline]] void* operator new(size_t bytes) {
  ++allocations;
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) std::abort();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace terrace {
namespace {

std::unique_ptr<ParallelAttention> MakeAttention(size_t head_dim, size_t threads) {
  auto made = ParallelAttention::Create({.head_dim = head_dim, .threads = threads});
  TERRACE_CHECK(made.ok());
  return *std::move(made);
}

// Jobs that own all they borrow.
class Jobs {
 public:
  explicit Jobs(size_t head_dim) : head_dim_(head_dim) {}

  // A job of `rows` rows over runs of these lengths, with random masks if wanted.
  void Add(size_t rows, const std::vector<size_t>& tokens, uint64_t seed, bool masked,
           bool with_run_lse) {
    auto owned = std::make_unique<Owned>();
    std::mt19937_64 random(seed);
    owned->queries = NormalFloats(rows * head_dim_, seed);
    owned->out.assign(rows * head_dim_, NAN);
    owned->lse.assign(rows, NAN);
    owned->visible.resize(tokens.size());
    owned->run_lse.resize(tokens.size());
    for (size_t i = 0; i < tokens.size(); ++i) {
      const KvDtype dtype = i % 2 == 0 ? KvDtype::kFloat16 : KvDtype::kBfloat16;
      owned->samples.push_back(KvSample::Random(tokens[i], head_dim_, dtype, seed + i, i % 3 == 1));
      for (size_t row = 0; masked && row < rows; ++row) {
        owned->visible[i].push_back(random() % (tokens[i] + 10));
      }
      if (with_run_lse) owned->run_lse[i].assign(rows, NAN);
      owned->parts.push_back({.run = owned->samples[i].run(),
                              .visible = owned->visible[i],
                              .run_lse = absl::MakeSpan(owned->run_lse[i])});
      owned->reference.push_back({owned->samples[i].run(), owned->visible[i]});
    }
    jobs_.push_back({.queries = owned->queries,
                     .parts = owned->parts,
                     .out = absl::MakeSpan(owned->out),
                     .lse = absl::MakeSpan(owned->lse)});
    owned_.push_back(std::move(owned));
  }

  absl::Span<const AttentionJob> jobs() const { return jobs_; }

  // All results, one after the other.
  std::vector<float> Results() const {
    std::vector<float> results;
    for (const auto& owned : owned_) {
      results.insert(results.end(), owned->out.begin(), owned->out.end());
      results.insert(results.end(), owned->lse.begin(), owned->lse.end());
      for (const auto& lse : owned->run_lse) results.insert(results.end(), lse.begin(), lse.end());
    }
    return results;
  }

  void ExpectReference() const {
    for (const auto& owned : owned_) {
      const ReferenceResult expected =
          ReferenceAttention(head_dim_, owned->queries, owned->reference);
      for (size_t i = 0; i < owned->lse.size(); ++i) Expect(owned->lse[i], expected.lse[i]);
      for (size_t i = 0; i < owned->out.size(); ++i) {
        ASSERT_NEAR(owned->out[i], expected.out[i], 1e-5) << i;
      }
      for (size_t run = 0; run < owned->run_lse.size(); ++run) {
        if (owned->run_lse[run].empty()) continue;
        const ReferenceResult part =
            ReferenceAttention(head_dim_, owned->queries, {&owned->reference[run], 1});
        for (size_t i = 0; i < owned->lse.size(); ++i) Expect(owned->run_lse[run][i], part.lse[i]);
      }
    }
  }

 private:
  struct Owned {
    std::vector<float> queries;
    std::vector<float> out;
    std::vector<float> lse;
    std::vector<KvSample> samples;
    std::vector<std::vector<size_t>> visible;
    std::vector<std::vector<float>> run_lse;
    std::vector<AttentionPart> parts;
    std::vector<ReferenceRun> reference;
  };

  static void Expect(float lse, double expected) {
    if (std::isinf(expected)) {
      EXPECT_EQ(lse, -std::numeric_limits<float>::infinity());
    } else {
      EXPECT_NEAR(lse, expected, 1e-4);
    }
  }

  size_t head_dim_;
  std::vector<std::unique_ptr<Owned>> owned_;
  std::vector<AttentionJob> jobs_;
};

// Several heads of unlike sizes: one long run, many short ones, none, many rows.
void AddMixture(Jobs& jobs, uint64_t seed) {
  jobs.Add(/*rows=*/4, {9000, 1, 0, 400}, seed, /*masked=*/false, /*with_run_lse=*/false);
  jobs.Add(4, std::vector<size_t>(40, 128), seed + 1, false, true);
  jobs.Add(1, {5000}, seed + 2, true, false);
  jobs.Add(3, {}, seed + 3, false, false);
  jobs.Add(2, {0, 0}, seed + 4, false, true);
  jobs.Add(150, {2500, 150}, seed + 5, true, false);
  jobs.Add(70, {3000}, seed + 6, true, true);
}

TEST(ParallelAttentionTest, EqualsTheReferenceForAnyNumberOfThreads) {
  for (const size_t threads : {1, 2, 3, 8}) {
    SCOPED_TRACE(testing::Message() << threads << " threads");
    Jobs jobs(64);
    AddMixture(jobs, 1);
    MakeAttention(64, threads)->Run(jobs.jobs());
    jobs.ExpectReference();
  }
}

TEST(ParallelAttentionTest, TheBitsDoNotDependOnThreadsOrTiming) {
  std::vector<float> expected;
  for (const size_t threads : {1, 2, 2, 2, 3, 4, 8}) {
    const std::unique_ptr<ParallelAttention> attention = MakeAttention(64, threads);
    for (int repetition = 0; repetition < 3; ++repetition) {
      Jobs jobs(64);
      AddMixture(jobs, 5);
      attention->Run(jobs.jobs());
      const std::vector<float> results = jobs.Results();
      if (expected.empty()) expected = results;
      ASSERT_EQ(results.size(), expected.size());
      for (size_t i = 0; i < results.size(); ++i) {
        ASSERT_EQ(results[i], expected[i]) << threads << " threads, number " << i;
      }
    }
  }
}

TEST(ParallelAttentionTest, OneLongRunOfOneHeadEqualsTheReference) {
  for (const size_t head_dim : {8, 128}) {
    Jobs jobs(head_dim);
    jobs.Add(4, {20001}, 3, false, false);
    MakeAttention(head_dim, 2)->Run(jobs.jobs());
    jobs.ExpectReference();
  }
}

TEST(ParallelAttentionTest, NothingIsAllocatedAfterTheLargestCall) {
  for (const size_t threads : {1, 2}) {
    const std::unique_ptr<ParallelAttention> attention = MakeAttention(64, threads);
    Jobs large(64);
    AddMixture(large, 1);
    Jobs small(64);
    small.Add(4, {3000, 20}, 9, true, true);
    attention->Run(large.jobs());
    const size_t before = allocations;
    for (int i = 0; i < 5; ++i) {
      attention->Run(small.jobs());
      attention->Run(large.jobs());
    }
    EXPECT_EQ(allocations, before) << threads << " threads";
  }
}

TEST(ParallelAttentionTest, AnAccumulatorNeverAllocatesOnceItIsCreated) {
  auto accumulator = AttentionAccumulator::Create(40, 64);
  ASSERT_TRUE(accumulator.ok());
  const KvSample sample = KvSample::Random(9000, 64, KvDtype::kFloat16, 1);
  const std::vector<float> queries = NormalFloats(40 * 64, 1);
  const std::vector<size_t> visible(40, 7000);
  std::vector<float> out(40 * 64);
  std::vector<float> lse(40);
  std::vector<float> mass(9000);
  const size_t before = allocations;
  accumulator->Reset(queries);
  accumulator->Add(sample.run(), visible);
  accumulator->AddWithLse(sample.run(), visible, absl::MakeSpan(lse));
  accumulator->Finish(absl::MakeSpan(out), absl::MakeSpan(lse));
  accumulator->AddColumnMass(sample.run(), visible, lse, absl::MakeSpan(mass));
  EXPECT_EQ(allocations, before);
}

TEST(ParallelAttentionTest, RefusesOptionsThatCannotWork) {
  EXPECT_EQ(ParallelAttention::Create({.head_dim = 64, .threads = 0}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ParallelAttention::Create({.head_dim = 60, .threads = 1}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace terrace
