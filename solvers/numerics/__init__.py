"""Numerics that know no solver: tableaus, operators, phi functions, Jacobians, Newton's method."""
