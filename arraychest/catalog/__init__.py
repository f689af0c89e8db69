"""The catalog: which key has which value, and where that value lies, in one SQLite database.

`record` is a row, and `catalog` the specification of the format with all the queries.  The catalog
knows forms of values, and reads and writes no file of values.
"""
