#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/cuda_copy_engine.h"
#include "runtime/attention.h"
#include "runtime/device_attention.h"
#include "tests/support/kv_samples.h"

namespace terrace {
namespace {

using testing::AnyOf;
using testing::HasSubstr;

constexpr float kEmpty = -std::numeric_limits<float>::infinity();

struct RunSpec {
  size_t tokens = 0;
  KvDtype dtype = KvDtype::kFloat16;
  bool paired = false;
  bool odd_address = false;  // only a multiple of an element
  std::vector<size_t> visible = {};
};

struct JobSpec {
  size_t rows = 4;
  std::vector<RunSpec> runs;
  uint64_t seed = 1;
  float deviation = 1;  // of the queries
};

// Jobs on the host, and the same with keys and values in device memory.
class TwinJobs {
 public:
  TwinJobs(CopyEngine& engine, size_t head_dim, std::vector<JobSpec> specs)
      : engine_(engine), head_dim_(head_dim), specs_(std::move(specs)) {
    for (const JobSpec& spec : specs_) AddJob(spec);
    Upload();
  }

  size_t size() const { return twins_.size(); }
  std::vector<AttentionJob> HostJobs() { return Jobs(/*device=*/false); }
  std::vector<AttentionJob> DeviceJobs() { return Jobs(/*device=*/true); }

  // Runs both and compares, with errors of `out` relative to its largest element.
  void ExpectSame(DeviceAttention& device, double tolerance) {
    auto host = MakeHostDeviceAttention({.head_dim = head_dim_, .threads = 2});
    ASSERT_TRUE(host.ok()) << host.status();
    const std::vector<AttentionJob> host_jobs = HostJobs();
    const std::vector<AttentionJob> device_jobs = DeviceJobs();
    ASSERT_TRUE((*host)->Start(host_jobs).ok());
    const absl::Status started = device.Start(device_jobs);
    ASSERT_TRUE(started.ok()) << started;
    ASSERT_TRUE((*host)->Finish().ok());
    const absl::Status finished = device.Finish();
    ASSERT_TRUE(finished.ok()) << finished;
    for (size_t i = 0; i < size(); ++i) {
      SCOPED_TRACE(testing::Message() << "job " << i << " of seed " << specs_[i].seed << ", "
                                      << specs_[i].rows << " rows");
      ExpectSame(twins_[i]->host, twins_[i]->device, tolerance);
    }
  }

  // What the device wrote, of all jobs.
  std::vector<float> DeviceResults() const {
    std::vector<float> all;
    for (const auto& twin : twins_) {
      all.insert(all.end(), twin->device.out.begin(), twin->device.out.end());
      all.insert(all.end(), twin->device.lse.begin(), twin->device.lse.end());
    }
    return all;
  }

 private:
  struct Results {
    std::vector<float> out;
    std::vector<float> lse;
  };
  struct Twin {
    std::vector<float> queries;
    std::vector<KvSample> samples;
    std::vector<AttentionPart> host_parts;
    std::vector<AttentionPart> device_parts;
    Results host;
    Results device;
  };
  // The bytes of a run, from its first to its last.
  struct Extent {
    const std::byte* begin;
    size_t bytes;
    size_t at;  // in device memory
  };

  void AddJob(const JobSpec& spec) {
    auto twin = std::make_unique<Twin>();
    twin->queries = NormalFloats(spec.rows * head_dim_, spec.seed, spec.deviation);
    for (size_t i = 0; i < spec.runs.size(); ++i) {
      const RunSpec& run = spec.runs[i];
      twin->samples.push_back(
          KvSample::Random(run.tokens, head_dim_, run.dtype, spec.seed + 100 + i, run.paired));
      twin->host_parts.push_back({.run = twin->samples.back().run(), .visible = run.visible});
    }
    twin->device_parts = twin->host_parts;
    for (Results* results : {&twin->host, &twin->device}) {
      results->out.assign(spec.rows * head_dim_, NAN);
      results->lse.assign(spec.rows, NAN);
    }
    twins_.push_back(std::move(twin));
  }

