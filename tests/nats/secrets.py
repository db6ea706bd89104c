"""Credentials and certificates of tests: an operator with users, and an authority with one server."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nkeys


class Identity:
    """A key pair of NATS; ``public`` is its name."""

    def __init__(self, prefix: int) -> None:
        self.seed = nkeys.encode_seed(os.urandom(32), prefix)
        self.pair = nkeys.from_seed(bytearray(self.seed))
        self.public = self.pair.public_key.decode()

    def signed(self, subject: Identity, kind: str, **claims: Any) -> str:
        """Return a JWT about ``subject`` (github.com/nats-io/jwt)."""
        payload = {
            "jti": os.urandom(8).hex(),
            "iat": int(time.time()),
            "iss": self.public,
            "name": kind,
            "sub": subject.public,
            "nats": {"type": kind, "version": 2, **claims},
        }
        body = ".".join(map(_part, ({"typ": "JWT", "alg": "ed25519-nkey"}, payload)))
        return f"{body}.{_text(self.pair.sign(body.encode()))}"


def _part(fields: dict[str, Any]) -> str:
    return _text(json.dumps(fields).encode())


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


NEWS = ("news.>", "_INBOX.>")


class Operator:
    """An operator with an account and its users, who may use only some subjects.

    Args:
        subscribe: The subjects to which the first user may subscribe.
        publish: The subjects to which the first user may publish.
    """

    def __init__(self, subscribe: Sequence[str] = NEWS, publish: Sequence[str] = NEWS) -> None:
        operator, self._account = (
            Identity(prefix) for prefix in (nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT)
        )
        limits = dict.fromkeys(("subs", "conn", "leaf", "imports", "exports", "data", "payload"), -1)
        self.config = (
            f"operator: {operator.signed(operator, 'operator')}\n"
            f"resolver: MEMORY\nresolver_preload: {{ {self._account.public}: "
            f"{operator.signed(self._account, 'account', limits={**limits, 'wildcards': True})} }}\n"
        )
        self.user, self.jwt = self._new_user(subscribe, publish)

    def _new_user(self, subscribe: Sequence[str], publish: Sequence[str]) -> tuple[Identity, str]:
        user, allowed = Identity(nkeys.PREFIX_BYTE_USER), {"pub": {"allow": publish}, "sub": {"allow": subscribe}}
        return user, self._account.signed(user, "user", **allowed, subs=-1, data=-1, payload=-1)

    def write(self, path: Path) -> Path:
        """Write the credentials of the first user as ``nsc`` does."""
        return _write(path, self.user, self.jwt)

    def write_another(self, path: Path, subscribe: Sequence[str], publish: Sequence[str]) -> Path:
        """Create a further user of the account, and write its credentials."""
        return _write(path, *self._new_user(subscribe, publish))


def _write(path: Path, user: Identity, jwt: str) -> Path:
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    return path


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Return an authority's certificate, and the certificate and key of ``localhost``."""
    authority, authority_key, request, certificate, key, names = (
        folder / name for name in ("ca.pem", "ca.key", "server.csr", "server.pem", "server.key", "names")
    )
    # Python 3.13 requires the extensions of RFC 5280.
    names.write_text("subjectAltName=DNS:localhost\nauthorityKeyIdentifier=keyid\nkeyUsage=digitalSignature\n")
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    root = ["-x509", "-days", "2", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    sign = ["openssl", "x509", "-req", "-days", "2", "-CAcreateserial", "-CA", authority, "-CAkey", authority_key]
    for command in (
        [*new, *root, "-subj", "/CN=authority", "-keyout", authority_key, "-out", authority],
        [*new, "-subj", "/CN=localhost", "-keyout", key, "-out", request],
        [*sign, "-in", request, "-extfile", names, "-out", certificate],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return authority, certificate, key
