"""A resident server of one's own, for as long as it is used."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE, Popen, TimeoutExpired

from .client import SendError


@contextmanager
def resident_server(recipe: str, threads: int, patience: float = 300.0) -> Iterator[int]:
    """`scanprior serve` in a process of its own, which ends with this one; gives the port once it is ready.

    Raises
    ------
    SendError
        When it ends, or is not ready within `patience` seconds; with what it said. One that is raised inside is
        raised again with what a server said that has ended by then.
    """
    command = [sys.executable, "-m", "scanprior.pipelines.cli", "serve", "--port", "0", "--recipe", recipe]
    command += ["--threads", str(threads), "--while-stdin"]
    # a session of its own: Ctrl-C comes to us alone, and the end of stdin tells it, however we end
    with Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True) as process:
        said: list[str] = []
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        # a full pipe would stop it
        drain = threading.Thread(target=said.extend, args=(process.stderr,), daemon=True)
        drain.start()
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        overdue = threading.Timer(patience, give_up)
        overdue.start()
        try:
            port = next((line for line in process.stdout if line.startswith("ready on port ")), None)
            overdue.cancel()
            if port is None:
                process.kill()
                process.wait()
                drain.join()
                problem = f"was not ready within {patience:g} s" if late.is_set() else "did not start"
                raise SendError(f"scanprior serve {problem}: {_last(said)}")
            try:
                yield int(port.split()[-1])
            except SendError as error:
                try:
                    process.wait(10)  # it may be about to end
                except TimeoutExpired:
                    raise error from None
                drain.join()
                raise SendError(
                    f"{error}; scanprior serve ended with status {process.returncode}: {_last(said)}", error.received
                ) from error
        finally:
            overdue.cancel()
            process.stdin.close()
            try:
                process.wait(40)
            except TimeoutExpired:
                process.kill()


def _last(said: list[str]) -> str:
    return "".join(said[-5:]).strip() or "no message"
