"""The data of a training at scale: time and memory of a file of a million rows.

    python -m benchmarks.data write rows.jsonl --rows 1000000
    python -m benchmarks.data memory -- lorica check --base bundled --data rows.jsonl
    python -m benchmarks.data speed rows.jsonl --rows 20000 --processes 2

`memory` runs a command and prints its seconds, and the peak of its whole process tree: RSS, in
which a page that several processes map counts for each of them, and PSS, in which it counts once.
`speed` tokenises the same conversations here and by `datasets.map`, in turn, and prints the ratio.
"""

import argparse
import json
import os
import random
import re
import subprocess
import tempfile
import time
from pathlib import Path

SUBJECTS = ["order", "parcel", "invoice", "battery", "kettle", "lamp", "chair", "router", "bicycle"]
VERBS = [
    "arrived broken",
    "stopped",
    "leaked",
    "vanished",
    "rattled",
    "froze",
    "came back",
    "failed",
]
TIMES = ["yesterday", "on Monday", "last week", "this morning", "in April", "before the storm"]
ADVICE = ["restart", "replace", "return", "photograph", "weigh", "unplug", "register", "repair"]
INTERVAL = 0.1  # seconds between two samples of memory


def write_rows(path: Path, rows: int, seed: int = 0) -> None:
    """Write `rows` conversations of about 450 bytes, no two alike, as JSON Lines."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            file.write(json.dumps({"messages": _conversation(draw, number)}) + "\n")


def _conversation(draw: random.Random, number: int) -> list[dict[str, str]]:
    subject = draw.choice(SUBJECTS)
    question = f"Case {number}: {_sentence(draw, subject)} {_sentence(draw, draw.choice(SUBJECTS))}"
    answer = " ".join(
        f"Please {draw.choice(ADVICE)} the {subject} and note {draw.randrange(10**6)}."
        for _ in range(draw.randrange(3, 8))
    )
    return [
        {"role": "user", "content": f"{question} What should I do?"},
        {"role": "assistant", "content": answer},
    ]


def _sentence(draw: random.Random, subject: str) -> str:
    return (
        f"My {subject} {draw.choice(VERBS)} {draw.choice(TIMES)} and the label reads "
        f"{draw.choice('ABCDEFGH')}-{draw.randrange(10**5)}."
    )


def measure_memory(command: list[str]) -> tuple[float, int, int]:
    """(seconds, peak RSS, peak PSS) of a command and all processes that it starts, in bytes.

    Raises: SystemExit if the command fails.
    """
    began, rss, pss = time.perf_counter(), 0, 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            used = [_memory(pid) for pid in _tree(process.pid)]
            rss, pss = max(rss, sum(u[0] for u in used)), max(pss, sum(u[1] for u in used))
            time.sleep(INTERVAL)
    if process.returncode:
        raise SystemExit(process.returncode)
    return time.perf_counter() - began, rss, pss


def _tree(root: int) -> list[int]:
    """The process and all its descendants."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_text()
            except OSError:
                continue
            parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    tree = [root]
    for pid in tree:
        tree += [child for child, parent in parents.items() if parent == pid]
    return tree


def _memory(pid: int) -> tuple[int, int]:
    """(RSS, PSS) of a process in bytes; zeros if it has ended."""
    try:
        text = Path("/proc", str(pid), "smaps_rollup").read_text()
    except OSError:
        return 0, 0
    sizes = dict(re.findall(r"^(Rss|Pss): +(\d+) kB", text, re.MULTILINE))
    return int(sizes.get("Rss", 0)) * 1024, int(sizes.get("Pss", 0)) * 1024


def compare_speed(path: Path, rows: int, processes: int) -> dict[str, float]:
    """Seconds for the first `rows` conversations of a file: here, and by `datasets.map`.

    ours: decode, render, mask the labels, tokenise, digest, store. ids: `datasets` reads the file
    into its Arrow table, then `map` renders and tokenises in batches, without labels. labels: `map`
    returns the same labels too, by transformers' own mask of the assistant's tokens.
    """
    import datasets

    from lorica.base.load import load_tokenizer
    from lorica.data.config import DataConfig
    from lorica.data.pipeline import tokenise_file

    tokenizer = load_tokenizer("bundled")
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        began = time.perf_counter()
        table = datasets.load_dataset(
            "json", data_files=str(path), split=f"train[:{rows}]", cache_dir=folder
        )
        reading = time.perf_counter() - began

        def ids(batch):
            texts = [tokenizer.apply_chat_template(m, tokenize=False) for m in batch["messages"]]
            return {"input_ids": tokenizer(texts, add_special_tokens=False)["input_ids"]}

        def labels(row):
            encoded = tokenizer.apply_chat_template(
                row["messages"], return_dict=True, return_assistant_tokens_mask=True
            )
            return {"input_ids": encoded["input_ids"], "mask": encoded["assistant_masks"]}

        seconds = {}
        config = DataConfig(path=str(path), limit=rows, workers=processes)
        began = time.perf_counter()
        tokenise_file(config, tokenizer, seed=0)
        seconds["ours"] = time.perf_counter() - began
        for name, work in (("ids", ids), ("labels", labels)):
            began = time.perf_counter()
            table.map(
                work,
                batched=name == "ids",
                num_proc=processes,
                remove_columns=table.column_names,
                load_from_cache_file=False,
            )
            seconds[name] = reading + time.perf_counter() - began
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="write a file of conversations")
    write.add_argument("path", type=Path)
    write.add_argument("--rows", type=int, default=1_000_000)
    memory = commands.add_parser("memory", help="seconds and peak memory of a command")
    memory.add_argument("words", nargs="+")
    speed = commands.add_parser("speed", help="tokenising beside datasets.map")
    speed.add_argument("path", type=Path)
    speed.add_argument("--rows", type=int, default=20_000)
    speed.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    if given.command == "write":
        write_rows(given.path, given.rows)
    elif given.command == "memory":
        seconds, rss, pss = measure_memory(given.words)
        print(f"{seconds:.1f} s, peak RSS {rss / 2**30:.2f} GiB, peak PSS {pss / 2**30:.2f} GiB")
    else:
        seconds = compare_speed(given.path, given.rows, given.processes)
        for name, value in seconds.items():
            rate, ratio = given.rows / value, value / seconds["ours"]
            print(f"{name:<8}{value:7.1f} s {rate:9,.0f} rows/s, {ratio:.2f} times our seconds")


if __name__ == "__main__":
    main()
