"""Helpers of the tests: fixtures that were recorded, the commands, and bounds on rounding."""
