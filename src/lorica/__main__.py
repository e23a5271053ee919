"""`python -m lorica`, which launchers of several processes need: torchrun -m lorica train ..."""

from lorica.cli import main

main()
