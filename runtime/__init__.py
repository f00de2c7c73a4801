"""Text to frames to text, on an exported bundle. Imports core, models, engines; never torch."""
