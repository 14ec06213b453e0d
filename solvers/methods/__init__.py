"""One-step methods, by family; `solvers/__init__.py` says in which order they are registered."""
