"""Jobs for a batch system: what is asked of Slurm, which launcher fits, the script, and the job in the queue."""
