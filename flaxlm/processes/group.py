"""Several processes as one: what one is told, or ends with, all know at once.

Every process has one TCP connection to process 0, over which go lines of JSON: what is gathered,
a signal that one was sent, the end of one, which is the end of all, and a beat a second. A killed
process is seen by its connection, which the kernel closes, a lost machine by TCP's own probes; one
that is stopped has a connection and no beat. JAX's coordination service can tell none of these
apart, and where process 0 dies it aborts the others before they could say why: it is reached
through a relay in each process (`relay`), which it cannot see break.
"""

import atexit
import contextlib
import hashlib
import json
import re
import selectors
import socket
import threading
import time

from flaxlm.errors import ConfigError, Preempted, Stuck
from flaxlm.processes import ending
from flaxlm.processes.connections import LOST, Peer
from flaxlm.processes.watchdog import late
from flaxlm.progress import pulse

BEAT = 1.0  # seconds
QUIET = 10.0  # seconds without a beat, after which none is sent: they would fill the connection
PATIENCE = 3600.0  # seconds without a beat that end all, where no config says
BROKEN = re.compile(
    r"gloo|nccl|coordination|connection (reset|closed|refused)|unavailable|deadline_exceeded|"
    r"heartbeat|socket closed|barrier timed out",
    re.IGNORECASE,
)
DEAD = "ended without a word (killed, out of memory, or its machine is lost); start the same "
DEAD += "command again on all"


