"""Tests the package's way from a release to a user: source distribution, wheel, installation."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fake_server import expected

import hookline

ROOT = Path(__file__).resolve().parents[2]
BUILD_PYTHON = os.environ.get("HOOKLINE_BUILD_PYTHON", "")
assert os.path.exists(BUILD_PYTHON), "HOOKLINE_BUILD_PYTHON must name a Python with scikit-build-core; ctest sets it"
RESID = "blocks.0.hook_resid_post"
SEQUENCES = [[1, 2, 3], [4, 5, 6, 7]]


def build(kind, folder, out, **environment):
    """Runs the build backend in `folder`, as pip does. Returns the file that it made in `out`."""
    program = f"import scikit_build_core.build as backend; print(backend.build_{kind}({str(out)!r}))"
    inherited = {name: value for name, value in os.environ.items() if name != "HOOKLINE_NATIVE"}
    done = subprocess.run(
        [BUILD_PYTHON, "-c", program],
        cwd=folder,
        env={**inherited, "CMAKE_BUILD_PARALLEL_LEVEL": "2", **environment},
        stdout=subprocess.PIPE,
        text=True,
        timeout=1200,
        check=True,
    )
    return out / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Makes a source distribution and unpacks it away from the repository."""
    folder = tmp_path_factory.mktemp("release")
    with tarfile.open(build("sdist", ROOT, folder)) as archive:
        archive.extractall(folder)
    (unpacked,) = (entry for entry in folder.iterdir() if entry.is_dir())
    return unpacked


def receive(wheel, folder, address):
    """Returns how an installed wheel receives rows, and the rows."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    program = f"""
import hookline, numpy
client = hookline.connect({address!r})
rows = numpy.concatenate([b[{RESID!r}] for b in client.capture({RESID!r}, {SEQUENCES!r}, output="numpy")])
print(hookline.__version__, hookline.__file__, client.receiver, *rows.ravel().tolist())
"""
    environment = {name: value for name, value in os.environ.items() if name != "HOOKLINE_CLIENT_LIBRARY"}
    printed = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    version, file, receiver, *values = printed.stdout.split()
    assert version == hookline.__version__ and file.startswith(str(folder))
    np.testing.assert_array_equal(np.array(values, np.float32).reshape(-1, 8), expected(RESID, SEQUENCES))
    return receiver


def test_the_version_is_the_projects():
    project = (ROOT / "CMakeLists.txt").read_text()
    assert f"project(hookline VERSION {hookline.__version__} " in project


def test_a_wheel_with_the_native_receiver_comes_from_a_source_distribution(release, fake, tmp_path):
    wheel = build("wheel", release, tmp_path, HOOKLINE_NATIVE="1")
    assert re.fullmatch(r"hookline-[0-9.]+-py3-none-linux_\w+\.whl", wheel.name)
    assert receive(wheel, tmp_path / "installed", fake().address) == "native"


@pytest.mark.parametrize(
    "environment", [{"HOOKLINE_NATIVE": "0"}, {"CXX": "/nowhere/c++"}], ids=["asked", "no compiler"]
)
def test_without_a_compiler_or_where_asked_the_wheel_receives_through_grpcio(release, fake, tmp_path, environment):
    wheel = build("wheel", release, tmp_path, **environment)
    assert wheel.name == f"hookline-{hookline.__version__}-py3-none-any.whl"
    assert receive(wheel, tmp_path / "installed", fake().address) == "grpc"


def test_no_compiler_is_an_error_where_the_native_receiver_is_asked_for(release, tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        build("wheel", release, tmp_path, CXX="/nowhere/c++", HOOKLINE_NATIVE="1")
