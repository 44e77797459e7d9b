#include "runtime/attention_plan.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr size_t kHeadDim = 64;

// An address of the device, which nobody follows.
const void* Address(size_t bytes) { return reinterpret_cast<const void*>(bytes); }

// A job that owns what it borrows, over runs at made-up addresses.
class MadeUpJob {
 public:
  MadeUpJob(size_t rows, const std::vector<size_t>& tokens) : visible_(tokens.size()) {
    queries_.resize(rows * kHeadDim);
    out_.resize(rows * kHeadDim);
    lse_.resize(rows);
    for (size_t i = 0; i < tokens.size(); ++i) {
      parts_.push_back({.run = {.keys = Address(4096 * (i + 1)),
                                .values = Address(4096 * (i + 1) + 64),
                                .tokens = tokens[i]}});
    }
  }

  size_t rows() const { return lse_.size(); }
  KvRun& run(size_t part) { return parts_[part].run; }
  const AttentionPart& part(size_t part) const { return parts_[part]; }
  size_t parts() const { return parts_.size(); }
  void Limit(size_t part, std::vector<size_t> visible) {
    visible_[part] = std::move(visible);
    parts_[part].visible = visible_[part];
  }
  // Valid while the object stays where it is.
  AttentionJob job() {
    return {.queries = queries_,
            .parts = parts_,
            .out = absl::MakeSpan(out_),
            .lse = absl::MakeSpan(lse_)};
  }

  // How many tokens of a part any of these rows sees.
  size_t Seen(size_t part, size_t row, size_t rows) const {
    if (visible_[part].empty()) return parts_[part].run.tokens;
    const auto first = visible_[part].begin() + static_cast<ptrdiff_t>(row);
    return std::min(parts_[part].run.tokens,
                    *std::max_element(first, first + static_cast<ptrdiff_t>(rows)));
  }

 private:
  std::vector<float> queries_;
  std::vector<AttentionPart> parts_;
  std::vector<float> out_;
  std::vector<float> lse_;
  std::vector<std::vector<size_t>> visible_;
};

std::vector<AttentionJob> JobsOf(std::vector<MadeUpJob>& made_up) {
  std::vector<AttentionJob> jobs;
  for (MadeUpJob& one : made_up) jobs.push_back(one.job());
  return jobs;
}

std::vector<MadeUpJob> RandomJobs(uint64_t seed) {
  std::mt19937_64 random(seed);
  const std::vector<size_t> lengths = {0, 1, 15, 16, 64, 127, 128, 129, 300, 900};
  std::vector<MadeUpJob> jobs;
  for (size_t i = 0; i < 1 + random() % 6; ++i) {
    std::vector<size_t> tokens(random() % 12);
    for (size_t& count : tokens) count = lengths[random() % lengths.size()];
    const size_t rows = random() % 40;
    MadeUpJob& job = jobs.emplace_back(rows, tokens);
    for (size_t part = 0; part < tokens.size(); ++part) {
      job.run(part).dtype = static_cast<KvDtype>(random() % 3);
      if (random() % 5 == 0) job.run(part).keys = Address(4096 * (part + 1) + 4);
      if (random() % 3 != 0) continue;
      std::vector<size_t> visible(rows);
      for (size_t& limit : visible) limit = random() % (tokens[part] + 20);
      if (random() % 3 == 0) std::fill(visible.begin(), visible.end(), 0);
      job.Limit(part, std::move(visible));
    }
  }
  return jobs;
}

AttentionKernel ExpectedKernel(const KvRun& run) {
  const bool aligned = reinterpret_cast<size_t>(run.keys) % 16 == 0;
  switch (run.dtype) {
    case KvDtype::kFloat32:
      return AttentionKernel::kPlainFloat32;
    case KvDtype::kFloat16:
      return aligned ? AttentionKernel::kTensorFloat16 : AttentionKernel::kPlainFloat16;
    case KvDtype::kBfloat16:
      return aligned ? AttentionKernel::kTensorBfloat16 : AttentionKernel::kPlainBfloat16;
  }
  return AttentionKernel::kPlainFloat32;
}

// What the pieces of a plan do: how often each (row of all jobs, part, token) is in a piece.
using Coverage = std::map<std::tuple<size_t, size_t, size_t>, int>;

