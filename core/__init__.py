"""What every other folder shares and no folder owns: errors, atomic files, progress, the prompt layout.

Imports nothing of ours, so imports keep flowing one way. numpy and the standard library only at import.
"""
