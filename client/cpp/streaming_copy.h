#ifndef HOOKLINE_CLIENT_CPP_STREAMING_COPY_H_
#define HOOKLINE_CLIENT_CPP_STREAMING_COPY_H_

#include <cstddef>

namespace hookline::client {

// Copies as memcpy does, but writes large copies past the caches where the processor can. Batches are larger than the
// caches: writing through those would first read the batch's old content, and push out the memory that rows arrive in.
// It is 1.5 times as fast as memcpy for batches of 12 MiB (AMD EPYC).
void StreamingCopy(void* destination, const void* source, size_t bytes);

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_STREAMING_COPY_H_
