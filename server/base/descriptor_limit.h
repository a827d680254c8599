// The limit on the file descriptors that the process may have open.
#ifndef HOOKLINE_SERVER_BASE_DESCRIPTOR_LIMIT_H_
#define HOOKLINE_SERVER_BASE_DESCRIPTOR_LIMIT_H_

#include <cstdint>

namespace hookline {

// Raises the limit to the hard limit, since the usual 1024 are for programs that use select(). Returns the limit that
// holds then.
int64_t RaiseDescriptorLimit();

// Returns the limit that holds now.
int64_t DescriptorLimit();

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_DESCRIPTOR_LIMIT_H_
