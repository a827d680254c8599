#include "server/model/families/rope_fields.h"

#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace hookline {
namespace {

constexpr char kOriginalContext[] = "original_max_position_embeddings";

// Reads one object of scaling, `rope`, from the file `config`.
class ScalingReader {
 public:
  ScalingReader(const ConfigReader& config, const ConfigReader& rope, const RotaryDefaults& defaults)
      : config_(config), rope_(rope), defaults_(defaults) {}

  RotaryConfig Read(int64_t head_width, double base, double share) {
    rotary_.base = base;
    const std::string key = TypeKey();
    const std::string type = rope_.Text(key, "default");
    if (type == "proportional" && defaults_.proportional) {
      ReadProportional(head_width, share);
      return rotary_;
    }
    SetDims(head_width, share);
    if (type == "linear") {
      rotary_.scaling = RotaryConfig::Scaling::kLinear;
      rotary_.factor = rope_.Number("factor");
    } else if (type == "llama3") {
      ReadLlama3();
    } else if (type == "yarn") {
      ReadYarn();
    } else if (type == "longrope" || type == "su") {
      ReadLongRope();
    } else if (type == "dynamic") {
      rope_.Refuse(key, "its frequencies depend on the longest sequence so far, which is not supported");
    } else if (type != "default") {
      rope_.Refuse(key, "default, linear, llama3, yarn and longrope are supported");
    }
    return rotary_;
  }

 private:
  // Older files use `type`.
  std::string TypeKey() const {
    if (!rope_.Has("type")) return "rope_type";
    if (!rope_.Has("rope_type")) return "type";
    const std::string type = rope_.Text("type");
    if (type != rope_.Text("rope_type")) {
      rope_.Refuse("rope_type", absl::StrCat("but type says \"", type.substr(0, 80), "\", and both mean the same"));
    }
    return "rope_type";
  }

  void SetDims(int64_t head_width, double share) {
    rotary_.dims = static_cast<int64_t>(share * static_cast<double>(head_width));
    if (share > 1 || rotary_.dims < 2 || rotary_.dims % 2 != 0) {
      rope_.Fail(absl::StrCat("the configuration rotates a share of ", share, " of ", head_width,
                              " values per head; expected an even number of values, at least 2"));
    }
  }

  double OriginalContext() {
    const int64_t around = config_.Integer(kOriginalContext, defaults_.context_length);
    const int64_t own = rope_.Integer(kOriginalContext, around);
    if (config_.Has(kOriginalContext)) {
      rope_.Agree(kOriginalContext, static_cast<double>(around), absl::StrCat(kOriginalContext, " beside it"));
    }
    return static_cast<double>(own);
  }

  // `factor`, or by default the growth of the context.
  double Factor() {
    return rope_.Number("factor", static_cast<double>(defaults_.context_length) / rotary_.original_context);
  }

  void ReadLlama3() {
    rotary_.scaling = RotaryConfig::Scaling::kLlama3;
    rotary_.factor = rope_.Number("factor");
    rotary_.low_frequency_factor = rope_.Number("low_freq_factor");
    rotary_.high_frequency_factor = rope_.Number("high_freq_factor");
    rotary_.original_context = OriginalContext();
    if (rotary_.high_frequency_factor <= rotary_.low_frequency_factor) {
      rope_.Refuse("high_freq_factor",
                   absl::StrCat("expected more than low_freq_factor ", rotary_.low_frequency_factor));
    }
  }

  void ReadYarn() {
    rotary_.scaling = RotaryConfig::Scaling::kYarn;
    rotary_.original_context = OriginalContext();
    rotary_.factor = Factor();
    // 0 means the default, as in transformers.
    const double fast = rope_.NumberFrom0("beta_fast", 0), slow = rope_.NumberFrom0("beta_slow", 0);
    rotary_.beta_fast = fast == 0 ? 32 : fast;
    rotary_.beta_slow = slow == 0 ? 1 : slow;
    rotary_.truncate = rope_.Flag("truncate", true);
    const double mscale = rope_.NumberFrom0("mscale", 0), mscale_all = rope_.NumberFrom0("mscale_all_dim", 0);
    const double magnitude = mscale != 0 && mscale_all != 0
                                 ? YarnMagnitude(rotary_.factor, mscale) / YarnMagnitude(rotary_.factor, mscale_all)
                                 : YarnMagnitude(rotary_.factor, 1);
    rotary_.attention_factor = rope_.Number("attention_factor", magnitude);
    if (rotary_.base <= 1) rope_.Fail(absl::StrCat("yarn needs a rope_theta above 1, not ", rotary_.base));
    if (rotary_.beta_fast < rotary_.beta_slow) {
      rope_.Refuse("beta_fast", absl::StrCat("expected at least beta_slow ", rotary_.beta_slow));
    }
  }

