"""The plan of a step as C++."""
