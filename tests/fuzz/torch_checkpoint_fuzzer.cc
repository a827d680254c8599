// The input is a file of torch.save: a zip archive, or the older form.
#include "server/base/input_file.h"
#include "server/formats/zip_archive.h"
#include "server/model/load/torch_checkpoint.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  static hookline::InputInMemory file;
  file.Set({data, bytes});
  hookline::CheckMessage(hookline::ReadTorchCheckpoint(file.path()).status());
  const auto opened = hookline::InputFile::Open(file.path());
  if (!opened.ok()) return 0;
  hookline::CheckMessage(hookline::ZipArchive::Checksums(**opened).status());
  const auto archive = hookline::ZipArchive::Open(*opened);
  hookline::CheckMessage(archive.status());
  if (!archive.ok()) return 0;
  for (const auto& [name, entry] : archive->entries()) {
    hookline::CheckMessage(archive->Read(name, int64_t{1} << 20).status());
    hookline::CheckMessage(archive->Check(name));
  }
  return 0;
}
