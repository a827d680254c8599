// The layout of a capture's rows in its chunks.
#ifndef HOOKLINE_CLIENT_CPP_ROW_LAYOUT_H_
#define HOOKLINE_CLIENT_CPP_ROW_LAYOUT_H_

#include <optional>

#include "hookline/v1/capture_service.pb.h"
#include "server/base/row_layout.h"

namespace hookline::client {

// Returns none for a type that this client does not know.
std::optional<Dtype> FromProto(v1::Dtype dtype);

// Returns the layout of the rows of hook point `hook_point` of `started`, whose dtype is known.
RowLayout LayoutOf(const v1::CaptureStarted& started, int hook_point);

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_ROW_LAYOUT_H_
