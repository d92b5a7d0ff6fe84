"""Weights: ParamStates as named leaves, their groups, units, precision and the predicates that choose among them."""
