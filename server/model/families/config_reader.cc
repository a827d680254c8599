#include "server/model/families/config_reader.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hookline {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxQuotedBytes = 80;

// Arrays and objects are not printed: they may nest deeper than printing may recurse.
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

bool ConfigReader::IsNull(const std::string& key) const {
  const auto it = json_->find(key);
  return it != json_->end() && it->is_null();
}

int64_t ConfigReader::Integer(const std::string& key, std::optional<int64_t> fallback, int64_t most) const {
  const Json* value = FindOrFail(key, fallback.has_value());
  if (value == nullptr) return fallback.value_or(1);
  if (value->is_number_integer() && value->get<int64_t>() >= 1 && value->get<int64_t>() <= most) {
    return value->get<int64_t>();
  }
  Refuse(key, absl::StrCat("an integer from 1 to ", most, " is wanted"));
  return 1;
}

int64_t ConfigReader::Count(const std::string& key, int64_t fallback) const {
  const Json* value = Find(key);
  if (value == nullptr) return fallback;
  if (value->is_number_integer() && value->get<int64_t>() == 0) return 0;
  return Integer(key, fallback);
}

double ConfigReader::Number(const std::string& key, std::optional<double> fallback) const {
  const Json* value = FindOrFail(key, fallback.has_value());
  if (value == nullptr) return fallback.value_or(1);
  if (value->is_number() && std::isfinite(value->get<double>()) && value->get<double>() > 0) {
    return value->get<double>();
  }
  Refuse(key, "a positive number is wanted");
  return 1;
}

bool ConfigReader::Flag(const std::string& key, bool fallback) const {
  const Json* value = Find(key);
  if (value == nullptr) return fallback;
  if (value->is_boolean()) return value->get<bool>();
  Refuse(key, "true or false is wanted");
  return fallback;
}

std::string ConfigReader::Text(const std::string& key, std::optional<std::string> fallback) const {
  const Json* value = FindOrFail(key, fallback.has_value());
  if (value == nullptr) return fallback.value_or("");
  if (value->is_string()) return value->get<std::string>();
  Refuse(key, "a string is wanted");
  return "";
}

std::vector<std::string> ConfigReader::Texts(const std::string& key) const {
  std::vector<std::string> texts;
  const Json* value = FindOrFail(key, /*optional=*/false);
  if (value == nullptr) return texts;
  if (!value->is_array()) {
    Refuse(key, "an array of strings is wanted");
    return texts;
  }
  for (const Json& text : *value) {
    if (!text.is_string()) {
      Fail(absl::StrCat(prefix_, key, "[", texts.size(), "] is ", ValueText(text), "; a string is wanted"));
      return {};
    }
    texts.push_back(text.get<std::string>());
  }
  return texts;
}

ConfigReader ConfigReader::Object(const std::string& key) const {
  const Json* value = Find(key);
  if (value != nullptr && !value->is_object()) {
    Refuse(key, "an object is wanted");
    value = nullptr;
  }
  return ConfigReader(value == nullptr ? &EmptyObject() : value, absl::StrCat(prefix_, key, "."), shared_);
}

void ConfigReader::Refuse(const std::string& key, absl::string_view accepted) const {
  const auto it = json_->find(key);
  Fail(absl::StrCat(prefix_, key, it == json_->end() ? " is missing" : absl::StrCat(" is ", ValueText(*it)), "; ",
                    accepted));
}

void ConfigReader::Fail(absl::string_view what) const {
  if (shared_->status.ok()) {
    shared_->status = absl::FailedPreconditionError(absl::StrCat(shared_->path, ": ", what));
  }
}

const absl::Status& ConfigReader::status() const { return shared_->status; }

}  // namespace hookline
