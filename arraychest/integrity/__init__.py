"""Whether all is well on disk, and what to do where it is not: `inspection`, `repair`, `rebuild`.

It is built on the engine.
"""
