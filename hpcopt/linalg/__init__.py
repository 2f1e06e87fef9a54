"""Small numerical methods on plain tensors: pairs, models, subproblems and line searches."""
