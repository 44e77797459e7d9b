#include "runtime/device_rows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "io/copy_engine.h"
#include "io/cuda_copy_engine.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr size_t kPanels = 5;
constexpr size_t kPanelRows = 33;

absl::StatusOr<std::unique_ptr<DeviceRows>> MakeRows(bool on_host, size_t row_bytes) {
  return on_host ? MakeHostRows(row_bytes, 2) : MakeCudaRows(row_bytes, 0);
}

// Rows in panels of a device, behind a copy engine. Panels lie in memory in another order than they
// are numbered, with gaps.
class RowsRig {
 public:
  RowsRig(CopyEngine& engine, size_t row_bytes, size_t packed_rows)
      : engine_(engine), row_bytes_(row_bytes) {
    panel_bytes_ = kPanelRows * row_bytes + 48;
    memory_ = *engine.Allocate(kPanels * panel_bytes_);
    packed_ = *engine.Allocate(std::max<size_t>(packed_rows * row_bytes, 16));
    for (size_t i = 0; i < kPanels; ++i) {
      panels_.push_back(memory_->data() + (i * 2 + 1) % kPanels * panel_bytes_);
    }
    host_.resize(memory_->size());
    std::mt19937 random(static_cast<unsigned>(row_bytes));
    for (std::byte& byte : host_) byte = static_cast<std::byte>(random());
    Send(host_, memory_->data());
  }

  RowPanels panels() const { return {.panels = panels_, .panel_rows = kPanelRows}; }
  std::byte* packed() const { return packed_->data(); }
  // Of the bytes as they were.
  std::byte* row(uint32_t number) {
    return host_.data() + (panels_[number / kPanelRows] - memory_->data()) +
           number % kPanelRows * row_bytes_;
  }

  void Send(std::vector<std::byte>& from, std::byte* to) {
    Run({.source = from.data(),
         .destination = to,
         .bytes = from.size(),
         .direction = CopyDirection::kHostToDevice});
  }
  std::vector<std::byte> Fetch(const std::byte* from, size_t bytes) {
    std::vector<std::byte> to(bytes);
    Run({.source = from,
         .destination = to.data(),
         .bytes = bytes,
         .direction = CopyDirection::kDeviceToHost});
    return to;
  }
  std::vector<std::byte> FetchPanels() { return Fetch(memory_->data(), memory_->size()); }
  const std::vector<std::byte>& host() const { return host_; }

 private:
  void Run(const Copy& copy) {
    const auto ticket = engine_.Submit({&copy, 1});
    ASSERT_TRUE(ticket.ok()) << ticket.status();
    const absl::Status status = engine_.Wait(*ticket);
    ASSERT_TRUE(status.ok()) << status;
  }

  CopyEngine& engine_;
  const size_t row_bytes_;
  size_t panel_bytes_ = 0;
  std::unique_ptr<DeviceMemory> memory_;
  std::unique_ptr<DeviceMemory> packed_;
  std::vector<std::byte*> panels_;
  std::vector<std::byte> host_;
};

std::vector<uint32_t> SomeRows(size_t count) {
  std::vector<uint32_t> rows(kPanels * kPanelRows);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<uint32_t>(i);
  std::shuffle(rows.begin(), rows.end(), std::mt19937(7));
  rows.resize(count);
  return rows;
}

void ExpectGathered(CopyEngine& engine, bool on_host) {
  for (const size_t row_bytes : {16u, 48u, 256u, 4096u}) {
    for (const size_t count : {0u, 1u, 70u, 165u}) {
      RowsRig rig(engine, row_bytes, count);
      const auto rows = MakeRows(on_host, row_bytes);
      ASSERT_TRUE(rows.ok()) << rows.status();
      const std::vector<uint32_t> numbers = SomeRows(count);
      const absl::Status status = (*rows)->Gather(rig.panels(), numbers, rig.packed());
      ASSERT_TRUE(status.ok()) << status;
      const std::vector<std::byte> packed = rig.Fetch(rig.packed(), count * row_bytes);
      for (size_t i = 0; i < count; ++i) {
        EXPECT_EQ(std::memcmp(packed.data() + i * row_bytes, rig.row(numbers[i]), row_bytes), 0)
            << "row " << numbers[i] << " of " << row_bytes << " bytes";
      }
      EXPECT_EQ(rig.FetchPanels(), rig.host());
    }
  }
}

