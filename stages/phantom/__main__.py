"""`python -m stages.phantom`, as for the stages that are one file."""

from stages.phantom import main

main()
