// `terrace ssd` on filesystems and block devices made for the purpose. That needs root and its own
// mount namespace; where there are none, these tests are skipped.

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/run_program.h"
#include "tests/support/temp_dir.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kCannot = 77;  // a script's exit code: this machine lacks what it needs

// What the scripts share: $mount is an empty directory, $image a file of 16 MiB.
constexpr char kPreamble[] = R"sh(
PATH=$PATH:/usr/sbin:/sbin
terrace=$1 dir=$2 mount=$2/mount image=$2/image
ssd() {
  "$terrace" ssd --block-bytes 4k --depth 4 --seconds "${seconds:-0.05}" --warmup 0.01 \
             --json "$dir/result.json" "$@"
}
attach() {
  loop=$(losetup --find --show "$image") || exit 77
  trap 'umount "$mount" 2>/dev/null; losetup --detach "$loop"' EXIT
}
)sh";

class CliSsdPlacesTest : public ::testing::Test {
 protected:
  CliSsdPlacesTest() {
    std::filesystem::create_directory(mount_);
    std::ofstream(image_, std::ios::binary) << std::string(16 << 20, 'x');
  }

  // Whether the script could run here. Mounts vanish with it.
  bool Script(const std::string& script) {
    run_ = RunProgram({"/usr/bin/env", "unshare", "--mount", "sh", "-c",
                       absl::StrCat(kPreamble, script), "sh", TERRACE_PROGRAM, dir_.path()});
    const bool no_namespace =
        run_.exit_code == 127 || run_.err.find("unshare failed") != std::string::npos;
    return !no_namespace && run_.exit_code != kCannot;
  }
  std::string Obstacle() const { return "not possible here: " + run_.err; }
  nlohmann::json Json() const {
    std::ifstream file(dir_.Join("result.json"));
    return nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  }
  bool ImageIsUntouched() const {
    std::ifstream file(image_, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {}) == std::string(16 << 20, 'x');
  }

  const TempDir dir_;
  const std::string mount_ = dir_.Join("mount");
  const std::string image_ = dir_.Join("image");
  RunResult run_;
};

TEST_F(CliSsdPlacesTest, MemoryIsMeasuredWithAWarning) {
  const bool possible = Script(R"sh(
    mount -t tmpfs -o size=32m none "$mount" || exit 77
    ssd --dir "$mount" --size 8MiB || exit 1
    [ -z "$(ls -A "$mount")" ]
  )sh");
  if (!possible) GTEST_SKIP() << Obstacle();
  EXPECT_EQ(run_.exit_code, 0) << run_.err;
  EXPECT_THAT(run_.out, AllOf(HasSubstr("filesystem tmpfs"), HasSubstr("tmpfs is memory")));
  EXPECT_EQ(Json()["filesystem"], "tmpfs");
  EXPECT_THAT(Json()["warning"].get<std::string>(), HasSubstr("no figures of a disk"));
  EXPECT_GT(Json()["results"][0]["reads"], 0);
}

TEST_F(CliSsdPlacesTest, SizeAboveTheRoomIsRefusedAndNothingIsLeft) {
  const bool possible = Script(R"sh(
    mount -t tmpfs -o size=32m none "$mount" || exit 77
    ssd --dir "$mount" --size 33MiB
    code=$?
    [ -z "$(ls -A "$mount")" ] || exit 3
    exit $code
  )sh");
  if (!possible) GTEST_SKIP() << Obstacle();
  EXPECT_EQ(run_.exit_code, 1) << run_.err;
  EXPECT_THAT(run_.err, AllOf(HasSubstr("needed 34603008 bytes"), HasSubstr("available 33554432")));
}

TEST_F(CliSsdPlacesTest, OverlaysAreMeasuredWithAWarning) {
  const bool possible = Script(R"sh(
    mount -t tmpfs none "$mount" || exit 77
    cd "$mount" && mkdir lower upper work merged || exit 77
    mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged || exit 77
    ssd --dir merged --size 8MiB || exit 1
    [ -z "$(ls -A merged)" ] || exit 3
    # A layer from another filesystem keeps a device number that no mount has.
    mkdir other upper2 work2 both && mount -t tmpfs none other && cp "$image" other/file || exit 77
    mount -t overlay overlay -o lowerdir=other,upperdir=upper2,workdir=work2 both || exit 77
    ssd --file both/file
  )sh");
  if (!possible) GTEST_SKIP() << Obstacle();
  EXPECT_EQ(run_.exit_code, 0) << run_.err;
  EXPECT_THAT(run_.out, AllOf(HasSubstr("filesystem overlay"), HasSubstr("Warning: overlay")));
  EXPECT_EQ(Json()["filesystem"], "overlay");
}

