"""A disk that is full, read-only or oddly named: the message says what to do, and nothing is lost.

After room is made the same command ends as if nothing had been.
"""
