// Reads the fields of config.json about rotation, in every form that transformers has written: `rope_theta` with
// `rope_scaling`, `rope_parameters` alone, and `rope_parameters` with an object for each kind of layer.
#ifndef HOOKLINE_SERVER_MODEL_FAMILIES_ROPE_FIELDS_H_
#define HOOKLINE_SERVER_MODEL_FAMILIES_ROPE_FIELDS_H_

#include <cstdint>

#include "server/model/families/config_reader.h"
#include "server/model/rotary_config.h"

namespace hookline {

// Defaults for missing fields, and the names of the family's own fields.
struct RotaryDefaults {
  double base = 10000;
  const char* base_key = "rope_theta";  // in the published form
  // The field of the published form with the share of a head that is rotated; null if whole heads are.
  const char* share_key = nullptr;
  double share = 1;
  bool common_names_too = false;  // `rope_theta` and `partial_rotary_factor` can also be given, and must agree
  bool proportional = false;      // whether the family has the type "proportional"
  int64_t context_length = 0;     // the model's; the default of the original context
};

// Reads the rotation of all layers. Fields that contradict each other are an error.
RotaryConfig ReadRotary(const ConfigReader& config, int64_t head_width, const RotaryDefaults& defaults);

// A rotation for the layers that see all positions, and one for the layers with a window.
struct RotaryByKind {
  RotaryConfig full;
  RotaryConfig sliding;
};

// Reads `rope_parameters` with an object for each kind (if one is missing: the kind's defaults, unscaled), else the
// published form, in which `rope_scaling` applies to the layers that see all positions. Heads can differ in width.
RotaryByKind ReadRotaryByKind(const ConfigReader& config, int64_t full_width, const RotaryDefaults& full,
                              int64_t sliding_width, const RotaryDefaults& sliding);

// The factor of DeepSeek's mscale: 0.1 mscale ln(factor) + 1, and 1 for factors up to 1.
double YarnMagnitude(double factor, double mscale);

}  // namespace hookline

#endif  // HOOKLINE_SERVER_MODEL_FAMILIES_ROPE_FIELDS_H_
