"""The catalog: which key has which value, and where that value lies, in one SQLite database.

`schema` is the specification of the format, and `connection` opens the database.  `catalog` finds
and changes rows (`record`), `changes` tells other processes of it, and `facts` says what else is
known of values.  `damaged` reads rows that may hold anything.  The catalog knows forms of values,
and reads and writes no file of values.
"""
