#include <lmdb.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/peers/mapped_read.h"
#include "bench/peers/store_list.h"
#include "io/aligned_buffer.h"

namespace terrace::peers {
namespace {

absl::Status ToStatus(const char* call, int error) {
  if (error == MDB_SUCCESS) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("lmdb: ", call, ": ", mdb_strerror(error)));
}

MDB_val Key(const uint64_t& id) { return {sizeof(id), const_cast<uint64_t*>(&id)}; }

class LmdbReader : public BlockReader {
 public:
  // Takes the transaction, which is reset.
  LmdbReader(MDB_txn* transaction, MDB_dbi database)
      : transaction_(transaction), database_(database) {}
  ~LmdbReader() override { mdb_txn_abort(transaction_); }

  absl::Status Get(absl::Span<const uint64_t> ids,
                   std::vector<absl::Span<const std::byte>>& blocks) override {
    absl::Status renewed = ToStatus("mdb_txn_renew", mdb_txn_renew(transaction_));
    if (!renewed.ok()) return renewed;
    blocks.assign(ids.size(), {});
    for (size_t i = 0; i < ids.size(); ++i) {
      MDB_val key = Key(ids[i]);
      MDB_val value = {0, nullptr};
      const int error = mdb_get(transaction_, database_, &key, &value);
      if (error == MDB_NOTFOUND) continue;
      if (error != MDB_SUCCESS) return ToStatus("mdb_get", error);
      blocks[i] = {static_cast<const std::byte*>(value.mv_data), value.mv_size};
    }
    ReadMapped(blocks);
    return absl::OkStatus();
  }

  void Release() override { mdb_txn_reset(transaction_); }

 private:
  MDB_txn* const transaction_;
  const MDB_dbi database_;
};

class LmdbStore : public BlockStore {
 public:
  ~LmdbStore() override {
    if (environment_ != nullptr) mdb_env_close(environment_);
  }

  absl::Status Open(const StoreOptions& options) {
    int error = mdb_env_create(&environment_);
    if (error != MDB_SUCCESS) return ToStatus("mdb_env_create", error);
    // A value has a header and starts a page of its own; the rest is for the tree.
    const size_t value_bytes = options.block_bytes + 2 * kPageBytes;
    error = mdb_env_set_mapsize(environment_, options.max_blocks * value_bytes + (64 << 20));
    if (error != MDB_SUCCESS) return ToStatus("mdb_env_set_mapsize", error);
    // Readers say themselves what to read ahead. NOSYNC: durable at Flush, as the other stores.
    constexpr unsigned kFlags = MDB_NOTLS | MDB_NORDAHEAD | MDB_NOSYNC | MDB_NOMEMINIT;
    error = mdb_env_open(environment_, options.dir.c_str(), kFlags, 0644);
    if (error != MDB_SUCCESS) return ToStatus("mdb_env_open", error);
    MDB_txn* transaction = nullptr;
    error = mdb_txn_begin(environment_, nullptr, 0, &transaction);
    if (error != MDB_SUCCESS) return ToStatus("mdb_txn_begin", error);
    error = mdb_dbi_open(transaction, nullptr, MDB_INTEGERKEY, &database_);
    if (error == MDB_SUCCESS) return ToStatus("mdb_txn_commit", mdb_txn_commit(transaction));
    mdb_txn_abort(transaction);
    return ToStatus("mdb_dbi_open", error);
  }

  absl::Status Put(absl::Span<const StoredBlock> blocks) override {
    MDB_txn* transaction = nullptr;
    int error = mdb_txn_begin(environment_, nullptr, 0, &transaction);
    if (error != MDB_SUCCESS) return ToStatus("mdb_txn_begin", error);
    for (const StoredBlock& block : blocks) {
      MDB_val key = Key(block.id);
      MDB_val value = {block.bytes.size(), const_cast<std::byte*>(block.bytes.data())};
      error = mdb_put(transaction, database_, &key, &value, 0);
      if (error == MDB_SUCCESS) continue;
      mdb_txn_abort(transaction);
      return ToStatus("mdb_put", error);
    }
    return ToStatus("mdb_txn_commit", mdb_txn_commit(transaction));
  }

  absl::Status Flush() override {
    return ToStatus("mdb_env_sync", mdb_env_sync(environment_, /*force=*/1));
  }

  absl::StatusOr<std::unique_ptr<BlockReader>> NewReader() override {
    MDB_txn* transaction = nullptr;
    const int error = mdb_txn_begin(environment_, nullptr, MDB_RDONLY, &transaction);
    if (error != MDB_SUCCESS) return ToStatus("mdb_txn_begin", error);
    mdb_txn_reset(transaction);
    return std::make_unique<LmdbReader>(transaction, database_);
  }

 private:
  MDB_env* environment_ = nullptr;
  MDB_dbi database_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BlockStore>> OpenLmdbStore(const StoreOptions& options) {
  auto store = std::make_unique<LmdbStore>();
  absl::Status opened = store->Open(options);
  if (!opened.ok()) return opened;
  return store;
}

}  // namespace terrace::peers
