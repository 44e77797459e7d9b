#include "io/io_scheduler.h"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/aligned_buffer.h"
#include "io/memory_device.h"
#include "tests/support/manual_device.h"
#include "tests/support/trace_events.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::UnorderedElementsAreArray;

// Counts what the handler sees, for threads that wait for it.
class Completions {
 public:
  void Add(absl::Span<IoRequest* const> done) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    done_.insert(done_.end(), done.begin(), done.end());
  }
  std::vector<IoRequest*> Await(size_t count) ABSL_LOCKS_EXCLUDED(mu_) {
    const auto enough = [this, count]()
                            ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return done_.size() >= count; };
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(&enough));
    return done_;
  }
  std::vector<IoRequest*> All() ABSL_LOCKS_EXCLUDED(mu_) { return Await(0); }

 private:
  absl::Mutex mu_;
  std::vector<IoRequest*> done_ ABSL_GUARDED_BY(mu_);
};

class IoSchedulerTest : public testing::Test {
 protected:
  // A scheduler whose device the test steps by hand.
  void Start(size_t device_depth, const IoSchedulerOptions& options) {
    auto device = std::make_unique<ManualDevice>(device_depth);
    device_ = device.get();
    scheduler_ = std::make_unique<IoScheduler>(
        std::move(device), options,
        [this](absl::Span<IoRequest* const> done) { completions_.Add(done); });
    device_->AwaitAsleep();
  }
  void TearDown() override {
    if (scheduler_ != nullptr) device_->RunFreely();
  }

  // `count` requests that live as long as the test.
  std::vector<IoRequest*> Make(size_t count, IoOp op = IoOp::kRead) {
    std::vector<IoRequest*> batch;
    for (size_t i = 0; i < count; ++i) {
      requests_.push_back(std::make_unique<IoRequest>());
      requests_.back()->op = op;
      requests_.back()->buffers = absl::MakeConstSpan(&page_, 1);
      batch.push_back(requests_.back().get());
    }
    return batch;
  }

  AlignedBuffer memory_ = *AlignedBuffer::Create(kPageBytes);
  const iovec page_ = {memory_.data(), kPageBytes};
  std::vector<std::unique_ptr<IoRequest>> requests_;
  Completions completions_;
  ManualDevice* device_ = nullptr;
  std::unique_ptr<IoScheduler> scheduler_;  // last: its handler uses what stands above
};

IoSchedulerOptions WithDepths(size_t demand, size_t prefetch, size_t offload) {
  IoSchedulerOptions options;
  options.class_depth = {demand, prefetch, offload};
  return options;
}

TEST_F(IoSchedulerTest, KeepsEachClassWithinItsDepth) {
  Start(/*device_depth=*/100, WithDepths(4, 3, 2));
  const std::vector<IoRequest*> offload = Make(5, IoOp::kWrite);
  const std::vector<IoRequest*> prefetch = Make(5);
  const std::vector<IoRequest*> demand = Make(5);
  ASSERT_TRUE(scheduler_->Submit(IoClass::kOffload, offload).ok());
  EXPECT_THAT(device_->AwaitAsleep(), ElementsAre(offload[0], offload[1]));
  ASSERT_TRUE(scheduler_->Submit(IoClass::kPrefetch, prefetch).ok());
  device_->AwaitAsleep();
  ASSERT_TRUE(scheduler_->Submit(IoClass::kDemand, demand).ok());
  EXPECT_THAT(device_->AwaitAsleep(),
              ElementsAre(offload[0], offload[1], prefetch[0], prefetch[1], prefetch[2], demand[0],
                          demand[1], demand[2], demand[3]));
  device_->Complete(prefetch[1]);
  device_->Complete(offload[0]);
  EXPECT_THAT(device_->AwaitAsleep(),
              ElementsAre(offload[1], prefetch[0], prefetch[2], demand[0], demand[1], demand[2],
                          demand[3], prefetch[3], offload[2]));
}

