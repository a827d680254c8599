#include "client/cli/terminal/text_format.h"

#include <array>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace hookline::cli {

const std::map<std::string, v1::Dtype>& Dtypes() {
  static const auto* const dtypes = new std::map<std::string, v1::Dtype>{{"float32", v1::DTYPE_FLOAT32},
                                                                         {"bfloat16", v1::DTYPE_BFLOAT16},
                                                                         {"float16", v1::DTYPE_FLOAT16},
                                                                         {"float8_e4m3", v1::DTYPE_FLOAT8_E4M3},
                                                                         {"int8", v1::DTYPE_INT8}};
  return *dtypes;
}

std::string DtypeName(v1::Dtype dtype) {
  for (const auto& [name, value] : Dtypes()) {
    if (value == dtype) return name;
  }
  return absl::StrCat("dtype ", static_cast<int>(dtype));
}

std::string StopReasonName(v1::StopReason reason) {
  const std::string name = v1::StopReason_Name(reason);
  if (name.empty()) return absl::StrCat("stop reason ", static_cast<int>(reason));
  return absl::AsciiStrToLower(absl::StripPrefix(name, "STOP_REASON_"));
}

std::string WithCommas(int64_t number) {
  std::string digits = absl::StrCat(number);
  const int first = number < 0 ? 1 : 0;
  for (int at = static_cast<int>(digits.size()) - 3; at > first; at -= 3) digits.insert(at, 1, ',');
  return digits;
}

std::string ShortNumber(double number) {
  constexpr std::array<const char*, 5> kUnits = {"", "K", "M", "G", "T"};
  size_t unit = 0;
  while (number >= 999.5 && unit + 1 < kUnits.size()) {
    number /= 1000;
    ++unit;
  }
  const int decimals = unit == 0 || number >= 99.95 ? 0 : number >= 9.995 ? 1 : 2;
  return absl::StrFormat("%.*f %s", decimals, number, kUnits[unit]);
}

std::string ShortTime(double seconds) {
  if (!(seconds < 1e9)) return "?";
  const auto whole = static_cast<int64_t>(std::ceil(seconds));
  if (whole < 3600) return absl::StrFormat("%d:%02d", whole / 60, whole % 60);
  return absl::StrFormat("%d:%02d:%02d", whole / 3600, whole / 60 % 60, whole % 60);
}

std::vector<std::string> SplitHookPoints(const std::string& list) {
  std::vector<std::string> names;
  std::string name;
  int depth = 0;
  for (char c : list) {
    if (c == '{') ++depth;
    if (c == '}' && depth > 0) --depth;
    if (c == ',' && depth == 0) {
      names.push_back(std::move(name));
      name.clear();
    } else {
      name.push_back(c);
    }
  }
  names.push_back(std::move(name));
  return names;
}

}  // namespace hookline::cli
