// Tells ThreadSanitizer about Abseil's locks.
//
// Distributions ship Abseil without instrumentation, so TSan sees neither the lock nor the unlock
// of an absl::Mutex and would report every guarded member as a race. The executables of a TSan
// build link this file: its definitions take the place of those in the shared library, announce the
// event with the same annotations that an instrumented Abseil uses, and call the original.
//
// Await is announced as if the mutex were held for writing, which is how this project uses it.

#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

namespace {

#define TERRACE_STRING_OF(x) #x
#define TERRACE_STRING(x) TERRACE_STRING_OF(x)

// The original of the absl member function with this Itanium-mangled tail.
void* Original(const char* tail) {
  const std::string version = TERRACE_STRING(ABSL_OPTION_INLINE_NAMESPACE_NAME);
  std::string symbol(tail);
  // '@' stands for "in namespace absl::<version>": a nested name spells it out, with its length.
  const std::string scope = "4absl" + std::to_string(version.size()) + version;
  symbol.replace(symbol.find('@'), 1, scope);
  void* found = dlsym(RTLD_NEXT, symbol.c_str());
  if (found == nullptr) {
    std::fprintf(stderr, "tsan_absl: %s is not in a shared Abseil\n", symbol.c_str());
    std::abort();
  }
  return found;
}

// Abseil's own functions call one another; only the outermost one is announced.
thread_local int depth = 0;

class Nesting {
 public:
  Nesting() : outermost_(depth++ == 0) {}
  ~Nesting() { --depth; }
  bool outermost() const { return outermost_; }

 private:
  const bool outermost_;
};

template <typename Result, typename... Args>
Result CallOriginal(void* function, Args... args) {
  return reinterpret_cast<Result (*)(Args...)>(function)(args...);
}

// A call that acquires `mu`.
template <typename Call>
auto Acquire(absl::Mutex* mu, unsigned flags, Call call) {
  Nesting nesting;
  if (!nesting.outermost()) return call();
  __tsan_mutex_pre_lock(mu, flags);
  struct PostLock {
    ~PostLock() { __tsan_mutex_post_lock(mu, flags, 0); }
    absl::Mutex* mu;
    unsigned flags;
  } post_lock{mu, flags};
  return call();
}

// A call that acquires `mu` when it returns true.
template <typename Call>
bool TryAcquire(absl::Mutex* mu, unsigned flags, Call call) {
  Nesting nesting;
  if (!nesting.outermost()) return call();
  flags |= __tsan_mutex_try_lock;
  __tsan_mutex_pre_lock(mu, flags);
  const bool acquired = call();
  __tsan_mutex_post_lock(mu, acquired ? flags : flags | __tsan_mutex_try_lock_failed, 0);
  return acquired;
}

template <typename Call>
void Release(absl::Mutex* mu, unsigned flags, Call call) {
  Nesting nesting;
  if (!nesting.outermost()) return call();
  __tsan_mutex_pre_unlock(mu, flags);
  call();
  __tsan_mutex_post_unlock(mu, flags);
}

// A call that releases `mu`, waits and acquires it again.
template <typename Call>
auto ReleaseAndAcquire(absl::Mutex* mu, Call call) {
  if (depth == 0) {
    __tsan_mutex_pre_unlock(mu, 0);
    __tsan_mutex_post_unlock(mu, 0);
  }
  return Acquire(mu, 0, call);
}

// Notification keeps its flag after its mutex, and user code reads the flag inline.
void* FlagOf(const absl::Notification* notification) {
  static_assert(sizeof(absl::Notification) > sizeof(absl::Mutex));
  const char* base = reinterpret_cast<const char*>(notification);
  return const_cast<char*>(base + sizeof(absl::Mutex));
}

}  // namespace

// Runs the original of the member function with the given mangled name on `this` and the arguments.
#define TERRACE_ORIGINAL(Result, name, ...)                  \
  [&] {                                                      \
    static void* const original = Original(name);            \
    return CallOriginal<Result>(original, this __VA_ARGS__); \
  }

