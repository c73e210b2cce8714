"""The pages over plain HTTP: who is let in, what is shown, what every attack gets, what stands in the log."""

from __future__ import annotations

import logging
import re
import socket
import subprocess
import sys

import pytest
import sqlalchemy as sa

from confide.errors import RunError
from confide.ledger import Odometer

from .served import NASTY, TOKEN, Client, filled, running


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("web") / "ledger.sqlite")


@pytest.fixture(scope="module")
def port(ledger):
    with running(ledger) as server:
        yield server.server_port


@pytest.fixture
def client(port) -> Client:
    return Client(port).login()


@pytest.fixture
def told(caplog):
    """The log of the server."""
    caplog.set_level(logging.DEBUG, logger="confide.ledger.serve")
    return caplog


PAGES = ("/flows", "/journal", "/download/balances.csv", "/download/releases.csv", "/download/timeline.svg")


class TestWhoIsLetIn:
    @pytest.mark.parametrize("path", [*PAGES, "/releases/0123456789abcdef", "/person/0123456789abcdef", "/nothing"])
    def test_nothing_without_a_login(self, port, told, path):
        status, _, text = Client(port).get(path)
        assert status == 401 and "chest" not in text and "request without a login" in told.text
        assert path not in told.text

    def test_the_first_page_asks_for_the_token(self, port):
        status, headers, text = Client(port).get("/")
        assert status == 401 and 'type="password"' in text and "chest" not in text
        assert "set-cookie" not in headers

    def test_a_wrong_token_is_refused_and_logged_but_not_repeated(self, port, told):
        one = Client(port)
        for wrong in ("wrong-guess-4711", "", TOKEN[:-1], TOKEN + "x", "\ud7ff"):
            status, headers, text = one.post("/login", {"token": wrong})
            assert status == 401 and "set-cookie" not in headers
            assert not wrong or wrong not in text
        assert told.text.count("wrong token") == 5 and "4711" not in told.text

    def test_the_cookie_is_strict_and_the_token_is_nowhere(self, port, told):
        one = Client(port)
        status, headers, text = one.post("/login", {"token": TOKEN})
        assert status == 303 and headers["location"] == "/" and TOKEN not in text + str(headers)
        cookie = headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Path=/" in cookie
        _, headers, text = one.get("/")
        assert TOKEN not in text + str(headers) + told.text
        assert one.cookie.split("=", 1)[1] not in told.text + text

    def test_a_made_up_cookie_is_nobody(self, port, client):
        name = client.cookie.split("=")[0]
        for value in ("x", "", '"', "a" * 5000, client.cookie.split("=", 1)[1][:-1]):
            other = Client(port)
            other.cookie = f"{name}={value}"
            assert other.get("/flows")[0] == 401

    def test_logging_out_ends_the_session(self, port):
        one = Client(port).login()
        cookie = one.cookie
        assert one.get("/flows")[0] == 200
        assert one.post("/logout", {})[0] == 303
        one.cookie = cookie
        assert one.get("/flows")[0] == 401

    def test_a_session_ends_when_it_is_not_used(self, port, client, monkeypatch):
        import confide.cli.web.gate as gate

        now = gate.time.monotonic()
        assert client.get("/flows")[0] == 200
        monkeypatch.setattr(gate.time, "monotonic", lambda: now + gate.IDLE + 60)
        assert client.get("/flows")[0] == 401

    def test_sessions_are_per_login(self, port, client):
        other = Client(port).login()
        place = client.post("/search", {"kind": "id", "who": "patient-3"})[1]["location"]
        assert client.get(place)[0] == 200
        assert other.get(place)[0] == 404


