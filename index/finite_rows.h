#ifndef TERRACE_INDEX_FINITE_ROWS_H_
#define TERRACE_INDEX_FINITE_ROWS_H_

#include <cstddef>
#include <optional>

#include "index/key_panels.h"

namespace terrace {

// The first of the rows [first, end) with an element that is NaN or infinite, if there is one.
std::optional<size_t> FirstNotFinite(const KeyPanels& rows, size_t first, size_t end);

}  // namespace terrace

#endif  // TERRACE_INDEX_FINITE_ROWS_H_
