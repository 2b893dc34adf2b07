"""Addresses as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.addresses import address, ollama_host, redacted
from llm_hub.errors import SettingsError
from llm_hub.transport import Origin


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000"),
        ("http://gpu-box/proxy/ollama", "http://gpu-box/proxy/ollama"),
        ("http://gpu-box/proxy/vllm/v1//", "http://gpu-box/proxy/vllm"),
        ("http://gpu-box/v1/models", "http://gpu-box/v1/models"),
        ("http://gpu-box/apiv1", "http://gpu-box/apiv1"),
        ("HTTPS://GPU.Example.COM", "https://gpu.example.com"),
        ("http://my_service:8000", "http://my_service:8000"),
        ("http://host.", "http://host."),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
        ("http://[2001:DB8::0:1]", "http://[2001:db8::1]"),
        ("http://bücher.example", "http://xn--bcher-kva.example"),
        ("http://h:1", "http://h:1"),
        ("http://h:65535", "http://h:65535"),
    ],
)
def test_an_address_is_brought_into_one_form(written: str, meant: str) -> None:
    assert address(written, "X") == meant
    assert address(meant, "X") == meant
    assert Origin(meant).url == meant


@pytest.mark.parametrize(
    ("written", "cause", "hint"),
    [
        ("127.0.0.1:8000", "has no scheme", 'Write "http://127.0.0.1:8000".'),
        ("localhost", "has no scheme", 'Write "http://localhost".'),
        ("//host:1/x", "has no scheme", 'Write "http://host:1/x".'),
        ("http:/host", "has no scheme", 'Write "http://host".'),
        ("http:host:80", "has no scheme", "Write "),
        ("ftp://host", "has the scheme 'ftp'", 'Write "http://host"'),
        ("file:///etc/passwd", "has the scheme 'file'", "Write "),
        ("htpp://host:1", "has the scheme 'htpp'", 'Write "http://host:1"'),
        ("http://", "names no host", "Write "),
        ("http:///v1", "names no host", "Write "),
        ("http://:8000", "names no host", "Write "),
        ("http://host:0", "has the port '0'", "1 to 65535"),
        ("http://host:65536", "has the port '65536'", "1 to 65535"),
        ("http://host:", "has the port ''", "1 to 65535"),
        ("http://host:port", "has the port 'port'", "1 to 65535"),
        ("http://host:٣", "has the port", "1 to 65535"),
        ("http://::1", "more than one colon", "brackets"),
        ("http://[::1", "no proper IPv6", "Write "),
        ("http://[::1]8000", "no proper IPv6", "Write "),
        ("http://[nonsense]", "no IPv6 address", "Write "),
        ("http://a..b", "no name and no IP address", "Write "),
        ("http://-host-", "no name and no IP address", "Write "),
        ("http://ho%73t", "no name and no IP address", "Write "),
        ("http://" + "a" * 300, "no name and no IP address", "Write "),
        ("http://h/ä", "not ASCII", "percent-encoded"),
        ("http://ho st", "a space", "Write "),
        ("http://host\n", "the character '\\n'", "Write "),
        ("http://h\x00", "the character '\\x00'", "Write "),
        ("http://h/" + "a" * 3000, "characters long", "Write "),
        ("http://h/?a=b", "has a query", 'Write "http://h/".'),
        ("http://h/#top", "has a fragment", 'Write "http://h/".'),
        ("http://user@h", "user or password", "api_key_env"),
    ],
)
def test_what_is_no_address_is_an_error_that_says_what_to_write(written: str, cause: str, hint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        address(written, "VLLM_BASE_URL")
    assert caught.value.where == "VLLM_BASE_URL"
    assert cause in caught.value.message
    assert hint in (caught.value.hint or "")
    assert len(str(caught.value)) < 500


PASSWORDS = st.text(min_size=4, max_size=20).map(lambda text: f"Pw7{text}Zq9")


@given(
    password=PASSWORDS,
    shape=st.sampled_from(
        [
            "http://user:{}@host:8000/v1",
            "htp://user:{}@host",
            "user:{}@host:8000",
            "http://{}@host",
            "http://user:{}@",
            "http://user:{}@host:99999999",
            "http://user:{}@[::1",
            "http://host/?api_key={}",
            "http://host/#{}",
        ]
    ),
)
def test_no_error_shows_a_password(password: str, shape: str) -> None:
    for read in (address, ollama_host):
        with pytest.raises(SettingsError) as caught:
            read(shape.format(password), "X")
        # Control characters in it are refused first; the character that is shown tells nothing.
        assert password not in str(caught.value)
        assert "Pw7" not in str(caught.value)
        assert "Zq9" not in str(caught.value)
        assert caught.value.__cause__ is None


@given(st.text(max_size=60) | st.text("htps:/[]@?#.0123456789v1-_ab%", max_size=30).map("http://".__add__))
def test_any_text_is_an_address_that_the_transport_takes_or_a_settings_error(text: str) -> None:
    try:
        base = address(text, "X")
    except SettingsError as error:
        assert error.where == "X"
    else:
        assert address(base, "X") == base or base.endswith("/v1")
        Origin(base).target("/v1/models")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        # As TestHost and TestConnectableHost of Ollama's envconfig/config_test.go have it, where a client can use it.
        ("1.2.3.4", "http://1.2.3.4:11434"),
        (":1234", "http://127.0.0.1:1234"),
        (":65535", "http://127.0.0.1:65535"),
        ("1.2.3.4:1234", "http://1.2.3.4:1234"),
        ("example.com", "http://example.com:11434"),
        ("example.com:1234", "http://example.com:1234"),
        ("[::1]", "http://[::1]:11434"),
        ("::1", "http://[::1]:11434"),
        ("[::1]:1337", "http://[::1]:1337"),
        (" 1.2.3.4 ", "http://1.2.3.4:11434"),
        ('"1.2.3.4"', "http://1.2.3.4:11434"),
        (' " 1.2.3.4 " ', "http://1.2.3.4:11434"),
        ("'1.2.3.4'", "http://1.2.3.4:11434"),
        ("http://1.2.3.4", "http://1.2.3.4:80"),
        ("http://1.2.3.4:4321", "http://1.2.3.4:4321"),
        ("https://1.2.3.4", "https://1.2.3.4:443"),
        ("https://1.2.3.4:4321", "https://1.2.3.4:4321"),
        ("https://example.com/ollama", "https://example.com:443/ollama"),
        ("example.com/ollama/", "http://example.com:11434/ollama"),
        ("http://example.com:1/", "http://example.com:1"),
        ("ollama.com", "https://ollama.com:443"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:1234", "http://127.0.0.1:1234"),
        ("[::]", "http://[::1]:11434"),
        ("[::]:1234", "http://[::1]:1234"),
        ("https://0.0.0.0:4321", "https://127.0.0.1:4321"),
        ("localhost", "http://localhost:11434"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(written: str, meant: str) -> None:
    assert ollama_host(written, "OLLAMA_HOST") == (meant, None)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (":66000", "http://127.0.0.1:11434"),
        (":65536", "http://127.0.0.1:11434"),
        (":-1", "http://127.0.0.1:11434"),
        ("example.com:", "http://example.com:11434"),
        ("https://example.com:x", "https://example.com:443"),
    ],
)
def test_a_port_that_ollama_ignores_is_ignored_with_a_warning(written: str, meant: str) -> None:
    base, warning = ollama_host(written, "OLLAMA_HOST")
    assert base == meant
    assert warning is not None
    assert warning.startswith("OLLAMA_HOST: ")
    assert "is no port" in warning


@pytest.mark.parametrize(
    ("written", "cause"),
    [
        ("tcp://host", "scheme 'tcp'"),
        (":0", "port 0"),
        ("a:b:c", "no IPv6 address"),
        ("[x]", "no IPv6 address"),
        ("[::1]8000", "no IPv6 address"),
        ("[::1", "no IPv6 address"),
        ("user:pw@host", "user or password"),
        ("http://host?x", "query"),
        ("ho st", "a space"),
    ],
)
def test_an_ollama_host_that_no_client_can_use_is_an_error(written: str, cause: str) -> None:
    with pytest.raises(SettingsError, match=cause) as caught:
        ollama_host(written, "OLLAMA_HOST")
    assert caught.value.where == "OLLAMA_HOST"


@given(st.text(max_size=40) | st.text("htps:/[]@?#.0123456789ab '\"", max_size=30))
def test_any_ollama_host_is_an_address_or_a_settings_error(text: str) -> None:
    try:
        base, _ = ollama_host(text, "OLLAMA_HOST")
    except SettingsError as error:
        assert error.where == "OLLAMA_HOST"
    else:
        Origin(base)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("http://host:1/path", "http://host:1/path"),
        ("http://user:pass@host/path", "http://***@host/path"),
        ("user:p@ss@host", "***@host"),
        ("http://user:p/ss@host", "http://***@host"),
        ("http://host/?key=secret#top", "http://host/"),
        ("http://host/?key=sec@ret", "http://***"),
        ("http://user:p?ss@host", "http://***"),
    ],
)
def test_an_address_is_shown_without_what_may_be_secret(written: str, shown: str) -> None:
    assert redacted(written) == shown


def test_a_long_address_is_shown_shortened() -> None:
    assert redacted("http://host/" + "x" * 1000).endswith("…")
    assert len(redacted("http://host/" + "x" * 1000)) < 130
