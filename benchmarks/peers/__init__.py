"""Programs that answer prompts for a benchmark, one process each.

``serve`` holds the protocol; the other files drive one library each and run in an environment of its own, as
``python -m peers.NAME`` beside this folder: they import the standard library, that library, and each other.
"""
