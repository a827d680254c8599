"""Builds the C++ client's library into the package where a C++ compiler, protoc, and gRPC with pkg-config are.

Where one of them is missing, or HOOKLINE_NATIVE=0 is in the environment, the package is installed without it and
receives through grpcio. HOOKLINE_NATIVE=1 makes that an error.
"""

import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [
    "grpc++",
    "protobuf",
    "absl_cleanup",
    "absl_flat_hash_map",
    "absl_span",
    "absl_status",
    "absl_statusor",
    "absl_strings",
    "absl_synchronization",
    "absl_time",
]
WANTED = os.environ.get("HOOKLINE_NATIVE", "")


def call(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, **options)


def pkg_config(what):
    return shlex.split(call("pkg-config", what, *PACKAGES, capture_output=True, text=True).stdout)


class BuildLibrary(build_ext):
    def run(self):
        library = Path(self.get_ext_fullpath("hookline.libhookline_client"))
        library.unlink(missing_ok=True)  # an earlier build's: setuptools would install it again
        if WANTED == "0":
            return
        try:
            self.build_library(library, Path(self.build_temp))
        except (OSError, subprocess.CalledProcessError) as error:
            if WANTED == "1":
                raise
            print(f"hookline: without the native receiver ({error})", file=sys.stderr)

    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")) + ".so"  # loaded through ctypes, so no interpreter's tag

    def get_outputs(self):
        return [path for path in super().get_outputs() if os.path.exists(path)]

    def build_library(self, library, temporary):
        sources = sorted((ROOT / "client" / "cpp").glob("*.cc"))
        if not any("hookline_abi_version" in source.read_text() for source in sources):
            raise OSError("the sources of the C++ client are not beside this package")
        sources.extend(ROOT / "server" / "base" / name for name in ("address.cc", "status.cc"))
        temporary.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CXX", "g++")
        flags = [
            *pkg_config("--cflags"),
            "-std=c++17",
            "-O2",
            "-DNDEBUG",
            "-fPIC",
            "-fvisibility=hidden",
            f"-I{ROOT}",
            f"-I{temporary}",
        ]
        libraries = pkg_config("--libs")
        plugin = call("which", "grpc_cpp_plugin", capture_output=True, text=True).stdout.strip()
        protos = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
        call(
            "protoc",
            f"-I{ROOT / 'proto'}",
            f"--cpp_out={temporary}",
            f"--grpc_out={temporary}",
            f"--plugin=protoc-gen-grpc={plugin}",
            *protos,
        )
        sources.extend(sorted(temporary.rglob("*.pb.cc")))
        objects = [temporary / f"{index}_{source.stem}.o" for index, source in enumerate(sources)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda pair: call(compiler, *flags, "-c", pair[0], "-o", pair[1]), zip(sources, objects)))
        library.parent.mkdir(parents=True, exist_ok=True)
        call(compiler, "-shared", "-o", library, *objects, "-Wl,--as-needed", *libraries, "-pthread")


setup(ext_modules=[Extension("hookline.libhookline_client", sources=[])], cmdclass={"build_ext": BuildLibrary})
