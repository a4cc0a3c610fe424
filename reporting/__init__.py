"""From finished runs to tables, charts, pictures and documents; also the figures that others published.

Reads run directories and checkpoints and never writes into them. Nothing here is needed to train or to evaluate.
"""
