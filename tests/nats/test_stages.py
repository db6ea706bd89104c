"""The page "From one machine to a cluster": its app in three stages, its Compose files, and its table of promises.

No Docker is needed: `tests.nats.composed` runs the services of the Compose files as processes.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.commands import patient, zroute
from tests.nats.composed import CLIENTS, CLUSTER, PLAIN, SECURE, Composed, composed, is_server, services_of
from tests.nats.secrets import Operator
from tests.nats.servers import NatsServer
from tests.nats.test_security import needs_openssl
from tests.support import PATIENCE, ROOT, Child, free_port, spans
from tests.test_snippets import HOW_TO, blocks, rows, write_files

PAGE = HOW_TO / "from-one-machine-to-a-cluster.md"
LOST = re.compile(r"desk: received \d+, .* lost (\d+),")


# -- the commands of the page ------------------------------------------------------------------------------


def commands(beginning: str, ports: dict[str, str]) -> list[list[str]]:
    """Return the commands of the shell block that begins so, with its variables, on free ports."""
    (block,) = [each.text for each in blocks(PAGE) if each.language == "sh" and each.text.startswith(beginning)]
    text = re.sub(r"(?<=127\.0\.0\.1:)\d+|(?<= -p )\d+", lambda found: _free(found[0], ports), block)
    found, variables = [], {}
    for line in text.splitlines():
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        assigned = re.fullmatch(r"(?:export )?(\w+)='?([^']*)'?", line)
        if assigned:
            variables[assigned[1]] = assigned[2]
        else:
            found.append(shlex.split(line.removesuffix(" &")))
    return found


def _free(port: str, ports: dict[str, str]) -> str:
    return ports.setdefault(port, str(free_port()))


def numbers(child: Child, word: str) -> list[int]:
    """Return the numbers of the lines that a program has printed, which begin with a word."""
    return [int(line.split()[1].rstrip(":")) for line in child.out if line.startswith(f"{word} ")]


def works(programs: list[Child], *request: str, **env: str) -> None:
    """Return when messages, a job and a request have passed between the sensors, the desk and a clerk."""
    _, desk, *clerks = programs
    desk.wait_for(lambda _: len(numbers(desk, "attic")) >= 11)
    desk.wait_for(lambda _: any(numbers(clerk, "report") for clerk in clerks))
    done = zroute(*patient(*request), **env)
    assert (done.returncode, '"celsius"' in done.stdout) == (0, True), done.stderr


def test_the_programs_of_the_page_run_on_zeromq(tmp_path: Path) -> None:
    """The commands of the second stage start the unchanged file in three processes, and a request is answered."""
    write_files(PAGE, tmp_path)
    *programs, request = commands("zroute run plant:sensors --pub", {})
    with ExitStack() as stack:
        running = [stack.enter_context(Child("-m", *each, cwd=tmp_path)) for each in programs]
        works(running, *request[1:])
        for program in running:
            assert program.end(signal.SIGINT) == 0, program.err


def test_the_programs_of_the_page_run_on_a_cluster(tmp_path: Path) -> None:
    """The commands of the third stage start a cluster and the unchanged file on it, and a request is answered."""
    write_files(PAGE, tmp_path)
    ports: dict[str, str] = {}
    servers = commands("ROUTES=", ports)
    assert [each[0] for each in servers] == ["nats-server"] * 3
    check, *programs, request = commands("export ZROUTE_NATS=", ports)
    env = {"ZROUTE_NATS": ",".join(f"nats://127.0.0.1:{each[each.index('-p') + 1]}" for each in servers)}
    done = zroute(*check[1:], cwd=tmp_path, **env)
    assert (done.returncode, done.stdout.count("runs on nats://127.0.0.1")) == (0, 3), done.stderr
    with ExitStack() as stack:
        for number, (_, *arguments) in enumerate(servers):
            port = arguments[arguments.index("-p") + 1]
            rest = arguments[arguments.index("--cluster_name") :]
            folder = tmp_path / str(number)
            folder.mkdir()
            stack.enter_context(NatsServer(folder, "", *rest, port=int(port)))
        running = [stack.enter_context(Child("-m", *each, cwd=tmp_path, env=env)) for each in programs]
        works(running, *request[1:])
        for program in running:
            assert program.end(signal.SIGINT) == 0, program.err


# -- the Compose files -------------------------------------------------------------------------------------


def test_the_page_shows_the_files_of_the_example() -> None:
    """The program and the parts of the Compose files on the page are those of the folder that it names."""
    (shown,) = [block.text for block in blocks(PAGE) if block.title == "plant.py"]
    assert (CLUSTER / "plant.py").read_text().endswith(shown)
    parts = [block.text for block in blocks(PAGE) if block.language == "yaml"]
    files = PLAIN.read_text() + SECURE.read_text()
    assert len(parts) == 3
    assert [part for part in parts if part not in files] == []


@pytest.mark.parametrize("files", [(PLAIN,), (PLAIN, SECURE)], ids=["plain", "secure"])
def test_the_services_fit_together(files: tuple[Path, ...]) -> None:
    """Each program names exactly the servers, each server the routes to all, and each file that is needed exists."""
    services = services_of(*files)
    servers = [name for name, service in services.items() if is_server(service)]
    assert len(servers) == 3
    for name, service in services.items():
        assert set(service) <= {*_KEYS, "command"}, name
        if is_server(service):
            text = " ".join(service["command"])
            if "--config=" in text:
                text += (CLUSTER / "secure.conf").read_text()
            assert f"--name={name}" in text
            assert re.findall(r"nats://(nats-\d):6222", text) == servers
        else:
            urls = service["environment"]["ZROUTE_NATS"].split(",")
            assert [url.partition("://")[2] for url in urls] == [f"{server}:{CLIENTS}" for server in servers]
            build = service["build"]
            assert (CLUSTER / build["context"] / build["dockerfile"]).resolve() == CLUSTER / "Dockerfile"
    for line in (CLUSTER / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            assert all((ROOT / source).exists() for source in line.split()[1:-1]), line


_KEYS = {"image", "restart", "ports", "volumes", "build", "environment", "stop_grace_period", "deploy", "secrets"}


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """The folder with certificates and credentials that the commands of the page create."""
    folder = tmp_path / "secrets"
    (script,) = [block.text for block in blocks(PAGE) if "openssl req -x509" in block.text]
    done = subprocess.run(["sh", "-ec", script], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    operator = Operator()
    for _nsc, add, user, *options in commands("nsc add operator", {}):
        if (add, user) == ("add", "user"):
            given = dict(zip(options[::2], options[1::2], strict=True))
            allowed = given["--allow-sub"].split(","), given["--allow-pub"].split(",")
            operator.write_another(folder / f"{given['--name']}.creds", *allowed)
    (folder / "accounts.conf").write_text(operator.config)
    return folder


def loses_no_more_than_it_counts(running: Composed) -> None:
    """Freeze and kill the server of the sensors: messages go on, and exactly the missing ones count as lost."""
    sensors, desk = running["sensors"], running["desk"]
    server = running.server_of("sensors")
    server.freeze()  # what the sensors send from now on is lost with it
    last = numbers(sensors, "sent")[-1]
    sensors.wait_for(lambda _: numbers(sensors, "sent")[-1] >= last + 3)
    server.kill()
    last = numbers(sensors, "sent")[-1]
    desk.wait_for(lambda _: numbers(desk, "attic")[-1] >= last + 3)
    for program in (sensors, desk):
        assert program.end(signal.SIGINT) == 0, program.err
    received = [int(line.split()[1]) for line in desk.out if line.startswith("attic ") and "(kept)" not in line]
    missing = set(range(received[0], numbers(sensors, "sent")[-1] + 1)) - set(received)
    (lost,) = [found[1] for line in desk.err if (found := LOST.search(line))]
    assert int(lost) == len(missing) > 0, (desk.out, desk.err)


def test_the_services_run_and_survive_a_server(tmp_path: Path) -> None:
    """The cluster and its programs exchange messages, jobs and requests, also after a server was killed."""
    with composed(tmp_path, PLAIN) as running:
        programs = [running["sensors"], running["desk"], *running.programs["clerk"]]
        works(programs, "request", running.urls, "latest.attic")
        loses_no_more_than_it_counts(running)


@needs_openssl
def test_the_services_run_with_tls_and_credentials(tmp_path: Path, secrets: Path) -> None:
    """With the certificates and permissions of the page, nothing is refused but what a user may not do."""
    with composed(tmp_path, PLAIN, SECURE, secrets=secrets) as running:
        env = {"SSL_CERT_FILE": str(secrets / "ca.pem")}
        creds = {name: ("--nats-creds", str(secrets / f"{name}.creds")) for name in ("shell", "clerk")}
        programs = [running["sensors"], running["desk"], *running.programs["clerk"]]
        works(programs, "request", running.urls, "latest.attic", *creds["shell"], **env)
        # The desk does not subscribe to this topic, so it does not count the refused message as lost.
        refused = zroute("pub", running.urls, "readings.attic.low", "1", "--wait", "0", *creds["clerk"], **env)
        assert 'Permissions Violation for Publish to "readings.attic.low"' in refused.stderr
        assert "its certificate is not valid" in zroute("tail", running.urls, *creds["shell"]).stderr
        without = zroute("tail", running.urls, **env)
        assert (without.returncode, "does not accept the credentials" in without.stderr) == (5, True), without.stderr
        loses_no_more_than_it_counts(running)
        for program in programs:
            assert not [line for line in program.err if "refuses" in line], program.err


# -- the table of promises ---------------------------------------------------------------------------------

INSIDE = """
from zroute import App, History, Limits, RequestTimeoutError

