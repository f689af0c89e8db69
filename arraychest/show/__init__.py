"""What people look at: cards for notebooks, and plots.

It is built on the engine, and changes nothing.
"""
