// Closes descriptors that others gave us.
#ifndef HOOKLINE_SERVER_SERVICE_SHARED_MEMORY_DESCRIPTOR_CLOSER_H_
#define HOOKLINE_SERVER_SERVICE_SHARED_MEMORY_DESCRIPTOR_CLOSER_H_

#include <cstddef>
#include <memory>

namespace hookline {

// The last close of a file can take as long as its maker likes: a TCP socket waits for its SO_LINGER, a FUSE file for
// its file system. Closing a socket also closes the descriptors in it that nobody received. So descriptors are
// closed on a few threads of their own, for which nobody waits: neither the destructor, nor the process at its end,
// when the kernel does not linger. A thread starts when a close needs one, and then waits for the next close.
class DescriptorCloser {
 public:
  DescriptorCloser();
  // Descriptors that wait are closed afterwards.
  ~DescriptorCloser();
  DescriptorCloser(const DescriptorCloser&) = delete;
  DescriptorCloser& operator=(const DescriptorCloser&) = delete;

  // Closes the descriptor soon. Never blocks. The caller bounds how many are pending.
  void Close(int descriptor);

  // Returns the number of descriptors that are not closed yet.
  size_t pending() const;

 private:
  struct State;
  const std::shared_ptr<State> state_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_SHARED_MEMORY_DESCRIPTOR_CLOSER_H_
