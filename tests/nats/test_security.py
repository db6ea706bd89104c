"""The client with TLS and credentials: what it accepts, refuses, and does not show."""

from __future__ import annotations

import logging
import shutil
import ssl
from pathlib import Path

import pytest

from tests.nats.secrets import Operator, certificates
from tests.nats.servers import NatsServer
from tests.nats.test_client import Watched, connected, done, play
from zroute.errors import EndpointError, KeyFileError
from zroute.nats.client import Client, ClientOptions, Connected, Denied
from zroute.nats.servers import parse_servers

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl creates the certificates")

LOGIN = 'authorization { users: [{ user: "me", password: "p@ss/1" }] }'


async def refused(watched: Watched) -> str:
    """Return the error of a client that no server accepts; it makes no further attempts."""
    with pytest.raises(EndpointError) as error:
        await done(watched.client.start())
    await done(watched.client.close())
    return str(error.value)


def test_user_and_password_of_the_address_are_used_everywhere(
    tmp_path: Path, direct: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The login of the address is decoded, used again after a reconnect, and not shown in the log."""
    caplog.set_level(logging.DEBUG)
    with NatsServer(tmp_path, LOGIN) as server:

        async def scenario() -> None:
            async with connected(server.url.replace("//", "//me:p%40ss%2F1@"), direct=direct) as one:
                assert one.client.server == server.url
                server.kill()
                server.start()
                await one.event(Connected, 2)
                assert "p@ss" not in repr(one.events)

        play(scenario())
    assert f"desk: reconnected to {server.url}" in caplog.text
    assert "p@ss" not in caplog.text
    assert "p%40ss" not in caplog.text


def test_a_wrong_password_ends_the_start(tmp_path: Path, direct: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A server that does not accept the login ends the start with an error that names it and the remedy."""
    caplog.set_level(logging.DEBUG)
    with NatsServer(tmp_path, LOGIN) as server:

        async def scenario() -> None:
            text = await refused(Watched(server.url.replace("//", "//me:s3cret@"), direct=direct))
            assert f"can't connect to {server.url}: it does not accept the credentials" in text
            assert "check the user and password in the address" in text
            assert "s3cret" not in text

        play(scenario())
    assert "s3cret" not in caplog.text


def test_a_token_is_a_login_too(tmp_path: Path) -> None:
    """An address with one word before the ``@`` has a token."""
    with NatsServer(tmp_path, 'authorization { token: "s3cret" }') as server:

        async def scenario() -> None:
            async with connected(server.url.replace("//", "//s3cret@")) as one:
                await one.ready()

        play(scenario())


def test_a_file_of_credentials_is_used_and_permissions_are_reported(tmp_path: Path, direct: bool) -> None:
    """A user with a JWT connects; what the server does not permit is an event, and the connection remains."""
    operator = Operator()
    creds = operator.write(tmp_path / "me.creds")
    with NatsServer(tmp_path, operator.config) as server:

        async def scenario() -> None:
            async with connected(server.url, creds=creds, direct=direct) as one:
                one.client.subscribe(b"news.*", one.take)
                one.client.publish(b"news.a", b"x")
                await one.until(lambda: one.got)
                one.client.publish(b"secret.a", b"x")
                denied: Denied = await one.event(Denied)
                assert denied.server == server.url
                assert "permissions violation for publish" in denied.text.lower()
                assert "secret.a" in denied.text.lower()
                one.client.subscribe(b"secret.*", one.take)
                assert "secret.*" in (await one.event(Denied, 2)).text.lower()
                await one.ready()
                assert one.client.connected

        play(scenario())


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "can't be read: No such file or directory"),
        ("", "have no user JWT and no seed"),
        ("-----BEGIN NATS USER JWT-----\neyJ\n", "have no user JWT and no seed"),
    ],
)
def test_a_wrong_file_of_credentials_is_refused_at_the_start(tmp_path: Path, content: str | None, fault: str) -> None:
    """A missing or cut file of credentials raises an error at once; nats-py would search it for ever."""
    creds = tmp_path / "me.creds"
    if content is not None:
        creds.write_text(content)
    client = Client(ClientOptions(parse_servers("nats://127.0.0.1:1"), "desk", creds=creds))
    with pytest.raises(KeyFileError, match=fault) as error:
        client.start()
    assert error.value.path == creds


def test_an_invalid_seed_ends_the_start(tmp_path: Path) -> None:
    """A seed that is no key ends the start with an error that names the file, but not the seed."""
    operator = Operator()
    creds = operator.write(tmp_path / "me.creds")
    creds.write_text(creds.read_text().replace(operator.user.seed.decode(), "SUABAD"))
    with NatsServer(tmp_path, operator.config) as server:

        async def scenario() -> None:
            text = await refused(Watched(server.url, creds=creds))
            assert f"the seed in the credentials {creds} is invalid" in text
            assert "SUABAD" not in text

        play(scenario())


@needs_openssl
def test_tls_is_checked_against_the_authority(tmp_path: Path, direct: bool) -> None:
    """A client with the authority's certificate connects by TLS; another client refuses the server."""
    authority, certificate, key = certificates(tmp_path)
    with NatsServer(tmp_path, f"tls {{ cert_file: '{certificate}', key_file: '{key}' }}") as server:
        url = f"tls://localhost:{server.port}"

        async def scenario() -> None:
            context = ssl.create_default_context(cafile=str(authority))
            async with connected(url, tls=context, direct=direct) as one:
                one.client.subscribe(b"a", one.take)
                one.client.publish(b"a", bytes(300_000))
                await one.until(lambda: one.got)
                server.kill()
                server.start()
                await one.event(Connected, 2)
            text = await refused(Watched(url, direct=direct))
            assert f"can't connect to {url}: its certificate is not valid" in text
            assert "SSL_CERT_FILE" in text
            text = await refused(Watched(url.replace("localhost", "127.0.0.1"), tls=context, direct=direct))
            assert "certificate is not valid for '127.0.0.1'" in text
            assert "use a host name that its certificate contains" in text

        play(scenario())


def test_a_tls_address_refuses_a_server_without_tls(server: NatsServer, direct: bool) -> None:
    """The client sends neither credentials nor messages if a ``tls://`` server does not offer TLS."""

    async def scenario() -> None:
        text = await refused(Watched(f"tls://me:s3cret@127.0.0.1:{server.port}", direct=direct))
        assert "it does not offer TLS" in text

    play(scenario())
