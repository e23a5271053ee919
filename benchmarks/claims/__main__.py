"""`python -m benchmarks.claims`: see the package's docstring."""

from benchmarks.claims.run import main

if __name__ == "__main__":
    main()
