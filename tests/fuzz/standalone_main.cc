// Drives a fuzzer without libFuzzer: first every file of the corpus as it is, then a bounded number
// of seeded mutations of them. It looks for no new paths by itself; it keeps the corpus and its
// neighbourhood green on every compiler. The inputs run in a child process, so that whatever kills
// it, the parent can name the seed and the input and leave that input in a file.

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <new>
#include <random>
#include <string>
#include <system_error>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Input = std::vector<uint8_t>;

struct CorpusFile {
  std::string path;
  Input bytes;
};

constexpr size_t kMaxInputBytes = 1 << 20;

struct Arguments {
  uint64_t run_count = 1000;
  uint64_t seed = 1;
  std::vector<std::string> corpus_paths;
};

[[noreturn]] void Usage(const char* program) {
  std::fprintf(stderr,
               "usage: %s [--runs N] [--seed N] CORPUS...\n"
               "Runs each file of the given folders (or each given file), then N mutations.\n",
               program);
  std::exit(2);
}

uint64_t ParseNumber(const char* program, const char* text) {
  char* end = nullptr;
  const uint64_t value = std::strtoull(text, &end, 10);
  if (end == text || *end != '\0') Usage(program);
  return value;
}

Arguments Parse(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--runs" && i + 1 < argc) {
      arguments.run_count = ParseNumber(argv[0], argv[++i]);
    } else if (argument == "--seed" && i + 1 < argc) {
      arguments.seed = ParseNumber(argv[0], argv[++i]);
    } else if (argument.rfind("--", 0) == 0) {
      Usage(argv[0]);
    } else {
      arguments.corpus_paths.push_back(argument);
    }
  }
  return arguments;
}

// The corpus files, sorted, so that equal arguments mean equal inputs on every file system.
std::vector<std::string> ListFiles(const std::vector<std::string>& paths) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    std::error_code error;
    if (!std::filesystem::is_directory(path, error)) {
      files.push_back(path);
      continue;
    }
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path, error)) {
      if (entry.is_regular_file(error)) files.push_back(entry.path().string());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<CorpusFile> ReadCorpus(const std::vector<std::string>& paths) {
  std::vector<CorpusFile> corpus;
  for (const std::string& path : ListFiles(paths)) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "cannot read %s: %s\n", path.c_str(), std::strerror(errno));
      std::exit(1);
    }
    corpus.push_back({path, Input(std::istreambuf_iterator<char>(file), {})});
  }
  return corpus;
}

// What parsers mishandle: limits, signs, nesting, bytes that are no text.
constexpr const char* kHardTokens[] = {"0",
                                       "-1",
                                       "9223372036854775807",
                                       "18446744073709551616",
                                       "1e308",
                                       "nan",
                                       "null",
                                       "[]",
                                       "{}",
                                       "\"",
                                       "\n",
                                       "\xff"};

size_t Pick(std::mt19937_64& random, size_t count) { return random() % count; }

// Applies one random edit. `corpus` is what a splice takes its other half from.
void MutateOnce(const std::vector<CorpusFile>& corpus, std::mt19937_64& random, Input* input) {
  const size_t at = Pick(random, input->size() + 1);
  const auto position = input->begin() + at;
  const size_t run_bytes = std::min(input->size() - at, 1 + Pick(random, 32));
  switch (Pick(random, 7)) {
    case 0:  // flip a bit
      if (run_bytes > 0) *position ^= uint8_t{1} << Pick(random, 8);
      break;
    case 1:  // overwrite a byte
      if (run_bytes > 0) *position = static_cast<uint8_t>(random());
      break;
    case 2:  // truncate
      input->resize(at);
      break;
    case 3:  // remove a run
      input->erase(position, position + run_bytes);
      break;
    case 4: {  // repeat a run
      const Input run(position, position + run_bytes);
      input->insert(position, run.begin(), run.end());
      break;
    }
    case 5: {  // insert a hard token
      const char* token = kHardTokens[Pick(random, std::size(kHardTokens))];
      input->insert(position, token, token + std::strlen(token));
      break;
    }
    case 6: {  // splice with another input
      const Input& other = corpus[Pick(random, corpus.size())].bytes;
      input->resize(at);
      input->insert(input->end(), other.begin() + Pick(random, other.size() + 1), other.end());
      break;
    }
  }
  if (input->size() > kMaxInputBytes) input->resize(kMaxInputBytes);
}

// Input `index`: the corpus files come first, then the mutations, each of which depends on nothing
// but the corpus, the seed and its own number.
Input MakeInput(const std::vector<CorpusFile>& corpus, uint64_t seed, uint64_t index) {
  if (index < corpus.size()) return corpus[index].bytes;
  std::seed_seq sequence{seed, seed >> 32, index, index >> 32};
  std::mt19937_64 random(sequence);
  Input input = corpus[Pick(random, corpus.size())].bytes;
  const size_t edit_count = 1 + Pick(random, 8);
  for (size_t i = 0; i < edit_count; ++i) MutateOnce(corpus, random, &input);
  return input;
}

void ReportFailure(const std::vector<CorpusFile>& corpus, uint64_t seed, uint64_t index,
                   int wait_status) {
  const std::string source = index < corpus.size()
                                 ? corpus[index].path
                                 : "mutation " + std::to_string(index - corpus.size());
  std::fprintf(stderr, "failed with %s %d on %s, seed %" PRIu64 "\n",
               WIFSIGNALED(wait_status) ? "signal" : "exit status",
               WIFSIGNALED(wait_status) ? WTERMSIG(wait_status) : WEXITSTATUS(wait_status),
               source.c_str(), seed);
  const Input input = MakeInput(corpus, seed, index);
  const std::string path = "crash-" + std::to_string(seed) + "-" + std::to_string(index);
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(input.data()), input.size());
  file.close();
  if (file)
    std::fprintf(stderr, "the input is in %s; give that path to run it alone\n", path.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  const Arguments arguments = Parse(argc, argv);
  const std::vector<CorpusFile> corpus = ReadCorpus(arguments.corpus_paths);
  if (corpus.empty()) {
    std::fprintf(stderr, "%s: no corpus file to start from\n", argv[0]);
    return 1;
  }
  const uint64_t input_count = corpus.size() + arguments.run_count;
  std::printf("seed %" PRIu64 ": %zu corpus files, %" PRIu64 " mutations\n", arguments.seed,
              corpus.size(), arguments.run_count);
  std::fflush(stdout);

  // The index of the input being run, which outlives the child.
  void* shared = mmap(nullptr, sizeof(std::atomic<uint64_t>), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS,
                      /*fd=*/-1, /*offset=*/0);
  if (shared == MAP_FAILED) {
    std::perror("mmap");
    return 1;
  }
  std::atomic<uint64_t>& index = *new (shared) std::atomic<uint64_t>(0);

  const pid_t child = fork();
  if (child < 0) {
    std::perror("fork");
    return 1;
  }
  if (child == 0) {
    for (; index < input_count; ++index) {
      const Input input = MakeInput(corpus, arguments.seed, index);
      LLVMFuzzerTestOneInput(input.data(), input.size());
    }
    std::exit(0);  // not _exit: the leak checker runs at exit
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child) {
    std::perror("waitpid");
    return 1;
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return 0;
  ReportFailure(corpus, arguments.seed, index, status);
  return 1;
}
