"""Documents and questions of `latentwire demo` (data files only, sources in README.md)."""
