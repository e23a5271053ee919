"""`python -m benchmarks.plan`: see the package's docstring."""

from benchmarks.plan.run import main

if __name__ == "__main__":
    main()
