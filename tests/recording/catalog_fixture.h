// A fixture with a catalog on a fake disk, and a recording to put into it.
#ifndef HOOKLINE_TESTS_RECORDING_CATALOG_FIXTURE_H_
#define HOOKLINE_TESTS_RECORDING_CATALOG_FIXTURE_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "server/recording/catalog.h"
#include "tests/recording/rows_source.h"
#include "tests/support/fake_disk.h"

namespace hookline {

// Two hook points; the budget of the second ends inside the third shard. A shard of 256 bytes holds 4 rows.
inline const std::vector<RecordedHookPoint> kPoints = {{"blocks.0.hook_resid_post", 5, 23}, {"hook_embed", 3, 9}};
inline const CatalogOptions kOptions = {0, 0, 256};

inline const RowsSource kSource(100, 5, 12);

class RecordingTest : public ::testing::Test {
 protected:
  void SetUp() override { Open(); }

  void Open(CatalogOptions options = kOptions) {
    catalog_.reset();
    auto opened = Catalog::Open(disk_.root(), options);
    ASSERT_TRUE(opened.ok()) << opened.status();
    catalog_ = *std::move(opened);
  }

  void Record(const std::string& name, const RowsSource& source = kSource, Dtype dtype = Dtype::kFloat32) {
    auto writer = catalog_->Create(RowsSource::Request(name, kPoints, dtype));
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE(source.SendTo(**writer).ok());
    const absl::Status closed = (*writer)->Close(RecordingState::kComplete, absl::OkStatus());
    ASSERT_TRUE(closed.ok()) << closed;
  }

  FakeDisk disk_;
  std::unique_ptr<Catalog> catalog_;
};

}  // namespace hookline

#endif  // HOOKLINE_TESTS_RECORDING_CATALOG_FIXTURE_H_
