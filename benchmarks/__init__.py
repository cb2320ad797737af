"""Measurements; never part of the tests, because a clock on a shared machine proves nothing once."""
