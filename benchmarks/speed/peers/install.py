"""Make an environment for each peer."""

import argparse
import subprocess
import sys
import venv

from benchmarks.speed.peers import FOLDER, HERE, READY

KNOWN = sorted(path.stem for path in HERE.glob("*.txt"))
TORCH = "torch==2.13.0"
"""The version that Lorica is tested with. It comes first, and alone, so that whichever build is
chosen for this machine, the peer's own requirements find it there and bring no other."""


def install(peer: str) -> None:
    folder = FOLDER / peer
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "-q"]
    subprocess.run([*pip, TORCH], check=True)
    # numpy, because torch asks for none
    subprocess.run([*pip, TORCH, "numpy", "-r", str(HERE / f"{peer}.txt")], check=True)
    said = "import torch; print(torch.__version__, 'with CUDA' if torch.version.cuda else 'CPU')"
    subprocess.run([str(folder / "bin/python"), "-c", said], check=True)
    (folder / READY).touch()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.peers.install")
    parser.add_argument("--only", nargs="+", choices=KNOWN, default=KNOWN)
    failed = []
    for peer in parser.parse_args().only:
        print(f"installing {peer}", flush=True)
        try:
            install(peer)
        except subprocess.CalledProcessError as error:
            print(f"{peer} is not installed: {error}", file=sys.stderr)
            failed.append(peer)
    sys.exit(f"not installed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