TEST_F(CliSsdPlacesTest, ReadOnlyFilesystemIsReadButNotWritten) {
  const bool possible = Script(R"sh(
    mount -t tmpfs none "$mount" || exit 77
    cp "$image" "$mount/file" && mount -o remount,ro "$mount" || exit 77
    ssd --file "$mount/file" --op randread || exit 3
    ssd --dir "$mount" --size 4MiB && exit 4
    ssd --file "$mount/file" --op randwrite --force
  )sh");
  if (!possible) GTEST_SKIP() << Obstacle();
  EXPECT_EQ(run_.exit_code, 1) << run_.err;
  EXPECT_THAT(run_.err, AllOf(HasSubstr("mount/file: cannot open: Read-only file system"),
                              HasSubstr("mount: cannot write there: Read-only file system")));
}

TEST_F(CliSsdPlacesTest, UnusedBlockDeviceIsReadAndWrittenWithForceOnly) {
  const bool possible = Script(R"sh(
    attach
    ssd --file "$loop" --op randread,seqread || exit 3
  )sh");
  if (!possible) GTEST_SKIP() << Obstacle();
  EXPECT_EQ(run_.exit_code, 0) << run_.err;
  EXPECT_EQ(Json()["filesystem"], "none");
  EXPECT_THAT(Json()["device"].get<std::string>(), HasSubstr("/dev/loop"));
  EXPECT_EQ(Json()["size_bytes"], 16 << 20);
  EXPECT_EQ(Json()["results"].size(), 2);

  if (!Script("attach; ssd --file \"$loop\" --op mixed:50")) GTEST_SKIP() << Obstacle();
  EXPECT_EQ(run_.exit_code, 1);
  EXPECT_THAT(run_.err, AllOf(HasSubstr("--force"), Not(HasSubstr("in use"))));
  EXPECT_TRUE(ImageIsUntouched());

  if (!Script("attach; ssd --file \"$loop\" --op seqwrite --force")) GTEST_SKIP() << Obstacle();
  EXPECT_EQ(run_.exit_code, 0) << run_.err;
  EXPECT_FALSE(ImageIsUntouched());
}

TEST_F(CliSsdPlacesTest, MountedBlockDeviceIsReadButNotWritten) {
  const bool possible = Script(R"sh(
    mkfs.ext4 -q -F "$image" || exit 77
    attach
    mount "$loop" "$mount" || exit 77
    ssd --file "$loop" --op randread || exit 3
    ssd --file "$loop" --op randwrite
  )sh");
  if (!possible) GTEST_SKIP() << Obstacle();
  EXPECT_EQ(run_.exit_code, 1) << run_.err;
  EXPECT_THAT(run_.err, AllOf(HasSubstr("in use: mounted at"), HasSubstr(mount_)));
  EXPECT_THAT(run_.out, HasSubstr("randread"));
}

// A loop device fails where its image has become too short.
TEST_F(CliSsdPlacesTest, BadSectorsAreCountedAndTheRestIsMeasured) {
  const std::string profile = dir_.Join("profile.json");
  std::ofstream(profile) << "old";
  const bool possible = Script(R"sh(
    attach
    truncate -s 4M "$image"
    seconds=0.5  # a slow disk reads past the good part in that time too
    dd if="$loop" of=/dev/null bs=4k skip=3500 count=1 iflag=direct 2>/dev/null && exit 77
    ssd --file "$loop" --op randread,seqread --profile "$dir/profile.json" --plot "$dir/plot.svg"
  )sh");
  if (!possible) GTEST_SKIP() << Obstacle();
  EXPECT_EQ(run_.exit_code, 1) << run_.err;
  EXPECT_THAT(run_.err, HasSubstr("requests failed"));
  EXPECT_THAT(run_.out,
              AllOf(HasSubstr("requests failed, first"), HasSubstr("Input/output error")));
  const nlohmann::json json = Json();
  ASSERT_EQ(json["results"].size(), 2);
  for (const nlohmann::json& row : json["results"]) {
    EXPECT_GT(row["errors"], 0);
    EXPECT_GT(row["reads"], 0);
    EXPECT_THAT(row["first_error"].get<std::string>(),
                AllOf(HasSubstr("offset"), HasSubstr("Input/output error")));
  }
  std::ifstream file(profile);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), "old");
  EXPECT_FALSE(std::filesystem::exists(dir_.Join("plot.svg")));
}

}  // namespace
}  // namespace terrace
