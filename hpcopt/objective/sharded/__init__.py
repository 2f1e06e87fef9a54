"""w sharded too: every rank keeps a slice of the variables and gathers the rest while it evaluates."""
