"""`python -m tests.serve.word_server DRAIN_TIMEOUT`: a server over the fake engine, with the real
handlers of signals. It prints its port."""

import sys

from lorica.progress import reporting
from lorica.serve.run import Listener, bind, run
from tests.serve.live_server import create_gate
from tests.serve.word_engine import WordEngine


def main() -> None:
    bound = bind("127.0.0.1", 0)
    engine = WordEngine(max_length=20_000, seconds_per_token=0.02)
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
