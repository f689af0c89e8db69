"""Cached functions: what a call is, what a function does, and its result in a chest.

`arguments` makes a call that is spelled in several ways one call, `fingerprint` tells a function by
what it does (`looking` finds what it reaches, `prints` and `value_print` write down values), and
`cached` keeps the results.  It is built on the engine.
"""
