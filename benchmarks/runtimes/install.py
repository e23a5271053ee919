"""Make the environment of a runtime."""

import argparse
import shutil
import subprocess
import sys
import venv

from benchmarks.runtimes import FOLDER, HERE, READY

KNOWN = sorted(path.stem for path in HERE.glob("*.txt"))
TORCH = "torch==2.13.0+cpu"
"""From PyTorch's own index where it is not at hand: --extra-index-url
https://download.pytorch.org/whl/cpu, in PIP_EXTRA_INDEX_URL."""
UNFIT = ("torchvision", "torchaudio", "torchcodec")
SPACE = {"vllm": 10 * 2**30}
"""Bytes that must be free on the disk."""


def install(runtime: str) -> None:
    """Raises: RuntimeError without enough space; CalledProcessError if pip fails."""
    FOLDER.mkdir(exist_ok=True)
    if (free := shutil.disk_usage(FOLDER).free) < (needed := SPACE.get(runtime, 2**30)):
        raise RuntimeError(f"{free / 2**30:.1f} GiB are free, {needed / 2**30:.0f} are needed")
    folder = FOLDER / runtime
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin/python"), "-m", "pip"]
    options = ["install", "-q"]
    if runtime == "vllm":  # first, and alone: vLLM's own requirements then find this build there
        subprocess.run([*pip, *options, TORCH, "numpy"], check=True)
    else:  # without what they ask for: the converter needs torch, and runs in our environment
        options.append("--no-deps")
    subprocess.run([*pip, *options, "-r", str(HERE / f"{runtime}.txt")], check=True)
    if runtime == "vllm":  # builds for CUDA, which fail beside a torch for the CPU
        subprocess.run([*pip, "uninstall", "-q", "-y", *UNFIT], check=True)
    (folder / READY).touch()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtimes.install")
    parser.add_argument("runtime", nargs="+", choices=KNOWN)
    failed = []
    for runtime in parser.parse_args().runtime:
        print(f"installing {runtime}", flush=True)
        try:
            install(runtime)
        except (subprocess.CalledProcessError, RuntimeError) as error:
            print(f"{runtime} is not installed: {error}", file=sys.stderr)
            failed.append(runtime)
    sys.exit(f"not installed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
