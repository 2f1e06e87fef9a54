"""The function to minimise, its gradient and its linearisation, reduced over the ranks."""
