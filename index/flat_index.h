#ifndef TERRACE_INDEX_FLAT_INDEX_H_
#define TERRACE_INDEX_FLAT_INDEX_H_

#include <memory>

#include "index/key_index.h"

namespace terrace {

// "flat": scores every key, so that it finds the best ones exactly. It is the reference of all
// others. The rows of a search share one pass over the keys. Effort means nothing to it.
std::unique_ptr<KeyIndex> MakeFlatIndex();

}  // namespace terrace

#endif  // TERRACE_INDEX_FLAT_INDEX_H_
