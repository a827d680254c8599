// Reads the devices of a model's replicas and stages, as --device gives them.
//
//   ParseDevices("cuda:0+cuda:1,cuda:2+cuda:3")     // two replicas, each of two stages
#ifndef HOOKLINE_SERVER_MODEL_LOAD_DEVICE_SPEC_H_
#define HOOKLINE_SERVER_MODEL_LOAD_DEVICE_SPEC_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace hookline {

// The devices of the stages of each replica, as they are spelled: replicas are separated by `,`, stages by `+`.
// INVALID_ARGUMENT: one is empty, there are more than 64 devices, `auto` or `cuda` stands beside others, a device other
// than the CPU is named twice, or the CPU beside another, since the rows of both differ.
absl::StatusOr<std::vector<std::vector<std::string>>> ParseDevices(absl::string_view text);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_LOAD_DEVICE_SPEC_H_
