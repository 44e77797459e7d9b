#include "tiers/flight.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using testing::ElementsAre;

constexpr uint64_t kPage = kPageBytes;
constexpr size_t kFlights = 256;

// Flights of one page each at these pages of the device.
class FlightsTest : public testing::Test {
 protected:
  FlightBatch Make(const std::vector<uint64_t>& pages) {
    memory_ = *AlignedBuffer::Create(pages.size() * kPage);
    flights_ = std::vector<Flight>(pages.size());
    FlightBatch batch;
    for (size_t i = 0; i < pages.size(); ++i) {
      flights_[i].index = i;
      flights_[i].offset = pages[i] * kPage;
      flights_[i].bytes = {memory_.data() + i * kPage, kPage};
      batch.push_back(&flights_[i]);
    }
    return batch;
  }
  // Pages of the flights that travel with `first`, itself included.
  static std::vector<uint64_t> Pages(const Flight& first) {
    std::vector<uint64_t> pages;
    for (const Flight* flight = &first; flight != nullptr; flight = flight->next) {
      EXPECT_EQ(flight->first, &first);
      pages.push_back(flight->offset / kPage);
    }
    return pages;
  }

  AlignedBuffer memory_;
  std::vector<Flight> flights_;
};

TEST_F(FlightsTest, NeighboursShareARequestInTheOrderOfTheDevice) {
  const auto coalescer = *ReadCoalescer::Create(kFlights, 0, 64 * kPage);
  FlightBatch batch = Make({9, 4, 3, 8, 5});
  coalescer->Coalesce(batch);
  ASSERT_EQ(batch.size(), 2u);
  EXPECT_THAT(Pages(*batch[0]), ElementsAre(3, 4, 5));
  EXPECT_THAT(Pages(*batch[1]), ElementsAre(8, 9));
  EXPECT_EQ(batch[0]->request.offset, 3 * kPage);
  EXPECT_EQ(batch[0]->request.length(), 3 * kPage);
  // Each page arrives where its flight wants it.
  EXPECT_EQ(batch[0]->request.buffers[0].iov_base, flights_[2].bytes.iov_base);
  EXPECT_EQ(batch[0]->request.buffers[1].iov_base, flights_[1].bytes.iov_base);
  EXPECT_EQ(batch[0]->request.buffers[2].iov_base, flights_[4].bytes.iov_base);
}

TEST_F(FlightsTest, GapsUpToTheLimitAreReadAlong) {
  const auto coalescer = *ReadCoalescer::Create(kFlights, 2 * kPage, 64 * kPage);
  FlightBatch batch = Make({0, 3, 7});
  coalescer->Coalesce(batch);
  ASSERT_EQ(batch.size(), 2u);
  EXPECT_THAT(Pages(*batch[0]), ElementsAre(0, 3));
  ASSERT_EQ(batch[0]->request.buffers.size(), 3u);
  EXPECT_EQ(batch[0]->request.buffers[1].iov_len, 2 * kPage);
  EXPECT_EQ(batch[0]->request.length(), 4 * kPage);
  EXPECT_THAT(Pages(*batch[1]), ElementsAre(7));
}

TEST_F(FlightsTest, RequestsDoNotShareTheMemoryOfTheirGaps) {
  const auto coalescer = *ReadCoalescer::Create(kFlights, 2 * kPage, 4 * kPage);
  FlightBatch batch = Make({0, 3, 8, 10});
  coalescer->Coalesce(batch);
  ASSERT_EQ(batch.size(), 2u);
  const auto* first = static_cast<std::byte*>(batch[0]->request.buffers[1].iov_base);
  const auto* second = static_cast<std::byte*>(batch[1]->request.buffers[1].iov_base);
  EXPECT_TRUE(first + 2 * kPage <= second || second + kPage <= first);
}

TEST_F(FlightsTest, ARequestIsNoLargerThanItsLimit) {
  const auto coalescer = *ReadCoalescer::Create(kFlights, kPage, 3 * kPage);
  FlightBatch batch = Make({0, 1, 2, 3, 5, 6});
  coalescer->Coalesce(batch);
  ASSERT_EQ(batch.size(), 3u);
  EXPECT_THAT(Pages(*batch[0]), ElementsAre(0, 1, 2));
  EXPECT_THAT(Pages(*batch[1]), ElementsAre(3, 5));
  EXPECT_THAT(Pages(*batch[2]), ElementsAre(6));
}

TEST_F(FlightsTest, ARequestHasNoMoreBuffersThanFit) {
  const auto coalescer = *ReadCoalescer::Create(kFlights, kPage, uint64_t{1} << 30);
  std::vector<uint64_t> pages;
  for (uint64_t i = 0; i < 200; ++i) pages.push_back(2 * i);
  FlightBatch batch = Make(pages);
  coalescer->Coalesce(batch);
  size_t flights = 0;
  for (const Flight* first : batch) {
    EXPECT_LE(first->request.buffers.size(), ReadCoalescer::kMaxVectors);
    flights += Pages(*first).size();
  }
  EXPECT_EQ(flights, 200u);
}

TEST_F(FlightsTest, OverlappingReadsStayApart) {
  const auto coalescer = *ReadCoalescer::Create(kFlights, kPage, 64 * kPage);
  FlightBatch batch = Make({5, 5});
  coalescer->Coalesce(batch);
  EXPECT_EQ(batch.size(), 2u);
}

TEST_F(FlightsTest, NothingIsSharedWhenSwitchedOff) {
  const auto coalescer = *ReadCoalescer::Create(kFlights, 16 * kPage, 0);
  FlightBatch batch = Make({0, 1, 2});
  coalescer->Coalesce(batch);
  EXPECT_EQ(batch.size(), 3u);
}

TEST_F(FlightsTest, AFlightThatSharedMayTravelAloneAfterwards) {
  const auto coalescer = *ReadCoalescer::Create(kFlights, 0, 64 * kPage);
  FlightBatch batch = Make({0, 1});
  coalescer->Coalesce(batch);
  ASSERT_EQ(batch.size(), 1u);
  for (Flight& flight : flights_) {
    coalescer->PrepareAlone(flight);
    EXPECT_THAT(Pages(flight), ElementsAre(flight.offset / kPage));
    EXPECT_EQ(flight.request.offset, flight.offset);
    EXPECT_EQ(flight.request.length(), kPage);
  }
}

}  // namespace
}  // namespace terrace