namespace absl {
ABSL_NAMESPACE_BEGIN

Mutex::~Mutex() {
  __tsan_mutex_destroy(this, __tsan_mutex_not_static);
  TERRACE_ORIGINAL(void, "_ZN@5MutexD1Ev")();
}

void Mutex::Lock() { Acquire(this, 0, TERRACE_ORIGINAL(void, "_ZN@5Mutex4LockEv")); }
void Mutex::Unlock() { Release(this, 0, TERRACE_ORIGINAL(void, "_ZN@5Mutex6UnlockEv")); }
bool Mutex::TryLock() {
  return TryAcquire(this, 0, TERRACE_ORIGINAL(bool, "_ZN@5Mutex7TryLockEv"));
}
void Mutex::ReaderLock() {
  Acquire(this, __tsan_mutex_read_lock, TERRACE_ORIGINAL(void, "_ZN@5Mutex10ReaderLockEv"));
}
void Mutex::ReaderUnlock() {
  Release(this, __tsan_mutex_read_lock, TERRACE_ORIGINAL(void, "_ZN@5Mutex12ReaderUnlockEv"));
}
bool Mutex::ReaderTryLock() {
  return TryAcquire(this, __tsan_mutex_read_lock,
                    TERRACE_ORIGINAL(bool, "_ZN@5Mutex13ReaderTryLockEv"));
}

void Mutex::LockWhen(const Condition& cond) {
  Acquire(this, 0, TERRACE_ORIGINAL(void, "_ZN@5Mutex8LockWhenERKNS0_9ConditionE", , &cond));
}
bool Mutex::LockWhenWithTimeout(const Condition& cond, Duration timeout) {
  return Acquire(
      this, 0,
      TERRACE_ORIGINAL(bool, "_ZN@5Mutex19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE", ,
                       &cond, timeout));
}
bool Mutex::LockWhenWithDeadline(const Condition& cond, Time deadline) {
  return Acquire(
      this, 0,
      TERRACE_ORIGINAL(bool, "_ZN@5Mutex20LockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE", ,
                       &cond, deadline));
}
void Mutex::Await(const Condition& cond) {
  ReleaseAndAcquire(this, TERRACE_ORIGINAL(void, "_ZN@5Mutex5AwaitERKNS0_9ConditionE", , &cond));
}
bool Mutex::AwaitWithTimeout(const Condition& cond, Duration timeout) {
  return ReleaseAndAcquire(
      this, TERRACE_ORIGINAL(bool, "_ZN@5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE", ,
                             &cond, timeout));
}
bool Mutex::AwaitWithDeadline(const Condition& cond, Time deadline) {
  return ReleaseAndAcquire(
      this, TERRACE_ORIGINAL(bool, "_ZN@5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE", ,
                             &cond, deadline));
}

void CondVar::Wait(Mutex* mu) {
  ReleaseAndAcquire(mu, TERRACE_ORIGINAL(void, "_ZN@7CondVar4WaitEPNS0_5MutexE", , mu));
}
bool CondVar::WaitWithTimeout(Mutex* mu, Duration timeout) {
  return ReleaseAndAcquire(
      mu, TERRACE_ORIGINAL(bool, "_ZN@7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE", , mu,
                           timeout));
}
bool CondVar::WaitWithDeadline(Mutex* mu, Time deadline) {
  return ReleaseAndAcquire(
      mu, TERRACE_ORIGINAL(bool, "_ZN@7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE", , mu,
                           deadline));
}

void Notification::Notify() {
  __tsan_release(FlagOf(this));
  TERRACE_ORIGINAL(void, "_ZN@12Notification6NotifyEv")();
}
void Notification::WaitForNotification() const {
  TERRACE_ORIGINAL(void, "_ZNK@12Notification19WaitForNotificationEv")();
  __tsan_acquire(FlagOf(this));
}
bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  const bool notified = TERRACE_ORIGINAL(
      bool, "_ZNK@12Notification30WaitForNotificationWithTimeoutENS0_8DurationE", , timeout)();
  if (notified) __tsan_acquire(FlagOf(this));
  return notified;
}
bool Notification::WaitForNotificationWithDeadline(Time deadline) const {
  const bool notified = TERRACE_ORIGINAL(
      bool, "_ZNK@12Notification31WaitForNotificationWithDeadlineENS0_4TimeE", , deadline)();
  if (notified) __tsan_acquire(FlagOf(this));
  return notified;
}

bool BlockingCounter::DecrementCount() {
  __tsan_release(this);
  return TERRACE_ORIGINAL(bool, "_ZN@15BlockingCounter14DecrementCountEv")();
}
void BlockingCounter::Wait() {
  TERRACE_ORIGINAL(void, "_ZN@15BlockingCounter4WaitEv")();
  __tsan_acquire(this);
}

ABSL_NAMESPACE_END
}  // namespace absl
