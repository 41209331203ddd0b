"""The same command twice: the second waits, says for whom and since when, and does nothing again."""