small = Limits(send_queue=5, receive_queue=5)
feed = App(pub="inproc://feed", limits=small, name="feed")
waits = App(pub="inproc://waits", limits=small, overflow="wait", context=feed.context, name="waits")
keeps = App(pub="inproc://keeps", limits=small, context=feed.context, name="keeps")
reader = App(sub=["inproc://feed", "inproc://waits"], req="inproc://none", limits=small, context=feed.context,
             name="reader")
recovers = App(sub="inproc://keeps", recover=True, limits=small, context=feed.context, name="recovers")
news = feed.publisher("news.{number}", int)
orders = waits.publisher("orders", int)
kept = keeps.publisher("kept", int, history=History(messages=1000))
SENT = 500
bursts = 0


@reader.subscribe("news.*")
def on_news(number: int) -> None:
    pass


@reader.subscribe("orders")
async def on_order(number: int) -> None:
    print(f"order {number}")


@recovers.subscribe("kept")
def on_kept(number: int) -> None:
    print(f"kept {number}")


@waits.every(0.1)
async def order() -> None:
    await orders.wait_for_subscribers(1, timeout=100)
    for number in range(SENT):
        await orders.publish(number)
    print("ordered")
    waits.stop()


@feed.every(0.1)
async def burst() -> None:
    global bursts
    bursts += 1
    if bursts > 2:
        return
    await news.wait_for_subscribers(1, timeout=100)
    await kept.wait_for_subscribers(1, timeout=100)
    for number in range(SENT):  # in one turn, so the small queues are full
        news.publish(number, number=number)
        kept.publish(number)


