#include "server/base/descriptor_limit.h"

#include <sys/resource.h>

#include <algorithm>
#include <limits>

namespace hookline {
namespace {

// POSIX promises this many; used where getrlimit fails.
constexpr rlimit kLeast = {20, 20};

rlimit Limits() {
  rlimit limits;
  return getrlimit(RLIMIT_NOFILE, &limits) == 0 ? limits : kLeast;
}

}  // namespace

int64_t RaiseDescriptorLimit() {
  rlimit limits = Limits();
  limits.rlim_cur = limits.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limits);
  return DescriptorLimit();
}

int64_t DescriptorLimit() {
  return static_cast<int64_t>(
      std::min<rlim_t>(Limits().rlim_cur, static_cast<rlim_t>(std::numeric_limits<int64_t>::max())));
}

}  // namespace hookline
