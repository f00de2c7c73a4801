"""The prompt layout: what stands where."""

from __future__ import annotations

from latentwire.core.prompt import latent_prompt


def test_front_rows_stand_before_the_latents_and_come_behind_the_task_rows() -> None:
    plain = latent_prompt([9], 2, 4, 3, [7, 8])
    assert plain.ids.tolist() == [9, 0, 0, 0, 0, 0, 7, 8]
    assert plain.row_index.tolist() == [-1, 0, 1, 4, 5, 6, -1, -1]
    front = latent_prompt([9], 2, 4, 3, [7, 8], front=2)
    assert front.ids.tolist() == [9, 0, 0, 0, 0, 0, 0, 0, 7, 8]
    assert front.row_index.tolist() == [-1, 7, 8, 0, 1, 4, 5, 6, -1, -1]
