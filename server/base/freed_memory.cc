#include "server/base/freed_memory.h"

#include <malloc.h>

namespace hookline {

void KeepFreedMemory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  // Threads' own arenas are heaps of 64 MiB that are unmapped as soon as they are empty, whatever the thresholds say.
  mallopt(M_ARENA_MAX, 1);
#endif
}

}  // namespace hookline
