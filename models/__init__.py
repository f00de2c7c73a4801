"""The local store of language models: fetch, unpack, check. Imports core only; never torch."""
