"""The methods' mathematics, one paper a file: tensors in, tensors out, equations and constants with their source.

No file, no flag and no run is known here: what a method does with its step stands in its script, `train_*.py`.
"""