// Expects that a piece's runs are its kernel's, and that no two pieces share partial results.
Coverage CoverageOf(const AttentionPlan& plan, const std::vector<KvRun>& runs) {
  Coverage coverage;
  std::set<size_t> partial_rows;
  for (size_t kernel = 0; kernel < kAttentionKernels; ++kernel) {
    for (const DevicePiece& piece : plan.pieces(static_cast<AttentionKernel>(kernel))) {
      EXPECT_GT(piece.rows, 0u);
      EXPECT_LE(piece.rows, kPieceRows);
      for (uint32_t row = 0; row < piece.rows; ++row) {
        EXPECT_TRUE(partial_rows.insert(piece.partial_row + row).second);
        EXPECT_LT(piece.partial_row + row, plan.partial_rows());
      }
      for (uint32_t part = piece.first_part; part <= piece.last_part; ++part) {
        const DevicePart& line = plan.parts()[part];
        const uint32_t begin = part == piece.first_part ? piece.first_token : 0;
        const uint32_t end = part == piece.last_part ? piece.end_token : line.tokens;
        EXPECT_LE(end, line.tokens);
        if (begin < end) {
          EXPECT_EQ(ExpectedKernel(runs[part]), static_cast<AttentionKernel>(kernel));
        }
        for (uint32_t token = begin; token < end; ++token) {
          for (uint32_t row = 0; row < piece.rows; ++row) {
            ++coverage[{piece.first_row + row, part, token}];
          }
        }
      }
    }
  }
  EXPECT_EQ(partial_rows.size(), plan.partial_rows());
  return coverage;
}

size_t PieceCount(const AttentionPlan& plan) {
  size_t pieces = 0;
  for (size_t kernel = 0; kernel < kAttentionKernels; ++kernel) {
    pieces += plan.pieces(static_cast<AttentionKernel>(kernel)).size();
  }
  return pieces;
}

TEST(AttentionPlanTest, EveryTokenThatARowMaySeeIsInOnePieceOfIt) {
  AttentionPlan plan({.head_dim = kHeadDim, .pieces = 20, .min_tokens = 64});
  for (uint64_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::vector<MadeUpJob> jobs = RandomJobs(seed);
    ASSERT_TRUE(plan.Make(JobsOf(jobs)).ok());
    std::vector<KvRun> runs;
    for (const MadeUpJob& job : jobs) {
      for (size_t part = 0; part < job.parts(); ++part) runs.push_back(job.part(part).run);
    }
    ASSERT_EQ(plan.parts().size(), runs.size());
    const Coverage coverage = CoverageOf(plan, runs);
    size_t expected = 0;
    size_t first_row = 0;
    size_t first_part = 0;
    for (const MadeUpJob& job : jobs) {
      for (size_t row = 0; row < job.rows(); ++row) {
        const size_t tile = row / kPieceRows * kPieceRows;
        const size_t tile_rows = std::min<size_t>(kPieceRows, job.rows() - tile);
        for (size_t part = 0; part < job.parts(); ++part) {
          for (size_t token = 0; token < job.Seen(part, tile, tile_rows); ++token, ++expected) {
            const auto found = coverage.find({first_row + row, first_part + part, token});
            ASSERT_TRUE(found != coverage.end()) << "row " << row << " token " << token;
            ASSERT_EQ(found->second, 1);
          }
        }
      }
      first_row += job.rows();
      first_part += job.parts();
    }
    EXPECT_EQ(coverage.size(), expected);
    EXPECT_EQ(plan.rows(), first_row);
  }
}

TEST(AttentionPlanTest, RangesNameTheirPiecesInOrder) {
  AttentionPlan plan({.head_dim = kHeadDim, .pieces = 20, .min_tokens = 64});
  for (uint64_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::vector<MadeUpJob> jobs = RandomJobs(seed);
    ASSERT_TRUE(plan.Make(JobsOf(jobs)).ok());
    std::map<size_t, DevicePiece> pieces;  // by partial row
    for (size_t kernel = 0; kernel < kAttentionKernels; ++kernel) {
      for (const DevicePiece& piece : plan.pieces(static_cast<AttentionKernel>(kernel))) {
        pieces[piece.partial_row] = piece;
      }
    }
    size_t row = 0;
    for (const DeviceRange& range : plan.ranges()) {
      EXPECT_EQ(range.first_row, row);
      EXPECT_LE(range.rows, plan.max_range_rows());
      row += range.rows;
      std::pair<uint32_t, uint32_t> last = {0, 0};
      for (uint32_t i = 0; i < range.pieces; ++i) {
        const auto found = pieces.find(range.partial_row + i * range.rows);
        ASSERT_TRUE(found != pieces.end());
        EXPECT_EQ(found->second.first_row, range.first_row);
        EXPECT_EQ(found->second.rows, range.rows);
        const std::pair begin = {found->second.first_part, found->second.first_token};
        if (i > 0) {
          EXPECT_GE(begin, last);
        }
        last = {found->second.last_part, found->second.end_token};
        pieces.erase(found);
      }
    }
    EXPECT_EQ(row, plan.rows());
    EXPECT_TRUE(pieces.empty());
  }
}

