#include "server/model/families/config_reader.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/json.h"

namespace hookline {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxQuotedBytes = 80;

// Arrays and objects are not printed, since they can nest deeper than the printer can recurse.
std::string ValueText(const Json& value) {
  if (value.is_array()) return "an array";
  if (value.is_object()) return "an object";
  return value.dump(-1, ' ', /*ensure_ascii=*/true).substr(0, kMaxQuotedBytes);
}

const Json& EmptyObject() {
  static const Json* const empty = new Json(Json::object());
  return *empty;
}

}  // namespace

struct ConfigReader::Shared {
  std::string path;
  absl::Status status;
};

ConfigReader::ConfigReader(const Json& json, std::string path)
    : ConfigReader(&json, "", std::make_shared<Shared>(Shared{std::move(path), absl::OkStatus()})) {}

ConfigReader::ConfigReader(const Json* json, std::string prefix, std::shared_ptr<Shared> shared)
    : json_(json), prefix_(std::move(prefix)), shared_(std::move(shared)) {}

const Json* ConfigReader::Find(const std::string& key) const {
  const auto it = json_->find(key);
  return it == json_->end() || it->is_null() ? nullptr : &*it;
}

const Json* ConfigReader::FindOrFail(const std::string& key, bool optional) const {
  const Json* value = Find(key);
  if (value == nullptr && !optional) Fail(absl::StrCat(prefix_, key, " is missing"));
  return value;
}

bool ConfigReader::Has(const std::string& key) const { return Find(key) != nullptr; }

bool ConfigReader::empty() const { return json_->empty(); }

bool ConfigReader::IsNull(const std::string& key) const {
  const auto it = json_->find(key);
  return it != json_->end() && it->is_null();
}

std::vector<std::string> ConfigReader::Names() const {
  std::vector<std::string> names;
  for (const auto& [name, value] : json_->items()) names.push_back(name);
  return names;
}

int64_t ConfigReader::Integer(const std::string& key, std::optional<int64_t> fallback, int64_t most) const {
  const Json* value = FindOrFail(key, fallback.has_value());
  if (value == nullptr) return fallback.value_or(1);
  const std::optional<int64_t> number = JsonInteger(*value, 1, most);
  if (!number.has_value()) Refuse(key, absl::StrCat("expected an integer from 1 to ", most));
  return number.value_or(1);
}

int64_t ConfigReader::Count(const std::string& key, int64_t fallback) const {
  const Json* value = Find(key);
  if (value == nullptr) return fallback;
  if (JsonInteger(*value, 0, 0).has_value()) return 0;
  return Integer(key, fallback);
}

double ConfigReader::Number(const std::string& key, std::optional<double> fallback) const {
  const Json* value = FindOrFail(key, fallback.has_value());
  if (value == nullptr) return fallback.value_or(1);
  if (value->is_number() && std::isfinite(value->get<double>()) && value->get<double>() > 0) {
    return value->get<double>();
  }
  Refuse(key, "expected a positive number");
  return 1;
}

double ConfigReader::NumberFrom0(const std::string& key, double fallback) const {
  const Json* value = Find(key);
  if (value == nullptr) return fallback;
  if (value->is_number() && value->get<double>() == 0) return 0;
  return Number(key);
}

bool ConfigReader::Flag(const std::string& key, bool fallback) const {
  const Json* value = Find(key);
  if (value == nullptr) return fallback;
  if (value->is_boolean()) return value->get<bool>();
  Refuse(key, "expected true or false");
  return fallback;
}

std::string ConfigReader::Text(const std::string& key, const std::optional<std::string>& fallback) const {
  const Json* value = FindOrFail(key, fallback.has_value());
  if (value == nullptr) return fallback.value_or("");
  if (value->is_string()) return value->get<std::string>();
  Refuse(key, "expected a string");
  return "";
}

const Json* ConfigReader::Array(const std::string& key, absl::string_view of) const {
  const Json* value = FindOrFail(key, /*optional=*/false);
  if (value == nullptr || value->is_array()) return value;
  Refuse(key, absl::StrCat("expected an array of ", of));
  return nullptr;
}

