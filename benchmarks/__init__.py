"""How fast the pipeline is beside other people's code: `make bench`, ratios within one run on one machine."""
