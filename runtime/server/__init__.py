"""``latentwire serve``: the OpenAI-compatible HTTP server of one bundle.

Frames or texts come in as JSON, answers go out as JSON or as a stream of events. The scheduler
(``runtime/scheduler``) does the work; this package knows HTTP, limits and deadlines, and nothing of arrays.
"""
