import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "client", "python"))
sys.path.insert(0, os.path.dirname(__file__))

from fake_server import FakeServer  # noqa: E402


@pytest.fixture
def fake():
    """Makes fake servers; they stop with the test."""
    servers = []

    def make(**options):
        servers.append(FakeServer(**options))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()
