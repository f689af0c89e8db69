"""Every change to the folder of a chest: value files are written, linked, recycled and removed.

Files are written once and never changed after they have their name.  Nothing here knows keys, rows
or what the bytes mean.
"""
