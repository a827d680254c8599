// Tests that a recording's session ends as it should when others act on the same recording.
#include "server/recorder/recording_session.h"

#include "gmock/gmock.h"
#include "server/capture/request.h"
#include "server/recording/catalog.h"
#include "tests/service/fake_engine.h"
#include "tests/support/fake_disk.h"

namespace hookline {
namespace {

TEST(RecordingSession, WhoseRecordingIsRemovedBeforeItContinuesAsksToComeAgain) {
  FakeEngine engine;
  FakeDisk disk;
  auto catalog = Catalog::Open(disk.root(), {});
  ASSERT_TRUE(catalog.ok()) << catalog.status();
  CaptureRequest request;
  request.hook_points = {"a"};
  request.max_activations = 10;
  request.provenance = true;
  TokenBatch tokens;
  tokens.Append(1);
  tokens.EndSequence();
  request.source = std::move(tokens);
  RecordingSession::Options options;
  options.plan = *engine.Plan(std::move(request));
  options.name = "removed";
  options.continues = true;
  const auto session = RecordingSession::Start(&engine, catalog->get(), std::move(options), "somebody");
  ASSERT_TRUE(session.ok()) << session.status();
  (*session)->WaitUntilEnded();
  EXPECT_EQ((*session)->progress().status.code(), absl::StatusCode::kAborted) << (*session)->progress().status;
}

}  // namespace
}  // namespace hookline
