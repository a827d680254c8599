// Closes descriptors that others gave us.
#ifndef HOOKLINE_SERVER_SERVICE_SHARED_MEMORY_DESCRIPTOR_CLOSER_H_
#define HOOKLINE_SERVER_SERVICE_SHARED_MEMORY_DESCRIPTOR_CLOSER_H_

#include <cstddef>
#include <memory>

namespace hookline {

// The last close of a file can take as long as its maker likes: a TCP socket waits for its SO_LINGER, a file of
// FUSE for its file system. A socket that is closed with descriptors in it that nobody received closes those as well.
// So they are closed on threads of their own, a few at most, for which nobody waits: also when this is destroyed, and
// at the process's end, when the kernel does not linger.
class DescriptorCloser {
 public:
  DescriptorCloser();

  // Closes it soon. Never blocks. The caller bounds how many are pending.
  void Close(int descriptor);

  // The number that are not closed yet.
  size_t pending() const;

 private:
  struct State;
  const std::shared_ptr<State> state_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_SHARED_MEMORY_DESCRIPTOR_CLOSER_H_
