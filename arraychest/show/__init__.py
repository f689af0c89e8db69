"""What people look at: the entries of a chest, cards for notebooks, and plots.

It is built on the engine, and changes nothing.
"""
