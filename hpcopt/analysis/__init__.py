"""Reading, comparing and plotting runs, and a look at the machine: what the commands do, as functions."""