TEST_F(IoSchedulerTest, TakesTheMostUrgentClassFirstWhenTheDeviceIsFull) {
  Start(/*device_depth=*/2, WithDepths(8, 8, 8));
  const std::vector<IoRequest*> first = Make(2, IoOp::kWrite);
  ASSERT_TRUE(scheduler_->Submit(IoClass::kOffload, first).ok());
  EXPECT_THAT(device_->AwaitAsleep(), ElementsAre(first[0], first[1]));
  const std::vector<IoRequest*> offload = Make(1, IoOp::kWrite);
  const std::vector<IoRequest*> prefetch = Make(1);
  const std::vector<IoRequest*> demand = Make(2);
  ASSERT_TRUE(scheduler_->Submit(IoClass::kOffload, offload).ok());
  ASSERT_TRUE(scheduler_->Submit(IoClass::kPrefetch, prefetch).ok());
  ASSERT_TRUE(scheduler_->Submit(IoClass::kDemand, demand).ok());
  const std::vector<IoRequest*> expected = {demand[0], demand[1], prefetch[0], offload[0]};
  for (IoRequest* next : expected) {
    device_->Complete(device_->AwaitAsleep().front());
    EXPECT_EQ(device_->AwaitAsleep().back(), next);
  }
}

TEST_F(IoSchedulerTest, BatchesOfOneClassTakeTurns) {
  Start(/*device_depth=*/1, WithDepths(1, 1, 1));
  const std::vector<IoRequest*> busy = Make(1);
  const std::vector<IoRequest*> large = Make(5);
  const std::vector<IoRequest*> small = Make(2);
  ASSERT_TRUE(scheduler_->Submit(IoClass::kDemand, busy).ok());
  ASSERT_THAT(device_->AwaitAsleep(), ElementsAre(busy[0]));
  ASSERT_TRUE(scheduler_->Submit(IoClass::kDemand, large).ok());
  ASSERT_TRUE(scheduler_->Submit(IoClass::kDemand, small).ok());
  for (IoRequest* next : {large[0], small[0], large[1], small[1], large[2], large[3], large[4]}) {
    device_->CompleteAll();
    EXPECT_THAT(device_->AwaitAsleep(), ElementsAre(next));
  }
}

TEST_F(IoSchedulerTest, KeepsEachClassWithinItsBytes) {
  IoSchedulerOptions options = WithDepths(8, 8, 8);
  options.class_bytes[static_cast<size_t>(IoClass::kOffload)] = 2 * kPageBytes;
  Start(/*device_depth=*/100, options);
  const std::vector<IoRequest*> offload = Make(4, IoOp::kWrite);
  const iovec four_pages[] = {page_, page_, page_, page_};
  offload[2]->buffers = four_pages;
  ASSERT_TRUE(scheduler_->Submit(IoClass::kOffload, offload).ok());
  EXPECT_THAT(device_->AwaitAsleep(), ElementsAre(offload[0], offload[1]));
  device_->Complete(offload[0]);
  EXPECT_THAT(device_->AwaitAsleep(), ElementsAre(offload[1]));
  // What is larger than the limit goes alone, and nothing overtakes it inside its batch.
  device_->Complete(offload[1]);
  EXPECT_THAT(device_->AwaitAsleep(), ElementsAre(offload[2]));
  device_->Complete(offload[2]);
  EXPECT_THAT(device_->AwaitAsleep(), ElementsAre(offload[3]));
}

TEST_F(IoSchedulerTest, EveryClassGetsOnWhateverTheLoad) {
  IoSchedulerOptions options = WithDepths(1, 1, 1);
  options.patience = 3;
  Start(/*device_depth=*/1, options);
  const std::vector<IoRequest*> busy = Make(1);
  const std::vector<IoRequest*> demand = Make(10);
  const std::vector<IoRequest*> offload = Make(2, IoOp::kWrite);
  ASSERT_TRUE(scheduler_->Submit(IoClass::kDemand, busy).ok());
  ASSERT_THAT(device_->AwaitAsleep(), ElementsAre(busy[0]));
  ASSERT_TRUE(scheduler_->Submit(IoClass::kOffload, offload).ok());
  ASSERT_TRUE(scheduler_->Submit(IoClass::kDemand, demand).ok());
  for (IoRequest* next : {demand[0], demand[1], demand[2], offload[0], demand[3], demand[4],
                          demand[5], offload[1], demand[6], demand[7]}) {
    device_->CompleteAll();
    EXPECT_THAT(device_->AwaitAsleep(), ElementsAre(next));
  }
}