class TestAttacks:
    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1", "", "localhost.evil:80"]
    )
    def test_another_name_for_this_address_is_refused(self, port, client, told, host):
        for path in ("/", "/flows", "/page.css"):
            status, _, text = client.get(path, Host=host)
            assert status == 421 and "chest" not in text
        assert client.post("/login", {"token": TOKEN}, Host=host)[0] == 421
        assert "wrong Host header" in told.text and "evil" not in told.text

    def test_a_form_from_another_page_is_refused(self, port, client, told):
        for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}):
            assert client.post("/search", {"kind": "id", "who": "patient-3"}, **headers)[0] == 403
        own = {"Origin": f"http://127.0.0.1:{port}", "Sec_Fetch_Site": "same-origin"}
        assert client.post("/search", {"kind": "id", "who": "patient-3"}, **own)[0] == 303
        assert "form from elsewhere" in told.text

    @pytest.mark.parametrize(
        "path",
        [
            "/../../etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/releases/../../../etc/passwd",
            "/releases/..%2f..%2fetc%2fpasswd",
            "/download/../ledger.sqlite.key",
            "/download/balances.csv/../../ledger.sqlite",
            "/download/release-0123456789abcdef.key",
            "//etc/passwd",
            "/releases/0123456789abcdef%00",
            "/?token=" + TOKEN,
            "/releases/' OR 1=1 --".replace(" ", "%20"),
        ],
    )
    def test_no_path_leads_anywhere_else(self, client, told, path):
        status, _, text = client.get(path)
        assert status == 404 and "root:" not in text and "SQLite" not in text and "keys" not in text
        assert "passwd" not in told.text and TOKEN not in told.text

    @pytest.mark.parametrize(
        "who", ["' OR '1'='1", "x'; DROP TABLE journal; --", '"; --', "%", "_", "\\", "patient-3\x00"]
    )
    def test_sql_in_a_search_is_an_unknown_person(self, client, ledger, told, who):
        before = ledger.status()
        status, headers, _ = client.post("/search", {"kind": "id", "who": who})
        assert status == 303
        _, _, text = client.get(headers["location"])
        assert "never seen" in text and "patient-3" not in text
        assert ledger.status() == before and who not in told.text

    @pytest.mark.parametrize("who", ["' OR 1=1 --", "zz" * 16, "ab", NASTY])
    def test_a_pseudonym_must_be_one(self, client, told, who):
        status, _, text = client.post("/search", {"kind": "pseudonym", "who": who})
        assert (
            status == 400 and "not a pseudonym" in text and "<script>" not in text and "OR 1=1" not in text + told.text
        )

    def test_names_of_releases_are_text(self, client, ledger):
        bad = next(r.id for r in ledger.reservations() if r.release == NASTY)
        place = client.post("/search", {"kind": "id", "who": "patient-3"})[1]["location"]
        for path in ("/", f"/releases/{bad}", "/flows", place):
            text = client.get(path)[2]
            assert "<script>" not in text and "<img" not in text
        assert "&lt;script&gt;" in client.get("/")[2]
        for path in ("/download/timeline.svg", f"/download/release-{bad}.svg"):
            assert "<script>" not in client.get(path)[2]
        assert "alert(1)" in client.get("/download/releases.csv")[2]

    def test_large_and_broken_requests(self, port, client, told):
        assert client.post("/search", {"who": "x" * 5000})[0] == 413
        assert client.ask("POST", "/search", None, Content_Type="text/plain")[0] in (413, 415)
        for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"):
            assert client.ask(method, "/")[0] == 405
        for raw in (
            b"GARBAGE secret-4711\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as raw_socket:
                raw_socket.sendall(raw)
                answer = raw_socket.recv(65536)
            assert b"4711" not in answer and b"Traceback" not in answer
        assert "4711" not in told.text
        assert client.get("/flows")[0] == 200

    def test_every_answer_has_the_headers(self, client, port):
        for status, headers, text in (
            client.get("/"),
            client.get("/nothing"),
            Client(port).get("/"),
            client.get("/page.css"),
        ):
            assert status in (200, 401, 404)
            rules = headers["content-security-policy"]
            assert "default-src 'none'" in rules and "unsafe" not in rules and "frame-ancestors 'none'" in rules
            assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
            assert headers["x-frame-options"] == "DENY" and "server" not in headers
            text = text.replace("http://www.w3.org/2000/svg", "")
            assert "://" not in text and "<script" not in text and " style=" not in text

    def test_the_database_refuses_writes(self, ledger, port):
        with pytest.raises(RunError, match="cannot be written"):
            ledger.register(["somebody new"])
        with pytest.raises(sa.exc.DBAPIError), ledger._store.engine.connect() as connection:
            connection.exec_driver_sql("DELETE FROM journal")

    def test_many_at_once(self, port):
        from concurrent.futures import ThreadPoolExecutor

        clients = [Client(port).login() for _ in range(4)]
        with ThreadPoolExecutor(24) as pool:
            found = list(pool.map(lambda i: clients[i % 4].get("/flows")[0], range(48)))
        assert set(found) == {200}


class TestWhatIsShown:
    def test_overview(self, client, ledger):
        text = client.get("/")[2]
        assert "internal, must not leave" in text and "lifetime cap" in text
        for record in ledger.reservations():
            assert f"/releases/{record.id}" in text
        assert text.count("<figure>") == 2

    def test_a_person_by_id_and_by_pseudonym(self, client, ledger, told):
        pseudonym = Odometer(ledger).pseudonym("patient-3")
        by_id = client.post("/search", {"kind": "id", "who": " patient-3 "})[1]["location"]
        by_name = client.post("/search", {"kind": "pseudonym", "who": pseudonym.upper()})[1]["location"]
        assert by_id == by_name and pseudonym not in by_id
        text = client.get(by_id)[2]
        left = ledger.remaining("patient-3")
        assert text.count("/releases/") == len(ledger.history("patient-3")) and pseudonym in text
        assert f"<b>{left.releases}</b>" in text
        assert "patient-3" not in text + told.text and pseudonym not in told.text

    def test_one_release(self, client, ledger):
        done = next(r for r in ledger.reservations() if r.release == "survival table")
        text = client.get(f"/releases/{done.id}")[2]
        receipt = ledger.receipt(done.id)
        assert receipt.seal in text and "ef" * 32 in text and "gaussian (noise multiplier 1.6" in text
        open_ = next(r for r in ledger.reservations() if r.state == "started")
        assert "nothing has left" in client.get(f"/releases/{open_.id}")[2]
        assert client.get("/releases/0123456789abcdef")[0] == 404

    def test_flows_and_journal(self, client, ledger):
        assert "university &amp; partners" in client.get("/flows")[2]
        assert "university & partners" in client.get("/download/flows.csv")[2]
        assert str(ledger.status().journal) in client.get("/journal")[2]
        assert client.post("/verify", {})[1]["location"] == "/journal"
        assert "nothing differs" in client.get("/journal")[2]

    def test_every_figure_can_be_taken_away(self, client, ledger):
        release = ledger.reservations()[0].id
        place = client.post("/search", {"kind": "id", "who": "patient-3"})[1]["location"]
        paths = ["/", f"/releases/{release}", place]
        links = {link for path in paths for link in re.findall(r'href="(/download/[^"]+)"', client.get(path)[2])}
        assert len(links) == 9
        for link in links:
            status, headers, text = client.get(link)
            assert status == 200 and headers["content-disposition"].startswith("attachment")
            if link.endswith(".svg"):
                import xml.etree.ElementTree as ElementTree

                assert ElementTree.fromstring(text).tag.endswith("svg")
            else:
                assert text.count("\n") > 1

    def test_the_head_of_a_page(self, client):
        status, headers, text = client.ask("HEAD", "/")
        assert status == 200 and int(headers["content-length"]) > 1000 and text == ""


def test_pages_on_both_stores(new):
    ledger = filled(new(epsilon=6.0), people=60)
    with running(ledger) as server:
        client = Client(server.server_port).login()
        place = client.post("/search", {"kind": "id", "who": "patient-3"})[1]["location"]
        release = ledger.reservations()[0].id
        for path in ("/", place, f"/releases/{release}", "/flows", "/journal", "/download/balances.csv"):
            assert client.get(path)[0] == 200
        assert client.post("/verify", {})[0] == 303 and "nothing differs" in client.get("/journal")[2]
        with pytest.raises(RunError, match="cannot be written"):
            ledger.register(["somebody new"])


def test_a_tampered_ledger_is_said(tmp_path):
    ledger = filled(tmp_path / "l.sqlite", people=30)
    with ledger._store.write() as connection:
        connection.exec_driver_sql("UPDATE reservation SET admitted = admitted + 1 WHERE seq = 1")
    with running(ledger) as server:
        client = Client(server.server_port).login()
        assert client.post("/verify", {})[0] == 303
        assert "DIFFERS" in client.get("/journal")[2]


def test_certificates_are_found_in_the_folder_of_releases(tmp_path):
    import json

    ledger = filled(tmp_path / "l.sqlite", people=30)
    record = ledger.reservations()[0]
    folder = tmp_path / "releases" / "one"
    folder.mkdir(parents=True)
    facts = {
        "name": "a <b>model</b>",
        "unit_meaning": "one person",
        "ledger": {"ledger": ledger.id, "reservation": record.id},
        "not_covered": ["exact counts"],
        "classes": [{"epsilon": 3.25}],
    }
    (folder / "certificate.json").write_text(json.dumps(facts))
    (tmp_path / "releases" / "two").mkdir()
    (tmp_path / "releases" / "two" / "certificate.json").write_text("{")
    with running(ledger, tmp_path / "releases") as server:
        client = Client(server.server_port).login()
        text = client.get(f"/releases/{record.id}")[2]
        assert "a &lt;b&gt;model&lt;/b&gt;" in text and "3.25" in text and "exact counts" in text
        assert "holds no certificate" in client.get(f"/releases/{ledger.reservations()[1].id}")[2]


class TestCommand:
    def test_it_prints_the_token_once_and_logs_no_secret(self, tmp_path):
        filled(tmp_path / "l.sqlite", people=30).close()
        command = [
            sys.executable,
            "-m",
            "confide",
            "ledger",
            "serve",
            "--port",
            "0",
            "--url",
            f"sqlite:///{tmp_path}/l.sqlite",
        ]
        log = tmp_path / "log"
        with log.open("w") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            head = [process.stdout.readline() for _ in range(4)]
            token = head[2].split()[1]
            port = int(head[1].rstrip("/\n").rsplit(":", 1)[1])
            client = Client(port)
            assert client.post("/login", {"token": token})[0] == 303
            place = client.post("/search", {"kind": "id", "who": "patient-3"})[1]["location"]
            assert client.get(place)[0] == 200 and Client(port).get("/flows")[0] == 401
        finally:
            process.terminate()
            rest = process.stdout.read()
            process.wait()
        said = log.read_text()
        assert "person: 200" in said and "request without a login" in said
        assert token not in said + rest and "patient-3" not in said and place not in said
        assert len(token) >= 40

    def test_other_machines_only_with_a_name(self, tmp_path, capsys):
        from confide.cli import main

        filled(tmp_path / "l.sqlite", people=30).close()
        assert main(["ledger", "serve", "--host", "0.0.0.0", "--url", f"sqlite:///{tmp_path}/l.sqlite"]) == 2
        assert "--name" in capsys.readouterr().err


def test_the_pages_need_nothing_beyond_the_core():
    code = (
        "import sys, confide.cli.web.server; print([m for m in ('torch', 'starlette', 'uvicorn') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
