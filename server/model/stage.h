// A part of a model: consecutive blocks on one device.
#ifndef HOOKLINE_SERVER_MODEL_STAGE_H_
#define HOOKLINE_SERVER_MODEL_STAGE_H_

#include <cstdint>
#include <string>

namespace hookline {

struct Stage {
  std::string device;  // as LibTorch names it: "cpu", "cuda:0"
  int first_block = 0;
  int blocks = 0;
  int64_t weight_bytes = 0;  // includes the weights before the first block or after the last; 0: unknown
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_STAGE_H_
