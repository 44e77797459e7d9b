// Opening: how the memory is divided, and what is pinned.

#include <algorithm>
#include <numeric>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/weight_pager.h"

namespace terrace {
namespace {

// Staging has a sixteenth of what memory there is beyond the least, as far as reads of 1 MiB gain
// by it; and buffers enough that the device always has some to fill.
constexpr uint64_t kStagingShare = 16;
constexpr uint64_t kMaxStagingBytes = uint64_t{16} << 20;
constexpr uint64_t kMaxBuffers = 16;
constexpr uint64_t kMinBuffers = 2;

// What the pager is called in a MemoryBudget.
constexpr char kMemoryClient[] = "weights";

// More threads than processors compute nothing sooner.
size_t UsefulThreads(size_t threads) {
  return std::min<size_t>(threads, std::max(1u, std::thread::hardware_concurrency()));
}

// Requests take little of the memory, and are enough for two layers of a large one.
constexpr uint64_t kMemoryPerRead = uint64_t{256} << 10;
constexpr uint64_t kMinReads = 64;
constexpr uint64_t kMaxReads = 1024;

WeightReaderOptions ReaderOptions(const WeightPagerOptions& options, size_t max_reads) {
  return {.depth = options.depth,
          .prefetch_depth = options.prefetch_depth,
          .gap_bytes = options.max_overread > 0 ? options.profile.CoalescingGapBytes() : 0,
          .max_overread = options.max_overread,
          .request_bytes = options.profile.AdvisedRequestBytes(),
          .max_reads = max_reads,
          .share = options.device_share,
          .timeline = options.timeline};
}

}  // namespace

struct WeightPager::Sizes {
  uint64_t fixed_bytes = 0;  // whatever the capacity
  uint64_t row_bytes = 0;    // of a row of each layer
  uint32_t capacity = 0;
  uint32_t chunk_groups = 0;
  uint32_t chunk_buffers = 0;
  size_t max_reads = 0;