void ExpectScattered(CopyEngine& engine, bool on_host) {
  for (const size_t row_bytes : {16u, 48u, 256u, 4096u}) {
    constexpr size_t kCount = 70;
    RowsRig rig(engine, row_bytes, kCount);
    const auto rows = MakeRows(on_host, row_bytes);
    ASSERT_TRUE(rows.ok()) << rows.status();
    const std::vector<uint32_t> numbers = SomeRows(kCount);
    std::vector<std::byte> packed(kCount * row_bytes);
    std::mt19937 random(11);
    for (std::byte& byte : packed) byte = static_cast<std::byte>(random());
    rig.Send(packed, rig.packed());
    const absl::Status status = (*rows)->Scatter(rig.packed(), numbers, rig.panels());
    ASSERT_TRUE(status.ok()) << status;
    for (size_t i = 0; i < kCount; ++i) {
      std::memcpy(rig.row(numbers[i]), packed.data() + i * row_bytes, row_bytes);
    }
    // Those that are not named, and the gaps, are as before.
    EXPECT_EQ(rig.FetchPanels(), rig.host()) << row_bytes << " bytes a row";
  }
}

TEST(DeviceRowsTest, GatherOnTheHostPacksTheRowsThatAreNamed) {
  ExpectGathered(*MakeHostCopyEngine(), /*on_host=*/true);
}

TEST(DeviceRowsTest, ScatterOnTheHostWritesTheRowsThatAreNamedAndNoOthers) {
  ExpectScattered(*MakeHostCopyEngine(), /*on_host=*/true);
}

TEST(DeviceRowsTest, RefusesRowsThatThereAreNotAndAddressesThatAreNotAligned) {
  const auto engine = MakeHostCopyEngine();
  RowsRig rig(*engine, 64, 4);
  const auto rows = *MakeHostRows(64, 1);
  const uint32_t beyond[] = {0, kPanels * kPanelRows};
  absl::Status status = rows->Gather(rig.panels(), beyond, rig.packed());
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("row 165 of 165"));
  const uint32_t first[] = {0};
  EXPECT_EQ(rows->Scatter(rig.packed() + 8, first, rig.panels()).code(),
            absl::StatusCode::kInvalidArgument);
  std::byte* const misaligned[] = {rig.packed() + 4};
  EXPECT_EQ(rows->Gather({.panels = misaligned, .panel_rows = 1}, first, rig.packed()).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(rows->Gather({.panels = misaligned, .panel_rows = 0}, first, rig.packed()).code(),
            absl::StatusCode::kInvalidArgument);
  for (const bool on_host : {true, false}) {
    if (!on_host && !BuiltWithCuda()) continue;
    for (const size_t bytes : {0u, 24u, 2u << 20}) {
      EXPECT_EQ(MakeRows(on_host, bytes).status().code(), absl::StatusCode::kInvalidArgument);
    }
  }
}

class DeviceRowsOnDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto engine = MakeCudaCopyEngine({.device = 0, .pool_bytes = 16 << 20});
    if (!engine.ok()) GTEST_SKIP() << engine.status();
    engine_ = *std::move(engine);
  }
  std::unique_ptr<CopyEngine> engine_;
};

TEST_F(DeviceRowsOnDeviceTest, GatherPacksTheRowsThatAreNamed) {
  ExpectGathered(*engine_, /*on_host=*/false);
}

TEST_F(DeviceRowsOnDeviceTest, ScatterWritesTheRowsThatAreNamedAndNoOthers) {
  ExpectScattered(*engine_, /*on_host=*/false);
}

TEST(DeviceRowsTest, WithoutADeviceSaysWhy) {
  const auto rows = MakeCudaRows(256, 0);
  if (rows.ok()) GTEST_SKIP() << "a device answers";
  EXPECT_EQ(rows.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(rows.status().message(), HasSubstr("CUDA rows: "));
}

}  // namespace
}  // namespace terrace
