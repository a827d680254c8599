// Describes a decoder in one line.
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_DESCRIBE_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_DESCRIBE_H_

#include <string>

#include "server/model/decoder_config.h"

namespace hookline {

// Describes what activations depend on, beside the sizes: "rotary 64 base 10000 yarn x4, window 128 on 12
// of 24 layers".
std::string DescribeDecoder(const DecoderConfig& config);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_DESCRIBE_H_
