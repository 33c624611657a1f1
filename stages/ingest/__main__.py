"""`python -m stages.ingest`, as for the stages that are one file."""

from stages.ingest import main

main()
