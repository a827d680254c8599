// A capture for tests: its rows come in row groups, from any row on, and their values say where they come from.
#ifndef HOOKLINE_TESTS_RECORDING_ROWS_SOURCE_H_
#define HOOKLINE_TESTS_RECORDING_ROWS_SOURCE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/recording/manifest.h"
#include "server/recording/reader.h"
#include "server/recording/writer.h"

namespace hookline {

class RowsSource {
 public:
  // Gives row groups of `group_rows` rows, cut where a batch of `batch_rows` ends, as an engine does. Ends after
  // `rows` rows.
  RowsSource(int64_t rows, int64_t group_rows, int64_t batch_rows)
      : rows_(rows), group_rows_(group_rows), batch_rows_(batch_rows) {}

  // Returns the manifest that a request would make; a recording can be created with it.
  static Manifest Request(const std::string& name, std::vector<RecordedHookPoint> hook_points, Dtype dtype);

  // Returns the bytes of one row.
  static std::string Row(const Manifest& manifest, int hook_point, int64_t row);
  static int64_t Sequence(int64_t row) { return row / 7; }
  static int32_t Position(int64_t row) { return static_cast<int32_t>(row % 7); }
  static uint32_t TokenId(int64_t row) { return static_cast<uint32_t>(row * 2654435761u); }

  // Sends the rows from the writer's resume token on. Stops after `most_groups` row groups.
  absl::Status SendTo(RecordingWriter& writer, int64_t most_groups = int64_t{1} << 40) const;

 private:
  const int64_t rows_;
  const int64_t group_rows_;
  const int64_t batch_rows_;
};

// Returns the values of consecutive rows.
absl::StatusOr<std::string> ReadRows(const std::shared_ptr<const RecordingReader>& reader, int hook_point,
                                     int64_t first_row, int64_t rows);

// Returns the damage in all shards.
std::vector<ShardDamage> Damage(const RecordingReader& reader);

}  // namespace hookline

#endif  // HOOKLINE_TESTS_RECORDING_ROWS_SOURCE_H_