@reader.every(0.1)
async def ask() -> None:
    try:
        await reader.request("unanswered", timeout=0.1)
    except RequestTimeoutError:
        print("timeout")
"""


def test_the_promises_inside_one_process(tmp_path: Path) -> None:
    """Over inproc, losses are counted and come back, a publisher can wait for a reader, and a request times out."""
    (tmp_path / "inside.py").write_text(INSIDE)
    apps = [f"inside:{name}" for name in ("feed", "waits", "keeps", "reader", "recovers")]
    with Child("-m", "zroute", "run", *apps, cwd=tmp_path) as child:
        child.line_with("order 499")
        child.line_with("timeout")
        child.wait_for(lambda lines: lines.count("kept 499") == 2)  # the end of the second burst
        assert child.end(signal.SIGINT) == 0, child.err
    last = {line.split()[2]: line for line in child.err if " publish_errors " in line or " handled " in line}
    counted = {
        name: {key: int(number) for key, number in re.findall(r"(\w+) (\d+)", line)} for name, line in last.items()
    }
    assert counted["reader:"]["lost"] > 0
    assert counted["reader:"]["received"] + counted["reader:"]["lost"] == counted["feed:"]["published"] + 500
    assert [line for line in child.out if line.startswith("order ")] == [f"order {number}" for number in range(500)]
    assert counted["recovers:"]["recovered"] > 0
    assert (counted["recovers:"]["received"], counted["recovers:"]["lost"]) == (counted["keeps:"]["published"], 0)


SLOW = """
import asyncio
from zroute import App

