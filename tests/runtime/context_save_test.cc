#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "tests/support/context_rig.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

RuntimeOptions DurableRuntime() {
  RuntimeOptions options = SmallRuntime();
  options.tiers.dram_bytes = 16 * options.BlockBytes();
  options.tiers.nvme_bytes = 16 << 20;
  options.lookup = {.kind = LookupKind::kQuest, .blocks = 4};
  return options;
}

TEST(ContextSave, ComesBackInAnotherRuntimeAndGoesOnAsIfNothingWas) {
  ContextRig rig(DurableRuntime());
  auto context = *rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(*context, 700, 96).ok());
  ASSERT_TRUE(context->Save("chat").ok());
  const auto expected = rig.Step(*context, 40);
  ASSERT_TRUE(expected.ok());
  context.reset();
  rig.Reopen();
  ASSERT_EQ(rig.runtime().Saved().size(), 1u);
  EXPECT_EQ(rig.runtime().Saved()[0].name, "chat");
  EXPECT_EQ(rig.runtime().Saved()[0].tokens, 700);
  auto loaded = rig.runtime().Load("chat");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ((*loaded)->tokens(), 700);
  EXPECT_EQ(*rig.Step(**loaded, 40), *expected);
}

TEST(ContextSave, ItsTokensAreKnownAfterwards) {
  ContextRig rig(DurableRuntime());
  const std::vector<int32_t> tokens = {7, 8, 9};
  auto context = *rig.runtime().NewContext();
  ASSERT_TRUE(context->AddTokenIds(0, tokens).ok());
  ASSERT_TRUE(rig.Prefill(*context, 3, 3).ok());
  ASSERT_TRUE(context->Save("a").ok());
  context.reset();
  rig.Reopen();
  const auto loaded = rig.runtime().Load("a");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ((*loaded)->TokenIds(), tokens);
  ASSERT_TRUE((*loaded)->Truncate(2).ok());
  EXPECT_EQ((*loaded)->TokenIds(), std::vector<int32_t>({7, 8}));
}

TEST(ContextSave, CanBeLoadedTwiceAndForgotten) {
  ContextRig rig(DurableRuntime());
  auto context = *rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(*context, 300, 96).ok());
  ASSERT_TRUE(context->Save("a").ok());
  context.reset();
  auto first = *rig.runtime().Load("a");
  auto second = *rig.runtime().Load("a");
  EXPECT_EQ(*rig.Step(*first, 2), *rig.Step(*second, 2));
  ASSERT_TRUE(rig.runtime().Forget("a").ok());
  EXPECT_TRUE(absl::IsNotFound(rig.runtime().Forget("a")));
  EXPECT_TRUE(absl::IsNotFound(rig.runtime().Load("a").status()));
  // Whoever has it goes on.
  EXPECT_EQ(*rig.Step(*first, 2), *rig.Step(*second, 2));
  first.reset();
  second.reset();
  EXPECT_EQ(rig.runtime().Stats().columns, 0u);
  EXPECT_TRUE(rig.runtime().tiers().OwnedBlocks().empty());
}

TEST(ContextSave, ASecondSaveReplacesTheFirst) {
  ContextRig rig(DurableRuntime());
  auto context = *rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(*context, 300, 96).ok());
  ASSERT_TRUE(context->Save("a").ok());
  ASSERT_TRUE(rig.Prefill(*context, 450, 96).ok());
  ASSERT_TRUE(context->Save("a").ok());
  context.reset();
  rig.Reopen();
  EXPECT_EQ((*rig.runtime().Load("a"))->tokens(), 450);
}

TEST(ContextSave, BlocksOfNoSavedContextAreCachedAfterARestart) {
  ContextRig rig(DurableRuntime());
  auto kept = *rig.runtime().NewContext();
  auto lost = *rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(*kept, 300, 96).ok());
  ASSERT_TRUE(rig.Prefill(*lost, 300, 96).ok());
  ASSERT_TRUE(kept->Save("kept").ok());
  const size_t owned = rig.runtime().tiers().OwnedBlocks().size();
  // As if the process had died: what was owned is so on disk.
  ASSERT_TRUE(rig.runtime().tiers().Flush().ok());
  const std::string image = rig.options().tiers.nvme_dir + "/terrace.kv";
  const std::string copy = image + ".copy";
  std::filesystem::copy_file(image, copy);
  kept.reset();
  lost.reset();
  // Reopens on what the killed process would have left.
  rig.ReopenWith([&] { std::filesystem::rename(copy, image); });
  EXPECT_EQ(rig.runtime().tiers().OwnedBlocks().size(), owned / 2);
  EXPECT_TRUE(rig.runtime().Load("kept").ok());
}