  Extent ExtentOf(const KvRun& run, bool odd_address) {
    if (run.tokens == 0) return {.begin = nullptr, .bytes = 0, .at = used_};
    const auto* keys = static_cast<const std::byte*>(run.keys);
    const auto* values = static_cast<const std::byte*>(run.values);
    const size_t row = head_dim_ * KvDtypeBytes(run.dtype);
    const std::byte* begin = std::min(keys, values);
    const std::byte* end = std::max(keys + (run.tokens - 1) * run.key_stride,
                                    values + (run.tokens - 1) * run.value_stride) +
                           row;
    used_ = (used_ + 255) / 256 * 256;
    if (odd_address) used_ += KvDtypeBytes(run.dtype);
    const Extent extent = {.begin = begin, .bytes = static_cast<size_t>(end - begin), .at = used_};
    used_ += extent.bytes;
    return extent;
  }

  void Upload() {
    std::vector<Extent> extents;
    for (size_t job = 0; job < size(); ++job) {
      for (size_t i = 0; i < specs_[job].runs.size(); ++i) {
        extents.push_back(ExtentOf(twins_[job]->samples[i].run(), specs_[job].runs[i].odd_address));
      }
    }
    auto memory = engine_.Allocate(std::max<size_t>(used_, 1));
    ASSERT_TRUE(memory.ok()) << memory.status();
    memory_ = *std::move(memory);
    std::vector<Copy> copies;
    size_t next = 0;
    for (const auto& twin : twins_) {
      for (AttentionPart& part : twin->device_parts) {
        const Extent& extent = extents[next++];
        if (extent.bytes == 0) continue;
        std::byte* to = memory_->data() + extent.at;
        copies.push_back({.source = extent.begin, .destination = to, .bytes = extent.bytes});
        part.run.keys = to + (static_cast<const std::byte*>(part.run.keys) - extent.begin);
        part.run.values = to + (static_cast<const std::byte*>(part.run.values) - extent.begin);
      }
    }
    if (copies.empty()) return;
    auto ticket = engine_.Submit(copies);
    ASSERT_TRUE(ticket.ok()) << ticket.status();
    ASSERT_TRUE(engine_.Wait(*ticket).ok());
  }

  std::vector<AttentionJob> Jobs(bool device) {
    std::vector<AttentionJob> jobs;
    for (const auto& twin : twins_) {
      Results& results = device ? twin->device : twin->host;
      jobs.push_back({.queries = twin->queries,
                      .parts = device ? twin->device_parts : twin->host_parts,
                      .out = absl::MakeSpan(results.out),
                      .lse = absl::MakeSpan(results.lse)});
    }
    return jobs;
  }

  static void ExpectSame(const Results& host, const Results& device, double tolerance) {
    float largest = 0;
    for (const float value : host.out) largest = std::max(largest, std::abs(value));
    for (size_t i = 0; i < host.out.size(); ++i) {
      ASSERT_NEAR(device.out[i], host.out[i], tolerance * largest) << "element " << i;
    }
    for (size_t row = 0; row < host.lse.size(); ++row) {
      if (host.lse[row] == kEmpty) {
        ASSERT_EQ(device.lse[row], kEmpty) << "row " << row;
      } else {
        const double expected = host.lse[row];
        ASSERT_NEAR(device.lse[row], expected, tolerance + 1e-5 * std::abs(expected)) << row;
      }
    }
  }

  CopyEngine& engine_;
  const size_t head_dim_;
  const std::vector<JobSpec> specs_;
  std::vector<std::unique_ptr<Twin>> twins_;
  std::unique_ptr<DeviceMemory> memory_;
  size_t used_ = 0;
};

double Tolerance(KvDtype dtype) { return dtype == KvDtype::kBfloat16 ? 1e-2 : 1e-3; }

class CudaAttentionOnDevice : public testing::Test {
 protected:
  void SetUp() override {
    auto engine = MakeCudaCopyEngine({.pool_bytes = size_t{256} << 20});
    if (!engine.ok()) GTEST_SKIP() << engine.status();
    engine_ = *std::move(engine);
  }

  // Expects that a device attention, new, comes to the same as the host.
  void ExpectSame(size_t head_dim, std::vector<JobSpec> specs, double tolerance,
                  size_t pieces = 0) {
    auto attention = MakeCudaAttention({.head_dim = head_dim, .pieces = pieces}, 0);
    ASSERT_TRUE(attention.ok()) << attention.status();
    TwinJobs(*engine_, head_dim, std::move(specs)).ExpectSame(**attention, tolerance);
  }

