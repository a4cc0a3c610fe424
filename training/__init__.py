"""The life of a run: its flags, its directory, its steps, what it keeps, logs and evaluates, and how it is resumed.

What a method computes is not here but in `adaptation/`; what a report makes of finished runs is in `reporting/`.
"""
