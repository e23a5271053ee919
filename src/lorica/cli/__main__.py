"""`python -m lorica.cli`, for launchers: accelerate launch -m lorica.cli train recipe.yaml."""

from lorica.cli import main

main()