class Group:
    """This process among `count`; process 0 is where all are connected.

    Attributes:
      patience: seconds without a beat of another process after which all end; 0: never.
      stop: the index of the first process that was asked to stop by a signal, or None.
    """

    def __init__(self, index: int, count: int):
        self.index, self.count, self.lead, self.host = index, count, index == 0, ""
        self.patience, self._notes = PATIENCE, 0
        self.stop: int | None = None
        self._peers: dict[int, Peer] = {}
        self._gathered: dict[str, dict] = {}  # at process 0: {name: {index: value}}
        self._results: dict[str, list] = {}
        self._changed = threading.Condition()
        self._calls = self._met = 0
        self._ending = self._over = False
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None

    def join(self, address: str, timeout: float) -> None:
        """Connect the processes at HOST:PORT of process 0, within `timeout` seconds."""
        host, _, port = address.rpartition(":")
        if not (host and port.isdecimal()):
            raise ConfigError(f"--coordinator={address} is not of the form HOST:PORT")
        deadline = time.monotonic() + timeout
        with pulse.waiting("the wait for the other processes"):
            if self.lead:
                self.listen(int(port), min(timeout, LOST), f"--coordinator={address}")
                self._await_all(deadline, f"{address} within {timeout:g} s (--join_timeout)")
            else:
                self.connect(host.strip("[]"), int(port), deadline)

    def listen(self, port: int, patience: float = 0.0, what: str = "a port") -> int:
        """Open a port for the others, 0 for a free one, and start to watch; return which it is.

        A port that is in use, as by the command before, is waited for, `patience` seconds.
        """
        both = socket.has_dualstack_ipv6()
        kind = {"family": socket.AF_INET6, "dualstack_ipv6": True} if both else {}
        deadline = time.monotonic() + patience
        while self._listener is None:
            try:
                self._listener = socket.create_server(("", port), backlog=self.count, **kind)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ConfigError(f"{what} cannot be opened: {error.strerror}") from None
                time.sleep(0.2)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._start()
        return self._listener.getsockname()[1]

    def connect(self, host: str, port: int, deadline: float) -> None:
        """Connect to process 0 before a `deadline` of the monotonic clock, and start to watch."""
        began = time.monotonic()
        while True:
            try:
                connection = socket.create_connection((host, port), timeout=BEAT)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Preempted(
                        f"process 0 cannot be reached at {host}:{port} within "
                        f"{deadline - began:.0f} s (--join_timeout): {error.strerror or error}; "
                        "see whether it was started, and start the same command again on all"
                    ) from None
                time.sleep(0.2)
        self.host = host
        peer = self._peers[0] = Peer(connection)
        peer.index = 0
        peer.send(hello=[self.index, self.count])
        self._selector.register(connection, selectors.EVENT_READ, peer)
        self._start()
        while not peer.heard:  # something else may listen there, or process 0 be stopped
            time.sleep(0.02)
            if time.monotonic() > deadline:
                self._decide(
                    Preempted.exit_code,
                    f"process {self.index}: who listens at {host}:{port} has not answered as "
                    f"process 0 within {deadline - began:.0f} s (--join_timeout); see whether it "
                    "was started there, and start the same command again on all",
                )
                ending.stay()

    def _await_all(self, deadline: float, where: str) -> None:
        with self._changed:
            while len(self._peers) < self.count - 1 and time.monotonic() < deadline:
                self._changed.wait(BEAT / 4)
            missing = sorted(set(range(1, self.count)) - self._peers.keys())
        if missing:
            names = ", ".join(map(str, missing))
            self.end(
                Preempted.exit_code,
                f"process {names}: did not come to {where}; see whether it was started, and start "
                "the same command again on all",
            )

    def _start(self) -> None:
        ending.group = self
        threading.Thread(target=self._watch, daemon=True).start()

    # What the main thread calls.

    def gather(self, name: str, value=None) -> list:
        """Return what each process gives (JSON), by index; all call this in the same order."""
        self._calls += 1
        return self.settle(f"{self._calls} {name}", value)

    def compare(self, name: str, value) -> tuple | None:
        """Return None where all give the same (JSON); else (index, process 0's, what that gives).

        The index is that of the first process that differs from process 0.
        """
        text = json.dumps(value, sort_keys=True)
        digests = self.gather(name, hashlib.sha256(text.encode()).hexdigest())
        other = next((i for i, digest in enumerate(digests) if digest != digests[0]), None)
        if other is None:
            return None
        values = self.gather(name, json.loads(text) if self.index in (0, other) else None)
        return other, values[0], values[other]

    def settle(self, name: str, value) -> list:
        """Return what the processes give under a name that is given once."""
        self.post(name, value)
        with pulse.waiting(f"the wait for the other processes ({name})"), self._changed:
            while name not in self._results:
                self._changed.wait(BEAT)
        # From here on all take the same way, until the next time.
        self._met, self._notes = self._met + 1, pulse.count
        return self._results[name]

    def post(self, name: str, value) -> None:
        """Give a value under a name, and do not wait for the others."""
        self._put(0, name, value) if self.lead else self._tell(put=[name, value])

    def ask_stop(self) -> None:
        """Let all processes know that this one was asked to stop."""
        self._stop(self.index) if self.lead else self._tell(stop=self.index)

    def blame(self, seconds: float) -> None:
        """End all because something of this process did not end; see `_blame`."""
        if self.lead or self._silent():
            self._blame(self.index, seconds, self._at())
        else:
            self._tell(blame=[seconds, self._at()])
            time.sleep(ending.GRACE)
            self._decide(Stuck.exit_code, f"process {self.index}: {late(seconds, pulse.what)}")
        ending.stay()

    def await_cause(self, error: BaseException) -> None:
        """Wait whether an error of this process comes of another's end, which is told then."""
        deadline = time.monotonic() + (LOST + 2 * BEAT if broke(error) else BEAT)
        while time.monotonic() < deadline:
            if self._ending:
                ending.stay()
            time.sleep(0.02)

    def end(self, code: int, line: str) -> None:
        """End all processes with a code and a line, unless another end came first."""
        if not self.lead and not self._ending:
            self._tell(end=[code, line])
            for _ in range(20):  # what process 0 says holds
                time.sleep(0 if self._ending else ending.GRACE / 20)
        self._decide(code, line)
        ending.stay()

    def leave(self) -> None:
        """End this process when all have done their work, process 0 last; does not return."""
        self.gather("the end")
        if self.lead:
            self._await_left()
        ending.leave(0)

    # What the thread that watches does.

    def _watch(self) -> None:
        now = beaten = time.monotonic()
        while True:
            for key, _ in self._selector.select(BEAT / 4):
                self._accept() if key.data is None else self._read(key.data)
            before, now = now, time.monotonic()
            with self._changed:
                peers = list(self._peers.values())
            if now - beaten > BEAT:
                beaten = now
                for peer in peers:
                    if peer.silent < QUIET:
                        peer.send(at=self._at())
            for peer in peers:
                # Time in which this process itself was stopped does not count.
                peer.silent += min(now - before, 2 * BEAT)
                if self.patience and peer.silent > self.patience and not self._over:
                    self._decide(Stuck.exit_code, silent(peer))

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            self._selector.register(connection, selectors.EVENT_READ, Peer(connection))

    def _read(self, peer: Peer) -> None:
        try:
            messages = peer.receive()
            for message in messages or ():
                for kind, value in message.items():
                    self._take(peer, kind, value)
        except Exception:  # of a stranger who tries ports, whatever it sends
            messages = None
        if messages is None:
            self._selector.unregister(peer.socket)
            peer.socket.close()
            with self._changed:
                self._peers.pop(peer.index, None)
                self._changed.notify_all()
            if peer.index >= 0 and not self._over:
                self._decide(Preempted.exit_code, f"process {peer.index}: {DEAD}")

    def _take(self, peer: Peer, kind: str, value) -> None:
        if peer.index < 0 and kind != "hello":
            raise ValueError("whoever has not said which process it is has nothing to say")
        peer.silent, peer.heard = 0.0, True
        if kind == "hello":
            self._greet(peer, *value)
        elif kind == "at":
            peer.at = tuple(value)
        elif kind == "put":
            self._put(peer.index, *value)
        elif kind == "all":
            self._give(*value)
        elif kind == "stop":
            self._stop(value)
        elif kind == "blame":
            self._blame(peer.index, *value)
        elif kind == "end":
            self._decide(*value)

    def _greet(self, peer: Peer, index: int, count: int) -> None:
        wrong = ""
        if count != self.count:
            wrong = f"--num_processes={count}, and process 0 with {self.count}"
        elif not 0 < index < count or index in self._peers:
            wrong = f"--process_id={index}, and so was another of the {count}"
        if wrong:
            line = f"process {index}: was started with {wrong}"
            peer.send(end=[ConfigError.exit_code, line])
            if len(self._peers) < self.count - 1:
                self._decide(ConfigError.exit_code, line)
            return  # a latecomer does not end those who are complete
        with self._changed:
            peer.index, self._peers[index] = index, peer
            self._changed.notify_all()
        peer.send(at=self._at())  # so that it knows whom it has found

    def _put(self, index: int, name: str, value) -> None:
        with self._changed:
            values = self._gathered.setdefault(name, {})
            values.setdefault(index, value)
            whole = len(values) == self.count
        if whole:
            del self._gathered[name]
            self._give(name, [values[i] for i in range(self.count)])

    def _give(self, name: str, values: list) -> None:
        if self.lead:
            self._tell(all=[name, values])
        with self._changed:
            self._over |= name.endswith(" the end")
            self._results[name] = values
            self._changed.notify_all()

    def _stop(self, index: int) -> None:
        if self.stop is None:
            self.stop = index
            if self.lead:
                self._tell(stop=index)

    def _silent(self) -> list[Peer]:
        return [peer for peer in self._peers.values() if peer.silent > 5 * BEAT]

    def _at(self) -> tuple[int, int, str]:
        """Return how far this process is, comparable with others, and what it is at."""
        return self._met, pulse.count - self._notes, pulse.what

    def _blame(self, index: int, seconds: float, at: tuple) -> None:
        """End all because process `index`, which is `at` something, waits in vain.

        The one is named that is silent, or else furthest behind.
        """
        if stopped := self._silent():
            self._decide(Stuck.exit_code, silent(stopped[0]))
        places = {self.index: self._at()} | {i: p.at for i, p in self._peers.items()}
        places[index] = tuple(at)
        behind = min(places, key=lambda i: (*places[i][:2], i != index))
        self._decide(Stuck.exit_code, f"process {behind}: {late(seconds, places[behind][2])}")

    def _tell(self, **message) -> None:
        """Tell process 0, or where this is it all others; who left hears nothing."""
        for peer in list(self._peers.values()):
            peer.send(**message)

    def _decide(self, code: int, line: str) -> None:
        with self._changed:
            if self._ending:
                return
            self._ending = self._over = True
        last = self._await_left if self.lead else lambda: None
        self._tell(end=[code, line])
        arguments = {"args": (code, line), "kwargs": {"last": last}}
        threading.Thread(target=ending.finish, **arguments).start()

    def _await_left(self) -> None:
        """Wait for the others to leave: this process serves them until then."""
        deadline = time.monotonic() + 2 * ending.GRACE
        with self._changed:
            while self._peers and time.monotonic() < deadline:
                self._changed.wait(BEAT / 4)


def broke(error: BaseException) -> bool:
    """Return whether an error is one of a connection between processes."""
    return bool(BROKEN.search(str(error)))


def silent(peer: Peer) -> str:
    """Return the line about a process that sends no beat."""
    return (
        f"process {peer.index}: has not answered for {peer.silent:.0f} s (train.stuck_after): it "
        f"is stopped, or its machine hangs; it was last at {peer.at[2]}"
    )


def current() -> Group | None:
    """Return the group of this process, None where it is alone; see `flaxlm.processes`.

    One whose processes were connected by `jax.distributed` alone is made here: they find each other
    by the key-value store.
    """
    import jax

    if ending.group is None and jax.process_count() > 1:
        from jax._src.distributed import global_state

        group = Group(jax.process_index(), jax.process_count())
        if group.lead:
            host = global_state.coordinator_address.rpartition(":")[0]
            global_state.client.key_value_set("flaxlm", f"{host} {group.listen(0)}")
        else:
            found = global_state.client.blocking_key_value_get("flaxlm", 300_000)  # milliseconds
            host, port = found.split()
            group.connect(host.strip("[]"), int(port), time.monotonic() + LOST)
        atexit.register(group.post, "0 the end", None)
        group.gather("the start")
    return ending.group
