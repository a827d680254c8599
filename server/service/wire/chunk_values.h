// Converts activation values of any type to numbers.
#ifndef HOOKLINE_SERVER_SERVICE_WIRE_CHUNK_VALUES_H_
#define HOOKLINE_SERVER_SERVICE_WIRE_CHUNK_VALUES_H_

#include "absl/strings/string_view.h"
#include "hookline/v1/capture_service.pb.h"
#include "server/base/row_layout.h"

namespace hookline {

// Appends the values in `data`, which holds whole rows one after another, to the chunk's `values`, each exactly, and
// the indices of their entries to its `indices`.
void AppendAsNumbers(absl::string_view data, const RowLayout& layout, v1::ActivationChunk* chunk);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_WIRE_CHUNK_VALUES_H_
