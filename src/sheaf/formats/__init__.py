"""From bytes to records: types, encodings, containers, and the limited process in which all of it happens."""

# Part of every cache key: a change of what any reader here returns must raise it.
READER_VERSION = 11
