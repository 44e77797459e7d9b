#ifndef TERRACE_RUNTIME_WEIGHT_ROWS_H_
#define TERRACE_RUNTIME_WEIGHT_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace terrace {

// Which rows of one layer's weights are in memory, and in which slot of its matrix. Knows nothing
// of bytes.
//
// The slots in use are always the first ones: a row comes in at the end, or into the slot of one
// that leaves for it; a row that leaves for nothing has the last row moved into its slot (Alizadeh
// et al., "LLM in a flash", 2023, section 3.3). Rows that leave for one that comes cost no move,
// which is all of them once the matrix is full.
//
// The window is a list of slots by last use, so that a token costs as much as it changes. Slots
// that are *held* are not in it and stay: pinned rows, and rows that are being read.
//
// Thread-compatible. Everything is allocated at construction.
class WeightRows {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;

  struct Inserted {
    uint32_t slot = kNone;
    uint32_t evicted_row = kNone;  // whose slot it was
  };
  struct Move {
    uint32_t from = kNone;
    uint32_t to = kNone;
  };

  // Of `rows` rows, at most `capacity` are in memory. REQUIRES: rows < kNone.
  WeightRows(uint32_t rows, uint32_t capacity);
  static uint64_t MemoryBytes(uint64_t rows, uint64_t capacity);

  uint32_t rows() const { return static_cast<uint32_t>(slot_of_.size()); }
  uint32_t capacity() const { return static_cast<uint32_t>(slots_.size()); }
  uint32_t used() const { return used_; }

  // The slot of a row, kNone when it has none.
  uint32_t Find(uint32_t row) const { return slot_of_[row]; }
  uint32_t RowIn(uint32_t slot) const { return slots_[slot].row; }
  bool held(uint32_t slot) const { return slots_[slot].held; }
  uint64_t last_use(uint32_t slot) const { return slots_[slot].token; }

  // The row was used by step `use`, of token `token`, neither of which ever goes back.
  void Touch(uint32_t slot, uint64_t use, uint64_t token);

  // A slot for a row that has none, held: that of the row which was unused for longest if its last
  // use is before token `expired`, else at the end or, with none left, that of the same row all the
  // same. None when that one belongs to step `use` itself, or all are held.
  Inserted Insert(uint32_t row, uint64_t use, uint64_t token, uint64_t expired = 0);
  // Puts a slot into the window, as the newest, or as the first that shall go.
  void Release(uint32_t slot);
  void ReleaseAsOldest(uint32_t slot);
  // Takes it out of the window again.
  void Hold(uint32_t slot);

  // The slot in the window that was unused for longest.
  std::optional<uint32_t> Oldest() const;
  // Removes a row. The caller moves the bytes of the row that takes its slot, if any. REQUIRES:
  // neither this slot nor the last one is held.
  Move Erase(uint32_t slot);
  bool last_is_held() const { return used_ > 0 && slots_[used_ - 1].held; }

 private:
  struct Slot {
    uint64_t use = 0;
    uint64_t token = 0;
    uint32_t row = kNone;
    uint32_t older = kNone;
    uint32_t newer = kNone;
    bool held = false;
  };
  void Unlink(uint32_t slot);
  void LinkNewest(uint32_t slot);
  void LinkOldest(uint32_t slot);

  std::vector<uint32_t> slot_of_;  // [rows]
  std::vector<Slot> slots_;        // [capacity]
  uint32_t used_ = 0;
  uint32_t oldest_ = kNone;
  uint32_t newest_ = kNone;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_WEIGHT_ROWS_H_