TEST(AttentionPlanTest, PiecesAreAsManyAsWantedAndOfOneSize) {
  std::vector<MadeUpJob> jobs;
  jobs.emplace_back(4, std::vector<size_t>(1024, 128));
  jobs.emplace_back(4, std::vector<size_t>{131072});
  jobs.emplace_back(32, std::vector<size_t>{65536});  // of two ranges
  AttentionPlan plan({.head_dim = kHeadDim, .pieces = 300});
  ASSERT_TRUE(plan.Make(JobsOf(jobs)).ok());
  EXPECT_LE(PieceCount(plan), 300u);
  EXPECT_GT(PieceCount(plan), 250u);
  ASSERT_EQ(plan.ranges().size(), 4u);
  EXPECT_EQ(plan.ranges()[0].pieces, plan.ranges()[1].pieces);
  EXPECT_EQ(plan.ranges()[2].pieces, plan.ranges()[3].pieces);
  EXPECT_NEAR(plan.ranges()[1].pieces, 2 * plan.ranges()[2].pieces, 5);
}

TEST(AttentionPlanTest, FewTokensMakeFewPieces) {
  std::vector<MadeUpJob> jobs;
  jobs.emplace_back(4, std::vector<size_t>{1000});
  jobs.emplace_back(4, std::vector<size_t>(50, 1));
  AttentionPlan plan({.head_dim = kHeadDim, .pieces = 5000, .min_tokens = 128});
  ASSERT_TRUE(plan.Make(JobsOf(jobs)).ok());
  EXPECT_EQ(plan.ranges()[0].pieces, 8u);
  EXPECT_EQ(plan.ranges()[1].pieces, 1u);
}

TEST(AttentionPlanTest, OnlyLimitsThatHideSomethingAreLimits) {
  std::vector<MadeUpJob> jobs;
  MadeUpJob& job = jobs.emplace_back(3, std::vector<size_t>{100, 100, 100});
  job.Limit(0, {100, 250, 101});
  job.Limit(1, {0, 99, 250});
  AttentionPlan plan({.head_dim = kHeadDim});
  ASSERT_TRUE(plan.Make(JobsOf(jobs)).ok());
  EXPECT_EQ(plan.parts()[0].limits, kNoLimits);
  EXPECT_EQ(plan.parts()[1].limits, 0u);
  EXPECT_EQ(plan.parts()[2].limits, kNoLimits);
  EXPECT_EQ(std::vector<uint32_t>(plan.limits().begin(), plan.limits().end()),
            (std::vector<uint32_t>{0, 99, 100}));
}

TEST(AttentionPlanTest, TensorCoresTakeOnlyWhatTheyCan) {
  const auto kernel = [](size_t head_dim, const KvRun& run) {
    std::vector<float> queries(head_dim);
    std::vector<float> out(head_dim);
    float lse = 0;
    const std::vector<AttentionPart> parts = {{.run = run}};
    AttentionPlan plan({.head_dim = head_dim});
    EXPECT_TRUE(plan.Make({{{.queries = queries,
                             .parts = parts,
                             .out = absl::MakeSpan(out),
                             .lse = absl::MakeSpan(&lse, 1)}}})
                    .ok());
    for (size_t i = 0; i < kAttentionKernels; ++i) {
      if (!plan.pieces(static_cast<AttentionKernel>(i)).empty()) {
        return static_cast<AttentionKernel>(i);
      }
    }
    return AttentionKernel::kPlainFloat32;
  };
  const KvRun run = {.keys = Address(4096), .values = Address(8192), .tokens = 10};
  EXPECT_EQ(kernel(128, run), AttentionKernel::kTensorFloat16);
  EXPECT_EQ(kernel(8, run), AttentionKernel::kTensorFloat16);
  EXPECT_EQ(kernel(136, run), AttentionKernel::kPlainFloat16);
  KvRun odd = run;
  odd.values = Address(8192 + 8);
  EXPECT_EQ(kernel(128, odd), AttentionKernel::kPlainFloat16);
  odd = run;
  odd.key_stride = 258;
  EXPECT_EQ(kernel(128, odd), AttentionKernel::kPlainFloat16);
  KvRun other = run;
  other.dtype = KvDtype::kBfloat16;
  EXPECT_EQ(kernel(64, other), AttentionKernel::kTensorBfloat16);
  other.dtype = KvDtype::kFloat32;
  EXPECT_EQ(kernel(64, other), AttentionKernel::kPlainFloat32);
}

TEST(AttentionPlanTest, RefusesMoreThanItCanCountAndIsEmptyThen) {
  std::vector<MadeUpJob> jobs;
  jobs.emplace_back(4, std::vector<size_t>{100, size_t{1} << 33});
  AttentionPlan plan({.head_dim = kHeadDim});
  EXPECT_EQ(plan.Make(JobsOf(jobs)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(plan.parts().empty());
  EXPECT_EQ(plan.rows(), 0u);
  EXPECT_EQ(PieceCount(plan), 0u);
}

}  // namespace
}  // namespace terrace
