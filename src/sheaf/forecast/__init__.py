"""Forecasts: what preparing and training will take, told before it is begun, on this machine or on one that one does
not have. `plan.py` puts the answer together."""
