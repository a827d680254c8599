// The input is a request's hook points, one on each line, for a model of 48 layers.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/model/hook_points.h"
#include "tests/fuzz/input.h"

namespace {

hookline::HookPoints Points() {
  std::vector<hookline::HookPoint> points;
  for (int layer = 0; layer < 48; ++layer) {
    for (const char* name : {"hook_resid_pre", "attn.hook_q", "hook_attn_out", "hook_resid_post"}) {
      points.push_back({absl::StrCat("blocks.", layer, ".", name), 8, layer, "a point"});
    }
  }
  return hookline::HookPoints(points, {{"embed", 0}}, {{"hook_mlp_in", " means two things"}});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  static const hookline::HookPoints points = Points();
  const std::vector<std::string> patterns = absl::StrSplit(hookline::AsText(data, bytes), '\n');
  hookline::CheckMessage(points.Resolve(patterns, 4096).status());
  return 0;
}