TEST_F(IoSchedulerTest, RaiseMovesAQueuedRequestAhead) {
  Start(/*device_depth=*/1, WithDepths(1, 1, 1));
  const std::vector<IoRequest*> busy = Make(1);
  const std::vector<IoRequest*> prefetch = Make(3);
  ASSERT_TRUE(scheduler_->Submit(IoClass::kDemand, busy).ok());
  ASSERT_TRUE(scheduler_->Submit(IoClass::kPrefetch, prefetch).ok());
  ASSERT_THAT(device_->AwaitAsleep(), ElementsAre(busy[0]));
  scheduler_->Raise(prefetch[2], IoClass::kDemand);
  // Neither a less urgent class nor a request that is at the device changes anything.
  scheduler_->Raise(prefetch[2], IoClass::kOffload);
  scheduler_->Raise(busy[0], IoClass::kDemand);
  for (IoRequest* next : {prefetch[2], prefetch[0], prefetch[1]}) {
    device_->CompleteAll();
    EXPECT_THAT(device_->AwaitAsleep(), ElementsAre(next));
  }
}

TEST_F(IoSchedulerTest, RaiseWakesTheDeviceWhenTheNewClassHasRoom) {
  Start(/*device_depth=*/8, WithDepths(4, 1, 1));
  const std::vector<IoRequest*> prefetch = Make(2);
  ASSERT_TRUE(scheduler_->Submit(IoClass::kPrefetch, prefetch).ok());
  ASSERT_THAT(device_->AwaitAsleep(), ElementsAre(prefetch[0]));
  scheduler_->Raise(prefetch[1], IoClass::kDemand);
  EXPECT_THAT(device_->AwaitAsleep(), ElementsAre(prefetch[0], prefetch[1]));
  // Each depth has its own share back afterwards.
  device_->CompleteAll();
  const std::vector<IoRequest*> more = Make(2);
  ASSERT_TRUE(scheduler_->Submit(IoClass::kPrefetch, more).ok());
  EXPECT_THAT(device_->AwaitAsleep(), ElementsAre(more[0]));
}

TEST_F(IoSchedulerTest, RefusesABatchThatDoesNotFitAsAWhole) {
  IoSchedulerOptions options = WithDepths(1, 1, 1);
  options.queue_capacity = 4;
  Start(/*device_depth=*/1, options);
  const std::vector<IoRequest*> busy = Make(1);
  ASSERT_TRUE(scheduler_->Submit(IoClass::kDemand, busy).ok());
  ASSERT_THAT(device_->AwaitAsleep(), ElementsAre(busy[0]));
  const std::vector<IoRequest*> three = Make(3);
  ASSERT_TRUE(scheduler_->Submit(IoClass::kPrefetch, three).ok());
  const std::vector<IoRequest*> two = Make(2);
  const absl::Status refused = scheduler_->Submit(IoClass::kDemand, two);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.message(), "I/O queue full: 2 requests submitted, room for 1");
  EXPECT_EQ(scheduler_->Stats().submitted[0], 1u);
  // None of the refused ones runs, and room comes back with progress.
  device_->CompleteAll();
  EXPECT_THAT(device_->AwaitAsleep(), ElementsAre(three[0]));
  EXPECT_TRUE(scheduler_->Submit(IoClass::kDemand, two).ok());
}

TEST_F(IoSchedulerTest, WakesTheDeviceOnlyForWhatCanRun) {
  Start(/*device_depth=*/8, WithDepths(1, 1, 1));
  const size_t before = device_->wake_count();
  ASSERT_TRUE(scheduler_->Submit(IoClass::kDemand, Make(1)).ok());
  device_->AwaitAsleep();
  EXPECT_EQ(device_->wake_count(), before + 1);
  ASSERT_TRUE(scheduler_->Submit(IoClass::kDemand, Make(3)).ok());
  ASSERT_TRUE(scheduler_->Submit(IoClass::kPrefetch, {}).ok());
  EXPECT_EQ(device_->wake_count(), before + 1);
}