TEST(ContextSave, ADamagedManifestIsNamedAndNothingElseSuffers) {
  ContextRig rig(DurableRuntime());
  auto context = *rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(*context, 400, 96).ok());
  ASSERT_TRUE(context->Save("good").ok());
  ASSERT_TRUE(context->Save("bad").ok());
  context.reset();
  const std::string path = rig.options().tiers.nvme_dir + "/contexts/bad.ctx";
  const auto size = std::filesystem::file_size(path);
  std::string intact(size, '\0');
  std::ifstream(path, std::ios::binary).read(intact.data(), static_cast<std::streamsize>(size));
  for (const size_t at : {size_t{0}, size_t{9}, size_t{20}, size_t{40}, size / 2, size - 1}) {
    std::string damaged = intact;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    std::ofstream(path, std::ios::binary) << damaged;
    rig.Reopen();
    const absl::Status status = rig.runtime().Load("bad").status();
    EXPECT_FALSE(status.ok()) << "byte " << at;
    EXPECT_THAT(status.message(), HasSubstr("bad.ctx"));
    EXPECT_TRUE(rig.runtime().Load("good").ok());
  }
  for (const size_t length : {size_t{0}, size_t{5}, size_t{63}, size / 2, size - 1}) {
    std::ofstream(path, std::ios::binary) << intact.substr(0, length);
    rig.Reopen();
    EXPECT_TRUE(absl::IsDataLoss(rig.runtime().Load("bad").status())) << length << " bytes";
    EXPECT_TRUE(rig.runtime().Load("good").ok());
  }
}

TEST(ContextSave, NamesThatAreNoneAndMissingTiersAreRefused) {
  ContextRig rig(DurableRuntime());
  auto context = *rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(*context, 40, 40).ok());
  for (const char* name : {"", "../x", "a/b", ".hidden", "white space"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(context->Save(name))) << name;
  }
  ContextRig memory_only(SmallRuntime());
  auto other = *memory_only.runtime().NewContext();
  ASSERT_TRUE(memory_only.Prefill(*other, 40, 40).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(other->Save("a")));
}

TEST(ContextSave, ALargerWindowOrAnotherLookupStillLoads) {
  RuntimeOptions options = DurableRuntime();
  ContextRig rig(options);
  auto context = *rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(*context, 500, 96).ok());
  ASSERT_TRUE(context->Save("a").ok());
  context.reset();
  rig.ReopenWith([] {},
                 [](RuntimeOptions& changed) {
                   changed.window_tokens = 128;
                   changed.lookup = {.kind = LookupKind::kQuest, .blocks = 1000, .page_tokens = 4};
                 });
  auto loaded = rig.runtime().Load("a");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_TRUE(rig.Step(**loaded, 1).ok());
  const auto out = rig.Attend(**loaded, 1, 500, 1);
  EXPECT_LE(ContextRig::Error(*out, rig.Expected(1, 500, [](int64_t) { return true; })), 1e-3);
}

// Two manifests of the same blocks, of which the lookups of the runtime made the summaries of "b".
class SharedColumnsTest : public ::testing::Test {
 protected:
  SharedColumnsTest() : rig_(Options()) {
    auto context = *rig_.runtime().NewContext();
    EXPECT_TRUE(rig_.Prefill(*context, 1400, 96).ok());
    EXPECT_TRUE(context->Save("a").ok());
    context.reset();
    Reopen();
    context = *rig_.runtime().Load("a");
    EXPECT_TRUE(context->Save("b").ok());
    expected_ = *rig_.Step(*context, 1);
  }

  static RuntimeOptions Options() {
    RuntimeOptions options = SmallRuntime();
    options.shape.key_state = KeyState::kBeforeRope;
    options.tiers.nvme_bytes = 64 << 20;
    options.lookup = {.kind = LookupKind::kInfllm,
                      .blocks = 4,
                      .representatives = 8,
                      .choice = RepresentativeChoice::kMostMass};
    return options;
  }
  void Reopen() {
    rig_.ReopenWith([] {},
                    [](RuntimeOptions& changed) {
                      changed.lookup = {
                          .kind = LookupKind::kInfllm, .blocks = 4, .representatives = 4};
                    });
  }
  std::string Path(const std::string& name) const {
    return rig_.options().tiers.nvme_dir + "/contexts/" + name + ".ctx";
  }
  std::vector<std::vector<float>> StepOf(const char* name) {
    const auto context = rig_.runtime().Load(name);
    EXPECT_TRUE(context.ok()) << context.status();
    return context.ok() ? *rig_.Step(**context, 1) : std::vector<std::vector<float>>();
  }

  ContextRig rig_;
  std::vector<std::vector<float>> expected_;
};

TEST_F(SharedColumnsTest, SummariesComeFromTheManifestWhoseLookupsAreThoseOfTheRuntime) {
  // Whatever order a directory lists them in, some that do not fit come first.
  for (const char* name : {"0", "c", "d", "z"}) std::filesystem::copy(Path("a"), Path(name));
  Reopen();
  EXPECT_EQ(StepOf("b"), expected_);
  EXPECT_EQ(StepOf("a"), expected_);
}

TEST_F(SharedColumnsTest, SummariesOfADamagedManifestAreNotUsed) {
  for (const char* name : {"0", "c", "d", "z"}) std::filesystem::copy(Path("a"), Path(name));
  const size_t size = std::filesystem::file_size(Path("b"));
  std::fstream file(Path("b"), std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(static_cast<std::streamoff>(size * 9 / 10));
  file << std::string(64, '\x55');
  file.close();
  Reopen();
  EXPECT_TRUE(absl::IsDataLoss(rig_.runtime().Load("b").status()));
  EXPECT_EQ(StepOf("a"), expected_);
}

}  // namespace
}  // namespace terrace
