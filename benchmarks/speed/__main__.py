"""`python -m benchmarks.speed`: see the package's docstring."""

from benchmarks.speed.run import main

if __name__ == "__main__":
    main()
