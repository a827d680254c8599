"""Tests hookline.connect(endpoints=...), which reads the file that a batch job writes."""

import socket

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
        ("n\u00f6de:7471\n", "not ASCII"),
        ("x" * (1 << 20) + "yz", "more than 1048576 bytes"),
    ],
)
def test_refuses_a_file_that_does_not_name_servers(tmp_path, text, why):
    with pytest.raises(ValueError, match=f"^endpoints: .*endpoints'.*{why}"):
        hookline.connect(endpoints=write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        hookline.connect(endpoints=tmp_path / "nowhere")


def test_a_file_of_several_servers_makes_one_client_of_them(tmp_path):
    path = write(tmp_path, "node1:7471\nnode2:7471\n")
    for arguments in (dict(endpoints=path), dict(address=f"hookline://{path}")):
        with hookline.connect(**arguments) as client:
            assert [one.address for one in client.clients] == ["node1:7471", "node2:7471"]


def test_a_file_that_names_a_server_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'node1:7471' is named twice"):
        hookline.connect(endpoints=write(tmp_path, "node1:7471\nnode1:7471\n"))


def resolve(monkeypatch, addresses):
    families = {False: socket.AF_INET, True: socket.AF_INET6}
    infos = [(families[":" in one], socket.SOCK_STREAM, 6, "", (one, 7471)) for one in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, **_: infos)


def test_a_name_in_a_list_stands_for_all_its_addresses(monkeypatch):
    resolve(monkeypatch, ["10.0.0.1", "10.0.0.2", "fd00::1"])
    with hookline.connect(["hookline.lab:7471"]) as client:
        assert [one.address for one in client.clients] == ["10.0.0.1:7471", "10.0.0.2:7471"]
    resolve(monkeypatch, ["fd00::1", "fd00::2"])
    with hookline.connect(["hookline.lab:7471"]) as client:
        assert [one.address for one in client.clients] == ["[fd00::1]:7471", "[fd00::2]:7471"]
    with hookline.connect("hookline.lab:7471") as client:
        assert client.address == "hookline.lab:7471"  # one server, chosen by gRPC


def test_a_name_of_many_addresses_has_no_certificate_of_its_own(monkeypatch):
    resolve(monkeypatch, ["10.0.0.1", "10.0.0.2"])
    with pytest.raises(ValueError, match="'hookline.lab' has 2 addresses.*list the servers by their own names"):
        hookline.connect(["hookline.lab:7471"], tls=True)


def test_a_list_names_each_server_once():
    with pytest.raises(ValueError, match="'a:1' is named twice"):
        hookline.connect(["a:1", "b:1", "a:1"])
    with pytest.raises(ValueError, match="names no server"):
        hookline.connect([])


def test_takes_an_address_or_a_file_and_not_both(tmp_path):
    with pytest.raises(TypeError, match="address or endpoints"):
        hookline.connect()
    with pytest.raises(TypeError, match="address or endpoints"):
        hookline.connect("node1:7471", endpoints=write(tmp_path, "node1:7471\n"))
