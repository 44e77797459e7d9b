#include "tools/fsck_report.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "tools/byte_size.h"
#include "tools/table.h"

namespace terrace {
namespace {

constexpr size_t kMaxRows = 40;  // of damage, for people

const char* RetentionName(Retention retention) {
  return retention == Retention::kOwned ? "owned" : "cached";
}

uint64_t SegmentCount(const CheckReport& report) {
  return report.superblock.geometry.segment_count;
}

nlohmann::ordered_json DamageJson(const std::vector<Damage>& damages) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Damage& damage : damages) {
    nlohmann::ordered_json json;
    json["kind"] = DamageKindName(damage.kind);
    json["segment"] = nullptr;
    if (damage.segment) json["segment"] = static_cast<uint32_t>(*damage.segment);
    json["offset"] = damage.offset;
    if (damage.block) {
      json["id"] = FormatBlockId(damage.block->id);
      json["first_damaged_page"] = damage.block->first_damaged_page;
      json["retention"] = RetentionName(damage.block->retention);
      json["encrypted"] = damage.block->encrypted;
      json["newer_copy"] = damage.block->newer_copy;
      json["older_copy"] = damage.block->older_copy;
    }
    json["detail"] = damage.detail;
    list.push_back(std::move(json));
  }
  return list;
}

std::string TierTable(const CheckReport& report) {
  const CheckReport::Blocks& blocks = report.blocks;
  Table table({{"", Align::kLeft}, {"", Align::kLeft}});
  table.AddRow({"segments", absl::StrCat(FormatCount(SegmentCount(report)), ": ",
                                         FormatCount(report.segments.sealed), " sealed, ",
                                         FormatCount(report.segments.unsealed), " unsealed, ",
                                         FormatCount(report.segments.free), " free")});
  table.AddRow({"blocks", absl::StrCat(FormatCount(blocks.live()), ": ", FormatCount(blocks.owned),
                                       " owned, ", FormatCount(blocks.cached), " cached; ",
                                       FormatCount(blocks.encrypted), " of them encrypted")});
  table.AddRow({"other copies", absl::StrCat(FormatCount(blocks.stale_copies), " stale, ",
                                             FormatCount(blocks.dead), " dropped")});
  table.AddRow({"checked", FormatByteSize(report.bytes_checked)});
  return table.ToString();
}

std::string DamageTable(const std::vector<Damage>& damages) {
  Table table({{"damage", Align::kLeft},
               {"segment"},
               {"offset"},
               {"block", Align::kLeft},
               {"what", Align::kLeft}});
  for (size_t i = 0; i < damages.size() && i < kMaxRows; ++i) {
    const Damage& damage = damages[i];
    std::string block;
    if (damage.block) {
      block =
          absl::StrCat(FormatBlockId(damage.block->id), " ", RetentionName(damage.block->retention),
                       damage.block->encrypted ? ", encrypted" : "");
    }
    table.AddRow({DamageKindName(damage.kind),
                  damage.segment ? absl::StrCat(static_cast<uint32_t>(*damage.segment)) : "",
                  absl::StrCat(damage.offset), block, damage.detail});
  }
  std::string text = table.ToString();
  if (damages.size() > kMaxRows) {
    absl::StrAppend(&text, "and ", FormatCount(damages.size() - kMaxRows),
                    " more, which --json lists\n");
  }
  return text;
}

std::string Remarks(const CheckReport& report) {
  std::string text;
  if (report.unfinished_groups > 0) {
    absl::StrAppend(
        &text, FormatCount(report.unfinished_groups),
        " groups are unfinished, as a crash leaves them: no flush had promised them.\n");
  }
  if (report.unfinished_start) {
    text += "The tier is empty: its process ended while it was being made.\n";
  }
  return text;
}

std::string Meaning(const FsckReport& report) {
  const std::string damages =
      absl::StrCat(FormatCount(report.found.damage.size()), " damages, ",
                   FormatCount(report.found.damaged_blocks), " of them in blocks");
  if (report.found.clean()) return "Clean: every block that the tier holds has its bytes.";
  if (!report.after) {
    return absl::StrCat("DAMAGED: ", damages,
                        ". Damaged blocks are misses when they are fetched, never wrong bytes; "
                        "--repair mends the rest.");
  }
  if (report.clean()) {
    return absl::StrCat("Mended: ", damages, "; damaged blocks are marked as dropped.");
  }
  return absl::StrCat("STILL DAMAGED: of ", damages, ", ", FormatCount(report.after->damage.size()),
                      " are left after repair.");
}

}  // namespace

std::string FormatBlockId(const BlockId& id) {
  return absl::StrFormat("%016x%016x", id.high, id.low);
}

nlohmann::ordered_json FsckJson(const FsckReport& report) {
  const CheckReport& last = report.last();
  nlohmann::ordered_json json;
  json["path"] = report.path;
  json["format_version"] = kNvmeFormatVersion;
  json["block_bytes"] = last.superblock.block_bytes;
  json["capacity_bytes"] = last.superblock.geometry.total_bytes();
  json["segments"] = {{"total", SegmentCount(last)},
                      {"free", last.segments.free},
                      {"sealed", last.segments.sealed},
                      {"unsealed", last.segments.unsealed}};
  json["blocks"] = {{"live", last.blocks.live()},
                    {"owned", last.blocks.owned},
                    {"cached", last.blocks.cached},
                    {"encrypted", last.blocks.encrypted},
                    {"stale_copies", last.blocks.stale_copies},
                    {"dead", last.blocks.dead}};
  json["bytes_checked"] = last.bytes_checked;
  json["unfinished_groups"] = last.unfinished_groups;
  json["damage"] = DamageJson(report.found.damage);
  json["damaged_blocks"] = report.found.damaged_blocks;
  json["repaired"] = report.after.has_value();
  if (report.after) json["damage_left"] = DamageJson(report.after->damage);
  json["clean"] = report.clean();
  json["seconds"] = report.seconds;
  return json;
}

std::string FsckText(const FsckReport& report) {
  std::string text = absl::StrCat(
      report.path, ": ", FormatByteSize(report.found.superblock.geometry.total_bytes()), " of ",
      FormatByteSize(report.found.superblock.block_bytes), " blocks, format ", kNvmeFormatVersion,
      "\n\n", TierTable(report.last()), "\n");
  if (!report.found.clean()) absl::StrAppend(&text, DamageTable(report.found.damage), "\n");
  if (report.after && !report.after->clean()) {
    absl::StrAppend(&text, "After repair:\n", DamageTable(report.after->damage), "\n");
  }
  absl::StrAppend(&text, Remarks(report.last()), Meaning(report), "\n");
  return text;
}

std::string FsckProgressText(const CheckProgress& progress) {
  const double whole = static_cast<double>(progress.bytes_to_read);
  const double share = whole > 0 ? static_cast<double>(progress.bytes_read) / whole : 1;
  return absl::StrCat("checking: ", FormatByteSize(progress.bytes_read), " of ",
                      FormatByteSize(progress.bytes_to_read), ", ", FormatPercent(share));
}

}  // namespace terrace
