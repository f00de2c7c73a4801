"""Measures the runtime beside its peers: workloads, rounds that alternate, figures, tables and charts.

Nothing here is imported by another folder, and ``peers`` runs in environments without this package.
"""
