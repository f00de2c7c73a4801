"""The shipped checkpoint (data files only): trained encoder and adapters, their graphs, and measured quality."""
