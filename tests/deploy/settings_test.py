"""Tests that deploy/hookline-server.env has every flag of the server, with the default that --help prints."""

import os
import pathlib
import re
import subprocess

SETTINGS = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "hookline-server.env"
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "ms": 0.001, "s": 1, "m": 60, "h": 3600}
LISTEN = "127.0.0.1:7471"  # printed behind the help of --listen, since it is the default of a list


def number(value):
    """`value` in bytes or seconds, if it is a size or a duration; otherwise as it is."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", value)
    return float(match[1]) * UNITS.get(match[2], 1) if match else value


def test_the_settings_of_the_unit_are_the_flags_with_their_defaults():
    page = subprocess.run(
        [os.environ["HOOKLINE_SERVER_PROGRAM"], "--help"], capture_output=True, text=True, check=True
    ).stdout
    # A flag stands there as `--step INT=-1 (Env:HOOKLINE_STEP)`; the description of a list ends with `...`.
    found = re.findall(r"^  --[a-z-]+(.*?)( \.\.\.)? \(Env:(\w+)\)", page, re.M)
    flags = {name: "" if is_list else kind.rpartition("=")[2] if "=" in kind else "" for kind, is_list, name in found}
    settings = dict(re.findall(r"^#(HOOKLINE_\w+)=(.*)$", SETTINGS.read_text(), re.M))
    assert flags.pop("HOOKLINE_MODEL") == ""  # the one that has to be given
    assert settings.keys() == flags.keys()
    assert settings.pop("HOOKLINE_LISTEN") == LISTEN and f"[{LISTEN}]" in page
    for name, value in settings.items():
        # --help prints no default for a flag that takes no value.
        assert number("" if value == "false" else value) == number(flags[name]), name
