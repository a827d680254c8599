// Parses the devices of a model's replicas and stages, as --device gives them.
//
//   ParseDevices("cuda:0+cuda:1,cuda:2+cuda:3")     // two replicas, each of two stages
#ifndef HOOKLINE_SERVER_MODEL_LOAD_DEVICE_SPEC_H_
#define HOOKLINE_SERVER_MODEL_LOAD_DEVICE_SPEC_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace hookline {

// Returns the devices of the stages of each replica, as they are spelled: replicas are separated by `,`, stages by `+`.
// INVALID_ARGUMENT: one is empty, there are more than 64, `auto` or `cuda` is combined with others, a device other than
// the CPU is named twice, or the CPU is combined with another device, since their rows would differ.
absl::StatusOr<std::vector<std::vector<std::string>>> ParseDevices(absl::string_view text);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_DEVICE_SPEC_H_
