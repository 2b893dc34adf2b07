"""[services.NAME]: what a service of one's own may be, and what is refused."""

from __future__ import annotations

import pytest

from llm_hub import Settings
from llm_hub.errors import SettingsError

CHAT = '[services.chat]\nimage = "registry.example/chat:1.4.0"\n'


def test_services_are_read_in_the_order_of_the_file() -> None:
    text = (
        f'{CHAT}ports = ["127.0.0.1:8080:8080", 9090]\ndepends_on = ["db"]\n'
        'environment = { LOG_LEVEL = "info", DB_PASSWORD = "${DB_PASSWORD:?}" }\n'
        '[services.db]\nbuild = "./db"\nvolumes = ["db:/data"]\n'
    )
    chat, db = Settings.from_toml(text).services
    assert (chat.name, chat.image, chat.ports) == (
        "chat",
        "registry.example/chat:1.4.0",
        ("127.0.0.1:8080:8080", "9090"),
    )
    assert chat.environment == {"LOG_LEVEL": "info", "DB_PASSWORD": "${DB_PASSWORD:?}"}
    assert chat.depends_on == ("db",)
    assert chat.source == "llm-hub.toml:1"
    assert (db.build, db.volumes) == ("./db", ("db:/data",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[services.chat]\nports = ["80:80"]\n', "llm-hub.toml:1: the service 'chat' has neither image nor build"),
        ('[services.chat]\nimage = "chat"\n', "llm-hub.toml:2: .*the image 'chat' has no version"),
        ('[services.chat]\nimage = "chat:latest"\n', "the image 'chat:latest' has no version"),
        ('[services.chat]\nimage = "localhost:5000/chat"\n', "has no version"),
        (
            f'{CHAT}environment = {{ API_KEY = "sesame" }}\n',
            "llm-hub.toml:3: API_KEY of the service 'chat' looks like a secret",
        ),
        (f'{CHAT}environment = {{ "A B" = "x" }}\n', "llm-hub.toml:3"),
        (f'{CHAT}depends_on = ["ollama"]\n', "llm-hub.toml:3: the service 'chat' depends on 'ollama'"),
        (f"{CHAT}ports = 80\n", "llm-hub.toml:3: .*must be an array"),
        (f'{CHAT}image_tag = "x"\n', "unknown key 'image_tag'"),
    ],
)
def test_a_service_that_cannot_be_is_an_error_at_its_line(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as wrong:
        Settings.from_toml(text)
    assert "sesame" not in str(wrong.value)
