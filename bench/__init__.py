"""Measurements: programs that print figures. Nothing of the proxy uses them."""
