// The terrace program: parses the command line and runs one command.

#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <functional>

#include "CLI/CLI.hpp"
#include "tools/command.h"
#include "tools/eval_command.h"
#include "tools/fsck_command.h"
#include "tools/generate_command.h"
#include "tools/gentrace_command.h"
#include "tools/index_eval_command.h"
#include "tools/pack_command.h"
#include "tools/replay_command.h"
#include "tools/ssd_command.h"

namespace {

// Whoever started us may have closed standard streams. A file of ours must not take the place of
// one, or what is meant for people would be written into it.
void FillStandardStreams() {
  int fd = open("/dev/null", O_RDWR);
  while (fd >= 0 && fd <= STDERR_FILENO) fd = open("/dev/null", O_RDWR);
  if (fd >= 0) close(fd);
}

}  // namespace

int main(int argc, char** argv) {
  FillStandardStreams();
  // A limit on file sizes is an error of the call that meets it, not the end of the program.
  std::signal(SIGXFSZ, SIG_IGN);
  CLI::App app("Tiered memory for the KV cache of language models", "terrace");
  app.set_version_flag("--version", "terrace " TERRACE_VERSION);
  app.require_subcommand(1);
  std::function<terrace::ExitCode()> run;
  terrace::AddReplayCommand(app, run);
  terrace::AddGentraceCommand(app, run);
  terrace::AddSsdCommand(app, run);
  terrace::AddFsckCommand(app, run);
  terrace::AddGenerateCommand(app, run);
  terrace::AddEvalCommand(app, run);
  terrace::AddIndexEvalCommand(app, run);
  terrace::AddPackCommand(app, run);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // CLI11 says that a command is missing where it does not know the one that was given.
    if (error.get_exit_code() != 0 && app.get_subcommands().empty() && !app.remaining().empty()) {
      std::fprintf(stderr, "%s: no such command or option\n", app.remaining().front().c_str());
    }
    // Help and version also arrive here, as successes.
    const bool asked_for = app.exit(error) == 0;
    return static_cast<int>(asked_for ? terrace::ExitCode::kSuccess : terrace::ExitCode::kBadUsage);
  }
  return static_cast<int>(run());
}