server = App(rep="tcp://127.0.0.1:1", name="server")
flood = App(pub="tcp://127.0.0.1:1", overflow="wait", name="flood")
reader = App(sub="tcp://127.0.0.1:1", name="reader")
parts = flood.publisher("parts", bytes)


@server.reply("slow")
async def slow() -> None:
    print("begun")
    await asyncio.get_running_loop().create_future()


@reader.subscribe("parts")
def on_part(part: bytes) -> None:
    pass


@flood.every(0.1)
async def publish() -> None:
    await parts.wait_for_subscribers(1, timeout=100)
    print("publishing")
    for _ in range(300):  # more than the client's buffer of 16 MiB, and less than the server's of 64 MB
        await parts.publish(bytes(100_000))
    print("published")
    flood.stop()
"""


def test_a_killed_app_leaves_requests_to_their_timeout(server: NatsServer, tmp_path: Path) -> None:
    """NATS does not report the end of an app, so the request that it was handling ends with its timeout."""
    (tmp_path / "slow.py").write_text(SLOW)
    run = ("-m", "zroute", "run", "--nats", server.url, "--reactor", "asyncio")
    for seconds in spans(3):
        with Child(*run, "slow:server", cwd=tmp_path) as app:
            app.line_with("server: answers requests on NATS", stream="err")
            with Child("-m", "zroute", "request", server.url, "slow", "--timeout", f"{seconds:g}s") as request:
                process = request.process
                app.wait_for(lambda lines, process=process: "begun" in lines or process.poll() is not None)
                was_asked = process.poll() is None
                app.kill()
                assert request.end(None) == 124, request.err
        if was_asked:
            break
    assert was_asked
    assert "no reply" in request.err[-1], request.err


def test_a_frozen_subscriber_does_not_delay_a_publisher_that_waits(server: NatsServer, tmp_path: Path) -> None:
    """The server holds the messages of the subscriber, so `overflow="wait"` does not wait for it."""
    (tmp_path / "slow.py").write_text(SLOW)
    run = ("-m", "zroute", "run", "--nats", server.url)
    with Child(*run, "slow:reader", cwd=tmp_path) as reader:
        reader.line_with("reader: subscribes on NATS", stream="err")
        with Child(*run, "slow:flood", cwd=tmp_path) as flood:
            flood.line_with("publishing")
            reader.process.send_signal(signal.SIGSTOP)
            flood.line_with("published")
            reader.process.send_signal(signal.SIGCONT)  # a stop waits until its subscribers have read everything
            assert flood.end(None) == 0, flood.err
            assert "published 300, publish_errors 0" in flood.err[-1]


CONFORMANCE, JOBS = "transports/test_conformance.py", "transports/test_conformance_of_jobs.py"
STAGES, ASKING = "nats/test_stages.py", "acceptance/test_app_requests.py"
INSIDE_ONE = (STAGES, "test_the_promises_inside_one_process")
PROOFS = {
    "a published message": [INSIDE_ONE, (CONFORMANCE, "test_overlapping_patterns_bring_a_message_once")],
    "order": [
        (CONFORMANCE, "test_one_reader_hears_several_publishers"),
        ("nats/test_client.py", "test_messages_keep_their_order_over_subscriptions"),
    ],
    "lost messages": [
        INSIDE_ONE,
        ("acceptance/test_losses.py", "test_what_a_slow_reader_loses_is_counted_exactly"),
        (STAGES, "test_the_services_run_and_survive_a_server"),
    ],
    "messages before the join": [(CONFORMANCE, "test_ready_waits_for_the_first_subscriptions")],
    '`keep="last"`': [(CONFORMANCE, "test_what_is_to_be_kept_is_kept_or_refused")],
    "[`history=`, `recover=`](lost-messages.md)": [
        INSIDE_ONE,
        ("acceptance/test_recovery.py", "test_lost_messages_are_handled_in_order_and_once"),
        ("planning/test_combining.py", "test_two_options_combine_as_the_table_says"),
    ],
    "a request": [
        (JOBS, "test_requests_are_answered_refused_or_fail"),
        (ASKING, "test_the_server_with_the_fewest_unanswered_requests_is_asked"),
        ("nats/test_requests.py", "test_one_server_of_a_group_handles_a_request"),
    ],
    "no program answers": [
        INSIDE_ONE,
        (ASKING, "test_without_a_server_there_is_an_error_of_its_own"),
        ("nats/test_requests.py", "test_a_request_without_a_server_fails_at_once"),
    ],
    "the server of a request is killed": [
        (ASKING, "test_a_killed_server_loses_what_it_had"),
        (STAGES, "test_a_killed_app_leaves_requests_to_their_timeout"),
    ],
    "[a job](share-work.md)": [
        ("transports/test_jobs.py", "test_jobs_are_put_from_threads_and_done_in_a_loop"),
        ("acceptance/test_jobs.py", "test_a_killed_and_a_frozen_worker_lose_no_job"),
        ("nats/test_jobs.py", "test_a_killed_server_loses_counted_jobs_and_repeats_none"),
    ],
    "a failed job": [
        (JOBS, "test_failures_are_counted_at_the_worker"),
        ("nats/test_jobs.py", "test_what_cannot_work_is_refused_at_the_start"),
        ("nats/test_jobs.py", "test_failures_are_the_workers"),
    ],
    "a full handler": [
        (CONFORMANCE, "test_a_full_route_loses_nothing_and_keeps_the_order"),
        ("acceptance/test_overflow.py", "test_one_that_drops_is_not_held_up"),
        ("nats/test_transport.py", "test_a_long_pause_is_logged"),
        ("programs/test_chaos.py", "test_what_nats_loses_is_counted_exactly"),
    ],
    '`overflow="wait"`': [
        INSIDE_ONE,
        ("acceptance/test_overflow.py", "test_one_that_waits_loses_nothing"),
        (STAGES, "test_a_frozen_subscriber_does_not_delay_a_publisher_that_waits"),
    ],
    "size of a body": [
        ("acceptance/test_limits.py", "test_max_message_holds_below_8_kib"),
        ("nats/test_transport.py", "test_a_large_max_message_is_refused_at_the_start"),
    ],
    "topics and headers": [
        (CONFORMANCE, "test_each_wire_arrives_as_it_was_sent"),
        ("nats/test_transport.py", "test_topics_and_headers_that_nats_does_not_carry_are_refused_and_not_lost"),
    ],
    "who may connect": [
        ("acceptance/test_keys.py", "test_an_open_address_needs_keys_or_a_word"),
        ("acceptance/test_keys.py", "test_an_unknown_key_is_refused_until_it_is_authorized"),
        (STAGES, "test_the_services_run_with_tls_and_credentials"),
    ],
    "encryption": [
        ("acceptance/test_keys.py", "test_a_recorder_between_apps_sees_no_text"),
        ("nats/test_security.py", "test_tls_is_checked_against_the_authority"),
    ],
    "rights per topic": [(STAGES, "test_the_services_run_with_tls_and_credentials")],
    "programs need to know": [("nats/test_client.py", "test_a_client_moves_to_another_server_of_the_cluster")],
    "reactor": [
        ("nats/test_transport.py", "test_another_reactor_is_refused"),
        ("nats/test_programs.py", "test_the_app_of_the_page_runs_on_nats"),
    ],
}
"""The tests of each row of the table of promises: file below ``tests``, and name."""


def test_each_promise_of_the_page_has_a_test() -> None:
    """Each row of the table of promises names tests that exist."""
    assert [row[0] for row in rows(PAGE, "promise")] == list(PROOFS)
    for promise, proofs in PROOFS.items():
        for file, name in proofs:
            assert re.search(rf"^(async )?def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), (
                promise,
                name,
            )
