#include "bench/peers/store_list.h"

namespace terrace::peers {
namespace {

// bench/peers/CMakeLists.txt defines these when it found the package.
#ifdef TERRACE_PEERS_ROCKSDB
constexpr OpenStore kOpenRocksDb = OpenRocksDbStore;
constexpr char kRocksDbNote[] = "BlobDB, direct I/O, MultiGet with async_io, no WAL";
#else
constexpr OpenStore kOpenRocksDb = nullptr;
constexpr char kRocksDbNote[] = "not built: needs librocksdb-dev, and no sanitizer";
#endif
#ifdef TERRACE_PEERS_LMDB
constexpr OpenStore kOpenLmdb = OpenLmdbStore;
constexpr char kLmdbNote[] = "one read transaction a batch, read ahead with madvise, no sync";
#else
constexpr OpenStore kOpenLmdb = nullptr;
constexpr char kLmdbNote[] = "not built: needs liblmdb-dev";
#endif

}  // namespace

absl::Span<const StoreKind> AllStores() {
  static const std::vector<StoreKind>* const kStores = new std::vector<StoreKind>{
      {"terrace", OpenTerraceStore, "TierManager, DRAM and NVMe, direct I/O"},
      {"rocksdb", kOpenRocksDb, kRocksDbNote},
      {"lmdb", kOpenLmdb, kLmdbNote},
      {"files", OpenDirectFileStore, "one file a block, kept open, direct pread one by one"},
      {"files-ahead", OpenReadAheadFileStore, "the same, page cache, posix_fadvise for the batch"},
      {"mmap", OpenMmapStore, "one file, a slot a block, madvise for the batch"},
  };
  return *kStores;
}

}  // namespace terrace::peers
