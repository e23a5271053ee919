"""`python -m tests.serve.reading_client URL MODEL COUNT`: read streams, and print a line for each
event, until it is killed."""

import json
import sys
import threading
import urllib.request


def read(url: str, body: dict) -> None:
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        for _ in reply:
            sys.stdout.write("event\n")  # whole: the streams share it
            sys.stdout.flush()


def main() -> None:
    url, model, count = sys.argv[1:]
    body = {"model": model, "prompt": "Once", "max_tokens": 400, "stream": True, "temperature": 0}
    for _ in range(int(count)):
        threading.Thread(target=read, args=(url, body), daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
