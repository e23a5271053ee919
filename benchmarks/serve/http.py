"""What HTTP takes off the engine's tokens per second, at 8 streams.

    python -m benchmarks.serve.http [--base bundled] [--streams 8] [--tokens 100] [--rounds 7]

Both sides write the same answers with the same engine in one process, by turns: once they are read
in the process, once by a client of another process, as streams of server-sent events. Of each side
the best round counts, in tokens per second of wall time, and in milliseconds of the server's
process time per token. Process time has all that HTTP computes, also what runs beside the engine's
thread on another core. --base S: a random Llama of 8 layers x 512.
"""

import argparse
import asyncio
import json
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

PROMPTS = "The ship leaves the harbor at dawn and number {} is on it"


@dataclass(frozen=True)
class Load:
    """streams: answers at the same time. tokens: of each at most."""

    streams: int
    tokens: int

    def bodies(self, model: str) -> list[dict[str, Any]]:
        return [
            {
                "model": model,
                "prompt": PROMPTS.format(number),
                "max_tokens": self.tokens,
                "seed": number,
                "stream": True,
            }
            for number in range(self.streams)
        ]


@dataclass(frozen=True)
class Cost:
    """Of one round, or the best of several."""

    wall: float
    process: float
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.wall

    @property
    def milliseconds(self) -> float:
        """Of process time per token."""
        return 1000 * self.process / self.tokens


def timed(work: Callable[[], int]) -> Cost:
    wall, process = time.perf_counter(), time.process_time()
    tokens = work()
    return Cost(time.perf_counter() - wall, time.process_time() - process, tokens)


def best(costs: list[Cost]) -> Cost:
    return Cost(
        min(cost.wall for cost in costs), min(cost.process for cost in costs), costs[0].tokens
    )


async def read_in_process(engine: Any, bodies: list[dict[str, Any]]) -> int:
    """Submit the jobs and read their answers on the server's own loop. Returns: tokens."""
    from lorica.generation.sampling import Sampling
    from lorica.serve.exchange import End, Job

    async def read(body: dict[str, Any]) -> int:
        sampling = Sampling(max_new_tokens=body["max_tokens"], temperature=1.0, seed=body["seed"])
        prompt = engine.encode(body["model"], body["prompt"])
        job = Job(tenant="local", model=body["model"], prompt=prompt, sampling=sampling)
        async for event in engine.submit(job):
            if isinstance(event, End):
                return event.completion_tokens
        raise AssertionError("an answer ends with an End")

    return sum(await asyncio.gather(*map(read, bodies)))


def read_by_client(client: subprocess.Popen) -> None:
    """Let the client ask for all streams and read them."""
    assert client.stdin is not None and client.stdout is not None
    client.stdin.write("go\n")
    client.stdin.flush()
    assert client.stdout.readline() == "done\n", "every stream ends with [DONE]"


@contextmanager
def serving(engine: Any) -> Iterator[tuple[int, asyncio.AbstractEventLoop]]:
    """(port, loop) of the client app on a thread, as the command runs it."""
    from lorica.serve.apps import client_gate
    from lorica.serve.auth import Access
    from lorica.serve.gate import LOCAL
    from lorica.serve.metrics import Metrics
    from lorica.serve.run import Listener, bind, serve

    bound = bind("127.0.0.1", 0)
    bound.listen()
    access, metrics = Access.local(engine.base_name), Metrics(engine)
    gate = client_gate(engine, metrics, access, hosts=LOCAL, any_address=False, deadline=600)
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    listeners = [Listener(gate, bound)]

    def run() -> None:
        loop.run_until_complete(serve(engine, listeners, drain_timeout=5, stop=stop))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield bound.getsockname()[1], loop
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def run_client(port: int, bodies: list[dict[str, Any]], orders: TextIO) -> None:
    """At each line of `orders`, open a connection per body, and read all of them to their ends."""
    for _ in orders:
        waiting = selectors.DefaultSelector()
        for body in bodies:
            connection = socket.create_connection(("127.0.0.1", port))
            data = json.dumps(body).encode()
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (len(data), data)
            )
            waiting.register(connection, selectors.EVENT_READ, bytearray())
        complete = 0
        while waiting.get_map():
            for key, _ in waiting.select():
                data = key.fileobj.recv(2**16)  # type: ignore[union-attr]
                key.data.extend(data)
                if not data:
                    complete += b"data: [DONE]\n\n" in key.data
                    waiting.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
        print("done" if complete == len(bodies) else "broken", flush=True)


def write_base(folder: Path) -> Path:
    """A random Llama of 8 layers x 512, with the bundled base's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from lorica.base.bundled import FOLDER

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measure(base: str, load: Load, rounds: int) -> None:
    from lorica.serve.build import EngineSettings, open_engine

    engine = open_engine(base, EngineSettings(slots=load.streams, max_length=512))
    engine.start()
    bodies = load.bodies(engine.base_name)
    inside: list[Cost] = []
    outside: list[Cost] = []
    with serving(engine) as (port, loop):
        words = [sys.executable, "-m", __spec__.name, "--client", str(port), json.dumps(bodies)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(words, **pipes) as client:  # type: ignore[call-overload]

            def in_process() -> int:
                reading = read_in_process(engine, bodies)
                return asyncio.run_coroutine_threadsafe(reading, loop).result()

            def by_client() -> int:
                read_by_client(client)
                return inside[0].tokens

            in_process()  # warm
            for _ in range(rounds):
                inside.append(timed(in_process))
                outside.append(timed(by_client))
            client.communicate()
    engine.close()
    report(base, load, best(inside), best(outside))


def report(base: str, load: Load, inside: Cost, outside: Cost) -> None:
    print(f"{base}: {load.streams} streams, {inside.tokens} tokens")
    for name, cost in (("engine", inside), ("HTTP", outside)):
        print(
            f"  {name:<7} {cost.tokens_per_second:8,.0f} tokens/s"
            f"  {cost.milliseconds:7.3f} ms of process time per token"
        )
    print(
        f"  HTTP leaves {outside.tokens_per_second / inside.tokens_per_second:.3f} of the tokens/s"
        f"; by process time {inside.milliseconds / outside.milliseconds:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve.http", description=__doc__)
    parser.add_argument("--base", default="bundled", help="a base, or S")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--client", nargs=2, metavar=("PORT", "BODIES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        run_client(int(options.client[0]), json.loads(options.client[1]), sys.stdin)
        return
    load = Load(options.streams, options.tokens)
    if options.base == "S":
        with tempfile.TemporaryDirectory() as folder:
            measure(str(write_base(Path(folder) / "S")), load, options.rounds)
    else:
        measure(options.base, load, options.rounds)


if __name__ == "__main__":
    main()
