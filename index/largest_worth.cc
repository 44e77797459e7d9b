#include "index/largest_worth.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <functional>
#include <limits>

#include "index/cluster_kernels.h"

namespace terrace {
namespace {

// Floats that are not negative are ordered as their bits are: the exponent and three bits more.
constexpr unsigned kBinShift = 20;
constexpr size_t kBins = (size_t{0x7f800000} >> kBinShift) + 1;  // up to infinity

size_t Bin(float worth) { return std::bit_cast<uint32_t>(worth) >> kBinShift; }
float BinFloor(size_t bin) { return std::bit_cast<float>(static_cast<uint32_t>(bin << kBinShift)); }

}  // namespace

WorthCut::WorthCut(absl::Span<const float> worth, size_t most, std::vector<float>& scratch) {
  // Two counts a bin, since neighbours are often alike and would wait for each other.
  std::array<uint32_t, kBins> counts{};
  std::array<uint32_t, kBins> others{};
  for (size_t i = 0; i + 1 < worth.size(); i += 2) {
    ++counts[Bin(worth[i])];
    ++others[Bin(worth[i + 1])];
  }
  if (worth.size() % 2 == 1) ++counts[Bin(worth.back())];
  for (size_t i = 0; i < kBins; ++i) counts[i] += others[i];
  count_ = std::min(most, worth.size());
  size_t left = count_;
  size_t bin = kBins;  // those from here on are chosen
  while (bin > 0 && counts[bin - 1] <= left) left -= counts[--bin];
  if (bin == 0 || left == 0) {
    // The floor itself belongs to the bin; beyond the last one it is above all numbers.
    least_ = bin == kBins ? std::numeric_limits<float>::infinity() : BinFloor(bin);
    ties_ = bin == kBins ? 0 : worth.size();
    return;
  }
  --bin;  // which has some of the rest
  scratch.clear();
  for (const float x : worth) {
    if (Bin(x) == bin) scratch.push_back(x);
  }
  const auto last = scratch.begin() + static_cast<ptrdiff_t>(left - 1);
  std::nth_element(scratch.begin(), last, scratch.end(), std::greater<>());
  least_ = *last;
  ties_ = left - static_cast<size_t>(
                     std::count_if(scratch.begin(), last, [&](float x) { return x > least_; }));
}

void WorthCut::Collect(absl::Span<const float> worth, std::vector<uint32_t>& taken) const {
  taken.resize(worth.size() + kNumbersRoom);
  taken.resize(NumbersFrom(worth.data(), worth.size(), least_, taken.data()));
  if (taken.size() == count_) return;
  size_t ties = ties_;
  std::erase_if(taken, [&](uint32_t i) {
    if (worth[i] > least_) return false;
    if (ties == 0) return true;
    --ties;
    return false;
  });
}

}  // namespace terrace