  std::unique_ptr<CopyEngine> engine_;
};

TEST_F(CudaAttentionOnDevice, EqualsTheHostForEveryHeadDimAndDtype) {
  for (const size_t head_dim : {8, 64, 80, 128, 256, 512}) {
    for (const KvDtype dtype : {KvDtype::kFloat16, KvDtype::kBfloat16, KvDtype::kFloat32}) {
      SCOPED_TRACE(testing::Message() << head_dim << " " << KvDtypeName(dtype));
      ExpectSame(head_dim,
                 {{.runs = {{.tokens = 127, .dtype = dtype},
                            {.tokens = 1, .dtype = dtype},
                            {.tokens = 0, .dtype = dtype},
                            {.tokens = 300, .dtype = dtype}},
                   .seed = head_dim}},
                 Tolerance(dtype));
    }
  }
}

TEST_F(CudaAttentionOnDevice, EqualsTheHostForAnyNumberOfRows) {
  for (const KvDtype dtype : {KvDtype::kFloat16, KvDtype::kBfloat16, KvDtype::kFloat32}) {
    for (const size_t rows : {1, 4, 7, 16, 33}) {
      SCOPED_TRACE(testing::Message() << rows << " rows, " << KvDtypeName(dtype));
      ExpectSame(128,
                 {{.rows = rows,
                   .runs = {{.tokens = 1000, .dtype = dtype}, {.tokens = 129, .dtype = dtype}},
                   .seed = rows}},
                 Tolerance(dtype));
    }
  }
}

TEST_F(CudaAttentionOnDevice, EqualsTheHostForALongRun) {
  for (const size_t head_dim : {64, 128}) {
    SCOPED_TRACE(head_dim);
    ExpectSame(head_dim, {{.runs = {{.tokens = 4096}}}}, 1e-3);
    ExpectSame(head_dim, {{.runs = {{.tokens = 4096}}}}, 1e-3, /*pieces=*/1);
  }
}

TEST_F(CudaAttentionOnDevice, TakesThePairedLayoutAndAnyAddressOfAnElement) {
  for (const size_t head_dim : {64, 128}) {
    for (const KvDtype dtype : {KvDtype::kFloat16, KvDtype::kBfloat16, KvDtype::kFloat32}) {
      SCOPED_TRACE(testing::Message() << head_dim << " " << KvDtypeName(dtype));
      ExpectSame(head_dim,
                 {{.rows = 5,
                   .runs = {{.tokens = 200, .dtype = dtype, .paired = true},
                            {.tokens = 77, .dtype = dtype, .odd_address = true},
                            {.tokens = 90, .dtype = dtype},
                            {.tokens = 33, .dtype = dtype, .paired = true, .odd_address = true}}}},
                 Tolerance(dtype));
    }
  }
}

TEST_F(CudaAttentionOnDevice, ARowSeesWhatItMaySee) {
  for (const KvDtype dtype : {KvDtype::kFloat16, KvDtype::kFloat32}) {
    SCOPED_TRACE(KvDtypeName(dtype));
    // A prompt's chunk of 20 tokens with 2 query heads, behind tokens that are all visible; then
    // rows of which some see nothing, and one that sees nothing at all.
    std::vector<size_t> causal;
    for (size_t row = 0; row < 40; ++row) causal.push_back(row / 2 + 1);
    ExpectSame(
        64,
        {{.rows = 40,
          .runs = {{.tokens = 500, .dtype = dtype},
                   {.tokens = 20, .dtype = dtype, .visible = causal}}},
         {.rows = 4,
          .runs = {{.tokens = 100, .dtype = dtype, .visible = {0, 100, 50, 0}},
                   {.tokens = 300, .dtype = dtype, .visible = {0, 0, 299, 1}},
                   {.tokens = 30, .dtype = dtype, .visible = {0, 0, 1000, 0}}},
          .seed = 2},
         {.rows = 2, .runs = {{.tokens = 60, .dtype = dtype, .visible = {0, 0}}}, .seed = 3}},
        Tolerance(dtype));
  }
}

TEST_F(CudaAttentionOnDevice, JobsWithoutTokensGiveZerosAndMinusInfinity) {
  auto attention = MakeCudaAttention({.head_dim = 64}, 0);
  ASSERT_TRUE(attention.ok()) << attention.status();
  ASSERT_TRUE((*attention)->Start({}).ok());
  EXPECT_TRUE((*attention)->started());
  ASSERT_TRUE((*attention)->Finish().ok());
  EXPECT_FALSE((*attention)->started());
  ASSERT_TRUE((*attention)->Finish().ok());
  TwinJobs jobs(*engine_, 64,
                {{.rows = 3, .runs = {}},
                 {.rows = 0, .runs = {{.tokens = 10}}},
                 {.rows = 2, .runs = {{.tokens = 0}, {.tokens = 0}}},
                 {.rows = 20, .runs = {}}});
  jobs.ExpectSame(**attention, 0);
}

TEST_F(CudaAttentionOnDevice, HugeScoresMakeNoInfinitiesAndKeepTheirOrder) {
  for (const KvDtype dtype : {KvDtype::kFloat16, KvDtype::kBfloat16, KvDtype::kFloat32}) {
    for (const float deviation : {3000.0f, 1e-6f}) {
      SCOPED_TRACE(testing::Message() << KvDtypeName(dtype) << ", queries of " << deviation);
      ExpectSame(128,
                 {{.rows = 4,
                   .runs = {{.tokens = 700, .dtype = dtype}, {.tokens = 40, .dtype = dtype}},
                   .seed = 5,
                   .deviation = deviation}},
                 Tolerance(dtype), /*pieces=*/5);
    }
  }
}

TEST_F(CudaAttentionOnDevice, ManyJobsOfAllKindsAtOnce) {
  std::vector<JobSpec> specs;
  for (size_t i = 0; i < 24; ++i) {
    JobSpec& spec = specs.emplace_back(JobSpec{.rows = 1 + i % 9, .runs = {}, .seed = i});
    for (size_t run = 0; run < i % 7; ++run) {
      spec.runs.push_back({.tokens = (i * 37 + run * 61) % 260,
                           .dtype = static_cast<KvDtype>((i + run) % 3),
                           .paired = run % 2 == 1,
                           .odd_address = run % 4 == 3});
    }
  }
  ExpectSame(64, specs, 1e-2);
  ExpectSame(64, specs, 1e-2, /*pieces=*/1000);
  ExpectSame(256, specs, 1e-2);
}

TEST_F(CudaAttentionOnDevice, PiecesMergeAsPartialsDo) {
  // The host merges the partial attention over each run; the device that of pieces, many and few.
  const std::vector<RunSpec> runs = {{.tokens = 900}, {.tokens = 128}, {.tokens = 1}};
  for (const size_t pieces : {1, 3, 1000}) {
    SCOPED_TRACE(testing::Message() << pieces << " pieces");
    auto attention = MakeCudaAttention({.head_dim = 128, .pieces = pieces}, 0);
    ASSERT_TRUE(attention.ok()) << attention.status();
    TwinJobs jobs(*engine_, 128, {{.rows = 4, .runs = runs}});
    const std::vector<AttentionJob> device_jobs = jobs.DeviceJobs();
    ASSERT_TRUE((*attention)->Start(device_jobs).ok());
    ASSERT_TRUE((*attention)->Finish().ok());

    const AttentionJob whole = jobs.HostJobs().front();
    auto accumulator = AttentionAccumulator::Create(4, 128);
    ASSERT_TRUE(accumulator.ok());
    std::vector<float> out(whole.out.size());
    std::vector<float> lse(whole.lse.size(), kEmpty);
    std::vector<float> part_out(out.size());
    std::vector<float> part_lse(lse.size());
    for (const AttentionPart& part : whole.parts) {
      accumulator->Reset(whole.queries);
      accumulator->Add(part.run);
      accumulator->Finish(absl::MakeSpan(part_out), absl::MakeSpan(part_lse));
      MergePartials(128, part_out, part_lse, absl::MakeSpan(out), absl::MakeSpan(lse));
    }
    const float largest = std::abs(*std::max_element(
        out.begin(), out.end(), [](float a, float b) { return std::abs(a) < std::abs(b); }));
    for (size_t i = 0; i < out.size(); ++i) {
      ASSERT_NEAR(device_jobs[0].out[i], out[i], 1e-3 * largest) << i;
    }
    for (size_t i = 0; i < lse.size(); ++i) ASSERT_NEAR(device_jobs[0].lse[i], lse[i], 1e-3);
  }
}

TEST_F(CudaAttentionOnDevice, TheSameJobsGiveTheSameBits) {
  auto attention = MakeCudaAttention({.head_dim = 128}, 0);
  ASSERT_TRUE(attention.ok()) << attention.status();
  TwinJobs jobs(*engine_, 128,
                {{.rows = 4, .runs = {{.tokens = 3000}, {.tokens = 5}}},
                 {.rows = 9, .runs = {{.tokens = 700, .dtype = KvDtype::kFloat32}}},
                 {.rows = 20, .runs = {{.tokens = 900, .dtype = KvDtype::kBfloat16}}}});
  const std::vector<AttentionJob> device_jobs = jobs.DeviceJobs();
  std::vector<float> first;
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE((*attention)->Start(device_jobs).ok());
    ASSERT_TRUE((*attention)->Finish().ok());
    const std::vector<float> results = jobs.DeviceResults();
    if (first.empty()) first = results;
    ASSERT_EQ(std::memcmp(results.data(), first.data(), first.size() * sizeof(float)), 0) << i;
  }
}

TEST_F(CudaAttentionOnDevice, TakesBatchesOfAnySizeOneAfterTheOther) {
  auto attention = MakeCudaAttention({.head_dim = 64, .usual_rows = 1}, 0);
  ASSERT_TRUE(attention.ok()) << attention.status();
  TwinJobs small(*engine_, 64, {{.rows = 1, .runs = {{.tokens = 10}}}});
  // More queries and partial results than were reserved for.
  TwinJobs large(*engine_, 64,
                 {{.rows = 6000, .runs = {{.tokens = 200}}, .seed = 2},
                  {.rows = 4, .runs = std::vector<RunSpec>(300, {.tokens = 3}), .seed = 3}});
  for (TwinJobs* jobs : {&small, &large, &small, &large}) {
    jobs->ExpectSame(**attention, 1e-3);
    EXPECT_GT((*attention)->device_seconds(), 0);
  }
}

TEST_F(CudaAttentionOnDevice, RefusesWhatThereIsNot) {
  EXPECT_EQ(MakeCudaAttention({.head_dim = 60}, 0).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MakeCudaAttention({.head_dim = 520}, 0).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MakeCudaAttention({.head_dim = 64}, 1000).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MakeCudaAttention({.head_dim = 64}, -1).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(CudaAttentionTest, SaysWhyThereIsNone) {
  const auto attention = MakeCudaAttention({.head_dim = 64}, 0);
  if (attention.ok()) GTEST_SKIP() << "a device answers";
  EXPECT_EQ(attention.status().code(), absl::StatusCode::kUnavailable);
  const std::string message(attention.status().message());
  if (BuiltWithCuda()) {
    EXPECT_THAT(message, AnyOf(HasSubstr("driver"), HasSubstr("device")));
  } else {
    EXPECT_THAT(message, HasSubstr("built without CUDA"));
  }
}

TEST(HostDeviceAttentionTest, WorksInFinishAndTakesBatchesInTurn) {
  auto attention = MakeHostDeviceAttention({.head_dim = 64});
  ASSERT_TRUE(attention.ok());
  const KvSample sample = KvSample::Random(1, 64, KvDtype::kFloat32, 1);
  const std::vector<float> queries = NormalFloats(64, 2);
  const std::vector<AttentionPart> parts = {{.run = sample.run()}};
  std::vector<float> out(64);
  std::vector<float> lse(1);
  const AttentionJob job = {
      .queries = queries, .parts = parts, .out = absl::MakeSpan(out), .lse = absl::MakeSpan(lse)};
  EXPECT_TRUE((*attention)->Finish().ok());
  for (int i = 0; i < 2; ++i) {
    std::fill(out.begin(), out.end(), 0.0f);
    EXPECT_FALSE((*attention)->started());
    ASSERT_TRUE((*attention)->Start({&job, 1}).ok());
    EXPECT_TRUE((*attention)->started());
    ASSERT_TRUE((*attention)->Finish().ok());
    // One token has all of the attention.
    const auto* value = static_cast<const float*>(sample.run().values);
    for (size_t d = 0; d < 64; ++d) ASSERT_NEAR(out[d], value[d], 1e-6);
  }
  EXPECT_EQ((*attention)->device_seconds(), 0);
}

}  // namespace
}  // namespace terrace
