// The server's certificate, its key and the authority of clients' certificates, read again whenever the files change.
//
//   ASSIGN_OR_RETURN(std::unique_ptr<Certificates> certificates, Certificates::Open(options));
//   Certificates::Version now = certificates->current();   // at each handshake
#ifndef HOOKLINE_SERVER_SERVICE_AUTH_CERTIFICATES_H_
#define HOOKLINE_SERVER_SERVICE_AUTH_CERTIFICATES_H_

#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

namespace hookline {

// Paths of PEM files.
struct TlsOptions {
  std::string certificate;  // with its chain; empty: no TLS
  std::string key;          // without a passphrase
  std::string client_ca;    // clients must show a certificate that it signed; empty: none is asked for

  bool is_on() const { return !certificate.empty(); }
};

// The files' contents, which match each other.
struct TlsFiles {
  std::string certificate;
  std::string key;
  std::string client_ca;
};

// Reads and checks the files. INVALID_ARGUMENT, naming the flag and the file: it cannot be read, is not PEM, has
// expired or is not valid yet, or the key belongs to another certificate.
absl::StatusOr<TlsFiles> ReadTlsFiles(const TlsOptions& options);

// Thread-safe.
class Certificates {
 public:
  // Reads the files; errors of ReadTlsFiles. From then on a thread checks once a second whether they have changed.
  static absl::StatusOr<std::unique_ptr<Certificates>> Open(const TlsOptions& options);
  ~Certificates();
  Certificates(const Certificates&) = delete;
  Certificates& operator=(const Certificates&) = delete;

  struct Version {
    int64_t number = 0;  // grows with each change
    std::shared_ptr<const TlsFiles> files;
  };
  Version current() const;

  bool asks_clients() const { return !options_.client_ca.empty(); }

  // Reads the files again. If they are wrong, returns and logs the error, and the previous ones stay in force.
  absl::Status Reload();

 private:
  Certificates(const TlsOptions& options, TlsFiles files);
  void Watch();

  const TlsOptions options_;
  mutable absl::Mutex mutex_;
  Version current_ ABSL_GUARDED_BY(mutex_);
  absl::Notification end_;
  std::thread thread_;
};

}  // namespace hookline

#endif  // HOOKLINE_SERVER_SERVICE_AUTH_CERTIFICATES_H_