TEST_F(IoSchedulerTest, HandsOverErrorsAndCountsWhatWasTransferred) {
  Start(/*device_depth=*/8, IoSchedulerOptions());
  const std::vector<IoRequest*> reads = Make(2);
  const std::vector<IoRequest*> writes = Make(3, IoOp::kWrite);
  ASSERT_TRUE(scheduler_->Submit(IoClass::kDemand, reads).ok());
  ASSERT_TRUE(scheduler_->Submit(IoClass::kOffload, writes).ok());
  device_->AwaitAsleep();
  device_->Complete(reads[1], EIO);
  device_->CompleteAll();
  completions_.Await(5);
  EXPECT_EQ(reads[0]->error, 0);
  EXPECT_EQ(reads[1]->error, EIO);
  const IoSchedulerStats stats = scheduler_->Stats();
  EXPECT_THAT(stats.submitted, ElementsAre(2, 0, 3));
  EXPECT_EQ(stats.read_bytes, kPageBytes);
  EXPECT_EQ(stats.written_bytes, 3 * kPageBytes);
}

TEST_F(IoSchedulerTest, DestructionDrainsWhatIsQueuedAndInFlight) {
  Start(/*device_depth=*/2, WithDepths(1, 1, 1));
  std::vector<IoRequest*> all;
  for (const IoClass io_class : {IoClass::kDemand, IoClass::kPrefetch, IoClass::kOffload}) {
    const std::vector<IoRequest*> batch = Make(7);
    ASSERT_TRUE(scheduler_->Submit(io_class, batch).ok());
    all.insert(all.end(), batch.begin(), batch.end());
  }
  device_->AwaitAsleep();
  EXPECT_THAT(completions_.All(), IsEmpty());
  device_->RunFreely();
  scheduler_.reset();
  EXPECT_THAT(completions_.All(), UnorderedElementsAreArray(all));
}

TEST(IoScheduler, HandlerMaySubmitMore) {
  absl::StatusOr<std::unique_ptr<MemoryDevice>> device = MemoryDevice::Create({kPageBytes, 4, {}});
  ASSERT_TRUE(device.ok());
  AlignedBuffer memory = *AlignedBuffer::Create(kPageBytes);
  const iovec page = {memory.data(), kPageBytes};
  IoRequest request;
  request.buffers = absl::MakeConstSpan(&page, 1);
  int rounds = 0;
  Completions completions;
  IoScheduler* self = nullptr;
  const auto handler = [&](absl::Span<IoRequest* const> done) {
    ASSERT_EQ(done.size(), 1u);
    if (++rounds < 1000) {
      ASSERT_TRUE(self->Submit(IoClass::kPrefetch, done).ok());
    } else {
      completions.Add(done);
    }
  };
  IoScheduler scheduler(*std::move(device), IoSchedulerOptions(), handler);
  self = &scheduler;
  IoRequest* const batch[] = {&request};
  ASSERT_TRUE(scheduler.Submit(IoClass::kDemand, batch).ok());
  completions.Await(1);
  EXPECT_EQ(scheduler.Stats().read_bytes, 1000 * kPageBytes);
}

