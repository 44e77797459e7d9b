#ifndef TERRACE_BENCH_PEERS_STORE_LIST_H_
#define TERRACE_BENCH_PEERS_STORE_LIST_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "bench/peers/block_store.h"

namespace terrace::peers {

using OpenStore = absl::StatusOr<std::unique_ptr<BlockStore>> (*)(const StoreOptions&);

struct StoreKind {
  std::string name;
  OpenStore open = nullptr;  // null when the program was built without the peer's package
  std::string note;          // how it is used, or the package that it lacks
};

// Every store of the benchmark, Terrace first.
absl::Span<const StoreKind> AllStores();

absl::StatusOr<std::unique_ptr<BlockStore>> OpenTerraceStore(const StoreOptions& options);
absl::StatusOr<std::unique_ptr<BlockStore>> OpenRocksDbStore(const StoreOptions& options);
absl::StatusOr<std::unique_ptr<BlockStore>> OpenLmdbStore(const StoreOptions& options);
absl::StatusOr<std::unique_ptr<BlockStore>> OpenDirectFileStore(const StoreOptions& options);
absl::StatusOr<std::unique_ptr<BlockStore>> OpenReadAheadFileStore(const StoreOptions& options);
absl::StatusOr<std::unique_ptr<BlockStore>> OpenMmapStore(const StoreOptions& options);

}  // namespace terrace::peers

#endif  // TERRACE_BENCH_PEERS_STORE_LIST_H_
