#include "server/service/auth/certificates.h"

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <sys/stat.h>

#include <array>
#include <fstream>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/base/status.h"
#include "spdlog/spdlog.h"

namespace hookline {
namespace {

// This is soon enough after a certificate is replaced, and no load at all.
constexpr absl::Duration kLookInterval = absl::Seconds(1);
// Chains and bundles of authorities have a few hundred KiB at most.
constexpr int64_t kMaxFileBytes = int64_t{4} << 20;

struct Free {
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
using Certificate = std::unique_ptr<X509, Free>;

absl::Status Wrong(absl::string_view flag, absl::string_view path, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(flag, ": ", path, " ", why));
}

absl::StatusOr<std::string> ReadFile(absl::string_view flag, const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::string text(kMaxFileBytes + 1, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (stream.bad() || (stream.gcount() == 0 && !stream.eof())) return Wrong(flag, path, "cannot be read");
  if (stream.gcount() > kMaxFileBytes)
    return Wrong(flag, path, absl::StrCat("is larger than ", kMaxFileBytes, " bytes"));
  text.resize(static_cast<size_t>(stream.gcount()));
  return text;
}

// Returns the certificates of a PEM file; the first one is its owner's.
absl::StatusOr<std::vector<Certificate>> Parse(absl::string_view flag, const std::string& path,
                                               const std::string& text) {
  const std::unique_ptr<BIO, Free> bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
  std::vector<Certificate> certificates;
  while (X509* certificate = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) {
    certificates.emplace_back(certificate);
  }
  if (certificates.empty()) return Wrong(flag, path, "holds no certificate in PEM form");
  for (const Certificate& certificate : certificates) {
    if (X509_cmp_current_time(X509_get0_notAfter(certificate.get())) < 0) return Wrong(flag, path, "has expired");
    if (X509_cmp_current_time(X509_get0_notBefore(certificate.get())) > 0) return Wrong(flag, path, "is not valid yet");
  }
  return certificates;
}

// There is nobody to type a passphrase.
int NoPassphrase(char* /*buffer*/, int /*size*/, int /*writes*/, void* /*data*/) { return -1; }

absl::Status CheckKey(const TlsOptions& options, const std::string& key, X509* certificate) {
  const std::unique_ptr<BIO, Free> bio(BIO_new_mem_buf(key.data(), static_cast<int>(key.size())));
  const std::unique_ptr<EVP_PKEY, Free> parsed(PEM_read_bio_PrivateKey(bio.get(), nullptr, NoPassphrase, nullptr));
  if (parsed == nullptr)
    return Wrong("--tls-key", options.key, "holds no private key in PEM form without a passphrase");
  if (X509_check_private_key(certificate, parsed.get()) != 1) {
    return Wrong("--tls-key", options.key, absl::StrCat("is not the key of the certificate ", options.certificate));
  }
  return absl::OkStatus();
}

// The facts about a file that change when it is written or replaced.
using Stamp = std::tuple<dev_t, ino_t, off_t, time_t, long>;

std::array<Stamp, 3> StampsOf(const TlsOptions& options) {
  std::array<Stamp, 3> stamps;
  const std::array<const std::string*, 3> paths = {&options.certificate, &options.key, &options.client_ca};
  for (size_t i = 0; i < paths.size(); ++i) {
    struct stat facts = {};
    if (stat(paths[i]->c_str(), &facts) == 0) {
      stamps[i] = {facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtim.tv_sec, facts.st_mtim.tv_nsec};
    }
  }
  return stamps;
}

}  // namespace

absl::StatusOr<TlsFiles> ReadTlsFiles(const TlsOptions& options) {
  if (options.key.empty()) return absl::InvalidArgumentError("--tls-cert needs --tls-key");
  TlsFiles files;
  ASSIGN_OR_RETURN(files.certificate, ReadFile("--tls-cert", options.certificate));
  ASSIGN_OR_RETURN(const std::vector<Certificate> chain, Parse("--tls-cert", options.certificate, files.certificate));
  ASSIGN_OR_RETURN(files.key, ReadFile("--tls-key", options.key));
  RETURN_IF_ERROR(CheckKey(options, files.key, chain.front().get()));
  if (!options.client_ca.empty()) {
    ASSIGN_OR_RETURN(files.client_ca, ReadFile("--tls-client-ca", options.client_ca));
    RETURN_IF_ERROR(Parse("--tls-client-ca", options.client_ca, files.client_ca).status());
  }
  return files;
}

absl::StatusOr<std::unique_ptr<Certificates>> Certificates::Open(const TlsOptions& options) {
  ASSIGN_OR_RETURN(TlsFiles files, ReadTlsFiles(options));
  return std::unique_ptr<Certificates>(new Certificates(options, std::move(files)));
}

Certificates::Certificates(const TlsOptions& options, TlsFiles files)
    : options_(options), current_{1, std::make_shared<const TlsFiles>(std::move(files))} {
  thread_ = std::thread([this] { Watch(); });
}

Certificates::~Certificates() {
  end_.Notify();
  thread_.join();
}

Certificates::Version Certificates::current() const {
  absl::MutexLock lock(&mutex_);
  return current_;
}

absl::Status Certificates::Reload() {
  absl::StatusOr<TlsFiles> files = ReadTlsFiles(options_);
  if (!files.ok()) {
    spdlog::error("the new TLS files are not used; the previous ones stay in force: {}",
                  std::string(files.status().message()));
    return files.status();
  }
  absl::MutexLock lock(&mutex_);
  const TlsFiles& before = *current_.files;
  if (files->certificate == before.certificate && files->key == before.key && files->client_ca == before.client_ca) {
    return absl::OkStatus();
  }
  current_ = {current_.number + 1, std::make_shared<const TlsFiles>(*std::move(files))};
  spdlog::info("the TLS files were read again: new connections use them");
  return absl::OkStatus();
}

void Certificates::Watch() {
  std::array<Stamp, 3> seen;  // empty, so that a change while the files were first read is found too
  while (!end_.WaitForNotificationWithTimeout(kLookInterval)) {
    const std::array<Stamp, 3> now = StampsOf(options_);
    if (now == seen) continue;
    // A certificate and its key are replaced one after the other. If they do not match yet, the second change is seen
    // as well.
    seen = now;
    Reload().IgnoreError();
  }
}

}  // namespace hookline
