#include <malloc.h>
#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/peers/store_list.h"

namespace terrace::peers {
namespace {

absl::Status ToStatus(const rocksdb::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("rocksdb: ", status.ToString()));
}

rocksdb::Slice Key(const uint64_t& id) { return {reinterpret_cast<const char*>(&id), sizeof(id)}; }

class RocksDbReader : public BlockReader {
 public:
  RocksDbReader(rocksdb::DB& db, size_t max_batch)
      : db_(db), keys_(max_batch), values_(max_batch), statuses_(max_batch) {
    read_.async_io = true;
    read_.optimize_multiget_for_io = true;
  }

  absl::Status Get(absl::Span<const uint64_t> ids,
                   std::vector<absl::Span<const std::byte>>& blocks) override {
    for (size_t i = 0; i < ids.size(); ++i) keys_[i] = Key(ids[i]);
    db_.MultiGet(read_, db_.DefaultColumnFamily(), ids.size(), keys_.data(), values_.data(),
                 statuses_.data());
    used_ = ids.size();
    blocks.assign(ids.size(), {});
    for (size_t i = 0; i < ids.size(); ++i) {
      if (statuses_[i].IsNotFound()) continue;
      if (!statuses_[i].ok()) return ToStatus(statuses_[i]);
      blocks[i] = {reinterpret_cast<const std::byte*>(values_[i].data()), values_[i].size()};
    }
    return absl::OkStatus();
  }

  void Release() override {
    for (size_t i = 0; i < used_; ++i) values_[i].Reset();
    used_ = 0;
  }

 private:
  rocksdb::DB& db_;
  rocksdb::ReadOptions read_;
  std::vector<rocksdb::Slice> keys_;
  std::vector<rocksdb::PinnableSlice> values_;
  std::vector<rocksdb::Status> statuses_;
  size_t used_ = 0;  // values that hold a pin
};

class RocksDbStore : public BlockStore {
 public:
  RocksDbStore(std::unique_ptr<rocksdb::DB> db, size_t max_batch)
      : db_(std::move(db)), max_batch_(max_batch) {}

  absl::Status Put(absl::Span<const StoredBlock> blocks) override {
    rocksdb::WriteBatch batch;
    for (const StoredBlock& block : blocks) {
      const rocksdb::Slice value(reinterpret_cast<const char*>(block.bytes.data()),
                                 block.bytes.size());
      const rocksdb::Status added = batch.Put(Key(block.id), value);
      if (!added.ok()) return ToStatus(added);
    }
    // Blocks need not survive a crash before Flush, as in the other stores: no log.
    rocksdb::WriteOptions options;
    options.disableWAL = true;
    return ToStatus(db_->Write(options, &batch));
  }

  absl::Status Flush() override { return ToStatus(db_->Flush(rocksdb::FlushOptions())); }

  absl::StatusOr<std::unique_ptr<BlockReader>> NewReader() override {
    return std::make_unique<RocksDbReader>(*db_, max_batch_);
  }

 private:
  const std::unique_ptr<rocksdb::DB> db_;
  const size_t max_batch_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BlockStore>> OpenRocksDbStore(const StoreOptions& options) {
  // Arenas of many threads lose more to fragments than the caches hold.
  ::mallopt(M_ARENA_MAX, 1);
  rocksdb::Options db;
  db.create_if_missing = true;
  db.compression = rocksdb::kNoCompression;
  db.blob_compression_type = rocksdb::kNoCompression;
  db.use_direct_reads = true;
  db.use_direct_io_for_flush_and_compaction = true;
  db.max_open_files = -1;
  db.enable_blob_files = true;
  db.min_blob_size = 0;
  // Three memtables of a 32nd and five eighths for blobs. The rest goes to the buffers of flushes
  // and reads and to what malloc loses; with more, the process outgrows its budget.
  db.write_buffer_size = options.memory_bytes / 32;
  db.max_write_buffer_number = 3;
  db.blob_cache = rocksdb::NewLRUCache(options.memory_bytes / 8 * 5);
  db.prepopulate_blob_cache = rocksdb::PrepopulateBlobCache::kFlushOnly;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(options.memory_bytes / 32);  // keys alone
  db.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));

  rocksdb::DB* opened = nullptr;
  const rocksdb::Status status = rocksdb::DB::Open(db, options.dir, &opened);
  if (!status.ok()) return ToStatus(status);
  return std::make_unique<RocksDbStore>(std::unique_ptr<rocksdb::DB>(opened), options.max_batch);
}

}  // namespace terrace::peers
