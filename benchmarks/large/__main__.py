"""`python -m benchmarks.large`: see the package's docstring."""

from benchmarks.large.run import main

if __name__ == "__main__":
    main()
