"""The ground floor, which any room may use: errors, whole files, processes, signals, metrics, tables as text.

Nothing of `datasets`, `models`, `adaptation`, `training` or `reporting` may be imported here.
"""
