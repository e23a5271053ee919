"""`python -m tests.serve.word_server DRAIN_TIMEOUT [hang]`: a server over the fake engine, with the
real handlers of signals. It prints its port. hang: every request, and the drain, hang."""

import sys
import threading

from lorica.progress import reporting
from lorica.serve import run as run_module
from lorica.serve.run import Listener, bind, run
from tests.serve.live_server import create_gate
from tests.serve.word_engine import WordEngine


def main() -> None:
    bound = bind("127.0.0.1", 0)
    engine = WordEngine(max_length=20_000, seconds_per_token=0.02)
    if "hang" in sys.argv:
        run_module.CLOSE_SECONDS = run_module.END_SECONDS = 0  # type: ignore[attr-defined]
        engine.encode = engine.drain = lambda *_: threading.Event().wait()  # type: ignore
    print(bound.getsockname()[1], flush=True)
    with reporting():
        cut = run(
            engine,
            [Listener(create_gate(engine), bound)],
            drain_timeout=float(sys.argv[1]),
            on_hangup=lambda: print("hangup"),
        )
    print(f"cut {cut}", flush=True)


if __name__ == "__main__":
    main()
