"""Text to frames and frames to text, on an exported bundle. No torch.

    text -> ids -> Z -> FRAME ~~> Z -> rows -> inputs_embeds -> prefill -> decode -> text

Each arrow is one file; ``pipeline.py`` joins them and is the public object.
"""
