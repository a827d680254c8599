#ifndef HOOKLINE_CLIENT_CPP_STREAMING_COPY_H_
#define HOOKLINE_CLIENT_CPP_STREAMING_COPY_H_

#include <cstddef>

namespace hookline::client {

// As memcpy, but what is large is written past the processor's caches where the processor can: batches are larger than
// those, and writing them through would first read their old content and push out the memory that rows arrive in. Half
// as fast again with batches of 12 MiB (AMD EPYC).
void StreamingCopy(void* destination, const void* source, size_t bytes);

}  // namespace hookline::client

#endif  // HOOKLINE_CLIENT_CPP_STREAMING_COPY_H_
