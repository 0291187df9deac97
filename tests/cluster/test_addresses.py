import socket

import pytest

from sote.cluster import addresses
from sote.cluster.errors import UserError


def test_the_two_forms_of_a_control_stores_address() -> None:
    assert addresses.control("auto") is None
    assert addresses.control("10.0.0.1:6379") == ("10.0.0.1", 6379)
    assert addresses.control("[fd00::2]:6379") == ("fd00::2", 6379)


@pytest.mark.parametrize(
    ("address", "mend"),
    [
        ("ray://head:10001", "sote submit --address http://head:8265"),
        ("http://head:8265", "sote submit --address http://head:8265"),
        ("head", "HOST:PORT"),
        ("head:six", "HOST:PORT"),
        ("head:0", "HOST:PORT"),
        ("head:70000", "HOST:PORT"),
        (":6379", "HOST:PORT"),
        ("local", "HOST:PORT"),
        ("", "HOST:PORT"),
    ],
)
def test_another_form_is_refused_with_the_one_that_is_meant(address: str, mend: str) -> None:
    with pytest.raises(UserError) as refused:
        addresses.control(address)
    assert mend in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_job_apis_address_has_a_default_and_may_lack_its_scheme() -> None:
    assert addresses.api(None) == addresses.api("auto") == "http://127.0.0.1:8265"
    assert addresses.api("head:8265") == "http://head:8265"
    assert addresses.api("https://head/") == "https://head"


@pytest.mark.parametrize("address", ["ray://head:10001", "ftp://head", "http://", "http://head:port", "http://head:0"])
def test_what_is_no_job_api_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="http://HOST:8265"):
        addresses.api(address)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserError) as refused:
        addresses.api("http://ada:secret@head:8265")
    assert "secret" not in str(refused.value)


def test_whether_somebody_listens_is_known_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert addresses.listens("127.0.0.1", port) == "Connection refused"
        taken.listen()
        assert addresses.listens("127.0.0.1", port) is None
