#include "server/capture/message_size.h"

#include "absl/strings/str_cat.h"
#include "server/base/status.h"

namespace hookline {

absl::StatusOr<int64_t> MessageRows(const MessageShape& shape, absl::string_view hook_point,
                                    int64_t max_message_bytes) {
  const int64_t rows = MaxMessageRows(shape, max_message_bytes);
  if (rows > 0) return rows;
  return InvalidField("max_message_bytes", absl::StrCat("a row of ", hook_point, " takes ",
                                                        MessageHeaderBytes(shape) + MessageRowBytes(shape),
                                                        " bytes as a message, more than ", max_message_bytes));
}

}  // namespace hookline
