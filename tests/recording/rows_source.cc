#include "tests/recording/rows_source.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/base/status.h"

namespace hookline {

Manifest RowsSource::Request(const std::string& name, std::vector<RecordedHookPoint> hook_points, Dtype dtype) {
  Manifest manifest;
  manifest.name = name;
  manifest.model = "m";
  manifest.fingerprint = std::string(32, 'f');
  manifest.request_digest = std::string(32, 'd');
  manifest.deterministic = true;
  manifest.dtype = dtype;
  manifest.hook_points = std::move(hook_points);
  manifest.source = {{"dataset", {{"name", "corpus"}, {"sequence_length", 7}}}};
  manifest.selection = {{"skip_first", 1}};
  manifest.resume_token = "0";
  return manifest;
}

std::string RowsSource::Row(const Manifest& manifest, int hook_point, int64_t row) {
  const int64_t bytes = manifest.LayoutOf(hook_point).bytes();
  std::string values(bytes, '\0');
  for (int64_t i = 0; i < bytes; ++i) values[i] = static_cast<char>((row * 131 + hook_point * 17 + i * 3) % 251);
  return values;
}

absl::Status RowsSource::SendTo(RecordingWriter& writer, int64_t most_groups) const {
  int64_t row = 0;
  if (!absl::SimpleAtoi(writer.manifest().resume_token, &row)) return absl::InternalError("no token of this source");
  const Manifest manifest = writer.manifest();
  while (row < std::min(rows_, manifest.max_rows()) && most_groups-- > 0) {
    const int64_t end = std::min({row + group_rows_, (row / batch_rows_ + 1) * batch_rows_, rows_});
    std::vector<int64_t> sequence;
    std::vector<int32_t> position;
    std::vector<uint32_t> token_id;
    for (int64_t r = row; r < end; ++r) {
      sequence.push_back(Sequence(r));
      position.push_back(Position(r));
      token_id.push_back(TokenId(r));
    }
    for (size_t h = 0; h < manifest.hook_points.size(); ++h) {
      const int64_t budget = manifest.hook_points[h].max_activations;
      if (budget <= row) continue;
      RowsToRecord rows;
      rows.hook_point = static_cast<int>(h);
      rows.first_row = row;
      rows.rows = std::min(end, budget) - row;
      std::string values;
      for (int64_t r = row; r < row + rows.rows; ++r) values += Row(manifest, rows.hook_point, r);
      // The rows lie in two slabs, cut inside a row.
      const absl::Span<const uint8_t> all(reinterpret_cast<const uint8_t*>(values.data()), values.size());
      const std::vector<absl::Span<const uint8_t>> pieces = {all.first(values.size() / 3),
                                                             all.subspan(values.size() / 3)};
      rows.data = pieces;
      rows.sequence = sequence;
      rows.position = position;
      rows.token_id = token_id;
      const std::string token = absl::StrCat(end);
      rows.resume_token = token;
      RETURN_IF_ERROR(writer.Append(rows));
    }
    row = end;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadRows(const std::shared_ptr<const RecordingReader>& reader, int hook_point,
                                     int64_t first_row, int64_t rows) {
  const Manifest& manifest = reader->manifest();
  std::string values(rows * manifest.LayoutOf(hook_point).bytes(), '\0');
  RETURN_IF_ERROR(
      RowRead::OfHookPoint(reader, hook_point, {{first_row, rows, 0}}, reinterpret_cast<uint8_t*>(values.data()))
          .Finish());
  return values;
}

std::vector<ShardDamage> Damage(const RecordingReader& reader) {
  std::vector<ShardDamage> damaged;
  for (size_t i = 0; i < reader.manifest().shards.size(); ++i) {
    absl::StatusOr<std::optional<ShardDamage>> damage = reader.VerifyShard(i);
    if (!damage.ok()) {
      damaged.push_back({reader.manifest().shards[i].file, damage.status().ToString()});
    } else if (damage->has_value()) {
      damaged.push_back(**std::move(damage));
    }
  }
  return damaged;
}

}  // namespace hookline
