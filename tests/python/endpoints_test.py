"""hookline.connect(endpoints=...) reads the file that a batch job writes."""

import pytest

import hookline


def write(folder, text):
    path = folder / "endpoints"
    path.write_text(text)
    return path


def test_connects_to_the_server_that_a_file_names(tmp_path):
    path = write(tmp_path, "# written by hookline.sbatch\n\n  node1:7471\n")
    for form in (path, str(path)):
        with hookline.connect(endpoints=form) as client:
            assert client.address == "node1:7471"


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "names no server"),
        ("# nothing\n", "names no server"),
        ("node1:7471\nnode2\n", "line 2: address: 'node2' has no port"),
        ("node1:7471\nnode2:7471\n", "names 2 servers and a client connects to one; .* node1:7471, node2:7471"),
        ("n\u00f6de:7471\n", "not ASCII"),
        ("x" * (1 << 20) + "yz", "more than 1048576 bytes"),
    ],
)
def test_refuses_a_file_that_does_not_name_one_server(tmp_path, text, why):
    with pytest.raises(ValueError, match=f"^endpoints: .*endpoints'.*{why}"):
        hookline.connect(endpoints=write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        hookline.connect(endpoints=tmp_path / "nowhere")


def test_takes_an_address_or_a_file_and_not_both(tmp_path):
    with pytest.raises(TypeError, match="address or endpoints"):
        hookline.connect()
    with pytest.raises(TypeError, match="address or endpoints"):
        hookline.connect("node1:7471", endpoints=write(tmp_path, "node1:7471\n"))
