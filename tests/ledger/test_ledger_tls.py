"""The pages over TLS, and what may be reached from other machines."""

from __future__ import annotations

import http.client
import socket
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlencode

import pytest

from confide.cli import main
from confide.cli.web.gate import Gate
from confide.cli.web.server import tls_context
from confide.errors import InputError

from .served import TOKEN, filled, running


@pytest.fixture(scope="module")
def pem(tmp_path_factory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("tls")
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ledger")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file, secret = folder / "cert.pem", folder / "key.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    locked = serialization.BestAvailableEncryption(b"secret")
    (folder / "locked.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, locked))
    for one in (secret, folder / "locked.pem"):
        one.chmod(0o600)
    return file, secret


def ask(port: int, context: ssl.SSLContext, method: str, path: str, body: str = "", **headers: str):
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
    connection.request(method, path, body or None, headers)
    answer = connection.getresponse()
    found = answer.status, {n.lower(): v for n, v in answer.getheaders()}, answer.read().decode()
    connection.close()
    return found


def test_the_pages_over_tls(tmp_path, pem):
    trusting = ssl.create_default_context(cafile=str(pem[0]))
    ledger = filled(tmp_path / "l.sqlite", people=30)
    with running(ledger, tls=tls_context(*pem)) as server:
        port = server.server_port
        # Somebody who connects and says nothing, and somebody who speaks plain HTTP, keep nobody out.
        silent = socket.create_connection(("127.0.0.1", port))
        plain = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        plain.request("GET", "/")
        with pytest.raises((OSError, http.client.HTTPException)):
            plain.getresponse()
        status, headers, text = ask(port, trusting, "GET", "/")
        assert status == 401 and "max-age" in headers["strict-transport-security"] and "chest" not in text
        form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"https://127.0.0.1:{port}"}
        status, headers, _ = ask(port, trusting, "POST", "/login", urlencode({"token": TOKEN}), **form)
        assert status == 303 and "; Secure" in headers["set-cookie"]
        status, _, text = ask(port, trusting, "GET", "/", Cookie=headers["set-cookie"].split(";")[0])
        assert status == 200 and "chest X-ray" in text
        # The same form from a page that came in clear is refused.
        form["Origin"] = f"http://127.0.0.1:{port}"
        assert ask(port, trusting, "POST", "/login", urlencode({"token": TOKEN}), **form)[0] == 403
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(port, ssl.create_default_context(), "GET", "/")
        old = ssl.create_default_context(cafile=str(pem[0]))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert ask(port, old, "GET", "/icon.svg")[0] == 200
        silent.close()
        plain.close()


def test_a_certificate_that_cannot_be_used(tmp_path, pem):
    cert, key = pem
    for certificate, secret, words in (
        (tmp_path / "absent.pem", key, "no such file"),
        (cert, tmp_path / "absent.pem", "no such file"),
        (cert, cert, "others|cannot be used"),
        (cert, cert.with_name("locked.pem"), "cannot be used"),
    ):
        with pytest.raises(InputError, match=words):
            tls_context(certificate, secret)
    open_to_all = tmp_path / "key.pem"
    open_to_all.write_bytes(key.read_bytes())
    open_to_all.chmod(0o644)
    with pytest.raises(InputError, match="read by others"):
        tls_context(cert, open_to_all)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--name"),
        (["--host", "0.0.0.0", "--name", "ledger.example"], "--cert"),
        (["--host", "0.0.0.0", "--name", "ledger.example", "--cert", "absent.pem"], "no such file"),
        (["--cert-key", "key.pem"], "without its certificate"),
    ],
)
def test_other_machines_need_tls_or_a_word(tmp_path, capsys, options, words):
    filled(tmp_path / "l.sqlite", people=30).close()
    assert main(["ledger", "serve", *options, "--url", f"sqlite:///{tmp_path}/l.sqlite"]) == 2
    assert words in capsys.readouterr().err


def test_behind_a_web_server_its_name_is_ours_too():
    behind = Gate(TOKEN, {"ledger.example"}, 8750, outside={"ledger.example"})
    assert behind.right_host("ledger.example") and behind.right_host("ledger.example:8750")
    assert behind.right_origin("https://ledger.example", "same-origin")
    assert not behind.right_host("elsewhere.example") and "; Secure" in str(behind.login(TOKEN))
    alone = Gate(TOKEN, {"127.0.0.1"}, 8750)
    assert not alone.right_host("127.0.0.1") and "Secure" not in str(alone.login(TOKEN))
