// Activation values as numbers, whatever their type in memory.
#ifndef HOOKLINE_SERVER_SERVICE_WIRE_VALUES_H_
#define HOOKLINE_SERVER_SERVICE_WIRE_VALUES_H_

#include "absl/strings/string_view.h"
#include "google/protobuf/repeated_field.h"
#include "server/base/dtype.h"

namespace hookline {

// Appends the values in `data`, little-endian `dtype`, as floats, each exactly. `data` holds whole values.
void AppendAsFloats(absl::string_view data, Dtype dtype, google::protobuf::RepeatedField<float>* values);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_WIRE_VALUES_H_