  void ReadLongRope() {
    rotary_.scaling = RotaryConfig::Scaling::kLongRope;
    rotary_.original_context = OriginalContext();
    const double factor = Factor();
    const double magnitude = factor <= 1 ? 1 : std::sqrt(1 + std::log(factor) / std::log(rotary_.original_context));
    rotary_.attention_factor = rope_.Number("attention_factor", magnitude);
    rotary_.short_factor = Divisors("short_factor");
    rotary_.long_factor = Divisors("long_factor");
  }

  std::vector<double> Divisors(const std::string& key) {
    std::vector<double> divisors = rope_.Numbers(key);
    if (static_cast<int64_t>(divisors.size()) != rotary_.dims / 2) {
      rope_.Fail(absl::StrCat(key, " has ", divisors.size(), " entries, but ", rotary_.dims / 2,
                              " pairs of a head are rotated"));
    }
    return divisors;
  }

  void ReadProportional(int64_t head_width, double share) {
    rotary_.scaling = RotaryConfig::Scaling::kProportional;
    rotary_.factor = rope_.Number("factor", 1);
    SetDims(head_width, /*share=*/1);
    rotary_.turning = static_cast<int64_t>(share * static_cast<double>(head_width) / 2);
    if (share > 1) rope_.Refuse("partial_rotary_factor", "expected at most 1");
  }

  const ConfigReader& config_;
  const ConfigReader& rope_;
  const RotaryDefaults& defaults_;
  RotaryConfig rotary_;
};

// Reads a rotation from the object `rope` of `config`.
RotaryConfig ReadFrom(const ConfigReader& config, const ConfigReader& rope, int64_t head_width,
                      const RotaryDefaults& defaults) {
  const double base = rope.Number("rope_theta", config.Number(defaults.base_key, defaults.base));
  config.Agree(defaults.base_key, base, "the rotation's own rope_theta");
  const char* share_key = defaults.share_key != nullptr ? defaults.share_key : "partial_rotary_factor";
  const double share = rope.Number("partial_rotary_factor", config.Number(share_key, defaults.share));
  config.Agree(share_key, share, "the rotation's own partial_rotary_factor");
  // Families with their own names can also have the common ones.
  if (defaults.common_names_too) {
    config.Agree("rope_theta", base, defaults.base_key);
    config.Agree("partial_rotary_factor", share, share_key);
  }
  if (defaults.share_key == nullptr && share != 1) {
    (rope.Has("partial_rotary_factor") ? rope : config)
        .Refuse("partial_rotary_factor", "expected 1, since this family rotates whole heads");
  }
  return ScalingReader(config, rope, defaults).Read(head_width, base, share);
}

// A file of transformers 5 to which an older `rope_scaling` was added must mean the same with both.
void RefuseUnlessEqual(const ConfigReader& config, const RotaryConfig& parameters, const RotaryConfig& scaling) {
  if (parameters.ToString() == scaling.ToString()) return;
  config.Refuse("rope_scaling", "it contradicts rope_parameters; give one of the two, or the same values in both");
}

}  // namespace

double YarnMagnitude(double factor, double mscale) { return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1; }

RotaryConfig ReadRotary(const ConfigReader& config, int64_t head_width, const RotaryDefaults& defaults) {
  const ConfigReader parameters = config.Object("rope_parameters"), scaling = config.Object("rope_scaling");
  if (parameters.empty()) return ReadFrom(config, scaling, head_width, defaults);
  for (const char* kind : {"full_attention", "sliding_attention"}) {
    if (parameters.Has(kind)) parameters.Refuse(kind, "this family has one rotation for all layers");
  }
  RotaryConfig rotary = ReadFrom(config, parameters, head_width, defaults);
  if (!scaling.empty()) RefuseUnlessEqual(config, rotary, ReadFrom(config, scaling, head_width, defaults));
  return rotary;
}

RotaryByKind ReadRotaryByKind(const ConfigReader& config, int64_t full_width, const RotaryDefaults& full,
                              int64_t sliding_width, const RotaryDefaults& sliding) {
  const ConfigReader parameters = config.Object("rope_parameters"), scaling = config.Object("rope_scaling");
  // In the form of transformers 5, only the objects of the kinds count, and fields beside them are ignored.
  const ConfigReader own_full = parameters.Object("full_attention");
  const ConfigReader own_sliding = parameters.Object("sliding_attention");
  for (const ConfigReader& own : {own_full, own_sliding}) {
    // transformers reads it beside the kinds, where no file has it.
    if (!own.Flag("truncate", true)) own.Refuse("truncate", "transformers ignores it inside a kind of layer");
  }
  RotaryByKind rotary;
  rotary.full = ReadFrom(config, own_full.empty() ? scaling : own_full, full_width, full);
  rotary.sliding = ReadFrom(config, own_sliding, sliding_width, sliding);
  if (!own_full.empty() && !scaling.empty()) {
    RefuseUnlessEqual(config, rotary.full, ReadFrom(config, scaling, full_width, full));
  }
  return rotary;
}

}  // namespace hookline