// Each thread writes its own pages and reads them back, in batches as large as fit, while all of
// them compete for the queue.
TEST(IoScheduler, ServesManyThreadsWithoutLosingARequest) {
  constexpr size_t kThreads = 4;
  constexpr size_t kBatch = 8;
  constexpr int kRounds = 200;
  absl::StatusOr<std::unique_ptr<MemoryDevice>> device =
      MemoryDevice::Create({kThreads * kBatch * kPageBytes, 5, {}});
  ASSERT_TRUE(device.ok());
  std::vector<Completions> completions(kThreads);
  IoSchedulerOptions options = WithDepths(4, 3, 2);
  options.queue_capacity = 2 * kBatch;
  IoScheduler scheduler(*std::move(device), options, [&](absl::Span<IoRequest* const> done) {
    for (IoRequest* request : done) {
      static_cast<Completions*>(request->context)->Add(absl::MakeConstSpan(&request, 1));
    }
  });
  const auto client = [&](size_t thread) {
    std::mt19937_64 random(thread);
    AlignedBuffer memory = *AlignedBuffer::Create(kBatch * kPageBytes);
    std::vector<iovec> pages(kBatch);
    std::vector<IoRequest> requests(kBatch);
    std::vector<IoRequest*> batch(kBatch);
    for (size_t i = 0; i < kBatch; ++i) {
      pages[i] = {memory.data() + i * kPageBytes, kPageBytes};
      requests[i].offset = (thread * kBatch + i) * kPageBytes;
      requests[i].buffers = absl::MakeConstSpan(&pages[i], 1);
      requests[i].context = &completions[thread];
      batch[i] = &requests[i];
    }
    size_t expected = 0;
    for (int round = 0; round < kRounds; ++round) {
      const std::byte mark = static_cast<std::byte>(round);
      for (const IoOp op : {IoOp::kWrite, IoOp::kRead}) {
        const std::byte fill = op == IoOp::kWrite ? mark : ~mark;
        std::fill(memory.span().begin(), memory.span().end(), fill);
        for (IoRequest& request : requests) request.op = op;
        while (!scheduler.Submit(static_cast<IoClass>(random() % kIoClassCount), batch).ok()) {
          std::this_thread::yield();
        }
        if (random() % 2 == 0) scheduler.Raise(batch[random() % kBatch], IoClass::kDemand);
        expected += kBatch;
        ASSERT_EQ(completions[thread].Await(expected).size(), expected);
      }
      ASSERT_EQ(std::count(memory.span().begin(), memory.span().end(), mark),
                static_cast<ptrdiff_t>(memory.size()));
    }
  };
  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < kThreads; ++thread) threads.emplace_back(client, thread);
  for (std::thread& thread : threads) thread.join();
}

TEST_F(IoSchedulerTest, ATimelineShowsWhatIsInsideTheDeviceByClass) {
  IoSchedulerOptions options = WithDepths(4, 4, 4);
  options.timeline = *Timeline::Create(100);
  options.timeline_name = "disk";
  Start(/*device_depth=*/2, options);
  const std::vector<IoRequest*> demand = Make(2);
  const std::vector<IoRequest*> queued = Make(1);
  const std::vector<IoRequest*> offload = Make(1, IoOp::kWrite);
  ASSERT_TRUE(scheduler_->Submit(IoClass::kDemand, demand).ok());
  device_->AwaitAsleep();
  ASSERT_TRUE(scheduler_->Submit(IoClass::kPrefetch, queued).ok());
  ASSERT_TRUE(scheduler_->Submit(IoClass::kOffload, offload).ok());
  EXPECT_THAT(device_->AwaitAsleep(), ElementsAre(demand[0], demand[1]));
  const int64_t full = Timeline::Now();
  // It ends last, so that the two of its class overlap.
  device_->Complete(demand[1]);
  device_->AwaitAsleep();
  device_->Complete(queued[0]);
  device_->AwaitAsleep();
  device_->Complete(offload[0]);
  device_->AwaitAsleep();
  device_->Complete(demand[0]);
  device_->AwaitAsleep();

  const Json json = Written(*options.timeline);
  EXPECT_THAT(SpansByRow(json),
              testing::UnorderedElementsAre(testing::Pair("disk demand", ElementsAre("read")),
                                            testing::Pair("disk demand 2", ElementsAre("read")),
                                            testing::Pair("disk prefetch", ElementsAre("read")),
                                            testing::Pair("disk offload", ElementsAre("write"))));
  ExpectNested(json);
  EXPECT_GE(queued[0]->submitted_ns, full) << "the time in the queue is not in it";
  EXPECT_LE(demand[0]->submitted_ns, full);
  for (const Json& span : Events(json, "X")) EXPECT_EQ(span["args"]["bytes"], kPageBytes);
}

}  // namespace
}  // namespace terrace