  uint64_t TotalBytes() const { return fixed_bytes + capacity * row_bytes; }
};

WeightPager::Sizes WeightPager::SizesFor(const BundleShape& shape,
                                         const WeightPagerOptions& options, uint64_t spare_bytes) {
  const WeightLayout layout(shape, options);
  Sizes sizes;
  const uint64_t group = layout.group_bytes();
  const uint64_t least = kMinBuffers * group;
  const uint64_t staging =
      std::clamp(spare_bytes / kStagingShare, least, std::max(least, kMaxStagingBytes));
  const uint64_t buffers = std::clamp(staging / group, kMinBuffers, kMaxBuffers);
  sizes.chunk_buffers = static_cast<uint32_t>(buffers);
  sizes.chunk_groups = static_cast<uint32_t>(
      std::clamp<uint64_t>(staging / buffers / group, 1, layout.layer_groups()));
  const uint64_t step = layout.layer_rows() * (sizeof(Entry) + sizeof(uint32_t)) +
                        layout.layer_groups() * 2 * sizeof(FfnGroup) +
                        layout.layer_neurons() * sizeof(float);
  sizes.max_reads = std::clamp(spare_bytes / kMemoryPerRead, kMinReads, kMaxReads);
  sizes.fixed_bytes = sizes.chunk_buffers * sizes.chunk_groups * group + step +
                      WeightReader::MemoryBytes(ReaderOptions(options, sizes.max_reads)) +
                      shape.layers * WeightRows::MemoryBytes(layout.layer_rows(), 0);
  sizes.row_bytes =
      shape.layers * (layout.row_bytes() + sizeof(SlotState) + WeightRows::MemoryBytes(0, 1)) +
      sizeof(uint32_t);
  return sizes;
}

uint64_t WeightPager::MinDramBytes(const BundleShape& shape, const WeightPagerOptions& options) {
  const Sizes sizes = SizesFor(shape, options, 0);
  return sizes.fixed_bytes + sizes.row_bytes;
}

absl::StatusOr<WeightPager::Sizes> WeightPager::FittingSizes(const BundleShape& shape,
                                                             const WeightPagerOptions& options) {
  absl::Status status = options.Validate();
  if (status.ok()) status = shape.Validate();
  if (!status.ok()) return status;
  if (options.row == WeightRow::kExpert && !shape.groups_are_runs()) {
    return absl::InvalidArgumentError("weights: rows of whole experts need a bundled layout");
  }
  const uint64_t needed = MinDramBytes(shape, options);
  if (options.dram_bytes < needed) {
    return absl::InvalidArgumentError(
        absl::StrCat("weights: ", shape.ToString(), " need at least ", needed,
                     " bytes of memory, a row of each layer among them, and ", options.dram_bytes,
                     " are given"));
  }
  Sizes sizes = SizesFor(shape, options, options.dram_bytes - needed);
  const WeightLayout layout(shape, options);
  sizes.capacity = static_cast<uint32_t>(std::min<uint64_t>(
      (options.dram_bytes - sizes.fixed_bytes) / sizes.row_bytes, layout.layer_rows()));
  return sizes;
}

absl::StatusOr<std::unique_ptr<WeightPager>> WeightPager::Open(
    std::shared_ptr<const BundleFile> file, const WeightPagerOptions& options) {
  FileDeviceOptions device_options;
  device_options.path = file->path();
  device_options.read_only = true;
  device_options.direct_io = options.direct_io;
  device_options.engine = options.engine;
  device_options.depth = options.depth;
  absl::StatusOr<std::unique_ptr<BlockDevice>> device = OpenFileDevice(device_options);
  if (!device.ok()) return device.status();
  return Open(std::move(file), options, *std::move(device));
}

absl::StatusOr<std::unique_ptr<WeightPager>> WeightPager::Open(
    std::shared_ptr<const BundleFile> file, const WeightPagerOptions& given,
    std::unique_ptr<BlockDevice> device) {
  WeightPagerOptions options = given;
  if (options.memory != nullptr && options.dram_bytes == 0) {
    const absl::StatusOr<uint64_t> available = options.memory->Available(kMemoryClient);
    if (!available.ok()) return available.status();
    options.dram_bytes = *available;
  }
  absl::StatusOr<Sizes> sizes = FittingSizes(file->shape(), options);
  if (!sizes.ok()) return sizes.status();
  MemoryReservation reservation;
  if (options.memory != nullptr) {
    absl::StatusOr<MemoryReservation> reserved =
        options.memory->Reserve(kMemoryClient, sizes->TotalBytes());
    if (!reserved.ok()) return reserved.status();
    reservation = *std::move(reserved);
  }
  const WeightLayout layout(file->shape(), options);
  const size_t arena_bytes =
      size_t{file->shape().layers} * sizes->capacity * layout.row_bytes() +
      size_t{sizes->chunk_buffers} * sizes->chunk_groups * layout.group_bytes();
  absl::StatusOr<AlignedBuffer> arena = AlignedBuffer::Create(arena_bytes);
  if (!arena.ok()) return arena.status();
  const iovec memory = {.iov_base = arena->data(), .iov_len = arena->size()};
  absl::StatusOr<std::unique_ptr<WeightReader>> reader = WeightReader::Create(
      std::move(device), ReaderOptions(options, sizes->max_reads), {&memory, 1});
  if (!reader.ok()) return reader.status();
  auto pager = std::unique_ptr<WeightPager>(
      new WeightPager(std::move(file), options, *sizes, *std::move(arena)));
  pager->reservation_ = std::move(reservation);
  pager->reader_ = *std::move(reader);
  pager->PinRows();
  return pager;
}

WeightPager::WeightPager(std::shared_ptr<const BundleFile> file, const WeightPagerOptions& options,
                         const Sizes& sizes, AlignedBuffer arena)
    : file_(std::move(file)),
      options_(options),
      layout_(file_->shape(), options),
      memory_bytes_(sizes.TotalBytes()),
      capacity_(sizes.capacity),
      chunk_groups_(sizes.chunk_groups),
      chunk_buffers_(sizes.chunk_buffers),
      arena_(std::move(arena)),
      staging_(arena_.data() +
               size_t{file_->shape().layers} * sizes.capacity * layout_.row_bytes()),
      own_pool_(options.pool == nullptr
                    ? std::make_unique<ComputePool>(UsefulThreads(options.threads))
                    : nullptr),
      pool_(options.pool == nullptr ? *own_pool_ : *options.pool),
      ffn_(*file_, layout_, pool_),
      marks_((layout_.layer_rows() + 63) / 64),
      entry_of_(capacity_),
      scales_(layout_.layer_neurons()) {
  layers_.reserve(file_->shape().layers);
  for (uint32_t layer = 0; layer < file_->shape().layers; ++layer) {
    layers_.push_back({.rows = WeightRows(layout_.layer_rows(), capacity_),
                       .slots = std::vector<SlotState>(capacity_),
                       .memory = arena_.data() + size_t{layer} * capacity_ * layout_.row_bytes(),
                       .pinned = 0});
  }
  entries_.reserve(layout_.layer_rows());
  ready_.reserve(layout_.layer_rows());
  groups_.reserve(layout_.layer_groups());
  active_.reserve(layout_.layer_groups());
}

WeightPager::~WeightPager() {
  // Reads go into the arena until the last of them is over.
  reader_.reset();
}

void WeightPager::PinRows() {
  const auto count = static_cast<uint32_t>(static_cast<double>(capacity_) * options_.pinned_share);
  if (count == 0 || (options_.pin_hottest && file_->tables().frequency.empty())) return;
  for (uint32_t layer = 0; layer < layers_.size(); ++layer) {
    PinRows(layer, count);
    ReadPlanned();
    // What fails is not there, and is read again when it is required.
    while (reader_->under_way() > 0) HandleArrivals(reader_->Wait());
  }
  const WeightReaderStats reads = reader_->Stats();
  stats_.pinned_bytes = reads.read_bytes;
  pinned_wanted_bytes_ = reads.wanted_bytes;
  pinned_io_seconds_ = reads.io_seconds;
}

void WeightPager::SortByUse(uint32_t layer, std::vector<uint32_t>& rows) const {
  const BundleShape& shape = layout_.shape();
  // How often a token needs the row, if its neurons fire independently; for an expert, which fires
  // as a whole, this is only an order.
  std::vector<float> use(layout_.layer_rows(), 0);
  for (uint32_t place = 0; place < layout_.layer_neurons(); ++place) {
    const uint32_t unit = shape.unit(layer, place / shape.neurons);
    const float frequency = file_->Frequency(unit)[place % shape.neurons];
    float& row = use[layout_.RowOfPlace(place)];
    row = options_.row == WeightRow::kExpert ? row + frequency : row + (1 - row) * frequency;
  }
  std::stable_sort(rows.begin(), rows.end(),
                   [&use](uint32_t a, uint32_t b) { return use[a] > use[b]; });
}

void WeightPager::PinRows(uint32_t layer, uint32_t count) {
  std::vector<uint32_t> order(layout_.layer_rows());
  std::iota(order.begin(), order.end(), 0u);
  if (options_.pin_hottest) SortByUse(layer, order);
  order.resize(std::min<size_t>(count, order.size()));
  std::sort(order.begin(), order.end());  // large reads where hot rows are neighbours
  Layer& to = layers_[layer];
  to.pinned = static_cast<uint32_t>(order.size());
  for (const uint32_t row : order) {
    const uint32_t slot = to.rows.Insert(row, 0, 0).slot;
    PlanReads(layer, slot, layout_.all_fragments());
  }
}

}  // namespace terrace
