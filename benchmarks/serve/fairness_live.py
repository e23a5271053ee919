"""How long one request waits for its first token beside 200 of another tenant, on the real engine.

    python -m benchmarks.serve.fairness_live [--base bundled] [--slots 16] [--repeats 20]

Wall time and decoder steps from the submission to the first token of a prompt of 32 tokens: alone;
beside 200 requests of another tenant; and beside them as one more of that tenant's (first come,
first served). Each request is of a tenant that has had nothing yet. HTTP is not part of it.
"""

import argparse
import asyncio
import random
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

MANY, PROMPT, ANSWER = 200, 32, (16, 96)
KINDS = {"short prompts": (8, 32), "long prompts": (200, 380)}
"""Tokens of the prompts of the others."""


@dataclass(frozen=True)
class Wait:
    """Until the first token."""

    milliseconds: float
    steps: int


class Requests:
    """Random requests to an engine, whose steps are counted."""

    def __init__(self, engine: Any):
        self.engine, self.draw, self.steps = engine, random.Random(0), 0
        step = engine._decoder.step

        def counted() -> Any:
            self.steps += 1
            return step()

        engine._decoder.step = counted

    def submit(self, tenant: str, prompt: int, answer: int) -> Any:
        from lorica.generation.sampling import Sampling
        from lorica.serve.exchange import Job

        ids = tuple(self.draw.randrange(3, 2000) for _ in range(prompt))
        sampling = Sampling(max_new_tokens=answer)
        return self.engine.submit(
            Job(tenant=tenant, model=self.engine.base_name, prompt=ids, sampling=sampling)
        )

    async def wait(self, tenant: str) -> Wait:
        began, steps = time.perf_counter(), self.steps
        answer = self.submit(tenant, PROMPT, 1)
        async for _ in answer:
            break
        return Wait(1000 * (time.perf_counter() - began), self.steps - steps)

    async def many(self, prompts: tuple[int, int]) -> list[Any]:
        """200 requests of one tenant, of which more than the slots have begun."""
        answers = [
            self.submit("many", self.draw.randint(*prompts), self.draw.randint(*ANSWER))
            for _ in range(MANY)
        ]
        while self.engine.stats().queued > MANY - 2 * self.engine.stats().slots:
            await asyncio.sleep(0.001)
        return answers


async def measure(requests: Requests, repeats: int, *, crowd: str | None, same: bool) -> list[Wait]:
    """same: the one is of the tenant that sends the others, too."""
    waits: list[Wait] = []
    while len(waits) < repeats:
        answers = [] if crowd is None else await requests.many(KINDS[crowd])
        for number in range(1 if same else 5):
            tenant = "many" if same else f"{crowd} {len(waits)} {number}"
            waits.append(await requests.wait(tenant))
        for answer in answers:
            answer.cancel()
        while requests.engine.stats().running:
            await asyncio.sleep(0.001)
    return waits


def line(name: str, waits: list[Wait]) -> str:
    times, steps = [w.milliseconds for w in waits], [w.steps for w in waits]
    return (
        f"{name:42}{median(times):10.1f}{max(times):10.1f}"
        f"{median(steps):10.0f}{max(steps):8}{len(waits):10}"
    )


async def compare(engine: Any, repeats: int) -> None:
    requests = Requests(engine)
    await measure(requests, 3, crowd=None, same=False)  # warm
    print(
        f"{'first token of one request':42}{'ms median':>10}{'worst':>10}{'steps':>10}{'worst':>8}"
    )
    print(line("alone", await measure(requests, repeats, crowd=None, same=False)))
    for crowd in KINDS:
        beside = await measure(requests, repeats, crowd=crowd, same=False)
        print(line(f"beside {MANY} with {crowd}", beside))
        as_one_more = await measure(requests, max(1, repeats // 10), crowd=crowd, same=True)
        print(line("  as one more of theirs", as_one_more), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve.fairness_live")
    parser.add_argument("--base", default="bundled")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    from lorica.serve.build import EngineSettings, open_engine

    settings = EngineSettings(
        slots=options.slots, max_length=512, max_queued=3 * MANY, max_queued_per_tenant=MANY + 8
    )
    engine = open_engine(options.base, settings)
    engine.start()
    try:
        asyncio.run(compare(engine, options.repeats))
    finally:
        engine.close()


if __name__ == "__main__":
    main()
