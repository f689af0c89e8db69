"""Side-by-side measurements of arraychest, the machine's own limit, and its peers.

Run from the repository's root: ``python -m bench --help``.
"""
