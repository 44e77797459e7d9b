#include "runtime/sparse_ffn.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/time/clock.h"
#include "io/check.h"
#include "runtime/ffn_kernels.h"

namespace terrace {
namespace {

// Bytes of a job, some 20 us of work: many times the cost of a task, and few enough that threads
// end together.
constexpr size_t kJobBytes = size_t{128} << 10;

// Columns of a job are at least so many: whole cache lines, and rows that memory streams well.
constexpr size_t kMinColumns = 512;

// Down columns that are added in one pass.
constexpr size_t kRowsAtOnce = 8;

float Activated(Activation activation, float value) {
  switch (activation) {
    case Activation::kRelu:
      return value <= 0 ? 0 : value;  // NaN stays NaN
    case Activation::kSilu:
      return value / (1 + std::exp(-value));
  }
  return 0;
}

}  // namespace

SparseFfn::SparseFfn(const BundleFile& file, const WeightLayout& layout, ComputePool& pool)
    : file_(file), layout_(layout), pool_(pool), sums_(pool.threads(), std::vector<float>(1)) {}

double SparseFfn::verify_seconds() const {
  return static_cast<double>(verify_nanoseconds_.load(std::memory_order_relaxed)) * 1e-9;
}

void SparseFfn::Activate(uint32_t layer, const FfnInput& input, absl::Span<FfnGroup> groups) {
  for (std::vector<float>& sums : sums_) {
    if (sums.size() < input.tokens) sums.resize(input.tokens);
  }
  const size_t job_groups = std::max<size_t>(1, kJobBytes / layout_.group_bytes());
  const size_t jobs = (groups.size() + job_groups - 1) / job_groups;
  pool_.ForEach(jobs, [&](size_t job, size_t worker) {
    const size_t first = job * job_groups;
    int64_t verify_nanoseconds = 0;
    for (FfnGroup& group : groups.subspan(first, std::min(job_groups, groups.size() - first))) {
      group.intact = true;
      if (group.verify != 0) {
        const int64_t start = absl::GetCurrentTimeNanos();
        group.intact = Verify(layer, group);
        verify_nanoseconds += absl::GetCurrentTimeNanos() - start;
      }
      if (group.intact) {
        ActivateOne(input, group, absl::MakeSpan(sums_[worker]).first(input.tokens));
      }
    }
    verify_nanoseconds_.fetch_add(verify_nanoseconds, std::memory_order_relaxed);
  });
}

bool SparseFfn::Verify(uint32_t layer, const FfnGroup& group) const {
  for (uint32_t fragment = 0; fragment < layout_.fragments(); ++fragment) {
    if ((group.verify & (1u << fragment)) == 0) continue;
    const absl::Span<const std::byte> bytes(group.bytes + layout_.MemoryOffset(fragment),
                                            layout_.GroupFragmentBytes(fragment));
    if (!file_.Verify(layout_.FileOffset(layer, group.group, fragment), bytes).ok()) return false;
  }
  return true;
}

void SparseFfn::ActivateOne(const FfnInput& input, FfnGroup& group, absl::Span<float> sums) const {
  const BundleShape& shape = layout_.shape();
  const size_t tokens = input.tokens;
  const auto part = [&](uint32_t index, uint32_t neuron) {
    return group.bytes + layout_.PartOffset(index) + neuron * layout_.PartStride(index);
  };
  const auto dot = [&](uint32_t index, uint32_t neuron, absl::Span<float> to) {
    DotTokens(shape.dtype, part(index, neuron), input.x.data(), shape.width, shape.width, to);
  };
  const uint32_t expert = layout_.ExpertOfGroup(group.group);
  group.fires = false;
  for (uint32_t neuron = 0; neuron < layout_.NeuronsIn(group.group); ++neuron) {
    const absl::Span<float> scales(group.scales + neuron * tokens, tokens);
    bool any = false;
    if (group.stage != FfnStage::kRest) dot(0, neuron, scales);
    for (float& scale : scales) {
      if (group.stage != FfnStage::kRest) scale = Activated(shape.activation, scale);
      any |= scale != 0;
    }
    group.fires |= any;
    if (group.stage == FfnStage::kGate || !any) continue;
    if (shape.gated) {
      dot(1, neuron, sums);
      // What does not fire stays exactly zero, whatever its up-projection is.
      for (size_t t = 0; t < tokens; ++t) scales[t] = scales[t] == 0 ? 0 : scales[t] * sums[t];
    }
    if (input.expert_weights.empty()) continue;
    for (size_t t = 0; t < tokens; ++t) {
      scales[t] *= input.expert_weights[t * shape.experts + expert];
    }
  }
}

void SparseFfn::AddDown(absl::Span<const FfnGroup> groups, size_t tokens, absl::Span<float> out) {
  const size_t width = layout_.shape().width;
  TERRACE_CHECK_EQ(out.size(), tokens * width);
  // Few tokens share each row of `out` among the threads by columns, in multiples of a cache line.
  size_t tiles = std::clamp<size_t>(width / kMinColumns, 1, pool_.threads());
  if (tokens >= 2 * pool_.threads()) tiles = 1;
  const size_t columns = (width / tiles + 15) / 16 * 16;
  pool_.ForEach(tokens * tiles, [&](size_t job, size_t) {
    const size_t token = job / tiles;
    const size_t begin = std::min(width, job % tiles * columns);
    const size_t end = job % tiles + 1 == tiles ? width : std::min(width, begin + columns);
    AddColumns(groups, tokens, token, begin, end, out.data() + token * width + begin);
  });
}

void SparseFfn::AddColumns(absl::Span<const FfnGroup> groups, size_t tokens, size_t token,
                           size_t begin, size_t end, float* out) const {
  const BundleShape& shape = layout_.shape();
  const uint32_t down = shape.parts() - 1;
  const size_t start = layout_.PartOffset(down) + begin * KvDtypeBytes(shape.dtype);
  std::array<const void*, kRowsAtOnce> rows;
  std::array<float, kRowsAtOnce> scales;
  size_t count = 0;
  const auto flush = [&] {
    AddScaledRows(shape.dtype, absl::MakeConstSpan(rows).first(count),
                  absl::MakeConstSpan(scales).first(count), end - begin, out);
    count = 0;
  };
  for (const FfnGroup& group : groups) {
    const std::byte* row = group.bytes + start;
    const uint32_t neurons = layout_.NeuronsIn(group.group);
    for (uint32_t i = 0; i < neurons; ++i, row += layout_.PartStride(down)) {
      const float scale = group.scales[i * tokens + token];
      if (scale == 0) continue;
      rows[count] = row;
      scales[count++] = scale;
      if (count == kRowsAtOnce) flush();
    }
  }
  flush();
}

}  // namespace terrace
