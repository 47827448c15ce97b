"""Checkers of the parts of LAVISH."""
