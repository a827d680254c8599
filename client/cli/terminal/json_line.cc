#include "client/cli/terminal/json_line.h"

#include <cstdio>
#include <string>

#include "google/protobuf/util/json_util.h"

namespace hookline::cli {

void PrintJsonLine(const google::protobuf::Message& message) {
  std::string line;
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  // It fails for google.protobuf.Any of unknown types only, which no message of Hookline has.
  (void)google::protobuf::util::MessageToJsonString(message, &line, options);
  std::fputs((line + "\n").c_str(), stdout);
}

}  // namespace hookline::cli
