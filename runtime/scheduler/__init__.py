"""Many requests on the rows of one running batch: a row that is done takes the next request at once.

``state`` decides and knows no clock and no array; ``rows`` computes; ``loop`` joins them; ``service`` is the thread
that other threads talk to.
"""