std::vector<std::string> ConfigReader::Texts(const std::string& key) const {
  std::vector<std::string> texts;
  const Json* value = Array(key, "strings");
  if (value == nullptr) return texts;
  for (const Json& text : *value) {
    if (!text.is_string()) {
      Fail(absl::StrCat(prefix_, key, "[", texts.size(), "] is ", ValueText(text), "; expected a string"));
      return {};
    }
    texts.push_back(text.get<std::string>());
  }
  return texts;
}

std::vector<double> ConfigReader::Numbers(const std::string& key) const {
  std::vector<double> numbers;
  const Json* value = Array(key, "numbers");
  if (value == nullptr) return numbers;
  for (const Json& number : *value) {
    if (!number.is_number() || !std::isfinite(number.get<double>()) || number.get<double>() <= 0) {
      Fail(absl::StrCat(prefix_, key, "[", numbers.size(), "] is ", ValueText(number), "; expected a positive number"));
      return {};
    }
    numbers.push_back(number.get<double>());
  }
  return numbers;
}

std::vector<int64_t> ConfigReader::Counts(const std::string& key) const {
  std::vector<int64_t> counts;
  const Json* value = Array(key, "integers");
  if (value == nullptr) return counts;
  for (const Json& count : *value) {
    const std::optional<int64_t> number = JsonInteger(count, 0, kMaxInteger);
    if (!number.has_value()) {
      Fail(absl::StrCat(prefix_, key, "[", counts.size(), "] is ", ValueText(count),
                        "; expected an integer of at least 0"));
      return {};
    }
    counts.push_back(*number);
  }
  return counts;
}

std::vector<std::string> ConfigReader::RepeatedTexts(const std::string& key, int64_t most) const {
  std::vector<std::string> texts;
  const Json* value = Array(key, "pairs");
  if (value == nullptr) return texts;
  const auto is_pair = [&](const Json& pair) {
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_array()) return false;
    if (!JsonInteger(pair[1], 0, kMaxInteger).has_value()) return false;
    return std::all_of(pair[0].begin(), pair[0].end(), [](const Json& text) { return text.is_string(); });
  };
  for (const Json& pair : *value) {
    if (!is_pair(pair)) {
      Fail(absl::StrCat(prefix_, key,
                        " must be an array of pairs: an array of strings, and the number of its repetitions"));
      return {};
    }
    const int64_t times = *JsonInteger(pair[1], 0, kMaxInteger);
    for (int64_t i = 0; i < times; ++i) {
      for (const Json& text : pair[0]) texts.push_back(text.get<std::string>());
      if (pair[0].empty() || static_cast<int64_t>(texts.size()) > most) break;
    }
    if (static_cast<int64_t>(texts.size()) > most) {
      Fail(absl::StrCat(prefix_, key, " lists more than ", most, " layers"));
      return {};
    }
  }
  return texts;
}

ConfigReader ConfigReader::Object(const std::string& key) const {
  const Json* value = Find(key);
  if (value != nullptr && !value->is_object()) {
    Refuse(key, "expected an object");
    value = nullptr;
  }
  return ConfigReader(value == nullptr ? &EmptyObject() : value, absl::StrCat(prefix_, key, "."), shared_);
}

void ConfigReader::Refuse(const std::string& key, absl::string_view accepted) const {
  const auto it = json_->find(key);
  Fail(absl::StrCat(prefix_, key, it == json_->end() ? " is missing" : absl::StrCat(" is ", ValueText(*it)), "; ",
                    accepted));
}

void ConfigReader::Agree(const std::string& key, double value, absl::string_view other) const {
  const Json* own = Find(key);
  if (own == nullptr || (own->is_number() && own->get<double>() == value)) return;
  Refuse(key, absl::StrCat("but ", other, " says ", value, ", and both mean the same"));
}

void ConfigReader::Fail(absl::string_view what) const {
  if (shared_->status.ok()) {
    shared_->status = absl::FailedPreconditionError(absl::StrCat(shared_->path, ": ", what));
  }
}

const absl::Status& ConfigReader::status() const { return shared_->status; }

}  // namespace hookline
